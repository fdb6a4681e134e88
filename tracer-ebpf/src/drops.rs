//! The drop program: filter, find the rule, send one record.

use aya_ebpf::{
    EbpfContext,
    helpers::generated::{bpf_get_smp_processor_id, bpf_ktime_get_ns},
    macros::{btf_tracepoint, map},
    maps::{HashMap, PerCpuArray, PerCpuHashMap},
    programs::BtfTracePointContext,
};
use fwtrace_abi::{
    ABI_VERSION, ABSENT, CacheKey, Counters, CtMoved, FLAG_DST, FLAG_DST_READ, FLAG_L2, FLAG_META,
    FLAG_VLAN, IFNAMSIZ, RULE_INVALID, RULE_NONE, Record, SITE_NONE, SITES, SNAP_MAX, Settings,
    Site, UNKNOWN,
};

use crate::{
    conntrack, ctstat, filter,
    flood::{self, Evidence},
    hook,
    kernel::{copy, copy_words, offset, set, typed, u32_at, u64_at},
    legacy, process, ring, rule,
    scratch::{L2_MAX, SETTINGS, Scratch, scratch},
    skipped, socket,
    uapi::{ETH_P_IPV6, NF_INET_LOCAL_OUT},
};

/// The least inode number of a network namespace: of the initial one it is `NET_NS_INIT_INO` where that is
/// fixed (include/uapi/linux/nsfs.h; so on 7.2), of all others, and on 6.18 and before of this too,
/// `PROC_DYNAMIC_FIRST`, 0xf0000000 (include/linux/proc_ns.h), or more.
const FIRST_INODE: u32 = 0xefff_fff9;

/// Watched network namespaces, by inode.
#[map]
pub static NETNS: HashMap<u32, u8> = HashMap::with_max_entries(4096, 0);

#[map]
pub static COUNTERS: PerCpuArray<Counters> = PerCpuArray::with_max_entries(1, 0);

/// Drops that match the filter and are only counted, by reason.
#[map]
static REASON_COUNTS: PerCpuHashMap<u32, u64> = PerCpuHashMap::with_max_entries(512, 0);

#[btf_tracepoint(function = "kfree_skb")]
pub fn drops(ctx: BtfTracePointContext) -> i32 {
    if let Some(scratch) = scratch() {
        skipped::begin(&mut scratch.skipped, &ctx);
        handle(&ctx, scratch);
        skipped::settle(&mut scratch.skipped);
    }
    0
}

