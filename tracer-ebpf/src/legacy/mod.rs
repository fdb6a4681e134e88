//! Which rule of ip_tables or ip6_tables dropped: `ipt_do_table()` has bumped the matching entry's
//! counter of this CPU, and the packet is freed right behind it, in `nf_hook_slow()`.
//!
//! So every such drop in a watched netns is looked at, also those that the filter refuses, and the
//! counters are compared with an image of what they were at the last one. At a drop on PREROUTING,
//! INPUT or FORWARD softirqs are off from the counter to here, and of the counters that such packets
//! alone move, only that of the entry that dropped can have moved since the last drop. OUTPUT and
//! POSTROUTING run in processes too, which can be interrupted in between by other packets.
//!
//! | one counter has moved, by one packet of this packet's length | it is exact |
//! |---|---|
//! | of an entry that only packets on PREROUTING, INPUT, FORWARD meet | yes: the search ends there |
//! | of another entry, in the context of the process that sends the packet | yes, likewise: what interrupted it has been looked at by itself |
//! | of another entry, in a softirq | if no other counter has moved: a process may have been interrupted |
//! | of an entry that answers the sender (REJECT), on OUTPUT | if no other counter has moved: the packet may be its answer |
//! | just after several had moved at once: some packet's counter is in the image before its drop | not if processes' packets move it |
//! | after a drop that could not be looked at | no |
//!
//! REJECT sends its answer between counting a packet and dropping it, and that may be dropped first. So
//! what such an entry has counted and what cannot be this packet, for its length, is left in place for
//! the drop that follows; should none follow, the next scan takes it.
//!
//! Several that have moved are candidates; none: another hook function dropped, or a match itself did
//! (`hotdrop`).
//!
//! This is a program of its own, attached in front of `drops`, which takes over what it has found. A
//! drop that comes while it runs on the same CPU is one that the kernel does not show it, but `drops`,
//! which counts those.

mod prime;
mod scan;
pub mod stack;

use aya_ebpf::{
    EbpfContext,
    helpers::generated::{bpf_ktime_get_ns, bpf_loop},
    macros::{btf_tracepoint, map},
    maps::{Array, HashMap, PerCpuArray},
    programs::BtfTracePointContext,
};
use fwtrace_abi::{
    ANSWERS, ANY_HOOK, BLOCK, Block, Count, GROUP, LEGACY_ALONE, LEGACY_AMBIGUOUS,
    LEGACY_CANDIDATES, LEGACY_EXACT, LEGACY_HOOKED, LEGACY_NONE, LEGACY_REPLACED, LEGACY_UNMOVED,
    LEGACY_UNPRIMED, LOCAL, LegacyCandidate, LegacyEvidence, RECENT, Settings, TABLES, TableRef,
    Tables, TablesKey,
};

use crate::{
    drops::{NETNS, Namespace, namespace},
    kernel::{copy_words, get, offset, set, typed, u16_at, u64_at},
    process,
    scratch::SETTINGS,
    skipped,
    uapi::{ETH_P_IP, ETH_P_IPV6, NFPROTO_IPV4, NFPROTO_IPV6},
};

/// All hooks, a bit each: where the hook is not known.
const ANY: u32 = 0b11111;
/// After a drop at which more than one counter had moved, packets may be under way whose counter is in
/// the image already: so long, nanoseconds, is none of a process believed.
const UNSETTLED: u64 = 20_000_000;

/// The primed tables.
#[map]
static LEGACY_TABLES: HashMap<TablesKey, Tables> = HashMap::with_max_entries(8192, 0);

/// Counts up with each change of [`LEGACY_TABLES`], after it.
#[map]
static LEGACY_VERSION: Array<u32> = Array::with_max_entries(1, 0);

/// The blocks of all tables. User space sets the number.
#[map]
pub static LEGACY_BLOCKS: Array<Block> = Array::with_max_entries(64, 0);

