//! Rules as `nft list ruleset` prints them.
//!
//! nft compiles `tcp dport 22` to steps of a register machine, and the kernel keeps only those. This module goes back, with nft 1.0.6
//! as the measure: the same statements, names and numbers. Where nft's own listing leaves out what matters (it drops a match on the
//! protocol that it takes to be implied and is not), this one does not. What has no form in nft's language is written in brackets.
//!
//! | module | subject |
//! |---|---|
//! | `lift`, `load` | register machine -> trees and statements |
//! | `relation`, `complete` | matches; which names packet bytes get |
//! | `context` | what a rule has said about the protocols so far |
//! | `condition` | a rule's matches one by one, and what a packet has instead |
//! | `statement`, `nat`, `stateful` | everything that is not a match |
//! | `node` | the trees, and their text |
//! | `set`, `key` | elements of sets and maps, and what they are |
//! | `types`, `symbols`, `proto`, `exthdr` | values and headers by name |
//! | `names` | names that the machine gives: interfaces, protocols, marks |
//! | `listing` | whole rulesets |

mod complete;
mod condition;
mod context;
mod exthdr;
mod key;
mod lift;
mod listing;
mod load;
mod names;
mod nat;
mod node;
mod proto;
mod relation;
mod set;
mod stateful;
mod statement;
mod symbols;
mod types;

use crate::ruleset::model::{Chain, Family, Rule, Ruleset, Table};

pub use condition::{Condition, Source, conditions};
pub use names::Names;

/// How to write.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// The names of the network namespace and the machine.
    pub names: &'a Names,
    /// Without what changes from packet to packet: counters, used quotas, expiry times.
    pub stateless: bool,
    /// With handles, as `nft -a` does; for [`ruleset`].
    pub handles: bool,
}

/// How far one anonymous chain may be within another.
const MAX_DEPTH: u8 = 4;

/// [`Options`] and what the text is about.
#[derive(Debug, Clone, Copy)]
struct Printer<'a> {
    options: Options<'a>,
    table: &'a Table,
    /// Anonymous chains over several lines, as in a listing, or in one.
    block: bool,
    /// With each rule's number, in words: `# rule 1 (handle 3)`.
    numbers: bool,
    depth: u8,
}

impl<'a> Printer<'a> {
    fn new(table: &'a Table, options: &Options<'a>, block: bool) -> Self {
        Self {
            options: *options,
            table,
            block,
            numbers: false,
            depth: 0,
        }
    }

    fn names(&self) -> &'a Names {
        self.options.names
    }

    fn is_stateless(&self) -> bool {
        self.options.stateless
    }

    /// The same without state: what sets give their elements is a pattern.
    fn stateless(&self) -> Self {
        let mut printer = *self;
        printer.options.stateless = true;
        printer
    }

    /// The rules of an anonymous chain, in braces.
    fn bound_chain(&self, name: &str) -> Option<String> {
        let chain = self.table.chain(name)?;
        if chain.flags & Chain::BINDING == 0 || self.depth >= MAX_DEPTH {
            return None;
        }
        let inner = Self {
            depth: self.depth + 1,
            ..*self
        };
        let rules = chain.rules.iter().map(|rule| inner.rule(rule));
        Some(if self.block {
            let lines: String = rules.map(|rule| format!("\t\t\t{rule}\n")).collect();
            format!("{{\n{lines}\t\t}}")
        } else {
            format!("{{ {} }}", rules.collect::<Vec<_>>().join("; "))
        })
    }

    fn rule(&self, rule: &Rule) -> String {
        let mut parts = lift::statements(self, rule);
        if rule.broken {
            parts.push("[ more that could not be read ]".to_owned());
        }
        if let Some(comment) = &rule.comment {
            parts.push(format!("comment \"{comment}\""));
        }
        parts.join(" ")
    }
}

/// The rule in one line, without its handle: `tcp dport 80 counter packets 2 bytes 120 drop comment "block web"`.
pub fn rule(table: &Table, rule: &Rule, options: &Options<'_>) -> String {
    one_line(Printer::new(table, options, false).rule(rule))
}

