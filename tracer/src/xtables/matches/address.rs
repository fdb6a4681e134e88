//! Matches on addresses, beyond those that every rule has.

use std::net::IpAddr;

use super::super::info::{Cond, Masked, Span};

/// `addrtype`: `struct xt_addrtype_info` (revision 0), `xt_addrtype_info_v1` (revision 1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addrtype {
    /// Bits `XT_ADDRTYPE_*` (1 unspec, 2 unicast, 4 local, 8 broadcast, ...) of the source; `None` if it is not looked at.
    pub source: Option<Cond<u16>>,
    /// Likewise of the destination.
    pub destination: Option<Cond<u16>>,
    /// Only as the incoming interface sees it.
    pub limit_in: bool,
    /// Only as the outgoing interface sees it.
    pub limit_out: bool,
}

/// `iprange`, revision 1: `struct xt_iprange_mtinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Iprange {
    /// Source address.
    pub source: Option<Cond<Span<IpAddr>>>,
    /// Destination address.
    pub destination: Option<Cond<Span<IpAddr>>>,
}

/// `mac`: `struct xt_mac_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mac {
    /// Source address of the Ethernet header.
    pub source: Cond<[u8; 6]>,
}

/// `rpfilter`: `struct xt_rpfilter_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rpfilter {
    /// Any interface will do.
    pub loose: bool,
    /// The packet's mark is part of the route lookup.
    pub validmark: bool,
    /// Packets with a local source are let through.
    pub accept_local: bool,
    /// Matches packets that fail the test.
    pub inverted: bool,
}

/// `policy`: `struct xt_policy_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The policy that decapsulated the packet (`XT_POLICY_MATCH_IN`), otherwise the one that will encapsulate it.
    pub dir_in: bool,
    /// `XT_POLICY_MATCH_OUT`.
    pub dir_out: bool,
    /// There is no policy.
    pub none: bool,
    /// The elements are those of the policy exactly; otherwise one of it must match.
    pub strict: bool,
    /// At most four.
    pub elements: Vec<PolicyElement>,
}

/// `struct xt_policy_elem`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PolicyElement {
    /// `reqid`.
    pub reqid: Option<Cond<u32>>,
    /// SPI.
    pub spi: Option<Cond<u32>>,
    /// IP protocol.
    pub proto: Option<Cond<u8>>,
    /// 0 transport, 1 tunnel.
    pub mode: Option<Cond<u8>>,
    /// Source of the tunnel.
    pub tunnel_src: Option<Cond<Masked<IpAddr>>>,
    /// Destination of the tunnel.
    pub tunnel_dst: Option<Cond<Masked<IpAddr>>>,
}
