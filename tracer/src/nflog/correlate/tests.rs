use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::event::Family;

const MS: u64 = 1_000_000;

/// A UDP datagram from 10.0.0.1 to 10.0.0.`to`.
fn headers(id: u16, to: u8, port: u16) -> Headers {
    let [high, low] = id.to_be_bytes();
    let mut bytes = vec![0x45, 0, 0, 28, high, low, 0, 0, 64, 17, 0, 0];
    bytes.extend([10, 0, 0, 1, 10, 0, 0, to]);
    bytes.extend([0x30, 0x39]);
    bytes.extend(port.to_be_bytes());
    bytes.extend([0, 8, 1, 2]);
    Headers::of_packet(&bytes).unwrap()
}

fn sign(group: u16, prefix: &str) -> Sign {
    Sign {
        group,
        prefix: prefix.into(),
        pf: 2,
        hook: 1,
    }
}

fn rule(number: u32) -> Arc<RuleRef> {
    Arc::new(RuleRef {
        family: Family::Inet,
        table: "t".into(),
        chain: "in".into(),
        base_chain: None,
        number: Some(number),
        handle: Some(u64::from(number)),
        text: None,
        comment: None,
        gone: false,
    })
}

fn passed(sign: Sign, number: u32, sure: bool) -> Passed {
    Passed {
        sign,
        rule: Some(rule(number)),
        sure,
    }
}

/// A log that was made at that time or up to 20 ms before, by a rule that is known.
fn log<L>(time: u64, headers: Headers, sign: Sign, what: L) -> Log<L> {
    Log {
        netns: 1,
        when: Between {
            since: time.saturating_sub(20 * MS),
            until: time,
        },
        headers,
        sign,
        expected: true,
        order: 0,
        what,
    }
}

fn drop<D>(time: u64, headers: Headers, passed: Vec<Passed>, what: D) -> Dropped<D> {
    Dropped {
        netns: 1,
        time,
        looks: vec![headers],
        passed,
        what,
    }
}

fn whats<D>(joined: &Joined<D, u32>) -> Vec<u32> {
    joined.logs.iter().map(|(_, _, what)| *what).collect()
}

#[test]
fn a_drop_waits_for_the_log_that_must_come_and_the_next_behind_it() {
    let mut correlator = Correlator::<&str, u32>::default();
    let dns = || vec![passed(sign(5, "dns "), 1, true)];
    correlator.drop(drop(100 * MS, headers(1, 2, 53), dns(), "dns"));
    correlator.drop(drop(101 * MS, headers(2, 2, 80), Vec::new(), "web"));
    assert_eq!(correlator.next(110 * MS), None);
    assert_eq!(correlator.deadline(), Some(150 * MS));
    correlator.log(log(112 * MS, headers(1, 2, 53), sign(5, "dns "), 7));
    let first = correlator.next(112 * MS).unwrap();
    assert_eq!((first.what, first.missing), ("dns", 0));
    assert_eq!(
        first.logs,
        [(sign(5, "dns "), Some(rule(1)), 7)],
        "its rule is named"
    );
    assert_eq!(correlator.next(112 * MS).unwrap().what, "web");
    assert!(correlator.is_empty());
    assert_eq!(correlator.deadline(), None);
}

#[test]
fn a_drop_whose_log_does_not_come_leaves_after_the_window_without() {
    let mut correlator = Correlator::<&str, u32>::default();
    for (sure, window) in [(true, WINDOW), (false, PERHAPS)] {
        let rules = vec![passed(sign(5, ""), 1, sure)];
        correlator.drop(drop(100 * MS, headers(1, 2, 53), rules, "dns"));
        assert_eq!(correlator.next(100 * MS + window - 1), None);
        let left = correlator.next(100 * MS + window).unwrap();
        assert_eq!((left.missing, whats(&left)), (usize::from(sure), vec![]));
    }
    // And the log has no drop then.
    correlator.log(log(160 * MS, headers(1, 2, 53), sign(5, ""), 1));
    assert!(correlator.given_up(160 * MS).is_none());
    assert_eq!(correlator.given_up(161 * MS).unwrap().what, 1);
}

