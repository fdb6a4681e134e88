//! From the counters that moved to rules of iptables-legacy.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use fwtrace_abi::{
    LEGACY_ALONE, LEGACY_AMBIGUOUS, LEGACY_EXACT, LEGACY_HOOKED, LEGACY_NONE, LEGACY_REPLACED,
    LEGACY_UNPRIMED, LegacyCandidate, Record, UNKNOWN,
};

use super::Place;
use crate::{
    event::{self, Candidate, Confidence, EvidenceSource, Family, PolicyRef, RuleRef},
    ruleset::render::Names,
    xtables::{
        self,
        legacy::{Chain, Jump, Rule, Table},
        matches::Match,
        save,
        targets::Target,
    },
};

/// Primed tables that are remembered: records of tables that have been replaced may be on their way.
const REMEMBERED: usize = 4096;

/// A table as it was when its counters' first image was taken.
#[derive(Debug)]
pub(crate) struct Primed {
    /// [`Place::epoch`] of its namespace.
    pub(crate) epoch: u64,
    /// The generation that it appeared in.
    pub(crate) generation: u32,
    /// The table.
    pub(crate) table: Arc<Table>,
    /// Where each of its entries begins.
    pub(crate) offsets: Vec<u32>,
}

/// What the ids in records mean.
#[derive(Debug, Default)]
pub(crate) struct LegacyRules {
    primed: HashMap<u32, Primed>,
    order: VecDeque<u32>,
    /// Those that have dropped something, by table and entry.
    known: HashMap<(u32, u32, u8), Known>,
}

/// What the BPF programs knew of the tables on a drop's hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Staleness {
    /// All there is to know.
    Known,
    /// Nothing of a table that is there. It may have no rule that drops.
    Unknown,
    /// One is another by now.
    Stale,
}

/// A rule or a policy.
#[derive(Clone, Debug)]
struct Known {
    what: Candidate,
    /// It answers the sender.
    reject: bool,
}

/// What the counters say about a drop.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) rule: Option<Arc<RuleRef>>,
    pub(super) policy: Option<Arc<PolicyRef>>,
    pub(super) reject: bool,
    /// `None`: only that it was iptables-legacy.
    pub(super) evidence: Option<event::Evidence>,
}

impl LegacyRules {
    /// Takes note of a table.
    pub(crate) fn add(&mut self, id: u32, primed: Primed) {
        self.primed.insert(id, primed);
        self.order.push_back(id);
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.primed.remove(&oldest);
            self.known.retain(|(id, ..), _| *id != oldest);
        }
    }

    /// Whether the BPF programs knew the tables that the drop can have been by.
    pub(crate) fn staleness(record: &Record) -> Staleness {
        let evidence = &record.legacy;
        if evidence.flags & (LEGACY_REPLACED | LEGACY_UNPRIMED) != 0 {
            Staleness::Stale
        } else if evidence.kind == LEGACY_NONE && evidence.flags & LEGACY_HOOKED != 0 {
            Staleness::Unknown
        } else {
            Staleness::Known
        }
    }

    /// What the record's counters say; `None`: not that it was iptables-legacy.
    pub(super) fn tell(&mut self, record: &Record, place: &mut Place<'_>) -> Option<Told> {
        let evidence = &record.legacy;
        let unnamed = Told {
            rule: None,
            policy: None,
            reject: false,
            evidence: None,
        };
        let moved = match evidence.kind {
            LEGACY_EXACT => evidence.candidates.get(..1)?,
            // With more than there is room for, all of them is what it can have been.
            LEGACY_AMBIGUOUS => match evidence.candidates.get(..evidence.count as usize) {
                Some(moved) => moved,
                None => return Some(unnamed),
            },
            _ => return (evidence.flags & LEGACY_ALONE != 0).then_some(unnamed),
        };
        let known: Option<Vec<Known>> = moved
            .iter()
            .map(|candidate| self.known(*candidate, record, place))
            .collect();
        let Some(known) = known else {
            return Some(unnamed);
        };
        if evidence.kind == LEGACY_AMBIGUOUS {
            let candidates = known.into_iter().map(|known| known.what).collect();
            return Some(Told {
                evidence: Some(event::Evidence {
                    confidence: Confidence::Ambiguous,
                    candidates,
                    ..event::Evidence::exact(EvidenceSource::KernelCounters)
                }),
                ..unnamed
            });
        }
        let known = known.into_iter().next()?;
        let (rule, policy) = match known.what {
            Candidate::Rule(rule) => (Some(rule), None),
            Candidate::Policy(policy) => (None, Some(policy)),
        };
        Some(Told {
            rule,
            policy,
            reject: known.reject,
            evidence: Some(event::Evidence::exact(EvidenceSource::KernelCounters)),
        })
    }

    /// The rule, if its table was the one that is known at the time of the drop.
    fn known(
        &mut self,
        candidate: LegacyCandidate,
        record: &Record,
        place: &mut Place<'_>,
    ) -> Option<Known> {
        let primed = self.primed.get(&candidate.id)?;
        if primed.epoch != place.epoch || !was_in_force(primed, record.time, place) {
            return None;
        }
        let key = (candidate.id, candidate.entry, record.hook);
        if let Some(known) = self.known.get(&key) {
            return Some(known.clone());
        }
        let offset = *primed.offsets.get(candidate.entry as usize)?;
        let known = look_up(&primed.table, offset, record.hook, place.names)?;
        self.known.insert(key, known.clone());
        Some(known)
    }
}

