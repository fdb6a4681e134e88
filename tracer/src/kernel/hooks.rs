//! Netfilter's hooks: their names, and the kernel functions that run them.

const INET: u8 = 1;
const IPV4: u8 = 2;
const ARP: u8 = 3;
const NETDEV: u8 = 5;
const BRIDGE: u8 = 7;
const IPV6: u8 = 10;

// NF_INET_* and NF_BR_*, which are numbered alike (include/uapi/linux/netfilter.h,
// netfilter_bridge.h).
const PRE_ROUTING: u8 = 0;
const LOCAL_IN: u8 = 1;
const FORWARD: u8 = 2;
const LOCAL_OUT: u8 = 3;
const POST_ROUTING: u8 = 4;
const ARP_IN: u8 = 0;
const ARP_OUT: u8 = 1;
const ARP_FORWARD: u8 = 2;
const NETDEV_INGRESS: u8 = 0;
const NETDEV_EGRESS: u8 = 1;

/// The family's name, as in nft's language; `None` for a number that is no family with hooks.
pub fn family_name(pf: u8) -> Option<&'static str> {
    Some(match pf {
        INET => "inet",
        IPV4 => "ip",
        ARP => "arp",
        NETDEV => "netdev",
        BRIDGE => "bridge",
        IPV6 => "ip6",
        _ => return None,
    })
}

/// The hook's name, as in nft's language; `pf` is NFPROTO_*, `hook` the number within it.
pub fn hook_name(pf: u8, hook: u8) -> Option<&'static str> {
    Some(match (pf, hook) {
        (INET | IPV4 | IPV6 | BRIDGE, PRE_ROUTING) => "prerouting",
        (INET | IPV4 | IPV6 | BRIDGE, LOCAL_IN) => "input",
        (INET | IPV4 | IPV6 | BRIDGE, FORWARD) => "forward",
        (INET | IPV4 | IPV6 | BRIDGE, LOCAL_OUT) => "output",
        (INET | IPV4 | IPV6 | BRIDGE, POST_ROUTING) => "postrouting",
        (INET, 5) | (NETDEV, NETDEV_INGRESS) => "ingress",
        (NETDEV, NETDEV_EGRESS) => "egress",
        (ARP, ARP_IN) => "input",
        (ARP, ARP_OUT) => "output",
        (ARP, ARP_FORWARD) => "forward",
        _ => return None,
    })
}

/// A kernel function that runs a hook. Of the functions on a stack, the innermost of these is
/// the one whose hook dropped the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HookCaller {
    /// Its name, without what the compiler may have added.
    pub function: &'static str,
    /// NFPROTO_*; NFPROTO_INET where it runs the hook of the packet's own family.
    pub pf: u8,
    /// The hook's number within `pf`.
    pub hook: u8,
    /// With this function further out on the stack it is this hook instead.
    pub unless: Option<(&'static str, u8)>,
}

const fn caller(function: &'static str, pf: u8, hook: u8) -> HookCaller {
    HookCaller {
        function,
        pf,
        hook,
        unless: None,
    }
}

