//! `struct ipt_ip` and `struct ip6t_ip6` as conditions (`ip_packet_match()`, `ip6_packet_match()`, net/ipv4/netfilter/ip_tables.c and
//! net/ipv6/netfilter/ip6_tables.c, v6.18).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    super::{
        field::{Field, Value},
        outcome::Words,
        read::{Fields, Reader, Slot},
    },
    Answer, XtField,
    answer::{self, Test, destination, network, not, source, words},
    load::HERE,
};
use crate::{
    packet::Proto,
    xtables::{Family, legacy::Ip},
};

/// `NFT_META_IIFNAME`.
const IIFNAME: u32 = 6;
/// `NFT_META_OIFNAME`.
const OIFNAME: u32 = 7;

/// `IPT_INV_*`, the same for IPv6.
mod inverted {
    pub(super) const IN: u8 = 1;
    pub(super) const OUT: u8 = 2;
    pub(super) const SOURCE: u8 = 8;
    pub(super) const DESTINATION: u8 = 0x10;
    pub(super) const FRAGMENT: u8 = 0x20;
    pub(super) const PROTOCOL: u8 = 0x40;
}

/// `IPT_F_FRAG`, and `IP6T_F_PROTO`.
const FLAG_ONE: u8 = 1;

/// An address under a mask.
#[derive(Debug, Clone)]
pub(super) struct Address {
    subject: &'static str,
    slot: Slot,
    /// The address's bits are the highest of the 128.
    want: u128,
    mask: u128,
    inverted: bool,
    family: Family,
}

/// An address's bits as the highest of 128.
pub(super) fn high(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The address in the highest bits.
pub(super) fn address(bits: u128, family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from_bits((bits >> 96) as u32).into(),
        Family::V6 => Ipv6Addr::from_bits(bits).into(),
    }
}

impl Address {
    /// Those that the rule asks for.
    pub(super) fn of(ip: &Ip, family: Family, fields: &mut Fields) -> Vec<Self> {
        let mut found = Vec::new();
        for (subject, want, mask, flag, field) in [
            (
                "source",
                ip.src,
                ip.src_mask,
                inverted::SOURCE,
                source(family),
            ),
            (
                "destination",
                ip.dst,
                ip.dst_mask,
                inverted::DESTINATION,
                destination(family),
            ),
        ] {
            let inverted = ip.inverted & flag != 0;
            let (want, mask) = (high(want), high(mask));
            if mask != 0 || want != 0 || inverted {
                found.push(Self {
                    subject,
                    slot: fields.slot(field),
                    want,
                    mask,
                    inverted,
                    family,
                });
            }
        }
        found
    }

    pub(super) fn test(&self, reader: &mut Reader<'_>) -> Test {
        let has = answer::wide(reader, self.slot, &Answer::Miss)?;
        Ok((has & self.mask == self.want) != self.inverted)
    }

    pub(super) fn words(&self, reader: &mut Reader<'_>) -> Words {
        let has = answer::wide(reader, self.slot, &Answer::Miss);
        let want = address(self.want, self.family);
        let width = match self.family {
            Family::V4 => 32,
            Family::V6 => 128,
        };
        let ones = self.mask.leading_ones();
        let wanted = match ones {
            _ if self.mask.count_ones() != ones => {
                format!("{want}/{}", address(self.mask, self.family))
            }
            ones if ones == width => want.to_string(),
            ones => format!("{want}/{ones}"),
        };
        let found = answer::found(has.map(|has| address(has, self.family)));
        words(
            self.subject,
            format!("{}{wanted}", not(self.inverted)),
            found,
        )
    }
}

/// The name of an interface, or its start.
#[derive(Debug, Clone)]
pub(super) struct Interface {
    subject: &'static str,
    slot: Slot,
    name: String,
    want: u128,
    mask: u128,
    inverted: bool,
}

/// A pattern as 16 bytes and the mask of those that count: all of a name with its NUL, or what comes before a `+`.
pub(super) fn pattern(name: &str) -> (u128, u128) {
    let (text, end) = match name.strip_suffix('+') {
        Some(prefix) => (prefix, 0),
        None => (name, 1),
    };
    let mut bytes = [0; 16];
    let mut mask = [0; 16];
    for (to, from) in bytes.iter_mut().zip(text.bytes()) {
        *to = from;
    }
    mask.iter_mut()
        .take(text.len() + end)
        .for_each(|byte| *byte = 0xff);
    (u128::from_be_bytes(bytes), u128::from_be_bytes(mask))
}

