//! Netlink sockets over neli: raw messages in and out, acknowledgements, dumps, multicast groups.
//!
//! Sockets are always in non-blocking mode, so that they can be watched with tokio's `AsyncFd`. The calls that wait
//! ([`Socket::request_ack`], [`Socket::query`], [`Socket::dump`]) poll with a timeout.
//!
//! A socket belongs to the network namespace of the thread that opened it, for good, and **keeps that namespace alive**:
//! a namespace whose name is deleted goes away only when its last socket is closed.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    time::{Duration, Instant},
};

use neli::{
    consts::socket::{Msg as RecvFlags, NlFamily},
    socket::NlSocket,
    utils::Groups,
};
use nix::{
    errno::Errno,
    getsockopt_impl,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, setns},
    setsockopt_impl, sockopt_impl,
    sys::{
        socket::{getsockopt, setsockopt, sockopt},
        stat::{FileStat, fstat, stat},
    },
};
use thiserror::Error;

use super::attr::Attrs;

/// `NLMSG_ERROR`: an error, or an acknowledgement when its code is 0 (include/uapi/linux/netlink.h).
const NLMSG_ERROR: u16 = 2;
/// `NLMSG_DONE`: the end of a dump.
const NLMSG_DONE: u16 = 3;
/// `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END`: acknowledged from 6.10 on only.
const BATCH_MARKS: std::ops::RangeInclusive<u16> = 0x10..=0x11;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NLMSGERR_ATTR_OFFS: u16 = 2;

/// Flags of a message's header (include/uapi/linux/netlink.h).
pub mod flags {
    /// A request.
    pub const REQUEST: u16 = 0x1;
    /// One part of several.
    pub const MULTI: u16 = 0x2;
    /// Acknowledge the request.
    pub const ACK: u16 = 0x4;
    /// The dump changed while it was read.
    pub const DUMP_INTR: u16 = 0x10;
    /// In an acknowledgement: the request's payload is left out.
    pub const CAPPED: u16 = 0x100;
    /// In an acknowledgement: attributes follow.
    pub const ACK_TLVS: u16 = 0x200;
    /// Everything, as a dump (`NLM_F_ROOT | NLM_F_MATCH`).
    pub const DUMP: u16 = 0x300;
    /// New objects: fail if there is one already.
    pub const EXCL: u16 = 0x200;
    /// New objects: create.
    pub const CREATE: u16 = 0x400;
    /// New objects: add at the end.
    pub const APPEND: u16 = 0x800;
}

/// Size of a message header in bytes.
pub const HEADER: usize = 16;
/// Dumps come in skbs of at most 32 KiB; errors repeat the failing request, which can be somewhat over 64 KiB.
const RECEIVE: usize = 128 * 1024;
/// What the kernel takes to answer a request is far less than this; it bounds the wait when it never does.
const TIMEOUT: Duration = Duration::from_secs(10);

sockopt_impl!(
    /// `NETLINK_NO_ENOBUFS`.
    NoEnobufs,
    SetOnly,
    libc::SOL_NETLINK,
    libc::NETLINK_NO_ENOBUFS,
    bool
);
sockopt_impl!(
    /// `SO_MEMINFO`, since 4.12: numbers by `SK_MEMINFO_*`.
    MemInfo,
    GetOnly,
    libc::SOL_SOCKET,
    libc::SO_MEMINFO,
    [u32; SK_MEMINFO_VARS]
);
/// Datagrams that did not fit (include/uapi/linux/sock_diag.h, v6.18).
const SK_MEMINFO_DROPS: usize = 8;
/// How many numbers there are.
const SK_MEMINFO_VARS: usize = 9;

