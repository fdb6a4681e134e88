//! Matches of nft rules, each with what it wants of a packet.

use std::net::IpAddr;

use crate::net::Place;
use crate::oracle::aim::{Hook, PORTS, VLAN_TAGS, Wish, addresses};
use crate::oracle::packet::{Cast, Ext, proto};
use crate::oracle::random::Random;

/// What the matches of a rule have in common, so that they can hold at once.
#[derive(Clone, Copy, Debug)]
pub struct Flavour {
    /// Hook of the chain.
    pub hook: Hook,
    /// IPv4 or IPv6 matches, or neither.
    pub v6: Option<bool>,
    /// Matches of this transport.
    pub l4: Option<u8>,
    /// Whether conntrack can be matched: not on a device.
    pub ct: bool,
    /// Whether state that nobody outside knows may be matched.
    pub state: bool,
}

/// A match.
#[derive(Clone, Debug)]
pub struct Match {
    /// As nft reads it.
    pub text: String,
    /// What it wants.
    pub wishes: Vec<Wish>,
    /// Whether it depends on what cannot be known from outside.
    pub stateful: bool,
}

/// A match without state.
pub fn plain(text: impl Into<String>, wishes: impl Into<Vec<Wish>>) -> Match {
    Match {
        text: text.into(),
        wishes: wishes.into(),
        stateful: false,
    }
}

fn stateful(text: &str) -> Match {
    Match {
        text: text.to_owned(),
        wishes: Vec::new(),
        stateful: true,
    }
}

/// A random match that can stand in a rule of this flavour.
pub fn any(random: &mut Random, flavour: Flavour) -> Match {
    loop {
        let kind = random.weighted(&[
            (30, 0),
            (40, 1),
            (25, 2),
            (if flavour.ct { 14 } else { 0 }, 3),
            (5, 4),
            (7, 5),
            (if flavour.state { 6 } else { 0 }, 6),
            (if flavour.hook == Hook::Ingress { 12 } else { 0 }, 7),
        ]);
        let found = match kind {
            0 => flavour.v6.map(|v6| {
                if v6 {
                    ip6(random, flavour)
                } else {
                    ip(random, flavour)
                }
            }),
            1 => flavour.l4.map(|l4| transport(random, flavour, l4)),
            2 => meta(random, flavour),
            3 => Some(conntrack(random, flavour)),
            4 => fib(random, flavour),
            5 => raw(random, flavour),
            6 => Some(state(random)),
            _ => Some(vlan(random)),
        };
        if let Some(found) = found {
            return found;
        }
    }
}

/// An address that a packet through this hook can have.
fn address(random: &mut Random, hook: Hook, v6: bool, source: bool) -> IpAddr {
    use Place::{A, B, R};
    let place = match (hook, source) {
        (Hook::Output, true) | (Hook::Input, false) => R,
        (Hook::Forward, false) | (Hook::Output, false) => random.pick(&[B, B, A]),
        (_, true) => random.pick(&[A, A, A, B]),
        (_, false) => random.pick(&[R, R, B]),
    };
    random.pick(&addresses(place, v6))
}

/// `(text, wish)` of an address match: plain, negated, prefix, range, set.
fn address_match(random: &mut Random, flavour: Flavour, v6: bool) -> Match {
    let source = random.percent(60);
    let a = address(random, flavour.hook, v6, source);
    let b = address(random, flavour.hook, v6, source);
    let key = format!(
        "{} {}",
        if v6 { "ip6" } else { "ip" },
        if source { "saddr" } else { "daddr" }
    );
    let wish = |a| vec![if source { Wish::Src(a) } else { Wish::Dst(a) }];
    let text = match random.below(7) {
        0 | 1 => format!("{key} {a}"),
        2 => return plain(format!("{key} != {a}"), wish(b)),
        3 => {
            let length = if v6 {
                random.pick(&[64, 120, 127, 33])
            } else {
                random.pick(&[24, 16, 31, 29, 9])
            };
            format!("{key} {a}/{length}")
        }
        4 => {
            let (low, high) = (a.min(b), a.max(b));
            if low == high {
                format!("{key} {a}")
            } else {
                format!("{key} {low}-{high}")
            }
        }
        5 => format!("{key} {{ {a}, {b} }}"),
        _ => {
            let length = if v6 { 112 } else { 24 };
            format!(
                "{key} & {} == {}",
                if v6 { "ffff::" } else { "255.255.255.0" },
                mask(a, if v6 { 16 } else { length })
            )
        }
    };
    plain(text, wish(a))
}

