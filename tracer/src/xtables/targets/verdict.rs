//! Targets that end the packet's way through the table.

use std::net::IpAddr;

use super::super::info::Masked;

/// `REJECT`: `struct ipt_reject_info`, `struct ip6t_reject_info`. What is sent to the sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reject {
    /// `icmp-net-unreachable`.
    IcmpNetUnreachable,
    /// `icmp-host-unreachable`.
    IcmpHostUnreachable,
    /// `icmp-proto-unreachable`.
    IcmpProtoUnreachable,
    /// `icmp-port-unreachable`.
    IcmpPortUnreachable,
    /// `icmp-net-prohibited`.
    IcmpNetProhibited,
    /// `icmp-host-prohibited`.
    IcmpHostProhibited,
    /// `icmp-admin-prohibited`.
    IcmpAdminProhibited,
    /// `tcp-reset`, of either family.
    TcpReset,
    /// `icmp6-no-route`.
    Icmp6NoRoute,
    /// `icmp6-adm-prohibited`.
    Icmp6AdmProhibited,
    /// `icmp6-addr-unreachable`.
    Icmp6AddrUnreachable,
    /// `icmp6-port-unreachable`.
    Icmp6PortUnreachable,
    /// `icmp6-policy-fail`.
    Icmp6PolicyFail,
    /// `icmp6-reject-route`.
    Icmp6RejectRoute,
    /// A value that has no name.
    Other(u32),
}

/// `NFQUEUE`, revisions 0 to 3.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nfqueue {
    /// First queue.
    pub first: u16,
    /// Number of queues.
    pub total: u16,
    /// The packet goes on as accepted if nobody listens.
    pub bypass: bool,
    /// The queue is chosen by CPU.
    pub cpu_fanout: bool,
}

/// `TPROXY`, revisions 0 and 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tproxy {
    /// Local address; unspecified for the interface's.
    pub address: IpAddr,
    /// Local port; 0 for the packet's.
    pub port: u16,
    /// `(mark & !mask) ^ value`.
    pub mark: Masked<u32>,
}

/// `SYNPROXY`: `struct nf_synproxy_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Synproxy {
    /// Bits `NF_SYNPROXY_OPT_*`: 1 MSS, 2 window scale, 4 SACK, 8 timestamp, 0x10 ECN.
    pub options: u8,
    /// Window scale.
    pub wscale: u8,
    /// MSS.
    pub mss: u16,
}
