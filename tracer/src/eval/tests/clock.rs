//! The kernel's clock: known to some seconds.

use std::sync::Arc;

use super::{super::cache::Cache, super::clock::Clock, *};
/// Sunday 2026-11-22, 19:15:00.
const NOW: i64 = 20_779 * 86_400 + 19 * 3600 + 15 * 60;

/// The packet, whose rules ran in the second before [`NOW`] or in that one.
fn at(now: i64, minutes_west: Option<i32>) -> Packet<'static> {
    Packet {
        clock: Some(Clock {
            from: now - 1,
            to: now,
            minutes_west,
        }),
        ..packet()
    }
}

/// A rule that drops, of `meta time` (30), `day` (31) or `hour` (32).
fn rule(key: u32, conditions: &[Expr]) -> Ruleset {
    let mut rule = vec![Expr::Meta { dreg: 1, key }];
    if key != 31 {
        let len = if key == 30 { 8 } else { 4 };
        rule.push(Expr::Byteorder {
            sreg: 1,
            dreg: 1,
            op: 1,
            len,
            size: len,
        });
    }
    rule.extend_from_slice(conditions);
    rule.push(verdict(0));
    input(vec![rule])
}

/// Whether the rule holds; `None`: it does at one second and not at the other.
fn holds_at(ruleset: &Ruleset, packet: &Packet<'_>) -> Option<bool> {
    let outcome = evaluate(ruleset, packet);
    match &outcome.ends[..] {
        [end] => Some(end.fate == Fate::Drop),
        ends => {
            let doubts: Vec<_> = ends.iter().flat_map(|end| &end.assumed).collect();
            assert_eq!(doubts.len(), 1, "{ends:?}");
            assert_eq!(doubts[0].kind, DoubtKind::State);
            None
        }
    }
}

#[test]
fn hours_are_known_but_for_the_second_at_which_they_begin() {
    let hour = |second: i64| {
        u32::try_from(second.rem_euclid(86_400))
            .unwrap()
            .to_be_bytes()
    };
    let from = |second| rule(32, &[cmp(CmpOp::Gte, &hour(second))]);
    for (second, expected) in [(0, None), (-1, Some(true)), (1, Some(false))] {
        // In UTC, whatever the zone.
        for west in [Some(-60), None] {
            assert_eq!(holds_at(&from(NOW + second), &at(NOW, west)), expected);
        }
    }
    let within = |a, b| {
        let range = Expr::Range {
            sreg: 1,
            invert: false,
            from: hour(a).to_vec(),
            to: hour(b).to_vec(),
        };
        holds_at(&rule(32, &[range]), &at(NOW, Some(0)))
    };
    assert_eq!(within(NOW - 600, NOW + 600), Some(true));
    assert_eq!(within(NOW - 600, NOW - 1), None);
    assert_eq!(within(NOW + 1, NOW + 600), Some(false));
    // Not known at all: as without a clock.
    let outcome = evaluate(&from(NOW), &packet());
    let kinds = outcome.ends.iter().flat_map(|end| &end.assumed);
    assert!(
        kinds
            .map(|reason| reason.kind)
            .any(|kind| kind == DoubtKind::Missing)
    );
}

#[test]
fn days_are_those_of_the_kernels_zone() {
    let day = |day: u8, packet: &Packet<'_>| holds_at(&rule(31, &[eq(&[day])]), packet);
    for (west, today) in [(0, 0), (-4 * 60, 0), (-5 * 60, 1), (20 * 60, 6)] {
        for wanted in 0..7 {
            let holds = day(wanted, &at(NOW, Some(west)));
            assert_eq!(holds, Some(wanted == today), "{west} {wanted}");
        }
    }
    let midnight = NOW - NOW.rem_euclid(86_400);
    assert_eq!(day(0, &at(midnight, Some(0))), None);
    assert_eq!(day(3, &at(midnight, Some(0))), Some(false));
    let unknown = rule(31, &[eq(&[0])]);
    assert_eq!(evaluate(&unknown, &at(NOW, None)).ends.len(), 2);
}

#[test]
fn times_are_compared_by_whole_seconds() {
    let time = |second: i64, nanosecond: u64| {
        (u64::try_from(second).unwrap() * 1_000_000_000 + nanosecond).to_be_bytes()
    };
    let since = |second| rule(30, &[cmp(CmpOp::Gte, &time(second, 0))]);
    let now = at(NOW, None);
    assert_eq!(holds_at(&since(NOW), &now), None);
    assert_eq!(holds_at(&since(NOW - 1), &now), Some(true));
    assert_eq!(holds_at(&since(NOW + 1), &now), Some(false));
    // What is not looked at by whole seconds is not followed.
    let fraction = rule(30, &[cmp(CmpOp::Gte, &time(NOW - 60, 1))]);
    let outcome = evaluate(&fraction, &now);
    let mut reasons = outcome.ends.iter().flat_map(|end| &end.assumed);
    assert!(
        reasons.any(|reason| reason.kind == DoubtKind::Missing),
        "{outcome:?}"
    );
}

#[test]
fn what_does_not_hang_on_the_second_is_certain() {
    // Both rules ask; the packet that is not dropped by the one is dropped by the other.
    let hour = u32::try_from(NOW.rem_euclid(86_400)).unwrap().to_be_bytes();
    let asks = |op| {
        let Ruleset { tables, .. } = rule(32, &[cmp(op, &hour)]);
        tables[0].chains[0].rules[0].exprs.clone()
    };
    let port = vec![dport(), eq(&[0, 53]), verdict(0)];
    let before = input(vec![port.clone(), asks(CmpOp::Gte)]);
    let outcome = evaluate(&before, &at(NOW, None));
    assert_eq!(outcome.ends.len(), 1, "{outcome:?}");
    assert!(outcome.ends[0].assumed.is_empty());
    let behind = input(vec![asks(CmpOp::Gte), port]);
    let outcome = evaluate(&behind, &at(NOW, None));
    let rules: Vec<_> = outcome
        .ends
        .iter()
        .map(|end| rule_of(end.decision))
        .collect();
    assert_eq!(rules, [Some(1), Some(0)]);
}

#[test]
fn a_clock_that_was_set_is_not_known() {
    let rules = rule(31, &[eq(&[0])]);
    let clock = |from, to| Packet {
        clock: Some(Clock {
            from,
            to,
            minutes_west: Some(0),
        }),
        ..packet()
    };
    assert_eq!(holds_at(&rules, &clock(NOW - 5, NOW)), Some(true));
    for packet in [
        clock(NOW - 6, NOW),
        clock(NOW, NOW - 1),
        clock(i64::MIN, i64::MAX),
    ] {
        assert_eq!(evaluate(&rules, &packet).ends.len(), 2, "{packet:?}");
    }
}

#[test]
fn what_is_kept_holds_for_its_second() {
    let hour = u32::try_from(NOW.rem_euclid(86_400)).unwrap().to_be_bytes();
    let rules = rule(32, &[cmp(CmpOp::Gte, &hour)]);
    let mut cache = Cache::new(Arc::new(Program::new(Some(&rules), &[])));
    for _ in 0..2 {
        for (now, fates) in [
            (NOW - 1, &[Fate::Accept][..]),
            (NOW, &[Fate::Accept, Fate::Drop]),
            (NOW + 1, &[Fate::Drop]),
        ] {
            let outcome = cache.evaluate(&at(now, Some(0)), &World::default());
            let found: Vec<Fate> = outcome.ends.iter().map(|end| end.fate).collect();
            assert_eq!(found, fates);
        }
    }
    assert_eq!(cache.hits_and_misses(), (3, 3));
}
