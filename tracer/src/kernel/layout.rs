//! BTF -> the offsets that the BPF programs read, and what is off when one is missing.
//!
//! Every field belongs to one named feature. A field the kernel does not have, or has in a size
//! the BPF programs do not expect, switches that feature off and leaves the others alone. So do
//! the facts that the BPF programs have hard-coded and that turn out to be false.

use fwtrace_abi::{ABSENT, CT_BYTES, Layout, SKB_BYTES, STATE_BYTES, TABLE_NAME, TUPLE_LEN};

use super::types::KernelTypes;

/// Something fwtrace can do when the kernel's structs are as it knows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Feature {
    /// The packet and where it is in the stack.
    DropRecord,
    /// The network namespace.
    Netns,
    /// Names and types of interfaces.
    Interfaces,
    /// The outgoing interface of a packet that has no device yet.
    Route,
    /// VLAN tags held beside the packet.
    Vlan,
    /// The exact rule, read from the kernel's stack.
    KernelStack,
    /// The ruleset's generation at the moment of the drop.
    Generation,
    /// Hook and interfaces as nf_tables saw them.
    HookState,
    /// The connection.
    Conntrack,
    /// The connection's mark.
    ConntrackMark,
    /// The connection's zone.
    ConntrackZone,
    /// Whether conntrack sees the packets of a namespace at all.
    ConntrackHooks,
    /// Which chain of one priority a device's packets come to first.
    DeviceHooks,
    /// The same of families arp and bridge.
    LinkHooks,
    /// Whether conntrack itself dropped, by its counters.
    ConntrackCounters,
    /// The sending process.
    Process,
    /// The exact rule of iptables-legacy, by the counters of its tables.
    KernelCounters,
    /// How the packet was addressed on its link, and its priority.
    PacketMeta,
    /// The owner of the packet's socket.
    Socket,
    /// The control group of the packet's socket.
    SocketCgroup,
    /// The net_cls class of the packet's socket.
    SocketClassid,
}

impl Feature {
    /// All of them, in the order they are listed to the user.
    pub const ALL: &'static [Self] = &[
        Self::DropRecord,
        Self::Netns,
        Self::Interfaces,
        Self::Route,
        Self::Vlan,
        Self::KernelStack,
        Self::Generation,
        Self::HookState,
        Self::Conntrack,
        Self::ConntrackMark,
        Self::ConntrackZone,
        Self::ConntrackHooks,
        Self::DeviceHooks,
        Self::LinkHooks,
        Self::ConntrackCounters,
        Self::Process,
        Self::KernelCounters,
        Self::PacketMeta,
        Self::Socket,
        Self::SocketCgroup,
        Self::SocketClassid,
    ];

    /// Its name, as shown to the user.
    pub fn name(self) -> &'static str {
        match self {
            Self::DropRecord => "drop-record",
            Self::Netns => "netns",
            Self::Interfaces => "interfaces",
            Self::Route => "route",
            Self::Vlan => "vlan",
            Self::KernelStack => "kernel-stack",
            Self::Generation => "generation",
            Self::HookState => "hook-state",
            Self::Conntrack => "conntrack",
            Self::ConntrackMark => "conntrack-mark",
            Self::ConntrackZone => "conntrack-zone",
            Self::ConntrackHooks => "conntrack-hooks",
            Self::DeviceHooks => "device-hooks",
            Self::LinkHooks => "link-hooks",
            Self::ConntrackCounters => "conntrack-counters",
            Self::Process => "process",
            Self::KernelCounters => "kernel-counters",
            Self::PacketMeta => "packet-meta",
            Self::Socket => "socket",
            Self::SocketCgroup => "socket-cgroup",
            Self::SocketClassid => "socket-classid",
        }
    }

    /// What it gives.
    pub fn gives(self) -> &'static str {
        match self {
            Self::DropRecord => "dropped packets: their bytes, length, mark and device",
            Self::Netns => "the network namespace of each drop",
            Self::Interfaces => "the interfaces' names",
            Self::Route => "the outgoing interface of packets on their way out",
            Self::Vlan => "VLAN tags that the driver took off the packet",
            Self::KernelStack => "the exact nftables rule, read from the kernel",
            Self::Generation => "whether the ruleset changed since the drop",
            Self::HookState => "hook and interfaces as nftables saw them",
            Self::Conntrack => "the connection's state and original addresses",
            Self::ConntrackMark => "the connection's mark",
            Self::ConntrackZone => "the connection's zone",
            Self::ConntrackHooks => "telling untracked packets from invalid ones",
            Self::DeviceHooks => "the order of ingress and egress chains with one priority",
            Self::LinkHooks => "the order of arp and bridge chains with one priority",
            Self::ConntrackCounters => "drops by conntrack itself, such as for a full table",
            Self::Process => "the process that sent the packet",
            Self::KernelCounters => "the exact rule of iptables-legacy, by the kernel's counters",
            Self::PacketMeta => "the packet's type on its link, and its priority",
            Self::Socket => "the user and group that own the packet's socket",
            Self::SocketCgroup => "the control group of the packet's socket",
            Self::SocketClassid => "the net_cls class of the packet's socket",
        }
    }

    /// What its absence costs.
    pub fn cost(self) -> &'static str {
        match self {
            Self::DropRecord | Self::Netns => "fwtrace cannot run on this kernel",
            Self::Interfaces => "interfaces are shown by number",
            Self::Route => "the outgoing interface of locally sent packets is not known",
            Self::Vlan => "packets of VLANs are shown without their tag",
            Self::KernelStack => "only what dropped the packet is known, not the rule",
            Self::Generation => {
                "a rule that was changed within moments of the drop may be shown in its new form"
            }
            Self::HookState => "the hook is found from the kernel's stack",
            Self::Conntrack => "no connection state, and ct expressions cannot be evaluated",
            Self::ConntrackMark => "ct mark is not known",
            Self::ConntrackZone => "ct zone is not known",
            Self::ConntrackHooks => "a packet without connection is shown with state unknown",
            Self::DeviceHooks => {
                "which of several ingress or egress chains with one priority comes first is not known"
            }
            Self::LinkHooks => {
                "which of several arp or bridge chains with one priority comes first is not known"
            }
            Self::ConntrackCounters => {
                "drops by conntrack itself are told by how full its table is, or not at all"
            }
            Self::Process => "no process with packets sent from this machine",
            Self::KernelCounters => "which rule of iptables-legacy dropped is not known",
            Self::PacketMeta => "meta pkttype and meta priority cannot be evaluated",
            Self::Socket => "meta skuid, meta skgid and -m owner cannot be evaluated",
            Self::SocketCgroup => "socket cgroupv2 cannot be evaluated",
            Self::SocketClassid => "meta cgroup and -m cgroup cannot be evaluated",
        }
    }

    /// Whether fwtrace cannot run without it.
    pub fn is_essential(self) -> bool {
        matches!(self, Self::DropRecord | Self::Netns)
    }
}

