use proptest::prelude::*;

use super::*;
use crate::netlink::{legacy_trace::Line, socket::Messages};

/// What nfnetlink_log of 6.18.44 sent, copy range 128, flags SEQ and SEQ_GLOBAL: a traced datagram in INPUT (the rule has no matches:
/// it is `return:3` at a chain's end), one in IPv6, and one that this machine sends.
const INPUT: &str = "c40000000004000000000000000000000200000008000100080001001f000a0054524143453a2066696c7465723a55433a72657475726e3a33200000080004000000000210000800000600008ef6298657fd000006000f000001000006001100000e0000120010001a9280890fdd8ef6298657fd0800000014000300000000006b0339a8000000000006885608000c000000000208000d00000000032500090045000021af374000401176f80a4d00010a4d00021b580035000d14bb68656c6c6f000000";
const IPV6: &str = "d80000000004000000000000000000000a0000000800010086dd010020000a0054524143453a2066696c7465723a494e5055543a72756c653a312000080004000000000210000800000600008ef6298657fd000006000f000001000006001100000e0000120010001a9280890fdd8ef6298657fd86dd000014000300000000006b0339a800000000000d1b7c08000c000000000b08000d000000000c3a0009006003515d000e1140fd770000000000000000000000000001fd7700000000000000000000000000021b580035000efb1168656c6c6f360000";
const OUTPUT: &str = "880000000004000000000000000000000200000008000100080003001e000a0054524143453a207261773a4f55545055543a72756c653a3120000000080005000000000208000b000000000008000e000000000008000c000000000c08000d000000000d230009004500001f8ed340004011975e0a4d00020a4d00011e610063000b14b96f757400";