/// What went wrong on a netlink socket.
#[derive(Debug, Error)]
pub enum SocketError {
    /// A system call failed.
    #[error("netlink: {call}: {source}")]
    Io {
        /// What was tried.
        call: &'static str,
        /// The error.
        source: io::Error,
    },
    /// The kernel refused the request.
    #[error(
        "netlink: {}{}{}",
        io::Error::from_raw_os_error(*errno),
        text.as_ref().map(|text| format!(" ({text})")).unwrap_or_default(),
        offset.map(|offset| format!(" at byte {offset} of the request")).unwrap_or_default()
    )]
    Kernel {
        /// The error number, positive.
        errno: i32,
        /// The extended acknowledgement's text.
        text: Option<String>,
        /// Offset of the offending attribute in the refused message, its header included.
        offset: Option<u32>,
        /// Sequence number of the refused message.
        seq: u32,
    },
    /// What was dumped changed meanwhile (`NLM_F_DUMP_INTR`, or EINTR): read it again.
    #[error("netlink: the dump was interrupted by a change")]
    Interrupted,
    /// Messages were lost because the receive buffer was full (ENOBUFS). The socket can be used on.
    #[error("netlink: the receive buffer overflowed, messages were lost")]
    Overrun,
    /// A datagram did not fit the buffer.
    #[error("netlink: a datagram of {length} bytes does not fit {buffer} bytes")]
    TooBig {
        /// Size of the datagram.
        length: usize,
        /// Size of the buffer.
        buffer: usize,
    },
    /// A message states a length that cannot be.
    #[error("netlink: message at byte {offset} states {length} bytes, {left} are left")]
    Framing {
        /// Offset in the datagram.
        offset: usize,
        /// The stated length.
        length: usize,
        /// Bytes left in the datagram.
        left: usize,
    },
    /// The kernel did not answer in time.
    #[error("netlink: no answer after {} s", TIMEOUT.as_secs())]
    Timeout,
    /// The thread that enters the network namespace could not be started or did not end well.
    #[error("netlink: the thread that enters the network namespace failed")]
    Thread,
}

impl SocketError {
    /// The kernel's or the system call's error number, where there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Kernel { errno, .. } => Some(*errno),
            Self::Io { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

fn io_error(call: &'static str) -> impl FnOnce(io::Error) -> SocketError {
    move |source| match source.raw_os_error() {
        Some(libc::ENOBUFS) => SocketError::Overrun,
        _ => SocketError::Io { call, source },
    }
}

/// One message, borrowed from the receive buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// `nlmsg_type`; for nfnetlink `subsystem << 8 | message`.
    pub kind: u16,
    /// `nlmsg_flags`, see [`flags`].
    pub flags: u16,
    /// `nlmsg_seq`; 0 in multicast messages.
    pub seq: u32,
    /// `nlmsg_pid`, the port of the socket whose request this answers.
    pub port: u32,
    /// What follows the header: the protocol's own header and the attributes.
    pub payload: &'a [u8],
}

impl Message<'_> {
    /// A copy that outlives the receive buffer.
    pub fn to_owned(&self) -> Msg {
        Msg {
            kind: self.kind,
            flags: self.flags,
            seq: self.seq,
            port: self.port,
            payload: self.payload.to_vec(),
        }
    }
}

/// One message with a payload of its own; the fields are [`Message`]'s.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Msg {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`.
    pub flags: u16,
    /// `nlmsg_seq`.
    pub seq: u32,
    /// `nlmsg_pid`.
    pub port: u32,
    /// What follows the header.
    pub payload: Vec<u8>,
}

/// The messages of one datagram, in order. After an error the iteration is over.
#[derive(Debug, Clone)]
pub struct Messages<'a> {
    rest: &'a [u8],
    offset: usize,
}

impl<'a> Messages<'a> {
    /// Reads messages from the start of `datagram`.
    pub fn new(datagram: &'a [u8]) -> Self {
        Self {
            rest: datagram,
            offset: 0,
        }
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, SocketError>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = std::mem::take(&mut self.rest);
        if rest.is_empty() {
            return None;
        }
        let offset = self.offset;
        let length = rest
            .first_chunk::<4>()
            .and_then(|bytes| usize::try_from(u32::from_ne_bytes(*bytes)).ok())
            .unwrap_or(0);
        let (Some(header), Some(payload)) = (rest.get(4..HEADER), rest.get(HEADER..length)) else {
            return Some(Err(SocketError::Framing {
                offset,
                length,
                left: rest.len(),
            }));
        };
        let padded = length.next_multiple_of(4);
        self.rest = rest.get(padded..).unwrap_or_default();
        self.offset = offset + padded;
        let word = |at: usize| {
            header
                .get(at..)
                .and_then(<[u8]>::first_chunk)
                .map_or(0, |b| u32::from_ne_bytes(*b))
        };
        let half = |at: usize| {
            header
                .get(at..)
                .and_then(<[u8]>::first_chunk)
                .map_or(0, |b| u16::from_ne_bytes(*b))
        };
        Some(Ok(Message {
            kind: half(0),
            flags: half(2),
            seq: word(4),
            port: word(8),
            payload,
        }))
    }
}

