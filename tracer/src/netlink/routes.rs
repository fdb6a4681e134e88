//! rtnetlink: what an evaluation must know of links, routes and policy rules.
//!
//! Message layouts: include/uapi/linux/{rtnetlink,if_link,fib_rules}.h, v6.18. All integers are in host order, addresses in network order.

use std::{net::IpAddr, os::fd::BorrowedFd};

use thiserror::Error;

use super::{
    attr::{Attr, AttrError, Attrs, Writer},
    socket::{Protocol, Socket, SocketError, flags, message},
};
use crate::eval::world::{Fib, Link, Route, World, table};

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWRULE: u16 = 32;
const RTM_GETRULE: u16 = 34;

const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Size of `struct ifinfomsg`.
const IFINFOMSG: usize = 16;
/// Size of `struct rtmsg` and of `struct fib_rule_hdr`.
const RTMSG: usize = 12;
/// Size of `struct rtnexthop`.
const RTNEXTHOP: usize = 8;
/// `RTNH_F_DEAD`.
const DEAD: u32 = 1;
/// `RTM_F_CLONED`: a cached route, no configured one.
const CLONED: u32 = 0x200;
/// `FR_ACT_TO_TBL`.
const TO_TABLE: u8 = 1;

/// Beyond so many routes of a family they are left unknown, for the sake of memory: about 100 bytes each.
pub const MOST_ROUTES: usize = 100_000;

/// Multicast groups of [`Protocol::Route`] that announce what changes a [`World`]: links, addresses, routes and rules of both families
/// (`RTNLGRP_*`). When anything comes, read it again; the kernel removes routes of a link that goes down without a word about each.
pub const GROUPS: [u32; 7] = [1, 5, 7, 8, 9, 11, 19];

/// Why the world could not be read.
#[derive(Debug, Error)]
pub enum WorldError {
    /// The socket, or the kernel's answer.
    #[error("{what}: {source}")]
    Socket {
        /// What was asked for.
        what: &'static str,
        /// What went wrong.
        source: SocketError,
    },
    /// A request could not be built.
    #[error("rtnetlink: {0}")]
    Attr(#[from] AttrError),
}

fn failed(what: &'static str) -> impl FnOnce(SocketError) -> WorldError {
    move |source| WorldError::Socket { what, source }
}

/// Reads links, routes and policy rules of a network namespace; ipsets are not among it, and the version is the caller's to set.
///
/// A message that is malformed makes that part unknown. A dump that a change spoilt is an error, [`SocketError::Interrupted`]: read it again.
pub fn read_world(netns: BorrowedFd<'_>) -> Result<World, WorldError> {
    let mut socket =
        Socket::open_in(netns, Protocol::Route, &[]).map_err(failed("open a socket"))?;
    read_world_on(&mut socket)
}

/// As [`read_world`], on a socket of [`Protocol::Route`] in that namespace without multicast groups.
pub fn read_world_on(socket: &mut Socket) -> Result<World, WorldError> {
    let mut links = Vec::new();
    let whole = dump(
        socket,
        "links",
        RTM_GETLINK,
        RTM_NEWLINK,
        AF_UNSPEC,
        |payload| {
            links.push(decode_link(payload)?);
            Ok(())
        },
    )?;
    Ok(World {
        links: whole.then_some(links),
        ipv4: read_fib(socket, AF_INET)?,
        ipv6: read_fib(socket, AF_INET6)?,
        ..World::default()
    })
}

fn read_fib(socket: &mut Socket, family: u8) -> Result<Option<Fib>, WorldError> {
    let mut routes = Vec::new();
    let mut many = false;
    let whole = dump(
        socket,
        "routes",
        RTM_GETROUTE,
        RTM_NEWROUTE,
        family,
        |payload| {
            if let Some(route) = decode_route(payload)? {
                many |= routes.len() >= MOST_ROUTES;
                if !many {
                    routes.push(route);
                }
            }
            Ok(())
        },
    )?;
    let mut ruled = false;
    let rules = dump(
        socket,
        "routing rules",
        RTM_GETRULE,
        RTM_NEWRULE,
        family,
        |payload| {
            ruled |= !is_default_rule(payload)?;
            Ok(())
        },
    )?;
    Ok((whole && rules && !many).then(|| Fib::new(routes, ruled)))
}

/// Asks for everything of a kind; false if something of it could not be decoded. A family that the kernel lacks has nothing.
fn dump(
    socket: &mut Socket,
    what: &'static str,
    ask: u16,
    answer: u16,
    family: u8,
    mut each: impl FnMut(&[u8]) -> Result<(), AttrError>,
) -> Result<bool, WorldError> {
    let mut header = [0; IFINFOMSG];
    header[0] = family;
    let size = if ask == RTM_GETLINK { IFINFOMSG } else { RTMSG };
    let body = Writer::new()
        .raw(header.get(..size).unwrap_or_default())
        .finish()?;
    let request = message(ask, flags::REQUEST | flags::DUMP, socket.next_seq(), &body);
    let mut whole = true;
    let result = socket.query(&request, |message| {
        if message.kind == answer {
            whole &= each(message.payload).is_ok();
        }
    });
    match result {
        Ok(()) => Ok(whole),
        Err(error) if matches!(error.errno(), Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT)) => {
            Ok(true)
        }
        Err(source) => Err(WorldError::Socket { what, source }),
    }
}

