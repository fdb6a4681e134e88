use std::sync::OnceLock;

use fwtrace_abi::{FLAG_L2, FLAG_VLAN};
use proptest::prelude::*;
use zerocopy::FromBytes;

use super::program::run;
use super::*;

fn compile(text: &str) -> Expression {
    Expression::compile(text).unwrap_or_else(|err| panic!("{err}"))
}

/// A record as it goes with a packet that begins with `l2` bytes of link-layer header.
fn record(protocol: u16, l2: u16, len: u32) -> Record {
    let mut record = Record::read_from_bytes(&[0; size_of::<Record>()]).unwrap();
    record.protocol = protocol.to_be();
    record.len = len;
    record.l2_len = l2;
    record.flags = if l2 > 0 { FLAG_L2 } else { 0 };
    record
}

/// UDP 192.0.2.1:53 > 192.0.2.2:4000 from the network header on.
fn udp() -> Vec<u8> {
    let mut packet = vec![
        0x45, 0, 0, 32, 0, 1, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2,
    ];
    packet.extend([0, 53, 0x0f, 0xa0, 0, 12, 0, 0]);
    packet.extend(b"abcd");
    packet
}

fn ethernet(kind: u16, packet: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    frame.extend(kind.to_be_bytes());
    frame.extend(packet);
    frame
}

#[test]
fn a_packet_is_met_with_and_without_its_ethernet_header() {
    let packet = udp();
    let frame = ethernet(0x0800, &packet);
    for (text, met) in [
        ("udp port 53", true),
        ("src host 192.0.2.1 and dst net 192.0.2.0/24", true),
        ("udp[8:4] = 0x61626364", true),
        ("tcp or dst port 53", false),
        ("len = 46", true),
        ("not ip", false),
        ("arp", false),
        // A packet that ends before what is asked for.
        ("udp[100] = 0", false),
    ] {
        let expected = if met {
            Verdict::Match
        } else {
            Verdict::NoMatch
        };
        let expression = compile(text);
        let bare = expression.judge(&record(0x0800, 0, 32), &packet);
        assert_eq!(bare, expected, "{text} without");
        let framed = expression.judge(&record(0x0800, 14, 32), &frame);
        assert_eq!(framed, expected, "{text} with");
    }
}

#[test]
fn addresses_that_a_packet_does_not_have_are_not_known() {
    let packet = udp();
    let frame = ethernet(0x0800, &packet);
    let judge = |text: &str| {
        let expression = compile(text);
        (
            expression.judge(&record(0x0800, 0, 32), &packet),
            expression.judge(&record(0x0800, 14, 32), &frame),
        )
    };
    use Verdict::{Match, NoMatch, Unknown};
    assert_eq!(judge("ether src 02:00:00:00:00:01"), (Unknown, Match));
    assert_eq!(judge("not ether src 02:00:00:00:00:01"), (Unknown, NoMatch));
    // Where something else decides, they do not matter.
    assert_eq!(judge("ether host 02:00:00:00:00:09 or udp"), (Match, Match));
    assert_eq!(
        judge("tcp and ether src 02:00:00:00:00:01"),
        (NoMatch, NoMatch)
    );
    // What stands before the packet is no Ethernet header: eight bytes of something else.
    let mut odd = vec![0; 8];
    odd.extend(&packet);
    let odd_verdict = compile("udp port 53").judge(&record(0x0800, 8, 32), &odd);
    assert_eq!(odd_verdict, Match);
}

#[test]
fn bytes_that_were_not_captured_are_not_known() {
    let mut packet = udp();
    packet[3] = 200;
    let judge = |text: &str| compile(text).judge(&record(0x0800, 0, 200), &packet);
    assert_eq!(judge("udp[50] = 0"), Verdict::Unknown);
    assert_eq!(judge("udp port 53 or udp[50] = 0"), Verdict::Match);
    assert_eq!(judge("udp port 54 and udp[50] = 0"), Verdict::NoMatch);
    assert_eq!(judge("udp[500] = 0"), Verdict::NoMatch);
    assert_eq!(judge("len = 214"), Verdict::Match);
    // An offset that depends on them.
    assert_eq!(judge("udp[udp[50]:2] = 0"), Verdict::Unknown);
    assert_eq!(judge("udp[udp[50]:2] = 0 and port 54"), Verdict::NoMatch);
}

