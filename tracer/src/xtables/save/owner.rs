//! Whether iptables-nft made a table.
//!
//! Nothing in nf_tables says who made what: iptables-nft sets no userdata, and the kernel does not give `NFTA_RULE_COMPAT` back. In this order:
//!
//! 1. iptables-nft makes tables of five names (ebtables-nft and arptables-nft of three), and no others.
//! 2. Xtables' matches and targets are put into nf_tables by it alone: then the table is its.
//! 3. So it is where it left another trace of its own: an interface compared with its name and one zero (nft compares all 16 bytes), `TRACE`
//!    in register 9 (nft: 1), a base chain with counters (nft has no word for those; iptables-nft sets them with `-P`, and from 1.8.10 on
//!    always).
//! 4. Otherwise it is not if there is anything that iptables-nft never makes: userdata or comments (nft 1.1 notes its version in tables), sets,
//!    objects, flowtables, an owner, a base chain of another name, type, hook or priority than the built-in ones, a rule without a counter
//!    right before its target, with its matches in another order, or with a match that iptables has no words for.
//! 5. What is left could have been made by either: `-A INPUT -p tcp --dport 80 -j DROP` of iptables-nft 1.8.9 leaves the same bytes as nft does when told
//!    to make a table `filter` with a chain `INPUT` and a rule `tcp dport 80 counter drop`. Such a table is said to be iptables': its names
//!    are, `iptables -L` shows it, and each of its rules is what the line of iptables-save says.

use super::lift::{self, key};
use crate::ruleset::model::{Chain, Data, Expr, Family, PayloadBase, Rule, Table};

/// A built-in chain: name, `NF_INET_*`, type, priority.
type Builtin = (&'static str, u32, &'static str, i32);

const RAW: &[Builtin] = &[
    ("PREROUTING", 0, "filter", -300),
    ("OUTPUT", 3, "filter", -300),
];
const MANGLE: &[Builtin] = &[
    ("PREROUTING", 0, "filter", -150),
    ("INPUT", 1, "filter", -150),
    ("FORWARD", 2, "filter", -150),
    ("OUTPUT", 3, "route", -150),
    ("POSTROUTING", 4, "filter", -150),
];
const FILTER: &[Builtin] = &[
    ("INPUT", 1, "filter", 0),
    ("FORWARD", 2, "filter", 0),
    ("OUTPUT", 3, "filter", 0),
];
/// iptables-nft hooks it in at 150 (`iptables/nft.c`, 1.8.13), legacy at `NF_IP_PRI_SECURITY`, which is 50.
const SECURITY: &[Builtin] = &[
    ("INPUT", 1, "filter", 150),
    ("FORWARD", 2, "filter", 150),
    ("OUTPUT", 3, "filter", 150),
];
const NAT: &[Builtin] = &[
    ("PREROUTING", 0, "nat", -100),
    ("INPUT", 1, "nat", 100),
    ("OUTPUT", 3, "nat", -100),
    ("POSTROUTING", 4, "nat", 100),
];

/// The built-in chains of the table of iptables-nft with this family and name. Those of ebtables and arptables are not told apart.
fn builtin_chains(table: &Table) -> Option<&'static [Builtin]> {
    match (table.family, table.name.as_str()) {
        (Family::Ip | Family::Ip6, "raw") => Some(RAW),
        (Family::Ip | Family::Ip6, "mangle") => Some(MANGLE),
        (Family::Ip | Family::Ip6, "filter") => Some(FILTER),
        (Family::Ip | Family::Ip6, "security") => Some(SECURITY),
        (Family::Ip | Family::Ip6, "nat") => Some(NAT),
        (Family::Arp, "filter") | (Family::Bridge, "filter" | "nat" | "broute") => Some(&[]),
        _ => None,
    }
}

/// Whether iptables knows the chain: one of its own, or one that is only jumped to. It does not see other base chains of its tables.
pub(super) fn knows(table: &Table, chain: &Chain) -> bool {
    chain.base.is_none() || is_builtin(builtin_chains(table).unwrap_or_default(), chain)
}

fn is_builtin(builtins: &[Builtin], chain: &Chain) -> bool {
    chain.base.as_ref().is_some_and(|base| {
        builtins.contains(&(
            chain.name.as_str(),
            base.hook,
            base.kind.as_str(),
            base.priority,
        ))
    })
}

/// Whether iptables-nft (or ebtables-nft, arptables-nft) made the table, as far as can be told.
pub fn is_iptables(table: &Table) -> bool {
    let Some(builtins) = builtin_chains(table) else {
        return false;
    };
    let is_builtin = |chain: &&Chain| is_builtin(builtins, chain);
    let mut own = table.chains.iter().filter(is_builtin).peekable();
    let has_own = own.peek().is_some();
    if own.any(|chain| chain.base.as_ref().is_some_and(|b| b.counters.is_some())) {
        return true;
    }
    let mut base_chains = table.chains.iter().filter(|chain| chain.base.is_some());
    let rules = || table.chains.iter().flat_map(|chain| &chain.rules);
    let told = |rule: &Rule| is_xtables(rule) || has_own && has_trace_of_iptables(rule);
    rules().any(told)
        || has_own
            && is_bare(table)
            && base_chains.all(|chain| is_builtin(&chain))
            && rules().all(|rule| could_be_iptables(table.family, rule))
}