/// This CPU's image of each block.
#[map]
pub static LEGACY_COUNTS: PerCpuArray<[Count; BLOCK]> = PerCpuArray::with_max_entries(64, 0);

/// An entry that has dropped lately.
#[repr(C)]
pub struct Recent {
    /// Address of its counter of this CPU.
    pub address: u64,
    /// Block and place, plus one; 0: none.
    pub entry: u32,
    /// Its number in the table.
    pub number: u32,
    /// [`Block::hooks`].
    pub hooks: u64,
}

/// A table on this CPU, by its first block.
#[repr(C)]
pub struct State {
    /// The [`TableRef::id`] that it is primed for.
    pub id: u32,
    /// A drop has met it unprimed.
    pub dirty: u32,
    /// Which of `recent` goes next.
    pub next: u32,
    /// The [`Work::epoch`] in which all its counters have been looked at.
    pub epoch: u32,
    /// The entry, plus one, that had counted a packet at the last scan whose drop was still to come.
    pub left: u32,
    pad: u32,
    /// Entries that have dropped lately.
    pub recent: [Recent; RECENT],
}

#[map]
pub static LEGACY_STATE: PerCpuArray<State> = PerCpuArray::with_max_entries(64, 0);

/// The memory of one CPU that a drop is worked on in; programs of one kind do not nest on a CPU.
#[repr(C)]
pub struct Work {
    /// A drop is being worked on.
    pub busy: u32,
    /// Hooks that the packet can have been on, a bit each.
    hooks: u32,
    /// `sk_buff.len`, which is what the counter of bytes has grown by.
    length: u64,
    /// What per-CPU addresses are relative to here.
    pub offset: u64,
    /// Until when no counter of a process's packet is believed.
    unsettled: u64,
    /// Which of a block's groups are looked at: the hook, or [`ANY_HOOK`].
    hook: u32,
    /// The counters moved by this packet alone.
    fitting: u32,
    /// Drops of those that concern this program which it was not shown here, and how many of them it has taken into account.
    pub unseen: u64,
    pub accounted: u64,
    /// How often it has begun.
    runs: u64,
    /// The packet that it was shown last.
    shown: u64,
    /// Counts up when one was not looked at: the images of all tables may be behind then.
    pub epoch: u32,
    /// The table that is scanned has not been in this epoch.
    behind: u32,
    /// Nor have some of those that were scanned.
    missed: u32,
    pad: u32,
    /// Where the tracepoint's arguments are.
    stack_pointer: u64,
    /// Some of those that moved count processes' packets too.
    local: u32,
    /// A counter ran backwards, or could not be read.
    broken: u32,
    /// The value of [`LEGACY_TABLES`] looked up last, its key, and [`LEGACY_VERSION`] before that.
    tables: Tables,
    key: TablesKey,
    version: u32,
    pad_version: u32,
    /// The table that is scanned, and its place among them.
    table: TableRef,
    chosen: u32,
    /// The table and the place among its [`State::recent`] that told the last drop.
    last: (u32, u32),
    pad_last: u32,
    evidence: LegacyEvidence,
    /// The group of counters that is looked at one by one.
    group: u32,
    /// Blocks of which an image has been taken.
    primed: u32,
    /// The packet that `evidence` and `state` are of.
    skb: u64,
    /// Where in `stack` its nf_hook_state begins, 0 if not found.
    state: u64,
    stack: stack::Window,
    /// For addresses that must become numbers.
    spill: u64,
    /// The group that is looked at, as it is now.
    now: [Count; GROUP],
}

#[map]
static LEGACY_WORK: PerCpuArray<Work> = PerCpuArray::with_max_entries(1, 0);

#[inline(always)]
pub fn work() -> Option<&'static mut Work> {
    // SAFETY: a per-CPU map value, which the map zeroed.
    LEGACY_WORK.get_ptr_mut(0).map(|work| unsafe { &mut *work })
}

