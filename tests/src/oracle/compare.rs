//! The kernel's word against fwtrace's.

use std::collections::HashMap;

use fwtrace::event::{
    Candidate, Confidence, DropEvent, Engine, EvidenceSource, PolicyRef, RuleRef, Verdict,
};

use crate::oracle::cut::Cut;
use crate::oracle::truth::{By, Key, Truth};

/// What is known of a rule or chain that the truth can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// 1-based position; 0 of a policy.
    pub number: u32,
    /// Whether it answers what it drops.
    pub reject: bool,
    /// Whose it is.
    pub engine: Engine,
    /// Of legacy rules: whether it looks at the transport header.
    pub needs_header: bool,
}

/// The rules of the case, by family, table, chain and [`By`].
pub type Rules = HashMap<(String, String, String, By), Known>;

/// How an answer compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Grade {
    /// It names what did it.
    Right,
    /// It names several, and what did it is among them.
    Ambiguous,
    /// It names nothing.
    Unknown,
    /// It names something else.
    Wrong,
}

/// An answer, graded.
#[derive(Clone, Debug)]
pub struct Answer {
    /// How it compares.
    pub grade: Grade,
    /// Who dropped.
    pub engine: Engine,
    /// How fwtrace knows; nothing where it said nothing.
    pub source: Option<EvidenceSource>,
    /// What is different.
    pub why: Vec<String>,
    /// What the kernel says.
    pub truth: Option<Truth>,
    /// What fwtrace says.
    pub event: Option<DropEvent>,
}

/// Joins drops and events by packet, in order, and grades.
///
/// Both come in the order in which the kernel dropped, because all packets are sent on one CPU;
/// so packets that look alike are told apart by their order. `cut` are those that a match may drop by
/// itself.
pub fn compare(truths: &[Truth], events: &[DropEvent], rules: &Rules, cut: &Cut) -> Vec<Answer> {
    let mut answers = Vec::new();
    let mut left: Vec<&DropEvent> = events.iter().collect();
    for truth in truths {
        let engine = known(rules, truth).map_or(Engine::Other, |k| k.engine);
        let place = place(truth, &left, cut);
        let Some(place) = place else {
            answers.push(Answer {
                grade: Grade::Wrong,
                engine,
                source: None,
                why: vec!["no event".into()],
                truth: Some(truth.clone()),
                event: None,
            });
            continue;
        };
        let event = left.remove(place);
        let (grade, why) = grade(truth, event, known(rules, truth), cut);
        answers.push(Answer {
            grade,
            engine,
            source: Some(event.evidence.source),
            why,
            truth: Some(truth.clone()),
            event: Some(event.clone()),
        });
    }
    for event in left {
        // Defragmentation and conntrack drop, too: no trace has that.
        let several = match event.evidence.confidence {
            Confidence::Ambiguous => Some(Grade::Ambiguous),
            Confidence::Unknown => Some(Grade::Unknown),
            _ => None,
        };
        let (grade, why) = if let (true, Some(grade)) = (is_hotdrop(event, rules, cut), several) {
            (grade, Vec::new())
        } else if names_nothing(event, cut) || is_hotdrop(event, rules, cut) {
            (Grade::Right, Vec::new())
        } else {
            (
                Grade::Wrong,
                vec!["the kernel's trace has no such drop".into()],
            )
        };
        answers.push(Answer {
            grade,
            engine: event.engine,
            source: Some(event.evidence.source),
            why,
            truth: None,
            event: Some(event.clone()),
        });
    }
    answers
}

/// Whether the event says that no rule did it. A legacy table, too, drops by itself what is too
/// short for a match (`hotdrop`, ipt_do_table(), v6.18).
fn names_nothing(event: &DropEvent, cut: &Cut) -> bool {
    let nobody = match event.engine {
        Engine::Other | Engine::Conntrack => true,
        Engine::IptablesLegacy => cut.has(event),
        _ => false,
    };
    let nothing = event.rule.is_none() && event.policy.is_none();
    nobody && nothing && event.evidence.candidates.is_empty()
}

