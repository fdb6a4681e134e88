//! The legacy tables in `fwtrace rules`.

use std::io::{self, Write};

use super::{ChainObject, CountersObject, Error, Object, RuleObject, write_line};
use crate::cli::Rules;
use crate::event::Engine;
use crate::netns::NetNs;
use crate::ruleset::model::Counters;
use crate::ruleset::render::Names;
use crate::xtables::legacy::{Base, Chain, HOOKS, Jump, Rule, Table, read::Reader};
use crate::xtables::matches::Match;
use crate::xtables::{Family, save};

/// The legacy tables of a namespace; those that cannot be told from nothing are told of.
pub(super) fn read(netns: &NetNs) -> Result<Vec<Table>, Error> {
    let failed = |source| Error::Legacy {
        netns: netns.to_string(),
        source,
    };
    let raw = Reader::open(netns)
        .map_err(failed)?
        .read()
        .map_err(failed)?;
    let tables: Vec<_> = raw.iter().map(|raw| raw.parse()).collect();
    for problem in tables.iter().flat_map(|table| &table.problems) {
        log::warn!("{netns}: iptables-legacy: {problem}");
    }
    Ok(tables)
}

/// One namespace's legacy tables, and what of them is wanted.
pub(super) struct Legacy<'a> {
    pub(super) plan: &'a Rules,
    /// If the output has to say which.
    pub(super) netns: Option<&'a NetNs>,
    pub(super) tables: &'a [Table],
    pub(super) names: &'a Names,
}

impl Legacy<'_> {
    fn wanted(&self) -> impl Iterator<Item = &Table> {
        self.tables.iter().filter(|table| {
            let wanted = &self.plan.tables;
            let family = family(table);
            let named = wanted.is_empty() || wanted.iter().any(|w| w.matches(family, &table.name));
            named && table.chains.iter().any(|chain| self.wants(&chain.name))
        })
    }

    fn wants(&self, chain: &str) -> bool {
        let wanted = &self.plan.chains;
        wanted.is_empty() || wanted.iter().any(|name| name == chain)
    }

    /// Counters, unless they are to be left out.
    fn kept(&self, counters: Option<Counters>) -> CountersObject {
        CountersObject::new(counters.filter(|_| !self.plan.stateless))
    }

    /// As iptables-legacy-save has it, each rule with its number.
    pub(super) fn text(&self, out: &mut impl Write) -> io::Result<()> {
        for table in self.wanted() {
            let stateless = self.plan.stateless;
            let text = save::legacy_table(table, self.names, stateless, |chain| self.wants(chain));
            out.write_all(super::printable(&text).as_bytes())?;
        }
        Ok(())
    }

    pub(super) fn json(&self, out: &mut impl Write) -> io::Result<()> {
        for table in self.wanted() {
            let chains = table.chains.iter();
            for chain in chains.filter(|chain| self.wants(&chain.name)) {
                self.chain(table, chain, out)?;
                for rule in &chain.rules {
                    self.rule(table, chain, rule, out)?;
                }
            }
        }
        Ok(())
    }

    fn chain(&self, table: &Table, chain: &Chain, out: &mut impl Write) -> io::Result<()> {
        let netns = self.netns.map(NetNs::to_ref);
        let base = chain.base.as_ref();
        let hook = base.and_then(hook);
        let object = Object::Chain(ChainObject {
            netns: netns.as_ref(),
            engine: Engine::IptablesLegacy,
            family: family(table),
            table: &table.name,
            chain: &chain.name,
            handle: None,
            kind: None,
            hook: hook.as_deref(),
            priority: base.and_then(|base| priority(&table.name, base.hook)),
            policy: base.and_then(|base| policy(&base.policy)),
            devices: &[],
            rules: chain.rules.len(),
            counters: self.kept(base.map(|base| base.counters)),
            comment: None,
        });
        write_line(&object, out)
    }

    fn rule(
        &self,
        table: &Table,
        chain: &Chain,
        rule: &Rule,
        out: &mut impl Write,
    ) -> io::Result<()> {
        let netns = self.netns.map(NetNs::to_ref);
        let object = Object::Rule(RuleObject {
            netns: netns.as_ref(),
            engine: Engine::IptablesLegacy,
            family: family(table),
            table: &table.name,
            chain: &chain.name,
            number: rule.number,
            handle: None,
            text: &save::legacy_rule(table, chain, rule, self.names),
            comment: comment(rule),
            counters: self.kept(Some(rule.counters)),
        });
        write_line(&object, out)
    }
}

/// As nft calls it.
fn family(table: &Table) -> &'static str {
    match table.family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// As nft calls it: "input".
fn hook(base: &Base) -> Option<String> {
    let name = HOOKS.get(usize::from(base.hook))?;
    Some(name.to_ascii_lowercase())
}

/// Where the table stands among what else is on the hook: `NF_IP_PRI_*`, which are the same for IPv6
/// (include/uapi/linux/netfilter_ipv4.h, v6.18). `None` for a table that the kernel does not have.
fn priority(table: &str, hook: u8) -> Option<i32> {
    const LOCAL_IN: u8 = 1;
    const POST_ROUTING: u8 = 4;
    Some(match table {
        // -450 if its module was loaded with raw_before_defrag, which nobody can see from outside.
        "raw" => -300,
        "mangle" => -150,
        "nat" if matches!(hook, LOCAL_IN | POST_ROUTING) => 100,
        "nat" => -100,
        "filter" => 0,
        "security" => 50,
        _ => return None,
    })
}

fn policy(policy: &Jump) -> Option<&'static str> {
    match policy {
        Jump::Accept => Some("accept"),
        Jump::Drop => Some("drop"),
        _ => None,
    }
}

/// The text of `-m comment`.
fn comment(rule: &Rule) -> Option<String> {
    rule.matches.iter().find_map(|one| match one {
        Match::Comment(comment) => Some(comment.clone()),
        _ => None,
    })
}
