//! Packets whose rules have rewritten what others read: what may have happened to them, against all that can have.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// What a rule asks about the mark.
#[derive(Debug, Clone)]
enum Test {
    Nothing,
    Masked {
        mask: u32,
        want: u32,
        invert: bool,
    },
    Within {
        low: u32,
        high: u32,
        invert: bool,
    },
    /// In a set of single marks, or of a range.
    Single {
        marks: Vec<u32>,
        invert: bool,
    },
    Range {
        low: u32,
        high: u32,
        invert: bool,
    },
}

/// What it does to it.
#[derive(Debug, Clone)]
enum Change {
    Nothing,
    Bits {
        and: u32,
        xor: u32,
    },
    /// `meta mark set meta mark map { ... }`.
    Map(Vec<(u32, u32)>),
}

#[derive(Debug, Clone)]
struct Step {
    tests: Vec<Test>,
    change: Change,
    drop: bool,
}

impl Test {
    fn holds(&self, mark: u32) -> bool {
        match self {
            Self::Nothing => true,
            Self::Masked { mask, want, invert } => (mark & mask == *want) != *invert,
            Self::Within { low, high, invert } | Self::Range { low, high, invert } => {
                (*low..=*high).contains(&mark) != *invert
            }
            Self::Single { marks, invert } => marks.contains(&mark) != *invert,
        }
    }

    fn exprs(&self, sets: &mut Vec<Set>) -> Vec<Expr> {
        let big = |mark: &u32| mark.to_be_bytes().to_vec();
        let order = Expr::Byteorder {
            sreg: 1,
            dreg: 1,
            op: 1,
            len: 4,
            size: 4,
        };
        match self {
            Self::Nothing => Vec::new(),
            Self::Masked { mask, want, invert } => {
                let op = if *invert { CmpOp::Neq } else { CmpOp::Eq };
                vec![mark(), masked(*mask, 0), cmp(op, &want.to_ne_bytes())]
            }
            Self::Within { low, high, invert } => vec![
                mark(),
                order,
                Expr::Range {
                    sreg: 1,
                    invert: *invert,
                    from: big(low),
                    to: big(high),
                },
            ],
            Self::Single { marks, invert } => {
                let elements = marks.iter().map(|mark| element(&mark.to_ne_bytes(), 0));
                vec![mark(), in_set(sets, 0, elements.collect(), *invert)]
            }
            Self::Range { low, high, invert } => {
                let end = element(&(high + 1).to_be_bytes(), Element::INTERVAL_END);
                let elements = vec![element(&low.to_be_bytes(), 0), end];
                let lookup = in_set(sets, Set::INTERVAL, elements, *invert);
                vec![mark(), order, lookup]
            }
        }
    }
}

impl Change {
    /// The new mark; `None`: the rule does not go on.
    fn of(&self, mark: u32) -> Option<u32> {
        match self {
            Self::Nothing => Some(mark),
            Self::Bits { and, xor } => Some(mark & and ^ xor),
            Self::Map(map) => map.iter().find(|(key, _)| *key == mark).map(|(_, to)| *to),
        }
    }

    fn exprs(&self, sets: &mut Vec<Set>) -> Vec<Expr> {
        let write = Expr::MetaSet { sreg: 1, key: 3 };
        match self {
            Self::Nothing => Vec::new(),
            Self::Bits { and, xor } => vec![mark(), masked(*and, *xor), write],
            Self::Map(map) => {
                let elements = map.iter().map(|(key, value)| Element {
                    data: Some(Data::Value(value.to_ne_bytes().to_vec())),
                    ..element(&key.to_ne_bytes(), 0)
                });
                let lookup = named(sets, Set::MAP, elements.collect());
                let lookup = Expr::Lookup {
                    set: lookup,
                    sreg: 1,
                    dreg: Some(1),
                    flags: 0,
                };
                vec![mark(), lookup, write]
            }
        }
    }
}

fn masked(mask: u32, xor: u32) -> Expr {
    Expr::Bitwise {
        sreg: 1,
        sreg2: None,
        dreg: 1,
        len: 4,
        op: 0,
        mask: mask.to_ne_bytes().to_vec(),
        xor: xor.to_ne_bytes().to_vec(),
        data: Vec::new(),
    }
}

/// The name of a new set of marks.
fn named(sets: &mut Vec<Set>, flags: u32, elements: Vec<Element>) -> String {
    let name = format!("s{}", sets.len());
    sets.push(Set {
        name: name.clone(),
        key_len: 4,
        data_len: (flags & Set::MAP != 0).then_some(4),
        ..set(flags, elements)
    });
    name
}

