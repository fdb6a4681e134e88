//! `--trace` in the watched namespaces: the table, the sockets, and which trace is of which drop.
//!
//! ```text
//! group 9, NFLOG 0 --tasks, and before each batch--> Traces --Tracing::join(batch)--> one trace or none for each drop
//! ```
//!
//! Everything is undone when this is dropped: the tables go with their sockets, and the loggers are put back.

use std::{
    cell::RefCell,
    collections::HashMap,
    fs, io,
    os::fd::{AsFd, OwnedFd},
    rc::{Rc, Weak},
    sync::Arc,
    time::{Duration, Instant},
};

use fwtrace_abi::{RULE_POLICY, RULE_RULE, Record};
use nix::sys::stat::fstat;
use tokio::{io::unix::AsyncFd, task::JoinHandle};

use super::namespaces::Namespaces;
use crate::{
    bpf::reader::RawDrop,
    cli::Filter,
    conntrack::words,
    netlink::{
        nflog::{self, Copy, ListenError, Setting},
        nftrace,
        socket::{Message, Protocol, Socket, SocketError},
        sockets,
    },
    netns::{self, NetNs},
    nflog::listener::{self, now},
    packet::Capture,
    ruleset::snapshot::watch_readable,
    trace::{
        announce,
        headers::Headers,
        join::{Between, Found, Traces},
        lines::Logged,
        logger::{self, LoggerError, Switched},
        resolve,
        table::{self, TableError},
    },
    xtables::{
        Family,
        legacy::{follow::Tables, read::ReadError},
    },
};

/// Room for traces; a packet's takes some 1,300 bytes a rule that it matches.
const RECEIVE_BUFFER: usize = 16 << 20;
/// Datagrams that are received at a time: traces of everything can come faster than they are read.
const DATAGRAMS: usize = 16 * 1024;
/// The NFLOG group that TRACE lines go to: the kernel's default.
pub(super) const GROUP: u16 = 0;
/// Whether conntrack picks up TCP connections whose beginning it has not seen; read again after so long.
const LOOSE: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_loose";
const LOOSE_FOR: Duration = Duration::from_secs(1);
/// Bytes of each packet that come with a line: the headers.
const COPIED: u32 = 128;

