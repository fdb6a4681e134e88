//! Which trace is of which drop: traces wait here for the drop that they end in.
//!
//! The kernel reports a rule before it drops the packet, so whoever takes in all traces that are there before it looks at a drop has the
//! drop's own among them. A trace has no time of its own: it was made between the last moment when nothing was there and the moment
//! when it was received. It is used once. Where the kernel's stack has named the rule, a trace that names another is of another packet.

use std::collections::VecDeque;

use fwtrace_abi::{RULE_POLICY, RULE_RULE, Record, UNKNOWN};

use super::{
    assemble::{Assembler, Did, Dropped},
    headers::Headers,
    invalid::Reasons,
    lines::{self, Logged},
};
use crate::netlink::{attr::AttrError, nflog, nftrace};

/// A drop follows its trace within this time, nanoseconds.
const WINDOW: u64 = 50_000_000;
/// Drops of several processors come at most so much out of order, nanoseconds.
pub(super) const DISORDER: u64 = 1_000_000_000;
/// Traces that wait at the most.
pub(super) const WAITING: usize = 1024;

/// When a trace was made; CLOCK_MONOTONIC in nanoseconds, as in [`Record::time`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Between {
    /// Nothing was there yet.
    pub since: u64,
    /// It was received.
    pub until: u64,
}

impl Between {
    /// Whether a drop at that time can follow it.
    pub fn fits(self, drop: u64) -> bool {
        (self.since..=self.until.saturating_add(WINDOW)).contains(&drop)
    }
}

/// A trace that waits.
#[derive(Debug)]
struct Waiting<T> {
    when: Between,
    trace: T,
}

/// The traces of one network namespace.
#[derive(Debug, Default)]
pub struct Traces {
    assembler: Assembler,
    dropped: VecDeque<Waiting<Dropped>>,
    logged: VecDeque<Waiting<Logged>>,
    /// Why packets are invalid.
    pub invalid: Reasons,
    /// Not every packet is traced, or traces were lost: of drops with the same headers nobody knows which has the trace.
    pub partial: bool,
    /// Drops without a rule on the kernel's stack that were looked at, if `partial`: when, and their headers.
    seen: VecDeque<(u64, Headers)>,
    /// Traces that were not used because the kernel's stack names another rule.
    pub disagreed: u64,
}

/// The trace of a drop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// By nf_tables.
    Nftables(Dropped),
    /// By ip_tables or ip6_tables.
    Legacy(Logged),
}

impl Traces {
    /// Takes in the payload of an nf_tables trace.
    ///
    /// # Errors
    /// It cannot be decoded.
    pub fn trace(&mut self, payload: &[u8], when: Between) -> Result<(), AttrError> {
        if let Some(trace) = self.assembler.feed(nftrace::decode(payload)?) {
            if self.dropped.len() >= WAITING {
                self.dropped.pop_front();
            }
            self.dropped.push_back(Waiting { when, trace });
        }
        Ok(())
    }

    /// Takes in a logged packet: a TRACE line, or why it is invalid; others are left out.
    pub fn logged(&mut self, packet: &nflog::Packet<'_>, when: Between) {
        if self.invalid.logged(packet, when) {
            return;
        }
        let new = |trace| Waiting { when, trace };
        let index = lines::feed(&mut self.logged, packet, |w| &mut w.trace, new);
        if let Some(waiting) = index.and_then(|index| self.logged.get_mut(index)) {
            waiting.when.until = when.until;
        }
        while self.logged.len() > WAITING {
            self.logged.pop_front();
        }
    }

    /// Whether no trace waits.
    pub fn is_empty(&self) -> bool {
        self.dropped.is_empty() && self.logged.is_empty()
    }

    /// Whether a drop's headers are of interest.
    pub fn want_headers(&self) -> bool {
        self.partial || !self.is_empty() || !self.invalid.is_empty()
    }

    /// Whether a trace of ip_tables waits.
    pub fn has_lines(&self) -> bool {
        !self.logged.is_empty()
    }

