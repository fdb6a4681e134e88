//! Matches on extension headers of IPv6 (net/ipv6/netfilter/ip6t_{hbh,frag,rt,ah,ipv6header}.c, v6.18).
//!
//! They find their header with `ipv6_find_hdr()`, and drop the packet where the chain of headers ends in the middle of one. A header that says
//! that it is longer than the rest of the packet is a miss in some stable kernels and a drop in others: see [`Overlong`].
//!
//! [`Overlong`]: super::super::overlong::Overlong

use super::{
    super::{
        field::Field,
        outcome::Words,
        overlong::Reaction,
        read::{Fields, Reader},
    },
    Answer, XtField,
    answer::{self, Test, cond_span, missing, not, words},
    load::{
        AUTHENTICATION, DESTINATION, ESP_STUB, FRAGMENT_HEADER, HERE, HOP_BY_HOP, MISSES, ROUTING,
        SHORT, STUB,
    },
    transport::packet_length,
};
use crate::xtables::{
    info::{Cond, Span},
    matches::{
        Match,
        ipv6::{Ah6, Frag, Ipv6Header, Options, Rt},
    },
};

/// A match on an extension header.
#[derive(Debug, Clone)]
pub(super) enum Extension {
    HopByHop(Options),
    Destination(Options),
    Fragment(Frag),
    Routing(Rt),
    Authentication(Ah6),
    Present(Ipv6Header),
}

/// An extension header, and what was captured of it and behind it.
struct Header {
    kind: u8,
    /// From the header's first byte to the packet's end.
    left: usize,
    bytes: Vec<u8>,
}

impl Header {
    /// `fixed`: bytes that the match reads whatever the header says of its length.
    fn read(reader: &mut Reader<'_>, kind: u8, fixed: usize) -> Result<Self, Answer> {
        let field = Field::Xt(XtField::Extension { kind, from: 0 });
        let found = answer::bytes(reader, field, Answer::Drop)?;
        let (offset, bytes) = match found.as_slice() {
            &[HERE, high, low, ref bytes @ ..] => (u16::from_be_bytes([high, low]), bytes.to_vec()),
            [MISSES] => return Err(Answer::Miss),
            _ => return Err(Answer::Drop),
        };
        let left = (packet_length(reader)? as usize).saturating_sub(usize::from(offset));
        if left < fixed {
            return Err(Answer::Drop);
        }
        let header = Self { kind, left, bytes };
        if header.bytes.len() < fixed {
            return Err(not_captured());
        }
        Ok(header)
    }

    /// The header to the end that it tells itself, `length` bytes of it.
    fn whole(self, reader: &mut Reader<'_>, length: usize) -> Result<Vec<u8>, Answer> {
        let (kind, mut bytes) = (self.kind, self.bytes);
        while bytes.len() < length {
            let from = u16::try_from(bytes.len()).map_err(|_| not_captured())?;
            let field = Field::Xt(XtField::Extension { kind, from });
            let found = answer::bytes(reader, field, Answer::Drop)?;
            let more = found.as_slice().get(3..).unwrap_or_default();
            if more.is_empty() {
                return Err(not_captured());
            }
            bytes.extend_from_slice(more);
        }
        bytes.truncate(length);
        Ok(bytes)
    }

    fn byte(&self, at: usize) -> u8 {
        self.bytes.get(at).copied().unwrap_or(0)
    }

    fn be16(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.byte(at), self.byte(at + 1)])
    }

    fn be32(&self, at: usize) -> u32 {
        u32::from(self.be16(at)) << 16 | u32::from(self.be16(at + 2))
    }

    /// `ipv6_optlen()`.
    fn length(&self) -> usize {
        (usize::from(self.byte(1)) + 1) * 8
    }
}

fn not_captured() -> Answer {
    missing("the extension header was not captured")
}

/// What the kernel does where there is no room; `Ok`: it overlooks that.
fn no_room(reaction: Option<Reaction>) -> Result<(), Answer> {
    match reaction {
        Some(Reaction::Overlooks) => Ok(()),
        other => Err(refused(other)),
    }
}

