//! The table of a run, and the cases that are kept.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use fwtrace::event::DoubtKind;
use serde_json::{Value, json};

use crate::oracle::case::Case;
use crate::oracle::compare::{Answer, Grade};
use crate::oracle::doubt::{self, Doubt};
use crate::oracle::ground::Outcome;

/// How often each grade was given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Drops.
    pub drops: usize,
    /// Named.
    pub right: usize,
    /// Among several.
    pub ambiguous: usize,
    /// Not named.
    pub unknown: usize,
    /// Named wrongly.
    pub wrong: usize,
}

impl Counts {
    fn add(&mut self, grade: Grade) {
        self.drops += 1;
        match grade {
            Grade::Right => self.right += 1,
            Grade::Ambiguous => self.ambiguous += 1,
            Grade::Unknown => self.unknown += 1,
            Grade::Wrong => self.wrong += 1,
        }
    }
}

/// All that a run found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Packets sent.
    pub packets: usize,
    /// Messages of the kernel's trace.
    pub traced: usize,
    /// Drops by the kernel's trace.
    pub drops: usize,
    /// Rulesets loaded.
    pub cases: usize,
    /// Rules that were refused.
    pub refused: usize,
    /// By engine and source.
    pub rows: BTreeMap<(&'static str, &'static str), Counts>,
    /// Cases that could not be judged.
    pub failed: usize,
    /// Drops that fwtrace has lost, by its own account.
    pub lost: u64,
    /// Ambiguous answers, by what they depend on.
    pub ambiguous: BTreeMap<&'static str, usize>,
    /// Unknown answers that have candidates, likewise.
    pub unknown: BTreeMap<&'static str, usize>,
    /// Those of both that should not be.
    pub unfounded: usize,
    /// Answers made wrong on purpose.
    pub falsified: usize,
}

impl Report {
    /// Adds what a case found.
    pub fn add(&mut self, case: &Case, outcome: &Outcome) {
        self.cases += 1;
        self.packets += outcome.sent;
        self.traced += outcome.traced;
        self.refused += outcome.refused;
        self.falsified += outcome.falsified;
        self.drops += outcome.drops;
        for answer in &outcome.answers {
            let source = answer.source.map_or("none", |s| s.as_str());
            let row = self
                .rows
                .entry((answer.engine.as_str(), source))
                .or_default();
            row.add(answer.grade);
            if let Some(doubt) = doubt::of(answer) {
                let all = match answer.grade {
                    Grade::Unknown => &mut self.unknown,
                    _ => &mut self.ambiguous,
                };
                *all.entry(doubt.as_str()).or_default() += 1;
            }
            if doubt::is_unfounded(case, answer) {
                self.unfounded += 1;
            }
        }
    }

    /// Answers that are wrong, and cases without a judgement.
    pub fn wrong(&self) -> usize {
        self.rows.values().map(|c| c.wrong).sum::<usize>() + self.failed + self.unfounded
    }

    /// Sources that know too little, with their answers and those that are unknown: one in a hundred, or more.
    pub fn ignorant(&self) -> Vec<(&'static str, usize, usize)> {
        let mut sources: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        for ((_, source), counts) in &self.rows {
            let (drops, unknown) = sources.entry(source).or_default();
            *drops += counts.drops;
            *unknown += counts.unknown;
        }
        let all = sources.into_iter().map(|(source, (d, u))| (source, d, u));
        all.filter(|(_, drops, unknown)| *unknown > 0 && unknown * 100 >= *drops)
            .collect()
    }

    /// Whether the run fails.
    pub fn fails(&self) -> bool {
        self.wrong() > 0 || !self.ignorant().is_empty()
    }

