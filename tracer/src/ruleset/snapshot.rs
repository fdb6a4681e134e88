//! A network namespace's rulesets by generation, followed live.
//!
//! [`Snapshots`] reads the ruleset once, then listens on `NFNLGRP_NFTABLES`, where the kernel tells of every part of a transaction and
//! at its end of the new generation and of who committed it. A transaction that touched more than elements of sets makes it read the
//! ruleset again; the last [`KEPT`] readings are kept, so that a rule that was replaced a moment ago is still found.
//!
//! Its sockets keep the namespace alive: drop the [`Snapshots`] when the namespace's name or last process is gone, or its links stay.

use std::{
    collections::{HashMap, VecDeque},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::SystemTime,
};

use thiserror::Error;
use tokio::io::{Interest, unix::AsyncFd};

use super::model::{Ruleset, Set};
use crate::netlink::{
    attr::AttrError,
    nftables::{self, ReadError, decode_generation, kind, read_ruleset},
    socket::{Protocol, Socket, SocketError},
};

/// How many readings are kept.
pub const KEPT: usize = 16;
/// Room for the notifications of large transactions (a transaction of 10,000 rules makes some 4 MB).
const RECEIVE_BUFFER: usize = 8 << 20;
/// Named sets with more elements than this have them in the newest reading only.
const ELEMENTS_KEPT: usize = 1_000;

/// Why the rulesets cannot be followed.
#[derive(Debug, Error)]
pub enum SnapshotError {
    /// The ruleset could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The notifications could not be received.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The socket could not be registered with tokio.
    #[error("netlink: watch the socket: {0}")]
    Watch(#[source] io::Error),
}

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

    /// Gives up the elements of large named sets.
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
fn before(a: u32, b: u32) -> bool {
    a != b && b.wrapping_sub(a) < 1 << 31
}

/// The generation after this one: the kernel skips 0.
fn next(generation: u32) -> u32 {
    generation.wrapping_add(1).max(1)
}

/// A rule that was found by its handles.
#[derive(Debug, Clone)]
pub struct Found {
    /// The newest reading that has the rule.
    pub ruleset: Arc<Ruleset>,
    /// Index in [`Ruleset::tables`].
    pub table: usize,
    /// Index in [`Table::chains`](super::model::Table::chains).
    pub chain: usize,
    /// Index in [`Chain::rules`](super::model::Chain::rules); `None` when a chain was looked for.
    pub rule: Option<usize>,
    /// It is in the newest reading. `false`: it is no longer in the ruleset.
    pub newest: bool,
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
    /// The ruleset was read again.
    pub reread: bool,
    /// Notifications were lost: there may have been more transactions. The ruleset was read again.
    pub lost: bool,
}

impl Changes {
    fn is_empty(&self) -> bool {
        self.commits.is_empty() && !self.reread && !self.lost
    }
}

/// The rulesets of one network namespace.
#[derive(Debug)]
pub struct Snapshots {
    monitor: Socket,
    /// A duplicate of the monitor's descriptor, registered with tokio when [`Snapshots::changed`] is first called.
    watch: Option<AsyncFd<OwnedFd>>,
    reader: Socket,
    /// Oldest first, never empty.
    held: VecDeque<Snapshot>,
    follow: Follow,
    readings: u64,
}

/// What the notifications said so far and [`Snapshots::drain`] did not yet act upon.
#[derive(Debug, Default)]
struct Follow {
    /// The transaction that is being told of touches more than elements of sets.
    touched: bool,
    /// The newest reading is out of date.
    stale: bool,
    changes: Changes,
}

impl Snapshots {
    /// Starts to follow the rulesets of this network namespace, or of the calling thread's, and reads the current one.
    ///
    /// Blocks while the kernel answers (milliseconds). Needs CAP_NET_ADMIN, and CAP_SYS_ADMIN to enter a namespace.
    pub fn open(netns: Option<BorrowedFd<'_>>) -> Result<Self, SnapshotError> {
        // The monitor first, or a commit between reading and listening would be missed.
        let monitor = open(netns, &[nftables::GROUP])?;
        monitor.set_receive_buffer(RECEIVE_BUFFER)?;
        let mut reader = open(netns, &[])?;
        let first = Snapshot::new(read_ruleset(&mut reader)?);
        Ok(Self {
            monitor,
            watch: None,
            reader,
            held: VecDeque::from([first]),
            follow: Follow::default(),
            readings: 1,
        })
    }

