use super::*;
use crate::{
    netlink::attr::Writer,
    ruleset::{
        expr::Expr,
        model::{Chain, Table},
    },
};

/// Table 5 with chain 1 with rule 2, which is of this kind.
fn ruleset(generation: u32, kind: u32) -> Ruleset {
    let exprs = vec![Expr::Reject { kind, code: None }];
    let rule = Rule {
        handle: 2,
        number: 1,
        exprs,
        ..Rule::default()
    };
    let chain = Chain {
        name: "in".into(),
        handle: 1,
        base: None,
        flags: 0,
        comment: None,
        userdata: Vec::new(),
        rules: vec![rule],
    };
    let table = Table {
        family: Family::Inet,
        name: "t".into(),
        handle: 5,
        flags: 0,
        owner: None,
        comment: None,
        userdata: Vec::new(),
        chains: vec![chain],
        sets: Vec::new(),
        objects: Vec::new(),
        flowtables: Vec::new(),
        iptables: false,
    };
    Ruleset {
        generation,
        tables: vec![table],
        problems: Vec::new(),
    }
}

fn kind_of(found: &Found) -> u32 {
    let rule = &found.ruleset.tables[found.table].chains[found.chain].rules[found.rule.unwrap()];
    let Expr::Reject { kind, .. } = rule.exprs[0] else {
        panic!()
    };
    kind
}

/// Takes in messages of these kinds about rule 2, then the generation.
fn commit(history: &mut History, kinds: &[u16], generation: u32) {
    let rule = Writer::new()
        .raw(&[1, 0, 0, 0])
        .str(1, "t")
        .str(2, "in")
        .be64(3, 2)
        .finish();
    let rule = rule.unwrap();
    for &kind in kinds {
        history.notify(kind, &rule);
    }
    let end = Writer::new()
        .raw(&[0; 4])
        .be32(1, generation)
        .be32(2, 42)
        .str(3, "nft")
        .finish();
    history.notify(kind::NEWGEN, &end.unwrap());
}

const REPLACE: [u16; 2] = [kind::DELRULE, kind::NEWRULE];

#[test]
fn elements_extend_and_rules_make_stale() {
    let mut history = History::new(ruleset(7, 0));
    commit(&mut history, &[kind::NEWSETELEM, kind::DELSETELEM], 8);
    let newest = history.newest();
    assert!(!history.is_stale() && newest.last == 8 && newest.covers(8) && !newest.covers(9));
    commit(&mut history, &[kind::NEWSETELEM, kind::NEWRULE], 9);
    assert!(history.is_stale() && history.newest_generation() == 8);
    commit(&mut history, &[kind::NEWSETELEM], 10);
    assert_eq!(history.newest_generation(), 8);
    let changes = history.take_changes();
    assert!(!changes.lost);
    let rules: Vec<bool> = changes.commits.iter().map(|commit| commit.rules).collect();
    assert_eq!(rules, [false, true, false]);
    assert_eq!(
        (changes.commits[1].pid, changes.commits[1].process.as_str()),
        (42, "nft")
    );
}

#[test]
fn a_gap_counts_as_loss() {
    let mut history = History::new(ruleset(7, 0));
    commit(&mut history, &[kind::NEWSETELEM], 9);
    assert!(history.is_stale() && history.take_changes().lost);
    history.reading(ruleset(9, 0));
    commit(&mut history, &[kind::NEWSETELEM], 10);
    assert!(!history.is_stale() && history.newest_generation() == 10);
}

#[test]
fn a_reading_before_the_announcement_is_repeated() {
    let mut history = History::new(ruleset(7, 0));
    commit(&mut history, &[kind::NEWRULE], 6);
    assert!(!history.is_stale());
    commit(&mut history, &[kind::NEWRULE], 7);
    assert!(history.is_stale());
    history.reading(ruleset(7, 1));
    assert!(!history.is_stale());
    assert_eq!(history.snapshots().count(), 1);
    assert_eq!(kind_of(&history.find(Some(7), 5, 1, Some(2)).unwrap()), 1);
}

#[test]
fn generations_wrap_and_skip_zero() {
    assert!(before(u32::MAX, 1) && !before(1, u32::MAX) && !before(4, 4));
    assert_eq!((next(u32::MAX), next(1)), (1, 2));
    let mut history = History::new(ruleset(u32::MAX, 0));
    commit(&mut history, &[kind::NEWSETELEM], 1);
    let newest = history.newest();
    assert!(!history.is_stale() && newest.covers(1) && newest.covers(u32::MAX));
}

