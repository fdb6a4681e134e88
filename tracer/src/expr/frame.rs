//! A captured packet as an Ethernet frame, which is what expressions are compiled for.
//!
//! Not every drop has a link-layer header (packets sent from here have none before they leave, tunnels
//! never do): then the frame gets one with the EtherType that the kernel knows, and addresses that are
//! not known.

use fwtrace_abi::{FLAG_L2, Record};

use super::program::{Loaded, Packet};
use crate::packet::Capture;

/// Two Ethernet addresses.
const ADDRESSES: usize = 12;
/// Addresses and EtherType.
const ETHERNET: usize = 14;
/// A VLAN tag's length.
const TAG: usize = 4;
/// EtherTypes of VLAN tags, as libpcap's `vlan` takes them.
const TAGS: [u16; 3] = [0x8100, 0x88a8, 0x9100];
/// EtherTypes below are lengths (IEEE 802.3).
const LENGTHS: u16 = 0x600;
const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;

/// The frame: a header, put together anew, and what follows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame<'a> {
    header: [u8; ETHERNET + TAG],
    header_len: usize,
    /// Whether the addresses are the packet's.
    addressed: bool,
    body: &'a [u8],
    wire_len: u32,
}

impl<'a> Frame<'a> {
    /// The frame of an IP packet of `length` bytes without link-layer header, of which `bytes` were captured.
    pub(super) fn of_packet(bytes: &'a [u8], length: u32) -> Self {
        let kind = match bytes.first().map(|byte| byte >> 4) {
            Some(6) => ETH_P_IPV6,
            _ => ETH_P_IP,
        };
        let mut header = [0; ETHERNET + TAG];
        for (to, from) in header.iter_mut().skip(ADDRESSES).zip(kind.to_be_bytes()) {
            *to = from;
        }
        Self {
            header,
            header_len: ETHERNET,
            addressed: false,
            body: bytes,
            wire_len: length
                .max(bytes.len() as u32)
                .saturating_add(ETHERNET as u32),
        }
    }

    /// The frame of a drop: `bytes` are those captured with `record`. With `tag`, a VLAN tag that the
    /// kernel holds beside the packet stands in the frame, where it is on the wire.
    pub(super) fn new(record: &Record, bytes: &'a [u8], tag: bool) -> Self {
        let capture = Capture::new(record, bytes);
        let l2 = if record.flags & FLAG_L2 != 0 {
            bytes.get(..usize::from(record.l2_len)).unwrap_or_default()
        } else {
            &[]
        };
        let mut header = [0; ETHERNET + TAG];
        let kind = ethertype(l2, capture.ethertype);
        let addressed = kind.is_some();
        if addressed {
            for (to, from) in header.iter_mut().zip(l2.iter().take(ADDRESSES)) {
                *to = *from;
            }
        }
        let kind = kind.unwrap_or(capture.ethertype).to_be_bytes();
        let mut header_len = ADDRESSES;
        let mut put = |bytes: &[u8]| {
            for (to, from) in header.iter_mut().skip(header_len).zip(bytes) {
                *to = *from;
            }
            header_len += bytes.len();
        };
        if let Some((tci, protocol)) = capture.vlan.filter(|_| tag) {
            put(&protocol.to_be_bytes());
            put(&tci.to_be_bytes());
        }
        put(&kind);
        let body = if addressed {
            bytes.get(ETHERNET..).unwrap_or_default()
        } else {
            capture.bytes
        };
        // Tags that the kernel counts to the link-layer header.
        let inner = body.len().saturating_sub(capture.bytes.len());
        let length = network_len(&capture) + inner.min(l2.len()) as u32;
        Self {
            header,
            header_len,
            addressed,
            body,
            wire_len: header_len as u32 + length.max(body.len() as u32),
        }
    }
}

/// The EtherType in an Ethernet header; `None` if `l2` is none. `protocol` is what the kernel says that
/// the packet is.
fn ethertype(l2: &[u8], protocol: u16) -> Option<u16> {
    let at = |at: usize| Some(u16::from_be_bytes(*l2.get(at..)?.first_chunk()?));
    let first = at(ADDRESSES)?;
    let mut end = ETHERNET;
    let mut last = first;
    while l2.len() > end {
        // What the header has more than 14 bytes must be tags.
        if !TAGS.contains(&last) {
            return None;
        }
        last = at(end + 2)?;
        end += TAG;
    }
    let plausible = l2.len() > ETHERNET || first < LENGTHS || first == protocol;
    (l2.len() == end && plausible).then_some(first)
}

/// Bytes from the network header on: what IP says, else what is in the kernel's buffer.
fn network_len(capture: &Capture<'_>) -> u32 {
    let field = |at: usize| {
        let bytes = capture.bytes.get(at..)?.first_chunk()?;
        Some(u32::from(u16::from_be_bytes(*bytes)))
    };
    // 0: more than the field can hold, or, of IPv6, nothing.
    let said = match capture.ethertype {
        ETH_P_IP => field(2).filter(|len| *len != 0),
        ETH_P_IPV6 => field(4).filter(|len| *len != 0).map(|len| len + 40),
        _ => None,
    };
    said.unwrap_or(capture.wire_len)
}

impl Packet for Frame<'_> {
    fn load(&self, at: u64, size: usize) -> Loaded {
        if at + size as u64 > u64::from(self.wire_len) {
            return Loaded::Outside;
        }
        // Within the length, which is a u32.
        let at = at as usize;
        if !self.addressed && at < ADDRESSES {
            return Loaded::Unknown;
        }
        let header = self.header.get(..self.header_len).unwrap_or_default();
        let mut value = 0;
        for place in at..at + size {
            let byte = match place.checked_sub(self.header_len) {
                None => header.get(place),
                Some(place) => self.body.get(place),
            };
            let Some(byte) = byte else {
                return Loaded::Unknown;
            };
            value = value << 8 | u32::from(*byte);
        }
        Loaded::Value(value)
    }

    fn wire_len(&self) -> u32 {
        self.wire_len
    }
}
