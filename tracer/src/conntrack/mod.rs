//! Conntrack as seen from outside of a packet: how full its table is, what it counts, and what it knows of a connection.
//!
//! | module | subject |
//! |---|---|
//! | [`Connections`] | asks the kernel, for one network namespace |
//! | [`words`] | what the kernel says of a packet that it calls invalid, in other words |

pub mod words;

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use fwtrace_abi::{Record, TUPLE_LEN};

use crate::{
    allowance::Allowance,
    event::{ConntrackCount, ConntrackCounters, Counted, DropEvent, NetnsRef},
    netlink::{
        attr::AttrError,
        conntrack::{self, Connection, Counters, Tuple, Usage},
        socket::{Message, Protocol, Socket, SocketError},
    },
    netns::NetNs,
};

/// A table that was full is taken for full for so long.
const STALE: Duration = Duration::from_millis(50);
/// One in so much of the time may go into asking about single drops.
const SHARE: u32 = 20;
/// There where the kernel has conntrack (net/netfilter/nf_conntrack_standalone.c, v6.18).
const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";
const IPS_CONFIRMED: u32 = 1 << 3;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;

/// The kernel could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The socket, or the kernel's answer.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// A message.
    #[error("ctnetlink: {0}")]
    Message(#[from] AttrError),
}

/// Asks about the connections of one network namespace.
#[derive(Debug)]
pub struct Connections {
    socket: Socket,
    usage: Usage,
    asked: Option<Instant>,
    /// Most connections that were seen.
    peak: u32,
    /// By processor, when it began; and at the last look.
    base: BTreeMap<u32, Counters>,
    newest: BTreeMap<u32, Counters>,
    sampled: Instant,
    allowance: Allowance,
}

/// Whether conntrack is there, and asking it loads no module.
fn can_ask() -> bool {
    static BUILTIN: OnceLock<String> = OnceLock::new();
    if !Path::new(COUNT).exists() {
        return false;
    }
    let builtin = BUILTIN.get_or_init(|| {
        let version = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let list = Path::new("/lib/modules").join(version.trim_end());
        fs::read_to_string(list.join("modules.builtin")).unwrap_or_default()
    });
    let modules = fs::read_to_string("/proc/modules").unwrap_or_default();
    conntrack::is_loaded(&modules, builtin, true)
}

impl Connections {
    /// Begins in this namespace. `None`: conntrack is not there, or cannot be asked without loading a module.
    ///
    /// # Errors
    /// See [`AskError`].
    pub fn open(netns: &NetNs) -> Result<Option<Self>, AskError> {
        if !can_ask() {
            return Ok(None);
        }
        let now = Instant::now();
        let mut this = Self {
            socket: Socket::open_in(netns.as_fd(), Protocol::Netfilter, &[])?,
            usage: Usage::default(),
            asked: None,
            peak: 0,
            base: BTreeMap::new(),
            newest: BTreeMap::new(),
            sampled: now,
            allowance: Allowance::new(SHARE, now),
        };
        this.sample()?;
        this.base.clone_from(&this.newest);
        Ok(Some(this))
    }

    /// Takes a look at everything but single connections.
    ///
    /// # Errors
    /// See [`AskError`].
    pub fn sample(&mut self) -> Result<(), AskError> {
        self.sampled = Instant::now();
        self.ask_usage()?;
        let request = conntrack::stats_cpu(self.socket.next_seq())?;
        let answers = self.ask(&request, conntrack::STATS_CPU, conntrack::decode_stats_cpu)?;
        for (cpu, counters) in answers {
            self.newest.insert(cpu, counters);
        }
        Ok(())
    }

    /// When the last sample was taken.
    pub fn sampled(&self) -> Instant {
        self.sampled
    }

    /// Each processor's counters at the last look.
    pub fn counters(&self) -> impl Iterator<Item = (u32, &Counters)> {
        self.newest.iter().map(|(cpu, counters)| (*cpu, counters))
    }

