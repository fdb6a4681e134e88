//! The smallest case that still shows what a case shows.

use anyhow::{Context as _, Result};
use fwtrace::event::EvidenceSource;

use crate::oracle::case::Case;
use crate::oracle::compare::{Answer, Grade};
use crate::oracle::ground::Ground;
use crate::oracle::report;

/// What must still be shown: the grade, and who gave the answer.
type Finding = (Grade, Option<EvidenceSource>);

/// Takes away packets and rules for as long as the first finding stays.
///
/// # Errors
/// The case cannot be judged, or shows nothing.
pub fn shrink(ground: &mut Ground, case: &Case) -> Result<Case> {
    let mut smallest = case.clone();
    let outcome = ground.run(&mut smallest)?;
    let mut findings = outcome.answers.iter();
    let first = findings.find(|a| report::is_kept_answer(&smallest, a));
    let finding = first.map(finding).context("it shows nothing")?;
    let mut shows = |case: &Case| {
        let mut case = case.clone();
        // A case that cannot be judged shows something else.
        let outcome = ground.run(&mut case);
        outcome.is_ok_and(|outcome| {
            let mut answers = outcome.answers.iter();
            answers.any(|a| report::is_kept_answer(&case, a) && self::finding(a) == finding)
        })
    };
    loop {
        let size = size(&smallest);
        without(
            &mut smallest,
            &mut shows,
            |case| case.packets.len(),
            |case, from, to| {
                case.packets.drain(from..to);
            },
        );
        without(
            &mut smallest,
            &mut shows,
            |case| case.opening.len(),
            |case, from, to| {
                case.opening.drain(from..to);
            },
        );
        without(&mut smallest, &mut shows, rules, take_rules);
        if self::size(&smallest) == size {
            return Ok(smallest);
        }
    }
}

fn finding(answer: &Answer) -> Finding {
    (answer.grade, answer.source)
}

fn size(case: &Case) -> usize {
    case.packets.len() + case.opening.len() + rules(case)
}

/// Takes away parts, half of all first, then ever smaller ones.
fn without(
    case: &mut Case,
    shows: &mut impl FnMut(&Case) -> bool,
    count: impl Fn(&Case) -> usize,
    take: impl Fn(&mut Case, usize, usize),
) {
    let mut step = count(case).div_ceil(2);
    while step > 0 {
        let mut from = 0;
        while from < count(case) {
            let mut smaller = case.clone();
            take(&mut smaller, from, (from + step).min(count(case)));
            if shows(&smaller) {
                *case = smaller;
            } else {
                from += step;
            }
        }
        step /= 2;
    }
}

/// Whether a line of a ruleset can be taken away: a rule, a set, a chain.
fn is_part(line: &str) -> bool {
    let parts = [
        "add rule",
        "add set",
        "add map",
        "add chain",
        "add counter",
        "-A",
    ];
    parts.iter().any(|part| line.starts_with(part))
}

fn rules(case: &Case) -> usize {
    let lines = case.steps.iter().flat_map(|step| step.text.lines());
    lines.filter(|line| is_part(line)).count()
}

/// Takes away the rules of these numbers, counted through all rulesets.
fn take_rules(case: &mut Case, from: usize, to: usize) {
    let mut number = 0;
    for step in &mut case.steps {
        let mut kept = String::new();
        for line in step.text.lines() {
            let taken = is_part(line) && (from..to).contains(&number);
            number += usize::from(is_part(line));
            if !taken {
                kept += line;
                kept.push('\n');
            }
        }
        step.text = kept;
    }
}
