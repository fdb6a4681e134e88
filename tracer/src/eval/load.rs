//! A field's value, from the packet and the world.

use super::{
    clock, exthdr, fib,
    field::{Bytes, DoubtKind, Field, Reason, Value},
    headers::{self, ETH_IPV4, ETH_IPV6, Gap, IPV4, IPV6, NETDEV, TCP, UDP},
    packet::{Connection, Device, Fact, Moment, Packet, Tracking, Tuple},
    world::World,
    xt::{self, XtField},
};
use crate::ruleset::expr::PayloadBase;

/// Whether [`field`] asks the world for it.
pub(super) fn reads_links(field: Field) -> bool {
    match field {
        Field::Meta(key) => matches!(key, 8 | 9 | 17 | 18 | 21 | 22 | 26 | 27 | 36),
        Field::Fib { .. } => true,
        Field::Xt(field) => matches!(field, XtField::SourceMac | XtField::DestinationMac),
        _ => false,
    }
}

/// The value of the field in this packet. What it asks the world for is what [`reads_links`] names.
pub(super) fn field(field: Field, packet: &Packet<'_>, world: &World) -> Value {
    match field {
        Field::Payload { base, offset, len } => payload(packet, base, offset, len),
        Field::Meta(key) => meta(packet, world, key),
        Field::Ct { key, direction } => ct(packet, key, direction),
        Field::CtEarly { key, direction } => ct_early(packet, key, direction),
        Field::BeforeNat { base, offset, len } => before_nat(packet, base, offset, len),
        Field::Translated => match packet.tracking {
            Tracking::Connection(connection) => Value::u8(
                (connection.status & (Connection::SRC_NAT | Connection::DST_NAT) != 0).into(),
            ),
            Tracking::None | Tracking::Untracked => Value::u8(0),
            Tracking::Unknown => unknown("the connection is not known"),
        },
        Field::NatWalk { source } => nat_walk(packet, source),
        Field::Exthdr {
            op,
            kind,
            offset,
            len,
            flags,
        } => exthdr::load(packet, op, kind, offset, len, flags),
        Field::Fib { result, flags } => fib::value(packet, world, result, flags),
        Field::Xt(field) => xt::load(field, packet, world),
        Field::Clock => clock::load(packet),
        Field::Rt(_) => unknown("the route is not known"),
        Field::Socket { .. } => unknown("the socket is not known"),
        Field::Osf { .. } => unknown("fingerprints of operating systems are not known"),
        Field::Xfrm { .. } => unknown("the IPsec state is not known"),
        Field::Tunnel { .. } => unknown("the tunnel metadata is not known"),
        Field::SymmetricHash => unknown("the kernel's flow hash is not known"),
    }
}

fn unknown(text: &'static str) -> Value {
    Value::Unknown(Reason::missing(text))
}

fn fact<T>(fact: Fact<T>, what: &'static str, value: impl FnOnce(T) -> Value) -> Value {
    match fact {
        Fact::Known(known) => value(known),
        Fact::Absent => Value::Break,
        Fact::Unknown => unknown(what),
    }
}

const ETH_HLEN: u32 = 14;
const VLAN_ETH_HLEN: u32 = 18;

/// `nft_payload_eval()` (net/netfilter/nft_payload.c, v6.18).
fn payload(packet: &Packet<'_>, base: PayloadBase, offset: u32, len: u32) -> Value {
    let bytes = match base {
        PayloadBase::Link => return link(packet, offset, len),
        PayloadBase::Network => packet.network(offset, len),
        PayloadBase::Transport => packet.transport().and_then(|transport| {
            // `nft_payload_fast_eval()` does not look whether the packet is a later fragment: it reads what stands where the header
            // would be, in IPv6 from the start of the packet.
            let fast = len.is_power_of_two() && len <= 4 && offset.is_multiple_of(len);
            if transport.fragment != 0 && !fast {
                return Err(Gap::End);
            }
            let at = transport.offset.checked_add(offset).ok_or(Gap::End)?;
            packet.network(at, len)
        }),
        PayloadBase::Inner => packet.transport().and_then(|transport| {
            let header = match transport.proto {
                _ if transport.fragment != 0 => return Err(Gap::End),
                UDP => 8,
                TCP => {
                    packet.network(transport.offset, 20)?;
                    let data = packet.network(transport.offset + 12, 1)?;
                    u32::from(data[0] >> 4) * 4
                }
                _ => return Err(Gap::End),
            };
            let at = (transport.offset + header)
                .checked_add(offset)
                .ok_or(Gap::End)?;
            packet.network(at, len)
        }),
        PayloadBase::Tunnel => return unknown("tunnel headers are not evaluated"),
    };
    match bytes {
        Ok(bytes) => Value::bytes(bytes),
        Err(gap) => gap.into(),
    }
}