    /// Waits for a change. The ruleset has then been read again where that was necessary (which blocks for milliseconds).
    ///
    /// Must be called within a tokio runtime with I/O enabled, always the same one. Cancel safe. After an error, the next call goes on;
    /// [`Snapshots::refresh`] makes up for a reading that failed.
    pub async fn changed(&mut self) -> Result<Changes, SnapshotError> {
        loop {
            let watch = match &mut self.watch {
                Some(watch) => watch,
                empty => {
                    let fd = self.monitor.as_fd().try_clone_to_owned();
                    let watch = fd.and_then(watch_readable).map_err(SnapshotError::Watch)?;
                    empty.insert(watch)
                }
            };
            // Cleared before reading to the end: what comes in between makes the descriptor ready again.
            watch
                .readable()
                .await
                .map_err(SnapshotError::Watch)?
                .clear_ready();
            let changes = self.drain()?;
            if !changes.is_empty() {
                return Ok(changes);
            }
        }
    }

    /// Takes in all notifications that are there, without waiting for more, and reads the ruleset again where that is necessary.
    pub fn drain(&mut self) -> Result<Changes, SnapshotError> {
        loop {
            match self.monitor.recv() {
                Ok(None) => break,
                Ok(Some(messages)) => {
                    for message in messages {
                        let Some(newest) = self.held.back_mut() else {
                            break;
                        };
                        match message {
                            Ok(message) => {
                                if self
                                    .follow
                                    .message(newest, message.kind, message.payload)
                                    .is_err()
                                {
                                    self.follow.lose();
                                }
                            }
                            Err(_) => self.follow.lose(),
                        }
                    }
                }
                Err(SocketError::Overrun | SocketError::TooBig { .. }) => self.follow.lose(),
                Err(error) => return Err(error.into()),
            }
        }
        if self.follow.stale {
            self.reread()?;
            self.follow.changes.reread = true;
        }
        Ok(std::mem::take(&mut self.follow.changes))
    }

    /// Reads the ruleset now, whatever the notifications say. Blocks while the kernel answers (milliseconds).
    pub fn refresh(&mut self) -> Result<(), SnapshotError> {
        self.reread()
    }

    fn reread(&mut self) -> Result<(), SnapshotError> {
        self.readings += 1;
        let mut snapshot = Snapshot::new(read_ruleset(&mut self.reader)?);
        self.follow.stale = false;
        if let Some(newest) = self.held.back_mut() {
            newest.slim();
            if newest.first() == snapshot.first() {
                snapshot.last = newest.last;
                self.held.pop_back();
            }
        }
        self.held.push_back(snapshot);
        while self.held.len() > KEPT {
            self.held.pop_front();
        }
        Ok(())
    }

    /// The newest reading.
    pub fn newest(&self) -> Option<&Snapshot> {
        self.held.back()
    }

    /// The newest generation that is known of.
    pub fn newest_generation(&self) -> u32 {
        self.held.back().map_or(0, |snapshot| snapshot.last)
    }

    /// The reading that has the chains and rules of this generation.
    pub fn at_generation(&self, generation: u32) -> Option<&Snapshot> {
        self.held
            .iter()
            .rev()
            .find(|snapshot| snapshot.covers(generation))
    }

