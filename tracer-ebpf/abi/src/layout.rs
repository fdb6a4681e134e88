//! Byte offsets into kernel structs, resolved from BTF in user space.

/// Bytes of sk_buff that the BPF program copies in one go; every `skb_*` offset must lie below.
pub const SKB_BYTES: u32 = 256;

/// Likewise of nf_hook_state and the `state_*` offsets.
pub const STATE_BYTES: u32 = 64;
/// Likewise of nf_conn and the `ct_*` offsets.
pub const CT_BYTES: u32 = 256;

/// An offset that the running kernel's BTF does not have; the feature that needs it is off.
pub const ABSENT: u32 = u32::MAX;

macro_rules! layout {
    ($($(#[$m:meta])* $name:ident = $path:literal),* $(,)?) => {
        /// Byte offset of each kernel field the BPF programs read, or [`ABSENT`].
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct Layout { $($(#[$m])* #[doc = concat!("Offset of `", $path, "`.")] pub $name: u32),* }

        impl Layout {
            /// Nothing resolved.
            pub const UNRESOLVED: Self = Self { $($name: ABSENT),* };
            /// Each field's BTF path, `struct.member[.member]`, in the order of the fields.
            pub const PATHS: &'static [(&'static str, &'static str)] = &[$((stringify!($name), $path)),*];

            /// Sets the field called `name`; false if there is none.
            pub fn set(&mut self, name: &str, offset: u32) -> bool {
                match name { $(stringify!($name) => self.$name = offset,)* _ => return false }
                true
            }

            /// The field called `name`, or [`ABSENT`].
            pub fn get(&self, name: &str) -> u32 {
                match name { $(stringify!($name) => self.$name,)* _ => ABSENT }
            }
        }
    };
}

layout! {
    skb_dev = "sk_buff.dev",
    skb_sk = "sk_buff.sk",
    skb_dst = "sk_buff._skb_refdst",
    skb_nfct = "sk_buff._nfct",
    skb_len = "sk_buff.len",
    skb_iif = "sk_buff.skb_iif",
    skb_mark = "sk_buff.mark",
    skb_priority = "sk_buff.priority",
    skb_pkt_type = "sk_buff.pkt_type",
    skb_protocol = "sk_buff.protocol",
    skb_vlan_tci = "sk_buff.vlan_tci",
    skb_vlan_proto = "sk_buff.vlan_proto",
    skb_network_header = "sk_buff.network_header",
    skb_mac_header = "sk_buff.mac_header",
    skb_tail = "sk_buff.tail",
    skb_head = "sk_buff.head",
    skb_data = "sk_buff.data",
    dev_ifindex = "net_device.ifindex",
    dev_name = "net_device.name",
    dev_net = "net_device.nd_net",
    sock_net = "sock_common.skc_net",
    sock_state = "sock_common.skc_state",
    sock_listener = "sock_common.skc_listener",
    sock_socket = "sock.sk_socket",
    sock_cgroup = "sock.sk_cgrp_data.cgroup",
    sock_classid = "sock.sk_cgrp_data.classid",
    socket_file = "socket.file",
    file_cred = "file.f_cred",
    cred_fsuid = "cred.fsuid",
    cred_fsgid = "cred.fsgid",
    cgroup_node = "cgroup.kn",
    kernfs_id = "kernfs_node.id",
    net_user_ns = "net.user_ns",
    user_ns_inum = "user_namespace.ns.inum",
    dst_dev = "dst_entry.dev",
    net_inum = "net.ns.inum",
    net_nft_generation = "net.nft.base_seq",
    net_hooks_ipv4 = "net.nf.hooks_ipv4",
    net_hooks_ipv6 = "net.nf.hooks_ipv6",
    net_hooks_arp = "net.nf.hooks_arp",
    net_hooks_bridge = "net.nf.hooks_bridge",
    net_devices = "net.dev_index_head",
    dev_index_node = "net_device.index_hlist",
    dev_hooks_ingress = "net_device.nf_hooks_ingress",
    dev_hooks_egress = "net_device.nf_hooks_egress",
    hook_entries_num = "nf_hook_entries.num_hook_entries",
    hook_entries_hooks = "nf_hook_entries.hooks",
    hooks_nsproxy = "task_struct.nsproxy",
    hooks_net = "nsproxy.net_ns",
    state_hook = "nf_hook_state.hook",
    state_pf = "nf_hook_state.pf",
    state_in = "nf_hook_state.in",
    state_out = "nf_hook_state.out",
    state_net = "nf_hook_state.net",
    chain_blob0 = "nft_chain.blob_gen_0",
    chain_blob1 = "nft_chain.blob_gen_1",
    chain_table = "nft_chain.table",
    chain_handle = "nft_chain.handle",
    chain_name = "nft_chain.name",
    table_handle = "nft_table.handle",
    table_name = "nft_table.name",
    table_family = "nft_table.family",
    last_chain = "nft_rule_dp_last.chain",
    blob_data = "nft_rule_blob.data",
    ct_status = "nf_conn.status",
    ct_mark = "nf_conn.mark",
    ct_zone = "nf_conn.zone.id",
    ct_tuples = "nf_conn.tuplehash",
    ct_tcp_state = "nf_conn.proto.tcp.state",
    tuplehash_tuple = "nf_conntrack_tuple_hash.tuple",
    net_ct_stat = "net.ct.stat",
    ctstat_drop = "ip_conntrack_stat.drop",
    ctstat_insert_failed = "ip_conntrack_stat.insert_failed",
    ctstat_early_drop = "ip_conntrack_stat.early_drop",
    ctstat_chain_too_long = "ip_conntrack_stat.chaintoolong",
    ctstat_invalid = "ip_conntrack_stat.invalid",
    ctstat_pptrs = "bpf_array.pptrs",
    xt_private = "xt_table.private",
    xt_name = "xt_table.name",
    xt_size = "xt_table_info.size",
    xt_number = "xt_table_info.number",
    xt_entries = "xt_table_info.entries",
    array_pptrs = "bpf_array.pptrs",
    task_nsproxy = "task_struct.nsproxy",
    nsproxy_net = "nsproxy.net_ns",
    task_stack = "task_struct.stack",
    task_flags = "task_struct.flags",
    task_group_leader = "task_struct.group_leader",
    task_comm = "task_struct.comm",
}

impl Default for Layout {
    fn default() -> Self {
        Self::UNRESOLVED
    }
}