#[test]
fn the_first_log_is_of_the_first_of_drops_that_are_alike() {
    let rules = || vec![passed(sign(5, ""), 1, true)];
    for logs_first in [true, false] {
        let mut correlator = Correlator::<u32, u32>::default();
        for logs in [logs_first, !logs_first] {
            for what in 0..1000 {
                let (time, same) = (100 * MS + u64::from(what), headers(0, 2, 53));
                match logs {
                    true => correlator.log(log(time, same, sign(5, ""), what)),
                    false => correlator.drop(drop(time, same, rules(), what)),
                }
            }
        }
        for what in 0..1000 {
            let joined = correlator.next(101 * MS).unwrap();
            assert_eq!((joined.what, whats(&joined)), (what, vec![what]));
        }
        assert!(correlator.given_up(u64::MAX).is_none());
    }
}

#[test]
fn a_retransmission_is_another_packet() {
    let mut correlator = Correlator::<u32, u32>::default();
    let rules = || vec![passed(sign(5, ""), 1, true)];
    let syn = || headers(0, 2, 80);
    // The log of the first is lost.
    correlator.drop(drop(100 * MS, syn(), rules(), 1));
    correlator.drop(drop(1100 * MS, syn(), rules(), 2));
    correlator.log(log(1110 * MS, syn(), sign(5, ""), 2));
    let first = correlator.next(1110 * MS).unwrap();
    assert_eq!((first.missing, whats(&first)), (1, vec![]));
    assert_eq!(whats(&correlator.next(1110 * MS).unwrap()), [2]);
}

#[test]
fn other_packets_namespaces_times_and_rules_are_not_joined() {
    let mut correlator = Correlator::<&str, u32>::default();
    let good = || log(110 * MS, headers(1, 2, 53), sign(5, "dns "), 0);
    correlator.log(Log { netns: 2, ..good() });
    for headers in [headers(2, 2, 53), headers(1, 3, 53), headers(1, 2, 54)] {
        correlator.log(Log { headers, ..good() });
    }
    correlator.log(log(200 * MS, headers(1, 2, 53), sign(5, "dns "), 0));
    correlator.log(log(20 * MS, headers(1, 2, 53), sign(5, "dns "), 0));
    for sign in [sign(6, "dns "), sign(5, "dns")] {
        correlator.log(Log { sign, ..good() });
    }
    let rules = vec![passed(sign(5, "dns "), 1, true)];
    correlator.drop(drop(100 * MS, headers(1, 2, 53), rules, "dns"));
    assert_eq!(correlator.next(149 * MS), None);
    assert_eq!(correlator.next(150 * MS).unwrap().missing, 1);
    let left = std::iter::from_fn(|| correlator.given_up(u64::MAX));
    assert_eq!(left.count(), 8);
}

#[test]
fn several_rules_log_one_packet() {
    let mut correlator = Correlator::<&str, u32>::default();
    let rules = vec![
        passed(sign(5, "a"), 1, true),
        passed(sign(5, "a"), 2, true),
        passed(sign(6, ""), 3, false),
    ];
    correlator.drop(drop(100 * MS, headers(1, 2, 53), rules, "dns"));
    for (order, group, prefix) in [(9, 6, ""), (7, 5, "a"), (8, 5, "a")] {
        assert_eq!(correlator.next(101 * MS), None);
        let sign = sign(group, prefix);
        correlator.log(Log {
            order,
            ..log(101 * MS, headers(1, 2, 53), sign, order)
        });
    }
    let joined = correlator.next(101 * MS).unwrap();
    let rules: Vec<_> = joined
        .logs
        .iter()
        .map(|(_, rule, _)| rule.clone())
        .collect();
    assert_eq!(rules, [Some(rule(1)), Some(rule(2)), Some(rule(3))]);
    assert_eq!(whats(&joined), [7, 8, 9], "in the order they were made in");
}

#[test]
fn logs_of_rules_that_are_not_known_are_taken_once_each() {
    let mut correlator = Correlator::<&str, u32>::default();
    for (what, prefix) in [(1, "new"), (2, "new"), (3, "other")] {
        correlator.log(Log {
            expected: false,
            ..log(100 * MS, headers(1, 2, 53), sign(5, prefix), what)
        });
    }
    correlator.drop(drop(100 * MS, headers(1, 2, 53), Vec::new(), "dns"));
    let joined = correlator.next(100 * MS).unwrap();
    assert_eq!(whats(&joined), [1, 3]);
    assert!(joined.logs.iter().all(|(_, rule, _)| rule.is_none()));
    assert_eq!(correlator.given_up(u64::MAX).unwrap().what, 2);
}