    /// Finds a rule by its handles, in the newest reading that has it.
    ///
    /// A table's handle is never used again in its namespace and a rule's never again in its table, so that there is no wrong answer.
    pub fn find(&self, table: u64, chain: u64, rule: u64) -> Option<Found> {
        self.held
            .iter()
            .rev()
            .enumerate()
            .find_map(|(age, snapshot)| {
                let &(t, c, r) = snapshot.index.get(&(table, rule))?;
                let held = snapshot.ruleset.tables.get(t)?.chains.get(c)?;
                (held.handle == chain).then(|| Found {
                    ruleset: Arc::clone(&snapshot.ruleset),
                    table: t,
                    chain: c,
                    rule: Some(r),
                    newest: age == 0,
                })
            })
    }

    /// Finds a chain by its handles, in the newest reading that has it: for drops by a policy.
    pub fn find_chain(&self, table: u64, chain: u64) -> Option<Found> {
        self.held
            .iter()
            .rev()
            .enumerate()
            .find_map(|(age, snapshot)| {
                let (t, held) = snapshot.ruleset.table(table)?;
                let c = held
                    .chains
                    .iter()
                    .position(|candidate| candidate.handle == chain)?;
                Some(Found {
                    ruleset: Arc::clone(&snapshot.ruleset),
                    table: t,
                    chain: c,
                    rule: None,
                    newest: age == 0,
                })
            })
    }

    /// The socket that notifications arrive on, for the current tokio runtime; [`Snapshots::drain`] reads them.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn watch(&self) -> io::Result<AsyncFd<OwnedFd>> {
        watch_readable(self.monitor.as_fd().try_clone_to_owned()?)
    }

    /// How often the ruleset was read, the first time included.
    pub fn readings(&self) -> u64 {
        self.readings
    }
}

fn open(netns: Option<BorrowedFd<'_>>, groups: &[u32]) -> Result<Socket, SocketError> {
    match netns {
        Some(netns) => Socket::open_in(netns, Protocol::Netfilter, groups),
        None => Socket::open(Protocol::Netfilter, groups),
    }
}

