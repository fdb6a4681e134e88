//! What user space tells the BPF program, and what it counts.

use crate::{IFNAMSIZ, RuleEvidence, SNAP_MAX};

/// Drop sites (`location` values) that calibration can teach.
pub const SITES: usize = 4;
/// Words of stack that are searched for `struct nft_pktinfo`.
pub const PKTINFO_WINDOW: usize = 32;
/// Interfaces in a filter.
pub const IFACES: usize = 8;
/// Port ranges in a filter.
pub const PORTS: usize = 16;
/// Address prefixes in a filter, all kinds together.
pub const PREFIXES: usize = 16;
/// Drop reasons in a filter.
pub const REASONS: usize = 32;

/// No kernel's drop reason.
pub const NO_REASON: u32 = u32::MAX;

/// [`Site::kind`]: not in use.
pub const SITE_NONE: u32 = 0;
/// [`Site::kind`]: a rule's verdict dropped the packet.
pub const SITE_RULE: u32 = 1;
/// [`Site::kind`]: a base chain's policy dropped the packet.
pub const SITE_POLICY: u32 = 2;

/// [`PortRange::side`], [`Prefix::side`]: source or destination.
pub const SIDE_ANY: u32 = 0;
/// Source only.
pub const SIDE_SRC: u32 = 1;
/// Destination only.
pub const SIDE_DST: u32 = 2;

/// A drop site in nft_do_chain, learnt by calibration: where its variables stand on the stack, in
/// 8-byte words above the tracepoint's argument array. -1: not found.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Site {
    /// Return address in nft_do_chain.
    pub location: u64,
    /// `SITE_*`.
    pub kind: u32,
    /// Word that holds the rule's address (for a policy, the address of the chain's last header).
    pub rule_slot: i32,
    /// 1: `rule_slot` holds the address of the *next* rule.
    pub next: u32,
    /// Word that holds the base chain's address.
    pub base_slot: i32,
    /// First of the [`PKTINFO_WINDOW`] words among which `struct nft_pktinfo` begins (its place in the
    /// frame of nft_do_chain's caller differs between families): the skb, then its hook state.
    pub pktinfo_slot: i32,
    /// Zero.
    pub pad: u32,
}

/// Ports `first..=last`, host order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortRange {
    /// First port.
    pub first: u16,
    /// Last port.
    pub last: u16,
    /// `SIDE_*`.
    pub side: u32,
}

/// An address prefix. Prefixes of one side are alternatives; sides must all match.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prefix {
    /// Address, words in network order, host bits zero; IPv4 in the first word, the others zero.
    pub addr: [u32; 4],
    /// Mask, likewise.
    pub mask: [u32; 4],
    /// 4 or 6.
    pub family: u32,
    /// `SIDE_*`.
    pub side: u32,
}

/// Settings of the drop program. All conditions are conjunctions; an empty list is no condition.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Learnt drop sites.
    pub sites: [Site; SITES],
    /// Address of `ipv4_conntrack_in`, 0 if not known; then `ipv4_conntrack_local`,
    /// `ipv6_conntrack_in`, `ipv6_conntrack_local`.
    pub conntrack_hooks: [u64; 4],
    /// First address of `nf_hook_slow`, and the first behind it; 0 if not known.
    pub hook_slow: [u64; 2],
    /// Addresses of the hook functions of ip_tables and ip6_tables: `ipt_do_table`,
    /// `iptable_mangle_hook`, `ip6t_do_table`, `ip6table_mangle_hook`; 0 if not known.
    pub legacy_hooks: [u64; 4],
    /// Addresses of the hook functions of nf_tables for IP, which drop elsewhere: `nft_do_chain_ipv4`,
    /// `nft_do_chain_ipv6`, `nft_do_chain_inet`; 0 if not known.
    pub nftables_hooks: [u64; 3],
    /// 1: every netns; 0: those in the map `NETNS`.
    pub all_netns: u32,
    /// The value of SKB_DROP_REASON_NETFILTER_DROP.
    pub netfilter_drop: u32,
    /// 1: records for every reason.
    pub all_reasons: u32,
    /// How many of `reasons` are in use; 0: netfilter's only.
    pub reason_count: u32,
    /// Reasons that get records; the rest is [`NO_REASON`].
    pub reasons: [u32; REASONS],
    /// Bytes of packet to capture from the network header on. Up to [`SNAP_MAX`]: of its linear part, into the ring. More: of all of
    /// it, into perf buffers; see [`FLAG_WHOLE`](crate::FLAG_WHOLE).
    pub snaplen: u32,
    /// 1: send stack words with drops by netfilter that have no learnt site.
    pub want_stack: u32,
    /// 1: in a flood, drops of one flow by one rule are counted, and a record now and then stands for them.
    pub sampling: u32,
    /// 4, 6 or 0 for any.
    pub ip_version: u32,
    /// 1: `proto` is a condition.
    pub proto_set: u32,
    /// IP protocol number.
    pub proto: u32,
    /// How many of `ifaces` are in use.
    pub iface_count: u32,
    /// How many of `ports` are in use.
    pub port_count: u32,
    /// How many of `prefixes` are in use.
    pub prefix_count: u32,
    /// Zero.
    pub pad: u32,
    /// Interface names, NUL-padded; the packet's iif or oif must be one of them.
    pub ifaces: [[u8; IFNAMSIZ]; IFACES],
    /// Port ranges: `SIDE_ANY` ranges are alternatives to each other, so are `SIDE_SRC`'s and `SIDE_DST`'s.
    pub ports: [PortRange; PORTS],
    /// Address prefixes.
    pub prefixes: [Prefix; PREFIXES],
}

