//! The last readings of a network namespace's ruleset, and what the kernel's notifications say about them. Pure: no sockets.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use super::model::{Family, Rule, Ruleset, Set};
use crate::netlink::{
    attr::AttrError,
    nftables::{decode_generation, decode_rule_handle, decode_table, kind},
};

/// How many readings are kept.
pub const KEPT: usize = 16;
/// Named sets with more elements than this have them in the newest reading only.
const ELEMENTS_KEPT: usize = 1_000;
/// How many replacements of rules, and how many gaps in the notifications, are remembered.
const REMEMBERED: usize = 4_096;

/// A drop of unknown generation is at most this old.
const RECENT: Duration = Duration::from_secs(10);

/// One reading of the ruleset and the generations it stands for.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// What was read. Elements of sets are those of [`Ruleset::generation`]; named sets with more than 1,000 elements are empty in all
    /// but the newest reading.
    pub ruleset: Arc<Ruleset>,
    /// The last generation with these chains and rules that is known of: after [`Ruleset::generation`], only elements of sets changed.
    pub last: u32,
    /// When it was read.
    pub at: SystemTime,
    /// (table handle, rule handle) -> indexes of table, chain and rule.
    index: HashMap<(u64, u64), (usize, usize, usize)>,
}

impl Snapshot {
    fn new(ruleset: Ruleset) -> Self {
        let mut index = HashMap::new();
        for (t, table) in ruleset.tables.iter().enumerate() {
            for (c, chain) in table.chains.iter().enumerate() {
                for (r, rule) in chain.rules.iter().enumerate() {
                    index.insert((table.handle, rule.handle), (t, c, r));
                }
            }
        }
        let last = ruleset.generation;
        Self {
            ruleset: Arc::new(ruleset),
            last,
            at: SystemTime::now(),
            index,
        }
    }

    /// The first generation that the reading stands for.
    pub fn first(&self) -> u32 {
        self.ruleset.generation
    }

    /// Whether the chains and rules are known to be those of this generation.
    pub fn covers(&self, generation: u32) -> bool {
        !before(generation, self.first()) && !before(self.last, generation)
    }

    fn rule(&self, &(t, c, r): &(usize, usize, usize)) -> Option<&Rule> {
        self.ruleset.tables.get(t)?.chains.get(c)?.rules.get(r)
    }

    /// Indexes of table, chain and, if one is asked for, rule.
    fn position(
        &self,
        table: u64,
        chain: u64,
        rule: Option<u64>,
    ) -> Option<(usize, usize, Option<usize>)> {
        let Some(rule) = rule else {
            let (t, table) = self.ruleset.table(table)?;
            let c = table
                .chains
                .iter()
                .position(|candidate| candidate.handle == chain)?;
            return Some((t, c, None));
        };
        let &(t, c, r) = self.index.get(&(table, rule))?;
        let found = self.ruleset.tables.get(t)?.chains.get(c)?;
        (found.handle == chain).then_some((t, c, Some(r)))
    }

    /// Gives up the elements of large named sets, unless somebody else holds the ruleset.
    fn slim(&mut self) {
        if let Some(ruleset) = Arc::get_mut(&mut self.ruleset) {
            for set in ruleset.tables.iter_mut().flat_map(|table| &mut table.sets) {
                if set.flags & Set::ANONYMOUS == 0 && set.elements.len() > ELEMENTS_KEPT {
                    set.elements = Vec::new();
                }
            }
        }
    }
}

/// Whether generation `a` came before `b`. Generations wrap around.
pub(super) fn before(a: u32, b: u32) -> bool {
    a != b && b.wrapping_sub(a) < 1 << 31
}

/// The generation after this one: the kernel skips 0.
fn next(generation: u32) -> u32 {
    generation.wrapping_add(1).max(1)
}

