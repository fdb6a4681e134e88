//! Keeping the BPF programs' knowledge of legacy tables current.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use fwtrace_abi::Record;
use tokio::time::Instant;

use super::namespaces::Namespaces;
use crate::{
    attribute::{
        Attributor,
        legacy::{LegacyRules, Primed, Staleness},
    },
    bpf::{
        legacy::{Counters, PrimeError},
        load::{BpfError, Programs},
    },
    netns::NetNs,
    xtables::{
        Family,
        legacy::{Jump, Table, follow::Tables},
        targets::Target,
    },
};

/// While tables keep being replaced, take them in at most this often.
const PAUSE: Duration = Duration::from_millis(5);
/// One in so much of the time at the most.
const SHARE: u32 = 20;
/// How often a table is read and taken in again that is replaced meanwhile.
const TRIES: usize = 4;

/// The legacy tables that the BPF programs know.
#[derive(Debug)]
pub(super) struct Legacy {
    counters: Counters,
    /// By inode of their namespace.
    known: HashMap<u32, Known>,
    /// Namespaces with drops of tables that are others than the programs know.
    stale: HashSet<u32>,
    /// Namespaces with drops where a table is hooked in of which the programs know nothing.
    unknown: HashSet<u32>,
    synced: Instant,
    /// Not before so long after that.
    pause: Duration,
}

/// What is known of a namespace.
#[derive(Debug)]
struct Known {
    epoch: u64,
    /// The generation of its tables that was taken in.
    generation: u32,
    /// The generations that its tables appeared in. A table that was refused is here, too.
    tables: HashMap<(Family, String), u32>,
}

impl Legacy {
    pub(super) fn new(counters: Counters) -> Self {
        Self {
            counters,
            known: HashMap::new(),
            stale: HashSet::new(),
            unknown: HashSet::new(),
            synced: Instant::now(),
            pause: PAUSE,
        }
    }

    /// Takes a look at a record of a drop.
    pub(super) fn note(&mut self, record: &Record) {
        match LegacyRules::staleness(record) {
            Staleness::Known => {}
            Staleness::Unknown => {
                self.unknown.insert(record.netns);
            }
            Staleness::Stale => {
                self.stale.insert(record.netns);
            }
        }
    }

    /// Whether drops wait for tables to be taken in, and it is time to.
    pub(super) fn is_due(&self) -> bool {
        !(self.stale.is_empty() && self.unknown.is_empty()) && self.synced.elapsed() >= self.pause
    }

    /// Takes in all tables that are new or have been replaced; gives lines for the user.
    pub(super) fn sync(
        &mut self,
        programs: &mut Programs,
        namespaces: &mut Namespaces,
        attributor: &mut Attributor,
    ) -> Vec<String> {
        let start = Instant::now();
        let mut lines = Vec::new();
        for (inode, epoch, netns, tables) in namespaces.legacy_tables() {
            let stale = self.stale.contains(&inode);
            let suspicious = stale || self.unknown.contains(&inode);
            if suspicious && let Err(error) = tables.refresh() {
                log::warn!("{error}");
                continue;
            }
            let known = self.known.entry(inode).or_insert_with(|| Known {
                epoch,
                generation: 0,
                tables: HashMap::new(),
            });
            if known.epoch == epoch && known.generation == tables.generation() && !stale {
                continue;
            }
            if known.epoch != epoch {
                known.epoch = epoch;
                known.tables.clear();
            }
            let place = Place { epoch, netns };
            let counters = &mut self.counters;
            lines.extend(take_in(
                counters, programs, &place, tables, known, stale, attributor,
            ));
        }
        self.stale.clear();
        self.unknown.clear();
        self.synced = Instant::now();
        self.pause = PAUSE.max((self.synced - start) * SHARE);
        lines
    }

    /// Forgets a namespace that is no longer watched.
    pub(super) fn forget(&mut self, programs: &mut Programs, inode: u32) -> Result<(), BpfError> {
        if self.known.remove(&inode).is_some() {
            self.counters.forget(programs, inode)?;
        }
        Ok(())
    }
}

struct Place<'a> {
    epoch: u64,
    netns: &'a NetNs,
}

/// Takes in a namespace's tables: those that have been replaced, or, after drops that the programs
/// could not place, all of them.
fn take_in(
    counters: &mut Counters,
    programs: &mut Programs,
    place: &Place<'_>,
    tables: &mut Tables,
    known: &mut Known,
    all: bool,
    attributor: &mut Attributor,
) -> Vec<String> {
    let mut lines = Vec::new();
    for _ in 0..TRIES {
        known.generation = tables.generation();
        let listed: Vec<_> = tables
            .newest()
            .map(|table| (table.family, table.name.clone()))
            .collect();
        known.tables.retain(|table, _| listed.contains(table));
        let queues = tables.newest().any(|table| queues(table));
        let mut again = false;
        for key in listed {
            // Its rules do not drop, and it is called from another place.
            if key.1 == "nat" {
                continue;
            }
            let Some(found) = tables.at(key.0, &key.1, u64::MAX) else {
                continue;
            };
            if known.tables.get(&key) == Some(&found.generation) && !all {
                continue;
            }
            let Some(raw) = tables.raw(key.0, &key.1) else {
                continue;
            };
            match counters.prime(programs, place.netns, raw, &found.table, queues) {
                Ok(id) => {
                    if let Some(id) = id {
                        let primed = Primed {
                            epoch: place.epoch,
                            generation: found.generation,
                            table: found.table.clone(),
                            offsets: raw.offsets(),
                        };
                        attributor.legacy().add(id, primed);
                    }
                    known.tables.insert(key, found.generation);
                }
                Err(PrimeError::Replaced) => again = true,
                Err(error) => {
                    let line = format!(
                        "network namespace {}: table {} of {}: {error}; which of its rules dropped is not known",
                        place.netns,
                        key.1,
                        match key.0 {
                            Family::V4 => "iptables-legacy",
                            Family::V6 => "ip6tables-legacy",
                        }
                    );
                    if known.tables.insert(key, found.generation) != Some(found.generation) {
                        lines.push(line);
                    }
                }
            }
        }
        // What has been taken in is what has been read only if it still is the same.
        match tables.refresh() {
            Ok(changed) if changed || again => {}
            Ok(_) => break,
            Err(error) => {
                log::warn!("{error}");
                break;
            }
        }
    }
    lines
}

/// Whether a rule hands packets to user space.
fn queues(table: &Table) -> bool {
    let mut rules = table.chains.iter().flat_map(|chain| &chain.rules);
    rules.any(|rule| match &rule.jump {
        Jump::Queue => true,
        Jump::Target(Target::Nfqueue(_)) => true,
        Jump::Target(Target::Unknown { name, .. }) => name == "NFQUEUE",
        _ => false,
    })
}