impl Settings {
    /// Whether records come in perf buffers.
    #[inline(always)]
    pub const fn wants_whole_packets(&self) -> bool {
        self.snaplen > SNAP_MAX as u32
    }

    /// No condition, nothing learnt.
    pub const NONE: Self = Self {
        sites: [Site {
            location: 0,
            kind: SITE_NONE,
            rule_slot: -1,
            next: 0,
            base_slot: -1,
            pktinfo_slot: -1,
            pad: 0,
        }; SITES],
        conntrack_hooks: [0; 4],
        hook_slow: [0; 2],
        legacy_hooks: [0; 4],
        nftables_hooks: [0; 3],
        all_netns: 0,
        netfilter_drop: 0,
        all_reasons: 0,
        reason_count: 0,
        reasons: [NO_REASON; REASONS],
        snaplen: 128,
        want_stack: 0,
        sampling: 0,
        ip_version: 0,
        proto_set: 0,
        proto: 0,
        iface_count: 0,
        port_count: 0,
        prefix_count: 0,
        pad: 0,
        ifaces: [[0; IFNAMSIZ]; IFACES],
        ports: [PortRange {
            first: 0,
            last: 0,
            side: SIDE_ANY,
        }; PORTS],
        prefixes: [Prefix {
            addr: [0; 4],
            mask: [0; 4],
            family: 0,
            side: SIDE_ANY,
        }; PREFIXES],
    };
}

/// Exact counters, one set a processor.
/// `seen == filtered + other + sent + aggregated + full` at rest.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Drops in the watched namespaces, whatever the reason.
    pub seen: u64,
    /// Did not match the filter.
    pub filtered: u64,
    /// Matched the filter, but for a reason that is only counted (map `REASONS`).
    pub other: u64,
    /// Records in the ring.
    pub sent: u64,
    /// Drops that were only counted: another record stands for them, or was to, or the last one of their flow was sent shortly before.
    pub aggregated: u64,
    /// Records lost because the ring was full.
    pub full: u64,
    /// Drops that came while the program was at work on the same CPU, for which the kernel does not run it; whosever they are.
    pub skipped: u64,
    /// Those of them in the watched namespaces, for a reason that is not only counted. They are not in `seen`.
    pub skipped_here: u64,
}

/// Key of the cache of validated rules: what the slots held, in which generation of the ruleset.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheKey {
    /// The rule slot's word.
    pub word: u64,
    /// The base chain slot's word.
    pub base: u64,
    /// `struct net`.
    pub net: u64,
    /// `net.nft.base_seq`.
    pub generation: u32,
    /// `SITE_*` kind, with 0x10 for `next`.
    pub kind: u32,
}

/// A validated rule.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CacheEntry {
    /// Made of the key. First, so that an entry that is overwritten while it is read shows.
    pub tag: u64,
    /// The rule.
    pub rule: RuleEvidence,
}

const _: () = assert!(SNAP_MAX.is_multiple_of(8));
const _: () = assert!(size_of::<Site>() == 32);
// The BPF program compares names word by word.
const _: () = assert!(core::mem::offset_of!(Settings, ifaces).is_multiple_of(8));
const _: () = assert!(size_of::<Prefix>() == 40);
const _: () = assert!(
    size_of::<Settings>()
        == SITES * 32
            + (4 + 2 + 4 + 3) * 8
            + 14 * 4
            + REASONS * 4
            + IFACES * 16
            + PORTS * 8
            + PREFIXES * 40
);
