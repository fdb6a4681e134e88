use super::*;
use crate::{
    ruleset::{
        expr::Verdict,
        model::{BaseChain, Chain, Element, Rule, Set},
    },
    xtables::legacy,
};

pub(crate) fn log(group: Option<u16>, prefix: Option<&str>) -> Expr {
    Expr::Log {
        prefix: prefix.map(str::to_owned),
        level: None,
        flags: None,
        group,
        snaplen: None,
        qthreshold: None,
    }
}

fn verdict(code: i32, chain: &str) -> Verdict {
    Verdict {
        code,
        chain: Some(chain.to_owned()),
    }
}

fn jump(chain: &str) -> Expr {
    Expr::Immediate {
        dreg: 0,
        data: Data::Verdict(verdict(Verdict::JUMP, chain)),
    }
}

pub(crate) fn chain(name: &str, hook: Option<u32>, rules: Vec<Vec<Expr>>) -> Chain {
    let rule = |(number, exprs): (u32, Vec<Expr>)| Rule {
        handle: u64::from(number) + 10,
        number,
        exprs,
        ..Rule::default()
    };
    Chain {
        name: name.to_owned(),
        handle: 1,
        base: hook.map(|hook| BaseChain {
            kind: "filter".to_owned(),
            hook,
            priority: 0,
            policy: 1,
            devices: Vec::new(),
            counters: None,
        }),
        flags: 0,
        comment: None,
        userdata: Vec::new(),
        rules: (1..).zip(rules).map(rule).collect(),
    }
}

pub(crate) fn table(family: Family, chains: Vec<Chain>) -> model::Table {
    model::Table {
        family,
        name: "t".to_owned(),
        handle: 1,
        flags: 0,
        owner: None,
        comment: None,
        userdata: Vec::new(),
        chains,
        sets: Vec::new(),
        objects: Vec::new(),
        flowtables: Vec::new(),
        iptables: false,
    }
}

pub(crate) fn nft(tables: Vec<model::Table>) -> LogRules {
    let ruleset = Ruleset {
        tables,
        ..Ruleset::default()
    };
    LogRules::new(Some(&ruleset), [], &Names::default())
}

/// Chain, number and base chain of those found.
fn found(rules: &LogRules, group: u16, prefix: &str, pf: u8, hook: u8) -> Vec<String> {
    let found = rules.find(group, prefix, pf, hook).iter();
    let words = found.map(|found| {
        let rule = &found.rule;
        let base = rule.base_chain.as_deref().unwrap_or("-");
        format!("{} {} {base}", rule.chain, rule.number.unwrap_or(0))
    });
    words.collect()
}

#[test]
fn rules_are_found_by_all_that_a_logged_packet_shows() {
    let rules = nft(vec![
        table(
            Family::Inet,
            vec![
                chain(
                    "in",
                    Some(1),
                    vec![
                        vec![log(Some(5), Some("dns "))],
                        vec![log(None, Some("dns "))],
                        vec![jump("sub")],
                    ],
                ),
                chain("sub", None, vec![vec![log(Some(7), None)]]),
                chain("out", Some(3), vec![vec![log(Some(5), Some("out"))]]),
            ],
        ),
        table(
            Family::Ip,
            vec![chain(
                "in4",
                Some(1),
                vec![vec![log(Some(5), Some("dns "))]],
            )],
        ),
    ]);
    assert_eq!(rules.groups(), &BTreeSet::from([5, 7]));
    assert_eq!(found(&rules, 5, "dns ", 2, 1), ["in 1 in", "in4 1 in4"]);
    assert_eq!(found(&rules, 5, "dns ", 10, 1), ["in 1 in"]);
    assert_eq!(found(&rules, 7, "", 10, 1), ["sub 1 in"]);
    assert_eq!(found(&rules, 5, "out", 2, 3), ["out 1 out"]);
    for (group, prefix, pf, hook) in [
        (6, "dns ", 2, 1),
        (5, "dns", 2, 1),
        (5, "dns ", 3, 1),
        (5, "dns ", 2, 3),
        (7, "", 2, 3),
    ] {
        assert!(found(&rules, group, prefix, pf, hook).is_empty());
    }
    assert!(!rules.is_incomplete());
    let [one] = rules.find(5, "out", 2, 3) else {
        panic!("one rule");
    };
    assert_eq!(
        (one.point.rule.chain.table, one.point.rule.chain.chain),
        (TableId::Nft(0), 2)
    );
    assert_eq!(
        (one.point, one.rule.handle),
        (
            LogPoint {
                expr: 0,
                ..one.point
            },
            Some(11)
        )
    );
}