#[test]
fn a_translated_packet_is_found_by_its_former_ends() {
    let mut correlator = Correlator::<&str, u32>::default();
    let now = headers(1, 2, 8080);
    let end = |last, port| std::net::SocketAddr::from(([10, 0, 0, last], port));
    let then = now.with_ends(end(1, 12345), end(9, 80)).unwrap();
    correlator.log(log(100 * MS, headers(1, 9, 80), sign(5, ""), 1));
    correlator.drop(Dropped {
        looks: vec![now.clone(), then],
        ..drop(
            100 * MS,
            now,
            vec![passed(sign(5, ""), 1, true)],
            "translated",
        )
    });
    assert_eq!(whats(&correlator.next(100 * MS).unwrap()), [1]);
}

#[test]
fn memory_is_bounded() {
    let mut correlator = Correlator::<usize, usize>::default();
    for what in 0..HELD + 10 {
        let rules = vec![passed(sign(5, ""), 1, true)];
        correlator.drop(drop(100 * MS, headers(1, 2, 53), rules, what));
    }
    for what in 0..10 {
        assert_eq!(correlator.next(100 * MS).unwrap().what, what);
    }
    assert!(correlator.next(100 * MS).is_none());
    let mut correlator = Correlator::<usize, usize>::default();
    for what in 0..LOGS + 10 {
        correlator.log(log(100 * MS, headers(1, 2, 53), sign(5, ""), what));
        if let Some(given_up) = correlator.given_up(0) {
            assert_eq!(given_up.what + LOGS, what);
        }
    }
}

/// What happens to a correlator.
#[derive(Clone, Debug)]
enum Step {
    Drop { id: u16, rules: Vec<(u16, bool)> },
    Log { id: u16, group: u16, expected: bool },
    Later(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (
            0..3_u16,
            prop::collection::vec((0..2_u16, any::<bool>()), 0..3)
        )
            .prop_map(|(id, rules)| Step::Drop { id, rules }),
        (0..3_u16, 0..3_u16, any::<bool>()).prop_map(|(id, group, expected)| Step::Log {
            id,
            group,
            expected
        }),
        (0..60 * MS).prop_map(Step::Later),
    ]
}

proptest! {
    #[test]
    fn drops_leave_once_in_order_and_logs_are_used_once(steps in prop::collection::vec(step(), 0..200)) {
        let mut correlator = Correlator::<(u16, u64, usize), (u16, u64, u32)>::default();
        let (mut now, mut dropped, mut logged) = (1000 * MS, 0, 0);
        let (mut left, mut used) = (0, BTreeSet::new());
        let mut leave = |correlator: &mut Correlator<_, _>, now: u64| -> Result<(), TestCaseError> {
            while let Some(joined) = correlator.next(now) {
                let Joined { what: (id, time, number), logs, .. } = joined;
                prop_assert_eq!(number, left);
                left += 1;
                for (_, _, (of, at, log)) in logs {
                    prop_assert_eq!(of, id, "another packet's log");
                    prop_assert!(at + WINDOW >= time && time + 20 * MS >= at);
                    prop_assert!(used.insert(log), "a log is used twice");
                }
            }
            Ok(())
        };
        for step in steps {
            match step {
                Step::Drop { id, rules } => {
                    let rules = rules.into_iter().map(|(group, sure)| passed(sign(group, ""), 1, sure));
                    correlator.drop(drop(now, headers(id, 2, 53), rules.collect(), (id, now, dropped)));
                    dropped += 1;
                }
                Step::Log { id, group, expected } => {
                    correlator.log(Log {
                        expected,
                        order: logged,
                        ..log(now, headers(id, 2, 53), sign(group, ""), (id, now, logged))
                    });
                    logged += 1;
                }
                Step::Later(time) => now += time,
            }
            leave(&mut correlator, now)?;
            if let Some(deadline) = correlator.deadline() {
                prop_assert!(deadline > now && deadline <= now + WINDOW);
            }
        }
        leave(&mut correlator, u64::MAX)?;
        prop_assert_eq!(left, dropped, "a drop is gone");
        prop_assert!(correlator.is_empty() && correlator.drops.is_empty());
        while let Some(log) = correlator.given_up(u64::MAX) {
            prop_assert!(used.insert(log.what.2), "a log is used and given up");
        }
        prop_assert_eq!(used.len(), logged as usize, "a log is gone");
        prop_assert!(correlator.logs.is_empty() && correlator.unexpected == 0);
    }
}
