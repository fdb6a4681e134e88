//! Whether conntrack itself has dropped: its table was full, or its connection could not be entered.
//!
//! `nf_conntrack_in()` and `nf_confirm()` count such a packet on this CPU right before `nf_hook_slow()` frees it
//! (net/netfilter/nf_conntrack_core.c, v6.18). So at each drop there that no rule explains, whatever the filter says, the counters are
//! compared with what they were at the last one on this CPU. What other places than `nf_hook_slow()` drop by conntrack's word (act_ct,
//! Open vSwitch) is in the difference, too: then more than one packet has been counted, and user space believes it no more. So is what
//! was dropped while this program was at work on the CPU, which it is not shown: one packet that was counted can be that one, and
//! counts as many.

use aya_ebpf::{helpers::generated::bpf_get_smp_processor_id, macros::map, maps::LruHashMap};
use fwtrace_abi::{CtCounts, CtKey, CtMoved};

use crate::{
    drops::COUNTERS,
    kernel::{offset, u32_at, u64_at},
    scratch::{SCRATCH, Scratch},
    skipped,
};

/// The counters at the last look. User space enters those of namespaces whose watch begins.
#[map]
static CT_COUNTS: LruHashMap<CtKey, CtCounts> = LruHashMap::with_max_entries(16384, 0);

/// Looks at the counters of `net`, whose inode is `netns`, and puts into the record by how much they have moved.
#[inline(always)]
pub fn look(scratch: &mut Scratch, net: u64, netns: u32) -> Option<()> {
    let counters = u64_at(net, offset!(net_ct_stat));
    if counters == 0 {
        return None;
    }
    let here = counters.wrapping_add(per_cpu_offset(scratch)?);
    let skipped_before = count_skipped(scratch)?;
    // What cannot be read is 0, which no counter comes back to: then all of them have moved by a lot.
    let now = CtCounts {
        drop: u32_at(here, offset!(ctstat_drop)),
        insert_failed: u32_at(here, offset!(ctstat_insert_failed)),
        early_drop: u32_at(here, offset!(ctstat_early_drop)),
        chain_too_long: u32_at(here, offset!(ctstat_chain_too_long)),
        invalid: u32_at(here, offset!(ctstat_invalid)),
        // One that comes while the counters are read is in doubt now and at the next look.
        skipped: skipped_before,
    };
    let skipped = count_skipped(scratch)?;
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let key = CtKey { netns, cpu };
    let Some(seen) = CT_COUNTS.get_ptr_mut(&key) else {
        let _ = CT_COUNTS.insert(&key, &now, 0);
        return None;
    };
    // SAFETY: a map value of this CPU's own.
    let before = unsafe { &mut *seen };
    let most = if before.skipped == skipped {
        u8::MAX as u32
    } else {
        0
    };
    scratch.record.ct_moved = CtMoved {
        known: 1,
        drop: moved(before.drop, now.drop, most),
        insert_failed: moved(before.insert_failed, now.insert_failed, most),
        early_drop: moved(before.early_drop, now.early_drop, most),
        chain_too_long: moved(before.chain_too_long, now.chain_too_long, most),
        invalid: moved(before.invalid, now.invalid, most),
        pad: [0; 2],
    };
    *before = now;
    Some(())
}

/// How many drops were skipped on this CPU, the one that is only written down included.
#[inline(always)]
fn count_skipped(scratch: &mut Scratch) -> Option<u32> {
    skipped::settle(&mut scratch.skipped);
    let counters = COUNTERS.get_ptr(0)?;
    // SAFETY: a per-CPU map value, in which another program may count meanwhile.
    Some(unsafe { core::ptr::read_volatile(&raw const (*counters).skipped) } as u32)
}

/// By how much a counter has moved; what is more than `most` is as much as can be.
#[inline(always)]
fn moved(before: u32, now: u32, most: u32) -> u8 {
    let by = now.wrapping_sub(before);
    if by > most { u8::MAX } else { by as u8 }
}

/// What per-CPU addresses are relative to on this CPU: what lies between the address of a per-CPU value and what `bpf_array.pptrs` has
/// for it (include/linux/bpf.h, v6.18). Two maps must agree.
#[inline(always)]
fn per_cpu_offset(scratch: &mut Scratch) -> Option<u64> {
    if scratch.per_cpu_offset != 0 {
        return Some(scratch.per_cpu_offset);
    }
    let counters = COUNTERS.get_ptr_mut(0)?.cast_const().cast();
    let this = (&raw const *scratch).cast();
    let this = number(scratch, this);
    let counters = number(scratch, counters);
    let map = number(scratch, (&raw const SCRATCH).cast());
    let other = number(scratch, (&raw const COUNTERS).cast());
    let offset = this.wrapping_sub(u64_at(map, offset!(ctstat_pptrs)));
    if offset != counters.wrapping_sub(u64_at(other, offset!(ctstat_pptrs))) {
        return None;
    }
    scratch.per_cpu_offset = offset;
    Some(offset)
}

/// The address as a number, through memory: the verifier allows no arithmetic on some.
#[inline(always)]
fn number(scratch: &mut Scratch, address: *const u8) -> u64 {
    // SAFETY: a field of the map value.
    unsafe {
        core::ptr::write_volatile(&raw mut scratch.spill, address as u64);
        core::ptr::read_volatile(&raw const scratch.spill)
    }
}