/// A namespace cannot be traced.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The table.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A socket.
    #[error("--trace: {0}")]
    Socket(#[from] SocketError),
    /// tokio.
    #[error("--trace: cannot watch a socket: {0}")]
    Watch(#[from] io::Error),
}

/// Why ip_tables' rules are not traced, nor conntrack's reasons told.
#[derive(Debug, thiserror::Error)]
enum NoLines {
    #[error(transparent)]
    Netns(#[from] netns::Error),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Logger(#[from] LoggerError),
    #[error(transparent)]
    Watch(#[from] io::Error),
    #[error("both come over NFLOG group {GROUP}, which {0} has")]
    Taken(String),
}

/// What the kernel has told of a drop.
#[derive(Debug, Default)]
pub(super) struct Joined {
    /// Its way.
    pub(super) trace: Option<Found>,
    /// Why conntrack called the packet invalid, in the kernel's words.
    pub(super) invalid: Option<Arc<str>>,
}

/// What the traces of all namespaces need.
pub(super) struct Tracing {
    filter: Filter,
    rate: u32,
    traced: HashMap<u32, Traced>,
    /// For the tasks that receive.
    this: Weak<RefCell<Self>>,
}

/// One namespace.
struct Traced {
    netns: NetNs,
    traces: Traces,
    events: Receiver,
    lines: Option<Lines>,
    /// Its owner: closed, the table is gone.
    _table: Socket,
}

/// ip_tables' TRACE lines, and conntrack's reasons.
struct Lines {
    receiver: Receiver,
    /// Whether conntrack picks connections up, and when that was read.
    loose: Option<(Instant, bool)>,
    _switched: Switched,
}

/// A socket with traces.
struct Receiver {
    socket: Socket,
    task: JoinHandle<()>,
    /// Nothing was there then; CLOCK_MONOTONIC, nanoseconds.
    empty: u64,
    /// It has overflowed since the losses were counted.
    overrun: bool,
    /// Losses that were told.
    lost: u64,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Tracing {
    /// Nothing is traced yet. What earlier runs have left is put back.
    pub(super) fn new(filter: &Filter, rate: u32) -> Rc<RefCell<Self>> {
        logger::recover();
        Rc::new_cyclic(|this| {
            RefCell::new(Self {
                filter: filter.clone(),
                rate,
                traced: HashMap::new(),
                this: this.clone(),
            })
        })
    }

    /// Traces in this namespace from now on. Must run inside a `LocalSet`.
    ///
    /// # Errors
    /// See [`TraceError`]. Where only ip_tables cannot be traced, it is said and goes on without.
    pub(super) fn add(&mut self, netns: &NetNs) -> Result<(), TraceError> {
        let inode = netns.inode();
        let open = |groups: &[u32]| Socket::open_in(netns.as_fd(), Protocol::Netfilter, groups);
        // Before the table: the first trace is to be heard.
        let events = self.receiver(inode, open(&[nftrace::GROUP])?)?;
        let mut owner = open(&[])?;
        let name = table::free_name(&mut owner)?;
        announce(&format!(
            "--trace: adds table inet {name} to network namespace {netns}; it goes with this process"
        ));
        table::add(&mut owner, &name, &self.filter, self.rate)?;
        let lines = self.lines(netns).unwrap_or_else(|error| {
            announce(&format!(
                "--trace: in network namespace {netns} neither are rules of iptables-legacy traced, nor is it told why packets are invalid: {error}"
            ));
            None
        });
        let mut traces = Traces::default();
        traces.partial = self.rate > 0;
        let traced = Traced {
            netns: netns.clone(),
            traces,
            events,
            lines,
            _table: owner,
        };
        self.traced.insert(inode, traced);
        Ok(())
    }

    /// Listens to ip_tables and conntrack; `None`: the one has no tables here, and the other is not there.
    fn lines(&self, netns: &NetNs) -> Result<Option<Lines>, NoLines> {
        let tables = Tables::open(netns)?;
        let families = [Family::V4, Family::V6];
        let has = |family: &Family| tables.newest().any(|table| table.family == *family);
        let reasons = logger::can_log_invalid(netns)?;
        let families: Vec<Family> = families
            .into_iter()
            .filter(|family| reasons || has(family))
            .collect();
        if families.is_empty() {
            return Ok(None);
        }
        let mut socket = Socket::open_in(netns.as_fd(), Protocol::Netfilter, &[])?;
        let settings = [Setting::Copy(Copy::Packet(COPIED))];
        match nflog::listen(&mut socket, GROUP, &settings) {
            Ok(refused) => {
                for (setting, error) in refused {
                    log::info!("NFLOG group {GROUP}: {setting:?}: {error}");
                }
            }
            Err(error) => {
                return Err(match listener::holder(netns, GROUP)? {
                    Some(holder) => NoLines::Taken(holder),
                    None => error.into(),
                });
            }
        }
        let receiver = self.receiver(netns.inode(), socket)?;
        // The group is ours, and so is the logger.
        let switched = Switched::set(netns, &families, reasons)?;
        Ok(Some(Lines {
            receiver,
            loose: None,
            _switched: switched,
        }))
    }

    fn receiver(&self, inode: u32, socket: Socket) -> io::Result<Receiver> {
        if let Err(error) = socket.set_receive_buffer(RECEIVE_BUFFER) {
            log::info!("--trace: {error}");
        }
        let watched = watch_readable(socket.as_fd().try_clone_to_owned()?)?;
        Ok(Receiver {
            socket,
            task: tokio::task::spawn_local(follow(self.this.clone(), inode, watched)),
            empty: now(),
            overrun: false,
            lost: 0,
        })
    }

    /// Stops tracing in a namespace.
    pub(super) fn remove(&mut self, inode: u32) {
        self.traced.remove(&inode);
    }

    /// Whether the NFLOG group of TRACE lines is taken in this namespace.
    pub(super) fn has_lines(&self, inode: u32) -> bool {
        let traced = self.traced.get(&inode);
        traced.is_some_and(|traced| traced.lines.is_some())
    }

    /// The trace of each drop of the batch, if there is one; all traces that are there are taken in before.
    pub(super) fn join(&mut self, batch: &[RawDrop], namespaces: &mut Namespaces) -> Vec<Joined> {
        for (inode, traced) in &mut self.traced {
            if batch.iter().any(|raw| raw.record.netns == *inode) {
                traced.drain();
            }
        }
        let newest = batch.iter().map(|raw| raw.record.time).max();
        let headers = |raw: &RawDrop| {
            let traced = self.traced.get(&raw.record.netns)?;
            let unplaced = raw.record.nfct == 0 && traced.lines.is_some();
            if !unplaced && !traced.traces.want_headers() {
                return None;
            }
            Headers::of_packet(Capture::new(&raw.record, &raw.packet).bytes)
        };
        let headers: Vec<Option<Headers>> = batch.iter().map(headers).collect();
        let mut found = Vec::with_capacity(batch.len());
        for (index, raw) in batch.iter().enumerate() {
            let (Some(own), Some(traced)) = (
                headers.get(index).and_then(Option::as_ref),
                self.traced.get_mut(&raw.record.netns),
            ) else {
                found.push(Joined::default());
                continue;
            };
            let twins = || {
                let later = batch.iter().zip(&headers).skip(index);
                let twin = |(other, theirs): &(&RawDrop, &Option<Headers>)| {
                    other.record.netns == raw.record.netns
                        && theirs.as_ref().is_some_and(|theirs| theirs.is(own))
                };
                later
                    .filter(twin)
                    .map(|(other, _)| other.record.time)
                    .collect()
            };
            let tables = namespaces.legacy(raw.record.netns);
            found.push(Joined {
                invalid: traced.invalid(&raw.record, own),
                trace: traced.find(raw, own, twins, tables),
            });
        }
        if let Some(newest) = newest {
            for traced in self.traced.values_mut() {
                traced.traces.forget(newest);
            }
        }
        found
    }

    /// Messages lost since the last time.
    pub(super) fn lost(&mut self) -> u64 {
        self.traced.values_mut().map(Traced::lost).sum()
    }
}

impl Drop for Tracing {
    fn drop(&mut self) {
        let disagreed: u64 = self.traced.values().map(|t| t.traces.disagreed).sum();
        if disagreed > 0 {
            log::info!(
                "{disagreed} traces were not used: the kernel's stack named another rule than they"
            );
        }
    }
}

impl Traced {
    fn drain(&mut self) {
        self.receive();
        let lines = self.lines.iter().map(|lines| &lines.receiver);
        let overrun = lines.chain([&self.events]).any(|r| r.overrun);
        self.traces.partial |= overrun;
    }

    fn receive(&mut self) {
        let traces = &mut self.traces;
        self.events.drain(|message, when| {
            if message.kind == nftrace::NFT_MSG_TRACE
                && let Err(error) = traces.trace(message.payload, when)
            {
                log::warn!("a trace cannot be read: {error}");
            }
        });
        if let Some(lines) = &mut self.lines {
            lines.receiver.drain(|message, when| {
                if message.kind != nflog::NFULNL_MSG_PACKET {
                    return;
                }
                match nflog::decode(message.payload) {
                    Ok(packet) => traces.logged(&packet, when),
                    Err(error) => log::warn!("a logged packet cannot be read: {error}"),
                }
            });
        }
    }

    /// Why conntrack may have called the packet invalid.
    fn invalid(&mut self, record: &Record, headers: &Headers) -> Option<Arc<str>> {
        let told = self.traces.invalid.of(record, headers);
        let silent = told.is_none() && record.nfct == 0 && headers.is_tcp_ack();
        // Nothing was lost: then nothing was said, and of these packets there is one such case.
        match self.lines.as_mut().filter(|_| silent) {
            Some(lines) if lines.receiver.lost == 0 && !lines.receiver.overrun => {
                (!lines.picks_up(&self.netns)).then(|| words::NOT_PICKED_UP.into())
            }
            _ => told,
        }
    }

    fn find(
        &mut self,
        raw: &RawDrop,
        headers: &Headers,
        twins: impl FnOnce() -> Vec<u64>,
        mut tables: Option<&mut Tables>,
    ) -> Option<Found> {
        let record = &raw.record;
        let by_nft = matches!(record.rule.kind, RULE_RULE | RULE_POLICY);
        if let Some(tables) = tables
            .as_mut()
            .filter(|_| !by_nft && self.traces.has_lines())
            && let Err(error) = tables.refresh()
        {
            log::warn!("{error}");
        }
        let decides = |logged: &Logged| {
            let (Some(tables), Some(entry)) = (&tables, logged.entries.last()) else {
                return false;
            };
            let table = tables.at(logged.family(), &entry.table, record.time);
            table.is_some_and(|found| resolve::legacy_drops(entry, &found.table))
        };
        self.traces.take(record, headers, twins, decides)
    }

    fn lost(&mut self) -> u64 {
        let Self {
            netns,
            events,
            lines,
            ..
        } = self;
        let lines = lines.iter_mut().map(|lines| &mut lines.receiver);
        let overrun = std::iter::once(events).chain(lines).filter(|r| r.overrun);
        let overrun: Vec<&mut Receiver> = overrun.collect();
        if overrun.is_empty() {
            return 0;
        }
        // Gone namespaces have nothing more to tell.
        let Ok(Ok(listed)) = netns.run(|| fs::read_to_string("/proc/thread-self/net/netlink"))
        else {
            return 0;
        };
        let listed = sockets::parse(&listed);
        overrun.into_iter().map(|r| r.count(&listed)).sum()
    }
}

impl Lines {
    /// Whether conntrack takes TCP connections in whose beginning it has not seen; so too if that cannot be read.
    fn picks_up(&mut self, netns: &NetNs) -> bool {
        let now = Instant::now();
        if let Some((read, picks_up)) = self.loose
            && now < read + LOOSE_FOR
        {
            return picks_up;
        }
        let text = netns.run(|| fs::read_to_string(LOOSE));
        let picks_up = !matches!(text, Ok(Ok(text)) if text.trim() == "0");
        self.loose = Some((now, picks_up));
        picks_up
    }
}

impl Receiver {
    /// Hands over the messages that are there.
    fn drain(&mut self, mut take: impl FnMut(&Message<'_>, Between)) {
        for _ in 0..DATAGRAMS {
            let asked = now();
            match self.socket.recv() {
                Ok(None) => {
                    self.empty = asked;
                    return;
                }
                Ok(Some(messages)) => {
                    let when = Between {
                        since: self.empty,
                        until: now(),
                    };
                    messages.map_while(Result::ok).for_each(|m| take(&m, when));
                }
                Err(SocketError::Overrun) => self.overrun = true,
                Err(SocketError::TooBig { .. }) => {}
                Err(error) => {
                    log::warn!("--trace: {error}");
                    return;
                }
            }
        }
    }

    /// What was lost since the last time.
    fn count(&mut self, listed: &[sockets::Listed]) -> u64 {
        self.overrun = false;
        let inode = fstat(&self.socket).map_or(0, |stat| stat.st_ino);
        let own = listed.iter().find(|listed| listed.inode == inode);
        let drops = own.map_or(self.lost, |own| own.drops);
        let new = drops.saturating_sub(self.lost);
        self.lost = drops;
        new
    }
}

/// Takes in what arrives, until the task is aborted.
async fn follow(tracing: Weak<RefCell<Tracing>>, inode: u32, socket: AsyncFd<OwnedFd>) {
    while let Ok(mut ready) = socket.readable().await {
        ready.clear_ready();
        let Some(tracing) = tracing.upgrade() else {
            return;
        };
        if let Some(traced) = tracing.borrow_mut().traced.get_mut(&inode) {
            traced.drain();
        }
    }
}
