//! A packet's way through the chains of one hook, as the evaluator computes it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Engine, Family, RuleRef};

/// A base chain that the packet came to, with the rules that were tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    /// What runs it.
    pub engine: Engine,
    /// The table's family.
    pub family: Family,
    /// Table.
    pub table: Arc<str>,
    /// The base chain.
    pub chain: Arc<str>,
    /// Its priority on the hook; the lower comes first.
    pub priority: i32,
    /// The rules that matched or could not be decided, in order; with `-vv` also those that did not match.
    pub steps: Vec<Step>,
    /// How many rules were tried.
    pub tried: u32,
    /// What became of the packet here: `accept`, `drop`, `policy drop`, `not known`.
    pub verdict: Arc<str>,
}

/// A rule that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The rule.
    pub rule: Arc<RuleRef>,
    /// Whether it matched.
    #[serde(flatten)]
    pub result: StepResult,
}

/// What a rule said to the packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum StepResult {
    /// It matched.
    Matched {
        /// Its verdict (`jump sub`, `continue`).
        verdict: Arc<str>,
    },
    /// It did not match.
    Missed {
        /// The first condition that failed, in words.
        why: Arc<str>,
    },
    /// It cannot be known.
    Unknown {
        /// Why not.
        why: Arc<str>,
    },
}

/// The accepting rule that came nearest to matching.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NearestMiss {
    /// The rule.
    pub rule: Arc<RuleRef>,
    /// What failed, in words: `wanted iif eth0, packet came in on eth1`.
    pub misses: Vec<Arc<str>>,
}
