//! Walks through rulesets made by hand: what each expression does to registers, where walks fork, what they rest on.

use std::sync::Arc;

use proptest::prelude::*;

use super::{
    cache::Cache,
    outcome::{Answer, Decision, Fate, Known, Outcome},
    packet::{Connection, Device, Fact, Moment, Packet, Tracking, Tuple},
    program::Program,
    world::World,
};
use crate::ruleset::{
    expr::{CmpOp, Data, Expr, PayloadBase, Verdict},
    model::{BaseChain, Chain, Element, Family, Rule, Ruleset, Set, Table},
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
fn registers_alias() {
    // 16-byte register 1 is 8 to 11, register 2 is 12 to 15.
    let load = |dreg, offset| Expr::Payload {
        dreg,
        base: PayloadBase::Network,
        offset,
        len: 4,
    };
    let compare = |sreg, data: &[u8]| Expr::Cmp {
        sreg,
        op: CmpOp::Eq,
        data: data.to_vec(),
    };
    let both = vec![
        load(1, 12),
        load(9, 16),
        compare(8, &[10, 1, 0, 1, 10, 1, 0, 2]),
        compare(1, &[10, 1, 0, 1]),
        compare(9, &[10, 1, 0, 2]),
    ];
    assert_eq!(holds(both), Some(true));
    assert_eq!(
        holds(vec![load(12, 16), compare(2, &[10, 1, 0, 2])]),
        Some(true)
    );
    // Nothing is known of a register that nothing was loaded into.
    assert_eq!(holds(vec![load(1, 12), compare(2, &[10, 1, 0, 1])]), None);
}

#[test]
fn comparisons_are_of_bytes() {
    for (op, data, expected) in [
        (CmpOp::Eq, [0, 53], true),
        (CmpOp::Neq, [0, 53], false),
        (CmpOp::Lt, [0, 54], true),
        (CmpOp::Lt, [0, 53], false),
        (CmpOp::Lte, [0, 53], true),
        (CmpOp::Gt, [0, 52], true),
        (CmpOp::Gt, [0, 53], false),
        (CmpOp::Gte, [0, 53], true),
        (CmpOp::Gte, [1, 0], false),
    ] {
        assert_eq!(
            holds(vec![dport(), cmp(op, &data)]),
            Some(expected),
            "{op:?}"
        );
        // The same without the quick way, with the register still in use.
        let slow = vec![dport(), cmp(op, &data), byteorder(2, 2), eq(&[53, 0])];
        assert_eq!(holds(slow), Some(expected), "{op:?}");
    }
    let range = |invert| Expr::Range {
        sreg: 1,
        invert,
        from: vec![0, 50],
        to: vec![0, 53],
    };
    assert_eq!(holds(vec![dport(), range(false)]), Some(true));
    assert_eq!(holds(vec![dport(), range(true)]), Some(false));
}

fn byteorder(len: u32, size: u32) -> Expr {
    Expr::Byteorder {
        sreg: 1,
        dreg: 1,
        op: 0,
        len,
        size,
    }
}

#[test]
fn operations_on_registers() {
    let bitwise = |op, mask: &[u8], xor: &[u8], data: &[u8]| Expr::Bitwise {
        sreg: 1,
        sreg2: None,
        dreg: 1,
        len: 8,
        op,
        mask: mask.to_vec(),
        xor: xor.to_vec(),
        data: data.to_vec(),
    };
    let eight = || payload(PayloadBase::Network, 12, 8);
    let masked = bitwise(0, &[0xff; 8], &[1, 0, 0, 0, 0, 0, 0, 1], &[]);
    assert_eq!(
        holds(vec![eight(), masked, eq(&[11, 1, 0, 1, 10, 1, 0, 3])]),
        Some(true)
    );
    // Shifts carry from word to word; words are in host order, the first word highest.
    let source = [0x8000_0001_u32, 0xc000_0003];
    let bytes: Vec<u8> = source.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let load = || Expr::Immediate {
        dreg: 1,
        data: Data::Value(bytes.clone()),
    };
    for (op, shift, expected) in [
        (1, 4, [0x0000_001c_u32, 0x0000_0030]),
        (2, 4, [0x0800_0000, 0x1c00_0000]),
        (1, 0, source),
        (2, 0, source),
    ] {
        let shift = bitwise(op, &[], &[], &u32::to_ne_bytes(shift));
        let expected: Vec<u8> = expected
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect();
        assert_eq!(
            holds(vec![load(), shift, eq(&expected)]),
            Some(true),
            "{op}"
        );
    }
    for (op, expected) in [
        (3, [10, 1, 0, 0]),
        (4, [255, 255, 1, 1]),
        (5, [245, 254, 1, 1]),
    ] {
        let with = bitwise(op, &[], &[], &[255, 255, 1, 0, 0, 0, 0, 0]);
        let expected = match op {
            3 => [10, 1, 0, 0],
            4 => [255, 255, 1, 1],
            _ => expected,
        };
        assert_eq!(
            holds(vec![eight(), with, eq(&expected)]),
            Some(true),
            "{op}"
        );
    }
    for (size, expected) in [
        (2, [1, 10, 1, 0, 1, 10, 2, 0]),
        (4, [1, 0, 1, 10, 2, 0, 1, 10]),
        (8, [2, 0, 1, 10, 1, 0, 1, 10]),
    ] {
        assert_eq!(
            holds(vec![eight(), byteorder(8, size), eq(&expected)]),
            Some(true),
            "{size}"
        );
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
    assert!(!outcome.ends[0].assumed[0].stateful);
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
    assert!(outcome.ends.iter().all(|end| end.assumed[0].stateful));
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

fn in_set(set: Set, flags: u32) -> Vec<Fate> {
    let lookup = Expr::Lookup {
        set: "s".to_owned(),
        sreg: 1,
        dreg: None,
        flags,
    };
    let base = chain(
        "in",
        Some((1, 0, 1)),
        vec![vec![dport(), lookup, verdict(0)]],
    );
    let outcome = evaluate(&ruleset(vec![table(vec![base], vec![set])]), &packet());
    outcome.ends.iter().map(|end| end.fate).collect()
}

#[test]
fn sets() {
    const END: u32 = Element::INTERVAL_END;
    let hash = || set(0, vec![element(&[0, 80], 0), element(&[0, 53], 0)]);
    assert_eq!(in_set(hash(), 0), [Fate::Drop]);
    assert_eq!(in_set(hash(), 1), [Fate::Accept]);
    // 50 to 52, and 53 on: where one ends the next starts. In the kernel's order, which is any.
    let adjacent = vec![
        element(&[0, 53], END),
        element(&[0, 53], 0),
        element(&[0, 50], 0),
        element(&[0, 0], END),
    ];
    assert_eq!(in_set(set(Set::INTERVAL, adjacent), 0), [Fate::Drop]);
    let below = vec![element(&[0, 50], 0), element(&[0, 53], END)];
    assert_eq!(in_set(set(Set::INTERVAL, below), 0), [Fate::Accept]);
    let open = vec![element(&[0, 50], 0)];
    assert_eq!(in_set(set(Set::INTERVAL, open), 0), [Fate::Drop]);
    let ranged = Element {
        key_end: Some(vec![0, 60]),
        ..element(&[0, 50], 0)
    };
    assert_eq!(in_set(set(Set::INTERVAL, vec![ranged]), 0), [Fate::Drop]);
    let expiring = Element {
        timeout: Some(1000),
        expiration: Some(500),
        ..element(&[0, 53], 0)
    };
    assert_eq!(in_set(set(Set::TIMEOUT, vec![expiring]), 0).len(), 2);
    let catch_all = Element {
        flags: Element::CATCHALL,
        ..Element::default()
    };
    assert_eq!(in_set(set(0, vec![catch_all]), 0), [Fate::Drop]);
    // Rules fill it: what is not in it may be by now.
    assert_eq!(
        in_set(set(Set::EVAL, vec![element(&[0, 1], 0)]), 0).len(),
        2
    );
    assert_eq!(
        in_set(set(Set::EVAL, vec![element(&[0, 53], 0)]), 0),
        [Fate::Drop]
    );
}

#[test]
fn an_unknown_key_of_a_verdict_map_leads_everywhere() {
    let mut map = set(Set::MAP, Vec::new());
    map.data_type = Some(Set::VERDICT);
    for (port, code) in [(1, 0), (2, 1), (3, 0)] {
        map.elements.push(Element {
            data: Some(Data::Verdict(Verdict { code, chain: None })),
            ..element(&[0, port], 0)
        });
    }
    let lookup = Expr::Lookup {
        set: "s".to_owned(),
        sreg: 1,
        dreg: Some(0),
        flags: 0,
    };
    let base = chain("in", Some((1, 0, 1)), vec![vec![dport(), lookup]]);
    let cut = Packet {
        bytes: &UDP[..20],
        ..packet()
    };
    let outcome = evaluate(&ruleset(vec![table(vec![base], vec![map])]), &cut);
    let mut fates: Vec<Fate> = outcome.ends.iter().map(|end| end.fate).collect();
    fates.sort_by_key(|fate| fate.is_drop());
    assert_eq!(fates, [Fate::Accept, Fate::Drop]);
}

fn arbitrary_expr() -> impl Strategy<Value = Expr> {
    let register = prop_oneof![0_u32..6, 8_u32..26];
    let bytes = prop::collection::vec(any::<u8>(), 0..20);
    let base = prop_oneof![
        Just(PayloadBase::Link),
        Just(PayloadBase::Network),
        Just(PayloadBase::Transport),
        Just(PayloadBase::Inner),
        Just(PayloadBase::Tunnel),
    ];
    let op = prop_oneof![
        Just(CmpOp::Eq),
        Just(CmpOp::Neq),
        Just(CmpOp::Lt),
        Just(CmpOp::Lte),
        Just(CmpOp::Gt),
        Just(CmpOp::Gte),
    ];
    let chain = prop_oneof![Just(None), "in|a|b|zz".prop_map(Some)];
    prop_oneof![
        (register.clone(), base.clone(), 0_u32..64, 0_u32..70).prop_map(
            |(dreg, base, offset, len)| Expr::Payload {
                dreg,
                base,
                offset,
                len
            }
        ),
        (register.clone(), op, bytes.clone()).prop_map(|(sreg, op, data)| Expr::Cmp {
            sreg,
            op,
            data
        }),
        (
            register.clone(),
            any::<bool>(),
            bytes.clone(),
            bytes.clone()
        )
            .prop_map(|(sreg, invert, from, to)| Expr::Range {
                sreg,
                invert,
                from,
                to
            }),
        (register.clone(), 0_u32..38).prop_map(|(dreg, key)| Expr::Meta { dreg, key }),
        (register.clone(), 0_u32..24).prop_map(|(sreg, key)| Expr::MetaSet { sreg, key }),
        (register.clone(), 0_u32..25, prop::option::of(0_u8..3)).prop_map(
            |(dreg, key, direction)| Expr::Ct {
                dreg,
                key,
                direction
            }
        ),
        (-6_i32..5, chain).prop_map(|(code, chain)| Expr::Immediate {
            dreg: 0,
            data: Data::Verdict(Verdict { code, chain }),
        }),
        (register.clone(), bytes.clone()).prop_map(|(dreg, bytes)| Expr::Immediate {
            dreg,
            data: Data::Value(bytes)
        }),
        (
            register.clone(),
            register.clone(),
            0_u32..20,
            0_u32..7,
            bytes.clone(),
            bytes.clone()
        )
            .prop_map(|(sreg, dreg, len, op, mask, data)| Expr::Bitwise {
                sreg,
                sreg2: None,
                dreg,
                len,
                op,
                xor: mask.clone(),
                mask,
                data,
            }),
        (register.clone(), register.clone(), 0_u32..20, 0_u32..9).prop_map(
            |(sreg, dreg, len, size)| Expr::Byteorder {
                sreg,
                dreg,
                op: 0,
                len,
                size
            }
        ),
        (
            register.clone(),
            prop::option::of(register.clone()),
            0_u32..2
        )
            .prop_map(|(sreg, dreg, flags)| Expr::Lookup {
                set: "s".to_owned(),
                sreg,
                dreg,
                flags
            }),
        (
            register.clone(),
            any::<u8>(),
            0_u32..20,
            0_u32..20,
            0_u32..2,
            0_u32..6
        )
            .prop_map(|(dreg, kind, offset, len, flags, op)| Expr::Exthdr {
                dreg,
                kind,
                offset,
                len,
                flags,
                op
            }),
        (register.clone(), base, 0_u32..40, 0_u32..8).prop_map(|(sreg, base, offset, len)| {
            Expr::PayloadSet {
                sreg,
                base,
                offset,
                len,
                csum_type: 0,
                csum_offset: 0,
                csum_flags: 0,
            }
        }),
        (
            register.clone(),
            register.clone(),
            0_u32..40,
            prop::option::of(any::<u32>())
        )
            .prop_map(|(sreg, dreg, len, seed)| Expr::Hash {
                sreg: Some(sreg),
                dreg,
                len,
                modulus: 7,
                seed,
                offset: 0,
                kind: 0,
            }),
        (register.clone(), 0_u32..5, 0_u32..64).prop_map(|(dreg, result, flags)| Expr::Fib {
            dreg,
            result,
            flags
        }),
        (register, 0_u32..4).prop_map(|(sreg_key, op)| Expr::Dynset {
            set: "s".to_owned(),
            op,
            sreg_key,
            sreg_data: None,
            timeout: None,
            flags: 0,
            exprs: Vec::new(),
        }),
        Just(limit()),
        Just(Expr::Notrack),
        Just(Expr::Synproxy {
            mss: 1,
            wscale: 1,
            flags: 0
        }),
        Just(Expr::Masq {
            flags: 0,
            proto_min: None,
            proto_max: None
        }),
        bytes.prop_map(|data| Expr::Unknown {
            name: "x".to_owned(),
            data
        }),
    ]
}

fn arbitrary_ruleset() -> impl Strategy<Value = Ruleset> {
    let rules = || prop::collection::vec(prop::collection::vec(arbitrary_expr(), 0..6), 0..5);
    let keys = prop::collection::vec((prop::collection::vec(any::<u8>(), 0..6), 0_u32..3), 0..6);
    (
        rules(),
        rules(),
        rules(),
        keys,
        any::<u16>(),
        -301_i32..120,
        0_u32..5,
    )
        .prop_map(|(first, a, b, keys, flags, priority, hook)| {
            let elements = keys
                .iter()
                .map(|(key, flags)| element(key, *flags))
                .collect();
            let chains = vec![
                chain("in", Some((hook, priority, 0)), first),
                chain("a", None, a),
                chain("b", Some((hook, priority, 1)), b),
            ];
            ruleset(vec![table(chains, vec![set(u32::from(flags), elements)])])
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// Whatever the ruleset and the packet: an answer, the same with the cache and without.
    #[test]
    fn any_walk_ends_and_can_be_cached(
        ruleset in arbitrary_ruleset(),
        packets in prop::collection::vec(
            (prop::collection::vec(any::<u8>(), 0..80), 0_u32..90, 0_usize..16, any::<bool>(), 0_u8..8),
            1..8,
        ),
        hook in 0_u8..5,
    ) {
        let program = Arc::new(Program::new(Some(&ruleset), &[]));
        let world = World::default();
        let mut cache = Cache::new(program.clone());
        for (bytes, len, l2_len, dropped, info) in packets {
            let mut bytes = bytes;
            if let Some(first) = bytes.get_mut(l2_len) {
                *first = 0x45;
            }
            let packet = Packet {
                bytes: &bytes,
                len,
                l2_len,
                hook,
                moment: if dropped { Moment::Drop } else { Moment::Entry },
                tracking: match info {
                    0..=4 => Tracking::Connection(Connection { info, status: u32::from(info) << 4, ..Connection::default() }),
                    5 => Tracking::None,
                    6 => Tracking::Untracked,
                    _ => Tracking::Unknown,
                },
                ..packet()
            };
            let plain = program.evaluate(&packet, &world);
            prop_assert!(plain.incomplete.is_some() || !plain.ends.is_empty() || dropped, "{plain:?}");
            // Twice: what was put in, and what is found.
            for _ in 0..2 {
                prop_assert_eq!(&*cache.evaluate(&packet, &world), &plain);
            }
        }
    }
}
