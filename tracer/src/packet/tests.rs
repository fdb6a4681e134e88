use etherparse::PacketBuilder;
use proptest::prelude::*;

use super::*;

const A: [u8; 4] = [10, 9, 0, 1];
const B: [u8; 4] = [10, 9, 0, 2];
const A6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const B6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];

fn read(ethertype: u16, bytes: &[u8]) -> Packet {
    Capture {
        bytes,
        ethertype,
        wire_len: bytes.len() as u32,
        vlan: None,
    }
    .packet()
}

fn tcp_syn() -> Vec<u8> {
    let mut bytes = Vec::new();
    PacketBuilder::ipv4(A, B, 64)
        .tcp(36334, 80, 1, 64240)
        .syn()
        .write(&mut bytes, &[])
        .unwrap();
    bytes
}

fn udp6(payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    PacketBuilder::ipv6(A6, B6, 64)
        .udp(5353, 53)
        .write(&mut bytes, payload)
        .unwrap();
    bytes
}

#[test]
fn tcp() {
    let packet = read(0x0800, &tcp_syn());
    assert_eq!(
        packet.to_string(),
        "tcp 10.9.0.1:36334 > 10.9.0.2:80 SYN len 40"
    );
    assert_eq!(
        serde_json::to_string(&packet).unwrap(),
        r#"{"family":"ipv4","proto":"tcp","src":"10.9.0.1","sport":36334,"dst":"10.9.0.2","dport":80,"len":40,"flags":"S","id":0,"ttl":64}"#
    );
}

#[test]
fn udp_over_ipv6() {
    assert_eq!(
        read(0x86dd, &udp6(&[0; 22])).to_string(),
        "udp [fd00::1]:5353 > [fd00::2]:53 len 70"
    );
}

#[test]
fn ipv6_without_payload_has_its_own_length() {
    let mut bytes = udp6(&[]);
    bytes.truncate(40);
    bytes[4..6].fill(0);
    bytes[6] = 59;
    let packet = read(0x86dd, &bytes);
    assert_eq!(packet.to_string(), "ipv6-nonxt fd00::1 > fd00::2 len 40");
    // On its way out to a device the kernel's buffer holds the Ethernet header, too; BIG TCP is longer than the field can say.
    for (wire_len, len) in [(54, 40), (65_575, 40), (65_576, 65_576)] {
        let ethertype = 0x86dd;
        let capture = Capture {
            bytes: &bytes,
            ethertype,
            wire_len,
            vlan: None,
        };
        assert_eq!(capture.packet().len, Some(len), "{wire_len}");
    }
}

#[test]
fn ipv6_extension_headers_are_passed() {
    let mut bytes = udp6(&[0; 4]);
    // Destination options of eight bytes, then a fragment header: first fragment, more to come.
    let options = [44, 0, 1, 4, 0, 0, 0, 0];
    let fragment = [17, 0, 0, 1, 0, 0, 0, 9];
    bytes.splice(40..40, options.into_iter().chain(fragment));
    bytes[6] = 60;
    bytes[4..6].copy_from_slice(&28u16.to_be_bytes());
    assert_eq!(
        read(0x86dd, &bytes).to_string(),
        "udp [fd00::1]:5353 > [fd00::2]:53 frag 0+ len 68"
    );
}

#[test]
fn icmp() {
    let mut bytes = Vec::new();
    PacketBuilder::ipv4(A, B, 64)
        .icmpv4_echo_request(1, 2)
        .write(&mut bytes, &[0; 56])
        .unwrap();
    assert_eq!(
        read(0x0800, &bytes).to_string(),
        "icmp 10.9.0.1 > 10.9.0.2 echo-request len 84"
    );
    bytes[20] = 3;
    bytes[21] = 3;
    assert_eq!(
        read(0x0800, &bytes).icmp,
        Some(Icmp {
            kind: 3,
            code: 3,
            name: Some("port-unreachable")
        })
    );
    assert_eq!(
        Numeric(&read(0x0800, &bytes)).to_string(),
        "proto 1 10.9.0.1 > 10.9.0.2 type 3 code 3 len 84"
    );
    bytes[20] = 200;
    assert_eq!(
        read(0x0800, &bytes).to_string(),
        "icmp 10.9.0.1 > 10.9.0.2 type 200 code 3 len 84"
    );
}

#[test]
fn icmpv6() {
    let mut bytes = Vec::new();
    PacketBuilder::ipv6(A6, B6, 255)
        .icmpv6_raw(135, 0, [0; 4])
        .write(&mut bytes, &[0; 16])
        .unwrap();
    assert_eq!(
        read(0x86dd, &bytes).to_string(),
        "icmpv6 fd00::1 > fd00::2 nd-neighbor-solicit len 64"
    );
}

#[test]
fn arp() {
    let mut bytes = vec![0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 0xa];
    bytes.extend(A);
    bytes.extend([0; 6]);
    bytes.extend(B);
    assert_eq!(
        read(0x0806, &bytes).to_string(),
        "arp who-has 10.9.0.2 tell 10.9.0.1 len 28"
    );
    bytes[7] = 2;
    assert_eq!(
        read(0x0806, &bytes).to_string(),
        "arp 10.9.0.1 is-at 02:00:00:00:00:0a len 28"
    );
    let cut = read(0x0806, &bytes[..10]);
    assert_eq!(cut.to_string(), "arp len 10 (headers cut short)");
}