/// A message's bytes, padded to four: several of them one after the other make a batch.
///
/// `body` is the protocol's own header (`nfgenmsg`, `ifinfomsg`, ...) and the attributes. `seq` comes from [`Socket::next_seq`].
pub fn message(kind: u16, flags: u16, seq: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity((HEADER + body.len()).next_multiple_of(4));
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&seq.to_ne_bytes());
    bytes.extend_from_slice(&0_u32.to_ne_bytes());
    bytes.extend_from_slice(body);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The protocol of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// `NETLINK_NETFILTER`: nf_tables, NFLOG, conntrack.
    Netfilter,
    /// `NETLINK_ROUTE`: links, addresses, routes.
    Route,
}

/// A netlink socket, in non-blocking mode, with extended acknowledgements.
pub struct Socket {
    inner: NlSocket,
    buffer: Vec<u8>,
    seq: u32,
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Socket")
            .field("fd", &self.inner.as_raw_fd())
            .finish_non_exhaustive()
    }
}

impl AsFd for Socket {
    #[expect(unsafe_code, reason = "neli's socket implements AsRawFd only")]
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: `inner` owns the descriptor and the borrow cannot outlive it.
        unsafe { BorrowedFd::borrow_raw(self.inner.as_raw_fd()) }
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.inner.as_raw_fd()
    }
}

impl Socket {
    /// Opens a socket in the calling thread's network namespace and joins these multicast groups (numbers, not a mask).
    pub fn open(protocol: Protocol, groups: &[u32]) -> Result<Self, SocketError> {
        let family = match protocol {
            Protocol::Netfilter => NlFamily::Netfilter,
            Protocol::Route => NlFamily::Route,
        };
        let inner = NlSocket::connect(family, None, Groups::new_groups(groups))
            .map_err(io_error("open a socket"))?;
        inner
            .nonblock()
            .map_err(io_error("make the socket non-blocking"))?;
        // Since 4.12. Without it errors have no text, nothing else.
        let _ = inner.enable_ext_ack(true);
        Ok(Self {
            inner,
            buffer: vec![0; RECEIVE],
            seq: 0,
        })
    }

    /// As [`Socket::open`], in the network namespace that `netns` refers to (`/proc/PID/ns/net`, `/run/netns/NAME`).
    ///
    /// A thread of its own enters the namespace and ends, so that the caller's thread never leaves its own. Needs CAP_SYS_ADMIN, unless
    /// it is the caller's own.
    pub fn open_in(
        netns: BorrowedFd<'_>,
        protocol: Protocol,
        groups: &[u32],
    ) -> Result<Self, SocketError> {
        if is_own(netns) {
            return Self::open(protocol, groups);
        }
        std::thread::scope(|scope| {
            std::thread::Builder::new()
                .name("netns".into())
                .spawn_scoped(scope, || {
                    setns(netns, CloneFlags::CLONE_NEWNET)
                        .map_err(|errno| io_error("enter the network namespace")(errno.into()))?;
                    Self::open(protocol, groups)
                })
                .map_err(io_error("start a thread"))?
                .join()
                .map_err(|_| SocketError::Thread)?
        })
    }

    /// Sets the receive buffer, beyond `net.core.rmem_max` where CAP_NET_ADMIN allows it. The kernel doubles the value.
    pub fn set_receive_buffer(&self, bytes: usize) -> Result<(), SocketError> {
        setsockopt(self, sockopt::RcvBufForce, &bytes)
            .or_else(|_| setsockopt(self, sockopt::RcvBuf, &bytes))
            .map_err(|errno| io_error("set the receive buffer")(errno.into()))
    }

    /// Has losses counted only, not told as [`SocketError::Overrun`]. The kernel then goes on to fill the buffer as it is emptied, and does
    /// not wait until it is empty (`netlink_overrun()`, net/netlink/af_netlink.c, v6.18), so that less is lost.
    pub fn set_no_overruns(&self) -> Result<(), SocketError> {
        setsockopt(self, NoEnobufs, &true)
            .map_err(|errno| io_error("set NETLINK_NO_ENOBUFS")(errno.into()))
    }