/// The link-layer header, with the VLAN tag that the packet carries outside of its bytes put back (`nft_payload_copy_vlan()`).
fn link(packet: &Packet<'_>, offset: u32, len: u32) -> Value {
    if packet.l2_len == 0 {
        return Value::Break;
    }
    let plain = || match packet.link(offset, len) {
        Ok(bytes) => Value::bytes(bytes),
        Err(gap) => gap.into(),
    };
    if u64::from(offset) + u64::from(len) <= 12 {
        return plain();
    }
    let tag = match packet.vlan {
        Fact::Absent => return plain(),
        Fact::Unknown => return unknown("whether there is a VLAN tag is not known"),
        Fact::Known(tag) => tag,
    };
    let header = match packet.link(0, ETH_HLEN) {
        Ok(header) => header,
        Err(gap) => return gap.into(),
    };
    let mut tagged = [0; VLAN_ETH_HLEN as usize];
    tagged[..12].copy_from_slice(&header[..12]);
    tagged[12..14].copy_from_slice(&tag.proto.to_be_bytes());
    tagged[14..16].copy_from_slice(&tag.tci.to_be_bytes());
    tagged[16..18].copy_from_slice(&packet.protocol.to_be_bytes());
    let mut bytes = Vec::with_capacity(len as usize);
    for at in offset..offset.saturating_add(len).min(offset + Bytes::MAX as u32) {
        match tagged.get(at as usize) {
            Some(&byte) => bytes.push(byte),
            None => match packet.link(at - 4, 1) {
                Ok(byte) => bytes.extend(byte),
                Err(gap) => return gap.into(),
            },
        }
    }
    Value::bytes(&bytes)
}

/// A name as it stands in a register: 16 bytes, padded.
pub(super) fn name(name: &str) -> Value {
    let mut bytes = [0; 16];
    let len = name.len().min(15);
    bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
    Value::bytes(&bytes)
}

fn device_name(device: Fact<Device<'_>>) -> Value {
    match device {
        // `nft_meta_store_ifname()`: no device has an empty name, and does not break the rule.
        Fact::Absent => name(""),
        Fact::Known(device) if !device.name.is_empty() => name(device.name),
        Fact::Known(_) | Fact::Unknown => unknown("the interface's name is not known"),
    }
}

fn device_index(device: Fact<Device<'_>>) -> Value {
    match device {
        Fact::Absent => Value::u32(0),
        Fact::Known(device) => Value::u32(device.index),
        Fact::Unknown => unknown("the interface is not known"),
    }
}

/// `NFT_META_*` (include/uapi/linux/netfilter/nf_tables.h, v6.18).
pub(super) mod meta_key {
    pub(crate) const PRIORITY: u32 = 2;
    pub(crate) const MARK: u32 = 3;
    pub(crate) const IIFNAME: u32 = 6;
    pub(crate) const OIFNAME: u32 = 7;
    pub(crate) const SECMARK: u32 = 14;
    pub(crate) const L4PROTO: u32 = 16;
    pub(crate) const PKTTYPE: u32 = 19;
}

