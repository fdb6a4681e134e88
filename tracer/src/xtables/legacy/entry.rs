//! One entry of a blob: `struct ipt_entry` or `struct ip6t_entry`, its matches and its target.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Family, Ip};
use crate::{
    ruleset::model::Counters,
    xtables::{matches::Match, targets::Target},
};

/// `struct xt_entry_match` and `xt_entry_target` without their data: u16 size (of both), name of 29 bytes, u8 revision.
const HEADER: usize = 32;
/// `XT_ERROR_TARGET` (include/uapi/linux/netfilter/x_tables.h, v6.18).
const ERROR: &str = "ERROR";
/// `IFNAMSIZ`.
const IFNAMSIZ: usize = 16;

/// `XT_RETURN`: `-NF_REPEAT - 1` (include/uapi/linux/netfilter/x_tables.h, v6.18).
const XT_RETURN: i32 = -5;

/// Where the fields of an entry are.
pub(super) struct Layout {
    /// Bytes of an address.
    address: usize,
    /// `proto`; interfaces stand right before it, addresses before them.
    proto: usize,
    /// `tos` of `struct ip6t_ip6`.
    tos: Option<usize>,
    /// `flags`, then `invflags`.
    flags: usize,
    /// `IPT_F_GOTO` or `IP6T_F_GOTO`.
    goto: u8,
    /// `target_offset`, then `next_offset`, u16 each.
    offsets: usize,
    /// `counters`: u64 packets, u64 bytes; the last field.
    pub(super) counters: usize,
    /// Of the entry, without matches and target.
    pub(super) size: usize,
}

/// `struct ipt_entry` (include/uapi/linux/netfilter_ipv4/ip_tables.h, v6.18).
const V4: Layout = Layout {
    address: 4,
    proto: 80,
    tos: None,
    flags: 82,
    goto: 0x02,
    offsets: 88,
    counters: 96,
    size: 112,
};
/// `struct ip6t_entry` (include/uapi/linux/netfilter_ipv6/ip6_tables.h, v6.18).
const V6: Layout = Layout {
    address: 16,
    proto: 128,
    tos: Some(130),
    flags: 131,
    goto: 0x04,
    offsets: 140,
    counters: 152,
    size: 168,
};

impl Layout {
    pub(super) fn of(family: Family) -> &'static Self {
        match family {
            Family::V4 => &V4,
            Family::V6 => &V6,
        }
    }

    /// Bytes of the entry at the start of `bytes`, matches and target included; `None` if it cannot be one. May be more than there are.
    pub(super) fn next(&self, bytes: &[u8]) -> Option<usize> {
        let next = usize::from(u16_at(bytes, self.offsets + 2)?);
        (next >= self.size + HEADER && next.is_multiple_of(align_of::<u64>())).then_some(next)
    }
}

/// Verdict of a standard target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Accept,
    Drop,
    Queue,
    Return,
    /// Go on at this offset.
    To(u32),
}

/// An entry, decoded.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) ip: Ip,
    pub(super) matches: Vec<Match>,
    pub(super) target: Target,
    pub(super) counters: Counters,
    pub(super) is_goto: bool,
    verdict: Option<Verdict>,
    error: Option<String>,
}

impl Entry {
    /// Decodes an entry of exactly `bytes`, and says what of it is broken: that is left out, or kept as unknown.
    pub(super) fn decode(family: Family, bytes: &[u8]) -> (Self, Option<String>) {
        let layout = Layout::of(family);
        let mut problems = Vec::new();
        let ip = ip(layout, bytes, &mut problems);
        let stated = u16_at(bytes, layout.offsets).map(usize::from);
        let target_at =
            stated.filter(|at| (layout.size..=bytes.len().saturating_sub(HEADER)).contains(at));
        if target_at.is_none() {
            problems.push("its target is outside of it".to_owned());
        }
        let matches = bytes.get(layout.size..target_at.unwrap_or(layout.size));
        let matches = matches.unwrap_or_default();
        let matches = self::matches(family, matches, &mut problems);
        let target = target_at.and_then(|at| extension(bytes.get(at..)?));
        if target.is_none() && target_at.is_some() {
            problems.push("its target is longer than it".to_owned());
        }
        let raw = bytes.get(target_at.unwrap_or(layout.size)..);
        let target = target.unwrap_or(Extension {
            name: "?".to_owned(),
            rev: 0,
            info: raw.unwrap_or_default(),
            size: 0,
        });
        let verdict = target.name.is_empty().then(|| verdict(target.info));
        if let Some(None) = verdict {
            problems.push("its verdict is none that the kernel knows".to_owned());
        }
        let counter = |at: usize| u64_at(bytes, layout.counters + at).unwrap_or_default();
        let entry = Self {
            matches,
            counters: Counters {
                packets: counter(0),
                bytes: counter(8),
            },
            is_goto: ip.flags & layout.goto != 0,
            verdict: verdict.flatten(),
            error: (target.name == ERROR).then(|| text(target.info)),
            target: Target::decode(&target.name, target.rev, target.info, family),
            ip,
        };
        let problem = (!problems.is_empty()).then(|| problems.join(", "));
        (entry, problem)
    }

