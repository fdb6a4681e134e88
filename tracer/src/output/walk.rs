//! The way through the chains in words, a phase below the other.

use std::fmt::{self, Write as _};

use super::text::{Clean, RuleName, below};
use crate::event::{DropEvent, NearestMiss, PathStep, Phase, Step, StepResult};

/// The phases, or the path where there are none, and the nearest miss.
pub(super) fn write(line: &mut String, drop: &DropEvent) -> fmt::Result {
    match &drop.walk {
        Some(phases) => {
            for (index, phase) in phases.iter().enumerate() {
                write_phase(line, index + 1, phase)?;
            }
        }
        None => {
            for step in drop.path.iter().flat_map(|path| path.iter()) {
                write_path(line, step)?;
            }
        }
    }
    match &drop.nearest_miss {
        Some(miss) => write_miss(line, miss),
        None => Ok(()),
    }
}

fn write_phase(line: &mut String, number: usize, phase: &Phase) -> fmt::Result {
    below(line);
    let rules = if phase.tried == 1 { "rule" } else { "rules" };
    write!(
        line,
        "phase {number}: {} {} {} (priority {}), {} {rules} tried: {}",
        phase.family.as_str(),
        Clean(&phase.table),
        Clean(&phase.chain),
        phase.priority,
        phase.tried,
        Clean(&phase.verdict)
    )?;
    for step in &phase.steps {
        write_step(line, step)?;
    }
    Ok(())
}

fn write_step(line: &mut String, step: &Step) -> fmt::Result {
    let rule = &step.rule;
    below(line);
    write!(line, "  {}", Clean(&rule.chain))?;
    if let Some(number) = rule.number {
        write!(line, " rule {number}")?;
    }
    if let Some(handle) = rule.handle {
        write!(line, " (handle {handle})")?;
    }
    match &step.result {
        StepResult::Matched { verdict } => write!(line, " {}", Clean(verdict))?,
        StepResult::Missed { .. } => line.push_str(" no match"),
        StepResult::Unknown { .. } => line.push_str(" not known"),
    }
    if let Some(text) = &rule.text {
        write!(line, ": {}", Clean(text))?;
    }
    match &step.result {
        StepResult::Matched { .. } => Ok(()),
        StepResult::Missed { why } | StepResult::Unknown { why } => {
            write!(line, " [{}]", Clean(why))
        }
    }
}

fn write_path(line: &mut String, step: &PathStep) -> fmt::Result {
    below(line);
    let (table, chain) = (Clean(&step.table), Clean(&step.chain));
    write!(line, "through {table} {chain}")?;
    if let Some(number) = step.number {
        write!(line, " rule {number}")?;
    }
    if let Some(handle) = step.handle {
        write!(line, " (handle {handle})")?;
    }
    write!(line, ": {}", Clean(&step.verdict))
}

fn write_miss(line: &mut String, miss: &NearestMiss) -> fmt::Result {
    below(line);
    write!(line, "nearest miss: {}", RuleName(&miss.rule))?;
    if let Some(text) = &miss.rule.text {
        write!(line, ": {}", Clean(text))?;
    }
    for why in &miss.misses {
        below(line);
        write!(line, "  {}", Clean(why))?;
    }
    Ok(())
}
