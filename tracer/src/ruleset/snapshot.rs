//! A network namespace's rulesets by generation, followed live.
//!
//! [`Snapshots`] reads the ruleset once, then listens on `NFNLGRP_NFTABLES`, where the kernel tells of every part of a transaction and
//! at its end of the new generation and of who committed it. A transaction that touched more than elements of sets makes it read the
//! ruleset again; the last readings are kept ([`History`]), so that a rule that was replaced a moment ago is still found.
//!
//! Its sockets keep the namespace alive: drop the [`Snapshots`] when the namespace's name or last process is gone, or its links stay.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::time::{ClockId, clock_gettime};
use thiserror::Error;
use tokio::io::{Interest, unix::AsyncFd};

use super::history::before;
pub use super::history::{Changes, Commit, Found, History, KEPT, Snapshot};
use crate::{
    allowance::Allowance,
    netlink::{
        nftables::{self, ReadError, read_generation, read_ruleset},
        socket::{Protocol, Socket, SocketError},
    },
};

/// Room for the notifications of large transactions (one of 10,000 rules makes some 4 MB).
const RECEIVE_BUFFER: usize = 8 << 20;
/// Reading for the sake of sets' elements takes at most this part of the time: one in so many.
const SHARE: u32 = 10;

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

/// The rulesets of one network namespace.
#[derive(Debug)]
pub struct Snapshots {
    monitor: Socket,
    reader: Socket,
    history: History,
    readings: u64,
    /// When the ruleset was last read, and how long that took.
    read_at: Instant,
    cost: Duration,
    /// For [`Snapshots::settle`].
    allowance: Allowance,
    /// The newest generation was in force then for the first and for the last time, as far as is known. CLOCK_MONOTONIC, nanoseconds.
    held: (u64, u64),
}