/// A field or fact the kernel lacks, and the feature that is off for it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {reason}", feature.name())]
pub struct Missing {
    /// What is off.
    pub feature: Feature,
    /// The BTF path, `struct.member[.member]`, or a struct's name.
    pub path: &'static str,
    /// What is wrong with it.
    pub reason: String,
}

/// The feature each field of [`Layout`] belongs to, and the sizes in bytes that the BPF programs
/// can read; no size: any (a flexible array, or only its address is taken).
fn field_spec(name: &str) -> Option<(Feature, &'static [u64])> {
    use Feature as F;
    Some(match name {
        "skb_dev" | "skb_head" | "skb_data" => (F::DropRecord, &[8]),
        "skb_len" | "skb_iif" | "skb_mark" => (F::DropRecord, &[4]),
        // An offset from `head` on 64-bit kernels (NET_SKBUFF_DATA_USES_OFFSET).
        "skb_tail" => (F::DropRecord, &[4]),
        "skb_protocol" | "skb_network_header" | "skb_mac_header" => (F::DropRecord, &[2]),
        "skb_sk" => (F::Netns, &[8]),
        // possible_net_t: empty without CONFIG_NET_NS.
        "dev_net" | "sock_net" => (F::Netns, &[8]),
        "net_inum" => (F::Netns, &[4]),
        "dev_ifindex" => (F::Interfaces, &[4]),
        "dev_name" => (F::Interfaces, &[16]),
        "skb_dst" | "dst_dev" => (F::Route, &[8]),
        "skb_vlan_tci" | "skb_vlan_proto" => (F::Vlan, &[2]),
        "chain_blob0" | "chain_blob1" | "chain_table" | "chain_handle" | "chain_name"
        | "table_handle" | "table_name" | "last_chain" => (F::KernelStack, &[8]),
        "blob_data" => (F::KernelStack, &[]),
        // Six bits at the start of a byte (include/net/netfilter/nf_tables.h, v6.18).
        "table_family" => (F::KernelStack, &[1]),
        "net_nft_generation" => (F::Generation, &[4]),
        "state_in" | "state_out" | "state_net" => (F::HookState, &[8]),
        // `unsigned int hook` up to v5.10; the low byte says it all.
        "state_hook" => (F::HookState, &[1, 4]),
        "state_pf" => (F::HookState, &[1]),
        "skb_nfct" | "ct_status" => (F::Conntrack, &[8]),
        "ct_tuples" => (F::Conntrack, &[112]),
        "ct_tcp_state" => (F::Conntrack, &[1]),
        "tuplehash_tuple" => (F::Conntrack, &[TUPLE_LEN as u64]),
        "ct_mark" => (F::ConntrackMark, &[4]),
        "ct_zone" => (F::ConntrackZone, &[2]),
        "net_hooks_ipv4" | "net_hooks_ipv6" => (F::ConntrackHooks, &[40]),
        "hook_entries_num" => (F::ConntrackHooks, &[2]),
        "hook_entries_hooks" => (F::ConntrackHooks, &[]),
        "hooks_nsproxy" | "hooks_net" => (F::ConntrackHooks, &[8]),
        "net_devices" | "dev_hooks_ingress" | "dev_hooks_egress" => (F::DeviceHooks, &[8]),
        "dev_index_node" => (F::DeviceHooks, &[16]),
        "net_hooks_arp" => (F::LinkHooks, &[24]),
        "net_hooks_bridge" => (F::LinkHooks, &[40]),
        "net_ct_stat" => (F::ConntrackCounters, &[8]),
        "ctstat_drop"
        | "ctstat_insert_failed"
        | "ctstat_early_drop"
        | "ctstat_chain_too_long"
        | "ctstat_invalid" => (F::ConntrackCounters, &[4]),
        "ctstat_pptrs" => (F::ConntrackCounters, &[]),
        "xt_private" | "task_nsproxy" | "nsproxy_net" => (F::KernelCounters, &[8]),
        "xt_size" | "xt_number" => (F::KernelCounters, &[4]),
        "xt_name" => (F::KernelCounters, &[TABLE_NAME as u64]),
        "xt_entries" | "array_pptrs" => (F::KernelCounters, &[]),
        "skb_priority" => (F::PacketMeta, &[4]),
        // Three bits at the start of a byte (include/linux/skbuff.h, v6.18).
        "skb_pkt_type" => (F::PacketMeta, &[1]),
        "sock_state" => (F::Socket, &[1]),
        "sock_listener" | "sock_socket" | "socket_file" | "file_cred" | "net_user_ns" => {
            (F::Socket, &[8])
        }
        "cred_fsuid" | "cred_fsgid" | "user_ns_inum" => (F::Socket, &[4]),
        "sock_cgroup" | "cgroup_node" | "kernfs_id" => (F::SocketCgroup, &[8]),
        "sock_classid" => (F::SocketClassid, &[4]),
        "task_stack" | "task_group_leader" => (F::Process, &[8]),
        "task_flags" => (F::Process, &[4]),
        "task_comm" => (F::Process, &[16]),
        _ => return None,
    })
}

