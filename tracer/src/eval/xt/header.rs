//! Matches on fields of the IP and Ethernet headers (net/netfilter/xt_length.c, xt_hl.c, xt_dscp.c, xt_iprange.c, xt_mac.c, v6.18).

use super::{
    super::{
        field::Field,
        outcome::Words,
        read::{Fields, Reader, Slot},
    },
    Answer, Bounds, XtField,
    answer::{self, All, Test, cond_span, destination, missing, network, not, source, words},
    ip::{address, high},
    options::{tos, tos_field, tos_wide},
};
use crate::xtables::{
    Family,
    info::{Cond, Masked, Span},
    matches::{
        Match,
        packet::{Hops, HopsOp},
    },
};
use std::net::IpAddr;

/// A match on a field of a header.
#[derive(Debug, Clone)]
pub(super) struct Header {
    slot: Slot,
    /// The destination address, of iprange.
    second: Slot,
    family: Family,
    want: Want,
}

#[derive(Debug, Clone)]
enum Want {
    Length(Cond<Span<u16>>),
    Hops(Hops),
    Dscp(Cond<u8>),
    Tos(Cond<Masked<u8>>),
    Range {
        source: Option<Cond<Span<IpAddr>>>,
        destination: Option<Cond<Span<IpAddr>>>,
    },
    Mac(Cond<[u8; 6]>),
}

impl Header {
    /// For those matches that this module has.
    pub(super) fn new(what: &Match, family: Family, fields: &mut Fields) -> Option<Self> {
        let (field, want) = match what {
            Match::Length(want) => (
                match family {
                    Family::V4 => network(2, 2),
                    Family::V6 => network(4, 2),
                },
                Want::Length(want.bytes),
            ),
            Match::Ttl(want) => (network(8, 1), Want::Hops(want.clone())),
            Match::Hl(want) => (network(7, 1), Want::Hops(want.clone())),
            Match::Dscp(want) => (tos_field(family), Want::Dscp(want.dscp)),
            Match::Tos(want) => (tos_field(family), Want::Tos(want.tos)),
            Match::Iprange(want) => (
                source(family),
                Want::Range {
                    source: want.source,
                    destination: want.destination,
                },
            ),
            Match::Mac(want) => (Field::Xt(XtField::SourceMac), Want::Mac(want.source)),
            _ => return None,
        };
        Some(Self {
            slot: fields.slot(field),
            second: fields.slot(destination(family)),
            family,
            want,
        })
    }

    fn length(&self, reader: &mut Reader<'_>) -> Result<u32, Answer> {
        let value = answer::number(reader, self.slot, 2, &Answer::Miss)? as u32;
        match self.family {
            Family::V4 if value == 0 => Err(missing("the packet is longer than its header says")),
            Family::V4 => Ok(value),
            Family::V6 => Ok(value + 40),
        }
    }

    fn mac(&self, reader: &mut Reader<'_>) -> Result<[u8; 6], Answer> {
        let [a, b, c, d, e, f, ..] = answer::wide(reader, self.slot, &Answer::Miss)?.to_be_bytes();
        Ok([a, b, c, d, e, f])
    }

    /// See [`super::Matcher::asks`].
    pub(super) fn bounds(&self) -> Option<Bounds> {
        const BYTE: u128 = 0xff << 120;
        let tos = |tos: u8| tos_wide(self.family, tos);
        let (mask, bounds, invert) = match &self.want {
            Want::Hops(want) => {
                let value = u128::from(want.value) << 120;
                match want.op {
                    HopsOp::Eq => (BYTE, (value, value), false),
                    HopsOp::Ne => (BYTE, (value, value), true),
                    HopsOp::Lt => (BYTE, (value, BYTE), true),
                    HopsOp::Gt => (BYTE, (0, value), true),
                    HopsOp::Other(_) => return None,
                }
            }
            Want::Dscp(want) => {
                let value = tos(want.want.checked_shl(2)?);
                (tos(0xfc), (value, value), want.inverted)
            }
            Want::Tos(want) => {
                let value = tos(want.want.value);
                (tos(want.want.mask), (value, value), want.inverted)
            }
            _ => return None,
        };
        Some((self.slot, mask, bounds, invert))
    }

