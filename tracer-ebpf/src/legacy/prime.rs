//! Finding a table in the kernel, and taking the first image of its counters. Neither program is ever
//! attached: user space runs them (`BPF_PROG_TEST_RUN`).

use core::{ffi::c_void, hint::black_box, ptr::null_mut};

use aya_ebpf::{
    helpers::generated::{bpf_get_current_task, bpf_loop},
    macros::{map, raw_tracepoint},
    maps::Array,
    programs::RawTracePointContext,
};
use fwtrace_abi::{
    Count, FIND_CHANGED, FIND_ELSEWHERE, FIND_NO_TABLE, FIND_OK, FIND_STRANGE, PRIME_BUSY,
    PRIME_FAULT, PRIME_OK, PRIME_REPLACED, Search, TABLE_BLOCKS, TABLE_NAME, TERMINALS,
    TerminalRef,
};

use super::{
    LEGACY_BLOCKS, LEGACY_COUNTS, LEGACY_STATE, Work,
    scan::{image, state},
    work,
};
use crate::{
    kernel::{copy, get, is_pointer, offset, u16_at, u32_at, u64_at},
    scratch::SETTINGS,
    uapi::NFPROTO_IPV4,
};

/// Hooks of a family, and functions on each that are looked at.
const HOOKS: u32 = 5;
const FUNCTIONS: u32 = 32;
/// `XT_PCPU_BLOCK_SIZE` (net/netfilter/x_tables.c, v6.18), which blocks are aligned to.
const BLOCK_BYTES: u64 = 4096;

/// The table that is looked for.
#[map]
static LEGACY_SEARCH: Array<Search> = Array::with_max_entries(1, 0);

/// Its terminals.
#[map]
static LEGACY_TERMINALS: Array<TerminalRef> = Array::with_max_entries(TERMINALS, 0);

#[inline(always)]
fn search() -> Option<&'static mut Search> {
    // SAFETY: user space runs one search at a time.
    LEGACY_SEARCH.get_ptr_mut(0).map(|s| unsafe { &mut *s })
}

/// Finds a table of the calling thread's netns by its name, and its counters.
#[raw_tracepoint(tracepoint = "kfree_skb")]
pub fn legacy_find(_: RawTracePointContext) -> i32 {
    find();
    0
}

#[inline(always)]
fn find() -> Option<()> {
    let search = search()?;
    search.status = FIND_NO_TABLE;
    search.table = 0;
    // SAFETY: a helper without arguments.
    let task = unsafe { bpf_get_current_task() };
    search.net = u64_at(u64_at(task, offset!(task_nsproxy)), offset!(nsproxy_net));
    if u32_at(search.net, offset!(net_inum)) != search.netns {
        search.status = FIND_ELSEWHERE;
        return None;
    }
    black_box(&mut *search);
    // SAFETY: valid callbacks, which use no context.
    unsafe { bpf_loop(HOOKS * FUNCTIONS, hooked as *mut c_void, null_mut(), 0) };
    black_box(&mut *search);
    if search.table == 0 {
        return None;
    }
    search.private = u64_at(search.table, offset!(xt_private));
    if u32_at(search.private, offset!(xt_size)) != search.size
        || u32_at(search.private, offset!(xt_number)) != search.number
    {
        search.status = FIND_CHANGED;
        return None;
    }
    search.status = FIND_OK;
    black_box(&mut *search);
    // SAFETY: as above.
    unsafe { bpf_loop(search.terminals, terminal as *mut c_void, null_mut(), 0) };
    black_box(&mut *search);
    Some(())
}

/// Looks whether the function at `index` of all hooks is one of ip_tables, called for the table.
extern "C" fn hooked(index: u32, _: *mut c_void) -> i64 {
    let (Some(search), Some(settings)) = (search(), SETTINGS.get(0)) else {
        return 1;
    };
    let (hook, function) = (index / FUNCTIONS, index % FUNCTIONS);
    let (hooks, normal, mangle) = if search.pf == NFPROTO_IPV4 as u32 {
        (
            offset!(net_hooks_ipv4),
            settings.legacy_hooks[0],
            settings.legacy_hooks[1],
        )
    } else {
        (
            offset!(net_hooks_ipv6),
            settings.legacy_hooks[2],
            settings.legacy_hooks[3],
        )
    };
    let entries = u64_at(search.net.wrapping_add(hooks as u64), hook * 8);
    if entries == 0 || function >= u16_at(entries, offset!(hook_entries_num)) as u32 {
        return 0;
    }
    // `struct nf_hook_entry { hook, priv }` (include/linux/netfilter.h, v6.18).
    let entry = entries.wrapping_add(offset!(hook_entries_hooks) as u64 + function as u64 * 16);
    let called = u64_at(entry, 0);
    if called == 0 || (called != normal && called != mangle) {
        return 0;
    }
    let table = u64_at(entry, 8);
    if !is_pointer(table) {
        return 0;
    }
    let mut name = [0u64; TABLE_NAME / 8];
    if !copy(
        (&raw mut name).cast(),
        TABLE_NAME as u32,
        table.wrapping_add(offset!(xt_name) as u64),
    ) {
        return 0;
    }
    let mut different = 0;
    for (word, have) in name.iter().enumerate() {
        // SAFETY: the name stands at a multiple of 8.
        different |= have
            ^ unsafe { core::ptr::read_volatile(search.name.as_ptr().cast::<u64>().add(word)) };
    }
    if different == 0 {
        search.table = table;
        return 1;
    }
    0
}

