//! The packet's socket: who owns it, as nft's `meta skuid` and xt_owner look for that.

use fwtrace_abi::{
    ABSENT, FLAG_SK, FLAG_SK_CGROUP, FLAG_SK_CLASSID, FLAG_SK_CRED, FLAG_SK_READ, FLAG_SK_SOCKET,
    Record,
};

use crate::{
    drops::Namespace,
    kernel::{offset, typed, u8_at, u32_at, u64_at},
};

/// `TCP_TIME_WAIT`, `TCP_NEW_SYN_RECV` (include/net/tcp_states.h, v6.18): sockets that are not full ones.
const TIME_WAIT: u8 = 6;
const NEW_SYN_RECV: u8 = 12;
/// `PROC_USER_INIT_INO` (include/linux/proc_ns.h, v6.18): the initial user namespace.
const INITIAL_USER_NS: u32 = 0xeffffffd;

/// Fills in the owner of `sk`, the packet's socket if it has one.
#[inline(always)]
pub fn fill(record: &mut Record, sk: u64, namespace: &Namespace) {
    if offset!(sock_socket) == ABSENT {
        return;
    }
    record.flags |= FLAG_SK_READ;
    if sk == 0 {
        return;
    }
    // In another user namespace the ids that rules name are others.
    let user_ns = if namespace.typed != 0 {
        typed!(typed!(namespace.typed, net_user_ns, u64), user_ns_inum, u32)
    } else {
        u32_at(
            u64_at(namespace.net, offset!(net_user_ns)),
            offset!(user_ns_inum),
        )
    };
    if user_ns != INITIAL_USER_NS {
        record.flags &= !FLAG_SK_READ;
        return;
    }
    let state = typed!(sk, sock_state, u8);
    if state == NEW_SYN_RECV {
        // In a union: the verifier does not know what it points to.
        let listener = u64_at(sk, offset!(sock_listener));
        let state = u8_at(listener, offset!(sock_state));
        owner::<false>(record, listener, state, namespace.net);
    } else {
        owner::<true>(record, sk, state, namespace.net);
    }
}

/// Fills in the owner of a socket in this state. `TYPED`: its type is known to the verifier.
#[inline(always)]
fn owner<const TYPED: bool>(record: &mut Record, sk: u64, state: u8, net: u64) {
    macro_rules! read {
        ($base:expr, $field:ident, $t:ty, $helper:ident) => {
            if TYPED {
                typed!($base, $field, $t)
            } else {
                $helper($base, offset!($field))
            }
        };
    }
    // A state that could not be read is zero, and no socket's.
    if state == 0 || state == TIME_WAIT || state == NEW_SYN_RECV {
        return;
    }
    if read!(sk, sock_net, u64, u64_at) != net {
        return;
    }
    record.flags |= FLAG_SK;
    if offset!(sock_cgroup) != ABSENT {
        let cgroup = read!(sk, sock_cgroup, u64, u64_at);
        let node = read!(cgroup, cgroup_node, u64, u64_at);
        record.sk_cgroup = read!(node, kernfs_id, u64, u64_at);
        if record.sk_cgroup != 0 {
            record.flags |= FLAG_SK_CGROUP;
        }
    }
    if offset!(sock_classid) != ABSENT {
        record.sk_classid = read!(sk, sock_classid, u32, u32_at);
        record.flags |= FLAG_SK_CLASSID;
    }
    let socket = read!(sk, sock_socket, u64, u64_at);
    if socket == 0 {
        return;
    }
    record.flags |= FLAG_SK_SOCKET;
    let file = read!(socket, socket_file, u64, u64_at);
    let cred = read!(file, file_cred, u64, u64_at);
    if cred == 0 {
        return;
    }
    record.sk_uid = read!(cred, cred_fsuid, u32, u32_at);
    record.sk_gid = read!(cred, cred_fsgid, u32, u32_at);
    record.flags |= FLAG_SK_CRED;
}