#[test]
fn tags_beside_the_packet_and_in_it_count_when_they_are_asked_for() {
    let packet = udp();
    let mut beside = record(0x0800, 14, 32);
    beside.flags |= FLAG_VLAN;
    beside.vlan_tci = 0x200a;
    beside.vlan_proto = 0x8100_u16.to_be();
    let frame = ethernet(0x0800, &packet);
    let mut inside = vec![0x20, 0x0a, 8, 0];
    inside.extend(&packet);
    let tagged = ethernet(0x8100, &inside);
    // Behind a software bridge the tag belongs to the link-layer header.
    for (record, bytes, plain) in [
        (&beside, &frame, true),
        (&record(0x8100, 14, 36), &tagged, false),
        (&record(0x8100, 18, 32), &tagged, false),
    ] {
        let judge = |text: &str| compile(text).judge(record, bytes) == Verdict::Match;
        assert!(judge("vlan 10 and udp port 53"));
        assert!(judge("vlan and len = 50"), "{}", record.l2_len);
        assert!(!judge("vlan 11 and udp port 53"));
        assert!(!judge("not vlan"));
        // As tcpdump: a tag that is not in the packet is not seen by what does not ask.
        assert_eq!(judge("udp port 53"), plain);
    }
}

#[test]
fn packets_of_files_are_met_by_their_link_type() {
    let packet = udp();
    let mut expression = compile("udp port 53 and not arp");
    let mut judge = |link, bytes: &[u8]| {
        let length = bytes.len() as u32;
        expression.judge_captured(LinkType(link), bytes, length)
    };
    assert_eq!(judge(1, &ethernet(0x0800, &packet)), Verdict::Match);
    assert_eq!(judge(101, &packet), Verdict::Match);
    assert_eq!(judge(228, &packet), Verdict::Match);
    // Linux's cooked header: the EtherType is its end.
    let mut cooked = vec![0; 14];
    cooked.extend([8, 0]);
    cooked.extend(&packet);
    assert_eq!(judge(113, &cooked), Verdict::Match);
    cooked[15] = 6;
    assert_eq!(judge(113, &cooked), Verdict::NoMatch);
    // libpcap knows no such link type.
    assert_eq!(judge(60000, &packet), Verdict::Unknown);
}

#[test]
fn the_reach_is_what_a_program_can_read() {
    assert_eq!(compile("ip").reach(), Some(0));
    assert_eq!(compile("port 80").reach(), Some(64));
    assert_eq!(compile("udp[200:4] = 1").reach(), Some(264));
    assert_eq!(compile("ip[1000] = 1").snaplen(), 1001);
    assert_eq!(compile("ip[9000] = 1").snaplen(), 2048);
    assert_eq!(compile("tcp[(tcp[12] >> 2):4] = 1").reach(), None);
    assert_eq!(compile("tcp[(tcp[12] >> 2):4] = 1").snaplen(), 2048);
}

#[test]
fn a_wrong_expression_is_refused_in_libpcaps_words() {
    let refused = |text: &str| Expression::compile(text).unwrap_err().to_string();
    assert!(refused("tcp prot 80").contains("syntax error"));
    assert!(refused("port 80 and (").contains("syntax error"));
    assert!(refused("tcp and udp").contains("rejects all packets"));
    assert!(refused("port 70000").contains("70000"));
    assert!(refused("a\0b").contains("NUL"));
}

