//! The ends that a walk can have, and what is left of them when it is known that the packet was dropped.

use super::field::Reason;

/// A table of a [`super::program::Program`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TableId {
    /// Index into [`crate::ruleset::model::Ruleset::tables`].
    Nft(u32),
    /// Index into the legacy tables that the program was made of.
    Legacy(u32),
}

/// A chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChainId {
    /// Its table.
    pub table: TableId,
    /// Its index in the table's list.
    pub chain: u32,
}

/// A rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleId {
    /// Its chain.
    pub chain: ChainId,
    /// Its index in the chain's list.
    pub rule: u32,
}

/// Who decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Decision {
    /// This rule.
    Rule(RuleId),
    /// The policy of this base chain.
    Policy(ChainId),
    /// Every base chain of the hook let it pass.
    Passed,
}

/// What becomes of the packet at this hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fate {
    /// It goes on.
    Accept,
    /// It is dropped.
    Drop,
    /// It is dropped and its sender is told.
    Reject,
    /// It goes to user space, to this queue; with `bypass` it goes on if nobody listens there.
    Queue {
        /// The first queue of the range.
        number: u16,
        /// `NFT_QUEUE_FLAG_BYPASS`.
        bypass: bool,
    },
    /// The kernel takes it over: `fwd`, `synproxy`.
    Stolen,
}

impl Fate {
    /// Whether the hook drops the packet.
    pub fn is_drop(self) -> bool {
        matches!(self, Self::Drop | Self::Reject)
    }
}

/// One end that the walk can have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Who decided.
    pub decision: Decision,
    /// The base chain that the packet was in then; `None` if it passed all.
    pub base: Option<ChainId>,
    /// What becomes of the packet.
    pub fate: Fate,
    /// What this end rests on beside what is known; empty: nothing.
    pub assumed: Vec<Reason>,
}

/// Every end that the walk can have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// In the order they were found; no two of the same decision and fate.
    pub ends: Vec<End>,
    /// There are more than could be looked at, or the walk did not end: nothing is known for sure.
    pub incomplete: Option<Reason>,
}

/// Which engine a drop is known to come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EngineKind {
    /// nf_tables: nft's rules and iptables-nft's.
    Nftables,
    /// ip_tables, ip6_tables.
    Legacy,
}

/// What is known of a drop beside the packet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Known {
    /// The engine.
    pub engine: Option<EngineKind>,
    /// Whether a rule (or a policy) dropped it.
    pub by_rule: Option<bool>,
    /// The base chain that it was in.
    pub base: Option<ChainId>,
    /// The rule or policy itself.
    pub decision: Option<Decision>,
}

impl Known {
    fn allows(&self, end: &End) -> bool {
        let table = match end.decision {
            Decision::Rule(rule) => rule.chain.table,
            Decision::Policy(chain) => chain.table,
            Decision::Passed => return false,
        };
        let engine = match table {
            TableId::Nft(_) => EngineKind::Nftables,
            TableId::Legacy(_) => EngineKind::Legacy,
        };
        let by_rule = matches!(end.decision, Decision::Rule(_));
        end.fate.is_drop()
            && self.engine.is_none_or(|known| known == engine)
            && self.by_rule.is_none_or(|known| known == by_rule)
            && self.base.is_none_or(|known| Some(known) == end.base)
            && self.decision.is_none_or(|known| known == end.decision)
    }
}

impl Outcome {
    /// What is left of the ends when it is known that the hook dropped the packet.
    pub fn answer(&self, known: &Known) -> Answer<'_> {
        if let Some(reason) = &self.incomplete {
            return Answer::Unknown(reason.clone());
        }
        let ends: Vec<&End> = self.ends.iter().filter(|end| known.allows(end)).collect();
        match ends[..] {
            [end] => Answer::Computed(end),
            [] => Answer::Unknown(Reason::missing(
                "by what is known of the packet and the rules, none of them drops it",
            )),
            _ => Answer::Ambiguous(ends),
        }
    }
}

/// What the evaluator says about a drop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer<'a> {
    /// One end is left.
    Computed(&'a End),
    /// More than one is; each is possible.
    Ambiguous(Vec<&'a End>),
    /// None can be named.
    Unknown(Reason),
}

/// A condition that did not hold, in words.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Words {
    /// What was compared: `tcp dport`, `iif`, `ct state`.
    pub subject: String,
    /// What the rule wanted: `8080`, `!= eth0`, `{ 22, 80 }`.
    pub wanted: String,
    /// What the packet has: `80`; empty if it has no such thing.
    pub found: String,
}

impl std::fmt::Display for Words {
    /// `wanted tcp dport 8080, packet has 80`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            subject,
            wanted,
            found,
        } = self;
        write!(f, "wanted {subject}")?;
        if !wanted.is_empty() {
            write!(f, " {wanted}")?;
        }
        match (subject.as_str(), found.as_str()) {
            (_, "") => write!(f, ", packet has none"),
            ("iif" | "iifname", name) => write!(f, ", packet came in on {name}"),
            ("oif" | "oifname", name) => write!(f, ", packet goes out on {name}"),
            (
                "ct state" | "meta l4proto" | "meta nfproto" | "ip protocol" | "ip6 nexthdr",
                found,
            ) => {
                write!(f, ", packet is {found}")
            }
            (_, found) => write!(f, ", packet has {found}"),
        }
    }
}