/// A rule or chain that was found by its handles.
#[derive(Debug, Clone)]
pub struct Found {
    /// The reading that it was found in.
    pub ruleset: Arc<Ruleset>,
    /// Index in [`Ruleset::tables`].
    pub table: usize,
    /// Index in [`Table::chains`](super::model::Table::chains).
    pub chain: usize,
    /// Index in [`Chain::rules`](super::model::Chain::rules); `None` when a chain was looked for.
    pub rule: Option<usize>,
    /// It is, as it is here, in the newest reading. `false`: it is no longer in the ruleset.
    pub newest: bool,
    /// `false`: the rule may have been replaced under the same handle before or after, or the generation is newer than what was read.
    pub certain: bool,
    /// The generation asked for is the one that replaced the rule under its handle; when that was heard of. The kernel counts the
    /// generation up a moment before it makes the new rule visible, so a drop before then may be the old rule's.
    pub replaced: Option<Instant>,
}

/// A transaction that was committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// The generation that it made.
    pub generation: u32,
    /// The process that committed it, as numbered in the kernel's own pid namespace.
    pub pid: u32,
    /// That process's name (`comm`, at most 15 bytes).
    pub process: String,
    /// When fwtrace heard of it.
    pub at: SystemTime,
    /// It touched more than elements of sets.
    pub rules: bool,
}

/// What happened since the last call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// The transactions, in order.
    pub commits: Vec<Commit>,
    /// The ruleset was read again because of a notification.
    pub reread: bool,
    /// Notifications were lost: there may have been more transactions. The ruleset was read again.
    pub lost: bool,
}

impl Changes {
    /// Nothing happened.
    pub fn is_empty(&self) -> bool {
        self.commits.is_empty() && !self.reread && !self.lost
    }
}

/// A rule by what the notifications tell of it. Handles of tables are not among that.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct RuleKey {
    family: Family,
    table: String,
    handle: u64,
}

/// A rule that was replaced under the same handle.
#[derive(Debug)]
struct Replaced {
    rule: RuleKey,
    /// The generation since which the new one is in force.
    generation: u32,
    /// When fwtrace heard of it.
    heard: Instant,
}

/// The last readings and what the notifications say about them.
#[derive(Debug)]
pub struct History {
    /// The newest reading.
    newest: Snapshot,
    /// The readings before, newest first.
    older: VecDeque<Snapshot>,
    /// The last generation that was announced, or else the first that was read.
    heard: u32,
    /// The transaction that is being told of touches more than elements of sets.
    touched: bool,
    /// Rules that the transaction being told of deletes.
    deleted: HashSet<RuleKey>,
    /// Of these, those that it adds again.
    replacing: Vec<RuleKey>,
    /// Rules that were replaced under the same handle.
    replaced: VecDeque<Replaced>,
    /// Between these generations, both excluded, notifications were lost.
    gaps: VecDeque<(u32, u32)>,
    /// Notifications were lost since the newest reading.
    lossy: bool,
    /// The newest reading is out of date.
    stale: bool,
    changes: Changes,
}

impl History {
    /// Starts with the first reading.
    pub fn new(ruleset: Ruleset) -> Self {
        Self {
            heard: ruleset.generation,
            newest: Snapshot::new(ruleset),
            older: VecDeque::new(),
            touched: false,
            deleted: HashSet::new(),
            replacing: Vec::new(),
            replaced: VecDeque::new(),
            gaps: VecDeque::new(),
            lossy: false,
            stale: false,
            changes: Changes::default(),
        }
    }

    /// Takes in one notification: its `nlmsg_type` and payload.
    pub fn notify(&mut self, kind: u16, payload: &[u8]) {
        if self.try_notify(kind, payload).is_err() {
            self.lose();
        }
    }

    fn try_notify(&mut self, kind: u16, payload: &[u8]) -> Result<(), AttrError> {
        match kind {
            kind::NEWSETELEM | kind::DELSETELEM => return Ok(()),
            kind::NEWGEN => return self.commit(payload),
            kind::NEWRULE | kind::DELRULE => {
                let rule = decode_rule_handle(payload)?;
                let (family, table, handle) = (rule.family, rule.table.to_owned(), rule.item);
                let key = RuleKey {
                    family,
                    table,
                    handle,
                };
                // `replace rule` is told as the deletion of the old rule, then the new one with the old one's handle.
                if kind == kind::DELRULE {
                    self.deleted.insert(key);
                } else if self.deleted.contains(&key) {
                    self.replacing.push(key);
                }
            }
            kind::NEWTABLE => {
                // Another table of the name of one that was deleted: its rules are no replacements, whatever their handles.
                let table = decode_table(payload)?;
                self.deleted
                    .retain(|key| key.family != table.family || key.table != table.name);
            }
            _ => {}
        }
        self.touched = true;
        Ok(())
    }

