//! The packet's socket: who owns it, as nft's `meta skuid` and xt_owner look for that.

use fwtrace_abi::{
    ABSENT, FLAG_SK, FLAG_SK_CGROUP, FLAG_SK_CLASSID, FLAG_SK_CRED, FLAG_SK_READ, FLAG_SK_SOCKET,
    Record,
};

use crate::kernel::{copy, offset, u8_at, u32_at, u64_at};

/// `TCP_TIME_WAIT`, `TCP_NEW_SYN_RECV` (include/net/tcp_states.h, v6.18): sockets that are not full ones.
const TIME_WAIT: u8 = 6;
const NEW_SYN_RECV: u8 = 12;
/// `PROC_USER_INIT_INO` (include/linux/proc_ns.h, v6.18): the initial user namespace.
const INITIAL_USER_NS: u32 = 0xeffffffd;

/// Fills in the owner of `sk`, the packet's socket if it has one.
#[inline(always)]
pub fn fill(record: &mut Record, mut sk: u64, net: u64) {
    if offset!(sock_socket) == ABSENT {
        return;
    }
    record.flags |= FLAG_SK_READ;
    if sk == 0 {
        return;
    }
    // In another user namespace the ids that rules name are others.
    if u32_at(u64_at(net, offset!(net_user_ns)), offset!(user_ns_inum)) != INITIAL_USER_NS {
        record.flags &= !FLAG_SK_READ;
        return;
    }
    let mut state = u8_at(sk, offset!(sock_state));
    if state == NEW_SYN_RECV {
        sk = u64_at(sk, offset!(sock_listener));
        state = u8_at(sk, offset!(sock_state));
    }
    // A state that could not be read is zero, and no socket's.
    if state == 0 || state == TIME_WAIT || state == NEW_SYN_RECV {
        return;
    }
    if u64_at(sk, offset!(sock_net)) != net {
        return;
    }
    record.flags |= FLAG_SK;
    if offset!(sock_cgroup) != ABSENT {
        let cgroup = u64_at(sk, offset!(sock_cgroup));
        record.sk_cgroup = u64_at(u64_at(cgroup, offset!(cgroup_node)), offset!(kernfs_id));
        if record.sk_cgroup != 0 {
            record.flags |= FLAG_SK_CGROUP;
        }
    }
    if offset!(sock_classid) != ABSENT {
        record.sk_classid = u32_at(sk, offset!(sock_classid));
        record.flags |= FLAG_SK_CLASSID;
    }
    let socket = u64_at(sk, offset!(sock_socket));
    if socket == 0 {
        return;
    }
    record.flags |= FLAG_SK_SOCKET;
    let cred = u64_at(u64_at(socket, offset!(socket_file)), offset!(file_cred));
    if cred == 0 {
        return;
    }
    if offset!(cred_fsgid) == offset!(cred_fsuid).wrapping_add(4) {
        // Side by side.
        let mut ids = [0u32; 2];
        let address = cred.wrapping_add(offset!(cred_fsuid) as u64);
        copy((&raw mut ids).cast(), 8, address);
        [record.sk_uid, record.sk_gid] = ids;
    } else {
        record.sk_uid = u32_at(cred, offset!(cred_fsuid));
        record.sk_gid = u32_at(cred, offset!(cred_fsgid));
    }
    record.flags |= FLAG_SK_CRED;
}
