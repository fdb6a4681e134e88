//! Whether an answer may be one of several: fwtrace says what it depends on, and the case must have such a thing.

use fwtrace::event::{DoubtKind, EvidenceSource};

use crate::oracle::case::{Case, Loader};
use crate::oracle::compare::{Answer, Grade};
use crate::oracle::cut::Cut;

/// An IP packet up to this long is captured whole, with any link header.
const CAPTURED: u32 = 100;

/// What an ambiguous answer depends on: the first of these kinds that it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// One of the kinds that fwtrace knows.
    Of(DoubtKind),
    /// It does not say, though the evaluator does.
    Unsaid,
    /// Counters: more than one had moved.
    Counters,
}

impl Doubt {
    /// In words, for the report.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Of(DoubtKind::State) => "state",
            Self::Of(DoubtKind::Rewritten) => "what rules rewrite",
            Self::Of(DoubtKind::Order) => "the order of chains with one priority",
            Self::Of(DoubtKind::Missing) => "what is not captured or not evaluated",
            Self::Unsaid => "nothing said",
            Self::Counters => "counters that moved at once",
        }
    }
}

/// What an answer depends on; `None`: it is not ambiguous.
pub fn of(answer: &Answer) -> Option<Doubt> {
    if answer.grade != Grade::Ambiguous {
        return None;
    }
    if answer.source != Some(EvidenceSource::Evaluator) {
        return Some(Doubt::Counters);
    }
    let doubts = answer.event.iter().flat_map(|e| &e.evidence.doubts);
    let kinds: Vec<DoubtKind> = doubts.map(|doubt| doubt.kind).collect();
    let order = [
        DoubtKind::State,
        DoubtKind::Rewritten,
        DoubtKind::Order,
        DoubtKind::Missing,
    ];
    let first = order.into_iter().find(|kind| kinds.contains(kind));
    Some(first.map_or(Doubt::Unsaid, Doubt::Of))
}

/// Whether the case has nothing of the kind that the answer names.
pub fn is_unfounded(case: &Case, answer: &Answer) -> bool {
    match of(answer) {
        None | Some(Doubt::Counters) => false,
        Some(Doubt::Unsaid) => true,
        Some(Doubt::Of(DoubtKind::State | DoubtKind::Rewritten)) => !case.stateful,
        Some(Doubt::Of(DoubtKind::Order)) => !has_equals(case, answer),
        Some(Doubt::Of(DoubtKind::Missing)) => {
            let whole = !is_cut(case, answer) && !is_overlong(case, answer);
            whole && !has(case, &UNKNOWABLE)
        }
    }
}

/// What rules ask for that nobody outside the kernel can know: its clock at the packet, and the socket of a packet.
const UNKNOWABLE: [&str; 5] = [
    "-m time",
    "-m owner",
    "meta skuid",
    "meta skgid",
    "meta cgroup",
];

/// Matches that read the headers of IPv6 to their ends: what kernels do where the packet ends before differs.
const HEADERS: [&str; 5] = ["-m ipv6header", "-m hbh", "-m dst", "-m rt", "-m ah"];

/// Whether a rule has one of these matches.
fn has(case: &Case, matches: &[&str]) -> bool {
    let mut texts = case.steps.iter().map(|step| &step.text);
    texts.any(|text| matches.iter().any(|one| text.contains(one)))
}

/// Whether a rule reads a header of IPv6 that is cut short.
fn is_overlong(case: &Case, answer: &Answer) -> bool {
    let cut = || Cut::of(&case.packets);
    has(case, &HEADERS) && answer.event.as_ref().is_some_and(|e| cut().has(e))
}

/// Whether a rule searches in bytes that were not captured.
fn is_cut(case: &Case, answer: &Answer) -> bool {
    let searched = has(case, &["-m string"]);
    let length = answer.event.as_ref().and_then(|e| e.packet.len);
    searched && length.is_none_or(|length| length > CAPTURED)
}

/// Whether two tables have chains of one priority on the hook of the drop.
fn has_equals(case: &Case, answer: &Answer) -> bool {
    let Some(hook) = answer.event.as_ref().and_then(|e| e.hook) else {
        return false;
    };
    let mut chains: Vec<(String, i32)> = Vec::new();
    for step in &case.steps {
        let mut table = String::new();
        for line in step.text.lines() {
            let found = if step.loader == Loader::Nft {
                nft_chain(line, hook.as_str())
            } else if let Some(name) = line.strip_prefix('*') {
                table = format!("{} {name}", step.loader.argv()[0]);
                None
            } else {
                xt_chain(line, hook.as_str()).then(|| (table.clone(), xt_priority(&table)))
            };
            chains.extend(found);
        }
    }
    let other = |a: &(String, i32), b: &(String, i32)| a.0 != b.0 && a.1 == b.1;
    chains.iter().any(|a| chains.iter().any(|b| other(a, b)))
}

/// Table and priority of a base chain on this hook, of a line for nft.
fn nft_chain(line: &str, hook: &str) -> Option<(String, i32)> {
    let rest = line.strip_prefix("add chain ")?;
    let (name, rest) = rest.split_once(" {")?;
    let (table, _) = name.rsplit_once(' ')?;
    let words: Vec<&str> = rest.split(' ').collect();
    let after = |word: &str| {
        let at = words.iter().position(|w| *w == word)?;
        words.get(at + 1).copied()
    };
    let priority = after("priority")?.trim_end_matches(';').parse().ok()?;
    (after("hook")? == hook).then(|| (table.to_owned(), priority))
}

/// Whether a line of iptables-save is the chain of this hook.
fn xt_chain(line: &str, hook: &str) -> bool {
    let name = line.strip_prefix(':').and_then(|l| l.split(' ').next());
    name.is_some_and(|name| name.eq_ignore_ascii_case(hook))
}

/// `NF_IP_PRI_*` of the table whose name ends so (include/uapi/linux/netfilter_ipv4.h, v6.18).
fn xt_priority(table: &str) -> i32 {
    match table.rsplit(' ').next() {
        Some("raw") => -300,
        Some("mangle") => -150,
        Some("security") => 50,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::{nft_chain, xt_chain};

    #[test]
    fn chains_are_found_with_their_priorities() {
        let line = "add chain inet t0 in1 { type filter hook input priority -5; policy drop; }";
        assert_eq!(nft_chain(line, "input"), Some(("inet t0".into(), -5)));
        assert_eq!(nft_chain(line, "forward"), None);
        assert_eq!(nft_chain("add chain inet t0 sub2", "input"), None);
        assert!(xt_chain(":INPUT DROP [0:0]", "input"));
        assert!(!xt_chain(":sub1 - [0:0]", "input"));
    }
}
