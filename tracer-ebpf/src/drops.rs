//! The drop program: filter, find the rule, send one record.

use aya_ebpf::{
    EbpfContext,
    helpers::generated::{
        bpf_get_smp_processor_id, bpf_ktime_get_ns, bpf_ringbuf_output, bpf_ringbuf_query,
    },
    macros::{btf_tracepoint, map},
    maps::{HashMap, PerCpuArray, PerCpuHashMap, RingBuf},
    programs::BtfTracePointContext,
};
use fwtrace_abi::{
    ABI_VERSION, ABSENT, CacheKey, Counters, CtMoved, FLAG_DST, FLAG_DST_READ, FLAG_L2, FLAG_META,
    FLAG_STACK, FLAG_VLAN, IFNAMSIZ, PKTINFO_WINDOW, RULE_INVALID, RULE_NONE, Record, SITE_NONE,
    SITES, SNAP_MAX, STACK_WORDS, STATE_BYTES, Settings, Site, UNKNOWN,
};

use crate::{
    conntrack, ctstat,
    filter::{self, each},
    flood::{self, Evidence},
    kernel::{copy, copy_words, field, offset, set, typed, u32_at, u64_at},
    legacy, process, rule,
    scratch::{L2_MAX, SETTINGS, Scratch, scratch},
    skipped, socket, whole,
};

/// Stack words are copied in pieces: a read past the end of the stack fails as a whole.
const STACK_PIECE: usize = 16;
/// Wake the reader at most this often per CPU, nanoseconds; in between it polls.
const WAKE_INTERVAL: u64 = 1_000_000;
const BPF_RB_AVAIL_DATA: u64 = 0;
const BPF_RB_NO_WAKEUP: u64 = 1;
const BPF_RB_FORCE_WAKEUP: u64 = 2;
/// The least inode number of a network namespace: of the initial one it is `NET_NS_INIT_INO` where that is
/// fixed (include/uapi/linux/nsfs.h; so on 7.2), of all others, and on 6.18 and before of this too,
/// `PROC_DYNAMIC_FIRST`, 0xf0000000 (include/linux/proc_ns.h), or more.
const FIRST_INODE: u32 = 0xefff_fff9;
const NF_INET_LOCAL_OUT: u8 = 3;
// NFPROTO_* (include/uapi/linux/netfilter.h, v6.18).
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_ARP: u8 = 3;
const NFPROTO_NETDEV: u8 = 5;
const NFPROTO_BRIDGE: u8 = 7;
const NFPROTO_IPV6: u8 = 10;
const ETH_P_IPV6: u16 = 0x86dd;

/// Watched network namespaces, by inode.
#[map]
pub static NETNS: HashMap<u32, u8> = HashMap::with_max_entries(4096, 0);

#[map]
pub static COUNTERS: PerCpuArray<Counters> = PerCpuArray::with_max_entries(1, 0);

/// Drops that match the filter and are only counted, by reason.
#[map]
static REASON_COUNTS: PerCpuHashMap<u32, u64> = PerCpuHashMap::with_max_entries(512, 0);

#[map]
static RING: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);
pub const RING_BYTES: u32 = 4 * 1024 * 1024;
/// A record with all that can be behind it, and the ring's own header.
const LARGEST: u64 =
    (size_of::<Record>() + SNAP_MAX + L2_MAX as usize + STACK_WORDS * 8 + 16) as u64;

#[btf_tracepoint(function = "kfree_skb")]
pub fn drops(ctx: BtfTracePointContext) -> i32 {
    if let Some(scratch) = scratch() {
        skipped::begin(&mut scratch.skipped, &ctx);
        handle(&ctx, scratch);
        skipped::settle(&mut scratch.skipped);
    }
    0
}