/// Registers the descriptor with the current tokio runtime.
#[expect(unsafe_code, reason = "tokio has no safe way to register a descriptor")]
fn watch_readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` always gives the same descriptor, and keeps it open until the `AsyncFd`, which owns it, is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// Reads the ruleset of this network namespace, or of the calling thread's, once: for `fwtrace rules`.
///
/// Blocks while the kernel answers (milliseconds).
pub fn read_once(netns: Option<BorrowedFd<'_>>) -> Result<Ruleset, ReadError> {
    read_ruleset(&mut open(netns, &[])?)
}

impl Follow {
    fn lose(&mut self) {
        self.changes.lost = true;
        self.stale = true;
        // The rest of a transaction whose start is lost could look like one of elements only.
        self.touched = true;
    }

    /// Takes in one notification.
    fn message(
        &mut self,
        newest: &mut Snapshot,
        kind: u16,
        payload: &[u8],
    ) -> Result<(), AttrError> {
        match kind {
            kind::NEWSETELEM | kind::DELSETELEM => {}
            kind::NEWGEN => {
                let generation = decode_generation(payload)?;
                let commit = Commit {
                    generation: generation.id,
                    pid: generation.pid,
                    process: generation.process,
                    at: SystemTime::now(),
                    rules: std::mem::take(&mut self.touched),
                };
                self.stale |= commit_makes_stale(newest, &commit);
                self.changes.commits.push(commit);
            }
            _ => self.touched = true,
        }
        Ok(())
    }
}

/// Whether the newest reading must be replaced because of this commit; if not, its generations are extended.
fn commit_makes_stale(newest: &mut Snapshot, commit: &Commit) -> bool {
    if before(newest.last, commit.generation) {
        if commit.rules || commit.generation != next(newest.last) {
            return true;
        }
        newest.last = commit.generation;
        return false;
    }
    // It was read already. The kernel counts the generation up a moment before it makes the new rules visible, and announces it
    // after (`nf_tables_commit()`, net/netfilter/nf_tables_api.c, v6.18): a reading in between has the old rules under the new number.
    commit.rules && commit.generation == newest.first()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        netlink::attr::Writer,
        ruleset::model::{Chain, Family, Rule, Table},
    };

    fn reading(generation: u32, rule: u64) -> Snapshot {
        let rule = Rule {
            handle: rule,
            number: 1,
            ..Rule::default()
        };
        let chain = Chain {
            name: "in".into(),
            handle: 1,
            base: None,
            flags: 0,
            comment: None,
            userdata: Vec::new(),
            rules: vec![rule],
        };
        let table = Table {
            family: Family::Inet,
            name: "t".into(),
            handle: 5,
            flags: 0,
            owner: None,
            comment: None,
            userdata: Vec::new(),
            chains: vec![chain],
            sets: Vec::new(),
            objects: Vec::new(),
            flowtables: Vec::new(),
        };
        Snapshot::new(Ruleset {
            generation,
            tables: vec![table],
            problems: Vec::new(),
        })
    }

    fn generation(id: u32) -> Vec<u8> {
        Writer::new()
            .raw(&[0; 4])
            .be32(1, id)
            .be32(2, 42)
            .str(3, "nft")
            .finish()
            .unwrap()
    }

    /// Takes in messages of these kinds, then the generation.
    fn commit(follow: &mut Follow, newest: &mut Snapshot, kinds: &[u16], id: u32) {
        for &kind in kinds {
            follow.message(newest, kind, &[0; 4]).unwrap();
        }
        follow
            .message(newest, kind::NEWGEN, &generation(id))
            .unwrap();
    }

    #[test]
    fn elements_extend_and_rules_make_stale() {
        let (mut follow, mut newest) = (Follow::default(), reading(7, 2));
        commit(
            &mut follow,
            &mut newest,
            &[kind::NEWSETELEM, kind::DELSETELEM],
            8,
        );
        assert!(!follow.stale && newest.last == 8 && newest.covers(8) && !newest.covers(9));
        commit(
            &mut follow,
            &mut newest,
            &[kind::NEWSETELEM, kind::NEWRULE],
            9,
        );
        assert!(follow.stale && newest.last == 8);
        let commits = &follow.changes.commits;
        assert_eq!(
            commits.iter().map(|c| c.rules).collect::<Vec<_>>(),
            [false, true]
        );
        assert_eq!((commits[1].pid, commits[1].process.as_str()), (42, "nft"));
    }

    #[test]
    fn a_gap_makes_stale() {
        let (mut follow, mut newest) = (Follow::default(), reading(7, 2));
        commit(&mut follow, &mut newest, &[kind::NEWSETELEM], 9);
        assert!(follow.stale);
    }

    #[test]
    fn a_reading_before_the_announcement_is_repeated() {
        let (mut follow, mut newest) = (Follow::default(), reading(7, 2));
        commit(&mut follow, &mut newest, &[kind::NEWRULE], 6);
        assert!(!follow.stale);
        commit(&mut follow, &mut newest, &[kind::NEWRULE], 7);
        assert!(follow.stale);
    }

    #[test]
    fn generations_wrap_and_skip_zero() {
        assert!(before(u32::MAX, 1) && !before(1, u32::MAX) && !before(4, 4));
        assert_eq!((next(u32::MAX), next(1)), (1, 2));
        let (mut follow, mut newest) = (Follow::default(), reading(u32::MAX, 2));
        commit(&mut follow, &mut newest, &[kind::NEWSETELEM], 1);
        assert!(!follow.stale && newest.covers(1) && newest.covers(u32::MAX));
    }

    #[test]
    fn nonsense_counts_as_loss() {
        let (mut follow, mut newest) = (Follow::default(), reading(7, 2));
        assert!(follow.message(&mut newest, kind::NEWGEN, &[0; 3]).is_err());
        follow.lose();
        assert!(follow.stale && follow.changes.lost && !follow.changes.is_empty());
    }
}
