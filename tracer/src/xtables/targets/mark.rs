//! Targets that mark the packet or put it into a set.

use super::super::{info::Masked, info::SetRef};

/// `SET`, revisions 0 to 3: `struct xt_set_info_target_v0` to `v3`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// The packet is added to this set.
    pub add: Option<SetRef>,
    /// The packet is deleted from this set.
    pub del: Option<SetRef>,
    /// The packet takes marks from this set.
    pub map: Option<SetRef>,
    /// An element that is there already has its timeout reset.
    pub exist: bool,
    /// Seconds; `None` for the set's.
    pub timeout: Option<u32>,
    /// Takes the mark.
    pub map_mark: bool,
    /// Takes the priority.
    pub map_prio: bool,
    /// Takes the queue.
    pub map_queue: bool,
}

/// `SECMARK`, revisions 0 and 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secmark {
    /// 1 is SELinux.
    pub mode: u8,
    /// Context.
    pub context: String,
}

/// `HMARK`: `struct xt_hmark_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hmark {
    /// Bits `1 << XT_HMARK_*`.
    pub flags: u32,
    /// Mask of the source.
    pub source_mask: std::net::IpAddr,
    /// Mask of the destination.
    pub destination_mask: std::net::IpAddr,
    /// Source port.
    pub source_port: Masked<u16>,
    /// Destination port.
    pub destination_port: Masked<u16>,
    /// The two ports as one word: SPI.
    pub spi: Masked<u32>,
    /// Mask of the protocol.
    pub proto_mask: u16,
    /// Seed.
    pub seed: u32,
    /// Modulus.
    pub modulus: u32,
    /// Offset.
    pub offset: u32,
}
