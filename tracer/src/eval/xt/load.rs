//! Fields that only xtables' matches ask for.

use super::super::{
    field::{Reason, Value},
    packet::{Device, Fact, Packet},
    world::World,
};

const NOT_CAPTURED: Reason = Reason::missing("the bytes were not captured");
const ICMP: u8 = 1;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
const DCCP: u8 = 33;
const ICMPV6: u8 = 58;
pub(super) const SCTP: u8 = 132;
pub(super) const UDPLITE: u8 = 136;

/// Fields that only xtables' matches ask for, beside those of [`super::super::field::Field`].
///
/// Some begin with a status: 0, and what is asked for follows; else why it is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum XtField {
    /// Name of the bridge port that the packet came in by, 16 bytes.
    PhysinName,
    /// Name of the bridge port that it goes out by, 16 bytes.
    PhysoutName,
    /// The first `need` bytes of the transport header, at most 63, after a status: `HERE`, `FRAGMENT`, `FRAGMENT_ONE`, `SHORT`,
    /// `BROKEN`.
    Transport {
        /// How many bytes the header must have.
        need: u8,
    },
    /// The options of the TCP header after a status: `HERE`, `SHORT`, `MALFORMED`, ... In a later fragment, what stands there.
    TcpOptions,
    /// 20 bytes where the TCP header would be, in a later fragment, too, after a status.
    AnyTransport,
    /// IPv6: the status `HERE` and the protocol behind the extension headers (`ipv6_find_hdr()`), or `BROKEN`.
    Protocol6,
    /// Whether IPv4's fragment offset is not 0: one byte, 1 if so.
    IsFragment,
    /// IPv6: the status (`HERE`, `MISSES`, `BROKEN`), and the offset in two bytes of the extension header of this kind, with its captured bytes
    /// (and what follows it) from this one on, at most 61.
    Extension {
        /// Its number.
        kind: u8,
        /// Counted from the header.
        from: u16,
    },
    /// IPv6: the status (`HERE`, `SHORT`, `STUB`, `ESP_STUB`) and a bit for each kind of header that the packet has (`MASK_*` of
    /// ip6t_ipv6header.h); one that is too long is taken to be the last.
    Extensions,
    /// Whether connection tracking can make a tuple of the packet (`nf_ct_get_tuplepr()`): one byte, 1 if so.
    Tuple,
    /// Offset of the transport header from the network header, four bytes in network order.
    TransportOffset,
    /// Bytes from the network header to the packet's end, four bytes in network order.
    Length,
    /// Those of the 64 bytes number so much from the network header that the packet has and that were captured.
    Chunk(u16),
    /// The Ethernet header's source, if there is such a header.
    SourceMac,
    /// Its destination.
    DestinationMac,
    /// What ipsets take as protocol and port (`ip_set_get_ip4_port()`): the status, the protocol, the port in network order.
    SetPort {
        /// The source's rather than the destination's.
        source: bool,
    },
}

/// Status: what is asked for follows.
pub(super) const HERE: u8 = 0;
/// Status: a fragment other than the first one.
pub(super) const FRAGMENT: u8 = 1;
/// Status: a fragment that begins eight bytes into the packet.
pub(super) const FRAGMENT_ONE: u8 = 2;
/// Status: the packet ends before.
pub(super) const SHORT: u8 = 3;
/// Status: the header says that it is shorter than it can be.
pub(super) const MALFORMED: u8 = 4;
/// Status: the chain of IPv6 extension headers is broken.
pub(super) const BROKEN: u8 = 5;
/// Status: there is no such header.
pub(super) const MISSES: u8 = 6;

/// Status: the packet ends in the first two bytes of a header.
pub(super) const STUB: u8 = 7;
/// The same of an ESP header.
pub(super) const ESP_STUB: u8 = 8;

/// Why bytes are not there.
enum Lack {
    /// The packet ends before them.
    Short,
    /// They were not captured.
    Missing,
}

/// The packet from its network header.
struct Net<'p> {
    data: &'p [u8],
    len: usize,
    v6: bool,
}

/// Where the transport header is.
struct Place {
    offset: usize,
    /// It is behind an authentication header, where nf_tables does not look for it.
    hidden: bool,
    /// Fragment offset: in units of 8 bytes (IPv4), in bytes (IPv6).
    fragment: u16,
    protocol: u8,
}

