//! In which order a hook calls base chains and tables. Never attached: user space runs it
//! (`BPF_PROG_TEST_RUN`).

use core::{ffi::c_void, hint::black_box, ptr::null_mut};

use aya_ebpf::{
    helpers::generated::{bpf_get_current_task, bpf_loop},
    macros::{map, raw_tracepoint},
    maps::Array,
    programs::RawTracePointContext,
};
use fwtrace_abi::{
    ABSENT, HookList, LIST_ELSEWHERE, LIST_OK, LIST_UNREAD, LISTED, LISTED_LEGACY, LISTED_NAT,
    LISTED_NFT, LISTED_TRACKING, Listed,
};

use crate::{
    kernel::{copy, is_pointer, offset, u16_at, u32_at, u64_at},
    uapi::{NFPROTO_ARP, NFPROTO_BRIDGE, NFPROTO_IPV4, NFPROTO_IPV6, NFPROTO_NETDEV},
};

/// `NF_NETDEV_INGRESS` (include/uapi/linux/netfilter.h, v6.18).
const INGRESS: u32 = 0;
/// Hooks of a family (`NF_INET_NUMHOOKS`, include/uapi/linux/netfilter.h; of bridges there are as many).
const HOOKS: u32 = 5;
/// Of family arp (`NF_ARP_NUMHOOKS`, include/linux/netfilter_defs.h, v6.18).
const ARP_HOOKS: u32 = 3;
/// Of a device (`NF_NETDEV_NUMHOOKS`).
const DEVICE_HOOKS: u32 = 2;
/// Lists in a namespace's table of devices, by index (`NETDEV_HASHENTRIES`, include/linux/netdevice.h, v6.18).
const DEVICE_LISTS: u32 = 256;
/// Devices in one of these lists that are looked at.
const DEVICES: u32 = 4096;
/// Steps: a list may hold functions that are not told.
const STEPS: u32 = 128;
/// `XT_TABLE_MAXNAMELEN`.
const NAME: u32 = 32;

#[map]
static HOOK_LIST: Array<HookList> = Array::with_max_entries(1, 0);

#[inline(always)]
fn request() -> Option<&'static mut HookList> {
    // SAFETY: user space makes one request at a time.
    HOOK_LIST.get_ptr_mut(0).map(|list| unsafe { &mut *list })
}

/// Reads the list of a hook of the calling thread's netns.
#[raw_tracepoint(tracepoint = "kfree_skb")]
pub fn hook_list(_: RawTracePointContext) -> i32 {
    read();
    0
}

#[inline(always)]
fn read() -> Option<()> {
    let request = request()?;
    request.status = LIST_UNREAD;
    request.count = 0;
    request.at = 0;
    // SAFETY: a helper without arguments.
    let task = unsafe { bpf_get_current_task() };
    let proxy = u64_at(task, offset!(hooks_nsproxy));
    let net = u64_at(proxy, offset!(hooks_net));
    if u32_at(net, offset!(net_inum)) != request.netns {
        request.status = LIST_ELSEWHERE;
        return None;
    }
    request.before = u32_at(net, offset!(net_nft_generation));
    request.outer = hook(request, net)?;
    request.list = request.outer;
    black_box(&mut *request);
    // SAFETY: a valid callback, which uses no context.
    unsafe { bpf_loop(STEPS, step as *mut c_void, null_mut(), 0) };
    black_box(&mut *request);
    request.after = u32_at(net, offset!(net_nft_generation));
    Some(())
}