#[inline(always)]
fn handle(ctx: &BtfTracePointContext, scratch: &mut Scratch) -> Option<()> {
    let settings = SETTINGS.get(0)?;
    // SAFETY: as for the scratch memory.
    let counters = unsafe { &mut *COUNTERS.get_ptr_mut(0)? };
    let skb = ctx.arg::<u64>(0);
    let location = ctx.arg::<u64>(1);
    let reason = ctx.arg::<u32>(2);
    // Through memory: the verifier keeps no arithmetic on a context pointer it has forgotten.
    // SAFETY: a field of the map value.
    let stack = unsafe {
        core::ptr::write_volatile(&raw mut scratch.stack_pointer, ctx.as_ptr() as u64);
        core::ptr::read_volatile(&raw const scratch.stack_pointer)
    };

    let legacy = legacy::found(ctx, settings, skb);
    let wanted = filter::reason_wanted(settings, reason);
    let conditional = filter::is_conditional(settings);
    let has_rule = legacy.as_ref().is_some_and(|found| found.has_rule());
    // In a flood most are only counted, or lost: nothing else needs to be known of them. Of what conditions look at only interfaces can differ
    // within a flow.
    let early = wanted && (!conditional || has_rule && settings.iface_count == 0);
    flood::begin(&mut scratch.flood);
    if early {
        flood::look(&mut scratch.flood, settings);
    }
    let hopeless = !conditional && flood::is_full(&scratch.flood);
    if flood::is_on(&scratch.flood)
        && let Some(rule) = legacy.as_ref().and_then(legacy::Found::rule)
        && flood::count(
            scratch,
            skb,
            &Evidence {
                net: rule.net,
                location,
                reason,
                hook: rule.hook,
                rule: [rule.entry, 0, 0],
            },
        )
    {
        counters.seen += 1;
        counters.aggregated += 1;
        return None;
    }
    if hopeless && has_rule {
        counters.seen += 1;
        counters.full += 1;
        return None;
    }
    let namespace = namespace(skb);
    let (net, netns) = (namespace.net, namespace.inode);
    // What `legacy` has looked at is in a watched one.
    if settings.all_netns == 0 && legacy.is_none() {
        // SAFETY: only the key's presence counts.
        unsafe { NETNS.get(&netns)? };
    }
    counters.seen += 1;

    begin(&mut scratch.record);
    if !has_rule && legacy::may_drop(settings, location, reason) {
        ctstat::look(scratch, net, netns);
    }
    if hopeless {
        counters.full += 1;
        return None;
    }
    capture(scratch, skb, settings.snaplen);
    let protocol = u16::from_be(typed!(skb, skb_protocol, u16));
    if !filter::packet_matches(settings, scratch, protocol) {
        counters.filtered += 1;
        return None;
    }

    find_site(settings, location, &mut scratch.site);
    let known_site = scratch.site.kind != SITE_NONE && scratch.site.rule_slot >= 0;
    let framed = known_site && hook::find_state(scratch, stack, skb, net);
    let evidence = &mut scratch.record.legacy;
    let handed = match &legacy {
        Some(found) => {
            let state = (!framed).then_some((&raw mut scratch.state).cast());
            found.take(evidence, state)
        }
        None => {
            legacy::forget(evidence);
            false
        }
    };
    if framed || handed {
        hook::from_state(scratch, skb);
    } else {
        hook::interfaces(&mut scratch.record, skb);
    }
    if !filter::interface_matches(settings, scratch) {
        counters.filtered += 1;
        return None;
    }
    if !wanted {
        count_reason(reason);
        counters.other += 1;
        return None;
    }
    let generation = if namespace.typed != 0 {
        typed!(namespace.typed, net_nft_generation, u32)
    } else {
        u32_at(net, offset!(net_nft_generation))
    };
    let key = CacheKey {
        word: slot(stack, if framed { scratch.site.rule_slot } else { -1 }),
        base: slot(stack, if framed { scratch.site.base_slot } else { -1 }),
        net,
        generation,
        kind: if scratch.site.next == 0 {
            scratch.site.kind
        } else {
            rule::KIND_NEXT
        },
    };
    // Of a legacy rule it has been decided above already. Without a generation another rule could be at the same address by now.
    let rule = match &legacy {
        _ if framed && generation != 0 => Some([
            key.word,
            key.base,
            (generation as u64) << 32 | key.kind as u64,
        ]),
        Some(found) if !flood::is_looked(&scratch.flood) => {
            found.rule().map(|rule| [rule.entry, 0, 0])
        }
        // Nothing that rules have to do with.
        None if reason != settings.netfilter_drop && !known_site => Some([0; 3]),
        _ => None,
    };
    if !flood::is_looked(&scratch.flood) {
        flood::look(&mut scratch.flood, settings);
    }
    if conditional && flood::is_full(&scratch.flood) {
        counters.full += 1;
        return None;
    }
    if flood::is_on(&scratch.flood)
        && let Some(rule) = rule
    {
        let hook = scratch.record.hook;
        let evidence = Evidence {
            net,
            location,
            reason,
            hook,
            rule,
        };
        if flood::count(scratch, skb, &evidence) {
            counters.aggregated += 1;
            return None;
        }
    }

    let record = &mut scratch.record;
    record.count = flood::stands_for(&scratch.flood);
    // SAFETY: helpers without arguments.
    unsafe {
        record.time = bpf_ktime_get_ns();
        record.cpu = bpf_get_smp_processor_id();
    }
    record.skb = skb;
    record.location = location;
    record.reason = reason;
    record.netns = netns;
    record.generation = generation;
    record.mark = typed!(skb, skb_mark, u32);
    record.len = typed!(skb, skb_len, u32);
    record.protocol = protocol.to_be();
    if offset!(skb_priority) != ABSENT {
        record.flags |= FLAG_META;
        record.priority = typed!(skb, skb_priority, u32);
        // Three bits of the byte.
        record.pkt_type = typed!(skb, skb_pkt_type, u8) & 7;
    }
    if offset!(skb_dst) != ABSENT {
        record.flags |= FLAG_DST_READ;
        // The lowest bit says that it is not counted (SKB_DST_NOREF).
        if typed!(skb, skb_dst, u64) & !1 != 0 {
            record.flags |= FLAG_DST;
        }
    }
    socket::fill(record, typed!(skb, skb_sk, u64), &namespace);
    let vlan_proto = typed!(skb, skb_vlan_proto, u16);
    if vlan_proto != 0 {
        record.flags |= FLAG_VLAN;
        record.vlan_tci = typed!(skb, skb_vlan_tci, u16);
        record.vlan_proto = vlan_proto;
    }
    let nfct = typed!(skb, skb_nfct, u64);
    conntrack::fill(scratch, settings, nfct, &namespace, protocol == ETH_P_IPV6);
    let record = &mut scratch.record;
    if record.hook == NF_INET_LOCAL_OUT || record.hook == UNKNOWN {
        process::fill(record, stack);
    }
    if framed {
        rule::resolve(&mut record.rule, &key);
        if record.rule.kind == RULE_INVALID {
            flood::forget(&mut scratch.flood);
        }
    } else if known_site {
        record.rule.kind = RULE_INVALID;
    }
    ring::send(ctx, scratch, settings, counters, stack);
    Some(())
}

/// A packet's network namespace.
pub struct Namespace {
    /// Address of its `struct net`; 0 if it is not known.
    pub net: u64,
    /// Its inode; 0 if it is not known.
    pub inode: u32,
    /// The same address for [`typed`] reads, 0 if it can only be read by helpers.
    pub typed: u64,
}