    /// How full the table is: of this moment, or full at most 50 ms ago. `None`: not known, or asked too often.
    pub fn usage(&mut self) -> Option<Usage> {
        let now = Instant::now();
        let fresh = self.asked.is_some_and(|asked| now < asked + STALE);
        if fresh && is_full(self.usage) {
            return Some(self.usage);
        }
        if !self.allowance.affords(now) {
            return None;
        }
        let asked = self.ask_usage();
        self.allowance.spend(now.elapsed());
        match asked {
            Ok(()) => Some(self.usage),
            Err(error) => {
                log::info!("{error}");
                None
            }
        }
    }

    /// Adds what the drop's record lacks of its connection, if that was there before the packet and still is.
    pub fn complete(&mut self, record: &Record, event: &mut DropEvent) {
        let Some(known) = event.conntrack.as_mut() else {
            return;
        };
        let Some((orig, reply)) = existing(record) else {
            return;
        };
        let now = Instant::now();
        if !self.allowance.affords(now) {
            return;
        }
        let found = self.find(&orig, record.ct_zone);
        self.allowance.spend(now.elapsed());
        let found = match found {
            Ok(Some(found)) if (found.orig, found.reply) == (orig, reply) => found,
            // Gone meanwhile, or another one with the same addresses.
            Ok(_) => return,
            Err(error) => {
                log::info!("{error}");
                return;
            }
        };
        known.timeout = found.timeout;
        known.helper = found.helper.map(Into::into);
        known.labels = found.labels;
        known.counters = found.counted.map(|(orig, reply)| {
            let counted = |counted: conntrack::Counted| Counted {
                packets: counted.packets,
                bytes: counted.bytes,
            };
            ConntrackCounters {
                orig: counted(orig),
                reply: counted(reply),
            }
        });
    }

    /// What has moved since it began; `None`: nothing has, and there are no connections.
    pub fn account(&self, netns: &NetnsRef) -> Option<ConntrackCount> {
        let mut moved: BTreeMap<Arc<str>, u64> = BTreeMap::new();
        for (cpu, newest) in &self.newest {
            let base = self.base.get(cpu).copied().unwrap_or_default();
            for ((name, newest), (_, base)) in newest.named().into_iter().zip(base.named()) {
                let by = newest.wrapping_sub(base);
                if by > 0 {
                    *moved.entry(name.into()).or_insert(0) += u64::from(by);
                }
            }
        }
        (self.peak > 0 || !moved.is_empty()).then(|| ConntrackCount {
            netns: netns.clone(),
            entries: self.usage.entries,
            peak: self.peak,
            max: self.usage.max,
            moved,
        })
    }

