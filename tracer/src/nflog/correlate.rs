//! Which logged packet is of which drop: logs wait here for their drops, and drops for their logs.
//!
//! The kernel logs a packet before it drops it, but hands logs over in batches, up to some hundredths of a second later. So a drop that
//! a log is to come for waits, at most [`WINDOW`], and what is behind it waits with it: drops leave in the order they came in. A log is of
//! a drop if both are of one network namespace, have the same headers (address translation set aside), and come one after the other
//! within the window. Packets that differ in nothing are told apart by their order: the first log is of the first drop.
//!
//! Pure: no sockets, and the time is passed in, CLOCK_MONOTONIC in nanoseconds as in `Record::time`.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use crate::{
    event::RuleRef,
    trace::{headers::Headers, join::Between},
};

/// A drop waits at most so long for a log that must come, nanoseconds.
pub const WINDOW: u64 = 50_000_000;
/// And so long for one of which nobody knows whether it comes: by then the kernel has handed over what it had.
const PERHAPS: u64 = 30_000_000;
/// Drops that wait at the most; beyond that the oldest leaves as it is.
pub const HELD: usize = 8192;
/// Logs that wait at the most; beyond that the oldest is given up. Drops can be behind by what the ring and its reader hold.
pub const LOGS: usize = 32 * 1024;

/// What a log shows of the rule that made it; rules with the same sign cannot be told apart by it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sign {
    /// The group.
    pub group: u16,
    /// The prefix, empty for none.
    pub prefix: Arc<str>,
    /// `NFPROTO_*` of the packet.
    pub pf: u8,
    /// The hook's number in that family.
    pub hook: u8,
}

/// A logged packet.
#[derive(Clone, Debug)]
pub struct Log<L> {
    /// Inode of its network namespace.
    pub netns: u32,
    /// When it was logged; `since` is as early as it can have been.
    pub when: Between,
    /// Its headers.
    pub headers: Headers,
    /// What is known of its rule.
    pub sign: Sign,
    /// Whether a rule has this sign, as far as the rulesets are known.
    pub expected: bool,
    /// Its number among the logs of the namespace.
    pub order: u32,
    /// Whatever belongs to it.
    pub what: L,
}

/// A rule that logs, and that a dropped packet has passed or may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    /// What its logs show.
    pub sign: Sign,
    /// The rule, if its logs are told from those of others.
    pub rule: Option<Arc<RuleRef>>,
    /// The packet has passed it: a log must come.
    pub sure: bool,
}

/// A drop.
#[derive(Clone, Debug)]
pub struct Dropped<D> {
    /// Inode of its network namespace.
    pub netns: u32,
    /// When.
    pub time: u64,
    /// The packet's headers, then those that it can have had before address translation. Empty: it has no logs.
    pub looks: Vec<Headers>,
    /// The rules that it can have been logged by.
    pub passed: Vec<Passed>,
    /// Whatever belongs to it.
    pub what: D,
}

/// A drop that leaves, with its logs.
#[derive(Debug, PartialEq, Eq)]
pub struct Joined<D, L> {
    /// What belongs to the drop.
    pub what: D,
    /// In the order they were made in: the sign, the rule if it is known, and what belongs to the log.
    pub logs: Vec<(Sign, Option<Arc<RuleRef>>, L)>,
    /// Logs that must have been made and did not come.
    pub missing: usize,
}

/// A log that has a drop.
#[derive(Debug)]
struct Taken<L> {
    order: u32,
    sign: Sign,
    rule: Option<Arc<RuleRef>>,
    what: L,
}

/// A drop that waits.
#[derive(Debug)]
struct Held<D, L> {
    drop: Dropped<D>,
    /// Which of the rules have their log.
    filled: Vec<bool>,
    logs: Vec<Taken<L>>,
}

