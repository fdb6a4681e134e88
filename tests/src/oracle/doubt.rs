//! Whether an answer may be one of several: fwtrace says what it depends on, and the case must have such a thing.

use fwtrace::event::{DoubtKind, EvidenceSource};

use crate::oracle::case::Case;
use crate::oracle::compare::{Answer, Grade};

/// What an answer that is one of several depends on: the first of these kinds that it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// One of the kinds that fwtrace knows.
    Of(DoubtKind),
    /// It does not say, though the evaluator does.
    Unsaid,
    /// Counters: more than one had moved.
    Counters,
}

impl Doubt {
    /// In words, for the report.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Of(DoubtKind::State) => "state",
            Self::Of(DoubtKind::Rewritten) => "what rules rewrite",
            Self::Of(DoubtKind::Order) => "the order of chains with one priority",
            Self::Of(DoubtKind::Missing) => "what is not captured or not evaluated",
            Self::Unsaid => "nothing said",
            Self::Counters => "counters that moved at once",
        }
    }
}

/// What an answer depends on; `None`: it is not one of several.
pub fn of(answer: &Answer) -> Option<Doubt> {
    match (answer.grade, answer.source) {
        (Grade::Ambiguous | Grade::Unknown, Some(EvidenceSource::Evaluator)) => {}
        (Grade::Ambiguous, _) => return Some(Doubt::Counters),
        _ => return None,
    }
    let doubts = answer.event.iter().flat_map(|e| &e.evidence.doubts);
    let kinds: Vec<DoubtKind> = doubts.map(|doubt| doubt.kind).collect();
    let order = [
        DoubtKind::State,
        DoubtKind::Rewritten,
        DoubtKind::Order,
        DoubtKind::Missing,
    ];
    let first = order.into_iter().find(|kind| kinds.contains(kind));
    Some(first.map_or(Doubt::Unsaid, Doubt::Of))
}

/// Whether the case has nothing of the kind that the answer names.
pub fn is_unfounded(case: &Case, answer: &Answer) -> bool {
    match (of(answer), answer.grade) {
        (None | Some(Doubt::Counters), _) => false,
        // The order of chains is read from the kernel, and all that the rules and packets of the harness have can be known.
        (Some(Doubt::Unsaid | Doubt::Of(DoubtKind::Order | DoubtKind::Missing)), _) => true,
        // The second at which a rule ran is a state, too.
        (Some(Doubt::Of(DoubtKind::State)), Grade::Ambiguous) => {
            !case.stateful && !has(case, &TIME)
        }
        (Some(Doubt::Of(DoubtKind::Rewritten)), Grade::Unknown) => !case.stateful,
        // Only a state makes an answer ambiguous, and whatever depends on one is.
        (Some(Doubt::Of(DoubtKind::State | DoubtKind::Rewritten)), _) => true,
    }
}

/// Rules that ask for the time.
const TIME: [&str; 4] = ["-m time", "meta time", "meta day", "meta hour"];

/// Whether a rule has one of these matches.
fn has(case: &Case, matches: &[&str]) -> bool {
    let mut texts = case.steps.iter().map(|step| &step.text);
    texts.any(|text| matches.iter().any(|one| text.contains(one)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::compare::sample;
    use serde_json::json;

    fn case(stateful: bool) -> Case {
        let case =
            json!({"name": "", "stateful": stateful, "opening": [], "rulesets": [], "packets": []});
        Case::from_json(&case).unwrap()
    }

    fn unfounded(stateful: bool, grade: Grade, kinds: &[&str]) -> bool {
        let doubts = kinds.iter().map(|kind| json!({"kind": kind, "text": ""}));
        let evidence = json!({"source": "evaluator", "confidence": "unknown", "candidates": [],
            "doubts": doubts.collect::<Vec<_>>()});
        let event = sample::event(&json!({"rule": null, "evidence": evidence}));
        let answer = Answer {
            grade,
            engine: event.engine,
            source: Some(event.evidence.source),
            why: Vec::new(),
            truth: None,
            event: Some(event),
        };
        is_unfounded(&case(stateful), &answer)
    }

    #[test]
    fn a_state_makes_answers_ambiguous_and_what_rules_rewrite_unknown() {
        let (ambiguous, unknown) = (Grade::Ambiguous, Grade::Unknown);
        assert!(!unfounded(true, ambiguous, &["state"]));
        assert!(!unfounded(true, ambiguous, &["rewritten", "state"]));
        assert!(unfounded(false, ambiguous, &["state"]));
        assert!(unfounded(true, ambiguous, &["rewritten"]));
        assert!(!unfounded(true, unknown, &["rewritten"]));
        assert!(unfounded(false, unknown, &["rewritten"]));
        assert!(unfounded(true, unknown, &["state"]));
        for grade in [ambiguous, unknown] {
            for kinds in [&["order"][..], &["missing"], &[]] {
                assert!(unfounded(true, grade, kinds), "{grade:?} {kinds:?}");
            }
        }
    }
}
