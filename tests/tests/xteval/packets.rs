//! Packets, byte for byte.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// MAC addresses of A's and of R's interface in [`e2e::net::Net`].
pub(crate) const A0: [u8; 6] = [2, 0, 0, 0, 0x0a, 0];
pub(crate) const R0: [u8; 6] = [2, 0, 0, 0, 0x0b, 0];

/// An IP packet that is being made.
#[derive(Clone, Debug)]
pub(crate) struct Ip {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) proto: u8,
    pub(crate) tos: u8,
    pub(crate) ttl: u8,
    /// IPv4: flags and offset of a fragment.
    pub(crate) fragment: u16,
    /// IPv4: options, a multiple of four bytes. IPv6: extension headers, whose first one is of the type `proto`.
    pub(crate) options: Vec<u8>,
    /// The transport header and what follows; its checksum is put in where it has one.
    pub(crate) body: Vec<u8>,
    /// The protocol of `body`, for its checksum.
    pub(crate) transport: u8,
}

impl Ip {
    pub(crate) fn new(src: &str, dst: &str, proto: u8, body: Vec<u8>) -> Self {
        Self {
            src: src.parse().expect("an address"),
            dst: dst.parse().expect("an address"),
            proto,
            tos: 0,
            ttl: 64,
            fragment: 0,
            options: Vec::new(),
            body,
            transport: proto,
        }
    }

    pub(crate) fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// Extension headers before the body: type of each and its bytes from the second on.
    pub(crate) fn extended(mut self, headers: &[(u8, &[u8])]) -> Self {
        let last = self.proto;
        self.options.clear();
        for (index, (_, rest)) in headers.iter().enumerate() {
            self.options
                .push(headers.get(index + 1).map_or(last, |(kind, _)| *kind));
            self.options.extend(*rest);
        }
        self.proto = headers.first().map_or(last, |(kind, _)| *kind);
        self
    }

    /// The packet's bytes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut body = self.body.clone();
        let at = match self.transport {
            6 => 16,
            17 => 6,
            1 | 58 => 2,
            _ => usize::MAX,
        };
        if self.fragment == 0 && body.len() > at.saturating_add(1) {
            body[at..at + 2].fill(0);
            let mut covered = Vec::new();
            if self.transport != 1 {
                match (self.src, self.dst) {
                    (IpAddr::V4(src), IpAddr::V4(dst)) => {
                        covered.extend(src.octets());
                        covered.extend(dst.octets());
                    }
                    (src, dst) => {
                        covered.extend(v6(src).octets());
                        covered.extend(v6(dst).octets());
                    }
                }
                covered.extend([0, self.transport]);
                covered.extend((body.len() as u16).to_be_bytes());
            }
            covered.extend(&body);
            let sum = checksum(&covered);
            body[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        let payload = self.options.len() + body.len();
        let mut packet = Vec::new();
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let words = 5 + (self.options.len() / 4) as u8;
                packet.extend([0x40 | words, self.tos]);
                packet.extend(((20 + payload) as u16).to_be_bytes());
                packet.extend([0x12, 0x34]);
                packet.extend(self.fragment.to_be_bytes());
                packet.extend([self.ttl, self.proto, 0, 0]);
                packet.extend(src.octets());
                packet.extend(dst.octets());
                packet.extend(&self.options);
                let sum = checksum(&packet);
                packet[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            (src, dst) => {
                packet.extend([0x60 | self.tos >> 4, self.tos << 4, 0, 0]);
                packet.extend((payload as u16).to_be_bytes());
                packet.extend([self.proto, self.ttl]);
                packet.extend(v6(src).octets());
                packet.extend(v6(dst).octets());
                packet.extend(&self.options);
            }
        }
        packet.extend(body);
        packet
    }

    /// The packet in a frame to R.
    pub(crate) fn frame(&self, to: [u8; 6]) -> Vec<u8> {
        let kind = if self.src.is_ipv4() { 0x0800 } else { 0x86dd };
        e2e::traffic::ethernet(to, A0, &[], kind, &self.bytes())
    }
}

fn v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V6(v6) => v6,
        IpAddr::V4(v4) => Ipv4Addr::to_ipv6_mapped(&v4),
    }
}

fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A TCP segment.
pub(crate) fn tcp(ports: (u16, u16), flags: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(ports.0.to_be_bytes());
    segment.extend(ports.1.to_be_bytes());
    segment.extend([0, 0, 0, 1, 0, 0, 0, 2]);
    segment.extend([(5 + options.len() as u8 / 4) << 4, flags]);
    segment.extend([0x10, 0, 0, 0, 0, 0]);
    segment.extend(options);
    segment.extend(payload);
    segment
}

/// A UDP datagram.
pub(crate) fn udp(ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut datagram = Vec::new();
    datagram.extend(ports.0.to_be_bytes());
    datagram.extend(ports.1.to_be_bytes());
    datagram.extend(((8 + payload.len()) as u16).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    datagram
}

/// An ICMP message.
pub(crate) fn icmp(kind: u8, code: u8) -> Vec<u8> {
    vec![kind, code, 0, 0, 0, 7, 0, 1, b'p', b'i', b'n', b'g']
}

/// An SCTP packet of these chunks: type, flags and body.
pub(crate) fn sctp(ports: (u16, u16), chunks: &[(u8, u8, &[u8])]) -> Vec<u8> {
    let mut packet = Vec::new();
    packet.extend(ports.0.to_be_bytes());
    packet.extend(ports.1.to_be_bytes());
    packet.extend([0, 0, 0, 1, 0, 0, 0, 0]);
    for (kind, flags, body) in chunks {
        packet.extend([*kind, *flags]);
        packet.extend(((4 + body.len()) as u16).to_be_bytes());
        packet.extend(*body);
        packet.resize(packet.len().next_multiple_of(4), 0);
    }
    packet
}
