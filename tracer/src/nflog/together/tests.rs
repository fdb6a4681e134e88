use proptest::prelude::*;

use super::*;

const PREROUTING: u8 = 0;
const INPUT: u8 = 1;
const FORWARD: u8 = 2;
const OUTPUT: u8 = 3;
const POSTROUTING: u8 = 4;

/// A UDP datagram from 10.0.0.1 to 10.0.0.`to`.
fn headers(id: u16, to: u8) -> Headers {
    let [high, low] = id.to_be_bytes();
    let mut bytes = vec![0x45, 0, 0, 28, high, low, 0, 0, 64, 17, 0, 0];
    bytes.extend([10, 0, 0, 1, 10, 0, 0, to]);
    bytes.extend([0x30, 0x39, 0, 53, 0, 8, 1, 2]);
    Headers::of_packet(&bytes).unwrap()
}

/// The `order`th log, of a rule with this group at this hook, of a packet that was received then.
fn part(order: u32, group: u16, hook: u8, received: Option<u64>) -> Part<u32> {
    Part {
        netns: 1,
        looks: vec![headers(0, 2)],
        sign: Sign {
            group,
            prefix: "".into(),
            pf: IPV4,
            hook,
        },
        received: received.map(|micros| (7, micros)),
        order,
        came: 0,
        what: order,
    }
}

/// All of them, as they leave.
fn all(parts: impl IntoIterator<Item = Part<u32>>) -> Vec<Vec<u32>> {
    let mut together = Together::default();
    parts.into_iter().for_each(|part| together.push(part));
    std::iter::from_fn(|| together.next(u64::MAX)).collect()
}

#[test]
fn two_rules_that_log_one_packet() {
    let pair = |then| all([part(1, 5, PREROUTING, Some(1)), then]);
    assert_eq!(pair(part(2, 5, INPUT, Some(1))), [[1, 2]]);
    assert_eq!(pair(part(2, 6, PREROUTING, Some(1))), [[1, 2]]);
    let mut prefix = part(2, 5, PREROUTING, Some(1));
    prefix.sign.prefix = "other".into();
    assert_eq!(pair(prefix), [[1, 2]]);
    // Another packet: the same rule, another moment, another namespace, other headers.
    assert_eq!(pair(part(2, 5, PREROUTING, Some(1))), [[1], [2]]);
    assert_eq!(pair(part(2, 5, INPUT, Some(2))), [[1], [2]]);
    let mut other = part(2, 5, INPUT, Some(1));
    other.netns = 2;
    assert_eq!(pair(other), [[1], [2]]);
    let mut other = part(2, 5, INPUT, Some(1));
    other.looks = vec![headers(0, 3)];
    assert_eq!(pair(other), [[1], [2]]);
    // Nobody knows its headers.
    let mut other = part(2, 5, INPUT, Some(1));
    other.looks.clear();
    assert_eq!(pair(other), [[1], [2]]);
}

#[test]
fn hooks_come_in_their_order() {
    for (before, then, together) in [
        (PREROUTING, FORWARD, true),
        (INPUT, PREROUTING, false),
        (FORWARD, INPUT, false),
        (INPUT, INPUT, true),
    ] {
        let found = all([part(1, 5, before, Some(1)), part(2, 6, then, Some(1))]);
        assert_eq!(found.len() == 1, together, "{before} {then}");
    }
}

#[test]
fn without_a_moment_an_identification_is_needed() {
    let pair = |id| {
        all([
            (1, OUTPUT, None),
            (2, POSTROUTING, None),
            (3, PREROUTING, Some(4)),
        ]
        .map(|(order, hook, received)| Part {
            looks: vec![headers(id, 2)],
            ..part(order, 5, hook, received)
        }))
    };
    assert_eq!(pair(7), [[1, 2, 3]]);
    assert_eq!(pair(0), [[1], [2], [3]]);
}

#[test]
fn a_packet_is_known_by_what_it_was_before_translation() {
    let mut then = part(2, 5, INPUT, Some(1));
    then.looks = vec![headers(0, 9), headers(0, 2)];
    assert_eq!(all([part(1, 5, PREROUTING, Some(1)), then]), [[1, 2]]);
}

#[test]
fn groups_that_come_one_after_the_other_are_sorted_even_where_numbers_wrap() {
    // Four packets, received at one moment, group 6 before group 5; then the other way round.
    for groups in [[6, 5], [5, 6]] {
        let parts = groups.into_iter().flat_map(|group| {
            (0..4).map(move |packet| {
                let order = 2 * packet + u32::from(group == 6);
                part(order.wrapping_sub(3), group, INPUT, Some(1))
            })
        });
        let found = all(parts);
        let want = [0, 2, 4, 6].map(|at: u32| [at, at + 1].map(|at| at.wrapping_sub(3)));
        assert_eq!(found, want);
    }
}

