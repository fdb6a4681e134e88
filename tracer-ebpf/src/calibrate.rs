//! The calibration program: which words of the stack are what, for drops of fwtrace's own packets.

use aya_ebpf::{
    EbpfContext,
    helpers::generated::bpf_loop,
    macros::{btf_tracepoint, map},
    maps::{Array, PerCpuArray, RingBuf},
    programs::BtfTracePointContext,
};
use fwtrace_abi::{CANDIDATES, Calibration, Candidate, SCAN_WORDS};

use crate::{
    kernel::{copy, is_pointer, offset, typed, u64_at},
    rule, skipped,
};

/// Inode of the calibration's network namespace.
#[map]
static CALIBRATION_NETNS: Array<u32> = Array::with_max_entries(1, 0);

#[map]
static CALIBRATION_RING: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);

#[repr(C)]
struct Scan {
    skb: u64,
    net: u64,
    stack: u64,
    out: Calibration,
}

#[map]
static SCAN: PerCpuArray<Scan> = PerCpuArray::with_max_entries(1, 0);

/// Looks at one word.
extern "C" fn look(index: u32, _: *mut core::ffi::c_void) -> i64 {
    let Some(scan) = SCAN.get_ptr_mut(0) else {
        return 1;
    };
    // SAFETY: a per-CPU map value; the program does not nest on a CPU.
    let scan = unsafe { &mut *scan };
    let mut word = 0u64;
    if !copy(
        (&raw mut word).cast(),
        8,
        scan.stack.wrapping_add(index as u64 * 8),
    ) {
        return 1;
    }
    let slot = index as usize;
    if slot >= SCAN_WORDS {
        return 1;
    }
    scan.out.word[slot] = word;
    scan.out.words = index + 1;
    if !is_pointer(word) {
        return 0;
    }
    let state = u64_at(scan.stack, (index + 1) * 8);
    if word == scan.skb && u64_at(state, offset!(state_net)) == scan.net {
        let n = scan.out.pktinfo_count as usize;
        if n < CANDIDATES {
            scan.out.pktinfo[n] = index;
            scan.out.pktinfo_count += 1;
        }
    }
    if let Some(found) = rule::validate(word) {
        let n = scan.out.rule_count as usize;
        if n < CANDIDATES {
            scan.out.rules[n] = Candidate {
                slot: index,
                is_last: rule::is_last(found.header) as u32,
                handle: rule::handle(found.header),
                previous: rule::handle(found.previous),
                chain: found.chain,
                chain_handle: u64_at(found.chain, offset!(chain_handle)),
            };
            scan.out.rule_count += 1;
        }
    }
    0
}

#[btf_tracepoint(function = "kfree_skb")]
pub fn calibrate(ctx: BtfTracePointContext) -> i32 {
    scan(&ctx);
    0
}

#[inline(always)]
fn scan(ctx: &BtfTracePointContext) -> Option<()> {
    let skb = ctx.arg::<u64>(0);
    let net = typed!(typed!(skb, skb_dev, u64), dev_net, u64);
    let netns = *CALIBRATION_NETNS.get(0)?;
    if netns == 0 || typed!(net, net_inum, u32) != netns {
        return None;
    }
    // SAFETY: as in `look`.
    let scan = unsafe { &mut *SCAN.get_ptr_mut(0)? };
    scan.skb = skb;
    scan.net = net;
    scan.stack = ctx.as_ptr() as u64;
    scan.out.location = ctx.arg::<u64>(1);
    scan.out.reason = ctx.arg::<u32>(2);
    scan.out.mark = typed!(skb, skb_mark, u32);
    scan.out.words = 0;
    scan.out.pad = 0;
    scan.out.rule_count = 0;
    scan.out.pktinfo_count = 0;
    // The callback looks the scan up for itself, which the compiler cannot know.
    core::hint::black_box(&mut *scan);
    // SAFETY: `look` is a valid callback.
    unsafe {
        bpf_loop(
            SCAN_WORDS as u32,
            look as *mut core::ffi::c_void,
            core::ptr::null_mut(),
            0,
        );
    }
    core::hint::black_box(&mut *scan);
    let _ = CALIBRATION_RING.output::<Calibration>(&scan.out, 0);
    Some(())
}

/// See the table in `main.rs`.
#[btf_tracepoint(function = "kfree_skb")]
pub fn anchor(ctx: BtfTracePointContext) -> i32 {
    skipped::watch(&ctx);
    0
}
