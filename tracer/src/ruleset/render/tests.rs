//! Rules built by hand. The corpus, against nft itself, is in tests/tests/render.rs.

use super::*;
use crate::ruleset::expr::{CmpOp, Data, Expr, PayloadBase, Verdict};
use crate::ruleset::model::{BaseChain, Counters, Element, Set};

pub(super) fn table(family: Family, sets: Vec<Set>) -> Table {
    Table {
        family,
        name: "t".to_owned(),
        handle: 1,
        flags: 0,
        owner: None,
        comment: None,
        userdata: Vec::new(),
        chains: Vec::new(),
        sets,
        objects: Vec::new(),
        flowtables: Vec::new(),
        iptables: false,
    }
}

fn written(table: &Table, exprs: Vec<Expr>, stateless: bool) -> String {
    let names = Names::default();
    let options = Options {
        names: &names,
        stateless,
        handles: false,
    };
    let of = Rule {
        exprs,
        ..Rule::default()
    };
    rule(table, &of, &options)
}

fn text(family: Family, exprs: Vec<Expr>) -> String {
    written(&table(family, Vec::new()), exprs, false)
}

fn meta(key: u32) -> Expr {
    Expr::Meta { dreg: 1, key }
}

fn load(base: PayloadBase, offset: u32, len: u32) -> Expr {
    Expr::Payload {
        dreg: 1,
        base,
        offset,
        len,
    }
}

fn is(data: &[u8]) -> Expr {
    compare(CmpOp::Eq, data)
}

fn compare(op: CmpOp, data: &[u8]) -> Expr {
    Expr::Cmp {
        sreg: 1,
        op,
        data: data.to_vec(),
    }
}

fn verdict(code: i32, chain: Option<&str>) -> Expr {
    let chain = chain.map(str::to_owned);
    Expr::Immediate {
        dreg: 0,
        data: Data::Verdict(Verdict { code, chain }),
    }
}

fn tcp() -> Vec<Expr> {
    vec![meta(16), is(&[6])]
}

#[test]
fn the_protocol_is_in_the_name_of_its_field() {
    let port = [load(PayloadBase::Transport, 2, 2), is(&[0, 80])];
    let counter = Expr::Counter(Counters {
        packets: 2,
        bytes: 120,
    });
    let mut exprs = tcp();
    exprs.extend(port.clone());
    exprs.extend([counter.clone(), verdict(Verdict::DROP, None)]);
    let t = table(Family::Inet, Vec::new());
    let full = written(&t, exprs.clone(), false);
    assert_eq!(full, "tcp dport 80 counter packets 2 bytes 120 drop");
    assert_eq!(written(&t, exprs, true), "tcp dport 80 counter drop");

    let mut counted = tcp();
    counted.push(counter);
    counted.extend(port.clone());
    let counted = text(Family::Inet, counted);
    assert_eq!(
        counted,
        "meta l4proto tcp counter packets 2 bytes 120 tcp dport 80"
    );

    let alone = text(Family::Inet, port.to_vec());
    assert_eq!(alone, "th dport 80");
}

#[test]
fn a_match_that_is_not_implied_stays() {
    let mut gre = vec![meta(16), is(&[47])];
    gre.extend([load(PayloadBase::Transport, 2, 2), is(&[0, 5])]);
    assert_eq!(
        text(Family::Ip, gre),
        "meta l4proto 47 th dport 5".replace("47", "gre")
    );

    let mut protocol = vec![load(PayloadBase::Network, 9, 1), is(&[6])];
    protocol.extend([load(PayloadBase::Transport, 0, 2), is(&[0, 5])]);
    assert_eq!(text(Family::Ip, protocol.clone()), "tcp sport 5");
    let inet = [vec![meta(15), is(&[2])], protocol].concat();
    assert_eq!(text(Family::Inet, inet), "ip protocol tcp tcp sport 5");
}