impl<D, L> Held<D, L> {
    /// Until when it waits; `None`: for nothing.
    fn until(&self) -> Option<u64> {
        let mut wait = None;
        for (passed, filled) in self.drop.passed.iter().zip(&self.filled) {
            match (filled, passed.sure) {
                (true, _) => {}
                (false, true) => wait = Some(WINDOW),
                (false, false) => wait = wait.max(Some(PERHAPS)),
            }
        }
        Some(self.drop.time.saturating_add(wait?))
    }

    /// The rule whose log this can be, if the log can be of this drop at all: `Some(None)`, if it is of none that is known.
    fn place(&self, log: &Log<L>) -> Option<Option<usize>> {
        let drop = &self.drop;
        let mut open = drop.passed.iter().zip(&self.filled);
        let free = open.position(|(passed, filled)| !filled && passed.sign == log.sign);
        // The rule is new, or gone, or its log cannot be foretold. One packet passes it once.
        let again = || self.logs.iter().any(|taken| taken.sign == log.sign);
        if free.is_none() && (log.expected || again()) {
            return None;
        }
        let same = drop.looks.iter().any(|look| look.is(&log.headers));
        (same && log.when.fits(drop.time)).then_some(free)
    }

    fn take(&mut self, log: Log<L>, place: Option<usize>) {
        let mut rule = None;
        if let Some(at) = place {
            if let Some(filled) = self.filled.get_mut(at) {
                *filled = true;
            }
            rule = self.drop.passed.get(at).and_then(|p| p.rule.clone());
        }
        self.logs.push(Taken {
            order: log.order,
            sign: log.sign,
            rule,
            what: log.what,
        });
    }
}

/// A queue whose entries keep their numbers.
#[derive(Debug)]
struct Numbered<T> {
    first: u64,
    entries: VecDeque<T>,
}

impl<T> Numbered<T> {
    const fn new() -> Self {
        Self {
            first: 0,
            entries: VecDeque::new(),
        }
    }

    fn push(&mut self, entry: T) -> u64 {
        self.entries.push_back(entry);
        self.first + self.entries.len() as u64 - 1
    }

    fn pop(&mut self) -> Option<(u64, T)> {
        let entry = self.entries.pop_front()?;
        self.first += 1;
        Some((self.first - 1, entry))
    }

    fn get_mut(&mut self, number: u64) -> Option<&mut T> {
        let at = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.entries.get_mut(at)
    }
}

/// Namespace and network header: what all logs of a packet have in common with one of its looks.
type Key = (u32, Box<[u8]>);

fn key(netns: u32, headers: &Headers) -> Key {
    (netns, headers.network().into())
}

/// Those of all looks of a drop's packet.
fn keys<D>(drop: &Dropped<D>) -> Vec<Key> {
    let looks = drop.looks.iter();
    looks.map(|look| key(drop.netns, look)).collect()
}

/// Numbers by key, oldest first.
type Index = HashMap<Key, VecDeque<u64>>;

fn forget(index: &mut Index, key: &Key, number: u64) {
    if let Some(numbers) = index.get_mut(key) {
        if let Some(at) = numbers.iter().position(|known| *known == number) {
            numbers.remove(at);
        }
        if numbers.is_empty() {
            index.remove(key);
        }
    }
}

/// Joins logs and drops.
#[derive(Debug)]
pub struct Correlator<D, L> {
    held: Numbered<Held<D, L>>,
    drops: Index,
    /// `None`: its drop has come.
    waiting: Numbered<Option<Log<L>>>,
    logs: Index,
    /// How many of those that wait no rule is known for.
    unexpected: usize,
}

impl<D, L> Default for Correlator<D, L> {
    fn default() -> Self {
        Self {
            held: Numbered::new(),
            drops: Index::new(),
            waiting: Numbered::new(),
            logs: Index::new(),
            unexpected: 0,
        }
    }
}

impl<D, L> Correlator<D, L> {
    /// Whether no drop waits.
    pub fn is_empty(&self) -> bool {
        self.held.entries.is_empty()
    }

