//! The hook and the interfaces of a drop: from the packet's nf_hook_state, if that is known, else from the packet.

use fwtrace_abi::{ABSENT, IFNAMSIZ, PKTINFO_WINDOW, Record, STATE_BYTES};

use crate::{
    filter::each,
    kernel::{copy, field, offset, typed, u32_at},
    scratch::{Scratch, scratch},
    uapi::{NFPROTO_ARP, NFPROTO_BRIDGE, NFPROTO_IPV4, NFPROTO_IPV6, NFPROTO_NETDEV},
};

/// A field of the copied nf_hook_state.
macro_rules! state {
    ($scratch:ident, $field:ident, $t:ty) => {
        field!($scratch.state, STATE_BYTES, $field, $t)
    };
}

/// Copies the packet's `struct nf_hook_state`: what stands behind the skb in `struct nft_pktinfo` {skb,
/// state} (include/net/netfilter/nf_tables.h, v6.18). False if no pktinfo of this very packet is where
/// it should be: then the stack has another shape than the one learnt.
#[inline(always)]
pub fn find_state(scratch: &mut Scratch, stack: u64, skb: u64, net: u64) -> bool {
    let slot = scratch.site.pktinfo_slot;
    let size = size_of_val(&scratch.window) as u32;
    if slot < 0
        || !copy(
            (&raw mut scratch.window).cast(),
            size,
            stack + slot as u64 * 8,
        )
    {
        return false;
    }
    // The first skb is nearly always the pktinfo's. Its place goes through the map: one in a register
    // would have the verifier follow the rest of the program for each of them.
    let place = &raw mut scratch.place;
    // SAFETY: a field of the scratch memory.
    unsafe { core::ptr::write_volatile(place, 0) };
    for i in (0..PKTINFO_WINDOW).rev() {
        if scratch.window[i] == skb {
            // SAFETY: as above.
            unsafe { core::ptr::write_volatile(place, i as u64) };
        }
    }
    // SAFETY: as above.
    let first = unsafe { core::ptr::read_volatile(place) } as usize & (PKTINFO_WINDOW - 1);
    if matching_state(scratch, first, net) {
        return true;
    }
    scratch.sought = (skb, net);
    scratch.state_found = 0;
    each(scratch, PKTINFO_WINDOW as u32, try_state);
    scratch.state_found != 0
}

/// Copies the nf_hook_state that the word behind the skb at `at` points to; true if it is one of `net`. What is no hook, or lacks the
/// device that its hook has, is what an earlier call has left there, with the pktinfo of this one over its start perhaps.
#[inline(always)]
fn matching_state(scratch: &mut Scratch, at: usize, net: u64) -> bool {
    let state = scratch.window[at + 1];
    copy((&raw mut scratch.state).cast(), STATE_BYTES, state)
        && state!(scratch, state_net, u64) == net
        && devices_of(
            state!(scratch, state_pf, u8),
            state!(scratch, state_hook, u8),
        ) & {
            let input = (state!(scratch, state_in, u64) != 0) as u8;
            let output = (state!(scratch, state_out, u64) != 0) as u8;
            input | output << 1
        } != 0
}

/// The device that a hook always has: 1 the incoming one, 2 the outgoing one; 0: there is no such hook. So it is for all callers of
/// `nf_hook()`, `nf_hook_ingress()` and `nf_hook_egress()` (include/linux/netfilter.h, netfilter_netdev.h, v6.18).
#[inline(always)]
fn devices_of(pf: u8, hook: u8) -> u8 {
    // Two bits a hook, from hook 0 on.
    let devices: u64 = match pf {
        // Prerouting, input, forward, output, postrouting; then ingress of family inet, and the bridge's brouting.
        NFPROTO_IPV4 | NFPROTO_BRIDGE | NFPROTO_IPV6 => 0b01_10_10_01_01_01,
        // In and out; ingress and egress.
        NFPROTO_ARP | NFPROTO_NETDEV => 0b10_01,
        _ => 0,
    };
    (devices >> ((hook & 31) * 2)) as u8 & 3
}

/// Looks at two words of the window.
extern "C" fn try_state(index: u32, _: *mut core::ffi::c_void) -> i64 {
    let Some(scratch) = scratch() else { return 1 };
    let (skb, net) = scratch.sought;
    let at = core::hint::black_box(index) as usize & (PKTINFO_WINDOW - 1);
    if scratch.window[at] == skb && matching_state(scratch, at, net) {
        scratch.state_found = 1;
        return 1;
    }
    0
}

/// Hook and interfaces from the hook state.
#[inline(always)]
pub fn from_state(scratch: &mut Scratch, skb: u64) {
    scratch.record.hook = state!(scratch, state_hook, u8);
    scratch.record.pf = state!(scratch, state_pf, u8);
    let input = state!(scratch, state_in, u64);
    let output = state!(scratch, state_out, u64);
    scratch.record.iif = device(&mut scratch.record.iif_name, input, skb);
    scratch.record.oif = device(&mut scratch.record.oif_name, output, skb);
}

/// Without a hook state: the interface it came in on, and the device that it stands at.
#[inline(always)]
pub fn interfaces(record: &mut Record, skb: u64) {
    let at = typed!(typed!(skb, skb_dev, u64), dev_ifindex, u32);
    let iif = typed!(skb, skb_iif, u32);
    record.iif = iif;
    if at == 0 {
        return;
    }
    if iif == at {
        record.iif = own_device(&mut record.iif_name, skb);
    } else {
        record.oif = own_device(&mut record.oif_name, skb);
    }
}

/// Name and number of a device of the hook state, which is mostly the one that the packet is at.
#[inline(always)]
fn device(name: &mut [u8; IFNAMSIZ], dev: u64, skb: u64) -> u32 {
    if dev == 0 || offset!(dev_name) == ABSENT {
        return 0;
    }
    if dev == typed!(skb, skb_dev, u64) {
        return own_device(name, skb);
    }
    copy(
        name.as_mut_ptr(),
        IFNAMSIZ as u32,
        dev.wrapping_add(offset!(dev_name) as u64),
    );
    u32_at(dev, offset!(dev_ifindex))
}

/// Likewise of the device that the packet is at. Read anew: the compiler would take a number that is
/// the same for it.
#[inline(always)]
fn own_device(name: &mut [u8; IFNAMSIZ], skb: u64) -> u32 {
    let dev = typed!(skb, skb_dev, u64);
    let words = [typed!(dev, dev_name, u64), typed!(dev, dev_name, u64, 8)];
    for (word, value) in words.into_iter().enumerate() {
        // SAFETY: within the name, which stands at a multiple of 8.
        unsafe { core::ptr::write_volatile(name.as_mut_ptr().cast::<u64>().add(word), value) };
    }
    typed!(dev, dev_ifindex, u32)
}
