//! The tables of a network namespace, followed while they are replaced.
//!
//! Nobody tells when a legacy table is replaced, and a table has no generation. So [`Tables::poll`] asks again and again: the list of
//! tables and `IPT_SO_GET_INFO` each time, which takes microseconds and shows other numbers of rules; and all entries as often as that
//! costs at most a 200th of the time, which shows all other changes (1,000 rules take 0.4 ms on two processors, so they are compared at
//! every tick). Who has seen that a table was replaced, in the kernel, asks at once with [`Tables::refresh`].
//!
//! The last versions of each table are kept with the times that they are known to have been in force, so that a drop just before a
//! replacement is still told by the rule that made it.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::time::{ClockId, clock_gettime};

use super::{
    Family, Table,
    read::{Raw, ReadError, Reader},
};
use crate::{allowance::Allowance, netns::NetNs};

/// How many versions of a table are kept.
pub const KEPT: usize = 8;
/// Comparing all entries takes at most this part of the time: one in so many.
const SHARE: u32 = 200;
/// The same when a change is likely.
const SHARE_HINTED: u32 = 20;
/// Likewise for the sake of drops that only the evaluator can tell.
const SHARE_SETTLED: u32 = 4;

/// What a table was, and when.
#[derive(Debug, Clone)]
pub struct Version {
    /// The generation that it appeared in; see [`Tables::generation`].
    pub generation: u32,
    /// What was read first. Its counters are of then.
    pub table: Arc<Table>,
    /// From when on it is known to have been in force: the end of the first reading. CLOCK_MONOTONIC, nanoseconds.
    pub first: u64,
    /// Until when it is known to have been: the start of the last reading that found it the same.
    pub last: u64,
}

impl Version {
    fn new(raw: &Raw, generation: u32, at: u64) -> Self {
        Self {
            generation,
            table: Arc::new(raw.parse()),
            first: at,
            last: at,
        }
    }
}

/// A table at some time.
#[derive(Debug, Clone)]
pub struct Found {
    /// As it was.
    pub table: Arc<Table>,
    /// The generation that it appeared in.
    pub generation: u32,
    /// `false`: it was replaced about then, or nobody has looked since.
    pub certain: bool,
    /// It is in force still, as far as is known.
    pub newest: bool,
}

/// The versions of one table.
#[derive(Debug)]
struct History {
    /// The oldest first; never empty.
    versions: VecDeque<Version>,
    /// The newest as it was read first.
    raw: Raw,
    /// It is no longer listed.
    gone: bool,
}

impl History {
    fn new(raw: Raw, generation: u32, at: u64) -> Self {
        Self {
            versions: [Version::new(&raw, generation, at)].into(),
            raw,
            gone: false,
        }
    }

    /// Takes in a reading made between `start` and `end`; whether it is another version, to which `generation` is given.
    fn observe(&mut self, raw: Raw, generation: u32, (start, end): (u64, u64)) -> bool {
        if !self.gone && raw.is_same(&self.raw) {
            if let Some(newest) = self.versions.back_mut() {
                newest.last = newest.last.max(start);
            }
            return false;
        }
        self.gone = false;
        if self.versions.len() == KEPT {
            self.versions.pop_front();
        }
        self.versions.push_back(Version::new(&raw, generation, end));
        self.raw = raw;
        true
    }

    /// The version in force at `time`.
    fn at(&self, time: u64) -> Option<Found> {
        // Of two that it lies between, the later one: it is read as soon as a drop shows that it is there.
        let index = self
            .versions
            .iter()
            .position(|version| time <= version.last);
        let index = index.unwrap_or(self.versions.len().checked_sub(1)?);
        let version = self.versions.get(index)?;
        Some(Found {
            table: Arc::clone(&version.table),
            generation: version.generation,
            certain: (version.first..=version.last).contains(&time),
            newest: index + 1 == self.versions.len() && !self.gone,
        })
    }
}

