//! Matches on the header of a transport protocol: ports, flags, types.

use super::super::info::{Cond, Span};

/// `tcp`: `struct xt_tcp`. The kernel does not match fragments other than the first one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tcp {
    /// Source port; 0 to 65535 where the rule asks for none.
    pub source: Cond<Span<u16>>,
    /// Destination port, likewise.
    pub destination: Cond<Span<u16>>,
    /// Flags that are looked at (byte 13 of the header); 0 for none.
    pub flags_mask: u8,
    /// Those that must be set, the rest of the mask must not.
    pub flags: u8,
    /// The flags' test is turned round.
    pub flags_inverted: bool,
    /// Kind of an option that must be there; 0 for none.
    pub option: Cond<u8>,
}

/// `udp` and `udplite`: `struct xt_udp`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Udp {
    /// Source port; 0 to 65535 where the rule asks for none.
    pub source: Cond<Span<u16>>,
    /// Destination port, likewise.
    pub destination: Cond<Span<u16>>,
}

/// `sctp`: `struct xt_sctp_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sctp {
    /// Source port, where the rule asks for it.
    pub source: Option<Cond<Span<u16>>>,
    /// Destination port, where the rule asks for it.
    pub destination: Option<Cond<Span<u16>>>,
    /// Chunks, where the rule asks for them.
    pub chunks: Option<Cond<SctpChunks>>,
}

/// Which chunks a packet of SCTP must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SctpChunks {
    /// How the map is compared.
    pub mode: SctpChunkMode,
    /// A bit for each chunk type: bit `type % 32` of word `type / 32`.
    pub map: [u32; 8],
    /// Flags that chunks of a type must have.
    pub flags: Vec<SctpChunkFlags>,
}

/// How a packet's chunks are compared with the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SctpChunkMode {
    /// At least one chunk is in the map.
    Any,
    /// Every type of the map is in the packet.
    All,
    /// No chunk is outside the map.
    Only,
    /// A value that the kernel does not know: it then matches any packet that has chunks.
    Other(u32),
}

/// `struct xt_sctp_flag_info`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SctpChunkFlags {
    /// Chunk type.
    pub chunk: u8,
    /// Flags that must be set.
    pub flag: u8,
    /// Flags that are looked at.
    pub mask: u8,
}

/// `dccp`: `struct xt_dccp_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dccp {
    /// Source port, where the rule asks for it.
    pub source: Option<Cond<Span<u16>>>,
    /// Destination port, where the rule asks for it.
    pub destination: Option<Cond<Span<u16>>>,
    /// A bit for each packet type, where the rule asks for it.
    pub types: Option<Cond<u16>>,
    /// Number of an option, where the rule asks for it.
    pub option: Option<Cond<u8>>,
}

/// `multiport`: `struct xt_multiport` (revision 0) and `xt_multiport_v1` (revision 1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Multiport {
    /// Which port is looked at.
    pub side: PortSide,
    /// One of these must match; a single port is a range of one. Inverted: none may.
    pub ports: Cond<Vec<Span<u16>>>,
}

/// Which port `multiport` looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortSide {
    /// Source.
    Source,
    /// Destination.
    Destination,
    /// Either of the two.
    Either,
    /// A value that the kernel does not know.
    Other(u8),
}

/// `icmp` (`struct ipt_icmp`) and `icmp6` (`struct ip6t_icmp`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Icmp {
    /// Type; 255 of `icmp` is any.
    pub kind: u8,
    /// Code.
    pub code: Span<u8>,
    /// The test of type and code is turned round.
    pub inverted: bool,
}

/// `esp`, `ah` of IPv4 and `ipcomp`: a range of SPIs (CPIs).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spi {
    /// The range; 0 to 4294967295 where the rule asks for none.
    pub spi: Cond<Span<u32>>,
    /// `ipcomp` only: the reserved field must be zero.
    pub reserved: bool,
}
