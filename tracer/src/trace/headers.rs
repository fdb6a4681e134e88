//! What a packet is known again by: its headers, in a trace, in a logged packet and in a drop's capture.
//!
//! Left out is what a rule changes on a packet that stays the same: time to live, traffic class, IPv4 header checksum. The transport
//! header counts as far as both sides have it; its checksum, sequence numbers and ports tell packets of one flow apart, and so does the
//! IPv4 identification.

use std::net::{IpAddr, SocketAddr};

use etherparse::LaxIpv6Slice;

use crate::netlink::nftrace;

/// As much of the network header as a trace has (`NFT_TRACETYPE_NETWORK_HSIZE`, net/netfilter/nf_tables_trace.c, v6.18).
const NETWORK: usize = 40;
/// As much from the transport header on as a trace has (`NFT_TRACETYPE_TRANSPORT_HSIZE`).
const TRANSPORT: usize = 20;

/// The headers of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Headers {
    /// Normalised; of IPv6 the fixed header.
    network: Vec<u8>,
    /// From the transport header on; empty where it is not known.
    transport: Vec<u8>,
    /// Addresses and ports were put in by [`Headers::with_ends`]: what follows from them is not known.
    rewritten: bool,
}

impl Headers {
    /// Of the headers in a trace; `None`: neither IPv4 nor IPv6, or cut short.
    pub fn of_trace(headers: &nftrace::Headers) -> Option<Self> {
        Self::new(&headers.network, &headers.transport)
    }

    /// Of a packet from its network header on, cut short or not; `None`: neither IPv4 nor IPv6, or not even a fixed header.
    pub fn of_packet(bytes: &[u8]) -> Option<Self> {
        let transport = match bytes.first()? >> 4 {
            4 => bytes.get(usize::from(bytes.first()? & 0x0f) * 4..)?,
            // The kernel looks for the transport header behind the extension headers, too.
            6 => LaxIpv6Slice::from_slice(bytes).ok()?.0.payload().payload,
            _ => return None,
        };
        Self::new(bytes, transport)
    }

    fn new(network: &[u8], transport: &[u8]) -> Option<Self> {
        let length = match network.first()? {
            first if first >> 4 == 4 => usize::from(first & 0x0f) * 4,
            first if first >> 4 == 6 => NETWORK,
            _ => return None,
        };
        let mut network = network.get(..length.min(NETWORK))?.to_vec();
        match network.as_mut_slice() {
            [first, tos, _, _, _, _, _, _, ttl, _, check0, check1, ..] if *first >> 4 == 4 => {
                [*tos, *ttl, *check0, *check1] = [0; 4];
            }
            [first, class, _, _, _, _, _, hops, ..] if *first >> 4 == 6 => {
                *first &= 0xf0;
                *class &= 0x0f;
                *hops = 0;
            }
            _ => return None,
        }
        Some(Self {
            network,
            transport: transport.iter().take(TRANSPORT).copied().collect(),
            rewritten: false,
        })
    }

    /// The packet with another source and destination, as it looks before address translation or behind it; a port of 0 is none and
    /// leaves what is there. `None`: addresses of another family than the packet's.
    #[must_use]
    pub fn with_ends(&self, src: SocketAddr, dst: SocketAddr) -> Option<Self> {
        let mut other = Self {
            rewritten: true,
            ..self.clone()
        };
        match (src.ip(), dst.ip(), self.version()) {
            (IpAddr::V4(src), IpAddr::V4(dst), 4) => {
                let ends = other.network.get_mut(12..20)?;
                ends.copy_from_slice(&[src.octets(), dst.octets()].concat());
            }
            (IpAddr::V6(src), IpAddr::V6(dst), 6) => {
                let ends = other.network.get_mut(8..40)?;
                ends.copy_from_slice(&[src.octets(), dst.octets()].concat());
            }
            _ => return None,
        }
        let ports = [(src.port(), 0..2), (dst.port(), 2..4)];
        for (port, at) in ports.into_iter().filter(|(port, _)| *port != 0) {
            if let Some(bytes) = other.transport.get_mut(at) {
                bytes.copy_from_slice(&port.to_be_bytes());
            }
        }
        Some(other)
    }