    pub(super) fn test(&self, reader: &mut Reader<'_>) -> Test {
        match &self.want {
            Want::Length(want) => {
                let has = self.length(reader)?;
                let (min, max) = (u32::from(want.want.min), u32::from(want.want.max));
                Ok((min..=max).contains(&has) != want.inverted)
            }
            Want::Hops(want) => {
                let has = answer::number(reader, self.slot, 1, &Answer::Miss)? as u8;
                Ok(match want.op {
                    HopsOp::Eq => has == want.value,
                    HopsOp::Ne => has != want.value,
                    HopsOp::Lt => has < want.value,
                    HopsOp::Gt => has > want.value,
                    HopsOp::Other(_) => false,
                })
            }
            Want::Dscp(want) => {
                let has = tos(reader, self.slot, self.family)?;
                Ok((has >> 2 == want.want) != want.inverted)
            }
            Want::Tos(want) => {
                let has = tos(reader, self.slot, self.family)?;
                Ok((has & want.want.mask == want.want.value) != want.inverted)
            }
            Want::Range {
                source,
                destination,
            } => {
                let mut all = All::default();
                for (cond, slot) in [(source, self.slot), (destination, self.second)] {
                    let Some(cond) = cond else { continue };
                    let test = answer::wide(reader, slot, &Answer::Miss).map(|has| {
                        let (min, max) = (high(cond.want.min), high(cond.want.max));
                        let bits = match self.family {
                            Family::V4 => has >> 96 << 96,
                            Family::V6 => has,
                        };
                        (min..=max).contains(&bits) != cond.inverted
                    });
                    all.also(test)?;
                }
                all.end()
            }
            Want::Mac(want) => Ok((self.mac(reader)? == want.want) != want.inverted),
        }
    }

    pub(super) fn words(&self, reader: &mut Reader<'_>) -> Words {
        match &self.want {
            Want::Length(want) => words(
                "length",
                cond_span(want),
                answer::found(self.length(reader)),
            ),
            Want::Hops(want) => {
                let subject = match self.family {
                    Family::V4 => "ttl",
                    Family::V6 => "hl",
                };
                let sign = match want.op {
                    HopsOp::Eq => "",
                    HopsOp::Ne => "! ",
                    HopsOp::Lt => "< ",
                    HopsOp::Gt => "> ",
                    HopsOp::Other(_) => "? ",
                };
                let has = answer::number(reader, self.slot, 1, &Answer::Miss);
                let wanted = format!("{sign}{}", want.value);
                words(subject, wanted, answer::found(has))
            }
            Want::Dscp(want) => {
                let has = tos(reader, self.slot, self.family);
                let wanted = format!("{}0x{:02x}", not(want.inverted), want.want);
                let found = answer::found(has.map(|has| format!("0x{:02x}", has >> 2)));
                words("dscp", wanted, found)
            }
            Want::Tos(want) => {
                let has = tos(reader, self.slot, self.family);
                let Masked { value, mask } = want.want;
                let wanted = format!("{}0x{value:02x}/0x{mask:02x}", not(want.inverted));
                let found = answer::found(has.map(|has| format!("0x{has:02x}")));
                words("tos", wanted, found)
            }
            Want::Range {
                source,
                destination,
            } => {
                let fails = |cond: &Cond<Span<IpAddr>>, has: &Result<u128, Answer>| {
                    has.as_ref().is_ok_and(|has| {
                        cond.want.contains(&address(*has, self.family)) == cond.inverted
                    })
                };
                let has = answer::wide(reader, self.slot, &Answer::Miss);
                let (subject, cond, has) = match (source, destination) {
                    (Some(cond), _) if fails(cond, &has) => ("src-range", cond, has),
                    (_, Some(cond)) => {
                        let has = answer::wide(reader, self.second, &Answer::Miss);
                        ("dst-range", cond, has)
                    }
                    (Some(cond), None) => ("src-range", cond, has),
                    (None, None) => return words("iprange", "", ""),
                };
                let wanted = format!("{}{}-{}", not(cond.inverted), cond.want.min, cond.want.max);
                let found = has.map(|has| address(has, self.family));
                words(subject, wanted, answer::found(found))
            }
            Want::Mac(want) => {
                let text = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
                let wanted = format!("{}{}", not(want.inverted), text(want.want));
                let found = answer::found(self.mac(reader).map(text));
                words("mac-source", wanted, found)
            }
        }
    }
}
