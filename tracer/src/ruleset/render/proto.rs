//! Protocol headers: their fields, and which protocol follows which, by the names nft 1.0.6 has for them.
//!
//! The order of the fields matters: nft stores it in the userdata of `typeof` sets, counted from 1.

use super::types::Type;

/// What the offset of a payload counts from; in the order of the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Layer {
    Link = 1,
    Network = 2,
    Transport = 3,
    Inner = 4,
    Tunnel = 5,
}

impl Layer {
    /// As in `@nh,0,8`.
    pub(super) fn token(self) -> &'static str {
        match self {
            Self::Link => "ll",
            Self::Network => "nh",
            Self::Transport => "th",
            Self::Inner => "ih",
            Self::Tunnel => "tun",
        }
    }
}

/// A field of a header.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) ty: Type,
    /// Bits from the start of the header.
    pub(super) offset: u32,
    /// Bits.
    pub(super) len: u32,
    /// The type of ICMP message that has the field; 0 where all have it. Echo stands for the reply too.
    pub(super) icmp: u8,
}

const fn field(name: &'static str, ty: Type, offset: u32, len: u32) -> Field {
    Field {
        name,
        ty,
        offset,
        len,
        icmp: 0,
    }
}

const fn icmp(name: &'static str, offset: u32, len: u32, icmp: u8) -> Field {
    Field {
        name,
        ty: Type::Integer,
        offset,
        len,
        icmp,
    }
}

/// A protocol.
#[derive(Debug)]
pub(super) struct Proto {
    pub(super) name: &'static str,
    pub(super) layer: Layer,
    pub(super) fields: &'static [Field],
    /// The field, counted from 0, that says what follows.
    pub(super) key: Option<usize>,
    /// Bits of the header where another one of the same layer may follow.
    pub(super) length: u32,
    /// What follows, by the number in the key field.
    pub(super) upper: fn(u32) -> Option<&'static Proto>,
}

impl PartialEq for Proto {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Proto {}

fn nothing(_: u32) -> Option<&'static Proto> {
    None
}

fn by_ethertype(number: u32) -> Option<&'static Proto> {
    match number {
        0x0800 => Some(&IP),
        0x0806 => Some(&ARP),
        0x86dd => Some(&IP6),
        0x8100 | 0x88a8 => Some(&VLAN),
        _ => None,
    }
}

fn by_family(number: u32) -> Option<&'static Proto> {
    match number {
        2 => Some(&IP),
        10 => Some(&IP6),
        _ => None,
    }
}

/// What follows AH and IPComp: not ICMP and IGMP.
fn by_protocol_inside(number: u32) -> Option<&'static Proto> {
    match number {
        6 => Some(&TCP),
        17 => Some(&UDP),
        33 => Some(&DCCP),
        50 => Some(&ESP),
        51 => Some(&AH),
        108 => Some(&COMP),
        132 => Some(&SCTP),
        136 => Some(&UDPLITE),
        _ => None,
    }
}

/// The protocol with this IP protocol number.
pub(super) fn by_protocol(number: u32) -> Option<&'static Proto> {
    match number {
        1 => Some(&ICMP),
        2 => Some(&IGMP),
        58 => Some(&ICMPV6),
        _ => by_protocol_inside(number),
    }
}

/// The protocol with nft's number in the userdata of `typeof` sets.
pub(super) fn by_id(id: u32) -> Option<&'static Proto> {
    const BY_ID: &[&Proto] = &[
        &AH, &ESP, &COMP, &ICMP, &IGMP, &UDP, &UDPLITE, &TCP, &DCCP, &SCTP, &TH, &IP, &IP6,
        &ICMPV6, &ARP, &VLAN, &ETHER,
    ];
    let index = usize::try_from(id).ok()?.checked_sub(1)?;
    BY_ID.get(index).copied()
}

use Layer::{Link, Network, Transport};
use Type::{Ethertype, InetProto, Integer, Service};

const fn proto(name: &'static str, layer: Layer, fields: &'static [Field]) -> Proto {
    Proto {
        name,
        layer,
        fields,
        key: None,
        length: 0,
        upper: nothing,
    }
}

