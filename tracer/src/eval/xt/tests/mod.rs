//! What no real packet shows here: bytes that were not captured, facts that are not known, types of sets that the kernel lacks.

mod extension;
mod targets;

use std::net::IpAddr;

use super::{
    super::{
        clock::Clock,
        field::DoubtKind,
        packet::{Device, Fact, Packet, Tracking},
        read::{Fields, Reader},
        world::{Link, World},
    },
    Answer, Matcher, Place,
};
use crate::{
    netlink::ipset::{Entry, Header, IpSet},
    xtables::{
        Family,
        info::{Cond, SetRef, Span},
        matches::{
            Match,
            meta::{Owner, Physdev},
            packet::{Length, Tcpmss},
            payload::{StringMatch, U32, U32Op, U32Test},
            rate::Statistic,
            set,
            time::Time,
            transport::{Multiport, PortSide, Tcp},
        },
    },
};

/// 10.1.0.1:1500 > 10.2.0.1:80, a SYN with an MSS of 1460, behind an Ethernet header.
const SYN: [u8; 58] = [
    2, 0, 0, 0, 0xb, 0, 2, 0, 0, 0, 0xa, 0, 8, 0, // Ethernet
    0x45, 0, 0, 44, 0, 1, 0, 0, 64, 6, 0, 0, 10, 1, 0, 1, 10, 2, 0, 1, // IP
    0x05, 0xdc, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x60, 2, 0x10, 0, 0, 0, 0, 0, // TCP
    2, 4, 5, 0xb4,
];
const V4: Place = Place {
    family: Family::V4,
    hook: None,
};

fn packet(bytes: &[u8]) -> Packet<'_> {
    Packet {
        bytes,
        l2_len: 14,
        len: 44,
        pf: 2,
        protocol: 0x0800,
        iif: Fact::Known(Device {
            index: 2,
            name: "eth0",
        }),
        mark: Fact::Known(5),
        uid: Fact::Absent,
        gid: Fact::Absent,
        tracking: Tracking::None,
        ..Packet::default()
    }
}

fn test_in(what: &Match, packet: &Packet<'_>, world: &World) -> Answer {
    let mut fields = Fields::default();
    let matcher = Matcher::new(what, V4, &mut fields);
    matcher.test(&mut Reader::new(&fields, packet, world))
}

fn test(what: &Match, packet: &Packet<'_>) -> Answer {
    test_in(what, packet, &World::default())
}

fn is_unknown(answer: &Answer, stateful: bool) -> bool {
    matches!(answer, Answer::Unknown(reason) if (reason.kind == DoubtKind::State) == stateful)
}

fn words(what: &Match) -> String {
    let mut fields = Fields::default();
    let matcher = Matcher::new(what, V4, &mut fields);
    let (packet, world) = (packet(&SYN), World::default());
    let mut reader = Reader::new(&fields, &packet, &world);
    matcher.words(&mut reader).to_string()
}

const ANY: Cond<Span<u16>> = Cond::new(Span::new(0, u16::MAX), false);

fn tcp(change: impl FnOnce(&mut Tcp)) -> Match {
    let mut want = Tcp {
        source: ANY,
        destination: ANY,
        flags_mask: 0,
        flags: 0,
        flags_inverted: false,
        option: Cond::new(0, false),
    };
    change(&mut want);
    Match::Tcp(want)
}

fn port(port: u16) -> Cond<Span<u16>> {
    Cond::new(Span::new(port, port), false)
}

#[test]
fn a_header_that_is_cut_off_is_not_one_that_is_not_there() {
    let to_80 = tcp(|t| t.destination = port(80));
    let cut = |captured: usize, len: u32| {
        let bytes = &SYN[..captured];
        test(
            &to_80,
            &Packet {
                len,
                ..packet(bytes)
            },
        )
    };
    assert_eq!(cut(58, 44), Answer::Match);
    assert!(is_unknown(&cut(40, 44), false), "not captured");
    assert_eq!(cut(50, 36), Answer::Drop, "the packet ends in the header");
    assert_eq!(
        test(&tcp(|t| t.destination = port(81)), &packet(&SYN)),
        Answer::Miss
    );
    // The option is not captured, but the port does not fit.
    let option = |port| {
        tcp(|t| {
            t.destination = port;
            t.option = Cond::new(2, false);
        })
    };
    assert!(is_unknown(
        &test(&option(port(80)), &packet(&SYN[..54])),
        false
    ));
    assert_eq!(test(&option(port(81)), &packet(&SYN[..54])), Answer::Miss);
}