    /// `NFT_MSG_NEWGEN`: the end of a transaction.
    fn commit(&mut self, payload: &[u8]) -> Result<(), AttrError> {
        let generation = decode_generation(payload)?;
        let commit = Commit {
            generation: generation.id,
            pid: generation.pid,
            process: generation.process,
            at: SystemTime::now(),
            rules: std::mem::take(&mut self.touched),
        };
        self.deleted.clear();
        for key in std::mem::take(&mut self.replacing) {
            self.replaced_at(commit.generation, key);
        }
        if before(self.heard, commit.generation) {
            if commit.generation != next(self.heard) {
                self.lose();
                self.touched = false;
            }
            self.heard = commit.generation;
        }
        if before(self.newest.last, commit.generation) {
            if commit.rules || self.stale {
                self.stale = true;
            } else {
                self.newest.last = commit.generation;
            }
        } else if commit.rules && commit.generation == self.newest.first() {
            // It was read before it was announced. The kernel counts the generation up a moment before it makes the new rules visible
            // (`nf_tables_commit()`, net/netfilter/nf_tables_api.c, v6.18): a reading in between has the old rules under the new number.
            self.stale = true;
        }
        self.changes.commits.push(commit);
        Ok(())
    }

    /// Notifications were lost.
    pub fn lose(&mut self) {
        self.changes.lost = true;
        self.lossy = true;
        self.stale = true;
        // The rest of a transaction whose start is lost could look like one of elements only.
        self.touched = true;
    }

    fn replaced_at(&mut self, generation: u32, rule: RuleKey) {
        self.replaced.push_back(Replaced {
            rule,
            generation,
            heard: Instant::now(),
        });
        if self.replaced.len() > REMEMBERED {
            self.replaced.pop_front();
        }
    }

    /// Whether the newest reading is out of date: read the ruleset and call [`History::reading`].
    pub fn is_stale(&self) -> bool {
        self.stale
    }

    /// Takes in a new reading.
    pub fn reading(&mut self, ruleset: Ruleset) {
        self.changes.reread |= self.stale;
        self.stale = false;
        let mut previous = std::mem::replace(&mut self.newest, Snapshot::new(ruleset));
        let generation = self.newest.first();
        if std::mem::take(&mut self.lossy) {
            // What the lost notifications would have told.
            for key in differences(&previous, &self.newest) {
                self.replaced_at(generation, key);
            }
            self.gaps.push_back((previous.last, generation));
            if self.gaps.len() > REMEMBERED {
                self.gaps.pop_front();
            }
            if before(self.heard, generation) {
                self.heard = generation;
            }
        }
        if previous.first() == generation {
            self.newest.last = previous.last;
        } else {
            previous.slim();
            self.older.push_front(previous);
            self.older.truncate(KEPT - 1);
        }
    }