/// A protocol that nft 1.0.6 knows to be one, and nothing more.
pub(super) static UNKNOWN: Proto = proto("unknown", Transport, &[]);

/// The link layer of inet tables: only the family is known.
pub(super) static INET: Proto = Proto {
    upper: by_family,
    ..proto("inet", Link, &[])
};

/// The link layer of netdev tables before the device is known to be an Ethernet one.
pub(super) static NETDEV: Proto = Proto {
    upper: by_ethertype,
    ..proto("netdev", Link, &[])
};

pub(super) static ETHER: Proto = Proto {
    key: Some(2),
    length: 112,
    upper: by_ethertype,
    ..proto(
        "ether",
        Link,
        &[
            field("daddr", Type::Ether, 0, 48),
            field("saddr", Type::Ether, 48, 48),
            field("type", Ethertype, 96, 16),
        ],
    )
};

pub(super) static VLAN: Proto = Proto {
    key: Some(4),
    length: 32,
    upper: by_ethertype,
    ..proto(
        "vlan",
        Link,
        &[
            field("pcp", Integer, 0, 3),
            field("dei", Integer, 3, 1),
            field("cfi", Integer, 3, 1),
            field("id", Integer, 4, 12),
            field("type", Ethertype, 16, 16),
        ],
    )
};

pub(super) static ARP: Proto = proto(
    "arp",
    Network,
    &[
        field("htype", Integer, 0, 16),
        field("ptype", Ethertype, 16, 16),
        field("hlen", Integer, 32, 8),
        field("plen", Integer, 40, 8),
        field("operation", Type::ArpOp, 48, 16),
        field("saddr ether", Type::Ether, 64, 48),
        field("saddr ip", Type::Ip, 112, 32),
        field("daddr ether", Type::Ether, 144, 48),
        field("daddr ip", Type::Ip, 192, 32),
    ],
);

pub(super) static IP: Proto = Proto {
    key: Some(8),
    upper: by_protocol,
    ..proto(
        "ip",
        Network,
        &[
            field("version", Integer, 0, 4),
            field("hdrlength", Integer, 4, 4),
            field("dscp", Type::Dscp, 8, 6),
            field("ecn", Type::Ecn, 14, 2),
            field("length", Integer, 16, 16),
            field("id", Integer, 32, 16),
            field("frag-off", Integer, 48, 16),
            field("ttl", Integer, 64, 8),
            field("protocol", InetProto, 72, 8),
            field("checksum", Integer, 80, 16),
            field("saddr", Type::Ip, 96, 32),
            field("daddr", Type::Ip, 128, 32),
        ],
    )
};

pub(super) static IP6: Proto = Proto {
    key: Some(5),
    upper: by_protocol,
    ..proto(
        "ip6",
        Network,
        &[
            field("version", Integer, 0, 4),
            field("dscp", Type::Dscp, 4, 6),
            field("ecn", Type::Ecn, 10, 2),
            field("flowlabel", Integer, 12, 20),
            field("length", Integer, 32, 16),
            field("nexthdr", InetProto, 48, 8),
            field("hoplimit", Integer, 56, 8),
            field("saddr", Type::Ip6, 64, 128),
            field("daddr", Type::Ip6, 192, 128),
        ],
    )
};

pub(super) static AH: Proto = Proto {
    key: Some(0),
    upper: by_protocol_inside,
    ..proto(
        "ah",
        Transport,
        &[
            field("nexthdr", InetProto, 0, 8),
            field("hdrlength", Integer, 8, 8),
            field("reserved", Integer, 16, 16),
            field("spi", Integer, 32, 32),
            field("sequence", Integer, 64, 32),
        ],
    )
};

pub(super) static ESP: Proto = proto(
    "esp",
    Transport,
    &[
        field("spi", Integer, 0, 32),
        field("sequence", Integer, 32, 32),
    ],
);

pub(super) static COMP: Proto = Proto {
    key: Some(0),
    upper: by_protocol_inside,
    ..proto(
        "comp",
        Transport,
        &[
            field("nexthdr", InetProto, 0, 8),
            field("flags", Type::Bitmask, 8, 8),
            field("cpi", Integer, 16, 16),
        ],
    )
};