/// Expressions of many kinds, compiled once.
fn expressions() -> &'static [Expression] {
    static COMPILED: OnceLock<Vec<Expression>> = OnceLock::new();
    COMPILED.get_or_init(|| {
        [
            "tcp",
            "udp",
            "icmp",
            "icmp6",
            "ip",
            "ip6",
            "arp",
            "port 80",
            "src port 53",
            "dst portrange 50-90",
            "host 10.0.0.1",
            "net 10.0.0.0/8",
            "src net fd00::/8",
            "ip6 protochain 17",
            "ip6 protochain 6",
            "tcp[tcpflags] & tcp-syn != 0",
            "tcp[(tcp[12] & 0xf0) >> 2] = 0",
            "ip[0] & 0xf != 5",
            "(ip[2:2] - ((ip[0] & 0xf) << 2)) != 20",
            "len / ip[8] > 2",
            "len % 3 = 1",
            "greater 60",
            "less 60",
            "vlan",
            "vlan 10 and tcp",
            "ether[0] & 1 = 0",
            "ether host 02:00:00:00:00:01",
            "ip proto 17 or ip6 proto 17",
            "ip[6:2] & 0x1fff = 0 and not port 80",
            "udp[8] ^ udp[9] = 0x41",
            "-ip[8] < 0",
            "ip6[40] = 6",
        ]
        .map(compile)
        .into()
    })
}

/// Frames that expressions get far into.
fn frames() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![
        Just([8, 0]),
        Just([0x86, 0xdd]),
        Just([8, 6]),
        Just([0x81, 0]),
        any::<[u8; 2]>()
    ];
    let proto = prop_oneof![
        Just(6_u8),
        Just(17),
        Just(1),
        Just(58),
        Just(0),
        Just(44),
        Just(60),
        any::<u8>()
    ];
    let small = prop_oneof![3 => Just(0_u8), 1 => Just(80), 1 => Just(53), 2 => any::<u8>()];
    let ihl = prop_oneof![3 => Just(0x45_u8), 1 => 0x40..0x50_u8, 1 => Just(0x60)];
    (kind, proto, ihl, prop::collection::vec(small, 0..120)).prop_map(
        |(kind, proto, ihl, mut rest)| {
            for (at, byte) in [
                (0, ihl),
                (9, proto),
                (6, if kind[0] == 0x86 { proto } else { 0 }),
            ] {
                if let Some(slot) = rest.get_mut(at) {
                    *slot = byte;
                }
            }
            let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
            frame.extend(kind);
            frame.extend(rest);
            frame
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Where everything is known the answer is libpcap's; where not, it is libpcap's or none.
    #[test]
    fn the_answer_is_libpcaps(bytes in frames(), known in 0..140_usize) {
        for expression in expressions() {
            let program = &expression.program;
            let wire_len = bytes.len() as u32;
            let expected = if libpcap::filter(program, &bytes, wire_len) { Verdict::Match } else { Verdict::NoMatch };
            let whole = Captured { bytes: &bytes, original_len: wire_len };
            prop_assert_eq!(run(program, &whole), expected, "{}", expression.text());
            let cut = run(program, &Captured { bytes: &bytes[..known.min(bytes.len())], original_len: wire_len });
            prop_assert!(cut == expected || cut == Verdict::Unknown, "{}: {:?}, cut at {}", expression.text(), cut, known);
            // What is captured for it is enough.
            if let Some(reach) = expression.reach() {
                let cut = run(program, &Captured { bytes: &bytes[..(reach + ETHERNET).min(bytes.len())], original_len: wire_len });
                prop_assert_eq!(cut, expected, "{} reaches {}", expression.text(), reach);
            }
        }
    }

    /// No bytes and no record make it fail.
    #[test]
    fn any_bytes_are_judged(bytes in prop::collection::vec(any::<u8>(), 0..80), head in prop::collection::vec(any::<u8>(), size_of::<Record>())) {
        let record = Record::read_from_bytes(&head).unwrap();
        for expression in expressions() {
            expression.judge(&record, &bytes);
        }
    }
}
