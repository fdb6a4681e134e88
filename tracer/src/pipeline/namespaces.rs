//! The watched namespaces and their rulesets, followed while they live.
//!
//! A netlink socket or an open nsfs file keeps its namespace alive. So each is let go as soon as
//! nobody but fwtrace holds the namespace.

use std::{
    cell::RefCell,
    collections::HashMap,
    os::fd::OwnedFd,
    rc::{Rc, Weak},
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::{io::unix::AsyncFd, sync::mpsc::UnboundedSender, task::JoinHandle};

use crate::{
    attribute::{Place, Surroundings},
    bpf::{
        load::Programs,
        order::{Lists, Order},
    },
    conntrack::Connections,
    eval::reach::Reach,
    event::{ChangedBy, ConntrackCount, ErrorEvent, Event, NetnsRef, RulesetChange},
    explain::Explainer,
    netlink::{conntrack::Counters, ipset},
    netns::{self, NetNs},
    nflog::rules::{Followed, LogRules},
    ruleset::{render::Names, snapshot::Snapshots},
    xtables::{legacy::follow::Tables, save},
};

/// How often conntrack is looked at; and in how many namespaces at a time.
const SAMPLE: Duration = Duration::from_secs(1);
const SAMPLED: usize = 32;

/// One namespace.
struct Watched {
    netns: NetnsRef,
    epoch: u64,
    /// Kept open for its interfaces; `None`: gone before it could be opened.
    file: Option<NetNs>,
    names: Names,
    /// `None`: its rulesets cannot be read.
    rulesets: Option<Snapshots>,
    /// `None`: its legacy tables cannot be read.
    legacy: Option<Tables>,
    /// `None`: gone before they could be read.
    surroundings: Option<Surroundings>,
    /// As `file`.
    explainer: Option<Explainer>,
    /// `None`: it cannot be asked, or is not there yet.
    connections: Option<Connections>,
    /// The BPF programs know what conntrack has counted before.
    counters_told: bool,
    /// That they could not be read the last time was told.
    legacy_failed: bool,
    /// The rules that log over NFLOG.
    logs: Followed,
    /// What its rules ask for, and of which readings: of the nf_tables ruleset, and the generation of the legacy tables.
    reach: (Option<Newest>, Reach),
    /// The task that follows the ruleset; ends with this.
    follower: Option<JoinHandle<()>>,
    /// It has a name or a process besides us. One that never had (the demo's own) is not let go.
    findable: bool,
}

/// Which rulesets are the newest.
type Newest = (Option<u64>, Option<u32>);

impl Watched {
    /// What its rules as they were read last ask for; cheap where that was not since the last time.
    fn reach(&mut self) -> Reach {
        let (rulesets, legacy) = (self.rulesets.as_ref(), self.legacy.as_ref());
        let newest = (
            rulesets.map(Snapshots::readings),
            legacy.map(Tables::generation),
        );
        if self.reach.0 != Some(newest) {
            let nft = rulesets.map(|rulesets| &*rulesets.newest().ruleset);
            let tables = legacy.into_iter().flat_map(Tables::newest);
            self.reach = (Some(newest), Reach::new(nft, tables.map(|table| &**table)));
        }
        self.reach.1
    }

    /// Reads anew what its rules name: the machine's names, the namespace's interfaces as they are now, and its ipsets if a rule has one.
    fn name(&mut self, system: &Names) {
        let (rulesets, legacy) = (self.rulesets.as_ref(), self.legacy.as_ref());
        let Some(netns) = &self.file else {
            self.names = system.clone();
            return;
        };
        let interfaces = netns.interfaces().unwrap_or_default();
        let names = system.clone().with_interfaces(interfaces);
        let ruleset = rulesets.map(|rulesets| &*rulesets.newest().ruleset);
        let tables = legacy.into_iter().flat_map(Tables::newest);
        // Asking for ipsets can have the kernel load a module.
        let sets = save::names_ip_sets(ruleset, tables.map(|table| &**table));
        self.names = match sets {
            true => names.with_ip_sets(ipset::names_in(netns)),
            false => names,
        };
        if let Some(surroundings) = self.surroundings.as_mut().filter(|_| sets) {
            surroundings.expect_sets();
        }
    }

    /// What conntrack has counted so far.
    fn conntrack(&mut self) -> Option<ConntrackCount> {
        let connections = self.connections.as_mut()?;
        if let Err(error) = connections.sample() {
            log::info!(
                "conntrack of network namespace {}: {error}",
                self.netns.inode
            );
        }
        connections.account(&self.netns)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(follower) = &self.follower {
            follower.abort();
        }
    }
}

/// All of them, by inode.
pub(super) struct Namespaces {
    watched: HashMap<u32, Watched>,
    /// Every namespace is watched, whenever it appears.
    all: bool,
    found: netns::Names,
    /// Of the machine; each namespace has interfaces of its own.
    system: Names,
    epochs: u64,
    /// Of namespaces that are gone.
    ended: Vec<ConntrackCount>,
    events: UnboundedSender<Event>,
    /// For the tasks that follow the rulesets.
    this: Weak<RefCell<Self>>,
}

impl Namespaces {
    /// None yet; `all`: those that drops come from are taken in when they do. What happens to their
    /// rulesets is told through `events`.
    pub(super) fn new(all: bool, events: UnboundedSender<Event>) -> Rc<RefCell<Self>> {
        Rc::new_cyclic(|this| {
            RefCell::new(Self {
                watched: HashMap::new(),
                all,
                found: netns::Names::default(),
                system: Names::system(),
                epochs: 0,
                ended: Vec::new(),
                events,
                this: this.clone(),
            })
        })
    }

    /// Reads the namespace's ruleset, and follows it from now on. Must run inside a `LocalSet`.
    pub(super) fn add(&mut self, netns: &NetNs) {
        let rulesets = match Snapshots::open(Some(netns.as_fd())) {
            Ok(rulesets) => Some(rulesets),
            Err(error) => {
                self.tell(format!(
                    "cannot read the rulesets of network namespace {netns}: {error}; its rules are shown by handle"
                ));
                None
            }
        };
        let legacy = match Tables::open(netns) {
            Ok(legacy) => Some(legacy),
            Err(error) => {
                self.tell(format!("network namespace {netns}: {error}"));
                None
            }
        };
        let inode = netns.inode();
        self.epochs += 1;
        let follower = rulesets.as_ref().and_then(|rulesets| {
            let socket = rulesets.watch().ok()?;
            let follow = follow(self.this.clone(), inode, socket);
            Some(tokio::task::spawn_local(follow))
        });
        let findable = self.found.name(inode).is_some();
        let mut watched = Watched {
            netns: netns.to_ref(),
            epoch: self.epochs,
            names: self.system.clone(),
            file: Some(netns.clone()),
            rulesets,
            legacy,
            surroundings: Some(Surroundings::open(netns.as_fd())),
            explainer: Some(Explainer::new(netns.clone())),
            connections: connections(netns),
            counters_told: false,
            legacy_failed: false,
            logs: Followed::default(),
            reach: Default::default(),
            follower,
            findable,
        };
        watched.name(&self.system);
        self.watched.insert(inode, watched);
    }

    /// Takes in the namespace of a drop, if it is new; gives it then.
    pub(super) fn meet(&mut self, inode: u32) -> Option<NetNs> {
        if !self.all || self.watched.contains_key(&inode) {
            return None;
        }
        let found = self.found.open(inode);
        match &found {
            Some(netns) => self.add(netns),
            None => {
                self.epochs += 1;
                let nameless = Watched {
                    netns: NetnsRef { inode, name: None },
                    epoch: self.epochs,
                    names: self.system.clone(),
                    file: None,
                    rulesets: None,
                    legacy: None,
                    surroundings: None,
                    explainer: None,
                    connections: None,
                    counters_told: true,
                    legacy_failed: false,
                    logs: Followed::default(),
                    reach: Default::default(),
                    follower: None,
                    findable: true,
                };
                self.watched.insert(inode, nameless);
            }
        }
        found
    }

    /// Hands `inode`'s place to `f`; `order`: what reads the lists of its hooks.
    pub(super) fn with<T>(
        &mut self,
        inode: u32,
        order: Option<(&mut Order, &mut Programs)>,
        f: impl FnOnce(Place<'_>) -> T,
    ) -> T {
        match self.watched.get_mut(&inode) {
            Some(watched) => f(Place {
                lists: order
                    .zip(watched.file.as_ref())
                    .map(|((order, programs), netns)| Lists {
                        order,
                        programs,
                        netns,
                    }),
                netns: &watched.netns,
                rulesets: watched.rulesets.as_mut(),
                legacy: watched.legacy.as_mut(),
                surroundings: watched.surroundings.as_mut(),
                explainer: watched.explainer.as_mut(),
                connections: watched.connections.as_mut(),
                names: &watched.names,
                epoch: watched.epoch,
            }),
            // Let go while records of it were on their way.
            None => f(Place {
                netns: &NetnsRef { inode, name: None },
                rulesets: None,
                legacy: None,
                surroundings: None,
                explainer: None,
                lists: None,
                connections: None,
                names: &self.system,
                epoch: 0,
            }),
        }
    }

    /// Lets go of the namespaces that only fwtrace holds any more, and tells which.
    pub(super) fn let_go(&mut self) -> Vec<NetnsRef> {
        let found = &mut self.found;
        let gone: Vec<u32> = self
            .watched
            .iter()
            .filter(|(inode, watched)| watched.findable && found.name(**inode).is_none())
            .map(|(inode, _)| *inode)
            .collect();
        let mut names = Vec::new();
        for inode in gone {
            let Some(mut watched) = self.watched.remove(&inode) else {
                continue;
            };
            self.ended.extend(watched.conntrack());
            names.push(watched.netns.clone());
        }
        names
    }

    /// Whether none is left, and none will come.
    pub(super) fn is_over(&self) -> bool {
        !self.all && self.watched.is_empty()
    }

    /// `inode`'s legacy tables, if they can be read.
    pub(super) fn legacy(&mut self, inode: u32) -> Option<&mut Tables> {
        self.watched.get_mut(&inode)?.legacy.as_mut()
    }

    /// The namespaces whose legacy tables can be read: inode, epoch, the namespace, its tables.
    pub(super) fn legacy_tables(
        &mut self,
    ) -> impl Iterator<Item = (u32, u64, &NetNs, &mut Tables)> {
        self.watched.iter_mut().filter_map(|(inode, watched)| {
            let netns = watched.file.as_ref()?;
            Some((*inode, watched.epoch, netns, watched.legacy.as_mut()?))
        })
    }

    /// Conntrack of `inode`, if it can be asked.
    pub(super) fn connections(&mut self, inode: u32) -> Option<&mut Connections> {
        self.watched.get_mut(&inode)?.connections.as_mut()
    }

    /// Takes a look at conntrack of some namespaces, of those first that have not been looked at for longest.
    pub(super) fn sample_conntrack(&mut self) {
        let now = Instant::now();
        let mut due = Vec::new();
        for (inode, watched) in &mut self.watched {
            // Its module may have come only now.
            if watched.connections.is_none()
                && let Some(netns) = &watched.file
            {
                watched.connections = connections(netns);
            }
            if let Some(connections) = &watched.connections
                && now >= connections.sampled() + SAMPLE
            {
                due.push((connections.sampled(), *inode));
            }
        }
        due.sort_unstable();
        for (_, inode) in due.into_iter().take(SAMPLED) {
            if let Some(connections) = self.connections(inode)
                && let Err(error) = connections.sample()
            {
                log::info!("conntrack of network namespace {inode}: {error}");
            }
        }
    }

    /// What conntrack has counted in namespaces of which that has not been told: inode, processor, counters.
    pub(super) fn untold_counters(&mut self) -> Vec<(u32, u32, Counters)> {
        let mut untold = Vec::new();
        for (inode, watched) in &mut self.watched {
            if watched.counters_told {
                continue;
            }
            if let Some(connections) = &mut watched.connections {
                // Of this moment, or it would be of before the first drops.
                if let Err(error) = connections.sample() {
                    log::info!("conntrack of network namespace {inode}: {error}");
                    continue;
                }
                watched.counters_told = true;
                let counters = connections.counters();
                untold.extend(counters.map(|(cpu, counters)| (*inode, cpu, *counters)));
            }
        }
        untold
    }

    /// What conntrack has counted since it was watched first, in all namespaces, those included that are gone.
    pub(super) fn conntrack(&mut self) -> Vec<ConntrackCount> {
        let mut counts = self.ended.clone();
        counts.extend(self.watched.values_mut().filter_map(Watched::conntrack));
        counts.sort_by_key(|count| count.netns.inode);
        counts
    }

    /// What the rules of all watched namespaces together ask for.
    pub(super) fn reach(&mut self) -> Reach {
        let each = self.watched.values_mut().map(Watched::reach);
        each.fold(Reach::default(), Reach::and)
    }

    /// The rules that log over NFLOG, by namespace: inode, the namespace, its rules.
    pub(super) fn log_rules(&mut self) -> impl Iterator<Item = (u32, &NetNs, &Arc<LogRules>)> {
        self.watched.iter_mut().filter_map(|(inode, watched)| {
            let netns = watched.file.as_ref()?;
            let (rulesets, legacy) = (watched.rulesets.as_ref(), watched.legacy.as_ref());
            let rules = watched.logs.rules(rulesets, legacy, &watched.names);
            Some((*inode, netns, rules))
        })
    }

    /// Looks for replaced legacy tables: nobody tells of them, but there may be a hint.
    pub(super) fn poll_legacy(&mut self, hinted: bool) {
        let mut errors = Vec::new();
        for watched in self.watched.values_mut() {
            let Some(legacy) = &mut watched.legacy else {
                continue;
            };
            let polled = legacy.poll(hinted);
            let failed = polled.as_ref().err().map(ToString::to_string);
            if polled.is_ok_and(|replaced| replaced) {
                watched.name(&self.system);
            }
            let before = std::mem::replace(&mut watched.legacy_failed, failed.is_some());
            // Once, not at every look.
            if let Some(error) = failed.filter(|_| !before) {
                let netns = &watched.netns;
                let name = netns.name.as_deref().map(str::to_owned);
                let name = name.unwrap_or_else(|| netns.inode.to_string());
                errors.push(format!("network namespace {name}: {error}"));
            }
        }
        for error in errors {
            self.tell(error);
        }
    }

    /// Something happened to `inode`'s ruleset.
    fn changed(&mut self, inode: u32) {
        let Some(watched) = self.watched.get_mut(&inode) else {
            return;
        };
        let Some(rulesets) = &mut watched.rulesets else {
            return;
        };
        match rulesets.drain() {
            Ok(changes) => {
                if changes.reread {
                    watched.name(&self.system);
                }
                for commit in changes.commits {
                    // The run is over if nobody listens.
                    let _ = self.events.send(Event::RulesetChange(RulesetChange {
                        time: Timestamp::try_from(commit.at).unwrap_or_default(),
                        netns: watched.netns.clone(),
                        generation: commit.generation,
                        by: (commit.pid != 0).then(|| ChangedBy {
                            pid: commit.pid,
                            comm: commit.process.into(),
                        }),
                    }));
                }
            }
            Err(error) => self.tell(format!("cannot follow the ruleset: {error}")),
        }
    }

    fn tell(&self, message: String) {
        let _ = self.events.send(Event::Error(ErrorEvent {
            time: Timestamp::now(),
            message,
        }));
    }
}

/// Conntrack there, if it can be asked.
fn connections(netns: &NetNs) -> Option<Connections> {
    Connections::open(netns).unwrap_or_else(|error| {
        log::info!("conntrack of network namespace {netns}: {error}");
        None
    })
}

/// Waits for notifications about `inode`'s ruleset, until the task is aborted.
async fn follow(namespaces: Weak<RefCell<Namespaces>>, inode: u32, socket: AsyncFd<OwnedFd>) {
    while let Ok(mut ready) = socket.readable().await {
        ready.clear_ready();
        let Some(namespaces) = namespaces.upgrade() else {
            return;
        };
        namespaces.borrow_mut().changed(inode);
    }
}
