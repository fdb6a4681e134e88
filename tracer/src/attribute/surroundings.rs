//! Links, routes and ipsets of a network namespace, read when the evaluator first needs them and again when they have changed.

use std::{os::fd::BorrowedFd, sync::Arc, time::Duration};

use nix::time::{ClockId, clock_gettime};

use super::tracked::Answer;
use crate::{
    eval::{read::Needs, world::World},
    netlink::{
        conntrack::{self, Tuple},
        ipset::{self, Entry, IpSet},
        routes::{self, WorldError},
        socket::{Protocol, Socket, SocketError},
    },
};

/// Nobody tells of changes of ipsets. Where they only explain what the kernel has said, they are read again after so long, nanoseconds.
const SETS_AGE: u64 = 250_000_000;
/// Where they decide, reading them takes one in so much of the time at the most.
const SHARE: u64 = 4;

/// What surrounds the rules of a network namespace. Its sockets keep the namespace alive.
#[derive(Debug)]
pub struct Surroundings {
    /// Told of changes; `None`: cannot be, and nothing is known.
    monitor: Option<Socket>,
    reader: Option<Socket>,
    netfilter: Option<Socket>,
    world: World,
    stale: bool,
    sets: Readings,
    /// The world without ipsets.
    blind: World,
}

/// When the ipsets were read; CLOCK_MONOTONIC, nanoseconds, as in records of drops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Readings {
    /// The last reading began; 0: they were never read.
    began: u64,
    ended: u64,
    /// The end of the first of the readings that found what the last one did.
    same_since: u64,
}

impl Readings {
    fn read(&mut self, began: u64, ended: u64, same: bool) {
        if !same || self.began == 0 {
            self.same_since = ended;
        }
        (self.began, self.ended) = (began, ended);
    }

    /// Whether what was read last was there at that time: it was found before and after.
    fn hold(&self, at: u64) -> bool {
        self.began != 0 && (self.same_since..=self.began).contains(&at)
    }

    /// Whether to read them again for a drop at that time.
    fn is_due(&self, at: u64, now: u64, decisive: bool) -> bool {
        if self.began == 0 {
            return true;
        }
        if !decisive {
            return now.saturating_sub(self.began) >= SETS_AGE;
        }
        let pause = self.ended.saturating_sub(self.began) * (SHARE - 1);
        at > self.began && now.saturating_sub(self.ended) >= pause
    }
}

/// What is known at a drop.
#[derive(Debug)]
pub(super) struct Known<'a> {
    pub(super) world: &'a World,
    /// The same without ipsets, if those of `world` may not be what they were at the drop.
    pub(super) blind: Option<&'a World>,
}

impl Surroundings {
    /// Opens the sockets; reads nothing yet. What cannot be opened stays unknown.
    pub fn open(netns: BorrowedFd<'_>) -> Self {
        let open = |protocol, groups: &[u32]| Socket::open_in(netns, protocol, groups).ok();
        Self {
            monitor: open(Protocol::Route, &routes::GROUPS),
            reader: open(Protocol::Route, &[]),
            netfilter: open(Protocol::Netfilter, &[]),
            world: World::default(),
            stale: true,
            sets: Readings::default(),
            blind: World::default(),
        }
    }

    /// Reads the ipsets, which a rule names: what they were at a drop is known only if they were read before it.
    pub fn expect_sets(&mut self) {
        if self.sets.began == 0 {
            self.read_sets();
        }
    }

