//! The explanation: phases, steps, the nearest miss.

use super::{
    field::Reason,
    outcome::{ChainId, End, RuleId, Words},
};

/// What a rule did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepResult {
    /// All of it held; its verdict in the engine's words (`accept`, `jump sub`, `continue`).
    Matched(String),
    /// This condition did not hold.
    Missed(Words),
    /// It cannot be told; `Some`: how the walk that is shown went on.
    Unknown(Reason),
}

/// A rule that was evaluated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The rule.
    pub rule: RuleId,
    /// Chains that called this one.
    pub depth: u32,
    /// What it did.
    pub result: StepResult,
}

/// A base chain that was walked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Phase {
    /// The base chain.
    pub base: ChainId,
    /// Its priority.
    pub priority: i32,
    /// Every rule evaluated, in order, jumped-to chains included.
    pub steps: Vec<Step>,
    /// The end of the phase in words: `accept`, `drop`, `policy drop`, ...
    pub end: String,
}

/// An accepting rule that did not match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Miss {
    /// The rule.
    pub rule: RuleId,
    /// Every way in which it failed.
    pub failed: Vec<Words>,
}

/// The way of a packet through the chains of a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Walk {
    /// Base chains in the order that they were walked.
    pub phases: Vec<Phase>,
    /// The end that this walk came to.
    pub end: End,
    /// The accepting rule that failed in the fewest ways; none where the packet was accepted, or where there is no such rule.
    pub nearest: Option<Miss>,
}