    /// What the standard target says; `None` for any other target.
    pub(super) fn verdict(&self) -> Option<Verdict> {
        self.verdict
    }

    /// The text of an ERROR target.
    pub(super) fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }
}

/// Addresses, interfaces, protocol.
fn ip(layout: &Layout, bytes: &[u8], problems: &mut Vec<String>) -> Ip {
    // Source, destination, source mask, destination mask.
    let address = |n: usize| address(bytes, n * layout.address, layout.address);
    let interfaces = layout.address * 4;
    // Incoming, outgoing, incoming mask, outgoing mask.
    let field = |n: usize| {
        let at = interfaces + n * IFNAMSIZ;
        bytes.get(at..at + IFNAMSIZ).unwrap_or_default()
    };
    let mut interface = |n: usize| {
        let name = interface(field(n), field(n + 2));
        name.unwrap_or_else(|name| {
            problems.push(format!("the mask of interface '{name}' is a strange one"));
            name
        })
    };
    let (iface_in, iface_out) = (interface(0), interface(1));
    let byte = |at: usize| bytes.get(at).copied().unwrap_or_default();
    Ip {
        src: address(0),
        src_mask: address(2),
        dst: address(1),
        dst_mask: address(3),
        iface_in,
        iface_out,
        proto: u16_at(bytes, layout.proto).unwrap_or_default(),
        tos: layout.tos.map(byte).unwrap_or_default(),
        flags: byte(layout.flags),
        inverted: byte(layout.flags + 1),
    }
}

fn address(bytes: &[u8], at: usize, len: usize) -> IpAddr {
    let bytes = bytes.get(at..at + len).unwrap_or_default();
    if let Ok(bytes) = <[u8; 4]>::try_from(bytes) {
        return Ipv4Addr::from(bytes).into();
    }
    let bytes = <[u8; 16]>::try_from(bytes);
    bytes.map_or(Ipv6Addr::UNSPECIFIED, Ipv6Addr::from).into()
}

/// The name that name and mask stand for. The kernel compares the bytes that the mask has: user space gives it the name's and a NUL for
/// a whole name, the name's alone for a prefix. `Err`: the mask does neither, or the name would be taken for a prefix.
fn interface(name: &[u8], mask: &[u8]) -> Result<String, String> {
    let compared = mask.iter().take_while(|byte| **byte == 0xff).count();
    let rest = mask.get(compared..).unwrap_or_default();
    let plain = rest.iter().all(|byte| *byte == 0);
    let name = name.get(..compared).unwrap_or(name);
    let whole = name.contains(&0) || compared == IFNAMSIZ;
    let mut text = text(name);
    let odd = !plain || whole && text.ends_with('+');
    if !whole && compared > 0 {
        text.push('+');
    }
    if odd { Err(text) } else { Ok(text) }
}

fn matches(family: Family, mut bytes: &[u8], problems: &mut Vec<String>) -> Vec<Match> {
    let mut matches = Vec::new();
    while !bytes.is_empty() {
        let Some(found) = extension(bytes) else {
            problems.push("a match is longer than what is left of it".to_owned());
            matches.push(Match::decode("?", 0, bytes, family));
            break;
        };
        matches.push(Match::decode(&found.name, found.rev, found.info, family));
        bytes = bytes.get(found.size..).unwrap_or_default();
    }
    matches
}

/// A match or target.
struct Extension<'a> {
    name: String,
    rev: u8,
    info: &'a [u8],
    /// Header and info.
    size: usize,
}

/// The extension at the start of `bytes`; `None` if it does not fit.
fn extension(bytes: &[u8]) -> Option<Extension<'_>> {
    let size = usize::from(u16_at(bytes, 0)?);
    Some(Extension {
        name: text(bytes.get(2..HEADER - 1)?),
        rev: *bytes.get(HEADER - 1)?,
        info: bytes.get(HEADER..size)?,
        size,
    })
}

/// A standard target's verdict: an offset, or `-NF_* - 1`, or `XT_RETURN`. Others the kernel does not take (`verdict_ok()`,
/// net/netfilter/x_tables.c, v6.18).
fn verdict(info: &[u8]) -> Option<Verdict> {
    let code = i32::from_ne_bytes(*info.first_chunk()?);
    Some(match code {
        -1 => Verdict::Drop,
        -2 => Verdict::Accept,
        -4 => Verdict::Queue,
        XT_RETURN => Verdict::Return,
        _ => Verdict::To(u32::try_from(code).ok()?),
    })
}

/// Up to the first NUL.
fn text(bytes: &[u8]) -> String {
    let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(bytes).into_owned()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}
