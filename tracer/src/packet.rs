//! Captured bytes -> packet summary. Total: any bytes give a summary of what could be read.

mod names;
mod text;

pub use text::Numeric;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use etherparse::{
    EtherType, IpAuthHeaderSlice, IpNumber, Ipv6FragmentHeaderSlice, Ipv6RawExtHeaderSlice,
    LaxIpv4Slice, LaxIpv6Slice, LaxLinkExtSlice, LaxNetSlice, LaxSlicedPacket, ether_type,
};
use fwtrace_abi::{FLAG_L2, FLAG_VLAN, Record};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// NFPROTO_IPV4 and NFPROTO_IPV6 (include/uapi/linux/netfilter.h, v6.18).
const NFPROTO: [(u8, EtherType); 2] = [(2, ether_type::IPV4), (10, ether_type::IPV6)];

/// A packet, as far as its bytes tell. A key that does not apply is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packet {
    /// IPv4, IPv6, ARP or something else.
    pub family: Family,
    /// IP protocol: the transport's, behind IPv6 extension headers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proto: Option<Proto>,
    /// Source address; ARP: the sender's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub src: Option<IpAddr>,
    /// Source port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sport: Option<u16>,
    /// Destination address; ARP: the target's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dst: Option<IpAddr>,
    /// Destination port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dport: Option<u16>,
    /// IP total length, header included (IPv6: 40 + payload length); bytes in the kernel's buffer
    /// for anything else and where the header does not say (jumbo, GSO).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub len: Option<u32>,
    /// TCP flags.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flags: Option<TcpFlags>,
    /// ICMP or ICMPv6 type and code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp: Option<Icmp>,
    /// What ARP says beside the addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arp: Option<Arp>,
    /// The packet is a fragment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fragment: Option<Fragment>,
    /// VLAN tags, outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vlan: Vec<Vlan>,
    /// EtherType of a packet that is neither IP nor ARP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ethertype: Option<u16>,
    /// IPv4 identification.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u16>,
    /// IPv4 time to live, IPv6 hop limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u8>,
    /// A header is cut short or malformed: there is less here than there should be.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
}

/// What a packet is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
    /// ARP.
    Arp,
    /// Neither.
    #[default]
    Other,
}

impl Family {
    /// The word of the JSON contract.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
            Self::Arp => "arp",
            Self::Other => "other",
        }
    }
}

/// An IP protocol number; its text is its name, or the number where it has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Proto(pub u8);

impl Proto {
    /// TCP.
    pub const TCP: Self = Self(6);
    /// UDP.
    pub const UDP: Self = Self(17);

    /// The protocol of that name or number.
    pub fn parse(text: &str) -> Option<Self> {
        let by_number = text.parse().ok();
        by_number.or_else(|| names::protocol_number(text)).map(Self)
    }

    /// Its name.
    pub fn name(self) -> Option<&'static str> {
        names::protocol(self.0)
    }

    /// Whether the header starts with a source and a destination port: TCP, UDP, DCCP, SCTP,
    /// UDP-Lite.
    pub fn has_ports(self) -> bool {
        matches!(self.0, 6 | 17 | 33 | 132 | 136)
    }
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.pad(name),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Serialize for Proto {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Proto {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        Self::parse(&text).ok_or_else(|| de::Error::custom(format!("no IP protocol: {text}")))
    }
}

/// TCP flags, the low byte of the header's flag field; serialised as tcpdump writes them (`S.`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TcpFlags(pub u8);

/// Each flag: its bit, tcpdump's letter, its name. In tcpdump's order.
const TCP_FLAGS: [(u8, char, &str); 8] = [
    (0x01, 'F', "FIN"),
    (0x02, 'S', "SYN"),
    (0x04, 'R', "RST"),
    (0x08, 'P', "PSH"),
    (0x10, '.', "ACK"),
    (0x20, 'U', "URG"),
    (0x40, 'E', "ECE"),
    (0x80, 'W', "CWR"),
];