/// The address with only its first bits.
fn mask(address: IpAddr, bits: u32) -> IpAddr {
    match address {
        IpAddr::V4(a) => IpAddr::V4((u32::from(a) & (u32::MAX << (32 - bits))).into()),
        IpAddr::V6(a) => IpAddr::V6((u128::from(a) & (u128::MAX << (128 - bits))).into()),
    }
}

/// ` 7`, ` != 7`, ` > 6`, ` 5-9`, ` { 1, 7 }`: something that `value` satisfies, or nearly.
pub fn relation(random: &mut Random, value: u32, max: u32) -> String {
    let (low, high) = (value.saturating_sub(2), (value + 3).min(max));
    match random.below(8) {
        0 => format!("!= {}", if value == max { 0 } else { value + 1 }),
        1 if value > 0 => format!("> {}", value - 1),
        2 if value < max => format!("< {}", value + 1),
        3 => format!(">= {value}"),
        4 if low < high => format!("{low}-{high}"),
        5 if value < max => format!("{{ {value}, {} }}", value + 1),
        6 if low < value => format!("!= {{ {low}, {} }}", (value + 1).min(max)),
        _ => format!("{value}"),
    }
}

fn ip(random: &mut Random, flavour: Flavour) -> Match {
    if random.percent(55) {
        return address_match(random, flavour, false);
    }
    match random.below(10) {
        0 | 1 => {
            let ttl = random.pick(&[1, 2, 63, 64, 128, 255]);
            plain(
                format!("ip ttl {}", relation(random, ttl.into(), 255)),
                [Wish::Ttl(ttl)],
            )
        }
        2 => {
            let length = random.from(28, 200);
            plain(
                format!("ip length {}", relation(random, length as u32, 65535)),
                [Wish::Length(length)],
            )
        }
        3 => plain("ip id 4660", [Wish::Id(4660)]),
        4 => plain(
            format!("ip dscp {}", random.pick(&["ef", "cs1", "!= 0x00", "af11"])),
            [Wish::Tos(random.pick(&[0xb8, 0x20, 0x28]))],
        ),
        5 => plain("ip ecn ect0", [Wish::Tos(2)]),
        6 => plain("ip frag-off & 0x1fff != 0", [Wish::Fragment(3, false)]),
        7 => plain(
            format!(
                "ip protocol {}",
                random.pick(&["tcp", "udp", "{ tcp, udp }", "!= icmp", "132"])
            ),
            [],
        ),
        8 => plain("ip hdrlength 6", [Wish::IpOptions(vec![0x94, 4, 0, 0])]),
        _ => plain(
            "ip option ra exists",
            [Wish::IpOptions(vec![0x94, 4, 0, 0])],
        ),
    }
}

fn ip6(random: &mut Random, flavour: Flavour) -> Match {
    if random.percent(55) {
        return address_match(random, flavour, true);
    }
    let ext = |number| {
        Wish::Ext(Ext {
            number,
            body: vec![1, 4, 0, 0, 0, 0],
        })
    };
    match random.below(11) {
        0 | 1 => {
            let ttl = random.pick(&[1, 2, 63, 64, 128, 255]);
            plain(
                format!("ip6 hoplimit {}", relation(random, ttl.into(), 255)),
                [Wish::Ttl(ttl)],
            )
        }
        2 => {
            let length = random.from(60, 200);
            plain(
                format!("ip6 length {}", relation(random, length as u32 - 40, 65535)),
                [Wish::Length(length)],
            )
        }
        3 => plain(
            format!(
                "ip6 nexthdr {}",
                random.pick(&["tcp", "udp", "{ tcp, icmpv6 }", "0"])
            ),
            [],
        ),
        4 => plain(
            format!("ip6 dscp {}", random.pick(&["ef", "cs1", "!= 0x00"])),
            [Wish::Tos(random.pick(&[0xb8, 0x20]))],
        ),
        5 => plain("ip6 flowlabel 5", [Wish::FlowLabel(5)]),
        6 => plain(
            format!("exthdr hbh {}", random.pick(&["exists", "missing"])),
            [ext(0)],
        ),
        7 => plain("exthdr dst exists", [ext(60)]),
        8 => plain(
            format!("dst nexthdr {}", random.pick(&["17", "6", "!= 17"])),
            [ext(60)],
        ),
        9 => plain("hbh hdrlength 0", [ext(0)]),
        _ => plain(
            format!("exthdr frag {}", random.pick(&["exists", "missing"])),
            [Wish::Fragment(0, true)],
        ),
    }
}