impl<'p> Net<'p> {
    fn of(packet: &'p Packet<'_>) -> Self {
        let data = packet.bytes.get(packet.l2_len..).unwrap_or_default();
        let len = packet.len as usize;
        Self {
            data: data.get(..len).unwrap_or(data),
            len,
            v6: match packet.pf {
                10 => true,
                2 => false,
                _ => packet.protocol == 0x86dd,
            },
        }
    }

    fn get(&self, at: usize, count: usize) -> Result<&'p [u8], Lack> {
        let end = at.saturating_add(count);
        if end > self.len {
            return Err(Lack::Short);
        }
        self.data.get(at..end).ok_or(Lack::Missing)
    }

    fn byte(&self, at: usize) -> Result<u8, Lack> {
        self.get(at, 1).map(|b| b.first().copied().unwrap_or(0))
    }

    fn be16(&self, at: usize) -> Result<u16, Lack> {
        let bytes = self.get(at, 2)?;
        Ok(bytes.first_chunk().map_or(0, |b| u16::from_be_bytes(*b)))
    }

    /// `Err(None)`: the chain of extension headers is broken.
    fn transport(&self) -> Result<Place, Option<Lack>> {
        if self.v6 {
            return self.find_header();
        }
        let place = || -> Result<Place, Lack> {
            Ok(Place {
                offset: usize::from(self.byte(0)? & 0xf) * 4,
                hidden: false,
                fragment: self.be16(6)? & 0x1fff,
                protocol: self.byte(9)?,
            })
        };
        place().map_err(Some)
    }

    /// `ipv6_find_hdr()` for no header in particular (net/ipv6/exthdrs_core.c, v6.18).
    fn find_header(&self) -> Result<Place, Option<Lack>> {
        let mut offset = 40;
        let mut hidden = false;
        let mut protocol = self.byte(6).map_err(Some)?;
        loop {
            if !is_extension(protocol) || protocol == NONE {
                return Ok(Place {
                    offset,
                    hidden,
                    fragment: 0,
                    protocol,
                });
            }
            let next = self.byte(offset).map_err(broken)?;
            let length = usize::from(self.byte(offset + 1).map_err(broken)?);
            match protocol {
                FRAGMENT_HEADER => {
                    let fragment = self.be16(offset + 2).map_err(broken)? & !7;
                    if fragment != 0 {
                        if is_extension(next) && next != NONE {
                            return Err(None);
                        }
                        // The offset is left as it was: nobody reads a header of such a packet.
                        return Ok(Place {
                            offset: 0,
                            hidden,
                            fragment,
                            protocol: next,
                        });
                    }
                    offset += 8;
                }
                AUTHENTICATION => {
                    hidden = true;
                    offset += (length + 2) * 4;
                }
                ROUTING => {
                    self.get(offset, 4).map_err(broken)?;
                    offset += (length + 1) * 8;
                }
                _ => offset += (length + 1) * 8,
            }
            protocol = next;
        }
    }

    /// `ipv6_find_hdr()` for an extension header of this kind: its offset, if there is one. `Err(None)`: the chain of headers is broken before it.
    fn find_extension(&self, kind: u8) -> Result<Option<usize>, Option<Lack>> {
        let mut offset = 40;
        let mut protocol = self.byte(6).map_err(broken)?;
        loop {
            if !is_extension(protocol) || protocol == NONE {
                return Ok(None);
            }
            let next = self.byte(offset).map_err(broken)?;
            let length = usize::from(self.byte(offset + 1).map_err(broken)?);
            let step = match protocol {
                ROUTING => {
                    self.get(offset, 4).map_err(broken)?;
                    (length + 1) * 8
                }
                FRAGMENT_HEADER => {
                    let fragment = self.be16(offset + 2).map_err(broken)? & !7;
                    if fragment != 0 && protocol != kind {
                        return Ok(None);
                    }
                    8
                }
                AUTHENTICATION => (length + 2) * 4,
                _ => (length + 1) * 8,
            };
            if protocol == kind {
                return Ok(Some(offset));
            }
            protocol = next;
            offset += step;
        }
    }

    /// The extension headers that the packet has, as `ipv6header_mt6()` counts them (net/ipv6/netfilter/ip6t_ipv6header.c, v6.18): what follows a
    /// later fragment's header, too. With the status: `SHORT` where one of them ends behind the packet.
    fn extensions(&self) -> Result<[u8; 2], Lack> {
        /// Something that is no extension header is last.
        const OTHER: u8 = 1;
        const NO_NEXT: u8 = 2;
        const ESP_BIT: u8 = 4;
        let mut has = 0;
        let mut offset = 40;
        let mut protocol = self.byte(6)?;
        loop {
            if protocol == NONE {
                return Ok([HERE, has | NO_NEXT]);
            }
            if protocol != ESP && !is_extension(protocol) {
                return Ok([HERE, has | OTHER]);
            }
            if offset + 2 > self.len {
                return Ok(match protocol {
                    ESP => [ESP_STUB, has | ESP_BIT],
                    _ => [STUB, has],
                });
            }
            if protocol == ESP {
                return Ok([HERE, has | ESP_BIT]);
            }
            let next = self.byte(offset)?;
            let length = usize::from(self.byte(offset + 1)?);
            let (bit, step) = match protocol {
                HOP_BY_HOP => (0x80, (length + 1) * 8),
                DESTINATION => (0x40, (length + 1) * 8),
                ROUTING => (0x20, (length + 1) * 8),
                FRAGMENT_HEADER => (0x10, 8),
                _ => (8, (length + 2) * 4),
            };
            has |= bit;
            offset += step;
            if offset > self.len {
                // That there is none, or ESP, is not noted then.
                let other = !matches!(next, NONE | ESP);
                return Ok([SHORT, if other { has | OTHER } else { has }]);
            }
            protocol = next;
        }
    }

    /// `ipv6_skip_exthdr()`; `Ok(None)`: nothing that has ports.
    fn skip_headers(&self) -> Result<Option<Place>, Lack> {
        let short = |lack| match lack {
            Lack::Short => Ok(None),
            Lack::Missing => Err(Lack::Missing),
        };
        let mut offset = 40;
        let mut hidden = false;
        let mut protocol = self.byte(6)?;
        while is_extension(protocol) {
            if protocol == NONE {
                return Ok(None);
            }
            let header = match self.get(offset, 2) {
                Ok(header) => header,
                Err(lack) => return short(lack),
            };
            let &[next, length] = header else {
                return Ok(None);
            };
            let length = usize::from(length);
            match protocol {
                FRAGMENT_HEADER => {
                    match self.be16(offset + 2) {
                        Ok(fragment) if fragment & !7 != 0 => return Ok(None),
                        Ok(_) => {}
                        Err(lack) => return short(lack),
                    }
                    offset += 8;
                }
                AUTHENTICATION => {
                    hidden = true;
                    offset += (length + 2) * 4;
                }
                _ => offset += (length + 1) * 8,
            }
            protocol = next;
        }
        Ok(Some(Place {
            offset,
            hidden,
            fragment: 0,
            protocol,
        }))
    }

    /// `ip_set_get_ip4_port()`, `ip_set_get_ip6_port()` (net/netfilter/ipset/ip_set_getport.c, v6.18).
    fn set_port(&self, source: bool) -> Result<Option<(u8, u16)>, Lack> {
        let place = if self.v6 {
            self.skip_headers()?
        } else {
            match self.transport() {
                Ok(place) => Some(place),
                Err(Some(lack)) => return Err(lack),
                Err(None) => None,
            }
        };
        let Some(place) = place.filter(|place| self.v6 || place.protocol != 0) else {
            return Ok(None);
        };
        let protocol = place.protocol;
        if place.fragment != 0 {
            let ported = matches!(protocol, TCP | SCTP | UDP | UDPLITE | ICMP);
            return Ok((!ported).then_some((protocol, 0)));
        }
        let need = match protocol {
            TCP => 20,
            SCTP => 12,
            UDP | UDPLITE | ICMP | ICMPV6 => 8,
            _ => return Ok(Some((protocol, 0))),
        };
        if place.hidden {
            return Err(Lack::Missing);
        }
        match self.get(place.offset, need) {
            Err(Lack::Short) => return Ok(None),
            Err(Lack::Missing) => {
                // The ports are in the first four bytes; that the rest is there is known from the length.
                self.get(place.offset, 4)?;
            }
            Ok(_) => {}
        }
        let second = !source && !matches!(protocol, ICMP | ICMPV6);
        let port = self.be16(place.offset + if second { 2 } else { 0 })?;
        Ok(Some((protocol, port)))
    }
}