impl TcpFlags {
    fn fmt_words(self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = true;
        for (_, _, name) in TCP_FLAGS.iter().filter(|(bit, ..)| self.0 & bit != 0) {
            if !std::mem::take(&mut first) {
                f.write_str(",")?;
            }
            f.write_str(name)?;
        }
        if first { f.write_str("none") } else { Ok(()) }
    }
}

impl fmt::Display for TcpFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("none");
        }
        let set = TCP_FLAGS.iter().filter(|(bit, ..)| self.0 & bit != 0);
        set.map(|&(_, letter, _)| letter)
            .try_for_each(|letter| write!(f, "{letter}"))
    }
}

impl Serialize for TcpFlags {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TcpFlags {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        if text == "none" {
            return Ok(Self(0));
        }
        let mut bits = 0;
        for letter in text.chars() {
            let flag = TCP_FLAGS.iter().find(|f| f.1 == letter);
            bits |= flag
                .ok_or_else(|| de::Error::custom(format!("no TCP flags: {text}")))?
                .0;
        }
        Ok(Self(bits))
    }
}

/// ICMP or ICMPv6 type and code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Icmp {
    /// Type.
    #[serde(rename = "type")]
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// The type's name, or the code's where that says more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<&'static str>,
}

impl<'de> Deserialize<'de> for Icmp {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        /// The name is one of ours, or none.
        #[derive(Deserialize)]
        struct Raw {
            #[serde(rename = "type")]
            kind: u8,
            code: u8,
            name: Option<String>,
        }
        let raw = Raw::deserialize(d)?;
        let name = raw.name.and_then(|name| {
            let known = [
                names::icmp(raw.kind, raw.code),
                names::icmpv6(raw.kind, raw.code),
            ];
            known.into_iter().flatten().find(|known| *known == name)
        });
        Ok(Self {
            kind: raw.kind,
            code: raw.code,
            name,
        })
    }
}

/// What ARP says beside the addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arp {
    /// Operation.
    pub op: ArpOp,
    /// The sender's Ethernet address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender: Option<Mac>,
}

/// ARP operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ArpOp {
    /// Who has this address?
    Request,
    /// I have.
    Reply,
    /// Something else.
    #[serde(untagged)]
    Other(u16),
}

/// An Ethernet address, as text six hexadecimal bytes with colons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        let bytes: Result<Vec<u8>, _> = text
            .split(':')
            .map(|byte| u8::from_str_radix(byte, 16))
            .collect();
        let mac = bytes.ok().and_then(|bytes| bytes.try_into().ok());
        mac.map(Self)
            .ok_or_else(|| de::Error::custom(format!("no Ethernet address: {text}")))
    }
}

/// Where a fragment stands in its packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fragment {
    /// Bytes of payload before this fragment.
    pub offset: u16,
    /// More fragments follow.
    pub more: bool,
    /// Identification that the fragments share.
    pub id: u32,
}

/// A VLAN tag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vlan {
    /// VLAN id.
    pub id: u16,
    /// Priority code point.
    pub pcp: u8,
    /// The tag's EtherType: 0x8100 (802.1Q) or 0x88a8 (802.1ad).
    pub proto: u16,
}

impl Vlan {
    fn new(tci: u16, proto: u16) -> Self {
        Self {
            id: tci & 0xfff,
            pcp: (tci >> 13) as u8,
            proto,
        }
    }
}

/// Captured bytes, and what is known about them from outside.
#[derive(Clone, Copy, Debug)]
pub struct Capture<'a> {
    /// The packet from its network header on, cut to the capture length.
    pub bytes: &'a [u8],
    /// EtherType of what `bytes` starts with, host order.
    pub ethertype: u16,
    /// Bytes of packet in the kernel's buffer.
    pub wire_len: u32,
    /// VLAN tag held beside the packet: tag control information and EtherType, host order.
    pub vlan: Option<(u16, u16)>,
}