fn transport(random: &mut Random, flavour: Flavour, l4: u8) -> Match {
    let mut found = match l4 {
        proto::TCP => tcp(random),
        proto::UDP if random.percent(85) => ports(random, "udp"),
        proto::UDP => match random.below(2) {
            0 => {
                let length = random.from(40, 120);
                let header = if flavour.v6 == Some(true) { 40 } else { 20 };
                plain(
                    format!(
                        "udp length {}",
                        relation(random, (length - header) as u32, 65535)
                    ),
                    [Wish::Length(length)],
                )
            }
            _ => plain("udp checksum != 0", []),
        },
        proto::ICMP | proto::ICMPV6 => icmp(random, l4 == proto::ICMPV6),
        proto::SCTP => ports(random, "sctp"),
        proto::UDPLITE => ports(random, "udplite"),
        _ => plain(format!("meta l4proto {l4}"), []),
    };
    found.wishes.insert(0, Wish::Proto(l4));
    found
}

/// A match on a port of this protocol (`th`: of any).
pub fn ports(random: &mut Random, protocol: &str) -> Match {
    let source = random.percent(25);
    let port = random.pick(&PORTS);
    let other = random.pick(&PORTS);
    let key = format!("{protocol} {}", if source { "sport" } else { "dport" });
    let wish = |port| {
        vec![if source {
            Wish::Sport(port)
        } else {
            Wish::Dport(port)
        }]
    };
    let text = match random.below(6) {
        0 | 1 => format!("{key} {port}"),
        2 if port != other => return plain(format!("{key} != {port}"), wish(other)),
        3 => format!("{key} {{ {port}, {}-{} }}", 9000, 9010),
        4 => format!("{key} & 0xff == {}", port & 0xff),
        _ => format!("{key} {}", relation(random, port.into(), 65535)),
    };
    plain(text, wish(port))
}

fn tcp(random: &mut Random) -> Match {
    if random.percent(55) {
        return ports(random, "tcp");
    }
    let option = |bytes: &[u8]| Wish::TcpOptions(bytes.to_vec());
    match random.below(14) {
        0 => plain("tcp flags & (fin|syn|rst|ack) == syn", [Wish::Flags(2)]),
        1 => plain("tcp flags syn", [Wish::Flags(2)]),
        2 => plain("tcp flags & (syn|rst) != 0", [Wish::Flags(4)]),
        3 => plain("tcp flags == (syn|ack)", [Wish::Flags(0x12)]),
        4 => plain("tcp flags != syn", [Wish::Flags(0x10)]),
        5 => plain("tcp flags { syn, ack }", [Wish::Flags(0x10)]),
        6 => plain(
            format!("tcp window {}", relation(random, 1000, 65535)),
            [Wish::Window(1000)],
        ),
        7 => plain("tcp sequence 7777", [Wish::Seq(7777)]),
        8 => plain("tcp doff > 5", [option(&[2, 4, 5, 0xb4])]),
        9 => plain(
            format!("tcp option maxseg size {}", relation(random, 1460, 65535)),
            [option(&[2, 4, 5, 0xb4])],
        ),
        10 => plain(
            format!(
                "tcp option sack-perm {}",
                random.pick(&["exists", "missing"])
            ),
            [option(&[1, 1, 4, 2])],
        ),
        11 => plain("tcp option window count 7", [option(&[1, 3, 3, 7])]),
        12 => plain(
            "tcp option timestamp exists",
            [option(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2])],
        ),
        _ => plain(
            "tcp option timestamp tsval 1",
            [option(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2])],
        ),
    }
}

fn icmp(random: &mut Random, v6: bool) -> Match {
    let key = if v6 { "icmpv6" } else { "icmp" };
    let echo = if v6 { 128 } else { 8 };
    match random.below(6) {
        0 | 1 => plain(format!("{key} type echo-request"), [Wish::Icmp(echo, 0)]),
        2 => plain(
            format!("{key} type {{ echo-request, echo-reply }}"),
            [Wish::Icmp(echo, 0)],
        ),
        3 => plain(
            format!("{key} code {}", relation(random, 4, 255)),
            [Wish::Icmp(if v6 { 1 } else { 3 }, 4)],
        ),
        4 => plain(
            format!(
                "{key} type echo-request {key} id {}",
                relation(random, 77, 65535)
            ),
            [Wish::Icmp(echo, 0), Wish::IcmpId(77)],
        ),
        _ => plain(
            format!("{key} type != echo-reply"),
            [Wish::Icmp(if v6 { 1 } else { 3 }, 1)],
        ),
    }
}

