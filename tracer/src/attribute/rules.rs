//! From handles to rules: table, chain, number, text.

use std::{borrow::Cow, collections::HashMap, ffi::CStr, sync::Arc, time::Duration};

use fwtrace_abi::{NAME_MAX, RULE_POLICY, Record, RuleEvidence};
use nix::time::{ClockId, clock_gettime};

use super::Place;
use crate::{
    event::{Family, PolicyRef, RuleRef},
    ruleset::{
        history::Found,
        model::{self, Chain, Table},
        render::{self, Names},
    },
    xtables::save,
};

/// Cached rules; beyond that all are forgotten and rendered again.
const CAPACITY: usize = 16 * 1024;

/// What a rule or a policy is, for an event.
#[derive(Clone, Debug, Default)]
pub(super) struct Resolved {
    pub(super) rule: Option<Arc<RuleRef>>,
    pub(super) policy: Option<Arc<PolicyRef>>,
    /// The rule answers the sender.
    pub(super) reject: bool,
    /// Priority of the base chain.
    pub(super) priority: Option<i32>,
    /// iptables-nft made the table.
    pub(super) iptables: bool,
}

/// What a record says of its rule: handles are not used again, but a rule's place in its chain
/// changes, and `replace rule` puts another rule under the same handle, with the generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    epoch: u64,
    readings: u64,
    generation: u32,
    kind: u32,
    number: u32,
    rule: u64,
    chain: u64,
    table: u64,
    base: u64,
}

/// Rules that have dropped something, rendered once a generation and reading of it.
#[derive(Debug, Default)]
pub(super) struct RuleCache {
    known: HashMap<Key, Resolved>,
}

impl RuleCache {
    /// The rule or policy that the record names. Only what is certain is kept: the rest may still be
    /// read.
    pub(super) fn resolve(&mut self, record: &Record, place: &mut Place<'_>) -> Resolved {
        let evidence = &record.rule;
        let key = |place: &Place<'_>| Key {
            epoch: place.epoch,
            readings: place.rulesets.as_ref().map_or(0, |r| r.readings()),
            generation: record.generation,
            kind: evidence.kind,
            number: evidence.number,
            rule: evidence.rule_handle,
            chain: evidence.chain_handle,
            table: evidence.table_handle,
            base: evidence.base_chain_handle,
        };
        if let Some(known) = self.known.get(&key(place)) {
            return known.clone();
        }
        let found = place.rulesets.as_deref_mut().map(|rulesets| {
            let rule = (evidence.kind != RULE_POLICY).then_some(evidence.rule_handle);
            let generation = (record.generation != 0).then_some(record.generation);
            rulesets.resolve(
                generation,
                evidence.table_handle,
                evidence.chain_handle,
                rule,
            )
        });
        let gone = match found {
            Some(Ok(Some(mut found))) => {
                let doubtful = found
                    .replaced
                    .is_some_and(|heard| age(record) >= heard.elapsed());
                found.certain &= !doubtful;
                let named = is_named(&found, place.names);
                let resolved = if evidence.kind == RULE_POLICY {
                    known_policy(evidence, &found)
                } else {
                    known_rule(evidence, &found, place.names)
                };
                if let Some(resolved) = resolved {
                    // Without a generation nothing says when the rule changes; a doubt may clear, a name be learnt.
                    if record.generation != 0 && found.certain && named {
                        if self.known.len() >= CAPACITY {
                            self.known.clear();
                        }
                        self.known.insert(key(place), resolved.clone());
                    }
                    return resolved;
                }
                false
            }
            Some(Ok(None)) => true,
            Some(Err(error)) => {
                log::warn!("cannot read the ruleset of the drop: {error}");
                false
            }
            None => false,
        };
        unread(evidence, gone)
    }
}

/// Whether all that the rule names has a name.
fn is_named(found: &Found, names: &Names) -> bool {
    let table = found.ruleset.tables.get(found.table);
    let chain = table.and_then(|table| table.chains.get(found.chain));
    let rule = found.rule.and_then(|rule| chain?.rules.get(rule));
    let rule = table.zip(rule);
    !rule.is_some_and(|(table, rule)| save::lacks_set_name(table.family, rule, names))
}

/// How long ago the drop was.
fn age(record: &Record) -> Duration {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::MAX, Duration::from);
    now.saturating_sub(Duration::from_nanos(record.time))
}

fn known_rule(evidence: &RuleEvidence, found: &Found, names: &Names) -> Option<Resolved> {
    let table = found.ruleset.tables.get(found.table)?;
    let chain = table.chains.get(found.chain)?;
    let rule = chain.rules.get(found.rule?)?;
    let base = base_chain(evidence, table, chain);
    let mut named = reference(table, chain, rule, base, names);
    named.number = Some(evidence.number);
    if !found.certain {
        (named.text, named.comment) = (None, None);
    }
    Some(Resolved {
        rule: Some(Arc::new(named)),
        policy: None,
        reject: found.certain && rule.is_reject(),
        iptables: table.iptables,
        priority: base.and_then(|chain| Some(chain.base.as_ref()?.priority)),
    })
}