impl<'a> Capture<'a> {
    /// The capture that follows `record`: `bytes` as they came, link-layer header included.
    pub fn new(record: &Record, bytes: &'a [u8]) -> Self {
        let l2 = if record.flags & FLAG_L2 != 0 {
            usize::from(record.l2_len)
        } else {
            0
        };
        let ethertype = match u16::from_be(record.protocol) {
            // Some senders of raw packets leave it empty; the hook they reached knows better.
            0 => NFPROTO
                .iter()
                .find(|p| p.0 == record.pf)
                .map_or(0, |p| p.1.0),
            ethertype => ethertype,
        };
        Self {
            bytes: bytes.get(l2..).unwrap_or_default(),
            ethertype,
            wire_len: record.len,
            vlan: (record.flags & FLAG_VLAN != 0)
                .then(|| (record.vlan_tci, u16::from_be(record.vlan_proto))),
        }
    }

    /// Reads what can be read. Never fails: [`Packet::truncated`] says that something is missing.
    pub fn packet(&self) -> Packet {
        let mut packet = Packet {
            len: Some(self.wire_len),
            ..Packet::default()
        };
        let tag = self.vlan.map(|(tci, proto)| Vlan::new(tci, proto));
        packet.vlan.extend(tag);

        let sliced = LaxSlicedPacket::from_ether_type(EtherType(self.ethertype), self.bytes);
        packet.truncated = sliced.stop_err.is_some();
        let (mut ethertype, mut rest) = (EtherType(self.ethertype), self.bytes);
        for ext in &sliced.link_exts {
            if let LaxLinkExtSlice::Vlan(vlan) = ext {
                let tci = u16::from_be_bytes([vlan.slice()[0], vlan.slice()[1]]);
                packet.vlan.push(Vlan::new(tci, ethertype.0));
            }
            match ext.payload() {
                Some(inner) => (ethertype, rest) = (inner.ether_type, inner.payload),
                // Encrypted: nothing further in can be read.
                None => break,
            }
        }
        packet.family = match ethertype {
            ether_type::IPV4 => Family::Ipv4,
            ether_type::IPV6 => Family::Ipv6,
            ether_type::ARP => Family::Arp,
            _ => Family::Other,
        };
        match (&sliced.net, packet.family) {
            (Some(LaxNetSlice::Ipv4(ip)), Family::Ipv4) => packet.read_ipv4(ip),
            (Some(LaxNetSlice::Ipv6(ip)), Family::Ipv6) => packet.read_ipv6(ip),
            (Some(LaxNetSlice::Arp(arp)), Family::Arp) => {
                let addr = |bytes: &[u8]| {
                    let v4: Option<[u8; 4]> = bytes.try_into().ok();
                    v4.map(|v4| IpAddr::V4(Ipv4Addr::from(v4)))
                };
                packet.src = addr(arp.sender_protocol_addr());
                packet.dst = addr(arp.target_protocol_addr());
                packet.arp = Some(Arp {
                    op: match arp.operation().0 {
                        1 => ArpOp::Request,
                        2 => ArpOp::Reply,
                        op => ArpOp::Other(op),
                    },
                    sender: arp.sender_hw_addr().try_into().ok().map(Mac),
                });
            }
            (_, Family::Other) => packet.ethertype = Some(ethertype.0),
            (_, Family::Ipv4) => {
                packet.truncated = true;
                packet.read_ipv4_fixed(rest);
            }
            _ => packet.truncated = true,
        }
        packet
    }
}

impl Packet {
    fn read_ipv4(&mut self, ip: &LaxIpv4Slice<'_>) {
        let header = ip.header();
        self.src = Some(IpAddr::V4(header.source_addr()));
        self.dst = Some(IpAddr::V4(header.destination_addr()));
        self.id = Some(header.identification());
        self.ttl = Some(header.ttl());
        // 0: more than the field can hold (BIG TCP).
        if header.total_len() != 0 {
            self.len = Some(u32::from(header.total_len()));
        }
        if header.is_fragmenting_payload() {
            self.fragment = Some(Fragment {
                offset: header.fragments_offset().byte_offset(),
                more: header.more_fragments(),
                id: u32::from(header.identification()),
            });
        }
        // As the kernel and so a rule sees it: AH in IPv4 is a transport.
        self.proto = Some(Proto(header.protocol().0));
        if header.protocol() != IpNumber::AUTHENTICATION_HEADER {
            self.read_transport(ip.payload().payload);
        }
    }

