//! From a word on nft_do_chain's stack to a rule, believed only after walking the chain's blob.
//!
//! A chain's rules stand one behind the other in `nft_rule_blob.data`, each behind a header word
//! (`struct nft_rule_dp`: is_last:1, dlen:12, handle:42), ended by `struct nft_rule_dp_last`, which
//! names the chain (include/net/netfilter/nf_tables.h, v6.18).

use core::mem::MaybeUninit;

use aya_ebpf::{
    helpers::generated::bpf_loop,
    macros::map,
    maps::{LruHashMap, PerCpuArray},
};
use fwtrace_abi::{
    CacheEntry, CacheKey, NAME_MAX, RULE_INVALID, RULE_POLICY, RULE_RULE, RuleEvidence,
    SITE_POLICY, SITE_RULE,
};

use crate::kernel::{copy, copy_str, copy_words, is_pointer, offset, u8_at, u64_at};

/// Rules in a chain that a walk covers at the most.
const MAX_RULES: u32 = 1 << 16;
/// `nft_rule_dp`: the size of the header word.
const HEADER: u64 = 8;

/// [`CacheKey::kind`] of a rule whose slot holds the next one.
pub const KIND_NEXT: u32 = SITE_RULE | 0x10;

/// State of a walk. In a map and not on the stack: the verifier would follow every iteration.
#[repr(C)]
struct Walk {
    at: u64,
    target: u64,
    header: u64,
    previous: u64,
    count: u32,
    /// 0: under way, 1: stopped at the target or the end, 2: not a blob.
    done: u32,
}

#[map]
static WALK: PerCpuArray<Walk> = PerCpuArray::with_max_entries(1, 0);

#[map]
static CACHE: LruHashMap<CacheKey, CacheEntry> = LruHashMap::with_max_entries(4096, 0);

/// A rule, or the end marker of a chain, found in a live chain.
pub struct Found {
    pub header: u64,
    pub previous: u64,
    pub chain: u64,
    /// Rules before it.
    pub before: u32,
}

#[inline(always)]
pub fn is_last(header: u64) -> bool {
    header & 1 != 0
}

/// `nft_rule_dp.handle`. The nine bits above it are never initialised.
#[inline(always)]
pub fn handle(header: u64) -> u64 {
    (header >> 13) & ((1 << 42) - 1)
}

#[inline(always)]
fn length(header: u64) -> u64 {
    (header >> 1) & 0xfff
}

/// One step: reads the header at `at`, stops at the target or the chain's end.
extern "C" fn step(_: u32, _: *mut core::ffi::c_void) -> i64 {
    let Some(walk) = WALK.get_ptr_mut(0) else {
        return 1;
    };
    // SAFETY: a per-CPU map value; programs of one kind do not nest on a CPU.
    let walk = unsafe { &mut *walk };
    let mut header = 0u64;
    if !copy((&raw mut header).cast(), 8, walk.at) {
        walk.done = 2;
        return 1;
    }
    // Of the end marker only is_last is initialised.
    if walk.at == walk.target || is_last(header) {
        walk.header = header;
        walk.done = 1;
        return 1;
    }
    if length(header) % 8 != 0 {
        walk.done = 2;
        return 1;
    }
    walk.previous = header;
    walk.count += 1;
    walk.at += HEADER + length(header);
    0
}

/// Walks from `from` to `target`, or to the end of the blob if `target` is 0.
#[inline(always)]
fn walk(from: u64, target: u64) -> Option<&'static Walk> {
    let state = WALK.get_ptr_mut(0)?;
    // SAFETY: as in `step`.
    unsafe {
        (*state).at = from;
        (*state).target = target;
        (*state).header = 0;
        (*state).previous = 0;
        (*state).count = 0;
        (*state).done = 0;
        bpf_loop(
            MAX_RULES,
            step as *mut core::ffi::c_void,
            core::ptr::null_mut(),
            0,
        );
        if (*state).done != 1 {
            return None;
        }
        Some(&*state)
    }
}

