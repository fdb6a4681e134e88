//! Matches on extension headers of IPv6.

use std::net::Ipv6Addr;

use super::super::info::{Cond, Span};

/// `ah` of IPv6: `struct ip6t_ah`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ah6 {
    /// SPI; 0 to 4294967295 where the rule asks for none.
    pub spi: Cond<Span<u32>>,
    /// Length of the header in bytes; 0 for any.
    pub length: Cond<u32>,
    /// The reserved field must be zero.
    pub reserved: bool,
}

/// `frag`: `struct ip6t_frag`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frag {
    /// Identification; 0 to 4294967295 where the rule asks for none.
    pub id: Cond<Span<u32>>,
    /// Length of the header; 0 for any.
    pub length: Cond<u32>,
    /// Bits `IP6T_FRAG_*`: 1 ids, 2 length, 4 reserved is zero, 8 first, 0x10 more, 0x20 last.
    pub flags: u8,
}

/// `rt`: `struct ip6t_rt`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rt {
    /// Bits `IP6T_RT_*`: 1 type, 2 segments left, 4 length, 8 reserved, 0x10 addresses in order, 0x20 addresses in any order.
    pub flags: u8,
    /// Type.
    pub kind: Cond<u32>,
    /// Segments left; 0 to 4294967295 where the rule asks for none.
    pub segments_left: Cond<Span<u32>>,
    /// Length of the header; 0 for any.
    pub length: Cond<u32>,
    /// At most 16.
    pub addresses: Vec<Ipv6Addr>,
}

/// `hbh` and `dst`: `struct ip6t_opts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Length of the header in bytes, where the rule asks for it.
    pub length: Option<Cond<u32>>,
    /// Options in their order; `None` if the rule does not ask.
    pub options: Option<Vec<Ipv6Option>>,
    /// `IP6T_OPTS_NSTRICT`.
    pub not_strict: bool,
    /// `flags` as they stand.
    pub flags: u8,
}

/// An option of a header of options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv6Option {
    /// Type.
    pub kind: u8,
    /// Length of its data; `None` for any.
    pub length: Option<u8>,
}

/// `ipv6header`: `struct ip6t_ipv6header_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ipv6Header {
    /// A bit for each header: 0x80 hop-by-hop, 0x40 destination, 0x20 route, 0x10 fragment, 8 AH, 4 ESP, 2 none, 1 protocol.
    pub headers: Cond<u8>,
    /// At least these rather than exactly these.
    pub soft: bool,
}

/// `mh`: `struct ip6t_mh`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mh {
    /// Type of the mobility header.
    pub types: Cond<Span<u8>>,
}
