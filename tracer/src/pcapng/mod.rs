//! Drops as pcapng, which tcpdump and Wireshark read, and back.
//!
//! ```text
//! RawDrop -> frame -+
//! Event ------------+-> write (blocks) -> file (whole blocks, zstd) <- record (rotation, what failed)
//! a file -> read (blocks, their offsets) -> Item: an Event, or a packet without one
//! ```
//!
//! The format is docs/pcapng.md. Nothing here knows of BPF, netlink or terminals.

mod block;
mod file;
mod frame;
mod read;
mod record;
mod write;

pub use block::Section;
pub use file::Compression;
pub use frame::Frame;
pub use read::{Captured, Item, ReadError, Reader};
pub use record::{Plan, Recorder, Rotation, WriteError};
pub use write::Writer;

/// The enterprise number of fwtrace's options and blocks: the one that RFC 5612 sets aside for documentation. fwtrace has
/// none of its own; what carries this number is fwtrace's only if it reads as such.
pub const ENTERPRISE: u32 = 32473;

/// Bytes of each packet in a file, if nothing else is asked for: tcpdump's default, more than any packet has.
pub const SNAPLEN: u32 = 262_144;

/// What a custom block's text begins with: an event of stdout.
const EVENT: &str = "fwtrace-event ";
/// Likewise: an event that was told on stderr only, because stdout was to hold a number of drops and nothing else.
const ASIDE: &str = "fwtrace-aside ";
/// A section header's custom text, if its run watched several namespaces: each line says where it happened then.
const SEVERAL: &str = "fwtrace-several-namespaces";

/// What a packet's bytes begin with, by the numbers of <https://www.tcpdump.org/linktypes.html>.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LinkType(pub u16);

impl LinkType {
    /// A family in four bytes, of the byte order of the machine that wrote it.
    pub const NULL: Self = Self(0);
    /// An Ethernet header.
    pub const ETHERNET: Self = Self(1);
    /// An IPv4 or IPv6 header.
    pub const RAW: Self = Self(101);
    /// A family in four bytes, big-endian.
    pub const LOOP: Self = Self(108);
    /// An IPv4 header.
    pub const IPV4: Self = Self(228);
    /// An IPv6 header.
    pub const IPV6: Self = Self(229);
    /// Linux's cooked header, version 2.
    pub const LINUX_SLL2: Self = Self(276);
    /// Linux's cooked header: packet type, hardware type, address, EtherType.
    pub const LINUX_SLL: Self = Self(113);
}

#[cfg(test)]
mod tests;
