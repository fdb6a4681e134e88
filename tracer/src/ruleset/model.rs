//! nf_tables rulesets as data: what the kernel holds, decoded but not interpreted.
//!
//! Numbers that name something (`NFT_META_*`, `NFT_CT_*`, operations, flags) are kept as the kernel has them
//! (include/uapi/linux/netfilter/nf_tables.h). Data of registers is kept as bytes: payload data is in network order, meta and ct
//! integers are in host order.

use std::fmt;

pub use super::expr::{CmpOp, Data, Expr, PayloadBase, Verdict};

/// The family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4 and IPv6, and since 5.10 ingress of a device.
    Inet,
    /// IPv4.
    Ip,
    /// ARP.
    Arp,
    /// Ingress and egress of a device.
    Netdev,
    /// Frames of a bridge.
    Bridge,
    /// IPv6.
    Ip6,
    /// Any other `NFPROTO_*`.
    Other(u8),
}

impl From<u8> for Family {
    fn from(nfproto: u8) -> Self {
        match nfproto {
            1 => Self::Inet,
            2 => Self::Ip,
            3 => Self::Arp,
            5 => Self::Netdev,
            7 => Self::Bridge,
            10 => Self::Ip6,
            other => Self::Other(other),
        }
    }
}

impl From<Family> for u8 {
    fn from(family: Family) -> Self {
        match family {
            Family::Inet => 1,
            Family::Ip => 2,
            Family::Arp => 3,
            Family::Netdev => 5,
            Family::Bridge => 7,
            Family::Ip6 => 10,
            Family::Other(other) => other,
        }
    }
}

impl fmt::Display for Family {
    /// As nft writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Arp => "arp",
            Self::Netdev => "netdev",
            Self::Bridge => "bridge",
            Self::Ip6 => "ip6",
            Self::Other(number) => return write!(f, "family-{number}"),
        })
    }
}

/// All tables of one network namespace at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// The generation that was read (`NFTA_GEN_ID`); every commit counts it up, skipping 0.
    pub generation: u32,
    /// In the order of the kernel's dump.
    pub tables: Vec<Table>,
    /// What could not be read, in words: each costs what it names, not the ruleset. Empty when all is well.
    pub problems: Vec<String>,
}

impl Ruleset {
    /// The table with this handle, and its index.
    pub fn table(&self, handle: u64) -> Option<(usize, &Table)> {
        self.tables
            .iter()
            .enumerate()
            .find(|(_, table)| table.handle == handle)
    }

    /// The table of this family and name, and its index.
    pub fn table_named(&self, family: Family, name: &str) -> Option<(usize, &Table)> {
        self.tables
            .iter()
            .enumerate()
            .find(|(_, table)| table.family == family && table.name == name)
    }
}

/// A table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Its family.
    pub family: Family,
    /// Its name, unique within the family.
    pub name: String,
    /// Its handle, unique in the network namespace and never used again there (`table_handle`, net/netfilter/nf_tables_api.c, v6.18).
    pub handle: u64,
    /// `NFT_TABLE_F_*`: 1 dormant, 2 owner, 4 persist.
    pub flags: u32,
    /// The netlink port of the process that owns it.
    pub owner: Option<u32>,
    /// Its comment.
    pub comment: Option<String>,
    /// Attached by whoever made it; nft stores the comment there.
    pub userdata: Vec<u8>,
    /// In the order of the kernel's dump, which is the order of creation.
    pub chains: Vec<Chain>,
    /// Sets and maps, named and anonymous.
    pub sets: Vec<Set>,
    /// Stateful objects.
    pub objects: Vec<Object>,
    /// Flowtables.
    pub flowtables: Vec<Flowtable>,
    /// Whether iptables-nft made it, as far as names, chains and rules tell (`xtables::save::is_iptables`); found once, when it has been read.
    pub iptables: bool,
}

impl Table {
    /// `NFT_TABLE_F_DORMANT`: its chains are on no hook.
    pub const DORMANT: u32 = 1;
    /// `NFT_TABLE_F_OWNER`: it belongs to a process and goes with it.
    pub const OWNER: u32 = 2;
    /// `NFT_TABLE_F_PERSIST`: it has an owner and outlives it.
    pub const PERSIST: u32 = 4;