/// Whether a packet too short for a legacy match was dropped by it, by a rule that has one. The kernel
/// counts and traces no rule then; the evaluator may tell whose match it was.
pub fn is_hotdrop(event: &DropEvent, rules: &Rules, cut: &Cut) -> bool {
    let computed = event.evidence.source == EvidenceSource::Evaluator;
    let candidates = event.evidence.candidates.iter().filter_map(|c| match c {
        Candidate::Rule(rule) => Some(rule),
        Candidate::Policy(_) => None,
    });
    let mut named = event.rule.iter().chain(candidates);
    let matches = named.any(|rule| {
        let place = (
            rule.family.as_str().to_owned(),
            rule.table.to_string(),
            rule.chain.to_string(),
            By::Number(rule.number.unwrap_or(0).into()),
        );
        rules.get(&place).is_some_and(|known| known.needs_header)
    });
    event.engine == Engine::IptablesLegacy && computed && matches && cut.has(event)
}

fn known<'a>(rules: &'a Rules, truth: &Truth) -> Option<&'a Known> {
    let key = (
        truth.family.to_owned(),
        truth.table.clone(),
        truth.chain.clone(),
        truth.by.clone(),
    );
    rules.get(&key)
}

/// The event's packet.
pub fn key(event: &DropEvent) -> Option<Key> {
    let packet = &event.packet;
    Some(Key {
        src: packet.src?,
        dst: packet.dst?,
        len: packet.len?,
        id: packet.id,
        proto: None,
        ports: packet.sport.zip(packet.dport),
    })
}

/// Which of the events is about the drop.
fn place(truth: &Truth, events: &[&DropEvent], cut: &Cut) -> Option<usize> {
    let named = |event: &&DropEvent| match event.engine {
        Engine::Other | Engine::Conntrack => false,
        engine => (engine == Engine::IptablesLegacy) == truth.legacy,
    };
    let is = |event: &&DropEvent| is_of(truth, event, cut);
    // Of a packet that the trace does not show, the next that has been dropped in such a table.
    let first = events.iter().position(|e| is(e) && named(e));
    match truth.key {
        None => first.or_else(|| events.iter().position(is)),
        Some(_) => events.iter().position(is),
    }
}

fn is_of(truth: &Truth, event: &DropEvent, cut: &Cut) -> bool {
    match (&truth.key, key(event)) {
        (Some(a), Some(b)) => a.is_like(&b),
        (None, None) => true,
        // The kernel's trace has no header of an IPv6 fragment other than the first, and of what is cut
        // short: nft knows no transport offset then (nft_set_pktinfo_ipv6(), v6.18), and cuts the
        // header there. Nor has it one where there are two tags of VLANs.
        (None, Some(b)) => event.packet.vlan.len() > 1 || b.src.is_ipv6() && cut.is_headless(event),
        (Some(_), None) => false,
    }
}

/// Grades one answer.
fn grade(
    truth: &Truth,
    event: &DropEvent,
    known: Option<&Known>,
    cut: &Cut,
) -> (Grade, Vec<String>) {
    let Some(known) = known else {
        return (
            Grade::Wrong,
            vec![format!("the listing has no such rule: {truth:?}")],
        );
    };
    let mut why = Vec::new();
    if event.count != 1 {
        why.push(format!("count {}", event.count));
    }
    if event.engine != known.engine {
        why.push(format!(
            "engine {}, not {}",
            known.engine.as_str(),
            event.engine.as_str()
        ));
    }
    let by = (event.rule.as_deref(), event.policy.as_deref());
    match event.evidence.confidence {
        Confidence::Exact | Confidence::Computed => {
            why.extend(differences(truth, known, by));
            let verdict = if known.reject {
                Verdict::Reject
            } else {
                Verdict::Drop
            };
            // A rule that rejects may drop what is too short for its match (`hotdrop`).
            if event.verdict != verdict && !(known.reject && cut.has(event)) {
                why.push(format!("verdict {verdict:?}, not {:?}", event.verdict));
            }
            (
                if why.is_empty() {
                    Grade::Right
                } else {
                    Grade::Wrong
                },
                why,
            )
        }
        confidence @ (Confidence::Ambiguous | Confidence::Unknown)
            if confidence == Confidence::Ambiguous || !event.evidence.candidates.is_empty() =>
        {
            let found = event.evidence.candidates.iter().any(|candidate| {
                let by = match candidate {
                    Candidate::Rule(rule) => (Some(&**rule), None),
                    Candidate::Policy(policy) => (None, Some(&**policy)),
                };
                differences(truth, known, by).is_empty()
            });
            if !found {
                why.push("it is none of the candidates".into());
            }
            let grade = match confidence {
                _ if !why.is_empty() => Grade::Wrong,
                Confidence::Ambiguous => Grade::Ambiguous,
                _ => Grade::Unknown,
            };
            (grade, why)
        }
        _ => (
            if why.is_empty() {
                Grade::Unknown
            } else {
                Grade::Wrong
            },
            why,
        ),
    }
}

