//! A drop record as the evaluator sees it.

use fwtrace_abi::{
    FLAG_L2, FLAG_META, FLAG_SK, FLAG_SK_CLASSID, FLAG_SK_CRED, FLAG_SK_READ, FLAG_VLAN, Record,
    TUPLE_LEN, UNKNOWN,
};

use super::{NFPROTO_ARP, NFPROTO_BRIDGE, NFPROTO_IPV4, NFPROTO_IPV6, NFPROTO_NETDEV};
use crate::{
    bpf::reader::RawDrop,
    eval::packet::{Connection, Device, Fact, Moment, Packet, Tracking, Tuple, Vlan},
};

/// `NF_INET_*` hooks without an outgoing and without an incoming interface.
const NO_OUTPUT: [u8; 2] = [0, 1];
const LOCAL_OUT: u8 = 3;
/// `NF_NETDEV_EGRESS`: `skb->data` still stands at the link-layer header there.
const NETDEV_EGRESS: u8 = 1;

/// What is known of the dropped packet at hook `hook` of family `pf`; `None` if the hook is not known.
pub(super) fn packet<'a>(raw: &'a RawDrop, pf: u8, hook: Option<u8>) -> Option<Packet<'a>> {
    let record = &raw.record;
    let hook = hook?;
    let l2_len = if record.flags & FLAG_L2 != 0 {
        usize::from(record.l2_len)
    } else {
        0
    };
    let from_link = pf == NFPROTO_NETDEV && hook == NETDEV_EGRESS;
    let len = if from_link {
        record.len.saturating_sub(l2_len as u32)
    } else {
        record.len
    };
    let known = record.hook != UNKNOWN;
    let ip = matches!(pf, NFPROTO_IPV4 | NFPROTO_IPV6);
    let absent = |at: bool| known || (ip && at);
    Some(Packet {
        bytes: &raw.deep,
        l2_len,
        len,
        pf,
        hook,
        protocol: match (record.protocol, pf) {
            (0, NFPROTO_IPV4) => 0x0800,
            (0, NFPROTO_IPV6) => 0x86dd,
            (0, NFPROTO_ARP) => 0x0806,
            (protocol, _) => u16::from_be(protocol),
        },
        iif: device(record.iif, &record.iif_name, absent(hook == LOCAL_OUT)),
        oif: device(
            record.oif,
            &record.oif_name,
            absent(NO_OUTPUT.contains(&hook)),
        ),
        mark: Fact::Known(record.mark),
        priority: meta(record, record.priority),
        pkttype: meta(record, record.pkt_type),
        cgroup: match record.flags & FLAG_SK_CLASSID {
            0 => Fact::Unknown,
            _ => Fact::Known(record.sk_classid),
        },
        uid: owner(record, record.sk_uid),
        gid: owner(record, record.sk_gid),
        vlan: if record.flags & FLAG_VLAN != 0 {
            Fact::Known(Vlan {
                proto: u16::from_be(record.vlan_proto),
                tci: record.vlan_tci,
            })
        } else {
            Fact::Absent
        },
        tracking: tracking(record, pf),
        moment: Moment::Drop,
        ..Packet::default()
    })
}

/// A device; `absent`: where there is none in the record, the hook has none.
fn device(index: u32, name: &[u8; 16], absent: bool) -> Fact<Device<'_>> {
    match index {
        0 if absent => Fact::Absent,
        0 => Fact::Unknown,
        index => {
            let end = name.iter().position(|&b| b == 0).unwrap_or(name.len());
            let name = name.get(..end).unwrap_or_default();
            Fact::Known(Device {
                index,
                name: std::str::from_utf8(name).unwrap_or_default(),
            })
        }
    }
}

fn meta<T>(record: &Record, value: T) -> Fact<T> {
    match record.flags & FLAG_META {
        0 => Fact::Unknown,
        _ => Fact::Known(value),
    }
}

/// The socket's owner: absent where there is no socket, or none with a file.
fn owner(record: &Record, id: u32) -> Fact<u32> {
    let has = |flag| record.flags & flag != 0;
    match (has(FLAG_SK_READ), has(FLAG_SK), has(FLAG_SK_CRED)) {
        (true, true, true) => Fact::Known(id),
        (true, _, _) => Fact::Absent,
        (false, _, _) => Fact::Unknown,
    }
}

/// `skb->_nfct`: the nf_conn's address, `enum ip_conntrack_info` in the low three bits.
fn tracking(record: &Record, pf: u8) -> Tracking {
    let info = (record.nfct & 7) as u8;
    if matches!(pf, NFPROTO_ARP | NFPROTO_BRIDGE | NFPROTO_NETDEV) && record.nfct == 0 {
        return Tracking::None;
    }
    match (record.nfct & !7, info) {
        (0, 7) => Tracking::Untracked,
        // Also of an answer to a packet without a connection, which is marked as related to that (`nf_conntrack_attach()`,
        // net/netfilter/nf_conntrack_core.c, v6.18): matches go by the connection.
        (0, _) => Tracking::None,
        (_, 0..=4) => Tracking::Connection(Connection {
            info,
            status: record.ct_status,
            mark: record.ct_mark,
            zone: record.ct_zone,
            original: tuple(&record.ct_orig),
            reply: tuple(&record.ct_reply),
            tcp_state: (record.ct_orig[38] == 6).then_some(record.ct_tcp_state),
        }),
        _ => Tracking::Unknown,
    }
}

/// The offsets are those of [`TUPLE_LEN`]'s description.
fn tuple(bytes: &[u8; TUPLE_LEN]) -> Tuple {
    let address = |at: usize| {
        let mut octets = [0; 16];
        octets.copy_from_slice(&bytes[at..at + 16]);
        octets
    };
    Tuple {
        src: address(0),
        sport: [bytes[16], bytes[17]],
        l3proto: bytes[18],
        dst: address(20),
        dport: [bytes[36], bytes[37]],
        l4proto: bytes[38],
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    #[test]
    fn what_has_no_connection_is_not_tracked_whatever_it_is_marked_as() {
        let of = |nfct| {
            let record = Record {
                nfct,
                ..Record::new_zeroed()
            };
            tracking(&record, NFPROTO_IPV4)
        };
        for info in [0, 1, 4] {
            assert_eq!(of(info), Tracking::None);
        }
        assert_eq!(of(7), Tracking::Untracked);
        assert!(matches!(of(0x1000 | 4), Tracking::Connection(connection) if connection.info == 4));
    }
}
