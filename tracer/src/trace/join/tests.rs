use proptest::prelude::*;
use zerocopy::FromZeros;

use super::*;
use crate::{
    netlink::attr::Writer,
    ruleset::{expr::Verdict, model::Family},
    trace::assemble::Step,
};

const AT: Between = Between {
    since: 1_000_000_000,
    until: 1_010_000_000,
};

fn packet(id: u16) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    [
        vec![0x45, 0, 0, 28, high, low, 0, 0, 64, 17, 0, 0],
        vec![10, 0, 0, 1, 10, 0, 0, 2],
        vec![0, 1, 0, 2, 0, 8, 0, 0],
    ]
    .concat()
}

fn headers(id: u16) -> Headers {
    Headers::of_packet(&packet(id)).unwrap()
}

fn dropped(id: u16, did: Did) -> Dropped {
    Dropped {
        headers: headers(id),
        base_chain: "in".to_owned(),
        steps: vec![Step {
            family: Family::Inet,
            table: "t".to_owned(),
            chain: "in".to_owned(),
            did,
        }],
    }
}

fn rule(handle: u64) -> Did {
    let verdict = Verdict {
        code: Verdict::DROP,
        chain: None,
    };
    Did::Rule(handle, verdict)
}

fn traces(of: impl IntoIterator<Item = Dropped>) -> Traces {
    let mut traces = Traces::default();
    let waiting = of.into_iter().map(|trace| Waiting { when: AT, trace });
    traces.dropped.extend(waiting);
    traces
}

/// A drop at this time, with nothing on the stack.
fn drop_at(time: u64) -> Record {
    let mut record = Record::new_zeroed();
    (record.time, record.hook) = (time, 1);
    record
}

/// The same with a rule on the stack, of `inet t`.
fn named(handle: u64) -> Record {
    let mut record = drop_at(AT.since);
    record.rule.kind = RULE_RULE;
    record.rule.rule_handle = handle;
    record.rule.family = 1;
    record.rule.table[0] = b't';
    record
}

fn handle(found: Option<Found>) -> Option<u64> {
    match found? {
        Found::Nftables(dropped) => match dropped.steps.last()?.did {
            Did::Rule(handle, _) => Some(handle),
            Did::Policy(_) => Some(0),
        },
        Found::Legacy(_) => None,
    }
}

fn take(traces: &mut Traces, record: &Record, id: u16, twins: usize) -> Option<u64> {
    let twins = || vec![record.time; twins];
    handle(traces.take(record, &headers(id), twins, |_| true))
}

#[test]
fn a_trace_is_used_once_and_in_order() {
    let mut all = traces([
        dropped(1, rule(5)),
        dropped(2, rule(6)),
        dropped(1, rule(7)),
    ]);
    let drop = drop_at(AT.since);
    assert_eq!(take(&mut all, &drop, 3, 1), None);
    assert_eq!(take(&mut all, &drop, 1, 2), Some(5));
    assert_eq!(take(&mut all, &drop, 1, 1), Some(7));
    assert_eq!(take(&mut all, &drop, 1, 1), None);
    assert_eq!(take(&mut all, &drop, 2, 1), Some(6));
    assert!(all.is_empty());
}

#[test]
fn more_twins_than_traces_are_not_told_apart_without_the_stack() {
    let mut all = traces([dropped(1, rule(5))]);
    assert_eq!(take(&mut all, &named(5), 1, 2), Some(5));
    let mut all = traces([dropped(1, rule(5))]);
    assert_eq!(take(&mut all, &drop_at(AT.since), 1, 2), None);
    // Nor is the last of them the one.
    assert_eq!(take(&mut all, &drop_at(AT.since), 1, 1), None);
}

/// The traces of a batch's drops may have been received at different times: those of the later drops are not of the earlier ones, and
/// need not be.
#[test]
fn twins_whose_traces_were_received_one_after_the_other_have_one_each() {
    let later = Between {
        since: AT.until,
        until: AT.until + 5,
    };
    let received = || {
        let mut all = traces([dropped(1, rule(5))]);
        let trace = dropped(1, rule(6));
        all.dropped.push_back(Waiting { when: later, trace });
        all
    };
    let drops = [AT.since, later.since + 1].map(drop_at);
    let twins = |from: usize| drops.iter().skip(from).map(|d| d.time).collect::<Vec<_>>();
    let mut all = received();
    for (at, rule) in [(0, 5), (1, 6)] {
        let found = all.take(&drops[at], &headers(1), || twins(at), |_| true);
        assert_eq!(handle(found), Some(rule));
    }
    // Three drops, and the two traces are of the first and one of the others.
    let mut all = received();
    let three = || vec![AT.since, later.since + 1, later.since + 2];
    assert_eq!(all.take(&drops[0], &headers(1), three, |_| true), None);
    // Two drops before the second trace can have been made.
    let mut all = received();
    let two = || vec![AT.since, AT.since + 1];
    assert_eq!(all.take(&drops[0], &headers(1), two, |_| true), None);
}

