//! The account of the run: counted during it, told at its end.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::Arc;

use super::FIREWALL;
use super::text::{Clean, Netns, PolicyName, RuleName};
use crate::event::{
    DropEvent, Engine, Logged, NetnsRef, PolicyRef, RuleCount, RuleRef, Summary, Written,
};

/// Rules that the summary names.
const TOP: usize = 10;

/// Counts shown drops by what did them.
#[derive(Debug, Default)]
pub struct Tally {
    shown: u64,
    aggregated: u64,
    disagreed: u64,
    by: HashMap<Key, (NetnsRef, u64)>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    netns: u32,
    engine: Engine,
    rule: Option<Arc<RuleRef>>,
    policy: Option<Arc<PolicyRef>>,
}

impl Tally {
    /// Counts a drop that was shown.
    pub fn add(&mut self, drop: &DropEvent) {
        self.shown += 1;
        self.aggregated += drop.count.saturating_sub(1);
        self.disagreed += u64::from(drop.evidence.disagreement.is_some());
        let key = Key {
            netns: drop.netns.inode,
            engine: drop.engine,
            rule: drop.rule.clone(),
            policy: drop.policy.clone(),
        };
        let (_, count) = self
            .by
            .entry(key)
            .or_insert_with(|| (drop.netns.clone(), 0));
        *count += drop.count;
    }

    /// How many events were shown.
    pub fn shown(&self) -> u64 {
        self.shown
    }

    /// How many more packets those stood for.
    pub fn aggregated(&self) -> u64 {
        self.aggregated
    }

    /// In how many of them the evaluator disagreed with the kernel.
    pub fn disagreed(&self) -> u64 {
        self.disagreed
    }

    /// The counts, most first.
    pub fn rules(&self) -> Vec<RuleCount> {
        let mut rules: Vec<RuleCount> = self
            .by
            .iter()
            .map(|(key, (netns, count))| RuleCount {
                netns: netns.clone(),
                engine: key.engine,
                rule: key.rule.clone(),
                policy: key.policy.clone(),
                count: *count,
            })
            .collect();
        rules.sort_unstable_by(|a, b| {
            let identity = |r: &RuleCount| (r.netns.inode, r.rule.clone(), r.policy.clone());
            (b.count.cmp(&a.count)).then_with(|| identity(a).cmp(&identity(b)))
        });
        rules
    }
}

/// Writes the summary for people.
pub(super) fn write(summary: &Summary, show_netns: bool, out: &mut impl Write) -> io::Result<()> {
    let Summary {
        seen,
        shown,
        filtered,
        aggregated,
        lost,
        ..
    } = summary;
    let only = summary.logged.as_ref().is_some_and(|logged| logged.only);
    let drops = match (only, seen) {
        (false, 1) => "drop",
        (false, _) => "drops",
        (true, 1) => "logged packet",
        (true, _) => "logged packets",
    };
    write!(
        out,
        "{seen} {drops} seen: {shown} shown, {filtered} filtered out"
    )?;
    if *aggregated > 0 {
        write!(out, ", {aggregated} aggregated")?;
    }
    writeln!(out, ", {lost} lost")?;
    if let Some(written) = &summary.written {
        write_written(written, out)?;
    }

    if summary.disagreed > 0 {
        writeln!(
            out,
            "in {} of them the evaluator disagreed with the kernel (a bug in fwtrace, please report it); -v shows where",
            summary.disagreed
        )?;
    }

    let digits = summary
        .rules
        .first()
        .map_or(1, |top| top.count.to_string().len());
    for rule in summary.rules.iter().take(TOP) {
        write!(out, "  {:>digits$}  ", rule.count)?;
        if show_netns {
            write!(out, "{}: ", Netns(&rule.netns))?;
        }
        match (&rule.rule, &rule.policy) {
            (Some(rule), _) => {
                write!(out, "{}", RuleName(rule))?;
                if let Some(text) = &rule.text {
                    write!(out, ": {}", Clean(text))?;
                }
                writeln!(out)?;
            }
            (None, Some(policy)) => writeln!(out, "{}", PolicyName(policy))?,
            (None, None) if rule.engine == Engine::Other => writeln!(out, "rule not known")?,
            (None, None) if rule.engine == Engine::Conntrack => writeln!(out, "conntrack itself")?,
            (None, None) => writeln!(out, "{}, rule not known", rule.engine.as_str())?,
        }
    }
    if let Some(more) = summary.rules.len().checked_sub(TOP).filter(|n| *n > 0) {
        writeln!(out, "  and {more} more")?;
    }
    write_conntrack(summary, show_netns, out)?;
    write_other(summary, out)?;
    match &summary.logged {
        Some(logged) => write_logged(logged, out),
        None => Ok(()),
    }
}

