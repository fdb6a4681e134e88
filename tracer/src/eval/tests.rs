//! Walks through rulesets made by hand: what each expression does to registers, where walks fork, what they rest on.

mod any;
mod before;
mod clock;
mod expressions;
mod logged;
mod order;
mod sets;

use super::{
    field::DoubtKind,
    miss::Texts,
    outcome::{Answer, Decision, Fate, Known, Outcome, TableId},
    packet::{Connection, Device, Fact, Moment, Packet, Tracking, Tuple},
    program::Program,
    walk::Detail,
    world::World,
};
use crate::ruleset::{
    expr::{CmpOp, Data, Expr, PayloadBase, Verdict},
    model::{BaseChain, Chain, Element, Family, Rule, Ruleset, Set, Table},
    render::Names,
};

fn verdict(code: i32) -> Expr {
    Expr::Immediate {
        dreg: 0,
        data: Data::Verdict(Verdict { code, chain: None }),
    }
}

fn to(code: i32, chain: &str) -> Expr {
    Expr::Immediate {
        dreg: 0,
        data: Data::Verdict(Verdict {
            code,
            chain: Some(chain.to_owned()),
        }),
    }
}

fn payload(base: PayloadBase, offset: u32, len: u32) -> Expr {
    Expr::Payload {
        dreg: 1,
        base,
        offset,
        len,
    }
}

fn dport() -> Expr {
    payload(PayloadBase::Transport, 2, 2)
}

fn cmp(op: CmpOp, data: &[u8]) -> Expr {
    Expr::Cmp {
        sreg: 1,
        op,
        data: data.to_vec(),
    }
}

fn eq(data: &[u8]) -> Expr {
    cmp(CmpOp::Eq, data)
}

fn limit() -> Expr {
    Expr::Limit {
        rate: 1,
        unit: 1,
        burst: 5,
        kind: 0,
        flags: 0,
    }
}

fn mark() -> Expr {
    Expr::Meta { dreg: 1, key: 3 }
}

fn set_mark(value: u32) -> [Expr; 2] {
    [
        Expr::Immediate {
            dreg: 1,
            data: Data::Value(value.to_ne_bytes().to_vec()),
        },
        Expr::MetaSet { sreg: 1, key: 3 },
    ]
}

fn chain(name: &str, hook: Option<(u32, i32, u32)>, rules: Vec<Vec<Expr>>) -> Chain {
    Chain {
        name: name.to_owned(),
        handle: 1,
        base: hook.map(|(hook, priority, policy)| BaseChain {
            kind: "filter".to_owned(),
            hook,
            priority,
            policy,
            devices: Vec::new(),
            counters: None,
        }),
        flags: 0,
        comment: None,
        userdata: Vec::new(),
        rules: (1..)
            .zip(rules)
            .map(|(number, exprs)| Rule {
                handle: u64::from(number),
                number,
                exprs,
                ..Rule::default()
            })
            .collect(),
    }
}

fn table(chains: Vec<Chain>, sets: Vec<Set>) -> Table {
    Table {
        family: Family::Ip,
        name: "t".to_owned(),
        handle: 1,
        flags: 0,
        owner: None,
        comment: None,
        userdata: Vec::new(),
        chains,
        sets,
        objects: Vec::new(),
        flowtables: Vec::new(),
        iptables: false,
    }
}

fn ruleset(tables: Vec<Table>) -> Ruleset {
    Ruleset {
        generation: 1,
        tables,
        problems: Vec::new(),
    }
}

/// UDP from 10.1.0.1:1234 to 10.1.0.2:53, 32 bytes, TTL 64.
const UDP: [u8; 32] = [
    0x45, 0, 0, 32, 0, 1, 0, 0, 64, 17, 0, 0, 10, 1, 0, 1, 10, 1, 0, 2, 0x04, 0xd2, 0, 53, 0, 12,
    0, 0, b'a', b'b', b'c', b'd',
];

fn packet() -> Packet<'static> {
    Packet {
        bytes: &UDP,
        len: 32,
        pf: 2,
        hook: 1,
        protocol: 0x0800,
        iif: Fact::Known(Device {
            index: 2,
            name: "r0",
        }),
        oif: Fact::Absent,
        mark: Fact::Known(5),
        priority: Fact::Known(0),
        pkttype: Fact::Known(0),
        vlan: Fact::Absent,
        uid: Fact::Absent,
        gid: Fact::Absent,
        tracking: Tracking::None,
        ..Packet::default()
    }
}

