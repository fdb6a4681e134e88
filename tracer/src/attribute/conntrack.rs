//! Conntrack's view of the packet, from `skb->_nfct`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fwtrace_abi::{FLAG_CT_HOOKS_READ, FLAG_CT_OUTPUT, FLAG_CT_PREROUTING, Record, TUPLE_LEN};

use super::{NFPROTO_ARP, NFPROTO_BRIDGE, NFPROTO_IPV4, NFPROTO_IPV6, NFPROTO_NETDEV};
use crate::{
    event::{Conntrack, CtState, Hook, Nat, Tuple},
    ruleset::{
        model::{Expr, Family},
        snapshot::Snapshots,
    },
};

/// `enum ip_conntrack_status` (include/uapi/linux/netfilter/nf_conntrack_common.h, v6.18), by the
/// names of `ct status`.
pub(super) const STATUS: [(u32, &str); 7] = [
    (1 << 0, "expected"),
    (1 << 1, "seen-reply"),
    (1 << 2, "assured"),
    (1 << 3, "confirmed"),
    (1 << 4, "snat"),
    (1 << 5, "dnat"),
    (1 << 9, "dying"),
];

/// `enum tcp_conntrack` (include/uapi/linux/netfilter/nf_conntrack_tcp.h, v6.18), by the names that
/// `conntrack -L` prints.
pub(super) const TCP_STATES: [&str; 10] = [
    "NONE",
    "SYN_SENT",
    "SYN_RECV",
    "ESTABLISHED",
    "FIN_WAIT",
    "CLOSE_WAIT",
    "LAST_ACK",
    "TIME_WAIT",
    "CLOSE",
    "SYN_SENT2",
];

const IPPROTO_TCP: u8 = 6;
/// Protocols whose tuples have ports.
const WITH_PORTS: [u8; 5] = [IPPROTO_TCP, 17, 33, 132, 136];
/// `NF_IP_PRI_CONNTRACK`: chains before it have not been tracked yet.
pub(super) const CONNTRACK_PRIORITY: i32 = -200;

/// The packet's connection; `None` if it cannot be told. `priority` is the dropping base chain's.
pub(super) fn of(
    record: &Record,
    pf: u8,
    hook: Option<Hook>,
    priority: Option<i32>,
    rulesets: Option<&Snapshots>,
) -> Option<Conntrack> {
    // `enum ip_conntrack_info` in the low three bits.
    let info = record.nfct & 7;
    if record.nfct == 0 {
        return without(record, pf, hook, priority, rulesets).map(Conntrack::stateless);
    }
    if record.nfct & !7 == 0 {
        return (info == 7).then(|| Conntrack::stateless(CtState::Untracked));
    }
    let state = match info {
        0 | 3 => CtState::Established,
        1 | 4 => CtState::Related,
        2 => CtState::New,
        7 => CtState::Untracked,
        _ => return None,
    };
    let (orig, reply) = (tuple(&record.ct_orig), tuple(&record.ct_reply));
    let protocol = record.ct_orig[38];
    let tcp_state = (protocol == IPPROTO_TCP)
        .then(|| TCP_STATES.get(usize::from(record.ct_tcp_state)))
        .flatten();
    Some(Conntrack {
        state,
        status: STATUS
            .iter()
            .filter(|(bit, _)| record.ct_status & bit != 0)
            .map(|&(_, name)| name.into())
            .collect(),
        mark: Some(record.ct_mark),
        zone: Some(record.ct_zone),
        tcp_state: tcp_state.map(|&name| name.into()),
        invalid: None,
        timeout: None,
        helper: None,
        counters: None,
        labels: Vec::new(),
        nat: orig
            .zip(reply)
            .filter(|(orig, reply)| {
                (orig.src, orig.sport, orig.dst, orig.dport)
                    != (reply.dst, reply.dport, reply.src, reply.sport)
            })
            .map(|(orig, reply)| Nat { orig, reply }),
    })
}

/// A packet without connection: conntrack has not seen it, or has found it invalid.
fn without(
    record: &Record,
    pf: u8,
    hook: Option<Hook>,
    priority: Option<i32>,
    rulesets: Option<&Snapshots>,
) -> Option<CtState> {
    match pf {
        NFPROTO_ARP => return Some(CtState::None),
        NFPROTO_NETDEV if hook == Some(Hook::Ingress) => return Some(CtState::None),
        NFPROTO_BRIDGE => return (!tracks_bridge(rulesets)).then_some(CtState::None),
        NFPROTO_IPV4 | NFPROTO_IPV6 => {}
        _ => return None,
    }
    if hook == Some(Hook::Ingress) {
        return Some(CtState::None);
    }
    if record.flags & FLAG_CT_HOOKS_READ == 0 {
        return None;
    }
    let prerouting = record.flags & FLAG_CT_PREROUTING != 0;
    let output = record.flags & FLAG_CT_OUTPUT != 0;
    let tracked = match hook? {
        Hook::Input | Hook::Forward => prerouting,
        Hook::Postrouting if record.iif != 0 => prerouting,
        Hook::Postrouting => output,
        Hook::Prerouting if prerouting => priority? > CONNTRACK_PRIORITY,
        Hook::Output if output => priority? > CONNTRACK_PRIORITY,
        Hook::Prerouting | Hook::Output | Hook::Ingress => false,
        Hook::Egress => return None,
    };
    Some(if tracked {
        CtState::Invalid
    } else {
        CtState::None
    })
}