/// The functions that run hooks in v5.10 to v7.2, with those that they are inlined into.
///
/// Not among them: `nf_reinject` (a queued packet's hook is in its queue entry), and
/// link-local frames of a bridge, which run input from `br_handle_frame` and count as prerouting.
pub const HOOK_CALLERS: &[HookCaller] = &[
    // net/ipv4
    caller("ip_rcv", IPV4, PRE_ROUTING),
    caller("ip_sublist_rcv", IPV4, PRE_ROUTING),
    caller("ip_list_rcv", IPV4, PRE_ROUTING),
    caller("xfrm4_transport_finish", IPV4, PRE_ROUTING),
    caller("ip_local_deliver", IPV4, LOCAL_IN),
    caller("ip_forward", IPV4, FORWARD),
    caller("ipmr_queue_xmit", IPV4, FORWARD),
    caller("ipmr_queue_fwd_xmit", IPV4, FORWARD),
    caller("ip_mr_forward", IPV4, FORWARD),
    caller("__ip_local_out", IPV4, LOCAL_OUT),
    caller("raw_send_hdrinc", IPV4, LOCAL_OUT),
    caller("raw_sendmsg", IPV4, LOCAL_OUT),
    caller("ip_output", IPV4, POST_ROUTING),
    caller("ip_mc_output", IPV4, POST_ROUTING),
    caller("xfrm4_output", IPV4, POST_ROUTING),
    // net/ipv6
    caller("ipv6_rcv", IPV6, PRE_ROUTING),
    caller("ip6_sublist_rcv", IPV6, PRE_ROUTING),
    caller("ipv6_list_rcv", IPV6, PRE_ROUTING),
    caller("xfrm6_transport_finish", IPV6, PRE_ROUTING),
    caller("ip6_input", IPV6, LOCAL_IN),
    caller("ip6_forward", IPV6, FORWARD),
    caller("ip6mr_forward2", IPV6, FORWARD),
    caller("ip6_mr_forward", IPV6, FORWARD),
    caller("__ip6_local_out", IPV6, LOCAL_OUT),
    caller("ip6_xmit", IPV6, LOCAL_OUT),
    caller("rawv6_send_hdrinc", IPV6, LOCAL_OUT),
    caller("rawv6_sendmsg", IPV6, LOCAL_OUT),
    caller("ndisc_send_skb", IPV6, LOCAL_OUT),
    caller("mld_sendpack", IPV6, LOCAL_OUT),
    caller("igmp6_send", IPV6, LOCAL_OUT),
    caller("ip6_output", IPV6, POST_ROUTING),
    caller("ip6_finish_output2", IPV6, POST_ROUTING),
    caller("xfrm6_output", IPV6, POST_ROUTING),
    // either
    caller("xfrm_output_resume", INET, POST_ROUTING),
    caller("vrf_l3_rcv", INET, PRE_ROUTING),
    caller("vrf_l3_out", INET, LOCAL_OUT),
    caller("vrf_output", IPV4, POST_ROUTING),
    caller("vrf_output6", IPV6, POST_ROUTING),
    // net/ipv4/arp.c
    caller("arp_rcv", ARP, ARP_IN),
    caller("arp_xmit", ARP, ARP_OUT),
    // net/core/dev.c
    caller("__netif_receive_skb_core", NETDEV, NETDEV_INGRESS),
    caller("__dev_queue_xmit", NETDEV, NETDEV_EGRESS),
    // net/bridge
    caller("br_handle_frame", BRIDGE, PRE_ROUTING),
    caller("br_pass_frame_up", BRIDGE, LOCAL_IN),
    HookCaller {
        unless: Some(("br_dev_xmit", LOCAL_OUT)),
        ..caller("__br_forward", BRIDGE, FORWARD)
    },
    caller("br_send_bpdu", BRIDGE, LOCAL_OUT),
    caller("__br_multicast_send_query", BRIDGE, LOCAL_OUT),
    caller("br_forward_finish", BRIDGE, POST_ROUTING),
    // net/bridge/br_netfilter_hooks.c: the IP hooks, run on bridged packets, and the bridge's
    // own hooks resumed after them
    caller("br_nf_pre_routing", IPV4, PRE_ROUTING),
    caller("br_nf_pre_routing_ipv6", IPV6, PRE_ROUTING),
    caller("br_nf_forward_ip", INET, FORWARD),
    caller("br_nf_forward_arp", ARP, ARP_FORWARD),
    caller("br_nf_post_routing", INET, POST_ROUTING),
    caller("br_nf_pre_routing_finish", BRIDGE, PRE_ROUTING),
    caller("br_nf_pre_routing_finish_ipv6", BRIDGE, PRE_ROUTING),
    caller("br_nf_forward_finish", BRIDGE, FORWARD),
];

/// The hook a stack was in. `functions` are the names of the functions on it that are known,
/// innermost first. `pf` of the answer as in [`HookCaller::pf`].
pub fn hook_of_stack<'a>(functions: impl IntoIterator<Item = &'a str>) -> Option<(u8, u8)> {
    let mut functions = functions.into_iter();
    let caller = functions.find_map(|name| HOOK_CALLERS.iter().find(|c| c.function == name))?;
    let hook = match caller.unless {
        Some((outer, hook)) if functions.any(|name| name == outer) => hook,
        _ => caller.hook,
    };
    Some((caller.pf, hook))
}

/// Every function name that [`hook_of_stack`] knows.
pub fn caller_names() -> impl Iterator<Item = &'static str> {
    HOOK_CALLERS
        .iter()
        .flat_map(|c| [Some(c.function), c.unless.map(|(outer, _)| outer)])
        .flatten()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_caller_stands_once_and_has_a_hook_with_a_name() {
        let names: BTreeSet<_> = HOOK_CALLERS.iter().map(|c| c.function).collect();
        assert_eq!(names.len(), HOOK_CALLERS.len());
        for c in HOOK_CALLERS {
            assert!(hook_name(c.pf, c.hook).is_some(), "{}", c.function);
            assert!(family_name(c.pf).is_some(), "{}", c.function);
            assert!(!c.function.contains('.'), "{}", c.function);
        }
    }

    #[test]
    fn the_innermost_caller_counts() {
        let named = |functions: &[&str]| {
            hook_of_stack(functions.iter().copied())
                .map(|(pf, hook)| (family_name(pf).unwrap(), hook_name(pf, hook).unwrap()))
        };
        assert_eq!(
            named(&["nf_hook_slow", "ip_local_deliver", "ip_rcv"]),
            Some(("ip", "input"))
        );
        assert_eq!(
            named(&["nf_hook_slow", "ip_output", "raw_sendmsg"]),
            Some(("ip", "postrouting"))
        );
        assert_eq!(
            named(&["__netif_receive_skb_core"]),
            Some(("netdev", "ingress"))
        );
        assert_eq!(named(&["nf_hook_slow"]), None);
    }

    #[test]
    fn a_bridge_sends_from_where_it_forwards() {
        assert_eq!(
            hook_of_stack(["__br_forward", "br_handle_frame_finish", "br_handle_frame"]),
            Some((BRIDGE, FORWARD))
        );
        assert_eq!(
            hook_of_stack([
                "__br_forward",
                "br_flood",
                "br_dev_xmit",
                "__dev_queue_xmit"
            ]),
            Some((BRIDGE, LOCAL_OUT))
        );
        assert!(caller_names().any(|name| name == "br_dev_xmit"));
    }

    #[test]
    fn numbers_that_are_no_hook_have_no_name() {
        assert_eq!(hook_name(ARP, 3), None);
        assert_eq!(hook_name(IPV4, 0xff), None);
        assert_eq!(hook_name(0, 0), None);
        assert_eq!(family_name(0xff), None);
    }
}