impl AsFd for Snapshots {
    /// Readable when there are notifications to [`Snapshots::drain`].
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.monitor.as_fd()
    }
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
        let start = Instant::now();
        let history = History::new(read_ruleset(&mut reader)?);
        Ok(Self {
            monitor,
            reader,
            history,
            readings: 1,
            read_at: Instant::now(),
            cost: start.elapsed(),
            allowance: Allowance::new(SHARE, start),
            held: (now(), 0),
        })
    }

    /// Takes in all notifications that are there, without waiting for more, and reads the ruleset again where that is necessary.
    pub fn drain(&mut self) -> Result<Changes, SnapshotError> {
        self.catch_up()?;
        Ok(self.history.take_changes())
    }

    fn catch_up(&mut self) -> Result<(), SnapshotError> {
        loop {
            match self.monitor.recv() {
                Ok(None) => break,
                Ok(Some(messages)) => {
                    for message in messages {
                        match message {
                            Ok(message) => self.history.notify(message.kind, message.payload),
                            Err(_) => self.history.lose(),
                        }
                    }
                }
                Err(SocketError::Overrun | SocketError::TooBig { .. }) => self.history.lose(),
                Err(error) => return Err(error.into()),
            }
        }
        if !self.history.is_stale() {
            return Ok(());
        }
        match self.read() {
            // It is still being changed: the announcement of that is the next occasion.
            Err(SnapshotError::Read(ReadError::Unsettled { .. })) => Ok(()),
            other => other,
        }
    }

    /// Makes sure that the newest reading is of now: takes in what notifications there are, and reads the ruleset again if it has another
    /// generation. What was taken in is told by the next [`Snapshots::drain`].
    ///
    /// Blocks for microseconds, or for milliseconds when the ruleset must be read.
    pub fn refresh(&mut self) -> Result<(), SnapshotError> {
        self.catch_up()?;
        if read_generation(&mut self.reader)? != self.newest_generation() {
            self.read()?;
            // What led to this generation was announced meanwhile.
            self.catch_up()?;
        }
        Ok(())
    }

    fn read(&mut self) -> Result<(), SnapshotError> {
        self.readings += 1;
        let start = Instant::now();
        let ruleset = read_ruleset(&mut self.reader)?;
        self.read_at = Instant::now();
        self.cost = self.read_at - start;
        if ruleset.generation != self.history.newest().first() {
            self.held = (now(), 0);
        }
        self.history.reading(ruleset);
        Ok(())
    }

    /// Finds a rule, or a chain if `rule` is `None`, by its handles, as [`History::find`] does, after making sure that the readings
    /// are new enough. `generation` is the one in force when it decided (`net.nft.base_seq`), where that is known.
    ///
    /// Blocks for microseconds, or for milliseconds when the ruleset must be read. What was taken in is told by the next
    /// [`Snapshots::drain`]. `None`: the ruleset never had it as long as it was followed, or it came and went between two readings.
    pub fn resolve(
        &mut self,
        generation: Option<u32>,
        table: u64,
        chain: u64,
        rule: Option<u64>,
    ) -> Result<Option<Found>, SnapshotError> {
        if generation.is_none_or(|generation| self.history.at_generation(generation).is_none()) {
            self.catch_up()?;
        }
        let found = self.history.find(generation, table, chain, rule);
        if found.as_ref().is_some_and(|found| found.certain) {
            return Ok(found);
        }
        // A drop can come before the announcement of the generation that it is of.
        self.refresh()?;
        Ok(self.history.find(generation, table, chain, rule))
    }

    /// Makes the newest reading one of this very generation, elements of sets included; 0: of the newest one. `None`: it is of the past,
    /// or it cannot be read now without reading all the time.
    ///
    /// Blocks for milliseconds when the ruleset must be read.
    pub fn settle(&mut self, generation: u32) -> Option<()> {
        let settled = |history: &History| {
            let newest = history.newest();
            let wanted = match generation {
                0 => history.newest_generation(),
                generation => generation,
            };
            !history.is_stale() && newest.first() == wanted
        };
        if generation != 0 && settled(&self.history) {
            return Some(());
        }
        self.catch_up().ok()?;
        if settled(&self.history) {
            return Some(());
        }
        // Only elements have changed since, or the drop comes before the announcement of its generation.
        let past = before(generation, self.history.newest().first());
        let start = Instant::now();
        if (generation != 0 && past) || !self.allowance.affords(start) {
            return None;
        }
        let mut read = self.refresh();
        if read.is_ok() && !settled(&self.history) {
            read = self.read();
        }
        self.allowance.spend(start.elapsed());
        read.ok()?;
        settled(&self.history).then_some(())
    }

    /// Whether the newest reading, elements of sets included, is what was in force from `since` to `until` (CLOCK_MONOTONIC,
    /// nanoseconds), for which the kernel is asked where that is needed. One answer does for all that was before it.
    ///
    /// Blocks for microseconds, or for milliseconds when the ruleset must be read.
    pub fn was_in_force(&mut self, since: u64, until: u64) -> bool {
        if self.held.1 < until {
            if self.settle(0).is_none() {
                return false;
            }
            let asked = now();
            // A commit may not have been announced yet.
            match read_generation(&mut self.reader) {
                Ok(generation) if generation == self.history.newest().first() => {}
                _ => return false,
            }
            self.held.1 = asked;
        }
        self.held.0 <= since && !self.history.is_stale()
    }

    /// The readings and how to find something in them.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// The newest reading.
    pub fn newest(&self) -> &Snapshot {
        self.history.newest()
    }

    /// The newest generation that is known of.
    pub fn newest_generation(&self) -> u32 {
        self.history.newest_generation()
    }

    /// The socket that notifications arrive on, for the current tokio runtime; [`Snapshots::drain`] reads them.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn watch(&self) -> io::Result<AsyncFd<OwnedFd>> {
        watch_readable(self.monitor.as_fd().try_clone_to_owned()?)
    }

    /// How long ago the newest reading began.
    pub fn age(&self) -> Duration {
        self.read_at.elapsed() + self.cost
    }

    /// How often the ruleset was read, the first time included.
    pub fn readings(&self) -> u64 {
        self.readings
    }
}

/// CLOCK_MONOTONIC, nanoseconds.
fn now() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from);
    time.map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

fn open(netns: Option<BorrowedFd<'_>>, groups: &[u32]) -> Result<Socket, SocketError> {
    match netns {
        Some(netns) => Socket::open_in(netns, Protocol::Netfilter, groups),
        None => Socket::open(Protocol::Netfilter, groups),
    }
}

/// Registers the descriptor with the current tokio runtime.
#[expect(unsafe_code, reason = "tokio has no safe way to register a descriptor")]
pub(crate) fn watch_readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` always gives the same descriptor, and keeps it open until the `AsyncFd`, which owns it, is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}
