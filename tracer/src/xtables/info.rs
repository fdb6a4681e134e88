//! Raw structures of extensions: reading them, the types that many of them share, and how iptables-save writes those.
//!
//! The structures are those of include/uapi/linux/netfilter/xt_*.h (Linux 6.18) as a 64-bit kernel lays them out, in host byte order
//! unless a member is `__be*`. Members for the kernel's own use (pointers) come as zeros and are not looked at.

use std::{
    fmt::{self, Display, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use zerocopy::FromBytes;

use super::Family;
use crate::ruleset::render::Names;

/// A condition that `!` turns round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cond<T> {
    /// What is wanted.
    pub want: T,
    /// It must not be so.
    pub inverted: bool,
}

impl<T> Cond<T> {
    /// A condition.
    pub const fn new(want: T, inverted: bool) -> Self {
        Self { want, inverted }
    }
}

/// A range, both ends included. The kernel takes any: one with `min > max` contains nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span<T> {
    /// First.
    pub min: T,
    /// Last.
    pub max: T,
}

impl<T> Span<T> {
    /// A range.
    pub const fn new(min: T, max: T) -> Self {
        Self { min, max }
    }
}

impl<T: PartialOrd> Span<T> {
    /// Whether `value` is in it.
    pub fn contains(&self, value: &T) -> bool {
        self.min <= *value && *value <= self.max
    }
}

impl<T> From<[T; 2]> for Span<T> {
    fn from([min, max]: [T; 2]) -> Self {
        Self { min, max }
    }
}

/// `1:2`, or `1` where both ends are the same.
impl<T: Display + PartialEq> Display for Span<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max {
            write!(f, "{}", self.min)
        } else {
            write!(f, "{}:{}", self.min, self.max)
        }
    }
}

/// A value under a mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Masked<T> {
    /// The value, as it stands in the structure: not always under the mask.
    pub value: T,
    /// Its mask.
    pub mask: T,
}

/// `0x1/0xff`, or `0x1` where the mask has every bit.
impl Display for Masked<u32> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.mask == u32::MAX {
            write!(f, "{:#x}", self.value)
        } else {
            write!(f, "{:#x}/{:#x}", self.value, self.mask)
        }
    }
}

/// `10.0.0.0/8`, without a mask where it has every bit, and with the mask as an address where it is no prefix.
impl Display for Masked<IpAddr> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Address(self.value))?;
        match (prefix(self.mask), self.mask) {
            (Some(32), IpAddr::V4(_)) | (Some(128), IpAddr::V6(_)) => Ok(()),
            (Some(length), _) => write!(f, "/{length}"),
            (None, mask) => write!(f, "/{}", Address(mask)),
        }
    }
}

/// A set of ipset, and what of the packet is looked up in it: `struct xt_set_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetRef {
    /// The set's index. It keeps its name as long as a rule refers to it (`ip_set_rename` refuses, `ip_set_swap` swaps what is in it).
    pub index: u16,
    /// For each dimension whether it is the source (otherwise the destination).
    pub sources: Vec<bool>,
}

impl SetRef {
    /// Writes the set and the directions: ` blocked src,dst`.
    pub(super) fn write(&self, names: &Names, out: &mut String) -> fmt::Result {
        match names.ip_set(self.index) {
            Some(name) => write!(out, " {name}")?,
            None => write!(out, " [index {}]", self.index)?,
        }
        for (at, source) in self.sources.iter().enumerate() {
            out.push(if at == 0 { ' ' } else { ',' });
            out.push_str(if *source { "src" } else { "dst" });
        }
        Ok(())
    }
}

/// `IPSET_INVALID_ID`: no set.
const NO_SET: u16 = 0xffff;

/// `struct xt_set_info`.
#[derive(FromBytes)]
#[repr(C)]
pub(super) struct RawSet {
    index: u16,
    dim: u8,
    pub(super) flags: u8,
}

impl RawSet {
    /// The set; `None` for no set.
    pub(super) fn get(&self) -> Option<SetRef> {
        (self.index != NO_SET).then(|| SetRef {
            index: self.index,
            // Bit 0 is IPSET_INV_MATCH; there are IPSET_DIM_MAX (6) bits for dimensions.
            sources: (1..=self.dim.min(6))
                .map(|bit| self.flags & 1 << bit != 0)
                .collect(),
        })
    }
}

/// `struct xt_set_info_v0`: flags of each dimension in a word of its own, the first 0 ends them.
#[derive(FromBytes)]
#[repr(C)]
pub(super) struct RawSet0 {
    index: u16,
    _pad: u16,
    pub(super) flags: [u32; 7],
}

impl RawSet0 {
    /// The set; `None` for no set.
    pub(super) fn get(&self) -> Option<SetRef> {
        const SRC: u32 = 1;
        (self.index != NO_SET).then(|| SetRef {
            index: self.index,
            sources: self
                .flags
                .iter()
                .take(6)
                .take_while(|flags| **flags != 0)
                .map(|flags| flags & SRC != 0)
                .collect(),
        })
    }
}