/// The legacy tables of one network namespace.
///
/// Its files keep the namespace alive.
#[derive(Debug)]
pub struct Tables {
    reader: Reader,
    histories: Vec<History>,
    generation: u32,
    /// When all entries were last compared, and how long that took, nanoseconds.
    compared: u64,
    cost: u64,
    /// When that began: there was no other table then.
    begun: u64,
    /// For [`Tables::settle`].
    allowance: Allowance,
    /// A table held never still: it is read again at the next occasion.
    stale: bool,
}

impl Tables {
    /// Starts to follow the tables of this network namespace, and reads them.
    ///
    /// Blocks while the kernel answers: microseconds, a millisecond for some thousand rules.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn open(netns: &NetNs) -> Result<Self, ReadError> {
        let mut tables = Self {
            reader: Reader::open(netns)?,
            histories: Vec::new(),
            generation: 1,
            compared: 0,
            cost: 0,
            begun: 0,
            allowance: Allowance::new(SHARE_SETTLED, Instant::now()),
            stale: false,
        };
        tables.refresh()?;
        // What is there from the start is no change.
        tables.generation = 1;
        for version in tables.histories.iter_mut().flat_map(|h| &mut h.versions) {
            version.generation = 1;
        }
        Ok(tables)
    }

    /// Looks for changes, thoroughly if that is affordable now; whether there was one. `hinted`: it is likely, see
    /// [`Lock`](super::lock::Lock).
    ///
    /// # Errors
    /// See [`ReadError`]; what was read before stays.
    pub fn poll(&mut self, hinted: bool) -> Result<bool, ReadError> {
        let share = if hinted { SHARE_HINTED } else { SHARE };
        let due = self.cost.saturating_mul(share.into());
        if self.stale || now().saturating_sub(self.compared) >= due {
            return self.refresh();
        }
        let mut changed = false;
        for (family, name) in self.list(&mut changed)? {
            let known = self.history(family, &name);
            let info = self.reader.info(family, &name)?;
            if known.is_none_or(|known| known.gone || known.raw.info != info) {
                changed |= self.read(family, &name)?;
            }
        }
        Ok(changed)
    }

    /// Reads all tables and compares them; whether one was replaced since the last time.
    ///
    /// Blocks for microseconds, or for milliseconds for thousands of rules.
    ///
    /// # Errors
    /// See [`ReadError`]; what was read before stays.
    pub fn refresh(&mut self) -> Result<bool, ReadError> {
        let start = now();
        self.stale = false;
        let mut changed = false;
        for (family, name) in self.list(&mut changed)? {
            changed |= self.read(family, &name)?;
        }
        self.compared = now();
        self.begun = start;
        // What a change takes, it takes once.
        if !changed {
            self.cost = self.compared.saturating_sub(start);
        }
        Ok(changed)
    }

    /// Whether the newest tables were in force at `time` (CLOCK_MONOTONIC, nanoseconds), all of them: reads them again if that
    /// is needed to tell and does not take too much of the time. One reading answers for all that was before it.
    pub fn settle(&mut self, time: u64) -> bool {
        // What was read while the packet was dropped may have been read before that.
        if self.begun < time || self.stale {
            let start = Instant::now();
            if !self.allowance.affords(start) {
                return false;
            }
            let read = self.refresh();
            self.allowance.spend(start.elapsed());
            if read.is_err() {
                return false;
            }
        }
        let mut there = self.histories.iter().filter(|history| !history.gone);
        let in_force = |history: &History| {
            let newest = history.versions.back();
            newest.is_some_and(|newest| (newest.first..=newest.last).contains(&time))
        };
        !self.stale && there.all(in_force)
    }

    /// The names of the tables that there are. Those that are no longer there are a change.
    fn list(&mut self, changed: &mut bool) -> Result<Vec<(Family, String)>, ReadError> {
        let names = self.reader.names()?;
        for history in self.histories.iter_mut().filter(|history| !history.gone) {
            let table = (history.raw.family, history.raw.name.as_str());
            if !names
                .iter()
                .any(|(family, name)| (*family, name.as_str()) == table)
            {
                history.gone = true;
                *changed = true;
                self.generation += 1;
            }
        }
        Ok(names)
    }

    fn read(&mut self, family: Family, name: &str) -> Result<bool, ReadError> {
        let start = now();
        let raw = match self.reader.raw(family, name) {
            Ok(raw) => raw,
            Err(ReadError::Unsettled { .. }) => {
                self.stale = true;
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        let end = now();
        let next = self.generation + 1;
        let mut histories = self.histories.iter_mut();
        let known = histories.find(|h| h.raw.family == family && h.raw.name == name);
        let changed = match known {
            Some(history) => history.observe(raw, next, (start, end)),
            None => {
                self.histories.push(History::new(raw, next, end));
                true
            }
        };
        if changed {
            self.generation = next;
        }
        Ok(changed)
    }

    fn history(&self, family: Family, name: &str) -> Option<&History> {
        let mut histories = self.histories.iter();
        histories.find(|h| h.raw.family == family && h.raw.name == name)
    }

    /// Counts up at each change of a table of this namespace that was seen. Starts with 1.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// The tables as they were read last.
    pub fn newest(&self) -> impl Iterator<Item = &Arc<Table>> {
        let there = self.histories.iter().filter(|history| !history.gone);
        there.filter_map(|history| Some(&history.versions.back()?.table))
    }

    /// The table as it was read last.
    pub fn table(&self, family: Family, name: &str) -> Option<&Arc<Table>> {
        let history = self.history(family, name).filter(|history| !history.gone)?;
        Some(&history.versions.back()?.table)
    }

    /// The table as it was read last: the bytes, with the counters of when this version was read first.
    pub fn raw(&self, family: Family, name: &str) -> Option<&Raw> {
        let history = self.history(family, name).filter(|history| !history.gone)?;
        Some(&history.raw)
    }

    /// The table as it was at `time` (CLOCK_MONOTONIC, nanoseconds), as far as is known. `certain` takes a reading from after that: see
    /// [`Tables::refresh`].
    pub fn at(&self, family: Family, name: &str, time: u64) -> Option<Found> {
        self.history(family, name)?.at(time)
    }
}

/// CLOCK_MONOTONIC, nanoseconds: what `bpf_ktime_get_ns()` gives.
fn now() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from);
    let nanos = time.unwrap_or_default().as_nanos();
    u64::try_from(nanos).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::{super::tests::raw, *};

    fn found(history: &History, time: u64) -> (u32, bool, bool) {
        let found = history.at(time).unwrap();
        (found.generation, found.certain, found.newest)
    }

    #[test]
    fn a_drop_is_told_by_the_version_of_its_time() {
        let mut history = History::new(raw(0, 5), 1, 100);
        assert_eq!(found(&history, 99), (1, false, true));
        assert_eq!(found(&history, 100), (1, true, true));
        assert_eq!(found(&history, 150), (1, false, true));
        // Counters are no change, and a reading says what was until it began.
        assert!(!history.observe(raw(0, 6), 2, (200, 210)));
        assert_eq!(found(&history, 150), (1, true, true));
        assert_eq!(found(&history, 205), (1, false, true));
        // Another verdict, of the same size.
        assert!(history.observe(raw(-1, 6), 2, (300, 310)));
        assert_eq!(found(&history, 200), (1, true, false));
        assert_eq!(found(&history, 250), (2, false, true));
        assert_eq!(found(&history, 310), (2, true, true));
        assert_eq!(found(&history, 311), (2, false, true));
        assert_eq!(history.at(310).unwrap().table.chains.len(), 5);
    }

    #[test]
    fn the_oldest_versions_go() {
        let mut history = History::new(raw(0, 0), 1, 100);
        for n in 2..=40 {
            let at = u64::from(n) * 100;
            let verdict = if n % 2 == 0 { -1 } else { -2 };
            assert!(history.observe(raw(verdict, 0), n, (at, at)));
        }
        assert_eq!(history.versions.len(), KEPT);
        assert_eq!(found(&history, 100), (40 - 7, false, false));
        assert_eq!(found(&history, 4000), (40, true, true));
    }
}
