//! Which chain of one priority comes first, where the kernel's list of the hook is known.

use std::sync::Arc;

use super::*;
use crate::eval::{
    cache::Cache,
    order::{Called, Tie},
};

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
    program.arrange(&ip(hook), calls, Some(rules), &[]);
    program
}

/// A hook of IPv4.
fn ip(hook: u8) -> Tie<'static> {
    Tie {
        pf: 2,
        hook,
        device: None,
    }
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
    assert_eq!(Program::new(Some(&rules), &[]).tie(&packet()), Some(ip(1)));
    for (order, first) in [([5, 6, 7], 0), ([6, 7, 5], 1), ([7, 5, 6], 2)] {
        let calls = [
            nft(order[0]),
            Called::Tracking,
            nft(order[1]),
            Called::Translation,
            nft(order[2]),
        ];
        let program = arranged(&rules, 1, &calls);
        assert_eq!(program.tie(&packet()), None);
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
        assert_eq!(program.tie(&packet()), Some(ip(1)), "{calls:?}");
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
    assert_eq!(program.tie(&packet()), Some(ip(1)));
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
    let prerouting = Packet {
        hook: 0,
        ..packet()
    };
    assert_eq!(
        Program::new(Some(&rules), &[]).tie(&prerouting),
        Some(ip(0))
    );
    assert_eq!(program.tie(&prerouting), None);
}

/// Chains that drop on egress of these devices, with handles from 1 on.
fn on_egress(handle: u64, chains: &[&[&str]]) -> Table {
    let chains = (1..).zip(chains).map(|(handle, devices)| {
        let mut chain = chain("egress", Some((1, 0, 1)), vec![vec![verdict(0)]]);
        chain.handle = handle;
        if let Some(base) = &mut chain.base {
            base.devices = devices.iter().map(|&name| name.to_owned()).collect();
        }
        chain
    });
    Table {
        family: Family::Netdev,
        name: format!("t{handle}"),
        handle,
        ..table(chains.collect(), Vec::new())
    }
}

fn leaving(index: u32, name: &str) -> Packet<'_> {
    Packet {
        pf: 5,
        iif: Fact::Absent,
        oif: Fact::Known(Device { index, name }),
        ..packet()
    }
}

/// The tables and chains that the drop can be of.
fn dropped_on(program: &Program, packet: &Packet<'_>) -> Vec<(TableId, u32)> {
    let outcome = program.evaluate(packet, &World::default());
    let chains = outcome.ends.iter().map(|end| match end.decision {
        Decision::Rule(rule) => (rule.chain.table, rule.chain.chain),
        other => panic!("{other:?}"),
    });
    chains.collect()
}

#[test]
fn each_device_has_an_order_of_its_own() {
    let rules = ruleset(vec![
        on_egress(5, &[&["r0", "r1"]]),
        on_egress(6, &[&["r1", "r0"]]),
        on_egress(7, &[&["r2"]]),
    ]);
    let mut program = Program::new(Some(&rules), &[]);
    let (r0, r1) = (leaving(2, "r0"), leaving(3, "r1"));
    for (packet, first, second) in [(&r0, 5, 6), (&r1, 6, 5)] {
        assert_eq!(dropped_on(&program, packet).len(), 2);
        let tie = program.tie(packet).unwrap();
        assert_eq!((tie.pf, tie.hook), (5, 1));
        assert_eq!(tie.device, packet.oif.known());
        // Of another device's chains.
        program.arrange(&tie, &[nft(7), nft(5), nft(6)], Some(&rules), &[]);
        program.arrange(&tie, &[nft(6)], Some(&rules), &[]);
        assert_eq!(program.tie(packet), Some(tie));
        program.arrange(&tie, &[nft(first), nft(second)], Some(&rules), &[]);
        assert_eq!(program.tie(packet), None);
    }
    assert_eq!(dropped_on(&program, &r0), [(TableId::Nft(0), 0)]);
    assert_eq!(dropped_on(&program, &r1), [(TableId::Nft(1), 0)]);
    let mut cache = Cache::new(Arc::new(program.clone()));
    for packet in [&r0, &r1, &r0, &r1] {
        let ends = cache.evaluate(packet, &World::default());
        assert_eq!(*ends, program.evaluate(packet, &World::default()));
    }
    // Another device, that one under another name, and one that is not known.
    for packet in [leaving(9, "r1"), leaving(2, "r1"), leaving(3, "r0")] {
        assert!(program.tie(&packet).is_some(), "{packet:?}");
        assert_eq!(dropped_on(&program, &packet).len(), 2, "{packet:?}");
    }
    let somewhere = Packet {
        oif: Fact::Unknown,
        ..leaving(2, "r0")
    };
    assert_eq!(program.tie(&somewhere), None);
}

#[test]
fn within_a_table_the_newest_chain_is_the_first_unless_they_share_a_device() {
    let order = |chains: &[&[&str]]| {
        let program = Program::new(Some(&ruleset(vec![on_egress(5, chains)])), &[]);
        let packet = leaving(2, "r0");
        (
            dropped_on(&program, &packet),
            program.tie(&packet).is_some(),
        )
    };
    // A chain can be given a device long after it was made.
    let either = vec![(TableId::Nft(0), 0), (TableId::Nft(0), 1)];
    assert_eq!(order(&[&["r0"], &["r0"]]), (either.clone(), true));
    assert_eq!(order(&[&["r0"], &["r*"], &["r1"]]), (either, true));
    // More than there are orders for, of which each is the only one on its device.
    let apart: [&[&str]; 6] = [&["r5"], &["r4"], &["r3"], &["r2"], &["r1"], &["r0"]];
    assert_eq!(order(&apart), (vec![(TableId::Nft(0), 5)], false));
}

#[test]
fn a_device_is_meant_by_its_name_or_by_the_beginning_of_it() {
    let drops = |device: &str, name: &str| {
        let program = Program::new(Some(&ruleset(vec![on_egress(5, &[&[device]])])), &[]);
        let outcome = program.evaluate(&leaving(2, name), &World::default());
        outcome.ends.iter().any(|end| end.fate == Fate::Drop)
    };
    assert!(drops("wg*", "wg0") && drops("wg*", "wg") && drops("*", "r0"));
    assert!(!drops("wg*", "w") && !drops("wg", "wg0") && !drops("wg0", "wg"));
}