    /// The chain of this name.
    pub fn chain(&self, name: &str) -> Option<&Chain> {
        self.chains.iter().find(|chain| chain.name == name)
    }

    /// The set or map of this name.
    pub fn set(&self, name: &str) -> Option<&Set> {
        self.sets.iter().find(|set| set.name == name)
    }
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Its name, unique in the table.
    pub name: String,
    /// Its handle; chains, rules, sets, objects and flowtables of a table draw theirs from one counter that only grows.
    pub handle: u64,
    /// Where it hooks in; `None` for a chain that is only jumped to.
    pub base: Option<BaseChain>,
    /// `NFT_CHAIN_*`: 1 base, 2 hardware offload, 4 binding.
    pub flags: u32,
    /// Its comment.
    pub comment: Option<String>,
    /// Attached by whoever made it.
    pub userdata: Vec<u8>,
    /// In the order of evaluation.
    pub rules: Vec<Rule>,
}

impl Chain {
    /// `NFT_CHAIN_BINDING`: an anonymous chain that belongs to the one rule that jumps to it (`jump { ... }`).
    pub const BINDING: u32 = 4;
}

/// What makes a chain a base chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseChain {
    /// `filter`, `nat` or `route`.
    pub kind: String,
    /// Hook number. For ip, ip6, inet and bridge: 0 prerouting, 1 input, 2 forward, 3 output, 4 postrouting (inet: 5 ingress);
    /// arp: 0 input, 1 output; netdev: 0 ingress, 1 egress.
    pub hook: u32,
    /// Lower comes first.
    pub priority: i32,
    /// What becomes of a packet at the end: `NF_DROP` 0 or `NF_ACCEPT` 1.
    pub policy: u32,
    /// The devices of a netdev or inet ingress chain.
    pub devices: Vec<String>,
    /// Packets and bytes that the policy decided on, counted only once a counter was asked for.
    pub counters: Option<Counters>,
}

/// Packets and bytes counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// A rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// Its handle, unique in the table; see [`Chain::handle`]. `replace rule` keeps it: the same handle can have meant another rule
    /// before (`nf_tables_newrule()`, net/netfilter/nf_tables_api.c, v6.18).
    pub handle: u64,
    /// Its place in the chain, the first is 1.
    pub number: u32,
    /// Its expressions, in the order of evaluation.
    pub exprs: Vec<Expr>,
    /// Its comment, where nft put one (iptables-nft has a `match comment` expression).
    pub comment: Option<String>,
    /// Attached by whoever made it.
    pub userdata: Vec<u8>,
    /// What iptables-nft says about the protocol.
    pub compat: Option<Compat>,
    /// Part of it could not be read: the expressions are not all of what the kernel runs.
    pub broken: bool,
}

/// `NFTA_RULE_COMPAT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compat {
    /// IP protocol number, or 0.
    pub protocol: u32,
    /// `NFT_RULE_COMPAT_F_*`: 2 inverted.
    pub flags: u32,
}