/// `nft_meta_get_eval()` (net/netfilter/nft_meta.c, v6.18).
fn meta(packet: &Packet<'_>, world: &World, key: u32) -> Value {
    let (iif, oif) = (packet.iif, packet.oif);
    match key {
        // At egress the packet starts with its link-layer header.
        0 if packet.pf == NETDEV && packet.hook == 1 => {
            Value::u32(packet.len.saturating_add(packet.l2_len as u32))
        }
        0 => Value::u32(packet.len),
        1 => Value::be16(packet.protocol),
        meta_key::PRIORITY => fact(packet.priority, "the priority is not known", Value::u32),
        meta_key::MARK => fact(packet.mark, "the mark is not known", Value::u32),
        4 => device_index(iif),
        5 => device_index(oif),
        meta_key::IIFNAME => device_name(iif),
        meta_key::OIFNAME => device_name(oif),
        8 | 36 => link_fact(iif, world, |link| Value::u16(link.kind)),
        9 => link_fact(oif, world, |link| Value::u16(link.kind)),
        10 => fact(packet.uid, "the socket's owner is not known", Value::u32),
        11 => fact(packet.gid, "the socket's owner is not known", Value::u32),
        meta_key::SECMARK => fact(packet.secmark, "the security mark is not known", Value::u32),
        15 => Value::u8(packet.family()),
        meta_key::L4PROTO => match packet.transport() {
            Ok(transport) => Value::u8(transport.proto),
            Err(gap) => gap.into(),
        },
        17 => device_bridge(iif, world),
        18 => device_bridge(oif, world),
        meta_key::PKTTYPE => pkttype(packet),
        21 => link_fact(iif, world, |link| Value::u32(link.group)),
        22 => link_fact(oif, world, |link| Value::u32(link.group)),
        23 => fact(packet.cgroup, "the control group is not known", Value::u32),
        24 => Value::Unknown(Reason::stateful("a random number")),
        26 => link_fact(iif, world, kind),
        27 => link_fact(oif, world, kind),
        _ => Value::Unknown(Reason::new(
            DoubtKind::Missing,
            format!("meta key {key} is not known"),
        )),
    }
}

fn kind(link: &super::world::Link) -> Value {
    match &link.driver {
        None => Value::Break,
        Some(kind) => name(kind),
    }
}

fn link_fact(
    device: Fact<Device<'_>>,
    world: &World,
    value: impl FnOnce(&super::world::Link) -> Value,
) -> Value {
    match device {
        Fact::Absent => Value::Break,
        Fact::Known(device) => match world.link(device.index) {
            Ok(link) => value(link),
            Err(reason) => unknown(reason),
        },
        Fact::Unknown => unknown("the interface is not known"),
    }
}

/// The bridge that a port belongs to (`nft_meta_bridge_get_eval()`).
fn device_bridge(device: Fact<Device<'_>>, world: &World) -> Value {
    link_fact(device, world, |link| match link.master {
        Some(master) => match world.link(master) {
            Ok(bridge) => name(&bridge.name),
            Err(reason) => unknown(reason),
        },
        None => Value::Break,
    })
}

fn pkttype(packet: &Packet<'_>) -> Value {
    const BROADCAST: u8 = 1;
    const MULTICAST: u8 = 2;
    /// What the loopback device's packets to groups have (`PACKET_LOOPBACK`).
    const LOOPBACK: u8 = 5;
    match packet.pkttype {
        Fact::Known(LOOPBACK) => {}
        other => return fact(other, "the packet type is not known", Value::u8),
    }
    match (packet.family(), packet.protocol) {
        (IPV4, _) | (NETDEV, ETH_IPV4) => match packet.network(16, 1) {
            Ok(first) if first[0] & 0xf0 == 0xe0 => Value::u8(MULTICAST),
            Ok(_) => Value::u8(BROADCAST),
            Err(gap) => gap.into(),
        },
        (IPV6, _) | (NETDEV, ETH_IPV6) => Value::u8(MULTICAST),
        _ => Value::Break,
    }
}

/// `NFT_CT_*`.
pub(super) mod ct_key {
    pub(crate) const STATE: u32 = 0;
    pub(crate) const MARK: u32 = 3;
}

/// `NF_CT_STATE_INVALID_BIT`.
pub(super) const STATE_INVALID: u32 = 1;
/// `NF_CT_STATE_UNTRACKED_BIT`.
pub(super) const STATE_UNTRACKED: u32 = 1 << 6;