    /// The network header, normalised: the same for all that can be of one packet, but for address translation.
    pub fn network(&self) -> &[u8] {
        &self.network
    }

    /// The bytes of the transport header that address translation changes beside the ports: its checksum, and the id of an ICMP echo.
    fn translated(&self) -> std::ops::Range<usize> {
        let protocol = match self.version() {
            4 => self.network.get(9),
            // With extension headers: of them, and nothing is known.
            _ => self.network.get(6),
        };
        match protocol {
            Some(1 | 58) => 2..6,
            Some(6) => 16..18,
            Some(17 | 136) => 6..8,
            // SCTP's is not changed, it is computed anew.
            Some(132) => 8..12,
            _ => 4..TRANSPORT,
        }
    }

    /// 4 or 6.
    pub fn version(&self) -> u8 {
        self.network.first().map_or(0, |first| first >> 4)
    }

    /// Whether it is TCP within a connection, as conntrack sorts packets: ACK without SYN, FIN or RST. False where it cannot be told:
    /// later fragments, IPv6 extension headers.
    pub fn is_tcp_ack(&self) -> bool {
        const TCP: Option<&u8> = Some(&6);
        let tcp = match self.version() {
            4 => {
                let offset = self.network.get(6..8);
                let whole = offset.is_some_and(|o| matches!(o, [high, 0] if high & 0x1f == 0));
                whole && self.network.get(9) == TCP
            }
            _ => self.network.get(6) == TCP,
        };
        // FIN 1, SYN 2, RST 4, ACK 16.
        tcp && self.transport.get(13).is_some_and(|f| f & 0x17 == 0x10)
    }

    /// Whether the two can be of one packet.
    pub fn is(&self, other: &Self) -> bool {
        let skipped = match self.rewritten || other.rewritten {
            true => self.translated(),
            false => 0..0,
        };
        let mut transport = self.transport.iter().zip(&other.transport).enumerate();
        self.network == other.network
            && transport.all(|(at, (mine, theirs))| mine == theirs || skipped.contains(&at))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v4(id: u16, ttl: u8, transport: &[u8]) -> Vec<u8> {
        let [high, low] = id.to_be_bytes();
        let mut bytes = vec![0x45, 0, 0, 40, high, low, 0x40, 0, ttl, 6, 1, 2];
        bytes.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        bytes.extend(transport);
        bytes
    }

    fn v6(next: u8, hops: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x60, 0, 0, 1, 0, 40, next, hops];
        bytes.extend([0xfd; 16]);
        bytes.extend([0xfe; 16]);
        bytes.extend(rest);
        bytes
    }

    fn traced(network: &[u8], transport: &[u8]) -> Headers {
        Headers::of_trace(&nftrace::Headers {
            network: network.to_vec(),
            transport: transport.to_vec(),
            ..nftrace::Headers::default()
        })
        .unwrap()
    }

    #[test]
    fn a_forwarded_packet_is_the_same_and_the_next_is_not() {
        let tcp: Vec<u8> = (0..24).collect();
        let captured = Headers::of_packet(&v4(7, 63, &tcp)).unwrap();
        assert_eq!(captured.version(), 4);
        let mut early = v4(7, 64, &tcp);
        (early[1], early[10]) = (0xb8, 0xff);
        let trace = traced(&early[..20], &tcp[..20]);
        assert!(captured.is(&trace) && trace.is(&captured));
        assert!(!captured.is(&traced(&v4(8, 64, &[]), &tcp[..20])));
        let mut other = tcp.clone();
        other[7] ^= 1;
        assert!(!captured.is(&traced(&early[..20], &other[..20])));
        // No transport header in the trace, or a capture that ends within it.
        assert!(captured.is(&traced(&early[..20], &[])));
        let cut = Headers::of_packet(&v4(7, 63, &tcp[..8])).unwrap();
        assert!(cut.is(&trace));
    }