/// What happens at the end of a rule whose matches all held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending<'a> {
    /// The next rule.
    Continue,
    /// The packet goes on to the next base chain. NAT, redirect and tproxy end so too.
    Accept,
    /// The packet is dropped.
    Drop,
    /// The packet is dropped and its sender is told.
    Reject,
    /// The packet is handed to user space.
    Queue,
    /// The packet is taken over by the kernel: `fwd`, `synproxy`, `NF_STOLEN`.
    Stolen,
    /// The chain is called.
    Jump(&'a str),
    /// The chain replaces this one.
    Goto(&'a str),
    /// Back to the calling chain, or the policy.
    Return,
    /// The element of this map that matches says it; no element, and the rule does not match.
    Map(&'a str),
    /// An xtables target that is not known to be of one of the kinds above.
    Target(&'a str),
    /// Any other verdict code.
    Other(i32),
}

impl Rule {
    /// What happens when all of the rule's matches hold.
    ///
    /// Expressions that end the packet's way in some cases only (a synproxy, a NAT without a free tuple) count as what they do normally.
    pub fn ending(&self) -> Ending<'_> {
        self.exprs
            .iter()
            .map(Expr::ending)
            .find(|ending| *ending != Ending::Continue)
            .unwrap_or(Ending::Continue)
    }

    /// Whether the rule itself decides about every packet that it matches: accept, drop, reject, queue, stolen. Not so: jump, goto,
    /// return, verdict maps and rules without a verdict.
    pub fn decides(&self) -> bool {
        matches!(
            self.ending(),
            Ending::Accept | Ending::Drop | Ending::Reject | Ending::Queue | Ending::Stolen
        )
    }

    /// Whether this is the same rule as `other`, apart from its place and from what its counters, quotas and the like have come to.
    pub fn is_same(&self, other: &Self) -> bool {
        self.handle == other.handle
            && self.userdata == other.userdata
            && self.exprs.len() == other.exprs.len()
            && self
                .exprs
                .iter()
                .zip(&other.exprs)
                .all(|(a, b)| a.is_same(b))
    }

    /// Whether the rule answers the sender: `reject`, or the xtables target `REJECT`. A drop by such a rule is a rejection.
    pub fn is_reject(&self) -> bool {
        self.exprs
            .iter()
            .any(|expr| expr.ending() == Ending::Reject)
    }
}

/// A set or map.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Set {
    /// Its name, unique in the table; anonymous ones are called `__set0`, `__map0`, ...
    pub name: String,
    /// Its handle; see [`Chain::handle`].
    pub handle: u64,
    /// `NFT_SET_*`, see the constants.
    pub flags: u32,
    /// nft's number for the key's type; concatenations hold six bits per field, the first field highest. The kernel does not look at it.
    pub key_type: u32,
    /// Bytes of a key.
    pub key_len: u32,
    /// nft's number for the data's type, `NFT_DATA_VERDICT` (0xffffff00) for verdict maps.
    pub data_type: Option<u32>,
    /// Bytes of the data.
    pub data_len: Option<u32>,
    /// `NFT_OBJECT_*` of an object map.
    pub obj_type: Option<u32>,
    /// Milliseconds after which elements expire that have no timeout of their own.
    pub timeout: Option<u64>,
    /// Milliseconds between two collections of expired elements.
    pub gc_interval: Option<u32>,
    /// `NFT_SET_POL_*`: 1 memory; the kernel leaves 0 (performance) out.
    pub policy: Option<u32>,
    /// The most elements it may have.
    pub size: Option<u32>,
    /// Bytes of each field of a concatenated key, unpadded, where the kernel was told (interval sets). Empty otherwise.
    pub fields: Vec<u32>,
    /// Attached by whoever made it: nft stores byte orders, `typeof` expressions and the comment there.
    pub userdata: Vec<u8>,
    /// Its comment.
    pub comment: Option<String>,
    /// Expressions that every element has a copy of (counter, limit, ...).
    pub exprs: Vec<Expr>,
    /// In the order of the kernel's dump.
    pub elements: Vec<Element>,
}

impl Set {
    /// `NFT_SET_ANONYMOUS`: it belongs to the one rule that uses it.
    pub const ANONYMOUS: u32 = 0x1;
    /// `NFT_SET_CONSTANT`.
    pub const CONSTANT: u32 = 0x2;
    /// `NFT_SET_INTERVAL`: elements are ranges.
    pub const INTERVAL: u32 = 0x4;
    /// `NFT_SET_MAP`: elements have data.
    pub const MAP: u32 = 0x8;
    /// `NFT_SET_TIMEOUT`: elements may expire.
    pub const TIMEOUT: u32 = 0x10;
    /// `NFT_SET_EVAL`: rules may add elements.
    pub const EVAL: u32 = 0x20;
    /// `NFT_SET_OBJECT`: the data are names of objects.
    pub const OBJECT: u32 = 0x40;
    /// `NFT_SET_CONCAT`: keys are concatenations.
    pub const CONCAT: u32 = 0x80;
    /// `NFT_SET_EXPR`: elements have expressions.
    pub const EXPR: u32 = 0x100;
    /// [`Set::data_type`] of a verdict map.
    pub const VERDICT: u32 = 0xffff_ff00;
}

/// An element of a set or map.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Element {
    /// The key; `None` for the catch-all element. In an interval set without [`Element::key_end`] it is where a range starts,
    /// and the next element with [`Element::INTERVAL_END`] says where it no longer is.
    pub key: Option<Vec<u8>>,
    /// The last key of a range (concatenated interval sets).
    pub key_end: Option<Vec<u8>>,
    /// What the key maps to.
    pub data: Option<Data>,
    /// The object that the key maps to.
    pub objref: Option<String>,
    /// `NFT_SET_ELEM_*`: 1 interval end, 2 catch-all.
    pub flags: u32,
    /// Milliseconds that it lives.
    pub timeout: Option<u64>,
    /// Milliseconds that it had left when the ruleset was read.
    pub expiration: Option<u64>,
    /// Attached by whoever made it.
    pub userdata: Vec<u8>,
    /// Its comment.
    pub comment: Option<String>,
    /// Its expressions (counter, limit, ...).
    pub exprs: Vec<Expr>,
}