/// A field of the copied nf_hook_state.
macro_rules! state {
    ($scratch:ident, $field:ident, $t:ty) => {
        field!($scratch.state, STATE_BYTES, $field, $t)
    };
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
    // In a flood most are only counted, or lost: nothing else needs to be known of them.
    let early = wanted && !conditional;
    let used = if early { waiting(settings) } else { 0 };
    let hopeless = !has_room(used);
    let mut flooded = early && flood::is_on(&mut scratch.flood, settings, used);
    let namespace = namespace(skb);
    let (net, netns) = (namespace.net, namespace.inode);
    if flooded
        && let Some(rule) = legacy.as_ref().and_then(legacy::Found::rule)
        && flood::count(
            scratch,
            skb,
            &Evidence {
                net,
                location,
                reason,
                hook: rule.hook,
                rule: [rule.entry, 0, 0],
            },
            !hopeless,
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
    let framed = known_site && find_state(scratch, stack, skb, net);
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
        hook_state(scratch, skb);
    } else {
        interfaces(&mut scratch.record, skb);
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
        Some(found) if !early => found.rule().map(|rule| [rule.entry, 0, 0]),
        // Nothing that rules have to do with.
        None if reason != settings.netfilter_drop && !known_site => Some([0; 3]),
        _ => None,
    };
    if !early {
        let used = waiting(settings);
        if !has_room(used) {
            counters.full += 1;
            return None;
        }
        flooded = flood::is_on(&mut scratch.flood, settings, used);
    }
    if flooded && let Some(rule) = rule {
        let hook = scratch.record.hook;
        let evidence = Evidence {
            net,
            location,
            reason,
            hook,
            rule,
        };
        if flood::count(scratch, skb, &evidence, true) {
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
    send(ctx, scratch, settings, counters, stack);
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

/// Copies the packet's `struct nf_hook_state`: what stands behind the skb in `struct nft_pktinfo` {skb,
/// state} (include/net/netfilter/nf_tables.h, v6.18). False if no pktinfo of this very packet is where
/// it should be: then the stack has another shape than the one learnt.
#[inline(always)]
fn find_state(scratch: &mut Scratch, stack: u64, skb: u64, net: u64) -> bool {
    let slot = scratch.site.pktinfo_slot;
    let size = size_of_val(&scratch.window) as u32;
    if slot < 0
        || !copy(
            (&raw mut scratch.window).cast(),
            size,
            stack + slot as u64 * 8,
        )
    {
        return false;
    }
    // The first skb is nearly always the pktinfo's. Its place goes through the map: one in a register
    // would have the verifier follow the rest of the program for each of them.
    let place = &raw mut scratch.place;
    // SAFETY: a field of the scratch memory.
    unsafe { core::ptr::write_volatile(place, 0) };
    for i in (0..PKTINFO_WINDOW).rev() {
        if scratch.window[i] == skb {
            // SAFETY: as above.
            unsafe { core::ptr::write_volatile(place, i as u64) };
        }
    }
    // SAFETY: as above.
    let first = unsafe { core::ptr::read_volatile(place) } as usize & (PKTINFO_WINDOW - 1);
    if matching_state(scratch, first, net) {
        return true;
    }
    scratch.sought = (skb, net);
    scratch.state_found = 0;
    each(scratch, PKTINFO_WINDOW as u32, try_state);
    scratch.state_found != 0
}

/// Copies the nf_hook_state that the word behind the skb at `at` points to; true if it is one of `net`. What is no hook, or lacks the
/// device that its hook has, is what an earlier call has left there, with the pktinfo of this one over its start perhaps.
#[inline(always)]
fn matching_state(scratch: &mut Scratch, at: usize, net: u64) -> bool {
    let state = scratch.window[at + 1];
    copy((&raw mut scratch.state).cast(), STATE_BYTES, state)
        && state!(scratch, state_net, u64) == net
        && devices_of(
            state!(scratch, state_pf, u8),
            state!(scratch, state_hook, u8),
        ) & {
            let input = (state!(scratch, state_in, u64) != 0) as u8;
            let output = (state!(scratch, state_out, u64) != 0) as u8;
            input | output << 1
        } != 0
}

/// The device that a hook always has: 1 the incoming one, 2 the outgoing one; 0: there is no such hook. So it is for all callers of
/// `nf_hook()`, `nf_hook_ingress()` and `nf_hook_egress()` (include/linux/netfilter.h, netfilter_netdev.h, v6.18).
#[inline(always)]
fn devices_of(pf: u8, hook: u8) -> u8 {
    // Two bits a hook, from hook 0 on.
    let devices: u64 = match pf {
        // Prerouting, input, forward, output, postrouting; then ingress of family inet, and the bridge's brouting.
        NFPROTO_IPV4 | NFPROTO_BRIDGE | NFPROTO_IPV6 => 0b01_10_10_01_01_01,
        // In and out; ingress and egress.
        NFPROTO_ARP | NFPROTO_NETDEV => 0b10_01,
        _ => 0,
    };
    (devices >> ((hook & 31) * 2)) as u8 & 3
}

/// Looks at two words of the window.
extern "C" fn try_state(index: u32, _: *mut core::ffi::c_void) -> i64 {
    let Some(scratch) = scratch() else { return 1 };
    let (skb, net) = scratch.sought;
    let at = core::hint::black_box(index) as usize & (PKTINFO_WINDOW - 1);
    if scratch.window[at] == skb && matching_state(scratch, at, net) {
        scratch.state_found = 1;
        return 1;
    }
    0
}

/// Hook and interfaces from the hook state.
#[inline(always)]
fn hook_state(scratch: &mut Scratch, skb: u64) {
    scratch.record.hook = state!(scratch, state_hook, u8);
    scratch.record.pf = state!(scratch, state_pf, u8);
    let input = state!(scratch, state_in, u64);
    let output = state!(scratch, state_out, u64);
    scratch.record.iif = device(&mut scratch.record.iif_name, input, skb);
    scratch.record.oif = device(&mut scratch.record.oif_name, output, skb);
}

/// Without a hook state: the interface it came in on, and the device that it stands at.
#[inline(always)]
fn interfaces(record: &mut Record, skb: u64) {
    let at = typed!(typed!(skb, skb_dev, u64), dev_ifindex, u32);
    let iif = typed!(skb, skb_iif, u32);
    record.iif = iif;
    if at == 0 {
        return;
    }
    if iif == at {
        record.iif = own_device(&mut record.iif_name, skb);
    } else {
        record.oif = own_device(&mut record.oif_name, skb);
    }
}

/// Name and number of a device of the hook state, which is mostly the one that the packet is at.
#[inline(always)]
fn device(name: &mut [u8; IFNAMSIZ], dev: u64, skb: u64) -> u32 {
    if dev == 0 || offset!(dev_name) == ABSENT {
        return 0;
    }
    if dev == typed!(skb, skb_dev, u64) {
        return own_device(name, skb);
    }
    copy(
        name.as_mut_ptr(),
        IFNAMSIZ as u32,
        dev.wrapping_add(offset!(dev_name) as u64),
    );
    u32_at(dev, offset!(dev_ifindex))
}

/// Likewise of the device that the packet is at. Read anew: the compiler would take a number that is
/// the same for it.
#[inline(always)]
fn own_device(name: &mut [u8; IFNAMSIZ], skb: u64) -> u32 {
    let dev = typed!(skb, skb_dev, u64);
    let words = [typed!(dev, dev_name, u64), typed!(dev, dev_name, u64, 8)];
    for (word, value) in words.into_iter().enumerate() {
        // SAFETY: within the name, which stands at a multiple of 8.
        unsafe { core::ptr::write_volatile(name.as_mut_ptr().cast::<u64>().add(word), value) };
    }
    typed!(dev, dev_ifindex, u32)
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

/// Bytes in the ring.
#[inline(always)]
fn waiting(settings: &Settings) -> u64 {
    if settings.wants_whole_packets() {
        return 0;
    }
    // SAFETY: the helper only reads the ring's positions.
    unsafe { bpf_ringbuf_query((&raw const RING).cast_mut().cast(), BPF_RB_AVAIL_DATA) }
}

/// Whether the ring has room for any record besides: if not, nobody needs to fill it in.
#[inline(always)]
fn has_room(used: u64) -> bool {
    used + LARGEST <= RING_BYTES as u64
}

/// Puts record, packet and, if wanted, stack into the ring.
#[inline(always)]
fn send(
    ctx: &BtfTracePointContext,
    scratch: &mut Scratch,
    settings: &Settings,
    counters: &mut Counters,
    stack: u64,
) {
    // Apart from each other, for the verifier.
    if settings.wants_whole_packets() {
        whole::begin(ctx, scratch);
        // Or the compiler takes bounds of the captured length as given, which the verifier does not know.
        core::hint::black_box(&mut *scratch);
        if let Some(length) = append_stack(scratch, settings, stack) {
            whole::send(ctx, scratch, settings, counters, length);
        }
        return;
    }
    let Some(length) = append_stack(scratch, settings, stack) else {
        return;
    };
    let size = size_of::<Record>() as u64 + length as u64;
    let now = scratch.record.time;
    // One wakeup per CPU and millisecond: after one, the reader polls for longer than that.
    let flags = if now - scratch.last_wakeup >= WAKE_INTERVAL {
        scratch.last_wakeup = now;
        BPF_RB_FORCE_WAKEUP
    } else {
        BPF_RB_NO_WAKEUP
    };
    // SAFETY: `size` bytes from the start of `scratch` lie within record and data.
    let sent = unsafe {
        bpf_ringbuf_output(
            (&raw const RING).cast_mut().cast(),
            (&raw mut *scratch).cast(),
            size,
            flags,
        )
    };
    if sent == 0 {
        counters.sent += 1;
        flood::sent(&scratch.flood);
    } else {
        counters.full += 1;
    }
}

/// Puts the stack words behind the captured bytes, if they are wanted; the length of both.
#[inline(always)]
fn append_stack(scratch: &mut Scratch, settings: &Settings, stack: u64) -> Option<u32> {
    let mut length = scratch.record.captured;
    if length > SNAP_MAX as u32 {
        return None;
    }
    let unattributed =
        scratch.record.rule.kind == RULE_NONE || scratch.record.rule.kind == RULE_INVALID;
    if settings.want_stack != 0
        && unattributed
        && scratch.record.hook == UNKNOWN
        && scratch.record.reason == settings.netfilter_drop
    {
        scratch.record.flags |= FLAG_STACK;
        // Aligned, so that user space can read words.
        length = (length + 7) & !7;
        for piece in 0..STACK_WORDS / STACK_PIECE {
            let at = piece * STACK_PIECE * 8;
            // SAFETY: length <= SNAP_MAX, so the words end inside `data`.
            unsafe {
                let dst = (&raw mut scratch.data)
                    .cast::<u8>()
                    .add(length as usize + at);
                if !copy(dst, STACK_PIECE as u32 * 8, stack + at as u64) {
                    core::ptr::write_bytes(dst.cast::<u64>(), 0, STACK_PIECE);
                }
            }
        }
        length += STACK_WORDS as u32 * 8;
    }
    Some(length)
}
