//! What is reported beside drops: losses, changes of rulesets, errors, and the account of the run.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Engine, NetnsRef, PolicyRef, RuleRef, rfc3339};

/// Drops happened that could not be shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// When it was noticed.
    #[serde(with = "rfc3339")]
    pub time: Timestamp,
    /// What lost them: `ring`; [`Lost::TRACE`], [`Lost::NFLOG`]: not drops, but what the kernel told of them.
    pub source: Arc<str>,
    /// How many since the last report.
    pub count: u64,
}

impl Lost {
    /// [`Lost::source`] of messages of the kernel's trace: their drops are shown, without it.
    pub const TRACE: &str = "trace";
    /// [`Lost::source`] of logged packets: their drops are shown, without their log.
    pub const NFLOG: &str = "nflog";
}

/// A ruleset was replaced or edited.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RulesetChange {
    /// When the notification arrived.
    #[serde(with = "rfc3339")]
    pub time: Timestamp,
    /// Where.
    pub netns: NetnsRef,
    /// The generation that it made.
    pub generation: u32,
    /// Who did it.
    pub by: Option<ChangedBy>,
}

/// The process that changed a ruleset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedBy {
    /// Process id.
    pub pid: u32,
    /// Command name.
    pub comm: Arc<str>,
}

/// The account of the run. `seen == shown + filtered + aggregated + lost`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// When the run ended.
    #[serde(with = "rfc3339")]
    pub time: Timestamp,
    /// Drops in the watched namespaces, whatever the reason.
    pub seen: u64,
    /// Printed.
    pub shown: u64,
    /// Not asked for: did not match the filter, or matched but for another `reason`; those stand
    /// in `other` too.
    pub filtered: u64,
    /// Stood for by a shown event whose `count` is above 1.
    pub aggregated: u64,
    /// Could not be shown.
    pub lost: u64,
    /// Of the filtered: matched all but the reason, by reason (`NO_SOCKET`).
    pub other: BTreeMap<Arc<str>, u64>,
    /// Of the shown: the evaluator would have named another rule than the kernel did. Each is a bug in fwtrace.
    #[serde(default)]
    pub disagreed: u64,
    /// Shown drops by what did them, most first.
    pub rules: Vec<RuleCount>,
    /// With `-w`: what was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written: Option<Written>,
    /// What conntrack has counted meanwhile, where it was in use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conntrack: Vec<ConntrackCount>,
    /// Packets that rules logged over NFLOG; absent if no group was listened to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logged: Option<Logged>,
}

/// What the files of a run hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// As `-w` named it.
    pub file: Arc<str>,
    /// Packets in it, or in all files of the run.
    pub packets: u64,
    /// Shown drops whose packet could not be written.
    pub missing: u64,
}

/// What conntrack has counted in a network namespace during the run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConntrackCount {
    /// Where.
    pub netns: NetnsRef,
    /// Connections at the end.
    pub entries: u32,
    /// Most connections that were seen; it is looked once a second.
    pub peak: u32,
    /// `net.netfilter.nf_conntrack_max`; absent if this kernel does not tell it over ctnetlink.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
    /// By how much the counters of `conntrack -S` have moved, on all processors together; those that have not are left out.
    pub moved: BTreeMap<Arc<str>, u64>,
}

/// What became of packets that were logged over NFLOG. `received == joined + passed + filtered + unknown`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logged {
    /// Logs that came.
    pub received: u64,
    /// Stand with a drop.
    pub joined: u64,
    /// No drop came, of the reasons that are asked for: accepted, as a rule.
    pub passed: u64,
    /// No drop came, and the packet does not match the filter.
    pub filtered: u64,
    /// Whether a drop came is not known: no IP packet, or too many waited.
    pub unknown: u64,
    /// Logs that a drop must have, by the rules it passed, and that did not come in time.
    pub missing: u64,
    /// Logs that were lost between the kernel and fwtrace, by their numbers.
    pub lost: u64,
    /// There was no other source: drops are what was computed from the logs, and the summary counts logged packets.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub only: bool,
}

/// How many drops a rule, a policy or an engine did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleCount {
    /// Where.
    pub netns: NetnsRef,
    /// The engine.
    pub engine: Engine,
    /// The rule; `null` if it was a policy or is not known.
    pub rule: Option<Arc<RuleRef>>,
    /// The base chain whose policy it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Arc<PolicyRef>>,
    /// How many.
    pub count: u64,
}

/// Something went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorEvent {
    /// When.
    #[serde(with = "rfc3339")]
    pub time: Timestamp,
    /// Cause and next step, as on stderr.
    pub message: String,
}