fn evaluate(ruleset: &Ruleset, packet: &Packet<'_>) -> Outcome {
    Program::new(Some(ruleset), &[]).evaluate(packet, &World::default())
}

/// One chain at input with policy accept.
fn input(rules: Vec<Vec<Expr>>) -> Ruleset {
    ruleset(vec![table(
        vec![chain("in", Some((1, 0, 1)), rules)],
        Vec::new(),
    )])
}

/// Whether these matches hold: a rule of them drops the packet.
fn holds(mut matches: Vec<Expr>) -> Option<bool> {
    matches.push(verdict(0));
    let outcome = evaluate(&input(vec![matches]), &packet());
    match &outcome.ends[..] {
        [end] => Some(end.fate == Fate::Drop),
        _ => None,
    }
}

fn rule_of(decision: Decision) -> Option<u32> {
    match decision {
        Decision::Rule(rule) => Some(rule.rule),
        _ => None,
    }
}

#[test]
fn what_is_beyond_the_packet_breaks_and_what_was_not_captured_is_unknown() {
    let beyond = vec![
        payload(PayloadBase::Transport, 10, 4),
        cmp(CmpOp::Neq, &[9; 4]),
        verdict(0),
    ];
    let rules = input(vec![beyond]);
    assert_eq!(evaluate(&rules, &packet()).ends[0].fate, Fate::Accept);
    let cut = Packet {
        bytes: &UDP[..28],
        ..packet()
    };
    let inside = vec![
        payload(PayloadBase::Transport, 8, 4),
        eq(b"abcd"),
        verdict(0),
    ];
    let outcome = evaluate(&input(vec![inside]), &cut);
    let fates: Vec<Fate> = outcome.ends.iter().map(|end| end.fate).collect();
    assert_eq!(fates, [Fate::Drop, Fate::Accept]);
    assert!(outcome.ends.iter().all(|end| !end.assumed.is_empty()));
    assert!(outcome.ends[0].assumed[0].kind == DoubtKind::Missing);
}

#[test]
fn a_limit_forks_the_way_and_only_where_it_matters() {
    // A limit that only logs is no fork.
    let log = Expr::Log {
        prefix: None,
        level: None,
        flags: None,
        group: None,
        snaplen: None,
        qthreshold: None,
    };
    let rules = input(vec![
        vec![limit(), log],
        vec![dport(), eq(&[0, 53]), verdict(0)],
    ]);
    let outcome = evaluate(&rules, &packet());
    assert_eq!(outcome.ends.len(), 1);
    assert!(outcome.ends[0].assumed.is_empty());
    // Nor is one in a rule that misses anyway.
    let rules = input(vec![
        vec![limit(), dport(), eq(&[0, 54]), verdict(1)],
        vec![verdict(0)],
    ]);
    assert_eq!(evaluate(&rules, &packet()).ends.len(), 1);
    // One that accepts is: accepted, or dropped by the next rule.
    let rules = input(vec![vec![limit(), verdict(1)], vec![verdict(0)]]);
    let outcome = evaluate(&rules, &packet());
    let fates: Vec<Fate> = outcome.ends.iter().map(|end| end.fate).collect();
    assert_eq!(fates, [Fate::Accept, Fate::Drop]);
    assert!(
        outcome
            .ends
            .iter()
            .all(|end| end.assumed[0].kind == DoubtKind::State)
    );
    // It was dropped, so one is left.
    assert!(
        matches!(outcome.answer(&Known::default()), Answer::Computed(end) if end.fate == Fate::Drop)
    );
    // Two that drop are ambiguous, unless it is known that a policy did.
    let rules = ruleset(vec![table(
        vec![chain(
            "in",
            Some((1, 0, 0)),
            vec![vec![limit(), verdict(0)]],
        )],
        Vec::new(),
    )]);
    let outcome = evaluate(&rules, &packet());
    assert!(
        matches!(outcome.answer(&Known::default()), Answer::Ambiguous(ends) if ends.len() == 2)
    );
    let known = Known {
        by_rule: Some(false),
        ..Known::default()
    };
    assert!(matches!(outcome.answer(&known), Answer::Computed(_)));
}