    /// Takes in a logged packet: its drop waits already, or it waits for its drop.
    pub fn log(&mut self, log: Log<L>) {
        let key = key(log.netns, &log.headers);
        for number in self.drops.get(&key).into_iter().flatten() {
            let Some(held) = self.held.get_mut(*number) else {
                continue;
            };
            let Some(place) = held.place(&log) else {
                continue;
            };
            held.take(log, place);
            if held.until().is_none() {
                let (keys, number) = (keys(&held.drop), *number);
                keys.iter()
                    .for_each(|key| forget(&mut self.drops, key, number));
            }
            return;
        }
        self.unexpected += usize::from(!log.expected);
        let number = self.waiting.push(Some(log));
        self.logs.entry(key).or_default().push_back(number);
    }

    /// Takes in a drop; [`Correlator::next`] gives it back.
    pub fn drop(&mut self, drop: Dropped<D>) {
        let keys = keys(&drop);
        let mut held = Held {
            filled: vec![false; drop.passed.len()],
            drop,
            logs: Vec::new(),
        };
        for key in &keys {
            let Some(mut numbers) = self.logs.remove(key) else {
                continue;
            };
            let mut at = 0;
            while let Some(waiting) = numbers.get(at).map(|number| self.waiting.get_mut(*number)) {
                if held.until().is_none() && self.unexpected == 0 {
                    break;
                }
                let place = waiting.and_then(|waiting| {
                    let place = held.place(waiting.as_ref()?)?;
                    Some((waiting.take()?, place))
                });
                let Some((log, place)) = place else {
                    at += 1;
                    continue;
                };
                numbers.remove(at);
                self.unexpected -= usize::from(!log.expected);
                held.take(log, place);
            }
            if !numbers.is_empty() {
                self.logs.insert(key.clone(), numbers);
            }
        }
        let waits = held.until().is_some();
        let number = self.held.push(held);
        for key in keys.into_iter().filter(|_| waits) {
            self.drops.entry(key).or_default().push_back(number);
        }
    }

    /// The oldest drop, if it has its logs or has waited for them long enough. With `u64::MAX` each is given back.
    pub fn next(&mut self, now: u64) -> Option<Joined<D, L>> {
        let oldest = self.held.entries.front()?;
        let over = oldest.until().is_none_or(|until| until <= now);
        if !over && self.held.entries.len() <= HELD {
            return None;
        }
        let (number, held) = self.held.pop()?;
        for key in keys(&held.drop) {
            forget(&mut self.drops, &key, number);
        }
        let open = held.drop.passed.iter().zip(&held.filled);
        let missing = open.filter(|(passed, filled)| passed.sure && !**filled);
        let missing = missing.count();
        let mut logs = held.logs;
        logs.sort_by_key(|taken| taken.order);
        Some(Joined {
            what: held.drop.what,
            logs: logs
                .into_iter()
                .map(|taken| (taken.sign, taken.rule, taken.what))
                .collect(),
            missing,
        })
    }

    /// When the oldest drop has waited long enough; `None`: none waits.
    pub fn deadline(&self) -> Option<u64> {
        let oldest = self.held.entries.front()?;
        Some(oldest.until().unwrap_or(0))
    }

    /// Gives up the oldest log, if it was received before `before` and its drop has not come by now, or if too many wait.
    pub fn given_up(&mut self, before: u64) -> Option<Log<L>> {
        loop {
            let many = self.waiting.entries.len() > LOGS;
            match self.waiting.entries.front()? {
                Some(log) if !many && log.when.until >= before => return None,
                _ => {}
            }
            let (number, log) = self.waiting.pop()?;
            if let Some(log) = log {
                self.unexpected -= usize::from(!log.expected);
                forget(&mut self.logs, &key(log.netns, &log.headers), number);
                return Some(log);
            }
        }
    }
}

#[cfg(test)]
mod tests;
