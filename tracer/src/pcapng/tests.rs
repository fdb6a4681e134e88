use std::io::{Seek, Write as _};

use fwtrace_abi::{FLAG_L2, FLAG_VLAN, Record};
use proptest::prelude::*;
use zerocopy::FromZeros as _;

use super::{block, file::BlockFile, *};
use crate::{
    bpf::reader::RawDrop,
    event::{DropEvent, Event, Lost, tests::drop_event},
    packet::Proto,
};

const ETHERNET: [u8; 14] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];

fn section() -> Section {
    Section {
        hardware: "x86_64, host h".into(),
        os: "Linux 6.18".into(),
        application: "fwtrace 0".into(),
        several: false,
    }
}

/// A UDP packet of so many bytes of payload, with its Ethernet header.
fn raw(payload: usize) -> RawDrop {
    let mut packet = ETHERNET.to_vec();
    let length = u16::try_from(28 + payload).unwrap();
    packet.extend([0x45, 0]);
    packet.extend(length.to_be_bytes());
    packet.extend([0, 1, 0, 0, 64, 17, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2]);
    packet.extend([0x12, 0x34, 0, 53]);
    packet.extend((length - 20).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(std::iter::repeat_n(7, payload));
    let mut record = Record::new_zeroed();
    record.flags = FLAG_L2;
    record.l2_len = 14;
    record.protocol = 0x0800_u16.to_be();
    record.captured = u32::try_from(packet.len()).unwrap();
    RawDrop {
        deep: packet.clone().into(),
        record,
        len: Some(record.captured),
        packet: packet.into(),
        stack: Vec::new(),
    }
}

fn lost() -> Event {
    Event::Lost(Lost {
        time: "2026-11-22T14:03:42Z".parse().unwrap(),
        source: "ring".into(),
        count: 7,
    })
}

/// A section with a drop, a loss told aside and a loss.
fn capture(event: &Event) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), &section(), SNAPLEN).unwrap();
    writer.event(event, Some(&Frame::new(&raw(5)))).unwrap();
    writer.aside(&lost()).unwrap();
    writer.event(&lost(), None).unwrap();
    writer.statistics(7).unwrap();
    writer.into_out()
}

fn read(bytes: &[u8]) -> (Vec<Item>, Option<ReadError>) {
    let mut items = Vec::new();
    let mut reader = match Reader::new(bytes) {
        Ok(reader) => reader,
        Err(error) => return (items, Some(error)),
    };
    loop {
        match reader.next_item() {
            Ok(Some(item)) => items.push(item),
            Ok(None) => return (items, None),
            Err(error) => return (items, Some(error)),
        }
    }
}

fn drop_of(event: DropEvent) -> Event {
    Event::Drop(Box::new(event))
}

#[test]
fn what_is_written_is_read() {
    let event = drop_of(drop_event());
    let (items, error) = read(&capture(&event));
    assert!(error.is_none(), "{error:?}");
    let packet = Captured {
        link: LinkType::ETHERNET,
        bytes: raw(5).packet.to_vec(),
        original_len: 47,
    };
    let expected = [
        Item::Event(Box::new(event), Some(packet)),
        Item::Aside(Box::new(lost())),
        Item::Event(Box::new(lost()), None),
    ];
    assert_eq!(items, expected);
}

#[test]
fn an_event_longer_than_an_option_is_kept() {
    let mut event = drop_event();
    // Of several bytes a character, so that a cut must not fall into one.
    event.why = Some("ü€".repeat(60_000).into());
    let event = drop_of(event);
    let (items, error) = read(&capture(&event));
    assert!(error.is_none(), "{error:?}");
    assert!(matches!(&items[..], [Item::Event(read, _), ..] if **read == event));
}

#[test]
fn every_beginning_of_a_capture_is_read_as_far_as_it_goes() {
    let bytes = capture(&drop_of(drop_event()));
    let (all, _) = read(&bytes);
    let mut most = 0;
    for length in 0..bytes.len() {
        let (items, error) = read(&bytes[..length]);
        assert!(all.starts_with(&items), "{length}");
        assert!(items.len() >= most, "{length}");
        most = items.len();
        match error {
            // Between two blocks.
            None => assert!(length % 4 == 0),
            Some(ReadError::CutShort { offset, .. }) => assert!(offset <= length as u64),
            Some(ReadError::NoCapture(_)) => assert!(length < 8),
            Some(other) => panic!("{length}: {other}"),
        }
    }
    assert_eq!(most, 3);
}

/// A pcap file with one packet at 1 s and `fraction`.
fn pcap(magic: u32, number: fn(u32) -> [u8; 4], fraction: u32) -> Vec<u8> {
    let packet = raw(0).packet;
    let mut bytes = number(magic).to_vec();
    // Two halves of a word: of the same order as a word of their own.
    let version: Vec<u8> = match number(1)[0] {
        1 => [2_u16.to_le_bytes(), 4_u16.to_le_bytes()].concat(),
        _ => [2_u16.to_be_bytes(), 4_u16.to_be_bytes()].concat(),
    };
    bytes.extend(version);
    for value in [0, 0, 65_535, 1, 1, fraction] {
        bytes.extend(number(value));
    }
    let length = u32::try_from(packet.len()).unwrap();
    bytes.extend(number(length));
    bytes.extend(number(length + 100));
    bytes.extend(&packet);
    bytes
}