/// The name in 16 bytes.
pub(super) fn name(bits: u128) -> String {
    let bytes = bits.to_be_bytes();
    let text = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

impl Interface {
    /// Those that the rule asks for.
    pub(super) fn of(ip: &Ip, fields: &mut Fields) -> Vec<Self> {
        let mut found = Vec::new();
        for (subject, name, flag, key) in [
            ("in-interface", &ip.iface_in, inverted::IN, IIFNAME),
            ("out-interface", &ip.iface_out, inverted::OUT, OIFNAME),
        ] {
            let inverted = ip.inverted & flag != 0;
            if name.is_empty() && !inverted {
                continue;
            }
            // An empty name has an empty mask: any interface.
            let (want, mask) = match name.as_str() {
                "" => (0, 0),
                name => pattern(name),
            };
            if mask != 0 || inverted {
                found.push(Self {
                    subject,
                    slot: fields.slot(Field::Meta(key)),
                    name: name.clone(),
                    want,
                    mask,
                    inverted,
                });
            }
        }
        found
    }

    /// A hook without such an interface has one with an empty name.
    pub(super) fn test(&self, reader: &mut Reader<'_>) -> Test {
        let has = match reader.wide(self.slot) {
            (Value::Bytes(_), wide) => wide,
            (Value::Break, _) => 0,
            (Value::Unknown(reason), _) => return Err(Answer::Unknown(reason.clone())),
        };
        Ok((has & self.mask == self.want) != self.inverted)
    }

    pub(super) fn words(&self, reader: &mut Reader<'_>) -> Words {
        let has = answer::wide(reader, self.slot, &Answer::Miss);
        let wanted = format!("{}{}", not(self.inverted), self.name);
        words(self.subject, wanted, answer::found(has.map(name)))
    }
}

/// The IP protocol.
#[derive(Debug, Clone)]
pub(super) struct Protocol {
    slot: Slot,
    want: u16,
    inverted: bool,
    family: Family,
}

impl Protocol {
    /// If the rule asks for one.
    pub(super) fn of(ip: &Ip, family: Family, fields: &mut Fields) -> Option<Self> {
        let field = match family {
            Family::V4 if ip.proto != 0 => network(9, 1),
            Family::V6 if ip.flags & FLAG_ONE != 0 => Field::Xt(XtField::Protocol6),
            _ => return None,
        };
        Some(Self {
            slot: fields.slot(field),
            want: ip.proto,
            inverted: ip.inverted & inverted::PROTOCOL != 0,
            family,
        })
    }

    fn has(&self, reader: &mut Reader<'_>) -> Result<u16, Answer> {
        let value = answer::wide(reader, self.slot, &Answer::Miss)?.to_be_bytes();
        let [first, second, ..] = value;
        match self.family {
            Family::V4 => Ok(u16::from(first)),
            Family::V6 if first == HERE => Ok(u16::from(second)),
            Family::V6 => Err(Answer::Drop),
        }
    }

    pub(super) fn test(&self, reader: &mut Reader<'_>) -> Test {
        let has = self.has(reader)?;
        Ok(match self.family {
            Family::V4 => (has == self.want) != self.inverted,
            Family::V6 if has == self.want => !self.inverted,
            Family::V6 => self.want == 0 || self.inverted,
        })
    }

    pub(super) fn words(&self, reader: &mut Reader<'_>) -> Words {
        let text = |number: u16| match u8::try_from(number) {
            Ok(number) => Proto(number).to_string(),
            Err(_) => number.to_string(),
        };
        let wanted = format!("{}{}", not(self.inverted), text(self.want));
        words(
            "protocol",
            wanted,
            answer::found(self.has(reader).map(text)),
        )
    }
}

/// `-f`: a fragment other than the first one. Of IPv4 only.
#[derive(Debug, Clone)]
pub(super) struct Fragment {
    slot: Slot,
    wanted: bool,
    inverted: bool,
}

impl Fragment {
    /// If the rule asks for it.
    pub(super) fn of(ip: &Ip, family: Family, fields: &mut Fields) -> Option<Self> {
        let (wanted, inverted) = (
            ip.flags & FLAG_ONE != 0,
            ip.inverted & inverted::FRAGMENT != 0,
        );
        (family == Family::V4 && (wanted || inverted)).then(|| Self {
            slot: fields.slot(Field::Xt(XtField::IsFragment)),
            wanted,
            inverted,
        })
    }

    fn has(&self, reader: &mut Reader<'_>) -> Test {
        Ok(answer::number(reader, self.slot, 1, &Answer::Miss)? != 0)
    }

    pub(super) fn test(&self, reader: &mut Reader<'_>) -> Test {
        let fails = self.wanted && !self.has(reader)?;
        Ok(fails == self.inverted)
    }

    pub(super) fn words(&self, reader: &mut Reader<'_>) -> Words {
        let wanted = format!("{}-f", not(self.inverted));
        let found = match self.has(reader) {
            Ok(true) => "a later fragment",
            Ok(false) => "none",
            Err(_) => "",
        };
        words("fragment", wanted, found)
    }
}
