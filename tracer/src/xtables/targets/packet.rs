//! Targets that change the packet.

use std::{
    fmt::{self, Write as _},
    net::Ipv6Addr,
};

use zerocopy::FromBytes;

use super::super::info::{Address, InetAddr, Masked, read};

/// `TTL` (`struct ipt_TTL_info`) and `HL` (`struct ip6t_HL_info`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hops {
    /// How it is changed.
    pub op: HopsOp,
    /// By what, or to what.
    pub value: u8,
}

/// How TTL and hop limit are changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HopsOp {
    /// Set.
    Set,
    /// Incremented.
    Inc,
    /// Decremented.
    Dec,
    /// Not known.
    Other(u8),
}

/// `TOS`, revisions 0 and 1 (`struct xt_tos_target_info`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tos {
    /// `(tos & !mask) ^ value`.
    pub tos: Masked<u8>,
    /// Its revision.
    pub rev: u8,
}

/// `ECN`: `struct ipt_ECN_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ecn {
    /// The two bits of the IP header are set to this.
    pub ip_ect: Option<u8>,
    /// TCP's CWR flag is set to this.
    pub tcp_cwr: Option<bool>,
    /// TCP's ECE flag is set to this.
    pub tcp_ece: Option<bool>,
}

/// `SNPT`, `DNPT`: `struct ip6t_npt_tginfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Npt {
    /// Source prefix.
    pub source: (Ipv6Addr, u8),
    /// Destination prefix.
    pub destination: (Ipv6Addr, u8),
}

impl Hops {
    pub(super) fn decode(info: &[u8]) -> Option<Self> {
        let [mode, value]: [u8; 2] = read(info)?;
        let op = match mode {
            0 => HopsOp::Set,
            1 => HopsOp::Inc,
            2 => HopsOp::Dec,
            other => HopsOp::Other(other),
        };
        Some(Self { op, value })
    }

    /// Options of `TTL` or `HL`, by the name in them.
    pub(super) fn options(&self, out: &mut String, name: &str) -> fmt::Result {
        match self.op {
            HopsOp::Set => write!(out, " --{name}-set")?,
            HopsOp::Inc => write!(out, " --{name}-inc")?,
            HopsOp::Dec => write!(out, " --{name}-dec")?,
            HopsOp::Other(mode) => write!(out, " [mode {mode}]")?,
        }
        write!(out, " {}", self.value)
    }
}

impl Tos {
    pub(super) fn decode(rev: u8, info: &[u8]) -> Option<Self> {
        let [value, mask] = match rev {
            0 => [read::<u8>(info)?, 0xff],
            1 => read(info)?,
            _ => return None,
        };
        Some(Self {
            tos: Masked { value, mask },
            rev,
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        write!(out, " --set-tos {:#04x}", self.tos.value)?;
        if self.rev > 0 {
            write!(out, "/{:#04x}", self.tos.mask)?;
        }
        Ok(())
    }
}

impl Ecn {
    pub(super) fn decode(info: &[u8]) -> Option<Self> {
        /// `IPT_ECN_OP_SET_*`.
        const IP: u8 = 0x01;
        const ECE: u8 = 0x10;
        const CWR: u8 = 0x20;
        let [operation, ip_ect, flags]: [u8; 3] = read(info)?;
        // A bit field: ECE first, then CWR.
        let (ece, cwr) = if cfg!(target_endian = "little") {
            (1, 2)
        } else {
            (0x80, 0x40)
        };
        let asked = |bit: u8| operation & bit != 0;
        Some(Self {
            ip_ect: asked(IP).then_some(ip_ect),
            tcp_cwr: asked(CWR).then_some(flags & cwr != 0),
            tcp_ece: asked(ECE).then_some(flags & ece != 0),
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        let Self {
            ip_ect,
            tcp_cwr,
            tcp_ece,
        } = *self;
        if (ip_ect, tcp_cwr, tcp_ece) == (None, Some(false), Some(false)) {
            out.push_str(" --ecn-tcp-remove");
            return Ok(());
        }
        if let Some(ece) = tcp_ece {
            write!(out, " --ecn-tcp-ece {}", u8::from(ece))?;
        }
        if let Some(cwr) = tcp_cwr {
            write!(out, " --ecn-tcp-cwr {}", u8::from(cwr))?;
        }
        if let Some(ect) = ip_ect {
            write!(out, " --ecn-ip-ect {ect}")?;
        }
        Ok(())
    }
}

#[derive(FromBytes)]
#[repr(C)]
struct RawNpt {
    prefixes: [InetAddr; 2],
    lengths: [u8; 2],
    _adjustment: u16,
}

const _: () = assert!(size_of::<RawNpt>() == 36);

impl Npt {
    pub(super) fn decode(info: &[u8]) -> Option<Self> {
        let raw: RawNpt = read(info)?;
        let ([source, destination], [source_length, destination_length]) =
            (raw.prefixes, raw.lengths);
        Some(Self {
            source: (source.v6(), source_length),
            destination: (destination.v6(), destination_length),
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        for (option, (address, length)) in
            [("--src-pfx", self.source), ("--dst-pfx", self.destination)]
        {
            if !address.is_unspecified() || length != 0 {
                write!(out, " {option} {}/{length}", Address(address.into()))?;
            }
        }
        Ok(())
    }
}