/// Log prefixes and comments may hold anything: control characters are escaped.
pub(crate) fn one_line(text: String) -> String {
    if !text.contains(char::is_control) {
        return text;
    }
    let escaped = text.chars().map(|c| {
        if c.is_control() {
            c.escape_default().to_string()
        } else {
            c.to_string()
        }
    });
    escaped.collect()
}

/// The whole ruleset as `nft list ruleset` prints it, or `nft -a list ruleset`.
pub fn ruleset(ruleset: &Ruleset, options: &Options<'_>) -> String {
    let tables = ruleset.tables.iter();
    tables
        .map(|table| listing::table(&Printer::new(table, options, true)))
        .collect()
}

/// One table as [`ruleset`] has it, each rule with its number and handle in words behind it: `# rule 1 (handle 3)`. nft takes it too.
pub fn numbered_table(table: &Table, options: &Options<'_>) -> String {
    let mut printer = Printer::new(table, options, true);
    printer.numbers = true;
    listing::table(&printer)
}

/// What makes a chain a base chain, in one line: `type filter hook input priority filter; policy drop;`. `None` for other chains.
pub fn chain_declaration(family: Family, chain: &Chain) -> Option<String> {
    let base = chain.base.as_ref()?;
    let devices = match &base.devices[..] {
        [] => String::new(),
        [device] => format!(" device \"{device}\""),
        devices => {
            let mut devices = devices.to_vec();
            devices.sort();
            format!(" devices = {{ {} }}", devices.join(", "))
        }
    };
    let policy = if base.policy == 0 { "drop" } else { "accept" };
    let offload = if chain.flags & HW_OFFLOAD != 0 {
        " flags offload;"
    } else {
        ""
    };
    Some(format!(
        "type {} hook {}{devices} priority {}; policy {policy};{offload}",
        base.kind,
        hook_name(family, base.hook),
        priority(family, base.hook, base.priority),
    ))
}

/// `NFT_CHAIN_HW_OFFLOAD`.
const HW_OFFLOAD: u32 = 2;

/// The name of a hook.
pub fn hook_name(family: Family, hook: u32) -> &'static str {
    match (family, hook) {
        (Family::Arp, 0) => "input",
        (Family::Arp, 1) => "output",
        (Family::Arp, 2) => "forward",
        (Family::Netdev, 0) => "ingress",
        (Family::Netdev, 1) => "egress",
        (Family::Arp | Family::Netdev, _) => "unknown",
        (_, 0) => "prerouting",
        (_, 1) => "input",
        (_, 2) => "forward",
        (_, 3) => "output",
        (_, 4) => "postrouting",
        (_, 5) => "ingress",
        _ => "unknown",
    }
}

/// A priority by the name of the nearest standard one, if that is at most 10 away: `filter`, `dstnat - 5`, `300`.
pub fn priority(family: Family, hook: u32, priority: i32) -> String {
    const REACH: u32 = 10;
    /// Name, value, and whether it is one of the family at this hook.
    type Standard = (&'static str, i32, bool);
    let ip = matches!(family, Family::Ip | Family::Ip6 | Family::Inet);
    let filter = ip || matches!(family, Family::Arp | Family::Netdev);
    let others: [Standard; 6] = [
        ("raw", -300, ip),
        ("mangle", -150, ip),
        ("dstnat", -100, ip && hook == 0),
        ("filter", 0, filter),
        ("security", 50, ip),
        ("srcnat", 100, ip && hook == 4),
    ];
    let bridge: [Standard; 4] = [
        ("dstnat", -300, hook == 0),
        ("filter", -200, true),
        ("out", 100, hook == 3),
        ("srcnat", 300, hook == 4),
    ];
    let standard = if family == Family::Bridge {
        &bridge[..]
    } else {
        &others[..]
    };
    let near = standard
        .iter()
        .find(|standard| priority.abs_diff(standard.1) <= REACH);
    match near {
        Some((name, value, true)) => match priority - value {
            0 => (*name).to_owned(),
            above @ 1.. => format!("{name} + {above}"),
            below => format!("{name} - {}", -below),
        },
        _ => priority.to_string(),
    }
}

#[cfg(test)]
mod odd;
#[cfg(test)]
mod tests;
