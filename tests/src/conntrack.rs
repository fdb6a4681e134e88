//! Entries of conntrack's table, made by hand.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use fwtrace::netlink::attr::{AttrError, Writer};
use fwtrace::netlink::socket::{Protocol, Socket, flags, message};

use crate::netns::Netns;

/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW`.
const NEW: u16 = 0x100;
/// `IPS_SEEN_REPLY | IPS_ASSURED | IPS_CONFIRMED`: assured connections do not make room for others.
const STATUS: u32 = 0xe;
/// Messages in a datagram.
const BATCH: u32 = 400;

/// How many connections the namespace has.
///
/// # Errors
/// The sysctl cannot be read.
pub fn count(ns: &Netns) -> Result<u32> {
    read(ns, "nf_conntrack_count")
}

/// How many it may have. The limit is the machine's, and no test touches it.
///
/// # Errors
/// The sysctl cannot be read.
pub fn limit(ns: &Netns) -> Result<u32> {
    read(ns, "nf_conntrack_max")
}

fn read(ns: &Netns, name: &str) -> Result<u32> {
    let path = format!("/proc/sys/net/netfilter/{name}");
    let text = ns.run(|| std::fs::read_to_string(&path)).context(path)?;
    Ok(text.trim().parse()?)
}

/// Fills the namespace's table to the last place with connections that never were.
///
/// # Errors
/// It does not get full.
pub fn fill(ns: &Netns) -> Result<()> {
    let limit = limit(ns)?;
    ensure!(limit > 0, "no limit to connections on this machine");
    let mut socket = ns.run(|| Socket::open(Protocol::Netfilter, &[]))?;
    let mut next = 0_u32;
    // Some are refused for their bucket being too long.
    while count(ns)? < limit && next < limit.saturating_mul(2) {
        let left = limit - count(ns)?;
        for _ in 0..left.div_ceil(BATCH) {
            let mut batch = Vec::new();
            for _ in 0..BATCH.min(limit) {
                next += 1;
                batch.extend(connection(next)?);
            }
            socket.send(&batch)?;
            // What is refused comes back; nobody reads it.
            while let Ok(Some(_)) = socket.recv() {}
        }
    }
    let count = count(ns)?;
    ensure!(count >= limit, "{count} of {limit} entries");
    Ok(())
}

/// A datagram's connection from 100.64.0.0/10 on, another for every number.
fn connection(number: u32) -> Result<Vec<u8>, AttrError> {
    let src = Ipv4Addr::from(0x6440_0000 + number);
    let dst = Ipv4Addr::new(100, 127, 255, 254);
    let tuple = |w: &mut Writer, kind, (src, from): (Ipv4Addr, u16), (dst, to): (Ipv4Addr, u16)| {
        w.nest(kind, |w| {
            w.nest(1, |w| {
                w.bytes(1, &src.octets()).bytes(2, &dst.octets());
            });
            w.nest(2, |w| {
                w.u8(1, 17).be16(2, from).be16(3, to);
            });
        });
    };
    let mut writer = Writer::new();
    writer.raw(&[2, 0, 0, 0]);
    tuple(&mut writer, 1, (src, 1000), (dst, 2000));
    tuple(&mut writer, 2, (dst, 2000), (src, 1000));
    writer.be32(3, STATUS).be32(7, 600);
    let flags = flags::REQUEST | flags::CREATE | flags::EXCL;
    Ok(message(NEW, flags, number, &writer.finish()?))
}

/// A counter of `conntrack -S`, over all processors.
///
/// # Errors
/// The command fails, or does not have it.
pub fn counter(ns: &Netns, name: &str) -> Result<u64> {
    let text = ns.command(&["conntrack", "-S"], "")?;
    let values = text.split_ascii_whitespace();
    let values = values.filter_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    let values: Result<Vec<u64>, _> = values.map(str::parse).collect();
    let values = values?;
    ensure!(!values.is_empty(), "no {name} in {text}");
    Ok(values.iter().sum())
}