    #[test]
    fn a_translated_packet_is_the_same_but_for_its_ends() {
        let udp = [1, 2, 3, 4, 0, 12, 9, 9, 5, 6, 7, 8];
        let mut now = v4(7, 63, &udp);
        now[9] = 17;
        let now = Headers::of_packet(&now).unwrap();
        let mut then = v4(7, 64, &[8, 8, 9, 9, 0, 12, 1, 1, 5, 6, 7, 8]);
        then[9] = 17;
        then[12..20].copy_from_slice(&[192, 0, 2, 1, 192, 0, 2, 2]);
        let then = Headers::of_packet(&then).unwrap();
        assert!(!now.is(&then));
        let ends = |src: u16, dst: u16| {
            let end = |last, port| SocketAddr::from(([192, 0, 2, last], port));
            now.with_ends(end(1, src), end(2, dst)).unwrap()
        };
        assert!(ends(0x0808, 0x0909).is(&then) && then.is(&ends(0x0808, 0x0909)));
        assert!(!ends(0x0808, 0x0808).is(&then));
        // Without ports those of the packet stay.
        assert!(!ends(0, 0).is(&then));
        let v6: SocketAddr = "[fd00::1]:1".parse().unwrap();
        assert_eq!(now.with_ends(v6, v6), None);
    }

    #[test]
    fn tcp_within_a_connection() {
        let is = |packet: &[u8]| Headers::of_packet(packet).unwrap().is_tcp_ack();
        let mut tcp = [0; 20];
        for (flags, ack) in [
            (0x10, true),
            (0x18, true),
            (0x12, false),
            (0x11, false),
            (0x14, false),
            (0x02, false),
        ] {
            tcp[13] = flags;
            assert_eq!(is(&v4(1, 64, &tcp)), ack, "{flags:x}");
            assert_eq!(is(&v6(6, 64, &tcp)), ack, "{flags:x}");
            assert!(!is(&v6(17, 64, &tcp)));
        }
        tcp[13] = 0x10;
        let mut fragment = v4(1, 64, &tcp);
        fragment[7] = 1;
        assert!(!is(&fragment) && !is(&v4(1, 64, &tcp[..12])));
    }

    #[test]
    fn ipv6_with_and_without_extension_headers() {
        let udp = [1, 2, 3, 4, 0, 12, 9, 9, 5, 6, 7, 8];
        let plain = Headers::of_packet(&v6(17, 64, &udp)).unwrap();
        assert_eq!(plain.version(), 6);
        let mut early = v6(17, 9, &[]);
        early[1] = 0x20;
        assert!(plain.is(&traced(&early, &udp)));
        let mut extended = vec![17, 0, 1, 4, 0, 0, 0, 0];
        extended.extend(udp);
        let extended = Headers::of_packet(&v6(0, 64, &extended)).unwrap();
        assert!(extended.is(&traced(&v6(0, 64, &[]), &udp)));
        assert!(!extended.is(&plain));
    }

    #[test]
    fn long_options_and_other_protocols() {
        let mut long = v4(1, 1, &[]);
        long[0] = 0x4f;
        long.extend([1; 40]);
        long.extend([9; 8]);
        let captured = Headers::of_packet(&long).unwrap();
        assert!(captured.is(&traced(&long[..40], &[9; 8])));
        assert_eq!(Headers::of_packet(&[]), None);
        assert_eq!(Headers::of_packet(&[0x45, 0, 0]), None);
        assert_eq!(Headers::of_packet(&[0; 60]), None);
        assert_eq!(Headers::of_packet(&[0x41; 60]), None);
    }

    proptest! {
        #[test]
        fn never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..80), first in 0_usize..4) {
            if let Some(byte) = bytes.first_mut() {
                *byte = [0x45, 0x4f, 0x60, *byte][first];
            }
            if let Some(headers) = Headers::of_packet(&bytes) {
                prop_assert!(headers.is(&headers));
            }
            let _ = Headers::of_trace(&nftrace::Headers { network: bytes, ..nftrace::Headers::default() });
        }
    }
}
