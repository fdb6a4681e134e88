//! Packets aimed at rules: what a match wants of a packet, and packets made of that.

use std::net::IpAddr;

use crate::net::Place;
use crate::oracle::flow::Flow;
use crate::oracle::packet::{Cast, Ext, Spec, proto};
use crate::oracle::random::Random;

/// What a match wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// IPv6 or IPv4.
    V6(bool),
    /// Source.
    Src(IpAddr),
    /// Destination.
    Dst(IpAddr),
    /// Transport protocol.
    Proto(u8),
    /// Source port.
    Sport(u16),
    /// Destination port.
    Dport(u16),
    /// TCP flags.
    Flags(u8),
    /// TCP window.
    Window(u16),
    /// TCP sequence number.
    Seq(u32),
    /// TCP options.
    TcpOptions(Vec<u8>),
    /// ICMP type and code.
    Icmp(u8, u8),
    /// ICMP identifier.
    IcmpId(u16),
    /// TTL or hop limit.
    Ttl(u8),
    /// TOS or traffic class.
    Tos(u8),
    /// IPv4 identification.
    Id(u16),
    /// IPv6 flow label.
    FlowLabel(u32),
    /// A fragment.
    Fragment(u16, bool),
    /// IPv4 options.
    IpOptions(Vec<u8>),
    /// An IPv6 extension header.
    Ext(Ext),
    /// A VLAN's tag.
    Vlan(u16),
    /// IP total length.
    Length(usize),
    /// Payload.
    Payload(Vec<u8>),
    /// Ethernet destination.
    Cast(Cast),
    /// Mark, of a packet from R.
    Mark(u32),
    /// The sender.
    From(Place),
    /// The receiver.
    To(Place),
    /// A packet of a flow.
    Established,
    /// An ICMP error about a flow.
    Related,
    /// A packet that conntrack does not take.
    Invalid,
}

/// Netfilter hooks, as far as packets can be sent to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Device ingress.
    Ingress,
    /// Before routing.
    Prerouting,
    /// To R.
    Input,
    /// Through R.
    Forward,
    /// From R.
    Output,
    /// After routing.
    Postrouting,
    /// Device egress.
    Egress,
}

impl Hook {
    /// The word that nft uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
            Self::Egress => "egress",
        }
    }

    /// From where to where packets go that come by.
    fn paths(self) -> &'static [(Place, Place)] {
        use Place::{A, B, R};
        match self {
            Self::Ingress | Self::Prerouting => &[(A, R), (A, B), (B, R), (B, A), (A, R)],
            Self::Input => &[(A, R), (A, R), (B, R)],
            Self::Forward => &[(A, B), (A, B), (B, A)],
            Self::Output => &[(R, A), (R, B)],
            Self::Postrouting | Self::Egress => &[(A, B), (R, A), (R, B)],
        }
    }
}

/// A rule as seen from a packet: where it is, and what it and the rules that lead to it want.
#[derive(Clone, Debug)]
pub struct Aim {
    /// The base chain's hook.
    pub hook: Hook,
    /// In the order of evaluation.
    pub wishes: Vec<Wish>,
}

/// Ports that rules and packets have in common.
pub const PORTS: [u16; 12] = [
    22, 53, 80, 443, 1024, 5353, 6000, 6001, 6002, 8080, 33434, 60000,
];

/// Tags of VLANs that rules and packets have in common: priority, drop eligibility, and number, of which 0 is none.
pub const VLAN_TAGS: [u16; 4] = [5, 0x6006, 0x2000, 0x1fff];

