//! Whether an answer may be one of several: fwtrace says what it depends on, and the case must have such a thing.

use fwtrace::event::{DoubtKind, EvidenceSource};

use crate::oracle::case::Case;
use crate::oracle::compare::{Answer, Grade};

/// What an ambiguous answer depends on: the first of these kinds that it names.
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

/// What an answer depends on; `None`: it is not ambiguous.
pub fn of(answer: &Answer) -> Option<Doubt> {
    if answer.grade != Grade::Ambiguous {
        return None;
    }
    if answer.source != Some(EvidenceSource::Evaluator) {
        return Some(Doubt::Counters);
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
    match of(answer) {
        None | Some(Doubt::Counters) => false,
        // The order of chains is read from the kernel, and all that the rules and packets of the harness have can be known.
        Some(Doubt::Unsaid | Doubt::Of(DoubtKind::Order | DoubtKind::Missing)) => true,
        // The second at which a rule ran is a state, too.
        Some(Doubt::Of(DoubtKind::State)) => !case.stateful && !has(case, &TIME),
        Some(Doubt::Of(DoubtKind::Rewritten)) => !case.stateful,
    }
}

/// Rules that ask for the time.
const TIME: [&str; 4] = ["-m time", "meta time", "meta day", "meta hour"];

/// Whether a rule has one of these matches.
fn has(case: &Case, matches: &[&str]) -> bool {
    let mut texts = case.steps.iter().map(|step| &step.text);
    texts.any(|text| matches.iter().any(|one| text.contains(one)))
}