#[test]
fn chains_are_followed_through_verdict_maps() {
    let mut table = table(
        Family::Ip,
        vec![
            chain("deep", None, vec![vec![log(Some(1), Some("x"))]]),
            chain("mid", None, vec![vec![jump("deep")], vec![jump("deep")]]),
            chain(
                "in",
                Some(1),
                vec![vec![Expr::Lookup {
                    set: "m".to_owned(),
                    sreg: 1,
                    dreg: Some(0),
                    flags: 0,
                }]],
            ),
            chain("late", Some(1), vec![vec![jump("mid")]]),
            chain("fwd", Some(2), vec![vec![jump("mid")]]),
            chain("alone", None, vec![vec![log(Some(9), None)]]),
        ],
    );
    table.sets.push(Set {
        name: "m".to_owned(),
        elements: vec![Element {
            data: Some(Data::Verdict(verdict(Verdict::GOTO, "mid"))),
            ..Element::default()
        }],
        ..Set::default()
    });
    let mut dormant = table.clone();
    dormant.flags = model::Table::DORMANT;
    let rules = nft(vec![table]);
    // By two base chains of one hook; by one of another.
    assert_eq!(found(&rules, 1, "x", 2, 1), ["deep 1 -"]);
    assert_eq!(found(&rules, 1, "x", 2, 2), ["deep 1 fwd"]);
    // Nothing leads to the chain that logs to group 9.
    assert_eq!(rules.groups(), &BTreeSet::from([1]));
    assert_eq!(nft(vec![dormant]), LogRules::default());
}

#[test]
fn what_cannot_be_read_may_be_a_rule_that_logs() {
    let one = |exprs| {
        nft(vec![table(
            Family::Ip,
            vec![chain("in", Some(1), vec![exprs])],
        )])
    };
    let target = |rev, info: &[u8]| Expr::Target {
        name: "NFLOG".to_owned(),
        rev,
        info: info.to_vec(),
    };
    let unknown = Expr::Unknown {
        name: "log".to_owned(),
        data: Vec::new(),
    };
    assert!(one(vec![unknown]).is_incomplete());
    assert!(one(vec![target(9, &[0; 76])]).is_incomplete());
    // `struct xt_nflog_info`: length, group, threshold, flags, padding, prefix.
    let mut info = [0; 76];
    info[4..6].copy_from_slice(&3u16.to_ne_bytes());
    info[12..15].copy_from_slice(b"abc");
    let read = one(vec![target(0, &info)]);
    assert!(!read.is_incomplete());
    assert_eq!(found(&read, 3, "abc", 2, 1), ["in 1 in"]);
}

#[test]
fn targets_of_legacy_tables_are_found() {
    let any = [0, 0, 0, 0].into();
    let rule = |number, jump| legacy::Rule {
        number,
        offset: number * 100,
        ip: legacy::Ip {
            src: any,
            src_mask: any,
            dst: any,
            dst_mask: any,
            iface_in: String::new(),
            iface_out: String::new(),
            proto: 0,
            tos: 0,
            flags: 0,
            inverted: 0,
        },
        matches: Vec::new(),
        jump,
        counters: Default::default(),
    };
    let nflog = |prefix: &str| {
        Jump::Target(Target::Nflog(xtables::targets::log::Nflog {
            group: 2,
            prefix: prefix.to_owned(),
            length: 0,
            copy_length: false,
            threshold: 0,
        }))
    };
    let chain = |name: &str, rules| legacy::Chain {
        name: name.to_owned(),
        base: None,
        rules,
    };
    let table = Table {
        family: xtables::Family::V6,
        name: "filter".to_owned(),
        chains: vec![
            chain("INPUT", vec![rule(1, Jump::Chain(2)), rule(2, nflog("in"))]),
            chain("FORWARD", vec![rule(3, Jump::Goto(2))]),
            chain("UC", vec![rule(1, nflog("uc"))]),
        ],
        hooks: [None, Some(0), Some(1), None, None],
        size: 0,
        entries: 0,
        problems: Vec::new(),
    };
    let rules = LogRules::new(None, [&table], &Names::default());
    assert_eq!(found(&rules, 2, "in", 10, 1), ["INPUT 2 INPUT"]);
    assert_eq!(found(&rules, 2, "uc", 10, 1), ["UC 1 INPUT"]);
    assert_eq!(found(&rules, 2, "uc", 10, 2), ["UC 1 FORWARD"]);
    assert!(found(&rules, 2, "in", 10, 2).is_empty());
    assert!(found(&rules, 2, "in", 2, 1).is_empty());
}