/// The addresses of a place; more than the interfaces have, for A and B.
pub fn addresses(place: Place, v6: bool) -> Vec<IpAddr> {
    let texts: &[&str] = match (place, v6) {
        (Place::A, false) => &[
            "10.1.0.1",
            "10.1.0.1",
            "10.1.0.3",
            "10.1.0.4",
            "10.1.0.77",
            "192.0.2.5",
            "198.51.100.9",
        ],
        (Place::A, true) => &[
            "fd01::1",
            "fd01::1",
            "fd01::3",
            "fd01::4",
            "fd01::77",
            "2001:db8::5",
        ],
        (Place::R, false) => &["10.1.0.2", "10.1.0.2", "10.2.0.2"],
        (Place::R, true) => &["fd01::2", "fd01::2", "fd02::2"],
        (Place::B, false) => &["10.2.0.1", "10.2.0.1", "10.2.0.3", "10.2.0.4"],
        (Place::B, true) => &["fd02::1", "fd02::1", "fd02::3", "fd02::4"],
    };
    texts.iter().filter_map(|t| t.parse().ok()).collect()
}

/// A packet for the hook, with nothing in mind.
pub fn plain(random: &mut Random, hook: Hook, v6: bool) -> Spec {
    let (from, to) = random.pick(hook.paths());
    let proto = random.weighted(&[
        (40, proto::TCP),
        (40, proto::UDP),
        (15, if v6 { proto::ICMPV6 } else { proto::ICMP }),
        (1, proto::SCTP),
        (1, proto::UDPLITE),
        (1, 47),
        (1, 50),
        (1, 253),
    ]);
    Spec {
        from,
        v6,
        src: random.pick(&addresses(from, v6)),
        dst: random.pick(&addresses(to, v6)),
        proto,
        sport: if random.percent(50) {
            random.pick(&PORTS)
        } else {
            random.u16() | 1
        },
        dport: if random.percent(70) {
            random.pick(&PORTS)
        } else {
            random.u16() | 1
        },
        flags: random.weighted(&[
            (50, 0x02),
            (15, 0x10),
            (10, 0x18),
            (5, 0x12),
            (5, 0x04),
            (5, 0x11),
            (5, random.clone().u8()),
        ]),
        seq: 7777,
        ack: 99,
        window: random.pick(&[1000, 64240, 0]),
        tcp_options: if random.percent(30) {
            vec![2, 4, 5, 0xb4]
        } else {
            Vec::new()
        },
        icmp: if v6 {
            random.pick(&[(128, 0), (128, 0), (129, 0), (1, 4), (3, 0)])
        } else {
            random.pick(&[(8, 0), (8, 0), (0, 0), (3, 1), (11, 0), (13, 0)])
        },
        icmp_id: random.u16(),
        quoted: Vec::new(),
        ttl: random.pick(&[64, 64, 64, 63, 128, 255, 2]),
        tos: random.pick(&[0, 0, 0, 0x10, 0xb8, 0x02]),
        id: 0,
        flow_label: random.pick(&[0, 0, 5, 0xabcde]),
        df: random.percent(40),
        fragment: None,
        ip_options: Vec::new(),
        exts: Vec::new(),
        vlans: Vec::new(),
        payload: vec![b'f'; random.below(40)],
        cast: Cast::Host,
        cut: None,
        mark: 0,
        flow: None,
    }
}

/// A packet that does what the rule wants, as far as that is possible.
pub fn at(random: &mut Random, aim: &Aim, flows: &[Flow]) -> Spec {
    let v6 = aim
        .wishes
        .iter()
        .find_map(|w| match w {
            Wish::V6(v6) => Some(*v6),
            _ => None,
        })
        .unwrap_or_else(|| random.percent(40));
    let mut spec = plain(random, aim.hook, v6);
    // What a place or a flow means to a packet must stand before its other fields are set.
    for wish in &aim.wishes {
        match wish {
            Wish::From(place) => {
                let paths: Vec<_> = aim.hook.paths().iter().filter(|p| p.0 == *place).collect();
                if let Some((from, to)) = paths.first() {
                    spec.from = *from;
                    spec.src = random.pick(&addresses(*from, v6));
                    spec.dst = random.pick(&addresses(*to, v6));
                }
            }
            Wish::To(place) => {
                let paths: Vec<_> = aim.hook.paths().iter().filter(|p| p.1 == *place).collect();
                if let Some((from, to)) = paths.first() {
                    spec.from = *from;
                    spec.src = random.pick(&addresses(*from, v6));
                    spec.dst = random.pick(&addresses(*to, v6));
                }
            }
            Wish::Proto(number) => spec.proto = *number,
            _ => {}
        }
    }
    if aim.wishes.contains(&Wish::Established) {
        established(random, &mut spec, flows);
    } else if aim.wishes.contains(&Wish::Related) {
        related(random, &mut spec, flows);
    } else if aim.wishes.contains(&Wish::Invalid) {
        invalid(random, &mut spec);
    }
    for wish in &aim.wishes {
        grant(&mut spec, wish);
    }
    spec
}