fn in_set(sets: &mut Vec<Set>, flags: u32, elements: Vec<Element>, invert: bool) -> Expr {
    Expr::Lookup {
        set: named(sets, flags, elements),
        sreg: 1,
        dreg: None,
        flags: u32::from(invert),
    }
}

/// Where a packet with this mark ends, counted from 0 and with the policy as the last one, and the mark that it has there.
fn walk(steps: &[Step], mut mark: u32) -> (usize, u32) {
    for (at, step) in steps.iter().enumerate() {
        if !step.tests.iter().all(|test| test.holds(mark)) {
            continue;
        }
        let Some(changed) = step.change.of(mark) else {
            continue;
        };
        mark = changed;
        if step.drop {
            return (at, mark);
        }
    }
    (steps.len(), mark)
}

/// Where a packet that is dropped with this mark can have ended.
fn ends(steps: &[Step], shown: u32) -> BTreeSet<usize> {
    let mut sets = Vec::new();
    let rules = steps
        .iter()
        .map(|step| {
            let tests: Vec<Expr> = step.tests.iter().flat_map(|t| t.exprs(&mut sets)).collect();
            let change = step.change.exprs(&mut sets);
            let drop = step.drop.then(|| verdict(0));
            tests.into_iter().chain(change).chain(drop).collect()
        })
        .collect();
    let chain = chain("in", Some((1, 0, 0)), rules);
    let dropped = Packet {
        moment: Moment::Drop,
        mark: Fact::Known(shown),
        ..packet()
    };
    let outcome = evaluate(&ruleset(vec![table(vec![chain], sets)]), &dropped);
    assert_eq!(outcome.incomplete, None);
    let end = |decision| rule_of(decision).map_or(steps.len(), |rule| rule as usize);
    outcome.ends.iter().map(|e| end(e.decision)).collect()
}

fn arbitrary_step() -> impl Strategy<Value = Step> {
    let small = || 0_u32..6;
    let range = || (small(), 0_u32..4);
    let test =
        prop_oneof![
            Just(Test::Nothing),
            (1_u32..8, small(), any::<bool>()).prop_map(|(mask, want, invert)| Test::Masked {
                mask,
                want,
                invert
            }),
            (Just(u32::MAX), small(), any::<bool>())
                .prop_map(|(mask, want, invert)| Test::Masked { mask, want, invert }),
            (range(), any::<bool>()).prop_map(|((low, more), invert)| Test::Within {
                low,
                high: low + more,
                invert
            }),
            (prop::collection::btree_set(small(), 1..4), any::<bool>()).prop_map(
                |(marks, invert)| Test::Single {
                    marks: marks.into_iter().collect(),
                    invert
                }
            ),
            (range(), any::<bool>()).prop_map(|((low, more), invert)| Test::Range {
                low,
                high: low + more,
                invert
            }),
        ];
    let change = prop_oneof![
        Just(Change::Nothing),
        small().prop_map(|xor| Change::Bits { and: 0, xor }),
        small().prop_map(|xor| Change::Bits { and: u32::MAX, xor }),
        small().prop_map(|or| Change::Bits { and: !or, xor: or }),
        prop::collection::btree_map(small(), small(), 1..4)
            .prop_map(|map| Change::Map(map.into_iter().collect())),
    ];
    let tests = prop::collection::vec(test, 0..3);
    (tests, change, any::<bool>()).prop_map(|(tests, change, drop)| Step {
        tests,
        change,
        drop,
    })
}

proptest! {
    /// Whatever the mark was, the rule that dropped the packet is among those that are named.
    #[test]
    fn what_happened_is_among_what_may_have_happened(
        steps in prop::collection::vec(arbitrary_step(), 1..7),
        mark in 0_u32..8,
    ) {
        let (end, shown) = walk(&steps, mark);
        let found = ends(&steps, shown);
        prop_assert!(found.contains(&end), "{end} of a packet with mark {mark}, then {shown}: {found:?}");
    }
}

fn step(test: Test, change: Change, drop: bool) -> Step {
    Step {
        tests: vec![test],
        change,
        drop,
    }
}

fn equals(want: u32) -> Test {
    Test::Masked {
        mask: u32::MAX,
        want,
        invert: false,
    }
}

const OR_2: Change = Change::Bits { and: !2, xor: 2 };