    /// The fixed part of an IPv4 header whose options are cut short.
    fn read_ipv4_fixed(&mut self, bytes: &[u8]) {
        let Some(header) = bytes.first_chunk::<20>().filter(|h| h[0] >> 4 == 4) else {
            return;
        };
        let addr = |at: usize| {
            let v4 = Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
            Some(IpAddr::V4(v4))
        };
        (self.src, self.dst) = (addr(12), addr(16));
        self.proto = Some(Proto(header[9]));
        self.ttl = Some(header[8]);
        self.id = Some(u16::from_be_bytes([header[4], header[5]]));
        self.len = Some(u32::from(u16::from_be_bytes([header[2], header[3]])));
    }

    fn read_ipv6(&mut self, ip: &LaxIpv6Slice<'_>) {
        let header = ip.header();
        self.src = Some(IpAddr::V6(header.source_addr()));
        self.dst = Some(IpAddr::V6(header.destination_addr()));
        self.ttl = Some(header.hop_limit());
        // 0: a jumbogram, its length is in an option (RFC 2675), or BIG TCP. Only what is too long for the field is (`ipv6_hop_jumbo()`,
        // `ip6_xmit()`, v6.18); anything shorter has no payload, and the buffer's length may count a link-layer header.
        let too_long = self.len > Some(40 + u32::from(u16::MAX));
        if header.payload_length() != 0 || !too_long {
            self.len = Some(40 + u32::from(header.payload_length()));
        }
        self.fragment = ipv6_fragment(ip);
        self.proto = Some(Proto(ip.payload().ip_number.0));
        self.read_transport(ip.payload().payload);
    }

    /// Reads `payload`, what follows the IP header and its extensions.
    fn read_transport(&mut self, payload: &[u8]) {
        let Some(proto) = self.proto else { return };
        if self.fragment.as_ref().is_some_and(|f| f.offset != 0) {
            return;
        }
        if proto.has_ports() {
            match payload.first_chunk() {
                Some(&[a, b, c, d]) => {
                    self.sport = Some(u16::from_be_bytes([a, b]));
                    self.dport = Some(u16::from_be_bytes([c, d]));
                }
                None => self.truncated = true,
            }
        }
        if proto == Proto::TCP {
            match payload.get(13) {
                Some(&flags) => self.flags = Some(TcpFlags(flags)),
                None => self.truncated = true,
            }
        }
        let name = match (proto.0, self.family) {
            (1, Family::Ipv4) => names::icmp,
            (58, Family::Ipv6) => names::icmpv6,
            _ => return,
        };
        match payload.first_chunk() {
            Some(&[kind, code]) => {
                self.icmp = Some(Icmp {
                    kind,
                    code,
                    name: name(kind, code),
                });
            }
            None => self.truncated = true,
        }
    }
}

/// The fragment header among an IPv6 packet's extension headers.
///
/// It walks them itself: where the capture ends within one, etherparse's own iterator (0.21) takes
/// the rest of it from past the capture's end.
fn ipv6_fragment(ip: &LaxIpv6Slice<'_>) -> Option<Fragment> {
    let mut kind = ip.extensions().first_header()?;
    let mut rest = ip.extensions().slice();
    loop {
        let (next, len) = match kind {
            IpNumber::IPV6_FRAGMENTATION_HEADER => {
                let header = Ipv6FragmentHeaderSlice::from_slice(rest).ok()?;
                return Some(Fragment {
                    offset: header.fragment_offset().byte_offset(),
                    more: header.more_fragments(),
                    id: header.identification(),
                });
            }
            IpNumber::IPV6_HEADER_HOP_BY_HOP
            | IpNumber::IPV6_ROUTE_HEADER
            | IpNumber::IPV6_DESTINATION_OPTIONS => {
                let header = Ipv6RawExtHeaderSlice::from_slice(rest).ok()?;
                (header.next_header(), header.slice().len())
            }
            IpNumber::AUTHENTICATION_HEADER => {
                let header = IpAuthHeaderSlice::from_slice(rest).ok()?;
                (header.next_header(), header.slice().len())
            }
            _ => return None,
        };
        kind = next;
        rest = rest.get(len..)?;
    }
}

#[cfg(test)]
#[path = "packet/tests.rs"]
mod tests;
