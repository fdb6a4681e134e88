//! Matches on the connection of a packet beyond those of `conntrack`: its size, number, label, helper.

use std::{
    fmt::{self, Write as _},
    net::IpAddr,
};

use zerocopy::FromBytes;

use super::super::{
    Family,
    info::{Cond, InetAddr, Not, Quoted, Span, read, text},
};
use crate::ruleset::render::Names;

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

#[derive(FromBytes)]
#[repr(C)]
struct RawConnbytes {
    from: u64,
    to: u64,
    mode: u8,
    direction: u8,
}

impl Connbytes {
    pub(super) fn decode(info: &[u8]) -> Option<Self> {
        let raw: RawConnbytes = read(info)?;
        let inverted = raw.from > raw.to;
        let count = if inverted {
            Span::new(raw.to, raw.from)
        } else {
            Span::new(raw.from, raw.to)
        };
        Some(Self {
            count: Cond::new(count, inverted),
            mode: match raw.mode {
                0 => ConnbytesMode::Packets,
                1 => ConnbytesMode::Bytes,
                2 => ConnbytesMode::AveragePacket,
                other => ConnbytesMode::Other(other),
            },
            direction: match raw.direction {
                0 => ConnbytesDirection::Original,
                1 => ConnbytesDirection::Reply,
                2 => ConnbytesDirection::Both,
                other => ConnbytesDirection::Other(other),
            },
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        let Span { min, max } = self.count.want;
        write!(out, "{} --connbytes {min}", Not(self.count.inverted))?;
        if max != 0 && max != u64::MAX {
            write!(out, ":{max}")?;
        }
        let mode = match self.mode {
            ConnbytesMode::Packets => "packets",
            ConnbytesMode::Bytes => "bytes",
            ConnbytesMode::AveragePacket => "avgpkt",
            ConnbytesMode::Other(_) => "unknown",
        };
        let direction = match self.direction {
            ConnbytesDirection::Original => "original",
            ConnbytesDirection::Reply => "reply",
            ConnbytesDirection::Both => "both",
            ConnbytesDirection::Other(_) => "unknown",
        };
        write!(out, " --connbytes-mode {mode} --connbytes-dir {direction}")
    }
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

#[derive(FromBytes)]
#[repr(C)]
struct RawConnlimit {
    mask: InetAddr,
    limit: u32,
    flags: u32,
    _data: u64,
}

const _: () = assert!(size_of::<RawConnlimit>() == 32);

impl Connlimit {
    pub(super) fn decode(rev: u8, info: &[u8], family: Family) -> Option<Self> {
        let raw: RawConnlimit = read(info)?;
        Some(Self {
            mask: raw.mask.get(family),
            limit: raw.limit,
            upto: raw.flags & 1 != 0,
            destination: rev > 0 && raw.flags & 2 != 0,
            rev,
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        let option = if self.upto {
            "--connlimit-upto"
        } else {
            "--connlimit-above"
        };
        let bits = match self.mask {
            IpAddr::V4(mask) => mask.to_bits().leading_ones(),
            IpAddr::V6(mask) => mask.to_bits().leading_ones(),
        };
        write!(out, " {option} {} --connlimit-mask {bits}", self.limit)?;
        match (self.rev, self.destination) {
            (0, _) => {}
            (_, true) => out.push_str(" --connlimit-daddr"),
            (_, false) => out.push_str(" --connlimit-saddr"),
        }
        Ok(())
    }
}

/// `connlabel`: `struct xt_connlabel_mtinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connlabel {
    /// The label's bit.
    pub bit: Cond<u16>,
    /// Sets the label before it looks.
    pub set: bool,
}

#[derive(FromBytes)]
#[repr(C)]
struct RawConnlabel {
    bit: u16,
    options: u16,
}

impl Connlabel {
    pub(super) fn decode(info: &[u8]) -> Option<Self> {
        let raw: RawConnlabel = read(info)?;
        Some(Self {
            bit: Cond::new(raw.bit, raw.options & 1 != 0),
            set: raw.options & 2 != 0,
        })
    }

    pub(super) fn options(&self, names: &Names, out: &mut String) -> fmt::Result {
        write!(out, "{} --label ", Not(self.bit.inverted))?;
        match names.label(self.bit.want.into()) {
            Some(name) => write!(out, "\"{name}\"")?,
            None => write!(out, "\"{}\"", self.bit.want)?,
        }
        if self.set {
            out.push_str(" --set");
        }
        Ok(())
    }
}

/// `helper`: `struct xt_helper_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Helper {
    /// Name of the helper; empty for any.
    pub name: Cond<String>,
}

#[derive(FromBytes)]
#[repr(C)]
struct RawHelper {
    inverted: u32,
    name: [u8; 30],
}

impl Helper {
    pub(super) fn decode(info: &[u8]) -> Option<Self> {
        let raw: RawHelper = read(info)?;
        Some(Self {
            name: Cond::new(text(&raw.name), raw.inverted != 0),
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        write!(
            out,
            "{} --helper {}",
            Not(self.name.inverted),
            Quoted(&self.name.want)
        )
    }
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

#[derive(FromBytes)]
#[repr(C)]
struct RawCluster {
    total_nodes: u32,
    node_mask: u32,
    seed: u32,
    flags: u32,
}

impl Cluster {
    pub(super) fn decode(info: &[u8]) -> Option<Self> {
        let raw: RawCluster = read(info)?;
        Some(Self {
            total_nodes: raw.total_nodes,
            node_mask: Cond::new(raw.node_mask, raw.flags & 1 != 0),
            seed: raw.seed,
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        write!(
            out,
            "{} --cluster-local-nodemask {:#010x} --cluster-total-nodes {} --cluster-hash-seed {:#010x}",
            Not(self.node_mask.inverted),
            self.node_mask.want,
            self.total_nodes,
            self.seed
        )
    }
}