/// Turns the packet into one of a flow.
pub fn established(random: &mut Random, spec: &mut Spec, flows: &[Flow]) {
    let flows = flows.iter().enumerate();
    let flows: Vec<_> = flows.filter(|(_, f)| f.v6 == spec.v6).collect();
    if flows.is_empty() {
        return;
    }
    let (index, flow) = random.pick(&flows);
    let reply = random.percent(40);
    flow.next(spec, index, reply);
    spec.payload = vec![b'd'; random.from(1, 30)];
}

/// Turns the packet into an ICMP error about a flow.
pub fn related(random: &mut Random, spec: &mut Spec, flows: &[Flow]) {
    let flows: Vec<_> = flows.iter().filter(|f| f.v6 == spec.v6).collect();
    if flows.is_empty() {
        return;
    }
    let flow = random.pick(&flows);
    let mut quoted = spec.clone();
    flow.next(&mut quoted, 0, random.percent(50));
    quoted.payload = vec![b'q'; 8];
    let to_receiver = quoted.dst;
    spec.from = flow.place_of(to_receiver);
    spec.src = to_receiver;
    spec.dst = quoted.src;
    spec.proto = if spec.v6 { proto::ICMPV6 } else { proto::ICMP };
    spec.icmp = match (spec.v6, random.percent(50)) {
        (true, true) => (1, 4),
        (true, false) => (3, 0),
        (false, true) => (3, 3),
        (false, false) => (11, 0),
    };
    spec.quoted = quoted.ip_packet();
    spec.payload.clear();
}

/// Turns the packet into one that conntrack does not take.
fn invalid(random: &mut Random, spec: &mut Spec) {
    match random.below(3) {
        0 => {
            spec.proto = proto::TCP;
            spec.flags = random.pick(&[0x00, 0x03, 0x06, 0x29, 0xff]);
        }
        1 => {
            spec.proto = if spec.v6 { proto::ICMPV6 } else { proto::ICMP };
            spec.icmp = if spec.v6 { (129, 0) } else { (0, 0) };
        }
        _ => {
            spec.proto = if spec.v6 { proto::ICMPV6 } else { proto::ICMP };
            spec.icmp = if spec.v6 { (1, 4) } else { (3, 1) };
            spec.quoted = vec![0; 28];
        }
    }
}

/// Changes the packet to what a match wants.
pub fn grant(spec: &mut Spec, wish: &Wish) {
    match wish.clone() {
        Wish::Src(a) if a.is_ipv6() == spec.v6 => spec.src = a,
        Wish::Dst(a) if a.is_ipv6() == spec.v6 => spec.dst = a,
        Wish::Proto(number) => {
            spec.proto = match (number, spec.v6) {
                (proto::ICMP, true) => proto::ICMPV6,
                (proto::ICMPV6, false) => proto::ICMP,
                (other, _) => other,
            };
        }
        Wish::Sport(port) => spec.sport = port,
        Wish::Dport(port) => spec.dport = port,
        Wish::Flags(flags) => spec.flags = flags,
        Wish::Window(window) => spec.window = window,
        Wish::Seq(seq) => spec.seq = seq,
        Wish::TcpOptions(options) => spec.tcp_options = options,
        Wish::Icmp(kind, code) => {
            spec.icmp = (kind, code);
            spec.quoted.clear();
        }
        Wish::IcmpId(id) => spec.icmp_id = id,
        Wish::Ttl(ttl) => spec.ttl = ttl,
        Wish::Tos(tos) => spec.tos = tos,
        Wish::Id(id) => spec.id = id,
        Wish::FlowLabel(label) => spec.flow_label = label,
        Wish::Fragment(offset, more) => {
            spec.fragment = Some((offset, more));
            // All but the last are a multiple of eight bytes long.
            let odd = (spec.ip_packet().len() - if spec.v6 { 0 } else { 4 }) % 8;
            if more && odd != 0 {
                spec.payload.extend(std::iter::repeat_n(0, 8 - odd));
            }
        }
        Wish::IpOptions(options) if !spec.v6 => spec.ip_options = options,
        Wish::Ext(ext) if spec.v6 && !spec.exts.iter().any(|e| e.number == ext.number) => {
            spec.exts.push(ext);
        }
        Wish::Vlan(tag) if spec.from != Place::R => spec.vlans = vec![tag],
        Wish::Length(total) => {
            let headers = spec.headers_length();
            spec.payload = vec![b'l'; total.saturating_sub(headers)];
        }
        Wish::Payload(bytes) => spec.payload = bytes,
        Wish::Cast(cast) => spec.cast = cast,
        Wish::Mark(mark) if spec.from == Place::R => spec.mark = mark,
        _ => {}
    }
}