#[test]
fn where_not_all_are_traced_twins_have_no_trace() {
    let mut all = traces([
        dropped(1, rule(5)),
        dropped(1, rule(6)),
        dropped(2, rule(7)),
    ]);
    all.partial = true;
    assert_eq!(take(&mut all, &drop_at(AT.since), 1, 2), None);
    assert_eq!(take(&mut all, &drop_at(AT.since), 2, 1), Some(7));
    // One that came before was not traced, or was: who knows.
    let trace = dropped(2, rule(8));
    all.dropped.push_back(Waiting { when: AT, trace });
    assert_eq!(take(&mut all, &drop_at(AT.since), 2, 1), None);
    assert!(all.is_empty());
    all.forget(AT.since + DISORDER + 1);
    let trace = dropped(2, rule(9));
    all.dropped.push_back(Waiting { when: AT, trace });
    assert_eq!(take(&mut all, &drop_at(AT.since), 2, 1), Some(9));
}

#[test]
fn the_stack_has_the_last_word() {
    let mut all = traces([dropped(1, rule(5)), dropped(1, rule(6))]);
    assert_eq!(take(&mut all, &named(6), 1, 1), Some(6));
    assert_eq!(all.disagreed, 0);
    assert_eq!(take(&mut all, &named(6), 1, 1), None);
    assert_eq!(all.disagreed, 1);
    let mut other_table = named(5);
    other_table.rule.table[0] = b'u';
    assert_eq!(take(&mut all, &other_table, 1, 1), None);
    let mut policy = named(0);
    policy.rule.kind = RULE_POLICY;
    assert_eq!(take(&mut all, &policy, 1, 1), None);
    let mut all = traces([dropped(1, Did::Policy(true))]);
    assert_eq!(take(&mut all, &named(5), 1, 1), None);
    assert_eq!(take(&mut all, &policy, 1, 1), Some(0));
}

#[test]
fn only_within_the_window() {
    for (time, fits) in [
        (AT.since - 1, false),
        (AT.since, true),
        (AT.until + WINDOW, true),
        (AT.until + WINDOW + 1, false),
    ] {
        let mut all = traces([dropped(1, rule(5))]);
        assert_eq!(
            take(&mut all, &drop_at(time), 1, 1).is_some(),
            fits,
            "{time}"
        );
    }
    let mut all = traces([dropped(1, rule(5))]);
    all.forget(AT.until + DISORDER);
    assert!(!all.is_empty());
    all.forget(AT.until + DISORDER + 1);
    assert!(all.is_empty());
}

/// Feeds a TRACE line about packet `id`.
fn line(traces: &mut Traces, id: u16, hook: u8, line: &str) {
    let mut writer = Writer::new();
    writer
        .raw(&[2, 0, 0, 0])
        .bytes(1, &[8, 0, hook, 0])
        .str(10, &format!("TRACE: {line} "))
        .bytes(9, &packet(id));
    let message = writer.finish().unwrap();
    traces.logged(&nflog::decode(&message).unwrap(), AT);
}

#[test]
fn ip_tables_lines_need_a_last_entry_that_drops_on_this_hook() {
    let mut all = Traces::default();
    line(&mut all, 1, 0, "raw:PREROUTING:policy:1");
    let drop = drop_at(AT.since);
    let take = |all: &mut Traces, twins: usize, drops: bool| {
        let twins = || vec![drop.time; twins];
        all.take(&drop, &headers(1), twins, |_| drops).is_some()
    };
    assert!(!take(&mut all, 1, true), "another hook");
    line(&mut all, 1, 1, "filter:INPUT:rule:1");
    assert!(!take(&mut all, 1, false), "does not drop");
    assert!(take(&mut all, 1, true));
    line(&mut all, 1, 1, "filter:INPUT:rule:1");
    assert!(!take(&mut all, 2, true), "two drops, one trace");
    assert!(all.is_empty());
}

#[test]
fn memory_is_bounded() {
    let mut all = Traces::default();
    for id in 0..3000 {
        line(&mut all, id, 1, "filter:INPUT:rule:1");
        assert!(all.logged.len() <= WAITING);
    }
}

proptest! {
    #[test]
    fn every_trace_goes_to_one_drop_with_its_headers(
        traced in proptest::collection::vec((0_u16..4, 0_u64..3), 0..20),
        drops in proptest::collection::vec((0_u16..4, 0_u64..3), 0..20),
    ) {
        let mut all = traces(traced.iter().map(|(id, by)| dropped(*id, rule(*by))));
        for (id, by) in drops {
            let before = all.dropped.len();
            match take(&mut all, &named(by), id, 1) {
                Some(found) => {
                    prop_assert_eq!(found, by);
                    prop_assert_eq!(all.dropped.len(), before - 1);
                }
                None => {
                    let left = all.dropped.iter().any(|w| w.trace == dropped(id, rule(by)));
                    prop_assert!(!left);
                }
            }
        }
    }
}