fn word(bytes: &[u8], at: usize) -> Result<u32, AttrError> {
    bytes
        .get(at..)
        .and_then(<[u8]>::first_chunk)
        .map(|bytes| u32::from_ne_bytes(*bytes))
        .ok_or(AttrError::Truncated {
            offset: at,
            length: 4,
            left: bytes.len().saturating_sub(at),
        })
}

fn header<const N: usize>(payload: &[u8]) -> Result<&[u8; N], AttrError> {
    payload.first_chunk().ok_or(AttrError::Truncated {
        offset: 0,
        length: N,
        left: payload.len(),
    })
}

/// Decodes `RTM_NEWLINK`: `struct ifinfomsg` (`u8 family`, padding, `u16 type`, `i32 index`, `u32 flags`, `u32 change`), attributes.
pub fn decode_link(payload: &[u8]) -> Result<Link, AttrError> {
    let head = header::<IFINFOMSG>(payload)?;
    let mut link = Link {
        kind: u16::from_ne_bytes([head[2], head[3]]),
        index: word(head, 4)?,
        flags: word(head, 8)?,
        ..Link::default()
    };
    for attr in Attrs::after(payload, IFINFOMSG) {
        let attr = attr?;
        match attr.kind {
            1 => link.address = attr.payload.to_vec(),
            3 => link.name = attr.str()?.to_owned(),
            10 => link.master = Some(attr.u32()?),
            18 => {
                if let Some(kind) = attr.nested().find(1)? {
                    link.driver = Some(kind.str()?.to_owned());
                }
            }
            27 => link.group = attr.u32()?,
            _ => {}
        }
    }
    Ok(link)
}

/// Decodes `RTM_NEWROUTE`: `struct rtmsg` (`u8` family, destination and source prefix, tos, table, protocol, scope, type; `u32 flags`),
/// attributes. `None`: a cached route.
pub fn decode_route(payload: &[u8]) -> Result<Option<Route>, AttrError> {
    let head = header::<RTMSG>(payload)?;
    let [family, prefix, source, tos, table, _, _, kind, ..] = *head;
    let route_flags = word(head, 8)?;
    if route_flags & CLONED != 0 {
        return Ok(None);
    }
    let any = match family {
        AF_INET6 => IpAddr::from([0; 16]),
        _ => IpAddr::from([0; 4]),
    };
    let mut route = Route {
        table: u32::from(table),
        dst: any,
        prefix,
        sourced: source > 0,
        tos,
        kind,
        metric: 0,
        oifs: Vec::new(),
        dead: false,
    };
    let mut hops = Vec::new();
    for attr in Attrs::after(payload, RTMSG) {
        let attr = attr?;
        match attr.kind {
            1 => route.dst = address(attr)?,
            4 => hops.push((attr.u32()?, route_flags)),
            6 => route.metric = attr.u32()?,
            9 => next_hops(attr, &mut hops)?,
            15 => route.table = attr.u32()?,
            _ => {}
        }
    }
    let live = hops.iter().filter(|(_, flags)| flags & DEAD == 0);
    route.oifs = live.map(|(index, _)| *index).collect();
    route.dead = route.oifs.is_empty() && !hops.is_empty();
    Ok(Some(route))
}

/// `RTA_MULTIPATH`: `struct rtnexthop` (`u16 length`, `u8 flags`, `u8 weight`, `i32 index`) and attributes, one after the other.
fn next_hops(attr: Attr<'_>, hops: &mut Vec<(u32, u32)>) -> Result<(), AttrError> {
    let mut rest = attr.payload;
    while let Some(&[low, high, hop_flags, ..]) = rest.first_chunk::<RTNEXTHOP>() {
        hops.push((word(rest, 4)?, u32::from(hop_flags)));
        let length = usize::from(u16::from_ne_bytes([low, high])).max(RTNEXTHOP);
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(())
}

fn address(attr: Attr<'_>) -> Result<IpAddr, AttrError> {
    match attr.payload.len() {
        4 => <[u8; 4]>::try_from(attr.payload).map(IpAddr::from),
        _ => <[u8; 16]>::try_from(attr.payload).map(IpAddr::from),
    }
    .map_err(|_| AttrError::Size {
        offset: attr.offset,
        kind: attr.kind,
        length: attr.payload.len(),
        expected: 16,
    })
}

/// Whether a policy rule (`RTM_NEWRULE`) is one of the three that every namespace has: all packets to the tables local, main and default.
pub fn is_default_rule(payload: &[u8]) -> Result<bool, AttrError> {
    let head = header::<RTMSG>(payload)?;
    let [_, dst, src, tos, to, _, _, action, ..] = *head;
    let mut table_number = u32::from(to);
    let (mut priority, mut plain) = (0, true);
    for attr in Attrs::after(payload, RTMSG) {
        let attr = attr?;
        match attr.kind {
            6 => priority = attr.u32()?,
            15 => table_number = attr.u32()?,
            // FRA_SUPPRESS_PREFIXLEN, always there, -1 for none; FRA_PROTOCOL: who added it.
            14 => plain &= attr.u32()? == u32::MAX,
            21 => {}
            _ => plain = false,
        }
    }
    let known = [
        (0, table::LOCAL),
        (32_766, table::MAIN),
        (32_767, table::DEFAULT),
    ];
    let selects = dst > 0 || src > 0 || tos > 0 || word(head, 8)? != 0;
    Ok(plain && !selects && action == TO_TABLE && known.contains(&(priority, table_number)))
}
