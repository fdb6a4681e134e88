//! nf_tables batches: create tables, chains, rules and sets.
//!
//! For network namespaces of fwtrace's own (self-calibration, `fwtrace demo`, tests), and for the table that `--trace` adds to those that
//! it watches, which is owned by its socket and goes with it; nothing else of this ever runs in a namespace of the user's.
//!
//! A batch is one datagram: `NFNL_MSG_BATCH_BEGIN`, the commands, `NFNL_MSG_BATCH_END` (net/netfilter/nfnetlink.c, v6.18); the kernel
//! applies all of it or nothing. [`Rule`] builds the bytecode that nft 1.0.6 compiles for the same rule, so that `nft list ruleset` shows
//! it as it would show anybody's.
//!
//! ```no_run
//! use fwtrace::netlink::nft_write::{BaseChain, Batch, Rule};
//! use fwtrace::ruleset::model::Family;
//!
//! let mut batch = Batch::new(Family::Inet, "t");
//! batch.add_table().add_base_chain("in", &BaseChain::INPUT);
//! batch.add_rule("in", Rule::new(Family::Inet).tcp_dport(80).counter().drop());
//! let handles = batch.commit()?;
//! # Ok::<(), fwtrace::netlink::nft_write::WriteError>(())
//! ```

mod encode;
mod rule;

use std::collections::BTreeMap;

use thiserror::Error;

pub use self::encode::encode;
pub use self::rule::{Reject, Rule, ct_state, verdict};
use super::{
    attr::{AttrError, Attrs, Writer},
    socket::{Protocol, Socket, SocketError, acknowledgement, flags, message},
};
use crate::ruleset::model::{self, Family, Table, Verdict};

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;
const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_NEWRULE: u16 = 6;
const NFT_MSG_NEWSET: u16 = 9;
const NFT_MSG_NEWSETELEM: u16 = 12;

const NFT_SET_ANONYMOUS: u32 = 1;
const NFT_SET_CONSTANT: u32 = 2;
const NFT_SET_MAP: u32 = 8;
/// `NFT_DATA_VERDICT` (include/uapi/linux/netfilter/nf_tables.h).
const DATA_VERDICT: u32 = 0xffff_ff00;
const NLMSG_ERROR: u16 = 2;
/// `NLM_F_ECHO`: the kernel sends what it made, handles included, to the socket that asked.
const ECHO: u16 = 8;
/// Sequence number of the first command; the one before it is the batch's begin.
const FIRST_SEQ: u32 = 2;

/// What a set's keys are, by nft's name of the type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// `inet_service`: a port, 2 bytes in network order.
    Service,
    /// `ipv4_addr`: 4 bytes.
    Ipv4,
    /// `ipv6_addr`: 16 bytes.
    Ipv6,
}

impl Key {
    /// nft's number of the type (`enum datatypes`, include/datatype.h of nftables 1.0.6) and the key's size in bytes.
    fn code_and_length(self) -> (u32, u32) {
        match self {
            Self::Ipv4 => (7, 4),
            Self::Ipv6 => (8, 16),
            Self::Service => (13, 2),
        }
    }
}

/// What nft keeps with a set: the byte order of its keys (`NFTNL_UDATA_SET_KEYBYTEORDER`: type 0, length 4, value in host order,
/// 2 = big endian).
fn key_byte_order() -> Vec<u8> {
    let mut userdata = vec![0, 4];
    userdata.extend(2_u32.to_ne_bytes());
    userdata
}

/// Why a command cannot be put into a message.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BuildError {
    /// fwtrace reads this expression but does not write it.
    #[error("cannot write the nf_tables expression \"{name}\"")]
    Unsupported {
        /// The expression's name in the kernel.
        name: String,
    },
    /// The message is too long.
    #[error(transparent)]
    Attr(#[from] AttrError),
}

/// Why a batch was not applied; nothing of it is then in force.
#[derive(Debug, Error)]
pub enum WriteError {
    /// The kernel refused a command of the batch.
    #[error("{command}: {source}")]
    Refused {
        /// The command, as nft would say it: `add rule inet t in`.
        command: String,
        /// The kernel's answer.
        source: SocketError,
    },
    /// The socket failed.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// A command could not be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The kernel's answer could not be read.
    #[error(transparent)]
    Attr(#[from] AttrError),
    /// The kernel did not acknowledge the batch, or did not tell the handles of all its rules.
    #[error("the kernel did not acknowledge an nf_tables batch and all its rules")]
    NoAnswer,
}

/// Hook, priority and policy of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BaseChain<'a> {
    /// `filter`, `nat` or `route`.
    pub kind: &'a str,
    /// Hook number within the family: `NF_INET_*` (prerouting 0, input 1, forward 2, output 3, postrouting 4),
    /// `NF_NETDEV_INGRESS` 0 and `NF_NETDEV_EGRESS` 1 in family netdev.
    pub hook: u32,
    /// Priority; `filter` is 0.
    pub priority: i32,
    /// What happens to packets that reach the end of the chain: dropped, or accepted.
    pub policy_drop: bool,
    /// Interfaces; for family netdev only.
    pub devices: &'a [&'a str],
}