/// The namespace that `skb` is in: its device's, else its socket's, else its route's.
#[inline(always)]
pub fn namespace(skb: u64) -> Namespace {
    let net = typed!(typed!(skb, skb_dev, u64), dev_net, u64);
    let inode = typed!(net, net_inum, u32);
    if inode >= FIRST_INODE {
        return Namespace {
            net,
            inode,
            typed: net,
        };
    }
    let net = typed!(typed!(skb, skb_sk, u64), sock_net, u64);
    let inode = typed!(net, net_inum, u32);
    if inode >= FIRST_INODE {
        return Namespace {
            net,
            inode,
            typed: net,
        };
    }
    let dst = typed!(skb, skb_dst, u64) & !1;
    let net = u64_at(u64_at(dst, offset!(dst_dev)), offset!(dev_net));
    let inode = u32_at(net, offset!(net_inum));
    if inode >= FIRST_INODE {
        return Namespace {
            net,
            inode,
            typed: 0,
        };
    }
    Namespace {
        net: 0,
        inode: 0,
        typed: 0,
    }
}

/// Zeroes a name, which stands at a multiple of 8 in the record.
#[inline(always)]
fn clear(name: &mut [u8; IFNAMSIZ]) {
    for word in 0..IFNAMSIZ / 8 {
        // SAFETY: within the name.
        unsafe { core::ptr::write_volatile(name.as_mut_ptr().cast::<u64>().add(word), 0) };
    }
}

/// Resets what is not written for every record. Field by field: the compiler would make calls of it that clear them byte by byte.
#[inline(always)]
fn begin(record: &mut Record) {
    set!(record.version, ABI_VERSION);
    set!(record.flags, 0);
    set!(record.iif, 0);
    set!(record.oif, 0);
    clear(&mut record.iif_name);
    clear(&mut record.oif_name);
    set!(record.hook, UNKNOWN);
    set!(record.pf, UNKNOWN);
    set!(record.vlan_tci, 0);
    set!(record.vlan_proto, 0);
    set!(record.ct_status, 0);
    set!(record.ct_mark, 0);
    set!(record.ct_zone, 0);
    set!(record.ct_tcp_state, 0);
    set!(record.pkt_type, 0);
    set!(record.priority, 0);
    set!(record.sk_uid, 0);
    set!(record.sk_gid, 0);
    set!(record.sk_classid, 0);
    set!(record.sk_cgroup, 0);
    set!(record.pid, 0);
    set!(record.tgid, 0);
    set!(record.uid, 0);
    let rule = &mut record.rule;
    set!(rule.kind, RULE_NONE);
    set!(rule.number, 0);
    set!(rule.rule_handle, 0);
    set!(rule.chain_handle, 0);
    set!(rule.table_handle, 0);
    set!(rule.base_chain_handle, 0);
    set!(record.ct_moved, CtMoved::default());
}

/// Copies the packet's linear part, from its link-layer header if it has one.
#[inline(always)]
fn capture(scratch: &mut Scratch, skb: u64, snaplen: u32) {
    let head = typed!(skb, skb_head, u64);
    let network = typed!(skb, skb_network_header, u16) as u32;
    let mac = typed!(skb, skb_mac_header, u16) as u32;
    let tail = typed!(skb, skb_tail, u32);
    let mut start = network;
    scratch.record.l2_len = 0;
    // An unset mac_header is 0xffff.
    if mac < network && network - mac <= L2_MAX {
        start = mac;
        scratch.record.l2_len = (network - mac) as u16;
        scratch.record.flags |= FLAG_L2;
    }
    let mut length = if tail > start { tail - start } else { 0 };
    let limit = snaplen + scratch.record.l2_len as u32;
    if length > limit {
        length = limit;
    }
    if length > SNAP_MAX as u32 {
        length = SNAP_MAX as u32;
    }
    if length == 0 || !copy((&raw mut scratch.data).cast(), length, head + start as u64) {
        length = 0;
        scratch.record.l2_len = 0;
        scratch.record.flags &= !FLAG_L2;
    }
    scratch.record.captured = length;
    scratch.packet = head + start as u64;
}

/// Copies the site learnt for `location`; its kind is `SITE_NONE` if there is none.
#[inline(always)]
fn find_site(settings: &Settings, location: u64, site: &mut Site) {
    site.kind = SITE_NONE;
    for i in 0..SITES {
        if settings.sites[i].location == location {
            // SAFETY: two values of one type.
            unsafe { copy_words(&raw const settings.sites[i], site) };
            return;
        }
    }
}

/// The word in a slot above the tracepoint's arguments.
#[inline(always)]
fn slot(stack: u64, slot: i32) -> u64 {
    if slot < 0 {
        return 0;
    }
    u64_at(stack, slot as u32 * 8)
}

#[inline(always)]
fn count_reason(reason: u32) {
    match REASON_COUNTS.get_ptr_mut(&reason) {
        // SAFETY: a per-CPU map value.
        Some(count) => unsafe { *count += 1 },
        None => {
            let _ = REASON_COUNTS.insert(&reason, &1, 0);
        }
    }
}
