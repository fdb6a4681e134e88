//! The way of a state through the chains, kept where an explanation is wanted.

use super::{code::Decided, field::Reason, outcome::Fate, program::Base};

/// What was seen of a rule.
#[derive(Debug, Clone)]
pub(super) enum Seen {
    /// A condition did not hold.
    Missed,
    /// It matched.
    Matched(Decided),
    /// It cannot be told; the way that is told went on as if it had matched, with this verdict, or had not.
    Unknown { why: Reason, taken: Option<Decided> },
}

/// A step of the way.
#[derive(Debug, Clone)]
pub(super) enum Event {
    /// The packet came to this base chain.
    Base { chain: u32, priority: i32 },
    /// A rule was tried.
    Rule {
        chain: u32,
        rule: usize,
        depth: u32,
        seen: Seen,
    },
    /// The base chain ended with its policy.
    Policy(Fate),
}

/// The way, or nothing where none is kept.
#[derive(Debug, Clone)]
pub(super) struct Trail {
    events: Option<Vec<Event>>,
    depth: u32,
}

impl Trail {
    /// An empty one, which keeps nothing unless `kept`.
    pub(super) fn new(kept: bool) -> Self {
        Self {
            events: kept.then(Vec::new),
            depth: 0,
        }
    }

    /// Whether it keeps anything.
    pub(super) fn is_kept(&self) -> bool {
        self.events.is_some()
    }

    /// What was kept.
    pub(super) fn events(&self) -> &[Event] {
        self.events.as_deref().unwrap_or_default()
    }

    /// A base chain begins.
    pub(super) fn base(&mut self, base: &Base) {
        self.depth = 0;
        self.push(|_| Event::Base {
            chain: base.chain,
            priority: base.priority,
        });
    }

    /// A rule was tried.
    pub(super) fn rule(&mut self, chain: u32, rule: usize, seen: impl FnOnce() -> Seen) {
        self.push(|depth| Event::Rule {
            chain,
            rule,
            depth,
            seen: seen(),
        });
    }

    /// The policy decided.
    pub(super) fn policy(&mut self, fate: Fate) {
        self.push(|_| Event::Policy(fate));
    }

    /// A chain was called.
    pub(super) fn enter(&mut self) {
        self.depth += 1;
    }

    /// Back from it.
    pub(super) fn leave(&mut self) {
        self.depth = self.depth.saturating_sub(1);
    }

    fn push(&mut self, event: impl FnOnce(u32) -> Event) {
        let depth = self.depth;
        if let Some(events) = &mut self.events {
            events.push(event(depth));
        }
    }
}
