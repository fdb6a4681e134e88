use std::net::IpAddr;

use fwtrace_abi::{FLAG_L2, Record};
use proptest::prelude::*;
use zerocopy::FromBytes;

use super::*;
use crate::expr::{Expression, Verdict};

fn pushed(text: &str) -> (Filter, Pushed) {
    pushed_to(Filter::default(), text)
}

fn pushed_to(mut filter: Filter, text: &str) -> (Filter, Pushed) {
    let pushed = push(text, &mut filter);
    (filter, pushed)
}

/// What the kernel checks of an expression, and what it does not.
fn parts(text: &str) -> (Vec<String>, Vec<String>) {
    let (_, pushed) = pushed(text);
    (pushed.kernel, pushed.rest)
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn plain_operands_of_and_are_pushed_down() {
    let (filter, pushed) = pushed("tcp and dst net 10.0.0.0/8 and not port 22");
    assert_eq!(filter.proto, Some(Proto::TCP));
    assert_eq!(filter.prefixes.len(), 1);
    assert_eq!(filter.prefixes[0].side, Side::Dst);
    assert_eq!(filter.prefixes[0].prefix.len, 8);
    assert!(filter.ports.is_empty());
    assert_eq!(pushed.kernel, ["tcp", "dst net 10.0.0.0/8"]);
    assert_eq!(pushed.rest, ["not port 22"]);

    for (text, kernel, rest) in [
        (
            "(udp && (ip6))&&dst port 53",
            &["udp", "ip6", "dst port 53"][..],
            &[][..],
        ),
        (
            "tcp port 80 and src host fd00::1",
            &["tcp port 80", "src host fd00::1"],
            &[],
        ),
        ("udp portrange 90-80", &["udp portrange 90-80"], &[]),
        ("icmp and src 10.0.0.1", &["icmp", "src 10.0.0.1"], &[]),
        ("ip host 10.0.0.1", &["ip host 10.0.0.1"], &[]),
        (
            "src and dst net 10.0.0.0/8 and ip",
            &["ip"],
            &["src and dst net 10.0.0.0/8"],
        ),
        (
            "ip proto 44 and ip[8] < 5",
            &["ip proto 44"],
            &["ip[8] < 5"],
        ),
        // The sides of the filter hold one operand's alternatives each.
        (
            "port 80 and port 443 and src port 5",
            &["port 80", "src port 5"],
            &["port 443"],
        ),
        // From the left, and alike: ((udp or tcp) and ip) and not port 80.
        (
            "udp or tcp and ip and not port 80",
            &["ip"],
            &["udp or tcp", "not port 80"],
        ),
        ("tcp and port 80 or udp", &[], &["tcp and port 80 or udp"]),
        (
            "tcp and src or dst port 80",
            &["tcp"],
            &["src or dst port 80"],
        ),
        (
            "not src and dst port 80 and ip",
            &["ip"],
            &["not src and dst port 80"],
        ),
        ("not tcp and udp", &["udp"], &["not tcp"]),
        (
            "! (tcp and port 80) and ip",
            &["ip"],
            &["! (tcp and port 80)"],
        ),
        (
            "host (10.0.0.1 or 10.0.0.2) and tcp",
            &["tcp"],
            &["host (10.0.0.1 or 10.0.0.2)"],
        ),
        // An address of IPv4 is in ARP too.
        ("host 10.0.0.1", &[], &["host 10.0.0.1"]),
        (
            "host 10.0.0.1 and not port 22",
            &[],
            &["host 10.0.0.1", "not port 22"],
        ),
        ("host fd00::1", &["host fd00::1"], &[]),
        // These are libpcap's to look up, or mean something else to the kernel's side.
        ("port http and ip", &["ip"], &["port http"]),
        ("host localhost and ip", &["ip"], &["host localhost"]),
        ("ip6 proto 44", &[], &["ip6 proto 44"]),
        ("ah", &[], &["ah"]),
        ("port 80 and 443", &["port 80"], &["443"]),
        ("vlan 10 and tcp", &[], &["vlan 10 and tcp"]),
        ("mpls and tcp", &[], &["mpls and tcp"]),
    ] {
        assert_eq!(parts(text), (words(kernel), words(rest)), "{text}");
        // And all of them are expressions, but for what only libpcap refuses.
        if !["port 80 and port 443 and src port 5"].contains(&text) {
            Expression::compile(text).unwrap_or_else(|err| panic!("{err}"));
        }
    }
}

#[test]
fn flags_keep_their_meaning() {
    let port = |port, side| {
        PortMatch::new(
            Ports {
                first: port,
                last: port,
            },
            side,
        )
    };
    let given = Filter {
        ports: vec![port(80, Side::Any)],
        proto: Some(Proto::TCP),
        ..Filter::default()
    };
    // To add 443 would let packets through that the flag does not mean.
    let (filter, pushed) = pushed_to(given.clone(), "port 443");
    assert_eq!((filter, pushed.rest), (given.clone(), words(&["port 443"])));
    let (filter, _) = pushed_to(given.clone(), "src port 5 and host 10.0.0.1");
    assert_eq!(filter.ports, [port(80, Side::Any), port(5, Side::Src)]);
    assert_eq!(filter.prefixes.len(), 1);
    let (filter, pushed) = pushed_to(given.clone(), "udp");
    assert_eq!((filter, pushed.rest), (given, words(&["udp"])));
    // A full list takes no more, which is no error.
    let full = Filter {
        ports: (0..PORTS as u16).map(|p| port(p, Side::Src)).collect(),
        ..Filter::default()
    };
    let (filter, _) = pushed_to(full.clone(), "dst port 5");
    assert_eq!(filter, full);
    // No packet meets both; the kernel's side is left as it was.
    let v4 = Filter {
        ip_version: Some(4),
        ..Filter::default()
    };
    let (filter, pushed) = pushed_to(v4.clone(), "src host fd00::1");
    assert_eq!((filter, pushed.rest), (v4, words(&["src host fd00::1"])));
}

/// What `tracer-ebpf/src/filter.rs` decides on a packet from its network header on, which was captured whole.
fn kernel_accepts(filter: &Filter, mut protocol: u16, packet: &[u8]) -> bool {
    let at = |at: usize, len: usize| packet.get(at..at + len);
    let number = |bytes: &[u8]| {
        bytes
            .iter()
            .fold(0, |n: usize, byte| n << 8 | usize::from(*byte))
    };
    let mut l3 = 0;
    for _ in 0..2 {
        if protocol != 0x8100 && protocol != 0x88a8 {
            break;
        }
        protocol = at(l3 + 2, 2).map_or(0, number) as u16;
        l3 += 4;
    }
    let (mut version, mut proto, mut transport) = (0, None, None);
    let zero = if protocol == 0x86dd {
        IpAddr::from([0; 16])
    } else {
        IpAddr::from([0; 4])
    };
    let (mut source, mut destination) = (zero, zero);
    let v4 = |bytes: &[u8]| IpAddr::from(<[u8; 4]>::try_from(bytes).unwrap());
    let v6 = |bytes: &[u8]| IpAddr::from(<[u8; 16]>::try_from(bytes).unwrap());
    match protocol {
        0x0800 => {
            version = 4;
            if let Some(ip) = at(l3, 20) {
                proto = Some(ip[9]);
                (source, destination) = (v4(&ip[12..16]), v4(&ip[16..20]));
                if ip[6] & 0x1f == 0 && ip[7] == 0 {
                    transport = Some(l3 + usize::from(ip[0] & 0xf) * 4);
                }
            }
        }
        0x86dd => {
            version = 6;
            if let Some(ip) = at(l3, 40) {
                (source, destination) = (v6(&ip[8..24]), v6(&ip[24..40]));
                let (mut next, mut place) = (ip[6], l3 + 40);
                transport = Some(place);
                for _ in 0..8 {
                    let header = at(place, 4).unwrap_or(&[0; 4]);
                    let length = match next {
                        0 | 43 | 60 => (usize::from(header[1]) + 1) * 8,
                        51 => (usize::from(header[1]) + 2) * 4,
                        44 => 8,
                        _ => break,
                    };
                    let later = next == 44 && (header[2] != 0 || header[3] & 0xf8 != 0);
                    next = header[0];
                    place += length;
                    transport = Some(place);
                    if later {
                        transport = None;
                        break;
                    }
                }
                proto = Some(next);
            }
        }
        _ => {}
    }
    let whole = transport.and_then(|t| at(t, 4));
    let half = transport
        .and_then(|t| at(t, 2))
        .map(|half| [half[0], half[1], 0, 0]);
    let ports = whole.and_then(|w| w.try_into().ok()).or(half);
    if filter.ip_version.is_some_and(|wanted| wanted != version) {
        return false;
    }
    if filter.proto.is_some_and(|wanted| Some(wanted.0) != proto) {
        return false;
    }
    let sides = [Side::Any, Side::Src, Side::Dst];
    let meets = |side: Side, source: bool, destination: bool| match side {
        Side::Any => source || destination,
        Side::Src => source,
        Side::Dst => destination,
    };
    let within = |prefix: &Prefix, addr: IpAddr| {
        addr.is_ipv4() == prefix.addr.is_ipv4()
            && version == if prefix.addr.is_ipv4() { 4 } else { 6 }
            && values::prefix(&format!("{addr}/{}", prefix.len)).unwrap() == *prefix
    };
    for side in sides {
        let mut asked = filter.prefixes.iter().filter(|p| p.side == side).peekable();
        if asked.peek().is_some()
            && !asked.any(|p| {
                meets(
                    side,
                    within(&p.prefix, source),
                    within(&p.prefix, destination),
                )
            })
        {
            return false;
        }
    }
    if filter.ports.is_empty() {
        return true;
    }
    let Some(ports) = ports.filter(|_| matches!(proto, Some(6 | 17 | 33 | 132 | 136))) else {
        return false;
    };
    let (source, destination) = (number(&ports[..2]) as u16, number(&ports[2..]) as u16);
    sides.into_iter().all(|side| {
        let mut asked = filter.ports.iter().filter(|p| p.side == side).peekable();
        let within = |ports: Ports, port: u16| ports.first <= port && port <= ports.last;
        asked.peek().is_none()
            || asked.any(|p| meets(side, within(p.ports, source), within(p.ports, destination)))
    })
}

fn primitives() -> impl Strategy<Value = String> {
    let side = prop_oneof![
        Just(""),
        Just("src "),
        Just("dst "),
        Just("src or dst "),
        Just("src and dst ")
    ];
    let address = prop_oneof![
        Just("host 10.0.0.1"),
        Just("host 10.0.0.2"),
        Just("net 10.0.0.0/8"),
        Just("net 10.0.0.0"),
        Just("net 0.0.0.0/0"),
        Just("host fd00::1"),
        Just("net fd00::/16"),
        Just("net ::/0"),
    ];
    let ports = prop_oneof![
        Just("port 80"),
        Just("port 53"),
        Just("portrange 50-90"),
        Just("port 0")
    ];
    let transport = prop_oneof![Just(""), Just("tcp "), Just("udp "), Just("sctp ")];
    let name = prop_oneof![
        Just("tcp"),
        Just("udp"),
        Just("icmp"),
        Just("icmp6"),
        Just("ip"),
        Just("ip6"),
        Just("arp"),
        Just("esp"),
        Just("vlan"),
        Just("ip proto 17"),
        Just("ip6 proto 6"),
        Just("proto 17"),
        Just("proto 44"),
        Just("ip6 proto 44"),
        Just("less 80"),
        Just("ip[8] = 0"),
        Just("tcp[13] & 2 = 0"),
    ];
    prop_oneof![
        2 => name.prop_map(str::to_owned),
        2 => (side.clone(), address).prop_map(|(side, address)| format!("{side}{address}")),
        1 => (transport, side, ports).prop_map(|(transport, side, ports)| format!("{transport}{side}{ports}")),
    ]
}

fn expressions() -> impl Strategy<Value = String> {
    primitives().prop_recursive(3, 8, 3, |inner| {
        let glue = prop_oneof![4 => Just("and"), 1 => Just("or"), 1 => Just("&&"), 1 => Just("and not")];
        prop_oneof![
            3 => (inner.clone(), glue.clone(), inner.clone()).prop_map(|(a, glue, b)| format!("{a} {glue} {b}")),
            1 => (inner.clone(), glue, inner.clone()).prop_map(|(a, glue, b)| format!("({a}) {glue} ({b})")),
            1 => inner.prop_map(|a| format!("not {a}")),
        ]
    })
}

fn packets() -> impl Strategy<Value = (u16, Vec<u8>)> {
    let v4 = || prop_oneof![3 => Just([10, 0, 0, 1]), 2 => Just([10, 0, 0, 2]), 1 => Just([0, 0, 0, 0]), 1 => any::<[u8; 4]>()];
    let v6 = || {
        prop_oneof![Just("fd00::1"), Just("fd00::2"), Just("::1")]
            .prop_map(|a| a.parse::<std::net::Ipv6Addr>().unwrap().octets())
    };
    let proto = || prop_oneof![Just(6_u8), Just(17), Just(1), Just(58), Just(132), Just(50)];
    let port = || prop_oneof![Just(80_u16), Just(53), Just(0), any::<u16>()];
    let body = (
        port(),
        port(),
        prop::collection::vec(prop_oneof![Just(0_u8), any::<u8>()], 0..40),
    )
        .prop_map(|(a, b, rest)| {
            let mut body = [a.to_be_bytes(), b.to_be_bytes()].concat();
            body.extend(rest);
            body
        });
    let fragment = || prop_oneof![4 => Just(0_u16), 1 => Just(0x2000), 1 => Just(0x00b9)];
    let ipv4 = (
        v4(),
        v4(),
        proto(),
        fragment(),
        prop_oneof![5 => Just(5_usize), 1 => 0..16_usize],
        body.clone(),
    )
        .prop_map(|(source, destination, proto, fragment, words, body)| {
            let mut packet = vec![0x40 | words as u8, 0, 0, 0, 0, 1];
            packet.extend(fragment.to_be_bytes());
            packet.extend([64, proto, 0, 0]);
            packet.extend(source);
            packet.extend(destination);
            packet.resize(packet.len().max(words * 4), 1);
            packet.extend(body);
            (0x0800, packet)
        });
    let extensions = prop::collection::vec(
        prop_oneof![Just(0_u8), Just(60), Just(43), Just(44), Just(51)],
        0..3,
    );
    let ipv6 = (v6(), v6(), proto(), extensions, fragment(), body).prop_map(
        |(source, destination, proto, extensions, fragment, body)| {
            let mut packet = vec![
                0x60,
                0,
                0,
                0,
                0,
                0,
                extensions.first().copied().unwrap_or(proto),
                64,
            ];
            packet.extend(source);
            packet.extend(destination);
            for (at, kind) in extensions.iter().enumerate() {
                packet.push(extensions.get(at + 1).copied().unwrap_or(proto));
                packet.extend(match kind {
                    44 => [&[0][..], &(fragment << 3).to_be_bytes(), &[0; 4]].concat(),
                    51 => [&[1][..], &[0; 10]].concat(),
                    _ => vec![0; 7],
                });
            }
            packet.extend(body);
            (0x86dd, packet)
        },
    );
    let arp = v4().prop_map(|a| {
        let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1];
        packet.extend(a);
        packet.extend([0; 6]);
        packet.extend([10, 0, 0, 1]);
        (0x0806, packet)
    });
    let plain = prop_oneof![4 => ipv4, 3 => ipv6, 1 => arp];
    let tagged = (plain, 0..3_usize).prop_map(|((kind, packet), tags)| {
        (0..tags.saturating_sub(1)).fold((kind, packet), |(kind, packet): (u16, Vec<u8>), _| {
            (
                0x8100,
                [&[0, 10][..], &kind.to_be_bytes(), &packet].concat(),
            )
        })
    });
    // Cut short, but not within the fixed part of an IP header: no such packet gets to a rule.
    (tagged, prop_oneof![2 => Just(usize::MAX), 1 => 0..90_usize]).prop_map(
        |((kind, mut packet), length)| {
            packet.truncate(length.max(if length < 8 && kind != 0x8100 {
                length
            } else {
                44
            }));
            (kind, packet)
        },
    )
}

