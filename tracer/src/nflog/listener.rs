//! Being the listener of an NFLOG group: packets, losses, and who has the group otherwise.
//!
//! Each group has a socket of its own, so that its losses are its own, and that no answer to a setting is between packets. Closing the
//! socket gives the group back.

use std::{fs, os::fd::AsFd};

use nix::time::{ClockId, clock_gettime};

use super::correlate::WINDOW;
use crate::{
    netlink::{
        nflog::{self, Copy, ListenError, Packet, Setting, wants},
        socket::{Protocol, Socket, SocketError},
        sockets,
    },
    netns::{self, NetNs},
    ruleset::model::Family,
    trace::join::Between,
};

/// Bytes of each packet that come with a log: the headers.
const COPIED: u32 = 128;
/// Packets are handed over when there are so many, or
const THRESHOLD: u32 = 32;
/// when the first has waited so long, 1/100 s; a timer tick more at the most.
const TIMEOUT: u32 = 1;
/// Datagrams that are received at a time, each with up to [`THRESHOLD`] packets.
const DATAGRAMS: usize = 4096;

/// `NF_NETDEV_EGRESS`.
const NETDEV_EGRESS: u8 = 1;
/// Offset of the EtherType in an Ethernet header.
const ETHERTYPE: usize = 12;
const ETH_P_8021Q: u16 = 0x8100;
const ETH_P_8021AD: u16 = 0x88a8;

/// Why a group has no listener here.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another program has the group.
    #[error("{0} has it")]
    Taken(String),
    /// The kernel refused it, or has no NFLOG.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The network namespace.
    #[error(transparent)]
    Netns(#[from] netns::Error),
    /// tokio.
    #[error("cannot watch a socket: {0}")]
    Watch(std::io::Error),
}

/// The listener of a group.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    group: u16,
    losses: Losses,
    /// When it became the listener; CLOCK_MONOTONIC, nanoseconds.
    begun: u64,
    /// No packet was there then.
    empty: u64,
}

impl Listener {
    /// Becomes the listener of `group` in `netns`, with room for `buffer` bytes of messages. `received`: packets are to show when they
    /// were received.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn new(netns: &NetNs, group: u16, buffer: usize, received: bool) -> Result<Self, Error> {
        let mut socket = Socket::open_in(netns.as_fd(), Protocol::Netfilter, &[])?;
        // Before there is anything to be lost.
        for (what, set) in [
            ("receive buffer", socket.set_receive_buffer(buffer)),
            ("losses", socket.set_no_overruns()),
            (
                "times",
                match received {
                    true => socket.set_timestamps(),
                    false => Ok(()),
                },
            ),
        ] {
            if let Err(error) = set {
                log::info!("NFLOG group {group}: {what}: {error}");
            }
        }
        let numbers = wants::SEQ | wants::SEQ_GLOBAL;
        let settings = [
            Setting::Flags(numbers),
            Setting::Threshold(THRESHOLD),
            Setting::Timeout(TIMEOUT),
            Setting::Copy(Copy::Packet(COPIED)),
            // By itself: refused by kernels that cannot, and then nothing of its message counts.
            Setting::Flags(numbers | wants::CONNTRACK),
        ];
        let empty = now();
        match nflog::listen(&mut socket, group, &settings) {
            Ok(refused) => {
                for (setting, error) in refused {
                    log::info!("NFLOG group {group}: {setting:?}: {error}");
                }
            }
            Err(error) => {
                return Err(match holder(netns, group)? {
                    Some(holder) => Error::Taken(holder),
                    None => error.into(),
                });
            }
        }
        Ok(Self {
            socket,
            group,
            losses: Losses::default(),
            begun: empty,
            empty,
        })
    }

    /// Hands over the packets that are there, each also as it came, and when it was logged. True: there may be more.
    pub fn drain(&mut self, mut take: impl FnMut(&Packet<'_>, &[u8], Between)) -> bool {
        for _ in 0..DATAGRAMS {
            let asked = now();
            let messages = match self.socket.recv() {
                Ok(None) => {
                    self.empty = asked;
                    return false;
                }
                Ok(Some(messages)) => messages,
                Err(SocketError::Overrun | SocketError::TooBig { .. }) => continue,
                Err(error) => {
                    log::warn!("NFLOG group {}: {error}", self.group);
                    return false;
                }
            };
            let when = Between {
                // The kernel had some before it gave them here.
                since: self.empty.saturating_sub(WINDOW).max(self.begun),
                until: now(),
            };
            for message in messages.map_while(Result::ok) {
                if message.kind != nflog::NFULNL_MSG_PACKET {
                    continue;
                }
                match nflog::decode(message.payload) {
                    Ok(packet) => {
                        if let Some(seq) = packet.seq {
                            self.losses.number(seq);
                        }
                        take(&packet, message.payload, when);
                    }
                    Err(error) => log::warn!("a logged packet cannot be read: {error}"),
                }
            }
        }
        true
    }

    /// Packets that were lost since the last time.
    pub fn lost(&mut self) -> u64 {
        if let Ok(drops) = self.socket.drops() {
            self.losses.dropped(drops);
        }
        std::mem::take(&mut self.losses.gaps)
    }

    /// Gives the group back. What the kernel still had is there to be taken then.
    pub fn end(&mut self) {
        let seq = self.socket.next_seq();
        if let Ok(request) = nflog::config(self.group, Setting::Unbind, seq)
            && let Err(error) = self.socket.send(&request)
        {
            log::info!("NFLOG group {}: {error}", self.group);
        }
    }

    /// Packets that were lost behind the last one that came: one at least for each lost datagram. To be asked at the end.
    pub fn lost_last(&mut self) -> u64 {
        let gaps = self.lost();
        gaps + std::mem::take(&mut self.losses.open)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The account of a group's losses. The kernel numbers packets from 0 when it puts them into a datagram, so the next one that comes
/// tells how many did not; of datagrams that were lost since, only their number is known.
#[derive(Debug, Default, PartialEq, Eq)]
struct Losses {
    next: u32,
    gaps: u64,
    /// Lost datagrams that were counted.
    drops: u32,
    /// Those that no packet has come after.
    open: u64,
}

impl Losses {
    fn number(&mut self, seq: u32) {
        let gap = seq.wrapping_sub(self.next);
        self.next = seq.wrapping_add(1);
        if gap > 0 {
            self.gaps += u64::from(gap);
            self.open = 0;
        }
    }

    fn dropped(&mut self, drops: u32) {
        let new = drops.wrapping_sub(self.drops);
        self.drops = drops;
        if self.gaps == 0 {
            self.open += u64::from(new);
        }
    }
}

/// The packet from its network header on.
pub fn network<'a>(packet: &Packet<'a>) -> &'a [u8] {
    // `skb->data` still stands at the link-layer header on the way out of a device.
    if (packet.family, packet.hook) != (Family::Netdev, NETDEV_EGRESS) {
        return packet.payload;
    }
    let mut at = ETHERTYPE;
    while let Some([high, low]) = packet.payload.get(at..at + 2) {
        at += 2;
        match u16::from_be_bytes([*high, *low]) {
            ETH_P_8021Q | ETH_P_8021AD => at += 2,
            _ => return packet.payload.get(at..).unwrap_or_default(),
        }
    }
    &[]
}

