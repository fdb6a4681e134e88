//! One drop, as the BPF program saw it.

use crate::{CtMoved, IFNAMSIZ, LegacyEvidence};

/// Version of the record; user space refuses any other.
pub const ABI_VERSION: u32 = 3;
/// Longest captured packet, bytes.
pub const SNAP_MAX: usize = 2048;
/// Words of kernel stack above the tracepoint's arguments that can go with a record: up to the caller of the hook, which on Debian's 6.1 is more than 90
/// words away.
pub const STACK_WORDS: usize = 144;
/// Bytes of a table's or chain's name that go with a record; the handles are the identity.
pub const NAME_MAX: usize = 32;
/// Length of `struct nf_conntrack_tuple` (include/net/netfilter/nf_conntrack_tuple.h, v6.18):
/// source address (16), source port or id (2), L3 protocol number (2), destination address (16),
/// destination port or type and code (2), protocol (1), direction (1). Addresses, ports: big-endian.
pub const TUPLE_LEN: usize = 40;

/// [`Record::hook`] and [`Record::pf`] when they are not known.
pub const UNKNOWN: u8 = 0xff;

/// [`Record::flags`]: the packet was sent by the process in `tgid`, `uid`, `comm`.
pub const FLAG_PROCESS: u32 = 1;
/// [`Record::flags`]: conntrack is hooked into PREROUTING of the packet's family in this netns.
pub const FLAG_CT_PREROUTING: u32 = 2;
/// [`Record::flags`]: conntrack is hooked into OUTPUT of the packet's family in this netns.
pub const FLAG_CT_OUTPUT: u32 = 4;
/// [`Record::flags`]: whether conntrack is hooked in could be read.
pub const FLAG_CT_HOOKS_READ: u32 = 8;
/// [`Record::flags`]: the capture starts with the link-layer header.
pub const FLAG_L2: u32 = 16;
/// [`Record::flags`]: a VLAN tag is held beside the packet (`vlan_tci`, `vlan_proto`).
pub const FLAG_VLAN: u32 = 32;
/// [`Record::flags`]: the stack words follow the captured packet.
pub const FLAG_STACK: u32 = 64;

/// [`Record::flags`]: `pkt_type` and `priority` were read.
pub const FLAG_META: u32 = 128;
/// [`Record::flags`]: whether the packet has a route could be read: [`FLAG_DST`].
pub const FLAG_DST_READ: u32 = 256;
/// [`Record::flags`]: the packet has a route (`skb_dst`).
pub const FLAG_DST: u32 = 512;
/// [`Record::flags`]: the packet's socket could be read, and ids mean the same in the namespace's user
/// namespace as here: then [`FLAG_SK`], [`FLAG_SK_SOCKET`] and [`FLAG_SK_CRED`] say what there is.
pub const FLAG_SK_READ: u32 = 1024;
/// [`Record::flags`]: the packet has a full socket (for a request socket, its listener) of this netns, as
/// `meta skuid` and xt_owner look for it.
pub const FLAG_SK: u32 = 2048;
/// [`Record::flags`]: that socket has a `struct socket`: no orphan, none of the kernel's own.
pub const FLAG_SK_SOCKET: u32 = 4096;
/// [`Record::flags`]: and a file: `sk_uid` and `sk_gid`.
pub const FLAG_SK_CRED: u32 = 8192;
/// [`Record::flags`]: `sk_cgroup` was read.
pub const FLAG_SK_CGROUP: u32 = 16384;
/// [`Record::flags`]: `sk_classid` was read.
pub const FLAG_SK_CLASSID: u32 = 32768;

/// [`Record::flags`]: a [`Whole`] follows the captured packet and the stack words (at a multiple of 8), and then the rest of the
/// packet. Such records come in perf buffers.
pub const FLAG_WHOLE: u32 = 1 << 31;
/// Bytes of a record in a perf buffer, packet included. A sample's length is a u16 (`struct perf_event_header`, kernel/events/core.c,
/// v6.18), and there are a header, a length and padding.
pub const SAMPLE_MAX: u32 = 65_504;

/// [`RuleEvidence::kind`]: no rule pointer was looked for (not an nf_tables drop site we learnt).
pub const RULE_NONE: u32 = 0;
/// [`RuleEvidence::kind`]: dropped by the rule in `rule_handle`.
pub const RULE_RULE: u32 = 1;
/// [`RuleEvidence::kind`]: dropped by the policy of the base chain in `chain_handle`.
pub const RULE_POLICY: u32 = 2;
/// [`RuleEvidence::kind`]: a learnt drop site, but the pointer did not pass validation.
pub const RULE_INVALID: u32 = 3;

/// Which rule, read from the kernel's stack and validated against the chain's rule blob.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
pub struct RuleEvidence {
    /// `RULE_*`.
    pub kind: u32,
    /// 1-based position of the rule in its chain; for a policy, the number of rules in the chain
    /// that came to its end, or the position of the rule that returned.
    pub number: u32,
    /// `nft_rule_dp.handle`; for a policy, that of the rule that returned, 0 if the chain came to
    /// its end.
    pub rule_handle: u64,
    /// `nft_chain.handle` of the chain that holds the rule.
    pub chain_handle: u64,
    /// `nft_table.handle`: unique in its netns, never reused.
    pub table_handle: u64,
    /// `nft_chain.handle` of the base chain the packet entered through; 0 if not known.
    pub base_chain_handle: u64,
    /// `nft_table.family` (NFPROTO_*).
    pub family: u32,
    /// Zero.
    pub pad: u32,
    /// Table name, NUL-terminated, cut to fit.
    pub table: [u8; NAME_MAX],
    /// Chain name, NUL-terminated, cut to fit.
    pub chain: [u8; NAME_MAX],
}

