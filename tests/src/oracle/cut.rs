//! Packets whose headers are cut short. A match of xtables that needs more of a header than there is drops the packet by itself
//! (`hotdrop`: tcp_mt(), udp_mt(), sctp_mt(), esp_mt(), icmp_match(), multiport_mt(), ip6_packet_match(), v6.18): no rule counts it, and no
//! TRACE line tells of it. Which packets that can be, the harness reads from the bytes that it sends.

use std::collections::HashSet;

use fwtrace::event::DropEvent;

use crate::net::Place;
use crate::oracle::case::Sent;
use crate::oracle::compare;
use crate::oracle::packet::proto;
use crate::oracle::truth::Key;

/// ESP: SPI and sequence number (struct ip_esp_hdr).
const ESP: u8 = 50;
/// An Ethernet header; a VLAN's tag adds four.
const ETHERNET: usize = 14;

/// Those of a case that are cut short.
#[derive(Clone, Debug, Default)]
pub struct Cut(HashSet<Key>);

impl Cut {
    /// Reads the packets of a case.
    pub fn of(packets: &[Sent]) -> Self {
        let ip = packets.iter().filter_map(|sent| match sent.from {
            Place::R => Some(sent.bytes.as_slice()),
            Place::A | Place::B => sent.bytes.get(ETHERNET..),
        });
        let cut = ip.filter(|packet| is_cut(packet) == Some(true));
        Self(
            cut.filter_map(|packet| Some(anonymous(Key::read(packet, &[])?)))
                .collect(),
        )
    }

    /// Whether the event is about one of them.
    pub fn has(&self, event: &DropEvent) -> bool {
        compare::key(event).is_some_and(|key| self.0.contains(&anonymous(key)))
    }
}

/// Without what not everybody tells.
fn anonymous(key: Key) -> Key {
    Key {
        proto: None,
        ports: None,
        ..key
    }
}

/// Whether there is less of the transport header, or of one before it, than a match wants; `None`: not even an IP header.
fn is_cut(packet: &[u8]) -> Option<bool> {
    let (number, transport) = match packet.first()? >> 4 {
        4 => {
            let later = u16::from_be_bytes(*packet.get(6..)?.first_chunk()?) & 0x1fff != 0;
            if later {
                return Some(false);
            }
            let header = usize::from(packet[0] & 0xf) * 4;
            (*packet.get(9)?, packet.get(header..))
        }
        6 => {
            let (mut number, mut rest) = (*packet.get(6)?, packet.get(40..));
            while let (0 | 43 | 44 | 60, Some(header)) = (number, rest) {
                let (Some(&next), Some(&length)) = (header.first(), header.get(1)) else {
                    return Some(true);
                };
                if number == 44
                    && header
                        .get(2..4)
                        .is_some_and(|o| o[0] != 0 || o[1] & 0xf8 != 0)
                {
                    return Some(false);
                }
                let length = if number == 44 { 0 } else { usize::from(length) };
                (number, rest) = (next, header.get(length * 8 + 8..));
            }
            (number, rest)
        }
        _ => return None,
    };
    let Some(transport) = transport else {
        return Some(true);
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
    Some(transport.len() < needed)
}

#[cfg(test)]
mod tests {
    use super::is_cut;

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
            let is = |length| is_cut(&ipv4(number, [0, 0], &vec![0; length]));
            assert_eq!(is(needed), Some(false), "{number}");
            if needed > 0 {
                assert_eq!(is(needed - 1), Some(true), "{number}");
                // Nobody reads the header of a later fragment.
                assert_eq!(is_cut(&ipv4(number, [0, 2], &[])), Some(false));
            }
        }
        let mut options = vec![0; 20];
        options[12] = 6 << 4;
        assert_eq!(is_cut(&ipv4(6, [0, 0], &options)), Some(true));
        assert_eq!(is_cut(&[]), None);
    }

    #[test]
    fn extension_headers_are_passed() {
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, 60, 64];
        packet.extend([0; 32]);
        assert_eq!(is_cut(&packet), Some(true));
        packet.extend([17, 0, 1, 4, 0, 0, 0, 0]);
        assert_eq!(is_cut(&packet), Some(true));
        packet.extend([0; 8]);
        assert_eq!(is_cut(&packet), Some(false));
    }
}