    /// Has the kernel note on each packet it receives, in any namespace, when that was, as long as the socket is open
    /// (`net_enable_timestamp()`, net/core/dev.c, v6.18). It begins to do so some milliseconds later at most.
    pub fn set_timestamps(&self) -> Result<(), SocketError> {
        setsockopt(self, sockopt::ReceiveTimestamp, &true)
            .map_err(|errno| io_error("set SO_TIMESTAMP")(errno.into()))
    }

    /// Datagrams that did not fit the receive buffer, since the socket was opened; wraps around.
    pub fn drops(&self) -> Result<u32, SocketError> {
        getsockopt(self, MemInfo)
            .map(|info| info[SK_MEMINFO_DROPS])
            .map_err(|errno| io_error("read SO_MEMINFO")(errno.into()))
    }

    /// A sequence number for the next request; never 0.
    pub fn next_seq(&mut self) -> u32 {
        self.seq = self.seq.wrapping_add(1).max(1);
        self.seq
    }

    /// Sends one message, or a batch of them in one datagram.
    pub fn send(&self, bytes: &[u8]) -> Result<(), SocketError> {
        self.inner
            .send(bytes, RecvFlags::empty())
            .map_err(io_error("send"))?;
        Ok(())
    }

    /// The next datagram's messages, or `None` when nothing is there now. Control messages (`NLMSG_ERROR`, `NLMSG_DONE`) are among them.
    ///
    /// Errors: [`SocketError::Overrun`] when messages were lost before this one; the socket can be read on.
    pub fn recv(&mut self) -> Result<Option<Messages<'_>>, SocketError> {
        let length = loop {
            // With MSG_TRUNC the real length comes back, so that a short read is seen.
            match self
                .inner
                .recv(&mut self.buffer, RecvFlags::TRUNC | RecvFlags::DONTWAIT)
            {
                Ok((length, _)) => break length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(io_error("receive")(error)),
            }
        };
        match self.buffer.get(..length) {
            Some(datagram) => Ok(Some(Messages::new(datagram))),
            None => Err(SocketError::TooBig {
                length,
                buffer: self.buffer.len(),
            }),
        }
    }

    /// Waits until something can be received. `false`: not until `deadline`.
    pub fn wait(&self, deadline: Instant) -> Result<bool, SocketError> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up, or the last fraction of a millisecond would be spent in a busy loop.
            let left = left.saturating_add(Duration::from_micros(999));
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(0) if Instant::now() >= deadline => return Ok(false),
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(true),
                Err(errno) => return Err(io_error("poll")(errno.into())),
            }
        }
    }

    /// Sends `request` (one message or a batch) and waits until every message of it that asks for an
    /// acknowledgement has one. Blocks for as long as the kernel works on it.
    ///
    /// Errors: the first [`SocketError::Kernel`]; the answers to the rest of the batch are then taken off the socket.
    pub fn request_ack(&mut self, request: &[u8]) -> Result<(), SocketError> {
        let mut all = Vec::new();
        let mut pending = Vec::new();
        for message in Messages::new(request) {
            let message = message?;
            all.push(message.seq);
            if message.flags & flags::ACK != 0 && !BATCH_MARKS.contains(&message.kind) {
                pending.push(message.seq);
            }
        }
        self.send(request)?;
        let mut failure = None;
        loop {
            // The kernel works on a batch within send(): once an error is there, all of them are.
            let more = self.recv()?;
            let Some(messages) = more else {
                if let Some(error) = failure {
                    return Err(error);
                }
                if pending.is_empty() {
                    return Ok(());
                }
                if !self.wait(Instant::now() + TIMEOUT)? {
                    return Err(SocketError::Timeout);
                }
                continue;
            };
            for message in messages {
                let message = message?;
                if message.kind != NLMSG_ERROR || !all.contains(&message.seq) {
                    continue;
                }
                pending.retain(|&seq| seq != message.seq);
                if let Err(error) = acknowledgement(&message) {
                    failure.get_or_insert(error);
                }
            }
        }
    }

    /// Sends one request and gives every message of the answer to `each`, up to the end of the dump or the acknowledgement:
    /// the request must have [`flags::DUMP`] or [`flags::ACK`]. Blocks until then.
    ///
    /// Errors: [`SocketError::Interrupted`] when the dump is not of one moment (what `each` got is of no use then),
    /// [`SocketError::Kernel`] when it is refused.
    pub fn query(
        &mut self,
        request: &[u8],
        mut each: impl FnMut(&Message<'_>),
    ) -> Result<(), SocketError> {
        let Some(seq) = Messages::new(request)
            .next()
            .transpose()?
            .map(|message| message.seq)
        else {
            return Ok(());
        };
        self.send(request)?;
        let mut interrupted = false;
        loop {
            let Some(messages) = self.recv()? else {
                if !self.wait(Instant::now() + TIMEOUT)? {
                    return Err(SocketError::Timeout);
                }
                continue;
            };
            for message in messages {
                let message = message?;
                if message.seq != seq {
                    continue;
                }
                interrupted |= message.flags & flags::DUMP_INTR != 0;
                match message.kind {
                    NLMSG_ERROR | NLMSG_DONE => {
                        return match end_of_answer(&message) {
                            Err(error) if error.errno() == Some(libc::EINTR) => {
                                Err(SocketError::Interrupted)
                            }
                            Ok(()) if interrupted => Err(SocketError::Interrupted),
                            other => other,
                        };
                    }
                    _ => each(&message),
                }
            }
        }
    }

    /// As [`Socket::query`], with the messages as a list.
    pub fn dump(&mut self, request: &[u8]) -> Result<Vec<Msg>, SocketError> {
        let mut messages = Vec::new();
        self.query(request, |message| messages.push(message.to_owned()))?;
        Ok(messages)
    }
}

