//! Traces in the words of events: rules by number and handle, verdicts as nft writes them.

use std::sync::Arc;

use fwtrace_abi::{NAME_MAX, RULE_POLICY, RULE_RULE, RuleEvidence};
use zerocopy::FromZeros;

use super::{
    assemble::{Did, Dropped, Step},
    lines::Entry,
};
use crate::{
    event::PathStep,
    ruleset::{
        expr::Verdict,
        model::{Chain, Ruleset, Table},
    },
    xtables::legacy::{self, Jump},
};

/// What the trace says about the rule, as the kernel's stack would have said it; `None`: the rule is not in this ruleset.
pub fn evidence(dropped: &Dropped, ruleset: &Ruleset) -> Option<RuleEvidence> {
    let last = dropped.steps.last()?;
    let (table, chain) = find(last, ruleset)?;
    let mut evidence = RuleEvidence::new_zeroed();
    match last.did {
        Did::Rule(handle, _) => {
            let rule = chain.rules.iter().find(|rule| rule.handle == handle)?;
            evidence.kind = RULE_RULE;
            evidence.rule_handle = handle;
            evidence.number = rule.number;
        }
        Did::Policy(_) => {
            evidence.kind = RULE_POLICY;
            evidence.number = u32::try_from(chain.rules.len()).ok()?;
        }
    }
    evidence.table_handle = table.handle;
    evidence.chain_handle = chain.handle;
    let base = table.chain(&dropped.base_chain);
    evidence.base_chain_handle = base.map_or(0, |base| base.handle);
    evidence.family = u8::from(last.family).into();
    evidence.table = name(&last.table);
    evidence.chain = name(&last.chain);
    Some(evidence)
}

/// NUL-terminated, cut to fit.
fn name(text: &str) -> [u8; NAME_MAX] {
    let mut bytes = [0; NAME_MAX];
    for (to, from) in bytes.iter_mut().zip(text.bytes().take(NAME_MAX - 1)) {
        *to = from;
    }
    bytes
}

fn find<'a>(step: &Step, ruleset: &'a Ruleset) -> Option<(&'a Table, &'a Chain)> {
    let (_, table) = ruleset.table_named(step.family, &step.table)?;
    Some((table, table.chain(&step.chain)?))
}

/// Everything that the packet matched, in order, the last one dropping.
pub fn path(dropped: &Dropped, ruleset: &Ruleset) -> Arc<[PathStep]> {
    let step = |step: &Step| {
        let (handle, verdict) = match &step.did {
            Did::Rule(handle, verdict) => (Some(*handle), verdict),
            Did::Policy(drops) => {
                let verdict = if *drops { "policy drop" } else { "policy accept" };
                return path_step(&step.table, &step.chain, None, None, verdict);
            }
        };
        let found = find(step, ruleset);
        let rule = found.and_then(|(_, chain)| {
            let mut rules = chain.rules.iter();
            rules.find(|rule| Some(rule.handle) == handle)
        });
        // The trace calls a rejection a drop.
        let words = match verdict.code {
            Verdict::DROP if rule.is_some_and(|rule| rule.is_reject()) => "reject".to_owned(),
            _ => words(verdict),
        };
        let number = rule.map(|rule| rule.number);
        path_step(&step.table, &step.chain, number, handle, &words)
    };
    dropped.steps.iter().map(step).collect()
}

fn path_step(
    table: &str,
    chain: &str,
    number: Option<u32>,
    handle: Option<u64>,
    verdict: &str,
) -> PathStep {
    PathStep {
        table: table.into(),
        chain: chain.into(),
        number,
        handle,
        verdict: verdict.into(),
    }
}

/// Whether the packet matched no rule of its last base chain, whose policy dropped it.
pub fn none_matched(dropped: &Dropped) -> bool {
    let Some((last, before)) = dropped.steps.split_last() else {
        return false;
    };
    let here = |step: &&Step| {
        step.family == last.family && step.table == last.table && step.chain == last.chain
    };
    !before.iter().rev().any(|step| here(&step))
}

/// A verdict as nft writes it.
fn words(verdict: &Verdict) -> String {
    let chain = verdict.chain.as_deref().unwrap_or_default();
    match verdict.code {
        Verdict::CONTINUE | Verdict::BREAK => "continue".to_owned(),
        Verdict::JUMP => format!("jump {chain}"),
        Verdict::GOTO => format!("goto {chain}"),
        Verdict::RETURN => "return".to_owned(),
        code => match code & 0xff {
            Verdict::DROP => "drop".to_owned(),
            Verdict::ACCEPT => "accept".to_owned(),
            Verdict::STOLEN => "stolen".to_owned(),
            Verdict::QUEUE => format!("queue to {}", code >> 16),
            other => format!("verdict {other}"),
        },
    }
}

/// The rule of ip_tables that an entry is: its chain, and its index there; no index for the chain's end.
pub fn legacy_rule<'a>(
    entry: &Entry,
    tables: &'a [legacy::Table],
    family: crate::xtables::Family,
) -> Option<(&'a legacy::Table, &'a legacy::Chain, Option<usize>)> {
    let mut tables = tables.iter();
    let table = tables.find(|t| t.family == family && t.name == entry.table)?;
    let (_, chain) = table.chain(&entry.chain)?;
    let rules = u32::try_from(chain.rules.len()).ok()?;
    let rule = match entry.line().rule(rules) {
        Some(number) => Some(usize::try_from(number).ok()?.checked_sub(1)?),
        None => None,
    };
    Some((table, chain, rule))
}

/// What ip_tables does there.
pub fn legacy_jump<'a>(chain: &'a legacy::Chain, rule: Option<usize>) -> Option<&'a Jump> {
    match rule {
        Some(at) => Some(&chain.rules.get(at)?.jump),
        None => chain.base.as_ref().map(|base| &base.policy),
    }
}

#[cfg(test)]
mod tests;
