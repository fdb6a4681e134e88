//! Targets that translate addresses.

use std::net::IpAddr;

use super::super::info::Span;

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