/// Each is no more than what can have happened.
#[test]
fn what_cannot_have_happened_is_not_named() {
    let cases: Vec<(&str, Vec<Step>, u32, Vec<usize>)> = vec![
        (
            "bits that a rule sets are not missing afterwards",
            vec![step(equals(1), OR_2, true)],
            0,
            vec![1],
        ),
        (
            "a rule that only writes does not miss",
            vec![
                step(equals(9), Change::Nothing, true),
                step(Test::Nothing, OR_2, true),
            ],
            2,
            vec![1],
        ),
        (
            "what was written tells what was read: 3 ^ 3 is 0, and 3 is not 1",
            vec![step(equals(1), Change::Bits { and: !0, xor: 3 }, true)],
            0,
            vec![1],
        ),
        (
            "a map gives its own values",
            vec![step(Test::Nothing, Change::Map(vec![(1, 2), (2, 3)]), true)],
            0,
            vec![1],
        ),
        (
            "no mark is at least 4 and a key of the map",
            vec![step(
                Test::Within {
                    low: 4,
                    high: 9,
                    invert: false,
                },
                Change::Map(vec![(0, 5), (1, 5)]),
                true,
            )],
            5,
            vec![1],
        ),
        (
            "what is known after a rule has changed it is the changed value",
            vec![
                step(Test::Nothing, Change::Bits { and: !0, xor: 2 }, false),
                step(equals(3), Change::Nothing, true),
            ],
            3,
            vec![1],
        ),
        (
            "a map whose key is not known leaves nothing known of what it gives",
            vec![
                step(Test::Nothing, Change::Bits { and: !4, xor: 4 }, false),
                step(
                    Test::Range {
                        low: 4,
                        high: 5,
                        invert: false,
                    },
                    Change::Map(vec![(5, 0)]),
                    false,
                ),
            ],
            0,
            vec![2],
        ),
        (
            "no mark is two things",
            vec![
                step(equals(1), Change::Bits { and: 0, xor: 4 }, false),
                step(equals(4), Change::Bits { and: 0, xor: 5 }, false),
                step(equals(5), Change::Nothing, true),
                step(equals(4), Change::Nothing, true),
            ],
            5,
            vec![2],
        ),
        (
            "1 became 3, or it was 3 all along: nothing tells",
            vec![step(equals(1), OR_2, true)],
            3,
            vec![0, 1],
        ),
    ];
    for (what, steps, shown, expected) in cases {
        let possible: BTreeSet<usize> = (0..64)
            .map(|mark| walk(&steps, mark))
            .filter(|(_, mark)| *mark == shown)
            .map(|(end, _)| end)
            .collect();
        assert_eq!(possible, expected.into_iter().collect(), "{what}");
        assert_eq!(ends(&steps, shown), possible, "{what}");
    }
}

fn service(change: Vec<Expr>) -> Vec<Expr> {
    let mut exprs = vec![payload(PayloadBase::Network, 0, 2)];
    exprs.extend(change);
    exprs.push(Expr::PayloadSet {
        sreg: 1,
        base: PayloadBase::Network,
        offset: 0,
        len: 2,
        csum_type: 1,
        csum_offset: 10,
        csum_flags: 0,
    });
    exprs
}

/// `ip dscp set`, as nft does it: both bytes are loaded and written, but one is changed.
#[test]
fn a_type_of_service_that_is_set_is_what_the_packet_shows() {
    let ect0 = vec![
        payload(PayloadBase::Network, 1, 1),
        Expr::Bitwise {
            sreg: 1,
            sreg2: None,
            dreg: 1,
            len: 1,
            op: 0,
            mask: vec![3],
            xor: vec![0],
            data: Vec::new(),
        },
        eq(&[2]),
    ];
    let set = service(vec![Expr::Bitwise {
        sreg: 1,
        sreg2: None,
        dreg: 1,
        len: 2,
        op: 0,
        mask: vec![0xff, 3],
        xor: vec![0, 0xb8],
        data: Vec::new(),
    }]);
    let mut rule = ect0;
    rule.extend(set);
    rule.push(verdict(0));
    // An option of IPv4 does not come or go with the service.
    let option = Expr::Exthdr {
        dreg: 1,
        kind: 148,
        offset: 0,
        len: 1,
        flags: 1,
        op: 2,
    };
    let other = vec![option, eq(&[1]), verdict(0)];
    let rules = ruleset(vec![table(
        vec![chain("in", Some((1, 0, 0)), vec![rule, other])],
        Vec::new(),
    )]);
    for (tos, expected) in [
        (0xb8, vec![None]),
        (0xba, vec![Some(0)]),
        (0x01, vec![None]),
    ] {
        let mut bytes = UDP;
        bytes[1] = tos;
        let dropped = Packet {
            bytes: &bytes,
            moment: Moment::Drop,
            ..packet()
        };
        let outcome = evaluate(&rules, &dropped);
        let found: Vec<Option<u32>> = outcome.ends.iter().map(|e| rule_of(e.decision)).collect();
        assert_eq!(found, expected, "{tos:#x}");
    }
}