/// Matches on what the kernel knows of the packet. The socket of a packet that leaves may be that of
/// another process than the one that runs, or none: that counts as state.
fn meta(random: &mut Random, flavour: Flavour) -> Option<Match> {
    let side = random.pick(&[(Place::A, "r0"), (Place::B, "r1")]);
    let receives = matches!(
        flavour.hook,
        Hook::Prerouting | Hook::Input | Hook::Forward | Hook::Ingress
    );
    let sends = matches!(
        flavour.hook,
        Hook::Output | Hook::Forward | Hook::Postrouting
    );
    Some(match random.below(20) {
        0..=2 if receives => {
            let key = random.pick(&["iif", "iifname"]);
            plain(format!("{key} \"{}\"", side.1), [Wish::From(side.0)])
        }
        3 if receives => plain("iifname \"r*\"", []),
        4 if receives => plain(format!("iifname != \"{}\"", side.1), []),
        5 | 6 if sends => {
            let key = random.pick(&["oif", "oifname"]);
            plain(format!("{key} \"{}\"", side.1), [Wish::To(side.0)])
        }
        7 if sends => plain(
            format!("oifname {{ \"{}\", \"eth*\" }}", side.1),
            [Wish::To(side.0)],
        ),
        8 => {
            let mark = random.pick(&[1, 2, 0x10]);
            plain(
                format!("meta mark {}", relation(random, mark, u32::MAX)),
                [Wish::Mark(mark)],
            )
        }
        9 => plain(
            format!("meta mark & 0xf == {}", random.pick(&[0, 1, 2])),
            [Wish::Mark(2)],
        ),
        10 => {
            let length = random.from(40, 300);
            plain(
                format!("meta length {}", relation(random, length as u32, 65535)),
                [Wish::Length(length)],
            )
        }
        11 => {
            let (name, cast) = random.pick(&[
                ("host", Cast::Host),
                ("broadcast", Cast::Broadcast),
                ("multicast", Cast::Multicast),
            ]);
            plain(format!("meta pkttype {name}"), [Wish::Cast(cast)])
        }
        12 => {
            let (name, number) = random.pick(&[
                ("tcp", 6),
                ("udp", 17),
                ("icmp", 1),
                ("{ tcp, udp }", 6),
                ("!= tcp", 17),
                ("sctp", 132),
                ("gre", 47),
            ]);
            if flavour.l4.is_some() {
                return Some(plain(format!("meta l4proto {name}"), []));
            }
            plain(format!("meta l4proto {name}"), [Wish::Proto(number)])
        }
        13 if flavour.v6.is_none() => {
            let (name, v6) = random.pick(&[("ipv4", false), ("ipv6", true)]);
            plain(format!("meta nfproto {name}"), [Wish::V6(v6)])
        }
        14 if flavour.v6.is_none() => {
            let (name, v6) = random.pick(&[("ip", false), ("ip6", true)]);
            plain(format!("meta protocol {name}"), [Wish::V6(v6)])
        }
        15 if flavour.hook == Hook::Output => {
            stateful(random.pick(&["meta skuid 0", "meta skuid != 0", "meta skuid < 1000"]))
        }
        16 if flavour.hook == Hook::Output => {
            stateful(random.pick(&["meta skgid 0", "meta skgid != 0", "meta cgroup 0"]))
        }
        17 if receives => plain("iiftype ether", []),
        18 if flavour.l4 == Some(proto::TCP) || flavour.l4 == Some(proto::UDP) => {
            ports(random, "th")
        }
        _ => return None,
    })
}

