//! What conntrack knows of the packet, at the moment of the drop.

use fwtrace_abi::{
    ABSENT, CT_BYTES, FLAG_CT_HOOKS_READ, FLAG_CT_OUTPUT, FLAG_CT_PREROUTING, Settings, TUPLE_LEN,
    UNKNOWN,
};

use crate::{
    drops::Namespace,
    kernel::{copy, field, offset, typed, u16_at, u64_at},
    scratch::Scratch,
    uapi::{NF_INET_LOCAL_OUT, NF_INET_PRE_ROUTING, NFPROTO_IPV4, NFPROTO_IPV6},
};

/// Hook functions of one hook that are looked at; conntrack runs at priority -200, early.
const HOOKS: usize = 8;
/// `struct nf_hook_entry { hook, priv }` (include/linux/netfilter.h, v6.18).
const HOOK_ENTRY: u64 = 16;
/// `struct nf_conntrack_tuple_hash` (include/net/netfilter/nf_conntrack_tuple.h, v6.18).
const TUPLE_HASH: u32 = 56;

/// Fills in the connection, or, if the packet has none, whether conntrack has looked at it.
#[inline(always)]
pub fn fill(
    scratch: &mut Scratch,
    settings: &Settings,
    nfct: u64,
    namespace: &Namespace,
    ipv6: bool,
) {
    let record = &mut scratch.record;
    record.nfct = nfct;
    let ct = nfct & !7;
    if ct == 0 {
        if nfct == 0 {
            record.flags |= hooked_in(record.pf, settings, namespace, ipv6);
        }
        return;
    }
    if !copy((&raw mut scratch.ct).cast(), CT_BYTES, ct) {
        return;
    }
    record.ct_status = field!(scratch.ct, CT_BYTES, ct_status, u32);
    if offset!(ct_mark) != ABSENT {
        record.ct_mark = field!(scratch.ct, CT_BYTES, ct_mark, u32);
    }
    if offset!(ct_zone) != ABSENT {
        record.ct_zone = field!(scratch.ct, CT_BYTES, ct_zone, u16);
    }
    record.ct_tcp_state = field!(scratch.ct, CT_BYTES, ct_tcp_state, u8);
    let first = offset!(ct_tuples) + offset!(tuplehash_tuple);
    copy_tuple(&mut record.ct_orig, &scratch.ct, first);
    copy_tuple(&mut record.ct_reply, &scratch.ct, first + TUPLE_HASH);
}

/// Copies the tuple at `offset` of the copied nf_conn.
#[inline(always)]
fn copy_tuple(to: &mut [u8; TUPLE_LEN], ct: &[u8; CT_BYTES as usize + 2 * TUPLE_LEN], offset: u32) {
    let offset = (offset & (CT_BYTES - 1)) as usize;
    for word in 0..TUPLE_LEN / 8 {
        // SAFETY: 40 bytes from any offset below CT_BYTES lie within `ct`.
        unsafe {
            let from = ct.as_ptr().add(offset).cast::<u64>().add(word);
            let to = to.as_mut_ptr().cast::<u64>().add(word);
            core::ptr::write_volatile(to, core::ptr::read_volatile(from));
        }
    }
}

/// Whether conntrack's hook functions are registered for the packet's family in `net`.
#[inline(always)]
fn hooked_in(pf: u8, settings: &Settings, namespace: &Namespace, ipv6: bool) -> u32 {
    let v4 = match pf {
        NFPROTO_IPV4 => true,
        NFPROTO_IPV6 => false,
        UNKNOWN => !ipv6,
        _ => return 0,
    };
    let (table, functions) = if v4 {
        (
            offset!(net_hooks_ipv4),
            [settings.conntrack_hooks[0], settings.conntrack_hooks[1]],
        )
    } else {
        (
            offset!(net_hooks_ipv6),
            [settings.conntrack_hooks[2], settings.conntrack_hooks[3]],
        )
    };
    if table == ABSENT
        || functions[0] == 0
        || functions[1] == 0
        || offset!(hook_entries_hooks) == ABSENT
    {
        return 0;
    }
    let net = namespace.typed;
    let [input, local] = if net == 0 {
        let base = namespace.net + table as u64;
        [
            has_function::<false>(u64_at(base, NF_INET_PRE_ROUTING as u32 * 8), functions[0]),
            has_function::<false>(u64_at(base, NF_INET_LOCAL_OUT as u32 * 8), functions[1]),
        ]
    } else if v4 {
        [
            has_function::<true>(
                typed!(net, net_hooks_ipv4, u64, NF_INET_PRE_ROUTING as u64 * 8),
                functions[0],
            ),
            has_function::<true>(
                typed!(net, net_hooks_ipv4, u64, NF_INET_LOCAL_OUT as u64 * 8),
                functions[1],
            ),
        ]
    } else {
        [
            has_function::<true>(
                typed!(net, net_hooks_ipv6, u64, NF_INET_PRE_ROUTING as u64 * 8),
                functions[0],
            ),
            has_function::<true>(
                typed!(net, net_hooks_ipv6, u64, NF_INET_LOCAL_OUT as u64 * 8),
                functions[1],
            ),
        ]
    };
    if input == UNSEEN || local == UNSEEN {
        return 0;
    }
    let mut flags = FLAG_CT_HOOKS_READ;
    if input == FOUND {
        flags |= FLAG_CT_PREROUTING;
    }
    if local == FOUND {
        flags |= FLAG_CT_OUTPUT;
    }
    flags
}

const MISSING: u32 = 0;
const FOUND: u32 = 1;
/// Not among the hook functions that are looked at, and there are more.
const UNSEEN: u32 = 2;

/// `TYPED`: `entries` was read by [`typed`].
#[inline(always)]
fn has_function<const TYPED: bool>(entries: u64, function: u64) -> u32 {
    if entries == 0 {
        return MISSING;
    }
    let count = if TYPED {
        typed!(entries, hook_entries_num, u16)
    } else {
        u16_at(entries, offset!(hook_entries_num))
    };
    let count = count as usize;
    for i in 0..HOOKS {
        if i >= count {
            return MISSING;
        }
        let at = i as u64 * HOOK_ENTRY;
        let called = if TYPED {
            typed!(entries, hook_entries_hooks, u64, at)
        } else {
            u64_at(entries + at, offset!(hook_entries_hooks))
        };
        if called == function {
            return FOUND;
        }
    }
    if count > HOOKS { UNSEEN } else { MISSING }
}
