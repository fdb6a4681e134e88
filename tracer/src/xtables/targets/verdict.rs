//! Targets that end the packet's way through the table.

use std::{
    fmt::{self, Write as _},
    net::IpAddr,
};

use zerocopy::FromBytes;

use super::super::{
    Family,
    info::{Address, InetAddr, Masked, read, v4},
};

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

impl Reject {
    pub(super) fn decode(info: &[u8], family: Family) -> Option<Self> {
        let with: u32 = read(info)?;
        Some(match (family, with) {
            // IPT_ICMP_ECHOREPLY (4), IP6T_ICMP6_NOT_NEIGHBOUR (2) and IP6T_ICMP6_ECHOREPLY (5) are refused by today's kernels.
            (Family::V4, 0) => Self::IcmpNetUnreachable,
            (Family::V4, 1) => Self::IcmpHostUnreachable,
            (Family::V4, 2) => Self::IcmpProtoUnreachable,
            (Family::V4, 3) => Self::IcmpPortUnreachable,
            (Family::V4, 5) => Self::IcmpNetProhibited,
            (Family::V4, 6) => Self::IcmpHostProhibited,
            (Family::V4, 7) | (Family::V6, 6) => Self::TcpReset,
            (Family::V4, 8) => Self::IcmpAdminProhibited,
            (Family::V6, 0) => Self::Icmp6NoRoute,
            (Family::V6, 1) => Self::Icmp6AdmProhibited,
            (Family::V6, 3) => Self::Icmp6AddrUnreachable,
            (Family::V6, 4) => Self::Icmp6PortUnreachable,
            (Family::V6, 7) => Self::Icmp6PolicyFail,
            (Family::V6, 8) => Self::Icmp6RejectRoute,
            (_, other) => Self::Other(other),
        })
    }

    pub(super) fn options(self, out: &mut String) -> fmt::Result {
        let with = match self {
            Self::IcmpNetUnreachable => "icmp-net-unreachable",
            Self::IcmpHostUnreachable => "icmp-host-unreachable",
            Self::IcmpProtoUnreachable => "icmp-proto-unreachable",
            Self::IcmpPortUnreachable => "icmp-port-unreachable",
            Self::IcmpNetProhibited => "icmp-net-prohibited",
            Self::IcmpHostProhibited => "icmp-host-prohibited",
            Self::IcmpAdminProhibited => "icmp-admin-prohibited",
            Self::TcpReset => "tcp-reset",
            Self::Icmp6NoRoute => "icmp6-no-route",
            Self::Icmp6AdmProhibited => "icmp6-adm-prohibited",
            Self::Icmp6AddrUnreachable => "icmp6-addr-unreachable",
            Self::Icmp6PortUnreachable => "icmp6-port-unreachable",
            Self::Icmp6PolicyFail => "icmp6-policy-fail",
            Self::Icmp6RejectRoute => "icmp6-reject-route",
            Self::Other(with) => return write!(out, " --reject-with [{with}]"),
        };
        write!(out, " --reject-with {with}")
    }
}

impl Nfqueue {
    pub(super) fn decode(rev: u8, info: &[u8]) -> Option<Self> {
        let (first, total, flags) = match rev {
            0 => (read::<u16>(info)?, 1, 0),
            1 => {
                let [first, total]: [u16; 2] = read(info)?;
                (first, total, 0)
            }
            2 => {
                let [first, total, bypass]: [u16; 3] = read(info)?;
                (first, total, bypass & 1)
            }
            3 => {
                let [first, total, flags]: [u16; 3] = read(info)?;
                (first, total, flags)
            }
            _ => return None,
        };
        Some(Self {
            first,
            total,
            bypass: flags & 1 != 0,
            cpu_fanout: flags & 2 != 0,
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        if self.total > 1 {
            let last = u32::from(self.first) + u32::from(self.total) - 1;
            write!(out, " --queue-balance {}:{last}", self.first)?;
        } else {
            write!(out, " --queue-num {}", self.first)?;
        }
        if self.bypass {
            out.push_str(" --queue-bypass");
        }
        if self.cpu_fanout {
            out.push_str(" --queue-cpu-fanout");
        }
        Ok(())
    }
}

#[derive(FromBytes)]
#[repr(C)]
struct RawTproxy0 {
    mark_mask: u32,
    mark: u32,
    address: u32,
    port: u16,
}

#[derive(FromBytes)]
#[repr(C)]
struct RawTproxy1 {
    mark_mask: u32,
    mark: u32,
    address: InetAddr,
    port: u16,
}

const _: () = assert!(size_of::<RawTproxy0>() == 16);
const _: () = assert!(size_of::<RawTproxy1>() == 28);

impl Tproxy {
    pub(super) fn decode(rev: u8, info: &[u8], family: Family) -> Option<Self> {
        let (mask, value, address, port) = match rev {
            0 => {
                let raw: RawTproxy0 = read(info)?;
                (raw.mark_mask, raw.mark, v4(raw.address), raw.port)
            }
            1 => {
                let raw: RawTproxy1 = read(info)?;
                (raw.mark_mask, raw.mark, raw.address.get(family), raw.port)
            }
            _ => return None,
        };
        Some(Self {
            address,
            port: u16::from_be(port),
            mark: Masked { value, mask },
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        let Masked { value, mask } = self.mark;
        let address = Address(self.address);
        write!(
            out,
            " --on-port {} --on-ip {address} --tproxy-mark {value:#x}/{mask:#x}",
            self.port
        )
    }
}

#[derive(FromBytes)]
#[repr(C)]
struct RawSynproxy {
    options: u8,
    wscale: u8,
    mss: u16,
}

impl Synproxy {
    pub(super) fn decode(info: &[u8]) -> Option<Self> {
        let RawSynproxy {
            options,
            wscale,
            mss,
        } = read(info)?;
        Some(Self {
            options,
            wscale,
            mss,
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        let option = |bit: u8| self.options & bit != 0;
        if option(4) {
            out.push_str(" --sack-perm");
        }
        if option(8) {
            out.push_str(" --timestamp");
        }
        if option(2) {
            write!(out, " --wscale {}", self.wscale)?;
        }
        if option(1) {
            write!(out, " --mss {}", self.mss)?;
        }
        if option(0x10) {
            out.push_str(" --ecn");
        }
        Ok(())
    }
}
