//! Matches on what belongs to the packet without being in it: marks, sockets, devices, CPU.

use super::super::info::{Cond, Masked, Span};

/// `mark` and `connmark`, revision 1: `struct xt_mark_mtinfo1`, `xt_connmark_mtinfo1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// `(mark & mask) == value`.
    pub mark: Cond<Masked<u32>>,
}

/// `owner`, revision 1: `struct xt_owner_match_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// There is a socket (inverted: none).
    pub socket: Option<Cond<()>>,
    /// User of the socket's file.
    pub uid: Option<Cond<Span<u32>>>,
    /// Group of the socket's file.
    pub gid: Option<Cond<Span<u32>>>,
    /// Supplementary groups are looked at too.
    pub supplementary_groups: bool,
}

/// `socket`, revisions 0 to 3.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Socket {
    /// Only transparent sockets.
    pub transparent: bool,
    /// Sockets bound to any address count too.
    pub nowildcard: bool,
    /// The packet gets the socket's mark.
    pub restore_skmark: bool,
}

/// `cgroup`, revisions 0 to 2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    /// Path in the unified hierarchy.
    pub path: Option<Cond<String>>,
    /// Class of net_cls.
    pub classid: Option<Cond<u32>>,
}

/// `cpu`: `struct xt_cpu_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cpu {
    /// The CPU that handles the packet.
    pub cpu: Cond<u32>,
}

/// `devgroup`: `struct xt_devgroup_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Devgroup {
    /// Group of the incoming interface.
    pub source: Option<Cond<Masked<u32>>>,
    /// Group of the outgoing one.
    pub destination: Option<Cond<Masked<u32>>>,
}

/// `physdev`: `struct xt_physdev_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Physdev {
    /// Incoming bridge port; ends in `+` where a prefix is compared.
    pub input: Option<Cond<String>>,
    /// Outgoing bridge port.
    pub output: Option<Cond<String>>,
    /// Came in through a bridge port.
    pub is_in: Option<Cond<()>>,
    /// Goes out through a bridge port.
    pub is_out: Option<Cond<()>>,
    /// Is bridged, not routed.
    pub is_bridged: Option<Cond<()>>,
}

/// `realm`: `struct xt_realm_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Realm {
    /// Realm of the route.
    pub realm: Cond<Masked<u32>>,
}

/// `osf`: `struct xt_osf_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Osf {
    /// Name of the system.
    pub genre: Cond<String>,
    /// How the TTL is compared, where that is said: 0 true, 1 less, 2 not at all.
    pub ttl: Option<u32>,
    /// What is logged, where that is said: 0 all, 1 first, 2 all known.
    pub log: Option<u32>,
}
