//! Drops that the kernel does not show to `drops`, because they interrupt it on the same CPU: whose they are.
//!
//! The kernel counts them, whatever namespace they happen in. The program in front of it is shown them, and writes down each that may be one; what `drops`
//! then is not shown was skipped. Only a softirq can interrupt, and only a process: so it is a drop on another stack than that of
//! the last one, and not on a process's.

use aya_ebpf::{EbpfContext, programs::BtfTracePointContext};

use crate::{
    drops::{COUNTERS, NETNS, namespace},
    filter,
    kernel::{get, set},
    process,
    scratch::{SETTINGS, STACK_SHIFT, Skipped, scratch},
};

/// Called in front of `drops`.
#[inline(always)]
pub fn watch(ctx: &BtfTracePointContext) -> Option<()> {
    let skipped = &mut scratch()?.skipped;
    settle(skipped);
    // Through memory: the verifier keeps no arithmetic on a context pointer it has forgotten.
    set!(skipped.stack_pointer, ctx.as_ptr() as u64);
    let stack = get!(skipped.stack_pointer);
    if get!(skipped.last_stack) == stack >> STACK_SHIFT {
        return None;
    }
    if process::is_current(stack) {
        // Already here, for what interrupts `drops` before its first step.
        set!(skipped.last_stack, stack >> STACK_SHIFT);
        return None;
    }
    // Before `drops` is attached, and where it has not run yet, nothing has interrupted it.
    if get!(skipped.ran) == 0 {
        return None;
    }
    let settings = SETTINGS.get(0)?;
    let skb = ctx.arg::<u64>(0);
    let here = filter::reason_wanted(settings, ctx.arg::<u32>(2)) && {
        let namespace = namespace(skb);
        // One that nobody can tell is never watched. SAFETY: only the key's presence counts.
        settings.all_netns != 0 || unsafe { NETNS.get(&namespace.inode) }.is_some()
    };
    set!(skipped.here, here as u64);
    set!(skipped.skb, skb);
    Some(())
}

/// Called by `drops` before it begins: strikes out its own drop. Another one that is still written down was skipped.
#[inline(always)]
pub fn begin(skipped: &mut Skipped, ctx: &BtfTracePointContext) {
    if get!(skipped.skb) == ctx.arg::<u64>(0) {
        set!(skipped.skb, 0);
    }
    settle(skipped);
    set!(skipped.ran, 1);
    set!(skipped.last_stack, ctx.as_ptr() as u64);
    let stack = get!(skipped.last_stack);
    set!(skipped.last_stack, stack >> STACK_SHIFT);
}

/// Counts a drop that was skipped. Called where the one that is written down can be no other.
#[inline(always)]
pub fn settle(skipped: &mut Skipped) -> Option<()> {
    if get!(skipped.skb) == 0 {
        return None;
    }
    set!(skipped.skb, 0);
    // SAFETY: a per-CPU map value; whoever interrupts this counts elsewhere.
    let counters = unsafe { &mut *COUNTERS.get_ptr_mut(0)? };
    counters.skipped += 1;
    counters.skipped_here += get!(skipped.here);
    Some(())
}