    /// The table, in Markdown.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{} packets in {} rulesets ({} rules refused), {} messages of the kernel's trace, {} drops\n\n",
            self.packets, self.cases, self.refused, self.traced, self.drops
        );
        text += "| engine | source | drops | right | ambiguous | unknown | wrong |\n|---|---|--:|--:|--:|--:|--:|\n";
        for ((engine, source), c) in &self.rows {
            // Writing to a string does not fail.
            let _ = writeln!(
                text,
                "| {engine} | {source} | {} | {} | {} | {} | {} |",
                c.drops, c.right, c.ambiguous, c.unknown, c.wrong
            );
        }
        for (grade, kinds) in [("ambiguous", &self.ambiguous), ("unknown", &self.unknown)] {
            let each: Vec<String> = kinds.iter().map(|(k, n)| format!("{k} {n}")).collect();
            if !each.is_empty() {
                let _ = writeln!(text, "\n{grade} for: {}", each.join(", "));
            }
        }
        if self.unfounded > 0 {
            let _ = writeln!(
                text,
                "\nambiguous or unknown without anything of that kind in the rulesets: {}",
                self.unfounded
            );
        }
        for (source, drops, unknown) in self.ignorant() {
            let _ = writeln!(
                text,
                "\ntoo much is unknown: {unknown} of {drops} drops by {source}"
            );
        }
        if self.lost > 0 {
            let _ = writeln!(
                text,
                "\ndrops that fwtrace lost, and said so: {} (their cases were run again)",
                self.lost
            );
        }
        if self.failed > 0 {
            let _ = writeln!(text, "\ncases that could not be judged: {}", self.failed);
        }
        text
    }
}

/// Whether something in it must be looked at: what is wrong, and what the evaluator cannot tell.
pub fn is_kept(case: &Case, outcome: &Outcome) -> bool {
    outcome.answers.iter().any(|a| is_kept_answer(case, a))
}

/// Whether an answer must be looked at: also one that depends on something that could be known.
pub fn is_kept_answer(case: &Case, answer: &Answer) -> bool {
    let state = matches!(
        doubt::of(answer),
        None | Some(Doubt::Of(DoubtKind::State) | Doubt::Counters)
    );
    answer.grade == Grade::Unknown || !state || is_bad_answer(case, answer)
}

/// Whether something in it is wrong.
pub fn is_bad(case: &Case, outcome: &Outcome) -> bool {
    outcome.answers.iter().any(|a| is_bad_answer(case, a))
}

fn is_bad_answer(case: &Case, answer: &Answer) -> bool {
    answer.grade == Grade::Wrong || doubt::is_unfounded(case, answer)
}

/// Writes a case with what is wrong in it; the file.
///
/// # Errors
/// It cannot be written.
pub fn keep(dir: &Path, case: &Case, outcome: &Outcome) -> Result<PathBuf> {
    let kept = outcome.answers.iter().filter(|a| is_kept_answer(case, a));
    let findings = kept.map(|a| {
        json!({
            "grade": format!("{:?}", a.grade),
            "why": a.why,
            "truth": a.truth.as_ref().map(|t| format!("{t:?}")),
            "event": a.event,
        })
    });
    let mut json = case.to_json();
    json["findings"] = findings.collect();
    write(dir, case, &json)
}

/// Writes a case that could not be judged; the file.
///
/// # Errors
/// It cannot be written.
pub fn keep_failed(dir: &Path, case: &Case, error: &anyhow::Error) -> Result<PathBuf> {
    let mut json = case.to_json();
    json["error"] = format!("{error:#}").into();
    write(dir, case, &json)
}

fn write(dir: &Path, case: &Case, json: &Value) -> Result<PathBuf> {
    std::fs::create_dir_all(dir)?;
    let path = dir.join(format!("{}.json", case.name));
    std::fs::write(&path, serde_json::to_string_pretty(json)? + "\n")?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_fails_where_one_drop_in_a_hundred_is_unknown() {
        let row = |drops, unknown| Counts {
            drops,
            unknown,
            ..Counts::default()
        };
        let report = |rows: &[(&'static str, &'static str, Counts)]| Report {
            rows: rows.iter().map(|(e, s, c)| ((*e, *s), *c)).collect(),
            ..Report::default()
        };
        let few = [
            ("nftables", "evaluator", row(1, 1)),
            ("iptables-nft", "evaluator", row(100, 0)),
        ];
        assert!(!report(&few).fails());
        let many = [
            ("nftables", "evaluator", row(1, 1)),
            ("iptables-nft", "evaluator", row(99, 0)),
            ("nftables", "trace", row(1000, 0)),
        ];
        assert_eq!(report(&many).ignorant(), [("evaluator", 100, 1)]);
        assert!(report(&many).fails() && report(&many).wrong() == 0);
        assert!(
            report(&many)
                .table()
                .contains("1 of 100 drops by evaluator")
        );
    }
}