/// What there is of a packet beyond the captured bytes, with [`FLAG_WHOLE`].
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
pub struct Whole {
    /// Length of the whole packet from the start of the capture on; 0: not known.
    pub len: u32,
    /// Bytes that follow here: those of the packet behind the captured ones.
    pub bytes: u32,
}

/// A drop. `captured` bytes of packet follow, then, with [`FLAG_STACK`], [`STACK_WORDS`] words.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
pub struct Record {
    /// [`ABI_VERSION`].
    pub version: u32,
    /// `FLAG_*`.
    pub flags: u32,
    /// CLOCK_MONOTONIC, nanoseconds.
    pub time: u64,
    /// How many drops it stands for: itself, and with [`Settings::sampling`](crate::Settings) those of its flow by the same rule that were only counted since
    /// the last record of these on this processor.
    pub count: u64,
    /// Address of the sk_buff.
    pub skb: u64,
    /// Return address of the caller that freed the packet.
    pub location: u64,
    /// `enum skb_drop_reason` of the running kernel.
    pub reason: u32,
    /// Processor.
    pub cpu: u32,
    /// Inode of the network namespace.
    pub netns: u32,
    /// `net.nft.base_seq`, the ruleset's generation; 0 if this kernel does not show it.
    pub generation: u32,
    /// Interface the packet came in on; 0 if none.
    pub iif: u32,
    /// Interface the packet was going out of; 0 if none or not known.
    pub oif: u32,
    /// Name of `iif`, NUL-padded.
    pub iif_name: [u8; IFNAMSIZ],
    /// Name of `oif`, NUL-padded.
    pub oif_name: [u8; IFNAMSIZ],
    /// `sk_buff.mark`.
    pub mark: u32,
    /// `sk_buff.len` at the moment of the drop.
    pub len: u32,
    /// `sk_buff.protocol`, big-endian.
    pub protocol: u16,
    /// `sk_buff.pkt_type`, PACKET_* (include/uapi/linux/if_packet.h), with [`FLAG_META`].
    pub pkt_type: u8,
    /// Zero.
    pub pad: u8,
    /// Netfilter hook number within `pf`, or [`UNKNOWN`].
    pub hook: u8,
    /// Netfilter protocol family (NFPROTO_*), or [`UNKNOWN`].
    pub pf: u8,
    /// VLAN tag control information (host order), with [`FLAG_VLAN`].
    pub vlan_tci: u16,
    /// VLAN protocol (big-endian), with [`FLAG_VLAN`].
    pub vlan_proto: u16,
    /// Bytes of link-layer header at the start of the capture.
    pub l2_len: u16,
    /// Bytes of packet that follow this record.
    pub captured: u32,
    /// `sk_buff._nfct`: the nf_conn's address, `enum ip_conntrack_info` in the low three bits.
    pub nfct: u64,
    /// `nf_conn.status`, IPS_* bits.
    pub ct_status: u32,
    /// `nf_conn.mark`.
    pub ct_mark: u32,
    /// `nf_conn.zone.id`.
    pub ct_zone: u16,
    /// `nf_conn.proto.tcp.state`; a value only if the tuple's protocol is TCP.
    pub ct_tcp_state: u8,
    /// Zero.
    pub pad2: u8,
    /// Thread id, with [`FLAG_PROCESS`].
    pub pid: u32,
    /// Process id, with [`FLAG_PROCESS`].
    pub tgid: u32,
    /// User id, with [`FLAG_PROCESS`].
    pub uid: u32,
    /// Command name of the process (its main thread's), NUL-padded.
    pub comm: [u8; 16],
    /// `sk_buff.priority`, with [`FLAG_META`].
    pub priority: u32,
    /// `fsuid` of the opener of the packet's socket, as `meta skuid` has it; with [`FLAG_SK_CRED`].
    pub sk_uid: u32,
    /// Its `fsgid`, likewise.
    pub sk_gid: u32,
    /// net_cls class of the socket, `meta cgroup`; with [`FLAG_SK_CLASSID`].
    pub sk_classid: u32,
    /// Id of the socket's cgroup (the inode of its directory in cgroup2), with [`FLAG_SK_CGROUP`].
    pub sk_cgroup: u64,
    /// The connection's original tuple.
    pub ct_orig: [u8; TUPLE_LEN],
    /// The connection's reply tuple.
    pub ct_reply: [u8; TUPLE_LEN],
    /// The rule of nf_tables.
    pub rule: RuleEvidence,
    /// The rule of ip_tables or ip6_tables.
    pub legacy: LegacyEvidence,
    /// What conntrack has counted on this processor since the last drop that was looked at.
    pub ct_moved: CtMoved,
}

const _: () = assert!(size_of::<RuleEvidence>() == 48 + 2 * NAME_MAX);
const _: () = assert!(
    size_of::<Record>()
        == 272 + size_of::<RuleEvidence>() + size_of::<LegacyEvidence>() + size_of::<CtMoved>()
);
const _: () = assert!(size_of::<Record>().is_multiple_of(8));
const _: () = assert!(core::mem::offset_of!(Record, iif_name).is_multiple_of(8));
const _: () = assert!(core::mem::offset_of!(Record, legacy).is_multiple_of(8));
const _: () = assert!(core::mem::offset_of!(Record, oif_name).is_multiple_of(8));