/// What was logged, where that is not all told by the drops.
fn write_logged(logged: &Logged, out: &mut impl Write) -> io::Result<()> {
    let parts = match logged.only {
        // What is lost stands above.
        true => [
            (logged.joined, "dropped, as far as the rules tell"),
            (logged.passed, "let pass where they were logged"),
            (logged.unknown, "not known"),
            (0, ""),
        ],
        false => [
            (logged.passed, "logged and not dropped"),
            (logged.missing, "logs of drops did not come in time"),
            (logged.lost, "logs lost"),
            (logged.unknown, "logs that nobody knows the drop of"),
        ],
    };
    let parts = parts.into_iter().filter(|(count, _)| *count > 0);
    let parts: Vec<String> = parts
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    if parts.is_empty() {
        return Ok(());
    }
    writeln!(out, "NFLOG: {}", parts.join(", "))
}

/// What the files hold.
fn write_written(written: &Written, out: &mut impl Write) -> io::Result<()> {
    let Written {
        file,
        packets,
        missing,
    } = written;
    let noun = if *packets == 1 { "packet" } else { "packets" };
    let place = match &**file {
        "-" => "stdout",
        file => file,
    };
    write!(out, "{packets} {noun} written to {}", Clean(place))?;
    match missing {
        0 => writeln!(out),
        _ => writeln!(out, ", {missing} not written"),
    }
}

/// What conntrack has counted, where that is not only of packets as usual.
fn write_conntrack(summary: &Summary, show_netns: bool, out: &mut impl Write) -> io::Result<()> {
    for count in &summary.conntrack {
        let moved: Vec<String> = (count.moved.iter())
            .filter(|(name, _)| !matches!(&***name, "found" | "insert"))
            .map(|(name, by)| format!("{name} +{by}"))
            .collect();
        if moved.is_empty() {
            continue;
        }
        if show_netns {
            write!(out, "{}: ", Netns(&count.netns))?;
        }
        write!(out, "conntrack: {}; {}", moved.join(", "), count.entries)?;
        match count.max {
            Some(max) => write!(out, " of {max} entries")?,
            None => write!(out, " entries")?,
        }
        if count.peak > count.entries {
            write!(out, ", at most {} while it ran", count.peak)?;
        }
        writeln!(out)?;
    }
    Ok(())
}

/// What matched all but the reason.
fn write_other(summary: &Summary, out: &mut impl Write) -> io::Result<()> {
    if let Some(count) = summary.other.get(FIREWALL) {
        let were = if *count == 1 { "was" } else { "were" };
        writeln!(
            out,
            "{count} more {were} dropped by the firewall; --reason all shows them"
        )?;
    }
    let mut reasons: Vec<_> = summary
        .other
        .iter()
        .filter(|(reason, _)| &***reason != FIREWALL)
        .collect();
    if reasons.is_empty() {
        return Ok(());
    }
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let total: u64 = reasons.iter().map(|(_, count)| **count).sum();
    let were = if total == 1 { "was" } else { "were" };
    let list: Vec<String> = reasons.iter().map(|(r, n)| format!("{n} {r}")).collect();
    writeln!(
        out,
        "{total} more {were} dropped, not by the firewall: {}; --reason all shows them",
        list.join(", ")
    )
}