/// The `struct nf_hook_entries` of the hook that is asked for; 0: nothing is registered there.
#[inline(always)]
fn hook(request: &mut HookList, net: u64) -> Option<u64> {
    let (hooks, number) = match request.pf as u8 {
        NFPROTO_IPV4 => (offset!(net_hooks_ipv4), HOOKS),
        NFPROTO_IPV6 => (offset!(net_hooks_ipv6), HOOKS),
        NFPROTO_ARP => (offset!(net_hooks_arp), ARP_HOOKS),
        NFPROTO_BRIDGE => (offset!(net_hooks_bridge), HOOKS),
        NFPROTO_NETDEV if request.hook == INGRESS => (offset!(dev_hooks_ingress), DEVICE_HOOKS),
        NFPROTO_NETDEV => (offset!(dev_hooks_egress), DEVICE_HOOKS),
        _ => return None,
    };
    if hooks == ABSENT || request.hook >= number {
        return None;
    }
    if request.pf == NFPROTO_NETDEV as u32 {
        return Some(u64_at(device(request, net)?, hooks));
    }
    Some(u64_at(net.wrapping_add(hooks as u64), request.hook * 8))
}

/// The `struct net_device` that is asked for, found as `dev_get_by_index_rcu()` does (net/core/dev.c, v6.18).
#[inline(always)]
fn device(request: &mut HookList, net: u64) -> Option<u64> {
    let lists = u64_at(net, offset!(net_devices));
    request.node = u64_at(lists, (request.device & (DEVICE_LISTS - 1)) * 8);
    request.outer = 0;
    black_box(&mut *request);
    // SAFETY: a valid callback, which uses no context.
    unsafe { bpf_loop(DEVICES, seek as *mut c_void, null_mut(), 0) };
    black_box(&mut *request);
    (request.outer != 0).then_some(request.outer)
}

/// Looks at the next device.
extern "C" fn seek(_: u32, _: *mut c_void) -> i64 {
    let Some(request) = request() else { return 1 };
    let node = request.node;
    if !is_pointer(node) {
        return 1;
    }
    let device = node.wrapping_sub(offset!(dev_index_node) as u64);
    if u32_at(device, offset!(dev_ifindex)) == request.device {
        request.outer = device;
        return 1;
    }
    request.node = u64_at(node, 0);
    0
}

/// Takes the next function of the list.
extern "C" fn step(_: u32, _: *mut c_void) -> i64 {
    let Some(request) = request() else { return 1 };
    if !is_pointer(request.list) {
        return 1;
    }
    if request.at >= u16_at(request.list, offset!(hook_entries_num)) as u32 {
        if request.list == request.outer {
            request.status = LIST_OK;
            return 1;
        }
        request.list = request.outer;
        request.at = request.outer_at as u32;
        return 0;
    }
    // `struct nf_hook_entry { hook, priv }` (include/linux/netfilter.h, v6.18).
    let place = offset!(hook_entries_hooks) as u64 + request.at as u64 * 16;
    let entry = request.list.wrapping_add(place);
    request.at += 1;
    let function = u64_at(entry, 0);
    let private = u64_at(entry, 8);
    if function == 0 {
        return 0;
    }
    let mut listed = Listed {
        kind: 0,
        words: [0; 4],
    };
    if function == request.nft[0]
        || function == request.nft[1]
        || function == request.nft[2]
        || function == request.nft[3]
        || function == request.nft[4]
    {
        listed.kind = LISTED_NFT;
        let table = u64_at(private, offset!(chain_table));
        listed.words[0] = u64_at(table, offset!(table_handle));
        listed.words[1] = u64_at(private, offset!(chain_handle));
    } else if function == request.tracking {
        listed.kind = LISTED_TRACKING;
    } else if function == request.nat && request.list == request.outer {
        listed.kind = LISTED_NAT;
        // `struct nf_nat_lookup_hook_priv { entries, .. }` (net/netfilter/nf_nat_core.c, v6.18).
        let inner = u64_at(private, 0);
        if inner != 0 {
            request.outer_at = request.at as u64;
            request.list = inner;
            request.at = 0;
        }
    } else if function == request.legacy[0] || function == request.legacy[1] {
        listed.kind = LISTED_LEGACY;
        let name = offset!(xt_name);
        if name == ABSENT
            || !copy(
                (&raw mut listed.words).cast(),
                NAME,
                private.wrapping_add(name as u64),
            )
        {
            return 1;
        }
    } else {
        return 0;
    }
    let count = request.count as usize;
    if count >= LISTED {
        return 1;
    }
    request.listed[count] = listed;
    request.count += 1;
    0
}