#[test]
fn fragments_of_tcp() {
    for (offset, expected) in [(1, Answer::Drop), (2, Answer::Miss)] {
        let mut bytes = SYN;
        bytes[14 + 7] = offset;
        assert_eq!(test(&tcp(|_| {}), &packet(&bytes)), expected);
        let ports = Match::Multiport(Multiport {
            side: PortSide::Either,
            ports: Cond::new(vec![Span::new(80, 80)], false),
        });
        assert_eq!(test(&ports, &packet(&bytes)), Answer::Miss);
    }
}

#[test]
fn times_in_the_kernels_zone() {
    let time = |local, day_start, day_stop| {
        Match::Time(Time {
            date_start: 0,
            date_stop: u32::MAX,
            day_start,
            day_stop,
            monthdays: u32::MAX - 1,
            weekdays: 0xfe,
            local,
            contiguous: false,
        })
    };
    // Sunday 2026-11-22, 19:15:00 in UTC.
    let at = |minutes_west| Packet {
        clock: Some(Clock {
            from: 1_795_374_900,
            to: 1_795_374_900,
            minutes_west,
        }),
        ..packet(&SYN)
    };
    let evening = (19 * 3600, 20 * 3600);
    let night = (evening.0 + 3600, evening.1 + 3600);
    for (local, (start, stop), west, expected) in [
        (false, evening, Some(-60), Answer::Match),
        (false, night, Some(-60), Answer::Miss),
        (true, evening, Some(-60), Answer::Miss),
        (true, night, Some(-60), Answer::Match),
        (true, evening, Some(0), Answer::Match),
        (false, evening, None, Answer::Match),
    ] {
        assert_eq!(test(&time(local, start, stop), &at(west)), expected);
    }
    let unknown = test(&time(true, evening.0, evening.1), &at(None));
    assert!(is_unknown(&unknown, false));
    let unknown = test(&time(false, evening.0, evening.1), &packet(&SYN));
    assert!(is_unknown(&unknown, false));
}

#[test]
fn strings_that_the_kernel_compares_in_its_own_way() {
    let find = |pattern: &[u8], algo: &str, ignore_case| {
        let want = Match::String(StringMatch {
            from: 0,
            to: 65535,
            algo: algo.into(),
            pattern: Cond::new(pattern.to_vec(), false),
            ignore_case,
            rev: 1,
        });
        test(&want, &packet(&SYN))
    };
    assert_eq!(find(&[10, 1, 0, 1], "kmp", true), Answer::Match);
    assert!(is_unknown(&find(&[10, 1, 0, 1], "fsm", false), false));
    assert!(is_unknown(&find(&[0xe4, 1], "bm", true), false));
    assert_eq!(find(&[0xe4, 1], "bm", false), Answer::Miss);
}

#[test]
fn strings_and_words_in_what_was_captured() {
    let find = |pattern: &[u8], captured: usize, to: u16| {
        let want = Match::String(StringMatch {
            from: 0,
            to,
            algo: "bm".into(),
            pattern: Cond::new(pattern.to_vec(), false),
            ignore_case: false,
            rev: 1,
        });
        test(&want, &packet(&SYN[..captured]))
    };
    assert_eq!(find(&[10, 1, 0, 1], 58, 65535), Answer::Match);
    assert_eq!(
        find(&[10, 1, 0, 1], 40, 65535),
        Answer::Match,
        "found in time"
    );
    assert!(is_unknown(&find(&[9, 9], 40, 65535), false));
    assert_eq!(
        find(&[9, 9], 40, 20),
        Answer::Miss,
        "the window was captured"
    );
    assert_eq!(
        find(&[10, 1, 0, 1], 58, 15),
        Answer::Miss,
        "it ends behind the window"
    );
    let u32_test = |start, steps: &[(U32Op, u32)], value, captured: usize| {
        let want = Match::U32(U32 {
            tests: vec![U32Test {
                start,
                steps: steps.to_vec(),
                values: vec![Span::new(value, value)],
            }],
            inverted: false,
        });
        test(&want, &packet(&SYN[..captured]))
    };
    let header = [
        (U32Op::ShiftRight, 22),
        (U32Op::And, 0x3c),
        (U32Op::At, 0),
        (U32Op::And, 0xffff),
    ];
    assert_eq!(u32_test(0, &header, 80, 58), Answer::Match);
    assert!(is_unknown(&u32_test(0, &header, 80, 36), false));
    assert_eq!(
        u32_test(41, &[], 0, 58),
        Answer::Miss,
        "beyond the packet's end"
    );
    assert_eq!(
        u32_test(8, &[(U32Op::ShiftRight, 56)], 64, 58),
        Answer::Match,
        "by 24"
    );
}