    /// Takes the trace of a drop out. `twins`: times of the drops with the same headers that are at hand, this one first; `decides` says
    /// whether ip_tables dropped a packet at the entry that it came to last.
    ///
    /// With the rule on the kernel's stack the trace must say the same. Without it, there must be a trace for each of the twins, or none
    /// where not all are traced: otherwise nobody knows whose it is, and it is thrown away.
    pub fn take(
        &mut self,
        record: &Record,
        headers: &Headers,
        twins: impl FnOnce() -> Vec<u64>,
        decides: impl Fn(&Logged) -> bool,
    ) -> Option<Found> {
        let named = matches!(record.rule.kind, RULE_RULE | RULE_POLICY);
        let of_drop =
            |w: &Waiting<Dropped>| w.when.fits(record.time) && w.trace.headers.is(headers);
        let mut nft = self.dropped.iter().enumerate().filter(|(_, w)| of_drop(w));
        if named {
            let agreed = nft
                .find(|(_, w)| agrees(record, &w.trace))
                .map(|(at, _)| at);
            if agreed.is_none() && self.dropped.iter().any(of_drop) {
                self.disagreed += 1;
            }
            let found = self.dropped.remove(agreed?)?;
            return Some(Found::Nftables(found.trace));
        }
        let before = self.partial && self.seen.iter().any(|(_, seen)| seen.is(headers));
        if self.partial {
            if self.seen.len() >= WAITING {
                self.seen.pop_front();
            }
            self.seen.push_back((record.time, headers.clone()));
        }
        let partial = self.partial;
        let doubtful = |traces: &[Between]| {
            let twins = twins();
            before || partial && twins.len() > 1 || !each_has_one(&twins, traces)
        };
        if let Some((at, _)) = nft.next() {
            let same = self.dropped.iter().filter(|w| w.trace.headers.is(headers));
            if doubtful(&same.map(|w| w.when).collect::<Vec<_>>()) {
                self.dropped.retain(|w| !of_drop(w));
                return None;
            }
            return Some(Found::Nftables(self.dropped.remove(at)?.trace));
        }
        let of_twin = |w: &Waiting<Logged>| {
            let hook = w.trace.entries.last().map(|entry| entry.hook);
            w.trace.headers.is(headers)
                && (record.hook == UNKNOWN || hook == Some(record.hook))
                && decides(&w.trace)
        };
        let of_drop = |w: &Waiting<Logged>| w.when.fits(record.time) && of_twin(w);
        let mut legacy = self.logged.iter().enumerate().filter(|(_, w)| of_drop(w));
        let (at, _) = legacy.next()?;
        let same = self.logged.iter().filter(|w| of_twin(w));
        if doubtful(&same.map(|w| w.when).collect::<Vec<_>>()) {
            self.logged.retain(|w| !of_drop(w));
            return None;
        }
        Some(Found::Legacy(self.logged.remove(at)?.trace))
    }

    /// Lets go of traces whose drops must have come by now: `drop` is the time of the newest drop that was looked at.
    pub fn forget(&mut self, drop: u64) {
        let late = |when: Between| when.until.saturating_add(DISORDER) < drop;
        self.dropped.retain(|w| !late(w.when));
        self.logged.retain(|w| !late(w.when));
        self.invalid.forget(drop);
        let seen = self.seen.iter();
        let late = seen.take_while(|(time, _)| time.saturating_add(DISORDER) < drop);
        self.seen.drain(..late.count());
    }
}

/// Whether there is a trace for each of the drops. Traces are in the order in which they were received, so the first that fits is the
/// one that the fewest later drops could have instead.
fn each_has_one(drops: &[u64], traces: &[Between]) -> bool {
    let mut drops = drops.to_vec();
    drops.sort_unstable();
    let mut traces = traces.iter();
    drops.iter().all(|drop| traces.any(|when| when.fits(*drop)))
}

/// Whether the trace ends with the rule that the kernel's stack has named.
fn agrees(record: &Record, dropped: &Dropped) -> bool {
    let Some(last) = dropped.steps.last() else {
        return false;
    };
    let named = &record.rule;
    let table = named
        .table
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default();
    // Of a long name only the beginning is there.
    let same_table = match table.len() + 1 < named.table.len() {
        true => last.table.as_bytes() == table,
        false => last.table.as_bytes().starts_with(table),
    };
    let same = match last.did {
        Did::Rule(handle, _) => named.kind == RULE_RULE && named.rule_handle == handle,
        Did::Policy(_) => named.kind == RULE_POLICY,
    };
    same_table && same && u32::from(u8::from(last.family)) == named.family
}

#[cfg(test)]
mod tests;