/// Calls `callback` with 0 to `count - 1`. The callbacks look `work` up for themselves, which the
/// compiler has to be told.
#[inline(always)]
fn each(work: &mut Work, count: u32, callback: extern "C" fn(u32, *mut core::ffi::c_void) -> i64) {
    core::hint::black_box(&mut *work);
    // SAFETY: the callbacks here use no context.
    unsafe {
        bpf_loop(
            count,
            callback as *mut core::ffi::c_void,
            core::ptr::null_mut(),
            0,
        )
    };
    core::hint::black_box(&mut *work);
}

#[btf_tracepoint(function = "kfree_skb")]
pub fn legacy(ctx: BtfTracePointContext) -> i32 {
    skipped::watch(&ctx);
    if let Some(settings) = SETTINGS.get(0)
        && concerns(&ctx, settings)
        && let Some(work) = work()
    {
        // The priming program, which may interrupt this one, waits.
        set!(work.busy, 1);
        observe(&ctx, settings, work);
        set!(work.busy, 0);
    }
    0
}

/// Whether it is a drop that may be one of ip_tables.
#[inline(always)]
fn concerns(ctx: &BtfTracePointContext, settings: &Settings) -> bool {
    may_drop(settings, ctx.arg::<u64>(1), ctx.arg::<u32>(2))
}

/// Whether it is a drop in `nf_hook_slow()`, by the verdict of a hook function that does not free packets itself.
#[inline(always)]
pub fn may_drop(settings: &Settings, location: u64, reason: u32) -> bool {
    location >= settings.hook_slow[0]
        && location < settings.hook_slow[1]
        && reason == settings.netfilter_drop
}

#[inline(always)]
fn observe(ctx: &BtfTracePointContext, settings: &Settings, work: &mut Work) -> Option<()> {
    let skb = ctx.arg::<u64>(0);
    work.skb = 0;
    set!(work.shown, skb);
    set!(work.runs, get!(work.runs) + 1);
    let unseen = get!(work.unseen);
    if unseen != work.accounted {
        work.accounted = unseen;
        work.epoch += 1;
    }
    let Namespace {
        net, inode: netns, ..
    } = namespace(skb);
    if net == 0 {
        // Whose counters it has moved is not known.
        work.epoch += 1;
        return None;
    }
    // Before the tables: they are no older than that.
    let version = *LEGACY_VERSION.get(0)?;
    // Tables are only known of namespaces that are watched.
    let watched = work.version == version && work.key.netns == netns;
    if !watched && settings.all_netns == 0 {
        // SAFETY: only the key's presence counts.
        unsafe { NETNS.get(&netns)? };
    }
    // Through memory: the verifier keeps no arithmetic on a context pointer it has forgotten.
    set!(work.stack_pointer, ctx.as_ptr() as u64);
    let stack = get!(work.stack_pointer);
    forget(&mut work.evidence);
    let found = stack::find(work, stack, ctx.arg::<u64>(1), net);
    let pf = match found {
        Some((pf, hook)) => {
            work.hooks = 1 << hook;
            work.hook = hook as u32;
            pf
        }
        None => {
            work.hooks = ANY;
            work.hook = ANY_HOOK as u32;
            match u16::from_be(typed!(skb, skb_protocol, u16)) {
                ETH_P_IP => NFPROTO_IPV4 as u32,
                ETH_P_IPV6 => NFPROTO_IPV6 as u32,
                _ => {
                    work.epoch += 1;
                    return None;
                }
            }
        }
    };
    work.length = typed!(skb, skb_len, u32) as u64;
    if (watched && work.key.pf == pf) || look_up(work, TablesKey { netns, pf }, version) {
        work.fitting = 0;
        work.local = 0;
        work.broken = 0;
        work.missed = 0;
        scan::last(work);
        if work.evidence.kind != LEGACY_EXACT {
            each(work, TABLES as u32, scan::recent);
        }
        if work.evidence.kind != LEGACY_EXACT {
            each(work, TABLES as u32, scan::table);
        }
        if work.evidence.kind != LEGACY_EXACT {
            decide(work);
        }
        // The counter that fits may be that of a packet whose drop has just interrupted this.
        if get!(work.unseen) != unseen {
            work.evidence.kind = LEGACY_NONE;
            work.evidence.count = 0;
        }
    }
    if work.evidence.kind != LEGACY_EXACT && work.hook < ANY_HOOK as u32 {
        look_around(work, settings, net, pf);
    }
    work.skb = skb;
    Some(())
}

