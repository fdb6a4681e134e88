//! Names of IP protocols and of ICMP types and codes, as nft and iptables write them.

/// IP protocols by number (IANA's registry; the names of /etc/protocols in lower case).
const PROTOCOLS: &[(u8, &str)] = &[
    (0, "hopopt"),
    (1, "icmp"),
    (2, "igmp"),
    (4, "ipip"),
    (6, "tcp"),
    (8, "egp"),
    (9, "igp"),
    (17, "udp"),
    (33, "dccp"),
    (41, "ipv6"),
    (43, "ipv6-route"),
    (44, "ipv6-frag"),
    (46, "rsvp"),
    (47, "gre"),
    (50, "esp"),
    (51, "ah"),
    (58, "icmpv6"),
    (59, "ipv6-nonxt"),
    (60, "ipv6-opts"),
    (88, "eigrp"),
    (89, "ospf"),
    (94, "ipip-old"),
    (98, "encap"),
    (103, "pim"),
    (108, "comp"),
    (112, "vrrp"),
    (115, "l2tp"),
    (132, "sctp"),
    (135, "mobility-header"),
    (136, "udplite"),
    (137, "mpls-in-ip"),
    (143, "ethernet"),
];

/// Other names that people write for a protocol.
const ALIASES: &[(&str, u8)] = &[
    ("ipencap", 4),
    ("ipv6-icmp", 58),
    ("icmp6", 58),
    ("ipcomp", 108),
    ("carp", 112),
    ("mh", 135),
];

/// The protocol's name.
pub(super) fn protocol(number: u8) -> Option<&'static str> {
    let at = PROTOCOLS.binary_search_by_key(&number, |p| p.0).ok()?;
    PROTOCOLS.get(at).map(|p| p.1)
}

/// The protocol of that name, in any case.
pub(super) fn protocol_number(name: &str) -> Option<u8> {
    let same = |n: &str| n.eq_ignore_ascii_case(name);
    let known = PROTOCOLS.iter().find(|p| same(p.1)).map(|p| p.0);
    known.or_else(|| ALIASES.iter().find(|a| same(a.0)).map(|a| a.1))
}

/// The ICMP type's name, or, where the code says more, the code's.
pub(super) fn icmp(kind: u8, code: u8) -> Option<&'static str> {
    Some(match (kind, code) {
        (0, _) => "echo-reply",
        (3, 0) => "net-unreachable",
        (3, 1) => "host-unreachable",
        (3, 2) => "prot-unreachable",
        (3, 3) => "port-unreachable",
        (3, 4) => "frag-needed",
        (3, 5) => "source-route-failed",
        (3, 9) => "net-prohibited",
        (3, 10) => "host-prohibited",
        (3, 13) => "admin-prohibited",
        (3, _) => "destination-unreachable",
        (4, _) => "source-quench",
        (5, _) => "redirect",
        (8, _) => "echo-request",
        (9, _) => "router-advertisement",
        (10, _) => "router-solicitation",
        (11, 1) => "reassembly-time-exceeded",
        (11, _) => "time-exceeded",
        (12, _) => "parameter-problem",
        (13, _) => "timestamp-request",
        (14, _) => "timestamp-reply",
        (15, _) => "info-request",
        (16, _) => "info-reply",
        (17, _) => "address-mask-request",
        (18, _) => "address-mask-reply",
        _ => return None,
    })
}

/// The ICMPv6 type's name, or, where the code says more, the code's.
pub(super) fn icmpv6(kind: u8, code: u8) -> Option<&'static str> {
    Some(match (kind, code) {
        (1, 0) => "no-route",
        (1, 1) => "admin-prohibited",
        (1, 3) => "addr-unreachable",
        (1, 4) => "port-unreachable",
        (1, 5) => "policy-fail",
        (1, 6) => "reject-route",
        (1, _) => "destination-unreachable",
        (2, _) => "packet-too-big",
        (3, 1) => "reassembly-time-exceeded",
        (3, _) => "time-exceeded",
        (4, _) => "parameter-problem",
        (128, _) => "echo-request",
        (129, _) => "echo-reply",
        (130, _) => "mld-listener-query",
        (131, _) => "mld-listener-report",
        (132, _) => "mld-listener-done",
        (133, _) => "nd-router-solicit",
        (134, _) => "nd-router-advert",
        (135, _) => "nd-neighbor-solicit",
        (136, _) => "nd-neighbor-advert",
        (137, _) => "nd-redirect",
        (138, _) => "router-renumbering",
        (141, _) => "ind-neighbor-solicit",
        (142, _) => "ind-neighbor-advert",
        (143, _) => "mld2-listener-report",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_are_sorted_and_found_both_ways() {
        assert!(PROTOCOLS.is_sorted_by(|a, b| a.0 < b.0));
        for &(number, name) in PROTOCOLS {
            assert_eq!(protocol(number), Some(name));
            assert_eq!(protocol_number(&name.to_uppercase()), Some(number));
        }
        assert_eq!(protocol(253), None);
        assert_eq!(protocol_number("ipv6-icmp"), Some(58));
    }
}