pub(super) const HOP_BY_HOP: u8 = 0;
pub(super) const ROUTING: u8 = 43;
pub(super) const FRAGMENT_HEADER: u8 = 44;
const ESP: u8 = 50;
pub(super) const AUTHENTICATION: u8 = 51;
const NONE: u8 = 59;
pub(super) const DESTINATION: u8 = 60;

/// The chain of extension headers ends in the middle of one, where the packet does.
fn broken(lack: Lack) -> Option<Lack> {
    match lack {
        Lack::Short => None,
        Lack::Missing => Some(Lack::Missing),
    }
}

/// `ipv6_ext_hdr()`.
fn is_extension(protocol: u8) -> bool {
    matches!(
        protocol,
        HOP_BY_HOP | ROUTING | FRAGMENT_HEADER | AUTHENTICATION | NONE | DESTINATION
    )
}

fn status(status: u8) -> Value {
    Value::bytes(&[status])
}

fn here(bytes: &[u8]) -> Value {
    let mut all = Vec::with_capacity(bytes.len() + 1);
    all.push(HERE);
    all.extend_from_slice(bytes);
    Value::bytes(&all)
}

/// The value of such a field.
pub(in crate::eval) fn load(field: XtField, packet: &Packet<'_>, world: &World) -> Value {
    let net = Net::of(packet);
    match field {
        XtField::PhysinName => device(packet.physin),
        XtField::PhysoutName => device(packet.physout),
        XtField::Transport { need } => transport(&net, usize::from(need)),
        XtField::TcpOptions => tcp_options(&net),
        XtField::AnyTransport => any_transport(&net),
        XtField::Protocol6 => match net.find_header() {
            Ok(place) => here(&[place.protocol]),
            Err(None | Some(Lack::Short)) => status(BROKEN),
            Err(Some(Lack::Missing)) => Value::Unknown(NOT_CAPTURED),
        },
        XtField::Extension { kind, from } => extension(&net, kind, from),
        XtField::Extensions => match net.extensions() {
            Ok(found) => Value::bytes(&found),
            // The packet has not even an IPv6 header.
            Err(Lack::Short) => status(BROKEN),
            Err(Lack::Missing) => Value::Unknown(NOT_CAPTURED),
        },
        XtField::IsFragment => match net.be16(6) {
            Ok(word) => Value::bytes(&[u8::from(word & 0x1fff != 0)]),
            Err(Lack::Short) => Value::Break,
            Err(Lack::Missing) => Value::Unknown(NOT_CAPTURED),
        },
        XtField::Tuple => tuple(&net),
        XtField::TransportOffset => match net.transport() {
            Ok(place) => Value::bytes(&(place.offset as u32).to_be_bytes()),
            Err(Some(Lack::Missing)) => Value::Unknown(NOT_CAPTURED),
            Err(_) => Value::Break,
        },
        XtField::Length => Value::bytes(&packet.len.to_be_bytes()),
        XtField::Chunk(number) => {
            let from = usize::from(number) * 64;
            let rest = net.data.get(from..).unwrap_or_default();
            Value::bytes(rest.get(..64).unwrap_or(rest))
        }
        XtField::SourceMac => mac(packet, world, 6),
        XtField::DestinationMac => mac(packet, world, 0),
        XtField::SetPort { source } => match net.set_port(source) {
            Ok(Some((protocol, port))) => {
                let [high, low] = port.to_be_bytes();
                here(&[protocol, high, low])
            }
            Ok(None) | Err(Lack::Short) => status(SHORT),
            Err(Lack::Missing) => Value::Unknown(NOT_CAPTURED),
        },
    }
}