/// Takes over what user space says about the tables of a family in a namespace; false if there are none.
#[inline(always)]
fn look_up(work: &mut Work, key: TablesKey, version: u32) -> bool {
    // SAFETY: user space replaces values, and never changes them.
    let Some(tables) = LEGACY_TABLES.get_ptr(&key) else {
        return false;
    };
    // SAFETY: two values of one type.
    unsafe { copy_words(tables, &raw mut work.tables) };
    work.key = key;
    work.version = version;
    true
}

/// Whether an entry's counter, moved by one packet of this one's length, tells all by itself: no other
/// packet that was counted on this CPU and not dropped yet can have moved it.
#[inline(always)]
fn is_settled(work: &Work, hooks: u8) -> bool {
    if work.behind != 0 {
        return false;
    }
    if hooks & LOCAL == 0 {
        return true;
    }
    // This may be its answer to the packet that it has counted.
    if hooks & ANSWERS != 0 {
        return false;
    }
    !is_unsettled(work) && process::is_current(work.stack_pointer)
}

/// Whether packets of processes may be under way whose counter is in the image already.
#[inline(always)]
fn is_unsettled(work: &Work) -> bool {
    // SAFETY: a helper without arguments.
    work.unsettled != 0 && unsafe { bpf_ktime_get_ns() } < work.unsettled
}

/// What the scan of all tables on the hook says, if it has not come to a counter that tells by itself.
#[inline(always)]
fn decide(work: &mut Work) {
    let count = work.evidence.count;
    if work.broken != 0 {
        work.evidence.kind = LEGACY_NONE;
        work.evidence.flags |= LEGACY_REPLACED;
        return;
    }
    let unsettled = is_unsettled(work);
    if count > 1 && work.local != 0 {
        // SAFETY: a helper without arguments.
        work.unsettled = unsafe { bpf_ktime_get_ns() } + UNSETTLED;
    }
    let looked = work.evidence.flags & (LEGACY_REPLACED | LEGACY_UNPRIMED) == 0;
    work.evidence.kind = if count == 0 {
        // Of tables that could not be looked at nothing is known.
        if looked { LEGACY_UNMOVED } else { LEGACY_NONE }
    } else if count == 1 && work.fitting == 1 && work.missed == 0 && (work.local == 0 || !unsettled)
    {
        LEGACY_EXACT
    } else {
        LEGACY_AMBIGUOUS
    };
}

/// Notes an entry whose counter has moved.
#[inline(always)]
fn moved(work: &mut Work, entry: u32) {
    let at = work.evidence.count as usize;
    if at < LEGACY_CANDIDATES {
        work.evidence.candidates[core::hint::black_box(at) & (LEGACY_CANDIDATES - 1)] =
            LegacyCandidate {
                id: work.table.id,
                entry,
            };
    }
    work.evidence.count += 1;
}

