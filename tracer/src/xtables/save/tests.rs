//! Forms that the iptables of the tests does not write, and those that nobody's iptables does.

use super::lift::{key, spec};
use super::{Action, Spec, ip, is_iptables};
use crate::ruleset::model::{
    BaseChain, Chain, CmpOp, Counters, Data, Expr, Family, PayloadBase, Rule, Table, Verdict,
};
use crate::xtables::info::{Cond, Span};
use crate::xtables::matches::{Match, transport};
use crate::xtables::{Family as Xt, targets::Target};

fn load(base: PayloadBase, offset: u32, len: u32) -> Expr {
    Expr::Payload {
        dreg: 1,
        base,
        offset,
        len,
    }
}

fn network(offset: u32, len: u32) -> Expr {
    load(PayloadBase::Network, offset, len)
}

fn transport(offset: u32, len: u32) -> Expr {
    load(PayloadBase::Transport, offset, len)
}

fn meta(key: u32) -> Expr {
    Expr::Meta { dreg: 1, key }
}

fn cmp(op: CmpOp, data: &[u8]) -> Expr {
    Expr::Cmp {
        sreg: 1,
        op,
        data: data.to_vec(),
    }
}

fn mask(mask: &[u8]) -> Expr {
    Expr::Bitwise {
        sreg: 1,
        sreg2: None,
        dreg: 1,
        len: u32::try_from(mask.len()).unwrap(),
        op: 0,
        mask: mask.to_vec(),
        xor: vec![0; mask.len()],
        data: Vec::new(),
    }
}

fn range(invert: bool, from: u16, to: u16) -> Expr {
    Expr::Range {
        sreg: 1,
        invert,
        from: from.to_be_bytes().to_vec(),
        to: to.to_be_bytes().to_vec(),
    }
}

fn verdict(code: i32, chain: Option<&str>) -> Expr {
    let chain = chain.map(str::to_owned);
    Expr::Immediate {
        dreg: 0,
        data: Data::Verdict(Verdict { code, chain }),
    }
}

fn counter() -> Expr {
    Expr::Counter(Counters::default())
}

fn rule(exprs: Vec<Expr>) -> Rule {
    Rule {
        exprs,
        ..Rule::default()
    }
}

fn tcp(source: Cond<Span<u16>>, destination: Cond<Span<u16>>) -> Match {
    Match::Tcp(transport::Tcp {
        source,
        destination,
        flags_mask: 0,
        flags: 0,
        flags_inverted: false,
        option: Cond::default(),
    })
}

fn ports(min: u16, max: u16, inverted: bool) -> Cond<Span<u16>> {
    Cond {
        want: Span { min, max },
        inverted,
    }
}

const ANY: Cond<Span<u16>> = Cond {
    want: Span { min: 0, max: 65535 },
    inverted: false,
};

/// 1.8.10 and later: addresses first, the protocol of IPv4 as a byte of the packet.
#[test]
fn the_order_of_1_8_11() {
    let exprs = vec![
        network(12, 1),
        cmp(CmpOp::Neq, &[10]),
        network(16, 4),
        cmp(CmpOp::Eq, &[10, 0, 0, 1]),
        meta(key::IIFNAME),
        cmp(CmpOp::Eq, b"eth0\0"),
        network(9, 1),
        cmp(CmpOp::Eq, &[6]),
        transport(2, 2),
        cmp(CmpOp::Eq, &[0, 22]),
        counter(),
        verdict(Verdict::DROP, None),
    ];
    let rule = rule(exprs);
    let spec = spec(Family::Ip, &rule).unwrap();
    let expected = Spec {
        family: Xt::V4,
        ip: crate::xtables::legacy::Ip {
            src: "10.0.0.0".parse().unwrap(),
            src_mask: "255.0.0.0".parse().unwrap(),
            dst: "10.0.0.1".parse().unwrap(),
            dst_mask: "255.255.255.255".parse().unwrap(),
            iface_in: "eth0".to_owned(),
            proto: 6,
            inverted: ip::inverted::SOURCE,
            ..ip::any(Xt::V4)
        },
        matches: vec![tcp(ANY, ports(22, 22, false))],
        action: Action::Verdict("DROP"),
    };
    assert_eq!(spec, expected);
    assert!(is_iptables(&table("filter", rule.exprs, None)));
}

/// What `exprs` after `-p tcp` ask of the ports.
fn tcp_ports(exprs: Vec<Expr>) -> Option<Vec<Match>> {
    let mut all = vec![meta(key::L4PROTO), cmp(CmpOp::Eq, &[6])];
    all.extend(exprs);
    Some(spec(Family::Ip, &rule(all))?.matches)
}

