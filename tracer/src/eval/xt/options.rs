//! TCP options and flags beyond those of `tcp` (net/netfilter/xt_tcpmss.c, xt_ecn.c, v6.18).

use super::{
    super::{
        field::Field,
        outcome::Words,
        read::{Fields, Reader, Slot},
    },
    Answer, XtField,
    answer::{self, All, Test, cond_span, network, not, words},
    load::HERE,
};
use crate::xtables::{
    Family,
    info::{Cond, Span},
    matches::packet::{Ecn, Tcpmss},
};

/// The two bits of ECN in TOS and traffic class.
const ECN_MASK: u8 = 3;

/// tcpmss or ecn.
#[derive(Debug, Clone)]
pub(super) enum Options {
    Mss {
        mss: Cond<Span<u16>>,
        options: Slot,
    },
    Ecn {
        want: Ecn,
        family: Family,
        tos: Slot,
        tcp: Slot,
    },
}

/// The TOS or traffic class byte as a field, and how to read it.
pub(super) fn tos_field(family: Family) -> Field {
    match family {
        Family::V4 => network(1, 1),
        Family::V6 => network(0, 2),
    }
}

/// Bits of TOS or traffic class where they stand in [`tos_field`], its first byte the highest of 16.
pub(super) fn tos_wide(family: Family, tos: u8) -> u128 {
    match family {
        Family::V4 => u128::from(tos) << 120,
        Family::V6 => u128::from(tos) << 116,
    }
}

/// TOS (IPv4) or traffic class (IPv6), of [`tos_field`].
pub(super) fn tos(reader: &mut Reader<'_>, slot: Slot, family: Family) -> Result<u8, Answer> {
    let value = answer::number(reader, slot, 2, &Answer::Miss)? as u16;
    Ok(match family {
        Family::V4 => (value >> 8) as u8,
        Family::V6 => (value >> 4) as u8,
    })
}

impl Options {
    pub(super) fn mss(want: &Tcpmss, fields: &mut Fields) -> Self {
        Self::Mss {
            mss: want.mss,
            options: fields.slot(Field::Xt(XtField::TcpOptions)),
        }
    }

    pub(super) fn ecn(want: &Ecn, family: Family, fields: &mut Fields) -> Self {
        Self::Ecn {
            want: want.clone(),
            family,
            tos: fields.slot(tos_field(family)),
            tcp: fields.slot(Field::Xt(XtField::AnyTransport)),
        }
    }

    pub(super) fn test(&self, reader: &mut Reader<'_>) -> Test {
        match self {
            Self::Mss { mss, options } => {
                let found = maximum_segment_size(reader, *options)?;
                Ok(found.is_some_and(|found| mss.want.contains(&found)) != mss.inverted)
            }
            Self::Ecn {
                want,
                family,
                tos: tos_slot,
                tcp,
            } => {
                let mut all = All::default();
                if let Some(ect) = &want.ip_ect {
                    let test = tos(reader, *tos_slot, *family)
                        .map(|tos| (tos & ECN_MASK == ect.want) != ect.inverted);
                    all.also(test)?;
                }
                for (cond, bit) in [(want.tcp_ece, 6), (want.tcp_cwr, 7)] {
                    let Some(cond) = cond else { continue };
                    all.also(tcp_flag(reader, *tcp, bit).map(|set| set != cond.inverted))?;
                }
                all.end()
            }
        }
    }

    pub(super) fn words(&self, reader: &mut Reader<'_>) -> Words {
        match self {
            Self::Mss { mss, options } => {
                let found = maximum_segment_size(reader, *options);
                let found = match found {
                    Ok(Some(found)) => found.to_string(),
                    _ => String::new(),
                };
                words("mss", cond_span(mss), found)
            }
            Self::Ecn {
                want,
                family,
                tos: slot,
                ..
            } => match &want.ip_ect {
                Some(ect) => {
                    let found = tos(reader, *slot, *family).map(|tos| tos & ECN_MASK);
                    let wanted = format!("{}{}", not(ect.inverted), ect.want);
                    words("ecn-ip-ect", wanted, answer::found(found))
                }
                None => words("ecn-tcp", "", ""),
            },
        }
    }
}

/// A flag of the TCP header's 14th byte; a header that is not there misses.
fn tcp_flag(reader: &mut Reader<'_>, slot: Slot, bit: u8) -> Test {
    let value = answer::wide(reader, slot, &Answer::Miss)?;
    if (value >> 120) as u8 != HERE {
        return Err(Answer::Miss);
    }
    Ok((value >> 8) as u8 >> bit & 1 == 1)
}

/// The option's value; `Ok(None)` if there is none. A header that is cut short drops the packet.
fn maximum_segment_size(reader: &mut Reader<'_>, slot: Slot) -> Result<Option<u16>, Answer> {
    const MSS: u8 = 2;
    let status = (answer::wide(reader, slot, &Answer::Drop)? >> 120) as u8;
    if status != HERE {
        return Err(Answer::Drop);
    }
    let options = answer::bytes(reader, Field::Xt(XtField::TcpOptions), Answer::Drop)?;
    let mut rest = options.as_slice().get(1..).unwrap_or_default();
    while let Some(&kind) = rest.first() {
        if let Some(&[MSS, 4, high, low]) = rest.first_chunk() {
            return Ok(Some(u16::from_be_bytes([high, low])));
        }
        let step = match rest.get(1) {
            _ if kind < 2 => 1,
            Some(&length) if length > 0 => usize::from(length),
            _ => 1,
        };
        rest = rest.get(step..).unwrap_or_default();
    }
    Ok(None)
}