/// Whether the table is known to have been in force at `time`. It may have been replaced since it was
/// read last, by one that the kernel has put into the same place.
fn was_in_force(primed: &Primed, time: u64, place: &mut Place<'_>) -> bool {
    let Some(tables) = place.legacy.as_deref_mut() else {
        return false;
    };
    let (family, name) = (primed.table.family, &primed.table.name);
    let mut found = tables.at(family, name, time);
    if found.as_ref().is_some_and(|found| !found.certain) {
        if let Err(error) = tables.refresh() {
            log::warn!("{error}");
            return false;
        }
        found = tables.at(family, name, time);
    }
    found.is_some_and(|found| found.certain && found.generation == primed.generation)
}

/// The rule or policy whose entry is at `offset`.
fn look_up(table: &Table, offset: u32, hook: u8, names: &Names) -> Option<Known> {
    let (index, rule) = table.at_offset(offset)?;
    let chain = table.chains.get(index)?;
    let Some(rule) = rule else {
        return Some(Known {
            what: Candidate::Policy(Arc::new(policy_reference(table, chain))),
            reject: false,
        });
    };
    let rule = chain.rules.get(rule)?;
    let base = match &chain.base {
        Some(_) => Some(chain),
        None if hook != UNKNOWN => table.on_hook(hook),
        None => None,
    };
    Some(Known {
        what: Candidate::Rule(Arc::new(reference(table, chain, rule, base, names))),
        reject: is_reject(&rule.jump),
    })
}

/// A rule of a legacy table, as events name it.
pub(super) fn reference(
    table: &Table,
    chain: &Chain,
    rule: &Rule,
    base: Option<&Chain>,
    names: &Names,
) -> RuleRef {
    let comment = rule.matches.iter().find_map(|found| match found {
        Match::Comment(comment) => Some(comment.as_str().into()),
        _ => None,
    });
    RuleRef {
        family: family(table.family),
        table: table.name.as_str().into(),
        chain: chain.name.as_str().into(),
        base_chain: base.map(|base| base.name.as_str().into()),
        number: Some(rule.number),
        handle: None,
        text: Some(save::legacy_rule(table, chain, rule, names).into()),
        comment,
        gone: false,
    }
}

/// A built-in chain of a legacy table whose policy decided.
pub(super) fn policy_reference(table: &Table, chain: &Chain) -> PolicyRef {
    PolicyRef {
        family: family(table.family),
        table: table.name.as_str().into(),
        chain: chain.name.as_str().into(),
        rules: u32::try_from(chain.rules.len()).ok(),
        none_matched: none_matched(chain),
    }
}

pub(super) fn family(family: xtables::Family) -> Family {
    match family {
        xtables::Family::V4 => Family::Ip,
        xtables::Family::V6 => Family::Ip6,
    }
}

/// True if every rule of the chain would have decided had it matched; otherwise nobody knows.
fn none_matched(chain: &Chain) -> Option<bool> {
    let decides = |rule: &Rule| match &rule.jump {
        Jump::Accept | Jump::Drop | Jump::Queue => true,
        jump @ Jump::Target(_) => is_reject(jump),
        _ => false,
    };
    chain.rules.iter().all(decides).then_some(true)
}

/// Whether the sender is told.
fn is_reject(jump: &Jump) -> bool {
    match jump {
        Jump::Target(Target::Reject(_)) => true,
        Jump::Target(Target::Unknown { name, .. }) => name == "REJECT",
        _ => false,
    }
}