#[test]
fn ports_in_every_form() {
    for (exprs, expected) in [
        // 1.8.11: `! --sport 0:65535`, and inverted ports each on its own.
        (
            vec![transport(0, 2), range(true, 0, 65535)],
            Some(tcp(ports(0, 65535, true), ANY)),
        ),
        (
            vec![
                transport(0, 2),
                cmp(CmpOp::Neq, &[0, 1]),
                transport(2, 2),
                cmp(CmpOp::Neq, &[0, 2]),
            ],
            Some(tcp(ports(1, 1, true), ports(2, 2, true))),
        ),
        // Up to 1.8.10.
        (
            vec![transport(0, 4), cmp(CmpOp::Neq, &[0, 1, 0, 2])],
            Some(tcp(ports(1, 1, true), ports(2, 2, true))),
        ),
        (
            vec![transport(2, 2), cmp(CmpOp::Lt, &[4, 0])],
            Some(tcp(ANY, ports(0, 1023, false))),
        ),
        (
            vec![transport(2, 2), cmp(CmpOp::Gte, &[4, 0])],
            Some(tcp(ANY, ports(1024, 65535, false))),
        ),
        (vec![transport(2, 2), cmp(CmpOp::Lt, &[0, 0])], None),
        (vec![transport(2, 2), cmp(CmpOp::Gt, &[255, 255])], None),
        (vec![transport(0, 4), cmp(CmpOp::Lt, &[0, 1, 0, 2])], None),
        (vec![transport(2, 1), cmp(CmpOp::Eq, &[0])], None),
        (vec![transport(2, 2), cmp(CmpOp::Eq, &[0])], None),
        (vec![transport(4, 4), cmp(CmpOp::Eq, &[0; 4])], None),
        (
            vec![transport(2, 2), mask(&[0, 1]), cmp(CmpOp::Eq, &[0, 1])],
            None,
        ),
        (
            vec![transport(2, 2), cmp(CmpOp::Gt, &[0, 1]), range(false, 2, 3)],
            None,
        ),
        (
            vec![transport(13, 1), mask(&[0]), cmp(CmpOp::Neq, &[1])],
            None,
        ),
    ] {
        let matches = tcp_ports(exprs.clone());
        assert_eq!(matches, expected.map(|tcp| vec![tcp]), "{exprs:?}");
    }
    // Ports of a protocol that is not asked for.
    for start in [
        vec![],
        vec![meta(key::L4PROTO), cmp(CmpOp::Neq, &[6])],
        vec![meta(key::L4PROTO), cmp(CmpOp::Eq, &[132])],
    ] {
        let exprs = [start, vec![transport(2, 2), cmp(CmpOp::Eq, &[0, 1])]].concat();
        assert_eq!(spec(Family::Ip, &rule(exprs)), None);
    }
}

#[test]
fn what_iptables_has_no_words_for() {
    let drop = || verdict(Verdict::DROP, None);
    for exprs in [
        vec![network(12, 4), cmp(CmpOp::Gt, &[10, 0, 0, 1])],
        vec![network(12, 4), cmp(CmpOp::Eq, &[10, 0, 0])],
        vec![network(12, 2), mask(&[255, 0]), cmp(CmpOp::Eq, &[10, 0])],
        vec![network(11, 4), cmp(CmpOp::Eq, &[10, 0, 0, 1])],
        vec![network(6, 2), cmp(CmpOp::Eq, &[0, 0])],
        vec![network(6, 2), mask(&[0x1f, 0xff]), cmp(CmpOp::Eq, &[0, 1])],
        vec![cmp(CmpOp::Eq, &[6])],
        vec![meta(key::L4PROTO), cmp(CmpOp::Eq, &[0])],
        vec![meta(key::L4PROTO), cmp(CmpOp::Lt, &[6])],
        vec![meta(key::L4PROTO), mask(&[6]), cmp(CmpOp::Eq, &[6])],
        vec![meta(key::IIFNAME), cmp(CmpOp::Eq, b"")],
        vec![meta(key::IIFNAME), cmp(CmpOp::Eq, b"\0")],
        vec![meta(key::IIFNAME), cmp(CmpOp::Eq, b"eth0\0x")],
        vec![meta(key::IIFNAME), cmp(CmpOp::Eq, b"eth+\0")],
        vec![meta(key::IIFNAME), cmp(CmpOp::Eq, b"\xff\xfe\0")],
        vec![meta(key::NFTRACE), cmp(CmpOp::Eq, &[1])],
        vec![drop(), drop()],
        vec![drop(), network(12, 4)],
        vec![verdict(3, None)],
        vec![verdict(Verdict::JUMP, None)],
        vec![Expr::Notrack],
        vec![Expr::Last { msecs: None }],
        vec![
            Expr::Immediate {
                dreg: 9,
                data: Data::Value(vec![0]),
            },
            Expr::MetaSet {
                sreg: 9,
                key: key::NFTRACE,
            },
        ],
    ] {
        assert_eq!(spec(Family::Ip, &rule(exprs.clone())), None, "{exprs:?}");
    }
    let broken = Rule {
        broken: true,
        ..rule(vec![drop()])
    };
    assert_eq!(spec(Family::Ip, &broken), None);
    for family in [Family::Inet, Family::Arp, Family::Bridge, Family::Netdev] {
        assert_eq!(spec(family, &rule(vec![drop()])), None);
    }
}