fn differences(
    truth: &Truth,
    known: &Known,
    by: (Option<&RuleRef>, Option<&PolicyRef>),
) -> Vec<String> {
    let mut why = Vec::new();
    let mut same = |what: &str, expected: &str, got: &str| {
        if expected != got {
            why.push(format!("{what} {expected}, not {got}"));
        }
    };
    match (by, &truth.by) {
        ((Some(rule), None), By::Handle(_) | By::Number(_)) => {
            same("family", truth.family, rule.family.as_str());
            same("table", &truth.table, &rule.table);
            same("chain", &truth.chain, &rule.chain);
            same(
                "number",
                &format!("{:?}", Some(known.number)),
                &format!("{:?}", rule.number),
            );
            let handle = match truth.by {
                By::Handle(handle) => Some(handle),
                _ => None,
            };
            same(
                "handle",
                &format!("{handle:?}"),
                &format!("{:?}", rule.handle),
            );
        }
        ((None, Some(policy)), By::Policy) => {
            same("family", truth.family, policy.family.as_str());
            same("table", &truth.table, &policy.table);
            same("chain", &truth.chain, &policy.chain);
        }
        (got, expected) => why.push(format!("{expected:?}, not {got:?}")),
    }
    why
}

/// Events for the tests of what judges them.
#[cfg(test)]
pub(super) mod sample {
    use fwtrace::event::{DropEvent, Event};
    use serde_json::{Value, json};

    pub(in crate::oracle) const PORTS: (u16, u16) = (5000, 80);

    pub(in crate::oracle) fn rule(handle: u64, number: u32) -> Value {
        json!({"family": "inet", "table": "t", "chain": "in", "base_chain": "in",
               "number": number, "handle": handle, "text": null})
    }