/// `nft_ct_get_eval()` (net/netfilter/nft_ct.c, v6.18).
fn ct(packet: &Packet<'_>, key: u32, direction: Option<u8>) -> Value {
    let connection = match (packet.tracking, key) {
        (Tracking::Connection(connection), _) => connection,
        (Tracking::Unknown, _) => return unknown("the connection is not known"),
        (Tracking::None, ct_key::STATE) => return Value::u32(STATE_INVALID),
        (Tracking::Untracked, ct_key::STATE) => return Value::u32(STATE_UNTRACKED),
        (Tracking::None | Tracking::Untracked, _) => return Value::Break,
    };
    let tuple = match direction {
        Some(1) => &connection.reply,
        _ => &connection.original,
    };
    let v4 = connection.original.l3proto == IPV4;
    let address = |address: &[u8; 16]| Value::bytes(if v4 { &address[..4] } else { address });
    match key {
        ct_key::STATE => match connection.info {
            // `NF_CT_STATE_BIT()`: one bit above `ctinfo % IP_CT_IS_REPLY`.
            7 => Value::u32(STATE_UNTRACKED),
            info => Value::u32(1 << (u32::from(info % 3) + 1)),
        },
        1 => Value::u8(connection.is_reply().into()),
        2 => Value::u32(connection.status),
        ct_key::MARK => Value::u32(connection.mark),
        7 => Value::u8(connection.original.l3proto),
        8 => address(&tuple.src),
        9 => address(&tuple.dst),
        10 => Value::u8(connection.original.l4proto),
        11 => Value::bytes(&[tuple.sport[0], tuple.sport[1], 0, 0]),
        12 => Value::bytes(&[tuple.dport[0], tuple.dport[1], 0, 0]),
        17 if direction.is_none() || connection.zone == 0 => Value::u16(connection.zone),
        19..=22 if (key <= 20) != v4 => Value::Break,
        19 | 21 => address(&tuple.src),
        20 | 22 => address(&tuple.dst),
        6 => unknown("the connection's helper is not known"),
        14..=16 => Value::Unknown(Reason::stateful("what the connection has transferred")),
        5 => Value::Unknown(Reason::stateful("when the connection expires")),
        _ => Value::Unknown(Reason::new(
            DoubtKind::Missing,
            format!("ct key {key} is not known"),
        )),
    }
}

/// Before connection tracking there is no connection, unless the packet comes over the loopback device and has one from its way out. Whether a
/// packet that is untracked later was so already is a matter of the way there: see [`before_untracked`].
fn ct_early(packet: &Packet<'_>, key: u32, direction: Option<u8>) -> Value {
    match packet.iif {
        Fact::Known(device) if device.name != "lo" && !device.name.is_empty() => {}
        Fact::Absent => {}
        Fact::Known(_) | Fact::Unknown if packet.tracking == Tracking::None => {}
        Fact::Known(_) | Fact::Unknown => return ct(packet, key, direction),
    }
    match packet.tracking {
        Tracking::Untracked => ct(packet, key, direction),
        _ => before_untracked(key),
    }
}

/// What is read of the connection of a packet before it is untracked: only one that has none can be (`nft_notrack_eval()`,
/// net/netfilter/nft_ct.c, v6.18).
pub(super) fn before_untracked(key: u32) -> Value {
    match key {
        ct_key::STATE => Value::u32(STATE_INVALID),
        _ => Value::Break,
    }
}

/// Whether connection tracking leaves a packet untracked that it comes by: neighbour discovery and the like
/// (`nf_conntrack_icmpv6_error()`, net/netfilter/nf_conntrack_proto_icmpv6.c, v6.18).
pub(super) fn untracks(protocol: u8, kind: u8) -> bool {
    protocol == headers::ICMPV6 && matches!(kind, 130..=136 | 143)
}

/// The packet as it was before this hook translated its addresses: destinations at prerouting and output, sources at input and
/// postrouting. What a connection was found by is the tuple of its direction.
fn before_nat(packet: &Packet<'_>, base: PayloadBase, offset: u32, len: u32) -> Value {
    let now = payload(packet, base, offset, len);
    let Tracking::Connection(connection) = packet.tracking else {
        return match packet.tracking {
            Tracking::Unknown => unknown("the connection is not known"),
            _ => now,
        };
    };
    let own = match connection.is_reply() {
        false => connection.original,
        true => connection.reply,
    };
    let destination = matches!(packet.hook, 0 | 3);
    if matches!(connection.info, 1 | 4) {
        let icmp = matches!(packet.transport(), Ok(t) if matches!(t.proto, 1 | 58));
        if icmp && !error_changes(packet, &connection, base, offset, len, destination) {
            return now;
        }
        return unknown("the address before translation is not known");
    }
    let Value::Bytes(bytes) = now else {
        return now;
    };
    patch(base, offset, bytes, &own, destination)
}