/// The same, where no kernel is known to overlook it.
fn refused(reaction: Option<Reaction>) -> Answer {
    match reaction {
        Some(Reaction::Misses) => Answer::Miss,
        Some(Reaction::Drops) => Answer::Drop,
        Some(Reaction::Overlooks) | None => missing(
            "what kernels do with an extension header that is longer than its packet differs",
        ),
    }
}

fn within(cond: &Cond<Span<u32>>, value: u32) -> bool {
    cond.want.contains(&value) != cond.inverted
}

fn equal(cond: &Cond<u32>, value: usize) -> bool {
    (cond.want as usize == value) != cond.inverted
}

impl Extension {
    /// For those matches that this module has.
    pub(super) fn new(what: &Match, fields: &mut Fields) -> Option<Self> {
        let (kind, this) = match what {
            Match::Hbh(want) => (HOP_BY_HOP, Self::HopByHop(want.clone())),
            Match::Dst(want) => (DESTINATION, Self::Destination(want.clone())),
            Match::Frag(want) => (FRAGMENT_HEADER, Self::Fragment(want.clone())),
            Match::Rt(want) => (ROUTING, Self::Routing(want.clone())),
            Match::Ah6(want) => (AUTHENTICATION, Self::Authentication(want.clone())),
            Match::Ipv6Header(want) => {
                fields.slot(Field::Xt(XtField::Extensions));
                return Some(Self::Present(want.clone()));
            }
            _ => return None,
        };
        fields.slot(Field::Xt(XtField::Extension { kind, from: 0 }));
        fields.slot(Field::Xt(XtField::Length));
        Some(this)
    }

    pub(super) fn test(&self, reader: &mut Reader<'_>) -> Test {
        match self {
            Self::HopByHop(want) => options_hold(want, HOP_BY_HOP, reader),
            Self::Destination(want) => options_hold(want, DESTINATION, reader),
            Self::Fragment(want) => {
                let header = Header::read(reader, FRAGMENT_HEADER, 8)?;
                let word = header.be16(2);
                let (offset, reserved, more) = (word & !7, word & 6, word & 1 != 0);
                let asked = |flag: u8| want.flags & flag != 0;
                Ok(within(&want.id, header.be32(4))
                    && !(asked(Frag::RESERVED) && (header.byte(1) != 0 || reserved != 0))
                    && !(asked(Frag::FIRST) && offset != 0)
                    && (!asked(Frag::MORE) || more)
                    && !(asked(Frag::LAST) && more))
            }
            Self::Routing(want) => routing_holds(want, reader),
            Self::Authentication(want) => {
                let header = Header::read(reader, AUTHENTICATION, 12)?;
                // `ipv6_authlen()`.
                let length = (usize::from(header.byte(1)) + 2) * 4;
                if length > header.left {
                    no_room(reader.overlong().authentication)?;
                }
                Ok(within(&want.spi, header.be32(4))
                    && (want.length.want == 0 || equal(&want.length, length))
                    && !(want.reserved && header.be16(2) != 0))
            }
            Self::Present(want) => {
                let has = present(reader)?;
                let (wanted, inverted) = (want.headers.want, want.headers.inverted);
                Ok(if want.soft {
                    // Turned round, none of them rather than not all.
                    has & wanted == if inverted { 0 } else { wanted }
                } else {
                    (has == wanted) != inverted
                })
            }
        }
    }

    pub(super) fn words(&self, reader: &mut Reader<'_>) -> Words {
        let (subject, kind) = match self {
            Self::HopByHop(_) => ("hbh", HOP_BY_HOP),
            Self::Destination(_) => ("dst", DESTINATION),
            Self::Fragment(_) => ("frag", FRAGMENT_HEADER),
            Self::Routing(_) => ("rt", ROUTING),
            Self::Authentication(want) => {
                let header = Header::read(reader, AUTHENTICATION, 12);
                let spi = header.map(|header| header.be32(4));
                return words("ahspi", cond_span(&want.spi), answer::found(spi));
            }
            Self::Present(want) => {
                let wanted = format!("{}{:#04x}", not(want.headers.inverted), want.headers.want);
                let found = present(reader).map(|has| format!("{has:#04x}"));
                return words("ipv6header", wanted, answer::found(found));
            }
        };
        let found =
            Header::read(reader, kind, 2).map(|header| format!("{} bytes", header.length()));
        words(subject, "", answer::found(found))
    }
}