#[test]
fn bytes_are_fields_where_the_protocol_is_known() {
    let source = || vec![load(PayloadBase::Network, 12, 4), is(&[10, 1, 2, 3])];
    assert_eq!(text(Family::Ip, source()), "ip saddr 10.1.2.3");
    assert_eq!(text(Family::Bridge, source()), "@nh,96,32 0xa010203");
    let prefix = vec![load(PayloadBase::Network, 12, 1), is(&[10])];
    assert_eq!(text(Family::Ip, prefix), "ip saddr 10.0.0.0/8");
    let both = vec![
        load(PayloadBase::Network, 12, 8),
        is(&[10, 0, 0, 1, 10, 0, 0, 2]),
    ];
    assert_eq!(
        text(Family::Ip, both),
        "ip saddr 10.0.0.1 ip daddr 10.0.0.2"
    );
}

fn masked(mask: &[u8]) -> Expr {
    Expr::Bitwise {
        sreg: 1,
        sreg2: None,
        dreg: 1,
        len: mask.len() as u32,
        op: 0,
        mask: mask.to_vec(),
        xor: vec![0; mask.len()],
        data: Vec::new(),
    }
}

#[test]
fn masks_are_prefixes_flags_and_narrow_fields() {
    let network = vec![
        load(PayloadBase::Network, 16, 4),
        masked(&[255, 255, 252, 0]),
        is(&[192, 168, 4, 0]),
    ];
    assert_eq!(text(Family::Ip, network), "ip daddr 192.168.4.0/22");

    let flags = |op, value: u8| {
        let mut exprs = tcp();
        exprs.push(load(PayloadBase::Transport, 13, 1));
        exprs.extend([masked(&[0x12]), compare(op, &[value])]);
        text(Family::Ip, exprs)
    };
    assert_eq!(flags(CmpOp::Neq, 0), "tcp flags syn,ack");
    assert_eq!(flags(CmpOp::Eq, 0), "tcp flags ! syn,ack");
    assert_eq!(flags(CmpOp::Eq, 2), "tcp flags syn / syn,ack");

    let state = 6u32.to_ne_bytes();
    let established = vec![
        Expr::Ct {
            dreg: 1,
            key: 0,
            direction: None,
        },
        masked(&state),
        compare(CmpOp::Neq, &[0; 4]),
        verdict(Verdict::ACCEPT, None),
    ];
    assert_eq!(
        text(Family::Inet, established),
        "ct state established,related accept"
    );

    let dscp = vec![
        load(PayloadBase::Network, 1, 1),
        masked(&[0xfc]),
        is(&[0x28]),
    ];
    assert_eq!(text(Family::Ip, dscp), "ip dscp af11");
}

#[test]
fn what_has_no_form_in_nft_is_in_brackets() {
    let unknown = Expr::Unknown {
        name: "novelty".to_owned(),
        data: vec![0x01, 0x02],
    };
    let matched = Expr::Match {
        name: "conntrack".to_owned(),
        rev: 3,
        info: vec![0; 8],
    };
    let rejected = Expr::Target {
        name: "REJECT".to_owned(),
        rev: 0,
        info: vec![0; 4],
    };
    assert_eq!(
        text(Family::Ip, vec![matched, unknown, rejected]),
        "xt match \"conntrack\" [ unknown \"novelty\" 0x102 ] xt target \"REJECT\""
    );
    let nothing = Expr::Cmp {
        sreg: 9,
        op: CmpOp::Eq,
        data: vec![1, 2, 3, 4],
    };
    assert_eq!(text(Family::Ip, vec![nothing]), "[ register 9 ] 0x1020304");
    let gone = Expr::Lookup {
        set: "gone".to_owned(),
        sreg: 1,
        dreg: None,
        flags: 1,
    };
    let exprs = vec![load(PayloadBase::Network, 12, 4), gone];
    assert_eq!(text(Family::Ip, exprs), "ip saddr != @gone");
}