/// Changes one field to something else.
pub fn mutate(random: &mut Random, spec: &mut Spec) {
    let v6 = spec.v6;
    match random.below(23) {
        0 => spec.src = random.pick(&addresses(spec.from, v6)),
        1 => spec.dport = spec.dport.wrapping_add(1).max(1),
        2 => spec.dport = random.pick(&PORTS),
        3 => spec.sport = random.pick(&PORTS),
        4 => spec.sport = spec.sport.wrapping_sub(1).max(1),
        5 => spec.flags = random.u8(),
        6 => spec.ttl = random.pick(&[1, 63, 65, 255]),
        7 => spec.tos = random.u8(),
        8 => spec.payload = vec![b'm'; random.below(300)],
        9 => {
            spec.icmp = (
                random.pick(&[0, 3, 8, 11, 128, 129, 1]),
                random.pick(&[0, 1, 4]),
            );
        }
        10 => spec.proto = random.pick(&[proto::TCP, proto::UDP, 1, 58, 132, 50, 51, 47, 200]),
        11 => {
            if spec.from != Place::R {
                spec.cast = random.pick(&[Cast::Broadcast, Cast::Multicast]);
            }
        }
        12 => grant(spec, &Wish::Fragment(0, true)),
        13 => grant(
            spec,
            &Wish::Fragment(random.pick(&[2, 185, 8191]), random.percent(50)),
        ),
        14 => grant(
            spec,
            &Wish::IpOptions(random.pick(&[&[0x94, 4, 0, 0], &[1, 1, 1, 0]]).to_vec()),
        ),
        15 => {
            let number = random.pick(&[0, 60]);
            grant(
                spec,
                &Wish::Ext(Ext {
                    number,
                    body: vec![1, 4, 0, 0, 0, 0],
                }),
            );
        }
        16 => spec.cut = Some(random.below(24)),
        17 => {
            spec.tcp_options = random
                .pick(&[
                    &[][..],
                    &[2, 4, 5, 0xb4],
                    &[2, 4, 0, 100],
                    &[1, 1, 4, 2],
                    &[1, 3, 3, 7],
                    &[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
                    &[2, 99, 0, 0],
                ])
                .to_vec();
        }
        18 => {
            spec.mark = if spec.from == Place::R {
                random.pick(&[1, 2, 0x10, 0xff])
            } else {
                0
            }
        }
        19 => spec.window = random.u16(),
        20 => spec.dst = random.pick(&addresses(Place::R, v6)),
        21 => {
            grant(spec, &Wish::Vlan(random.pick(&VLAN_TAGS)));
            if random.percent(30) {
                let twice = spec.vlans.clone();
                spec.vlans.extend(twice);
            }
        }
        _ => spec.flow_label = random.pick(&[0, 1, 0xfffff]),
    }
    // R does not send to itself: that would not leave its loopback.
    if spec.from == Place::R && addresses(Place::R, v6).contains(&spec.dst) {
        spec.dst = random.pick(&addresses(Place::A, v6));
    }
}
