//! From a word on nft_do_chain's stack to a rule, believed only after walking the chain's blob.
//!
//! A chain's rules stand one behind the other in `nft_rule_blob.data`, each behind a header word
//! (`struct nft_rule_dp`: is_last:1, dlen:12, handle:42), ended by `struct nft_rule_dp_last`, which
//! names the chain (include/net/netfilter/nf_tables.h, v6.18).

use aya_ebpf::{
    helpers::generated::bpf_loop,
    macros::map,
    maps::{LruHashMap, PerCpuArray},
};
use fwtrace_abi::{CacheEntry, CacheKey, SITE_POLICY, SITE_RULE};

use crate::kernel::{copy, is_pointer, offset, u64_at};

/// Rules in a chain that a walk covers at the most.
const MAX_RULES: u32 = 1 << 16;
/// `nft_rule_dp`: the size of the header word.
const HEADER: u64 = 8;

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

/// The rule (or policy) that `word` stands for at a site of `kind`, in the ruleset `generation` of
/// `net`. The walk is done once per rule and generation; without a generation, every time.
#[inline(always)]
pub fn resolve(word: u64, kind: u32, next: bool, net: u64, generation: u32) -> Option<CacheEntry> {
    let key = CacheKey {
        word,
        net,
        generation,
        kind: kind | if next { 0x10 } else { 0 },
    };
    if generation != 0 {
        // SAFETY: entries are never changed once inserted, and copied here.
        if let Some(entry) = unsafe { CACHE.get(&key) } {
            return Some(*entry);
        }
    }
    let found = validate(word)?;
    let entry = match kind {
        SITE_RULE if next && found.before > 0 => CacheEntry {
            header: found.previous,
            chain: found.chain,
            number: found.before,
            pad: 0,
        },
        SITE_RULE if !next && !is_last(found.header) => CacheEntry {
            header: found.header,
            chain: found.chain,
            number: found.before + 1,
            pad: 0,
        },
        SITE_POLICY if is_last(found.header) => CacheEntry {
            header: 0,
            chain: found.chain,
            number: found.before,
            pad: 0,
        },
        _ => return None,
    };
    if generation != 0 {
        let _ = CACHE.insert(&key, &entry, 0);
    }
    Some(entry)
}