/// Whether translating an ICMP error about a connection can change these bytes: outside, its address and checksums
/// (`nf_nat_icmp_reply_translation()`, net/netfilter/nf_nat_proto.c, v6.18); inside, what it quotes.
fn error_changes(
    packet: &Packet<'_>,
    connection: &Connection,
    base: PayloadBase,
    offset: u32,
    len: u32,
    destination: bool,
) -> bool {
    let status = match destination != connection.is_reply() {
        true => Connection::DST_NAT,
        false => Connection::SRC_NAT,
    };
    if connection.status & status == 0 {
        return false;
    }
    let end = offset + len;
    let overlaps = |from: u32, to: u32| offset < to && from < end;
    match (base, packet.family()) {
        (PayloadBase::Network, IPV6) if destination => overlaps(24, 40),
        (PayloadBase::Network, IPV6) => overlaps(8, 24),
        (PayloadBase::Network, _) if destination => overlaps(10, 12) || overlaps(16, 20),
        (PayloadBase::Network, _) => overlaps(10, 12) || overlaps(12, 16),
        (PayloadBase::Transport, _) => overlaps(2, 4) || end > 8,
        _ => true,
    }
}

/// Puts a tuple's destination, or its source, into bytes of the packet.
fn patch(base: PayloadBase, offset: u32, bytes: Bytes, own: &Tuple, destination: bool) -> Value {
    let v4 = own.l3proto == IPV4;
    let size = if v4 { 4 } else { 16 };
    let network = if v4 { (12, 16) } else { (8, 24) };
    let ports = matches!(own.l4proto, TCP | UDP | headers::DCCP | headers::SCTP | 136);
    let (start, part): (u32, &[u8]) = match (base, destination) {
        (PayloadBase::Network, false) => (network.0, &own.src[..size]),
        (PayloadBase::Network, true) => (network.1, &own.dst[..size]),
        // The port fields of a later fragment do not exist; `payload()` has said so already.
        (PayloadBase::Transport, false) if ports => (0, &own.sport),
        (PayloadBase::Transport, true) if ports => (2, &own.dport),
        (PayloadBase::Transport, _) => (0, &[]),
        _ => return Value::Bytes(bytes),
    };
    let mut patched = bytes.as_slice().to_vec();
    let checksum = match (base, own.l4proto) {
        (PayloadBase::Network, _) if v4 => 10..12,
        (PayloadBase::Network, _) => 0..0,
        (_, TCP) => 16..18,
        (_, UDP) => 6..8,
        _ => 0..4,
    };
    for (at, byte) in (offset..).zip(&mut patched) {
        if checksum.contains(&at) {
            return unknown("the checksum before translation is not known");
        }
        if let Some(original) = at
            .checked_sub(start)
            .and_then(|index| part.get(index as usize))
        {
            *byte = *original;
        }
    }
    Value::bytes(&patched)
}

/// `nf_nat_inet_fn()` (net/netfilter/nf_nat_core.c, v6.18): the chains are asked until the connection has been bound once.
fn nat_walk(packet: &Packet<'_>, source: bool) -> Value {
    let connection = match packet.tracking {
        Tracking::Connection(connection) => connection,
        Tracking::None | Tracking::Untracked => return Value::u8(0),
        Tracking::Unknown => return unknown("the connection is not known"),
    };
    let done = if source {
        Connection::SRC_NAT_DONE
    } else {
        Connection::DST_NAT_DONE
    };
    match connection.info {
        1 | 4 if matches!(packet.transport(), Ok(t) if matches!(t.proto, 1 | 58)) => Value::u8(0),
        1 | 2 | 4 if connection.status & done == 0 => Value::u8(1),
        // Bound, and not confirmed: by this packet, at this hook or before.
        1 | 2 | 4
            if connection.status & Connection::CONFIRMED == 0 && packet.moment == Moment::Drop =>
        {
            Value::u8(1)
        }
        _ => Value::u8(0),
    }
}