/// Walks `blob` to `word`; the address must be one of its headers exactly.
#[inline(always)]
fn in_blob(blob: u64, word: u64) -> Option<&'static Walk> {
    if !is_pointer(blob) {
        return None;
    }
    let state = walk(blob.wrapping_add(offset!(blob_data) as u64), word)?;
    if state.at == word { Some(state) } else { None }
}

/// Validates `word` as the address of a rule header: forward to the end marker, from there to the
/// chain, and through that chain's blob, of either generation, back to `word`.
#[inline(always)]
pub fn validate(word: u64) -> Option<Found> {
    if !is_pointer(word) || word % 8 != 0 {
        return None;
    }
    let end = walk(word, 0)?.at;
    let chain = u64_at(end, offset!(last_chain));
    if !is_pointer(chain) {
        return None;
    }
    let state = match in_blob(u64_at(chain, offset!(chain_blob0)), word) {
        Some(state) => state,
        None => in_blob(u64_at(chain, offset!(chain_blob1)), word)?,
    };
    Some(Found {
        header: state.header,
        previous: state.previous,
        chain,
        before: state.count,
    })
}

/// Fills in the rule (or policy) that the words in a site's slots stand for. A walk is done once per
/// rule and generation; on a kernel that shows no generation, every time.
#[inline(always)]
pub fn resolve(rule: &mut RuleEvidence, key: &CacheKey) {
    let tag = key.word ^ key.base.rotate_left(17) ^ ((key.generation as u64) << 32);
    if key.generation != 0 {
        if let Some(entry) = CACHE.get_ptr(key) {
            // SAFETY: a map value. Another CPU may evict the entry and write another one, from its
            // start on, while it is copied: the tag, read last, tells.
            let whole = unsafe {
                copy_words(&raw const (*entry).rule, rule);
                core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::SeqCst);
                core::ptr::read_volatile(&raw const (*entry).tag) == tag
            };
            if whole {
                return;
            }
        }
    }
    rule.kind = RULE_INVALID;
    if find(rule, key).is_none() {
        return;
    }
    if key.generation != 0 {
        let mut entry = MaybeUninit::<CacheEntry>::uninit();
        // SAFETY: both fields are written, and there is no padding.
        unsafe {
            let entry = entry.as_mut_ptr();
            (*entry).tag = tag;
            copy_words(rule, &raw mut (*entry).rule);
            let _ = CACHE.insert(key, &*entry, 0);
        }
    }
}

#[inline(always)]
fn find(rule: &mut RuleEvidence, key: &CacheKey) -> Option<()> {
    let found = validate(key.word)?;
    let (kind, header, number) = match key.kind {
        KIND_NEXT if found.before > 0 => (RULE_RULE, found.previous, found.before),
        SITE_RULE if !is_last(found.header) => (RULE_RULE, found.header, found.before + 1),
        SITE_POLICY if is_last(found.header) => (RULE_POLICY, 0, found.before),
        // A rule of the base chain returned (or one of a chain that a goto led to).
        SITE_POLICY => (RULE_POLICY, found.header, found.before + 1),
        _ => return None,
    };
    let chain = found.chain;
    let table = u64_at(chain, offset!(chain_table));
    rule.number = number;
    rule.rule_handle = handle(header);
    rule.chain_handle = u64_at(chain, offset!(chain_handle));
    rule.table_handle = u64_at(table, offset!(table_handle));
    // Six bits; the others are the start of the table's flags.
    rule.family = (u8_at(table, offset!(table_family)) & 0x3f) as u32;
    let name = u64_at(chain, offset!(chain_name));
    copy_str(rule.chain.as_mut_ptr(), NAME_MAX as u32, name);
    let name = u64_at(table, offset!(table_name));
    copy_str(rule.table.as_mut_ptr(), NAME_MAX as u32, name);
    rule.base_chain_handle = 0;
    if key.base == chain || (key.base != 0 && u64_at(key.base, offset!(chain_table)) == table) {
        rule.base_chain_handle = u64_at(key.base, offset!(chain_handle));
    }
    rule.kind = kind;
    Some(())
}