/// ICMP echo request, which stands for all messages with id and sequence number.
pub(super) const ICMP_ECHO: u8 = 8;
/// ICMPv6 echo request, likewise.
pub(super) const ICMPV6_ECHO: u8 = 128;
/// ICMPv6 echo reply.
pub(super) const ICMPV6_ECHO_REPLY: u8 = 129;

pub(super) static ICMP: Proto = Proto {
    key: Some(0),
    ..proto(
        "icmp",
        Transport,
        &[
            field("type", Type::Icmp, 0, 8),
            field("code", Type::IcmpCode, 8, 8),
            field("checksum", Integer, 16, 16),
            icmp("id", 32, 16, ICMP_ECHO),
            icmp("sequence", 48, 16, ICMP_ECHO),
            icmp("gateway", 32, 32, 5),
            icmp("mtu", 48, 16, 3),
        ],
    )
};

pub(super) static ICMPV6: Proto = Proto {
    key: Some(0),
    ..proto(
        "icmpv6",
        Transport,
        &[
            field("type", Type::Icmp6, 0, 8),
            field("code", Type::Icmp6Code, 8, 8),
            field("checksum", Integer, 16, 16),
            icmp("parameter-problem", 32, 32, 4),
            icmp("mtu", 32, 32, 2),
            icmp("id", 32, 16, ICMPV6_ECHO),
            icmp("sequence", 48, 16, ICMPV6_ECHO),
            icmp("max-delay", 32, 16, 130),
        ],
    )
};

pub(super) static IGMP: Proto = proto(
    "igmp",
    Transport,
    &[
        field("type", Type::Igmp, 0, 8),
        field("checksum", Integer, 16, 16),
        field("mrt", Integer, 8, 8),
        field("group", Integer, 32, 32),
    ],
);

pub(super) static UDP: Proto = proto(
    "udp",
    Transport,
    &[
        field("sport", Service, 0, 16),
        field("dport", Service, 16, 16),
        field("length", Integer, 32, 16),
        field("checksum", Integer, 48, 16),
    ],
);

pub(super) static UDPLITE: Proto = proto(
    "udplite",
    Transport,
    &[
        field("sport", Service, 0, 16),
        field("dport", Service, 16, 16),
        field("csumcov", Integer, 32, 16),
        field("checksum", Integer, 48, 16),
    ],
);

pub(super) static TCP: Proto = proto(
    "tcp",
    Transport,
    &[
        field("sport", Service, 0, 16),
        field("dport", Service, 16, 16),
        field("sequence", Integer, 32, 32),
        field("ackseq", Integer, 64, 32),
        field("doff", Integer, 96, 4),
        field("reserved", Integer, 100, 4),
        field("flags", Type::TcpFlag, 104, 8),
        field("window", Integer, 112, 16),
        field("checksum", Integer, 128, 16),
        field("urgptr", Integer, 144, 16),
    ],
);

pub(super) static DCCP: Proto = proto(
    "dccp",
    Transport,
    &[
        field("sport", Service, 0, 16),
        field("dport", Service, 16, 16),
        field("type", Type::DccpPacket, 67, 4),
    ],
);

pub(super) static SCTP: Proto = proto(
    "sctp",
    Transport,
    &[
        field("sport", Service, 0, 16),
        field("dport", Service, 16, 16),
        field("vtag", Integer, 32, 32),
        field("checksum", Integer, 64, 32),
    ],
);

/// The ports of a transport protocol that the rule does not name.
pub(super) static TH: Proto = proto(
    "th",
    Transport,
    &[
        field("sport", Service, 0, 16),
        field("dport", Service, 16, 16),
    ],
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_the_fields_that_name_the_next_protocol() {
        for proto in [&ETHER, &VLAN, &IP, &IP6, &AH, &COMP, &ICMP, &ICMPV6] {
            let key = &proto.fields[proto.key.unwrap()];
            assert!(
                ["type", "protocol", "nexthdr"].contains(&key.name),
                "{}",
                proto.name
            );
        }
        assert_eq!(by_id(8).unwrap().name, "tcp");
        assert_eq!(by_id(17).unwrap().name, "ether");
        assert!(by_id(0).is_none() && by_id(18).is_none());
    }
}