impl BaseChain<'_> {
    /// `type filter hook prerouting priority filter; policy accept`.
    pub const PREROUTING: Self = Self::filter(0);
    /// `type filter hook input priority filter; policy accept`.
    pub const INPUT: Self = Self::filter(1);
    /// `type filter hook forward priority filter; policy accept`.
    pub const FORWARD: Self = Self::filter(2);
    /// `type filter hook output priority filter; policy accept`.
    pub const OUTPUT: Self = Self::filter(3);
    /// `type filter hook postrouting priority filter; policy accept`.
    pub const POSTROUTING: Self = Self::filter(4);

    /// `type filter hook HOOK priority filter; policy accept`.
    pub const fn filter(hook: u32) -> Self {
        Self {
            kind: "filter",
            hook,
            priority: 0,
            policy_drop: false,
            devices: &[],
        }
    }

    /// The same with `policy drop`.
    pub const fn policy_drop(self) -> Self {
        Self {
            policy_drop: true,
            ..self
        }
    }
}

/// A set of the batch, named or anonymous, as rules refer to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetRef {
    /// Name; `__set%d` or `__map%d` for an anonymous one, which the kernel numbers.
    pub name: String,
    /// Number within the batch.
    pub id: u32,
}

/// One command of a batch; its sequence number is [`FIRST_SEQ`] plus its place.
#[derive(Debug)]
struct Command {
    kind: u16,
    flags: u16,
    /// `nfgenmsg` and attributes.
    body: Vec<u8>,
    /// As nft would say it, for error messages.
    text: String,
}

/// Commands for one table, sent in one go.
#[derive(Debug)]
pub struct Batch {
    family: Family,
    table: String,
    commands: Vec<Command>,
    sets: u32,
    error: Option<BuildError>,
}

impl Batch {
    /// An empty batch about this table.
    pub fn new(family: Family, table: &str) -> Self {
        Self {
            family,
            table: table.to_owned(),
            commands: Vec::new(),
            sets: 0,
            error: None,
        }
    }

    /// `add table`.
    pub fn add_table(&mut self) -> &mut Self {
        let table = self.table.clone();
        self.command(NFT_MSG_NEWTABLE, flags::CREATE, "add table", &table, |w| {
            w.str(1, &table).be32(2, 0);
        });
        self
    }

    /// `add table` with `flags owner`: it belongs to the socket that the batch is committed on and goes with it, and `flush ruleset` of
    /// others leaves it alone. Refused if there is one of its name; since Linux 5.12.
    pub fn add_owned_table(&mut self) -> &mut Self {
        let table = self.table.clone();
        let flags = flags::CREATE | flags::EXCL;
        self.command(NFT_MSG_NEWTABLE, flags, "add table", &table, |w| {
            w.str(1, &table).be32(2, Table::OWNER);
        });
        self
    }

    /// `add chain`, without a hook: for jumps and gotos.
    pub fn add_chain(&mut self, chain: &str) -> &mut Self {
        let table = self.table.clone();
        self.command(NFT_MSG_NEWCHAIN, flags::CREATE, "add chain", chain, |w| {
            w.str(1, &table).str(3, chain);
        });
        self
    }

    /// `add chain` with `type ... hook ...`.
    pub fn add_base_chain(&mut self, chain: &str, base: &BaseChain<'_>) -> &mut Self {
        let table = self.table.clone();
        self.command(NFT_MSG_NEWCHAIN, flags::CREATE, "add chain", chain, |w| {
            w.str(1, &table)
                .str(3, chain)
                .str(7, base.kind)
                .be32(5, u32::from(!base.policy_drop));
            w.nest(4, |w| {
                w.be32(1, base.hook).bytes(2, &base.priority.to_be_bytes());
                match base.devices {
                    [] => {}
                    [device] => {
                        w.str(3, device);
                    }
                    devices => {
                        w.nest(4, |w| {
                            for device in devices {
                                w.str(1, device);
                            }
                        });
                    }
                }
            });
        });
        self
    }