#[test]
fn they_wait_for_the_window_and_not_longer() {
    let mut together = Together::default();
    assert!(together.is_empty() && together.deadline().is_none());
    together.push(part(1, 5, PREROUTING, Some(1)));
    assert_eq!(together.next(WINDOW - 1), None);
    assert_eq!(together.deadline(), Some(WINDOW));
    together.push(Part {
        came: 5,
        ..part(2, 5, INPUT, Some(1))
    });
    assert_eq!(together.next(WINDOW), Some(vec![1, 2]));
    assert!(together.is_empty() && together.places.is_empty());
    // One that was made before one that is over leaves with it.
    together.push(part(9, 5, INPUT, Some(2)));
    together.push(Part {
        came: 40,
        ..part(8, 5, INPUT, Some(3))
    });
    let left: Vec<_> = std::iter::from_fn(|| together.next(WINDOW)).collect();
    assert_eq!(left, [[8], [9]]);
}

#[test]
fn too_many_do_not_wait() {
    let mut together = Together::default();
    for order in 0..=u32::try_from(HELD).unwrap() {
        assert_eq!(together.next(0), None);
        together.push(part(order, 5, INPUT, Some(1)));
    }
    assert_eq!(together.next(0), Some(vec![0]));
    assert_eq!(together.next(0), None);
    assert_eq!(together.waiting.len(), HELD);
}

proptest! {
    /// Packets with few differences, each logged by some rules, whose logs come in batches.
    #[test]
    fn each_log_is_in_one_event_and_no_rule_twice(
        packets in proptest::collection::vec((0_u64..3, 0_u16..2, 1_u16..8), 0..40),
        batches in proptest::collection::vec(0_u16..3, 0..40),
        early in proptest::collection::vec(any::<bool>(), 0..40),
    ) {
        let mut made = Vec::new();
        for (moment, id, rules) in &packets {
            for group in (0..3).filter(|group| rules & (1 << group) != 0) {
                let order = u32::try_from(made.len()).unwrap();
                let moment = (*moment > 0).then_some(*moment);
                let hook = [PREROUTING, FORWARD, FORWARD][usize::from(group)];
                made.push(Part { looks: vec![headers(*id, 2)], ..part(order, group, hook, moment) });
            }
        }
        let count = made.len();
        let known = made.clone();
        // Each group in order, the groups in any.
        let mut groups: Vec<std::collections::VecDeque<_>> = vec![Default::default(); 3];
        for part in made {
            groups[usize::from(part.sign.group)].push_back(part);
        }
        let mut together = Together::default();
        let mut events = Vec::new();
        let rest = (0..3).flat_map(|group| std::iter::repeat_n(group, count));
        for (at, group) in batches.into_iter().chain(rest).enumerate() {
            if let Some(part) = groups[usize::from(group)].pop_front() {
                together.push(part);
            }
            if early.get(at) == Some(&true) {
                events.extend(together.next(u64::MAX));
            }
        }
        events.extend(std::iter::from_fn(|| together.next(u64::MAX)));
        prop_assert!(together.is_empty() && together.places.is_empty());
        let mut all: Vec<u32> = events.iter().flatten().copied().collect();
        all.sort_unstable();
        prop_assert_eq!(all, (0..u32::try_from(count).unwrap()).collect::<Vec<_>>());
        for event in events {
            for pair in event.windows(2) {
                prop_assert!(pair[0] < pair[1]);
            }
            let parts: Vec<_> = event.iter().map(|at| &known[*at as usize]).collect();
            for (at, part) in parts.iter().enumerate() {
                let same_rule = parts[..at].iter().any(|other| other.sign == part.sign);
                prop_assert!(!same_rule);
                let same_moment = parts[0].received == part.received;
                prop_assert!(same_moment || is_identified(&part.looks[0]));
                prop_assert!(parts[0].looks[0].is(&part.looks[0]));
            }
        }
    }

    /// Packets that differ in nothing, received at one moment, and logged by the same rules.
    #[test]
    fn equal_packets_stay_as_many_as_they_are(count in 1_u32..80, rules in 1_u16..4) {
        let rules = u32::from(rules);
        let parts = (0..count * rules).map(|order| {
            let group = u16::try_from(order % rules).unwrap();
            part(order, group, INPUT, Some(1))
        });
        let found = all(parts);
        let want: Vec<Vec<u32>> = (0..count)
            .map(|packet| (packet * rules..(packet + 1) * rules).collect())
            .collect();
        prop_assert_eq!(found, want);
    }
}