#[test]
fn nonsense_counts_as_loss() {
    let mut history = History::new(ruleset(7, 0));
    history.notify(kind::NEWGEN, &[0; 3]);
    assert!(history.is_stale() && history.take_changes().lost);
}

#[test]
fn a_replaced_rule_is_found_as_it_was() {
    let mut history = History::new(ruleset(7, 0));
    commit(&mut history, &REPLACE, 8);
    commit(&mut history, &[kind::NEWRULE], 9);
    history.reading(ruleset(9, 1));
    let find = |generation| {
        let found = history.find(generation, 5, 1, Some(2)).unwrap();
        (kind_of(&found), found.certain, found.newest)
    };
    assert_eq!(find(Some(7)), (0, true, false));
    assert_eq!(find(Some(9)), (1, true, true));
    // No reading is of generation 8, but nothing happened to the new one between then and the reading.
    assert_eq!(find(Some(8)), (1, true, true));
    assert_eq!(find(None), (1, false, true));
    // Only in the generation that replaced it can a drop still be the old rule's.
    let replaced = |generation| {
        let found = history.find(Some(generation), 5, 1, Some(2)).unwrap();
        found.replaced.is_some()
    };
    assert_eq!([7, 8, 9].map(replaced), [false, true, false]);
}

#[test]
fn a_rule_that_no_reading_has_is_uncertain() {
    let mut history = History::new(ruleset(7, 0));
    for generation in 8..=10 {
        commit(&mut history, &REPLACE, generation);
    }
    history.reading(ruleset(10, 3));
    let certain = |generation| {
        history
            .find(Some(generation), 5, 1, Some(2))
            .unwrap()
            .certain
    };
    assert_eq!([7, 8, 9, 10].map(certain), [true, false, false, true]);
}

#[test]
fn a_rule_that_only_moved_is_certain() {
    let mut history = History::new(ruleset(7, 0));
    commit(&mut history, &[kind::NEWRULE, kind::DELRULE], 8);
    commit(&mut history, &[kind::NEWRULE], 9);
    history.reading(ruleset(9, 0));
    for generation in [Some(7), Some(8), Some(9), None] {
        let found = history.find(generation, 5, 1, Some(2)).unwrap();
        assert!(found.certain && found.newest, "{generation:?}");
    }
    assert!(history.find(None, 5, 1, Some(3)).is_none());
    assert!(history.find(None, 5, 3, Some(2)).is_none());
    assert!(history.find(None, 6, 1, Some(2)).is_none());
    assert!(
        history
            .find(None, 5, 1, None)
            .is_some_and(|found| found.rule.is_none())
    );
}

#[test]
fn rules_of_a_table_made_anew_replace_nothing() {
    let mut history = History::new(ruleset(7, 0));
    commit(&mut history, &REPLACE, 8);
    assert_eq!(history.replaced.len(), 1);
    let rule = Writer::new()
        .raw(&[1, 0, 0, 0])
        .str(1, "t")
        .be64(3, 2)
        .finish();
    let table = Writer::new()
        .raw(&[1, 0, 0, 0])
        .str(1, "t")
        .be32(3, 1)
        .be64(4, 6)
        .finish();
    history.notify(kind::DELRULE, &rule.unwrap());
    history.notify(kind::NEWTABLE, &table.unwrap());
    commit(&mut history, &[kind::NEWRULE], 9);
    assert_eq!(history.replaced.len(), 1);
    assert!(!history.lossy);
}

#[test]
fn a_replacement_that_was_not_told_is_seen_by_comparing() {
    let mut history = History::new(ruleset(7, 0));
    history.lose();
    history.reading(ruleset(12, 1));
    let find = |generation| {
        let found = history.find(generation, 5, 1, Some(2)).unwrap();
        (kind_of(&found), found.certain)
    };
    assert_eq!(find(Some(7)), (0, true));
    assert_eq!(find(Some(9)), (0, false));
    assert_eq!(find(Some(12)), (1, true));
    assert_eq!(find(None), (1, false));
}

#[test]
fn the_oldest_readings_go() {
    let mut history = History::new(ruleset(1, 0));
    for generation in 2..=40 {
        commit(&mut history, &[kind::NEWRULE], generation);
        history.reading(ruleset(generation, 0));
    }
    assert_eq!(history.snapshots().count(), KEPT);
    assert_eq!(history.snapshots().last().unwrap().first(), 40 - 15);
}
