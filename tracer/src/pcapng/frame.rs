//! A dropped packet as a capture holds it: with the header of its link where that is known to be Ethernet's.

use std::borrow::Cow;

use fwtrace_abi::{FLAG_L2, FLAG_META, FLAG_VLAN, Record};

use super::LinkType;
use crate::{bpf::reader::RawDrop, packet::Capture};

/// Length of two Ethernet addresses, behind which tags and EtherType stand.
const ADDRESSES: usize = 12;
const ETHERTYPE_VLAN: [u16; 2] = [0x8100, 0x88a8];
const ETHERTYPE_IP: [u16; 2] = [0x0800, 0x86dd];
/// EtherTypes begin here; below, the field is a length (IEEE 802.3).
const ETHERTYPE_MIN: u16 = 0x0600;
/// Kernel-internal `skb->protocol` of frames with a length (include/uapi/linux/if_ether.h, v6.18: ETH_P_802_3, ETH_P_802_2).
const LENGTH_FIELD: [u16; 2] = [1, 4];
/// Nothing is known of the hardware (include/uapi/linux/if_arp.h, v6.18: ARPHRD_VOID).
const ARPHRD_VOID: u16 = 0xffff;

/// A packet's bytes for a capture file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What `bytes` begins with.
    pub link: LinkType,
    /// The packet as far as it was captured.
    pub bytes: Cow<'a, [u8]>,
    /// Length of the whole packet, bytes.
    pub original_len: u32,
    /// `enum` PACKET_* of include/uapi/linux/if_packet.h: 0 to this host, 1 broadcast, 2 multicast, 3 to others; `None`: not known.
    pub packet_type: Option<u8>,
}

impl<'a> Frame<'a> {
    /// The frame of a record. A tag that the driver or the kernel took off an Ethernet frame is put back.
    #[must_use]
    pub fn new(raw: &'a RawDrop) -> Self {
        let record = &raw.record;
        let l2 = if record.flags & FLAG_L2 != 0 {
            usize::from(record.l2_len)
        } else {
            0
        };
        let capture = Capture::new(record, &raw.packet);
        let (header, network) = raw.packet.split_at_checked(l2).unwrap_or_default();
        let whole = raw.len.unwrap_or_else(|| {
            // Not said: the IP header's word, or the kernel's.
            let network = capture.packet().len.unwrap_or(record.len);
            network.saturating_add(u32::from(record.l2_len))
        });
        let whole = whole.max(len32(raw.packet.len()));
        let packet_type = (record.flags & FLAG_META != 0).then_some(record.pkt_type);
        let frame = |link, bytes, original_len| Self {
            link,
            bytes,
            original_len,
            packet_type,
        };
        if is_ethernet(header, u16::from_be(record.protocol)) {
            let Some(tag) = tag(record) else {
                return frame(LinkType::ETHERNET, Cow::Borrowed(&*raw.packet), whole);
            };
            let (addresses, rest) = raw.packet.split_at_checked(ADDRESSES).unwrap_or_default();
            let bytes = [addresses, &tag, rest].concat();
            let added = len32(tag.len());
            return frame(
                LinkType::ETHERNET,
                Cow::Owned(bytes),
                whole.saturating_add(added),
            );
        }
        let without = whole.saturating_sub(len32(header.len()));
        if ETHERTYPE_IP.contains(&capture.ethertype) {
            return frame(LinkType::RAW, Cow::Borrowed(network), without);
        }
        let cooked = cooked(packet_type, capture.ethertype);
        let added = len32(cooked.len());
        let bytes = [&cooked, network].concat();
        frame(
            LinkType::LINUX_SLL,
            Cow::Owned(bytes),
            without.saturating_add(added),
        )
    }
}

fn len32(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// Whether `header` is two addresses, tags, and the EtherType `protocol` (host order) at its very end. Other links' headers can be
/// as long.
fn is_ethernet(header: &[u8], protocol: u16) -> bool {
    let Some((_, mut types)) = header.split_at_checked(ADDRESSES) else {
        return false;
    };
    loop {
        let [a, b, rest @ ..] = types else {
            return false;
        };
        let ethertype = u16::from_be_bytes([*a, *b]);
        if rest.is_empty() {
            return ethertype == protocol
                || ethertype < ETHERTYPE_MIN && LENGTH_FIELD.contains(&protocol);
        }
        let [_, _, inner @ ..] = rest else {
            return false;
        };
        if !ETHERTYPE_VLAN.contains(&ethertype) {
            return false;
        }
        types = inner;
    }
}

/// The VLAN tag that is held beside the packet.
fn tag(record: &Record) -> Option<[u8; 4]> {
    let [a, b] = u16::from_be(record.vlan_proto).to_be_bytes();
    let [c, d] = record.vlan_tci.to_be_bytes();
    (record.flags & FLAG_VLAN != 0).then_some([a, b, c, d])
}

/// The header of LINKTYPE_LINUX_SLL: nothing is known but the EtherType, and whom the packet was for.
fn cooked(packet_type: Option<u8>, ethertype: u16) -> [u8; 16] {
    let mut header = [0; 16];
    let fields = [
        (0, u16::from(packet_type.unwrap_or(0))),
        (2, ARPHRD_VOID),
        (14, ethertype),
    ];
    for (at, value) in fields {
        if let Some(place) = header.get_mut(at..at + 2) {
            place.copy_from_slice(&value.to_be_bytes());
        }
    }
    header
}