    /// An event about a packet to port 80, by rule 1, with `change` on top.
    pub(in crate::oracle) fn event(change: &Value) -> DropEvent {
        let mut event = json!({
            "v": 1, "type": "drop", "time": "2026-11-22T14:03:41Z", "verdict": "drop",
            "netns": {"inode": 1, "name": null}, "engine": "nftables", "family": "ip",
            "hook": "input", "reason": "NETFILTER_DROP", "iif": "r0", "oif": null,
            "packet": {"family": "ipv4", "proto": "udp", "src": "10.1.0.1", "sport": PORTS.0,
                       "dst": "10.1.0.2", "dport": PORTS.1, "len": 60, "id": 7},
            "rule": rule(4, 1), "path": null,
            "evidence": {"source": "kernel-stack", "confidence": "exact", "candidates": []},
            "conntrack": null, "process": null, "count": 1
        });
        for (key, value) in change.as_object().unwrap() {
            event[key] = value.clone();
        }
        match Event::from_json(&event.to_string()).unwrap() {
            Event::Drop(event) => *event,
            other => panic!("{other:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::compare::sample::{PORTS, event, rule};
    use serde_json::{Value, json};

    fn truth(by: By) -> Truth {
        Truth {
            legacy: false,
            family: "inet",
            table: "t".into(),
            chain: "in".into(),
            by,
            key: Some(Key {
                src: [10, 1, 0, 1].into(),
                dst: [10, 1, 0, 2].into(),
                len: 60,
                id: Some(7),
                proto: Some(17),
                ports: Some(PORTS),
            }),
        }
    }

    fn rules() -> Rules {
        let place = |by| ("inet".to_owned(), "t".to_owned(), "in".to_owned(), by);
        let known = |number| Known {
            number,
            reject: false,
            engine: Engine::Nftables,
            needs_header: false,
        };
        [
            (place(By::Handle(4)), known(1)),
            (place(By::Handle(5)), known(2)),
            (place(By::Policy), known(0)),
        ]
        .into()
    }

    fn grades(truths: &[Truth], events: &[DropEvent]) -> Vec<Grade> {
        let answers = compare(truths, events, &rules(), &Cut::default());
        answers.iter().map(|a| a.grade).collect()
    }

    fn one(change: &Value) -> Grade {
        grades(&[truth(By::Handle(4))], &[event(change)])[0]
    }

    #[test]
    fn the_right_rule_is_right_and_anything_else_is_wrong() {
        assert_eq!(one(&json!({})), Grade::Right);
        let policy = json!({"family": "inet", "table": "t", "chain": "in", "rules": 2, "none_matched": null});
        for change in [
            json!({"rule": rule(5, 2)}),
            json!({"rule": rule(4, 2)}),
            json!({"rule": null, "policy": policy}),
            json!({"rule": null}),
            json!({"verdict": "reject"}),
            json!({"engine": "iptables-nft"}),
            json!({"count": 2}),
        ] {
            assert_eq!(one(&change), Grade::Wrong, "{change}");
        }
    }

    #[test]
    fn several_are_ambiguous_if_the_right_one_is_among_them() {
        let evidence = |candidates: &[Value]| {
            json!({"rule": null, "evidence": {"source": "evaluator", "confidence": "ambiguous",
                   "candidates": candidates}})
        };
        let (right, other) = (json!({"rule": rule(4, 1)}), json!({"rule": rule(5, 2)}));
        assert_eq!(one(&evidence(&[other.clone(), right])), Grade::Ambiguous);
        assert_eq!(one(&evidence(&[other])), Grade::Wrong);
    }

    #[test]
    fn candidates_of_what_is_not_known_must_have_the_right_one() {
        let evidence = |candidates: &[Value]| {
            json!({"rule": null, "evidence": {"source": "evaluator", "confidence": "unknown",
                   "candidates": candidates}})
        };
        let (right, other) = (json!({"rule": rule(4, 1)}), json!({"rule": rule(5, 2)}));
        assert_eq!(one(&evidence(&[other.clone(), right])), Grade::Unknown);
        assert_eq!(one(&evidence(&[other])), Grade::Wrong);
        assert_eq!(one(&evidence(&[])), Grade::Unknown);
    }

    #[test]
    fn nothing_named_is_unknown_but_not_in_another_engine() {
        let evidence = json!({"source": "engine", "confidence": "engine", "candidates": []});
        let nothing = json!({"rule": null, "evidence": evidence});
        assert_eq!(one(&nothing), Grade::Unknown);
        let other = json!({"rule": null, "engine": "other", "evidence": evidence});
        assert_eq!(one(&other), Grade::Wrong);
        // No rule did it, and that is what it says.
        assert_eq!(grades(&[], &[event(&other)]), [Grade::Right]);
        assert_eq!(grades(&[], &[event(&nothing)]), [Grade::Wrong]);
    }

    #[test]
    fn a_missing_and_an_invented_drop_are_wrong() {
        let another = json!({"packet": {"family": "ipv4", "proto": "udp", "src": "10.1.0.1",
            "sport": 1, "dst": "10.1.0.2", "dport": 2, "len": 60, "id": 8}});
        let got = grades(&[truth(By::Policy)], &[event(&another)]);
        assert_eq!(got, [Grade::Wrong, Grade::Wrong]);
    }

    #[test]
    fn packets_that_look_alike_are_told_apart_by_their_order() {
        let truths = [truth(By::Handle(4)), truth(By::Handle(5))];
        let events = [event(&json!({})), event(&json!({"rule": rule(5, 2)}))];
        assert_eq!(grades(&truths, &events), [Grade::Right, Grade::Right]);
        let [first, second] = events;
        let got = grades(&truths, &[second, first]);
        assert_eq!(got, [Grade::Wrong, Grade::Wrong]);
    }
}