/// Rules at prerouting, each of which drops: which of them can have dropped a packet that is untracked then, and what that depends on.
fn untracked(
    chains: &[(i32, Vec<Vec<Expr>>)],
    packet: Packet<'_>,
) -> Vec<(String, u32, Vec<DoubtKind>)> {
    let names = ["first", "second"];
    let chains = names
        .iter()
        .zip(chains)
        .map(|(name, (priority, rules))| chain(name, Some((0, *priority, 1)), rules.clone()));
    let mut table = table(chains.collect(), Vec::new());
    table.family = Family::Inet;
    let outcome = evaluate(
        &ruleset(vec![table]),
        &Packet {
            hook: 0,
            moment: Moment::Drop,
            tracking: Tracking::Untracked,
            ..packet
        },
    );
    assert_eq!(outcome.incomplete, None);
    let ends = outcome.ends.iter().filter(|end| end.fate.is_drop());
    ends.map(|end| {
        let Decision::Rule(rule) = end.decision else {
            panic!("no rule: {outcome:?}");
        };
        let name = names[rule.chain.chain as usize].to_owned();
        let kinds = end.assumed.iter().map(|doubt| doubt.kind).collect();
        (name, rule.rule, kinds)
    })
    .collect()
}

#[test]
fn what_is_untracked_was_so_already_or_had_no_connection() {
    const INVALID: u32 = 1;
    const ESTABLISHED: u32 = 2;
    const UNTRACKED: u32 = 64;
    let notrack = || vec![Expr::Notrack, verdict(0)];
    let (sure, either) = (Vec::new, || vec![DoubtKind::Rewritten]);
    let first = |rule, kinds| ("first".to_owned(), rule, kinds);
    for priority in [-300, -150] {
        let by = |rules| untracked(&[(priority, rules)], packet());
        // It was neither.
        let found = by(vec![state(ESTABLISHED), notrack()]);
        assert_eq!(found, [first(1, sure())], "{priority}");
        // Without a connection it would have been dropped there, and shown as such.
        let found = by(vec![state(INVALID), notrack()]);
        assert_eq!(found, [first(1, sure())], "{priority}");
        // It came like that, or it did not.
        let found = by(vec![state(UNTRACKED), notrack()]);
        assert_eq!(found, [first(0, sure()), first(1, either())], "{priority}");
        // What one rule has seen the next one sees, too.
        let mut invalid = state(INVALID);
        invalid.insert(2, Expr::Notrack);
        invalid[3] = verdict(1);
        let found = by(vec![state(UNTRACKED), invalid, state(UNTRACKED)]);
        assert_eq!(found, [first(0, sure())], "{priority}");
        let found = by(vec![vec![Expr::Notrack], state(UNTRACKED)]);
        assert_eq!(found, [first(1, sure())], "{priority}");
    }
}

#[test]
fn connection_tracking_leaves_neighbour_discovery_untracked() {
    const UNTRACKED: u32 = 64;
    let mut bytes = [0; 48];
    bytes[0] = 0x60;
    bytes[5] = 8;
    bytes[6] = 58;
    let mut of = |kind, priority| {
        bytes[40] = kind;
        let packet = Packet {
            bytes: &bytes,
            len: 48,
            pf: 10,
            protocol: 0x86dd,
            ..packet()
        };
        let late = vec![vec![verdict(0)]];
        let chains = [(priority, vec![state(UNTRACKED)]), (0, late)];
        let found = untracked(&chains, packet).into_iter();
        found.map(|(chain, ..)| chain).collect::<Vec<_>>()
    };
    // Behind connection tracking, the state that it shows.
    assert_eq!(of(135, -150), ["first"]);
    // Before, it may have come like that.
    assert_eq!(of(135, -300), ["first", "second"]);
    // An echo request must have.
    assert_eq!(of(128, -300), ["first"]);
}