    /// What is known of a drop at `at` (CLOCK_MONOTONIC, nanoseconds), as far as it is needed. `decisive`: nothing else says which rule it
    /// was. Blocks for a millisecond or so where something has to be read.
    pub(super) fn at(&mut self, at: u64, needs: Needs, decisive: bool) -> Known<'_> {
        if needs.links {
            self.routes();
        }
        if needs.sets && self.sets.is_due(at, now(), decisive) {
            self.read_sets();
        }
        let known = !needs.sets || self.sets.hold(at);
        if !known && self.blind.version != self.world.version {
            let sets = self.world.sets.take();
            self.blind = self.world.clone();
            self.world.sets = sets;
        }
        Known {
            world: &self.world,
            blind: (!known).then_some(&self.blind),
        }
    }

    /// Links and routes as they are now.
    pub(super) fn routes(&mut self) -> &World {
        self.listen();
        if self.stale {
            self.read();
        }
        &self.world
    }

    /// The name that an interface has now.
    pub(super) fn interface(&mut self, index: u32) -> Option<Arc<str>> {
        let links = Needs {
            links: true,
            ..Needs::default()
        };
        let link = self.at(now(), links, false).world.link(index).ok()?;
        Some(link.name.as_str().into())
    }

    /// Asks conntrack for the connection that has this tuple in one of its directions. Blocks for microseconds.
    pub(super) fn connection(&mut self, tuple: &Tuple) -> Answer {
        let Some(socket) = &mut self.netfilter else {
            return Answer::Unknown;
        };
        let mut found = Answer::Nothing;
        let Ok(request) = conntrack::get(tuple, 0, socket.next_seq()) else {
            return Answer::Unknown;
        };
        let asked = socket.query(&request, |message| {
            if message.kind == conntrack::NEW {
                found = match conntrack::decode(message.payload) {
                    Ok(connection) => Answer::Found(Box::new(connection)),
                    Err(_) => Answer::Unknown,
                };
            }
        });
        match asked {
            Ok(()) => found,
            Err(error) if error.errno() == Some(libc::ENOENT) => Answer::Nothing,
            Err(error) => {
                log::debug!("cannot ask conntrack: {error}");
                Answer::Unknown
            }
        }
    }

    /// Takes in the announcements that are there.
    fn listen(&mut self) {
        let Some(monitor) = &mut self.monitor else {
            return;
        };
        loop {
            match monitor.recv() {
                Ok(None) => return,
                Ok(Some(_)) | Err(SocketError::Overrun | SocketError::TooBig { .. }) => {
                    self.stale = true;
                }
                Err(_) => {
                    // Changes would go unnoticed from now on.
                    self.monitor = None;
                    self.stale = true;
                    return;
                }
            }
        }
    }

    fn read(&mut self) {
        let reader = self.reader.as_mut().filter(|_| self.monitor.is_some());
        let version = self.world.version + 1;
        let sets = self.world.sets.take();
        self.world = match reader.map(routes::read_world_on) {
            Some(Ok(world)) => {
                self.stale = false;
                world
            }
            // It is being changed: the next drop is the next occasion.
            Some(Err(WorldError::Socket {
                source: SocketError::Interrupted,
                ..
            })) => World::default(),
            Some(Err(error)) => {
                log::warn!("cannot read links and routes: {error}");
                self.stale = false;
                World::default()
            }
            None => World::default(),
        };
        (self.world.version, self.world.sets) = (version, sets);
    }

    fn read_sets(&mut self) {
        let Some(socket) = &mut self.netfilter else {
            return;
        };
        let began = now();
        let sets = match ipset::read_sets(socket) {
            Ok(sets) => Some(sets),
            Err(error) => {
                log::debug!("cannot read ipsets: {error}");
                None
            }
        };
        let same = match (&sets, &self.world.sets) {
            (Some(new), Some(old)) => hold_the_same(new, old),
            (new, old) => new.is_none() && old.is_none(),
        };
        self.sets.read(began, now(), same);
        if sets != self.world.sets {
            self.world.sets = sets;
            self.world.version += 1;
        }
    }
}

/// Whether the same elements are in the same sets; how long they have left and what they have counted may differ.
fn hold_the_same(new: &[IpSet], old: &[IpSet]) -> bool {
    let lasting = |entry: &Entry| Entry {
        timeout: None,
        packets: None,
        bytes: None,
        ..entry.clone()
    };
    new.len() == old.len()
        && new.iter().zip(old).all(|(new, old)| {
            let alike = |set: &IpSet| IpSet {
                entries: Vec::new(),
                ..set.clone()
            };
            let mut entries = new.entries.iter().zip(&old.entries);
            new.entries.len() == old.entries.len()
                && alike(new) == alike(old)
                && entries.all(|(new, old)| lasting(new) == lasting(old))
        })
}

/// CLOCK_MONOTONIC, nanoseconds.
fn now() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from);
    time.map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_hold_between_two_readings_that_found_the_same() {
        let mut readings = Readings::default();
        assert!(readings.is_due(5, 10, true) && readings.is_due(5, 10, false));
        assert!(!readings.hold(5));
        readings.read(10, 12, false);
        for at in [5, 10, 11, 12, 13] {
            assert!(!readings.hold(at), "{at}");
        }
        readings.read(20, 22, true);
        assert!([12, 20].into_iter().all(|at| readings.hold(at)));
        assert!(!readings.hold(11) && !readings.hold(21));
        readings.read(30, 32, false);
        assert!(!readings.hold(25) && !readings.hold(30));
        readings.read(40, 42, true);
        assert!(readings.hold(32) && readings.hold(40) && !readings.hold(31));
    }

    #[test]
    fn sets_are_read_again_for_a_later_drop_but_not_all_the_time() {
        let mut readings = Readings::default();
        readings.read(100, 110, false);
        assert!(!readings.is_due(100, 1000, true), "read since");
        assert!(!readings.is_due(101, 139, true), "just read");
        assert!(readings.is_due(101, 140, true));
        assert!(!readings.is_due(101, 140, false));
        assert!(readings.is_due(101, 100 + SETS_AGE, false));
    }

    #[test]
    fn time_left_and_counters_do_not_make_another_set() {
        let set = |timeout, packets, mark| IpSet {
            entries: vec![Entry {
                timeout: Some(timeout),
                packets: Some(packets),
                mark: Some(mark),
                ..Entry::default()
            }],
            ..IpSet::default()
        };
        assert!(hold_the_same(&[set(9, 1, 7)], &[set(8, 2, 7)]));
        assert!(!hold_the_same(&[set(9, 1, 7)], &[set(9, 1, 6)]));
        assert!(!hold_the_same(&[set(9, 1, 7)], &[]));
    }
}