fn device(device: Fact<Device<'_>>) -> Value {
    match device {
        Fact::Known(Device { name: "", .. }) | Fact::Unknown => {
            Value::Unknown(Reason::missing("the bridge port is not known"))
        }
        Fact::Known(Device { name, .. }) => {
            let mut padded = [0; 16];
            let bytes = name.as_bytes().get(..15).unwrap_or(name.as_bytes());
            if let Some(start) = padded.get_mut(..bytes.len()) {
                start.copy_from_slice(bytes);
            }
            Value::bytes(&padded)
        }
        Fact::Absent => Value::Break,
    }
}

/// An address of the Ethernet header. `skb->dev` must be an Ethernet device and the header be there, which it is not where the packet
/// was made on this machine.
fn mac(packet: &Packet<'_>, world: &World, at: usize) -> Value {
    /// `ARPHRD_ETHER`.
    const ETHERNET: u16 = 1;
    if let Fact::Known(device) = packet.iif {
        let kind = world.link(device.index).map(|link| link.kind);
        if kind.is_ok_and(|kind| kind != ETHERNET) || device.name == "lo" {
            return Value::Break;
        }
    }
    let address = packet.bytes.get(at..at + 6);
    match address.filter(|_| packet.l2_len >= 14) {
        Some(address) => Value::bytes(address),
        None if packet.iif == Fact::Absent => Value::Break,
        None => Value::Unknown(NOT_CAPTURED),
    }
}

