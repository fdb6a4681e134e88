//! A drop in one line, as it goes with its packet into a capture file.

use std::fmt::{self, Write as _};

use super::text::{Clean, PolicyName, RuleName, by};
use crate::event::{Candidate, DropEvent, Engine, Verdict};

/// `DROP by inet t sub rule 1 (handle 3): tcp dport 80 drop | ct new | kernel-stack, exact`.
#[must_use]
pub fn comment(drop: &DropEvent) -> String {
    let mut line = String::new();
    // Writing into a String cannot fail.
    let _ = write(&mut line, drop);
    line
}

fn write(line: &mut String, drop: &DropEvent) -> fmt::Result {
    line.push_str(match drop.verdict {
        Verdict::Drop => "DROP ",
        Verdict::Reject => "REJECT ",
        Verdict::Accept | Verdict::Unknown => "LOG ",
    });
    by(line, drop)?;
    if let Some(text) = drop.rule.as_ref().and_then(|rule| rule.text.as_ref()) {
        write!(line, ": {}", Clean(text))?;
    }
    if let Some(ct) = &drop.conntrack {
        write!(line, " | ct {}", ct.state.as_str())?;
    }
    // No name of a rule tells which of the two kinds of iptables it is.
    let named = drop.rule.is_some() || drop.policy.is_some();
    if named && matches!(drop.engine, Engine::IptablesNft | Engine::IptablesLegacy) {
        write!(line, " | {}", drop.engine.as_str())?;
    }
    let evidence = &drop.evidence;
    let (source, confidence) = (evidence.source.as_str(), evidence.confidence.as_str());
    write!(line, " | {source}, {confidence}")?;
    for candidate in &evidence.candidates {
        match candidate {
            Candidate::Rule(rule) => write!(line, " | or {}", RuleName(rule))?,
            Candidate::Policy(policy) => write!(line, " | or {}", PolicyName(policy))?,
        }
    }
    if let Some(why) = &drop.why {
        write!(line, " | {}", Clean(why))?;
    }
    if let Some(process) = &drop.process {
        write!(line, " | sent by {} {}", Clean(&process.comm), process.pid)?;
    }
    if drop.count > 1 {
        write!(line, " | x{}", drop.count)?;
    }
    Ok(())
}
