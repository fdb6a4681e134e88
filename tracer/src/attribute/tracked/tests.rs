use super::*;
use crate::{
    packet::{Icmp, Proto, TcpFlags},
    ruleset::model::{Chain, Rule, Table as NftTable},
};

const IPV4: u8 = 2;
const A: [u8; 4] = [10, 0, 0, 1];
const B: [u8; 4] = [10, 0, 0, 2];
const C: [u8; 4] = [10, 0, 0, 3];

fn udp() -> Packet {
    Packet {
        family: Family::Ipv4,
        proto: Some(Proto::UDP),
        src: Some(A.into()),
        sport: Some(1000),
        dst: Some(B.into()),
        dport: Some(53),
        ..Packet::default()
    }
}

fn tcp(flags: u8) -> Packet {
    Packet {
        proto: Some(Proto::TCP),
        flags: Some(TcpFlags(flags)),
        ..udp()
    }
}

fn used(exprs: Vec<Expr>) -> Use {
    let rule = Rule {
        exprs,
        ..Rule::default()
    };
    let table = NftTable {
        family: model::Family::Ip,
        name: "t".to_owned(),
        handle: 1,
        flags: 0,
        owner: None,
        comment: None,
        userdata: Vec::new(),
        chains: vec![Chain {
            name: "c".to_owned(),
            handle: 1,
            base: None,
            flags: 0,
            comment: None,
            userdata: Vec::new(),
            rules: vec![rule],
        }],
        sets: Vec::new(),
        objects: Vec::new(),
        flowtables: Vec::new(),
        iptables: false,
    };
    let ruleset = Ruleset {
        tables: vec![table],
        ..Ruleset::default()
    };
    Use::of(Some(&ruleset), [])
}

fn ct() -> Expr {
    Expr::Ct {
        dreg: 1,
        key: 0,
        direction: None,
    }
}

fn found(packet: &Packet, status: u32) -> Connection {
    let orig = tuple(packet, &[]).unwrap();
    Connection {
        reply: inverse(&orig),
        orig,
        status,
        timeout: None,
        mark: 7,
        zone: 0,
        tcp_state: None,
        helper: None,
        counted: None,
        labels: Vec::new(),
        id: None,
    }
}

fn conclusion(used: Use, packet: &Packet, answer: &Answer) -> Option<CtState> {
    let tuple = tuple(packet, &[]).unwrap();
    let tracked = conclude(used, IPV4, packet, &tuple, answer);
    tracked.conntrack.map(|conntrack| conntrack.state)
}

#[test]
fn without_an_entry_only_what_begins_is_new_and_only_where_all_is_tracked() {
    let new = |used, packet: &Packet| conclusion(used, packet, &Answer::Nothing);
    let plain = used(vec![ct()]);
    assert_eq!(new(plain, &udp()), Some(CtState::New));
    assert_eq!(new(plain, &tcp(0x02)), Some(CtState::New));
    for flags in [0x12, 0x10, 0x04, 0x03] {
        assert_eq!(new(plain, &tcp(flags)), None, "{flags:#x}");
    }
    assert_eq!(conclusion(plain, &udp(), &Answer::Unknown), None);
    // Not tracked for all we know; or not all of it; or by a helper.
    assert_eq!(new(used(vec![]), &udp()), None);
    assert_eq!(new(used(vec![ct(), Expr::Notrack]), &udp()), None);
    let helper = Expr::Objref {
        kind: 3,
        name: "ftp".to_owned(),
    };
    assert_eq!(new(used(vec![ct(), helper]), &udp()), None);
    // Family ip does not track IPv6.
    assert!(!plain.makes_new(10) && plain.makes_new(2));
}

#[test]
fn zones_make_tuples_ambiguous() {
    let zone = Expr::CtSet {
        sreg: 1,
        key: 17,
        direction: None,
    };
    assert!(used(vec![ct()]).can_ask(IPV4) && !used(vec![zone]).can_ask(IPV4));
    assert!(!used(vec![ct()]).can_ask(7));
}