/// A fact the BPF programs have hard-coded.
enum Fact {
    /// The field begins at this bit and is this many bits long.
    Bits(u32, u64),
    /// The struct is this many bytes long.
    Size(u32),
}

const FACTS: &[(Feature, &str, Fact)] = &[
    // The header word of a rule (include/net/netfilter/nf_tables.h, v6.18).
    (Feature::KernelStack, "nft_rule_dp", Fact::Size(8)),
    (
        Feature::KernelStack,
        "nft_rule_dp.is_last",
        Fact::Bits(0, 1),
    ),
    (Feature::KernelStack, "nft_rule_dp.dlen", Fact::Bits(1, 12)),
    (
        Feature::KernelStack,
        "nft_rule_dp.handle",
        Fact::Bits(13, 42),
    ),
    (
        Feature::KernelStack,
        "nft_rule_blob.size",
        Fact::Bits(0, 64),
    ),
    // include/linux/netfilter.h
    (Feature::ConntrackHooks, "nf_hook_entry", Fact::Size(16)),
    (
        Feature::ConntrackHooks,
        "nf_hook_entry.hook",
        Fact::Bits(0, 64),
    ),
    (
        Feature::ConntrackHooks,
        "nf_hook_entry.priv",
        Fact::Bits(64, 64),
    ),
    // include/linux/types.h: an array of the heads, and a chain from each.
    (Feature::DeviceHooks, "hlist_head", Fact::Size(8)),
    (Feature::DeviceHooks, "hlist_head.first", Fact::Bits(0, 64)),
    (Feature::DeviceHooks, "hlist_node.next", Fact::Bits(0, 64)),
    // include/uapi/linux/netfilter/x_tables.h
    (Feature::KernelCounters, "xt_counters", Fact::Size(16)),
    (
        Feature::KernelCounters,
        "xt_counters.pcnt",
        Fact::Bits(0, 64),
    ),
    (
        Feature::KernelCounters,
        "xt_counters.bcnt",
        Fact::Bits(64, 64),
    ),
    // include/net/netfilter/nf_conntrack_tuple.h; TUPLE_LEN says what is where.
    (
        Feature::Conntrack,
        "nf_conntrack_tuple_hash",
        Fact::Size(56),
    ),
    (
        Feature::Conntrack,
        "nf_conntrack_tuple",
        Fact::Size(TUPLE_LEN as u32),
    ),
    (
        Feature::Conntrack,
        "nf_conntrack_tuple.src.u3",
        Fact::Bits(0, 128),
    ),
    (
        Feature::Conntrack,
        "nf_conntrack_tuple.src.u",
        Fact::Bits(128, 16),
    ),
    (
        Feature::Conntrack,
        "nf_conntrack_tuple.src.l3num",
        Fact::Bits(144, 16),
    ),
    (
        Feature::Conntrack,
        "nf_conntrack_tuple.dst.u3",
        Fact::Bits(160, 128),
    ),
    (
        Feature::Conntrack,
        "nf_conntrack_tuple.dst.u",
        Fact::Bits(288, 16),
    ),
    (
        Feature::Conntrack,
        "nf_conntrack_tuple.dst.protonum",
        Fact::Bits(304, 8),
    ),
    (
        Feature::Conntrack,
        "nf_conntrack_tuple.dst.dir",
        Fact::Bits(312, 8),
    ),
];

