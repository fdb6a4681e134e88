//! Matches on fields of the packet.

use std::fmt::{self, Write as _};

use zerocopy::FromBytes;

use super::super::info::{Cond, Masked, Not, Span, read};

/// `length`: `struct xt_length_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Length {
    /// IPv4: the total length; IPv6: the payload length and the header's 40.
    pub bytes: Cond<Span<u16>>,
}

/// What `length` and `tcpmss` have: a range and its inversion.
#[derive(FromBytes)]
#[repr(C)]
struct RawRange {
    range: [u16; 2],
    inverted: u8,
}

impl RawRange {
    fn get(&self) -> Cond<Span<u16>> {
        Cond::new(self.range.into(), self.inverted != 0)
    }
}

impl Length {
    pub(super) fn decode(info: &[u8]) -> Option<Self> {
        let raw: RawRange = read(info)?;
        Some(Self { bytes: raw.get() })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        write!(
            out,
            "{} --length {}",
            Not(self.bytes.inverted),
            self.bytes.want
        )
    }
}

/// `ttl` (`struct ipt_ttl_info`) and `hl` (`struct ip6t_hl_info`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hops {
    /// How it is compared.
    pub op: HopsOp,
    /// With what.
    pub value: u8,
}

/// How TTL and hop limit are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HopsOp {
    /// Equal.
    Eq,
    /// Not equal.
    Ne,
    /// Less.
    Lt,
    /// Greater.
    Gt,
    /// Not known.
    Other(u8),
}

impl Hops {
    pub(super) fn decode(info: &[u8]) -> Option<Self> {
        let [mode, value]: [u8; 2] = read(info)?;
        let op = match mode {
            0 => HopsOp::Eq,
            1 => HopsOp::Ne,
            2 => HopsOp::Lt,
            3 => HopsOp::Gt,
            other => HopsOp::Other(other),
        };
        Some(Self { op, value })
    }

    /// Options of `ttl` or `hl`, which is their name too.
    pub(super) fn options(&self, out: &mut String, name: &str) -> fmt::Result {
        match self.op {
            HopsOp::Eq => write!(out, " --{name}-eq")?,
            HopsOp::Ne => write!(out, " ! --{name}-eq")?,
            HopsOp::Lt => write!(out, " --{name}-lt")?,
            HopsOp::Gt => write!(out, " --{name}-gt")?,
            HopsOp::Other(mode) => write!(out, " [mode {mode}]")?,
        }
        write!(out, " {}", self.value)
    }
}

/// `dscp`: `struct xt_dscp_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dscp {
    /// The six high bits of the TOS or traffic class.
    pub dscp: Cond<u8>,
}

impl Dscp {
    pub(super) fn decode(info: &[u8]) -> Option<Self> {
        let [dscp, inverted]: [u8; 2] = read(info)?;
        Some(Self {
            dscp: Cond::new(dscp, inverted != 0),
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        write!(
            out,
            "{} --dscp {:#04x}",
            Not(self.dscp.inverted),
            self.dscp.want
        )
    }
}

/// `tos`, revisions 0 (`struct ipt_tos_info`) and 1 (`struct xt_tos_match_info`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tos {
    /// TOS or traffic class.
    pub tos: Cond<Masked<u8>>,
    /// Its revision: 0 has no mask.
    pub rev: u8,
}

impl Tos {
    pub(super) fn decode(rev: u8, info: &[u8]) -> Option<Self> {
        let (value, mask, inverted) = match rev {
            0 => {
                let [value, inverted]: [u8; 2] = read(info)?;
                (value, 0xff, inverted)
            }
            1 => {
                let [mask, value, inverted]: [u8; 3] = read(info)?;
                (value, mask, inverted)
            }
            _ => return None,
        };
        Some(Self {
            tos: Cond::new(Masked { value, mask }, inverted != 0),
            rev,
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        let Masked { value, mask } = self.tos.want;
        write!(out, "{} --tos {value:#04x}", Not(self.tos.inverted))?;
        if self.rev > 0 {
            write!(out, "/{mask:#04x}")?;
        }
        Ok(())
    }
}

/// `ecn`: `struct xt_ecn_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ecn {
    /// The two bits of the IP header.
    pub ip_ect: Option<Cond<u8>>,
    /// TCP's CWR flag is set (inverted: not set).
    pub tcp_cwr: Option<Cond<()>>,
    /// TCP's ECE flag.
    pub tcp_ece: Option<Cond<()>>,
}

impl Ecn {
    /// `XT_ECN_OP_MATCH_IP`.
    const IP: u8 = 0x01;
    /// `XT_ECN_OP_MATCH_ECE`.
    const ECE: u8 = 0x10;
    /// `XT_ECN_OP_MATCH_CWR`.
    const CWR: u8 = 0x20;

    pub(super) fn decode(info: &[u8]) -> Option<Self> {
        let [asked, inverted, ip_ect, _]: [u8; 4] = read(info)?;
        let flag = |bit: u8| (asked & bit != 0).then_some(Cond::new((), inverted & bit != 0));
        Some(Self {
            ip_ect: (asked & Self::IP != 0).then_some(Cond::new(ip_ect, inverted & Self::IP != 0)),
            tcp_cwr: flag(Self::CWR),
            tcp_ece: flag(Self::ECE),
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        if let Some(ece) = &self.tcp_ece {
            write!(out, "{} --ecn-tcp-ece", Not(ece.inverted))?;
        }
        if let Some(cwr) = &self.tcp_cwr {
            write!(out, "{} --ecn-tcp-cwr", Not(cwr.inverted))?;
        }
        if let Some(ect) = &self.ip_ect {
            write!(out, "{} --ecn-ip-ect {}", Not(ect.inverted), ect.want)?;
        }
        Ok(())
    }
}

/// `tcpmss`: `struct xt_tcpmss_match_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tcpmss {
    /// The option's value. A packet without the option matches only if inverted.
    pub mss: Cond<Span<u16>>,
}

impl Tcpmss {
    pub(super) fn decode(info: &[u8]) -> Option<Self> {
        let raw: RawRange = read(info)?;
        Some(Self { mss: raw.get() })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        write!(out, "{} --mss {}", Not(self.mss.inverted), self.mss.want)
    }
}

/// `pkttype`: `struct xt_pkttype_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pkttype {
    /// `PACKET_*`: 0 host, 1 broadcast, 2 multicast, 3 other host.
    pub kind: Cond<i32>,
}

impl Pkttype {
    pub(super) fn decode(info: &[u8]) -> Option<Self> {
        let [kind, inverted]: [i32; 2] = read(info)?;
        Some(Self {
            kind: Cond::new(kind, inverted != 0),
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        write!(out, "{} --pkt-type ", Not(self.kind.inverted))?;
        match self.kind.want {
            0 => out.push_str("unicast"),
            1 => out.push_str("broadcast"),
            2 => out.push_str("multicast"),
            3 => out.push_str("otherhost"),
            other => write!(out, "{other}")?,
        }
        Ok(())
    }
}