/// A rule of nf_tables, as events name it.
pub(crate) fn reference(
    table: &Table,
    chain: &Chain,
    rule: &model::Rule,
    base: Option<&Chain>,
    names: &Names,
) -> RuleRef {
    let options = render::Options {
        names,
        stateless: true,
        handles: false,
    };
    let iptables = table.iptables;
    let line = iptables.then(|| save::rule(table, chain, rule, names));
    let text = line.flatten();
    let text = text.unwrap_or_else(|| render::rule(table, rule, &options));
    RuleRef {
        family: family(table.family),
        table: table.name.as_str().into(),
        chain: chain.name.as_str().into(),
        base_chain: base.map(|chain| chain.name.as_str().into()),
        number: Some(rule.number),
        handle: Some(rule.handle),
        text: Some(text.into()),
        comment: save::comment(rule).map(Into::into),
        gone: false,
    }
}

/// The base chain by which a packet came to `chain`.
fn base_chain<'a>(
    evidence: &RuleEvidence,
    table: &'a Table,
    chain: &'a Chain,
) -> Option<&'a Chain> {
    if chain.base.is_some() {
        return Some(chain);
    }
    let mut chains = table.chains.iter();
    chains.find(|chain| chain.handle == evidence.base_chain_handle && chain.base.is_some())
}

fn known_policy(evidence: &RuleEvidence, found: &Found) -> Option<Resolved> {
    let table = found.ruleset.tables.get(found.table)?;
    let last = table.chains.get(found.chain)?;
    let chain = base_chain(evidence, table, last)?;
    // After a goto it is not the base chain that came to its end; after a return no chain did.
    let (rules, none_matched) = if last.base.is_some() && evidence.rule_handle == 0 {
        let none = none_matched(evidence, chain).filter(|_| found.certain);
        (Some(evidence.number), none)
    } else {
        let rules = u32::try_from(chain.rules.len()).ok();
        (rules.filter(|_| found.certain), Some(false))
    };
    Some(Resolved {
        priority: Some(chain.base.as_ref()?.priority),
        iptables: table.iptables,
        policy: Some(Arc::new(PolicyRef {
            family: family(table.family),
            table: table.name.as_str().into(),
            chain: chain.name.as_str().into(),
            rules,
            none_matched,
        })),
        ..Resolved::default()
    })
}

/// A base chain whose policy decided, as events name it.
pub(super) fn policy_reference(table: &Table, chain: &Chain) -> PolicyRef {
    PolicyRef {
        family: family(table.family),
        table: table.name.as_str().into(),
        chain: chain.name.as_str().into(),
        rules: u32::try_from(chain.rules.len()).ok(),
        none_matched: chain.rules.iter().all(model::Rule::decides).then_some(true),
    }
}

/// What the kernel side alone knows of a rule or policy that is in no ruleset we have read.
fn unread(evidence: &RuleEvidence, gone: bool) -> Resolved {
    let family = u8::try_from(evidence.family).map_or(Family::Inet, |f| family(f.into()));
    if evidence.kind == RULE_POLICY {
        // After a goto the chain is not the one with the policy, whose name nobody has copied.
        if evidence.chain_handle != evidence.base_chain_handle {
            return Resolved::default();
        }
        return Resolved {
            policy: Some(Arc::new(PolicyRef {
                family,
                table: name(&evidence.table),
                chain: name(&evidence.chain),
                rules: (evidence.rule_handle == 0).then_some(evidence.number),
                none_matched: (evidence.rule_handle != 0).then_some(false),
            })),
            ..Resolved::default()
        };
    }
    Resolved {
        rule: Some(Arc::new(RuleRef {
            family,
            table: name(&evidence.table),
            chain: name(&evidence.chain),
            base_chain: None,
            number: Some(evidence.number),
            handle: Some(evidence.rule_handle),
            text: None,
            comment: None,
            gone,
        })),
        ..Resolved::default()
    }
}

/// True if every rule of the chain would have decided had it matched; otherwise nobody knows.
fn none_matched(evidence: &RuleEvidence, chain: &Chain) -> Option<bool> {
    let unchanged = chain.rules.len() == evidence.number as usize;
    (unchanged && chain.rules.iter().all(model::Rule::decides)).then_some(true)
}

pub(super) fn family(family: model::Family) -> Family {
    match family {
        model::Family::Ip => Family::Ip,
        model::Family::Ip6 => Family::Ip6,
        model::Family::Arp => Family::Arp,
        model::Family::Bridge => Family::Bridge,
        model::Family::Netdev => Family::Netdev,
        model::Family::Inet | model::Family::Other(_) => Family::Inet,
    }
}

/// A name that the kernel side copied; one that was cut says so.
fn name(bytes: &[u8; NAME_MAX]) -> Arc<str> {
    let text: Cow<'_, str> = match CStr::from_bytes_until_nul(bytes) {
        Ok(name) => name.to_string_lossy(),
        Err(_) => String::from_utf8_lossy(bytes),
    };
    if text.len() + 1 >= NAME_MAX {
        return format!("{text}...").into();
    }
    text.into()
}