/// Resolves every field of [`Layout`], and checks what the BPF programs have hard-coded. All
/// fields of a feature that is off are [`ABSENT`].
pub fn resolve(types: &KernelTypes) -> (Layout, Vec<Missing>) {
    let mut layout = Layout::UNRESOLVED;
    let mut missing = Vec::new();
    for &(name, path) in Layout::PATHS {
        // A field that nobody has said more about is essential.
        let (feature, sizes) = field_spec(name).unwrap_or((Feature::DropRecord, &[]));
        let reach = reach(name);
        match offset(types, path, sizes) {
            Ok(offset) if offset < reach => {
                layout.set(name, offset);
            }
            Ok(offset) => missing.push(Missing {
                feature,
                path,
                reason: format!("{path} is at {offset}, and fwtrace reads {reach} bytes"),
            }),
            Err(reason) => missing.push(Missing {
                feature,
                path,
                reason,
            }),
        }
    }
    for (feature, path, fact) in FACTS {
        if let Err(reason) = check(types, path, fact) {
            missing.push(Missing {
                feature: *feature,
                path,
                reason,
            });
        }
    }
    for &(name, _) in Layout::PATHS {
        let feature = field_spec(name).map_or(Feature::DropRecord, |(feature, _)| feature);
        if missing.iter().any(|m| m.feature == feature) {
            layout.set(name, ABSENT);
        }
    }
    missing.sort_by_key(|m| m.feature);
    (layout, missing)
}

/// How much of the field's struct the BPF programs copy.
fn reach(name: &str) -> u32 {
    match name.split('_').next() {
        Some("skb") => SKB_BYTES,
        Some("state") => STATE_BYTES,
        Some("ct") => CT_BYTES,
        _ => u32::MAX,
    }
}

fn offset(types: &KernelTypes, path: &str, sizes: &[u64]) -> Result<u32, String> {
    let field = types.field(path).map_err(|e| e.to_string())?;
    // A bit-field that starts a byte can be read as that byte.
    let start = (field.bit_offset % 8 == 0).then_some(field.bit_offset / 8);
    let size = field.size().or((field.bit_size < 8).then_some(1));
    let (Some(offset), Some(size)) = (start, size) else {
        return Err(format!("{path} is a bit-field on this kernel"));
    };
    if sizes.is_empty() || sizes.contains(&size) {
        Ok(offset)
    } else {
        Err(format!(
            "{path} has {size} bytes on this kernel, and fwtrace reads {}",
            sizes
                .iter()
                .map(u64::to_string)
                .collect::<Vec<_>>()
                .join(" or ")
        ))
    }
}

fn check(types: &KernelTypes, path: &str, fact: &Fact) -> Result<(), String> {
    match *fact {
        Fact::Size(expected) => {
            let size = types.size_of(path).map_err(|e| e.to_string())?;
            if size != expected {
                return Err(format!(
                    "struct {path} has {size} bytes on this kernel, and fwtrace expects {expected}"
                ));
            }
        }
        Fact::Bits(offset, size) => {
            let field = types.field(path).map_err(|e| e.to_string())?;
            if (field.bit_offset, field.bit_size) != (offset, size) {
                return Err(format!(
                    "{path} is {} bits at bit {} on this kernel, and fwtrace expects {size} at {offset}",
                    field.bit_size, field.bit_offset
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
