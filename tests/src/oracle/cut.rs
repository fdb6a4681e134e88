//! Packets whose headers are cut short. A match of xtables that needs more of a header than there is drops the packet by itself
//! (`hotdrop`: tcp_mt(), udp_mt(), sctp_mt(), esp_mt(), icmp_match(), multiport_mt(), ip6_packet_match(), v6.18): no rule counts it, and no
//! TRACE line tells of it. Which packets that can be, the harness reads from the bytes that it sends.

use std::collections::HashMap;

use fwtrace::event::DropEvent;

use crate::net::Place;
use crate::oracle::case::Sent;
use crate::oracle::compare;
use crate::oracle::packet::proto;
use crate::oracle::truth::Key;

/// ESP: SPI and sequence number (struct ip_esp_hdr).
const ESP: u8 = 50;
/// An authentication header, which is an extension header of IPv6.
const AH: u8 = 51;
/// An Ethernet header up to the protocol number.
const ETHERNET: usize = 12;

/// Those of a case whose transport header is not there.
#[derive(Clone, Debug, Default)]
pub struct Cut(HashMap<Key, Shape>);

/// What there is of a transport header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// All that matches want.
    Whole,
    /// Less, or less of a header before it.
    Cut,
    /// Nothing: a fragment other than the first.
    Later,
}

impl Cut {
    /// Reads the packets of a case.
    pub fn of(packets: &[Sent]) -> Self {
        let ip = packets.iter().filter_map(|sent| match sent.from {
            Place::R => Some(sent.bytes.as_slice()),
            Place::A | Place::B => behind_tags(sent.bytes.get(ETHERNET..)?),
        });
        let shapes = ip.filter_map(|packet| {
            let shape = shape(packet).filter(|shape| *shape != Shape::Whole)?;
            Some((anonymous(Key::read(packet, &[])?), shape))
        });
        Self(shapes.collect())
    }

    fn shape(&self, event: &DropEvent) -> Option<Shape> {
        self.0.get(&anonymous(compare::key(event)?)).copied()
    }

    /// Whether the event is about one that is cut short.
    pub fn has(&self, event: &DropEvent) -> bool {
        self.shape(event) == Some(Shape::Cut)
    }

    /// Whether the event is about one whose transport header is cut short or somewhere else.
    pub fn is_headless(&self, event: &DropEvent) -> bool {
        self.shape(event).is_some()
    }
}

/// What follows the protocol number of a frame, and the tags of VLANs.
fn behind_tags(mut frame: &[u8]) -> Option<&[u8]> {
    while let [0x81, 0, _, _, rest @ ..] = frame {
        frame = rest;
    }
    frame.get(2..)
}

/// Without what not everybody tells.
fn anonymous(key: Key) -> Key {
    Key {
        proto: None,
        ports: None,
        ..key
    }
}

/// What there is of the packet's transport header; `None`: not even an IP header.
fn shape(packet: &[u8]) -> Option<Shape> {
    let (number, transport) = match packet.first()? >> 4 {
        4 => {
            let later = u16::from_be_bytes(*packet.get(6..)?.first_chunk()?) & 0x1fff != 0;
            if later {
                return Some(Shape::Later);
            }
            let header = usize::from(packet[0] & 0xf) * 4;
            (*packet.get(9)?, packet.get(header..))
        }
        6 => {
            let (mut number, mut rest) = (*packet.get(6)?, packet.get(40..));
            while let (0 | 43 | 44 | AH | 60, Some(header)) = (number, rest) {
                let (Some(&next), Some(&length)) = (header.first(), header.get(1)) else {
                    return Some(Shape::Cut);
                };
                if number == 44
                    && header
                        .get(2..4)
                        .is_some_and(|o| o[0] != 0 || o[1] & 0xf8 != 0)
                {
                    // What is no transport protocol, `ipv6_find_hdr()` looks for in vain (net/ipv6/exthdrs_core.c, v6.18).
                    let found = !matches!(next, 0 | 43 | 44 | AH | 60);
                    return Some(if found { Shape::Later } else { Shape::Cut });
                }
                let length = match number {
                    44 => 8,
                    // `ipv6_authlen()`.
                    AH => (usize::from(length) + 2) * 4,
                    _ => (usize::from(length) + 1) * 8,
                };
                (number, rest) = (next, header.get(length..));
            }
            (number, rest)
        }
        _ => return None,
    };
    let Some(transport) = transport else {
        return Some(Shape::Cut);
    };
    let needed = match number {
        proto::TCP => {
            let words = transport
                .get(12)
                .map_or(5, |offset| usize::from(offset >> 4));
            words.max(5) * 4
        }
        proto::UDP | proto::UDPLITE | ESP | proto::ICMP | proto::ICMPV6 => 8,
        proto::SCTP => 12,
        _ => 0,
    };
    Some(match transport.len() < needed {
        true => Shape::Cut,
        false => Shape::Whole,
    })
}

#[cfg(test)]
mod tests {
    use super::{Shape, shape};

    fn ipv4(number: u8, fragment: [u8; 2], transport: &[u8]) -> Vec<u8> {
        let mut packet = vec![
            0x45,
            0,
            0,
            0,
            0,
            0,
            fragment[0],
            fragment[1],
            64,
            number,
            0,
            0,
        ];
        packet.extend([10, 1, 0, 1, 10, 1, 0, 2]);
        packet.extend(transport);
        packet
    }

    #[test]
    fn each_protocol_has_its_length() {
        for (number, needed) in [(17, 8), (50, 8), (1, 8), (132, 12), (6, 20), (253, 0)] {
            let is = |length| shape(&ipv4(number, [0, 0], &vec![0; length]));
            assert_eq!(is(needed), Some(Shape::Whole), "{number}");
            if needed > 0 {
                assert_eq!(is(needed - 1), Some(Shape::Cut), "{number}");
                // Nobody reads the header of a later fragment.
                assert_eq!(shape(&ipv4(number, [0, 2], &[])), Some(Shape::Later));
            }
        }
        let mut options = vec![0; 20];
        options[12] = 6 << 4;
        assert_eq!(shape(&ipv4(6, [0, 0], &options)), Some(Shape::Cut));
        assert_eq!(shape(&[]), None);
    }

    #[test]
    fn extension_headers_are_passed() {
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, 60, 64];
        packet.extend([0; 32]);
        assert_eq!(shape(&packet), Some(Shape::Cut));
        packet.extend([17, 0, 1, 4, 0, 0, 0, 0]);
        assert_eq!(shape(&packet), Some(Shape::Cut));
        packet.extend([0; 8]);
        assert_eq!(shape(&packet), Some(Shape::Whole));
    }
}
