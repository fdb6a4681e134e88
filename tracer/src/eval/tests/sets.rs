//! Elements that come, go, or stand for all others.

use std::time::Duration;

use super::*;

fn lookup(invert: bool) -> Expr {
    Expr::Lookup {
        set: "s".to_owned(),
        sreg: 1,
        dreg: None,
        flags: u32::from(invert),
    }
}

/// What becomes of the packet, to port 53, where a rule drops what is found in the set, or what is not.
fn fates(set: Set, invert: bool) -> Vec<Fate> {
    let rules = vec![vec![dport(), lookup(invert), verdict(0)]];
    let rules = ruleset(vec![table(
        vec![chain("in", Some((1, 0, 1)), rules)],
        vec![set],
    )]);
    let outcome = evaluate(&rules, &packet());
    outcome.ends.iter().map(|end| end.fate).collect()
}

fn catch_all() -> Element {
    Element {
        flags: Element::CATCHALL,
        ..Element::default()
    }
}

#[test]
fn nothing_is_outside_a_set_with_a_catch_all_element() {
    let with_key = vec![element(&[0, 53], 0), catch_all()];
    let without = vec![element(&[0, 54], 0), catch_all()];
    for elements in [with_key, without] {
        let on = |invert, inverts_last| {
            let rules = vec![vec![dport(), lookup(invert), verdict(0)]];
            let sets = vec![set(0, elements.clone())];
            let rules = ruleset(vec![table(vec![chain("in", Some((1, 0, 1)), rules)], sets)]);
            let program = Program::new(Some(&rules), &[]).inverting_last(inverts_last);
            program.evaluate(&packet(), &World::default())
        };
        for (inverts_last, fate) in [(true, Fate::Accept), (false, Fate::Drop)] {
            let outcome = on(true, Some(inverts_last));
            let fates: Vec<Fate> = outcome.ends.iter().map(|end| end.fate).collect();
            assert_eq!(fates, [fate]);
        }
        // Not known: either.
        let fates_of = |outcome: Outcome| outcome.ends.iter().map(|end| end.fate).collect();
        let either: Vec<Fate> = fates_of(on(true, None));
        assert_eq!(either, [Fate::Drop, Fate::Accept]);
        assert_eq!(fates(set(0, elements), false), [Fate::Drop]);
    }
}

/// A set with the packet's port, with an hour to live and what is left of that.
fn hourly(flags: u32, left: u64) -> Set {
    let timed = Element {
        timeout: Some(3_600_000),
        expiration: Some(left),
        ..element(&[0, 53], 0)
    };
    set(flags, vec![timed])
}

#[test]
fn an_element_that_has_time_left_is_there() {
    let rules = |set| {
        let rules = vec![vec![dport(), lookup(false), verdict(0)]];
        let chain = chain("in", Some((1, 0, 1)), rules);
        ruleset(vec![table(vec![chain], vec![set])])
    };
    let fates_after = |set, seconds| {
        let age = Duration::from_secs(seconds);
        let program = Program::aged(Some(&rules(set)), &[], age);
        let outcome = program.evaluate(&packet(), &World::default());
        let fates: Vec<Fate> = outcome.ends.iter().map(|end| end.fate).collect();
        assert!(
            outcome.ends[0]
                .assumed
                .iter()
                .all(|reason| reason.kind == DoubtKind::State)
        );
        (fates, program.lasts())
    };
    let (fates, lasts) = fates_after(hourly(0, 3_000_000), 1000);
    assert_eq!(fates, [Fate::Drop]);
    assert_eq!(lasts, Some(Duration::from_secs(2000)));
    let either = vec![Fate::Drop, Fate::Accept];
    for seconds in [2995, 3000, 4000] {
        let (fates, lasts) = fates_after(hourly(0, 3_000_000), seconds);
        assert_eq!((&fates, lasts), (&either, None), "{seconds} s");
    }
    // It may have been added after the drop.
    assert_eq!(fates_after(hourly(Set::EVAL, 3_000_000), 0).0, either);
    // A default of the set, without what is left.
    let mut set = set(0, vec![element(&[0, 53], 0)]);
    set.timeout = Some(3_600_000);
    assert_eq!(fates_after(set, 0).0, either);
}