    /// `add set NAME { type KEY; elements = { ... } }`. Every element is the raw key: network order for addresses and ports.
    pub fn add_set(&mut self, name: &str, key: Key, elements: &[&[u8]]) -> SetRef {
        let elements: Vec<Element<'_>> = elements.iter().map(|&key| (key, None)).collect();
        self.set(name, key, 0, &elements)
    }

    /// `add set NAME { type KEY; elements = { * } }`: with a catch-all element (Linux 5.13).
    pub fn add_set_of_everything(&mut self, name: &str, key: Key) -> SetRef {
        self.set(name, key, 0, &[(&[], None)])
    }

    /// `add map NAME { type KEY : verdict; elements = { ... } }`.
    pub fn add_verdict_map(
        &mut self,
        name: &str,
        key: Key,
        elements: &[(&[u8], Verdict)],
    ) -> SetRef {
        let elements: Vec<Element<'_>> = elements
            .iter()
            .map(|(key, verdict)| (*key, Some(verdict)))
            .collect();
        self.set(name, key, NFT_SET_MAP, &elements)
    }

    /// The set of a rule such as `tcp dport { 22, 80 }`; to be used by exactly one rule of this batch.
    pub fn add_anonymous_set(&mut self, key: Key, elements: &[&[u8]]) -> SetRef {
        let elements: Vec<Element<'_>> = elements.iter().map(|&key| (key, None)).collect();
        self.set(
            "__set%d",
            key,
            NFT_SET_ANONYMOUS | NFT_SET_CONSTANT,
            &elements,
        )
    }

    /// The map of a rule such as `tcp dport vmap { 22 : accept }`; to be used by exactly one rule of this batch.
    pub fn add_anonymous_verdict_map(&mut self, key: Key, elements: &[(&[u8], Verdict)]) -> SetRef {
        let elements: Vec<Element<'_>> = elements
            .iter()
            .map(|(key, verdict)| (*key, Some(verdict)))
            .collect();
        self.set(
            "__map%d",
            key,
            NFT_SET_MAP | NFT_SET_ANONYMOUS | NFT_SET_CONSTANT,
            &elements,
        )
    }