#[test]
fn many_doubtful_jumps_do_not_multiply() {
    let sub = chain("sub", None, vec![vec![dport(), eq(&[0, 1]), verdict(1)]]);
    let rules = (0..40)
        .map(|_| vec![limit(), to(Verdict::JUMP, "sub")])
        .collect();
    let base = chain("in", Some((1, 0, 0)), rules);
    let outcome = evaluate(
        &ruleset(vec![table(vec![base, sub], Vec::new())]),
        &packet(),
    );
    assert_eq!(outcome.incomplete, None);
    assert_eq!(outcome.ends.len(), 1);
}

#[test]
fn jumps_come_back_and_gotos_do_not() {
    let chains = |code| {
        vec![
            chain(
                "in",
                Some((1, 0, 0)),
                vec![vec![to(Verdict::JUMP, "a")], vec![verdict(1)]],
            ),
            chain("a", None, vec![vec![to(code, "b")], vec![verdict(0)]]),
            chain(
                "b",
                None,
                vec![vec![verdict(Verdict::RETURN)], vec![verdict(0)]],
            ),
        ]
    };
    let by = |code| {
        let outcome = evaluate(&ruleset(vec![table(chains(code), Vec::new())]), &packet());
        (outcome.ends[0].fate, outcome.ends[0].decision)
    };
    let (fate, decision) = by(Verdict::JUMP);
    assert_eq!((fate, rule_of(decision)), (Fate::Drop, Some(1)));
    assert_eq!(by(Verdict::GOTO).0, Fate::Accept);
    // A loop, which the kernel does not take, ends too.
    let round = chain("in", Some((1, 0, 0)), vec![vec![to(Verdict::GOTO, "in")]]);
    let outcome = evaluate(&ruleset(vec![table(vec![round], Vec::new())]), &packet());
    assert!(outcome.incomplete.is_some());
}

#[test]
fn what_nobody_knows_costs_its_rule_only() {
    let unknown = Expr::Unknown {
        name: "quantum".to_owned(),
        data: vec![1],
    };
    let rules = input(vec![
        vec![unknown.clone(), dport(), eq(&[0, 54]), verdict(1)],
        vec![dport(), eq(&[0, 53]), verdict(0)],
    ]);
    let outcome = evaluate(&rules, &packet());
    assert!(
        matches!(outcome.answer(&Known::default()), Answer::Computed(end) if end.assumed.is_empty())
    );
    let rules = input(vec![vec![unknown, verdict(0)], vec![verdict(0)]]);
    let outcome = evaluate(&rules, &packet());
    assert!(
        matches!(outcome.answer(&Known::default()), Answer::Ambiguous(ends) if ends.len() == 2)
    );
    let mut rules = input(vec![vec![verdict(0)]]);
    rules.tables[0].chains[0].rules[0].broken = true;
    assert_eq!(evaluate(&rules, &packet()).ends.len(), 2);
}

/// Prerouting, the packet taken when it was dropped with mark 5: a rule before the drop may have set it.
#[test]
fn the_mark_of_a_dropped_packet_is_the_last_one() {
    let mut jump = vec![mark(), eq(&1_u32.to_ne_bytes())];
    jump.push(to(Verdict::JUMP, "set"));
    let mut drop = set_mark(5).to_vec();
    drop.push(verdict(0));
    let rules = |last: u32| {
        let mut drop = set_mark(last).to_vec();
        drop.push(verdict(0));
        ruleset(vec![table(
            vec![
                chain("in", Some((1, 0, 0)), vec![jump.clone()]),
                chain("set", None, vec![drop]),
            ],
            Vec::new(),
        )])
    };
    let dropped = Packet {
        moment: Moment::Drop,
        ..packet()
    };
    // It had mark 1 and got 5, or had 5 all along and met the policy.
    let outcome = evaluate(&rules(5), &dropped);
    let decisions: Vec<bool> = outcome
        .ends
        .iter()
        .map(|end| matches!(end.decision, Decision::Rule(_)))
        .collect();
    assert_eq!(decisions.len(), 2, "{outcome:?}");
    assert!(decisions.contains(&true) && decisions.contains(&false));
    // A rule that sets 6 was not met.
    let outcome = evaluate(&rules(6), &dropped);
    assert_eq!(outcome.ends.len(), 1, "{outcome:?}");
    assert!(matches!(outcome.ends[0].decision, Decision::Policy(_)));
    // A packet that was taken before had what it shows.
    let outcome = evaluate(&rules(5), &packet());
    assert_eq!(outcome.ends.len(), 1);
}

