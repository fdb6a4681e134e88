//! The one public event type, version 1: what `--json` prints, one object a line.
//!
//! Keys may be added, never renamed. A key that is absent does not apply; `null` means not known.
//! So an `Option` field that is left out when `None` says "does not apply", and one that is
//! written as `null` says "not known". Strings that many events share are [`Arc`]s: a drop in the
//! steady state copies pointers, not text.

mod account;
mod conntrack;
mod evidence;
mod walk;

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use self::account::{
    ChangedBy, ConntrackCount, ErrorEvent, Logged, Lost, RuleCount, RulesetChange, Summary, Written,
};
pub use self::conntrack::{Conntrack, ConntrackCounters, Counted, CtState, Nat, Tuple};
pub use self::evidence::{
    Candidate, Confidence, DecidedBy, Doubt, DoubtKind, Evidence, EvidenceSource,
};
pub use self::walk::{NearestMiss, Phase, Step, StepResult};
use crate::packet::Packet;

/// Version of the JSON contract.
pub const VERSION: u32 = 1;

/// Everything that fwtrace reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Event {
    /// A packet was dropped or rejected.
    Drop(Box<DropEvent>),
    /// A rule logged a packet over NFLOG that was not dropped, or of which that is not known.
    Log(Box<DropEvent>),
    /// A packet of a capture that does not say what became of it.
    Packet(Box<PacketEvent>),
    /// Drops happened that could not be shown.
    Lost(Lost),
    /// A ruleset was replaced or edited.
    RulesetChange(RulesetChange),
    /// The account of the run, at its end.
    Summary(Summary),
    /// Something went wrong; the run goes on unless it is the last line.
    Error(ErrorEvent),
}

/// A line of JSON: the version, then the event's own keys.
#[derive(Serialize, Deserialize)]
struct Line<E> {
    v: u32,
    #[serde(flatten)]
    event: E,
}

/// A line is not an event of this version.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// Not the JSON of an event.
    #[error("not an event: {0}")]
    Json(#[from] serde_json::Error),
    /// Another version of the contract.
    #[error("version {0} of the JSON contract, this fwtrace reads version {VERSION}")]
    Version(u32),
}

impl Event {
    /// Writes the event as one line of JSON, newline included.
    ///
    /// # Errors
    /// What the writer reports.
    pub fn write_json<W: std::io::Write>(&self, mut out: W) -> std::io::Result<()> {
        let line = Line {
            v: VERSION,
            event: self,
        };
        serde_json::to_writer(&mut out, &line)?;
        out.write_all(b"\n")
    }

    /// A logged packet of which it is known that it was not dropped where it was logged; if that is not what the rules make of it, what
    /// became of it is not known.
    pub(crate) fn not_dropped(self) -> Self {
        let Self::Drop(mut event) = self else {
            return self;
        };
        event.verdict = Verdict::Unknown;
        (event.rule, event.policy) = (None, None);
        event.evidence.confidence = Confidence::Unknown;
        event.evidence.candidates.clear();
        event.evidence.doubts.clear();
        Self::Log(event)
    }

    /// Reads an event from its line of JSON; keys that this version does not know are skipped.
    ///
    /// # Errors
    /// The line is not an event, or an event of another version.
    pub fn from_json(line: &str) -> Result<Self, ParseError> {
        /// Only the version, so that another version is named rather than called malformed.
        #[derive(Deserialize)]
        struct Versioned {
            v: u32,
        }
        let Versioned { v } = serde_json::from_str(line)?;
        if v != VERSION {
            return Err(ParseError::Version(v));
        }
        Ok(serde_json::from_str::<Line<Self>>(line)?.event)
    }
}

/// A packet was dropped or rejected; or logged, see [`Event::Log`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropEvent {
    /// When, wall clock.
    #[serde(with = "rfc3339")]
    pub time: Timestamp,
    /// Dropped silently or with an answer. Of logged packets: `accept` by the hook that logged it, or not known.
    #[serde(with = "verdict")]
    pub verdict: Verdict,
    /// Where.
    pub netns: NetnsRef,
    /// What dropped it.
    pub engine: Engine,
    /// The packet's family as a rule would call it.
    pub family: Option<Family>,
    /// The netfilter hook.
    pub hook: Option<Hook>,
    /// `enum skb_drop_reason` without its prefix: `NETFILTER_DROP`.
    pub reason: Option<Arc<str>>,
    /// Interface the packet came in on.
    pub iif: Option<Arc<str>>,
    /// Interface the packet was going out of.
    pub oif: Option<Arc<str>>,
    /// `meta mark`; 0, no mark, is left out.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub mark: u32,
    /// The packet.
    pub packet: Packet,
    /// The rule; `null` if it was a policy or is not known.
    pub rule: Option<Arc<RuleRef>>,
    /// The base chain whose policy it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Arc<PolicyRef>>,
    /// The rules of this hook that the packet matched before the one that decided, in order. From a trace: those of earlier hooks
    /// too, as far as it goes back, and the one that decided last.
    pub path: Option<Arc<[PathStep]>>,
    /// The accepting rule that came nearest to matching, if one was tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nearest_miss: Option<Arc<NearestMiss>>,
    /// The way through the chains of this hook; with `-v` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub walk: Option<Arc<[Phase]>>,
    /// How the rule was found and how sure that is.
    pub evidence: Evidence,
    /// The rules that logged the packet over NFLOG on its way, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<LogRef>,
    /// In words, what explains a drop that no rule made: a sysctl, a missing socket or route, a full table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<Arc<str>>,
    /// Conntrack's view of the packet at the moment of the drop.
    pub conntrack: Option<Conntrack>,
    /// The sender, if the drop happened in its context (OUTPUT).
    pub process: Option<Process>,
    /// How many packets this event stands for.
    pub count: u64,
}