    fn set(&mut self, name: &str, key: Key, set_flags: u32, elements: &[Element<'_>]) -> SetRef {
        self.sets += 1;
        let id = self.sets;
        let table = self.table.clone();
        self.command(NFT_MSG_NEWSET, flags::CREATE, "add set", name, |w| {
            let (code, length) = key.code_and_length();
            w.str(1, &table)
                .str(2, name)
                .be32(3, set_flags)
                .be32(4, code)
                .be32(5, length);
            if set_flags & NFT_SET_MAP != 0 {
                w.be32(6, DATA_VERDICT).be32(7, 0);
            }
            w.be32(10, id);
            if let (true, Ok(size)) = (
                set_flags & NFT_SET_CONSTANT != 0,
                u32::try_from(elements.len()),
            ) {
                w.nest(9, |w| {
                    w.be32(1, size);
                });
            }
            w.bytes(13, &key_byte_order());
        });
        if !elements.is_empty() {
            self.command(
                NFT_MSG_NEWSETELEM,
                flags::CREATE,
                "add element",
                name,
                |w| {
                    w.str(1, &table).str(2, name).be32(4, id).nest(3, |w| {
                        for (key, verdict) in elements {
                            w.nest(1, |w| {
                                if key.is_empty() {
                                    w.be32(3, model::Element::CATCHALL);
                                } else {
                                    w.nest(1, |w| {
                                        w.bytes(1, key);
                                    });
                                }
                                if let Some(verdict) = verdict {
                                    w.nest(2, |w| encode::verdict(w, verdict));
                                }
                            });
                        }
                    });
                },
            );
        }
        SetRef {
            name: name.to_owned(),
            id,
        }
    }

    /// `add rule`. [`Batch::commit`] tells the rules' handles in the order of these calls.
    pub fn add_rule(&mut self, chain: &str, rule: Rule) -> &mut Self {
        let table = self.table.clone();
        let flags = flags::CREATE | flags::APPEND | ECHO;
        let mut problem = None;
        self.command(NFT_MSG_NEWRULE, flags, "add rule", chain, |w| {
            w.str(1, &table).str(2, chain).nest(4, |w| {
                for (expr, set) in rule.exprs() {
                    w.nest(1, |w| {
                        if let Err(error) = encode(w, expr, *set) {
                            problem.get_or_insert(error);
                        }
                    });
                }
            });
            if let Some(userdata) = rule.userdata() {
                w.bytes(7, &userdata);
            }
        });
        self.error = self.error.take().or(problem);
        self
    }

    fn command(
        &mut self,
        kind: u16,
        flags: u16,
        verb: &str,
        object: &str,
        fill: impl FnOnce(&mut Writer),
    ) {
        let mut writer = Writer::new();
        writer.raw(&[self.family.into(), 0, 0, 0]);
        fill(&mut writer);
        let text = match kind {
            NFT_MSG_NEWTABLE => format!("{verb} {} {object}", self.family),
            _ => format!("{verb} {} {} {object}", self.family, self.table),
        };
        match writer.finish() {
            Ok(body) => self.commands.push(Command {
                kind,
                flags,
                body,
                text,
            }),
            Err(error) => {
                self.error.get_or_insert(error.into());
            }
        }
    }

    /// The batch as one datagram, for a socket of protocol netfilter.
    pub fn to_bytes(&self) -> Result<Vec<u8>, BuildError> {
        if let Some(error) = &self.error {
            return Err(error.clone());
        }
        // `res_id` names the subsystem, in network order.
        let mut mark = [0; 4];
        mark[2..].copy_from_slice(&NFNL_SUBSYS_NFTABLES.to_be_bytes());
        let mut bytes = message(NFNL_MSG_BATCH_BEGIN, flags::REQUEST, FIRST_SEQ - 1, &mark);
        let mut seq = FIRST_SEQ;
        for (at, command) in self.commands.iter().enumerate() {
            // Errors come unasked. One acknowledgement tells that all is done: one for each would overflow the receive buffer
            // after some 160 commands. (The batch's end is acknowledged from 6.10 on only.)
            let last = at + 1 == self.commands.len();
            let flags = flags::REQUEST | command.flags | if last { flags::ACK } else { 0 };
            bytes.extend(message(
                NFNL_SUBSYS_NFTABLES << 8 | command.kind,
                flags,
                seq,
                &command.body,
            ));
            seq += 1;
        }
        bytes.extend(message(NFNL_MSG_BATCH_END, flags::REQUEST, seq, &mark));
        Ok(bytes)
    }

    /// Applies the batch in the calling thread's network namespace; gives the handles of the rules, in the order they were added.
    pub fn commit(&self) -> Result<Vec<u64>, WriteError> {
        self.commit_on(&mut Socket::open(Protocol::Netfilter, &[])?)
    }

    /// Applies the batch in the network namespace of `socket`, which must have nothing left to receive.
    pub fn commit_on(&self, socket: &mut Socket) -> Result<Vec<u64>, WriteError> {
        socket.send(&self.to_bytes()?)?;
        let mut handles = BTreeMap::new();
        let mut done = false;
        let mut refused = None;
        // The kernel does all of it within send(): what there is to receive is there.
        while let Some(messages) = socket.recv()? {
            for message in messages {
                let message = message?;
                if message.kind == NLMSG_ERROR {
                    done = true;
                    if let Err(source) = acknowledgement(&message) {
                        refused = refused.or(Some((message.seq, source)));
                    }
                } else if message.kind == NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWRULE {
                    handles.insert(message.seq, rule_handle(message.payload)?);
                }
            }
        }
        if let Some((seq, source)) = refused {
            let at = usize::try_from(seq.wrapping_sub(FIRST_SEQ)).unwrap_or(usize::MAX);
            let command = self
                .commands
                .get(at)
                .map_or("nf_tables batch", |command| command.text.as_str());
            return Err(WriteError::Refused {
                command: command.to_owned(),
                source,
            });
        }
        let rules = self
            .commands
            .iter()
            .filter(|command| command.kind == NFT_MSG_NEWRULE)
            .count();
        let handles: Vec<u64> = handles.into_values().collect();
        if !done || handles.len() != rules {
            return Err(WriteError::NoAnswer);
        }
        Ok(handles)
    }
}

/// A set element: the raw key, and the verdict in a verdict map.
/// Key (none: the catch-all element), and the verdict of a map's.
type Element<'a> = (&'a [u8], Option<&'a Verdict>);

/// The handle in the kernel's echo of a new rule.
fn rule_handle(payload: &[u8]) -> Result<u64, AttrError> {
    const NFTA_RULE_HANDLE: u16 = 3;
    Attrs::after(payload, 4)
        .find(NFTA_RULE_HANDLE)?
        .ok_or(AttrError::Missing {
            kind: NFTA_RULE_HANDLE,
        })?
        .be64()
}
