//! Whether an answer may be one of several: fwtrace says what it depends on, and the case must have such a thing.

use fwtrace::event::{DoubtKind, EvidenceSource};

use crate::oracle::case::Case;
use crate::oracle::compare::{Answer, Grade};
use crate::oracle::cut::Cut;

/// An IP packet up to this long is captured whole, with any link header.
const CAPTURED: u32 = 100;

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
        // The order of chains is read from the kernel.
        Some(Doubt::Unsaid | Doubt::Of(DoubtKind::Order)) => true,
        Some(Doubt::Of(DoubtKind::State | DoubtKind::Rewritten)) => !case.stateful,
        Some(Doubt::Of(DoubtKind::Missing)) => {
            let whole = !is_cut(case, answer) && !is_overlong(case, answer);
            whole && !has(case, &UNKNOWABLE)
        }
    }
}

/// What rules ask for that nobody outside the kernel can know: its clock at the packet, and the socket of a packet.
const UNKNOWABLE: [&str; 5] = [
    "-m time",
    "-m owner",
    "meta skuid",
    "meta skgid",
    "meta cgroup",
];

/// Matches that read the headers of IPv6 to their ends: what kernels do where the packet ends before differs.
const HEADERS: [&str; 5] = ["-m ipv6header", "-m hbh", "-m dst", "-m rt", "-m ah"];

/// Whether a rule has one of these matches.
fn has(case: &Case, matches: &[&str]) -> bool {
    let mut texts = case.steps.iter().map(|step| &step.text);
    texts.any(|text| matches.iter().any(|one| text.contains(one)))
}

/// Whether a rule reads a header of IPv6 that is cut short.
fn is_overlong(case: &Case, answer: &Answer) -> bool {
    let cut = || Cut::of(&case.packets);
    has(case, &HEADERS) && answer.event.as_ref().is_some_and(|e| cut().has(e))
}

/// Whether a rule searches in bytes that were not captured.
fn is_cut(case: &Case, answer: &Answer) -> bool {
    let searched = has(case, &["-m string"]);
    let length = answer.event.as_ref().and_then(|e| e.packet.len);
    searched && length.is_none_or(|length| length > CAPTURED)
}