/// Who listens to an NFLOG group, in words; `None`: nobody.
///
/// # Errors
/// The namespace cannot be entered.
pub fn holder(netns: &NetNs, group: u16) -> Result<Option<String>, netns::Error> {
    let (instances, listed) = netns.run(|| {
        let read = |name: &str| fs::read_to_string(format!("/proc/thread-self/net/{name}"));
        let instances = read("netfilter/nfnetlink_log").unwrap_or_default();
        (instances, read("netlink").unwrap_or_default())
    })?;
    let instances = nflog::instances(&instances);
    let Some(instance) = instances.iter().find(|instance| instance.group == group) else {
        return Ok(None);
    };
    let listed = sockets::parse(&listed);
    let mut listed = listed.iter();
    let socket = listed.find(|l| l.protocol == sockets::NETFILTER && l.port == instance.port);
    let holder = socket.and_then(|socket| sockets::holder(socket.inode));
    Ok(Some(match holder {
        Some(holder) => format!("{} (process {})", holder.comm, holder.pid),
        None => format!("another program (netlink port {})", instance.port),
    }))
}

/// CLOCK_MONOTONIC, nanoseconds.
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).map(std::time::Duration::from);
    time.map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_losses_from_the_first_number_on() {
        let mut losses = Losses::default();
        for seq in [0, 1, 5, 6] {
            losses.number(seq);
        }
        assert_eq!((losses.gaps, losses.open), (3, 0));
        let mut losses = Losses {
            next: u32::MAX,
            ..Losses::default()
        };
        for seq in [u32::MAX, 0, 2] {
            losses.number(seq);
        }
        assert_eq!(losses.gaps, 1);
        let mut late = Losses::default();
        late.number(7);
        assert_eq!(late.gaps, 7);
    }

    #[test]
    fn lost_datagrams_are_open_until_a_number_tells() {
        let mut losses = Losses::default();
        losses.number(0);
        losses.dropped(2);
        losses.dropped(3);
        assert_eq!((losses.gaps, losses.open), (0, 3));
        losses.number(10);
        assert_eq!((losses.gaps, losses.open), (9, 0));
    }
}