fn conntrack(random: &mut Random, flavour: Flavour) -> Match {
    match random.below(14) {
        0 | 1 => plain(
            format!(
                "ct state {}",
                random.pick(&[
                    "established",
                    "established,related",
                    "{ established, related }"
                ])
            ),
            [Wish::Established],
        ),
        2 => plain("ct state related", [Wish::Related]),
        3 => plain("ct state invalid", [Wish::Invalid]),
        4 => plain(
            format!(
                "ct state {}",
                random.pick(&[
                    "new",
                    "new,untracked",
                    "!= established",
                    "untracked",
                    "! new"
                ])
            ),
            [],
        ),
        5 => plain(
            format!("ct direction {}", random.pick(&["original", "reply"])),
            [Wish::Established],
        ),
        6 => plain(
            format!(
                "ct status {}",
                random.pick(&[
                    "seen-reply",
                    "assured",
                    "confirmed",
                    "snat",
                    "dnat",
                    "! seen-reply"
                ])
            ),
            [Wish::Established],
        ),
        7 => plain(
            format!(
                "ct mark {}",
                random.pick(&[
                    "0x10",
                    "0x20",
                    "!= 0x10",
                    "& 0xf0 == 0x20",
                    "{ 0x10, 0x20 }"
                ])
            ),
            [Wish::Established],
        ),
        8 => {
            let (family, v6) = match flavour.v6 {
                Some(v6) => (if v6 { "ip6" } else { "ip" }, v6),
                None => ("ip", false),
            };
            let a = random.pick(&addresses(Place::A, v6));
            plain(
                format!("ct original {family} saddr {a}"),
                [Wish::V6(v6), Wish::Src(a)],
            )
        }
        9 if flavour.l4 == Some(proto::TCP) || flavour.l4 == Some(proto::UDP) => {
            let port = random.pick(&PORTS);
            plain(format!("ct original proto-dst {port}"), [Wish::Dport(port)])
        }
        10 if flavour.l4 == Some(proto::TCP) || flavour.l4 == Some(proto::UDP) => {
            plain("ct reply proto-src 53", [Wish::Dport(53)])
        }
        11 => plain("ct zone 0", []),
        12 => plain(
            format!("ct protocol {}", random.pick(&["tcp", "udp", "icmp"])),
            [],
        ),
        _ => plain("ct state new,established", []),
    }
}

fn fib(random: &mut Random, flavour: Flavour) -> Option<Match> {
    let text = match (flavour.hook, random.below(3)) {
        (Hook::Prerouting | Hook::Input | Hook::Forward, 0) => {
            random.pick(&["fib saddr . iif oif missing", "fib saddr . iif oif exists"])
        }
        (Hook::Prerouting | Hook::Input, 1) => {
            random.pick(&["fib daddr type local", "fib daddr . iif type != local"])
        }
        (Hook::Prerouting | Hook::Input | Hook::Output | Hook::Forward, _) => random.pick(&[
            "fib daddr type { broadcast, multicast }",
            "fib saddr type local",
            "fib daddr type unicast",
        ]),
        _ => return None,
    };
    Some(plain(text, []))
}

fn raw(random: &mut Random, flavour: Flavour) -> Option<Match> {
    Some(match random.below(4) {
        0 if flavour.l4.is_some() => {
            let port = random.pick(&PORTS);
            plain(format!("@th,16,16 {port:#x}"), [Wish::Dport(port)])
        }
        1 if flavour.l4 == Some(proto::UDP) => {
            plain("@th,64,32 0x66777472", [Wish::Payload(b"fwtrace".to_vec())])
        }
        2 if flavour.v6 == Some(false) => plain("@nh,64,8 0x40", [Wish::Ttl(64)]),
        3 if flavour.l4 == Some(proto::UDP) => {
            plain("@ih,0,16 0x6677", [Wish::Payload(b"fwtrace".to_vec())])
        }
        _ => return None,
    })
}

/// Of a VLAN's tag; only devices show it.
fn vlan(random: &mut Random) -> Match {
    let tag = random.pick(&VLAN_TAGS);
    let text = match random.below(5) {
        0 => format!("vlan pcp {}", tag >> 13),
        1 => "vlan dei 0".to_owned(),
        2 => format!("vlan type {}", random.pick(&["ip", "ip6", "!= arp"])),
        3 => "ether type vlan".to_owned(),
        _ => format!("vlan id {}", relation(random, (tag & 0xfff).into(), 4095)),
    };
    plain(text, [Wish::Vlan(tag)])
}

fn state(random: &mut Random) -> Match {
    stateful(random.pick(&[
        "numgen inc mod 3 == 1",
        "numgen random mod 2 == 0",
        "limit rate 5/second burst 3 packets",
        "limit rate over 1/day burst 2 packets",
        "quota over 200 bytes",
        "quota until 300 bytes",
        "meta random < 2147483648",
    ]))
}
