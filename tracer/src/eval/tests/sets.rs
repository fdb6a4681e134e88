//! Elements that come, go, or stand for all others.

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
        assert_eq!(fates(set(0, elements.clone()), true), [Fate::Accept]);
        assert_eq!(fates(set(0, elements), false), [Fate::Drop]);
    }
}