#[test]
fn sets_are_sorted_and_ranges_put_together() {
    let element = |key: &[u8], flags| Element {
        key: Some(key.to_vec()),
        flags,
        ..Element::default()
    };
    let ports = Set {
        name: "__set0".to_owned(),
        flags: Set::ANONYMOUS | Set::CONSTANT | Set::INTERVAL,
        key_type: 13,
        key_len: 2,
        elements: vec![
            element(&[0x1f, 0x91], Element::INTERVAL_END),
            element(&[0x1f, 0x90], 0),
            element(&[0, 0], Element::INTERVAL_END),
            element(&[4, 0], Element::INTERVAL_END),
            element(&[0, 1], 0),
        ],
        ..Set::default()
    };
    let lookup = Expr::Lookup {
        set: "__set0".to_owned(),
        sreg: 1,
        dreg: None,
        flags: 0,
    };
    let mut exprs = tcp();
    exprs.extend([load(PayloadBase::Transport, 2, 2), lookup]);
    let of = table(Family::Inet, vec![ports]);
    assert_eq!(written(&of, exprs, false), "tcp dport { 1-1023, 8080 }");
}

#[test]
fn an_anonymous_chain_is_written_in_the_rule() {
    let mut of = table(Family::Inet, Vec::new());
    let jump = vec![verdict(Verdict::JUMP, Some("__chain1"))];
    of.chains.push(Chain {
        name: "__chain1".to_owned(),
        handle: 2,
        base: None,
        flags: Chain::BINDING,
        comment: None,
        userdata: Vec::new(),
        rules: vec![
            Rule {
                exprs: vec![Expr::Notrack, verdict(Verdict::DROP, None)],
                ..Rule::default()
            },
            Rule {
                exprs: jump.clone(),
                comment: Some("deeper".to_owned()),
                ..Rule::default()
            },
        ],
    });
    let text = written(&of, jump, false);
    let deepest = "jump __chain1 comment \"deeper\" }";
    assert!(text.starts_with("jump { notrack drop; jump { "), "{text}");
    assert!(text.contains(deepest), "{text}");
    assert_eq!(text.matches("notrack").count(), usize::from(MAX_DEPTH));
}

#[test]
fn a_rule_is_one_line() {
    let log = Expr::Log {
        prefix: Some("a\nb\u{1b}[2J".to_owned()),
        level: Some(4),
        flags: None,
        group: None,
        snaplen: None,
        qthreshold: None,
    };
    let text = text(Family::Ip, vec![log]);
    assert_eq!(text, "log prefix \"a\\nb\\u{1b}[2J\"");
}

#[test]
fn priorities_and_hooks() {
    assert_eq!(priority(Family::Inet, 1, 0), "filter");
    assert_eq!(priority(Family::Ip, 0, -105), "dstnat - 5");
    assert_eq!(priority(Family::Ip, 1, -105), "-105");
    assert_eq!(priority(Family::Inet, 4, 110), "srcnat + 10");
    assert_eq!(priority(Family::Bridge, 2, -200), "filter");
    assert_eq!(priority(Family::Bridge, 3, 100), "out");
    assert_eq!(priority(Family::Netdev, 0, -300), "-300");
    assert_eq!(priority(Family::Ip, 0, i32::MIN), "-2147483648");
    assert_eq!(hook_name(Family::Arp, 1), "output");
    assert_eq!(hook_name(Family::Netdev, 1), "egress");
    let base = BaseChain {
        kind: "filter".to_owned(),
        hook: 0,
        priority: 500,
        policy: 0,
        devices: vec!["b".to_owned(), "a".to_owned()],
        counters: None,
    };
    let chain = Chain {
        name: "c".to_owned(),
        handle: 1,
        base: Some(base),
        flags: 0,
        comment: None,
        userdata: Vec::new(),
        rules: Vec::new(),
    };
    assert_eq!(
        chain_declaration(Family::Netdev, &chain).as_deref(),
        Some("type filter hook ingress devices = { a, b } priority 500; policy drop;")
    );
}