/// Checks that a terminal's counter is where its place among the entries says.
extern "C" fn terminal(index: u32, _: *mut c_void) -> i64 {
    let Some(search) = search() else { return 1 };
    search.status = FIND_STRANGE;
    let Some(terminal) = LEGACY_TERMINALS.get(index) else {
        return 1;
    };
    let number = terminal.block as u32;
    if number >= search.blocks || number >= TABLE_BLOCKS {
        return 1;
    }
    let Some(block) = LEGACY_BLOCKS.get_ptr_mut(search.first + number) else {
        return 1;
    };
    // SAFETY: nobody else uses blocks of a table that is not primed.
    let block = unsafe { &mut *block };
    let entry = search
        .private
        .wrapping_add(offset!(xt_entries) as u64 + terminal.offset as u64);
    let counter = u64_at(entry, search.counters);
    let base = counter.wrapping_sub(terminal.place as u64 * size_of::<Count>() as u64);
    if base == 0 || base % BLOCK_BYTES != 0 || (block.base != 0 && block.base != base) {
        return 1;
    }
    block.base = base;
    search.status = FIND_OK;
    0
}

/// Takes this CPU's image of the table that was found. Its argument is the id of the table from then on.
#[raw_tracepoint(tracepoint = "kfree_skb")]
pub fn legacy_prime(ctx: RawTracePointContext) -> i32 {
    let status = prime(ctx.arg::<u64>(0) as u32).unwrap_or(PRIME_FAULT);
    if let Some(search) = search() {
        search.status = status;
    }
    0
}

#[inline(always)]
fn prime(id: u32) -> Option<u32> {
    let (search, work) = (search()?, work()?);
    // Drops on this CPU, which may come in between, change what is read here.
    let first = state(search.first)?;
    // SAFETY: fields of map values.
    unsafe {
        if core::ptr::read_volatile(&raw const work.busy) != 0 {
            return Some(PRIME_BUSY);
        }
        core::ptr::write_volatile(&raw mut first.id, 0);
        core::ptr::write_volatile(&raw mut first.dirty, 0);
    }
    for recent in &mut first.recent {
        recent.entry = 0;
    }
    first.epoch = work.epoch;
    first.left = 0;
    if work.offset == 0 {
        // What has been dropped before this, nobody had to look at.
        work.accounted = get!(work.unseen);
        work.offset = per_cpu_offset(work)?;
    }
    work.primed = 0;
    black_box(&mut *work);
    // SAFETY: a valid callback, which uses no context.
    unsafe { bpf_loop(search.blocks, block as *mut c_void, null_mut(), 0) };
    black_box(&mut *work);
    if work.primed != search.blocks {
        return Some(PRIME_FAULT);
    }
    if u64_at(search.table, offset!(xt_private)) != search.private {
        return Some(PRIME_REPLACED);
    }
    // SAFETY: as above.
    unsafe {
        core::ptr::write_volatile(&raw mut first.id, id);
        if core::ptr::read_volatile(&raw const first.dirty) != 0 {
            core::ptr::write_volatile(&raw mut first.id, 0);
            return Some(PRIME_BUSY);
        }
    }
    Some(PRIME_OK)
}

/// Takes the image of one block.
extern "C" fn block(index: u32, _: *mut c_void) -> i64 {
    let (Some(search), Some(work)) = (search(), work()) else {
        return 1;
    };
    let number = search.first + index;
    let (Some(block), Some(image)) = (LEGACY_BLOCKS.get(number), image(number)) else {
        return 1;
    };
    let from = block.base.wrapping_add(work.offset);
    if block.base == 0 || !copy((&raw mut *image).cast(), BLOCK_BYTES as u32, from) {
        return 1;
    }
    work.primed += 1;
    0
}

/// What per-CPU addresses are relative to on this CPU: what lies between the address of a per-CPU
/// value and what `bpf_array.pptrs` has for it (include/linux/bpf.h, v6.18). Two maps must agree.
#[inline(always)]
fn per_cpu_offset(work: &mut Work) -> Option<u64> {
    let states = number(work, (&raw const LEGACY_STATE).cast());
    let counts = number(work, (&raw const LEGACY_COUNTS).cast());
    let state = number(work, (&raw const *state(0)?).cast());
    let image = number(work, (&raw const *image(0)?).cast());
    let offset = state.wrapping_sub(u64_at(states, offset!(array_pptrs)));
    if offset == image.wrapping_sub(u64_at(counts, offset!(array_pptrs))) {
        Some(offset)
    } else {
        None
    }
}

/// The address as a number, through memory: the verifier allows no arithmetic on some.
#[inline(always)]
fn number(work: &mut Work, address: *const u8) -> u64 {
    // SAFETY: a field of the map value.
    unsafe {
        core::ptr::write_volatile(&raw mut work.spill, address as u64);
        core::ptr::read_volatile(&raw const work.spill)
    }
}
