//! The kernel's word against fwtrace's.

use std::collections::HashMap;

use fwtrace::event::{
    Candidate, Confidence, DropEvent, Engine, EvidenceSource, PolicyRef, RuleRef, Verdict,
};

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
/// so packets that look alike are told apart by their order.
pub fn compare(truths: &[Truth], events: &[DropEvent], rules: &Rules) -> Vec<Answer> {
    let mut answers = Vec::new();
    let mut left: Vec<&DropEvent> = events.iter().collect();
    for truth in truths {
        let engine = known(rules, truth).map_or(Engine::Other, |k| k.engine);
        let place = left.iter().position(|event| is_of(truth, event));
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
        let (grade, why) = grade(truth, event, known(rules, truth));
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
        answers.push(Answer {
            grade: Grade::Wrong,
            engine: event.engine,
            source: Some(event.evidence.source),
            why: vec!["the kernel's trace has no such drop".into()],
            truth: None,
            event: Some(event.clone()),
        });
    }
    answers
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
fn key(event: &DropEvent) -> Option<Key> {
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

fn is_of(truth: &Truth, event: &DropEvent) -> bool {
    match (&truth.key, key(event)) {
        (Some(a), Some(b)) => a.is_like(&b),
        (None, None) => true,
        _ => false,
    }
}

/// Grades one answer.
fn grade(truth: &Truth, event: &DropEvent, known: Option<&Known>) -> (Grade, Vec<String>) {
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
            if event.verdict != verdict {
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
        Confidence::Ambiguous => {
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
            (
                if why.is_empty() {
                    Grade::Ambiguous
                } else {
                    Grade::Wrong
                },
                why,
            )
        }
        Confidence::Engine | Confidence::Unknown => (
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