#[test]
fn owners() {
    let owner = |socket: Option<bool>, uid: Option<bool>| {
        Match::Owner(Owner {
            socket: socket.map(|inverted| Cond::new((), inverted)),
            uid: uid.map(|inverted| Cond::new(Span::new(1000, 1000), inverted)),
            gid: None,
            supplementary_groups: false,
        })
    };
    let of = |uid: Fact<u32>, what: &Match| {
        test(
            what,
            &Packet {
                uid,
                ..packet(&SYN)
            },
        )
    };
    assert_eq!(
        of(Fact::Known(1000), &owner(None, Some(false))),
        Answer::Match
    );
    assert_eq!(of(Fact::Known(0), &owner(None, Some(true))), Answer::Match);
    assert_eq!(of(Fact::Known(0), &owner(Some(true), None)), Answer::Miss);
    assert_eq!(of(Fact::Absent, &owner(None, Some(false))), Answer::Miss);
    assert_eq!(of(Fact::Absent, &owner(None, Some(true))), Answer::Match);
    // No socket, or one without a file.
    assert!(is_unknown(
        &of(Fact::Absent, &owner(Some(false), None)),
        false
    ));
    assert!(is_unknown(
        &of(Fact::Unknown, &owner(None, Some(false))),
        false
    ));
}

#[test]
fn bridge_ports() {
    let physdev = |input: Option<&str>, output: Option<&str>, bridged: Option<bool>| {
        Match::Physdev(Physdev {
            input: input.map(|name| Cond::new(name.to_owned(), false)),
            output: output.map(|name| Cond::new(name.to_owned(), false)),
            is_in: None,
            is_out: None,
            is_bridged: bridged.map(|inverted| Cond::new((), inverted)),
        })
    };
    let device = |name| Fact::Known(Device { index: 7, name });
    let bridged = Packet {
        physin: device("port1"),
        physout: device("port2"),
        ..packet(&SYN)
    };
    let routed = Packet {
        physout: Fact::Absent,
        ..bridged
    };
    for (packet, what, expected) in [
        (
            &bridged,
            physdev(Some("port+"), Some("port2"), Some(false)),
            Answer::Match,
        ),
        (&bridged, physdev(Some("port2"), None, None), Answer::Miss),
        (&bridged, physdev(None, None, Some(true)), Answer::Miss),
        (
            &routed,
            physdev(Some("port1"), None, Some(true)),
            Answer::Match,
        ),
        (&routed, physdev(None, Some("port2"), None), Answer::Miss),
    ] {
        assert_eq!(test(&what, packet), expected, "{what:?}");
    }
    assert!(is_unknown(
        &test(&physdev(Some("port1"), None, None), &packet(&SYN)),
        false
    ));
}

#[test]
fn chance_and_certainty() {
    let random = |probability| Match::Statistic(Statistic::Random(Cond::new(probability, false)));
    assert_eq!(test(&random(0), &packet(&SYN)), Answer::Miss);
    assert_eq!(test(&random(0x8000_0000), &packet(&SYN)), Answer::Match);
    assert!(is_unknown(&test(&random(0x4000_0000), &packet(&SYN)), true));
}

#[test]
fn what_is_not_known_of_an_extension_is_unknown() {
    let foreign = Match::Unknown {
        name: "frobnicate".into(),
        rev: 3,
        info: vec![1],
    };
    let Answer::Unknown(reason) = test(&foreign, &packet(&SYN)) else {
        panic!("known");
    };
    assert_eq!(reason.to_string(), "match frobnicate is not evaluated");
    assert!(reason.kind == DoubtKind::Missing);
}

fn sets(set: IpSet) -> World {
    World {
        sets: Some(vec![IpSet {
            index: Some(3),
            family: 2,
            ..set
        }]),
        links: Some(vec![Link {
            index: 2,
            kind: 1,
            ..Link::default()
        }]),
        ..World::default()
    }
}

fn in_set(sources: &[bool]) -> set::Set {
    set::Set {
        set: SetRef {
            index: 3,
            sources: sources.to_vec(),
        },
        inverted: false,
        return_nomatch: false,
        skip_counters: false,
        skip_subcounters: false,
        packets: None,
        bytes: None,
    }
}

fn ip(text: &str) -> Option<IpAddr> {
    Some(text.parse().unwrap())
}