#[test]
fn an_entry_tells_what_must_have_been() {
    let used = used(vec![ct()]);
    let state = |status, packet: &Packet| {
        let found = found(&udp(), status);
        conclusion(used, packet, &Answer::Found(Box::new(found)))
    };
    let answer = Packet {
        src: Some(B.into()),
        sport: Some(53),
        dst: Some(A.into()),
        dport: Some(1000),
        ..udp()
    };
    assert_eq!(state(8, &udp()), Some(CtState::New));
    assert_eq!(state(8 | EXPECTED, &udp()), Some(CtState::Related));
    // Its first answer can have come just now.
    assert_eq!(state(8 | SEEN_REPLY, &udp()), None);
    let assured = 8 | SEEN_REPLY | ASSURED;
    assert_eq!(state(assured, &udp()), Some(CtState::Established));
    assert_eq!(state(8, &answer), Some(CtState::Established));
}

#[test]
fn segments_in_a_connection_may_be_invalid() {
    let used = used(vec![ct()]);
    let state = |flags, status, tcp_state| {
        let found = Connection {
            tcp_state: Some(tcp_state),
            ..found(&tcp(0x02), status)
        };
        conclusion(used, &tcp(flags), &Answer::Found(Box::new(found)))
    };
    assert_eq!(state(0x02, 8, SYN_SENT), Some(CtState::New));
    assert_eq!(state(0x10, 8 | SEEN_REPLY | ASSURED, 3), None);
    assert_eq!(state(0x02, 8 | SEEN_REPLY | ASSURED, 3), None);
}

#[test]
fn translated_connections_are_told_with_both_tuples() {
    // To B, which is C really; the packet shows C already.
    let original = tuple(&udp(), &[]).unwrap();
    let shown = Packet {
        dst: Some(C.into()),
        ..udp()
    };
    let shown_tuple = tuple(&shown, &[]).unwrap();
    let connection = Connection {
        reply: inverse(&shown_tuple),
        ..found(&udp(), 8 | 1 << 5)
    };
    let answer = Answer::Found(Box::new(connection));
    let tracked = conclude(used(vec![ct()]), IPV4, &shown, &shown_tuple, &answer);
    let conntrack = tracked.conntrack.unwrap();
    assert_eq!(conntrack.state, CtState::New);
    assert_eq!(conntrack.status, ["confirmed".into(), "dnat".into()]);
    let nat = conntrack.nat.unwrap();
    assert_eq!((nat.orig.dst, nat.reply.src), (original.dst, C.into()));
    let Tracking::Connection(view) = tracked.tracking else {
        panic!("known");
    };
    assert_eq!((view.info, view.mark, view.original.l4proto), (2, 7, 17));
}

#[test]
fn echoes_have_tuples_by_their_identifier() {
    let ping = |kind| Packet {
        proto: Some(Proto(1)),
        sport: None,
        dport: None,
        icmp: Some(Icmp {
            kind,
            code: 0,
            name: None,
        }),
        ..udp()
    };
    let mut bytes = [0; 28];
    bytes[0] = 0x45;
    bytes[24..26].copy_from_slice(&[0x12, 0x34]);
    let request = tuple(&ping(8), &bytes).unwrap();
    assert_eq!((request.from, request.to), (0x1234, 0x0800));
    let reply = inverse(&request);
    assert_eq!((reply.from, reply.to, reply.src), (0x1234, 0, B.into()));
    assert_eq!(inverse(&reply), request);
    // Errors speak of another connection; so do cut packets.
    assert_eq!(tuple(&ping(3), &bytes), None);
    assert_eq!(tuple(&ping(8), &bytes[..24]), None);
}

#[test]
fn what_the_kernel_adds_to_the_log_counts() {
    let connection = found(&tcp(0x10), 0xe);
    let state = |info| told(&connection, info).conntrack.map(|ct| ct.state);
    assert_eq!(state(0), Some(CtState::Established));
    assert_eq!(state(3), Some(CtState::Established));
    assert_eq!(state(2), Some(CtState::New));
    assert_eq!(state(7), None);
}
