//! Targets that translate addresses.

use std::{
    fmt::{self, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use zerocopy::FromBytes;

use super::super::{
    Family,
    info::{Address, InetAddr, Span, prefix, read, v4},
};

/// What a connection is translated to: `struct nf_nat_ipv4_multi_range_compat`, `nf_nat_range`, `nf_nat_range2`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NatRange {
    /// Addresses; `None` if they stay (or, in MASQUERADE and REDIRECT, are the interface's).
    pub addresses: Option<Span<IpAddr>>,
    /// Ports; `None` if they stay where possible.
    pub ports: Option<Span<u16>>,
    /// The port that the first port of the range stands for (`NF_NAT_RANGE_PROTO_OFFSET`).
    pub base_port: Option<u16>,
    /// Ports are chosen at random.
    pub random: bool,
    /// Ports are chosen at random in another way.
    pub random_fully: bool,
    /// A client always gets the same address.
    pub persistent: bool,
}

/// `struct nf_nat_ipv4_multi_range_compat`.
#[derive(FromBytes)]
#[repr(C)]
struct RawMultiRange {
    /// Always 1.
    _count: u32,
    flags: u32,
    addresses: [u32; 2],
    ports: [u16; 2],
}

/// `struct nf_nat_range`.
#[derive(FromBytes)]
#[repr(C)]
struct RawRange {
    flags: u32,
    addresses: [InetAddr; 2],
    ports: [u16; 2],
}

/// `struct nf_nat_range2`.
#[derive(FromBytes)]
#[repr(C)]
struct RawRange2 {
    old: RawRange,
    base_port: u16,
}

const _: () = assert!(size_of::<RawMultiRange>() == 20);
const _: () = assert!(size_of::<RawRange>() == 40);
const _: () = assert!(size_of::<RawRange2>() == 44);

/// `NF_NAT_RANGE_*`.
mod flag {
    pub(super) const MAP_IPS: u32 = 1 << 0;
    pub(super) const PROTO_SPECIFIED: u32 = 1 << 1;
    pub(super) const PROTO_RANDOM: u32 = 1 << 2;
    pub(super) const PERSISTENT: u32 = 1 << 3;
    pub(super) const PROTO_RANDOM_FULLY: u32 = 1 << 4;
    pub(super) const PROTO_OFFSET: u32 = 1 << 5;
}

impl NatRange {
    /// Revision 0 of the targets for IPv4 has the oldest structure; revision 0 for IPv6 has what is revision 1 elsewhere.
    pub(super) fn decode(rev: u8, info: &[u8], family: Family) -> Option<Self> {
        let (flags, addresses, ports, base) = match (rev, family) {
            (0, Family::V4) => {
                let raw: RawMultiRange = read(info)?;
                (raw.flags, raw.addresses.map(v4), raw.ports, 0)
            }
            (0 | 1, _) => {
                let raw: RawRange = read(info)?;
                (
                    raw.flags,
                    raw.addresses.map(|addr| addr.get(family)),
                    raw.ports,
                    0,
                )
            }
            (2, _) => {
                let RawRange2 {
                    old: raw,
                    base_port,
                } = read(info)?;
                (
                    raw.flags,
                    raw.addresses.map(|addr| addr.get(family)),
                    raw.ports,
                    base_port,
                )
            }
            _ => return None,
        };
        let flag = |bit: u32| flags & bit != 0;
        let with_ports = flag(flag::PROTO_SPECIFIED);
        Some(Self {
            addresses: flag(flag::MAP_IPS).then_some(addresses.into()),
            ports: with_ports.then(|| ports.map(u16::from_be).into()),
            base_port: (with_ports && flag(flag::PROTO_OFFSET)).then(|| u16::from_be(base)),
            random: flag(flag::PROTO_RANDOM),
            random_fully: flag(flag::PROTO_RANDOM_FULLY),
            persistent: flag(flag::PERSISTENT),
        })
    }

    /// Writes the options of DNAT and SNAT, which have an address, or of MASQUERADE and REDIRECT, which have none.
    pub(super) fn options(&self, out: &mut String, option: &str) -> fmt::Result {
        if self.addresses.is_some() || self.ports.is_some() {
            write!(out, " {option} ")?;
        }
        if let Some(Span { min, max }) = self.addresses {
            let brackets = min.is_ipv6() && self.ports.is_some();
            if brackets {
                out.push('[');
            }
            write!(out, "{}", Address(min))?;
            if min != max {
                write!(out, "-{}", Address(max))?;
            }
            if brackets {
                out.push(']');
            }
        }
        if let Some(Span { min, max }) = self.ports {
            if option != "--to-ports" {
                out.push(':');
            }
            write!(out, "{min}")?;
            if min != max {
                write!(out, "-{max}")?;
            }
            if let Some(base) = self.base_port {
                write!(out, "/{base}")?;
            }
        }
        let options = [
            (self.random, " --random"),
            (self.random_fully, " --random-fully"),
            (self.persistent, " --persistent"),
        ];
        for (_, option) in options.iter().filter(|(set, _)| *set) {
            out.push_str(option);
        }
        Ok(())
    }

    /// Writes the options of NETMAP: the first address, and the mask of what it has in common with the last one.
    pub(super) fn netmap_options(&self, out: &mut String) -> fmt::Result {
        let Some(Span { min, max }) = self.addresses else {
            return Ok(());
        };
        let mask = match (min, max) {
            (IpAddr::V4(min), IpAddr::V4(max)) => {
                Ipv4Addr::from_bits(!(min.to_bits() ^ max.to_bits())).into()
            }
            (IpAddr::V6(min), IpAddr::V6(max)) => {
                Ipv6Addr::from_bits(!(min.to_bits() ^ max.to_bits())).into()
            }
            _ => max,
        };
        write!(out, " --to {}", Address(min))?;
        match prefix(mask) {
            Some(length) => write!(out, "/{length}"),
            None => write!(out, "/{}", Address(mask)),
        }
    }
}