#[test]
fn types_of_sets() {
    let entry = Entry::default;
    for (kind, element, sources, expected) in [
        (
            "hash:mac",
            Entry {
                mac: Some([2, 0, 0, 0, 0xa, 0]),
                ..entry()
            },
            &[true][..],
            true,
        ),
        (
            "hash:mac",
            Entry {
                mac: Some([2, 0, 0, 0, 0xa, 0]),
                ..entry()
            },
            &[false],
            false,
        ),
        (
            "hash:ip,mac",
            Entry {
                ip: ip("10.1.0.1"),
                mac: Some([2, 0, 0, 0, 0xa, 0]),
                ..entry()
            },
            &[true, true],
            true,
        ),
        (
            "hash:ip,mark",
            Entry {
                ip: ip("10.1.0.1"),
                mark: Some(5),
                ..entry()
            },
            &[true, true],
            true,
        ),
        (
            "hash:ip,mark",
            Entry {
                ip: ip("10.1.0.1"),
                mark: Some(6),
                ..entry()
            },
            &[true, true],
            false,
        ),
        (
            "hash:net,net",
            Entry {
                ip: ip("10.1.0.0"),
                cidr: Some(16),
                ip2: ip("10.2.0.0"),
                cidr2: Some(24),
                ..entry()
            },
            &[true, false],
            true,
        ),
        (
            "hash:net,port,net",
            Entry {
                ip: ip("10.1.0.0"),
                cidr: Some(16),
                ip2: ip("10.2.0.0"),
                cidr2: Some(24),
                proto: Some(6),
                port: Some(80),
                ..entry()
            },
            &[true, false, false],
            true,
        ),
        // A rule with fewer directions than the type has.
        (
            "hash:net,net",
            Entry {
                ip: ip("10.1.0.0"),
                cidr: Some(16),
                ..entry()
            },
            &[true],
            false,
        ),
        (
            "hash:ip",
            Entry {
                ip: ip("10.1.0.1"),
                ..entry()
            },
            &[true, true],
            true,
        ),
    ] {
        let world = sets(IpSet {
            kind: kind.into(),
            entries: vec![element],
            ..IpSet::default()
        });
        let answer = test_in(&Match::Set(in_set(sources)), &packet(&SYN), &world);
        let expected = if expected {
            Answer::Match
        } else {
            Answer::Miss
        };
        assert_eq!(answer, expected, "{kind}");
    }
}

#[test]
fn sets_that_cannot_be_told() {
    let entry = Entry {
        ip: ip("10.1.0.1"),
        timeout: Some(1),
        ..Entry::default()
    };
    let world = |entry: Entry, broken| {
        sets(IpSet {
            kind: "hash:ip".into(),
            header: Header::default(),
            entries: vec![entry],
            broken,
            ..IpSet::default()
        })
    };
    let what = Match::Set(in_set(&[true]));
    let about_to_expire = test_in(&what, &packet(&SYN), &world(entry.clone(), 0));
    assert!(is_unknown(&about_to_expire, true));
    let lasting = Entry {
        timeout: Some(0),
        ..entry
    };
    assert_eq!(
        test_in(&what, &packet(&SYN), &world(lasting.clone(), 0)),
        Answer::Match
    );
    let counted = Match::Set(set::Set {
        packets: Some(set::CounterTest {
            op: set::CounterOp::Gt,
            value: 3,
        }),
        ..in_set(&[true])
    });
    assert!(is_unknown(
        &test_in(&counted, &packet(&SYN), &world(lasting.clone(), 0)),
        true
    ));
    assert!(is_unknown(
        &test_in(&what, &packet(&SYN), &world(lasting, 1)),
        false
    ));
    assert!(is_unknown(&test(&what, &packet(&SYN)), false));
}

#[test]
fn words_for_what_missed() {
    assert_eq!(
        words(&tcp(|t| t.destination = port(8080))),
        "wanted dport 8080, packet has 80"
    );
    let not_syn = tcp(|t| {
        (t.flags_mask, t.flags, t.flags_inverted) = (0x17, 2, true);
    });
    assert_eq!(
        words(&not_syn),
        "wanted tcp-flags ! FIN,SYN,RST,ACK SYN, packet has SYN"
    );
    let length = Match::Length(Length {
        bytes: Cond::new(Span::new(100, 200), false),
    });
    assert_eq!(words(&length), "wanted length 100:200, packet has 44");
    let mss = Match::Tcpmss(Tcpmss {
        mss: Cond::new(Span::new(0, 500), false),
    });
    assert_eq!(words(&mss), "wanted mss 0:500, packet has 1460");
}