#[test]
fn pcap_of_either_order_and_resolution() {
    for (magic, fraction, nanoseconds) in [
        (0xa1b2_c3d4, 500_000, 1_500_000_000),
        (0xa1b2_3c4d, 500_000, 1_000_500_000),
    ] {
        for number in [u32::to_le_bytes, u32::to_be_bytes] {
            let bytes = pcap(magic, number, fraction);
            let (items, error) = read(&bytes);
            assert!(error.is_none(), "{error:?}");
            let [Item::Event(event, Some(captured))] = &items[..] else {
                panic!("{items:?}");
            };
            let Event::Packet(packet) = &**event else {
                panic!("{event:?}");
            };
            assert_eq!(packet.time.as_nanosecond(), nanoseconds);
            assert_eq!(packet.packet.proto, Some(Proto::UDP));
            assert_eq!((packet.packet.dport, packet.verdict), (Some(53), None));
            assert_eq!(captured.original_len, 142);
        }
    }
}

#[test]
fn what_is_no_capture_is_called_so() {
    let gzip = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
    for bytes in [
        &b""[..],
        b"#!/bin/sh\necho a text that is long enough\n",
        &gzip,
    ] {
        let (_, error) = read(bytes);
        assert!(matches!(error, Some(ReadError::NoCapture(_))), "{error:?}");
    }
}

#[test]
fn the_frame_has_its_tag_back_and_no_header_that_is_not_ethernet() {
    let mut tagged = raw(1);
    tagged.record.flags |= FLAG_VLAN;
    tagged.record.vlan_proto = 0x8100_u16.to_be();
    tagged.record.vlan_tci = 0x600a;
    let frame = Frame::new(&tagged);
    assert_eq!(frame.link, LinkType::ETHERNET);
    assert_eq!(frame.bytes[12..18], [0x81, 0, 0x60, 0x0a, 8, 0]);
    assert_eq!(frame.original_len, 14 + 4 + 29);

    // As long as Ethernet's, but another type than the packet's at its end.
    let mut other = raw(1);
    other.record.protocol = 0x86dd_u16.to_be();
    let frame = Frame::new(&other);
    assert_eq!((frame.link, frame.original_len), (LinkType::RAW, 29));

    let mut arp = raw(1);
    arp.record.flags = 0;
    arp.record.protocol = 0x0806_u16.to_be();
    arp.packet = arp.packet.slice(14..);
    arp.len = Some(29);
    let frame = Frame::new(&arp);
    assert_eq!((frame.link, frame.original_len), (LinkType::LINUX_SLL, 45));
    assert_eq!(frame.bytes[14..16], [8, 6]);
}

#[test]
fn what_a_full_device_refuses_is_counted_as_waiting() {
    let full = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let mut file = BlockFile::new(full, None);
    let mut packet = Vec::new();
    packet.extend(block::PACKET.to_le_bytes());
    packet.extend([0; 28]);
    file.write_all(&packet).unwrap();
    file.write_all(&packet).unwrap();
    assert_eq!((file.packets(), file.waiting()), (0, 2));
    let error = file.settle().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    assert_eq!((file.packets(), file.waiting()), (0, 2));
}

#[test]
fn a_compressed_file_can_be_cut_between_frames() {
    let file = tempfile::tempfile().unwrap();
    let mut copy = file.try_clone().unwrap();
    let mut writer = Writer::new(
        BlockFile::new(file, Some(Compression::Zstd)),
        &section(),
        SNAPLEN,
    )
    .unwrap();
    let event = drop_of(drop_event());
    let mut ends = Vec::new();
    for _ in 0..3 {
        writer.event(&event, Some(&Frame::new(&raw(5)))).unwrap();
        writer.out().settle().unwrap();
        ends.push(copy.metadata().unwrap().len());
    }
    let mut bytes = Vec::new();
    copy.rewind().unwrap();
    std::io::Read::read_to_end(&mut copy, &mut bytes).unwrap();
    for (index, end) in ends.iter().enumerate() {
        let (items, error) = read(&bytes[..usize::try_from(*end).unwrap()]);
        assert!(error.is_none(), "{error:?}");
        assert_eq!(items.len(), index + 1);
    }
}

proptest! {
    #[test]
    fn no_damage_makes_the_reader_panic(
        places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        order in any::<bool>(),
    ) {
        let mut bytes = match order {
            true => capture(&drop_of(drop_event())),
            false => pcap(0xa1b2_c3d4, u32::to_be_bytes, 5),
        };
        for (index, value) in places {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        let (_, error) = read(&bytes);
        if let Some(ReadError::CutShort { offset, .. } | ReadError::Malformed { offset, .. }) = error {
            prop_assert!(offset <= bytes.len() as u64);
        }
    }

    #[test]
    fn anything_behind_a_section_header_is_read_or_refused(rest in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut bytes = Vec::new();
        block::section(&mut bytes, &section());
        bytes.extend(rest);
        let _ = read(&bytes);
    }
}
