//! Comparing the counters with their image.

use core::{ffi::c_void, hint::black_box};

use fwtrace_abi::{
    ANSWERS, ANY_HOOK, BLOCK, Block, Count, GROUP, LEGACY_EXACT, LEGACY_REPLACED, LEGACY_UNPRIMED,
    LOCAL, RECENT, TABLE_BLOCKS, TABLES,
};

use super::{
    LEGACY_BLOCKS, LEGACY_COUNTS, LEGACY_STATE, State, Work, each, is_settled, moved, work,
};
use crate::kernel::{copy, copy_words, offset, u64_at};

const GROUPS: u32 = (BLOCK / GROUP) as u32;

/// This CPU's state of the table whose first block is `first`.
#[inline(always)]
pub fn state(first: u32) -> Option<&'static mut State> {
    // SAFETY: a per-CPU map value; only programs that do not nest write to it.
    LEGACY_STATE.get_ptr_mut(first).map(|s| unsafe { &mut *s })
}

#[inline(always)]
fn block(index: u32) -> Option<&'static Block> {
    // SAFETY: user space writes it before the table's reference.
    LEGACY_BLOCKS.get_ptr(index).map(|b| unsafe { &*b })
}

/// This CPU's image of a block.
#[inline(always)]
pub fn image(index: u32) -> Option<&'static mut [Count; BLOCK]> {
    // SAFETY: as for the state.
    LEGACY_COUNTS.get_ptr_mut(index).map(|c| unsafe { &mut *c })
}

/// Whether there is no table `index`, nor any behind it.
#[inline(always)]
fn is_end(work: &Work, index: u32) -> bool {
    work.tables.tables[black_box(index) as usize & (TABLES - 1)].id == 0
}

/// Makes table `index` the one that is scanned; false if it cannot have dropped this packet, or is not
/// known any more.
#[inline(always)]
fn choose(work: &mut Work, index: u32) -> bool {
    work.chosen = index;
    let index = black_box(index) as usize & (TABLES - 1);
    // SAFETY: two values of one type.
    unsafe { copy_words(&raw const work.tables.tables[index], &raw mut work.table) };
    if work.table.id == 0 || work.table.hooks & work.hooks == 0 {
        return false;
    }
    let Some(state) = state(work.table.first) else {
        return false;
    };
    if state.id != work.table.id {
        state.dirty = 1;
        work.evidence.flags |= LEGACY_UNPRIMED;
        return false;
    }
    if u64_at(work.table.table, offset!(xt_private)) != work.table.private {
        work.evidence.flags |= LEGACY_REPLACED;
        return false;
    }
    work.behind = (state.epoch != work.epoch) as u32;
    true
}

/// Looks at the entries of a table that have dropped lately. One of them has moved by this packet: that
/// settles it without a look at the others where no other packet can be under way.
pub extern "C" fn recent(index: u32, _: *mut c_void) -> i64 {
    let Some(work) = work() else { return 1 };
    if is_end(work, index) {
        return 1;
    }
    if !choose(work, index) || work.behind != 0 {
        return 0;
    }
    each(work, RECENT as u32, way);
    (work.evidence.kind == LEGACY_EXACT) as i64
}

extern "C" fn way(index: u32, _: *mut c_void) -> i64 {
    let Some(work) = work() else { return 1 };
    is_over(work, index) as i64
}

/// Looks at one that has dropped lately; whether there is nothing more to look at.
#[inline(always)]
fn is_over(work: &mut Work, index: u32) -> bool {
    let Some(state) = state(work.table.first) else {
        return true;
    };
    let recent = &state.recent[black_box(index) as usize & (RECENT - 1)];
    let entry = recent.entry;
    if entry == 0 {
        return true;
    }
    let hooks = recent.hooks as u8;
    if hooks as u32 & work.hooks == 0 {
        return false;
    }
    let (number, place) = ((entry - 1) / BLOCK as u32, (entry - 1) as usize % BLOCK);
    let place = black_box(place) & (BLOCK - 1);
    let Some(image) = image(work.table.first + number) else {
        return true;
    };
    // In a map: on the stack, the compiler would have it zeroed byte by byte.
    let to = (&raw mut work.now).cast();
    if !copy(to, size_of::<Count>() as u32, recent.address) {
        return true;
    }
    let now = work.now[0];
    let old = &mut image[place];
    if now.packets != old.packets.wrapping_add(1)
        || now.bytes != old.bytes.wrapping_add(work.length)
    {
        return false;
    }
    if !is_settled(work, hooks) {
        return true;
    }
    old.packets = now.packets;
    old.bytes = now.bytes;
    moved(work, recent.number);
    work.evidence.kind = LEGACY_EXACT;
    work.last = (work.chosen, index);
    true
}

/// Looks at the entry that has dropped last: of a flood, most likely this packet, too.
#[inline(always)]
pub fn last(work: &mut Work) {
    let (table, index) = work.last;
    if !is_end(work, table) && choose(work, table) && work.behind == 0 {
        is_over(work, index);
    }
}