/// Whether a rule of family bridge asks for connections, which switches their tracking on there.
fn tracks_bridge(rulesets: Option<&Snapshots>) -> bool {
    let Some(newest) = rulesets.map(Snapshots::newest) else {
        return true;
    };
    let mut tables = newest.ruleset.tables.iter();
    tables.any(|table| {
        table.family == Family::Bridge
            && table
                .chains
                .iter()
                .flat_map(|chain| &chain.rules)
                .flat_map(|rule| &rule.exprs)
                .any(|expr| matches!(expr, Expr::Ct { .. }))
    })
}

/// Decodes a `struct nf_conntrack_tuple`; the offsets are those of [`TUPLE_LEN`]'s description.
fn tuple(bytes: &[u8; TUPLE_LEN]) -> Option<Tuple> {
    let address = |at: usize| -> Option<IpAddr> {
        Some(match bytes[18] {
            NFPROTO_IPV4 => {
                let octets: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
                Ipv4Addr::from(octets).into()
            }
            NFPROTO_IPV6 => {
                let octets: [u8; 16] = bytes.get(at..at + 16)?.try_into().ok()?;
                Ipv6Addr::from(octets).into()
            }
            _ => return None,
        })
    };
    let port = |at: usize| {
        WITH_PORTS
            .contains(&bytes[38])
            .then(|| u16::from_be_bytes([bytes[at], bytes[at + 1]]))
    };
    Some(Tuple {
        src: address(0)?,
        sport: port(16),
        dst: address(20)?,
        dport: port(36),
    })
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    fn record() -> Record {
        Record::new_zeroed()
    }

    fn state(record: &Record, hook: Hook, priority: i32) -> Option<CtState> {
        of(record, NFPROTO_IPV4, Some(hook), Some(priority), None).map(|ct| ct.state)
    }

    #[test]
    fn states_follow_the_low_bits() {
        let ct = 0xffff_8880_0000_1000;
        for (info, expected) in [
            (0, Some(CtState::Established)),
            (1, Some(CtState::Related)),
            (2, Some(CtState::New)),
            (3, Some(CtState::Established)),
            (4, Some(CtState::Related)),
            (5, None),
            (7, Some(CtState::Untracked)),
        ] {
            let mut record = record();
            record.nfct = ct | info;
            assert_eq!(state(&record, Hook::Input, 0), expected, "{info}");
        }
        let mut record = record();
        record.nfct = 7;
        assert_eq!(state(&record, Hook::Input, 0), Some(CtState::Untracked));
    }

    #[test]
    fn invalid_needs_conntrack_to_have_looked() {
        let mut record = record();
        assert_eq!(state(&record, Hook::Input, 0), None);
        record.flags = FLAG_CT_HOOKS_READ;
        assert_eq!(state(&record, Hook::Input, 0), Some(CtState::None));
        record.flags |= FLAG_CT_PREROUTING;
        assert_eq!(state(&record, Hook::Input, 0), Some(CtState::Invalid));
        assert_eq!(state(&record, Hook::Prerouting, -300), Some(CtState::None));
        assert_eq!(state(&record, Hook::Prerouting, 0), Some(CtState::Invalid));
        assert_eq!(state(&record, Hook::Output, 0), Some(CtState::None));
    }

    #[test]
    fn translation_shows_in_the_tuples() {
        let mut record = record();
        record.nfct = 0xffff_8880_0000_1002;
        let make = |src: [u8; 4], sport: u16, dst: [u8; 4], dport: u16| {
            let mut bytes = [0; TUPLE_LEN];
            bytes[..4].copy_from_slice(&src);
            bytes[16..18].copy_from_slice(&sport.to_be_bytes());
            bytes[18] = NFPROTO_IPV4;
            bytes[20..24].copy_from_slice(&dst);
            bytes[36..38].copy_from_slice(&dport.to_be_bytes());
            bytes[38] = IPPROTO_TCP;
            bytes
        };
        let (a, b, c) = ([10, 0, 0, 1], [10, 0, 0, 2], [10, 0, 0, 3]);
        record.ct_orig = make(a, 1000, b, 80);
        record.ct_reply = make(b, 80, a, 1000);
        let plain = of(&record, NFPROTO_IPV4, Some(Hook::Forward), None, None).unwrap();
        assert_eq!(plain.nat, None);
        record.ct_reply = make(c, 8080, a, 1000);
        let nat = of(&record, NFPROTO_IPV4, Some(Hook::Forward), None, None)
            .unwrap()
            .nat
            .unwrap();
        assert_eq!((nat.reply.src, nat.reply.sport), (c.into(), Some(8080)));
    }
}