fn transport(net: &Net<'_>, need: usize) -> Value {
    let place = match net.transport() {
        Ok(place) => place,
        Err(None | Some(Lack::Short)) => return status(BROKEN),
        Err(Some(Lack::Missing)) => return Value::Unknown(NOT_CAPTURED),
    };
    match place.fragment {
        0 if place.hidden => {
            return Value::Unknown(Reason::missing("it is behind an authentication header"));
        }
        0 => {}
        1 => return status(FRAGMENT_ONE),
        _ => return status(FRAGMENT),
    }
    match net.get(place.offset, need) {
        Ok(bytes) => here(bytes),
        Err(Lack::Short) => status(SHORT),
        Err(Lack::Missing) => Value::Unknown(NOT_CAPTURED),
    }
}

/// `nf_ct_get_tuplepr()` (net/netfilter/nf_conntrack_core.c, v6.18), but for GRE's version 1, which it looks into.
fn tuple(net: &Net<'_>) -> Value {
    let place = match net.transport() {
        Ok(place) => place,
        Err(None | Some(Lack::Short)) => return Value::u8(0),
        Err(Some(Lack::Missing)) => return Value::Unknown(NOT_CAPTURED),
    };
    if place.fragment != 0 || (net.v6 && place.protocol == NONE) || place.offset > net.len {
        return Value::u8(0);
    }
    let needed = match place.protocol {
        ICMP | ICMPV6 => 8,
        TCP | UDP | DCCP | SCTP | UDPLITE => 4,
        _ => 0,
    };
    let room = place.offset.saturating_add(needed) <= net.len;
    Value::u8(room.into())
}

fn extension(net: &Net<'_>, kind: u8, from: u16) -> Value {
    let offset = match net.find_extension(kind) {
        Ok(Some(offset)) => offset,
        Ok(None) => return status(MISSES),
        Err(None | Some(Lack::Short)) => return status(BROKEN),
        Err(Some(Lack::Missing)) => return Value::Unknown(NOT_CAPTURED),
    };
    let Ok(short) = u16::try_from(offset) else {
        return Value::Unknown(NOT_CAPTURED);
    };
    let rest = net.data.get(offset + usize::from(from)..);
    let [high, low] = short.to_be_bytes();
    let mut all = vec![HERE, high, low];
    all.extend(rest.unwrap_or_default().iter().take(61));
    Value::bytes(&all)
}

fn tcp_options(net: &Net<'_>) -> Value {
    let place = match net.transport() {
        Ok(place) => place,
        Err(None | Some(Lack::Short)) => return status(BROKEN),
        Err(Some(Lack::Missing)) => return Value::Unknown(NOT_CAPTURED),
    };
    if place.offset.saturating_add(20) > net.len {
        return status(SHORT);
    }
    let length = match net.byte(place.offset + 12) {
        Ok(byte) => usize::from(byte >> 4) * 4,
        Err(_) => return Value::Unknown(NOT_CAPTURED),
    };
    let Some(length) = length.checked_sub(20) else {
        return status(MALFORMED);
    };
    match net.get(place.offset + 20, length) {
        Ok(options) => here(options),
        Err(Lack::Short) => status(SHORT),
        Err(Lack::Missing) => Value::Unknown(NOT_CAPTURED),
    }
}

/// What matches read that do not look whether the packet is a fragment: IPv6 leaves the offset at 0 then.
fn any_transport(net: &Net<'_>) -> Value {
    let place = match net.transport() {
        Ok(place) => place,
        Err(None | Some(Lack::Short)) => return status(BROKEN),
        Err(Some(Lack::Missing)) => return Value::Unknown(NOT_CAPTURED),
    };
    match net.get(place.offset, 20) {
        Ok(bytes) => here(bytes),
        Err(Lack::Short) => status(SHORT),
        Err(Lack::Missing) => Value::Unknown(NOT_CAPTURED),
    }
}