fn payload(hex: &str) -> Vec<u8> {
    let bytes: Vec<u8> = (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect();
    let message = Messages::new(&bytes).next().unwrap().unwrap();
    assert_eq!(message.kind, NFULNL_MSG_PACKET);
    message.payload.to_vec()
}

#[test]
fn a_packet_has_all_its_attributes() {
    let bytes = payload(INPUT);
    let packet = decode(&bytes).unwrap();
    assert_eq!((packet.family, packet.group), (Family::Ip, 0));
    assert_eq!((packet.protocol, packet.hook), (0x0800, 1));
    assert_eq!((packet.iif, packet.oif, packet.mark), (Some(2), None, 0));
    assert_eq!(packet.time, Some((0x6b03_39a8, 0x6_8856)));
    assert_eq!(
        packet.hw_address,
        Some(&[0x8e, 0xf6, 0x29, 0x86, 0x57, 0xfd][..])
    );
    assert_eq!(packet.hw_type, Some(1));
    assert_eq!(packet.hw_header.map(<[u8]>::len), Some(14));
    assert_eq!((packet.seq, packet.seq_global), (Some(2), Some(3)));
    assert_eq!((packet.uid, packet.gid), (None, None));
    assert_eq!(packet.payload.len(), 0x21);
    assert_eq!(packet.payload[28..], *b"hello");
    let line = Line::parse(packet.prefix.as_deref().unwrap()).unwrap();
    assert_eq!((line.chain, line.number), ("UC", 3));
}

#[test]
fn other_directions_and_families() {
    let bytes = payload(IPV6);
    let packet = decode(&bytes).unwrap();
    assert_eq!((packet.family, packet.protocol), (Family::Ip6, 0x86dd));
    assert_eq!(packet.payload[0] >> 4, 6);
    let bytes = payload(OUTPUT);
    let packet = decode(&bytes).unwrap();
    assert_eq!((packet.hook, packet.oif, packet.iif), (3, Some(2), None));
    assert_eq!((packet.uid, packet.gid), (Some(0), Some(0)));
    assert_eq!(packet.time, None);
}

#[test]
fn bridges_have_tags_and_connections_stay_raw() {
    let mut writer = Writer::new();
    writer
        .raw(&[7, 0, 0, 5])
        .bytes(1, &[0x08, 0x00, 2, 0])
        .be32(2, 9)
        .be32(6, 3)
        .be32(7, 4)
        .bytes(10, b"dns \xff\0ignored")
        .nest(18, |w| {
            w.be32(12, 77);
        })
        .be32(19, 2)
        .nest(20, |w| {
            w.be16(1, 0x8100).be16(2, 42);
        })
        .bytes(21, &[1; 18]);
    let bytes = writer.finish().unwrap();
    let packet = decode(&bytes).unwrap();
    assert_eq!((packet.family, packet.group), (Family::Bridge, 5));
    assert_eq!(packet.mark, 9);
    assert_eq!(
        (packet.physical_iif, packet.physical_oif),
        (Some(3), Some(4))
    );
    assert_eq!(packet.prefix.as_deref(), Some("dns \u{fffd}"));
    assert_eq!(packet.vlan, Some((0x8100, 42)));
    assert_eq!(packet.l2_header, Some(&[1; 18][..]));
    assert_eq!(packet.connection_info, Some(2));
    let id = Attrs::new(packet.connection.unwrap()).find(12).unwrap();
    assert_eq!(id.unwrap().be32(), Ok(77));
}

#[test]
fn what_is_missing_or_too_short_is_named() {
    let whole = payload(INPUT);
    assert_eq!(decode(&whole[..4]), Err(AttrError::Missing { kind: 1 }));
    assert!(matches!(
        decode(&whole[..2]),
        Err(AttrError::Truncated { .. })
    ));
    let mut writer = Writer::new();
    writer.raw(&[2, 0, 0, 0]).bytes(3, &[0; 15]);
    let bytes = writer.finish().unwrap();
    assert!(matches!(
        decode(&bytes),
        Err(AttrError::Size {
            kind: 3,
            expected: 16,
            ..
        })
    ));
}

/// The bytes that the kernel acknowledged when Python sent them.
#[test]
fn settings_are_what_the_kernel_takes() {
    let body = |setting| {
        let bytes = config(5, setting, 7).unwrap();
        let message = Messages::new(&bytes).next().unwrap().unwrap();
        assert_eq!((message.kind, message.seq), (NFULNL_MSG_CONFIG, 7));
        assert_eq!(message.flags, flags::REQUEST | flags::ACK);
        assert_eq!(message.payload[..4], [0, 0, 0, 5]);
        message.payload[4..].to_vec()
    };
    assert_eq!(body(Setting::Bind), [5, 0, 1, 0, 1, 0, 0, 0]);
    assert_eq!(body(Setting::Unbind), [5, 0, 1, 0, 2, 0, 0, 0]);
    assert_eq!(
        body(Setting::Copy(Copy::Packet(128))),
        [10, 0, 2, 0, 0, 0, 0, 128, 2, 0, 0, 0]
    );
    assert_eq!(body(Setting::Copy(Copy::Meta))[8], 1);
    assert_eq!(body(Setting::BufferSize(9)), [8, 0, 3, 0, 0, 0, 0, 9]);
    assert_eq!(body(Setting::Timeout(5)), [8, 0, 4, 0, 0, 0, 0, 5]);
    assert_eq!(body(Setting::Threshold(1)), [8, 0, 5, 0, 0, 0, 0, 1]);
    assert_eq!(
        body(Setting::Flags(wants::SEQ | wants::SEQ_GLOBAL)),
        [6, 0, 6, 0, 0, 3, 0, 0]
    );
}

#[test]
fn listeners_of_the_kernel() {
    let text = "    0  22902     0 2   128      5  1\n65535 4294963235     2 1     0    100  2\nnone\n1 2 3\n";
    assert_eq!(
        instances(text),
        [
            Instance {
                group: 0,
                port: 22902,
                queued: 0,
                copy: Copy::Packet(128),
                timeout: 5
            },
            Instance {
                group: 65535,
                port: 4_294_963_235,
                queued: 2,
                copy: Copy::Meta,
                timeout: 100
            },
        ]
    );
}

proptest! {
    #[test]
    fn never_panics(
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        length in any::<prop::sample::Index>(),
        which in 0..3_usize,
    ) {
        let mut bytes = payload([INPUT, IPV6, OUTPUT][which]);
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(length.index(bytes.len() + 1));
        let _ = decode(&bytes);
    }

    #[test]
    fn listings_never_panic(text in "[ \\n0-9a-z-]{0,80}") {
        let _ = instances(&text);
    }
}
