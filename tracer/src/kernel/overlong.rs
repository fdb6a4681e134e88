//! What the running kernel makes of extension headers of IPv6 without room: see [`crate::eval::overlong`].

use std::{io, net::Ipv6Addr};

use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sendto, socket,
    },
};
use std::os::fd::AsRawFd;

use crate::{
    eval::overlong::{Overlong, Reaction},
    netlink::{
        nft_write::{BaseChain, Batch, Rule, WriteError},
        rtnl::{Rtnl, RtnlError},
    },
    ruleset::{
        expr::{CmpOp, Expr, PayloadBase},
        model::Family,
    },
};

/// Extension headers and what else may follow one (include/net/ipv6.h, v6.18).
const HOP: u8 = 0;
const TCP: u8 = 6;
const ROUTING: u8 = 43;
const ESP: u8 = 50;
const AUTH: u8 = 51;
const NONE: u8 = 59;

/// The kernel could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// It took no ruleset: without `nft_compat`, say.
    #[error(transparent)]
    Ruleset(#[from] WriteError),
    /// The loopback could not be set up.
    #[error(transparent)]
    Link(#[from] RtnlError),
    /// No network namespace, no thread, no socket, or no packet could be sent.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// A match, and a packet whose header has no room.
struct Question {
    name: &'static str,
    info: Vec<u8>,
    /// The first extension header's number, and what follows the IPv6 header.
    next: u8,
    rest: &'static [u8],
}

/// `struct ip6t_opts`, 40 bytes: with two options of any length to be there, of type 1.
fn options(asked: bool) -> Vec<u8> {
    let mut info = vec![0; 40];
    if asked {
        // IP6T_OPTS_OPTS; the lower byte of an option is its length, 255 any.
        info[4] = 2;
        for at in [6, 8] {
            info[at..at + 2].copy_from_slice(&0x01ff_u16.to_ne_bytes());
        }
        info[38] = 2;
    }
    info
}

/// Zeros with a range of all 32-bit numbers from byte `at` on.
fn any(len: usize, at: usize) -> Vec<u8> {
    let mut info = vec![0; len];
    info[at + 4..at + 8].fill(0xff);
    info
}

/// In the order of [`Overlong`]'s fields.
fn questions() -> [Question; 7] {
    let question = |name, info, next, rest| Question {
        name,
        info,
        next,
        rest,
    };
    // `struct ip6t_ipv6header_info`: these headers and no others.
    let headers = |bits| vec![bits, 0, 0, 0, 0, 0, 0, 0];
    [
        question("hbh", options(false), HOP, &[NONE, 1, 1, 4, 0, 0, 0, 0]),
        question("hbh", options(true), HOP, &[NONE, 0, 1, 90, 0, 0, 0, 0]),
        // `struct ip6t_rt`, with any number of segments left.
        question("rt", any(280, 4), ROUTING, &[NONE, 1, 0, 0, 0, 0, 0, 0]),
        // `struct ip6t_ah`, with any SPI; 24 bytes, of which 12 are there.
        question(
            "ah",
            any(16, 0),
            AUTH,
            &[NONE, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1],
        ),
        // Hop-by-hop options and a protocol.
        question(
            "ipv6header",
            headers(0x81),
            HOP,
            &[TCP, 1, 1, 4, 0, 0, 0, 0],
        ),
        question("ipv6header", headers(0x80), HOP, &[NONE]),
        question("ipv6header", headers(0x04), ESP, &[0]),
    ]
}

/// Asks the running kernel, in a network namespace of its own. Takes some milliseconds.
///
/// The packets are dropped on their way out there: BPF programs that look at all namespaces see that.
///
/// # Errors
/// See [`ProbeError`]; that is so without IPv6, too.
pub fn ask() -> Result<Overlong, ProbeError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("overlong".into());
        let asking = thread.spawn_scoped(scope, || {
            unshare(CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
            Rtnl::open()?.up("lo")?;
            here()
        })?;
        let panicked = || io::Error::other("the thread panicked");
        asking.join().map_err(|_| panicked())?
    })
}

/// Asks in the calling thread's network namespace. Each question is asked twice: of a rule that does nothing, where only the match itself
/// drops the packet, and of one that drops what matches. The hop limit tells them apart.
fn here() -> Result<Overlong, ProbeError> {
    let questions = questions();
    let mut batch = Batch::new(Family::Ip6, "overlong");
    batch.add_table().add_base_chain("out", &BaseChain::OUTPUT);
    for (limit, question) in (1..).step_by(2).zip(&questions) {
        let rule = |limit: u8| {
            let hop_limit = Expr::Payload {
                dreg: 1,
                base: PayloadBase::Network,
                offset: 7,
                len: 1,
            };
            let equal = Expr::Cmp {
                sreg: 1,
                op: CmpOp::Eq,
                data: vec![limit],
            };
            let what = Expr::Match {
                name: question.name.to_owned(),
                rev: 0,
                info: question.info.clone(),
            };
            Rule::new(Family::Ip6)
                .push(hop_limit)
                .push(equal)
                .push(what)
        };
        batch.add_rule("out", rule(limit));
        batch.add_rule("out", rule(limit + 1).drop());
    }
    batch.commit()?;
    let mut reactions = Vec::with_capacity(questions.len());
    for (limit, question) in (1..).step_by(2).zip(&questions) {
        let reaction = match (
            is_dropped(question, limit)?,
            is_dropped(question, limit + 1)?,
        ) {
            (true, _) => Reaction::Drops,
            (false, true) => Reaction::Overlooks,
            (false, false) => Reaction::Misses,
        };
        reactions.push(reaction);
    }
    let mut reactions = reactions.into_iter();
    Ok(Overlong {
        options: reactions.next(),
        option: reactions.next(),
        route: reactions.next(),
        authentication: reactions.next(),
        headers: reactions.next(),
        stub: reactions.next(),
        esp_stub: reactions.next(),
    })
}

/// Sends the packet to this host; whether the firewall has refused it.
fn is_dropped(question: &Question, limit: u8) -> io::Result<bool> {
    let here = Ipv6Addr::LOCALHOST;
    let length = (question.rest.len() as u16).to_be_bytes();
    let mut packet = vec![0x60, 0, 0, 0, length[0], length[1], question.next, limit];
    packet.extend(here.octets());
    packet.extend(here.octets());
    packet.extend(question.rest);
    // Of this protocol, the packet comes with its header.
    let raw = socket(
        AddressFamily::Inet6,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::Raw,
    )?;
    let to = SockaddrIn6::from(std::net::SocketAddrV6::new(here, 0, 0, 0));
    match sendto(raw.as_raw_fd(), &packet, &to, MsgFlags::empty()) {
        Ok(_) => Ok(false),
        Err(Errno::EPERM) => Ok(true),
        Err(errno) => Err(errno.into()),
    }
}
