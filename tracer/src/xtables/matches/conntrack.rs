//! Matches on the connection of a packet.

use std::net::IpAddr;

use super::super::info::{Cond, Masked, Span};

/// `conntrack`, revisions 1 to 3 (`struct xt_conntrack_mtinfo1`, `2`, `3`), and `state` (`struct xt_state_info`), which asks for the state only.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Conntrack {
    /// It is to be printed as `-m state --state`: `XT_CONNTRACK_STATE_ALIAS` or the match `state`.
    pub alias: bool,
    /// State: bits [`STATE_INVALID`] and following.
    pub state: Option<Cond<u16>>,
    /// Protocol of the connection.
    pub proto: Option<Cond<u16>>,
    /// Source of the original direction.
    pub orig_src: Option<Cond<Masked<IpAddr>>>,
    /// Destination of the original direction.
    pub orig_dst: Option<Cond<Masked<IpAddr>>>,
    /// Source of the reply direction.
    pub reply_src: Option<Cond<Masked<IpAddr>>>,
    /// Destination of the reply direction.
    pub reply_dst: Option<Cond<Masked<IpAddr>>>,
    /// Source port of the original direction.
    pub orig_sport: Option<Cond<Span<u16>>>,
    /// Destination port of the original direction.
    pub orig_dport: Option<Cond<Span<u16>>>,
    /// Source port of the reply direction.
    pub reply_sport: Option<Cond<Span<u16>>>,
    /// Destination port of the reply direction.
    pub reply_dport: Option<Cond<Span<u16>>>,
    /// Status: bits `IPS_*` (1 expected, 2 seen reply, 4 assured, 8 confirmed); 0 is none.
    pub status: Option<Cond<u16>>,
    /// Seconds until it expires.
    pub expires: Option<Cond<Span<u32>>>,
    /// Direction: not inverted is the original one, inverted the reply.
    pub direction: Option<Direction>,
}

/// Direction of a packet in its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// As the first packet.
    Original,
    /// The other.
    Reply,
}

/// The packet belongs to no connection and could not have made one.
pub const STATE_INVALID: u16 = 1;
/// Of a connection with packets in both directions.
pub const STATE_ESTABLISHED: u16 = 1 << 1;
/// Of a connection that another one expected.
pub const STATE_RELATED: u16 = 1 << 2;
/// Of a new connection.
pub const STATE_NEW: u16 = 1 << 3;
/// The source is translated (`XT_CONNTRACK_STATE_SNAT`).
pub const STATE_SNAT: u16 = 1 << 6;
/// The destination is translated.
pub const STATE_DNAT: u16 = 1 << 7;
/// Not tracked. (`state`'s own bit for it, 1 << 6, is mapped to this one.)
pub const STATE_UNTRACKED: u16 = 1 << 8;

/// `connbytes`: `struct xt_connbytes_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connbytes {
    /// The range; inverted where the kernel has its ends in the wrong order.
    pub count: Cond<Span<u64>>,
    /// What is counted.
    pub mode: ConnbytesMode,
    /// Of which direction.
    pub direction: ConnbytesDirection,
}

/// What `connbytes` counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnbytesMode {
    /// Packets.
    Packets,
    /// Bytes.
    Bytes,
    /// Bytes by packets.
    AveragePacket,
    /// Not known.
    Other(u8),
}

/// Which direction `connbytes` counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnbytesDirection {
    /// Original.
    Original,
    /// Reply.
    Reply,
    /// Both.
    Both,
    /// Not known.
    Other(u8),
}

/// `connlimit`, revision 1: `struct xt_connlimit_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connlimit {
    /// Connections are counted for each network of this mask (as it stands in the structure).
    pub mask: IpAddr,
    /// The limit.
    pub limit: u32,
    /// True: matches up to the limit (`upto`); false: above it.
    pub upto: bool,
    /// Grouped by destination rather than source.
    pub destination: bool,
    /// Its revision: 0 has no flag for the destination.
    pub rev: u8,
}

/// `connlabel`: `struct xt_connlabel_mtinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connlabel {
    /// The label's bit.
    pub bit: Cond<u16>,
    /// Sets the label before it looks.
    pub set: bool,
}

/// `helper`: `struct xt_helper_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Helper {
    /// Name of the helper; empty for any.
    pub name: Cond<String>,
}

/// `cluster`: `struct xt_cluster_match_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// Nodes of the cluster.
    pub total_nodes: u32,
    /// A bit for each node that this one plays.
    pub node_mask: Cond<u32>,
    /// Seed of the hash.
    pub seed: u32,
}