/// Other registers than iptables-nft's mean the same.
#[test]
fn other_registers() {
    let exprs = vec![
        Expr::Meta {
            dreg: 8,
            key: key::L4PROTO,
        },
        Expr::Payload {
            dreg: 9,
            base: PayloadBase::Network,
            offset: 12,
            len: 4,
        },
        Expr::Cmp {
            sreg: 9,
            op: CmpOp::Eq,
            data: vec![10, 0, 0, 1],
        },
        cmp(CmpOp::Eq, &[17]),
        Expr::Immediate {
            dreg: 2,
            data: Data::Value(vec![1]),
        },
        Expr::MetaSet {
            sreg: 12,
            key: key::NFTRACE,
        },
    ];
    let rule = rule(exprs);
    let spec = spec(Family::Ip, &rule).unwrap();
    assert_eq!(spec.ip.proto, 17);
    assert_eq!(spec.action, Action::Target(Target::Trace));
}

/// A table of IPv4 with one chain and one rule.
fn table(name: &str, exprs: Vec<Expr>, counters: Option<Counters>) -> Table {
    let base = BaseChain {
        kind: "filter".to_owned(),
        hook: 1,
        priority: 0,
        policy: 1,
        devices: Vec::new(),
        counters,
    };
    let chain = Chain {
        name: "INPUT".to_owned(),
        handle: 1,
        base: Some(base),
        flags: 1,
        comment: None,
        userdata: Vec::new(),
        rules: vec![rule(exprs)],
    };
    Table {
        family: Family::Ip,
        name: name.to_owned(),
        handle: 1,
        flags: 0,
        owner: None,
        comment: None,
        userdata: Vec::new(),
        chains: vec![chain],
        sets: Vec::new(),
        objects: Vec::new(),
        flowtables: Vec::new(),
        iptables: false,
    }
}

#[test]
fn tables_by_what_is_in_them() {
    let drop = || verdict(Verdict::DROP, None);
    let plain = || table("filter", vec![counter(), drop()], None);
    assert!(is_iptables(&plain()));
    // nft 1.1 notes its version.
    let with_version = Table {
        userdata: vec![2, 4, 1, 1, 1, 0],
        ..plain()
    };
    assert!(!is_iptables(&with_version));
    // A chain that counts, whatever else is in the table.
    assert!(is_iptables(&table(
        "filter",
        vec![drop()],
        Some(Counters::default())
    )));
    assert!(!is_iptables(&table(
        "other",
        vec![drop()],
        Some(Counters::default())
    )));
    assert!(!is_iptables(&table("filter", vec![drop()], None)));
    let compat = |name: &str| Expr::Match {
        name: name.to_owned(),
        rev: 0,
        info: Vec::new(),
    };
    assert!(is_iptables(&table(
        "filter",
        vec![compat("x"), drop()],
        None
    )));
    assert!(!is_iptables(&table(
        "other",
        vec![compat("x"), drop()],
        None
    )));
    // The order of 1.8.10 has the protocol of IPv4 as a byte: this one is nft's.
    let exprs = vec![
        network(12, 4),
        cmp(CmpOp::Eq, &[10, 0, 0, 1]),
        meta(key::L4PROTO),
        cmp(CmpOp::Eq, &[6]),
        counter(),
        drop(),
    ];
    assert!(!is_iptables(&table("filter", exprs, None)));
    // The log of an old iptables, and one that nft alone can write.
    let log = |group| Expr::Log {
        prefix: None,
        level: None,
        flags: None,
        group,
        snaplen: None,
        qthreshold: None,
    };
    assert!(is_iptables(&table(
        "filter",
        vec![counter(), log(Some(1))],
        None
    )));
    assert!(!is_iptables(&table(
        "filter",
        vec![counter(), log(None)],
        None
    )));
}
