//! Targets that change the packet.

use std::net::Ipv6Addr;

use super::super::info::Masked;

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