/// What becomes of the packet at a rule that names an object of this kind and then drops.
fn fates_with_object(kind: u32) -> Vec<Fate> {
    let objref = Expr::Objref {
        kind,
        name: "named".to_owned(),
    };
    let outcome = evaluate(&input(vec![vec![objref, verdict(0)]]), &packet());
    outcome.ends.iter().map(|end| end.fate).collect()
}

#[test]
fn only_objects_that_use_something_up_break_a_rule() {
    for kind in [1, 3, 7, 8] {
        assert_eq!(fates_with_object(kind), [Fate::Drop], "type {kind}");
    }
    for kind in [2, 4, 5, 9] {
        let fates = fates_with_object(kind);
        assert_eq!(fates, [Fate::Drop, Fate::Accept], "type {kind}");
    }
}

/// An expression of elements that counts connections.
const COUNT: Expr = Expr::Connlimit { count: 5, flags: 1 };

fn add(exprs: Vec<Expr>) -> Expr {
    Expr::Dynset {
        set: "s".to_owned(),
        op: 0,
        sreg_key: 1,
        sreg_data: None,
        timeout: None,
        flags: 0,
        exprs,
    }
}

/// The rules that can have dropped a packet from 10.1.0.1, the second of which drops whatever comes to it.
fn dropping(
    set: Set,
    first: Vec<Expr>,
    packet: &Packet<'_>,
) -> Vec<(Option<u32>, Option<DoubtKind>)> {
    let mut rule = vec![payload(PayloadBase::Network, 12, 4)];
    rule.extend(first);
    rule.push(verdict(1));
    let chain = chain("in", Some((1, 0, 1)), vec![rule, vec![verdict(0)]]);
    let outcome = evaluate(&ruleset(vec![table(vec![chain], vec![set])]), packet);
    let drops = outcome.ends.iter().filter(|end| end.fate.is_drop());
    drops
        .map(|end| {
            (
                rule_of(end.decision),
                end.assumed.first().map(|doubt| doubt.kind),
            )
        })
        .collect()
}

#[test]
fn an_element_that_counts_connections_drops_what_can_be_none() {
    let addresses = |flags, elements| Set {
        key_len: 4,
        ..set(flags, elements)
    };
    let filled = || addresses(Set::EVAL, Vec::new());
    let counting = || Set {
        exprs: vec![COUNT],
        ..filled()
    };
    let listed = Element {
        exprs: vec![COUNT],
        ..element(&[10, 1, 0, 1], 0)
    };
    // TCP that ends in the ports.
    let mut bytes = UDP;
    bytes[9] = 6;
    let cut = Packet {
        bytes: &bytes[..22],
        len: 22,
        ..packet()
    };
    let rules = || {
        [
            ("a rule that counts", filled(), vec![add(vec![COUNT])]),
            ("a set that counts", counting(), vec![add(Vec::new())]),
            (
                "an element that counts",
                addresses(0, vec![listed.clone()]),
                vec![lookup(false)],
            ),
        ]
    };
    let state = Some(DoubtKind::State);
    let (here, behind) = ((Some(0), state), (Some(1), state));
    for (what, set, rule) in rules() {
        assert_eq!(dropping(set, rule, &cut), [here, behind], "{what}");
    }
    for (what, set, rule) in rules() {
        assert_eq!(dropping(set, rule, &packet()), [behind], "{what}");
    }
    // Nothing behind it in the rule keeps it from that.
    let mut only = vec![add(vec![COUNT])];
    only.push(eq(&[10, 1, 0, 9]));
    assert_eq!(dropping(filled(), only, &cut)[0], here);
    let outside = vec![lookup(true)];
    let elements = vec![listed.clone()];
    assert_eq!(dropping(addresses(0, elements), outside, &cut), [behind]);
}