const CASES: u32 = 1000;

/// How many of the cases below the kernel's side had a part in, were accepted, were refused in the kernel.
static COUNTS: [std::sync::atomic::AtomicU32; 3] =
    [const { std::sync::atomic::AtomicU32::new(0) }; 3];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    /// No packet that an expression accepts is refused by what of it the kernel's side checks.
    #[test]
    fn the_kernel_refuses_nothing_that_is_accepted(text in expressions(), packets in prop::collection::vec(packets(), 12)) {
        let count = |i: usize| COUNTS[i].fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        // It may contradict itself.
        if let Ok(expression) = Expression::compile(&text) {
            let (filter, pushed) = pushed(&text);
            let text = expression.text();
            for (protocol, packet) in packets {
                let mut record = Record::read_from_bytes(&[0; size_of::<Record>()]).unwrap();
                record.protocol = protocol.to_be();
                record.len = packet.len() as u32;
                // The length in the header is none: the buffer's counts.
                let verdict = expression.judge(&record, &packet);
                let passes = kernel_accepts(&filter, protocol, &packet);
                prop_assert!(verdict == Verdict::NoMatch || passes, "{text}: {pushed:?} refuses {protocol:#x} {packet:02x?}");
                if !pushed.kernel.is_empty() {
                    count(0);
                    if verdict == Verdict::Match { count(1); }
                    if !passes { count(2); }
                    // With nothing left the kernel's side alone decides, but for what it is laxer in.
                }
                let mut framed = vec![0; 12];
                framed.extend(protocol.to_be_bytes());
                framed.extend(&packet);
                record.flags = FLAG_L2;
                record.l2_len = 14;
                prop_assert_eq!(expression.judge(&record, &framed), verdict, "{} with a header", text);
            }
        }
        if count_of_cases() == CASES {
            let [had, met, refused] = [0, 1, 2].map(|i| COUNTS[i].load(std::sync::atomic::Ordering::Relaxed));
            prop_assert!(had > CASES && met > CASES / 10 && refused > CASES / 5, "{had} cases, {met} accepted, {refused} refused: nothing was tested");
        }
    }
}

fn count_of_cases() -> u32 {
    static CASES: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    CASES.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1
}
