//! The packet's nf_hook_state, found on the stack: a local variable of the function that called
//! `nf_hook_slow()`.

use fwtrace_abi::STATE_BYTES;

use super::{Work, each, work};
use crate::kernel::{copy, is_pointer, offset, u64_at};

/// Words of stack that are searched.
const WORDS: usize = 64;
/// Words of an nf_hook_state that are looked at.
const STATE_WORDS: usize = STATE_BYTES as usize / 8;
/// Words that are stepped over: the bounds of all accesses.
const STEPS: u32 = (WORDS - STATE_WORDS) as u32;

const NF_INET_PRE_ROUTING: u8 = 0;
const NF_INET_LOCAL_IN: u8 = 1;
const NF_INET_FORWARD: u8 = 2;
const NF_INET_POST_ROUTING: u8 = 4;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;

#[repr(C)]
pub struct Window {
    words: [u64; WORDS],
    location: u64,
    net: u64,
    /// Where the return address into nf_hook_slow stood last.
    hint: u32,
    /// Where the search begins: behind the return address, 0 if that has not been found yet.
    start: u32,
    /// What was found.
    at: u32,
    hook: u8,
    pf: u8,
    pad: u16,
}

/// Family and hook of the innermost nf_hook_state of `net` behind nf_hook_slow's frame, whose lower
/// end is the return address `location`. Sets `work.state`.
#[inline(always)]
pub fn find(work: &mut Work, stack: u64, location: u64, net: u64) -> Option<(u32, u8)> {
    work.state = 0;
    if offset!(state_net) == fwtrace_abi::ABSENT {
        return None;
    }
    let window = &mut work.stack;
    if !copy((&raw mut window.words).cast(), (WORDS * 8) as u32, stack) {
        return None;
    }
    window.location = location;
    window.net = net;
    window.at = 0;
    let hint = core::hint::black_box(window.hint) as usize & (WORDS - 1);
    // The return address stands there once: what is on the stack above it has not returned yet.
    window.start = if window.words[hint] == location {
        window.hint + 1
    } else {
        0
    };
    if work.stack.start == 0 {
        each(work, STEPS, seek);
    }
    if work.stack.start == 0 {
        return None;
    }
    each(work, STEPS, step);
    let window = &work.stack;
    if window.at == 0 {
        return None;
    }
    work.state = window.at as u64;
    Some((window.pf as u32, window.hook))
}

/// Copies the nf_hook_state that was found.
#[inline(always)]
pub fn hand_over(work: &Work, to: *mut [u64; STATE_WORDS]) -> bool {
    let window = &work.stack;
    let first = core::hint::black_box(work.state) as usize & (WORDS - 1);
    if work.state == 0 || first > WORDS - STATE_WORDS {
        return false;
    }
    for i in 0..STATE_WORDS {
        let word = window.words[(first + i) & (WORDS - 1)];
        // SAFETY: within the array, which the caller owns.
        unsafe { core::ptr::write_volatile(to.cast::<u64>().add(i), word) };
    }
    true
}

/// Looks for the return address.
extern "C" fn seek(index: u32, _: *mut core::ffi::c_void) -> i64 {
    let Some(work) = work() else { return 1 };
    let window = &mut work.stack;
    if window.words[core::hint::black_box(index) as usize & (WORDS - 1)] == window.location {
        window.hint = index;
        window.start = index + 1;
        return 1;
    }
    0
}

/// Looks whether an nf_hook_state begins at this word.
extern "C" fn step(index: u32, _: *mut core::ffi::c_void) -> i64 {
    let Some(work) = work() else { return 1 };
    let window = &mut work.stack;
    let at = window.start + index;
    if at >= STEPS {
        return 1;
    }
    if word(window, at, offset!(state_net)) != window.net {
        return 0;
    }
    // Hook and family are single bytes; what stands behind them in their word was never written.
    let hook = (word(window, at, offset!(state_hook)) >> (offset!(state_hook) % 8 * 8)) as u8;
    let pf = (word(window, at, offset!(state_pf)) >> (offset!(state_pf) % 8 * 8)) as u8;
    if hook > NF_INET_POST_ROUTING || (pf != NFPROTO_IPV4 && pf != NFPROTO_IPV6) {
        return 0;
    }
    let input = word(window, at, offset!(state_in));
    let output = word(window, at, offset!(state_out));
    let (in_here, out_here) = (
        is_of(input, window.net) as u32,
        is_of(output, window.net) as u32,
    );
    // Which interfaces there are on which hook (include/linux/netfilter.h and its callers, v6.18).
    let (wants_in, wants_out) = match hook {
        NF_INET_PRE_ROUTING | NF_INET_LOCAL_IN => (1, 0),
        NF_INET_FORWARD => (1, 1),
        _ => (0, 1),
    };
    if in_here < wants_in || out_here < wants_out {
        return 0;
    }
    window.hook = hook;
    window.pf = pf;
    window.at = at;
    1
}

/// The word of the struct that begins at word `at` which holds the byte at `offset`.
#[inline(always)]
fn word(window: &Window, at: u32, offset: u32) -> u64 {
    let index = at + (offset & (STATE_BYTES - 1)) / 8;
    window.words[core::hint::black_box(index) as usize & (WORDS - 1)]
}

/// Whether it is the address of a device of this netns.
#[inline(always)]
fn is_of(device: u64, net: u64) -> bool {
    is_pointer(device) && u64_at(device, offset!(dev_net)) == net
}