#[test]
fn a_mark_that_was_set_is_read_back() {
    let mut rules = vec![set_mark(7).to_vec()];
    rules.push(vec![mark(), eq(&7_u32.to_ne_bytes()), verdict(0)]);
    let outcome = evaluate(&input(rules), &packet());
    assert_eq!(outcome.ends[0].fate, Fate::Drop);
}

fn state(bit: u32) -> Vec<Expr> {
    let load = Expr::Ct {
        dreg: 1,
        key: 0,
        direction: None,
    };
    vec![load, eq(&bit.to_ne_bytes()), verdict(0)]
}

#[test]
fn chains_before_connection_tracking_see_no_connection() {
    let at = |priority, bit| {
        let rules = vec![state(bit)];
        let base = chain("pre", Some((0, priority, 1)), rules);
        let packet = Packet {
            hook: 0,
            tracking: Tracking::Connection(Connection {
                info: 2,
                ..Connection::default()
            }),
            ..packet()
        };
        let outcome = evaluate(&ruleset(vec![table(vec![base], Vec::new())]), &packet);
        let fates: Vec<Fate> = outcome.ends.iter().map(|end| end.fate).collect();
        fates
    };
    assert_eq!(at(-300, 1), [Fate::Drop]);
    assert_eq!(at(-300, 8), [Fate::Accept]);
    assert_eq!(at(-150, 8), [Fate::Drop]);
    assert_eq!(at(-200, 8).len(), 2);
}

#[test]
fn chains_before_translation_see_the_address_before() {
    let address = |last| {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&[10, 1, 0, last]);
        bytes
    };
    let tuple = |src, dst, sport: u16, dport: u16| Tuple {
        src: address(src),
        dst: address(dst),
        sport: sport.to_be_bytes(),
        dport: dport.to_be_bytes(),
        l3proto: 2,
        l4proto: 17,
    };
    // It was sent to 10.1.0.9:5353 and shows 10.1.0.2:53.
    let dropped = Packet {
        hook: 0,
        moment: Moment::Drop,
        tracking: Tracking::Connection(Connection {
            info: 2,
            status: Connection::DST_NAT | Connection::DST_NAT_DONE,
            original: tuple(1, 9, 1234, 5353),
            reply: tuple(2, 1, 53, 1234),
            ..Connection::default()
        }),
        ..packet()
    };
    let matched = |priority, port: u16, last| {
        let rule = vec![
            dport(),
            eq(&port.to_be_bytes()),
            payload(PayloadBase::Network, 16, 4),
            eq(&[10, 1, 0, last]),
            verdict(0),
        ];
        let base = chain("pre", Some((0, priority, 1)), vec![rule]);
        let outcome = evaluate(&ruleset(vec![table(vec![base], Vec::new())]), &dropped);
        assert_eq!(outcome.ends.len(), 1);
        outcome.ends[0].fate == Fate::Drop
    };
    assert!(matched(-150, 5353, 9));
    assert!(!matched(-150, 53, 2));
    assert!(matched(0, 53, 2));
    assert!(!matched(0, 5353, 9));
}

#[test]
fn chains_of_one_priority_in_different_tables_have_no_known_order() {
    let dropping = |name: &str| {
        let mut table = table(
            vec![chain("in", Some((1, 0, 1)), vec![vec![verdict(0)]])],
            Vec::new(),
        );
        table.name = name.to_owned();
        table
    };
    let outcome = evaluate(&ruleset(vec![dropping("a"), dropping("b")]), &packet());
    assert!(
        matches!(outcome.answer(&Known::default()), Answer::Ambiguous(ends) if ends.len() == 2)
    );
    // With one that only accepts it makes no difference.
    let mut harmless = dropping("b");
    harmless.chains[0].rules[0].exprs = vec![verdict(1)];
    let outcome = evaluate(&ruleset(vec![dropping("a"), harmless]), &packet());
    assert!(
        matches!(outcome.answer(&Known::default()), Answer::Computed(end) if end.assumed.is_empty())
    );
    // Within a table the chain that was made later comes first.
    let both = vec![
        chain("old", Some((1, 0, 1)), vec![vec![verdict(0)]]),
        chain("new", Some((1, 0, 1)), vec![vec![verdict(0)]]),
    ];
    let outcome = evaluate(&ruleset(vec![table(both, Vec::new())]), &packet());
    let Decision::Rule(rule) = outcome.ends[0].decision else {
        panic!("no rule: {outcome:?}");
    };
    assert_eq!((outcome.ends.len(), rule.chain.chain), (1, 1));
}