    fn find(&mut self, tuple: &Tuple, zone: u16) -> Result<Option<Connection>, AskError> {
        let request = conntrack::get(tuple, zone, self.socket.next_seq())?;
        match self.ask(&request, conntrack::NEW, conntrack::decode) {
            Ok(found) => Ok(found.into_iter().next()),
            Err(AskError::Socket(error)) if error.errno() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn ask_usage(&mut self) -> Result<(), AskError> {
        let request = conntrack::stats(self.socket.next_seq())?;
        let answers = self.ask(&request, conntrack::STATS, conntrack::decode_stats)?;
        if let Some(usage) = answers.into_iter().next() {
            self.usage = usage;
            self.peak = self.peak.max(usage.entries);
            self.asked = Some(Instant::now());
        }
        Ok(())
    }

    fn ask<T>(
        &mut self,
        request: &[u8],
        kind: u16,
        decode: impl Fn(&[u8]) -> Result<T, AttrError>,
    ) -> Result<Vec<T>, AskError> {
        let mut answers = Vec::new();
        let mut failed = None;
        self.socket.query(request, |message: &Message<'_>| {
            if message.kind == kind {
                match decode(message.payload) {
                    Ok(answer) => answers.push(answer),
                    Err(error) => failed = Some(error),
                }
            }
        })?;
        match failed {
            Some(error) => Err(error.into()),
            None => Ok(answers),
        }
    }
}

/// Whether there is no room for another connection.
pub fn is_full(usage: Usage) -> bool {
    // No limit: 0.
    usage.max.is_some_and(|max| max > 0 && usage.entries >= max)
}

/// The tuples of a connection that was there before this packet.
fn existing(record: &Record) -> Option<(Tuple, Tuple)> {
    // `enum ip_conntrack_info`: of all but the first packets of connections.
    let info = record.nfct & 7;
    let confirmed = record.ct_status & IPS_CONFIRMED != 0;
    if record.nfct & !7 == 0 || !(matches!(info, 0 | 1 | 3 | 4) || info == 2 && confirmed) {
        return None;
    }
    Some((tuple(&record.ct_orig)?, tuple(&record.ct_reply)?))
}

/// Decodes a `struct nf_conntrack_tuple`; the offsets are those of [`TUPLE_LEN`]'s description.
fn tuple(bytes: &[u8; TUPLE_LEN]) -> Option<Tuple> {
    let octets = |at: usize| bytes.get(at..).and_then(<[u8]>::first_chunk::<16>);
    let number = |at: usize| {
        let both = bytes.get(at..).and_then(<[u8]>::first_chunk::<2>);
        both.map_or(0, |both| u16::from_be_bytes(*both))
    };
    let family = *bytes.get(18)?;
    let address = |at: usize| -> Option<IpAddr> {
        let octets = octets(at)?;
        match family {
            NFPROTO_IPV4 => Some(Ipv4Addr::from(*octets.first_chunk::<4>()?).into()),
            NFPROTO_IPV6 => Some(Ipv6Addr::from(*octets).into()),
            _ => None,
        }
    };
    Some(Tuple {
        src: address(0)?,
        dst: address(20)?,
        proto: *bytes.get(38)?,
        from: number(16),
        to: number(36),
    })
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    /// A connection to port 80 that the reply direction mirrors.
    fn record(info: u64, status: u32) -> Record {
        let mut record = Record::new_zeroed();
        record.nfct = 0xffff_8880_0000_1000 | info;
        record.ct_status = status;
        let make = |src: u8, from: u16, dst: u8, to: u16| {
            let mut bytes = [0; TUPLE_LEN];
            bytes[..4].copy_from_slice(&[10, 0, 0, src]);
            bytes[16..18].copy_from_slice(&from.to_be_bytes());
            bytes[18] = NFPROTO_IPV4;
            bytes[20..24].copy_from_slice(&[10, 0, 0, dst]);
            bytes[36..38].copy_from_slice(&to.to_be_bytes());
            bytes[38] = 6;
            bytes
        };
        record.ct_orig = make(1, 1000, 2, 80);
        record.ct_reply = make(2, 80, 1, 1000);
        record
    }

    #[test]
    fn only_connections_that_were_there_are_looked_up() {
        let there = |info, status| existing(&record(info, status)).is_some();
        assert!(there(0, IPS_CONFIRMED) && there(3, IPS_CONFIRMED) && there(4, 0));
        assert!(there(2, IPS_CONFIRMED) && !there(2, 0) && !there(7, IPS_CONFIRMED));
        let mut none = record(0, IPS_CONFIRMED);
        none.nfct = 7;
        assert_eq!(existing(&none), None);
        let (orig, reply) = existing(&record(0, 0)).unwrap();
        assert_eq!((orig.from, orig.to, orig.proto), (1000, 80, 6));
        assert_eq!((orig.src, orig.dst), (reply.dst, reply.src));
        let mut arp = record(0, 0);
        arp.ct_orig[18] = 3;
        assert_eq!(existing(&arp), None);
    }

    #[test]
    fn a_table_without_a_limit_is_never_full() {
        let full = |entries, max| is_full(Usage { entries, max });
        assert!(full(4, Some(4)) && full(5, Some(4)));
        assert!(!full(3, Some(4)) && !full(9, Some(0)) && !full(9, None));
    }
}
