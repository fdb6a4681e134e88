//! Whole rules in iptables-save syntax, of both engines.
//!
//! iptables-legacy keeps a rule as `struct ipt_entry` or `ip6t_entry`; iptables-nft compiles the same thing to nf_tables expressions, some of
//! them nft's own (addresses, interfaces, protocols, ports, marks, limits), the rest xtables' matches and targets. Both come back here as one
//! `Spec` and are written in one way: iptables 1.8.9's, down to its order of words. What a rule has that no word of iptables says makes it
//! `None`: then it is to be written in nft's syntax.
//!
//! | module | subject |
//! |---|---|
//! | `lift` | nf_tables expressions -> `Spec`, for every version of iptables-nft up to 1.8.13 |
//! | `load` | what the registers hold on the way |
//! | `ports` | the native forms of `-m tcp`, `-m udp`, `-m icmp` |
//! | `ip` | addresses, interfaces, protocol, fragments |
//! | `owner` | whether iptables-nft made a table |
//! | `listing` | whole tables |

mod ip;
mod lift;
mod listing;
mod load;
mod owner;
mod ports;
#[cfg(test)]
mod tests;

use super::legacy;
use super::matches::Match;
use super::targets::Target;
use super::{Family, legacy::Ip};
use crate::ruleset::model;
use crate::ruleset::render::{Names, one_line};

pub use listing::{chain_line, legacy_table, table};
pub use owner::is_iptables;

/// A rule of either engine.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Spec<'a> {
    family: Family,
    ip: Ip,
    matches: Vec<Match>,
    action: Action<'a>,
}

/// What a rule does.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Action<'a> {
    /// Counts.
    Nothing,
    /// `-j` and a word.
    Verdict(&'static str),
    /// `-j` and a chain.
    Jump(&'a str),
    /// `-g` and a chain.
    Goto(&'a str),
    /// `-j` and an extension.
    Target(Target),
}

impl Spec<'_> {
    /// `-A INPUT -s 10.0.0.0/8 -p udp -m udp --dport 53 -j DROP`.
    fn line(&self, chain: &str, names: &Names) -> String {
        let mut line = format!("-A {chain}");
        ip::push(&mut line, &self.ip, self.family, names);
        for item in &self.matches {
            item.save(names, &mut line);
        }
        match &self.action {
            Action::Nothing => {}
            Action::Verdict(word) => line += &format!(" -j {word}"),
            Action::Jump(chain) => line += &format!(" -j {chain}"),
            Action::Goto(chain) => line += &format!(" -g {chain}"),
            Action::Target(target) => target.save(names, &mut line),
        }
        one_line(line)
    }
}

/// A rule of iptables-nft as `iptables-nft-save` or `ip6tables-nft-save` prints it, without its counters:
/// `-A INPUT -p udp -m udp --dport 53 -j REJECT --reject-with icmp-port-unreachable`. `None` if iptables has no words for it, does
/// not know its chain, or its family is none of iptables': somebody added it by other means.
pub fn rule(
    table: &model::Table,
    chain: &model::Chain,
    rule: &model::Rule,
    names: &Names,
) -> Option<String> {
    if !owner::knows(table, chain) {
        return None;
    }
    let spec = lift::spec(table.family, rule)?;
    Some(spec.line(&chain.name, names))
}

/// A rule of iptables-legacy as `iptables-legacy-save` or `ip6tables-legacy-save` prints it, without its counters.
pub fn legacy_rule(
    table: &legacy::Table,
    chain: &legacy::Chain,
    rule: &legacy::Rule,
    names: &Names,
) -> String {
    let name = |index: usize| table.chains.get(index).map_or("?", |chain| &chain.name);
    let action = match &rule.jump {
        legacy::Jump::Next => Action::Nothing,
        legacy::Jump::Accept => Action::Verdict("ACCEPT"),
        legacy::Jump::Drop => Action::Verdict("DROP"),
        legacy::Jump::Queue => Action::Verdict("QUEUE"),
        legacy::Jump::Return => Action::Verdict("RETURN"),
        legacy::Jump::Chain(index) => Action::Jump(name(*index)),
        legacy::Jump::Goto(index) => Action::Goto(name(*index)),
        legacy::Jump::Target(target) => Action::Target(target.clone()),
    };
    let spec = Spec {
        family: table.family,
        ip: rule.ip.clone(),
        matches: rule.matches.clone(),
        action,
    };
    spec.line(&chain.name, names)
}

/// Whether a rule of these tables names a set of ipset: the kernel keeps a number, and the name must be asked for
/// ([`Names::with_ip_sets`]).
pub fn names_ip_sets<'a>(
    rulesets: impl IntoIterator<Item = &'a model::Ruleset>,
    legacy: impl IntoIterator<Item = &'a legacy::Table>,
) -> bool {
    let tables = rulesets.into_iter().flat_map(|ruleset| &ruleset.tables);
    let mut exprs = tables
        .filter(|table| table.iptables)
        .flat_map(|table| &table.chains)
        .flat_map(|chain| &chain.rules)
        .flat_map(|rule| &rule.exprs);
    let mut rules = legacy
        .into_iter()
        .flat_map(|table| &table.chains)
        .flat_map(|chain| &chain.rules);
    exprs.any(|expr| match expr {
        model::Expr::Match { name, .. } => name == "set",
        model::Expr::Target { name, .. } => name == "SET",
        _ => false,
    }) || rules.any(|rule| {
        matches!(rule.jump, legacy::Jump::Target(Target::Set(_)))
            || rule
                .matches
                .iter()
                .any(|item| matches!(item, Match::Set(_)))
    })
}

/// Whether the rule names a set of ipset that has no name here: one made a moment ago.
pub fn lacks_set_name(family: model::Family, rule: &model::Rule, names: &Names) -> bool {
    let has_set = |expr: &model::Expr| match expr {
        model::Expr::Match { name, .. } => name == "set",
        model::Expr::Target { name, .. } => name == "SET",
        _ => false,
    };
    // Few rules have one: the others need not be decoded.
    if !rule.exprs.iter().any(has_set) {
        return false;
    }
    let Some(spec) = lift::spec(family, rule) else {
        return false;
    };
    let matched = spec.matches.iter().filter_map(|item| match item {
        Match::Set(set) => Some(&set.set),
        _ => None,
    });
    let changed = match &spec.action {
        Action::Target(Target::Set(set)) => [&set.add, &set.del, &set.map],
        _ => [&None, &None, &None],
    };
    let mut sets = matched.chain(changed.into_iter().flatten());
    sets.any(|set| names.ip_set(set.index).is_none())
}

/// The comment of a rule, as `-m comment` or as nft keeps it.
pub fn comment(rule: &model::Rule) -> Option<String> {
    if rule.comment.is_some() {
        return rule.comment.clone();
    }
    rule.exprs.iter().find_map(|expr| match expr {
        model::Expr::Match { name, rev, info } if name == "comment" => {
            match Match::decode(name, u8::try_from(*rev).ok()?, info, Family::V4) {
                Match::Comment(comment) => Some(comment),
                _ => None,
            }
        }
        _ => None,
    })
}
