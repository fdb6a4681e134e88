//! A packet to be sent: what stands in its headers, and its bytes.

use std::net::IpAddr;

use crate::net::Place;

/// Ethernet addresses of the interfaces of [`crate::net::Net`]: last two bytes.
const A0: [u8; 2] = [0x0a, 0];
const R0: [u8; 2] = [0x0b, 0];
const R1: [u8; 2] = [0x0b, 1];
const B0: [u8; 2] = [0x0c, 0];

/// Protocol numbers.
pub mod proto {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// UDP-Lite.
    pub const UDPLITE: u8 = 136;
}

/// Who is meant by the Ethernet destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cast {
    /// The router.
    Host,
    /// Everybody.
    Broadcast,
    /// A group.
    Multicast,
}

/// An IPv6 extension header: its number, and the body after next header and length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ext {
    /// Protocol number.
    pub number: u8,
    /// 8n-2 bytes.
    pub body: Vec<u8>,
}

/// A packet's fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Who sends it: A and B a frame, R an IP packet through a raw socket.
    pub from: Place,
    /// IPv6.
    pub v6: bool,
    /// Source.
    pub src: IpAddr,
    /// Destination.
    pub dst: IpAddr,
    /// Protocol number of the transport.
    pub proto: u8,
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// TCP flags.
    pub flags: u8,
    /// TCP sequence number.
    pub seq: u32,
    /// TCP acknowledgement number.
    pub ack: u32,
    /// TCP window.
    pub window: u16,
    /// TCP options, a multiple of four bytes.
    pub tcp_options: Vec<u8>,
    /// ICMP type and code.
    pub icmp: (u8, u8),
    /// ICMP identifier.
    pub icmp_id: u16,
    /// What an ICMP error quotes.
    pub quoted: Vec<u8>,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TOS or traffic class.
    pub tos: u8,
    /// IPv4 identification.
    pub id: u16,
    /// IPv6 flow label.
    pub flow_label: u32,
    /// IPv4 "don't fragment".
    pub df: bool,
    /// A fragment: offset in units of eight bytes, and whether more follow.
    pub fragment: Option<(u16, bool)>,
    /// IPv4 options, a multiple of four bytes.
    pub ip_options: Vec<u8>,
    /// IPv6 extension headers.
    pub exts: Vec<Ext>,
    /// VLAN tags.
    pub vlans: Vec<u16>,
    /// After the transport header.
    pub payload: Vec<u8>,
    /// Ethernet destination.
    pub cast: Cast,
    /// Bytes of the transport header that are left, in an odd packet.
    pub cut: Option<usize>,
    /// `SO_MARK`, of a packet from R.
    pub mark: u32,
    /// Belongs to this flow of the case, which knows R's sequence numbers.
    pub flow: Option<usize>,
}

impl Spec {
    /// The IP packet.
    pub fn ip_packet(&self) -> Vec<u8> {
        let mut transport = self.transport();
        if let Some(left) = self.cut {
            transport.truncate(left);
        }
        if self.v6 {
            self.ipv6(&transport)
        } else {
            self.ipv4(&transport)
        }
    }

    /// What is handed to the socket: a frame from A and B, an IP packet from R.
    pub fn bytes(&self) -> Vec<u8> {
        let packet = self.ip_packet();
        let (src, host) = match self.from {
            Place::A => (A0, R0),
            Place::B => (B0, R1),
            Place::R => return packet,
        };
        let mut frame = match self.cast {
            Cast::Host => vec![2, 0, 0, 0, host[0], host[1]],
            Cast::Broadcast => vec![0xff; 6],
            Cast::Multicast if self.v6 => vec![0x33, 0x33, 0, 0, 0, 1],
            Cast::Multicast => vec![1, 0, 0x5e, 0, 0, 1],
        };
        frame.extend([2, 0, 0, 0, src[0], src[1]]);
        for vlan in &self.vlans {
            frame.extend([0x81, 0]);
            frame.extend(vlan.to_be_bytes());
        }
        frame.extend(if self.v6 { [0x86, 0xdd] } else { [8, 0] });
        frame.extend(packet);
        frame
    }

    /// Length of the IP packet with no payload, to fill up to a total.
    pub fn headers_length(&self) -> usize {
        let mut empty = self.clone();
        empty.payload.clear();
        empty.ip_packet().len()
    }

