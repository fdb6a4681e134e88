//! Tables of ip_tables and ip6_tables.
//!
//! | module | subject |
//! |---|---|
//! | `mod` | the model: [`Table`], [`Chain`], [`Rule`] |
//! | [`blob`] | what the kernel gives -> [`Table`]; `entry` decodes one entry of it |
//! | [`read`] | all tables of a network namespace, by getsockopt |
//! | [`follow`] | the tables of a namespace while they are replaced |
//! | [`lock`] | a hint that they have been |
//! | [`terminals`] | the entries that can drop a packet, by hook |

pub mod blob;
mod entry;
pub mod follow;
pub mod lock;
pub mod read;
pub mod terminals;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

pub use self::{
    blob::{HOOKS, Info},
    terminals::{Drops, Terminal},
};

use super::{Family, matches::Match, targets::Target};
use crate::ruleset::model::Counters;

/// A legacy table, as `IPT_SO_GET_ENTRIES` gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// IPv4 or IPv6.
    pub family: Family,
    /// `raw`, `mangle`, `nat`, `filter`, `security`.
    pub name: String,
    /// In the order of the blob: the built-in chains come first, in the order of their hooks.
    pub chains: Vec<Chain>,
    /// Index into `chains` of the chain on each hook (`NF_INET_*`: 0 prerouting .. 4 postrouting).
    pub hooks: [Option<usize>; 5],
    /// Bytes of all entries (`ipt_getinfo.size`).
    pub size: u32,
    /// Number of entries (`ipt_getinfo.num_entries`).
    pub entries: u32,
    /// What could not be read, in words; each costs what it names.
    pub problems: Vec<String>,
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// Its hook and policy; `None` for a user chain.
    pub base: Option<Base>,
    /// In order.
    pub rules: Vec<Rule>,
}

/// What makes a chain a built-in one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// `NF_INET_*`.
    pub hook: u8,
    /// At the end of the chain: [`Jump::Accept`] or [`Jump::Drop`]; anything else is broken and stands in [`Table::problems`].
    pub policy: Jump,
    /// The policy entry's offset in the blob.
    pub offset: u32,
    /// What the policy decided on.
    pub counters: Counters,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// As `--line-numbers` numbers it, from 1.
    pub number: u32,
    /// Its entry's offset in the blob, the same in the kernel's copy.
    pub offset: u32,
    /// Addresses, interfaces, protocol.
    pub ip: Ip,
    /// In order.
    pub matches: Vec<Match>,
    /// What it does.
    pub jump: Jump,
    /// What it matched.
    pub counters: Counters,
}

/// `struct ipt_ip` or `struct ip6t_ip6`, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ip {
    /// Source address.
    pub src: IpAddr,
    /// Source mask, which need not be a prefix.
    pub src_mask: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Destination mask.
    pub dst_mask: IpAddr,
    /// Incoming interface, empty for any; with `+` at its end where a prefix is compared.
    pub iface_in: String,
    /// Outgoing interface, likewise.
    pub iface_out: String,
    /// IP protocol, 0 for any.
    pub proto: u16,
    /// `IP6T_F_TOS` only: the traffic class.
    pub tos: u8,
    /// `IPT_F_*`: 1 fragment, 2 goto; `IP6T_F_*`: 1 protocol, 2 tos, 4 goto.
    pub flags: u8,
    /// `IPT_INV_*`: 1 in, 2 out, 4 tos, 8 source, 0x10 destination, 0x20 fragment, 0x40 protocol.
    pub inverted: u8,
}

/// What a rule or a policy does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Jump {
    /// The next rule: a rule without a target.
    Next,
    /// Accept.
    Accept,
    /// Drop.
    Drop,
    /// Hand to user space.
    Queue,
    /// Back to the calling chain, or to the policy.
    Return,
    /// Call this chain (index into [`Table::chains`]).
    Chain(usize),
    /// Go to this chain.
    Goto(usize),
    /// An extension. A verdict that the kernel does not know, or a jump to where no chain begins, is here too, as a
    /// [`Target::Unknown`] without a name, and stands in [`Table::problems`].
    Target(Target),
}

impl Table {
    /// The chain on hook `hook` (`NF_INET_*`).
    pub fn on_hook(&self, hook: u8) -> Option<&Chain> {
        let index = (*self.hooks.get(usize::from(hook))?)?;
        self.chains.get(index)
    }

    /// The chain of this name, and its index.
    pub fn chain(&self, name: &str) -> Option<(usize, &Chain)> {
        let mut chains = self.chains.iter().enumerate();
        chains.find(|(_, chain)| chain.name == name)
    }

    /// What the entry at this offset is: index of its chain, and of its rule; `None` for a policy. Nothing for heads and tails of chains.
    pub fn at_offset(&self, offset: u32) -> Option<(usize, Option<usize>)> {
        self.chains.iter().enumerate().find_map(|(index, chain)| {
            if chain
                .base
                .as_ref()
                .is_some_and(|base| base.offset == offset)
            {
                return Some((index, None));
            }
            let rule = chain
                .rules
                .binary_search_by_key(&offset, |rule| rule.offset);
            Some((index, Some(rule.ok()?)))
        })
    }
}

impl Rule {
    /// Whether it is the tail of a user chain: RETURN for every packet.
    fn is_tail(&self) -> bool {
        self.jump == Jump::Return && self.matches.is_empty() && self.ip.is_any()
    }
}

impl Ip {
    /// Whether it takes every packet.
    pub fn is_any(&self) -> bool {
        let addresses = [self.src, self.src_mask, self.dst, self.dst_mask];
        addresses.iter().all(IpAddr::is_unspecified)
            && self.iface_in.is_empty()
            && self.iface_out.is_empty()
            && self.proto == 0
            && self.flags == 0
            && self.inverted == 0
    }
}