/// `union nf_inet_addr`: an address in network order.
#[derive(Debug, Clone, Copy, FromBytes)]
#[repr(C)]
pub(super) struct InetAddr([u32; 4]);

impl InetAddr {
    /// The address of this family.
    pub(super) fn get(self, family: Family) -> IpAddr {
        match family {
            Family::V4 => v4(self.0[0]),
            Family::V6 => IpAddr::V6(self.v6()),
        }
    }

    /// As an IPv6 address.
    pub(super) fn v6(self) -> Ipv6Addr {
        let [a, b, c, d] = self.0.map(u32::from_be);
        Ipv6Addr::from_bits(
            u128::from(a) << 96 | u128::from(b) << 64 | u128::from(c) << 32 | u128::from(d),
        )
    }
}

/// `__be32` as an IPv4 address.
pub(super) fn v4(be: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(u32::from_be(be)))
}

/// The structure in `info`, which must have its size. Both engines pad it to a multiple of eight bytes (`XT_ALIGN`).
pub(super) fn read<T: FromBytes>(info: &[u8]) -> Option<T> {
    if fits(info, size_of::<T>()) {
        T::read_from_prefix(info).ok().map(|(raw, _)| raw)
    } else {
        None
    }
}

/// Whether `info` has this size, padding aside.
pub(super) fn fits(info: &[u8], size: usize) -> bool {
    info.len() == size || info.len() == size.next_multiple_of(8)
}

/// Text up to its NUL, or its end.
pub(super) fn text(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}

/// `!` and a space, or nothing: before an option.
pub(super) struct Not(pub(super) bool);

impl Display for Not {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0 { " !" } else { "" })
    }
}

/// An address as inet_ntop writes it: unlike Rust it also shows `::1.2.3.4`.
pub(super) struct Address(pub(super) IpAddr);

impl Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V6(v6) if v6.to_bits() >> 32 == 0 && v6.to_bits() >> 16 != 0 => {
                let low = v6.to_ipv4().unwrap_or(Ipv4Addr::UNSPECIFIED);
                write!(f, "::{low}")
            }
            address => write!(f, "{address}"),
        }
    }
}

/// Length of the prefix that a mask stands for; `None` if it stands for none.
pub(super) fn prefix(mask: IpAddr) -> Option<u32> {
    let (ones, zeros, bits) = match mask {
        IpAddr::V4(mask) => (
            mask.to_bits().leading_ones(),
            mask.to_bits().trailing_zeros(),
            32,
        ),
        IpAddr::V6(mask) => (
            mask.to_bits().leading_ones(),
            mask.to_bits().trailing_zeros(),
            128,
        ),
    };
    (ones + zeros == bits).then_some(ones)
}

/// A string as iptables-save quotes it: plain if it has nothing but letters, digits, `_` and `-`.
pub(super) struct Quoted<'a>(pub(super) &'a str);

impl Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        if !self.0.is_empty() && self.0.chars().all(plain) {
            return f.write_str(self.0);
        }
        f.write_char('"')?;
        for c in self.0.chars() {
            if matches!(c, '"' | '\\' | '\'') {
                f.write_char('\\')?;
            }
            f.write_char(c)?;
        }
        f.write_char('"')
    }
}

/// Names of the bits that are set, lowest first, with commas between. A bit without a name shows as its number.
pub(super) struct Bits<'a> {
    pub(super) bits: u32,
    pub(super) names: &'a [&'a str],
}

impl Display for Bits<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for bit in (0..32).filter(|bit| self.bits & 1 << bit != 0) {
            f.write_str(separator)?;
            match usize::try_from(bit)
                .ok()
                .and_then(|bit| self.names.get(bit))
            {
                Some(name) => f.write_str(name)?,
                None => write!(f, "{bit}")?,
            }
            separator = ",";
        }
        Ok(())
    }
}

/// Writes an option that a range and its inversion make, unless the range is everything.
pub(super) fn write_span<T: Display + PartialEq>(
    out: &mut String,
    option: &str,
    span: &Cond<Span<T>>,
    everything: &Span<T>,
) -> fmt::Result {
    if span.want == *everything {
        return Ok(());
    }
    write!(out, "{} {option} {}", Not(span.inverted), span.want)
}

/// An extension that is not decoded, with its raw bytes: `[rev 2: 0x0001]`.
pub(super) fn write_unknown(out: &mut String, rev: u8, info: &[u8]) -> fmt::Result {
    write!(out, " [rev {rev}:")?;
    if !info.is_empty() {
        out.push_str(" 0x");
    }
    for byte in info {
        write!(out, "{byte:02x}")?;
    }
    out.push(']');
    Ok(())
}