/// It has a match or a target of xtables.
fn is_xtables(rule: &Rule) -> bool {
    let mut exprs = rule.exprs.iter();
    exprs.any(|expr| matches!(expr, Expr::Match { .. } | Expr::Target { .. }))
}

/// Nothing but chains and rules.
fn is_bare(table: &Table) -> bool {
    table.flags & !Table::DORMANT == 0
        && table.owner.is_none()
        && table.comment.is_none()
        && table.userdata.is_empty()
        && table.sets.is_empty()
        && table.objects.is_empty()
        && table.flowtables.is_empty()
        && table.chains.iter().all(|chain| {
            chain.comment.is_none()
                && chain.userdata.is_empty()
                && chain.flags & Chain::BINDING == 0
        })
}

/// Something in a rule that iptables-nft writes in another way than nft.
fn has_trace_of_iptables(rule: &Rule) -> bool {
    const TRACE_REGISTER: u32 = 9;
    let pairs = rule.exprs.iter().zip(rule.exprs.iter().skip(1));
    pairs.into_iter().any(|pair| match pair {
        (
            Expr::Meta {
                dreg,
                key: key::IIFNAME | key::OIFNAME,
            },
            Expr::Cmp { sreg, data, .. },
        ) => dreg == sreg && data.len() < 16 && data.ends_with(&[0]),
        (
            Expr::Immediate {
                dreg: TRACE_REGISTER,
                data: Data::Value(_),
            },
            Expr::MetaSet {
                sreg: TRACE_REGISTER,
                key: key::NFTRACE,
            },
        ) => true,
        _ => false,
    })
}

/// Whether iptables-nft can have written the rule.
fn could_be_iptables(family: Family, rule: &Rule) -> bool {
    let is_counter = |expr: &Expr| matches!(expr, Expr::Counter(_));
    let Some(at) = rule.exprs.iter().position(is_counter) else {
        return false;
    };
    let (matches, rest) = rule.exprs.split_at(at);
    let action = rest.get(1..).unwrap_or_default();
    let is_action = matches!(
        action,
        [] | [Expr::Immediate { dreg: 0, .. } | Expr::Log { .. }]
            | [Expr::Immediate { .. }, Expr::MetaSet { .. }]
    );
    is_action
        && rule.userdata.is_empty()
        && rule.comment.is_none()
        && is_ordered(family, matches)
        && !has_padded_name(matches)
        && lift::spec(family, rule).is_some()
}

/// An interface compared with all 16 bytes of a name: nft's way.
fn has_padded_name(exprs: &[Expr]) -> bool {
    let pairs = exprs.iter().zip(exprs.iter().skip(1));
    pairs.into_iter().any(|pair| match pair {
        (
            Expr::Meta {
                key: key::IIFNAME | key::OIFNAME,
                ..
            },
            Expr::Cmp { data, .. },
        ) => data.len() == 16,
        _ => false,
    })
}

/// What a load is for, in the order in which iptables-nft has them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    In,
    Out,
    /// The protocol as a packet's metadatum.
    Protocol,
    /// The protocol as a byte of the IP header.
    ProtocolByte,
    Source,
    Destination,
    Fragment,
    Match,
}

impl Part {
    /// Place: interfaces, protocol, addresses, fragments, matches.
    fn before_1_8_10(self) -> u8 {
        match self {
            Self::In => 0,
            Self::Out => 1,
            Self::Protocol | Self::ProtocolByte => 2,
            Self::Source => 3,
            Self::Destination => 4,
            Self::Fragment => 5,
            Self::Match => 6,
        }
    }

    /// Place: the addresses first.
    fn since_1_8_10(self) -> u8 {
        match self {
            Self::Source => 0,
            Self::Destination => 1,
            Self::In => 2,
            Self::Out => 3,
            Self::Protocol | Self::ProtocolByte => 4,
            Self::Fragment => 5,
            Self::Match => 6,
        }
    }
}

fn is_ordered(family: Family, exprs: &[Expr]) -> bool {
    let parts: Vec<Part> = exprs.iter().filter_map(|e| part(family, e)).collect();
    let old = parts.is_sorted_by_key(|part| part.before_1_8_10());
    // With this order came the byte of the IPv4 header as the protocol.
    let new = parts.is_sorted_by_key(|part| part.since_1_8_10())
        && !(family == Family::Ip && parts.contains(&Part::Protocol));
    old || new
}

fn part(family: Family, expr: &Expr) -> Option<Part> {
    match *expr {
        Expr::Meta { key, .. } => Some(match key {
            key::IIFNAME => Part::In,
            key::OIFNAME => Part::Out,
            key::L4PROTO => Part::Protocol,
            _ => Part::Match,
        }),
        Expr::Payload {
            base: PayloadBase::Network,
            offset,
            ..
        } => Some(match (family, offset) {
            (Family::Ip, 12) | (Family::Ip6, 8) => Part::Source,
            (Family::Ip, 16) | (Family::Ip6, 24) => Part::Destination,
            (Family::Ip, 9) | (Family::Ip6, 6) => Part::ProtocolByte,
            (Family::Ip, 6) => Part::Fragment,
            _ => Part::Match,
        }),
        Expr::Payload { .. } | Expr::Limit { .. } => Some(Part::Match),
        _ => None,
    }
}