/// A packet of a capture that fwtrace did not write: nothing says that it was dropped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketEvent {
    /// When it was captured, wall clock.
    #[serde(with = "rfc3339")]
    pub time: Timestamp,
    /// Not known: `null`.
    pub verdict: Option<Verdict>,
    /// Not known: `null`.
    pub rule: Option<Arc<RuleRef>>,
    /// Where it was captured; `null` if the capture does not say.
    pub interface: Option<Arc<str>>,
    /// The packet.
    pub packet: Packet,
}

/// What became of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Dropped silently.
    Drop,
    /// Dropped, and the sender was told.
    Reject,
    /// The hook let it pass; what later hooks did is not known.
    Accept,
    /// Not known: `null`.
    Unknown,
}

impl Verdict {
    /// The word of the JSON contract.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::Reject => "reject",
            Self::Accept => "accept",
            Self::Unknown => "unknown",
        }
    }
}

/// [`Verdict`], `null` where it is not known.
mod verdict {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Verdict;

    pub(super) fn serialize<S: Serializer>(v: &Verdict, s: S) -> Result<S::Ok, S::Error> {
        let known = (*v != Verdict::Unknown).then_some(v);
        known.serialize(s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Verdict, D::Error> {
        Ok(Option::deserialize(d)?.unwrap_or(Verdict::Unknown))
    }
}

/// What dropped the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// nf_tables, managed by nft or its library.
    Nftables,
    /// nf_tables, managed by iptables-nft and its siblings.
    IptablesNft,
    /// x_tables.
    IptablesLegacy,
    /// Conntrack itself.
    Conntrack,
    /// A BPF program: tc, XDP, cgroup or netfilter link.
    Bpf,
    /// Anything else: no socket, reverse path filter, checksum ...
    Other,
}

impl Engine {
    /// The word of the JSON contract.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::IptablesNft => "iptables-nft",
            Self::IptablesLegacy => "iptables-legacy",
            Self::Conntrack => "conntrack",
            Self::Bpf => "bpf",
            Self::Other => "other",
        }
    }
}

/// A family, by the word that a rule uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
    /// IPv4 and IPv6; of tables only.
    Inet,
    /// ARP.
    Arp,
    /// Bridged frames.
    Bridge,
    /// A device's ingress or egress.
    Netdev,
}

impl Family {
    /// The word that nft uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Inet => "inet",
            Self::Arp => "arp",
            Self::Bridge => "bridge",
            Self::Netdev => "netdev",
        }
    }
}

/// A netfilter hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hook {
    /// Before routing.
    Prerouting,
    /// To this host.
    Input,
    /// Through this host.
    Forward,
    /// From this host.
    Output,
    /// After routing.
    Postrouting,
    /// A device's receive side, before everything else.
    Ingress,
    /// A device's transmit side, after everything else.
    Egress,
}

impl Hook {
    /// The word that nft uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// A network namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NetnsRef {
    /// Inode of its nsfs file, as `ls -iL /proc/PID/ns/net` shows it.
    pub inode: u32,
    /// Its name, if it has one that could be found.
    pub name: Option<Arc<str>>,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RuleRef {
    /// The table's family.
    pub family: Family,
    /// Table.
    pub table: Arc<str>,
    /// The chain that holds the rule.
    pub chain: Arc<str>,
    /// The base chain that the packet entered through.
    pub base_chain: Option<Arc<str>>,
    /// 1-based position in the chain, in the ruleset that was in force.
    pub number: Option<u32>,
    /// The kernel's handle; legacy iptables has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handle: Option<u64>,
    /// The rule in its manager's syntax; `null` if it could not be read.
    pub text: Option<Arc<str>>,
    /// The rule's comment, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<Arc<str>>,
    /// The rule is no longer in the ruleset and was not seen while it was.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gone: bool,
}

/// A packet was logged to an NFLOG group.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LogRef {
    /// The group.
    pub group: u16,
    /// The rule's prefix, as it stands there, trailing space included; absent if it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<Arc<str>>,
    /// The rule that logged it; `null` if several rules log like that and nothing tells which.
    pub rule: Option<Arc<RuleRef>>,
}

/// A base chain whose policy decided.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PolicyRef {
    /// The table's family.
    pub family: Family,
    /// Table.
    pub table: Arc<str>,
    /// The base chain.
    pub chain: Arc<str>,
    /// How many rules it has.
    pub rules: Option<u32>,
    /// Whether no rule of the chain matched; false: some did, and none of them decided.
    pub none_matched: Option<bool>,
}

/// A rule that the packet passed on its way, with its verdict (`jump sub`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathStep {
    /// Table.
    pub table: Arc<str>,
    /// Chain.
    pub chain: Arc<str>,
    /// 1-based position in the chain.
    pub number: Option<u32>,
    /// The kernel's handle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handle: Option<u64>,
    /// The rule's verdict.
    pub verdict: Arc<str>,
}

/// The process that sent the packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Command name, as `ps -o comm` shows it.
    pub comm: Arc<str>,
    /// User id.
    pub uid: Option<u32>,
}

impl DropEvent {
    /// Takes in why conntrack calls the packet invalid, if it does.
    pub fn invalid_for(&mut self, reason: Option<Arc<str>>) {
        if let Some(conntrack) = &mut self.conntrack
            && conntrack.state == CtState::Invalid
        {
            conntrack.invalid = reason;
        }
    }
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// Timestamps as RFC 3339 in UTC with nine digits of fraction.
mod rfc3339 {
    use jiff::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(t: &Timestamp, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&format_args!("{t:.9}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Timestamp, D::Error> {
        let text = std::borrow::Cow::<'_, str>::deserialize(d)?;
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
pub(crate) mod tests;
