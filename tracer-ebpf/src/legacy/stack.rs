//! The packet's nf_hook_state, found on the stack: a local variable of the function that called
//! `nf_hook_slow()`.

use fwtrace_abi::STATE_BYTES;

use super::{Work, each, work};
use crate::{
    kernel::{copy, get, is_pointer, offset, u64_at},
    uapi::{
        NF_INET_FORWARD, NF_INET_LOCAL_IN, NF_INET_POST_ROUTING, NF_INET_PRE_ROUTING, NFPROTO_IPV4,
        NFPROTO_IPV6,
    },
};

/// Words of stack that are searched.
const WORDS: usize = 64;
/// Words of an nf_hook_state that are looked at.
pub const STATE_WORDS: usize = STATE_BYTES as usize / 8;
/// Words that are stepped over: the bounds of all accesses.
const STEPS: u32 = (WORDS - STATE_WORDS) as u32;

/// The tracepoint's arguments, one of which is the return address: the search begins behind them.
const ARGUMENTS: u32 = 4;
/// Words from the return address on that are looked at first: the state is nearly always there.
const NEAR: usize = 24;
/// Words of them at which it may begin.
const NEAR_STEPS: usize = NEAR - STATE_WORDS;

#[repr(C)]
pub struct Window {
    words: [u64; WORDS],
    location: u64,
    net: u64,
    /// Where the return address into nf_hook_slow stood last.
    hint: u32,
    /// The last incoming and outgoing device, and the namespace that they were in.
    devices: [u64; 2],
    devices_net: u64,
    /// Where the search of all words begins: behind the return address, 0 if that has not been found yet.
    start: u32,
    /// What was found.
    at: u32,
    hook: u8,
    pf: u8,
    pad: u16,
}

impl Window {
    /// The namespace that was looked for last.
    #[inline(always)]
    pub fn net(&self) -> u64 {
        get!(self.net)
    }
}

/// Family and hook of the innermost nf_hook_state of `net` behind nf_hook_slow's frame, whose lower
/// end is the return address `location`. Sets `work.state`.
#[inline(always)]
pub fn find(work: &mut Work, stack: u64, location: u64, net: u64) -> Option<(u32, u8)> {
    work.state = 0;
    if offset!(state_net) == fwtrace_abi::ABSENT {
        return None;
    }
    work.stack.location = location;
    work.stack.net = net;
    work.stack.at = 0;
    if !near(&mut work.stack, stack) && !anywhere(work, stack) {
        return None;
    }
    let window = &work.stack;
    work.state = window.at as u64;
    Some((window.pf as u32, window.hook))
}

/// Looks right behind the return address, where that stood last. It stands on the stack once: what is
/// above it has not returned yet.
#[inline(always)]
fn near(window: &mut Window, stack: u64) -> bool {
    let hint = (window.hint as u64 & (WORDS as u64 - 1)) * 8;
    if !copy(
        (&raw mut window.words).cast(),
        (NEAR * 8) as u32,
        stack + hint,
    ) || window.words[0] != window.location
    {
        return false;
    }
    // The first that has this namespace, a hook and a family where the state has them. Through memory:
    // in a register, the verifier would follow the rest of the program for each of them.
    let of_net = ((offset!(state_net) & (STATE_BYTES - 1)) / 8) as usize;
    let place = &raw mut window.at;
    // One place that the loop's reads are relative to: the verifier knows the offset, the compiler is not to add it each time.
    // SAFETY: `of_net` is less than `STATE_WORDS`.
    let nets = core::hint::black_box(unsafe { window.words.as_ptr().add(of_net) });
    let net = window.net;
    for at in (1..NEAR_STEPS).rev() {
        // SAFETY: less than `NEAR` words from the start.
        if unsafe { core::ptr::read_volatile(nets.add(at)) } == net
            && hook_of(window, at as u32).is_some()
        {
            // SAFETY: a field of the map value.
            unsafe { core::ptr::write_volatile(place, at as u32) };
        }
    }
    // SAFETY: as above.
    let at = unsafe { core::ptr::read_volatile(place) };
    let found = at != 0 && is_state(window, at);
    if !found {
        window.at = 0;
    }
    found
}

/// Looks at all words.
#[inline(always)]
fn anywhere(work: &mut Work, stack: u64) -> bool {
    let words = (&raw mut work.stack.words).cast();
    if !copy(words, (WORDS * 8) as u32, stack) {
        return false;
    }
    work.stack.start = 0;
    each(work, STEPS - ARGUMENTS, seek);
    if work.stack.start == 0 {
        return false;
    }
    each(work, STEPS, step);
    work.stack.at != 0
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
    let index = index + ARGUMENTS;
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
    is_state(window, at) as i64
}

/// Whether an nf_hook_state of the namespace begins at word `at`; if so, notes it.
#[inline(always)]
fn is_state(window: &mut Window, at: u32) -> bool {
    if word(window, at, offset!(state_net)) != window.net {
        return false;
    }
    let Some((hook, pf)) = hook_of(window, at) else {
        return false;
    };
    let input = word(window, at, offset!(state_in));
    let output = word(window, at, offset!(state_out));
    let (in_here, out_here) = (is_here(window, 0, input), is_here(window, 1, output));
    // Which interfaces there are on which hook (include/linux/netfilter.h and its callers, v6.18).
    let (wants_in, wants_out) = match hook {
        NF_INET_PRE_ROUTING | NF_INET_LOCAL_IN => (1, 0),
        NF_INET_FORWARD => (1, 1),
        _ => (0, 1),
    };
    if in_here < wants_in || out_here < wants_out {
        return false;
    }
    window.hook = hook;
    window.pf = pf;
    window.at = at;
    true
}

/// Hook and family of an nf_hook_state that begins at word `at`, if they are any.
#[inline(always)]
fn hook_of(window: &Window, at: u32) -> Option<(u8, u8)> {
    // They are single bytes; what stands behind them in their word was never written.
    let hook = (word(window, at, offset!(state_hook)) >> (offset!(state_hook) % 8 * 8)) as u8;
    let pf = (word(window, at, offset!(state_pf)) >> (offset!(state_pf) % 8 * 8)) as u8;
    if hook > NF_INET_POST_ROUTING || (pf != NFPROTO_IPV4 && pf != NFPROTO_IPV6) {
        return None;
    }
    Some((hook, pf))
}

/// The word of the struct that begins at word `at` which holds the byte at `offset`.
#[inline(always)]
fn word(window: &Window, at: u32, offset: u32) -> u64 {
    let index = at + (offset & (STATE_BYTES - 1)) / 8;
    window.words[core::hint::black_box(index) as usize & (WORDS - 1)]
}

/// Whether it is the address of a device of this netns: 1 if so. The last one of its direction is not asked again: that another device came
/// to its place does not make the words around it anything else.
#[inline(always)]
fn is_here(window: &mut Window, direction: usize, device: u64) -> u32 {
    if !is_pointer(device) {
        return 0;
    }
    if window.devices[direction] == device && window.devices_net == window.net {
        return 1;
    }
    if u64_at(device, offset!(dev_net)) != window.net {
        return 0;
    }
    if window.devices_net != window.net {
        window.devices = [0; 2];
        window.devices_net = window.net;
    }
    window.devices[direction] = device;
    1
}