impl Element {
    /// `NFT_SET_ELEM_INTERVAL_END`.
    pub const INTERVAL_END: u32 = 1;
    /// `NFT_SET_ELEM_CATCHALL`.
    pub const CATCHALL: u32 = 2;
}

/// A stateful object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Its name, unique in the table among the objects of its type.
    pub name: String,
    /// Its handle; see [`Chain::handle`].
    pub handle: u64,
    /// `NFT_OBJECT_*`: 1 counter, 2 quota, 3 ct helper, 4 limit, 5 connlimit, 6 tunnel, 7 ct timeout, 8 secmark, 9 ct expectation, 10 synproxy.
    pub kind: u32,
    /// Attached by whoever made it.
    pub userdata: Vec<u8>,
    /// Its comment.
    pub comment: Option<String>,
    /// What it is.
    pub state: ObjectState,
}

/// What an object holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ObjectState {
    /// Counter, quota, limit, connlimit and synproxy hold what the expressions of these names hold.
    Expr(Expr),
    /// `ct helper`.
    CtHelper {
        /// The helper's name.
        name: String,
        /// `NFPROTO_*`.
        l3proto: u16,
        /// IP protocol number.
        l4proto: u8,
    },
    /// `ct timeout`.
    CtTimeout {
        /// `NFPROTO_*`.
        l3proto: u16,
        /// IP protocol number.
        l4proto: u8,
        /// Protocol state number (`CTA_TIMEOUT_*`) and seconds.
        timeouts: Vec<(u16, u32)>,
    },
    /// `ct expectation`.
    CtExpectation {
        /// `NFPROTO_*`.
        l3proto: u16,
        /// IP protocol number.
        l4proto: u8,
        /// Destination port.
        dport: u16,
        /// Milliseconds that an expectation lives.
        timeout: u32,
        /// The most expectations a master may have.
        size: u8,
    },
    /// `secmark`.
    Secmark {
        /// The security context.
        context: String,
    },
    /// `tunnel`.
    Tunnel {
        /// The tunnel's id.
        id: u32,
        /// Source address, 4 or 16 bytes, or none.
        source: Vec<u8>,
        /// Destination address, 4 or 16 bytes, or none.
        destination: Vec<u8>,
        /// Source port.
        sport: u16,
        /// Destination port.
        dport: u16,
        /// Type of service.
        tos: u8,
        /// Time to live.
        ttl: u8,
        /// `NFT_TUNNEL_F_*`: 1 zero checksum, 2 don't fragment, 4 sequence number.
        flags: u32,
        /// The options (vxlan, erspan, geneve) as the kernel has them.
        options: Vec<u8>,
    },
    /// Any other kind, or one that could not be read: the raw attributes.
    Unknown(Vec<u8>),
}

/// A flowtable: established flows that are in it bypass the chains.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flowtable {
    /// Its name, unique in the table.
    pub name: String,
    /// Its handle; see [`Chain::handle`].
    pub handle: u64,
    /// Hook number: 0 ingress.
    pub hook: u32,
    /// Lower comes first.
    pub priority: i32,
    /// Its devices.
    pub devices: Vec<String>,
    /// `NFT_FLOWTABLE_*`: 1 hardware offload, 2 counter.
    pub flags: u32,
}
