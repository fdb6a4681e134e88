//! Links, routes and ipsets of a network namespace, read when the evaluator first needs them and again when they have changed.

use std::{
    os::fd::BorrowedFd,
    time::{Duration, Instant},
};

use crate::{
    eval::world::World,
    netlink::{
        ipset,
        routes::{self, WorldError},
        socket::{Protocol, Socket, SocketError},
    },
};

/// Nobody tells of changes of ipsets: they are read again after so long.
const SETS_AGE: Duration = Duration::from_millis(250);

/// What surrounds the rules of a network namespace. Its sockets keep the namespace alive.
#[derive(Debug)]
pub struct Surroundings {
    /// Told of changes; `None`: cannot be, and nothing is known.
    monitor: Option<Socket>,
    reader: Option<Socket>,
    netfilter: Option<Socket>,
    world: World,
    stale: bool,
    sets_read: Option<Instant>,
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
            sets_read: None,
        }
    }

    /// What is known now; with `sets`, the ipsets too. Blocks for a millisecond or so where something has to be read.
    pub fn world(&mut self, sets: bool) -> &World {
        self.listen();
        if self.stale {
            self.read();
        }
        let old = self.sets_read.is_none_or(|read| read.elapsed() >= SETS_AGE);
        if sets && old {
            self.read_sets();
        }
        &self.world
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
        self.sets_read = Some(Instant::now());
        let Some(socket) = &mut self.netfilter else {
            return;
        };
        let sets = match ipset::read_sets(socket) {
            Ok(sets) => Some(sets),
            Err(error) => {
                log::debug!("cannot read ipsets: {error}");
                None
            }
        };
        if sets != self.world.sets {
            self.world.sets = sets;
            self.world.version += 1;
        }
    }
}
