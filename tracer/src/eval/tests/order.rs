//! Which chain of one priority comes first, where the kernel's list of the hook is known.

use super::*;
use crate::eval::order::{Called, Registered};

/// A table of this handle with one base chain, of handle 1.
fn one_chain(handle: u64, hook: u32, priority: i32, rules: Vec<Vec<Expr>>) -> Table {
    let base = chain("base", Some((hook, priority, 1)), rules);
    let mut table = table(vec![base], Vec::new());
    table.name = format!("t{handle}");
    table.handle = handle;
    table
}

fn dropping(handle: u64, priority: i32) -> Table {
    one_chain(handle, 1, priority, vec![vec![verdict(0)]])
}

fn nft(table: u64) -> Called {
    Called::Nft { table, chain: 1 }
}

fn arranged(rules: &Ruleset, hook: u8, calls: &[Called]) -> Program {
    let mut program = Program::new(Some(rules), &[]);
    let mut registered = Registered::default();
    registered.insert((2, hook), calls.to_vec());
    program.arrange(&registered, Some(rules), &[]);
    program
}

/// The indexes of the tables that the drop can be of.
fn dropped_by(program: &Program) -> Vec<TableId> {
    let outcome = program.evaluate(&packet(), &World::default());
    let tables = outcome.ends.iter().map(|end| match end.decision {
        Decision::Rule(rule) => rule.chain.table,
        other => panic!("{other:?}"),
    });
    tables.collect()
}

#[test]
fn the_chain_that_the_kernel_calls_first_drops() {
    let rules = ruleset(vec![dropping(5, 0), dropping(6, 0), dropping(7, 0)]);
    assert_eq!(Program::new(Some(&rules), &[]).ties(), [(2, 1)]);
    for (order, first) in [([5, 6, 7], 0), ([6, 7, 5], 1), ([7, 5, 6], 2)] {
        let calls = [
            nft(order[0]),
            Called::Tracking,
            nft(order[1]),
            Called::Translation,
            nft(order[2]),
        ];
        let program = arranged(&rules, 1, &calls);
        assert_eq!(program.ties(), []);
        assert_eq!(dropped_by(&program), [TableId::Nft(first)]);
    }
}

#[test]
fn a_list_of_other_chains_is_not_used() {
    let rules = ruleset(vec![dropping(5, 0), dropping(6, 0)]);
    let legacy = Called::Legacy {
        table: "filter".to_owned(),
    };
    let other = Called::Nft { table: 6, chain: 2 };
    for calls in [
        vec![],
        vec![nft(5)],
        vec![nft(5), other],
        vec![nft(5), nft(6), nft(7)],
        vec![nft(5), nft(6), nft(6)],
        vec![nft(5), nft(6), legacy],
    ] {
        let program = arranged(&rules, 1, &calls);
        assert_eq!(program.ties(), [(2, 1)], "{calls:?}");
        assert_eq!(dropped_by(&program).len(), 2, "{calls:?}");
    }
    // Of another hook nothing is said.
    let program = arranged(&rules, 2, &[nft(6), nft(5)]);
    assert_eq!(dropped_by(&program).len(), 2);
}

#[test]
fn a_list_against_the_priorities_is_not_used() {
    let rules = ruleset(vec![dropping(5, 0), dropping(6, 0), dropping(7, 10)]);
    let program = arranged(&rules, 1, &[nft(6), nft(7), nft(5)]);
    assert_eq!(program.ties(), [(2, 1)]);
    let program = arranged(&rules, 1, &[nft(6), nft(5), nft(7)]);
    assert_eq!(dropped_by(&program), [TableId::Nft(1)]);
}

#[test]
fn a_chain_with_the_priority_of_tracking_is_before_or_behind_it() {
    let rules = ruleset(vec![one_chain(5, 0, -200, vec![state(8)])]);
    let packet = Packet {
        hook: 0,
        tracking: Tracking::Connection(Connection {
            info: 2,
            ..Connection::default()
        }),
        ..packet()
    };
    let fates = |calls: &[Called]| -> Vec<Fate> {
        let outcome = arranged(&rules, 0, calls).evaluate(&packet, &World::default());
        outcome.ends.iter().map(|end| end.fate).collect()
    };
    assert_eq!(fates(&[Called::Tracking, nft(5)]), [Fate::Drop]);
    assert_eq!(fates(&[nft(5), Called::Tracking]), [Fate::Accept]);
    assert_eq!(fates(&[nft(5)]).len(), 2);
}

#[test]
fn chains_of_type_nat_are_called_from_where_addresses_are_translated() {
    let nat = |handle: u64, priority| {
        let mut table = one_chain(handle, 0, priority, vec![vec![verdict(0)]]);
        for base in table.chains.iter_mut().filter_map(|c| c.base.as_mut()) {
            base.kind = "nat".to_owned();
        }
        table
    };
    let rules = ruleset(vec![
        nat(5, 0),
        nat(6, 0),
        one_chain(7, 0, -100, vec![vec![verdict(0)]]),
    ]);
    let first = |calls: &[Called]| {
        let packet = Packet {
            hook: 0,
            ..packet()
        };
        let outcome = arranged(&rules, 0, calls).evaluate(&packet, &World::default());
        match outcome.answer(&Known::default()) {
            Answer::Computed(end) => match end.decision {
                Decision::Rule(rule) => Some(rule.chain.table),
                _ => None,
            },
            _ => None,
        }
    };
    let translation = Called::Translation;
    let calls = [nft(7), translation.clone(), nft(5), nft(6)];
    assert_eq!(first(&calls), Some(TableId::Nft(2)));
    // Chains of type nat see the first packet of a connection only: nothing is known of this one's.
    let program = arranged(&rules, 0, &[translation, nft(6), nft(5), nft(7)]);
    assert_eq!(program.ties(), []);
}
