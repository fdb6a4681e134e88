//! What the kernel itself says: nftrace messages, and legacy TRACE lines that come through NFLOG.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fwtrace::netlink::attr::{Attr, AttrError, Attrs, Writer};
use fwtrace::netlink::socket::{Message, Protocol, Socket, SocketError, flags, message};

use crate::PATIENCE;
use crate::netns::Netns;
use crate::oracle::legacy::Legacy;

/// `NFNLGRP_NFTRACE` (include/uapi/linux/netfilter/nfnetlink.h, v6.18).
const GROUP: u32 = 9;
/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_TRACE`.
const NFT_TRACE: u16 = 10 << 8 | 17;
/// `NFNL_SUBSYS_ULOG << 8 | NFULNL_MSG_PACKET` and `NFULNL_MSG_CONFIG`.
const NFLOG_PACKET: u16 = 4 << 8;
const NFLOG_CONFIG: u16 = 4 << 8 | 1;
/// Several thousand messages of about 1,300 bytes each, as the kernel counts them.
const BUFFER: usize = 64 << 20;

/// R answers while the SYN is being sent; longer takes only what is dropped.
const ANSWER: Duration = Duration::from_millis(100);

/// What tells packets apart in the kernel's trace and in fwtrace's events.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Source.
    pub src: IpAddr,
    /// Destination.
    pub dst: IpAddr,
    /// IP total length.
    pub len: u32,
    /// IPv4 identification.
    pub id: Option<u16>,
    /// Transport, where it follows the network header at once.
    pub proto: Option<u8>,
    /// Source and destination port, where there are such.
    pub ports: Option<(u16, u16)>,
}

impl Key {
    /// Whether both can be of one packet: ports are not known everywhere.
    pub fn is_like(&self, other: &Self) -> bool {
        let ports = self.ports.is_none() || other.ports.is_none() || self.ports == other.ports;
        let same = self.src == other.src && self.dst == other.dst;
        ports && same && self.len == other.len && self.id == other.id
    }

    /// Reads it from an IP packet, of which there may be the header only; `transport` are the
    /// bytes of the transport header.
    pub fn read(network: &[u8], transport: &[u8]) -> Option<Self> {
        let (src, dst, len, id, proto, first): (IpAddr, IpAddr, u16, _, _, _) =
            match network.first()? >> 4 {
                4 => {
                    let header = network.get(..20)?;
                    let address =
                        |at: usize| Some(Ipv4Addr::from(*header.get(at..)?.first_chunk::<4>()?));
                    (
                        address(12)?.into(),
                        address(16)?.into(),
                        be16(header, 2)?,
                        Some(be16(header, 4)?),
                        header[9],
                        be16(header, 6)? & 0x1fff == 0,
                    )
                }
                6 => {
                    let header = network.get(..40)?;
                    let address =
                        |at: usize| Some(Ipv6Addr::from(*header.get(at..)?.first_chunk::<16>()?));
                    (
                        address(8)?.into(),
                        address(24)?.into(),
                        be16(header, 4)?.checked_add(40)?,
                        None,
                        header[6],
                        true,
                    )
                }
                _ => return None,
            };
        let ports = (first && matches!(proto, 6 | 17 | 132 | 136))
            .then(|| Some((be16(transport, 0)?, be16(transport, 2)?)))
            .flatten();
        Some(Self {
            src,
            dst,
            len: len.into(),
            id,
            proto: Some(proto),
            ports,
        })
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// What dropped a packet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum By {
    /// A rule of nf_tables.
    Handle(u64),
    /// A rule of a legacy table, by its number.
    Number(u64),
    /// The policy.
    Policy,
}

/// A drop, by the kernel's own word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Truth {
    /// A legacy table.
    pub legacy: bool,
    /// The table's family, as nft calls it.
    pub family: &'static str,
    /// Table.
    pub table: String,
    /// Chain.
    pub chain: String,
    /// What.
    pub by: By,
    /// The packet.
    pub key: Option<Key>,
}

/// NFPROTO_* as nft calls tables of that family.
fn family(number: u8) -> &'static str {
    match number {
        1 => "inet",
        2 => "ip",
        3 => "arp",
        5 => "netdev",
        7 => "bridge",
        10 => "ip6",
        _ => "unknown",
    }
}

/// The kernel's traces of a namespace.
#[derive(Debug)]
pub struct Trace {
    nft: Socket,
    nflog: Option<Socket>,
    /// The packet of each trace id, as last told.
    keys: HashMap<u32, Key>,
    /// R's initial sequence number to each client port.
    pub answers: HashMap<u16, u32>,
    /// Drops that were read while an answer was looked for.
    pending: Vec<Truth>,
}

/// What a batch of packets left.
#[derive(Debug, Default)]
pub struct Batch {
    /// Drops, in order.
    pub drops: Vec<Truth>,
    /// How many messages there were.
    pub messages: usize,
}

impl Trace {
    /// Listens in a namespace; with `legacy` to NFLOG group 0, which must be free, too.
    ///
    /// # Errors
    /// A socket cannot be made.
    pub fn open(ns: &Netns, legacy: bool) -> Result<Self> {
        let open = |groups: &'static [u32]| -> Result<Socket> {
            let socket = ns.run(|| Socket::open(Protocol::Netfilter, groups))?;
            socket.set_receive_buffer(BUFFER)?;
            Ok(socket)
        };
        let nflog = if legacy {
            for family in [2, 10] {
                ns.sysctl(&format!("net/netfilter/nf_log/{family}"), "nfnetlink_log")?;
            }
            let mut socket = open(&[])?;
            // NFULA_CFG_CMD bind; NFULA_CFG_MODE copy 256 bytes; NFULA_CFG_QTHRESH 1.
            configure(&mut socket, |w| w.bytes(1, &[1]))?;
            configure(&mut socket, |w| w.bytes(2, &[0, 0, 1, 0, 2, 0]))?;
            configure(&mut socket, |w| w.be32(5, 1))?;
            Some(socket)
        } else {
            None
        };
        Ok(Self {
            nft: open(&[GROUP])?,
            nflog,
            keys: HashMap::new(),
            answers: HashMap::new(),
            pending: Vec::new(),
        })
    }

    /// R's initial sequence number towards this port: the SYN that it answers has just been sent.
    pub fn answer(&mut self, port: u16) -> Option<u32> {
        let deadline = Instant::now() + ANSWER;
        while !self.answers.contains_key(&port) && Instant::now() < deadline {
            while let Ok(Some(messages)) = self.nft.recv() {
                for found in messages.flatten().filter(|m| m.kind == NFT_TRACE) {
                    if let Ok(Some(truth)) = decode(&found, &mut self.keys, &mut self.answers) {
                        self.pending.push(truth);
                    }
                }
            }
        }
        self.answers.get(&port).copied()
    }

    /// Reads up to and including the drop of the sentinel, which is not among the answer's.
    ///
    /// # Errors
    /// Messages were lost, or the sentinel does not come.
    pub fn read(&mut self, is_sentinel: impl Fn(&Key) -> bool, legacy: &Legacy) -> Result<Batch> {
        let deadline = Instant::now() + PATIENCE;
        let mut batch = Batch {
            drops: std::mem::take(&mut self.pending),
            messages: 0,
        };
        let mut done = false;
        while !done {
            let Some(messages) = self.nft.recv().context("the kernel's trace")? else {
                ensure!(
                    self.nft.wait(deadline)?,
                    "the sentinel is not in the kernel's trace"
                );
                continue;
            };
            for found in messages {
                let found = found?;
                if found.kind != NFT_TRACE {
                    continue;
                }
                batch.messages += 1;
                let truth = decode(&found, &mut self.keys, &mut self.answers)?;
                if let Some(truth) = truth {
                    if truth.key.as_ref().is_some_and(&is_sentinel) {
                        done = true;
                    } else {
                        batch.drops.push(truth);
                    }
                }
            }
        }
        if let Some(nflog) = &mut self.nflog {
            while let Some(messages) = nflog.recv().context("the kernel's TRACE lines")? {
                for found in messages {
                    let found = found?;
                    if found.kind == NFLOG_PACKET {
                        batch.messages += 1;
                        batch.drops.extend(decode_line(&found, legacy)?);
                    }
                }
            }
        }
        Ok(batch)
    }
}

fn configure<'w>(
    socket: &mut Socket,
    fill: impl Fn(&mut Writer) -> &mut Writer + 'w,
) -> Result<(), SocketError> {
    let mut writer = Writer::new();
    // nfgenmsg: family, version, group 0.
    writer.raw(&[0, 0, 0, 0]);
    fill(&mut writer);
    let body = writer.finish().unwrap_or_default();
    let request = message(
        NFLOG_CONFIG,
        flags::REQUEST | flags::ACK,
        socket.next_seq(),
        &body,
    );
    socket.request_ack(&request)
}

/// The attributes of one nftrace message (`enum nft_trace_attributes`,
/// include/uapi/linux/netfilter/nf_tables.h, v6.18).
#[derive(Default)]
struct Fields<'a> {
    table: &'a str,
    chain: &'a str,
    handle: u64,
    kind: u32,
    verdict: Option<u32>,
    id: u32,
    link: &'a [u8],
    network: &'a [u8],
    transport: &'a [u8],
    policy: Option<u32>,
}

impl<'a> Fields<'a> {
    fn add(&mut self, attr: Attr<'a>) -> Result<(), AttrError> {
        match attr.kind {
            1 => self.table = attr.str()?,
            2 => self.chain = attr.str()?,
            3 => self.handle = attr.be64()?,
            4 => self.kind = attr.be32()?,
            5 => self.verdict = attr.nested().find(1)?.map(|code| code.be32()).transpose()?,
            6 => self.id = attr.u32()?,
            7 => self.link = attr.payload,
            8 => self.network = attr.payload,
            9 => self.transport = attr.payload,
            16 => self.policy = Some(attr.be32()?),
            _ => {}
        }
        Ok(())
    }
}

/// The drop that a message tells of, if it does.
fn decode(
    found: &Message<'_>,
    keys: &mut HashMap<u32, Key>,
    answers: &mut HashMap<u16, u32>,
) -> Result<Option<Truth>> {
    let mut fields = Fields::default();
    for attr in Attrs::after(found.payload, 4) {
        fields.add(attr?)?;
    }
    // Behind the tag of a VLAN there is another one, and what is called the network header begins with it.
    let tagged = matches!(fields.link.last_chunk(), Some([0x81, 0x00] | [0x88, 0xa8]));
    let key = Key::read(fields.network, fields.transport).filter(|_| !tagged);
    if let Some(key) = key {
        if key.proto == Some(6)
            && let (Some((sport, dport)), Some(0x12)) = (key.ports, fields.transport.get(13))
            && sport == crate::oracle::flow::LISTENER
            && let Some(seq) = fields
                .transport
                .get(4..8)
                .and_then(|b| b.first_chunk::<4>())
        {
            answers.insert(dport, u32::from_be_bytes(*seq));
        }
        keys.insert(fields.id, key);
    }
    // NFT_TRACETYPE_POLICY 1, RETURN 2, RULE 3; NF_DROP is 0, above it stands an errno.
    let by = match (fields.kind, fields.verdict, fields.policy) {
        (1, _, Some(0)) => By::Policy,
        (3, Some(verdict), _) if verdict & 0xff == 0 => By::Handle(fields.handle),
        _ => return Ok(None),
    };
    Ok(Some(Truth {
        legacy: false,
        family: family(found.payload.first().copied().unwrap_or(0)),
        table: fields.table.to_owned(),
        chain: fields.chain.to_owned(),
        by,
        key: keys.get(&fields.id).cloned(),
    }))
}

/// The drop that a TRACE line tells of, if the rule or policy that it names drops.
fn decode_line(found: &Message<'_>, legacy: &Legacy) -> Result<Option<Truth>> {
    let family = family(found.payload.first().copied().unwrap_or(0));
    let (mut prefix, mut payload) = ("", &[][..]);
    for attr in Attrs::after(found.payload, 4) {
        let attr = attr?;
        match attr.kind {
            9 => payload = attr.payload,
            10 => prefix = attr.str()?,
            _ => {}
        }
    }
    let Some(line) = prefix.trim_end().strip_prefix("TRACE: ") else {
        return Ok(None);
    };
    let words: Vec<&str> = line.split(':').collect();
    let [table, chain, kind, number] = words.as_slice() else {
        anyhow::bail!("no TRACE line: {prefix}");
    };
    let number: u64 = number.parse().with_context(|| prefix.to_owned())?;
    // An unconditional rule is called `policy` or `return`, too: the number tells.
    let by = if number <= legacy.rules(family, table, chain) {
        legacy
            .drops(family, table, chain, number)
            .then_some(By::Number(number))
    } else {
        (*kind == "policy" && legacy.policy_drops(family, table, chain)).then_some(By::Policy)
    };
    let header = match payload.first().map(|b| b >> 4) {
        Some(4) => usize::from(payload[0] & 0xf) * 4,
        _ => 40,
    };
    let transport = payload.get(header..).unwrap_or_default();
    Ok(by.map(|by| Truth {
        legacy: true,
        family,
        table: (*table).to_owned(),
        chain: (*chain).to_owned(),
        by,
        key: Key::read(payload, transport),
    }))
}
