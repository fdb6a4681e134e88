//! Values of flags: text -> ports, prefixes, protocols, durations.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::plan::Groups;
use super::services;
use crate::event::Family;
use crate::packet::Proto;

/// Ports `first..=last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// First port.
    pub first: u16,
    /// Last port.
    pub last: u16,
}

/// An address prefix, host bits zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// Address.
    pub addr: IpAddr,
    /// Length in bits.
    pub len: u8,
}

/// A table by name, of any family or of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// The family, if it was given.
    pub family: Option<Family>,
    /// The name.
    pub name: String,
}

impl Table {
    /// Whether this means the table `name` of `family`, by the word that nft uses.
    pub fn matches(&self, family: &str, name: &str) -> bool {
        self.name == name && self.family.is_none_or(|wanted| wanted.as_str() == family)
    }
}

/// `80`, `8000-8100` or a name of /etc/services.
pub(super) fn ports(text: &str) -> Result<Ports, String> {
    let number = |text: &str| text.parse::<u16>().ok();
    if let Some((first, last)) = text.split_once('-')
        && let (Some(first), Some(last)) = (number(first), number(last))
    {
        if first > last {
            return Err(format!(
                "the range ends before it begins; write {last}-{first}"
            ));
        }
        return Ok(Ports { first, last });
    }
    let port = number(text).or_else(|| services::port(text)).ok_or(
        "no port: a number from 0 to 65535, a range A-B or a name of /etc/services is needed",
    )?;
    Ok(Ports {
        first: port,
        last: port,
    })
}

/// An address, or a prefix in CIDR notation; of IPv4 prefixes the last zeros can be left out
/// (`10/8`). Host bits are cleared.
pub(super) fn prefix(text: &str) -> Result<Prefix, String> {
    let (addr, len) = match text.split_once('/') {
        Some((addr, len)) => (addr, Some(len)),
        None => (text, None),
    };
    let addr: IpAddr = addr
        .parse()
        .ok()
        .or_else(|| len.and_then(|_| short_v4(addr)).map(IpAddr::V4))
        .ok_or(
            "no address: an IPv4 or IPv6 address is needed, with /LENGTH for a prefix; \
             host names are not looked up, since that would make traffic",
        )?;
    let max = if addr.is_ipv4() { 32 } else { 128 };
    let len = match len {
        None => max,
        Some(len) => len
            .parse()
            .ok()
            .filter(|len| *len <= max)
            .ok_or_else(|| format!("prefix length '{len}' is not a number from 0 to {max}"))?,
    };
    let addr = match addr {
        IpAddr::V4(addr) => IpAddr::V4(Ipv4Addr::from_bits(addr.to_bits() & mask4(len))),
        IpAddr::V6(addr) => IpAddr::V6(Ipv6Addr::from_bits(addr.to_bits() & mask6(len))),
    };
    Ok(Prefix { addr, len })
}

/// The mask of an IPv4 prefix of `len` bits, at most 32.
pub(super) fn mask4(len: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0)
}

/// The mask of an IPv6 prefix of `len` bits, at most 128.
pub(super) fn mask6(len: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)
}

/// One to four bytes in decimal: `10`, `192.168`.
fn short_v4(text: &str) -> Option<Ipv4Addr> {
    let mut bytes = [0; 4];
    let mut slots = bytes.iter_mut();
    for part in text.split('.') {
        *slots.next()? = part.parse().ok()?;
    }
    Some(Ipv4Addr::from(bytes))
}

/// An IP protocol by name or number.
pub(super) fn proto(text: &str) -> Result<Proto, String> {
    Proto::parse(text).ok_or_else(|| {
        "no IP protocol: a name such as tcp, udp, icmp, icmpv6, sctp, gre, esp or a number from 0 to 255 is needed".to_owned()
    })
}

/// `TABLE` or `FAMILY TABLE`.
pub(super) fn table(text: &str) -> Result<Table, String> {
    let Some((family, name)) = text.split_once(' ') else {
        return Ok(Table {
            family: None,
            name: text.to_owned(),
        });
    };
    let families = [
        Family::Ip,
        Family::Ip6,
        Family::Inet,
        Family::Arp,
        Family::Bridge,
        Family::Netdev,
    ];
    match families.into_iter().find(|f| f.as_str() == family) {
        Some(family) => Ok(Table {
            family: Some(family),
            name: name.trim().to_owned(),
        }),
        None => Err(format!(
            "'{family}' is no family: ip, ip6, inet, arp, bridge or netdev is needed"
        )),
    }
}

/// NFLOG groups that one can name: each takes a socket in each namespace.
const GROUPS: usize = 64;

/// `auto`, `none`, or group numbers and ranges: `1,5-7`.
pub(super) fn groups(text: &str) -> Result<Groups, String> {
    match text {
        "auto" => return Ok(Groups::Auto),
        "none" => return Ok(Groups::NONE),
        _ => {}
    }
    let mut groups = BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| {
            text.trim().parse::<u16>().map_err(|_| {
                format!("'{part}' is no NFLOG group: a number from 0 to 65535, a range A-B, several of them with commas between, auto or none is needed")
            })
        };
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(format!(
                "the range ends before it begins; write {last}-{first}"
            ));
        }
        groups.extend((first..=last).take(GROUPS + 1));
        if groups.len() > GROUPS {
            return Err(format!(
                "more than {GROUPS} groups: name those that your rules log to, or use auto, which finds them"
            ));
        }
    }
    Ok(Groups::These(groups))
}

/// `30`, `30s`, `5m`, `2h`, `500ms`; more than nothing.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: Option<u64> = digits.parse().ok().filter(|n| *n > 0);
    let milliseconds = match &text[digits.len()..] {
        "ms" => Some(1),
        "" | "s" => Some(1000),
        "m" => Some(60 * 1000),
        "h" => Some(60 * 60 * 1000),
        _ => None,
    };
    number
        .zip(milliseconds)
        .and_then(|(number, unit)| number.checked_mul(unit))
        .map(Duration::from_millis)
        .ok_or_else(|| "no duration: a positive number of seconds is needed, or one with ms, s, m or h behind it".to_owned())
}