/// The bits of the headers that the packet has.
fn present(reader: &mut Reader<'_>) -> Result<u8, Answer> {
    let found = answer::bytes(reader, Field::Xt(XtField::Extensions), Answer::Drop)?;
    let overlong = reader.overlong();
    let (reaction, has) = match found.as_slice() {
        [HERE, has] => return Ok(*has),
        [SHORT, has] => (overlong.headers, *has),
        // Overlooked, it would be read.
        [STUB, _] => return Err(refused(overlong.stub)),
        [ESP_STUB, has] => (overlong.esp_stub, *has),
        _ => return Err(Answer::Drop),
    };
    no_room(reaction).map(|()| has)
}

/// `hbh_mt6()`.
fn options_hold(want: &Options, kind: u8, reader: &mut Reader<'_>) -> Test {
    if want.not_strict {
        return Err(missing("options are compared in an unknown way"));
    }
    let header = Header::read(reader, kind, 2)?;
    let length = header.length();
    let fits = want.length.as_ref().is_none_or(|want| equal(want, length));
    let overlong = reader.overlong();
    if length > header.left {
        return Err(refused(overlong.options));
    }
    let Some(options) = &want.options else {
        return Ok(fits);
    };
    let bytes = header.whole(reader, length)?;
    let mut rest = bytes.get(2..).unwrap_or_default();
    let mut left = options.as_slice();
    while let Some((option, others)) = left.split_first() {
        let step = match rest {
            [] => return Ok(false),
            [kind, ..] if *kind != option.kind => return Ok(false),
            // A single byte of padding has no length.
            [0, ..] => 1,
            [_] => return Err(refused(overlong.option)),
            [_, length, ..] => {
                if option.length.is_some_and(|wanted| wanted != *length) {
                    return Ok(false);
                }
                usize::from(*length) + 2
            }
        };
        if step > rest.len() && !others.is_empty() {
            return Err(refused(overlong.option));
        }
        rest = rest.get(step..).unwrap_or_default();
        left = others;
    }
    Ok(fits)
}

/// `rt_mt6()`.
fn routing_holds(want: &Rt, reader: &mut Reader<'_>) -> Test {
    let header = Header::read(reader, ROUTING, 4)?;
    let length = header.length();
    if length > header.left {
        return Err(refused(reader.overlong().route));
    }
    let asked = |flag: u8| want.flags & flag != 0;
    let fits = within(&want.segments_left, u32::from(header.byte(3)))
        && (!asked(Rt::LENGTH) || equal(&want.length, length))
        && (!asked(Rt::KIND) || equal(&want.kind, usize::from(header.byte(2))));
    if !fits || !asked(Rt::RESERVED) && !asked(Rt::ADDRESSES) {
        return Ok(fits);
    }
    let bytes = header.whole(reader, length)?;
    if asked(Rt::RESERVED) && bytes.get(4..8) != Some(&[0; 4]) {
        return Ok(false);
    }
    if !asked(Rt::ADDRESSES) {
        return Ok(true);
    }
    if want.addresses.is_empty() {
        return Err(missing("a route without addresses is looked for"));
    }
    let (route, _) = bytes.get(8..).unwrap_or_default().as_chunks::<16>();
    let mut wanted = want.addresses.iter().map(std::net::Ipv6Addr::octets);
    if !asked(Rt::NOT_STRICT) {
        return Ok(wanted.eq(route.iter().copied()));
    }
    let mut next = wanted.next();
    for address in route {
        if next.as_ref() == Some(address) {
            next = wanted.next();
        }
    }
    Ok(next.is_none())
}
