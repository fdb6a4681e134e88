//! How a rule was found, and how sure that is.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{PolicyRef, RuleRef};

/// How the rule was found, and how sure that is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// How.
    pub source: EvidenceSource,
    /// How sure.
    pub confidence: Confidence,
    /// With [`Confidence::Ambiguous`], the rules that it can have been; with [`Confidence::Unknown`], if so much is known.
    pub candidates: Vec<Candidate>,
    /// With candidates of [`EvidenceSource::Evaluator`] and [`EvidenceSource::Nflog`], what is not known and decides which of them it was.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub doubts: Vec<Doubt>,
    /// The function that freed the packet, `symbol+0xoffset`, where the source is the engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<Arc<str>>,
    /// Whether a rule or a policy did it, where the source is the engine and that much is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided_by: Option<DecidedBy>,
    /// What the evaluator would have said, where the kernel says something else; empty: that nothing
    /// drops the packet. A disagreement is a bug in fwtrace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disagreement: Option<Vec<Candidate>>,
}

/// Something that is not known, and that the rule depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Doubt {
    /// Which kind of thing.
    pub kind: DoubtKind,
    /// In words: `how many tokens the limit has left`.
    pub text: Arc<str>,
}

/// Kinds of things that are not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DoubtKind {
    /// It depends on what other packets did or on chance: a limit, a quota, a set that rules fill, a
    /// random number.
    State,
    /// A rule of the same hook has changed it, and the packet shows only what it was in the end.
    Rewritten,
    /// Which of two chains with one priority comes first.
    Order,
    /// Information is missing that somebody could have: bytes that were not captured, an expression
    /// that is not understood.
    Missing,
}

impl DoubtKind {
    /// The word of the JSON contract.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Rewritten => "rewritten",
            Self::Order => "order",
            Self::Missing => "missing",
        }
    }
}

/// What in a chain drops a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DecidedBy {
    /// A rule.
    Rule,
    /// A base chain's policy.
    Policy,
}

impl DecidedBy {
    /// The word of the JSON contract.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rule => "rule",
            Self::Policy => "policy",
        }
    }
}

impl Evidence {
    /// The kernel named the rule.
    pub fn exact(source: EvidenceSource) -> Self {
        Self {
            source,
            confidence: Confidence::Exact,
            candidates: Vec::new(),
            doubts: Vec::new(),
            location: None,
            decided_by: None,
            disagreement: None,
        }
    }

    /// Only the engine is known, from the function that freed the packet.
    pub fn engine(location: Option<Arc<str>>, decided_by: Option<DecidedBy>) -> Self {
        Self {
            source: EvidenceSource::Engine,
            confidence: Confidence::Engine,
            candidates: Vec::new(),
            doubts: Vec::new(),
            location,
            decided_by,
            disagreement: None,
        }
    }
}

/// The rung of the ladder that found the rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EvidenceSource {
    /// The rule's pointer on the kernel's stack.
    KernelStack,
    /// The counter that moved.
    KernelCounters,
    /// A probe on the function that set the verdict.
    KernelProbe,
    /// nftrace or TRACE.
    Trace,
    /// Computed from the ruleset.
    Evaluator,
    /// The rule logged the packet.
    Nflog,
    /// The function that freed the packet.
    Engine,
}

impl EvidenceSource {
    /// The word of the JSON contract.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::KernelStack => "kernel-stack",
            Self::KernelCounters => "kernel-counters",
            Self::KernelProbe => "kernel-probe",
            Self::Trace => "trace",
            Self::Evaluator => "evaluator",
            Self::Nflog => "nflog",
            Self::Engine => "engine",
        }
    }
}

/// How sure an attribution is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Confidence {
    /// The kernel said so.
    Exact,
    /// Computed from the ruleset and the packet.
    Computed,
    /// One of the candidates, and what decides is no part of the packet or the ruleset: what other packets did, chance, the counters
    /// of iptables-legacy.
    Ambiguous,
    /// The engine only.
    Engine,
    /// Not known.
    Unknown,
}

impl Confidence {
    /// Of an answer that is one of several for these doubts: a state decides, or what the evaluator would have to know and does not.
    pub(crate) fn of_several(doubts: &[Doubt]) -> Self {
        match doubts.iter().any(|doubt| doubt.kind == DoubtKind::State) {
            true => Self::Ambiguous,
            false => Self::Unknown,
        }
    }

    /// The word of the JSON contract.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Computed => "computed",
            Self::Ambiguous => "ambiguous",
            Self::Engine => "engine",
            Self::Unknown => "unknown",
        }
    }
}

/// A rule or a policy that it can have been.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Candidate {
    /// A rule.
    Rule(Arc<RuleRef>),
    /// A base chain's policy.
    Policy(Arc<PolicyRef>),
}
