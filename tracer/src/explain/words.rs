//! What the kernel's drop reasons mean, in words.
//!
//! By the comments of `enum skb_drop_reason` (include/net/dropreason-core.h, v6.18) and the code that gives them, in words of our own.

use std::borrow::Cow;

/// Reasons without `SKB_DROP_REASON_`, sorted, and what each says of the packet.
const WORDS: &[(&str, &str)] = &[
    (
        "ARP_PVLAN_DISABLE",
        "ARP between ports of a private VLAN is not forwarded",
    ),
    (
        "BPF_CGROUP_EGRESS",
        "a BPF program of the sender's cgroup refused it",
    ),
    (
        "BRIDGE_INGRESS_STP_STATE",
        "the bridge port does not forward (spanning tree)",
    ),
    (
        "CPU_BACKLOG",
        "the CPU's queue of received packets was full",
    ),
    ("DEV_READY", "the device was not up"),
    ("DUP_FRAG", "a fragment came twice or overlaps another"),
    ("FRAG_REASM_TIMEOUT", "fragments were missing for too long"),
    ("FRAG_TOO_FAR", "fragments of one packet came too far apart"),
    ("FULL_RING", "the queue of the receiving program was full"),
    ("HDR_TRUNC", "the packet ends within a header"),
    ("ICMP_CSUM", "the ICMP checksum is wrong"),
    ("IPV6DISABLED", "IPv6 is switched off on the interface"),
    ("IPV6_BAD_EXTHDR", "an IPv6 extension header is malformed"),
    (
        "IPV6_NDISC_BAD_CODE",
        "a neighbour discovery message has a wrong code",
    ),
    (
        "IPV6_NDISC_BAD_OPTIONS",
        "a neighbour discovery message has malformed options",
    ),
    (
        "IPV6_NDISC_FRAG",
        "a neighbour discovery message came in fragments",
    ),
    (
        "IPV6_NDISC_HOP_LIMIT",
        "a neighbour discovery message has passed a router",
    ),
    (
        "IPV6_NDISC_NS_OTHERHOST",
        "a neighbour solicitation asks for an address of another machine",
    ),
    ("IP_CSUM", "the IP header's checksum is wrong"),
    (
        "IP_INADDRERRORS",
        "the destination is not an address of this machine, and it does not forward the packet",
    ),
    ("IP_INHDR", "the IP header is malformed"),
    ("IP_INNOROUTES", "there was no route to the destination"),
    (
        "IP_INVALID_DEST",
        "the destination address is not valid there",
    ),
    ("IP_INVALID_SOURCE", "the source address is not valid there"),
    ("IP_LOCALNET", "a loopback address came from outside"),
    (
        "IP_LOCAL_SOURCE",
        "the source is an address of this machine",
    ),
    (
        "IP_NOPROTO",
        "nothing here takes packets of this IP protocol",
    ),
    ("IP_OUTNOROUTES", "there was no route to the destination"),
    (
        "IP_RPFILTER",
        "the reverse path filter refused the source address",
    ),
    (
        "IP_TUNNEL_ECN",
        "the congestion marks of tunnel and packet contradict each other",
    ),
    ("LOCAL_MAC", "the source MAC address is this machine's own"),
    ("MAC_INVALID_SOURCE", "the source MAC address is not valid"),
    (
        "NEIGH_CREATEFAIL",
        "no entry could be made for the next hop's link address",
    ),
    ("NEIGH_DEAD", "the next hop's entry was being removed"),
    (
        "NEIGH_FAILED",
        "the next hop's link address could not be found out",
    ),
    (
        "NEIGH_HH_FILLFAIL",
        "the link-layer header could not be made",
    ),
    (
        "NEIGH_QUEUEFULL",
        "too many packets wait for the next hop's link address",
    ),
    ("NOMEM", "the kernel had no memory for it"),
    ("NOT_SPECIFIED", "the kernel does not say why"),
    ("NO_SOCKET", "no socket takes the packet"),
    ("NO_TX_TARGET", "there was no device to send it through"),
    (
        "OTHERHOST",
        "the frame is addressed to another machine's MAC address",
    ),
    ("PACKET_SOCK_ERROR", "a packet socket could not take it"),
    (
        "PFMEMALLOC",
        "memory is short and the socket may not use the reserve",
    ),
    ("PKT_TOO_BIG", "it is larger than the next link takes"),
    ("PKT_TOO_SMALL", "it is shorter than its headers say"),
    ("PROTO_MEM", "the protocol's limit of memory was reached"),
    (
        "QDISC_CONGESTED",
        "the queueing discipline dropped it against congestion",
    ),
    ("QDISC_DROP", "the queueing discipline dropped it"),
    (
        "QDISC_OVERLIMIT",
        "the queueing discipline's queue was full",
    ),
    ("QUEUE_PURGE", "it waited in a queue that was emptied"),
    ("SECURITY_HOOK", "a security module refused it"),
    ("SKB_CSUM", "the checksum is wrong"),
    ("SOCKET_BACKLOG", "the socket's backlog was full"),
    ("SOCKET_CLOSE", "the socket was closed before it was read"),
    ("SOCKET_FILTER", "the socket's own filter refused it"),
    ("SOCKET_RCVBUFF", "the socket's receive buffer was full"),
    ("TAP_FILTER", "the tap device's filter refused it"),
    ("TAP_TXFILTER", "the tap device's filter refused it"),
    ("TCP_ABORT_ON_DATA", "data came after the socket was closed"),
    (
        "TCP_ACK_UNSENT_DATA",
        "the segment acknowledges what was never sent",
    ),
    (
        "TCP_AOFAILURE",
        "the TCP authentication option (TCP-AO) is wrong",
    ),
    (
        "TCP_AOKEYNOTFOUND",
        "there is no key for the TCP authentication option (TCP-AO)",
    ),
    (
        "TCP_AONOTFOUND",
        "the TCP authentication option (TCP-AO) is missing",
    ),
    (
        "TCP_AOUNEXPECTED",
        "a TCP authentication option (TCP-AO) came unasked",
    ),
    (
        "TCP_AUTH_HDR",
        "the TCP authentication options are malformed",
    ),
    ("TCP_CLOSE", "the connection is closed"),
    ("TCP_CSUM", "the TCP checksum is wrong"),
    ("TCP_FASTOPEN", "a TCP Fast Open segment came out of place"),
    (
        "TCP_FLAGS",
        "the TCP flags do not fit the connection's state",
    ),
    (
        "TCP_INVALID_ACK_SEQUENCE",
        "the TCP acknowledgement number is outside the window",
    ),
    (
        "TCP_INVALID_END_SEQUENCE",
        "the TCP segment ends beyond the window",
    ),
    (
        "TCP_INVALID_SEQUENCE",
        "the TCP sequence number is outside the window",
    ),
    ("TCP_INVALID_SYN", "a SYN came for an open connection"),
    (
        "TCP_LISTEN_OVERFLOW",
        "too many connections wait to be accepted",
    ),
    ("TCP_MD5FAILURE", "the TCP MD5 signature is wrong"),
    ("TCP_MD5NOTFOUND", "the TCP MD5 signature is missing"),
    ("TCP_MD5UNEXPECTED", "a TCP MD5 signature came unasked"),
    ("TCP_MINTTL", "the TTL is lower than the socket demands"),
    ("TCP_OFOMERGE", "the data out of order is there already"),
    ("TCP_OFO_DROP", "the queue of data out of order is full"),
    (
        "TCP_OFO_QUEUE_PRUNE",
        "data out of order was let go for want of memory",
    ),
    ("TCP_OLD_ACK", "the TCP acknowledgement is an old one"),
    ("TCP_OLD_DATA", "the data was received before"),
    (
        "TCP_OLD_SEQUENCE",
        "the TCP sequence number is one of the past",
    ),
    ("TCP_OVERWINDOW", "the data is beyond the receive window"),
    ("TCP_RESET", "a reset that was obeyed"),
    (
        "TCP_RFC7323_PAWS",
        "the TCP timestamp is older than one seen before",
    ),
    (
        "TCP_RFC7323_PAWS_ACK",
        "the TCP timestamp is older than one seen before",
    ),
    (
        "TCP_RFC7323_TSECR",
        "the TCP timestamp that it echoes was never sent",
    ),
    (
        "TCP_RFC7323_TW_PAWS",
        "the TCP timestamp is older than one seen before",
    ),
    ("TCP_TOO_OLD_ACK", "the TCP acknowledgement is too old"),
    ("TCP_ZEROWINDOW", "the receive window is closed"),
    ("TC_COOKIE_ERROR", "tc lost track of the packet"),
    (
        "TC_CHAIN_NOTFOUND",
        "a tc filter names a chain that is not there",
    ),
    ("TC_EGRESS", "a tc filter dropped it on its way out"),
    ("TC_INGRESS", "a tc filter dropped it on its way in"),
    ("TC_RECLASSIFY_LOOP", "tc filters go in circles"),
    ("TUNNEL_TXINFO", "the tunnel does not know where to send it"),
    ("UDP_CSUM", "the UDP checksum is wrong"),
    ("UNHANDLED_PROTO", "nothing here takes frames of this type"),
    (
        "UNICAST_IN_L2_MULTICAST",
        "it is addressed to one machine in a frame that is addressed to many",
    ),
    ("VXLAN_INVALID_HDR", "the VXLAN header is malformed"),
    (
        "VXLAN_VNI_NOT_FOUND",
        "no VXLAN device has this network identifier",
    ),
    ("XDP", "an XDP program dropped it"),
    ("XFRM_POLICY", "an IPsec policy refused it"),
];

/// What a reason means. One that is not known is its own name in lower case, nothing made up.
pub(super) fn of(reason: &str) -> Cow<'static, str> {
    let mut words = WORDS.iter();
    match words.find(|(name, _)| *name == reason) {
        Some((_, words)) => Cow::Borrowed(words),
        None => Cow::Owned(reason.to_ascii_lowercase().replace('_', " ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_stands_there_once() {
        let mut names: Vec<&str> = WORDS.iter().map(|(name, _)| *name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), WORDS.len());
    }

    #[test]
    fn what_is_not_known_is_its_name() {
        assert_eq!(of("TCP_CSUM"), "the TCP checksum is wrong");
        assert_eq!(of("SOME_NEW_REASON"), "some new reason");
        assert_eq!(of("OPENVSWITCH:0x7"), "openvswitch:0x7");
    }
}