/// Whether tables of ip_tables are hooked in here, and whether anything else is that could drop in
/// this place: of what nf_tables drops the location is another one.
#[inline(always)]
fn look_around(work: &mut Work, settings: &Settings, net: u64, pf: u32) {
    /// Hook functions that are looked at.
    const HOOKS: usize = 12;
    let (table, tables, nft) = match pf as u8 {
        NFPROTO_IPV4 => (offset!(net_hooks_ipv4), 0, settings.nftables_hooks[0]),
        _ => (offset!(net_hooks_ipv6), 2, settings.nftables_hooks[1]),
    };
    let entries = u64_at(net + table as u64, work.hook * 8);
    if entries == 0 {
        return;
    }
    let count = u16_at(entries, offset!(hook_entries_num)) as usize;
    let first = entries + offset!(hook_entries_hooks) as u64;
    let (mut hooked, mut other) = (0, (count > HOOKS) as u32);
    for i in 0..HOOKS {
        if i >= count {
            break;
        }
        let function = u64_at(first, i as u32 * 16);
        if function == settings.legacy_hooks[tables]
            || function == settings.legacy_hooks[tables + 1]
        {
            hooked = LEGACY_HOOKED;
        } else if function != nft && function != settings.nftables_hooks[2] {
            other = 1;
        }
    }
    work.evidence.flags |= hooked;
    if hooked != 0 && other == 0 {
        work.evidence.flags |= LEGACY_ALONE;
    }
}

/// A rule of ip_tables.
pub struct FoundRule {
    /// Its table's id and its place there.
    pub entry: u64,
    /// [`ANY_HOOK`] if that is not known.
    pub hook: u8,
    /// Address of the packet's `struct net`.
    pub net: u64,
}

/// What `legacy` has found out about this drop, which `drops` looks at next.
pub struct Found {
    work: &'static mut Work,
    run: u64,
}

/// Called by `drops` for every drop: counts those that `legacy` was not shown.
#[inline(always)]
pub fn found(ctx: &BtfTracePointContext, settings: &Settings, skb: u64) -> Option<Found> {
    // Of a drop that is none of its business it has not even forgotten the last one.
    if !concerns(ctx, settings) {
        return None;
    }
    let work = work()?;
    if get!(work.shown) != skb {
        set!(work.unseen, get!(work.unseen) + 1);
        return None;
    }
    let run = get!(work.runs);
    let same = get!(work.skb) == skb;
    // Another packet may be at this address next time.
    set!(work.skb, 0);
    set!(work.shown, 0);
    same.then_some(Found { work, run })
}

impl Found {
    /// Whether a rule has been found to have dropped.
    #[inline(always)]
    pub fn has_rule(&self) -> bool {
        self.work.evidence.kind == LEGACY_EXACT
    }

    /// The rule that has been found to have dropped.
    #[inline(always)]
    pub fn rule(&self) -> Option<FoundRule> {
        let work = &*self.work;
        if !self.has_rule() {
            return None;
        }
        let rule = FoundRule {
            entry: (work.evidence.candidates[0].id as u64) << 32
                | work.evidence.candidates[0].entry as u64,
            hook: get!(work.hook) as u8,
            net: work.stack.net(),
        };
        // A drop that has interrupted this has left its own.
        (get!(work.runs) == self.run).then_some(rule)
    }

    /// Hands the evidence over, and to `state` the packet's nf_hook_state; false if there is none.
    #[inline(always)]
    pub fn take(
        &self,
        evidence: &mut LegacyEvidence,
        state: Option<*mut [u64; stack::STATE_WORDS]>,
    ) -> bool {
        let found = &self.work.evidence;
        if found.count > 1 {
            // SAFETY: two values of one type.
            unsafe { copy_words(found, evidence) };
        } else {
            evidence.kind = found.kind;
            evidence.flags = found.flags;
            evidence.count = found.count;
            evidence.candidates[0] = found.candidates[0];
        }
        let handed = state.is_some_and(|state| stack::hand_over(self.work, state));
        // A drop that has interrupted this has left its own.
        let work = &*self.work;
        if get!(work.runs) != self.run {
            forget(evidence);
            return false;
        }
        handed
    }
}

/// Makes it the evidence of nothing.
#[inline(always)]
pub fn forget(evidence: &mut LegacyEvidence) {
    evidence.kind = LEGACY_NONE;
    evidence.flags = 0;
    evidence.count = 0;
}