/// Scans a table.
pub extern "C" fn table(index: u32, _: *mut c_void) -> i64 {
    let Some(work) = work() else { return 1 };
    if is_end(work, index) {
        return 1;
    }
    if choose(work, index) {
        let blocks = work.table.blocks;
        if blocks <= TABLE_BLOCKS {
            each(work, blocks * GROUPS, group);
        }
        if work.behind != 0 {
            work.missed = 1;
            if let Some(state) = state(work.table.first) {
                state.epoch = work.epoch;
            }
        }
    }
    (work.evidence.kind == LEGACY_EXACT) as i64
}

/// Compares a group of counters.
extern "C" fn group(index: u32, _: *mut c_void) -> i64 {
    let Some(work) = work() else { return 1 };
    let number = work.table.first + index / GROUPS;
    let Some(block) = block(number) else { return 1 };
    // Of a table that is behind all counters are brought up to date.
    let hook = if work.behind != 0 {
        ANY_HOOK
    } else {
        black_box(work.hook) as usize & 7
    };
    if block.groups[hook] >> (index % GROUPS) & 1 == 0 {
        return 0;
    }
    let first = black_box(index % GROUPS * GROUP as u32) as usize & (BLOCK - GROUP);
    let Some(image) = image(number) else { return 1 };
    let address = block
        .base
        .wrapping_add(work.offset)
        .wrapping_add((first * size_of::<Count>()) as u64);
    if !copy(
        (&raw mut work.now).cast(),
        size_of::<[Count; GROUP]>() as u32,
        address,
    ) {
        work.broken = 1;
        return 1;
    }
    let mut different = 0;
    for i in 0..GROUP {
        different |= (work.now[i].packets ^ image[first + i].packets) & block.mask[first + i];
    }
    if different != 0 {
        work.group = index;
        each(work, GROUP as u32, entry);
    }
    (work.broken != 0 || work.evidence.kind == LEGACY_EXACT) as i64
}

/// Looks at one counter of a group in which some have moved.
extern "C" fn entry(index: u32, _: *mut c_void) -> i64 {
    let Some(work) = work() else { return 1 };
    let in_table = work.group / GROUPS;
    let number = work.table.first + in_table;
    let place = work.group % GROUPS * GROUP as u32 + index;
    let place = black_box(place) as usize & (BLOCK - 1);
    let (Some(block), Some(image)) = (block(number), image(number)) else {
        return 1;
    };
    let (now, old) = (
        work.now[black_box(index) as usize & (GROUP - 1)],
        &mut image[place],
    );
    let hooks = block.hooks[place];
    if block.mask[place] == 0 || now.packets == old.packets {
        return 0;
    }
    if now.packets < old.packets {
        work.broken = 1;
        return 1;
    }
    // One that this packet cannot have met is left to the packet that did.
    if hooks as u32 & work.hooks == 0 {
        if work.behind != 0 {
            old.packets = now.packets;
            old.bytes = now.bytes;
        }
        return 0;
    }
    let fits = now.packets == old.packets + 1 && now.bytes == old.bytes.wrapping_add(work.length);
    if hooks & LOCAL != 0 && hooks & ANSWERS != 0 && work.behind == 0 {
        let this = in_table * BLOCK as u32 + place as u32 + 1;
        let Some(state) = state(work.table.first) else {
            return 1;
        };
        let again = state.left == this;
        let packets = now.packets - old.packets;
        let rest = now.bytes.wrapping_sub(old.bytes).wrapping_sub(work.length);
        // One packet, and not this one; or two, and this may be the answer.
        if !again && packets == 1 && !fits {
            state.left = this;
            return 0;
        }
        if !again && packets == 2 && rest as i64 > 0 {
            state.left = this;
            work.local += 1;
            old.packets += 1;
            old.bytes = old.bytes.wrapping_add(work.length);
            moved(work, block.number * BLOCK as u32 + place as u32);
            return 0;
        }
        if again {
            state.left = 0;
        }
    }
    work.fitting += fits as u32;
    work.local += (hooks & LOCAL != 0) as u32;
    old.packets = now.packets;
    old.bytes = now.bytes;
    let entry = block.number * BLOCK as u32 + place as u32;
    moved(work, entry);
    if let Some(state) = state(work.table.first) {
        let next = black_box(state.next) as usize & (RECENT - 1);
        let recent = &mut state.recent[next];
        let from = (place * size_of::<Count>()) as u64;
        recent.address = block.base.wrapping_add(work.offset).wrapping_add(from);
        recent.entry = in_table * BLOCK as u32 + place as u32 + 1;
        recent.number = entry;
        recent.hooks = hooks as u64;
        state.next = next as u32 + 1;
    }
    if fits && work.evidence.count == 1 && is_settled(work, hooks) {
        work.evidence.kind = LEGACY_EXACT;
        return 1;
    }
    0
}