    /// What happened since the last call.
    pub fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.changes)
    }

    /// Something happened since [`History::take_changes`].
    pub fn has_changes(&self) -> bool {
        !self.changes.is_empty()
    }

    /// The newest reading.
    pub fn newest(&self) -> &Snapshot {
        &self.newest
    }

    /// The newest generation that is known of.
    pub fn newest_generation(&self) -> u32 {
        self.newest.last
    }

    /// The readings, newest first.
    pub fn snapshots(&self) -> impl Iterator<Item = &Snapshot> {
        std::iter::once(&self.newest).chain(&self.older)
    }

    /// The reading that has the chains and rules of this generation.
    pub fn at_generation(&self, generation: u32) -> Option<&Snapshot> {
        self.snapshots()
            .find(|snapshot| snapshot.covers(generation))
    }

    /// Finds a rule, or a chain if `rule` is `None`, by its handles: as it was in this generation, or else as it was last.
    ///
    /// A table's handle is never used again in its namespace, and another rule's or chain's never again in its table. Only `replace rule`
    /// gives a rule the handle of another; [`Found::certain`] says whether that leaves a doubt.
    pub fn find(
        &self,
        generation: Option<u32>,
        table: u64,
        chain: u64,
        rule: Option<u64>,
    ) -> Option<Found> {
        let candidates = || {
            self.snapshots().filter_map(move |snapshot| {
                Some((snapshot, snapshot.position(table, chain, rule)?))
            })
        };
        let key = |snapshot: &Snapshot, t: usize| {
            let table = snapshot.ruleset.tables.get(t)?;
            Some(RuleKey {
                family: table.family,
                table: table.name.clone(),
                handle: rule?,
            })
        };
        let unchanged = |snapshot: &Snapshot, t: usize, generation| {
            key(snapshot, t).is_none_or(|key| self.unchanged(&key, snapshot, generation))
        };
        let (snapshot, (t, c, r)) = match generation {
            None => candidates().next()?,
            Some(generation) => {
                let nearest = candidates()
                    .find(|(snapshot, _)| !before(generation, snapshot.first()))
                    // None so old has it: the oldest that does.
                    .or_else(|| candidates().last())?;
                let right = |(snapshot, (t, ..)): &(&Snapshot, (usize, usize, Option<usize>))| {
                    unchanged(snapshot, *t, generation)
                };
                if right(&nearest) {
                    nearest
                } else {
                    candidates().find(right).unwrap_or(nearest)
                }
            }
        };
        let in_newest = self.newest.position(table, chain, rule).is_some();
        Some(Found {
            ruleset: Arc::clone(&snapshot.ruleset),
            table: t,
            chain: c,
            rule: r,
            newest: in_newest && unchanged(snapshot, t, self.newest.last),
            certain: match generation {
                // Of a chain, what stands in it matters.
                Some(generation) if rule.is_none() => snapshot.covers(generation),
                Some(generation) => unchanged(snapshot, t, generation),
                None => key(snapshot, t).is_none_or(|key| !self.replaced_recently(&key)),
            },
            replaced: generation.and_then(|generation| {
                let key = key(snapshot, t)?;
                let mut replaced = self.replaced.iter();
                let found = replaced.find(|r| r.generation == generation && r.rule == key)?;
                Some(found.heard)
            }),
        })
    }

    fn replaced_recently(&self, rule: &RuleKey) -> bool {
        self.replaced
            .iter()
            .any(|r| r.heard.elapsed() < RECENT && r.rule == *rule)
    }

    /// Whether the rule is known to have been in `generation` what it is in `snapshot`, if it was there.
    fn unchanged(&self, key: &RuleKey, snapshot: &Snapshot, generation: u32) -> bool {
        if snapshot.covers(generation) {
            return true;
        }
        let (after, until) = if before(generation, snapshot.first()) {
            (generation, snapshot.first())
        } else {
            (snapshot.last, generation)
        };
        let replaced = self.replaced.iter().any(|replaced| {
            let at = replaced.generation;
            before(after, at) && !before(until, at) && replaced.rule == *key
        });
        let unknown = self
            .gaps
            .iter()
            .any(|&(from, to)| before(from, generation) && before(generation, to));
        let ahead = before(self.newest.last, generation);
        !replaced && !unknown && !ahead
    }
}

/// The rules that have one handle in both readings and are not the same.
fn differences(old: &Snapshot, new: &Snapshot) -> Vec<RuleKey> {
    let mut keys = Vec::new();
    for (handles, position) in &new.index {
        let Some(old_position) = old.index.get(handles) else {
            continue;
        };
        let (Some(a), Some(b)) = (old.rule(old_position), new.rule(position)) else {
            continue;
        };
        let Some(table) = new.ruleset.tables.get(position.0) else {
            continue;
        };
        if !a.is_same(b) {
            let (family, table, handle) = (table.family, table.name.clone(), b.handle);
            keys.push(RuleKey {
                family,
                table,
                handle,
            });
        }
    }
    keys
}

#[cfg(test)]
mod tests;