/// Whether the calling thread is in this network namespace.
fn is_own(netns: BorrowedFd<'_>) -> bool {
    let id = |stat: FileStat| (stat.st_dev, stat.st_ino);
    let own = stat("/proc/thread-self/ns/net").map(id);
    matches!((own, fstat(netns).map(id)), (Ok(own), Ok(asked)) if own == asked)
}

fn end_of_answer(message: &Message<'_>) -> Result<(), SocketError> {
    if message.kind == NLMSG_ERROR {
        return acknowledgement(message);
    }
    // NLMSG_DONE: an int, negative when the dump ended with an error, then attributes if the flag says so.
    let code = message
        .payload
        .first_chunk()
        .map_or(0, |bytes| i32::from_ne_bytes(*bytes));
    outcome(code, message, 4)
}

/// Reads an `NLMSG_ERROR` message: `int error`, the request's header, its payload unless capped, attributes
/// (`netlink_ack()`, net/netlink/af_netlink.c, v6.18).
pub fn acknowledgement(message: &Message<'_>) -> Result<(), SocketError> {
    let payload = message.payload;
    let code = payload
        .first_chunk()
        .map_or(-libc::EBADMSG, |bytes| i32::from_ne_bytes(*bytes));
    let request = payload
        .get(4..)
        .and_then(<[u8]>::first_chunk)
        .and_then(|bytes| usize::try_from(u32::from_ne_bytes(*bytes)).ok())
        .unwrap_or(HEADER);
    let echoed = if message.flags & flags::CAPPED != 0 {
        HEADER
    } else {
        request
    };
    outcome(code, message, echoed.next_multiple_of(4).saturating_add(4))
}

fn outcome(code: i32, message: &Message<'_>, attributes: usize) -> Result<(), SocketError> {
    if code >= 0 {
        return Ok(());
    }
    let (mut text, mut offset) = (None, None);
    if message.flags & flags::ACK_TLVS != 0 {
        for attr in Attrs::after(message.payload, attributes).map_while(Result::ok) {
            match attr.kind {
                NLMSGERR_ATTR_MSG => text = attr.str().ok().map(str::to_owned),
                NLMSGERR_ATTR_OFFS => offset = attr.u32().ok(),
                _ => {}
            }
        }
    }
    Err(SocketError::Kernel {
        errno: code.saturating_neg(),
        text,
        offset,
        seq: message.seq,
    })
}

#[cfg(test)]
mod tests;