    fn transport(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.sport.to_be_bytes());
        bytes.extend(self.dport.to_be_bytes());
        let checksum_at = match self.proto {
            proto::TCP => {
                bytes.extend(self.seq.to_be_bytes());
                bytes.extend(self.ack.to_be_bytes());
                let words = 5 + self.tcp_options.len() / 4;
                bytes.push(u8::try_from(words << 4).unwrap_or(0xf0));
                bytes.push(self.flags);
                bytes.extend(self.window.to_be_bytes());
                bytes.extend([0; 4]);
                bytes.extend(&self.tcp_options);
                16
            }
            proto::UDP | proto::UDPLITE => {
                bytes.extend(length16(8 + self.payload.len()));
                bytes.extend([0, 0]);
                6
            }
            proto::ICMP | proto::ICMPV6 => {
                bytes = vec![self.icmp.0, self.icmp.1, 0, 0];
                if self.quoted.is_empty() {
                    bytes.extend(self.icmp_id.to_be_bytes());
                    bytes.extend([0, 1]);
                } else {
                    bytes.extend([0; 4]);
                    bytes.extend(&self.quoted);
                }
                2
            }
            proto::SCTP => {
                bytes.extend([0, 0, 0, 9, 0, 0, 0, 0]);
                0
            }
            _ => 0,
        };
        bytes.extend(&self.payload);
        if checksum_at != 0 {
            let sum = if self.proto == proto::ICMP {
                checksum(&[&bytes])
            } else {
                checksum(&[&self.pseudo(bytes.len()), &bytes])
            };
            bytes[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        bytes
    }

    fn ipv4(&self, transport: &[u8]) -> Vec<u8> {
        let words = 5 + self.ip_options.len() / 4;
        let mut packet = vec![0x40 | u8::try_from(words).unwrap_or(5), self.tos];
        packet.extend(length16(words * 4 + transport.len()));
        packet.extend(self.id.to_be_bytes());
        let fragment = match self.fragment {
            Some((offset, more)) => offset | if more { 0x2000 } else { 0 },
            None if self.df => 0x4000,
            None => 0,
        };
        packet.extend(fragment.to_be_bytes());
        packet.extend([self.ttl, self.proto, 0, 0]);
        packet.extend(octets(self.src));
        packet.extend(octets(self.dst));
        packet.extend(&self.ip_options);
        let sum = checksum(&[&packet]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet.extend(transport);
        packet
    }

    fn ipv6(&self, transport: &[u8]) -> Vec<u8> {
        let mut exts = self.exts.clone();
        if let Some((offset, more)) = self.fragment {
            let mut body = (offset << 3 | u16::from(more)).to_be_bytes().to_vec();
            body.extend(u32::from(self.id).to_be_bytes());
            exts.push(Ext { number: 44, body });
        }
        let mut body = Vec::new();
        for (i, ext) in exts.iter().enumerate() {
            body.push(exts.get(i + 1).map_or(self.proto, |next| next.number));
            // The second byte of a fragment header is reserved.
            let length = (ext.body.len() + 2) / 8 - 1;
            body.push(u8::try_from(length).unwrap_or(0));
            body.extend(&ext.body);
        }
        body.extend(transport);
        let word = 6 << 28 | u32::from(self.tos) << 20 | self.flow_label & 0xf_ffff;
        let mut packet = word.to_be_bytes().to_vec();
        packet.extend(length16(body.len()));
        packet.extend([exts.first().map_or(self.proto, |e| e.number), self.ttl]);
        packet.extend(octets(self.src));
        packet.extend(octets(self.dst));
        packet.extend(body);
        packet
    }

    /// The pseudo header of TCP, UDP and ICMPv6 checksums.
    fn pseudo(&self, length: usize) -> Vec<u8> {
        let mut header = octets(self.src);
        header.extend(octets(self.dst));
        header.extend([0, self.proto]);
        header.extend(length16(length));
        header
    }
}

/// Sets the acknowledgement number of a TCP segment in an IP packet without options or extension
/// headers, and its checksum.
pub fn acknowledge(packet: &mut [u8], ack: u32) {
    let v6 = packet.first().is_some_and(|b| b >> 4 == 6);
    let (start, addresses) = if v6 { (40, 8..40) } else { (20, 12..20) };
    if packet.len() < start + 20 {
        return;
    }
    packet[start + 8..start + 12].copy_from_slice(&ack.to_be_bytes());
    packet[start + 16..start + 18].fill(0);
    let mut pseudo = packet[addresses].to_vec();
    pseudo.extend([0, proto::TCP]);
    pseudo.extend(length16(packet.len() - start));
    let sum = checksum(&[&pseudo, &packet[start..]]);
    packet[start + 16..start + 18].copy_from_slice(&sum.to_be_bytes());
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

fn length16(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes()
}

/// The Internet checksum over parts of even length (the last may be odd).
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for pair in parts.iter().flat_map(|p| p.chunks(2)) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
