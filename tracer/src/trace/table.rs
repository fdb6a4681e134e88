//! fwtrace's own table, which sets the trace bit of packets that match the filter.
//!
//! It is owned by a socket (`NFT_TABLE_F_OWNER`): nobody else can change it, `nft flush ruleset` leaves it alone, and it goes when the
//! socket is closed, however the process ends. Its rules match on headers and interfaces only: an expression of conntrack would switch
//! connection tracking on in the namespace.
//!
//! The filter is a conjunction of alternatives, so each condition is a chain with a rule for each alternative that goes on to the next
//! condition's chain; the last chain sets the bit.

use std::net::IpAddr;

use crate::{
    cli::{Filter, PrefixMatch, Side},
    event::Hook,
    netlink::{
        attr::AttrError,
        nft_write::{BaseChain, Batch, Rule, WriteError},
        nftables::{self, kind},
        socket::{Socket, SocketError, flags, message},
    },
    ruleset::{
        expr::{CmpOp, Data, Expr, PayloadBase},
        model::Family,
    },
};

/// Name of the table, unless another fwtrace has that one.
const NAME: &str = "fwtrace";
/// The chain that sets the bit.
const LAST: &str = "trace";
/// Before everything else: conntrack's priority is -200, defragmentation's -400.
const PRIORITY: i32 = i32::MIN;
const NFT_META_NFTRACE: u32 = 12;
const REG_1: u32 = 1;
/// TCP, UDP, DCCP, SCTP, UDP-Lite.
const WITH_PORTS: [u8; 5] = [6, 17, 33, 132, 136];

/// The table could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The kernel does not know owned tables.
    #[error(
        "--trace takes a table that goes with its process, which Linux has since 5.12; this kernel refuses it: {0}"
    )]
    NoOwners(WriteError),
    /// Anything else.
    #[error("--trace: cannot add table {name}: {source}")]
    Refused {
        /// Family and name.
        name: String,
        /// Why.
        source: WriteError,
    },
    /// The tables that there are cannot be listed.
    #[error("--trace: cannot list the tables: {0}")]
    List(#[from] SocketError),
    /// A request could not be built.
    #[error(transparent)]
    Attr(#[from] AttrError),
}

/// Whether it is a table of this or another fwtrace.
pub fn is_ours(family: Family, name: &str) -> bool {
    let number = |rest: &str| {
        rest.strip_prefix('-')
            .is_some_and(|pid| !pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit()))
    };
    family == Family::Inet
        && name
            .strip_prefix(NAME)
            .is_some_and(|rest| rest.is_empty() || number(rest))
}

/// A name for the table that no table of `socket`'s namespace has.
///
/// # Errors
/// The tables cannot be listed.
pub fn free_name(socket: &mut Socket) -> Result<String, TableError> {
    let seq = socket.next_seq();
    let request = message(
        kind::GETTABLE,
        flags::REQUEST | flags::DUMP,
        seq,
        &[Family::Inet.into(), 0, 0, 0],
    );
    let taken = socket
        .dump(&request)?
        .iter()
        .any(|table| nftables::decode_table(&table.payload).is_ok_and(|table| table.name == NAME));
    Ok(if taken {
        format!("{NAME}-{}", std::process::id())
    } else {
        NAME.to_owned()
    })
}

/// Adds the table to `socket`'s namespace; it is there until `socket` is closed.
///
/// `rate`: how many packets a second get the bit at the most; 0: all.
///
/// # Errors
/// See [`TableError`].
pub fn add(socket: &mut Socket, name: &str, filter: &Filter, rate: u32) -> Result<(), TableError> {
    match batch(name, filter, rate).commit_on(socket) {
        Ok(_) => Ok(()),
        Err(WriteError::Refused { command, source })
            if command.starts_with("add table")
                && matches!(source.errno(), Some(libc::EINVAL | libc::EOPNOTSUPP)) =>
        {
            Err(TableError::NoOwners(WriteError::Refused {
                command,
                source,
            }))
        }
        Err(source) => Err(TableError::Refused {
            name: format!("{} {name}", Family::Inet),
            source,
        }),
    }
}

/// The commands that make the table.
pub fn batch(name: &str, filter: &Filter, rate: u32) -> Batch {
    let conditions = conditions(filter);
    let chain = |at: usize| match conditions.get(at) {
        Some(_) => format!("match-{}", at + 1),
        None => LAST.to_owned(),
    };
    let mut batch = Batch::new(Family::Inet, name);
    batch.add_owned_table();
    batch.add_chain(LAST);
    batch.add_rule(LAST, set_bit(rate));
    // From the last to the first: a rule can only go to a chain that is there.
    for (at, alternatives) in conditions.iter().enumerate().rev() {
        let (this, next) = (chain(at), chain(at + 1));
        batch.add_chain(&this);
        for rule in alternatives {
            batch.add_rule(&this, rule.clone().goto(&next));
        }
    }
    let first = chain(0);
    for (name, hook, rules) in entries(filter) {
        let base = BaseChain {
            priority: PRIORITY,
            ..BaseChain::filter(hook)
        };
        batch.add_base_chain(name, &base);
        for rule in rules {
            batch.add_rule(name, rule.goto(&first));
        }
    }
    batch
}