#[test]
fn ipv6_extension_headers_cut_short_end_with_the_capture() {
    let mut bytes = udp6(&[]);
    bytes.truncate(40);
    bytes[6] = 60;
    bytes[5] = 32;
    // Destination options, a fragment header, destination options, UDP.
    bytes.extend([44, 0, 1, 4, 0, 0, 0, 0]);
    bytes.extend([60, 0, 0, 1, 0, 0, 0, 7]);
    bytes.extend([17, 0, 1, 4, 0, 0, 0, 0]);
    bytes.extend([0x14, 0xe9, 0, 53, 0, 8, 0, 0]);
    for len in 0..=bytes.len() {
        let fragment = read(0x86dd, &bytes[..len]).fragment.map(|f| f.id);
        assert_eq!(fragment, (len >= 56).then_some(7), "{len}");
    }
}

#[test]
fn later_fragment_has_no_ports() {
    let mut bytes = tcp_syn();
    bytes[9] = 17;
    bytes[6] = 0x20;
    bytes[7] = 185;
    let packet = read(0x0800, &bytes);
    assert_eq!(
        packet.to_string(),
        "udp 10.9.0.1 > 10.9.0.2 frag 1480+ len 40"
    );
    assert_eq!(packet.sport, None);
    assert!(!packet.truncated);
}

#[test]
fn unknown_ethertype() {
    assert_eq!(
        read(0x88cc, &[2, 7, 4]).to_string(),
        "ethertype 0x88cc len 3"
    );
}

#[test]
fn unknown_protocol_is_its_number() {
    let mut bytes = tcp_syn();
    bytes[9] = 253;
    assert_eq!(
        read(0x0800, &bytes).to_string(),
        "proto 253 10.9.0.1 > 10.9.0.2 len 40"
    );
}

#[test]
fn vlan_tags_beside_and_inside() {
    let mut bytes = vec![0x60, 7, 0x08, 0x00];
    bytes.extend(tcp_syn());
    let packet = Capture {
        bytes: &bytes,
        ethertype: 0x8100,
        wire_len: 44,
        vlan: Some((0x2005, 0x88a8)),
    }
    .packet();
    assert_eq!(
        packet.to_string(),
        "vlan 5 vlan 7 tcp 10.9.0.1:36334 > 10.9.0.2:80 SYN len 40"
    );
    assert_eq!(
        packet.vlan,
        [Vlan::new(0x2005, 0x88a8), Vlan::new(0x6007, 0x8100)]
    );
    assert_eq!(packet.vlan[1].pcp, 3);
}

/// Every prefix of a packet keeps what its bytes allow, and says that something is missing.
#[test]
fn cut_captures() {
    let bytes = tcp_syn();
    for cut in 0..bytes.len() {
        let packet = read(0x0800, &bytes[..cut]);
        assert_eq!(packet.family, Family::Ipv4);
        assert_eq!(packet.src.is_some(), cut >= 20, "{cut}: {packet}");
        assert_eq!(packet.dport.is_some(), cut >= 24, "{cut}: {packet}");
        assert_eq!(packet.flags.is_some(), cut >= 34, "{cut}: {packet}");
        assert!(packet.truncated, "{cut}: {packet}");
    }
    assert!(!read(0x0800, &bytes).truncated);
}

#[test]
fn ipv4_options_cut_short_leave_the_addresses() {
    let mut bytes = tcp_syn();
    bytes[0] = 0x4f;
    let packet = read(0x0800, &bytes);
    assert_eq!(packet.dst, Some(IpAddr::from(B)));
    assert!(packet.truncated);
    assert_eq!(packet.sport, None);
}

#[test]
fn flags_in_both_forms() {
    for (bits, tcpdump) in [
        (0x02, "S"),
        (0x12, "S."),
        (0x11, "F."),
        (0x04, "R"),
        (0x18, "P."),
        (0x10, "."),
        (0, "none"),
    ] {
        assert_eq!(TcpFlags(bits).to_string(), tcpdump);
    }
    let mut bytes = tcp_syn();
    bytes[33] = 0x12;
    assert!(read(0x0800, &bytes).to_string().contains(" SYN,ACK "));
}

proptest! {
    #[test]
    fn any_bytes_give_a_packet_that_survives_json(
        ethertype in prop_oneof![
            Just(0x0800u16), Just(0x86dd), Just(0x0806), Just(0x8100), Just(0x88a8), Just(0x88e5), any::<u16>()
        ],
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        vlan in any::<Option<(u16, u16)>>(),
    ) {
        let packet = Capture { bytes: &bytes, ethertype, wire_len: 1, vlan }.packet();
        let json = serde_json::to_string(&packet).unwrap();
        let back: Packet = serde_json::from_str(&json).unwrap();
        prop_assert_eq!(&back, &packet);
        prop_assert_eq!(back.to_string(), packet.to_string());
    }

    #[test]
    fn any_ip_header_keeps_its_addresses(
        mut bytes in proptest::collection::vec(any::<u8>(), 40..200),
        six in any::<bool>(),
    ) {
        bytes[0] = if six { 0x60 } else { 0x45 };
        let packet = read(if six { 0x86dd } else { 0x0800 }, &bytes);
        let src: IpAddr = if six {
            <[u8; 16]>::try_from(&bytes[8..24]).unwrap().into()
        } else {
            <[u8; 4]>::try_from(&bytes[12..16]).unwrap().into()
        };
        prop_assert_eq!(packet.src, Some(src));
    }
}
