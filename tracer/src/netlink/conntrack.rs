//! ctnetlink: how full conntrack's table is, what its counters say, and single connections by their tuple.
//!
//! Numbers are big-endian but for the labels, which are bits (include/uapi/linux/netfilter/nfnetlink_conntrack.h,
//! net/netfilter/nf_conntrack_netlink.c, v6.18). Asking does not switch tracking on in a network namespace; it does load the module
//! nf_conntrack_netlink where that is one and not there yet ([`is_loaded`]).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    attr::{Attr, AttrError, Attrs, Writer},
    socket::{flags, message},
};

/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW`: a connection.
pub const NEW: u16 = 0x100;
/// `IPCTNL_MSG_CT_GET`.
const GET: u16 = 0x101;
/// `IPCTNL_MSG_CT_GET_STATS_CPU`: the counters of a processor.
pub const STATS_CPU: u16 = 0x104;
/// `IPCTNL_MSG_CT_GET_STATS`: the table as a whole.
pub const STATS: u16 = 0x105;

/// Size of `struct nfgenmsg`.
const NFGENMSG: usize = 4;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_ICMP: u8 = 1;
const IPPROTO_ICMPV6: u8 = 58;

/// How many connections a network namespace has, and how many it may have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Connections, those included that are not confirmed yet.
    pub entries: u32,
    /// `net.netfilter.nf_conntrack_max`, the same in all network namespaces; `None`: this kernel does not tell.
    pub max: Option<u32>,
}

/// What one processor has counted in a network namespace, from 0 when that was made, modulo 2^32 (`struct ip_conntrack_stat`,
/// include/linux/netfilter/nf_conntrack_common.h, v6.18).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Tuples that NAT found to be in use.
    pub found: u32,
    /// Packets that could not be placed.
    pub invalid: u32,
    /// Connections that ctnetlink entered (up to v4.x: all).
    pub insert: u32,
    /// Connections that could not be entered: their packet was dropped, unless the clash could be resolved.
    pub insert_failed: u32,
    /// Packets that conntrack dropped.
    pub drop: u32,
    /// Connections that had to go early since the table was full.
    pub early_drop: u32,
    /// Packets that were no good ICMP errors, or the like.
    pub error: u32,
    /// Lookups that had to begin anew since the table was resized.
    pub search_restart: u32,
    /// Clashes that were resolved.
    pub clash_resolve: u32,
    /// Connections that could not be entered since their bucket was too long.
    pub chain_too_long: u32,
}

impl Counters {
    /// Each counter, under the name that `conntrack -S` gives it.
    pub fn named(&self) -> [(&'static str, u32); 10] {
        [
            ("found", self.found),
            ("invalid", self.invalid),
            ("insert", self.insert),
            ("insert_failed", self.insert_failed),
            ("drop", self.drop),
            ("early_drop", self.early_drop),
            ("error", self.error),
            ("search_restart", self.search_restart),
            ("clash_resolve", self.clash_resolve),
            ("chaintoolong", self.chain_too_long),
        ]
    }
}

/// One direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// IP protocol number.
    pub proto: u8,
    /// Source port; of ICMP the identifier.
    pub from: u16,
    /// Destination port; of ICMP type and code.
    pub to: u16,
}

/// Packets and bytes of one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// Packets.
    pub packets: u64,
    /// Bytes, IP headers included.
    pub bytes: u64,
}

/// A connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// Original direction.
    pub orig: Tuple,
    /// Reply direction.
    pub reply: Tuple,
    /// `IPS_*` bits.
    pub status: u32,
    /// Seconds until it is forgotten, if nothing more comes; none for one that does not time out.
    pub timeout: Option<u32>,
    /// `ct mark`.
    pub mark: u32,
    /// `ct zone`.
    pub zone: u16,
    /// `enum tcp_conntrack`, of TCP only.
    pub tcp_state: Option<u8>,
    /// Its helper.
    pub helper: Option<String>,
    /// Original and reply direction, with net.netfilter.nf_conntrack_acct only.
    pub counted: Option<(Counted, Counted)>,
    /// The bits of `ct label` that are set, ascending.
    pub labels: Vec<u16>,
    /// Id, as `conntrack -L -o id` shows it.
    pub id: Option<u32>,
}

/// Asks how full the table is: one [`STATS`] answers, then an acknowledgement.
///
/// # Errors
/// None that this request can bring about.
pub fn stats(seq: u32) -> Result<Vec<u8>, AttrError> {
    request(STATS, flags::ACK, 0, seq, |_| ())
}

/// Asks for the counters: a [`STATS_CPU`] for each processor.
///
/// # Errors
/// None that this request can bring about.
pub fn stats_cpu(seq: u32) -> Result<Vec<u8>, AttrError> {
    request(STATS_CPU, flags::DUMP, 0, seq, |_| ())
}

/// Asks for the connection with this original tuple: one [`NEW`] answers, then an acknowledgement; ENOENT: there is none.
///
/// # Errors
/// None that this request can bring about.
pub fn get(tuple: &Tuple, zone: u16, seq: u32) -> Result<Vec<u8>, AttrError> {
    let family = match tuple.src {
        IpAddr::V4(_) => AF_INET,
        IpAddr::V6(_) => AF_INET6,
    };
    request(GET, flags::ACK, family, seq, |writer| {
        writer.nest(1, |w| write_tuple(w, tuple));
        if zone != 0 {
            writer.be16(18, zone);
        }
    })
}

fn request(
    kind: u16,
    extra: u16,
    family: u8,
    seq: u32,
    fill: impl FnOnce(&mut Writer),
) -> Result<Vec<u8>, AttrError> {
    let mut writer = Writer::new();
    writer.raw(&[family, 0, 0, 0]);
    fill(&mut writer);
    Ok(message(
        kind,
        flags::REQUEST | extra,
        seq,
        &writer.finish()?,
    ))
}

fn write_tuple(writer: &mut Writer, tuple: &Tuple) {
    writer.nest(1, |w| match (tuple.src, tuple.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            w.bytes(1, &src.octets()).bytes(2, &dst.octets());
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            w.bytes(3, &src.octets()).bytes(4, &dst.octets());
        }
        // The kernel refuses it.
        _ => {}
    });
    let [kind, code] = tuple.to.to_be_bytes();
    writer.nest(2, |w| {
        w.u8(1, tuple.proto);
        match tuple.proto {
            IPPROTO_ICMP => w.be16(4, tuple.from).u8(5, kind).u8(6, code),
            IPPROTO_ICMPV6 => w.be16(7, tuple.from).u8(8, kind).u8(9, code),
            _ => w.be16(2, tuple.from).be16(3, tuple.to),
        };
    });
}

/// Decodes the payload of a [`STATS`].
///
/// # Errors
/// What is no attribute, has not its size, or no number of connections.
pub fn decode_stats(payload: &[u8]) -> Result<Usage, AttrError> {
    let (mut entries, mut max) = (None, None);
    for attr in Attrs::after(payload, NFGENMSG) {
        let attr = attr?;
        match attr.kind {
            1 => entries = Some(attr.be32()?),
            // Since 5.6.
            2 => max = Some(attr.be32()?),
            _ => {}
        }
    }
    let entries = entries.ok_or(AttrError::Missing { kind: 1 })?;
    Ok(Usage { entries, max })
}

/// Decodes the payload of a [`STATS_CPU`]: the processor's number and its counters. One that this kernel does not have is 0.
///
/// # Errors
/// What is no attribute or has not its size.
pub fn decode_stats_cpu(payload: &[u8]) -> Result<(u32, Counters), AttrError> {
    let Some(&[_, _, high, low]) = payload.first_chunk::<NFGENMSG>() else {
        return Err(AttrError::Truncated {
            offset: 0,
            length: NFGENMSG,
            left: payload.len(),
        });
    };
    let mut counters = Counters::default();
    for attr in Attrs::after(payload, NFGENMSG) {
        let attr = attr?;
        let counter = match attr.kind {
            2 => &mut counters.found,
            4 => &mut counters.invalid,
            8 => &mut counters.insert,
            9 => &mut counters.insert_failed,
            10 => &mut counters.drop,
            11 => &mut counters.early_drop,
            12 => &mut counters.error,
            13 => &mut counters.search_restart,
            14 => &mut counters.clash_resolve,
            15 => &mut counters.chain_too_long,
            _ => continue,
        };
        *counter = attr.be32()?;
    }
    Ok((u16::from_be_bytes([high, low]).into(), counters))
}

/// Decodes the payload of a [`NEW`].
///
/// # Errors
/// What is no attribute, has not its size, or a connection without its tuples.
pub fn decode(payload: &[u8]) -> Result<Connection, AttrError> {
    connection(Attrs::after(payload, NFGENMSG))
}

/// Reads the attributes of a connection, `CTA_*`.
fn connection(attrs: Attrs<'_>) -> Result<Connection, AttrError> {
    let (mut orig, mut reply) = (None, None);
    let (mut status, mut timeout, mut mark, mut zone) = (0, None, 0, 0);
    let (mut tcp_state, mut helper, mut id) = (None, None, None);
    let (mut sent, mut answered) = (None, None);
    let mut labels = Vec::new();
    for attr in attrs {
        let attr = attr?;
        match attr.kind {
            1 => orig = Some(tuple(&attr)?),
            2 => reply = Some(tuple(&attr)?),
            3 => status = attr.be32()?,
            // CTA_PROTOINFO_TCP, CTA_PROTOINFO_TCP_STATE.
            4 => {
                if let Some(tcp) = attr.nested().find(1)? {
                    let state = tcp.nested().find(1)?;
                    tcp_state = state.map(|state| state.u8()).transpose()?;
                }
            }
            // CTA_HELP_NAME.
            5 => {
                let name = attr.nested().find(1)?;
                helper = name.map(|name| name.str()).transpose()?.map(str::to_owned);
            }
            7 => timeout = Some(attr.be32()?),
            8 => mark = attr.be32()?,
            9 => sent = Some(counted(&attr)?),
            10 => answered = Some(counted(&attr)?),
            12 => id = Some(attr.be32()?),
            18 => zone = attr.be16()?,
            22 => labels = bits(attr.payload),
            _ => {}
        }
    }
    Ok(Connection {
        orig: orig.ok_or(AttrError::Missing { kind: 1 })?,
        reply: reply.ok_or(AttrError::Missing { kind: 2 })?,
        status,
        timeout,
        mark,
        zone,
        tcp_state,
        helper,
        counted: sent.zip(answered),
        labels,
        id,
    })
}

/// `CTA_TUPLE_IP` 1, `CTA_TUPLE_PROTO` 2.
fn tuple(attr: &Attr<'_>) -> Result<Tuple, AttrError> {
    let (mut src, mut dst) = (None, None);
    let (mut proto, mut from, mut kind, mut code, mut to) = (None, 0, 0, 0, 0);
    for part in attr.nested() {
        let part = part?;
        for attr in part.nested() {
            let attr = attr?;
            match (part.kind, attr.kind) {
                (1, 1) => src = Some(address_v4(&attr)?),
                (1, 2) => dst = Some(address_v4(&attr)?),
                (1, 3) => src = Some(address_v6(&attr)?),
                (1, 4) => dst = Some(address_v6(&attr)?),
                (2, 1) => proto = Some(attr.u8()?),
                (2, 2 | 4 | 7) => from = attr.be16()?,
                (2, 3) => to = attr.be16()?,
                (2, 5 | 8) => kind = attr.u8()?,
                (2, 6 | 9) => code = attr.u8()?,
                _ => {}
            }
        }
    }
    if matches!(proto, Some(IPPROTO_ICMP | IPPROTO_ICMPV6)) {
        to = u16::from_be_bytes([kind, code]);
    }
    Ok(Tuple {
        src: src.ok_or(AttrError::Missing { kind: 1 })?,
        dst: dst.ok_or(AttrError::Missing { kind: 2 })?,
        proto: proto.ok_or(AttrError::Missing { kind: 1 })?,
        from,
        to,
    })
}

fn address_v4(attr: &Attr<'_>) -> Result<IpAddr, AttrError> {
    Ok(Ipv4Addr::from(attr.be32()?).into())
}

fn address_v6(attr: &Attr<'_>) -> Result<IpAddr, AttrError> {
    let octets: [u8; 16] = attr.payload.try_into().map_err(|_| AttrError::Size {
        offset: attr.offset,
        kind: attr.kind,
        length: attr.payload.len(),
        expected: 16,
    })?;
    Ok(Ipv6Addr::from(octets).into())
}

/// `CTA_COUNTERS_PACKETS` 1, `CTA_COUNTERS_BYTES` 2.
fn counted(attr: &Attr<'_>) -> Result<Counted, AttrError> {
    let number = |kind| match attr.nested().find(kind)? {
        Some(attr) => attr.be64(),
        None => Err(AttrError::Missing { kind }),
    };
    Ok(Counted {
        packets: number(1)?,
        bytes: number(2)?,
    })
}

/// The bits that are set: the kernel hands its `unsigned long`s over as they are in memory.
fn bits(bytes: &[u8]) -> Vec<u16> {
    let words = bytes.as_chunks::<8>().0;
    let words = words.iter().map(|word| u64::from_ne_bytes(*word));
    words
        .zip(0_u16..)
        .flat_map(|(word, at)| {
            (0..64_u16)
                .filter(move |bit| word >> bit & 1 == 1)
                .map(move |bit| at.saturating_mul(64).saturating_add(bit))
        })
        .collect()
}

/// Whether asking loads no module: ctnetlink is there, or is none. `modules` is the text of /proc/modules, `builtin` that of
/// /lib/modules/VERSION/modules.builtin; `tracks`: whether net.netfilter.nf_conntrack_count is there.
pub fn is_loaded(modules: &str, builtin: &str, tracks: bool) -> bool {
    let has = |name: &str| {
        let mut names = modules.lines().filter_map(|line| line.split(' ').next());
        names.any(|module| module == name)
    };
    tracks
        && (has("nf_conntrack_netlink")
            || builtin.contains("/nf_conntrack_netlink.ko")
            // With conntrack in the kernel itself and no list of what else is, ctnetlink is so as a rule.
            || builtin.is_empty() && !has("nf_conntrack"))
}

#[cfg(test)]
mod tests;