/// `limit rate RATE/second burst RATE packets meta nftrace set 1`
fn set_bit(rate: u32) -> Rule {
    let mut rule = Rule::new(Family::Inet);
    if rate > 0 {
        rule = rule.push(Expr::Limit {
            rate: rate.into(),
            unit: 1,
            burst: rate,
            kind: 0,
            flags: 0,
        });
    }
    rule.push(Expr::Immediate {
        dreg: REG_1,
        data: Data::Value(1_u32.to_ne_bytes().to_vec()),
    })
    .push(Expr::MetaSet {
        sreg: REG_1,
        key: NFT_META_NFTRACE,
    })
}

/// The base chains: name, hook and the rules that lead into the conditions.
///
/// What comes in is traced from PREROUTING on, what is sent from OUTPUT on. With interfaces asked for, what goes out of one of them but
/// came in elsewhere is traced from FORWARD on, where that is known.
fn entries(filter: &Filter) -> Vec<(&'static str, u32, Vec<Rule>)> {
    let wanted = |hooks: &[Hook]| {
        filter.hooks.is_empty() || filter.hooks.iter().any(|hook| hooks.contains(hook))
    };
    let received = wanted(&[
        Hook::Prerouting,
        Hook::Input,
        Hook::Forward,
        Hook::Postrouting,
        Hook::Egress,
    ]);
    let sent = wanted(&[Hook::Output, Hook::Postrouting, Hook::Egress]);
    let onward = wanted(&[Hook::Forward, Hook::Postrouting, Hook::Egress]);
    let rules = |interface: fn(Rule, &str) -> Rule| -> Vec<Rule> {
        let names = filter.ifaces.iter();
        let rules = names.map(|name| interface(Rule::new(Family::Inet), name));
        rules.collect()
    };
    let any = || vec![Rule::new(Family::Inet)];
    let mut entries = Vec::new();
    if filter.ifaces.is_empty() {
        entries.extend(received.then(|| ("prerouting", 0, any())));
        entries.extend(sent.then(|| ("output", 3, any())));
    } else {
        entries.extend(received.then(|| ("prerouting", 0, rules(Rule::iifname))));
        entries.extend(onward.then(|| ("forward", 2, rules(Rule::oifname))));
        entries.extend(sent.then(|| ("output", 3, rules(Rule::oifname))));
    }
    entries
}

/// The conditions, each with its alternatives as rules without a verdict.
fn conditions(filter: &Filter) -> Vec<Vec<Rule>> {
    let rule = || Rule::new(Family::Inet);
    let mut all: Vec<Vec<Rule>> = Vec::new();
    if let Some(version) = filter.ip_version {
        all.push(vec![rule().ip_version(version)]);
    }
    match filter.proto {
        Some(proto) => all.push(vec![rule().l4proto(proto.0)]),
        // What stands in the place of the ports would be compared elsewise.
        None if !filter.ports.is_empty() => {
            all.push(WITH_PORTS.map(|proto| rule().l4proto(proto)).to_vec());
        }
        None => {}
    }
    for side in [Side::Any, Side::Src, Side::Dst] {
        let ports = filter.ports.iter().filter(|port| port.side == side);
        let rules: Vec<Rule> = ports
            .flat_map(|port| {
                let offsets = offsets(side, 0, 2);
                offsets.map(|at| between(rule(), at, port.ports.first, port.ports.last))
            })
            .collect();
        all.push(rules);
        let prefixes = filter.prefixes.iter().filter(|prefix| prefix.side == side);
        all.push(prefixes.flat_map(prefix).collect());
    }
    all.retain(|alternatives| !alternatives.is_empty());
    all
}

/// The offsets of the fields of this side.
fn offsets(side: Side, source: u32, destination: u32) -> impl Iterator<Item = u32> {
    let source = (side != Side::Dst).then_some(source);
    let destination = (side != Side::Src).then_some(destination);
    source.into_iter().chain(destination)
}

/// `th sport` or `th dport`, by its offset, within these ports.
fn between(rule: Rule, offset: u32, first: u16, last: u16) -> Rule {
    let rule = rule.push(Expr::Payload {
        dreg: REG_1,
        base: PayloadBase::Transport,
        offset,
        len: 2,
    });
    let compare = |rule: Rule, op, port: u16| {
        rule.push(Expr::Cmp {
            sreg: REG_1,
            op,
            data: port.to_be_bytes().to_vec(),
        })
    };
    if first == last {
        return compare(rule, CmpOp::Eq, first);
    }
    compare(compare(rule, CmpOp::Gte, first), CmpOp::Lte, last)
}

fn prefix(wanted: &PrefixMatch) -> Vec<Rule> {
    let rule = || Rule::new(Family::Inet);
    let length = wanted.prefix.len;
    let (source, destination) = match wanted.prefix.addr {
        IpAddr::V4(address) => (
            rule().ip_saddr_in(address, length),
            rule().ip_daddr_in(address, length),
        ),
        IpAddr::V6(address) => (
            rule().ip6_saddr_in(address, length),
            rule().ip6_daddr_in(address, length),
        ),
    };
    match wanted.side {
        Side::Any => vec![source, destination],
        Side::Src => vec![source],
        Side::Dst => vec![destination],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_ours() {
        for (family, name, ours) in [
            (Family::Inet, "fwtrace", true),
            (Family::Inet, "fwtrace-77", true),
            (Family::Ip, "fwtrace", false),
            (Family::Inet, "fwtrace-", false),
            (Family::Inet, "fwtrace-a", false),
            (Family::Inet, "fwtraces", false),
            (Family::Inet, "filter", false),
        ] {
            assert_eq!(is_ours(family, name), ours, "{family} {name}");
        }
    }
}