fn set(flags: u32, elements: Vec<Element>) -> Set {
    Set {
        name: "s".to_owned(),
        flags,
        key_len: 2,
        elements,
        ..Set::default()
    }
}

fn element(key: &[u8], flags: u32) -> Element {
    Element {
        key: Some(key.to_vec()),
        flags,
        ..Element::default()
    }
}

/// What a drop by policy says of the accepting rule that came nearest.
fn nearest_miss(rules: Vec<Vec<Expr>>) -> (u32, Vec<String>) {
    let rules = ruleset(vec![table(
        vec![chain("in", Some((1, 0, 0)), rules)],
        Vec::new(),
    )]);
    let names = Names::default().with_interfaces([(2, "r0".to_owned())]);
    let texts = Texts {
        nft: Some(&rules),
        legacy: &[],
        names: &names,
    };
    let program = Program::new(Some(&rules), &[]);
    let known = Known::default();
    let walk = program
        .explain(&packet(), &World::default(), &texts, &known, Detail::Full)
        .unwrap();
    assert_eq!(walk.end.fate, Fate::Drop);
    assert_eq!(walk.phases[0].end, "policy drop");
    let nearest = walk.nearest.unwrap();
    let words = nearest.failed.iter().map(ToString::to_string).collect();
    (nearest.rule.rule, words)
}

#[test]
fn the_nearest_miss_is_told_in_words() {
    let l4proto = |proto| [Expr::Meta { dreg: 1, key: 16 }, eq(&[proto])];
    let iifname = [
        Expr::Meta { dreg: 1, key: 6 },
        eq(b"eth0\0\0\0\0\0\0\0\0\0\0\0\0"),
    ];
    let accept = |parts: &[&[Expr]]| {
        let mut rule = parts.concat();
        rule.push(verdict(1));
        rule
    };
    let port = |port: u16| [dport(), eq(&port.to_be_bytes())];
    let (rule, words) = nearest_miss(vec![
        accept(&[&l4proto(6), &port(80)]),
        accept(&[&iifname, &l4proto(17), &port(53)]),
        vec![dport(), eq(&[0, 54]), verdict(0)],
    ]);
    assert_eq!(rule, 1);
    assert_eq!(words, ["wanted iifname \"eth0\", packet came in on \"r0\""]);
    let (_, words) = nearest_miss(vec![accept(&[&l4proto(17), &port(8080)])]);
    assert_eq!(words, ["wanted udp dport 8080, packet has 53"]);
    let (_, words) = nearest_miss(vec![accept(&[&l4proto(6), &port(53)])]);
    assert_eq!(words, ["wanted meta l4proto tcp, packet is udp"]);
    let source = [payload(PayloadBase::Network, 12, 4), eq(&[10, 1, 0, 9])];
    let (_, words) = nearest_miss(vec![accept(&[&source, &port(54)])]);
    assert_eq!(
        words,
        [
            "wanted ip saddr 10.1.0.9, packet has 10.1.0.1",
            "wanted th dport 54, packet has 53"
        ]
    );
    let state = [
        Expr::Ct {
            dreg: 1,
            key: 0,
            direction: None,
        },
        Expr::Bitwise {
            sreg: 1,
            sreg2: None,
            dreg: 1,
            len: 4,
            op: 0,
            mask: 6_u32.to_ne_bytes().to_vec(),
            xor: vec![0; 4],
            data: Vec::new(),
        },
        cmp(CmpOp::Neq, &[0; 4]),
    ];
    let (_, words) = nearest_miss(vec![accept(&[&state])]);
    assert_eq!(
        words,
        ["wanted ct state established,related, packet is invalid"]
    );
}
