use super::*;
use crate::eval::{
    logged::{LogPoint, Logged},
    outcome::{ChainId, RuleId, TableId},
};

fn log() -> Expr {
    Expr::Log {
        prefix: None,
        level: None,
        flags: None,
        group: Some(5),
        snaplen: None,
        qthreshold: None,
    }
}

/// What becomes of the packet that the first `log` of this chain of the first table has logged.
fn logged(ruleset: &Ruleset, chain: u32, packet: &Packet<'_>) -> Logged {
    let rules = &ruleset.tables[0].chains[chain as usize].rules;
    let found = (0..).zip(rules).find_map(|(rule, r)| {
        let mut exprs = r.exprs.iter();
        let expr = exprs.position(|expr| matches!(expr, Expr::Log { .. }))?;
        Some((rule, expr as u16))
    });
    let (rule, expr) = found.unwrap();
    let point = LogPoint {
        rule: RuleId {
            chain: ChainId {
                table: TableId::Nft(0),
                chain,
            },
            rule,
        },
        expr,
    };
    Program::new(Some(ruleset), &[]).evaluate_logged(packet, &World::default(), point)
}

/// Fates and the rules that they are of (none: policy, or passed).
fn ends(logged: &Logged) -> Vec<(Fate, Option<u32>)> {
    assert_eq!(logged.outcome.incomplete, None);
    let ends = logged.outcome.ends.iter();
    ends.map(|end| (end.fate, rule_of(end.decision))).collect()
}

#[test]
fn what_was_unknown_before_the_log_is_settled_by_it() {
    // Both limits are stateful: only the one behind the log leaves two ends.
    let rules = input(vec![
        vec![limit(), verdict(1)],
        vec![limit(), log(), verdict(0)],
    ]);
    assert_eq!(ends(&logged(&rules, 0, &packet())), [(Fate::Drop, Some(1))]);
    let rules = input(vec![vec![log()], vec![limit(), verdict(0)]]);
    assert_eq!(
        ends(&logged(&rules, 0, &packet())),
        [(Fate::Drop, Some(1)), (Fate::Accept, None)]
    );
    let rules = input(vec![vec![log(), limit(), verdict(0)]]);
    assert_eq!(
        ends(&logged(&rules, 0, &packet())),
        [(Fate::Drop, Some(0)), (Fate::Accept, None)]
    );
}

#[test]
fn a_packet_that_cannot_have_come_there_has_no_end() {
    let rules = input(vec![vec![dport(), eq(&[0, 54]), log(), verdict(0)]]);
    assert_eq!(ends(&logged(&rules, 0, &packet())), []);
    let rules = input(vec![vec![verdict(0)], vec![log(), verdict(0)]]);
    assert_eq!(ends(&logged(&rules, 0, &packet())), []);
    let elsewhere = Packet {
        hook: 2,
        ..packet()
    };
    let rules = input(vec![vec![log(), verdict(0)]]);
    assert_eq!(ends(&logged(&rules, 0, &elsewhere)), []);
}

#[test]
fn it_returns_to_the_chain_that_called() {
    let calls = |first: Vec<Expr>, second: Vec<Expr>| {
        ruleset(vec![table(
            vec![
                chain(
                    "sub",
                    None,
                    vec![vec![log()], vec![verdict(Verdict::RETURN)]],
                ),
                chain(
                    "in",
                    Some((1, 0, 1)),
                    vec![first, vec![verdict(0)], second, vec![verdict(1)]],
                ),
            ],
            Vec::new(),
        )])
    };
    let jump = || to(Verdict::JUMP, "sub");
    let not_dns = || vec![dport(), eq(&[0, 80]), jump()];
    let rules = calls(vec![jump()], not_dns());
    assert_eq!(ends(&logged(&rules, 0, &packet())), [(Fate::Drop, Some(1))]);
    // By a goto: the policy decides, which accepts.
    let rules = calls(vec![to(Verdict::GOTO, "sub")], not_dns());
    assert_eq!(ends(&logged(&rules, 0, &packet())), [(Fate::Accept, None)]);
    // Whether the first one jumps is not known: both can have called.
    let mut rules = calls(vec![limit(), jump()], vec![jump()]);
    rules.tables[0].chains[1].rules[1].exprs = vec![limit(), verdict(0)];
    assert_eq!(
        ends(&logged(&rules, 0, &packet())),
        [(Fate::Drop, Some(1)), (Fate::Accept, None)]
    );
}

#[test]
fn later_base_chains_decide_too() {
    let two = |policy| {
        ruleset(vec![
            table(
                vec![chain("in", Some((1, 0, 1)), vec![vec![log(), verdict(1)]])],
                Vec::new(),
            ),
            table(
                vec![chain("late", Some((1, 10, policy)), vec![])],
                Vec::new(),
            ),
        ])
    };
    assert_eq!(ends(&logged(&two(1), 0, &packet())), [(Fate::Accept, None)]);
    let dropped = logged(&two(0), 0, &packet());
    assert_eq!(ends(&dropped), [(Fate::Drop, None)]);
    assert!(matches!(
        dropped.outcome.ends[0].decision,
        Decision::Policy(ChainId {
            table: TableId::Nft(1),
            ..
        })
    ));
}

#[test]
fn the_packet_is_as_the_log_shows_it() {
    // The mark of 5 that it shows was set before the log; the rule behind it sets another.
    let set_then_log = |value| {
        let [a, b] = set_mark(5);
        let [c, d] = set_mark(value);
        input(vec![
            vec![mark(), eq(&0u32.to_ne_bytes()), a, b],
            vec![log()],
            vec![mark(), eq(&5u32.to_ne_bytes()), c, d],
            vec![mark(), eq(&7u32.to_ne_bytes()), verdict(0)],
        ])
    };
    let drop = [(Fate::Drop, Some(3))];
    assert_eq!(ends(&logged(&set_then_log(7), 0, &packet())), drop);
    let accept = [(Fate::Accept, None)];
    assert_eq!(ends(&logged(&set_then_log(8), 0, &packet())), accept);
}

#[test]
fn addresses_that_the_hook_translates_after_the_log_are_not_known() {
    let nat = |kind: &str| {
        let mut nat = chain("nat", Some((0, -100, 1)), vec![]);
        nat.base.as_mut().unwrap().kind = kind.to_owned();
        let early = chain("early", Some((0, -150, 1)), vec![vec![log()]]);
        let late = vec![vec![dport(), eq(&[0, 53]), verdict(0)]];
        let late = chain("late", Some((0, 0, 1)), late);
        ruleset(vec![table(vec![early, nat, late], Vec::new())])
    };
    let at = |tracking| Packet {
        hook: 0,
        tracking,
        ..packet()
    };
    let both = [(Fate::Drop, Some(0)), (Fate::Accept, None)];
    let drop = [(Fate::Drop, Some(0))];
    let unknown = at(Tracking::Unknown);
    assert_eq!(ends(&logged(&nat("nat"), 0, &unknown)), both);
    assert_eq!(ends(&logged(&nat("filter"), 0, &unknown)), drop);
    assert_eq!(
        ends(&logged(&nat("nat"), 0, &at(Tracking::Untracked))),
        drop
    );
    let plain = Connection {
        info: 0,
        status: Connection::CONFIRMED | Connection::SRC_NAT_DONE | Connection::DST_NAT_DONE,
        ..Connection::default()
    };
    let plain = at(Tracking::Connection(plain));
    assert_eq!(ends(&logged(&nat("nat"), 0, &plain)), drop);
}
