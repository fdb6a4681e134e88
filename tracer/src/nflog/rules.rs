//! The rules of a network namespace that log over NFLOG: `log group` of nft and iptables-nft, the xtables target `NFLOG`.
//!
//! The kernel tells of a logged packet the group, the prefix, and the family and the hook that it was at (`nfulnl_log_packet()`,
//! net/netfilter/nfnetlink_log.c, v6.18), but not the rule. So rules are found by these four. `log` without a group goes to the
//! system's log and is not in here.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use crate::{
    attribute::{legacy, rules},
    eval::{
        logged::LogPoint,
        outcome::{ChainId, RuleId, TableId},
    },
    event::{Engine, RuleRef},
    ruleset::{
        expr::{Data, Expr},
        model::{self, Ending, Family, Ruleset},
        render::Names,
        snapshot::Snapshots,
    },
    xtables::{
        self,
        legacy::{Jump, Table, follow::Tables},
        targets::Target,
    },
};

/// `NFPROTO_IPV4` and `NFPROTO_IPV6`: what chains of family inet see packets as.
const IPV4: u8 = 2;
const IPV6: u8 = 10;

/// A rule that logs, on one of the hooks that packets come to it from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRule {
    /// What runs it.
    pub engine: Engine,
    /// Its place in the rulesets (indexes into the tables that [`LogRules::new`] was given), and what of it logs.
    pub point: LogPoint,
    /// As events name it. `base_chain` is `None` where several base chains of the hook lead to it.
    pub rule: Arc<RuleRef>,
}

/// Where a packet was logged: `NFPROTO_*` of the packet, and the hook's number in that family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Place {
    group: u16,
    pf: u8,
    hook: u8,
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogRules {
    by_place: HashMap<Place, BTreeMap<Arc<str>, Vec<LogRule>>>,
    groups: BTreeSet<u16>,
    incomplete: bool,
}

impl LogRules {
    /// The rules of these rulesets that log.
    pub fn new<'a>(
        nft: Option<&Ruleset>,
        legacy: impl IntoIterator<Item = &'a Table>,
        names: &Names,
    ) -> Self {
        let mut found = Self::default();
        for (index, table) in (0..).zip(nft.iter().flat_map(|nft| &nft.tables)) {
            found.nft_table(index, table, names);
        }
        for (index, table) in (0..).zip(legacy) {
            found.legacy_table(index, table, names);
        }
        found.incomplete |= nft.is_some_and(|nft| !nft.problems.is_empty());
        found
    }

    /// The groups that are logged to, by rules that packets can come to.
    pub fn groups(&self) -> &BTreeSet<u16> {
        &self.groups
    }

    /// Whether a rule may log of which that could not be read.
    pub fn is_incomplete(&self) -> bool {
        self.incomplete
    }

    /// The rules that log like this: `prefix` as the kernel sent it, empty for none; `pf` is `NFPROTO_*` and `hook` the hook's number
    /// in that family.
    pub fn find(&self, group: u16, prefix: &str, pf: u8, hook: u8) -> &[LogRule] {
        let rules = self.by_place.get(&Place { group, pf, hook });
        rules
            .and_then(|rules| rules.get(prefix))
            .map_or(&[], Vec::as_slice)
    }

    /// All of them by what a logged packet shows: group, prefix, `NFPROTO_*` and hook, and the rules that log like this.
    pub fn all(&self) -> impl Iterator<Item = (u16, &Arc<str>, (u8, u8), &[LogRule])> {
        self.by_place.iter().flat_map(|(place, by_prefix)| {
            let at = (place.pf, place.hook);
            let rules = by_prefix.iter();
            rules.map(move |(prefix, rules)| (place.group, prefix, at, rules.as_slice()))
        })
    }

    fn nft_table(&mut self, index: u32, table: &model::Table, names: &Names) {
        if table.flags & model::Table::DORMANT != 0 {
            return;
        }
        let logging = self.logging(
            &table.chains,
            |chain| &chain.rules,
            |rule| {
                let whole = (!rule.broken).then_some(None);
                rule.exprs.iter().map(nft_log).chain([whole])
            },
        );
        if logging.is_empty() {
            return;
        }
        let numbers = table.chains.iter().zip(0..);
        let numbers: HashMap<&str, usize> = numbers
            .map(|(chain, at)| (chain.name.as_str(), at))
            .collect();
        let calls = |chain: &model::Chain| {
            let exprs = chain.rules.iter().flat_map(|rule| &rule.exprs);
            let called = exprs.flat_map(|expr| called(table, expr));
            called
                .filter_map(|name| numbers.get(name).copied())
                .collect()
        };
        let calls: Vec<Vec<usize>> = table.chains.iter().map(calls).collect();
        let bases = table.chains.iter().enumerate().flat_map(|(at, chain)| {
            let base = chain.base.iter();
            base.flat_map(move |base| places(table.family, base.hook).map(move |place| (place, at)))
        });
        let reached = reached(bases, &calls);
        let engine = match table.iptables {
            true => Engine::IptablesNft,
            false => Engine::Nftables,
        };
        for logging in logging {
            let Some(chain) = table.chains.get(logging.chain) else {
                continue;
            };
            let Some(rule) = chain.rules.get(logging.rule) else {
                continue;
            };
            for (place, base) in entrances(&reached, logging.chain) {
                let base = base.and_then(|base| table.chains.get(base));
                let rule = rules::reference(table, chain, rule, base, names);
                self.add(&logging, place, engine, TableId::Nft(index), rule);
            }
        }
    }

    fn legacy_table(&mut self, index: u32, table: &Table, names: &Names) {
        self.incomplete |= !table.problems.is_empty();
        let logging = self.logging(
            &table.chains,
            |chain| &chain.rules,
            |rule| {
                let target = match &rule.jump {
                    Jump::Target(target) => Some(target),
                    _ => None,
                };
                target.into_iter().map(xt_log)
            },
        );
        if logging.is_empty() {
            return;
        }
        let calls = |chain: &xtables::legacy::Chain| {
            let jumps = chain.rules.iter().map(|rule| &rule.jump);
            let called = jumps.filter_map(|jump| match jump {
                Jump::Chain(chain) | Jump::Goto(chain) => Some(*chain),
                _ => None,
            });
            called.collect()
        };
        let calls: Vec<Vec<usize>> = table.chains.iter().map(calls).collect();
        let pf = match table.family {
            xtables::Family::V4 => IPV4,
            xtables::Family::V6 => IPV6,
        };
        let hooks = (0..).zip(table.hooks);
        let bases = hooks.filter_map(|(hook, chain)| Some(((pf, hook), chain?)));
        let reached = reached(bases, &calls);
        for logging in logging {
            let Some(chain) = table.chains.get(logging.chain) else {
                continue;
            };
            let Some(rule) = chain.rules.get(logging.rule) else {
                continue;
            };
            for (place, base) in entrances(&reached, logging.chain) {
                let base = base.and_then(|base| table.chains.get(base));
                let rule = legacy::reference(table, chain, rule, base, names);
                self.add(
                    &logging,
                    place,
                    Engine::IptablesLegacy,
                    TableId::Legacy(index),
                    rule,
                );
            }
        }
    }

    /// The rules of these chains that log. `logs` gives for each part of a rule what it logs, if it does; `None`: that cannot be read.
    fn logging<'a, C: 'a, R: 'a, L>(
        &mut self,
        chains: &'a [C],
        rules: impl Fn(&'a C) -> &'a [R],
        logs: impl Fn(&'a R) -> L,
    ) -> Vec<Logging>
    where
        L: Iterator<Item = Option<Option<(u16, String)>>>,
    {
        let mut found = Vec::new();
        for (chain, rules) in chains.iter().map(rules).enumerate() {
            for (rule, parts) in rules.iter().map(&logs).enumerate() {
                for (expr, part) in (0..).zip(parts) {
                    let Some(part) = part else {
                        self.incomplete = true;
                        continue;
                    };
                    found.extend(part.map(|(group, prefix)| Logging {
                        chain,
                        rule,
                        expr,
                        group,
                        prefix: prefix.into(),
                    }));
                }
            }
        }
        found
    }

    fn add(
        &mut self,
        logging: &Logging,
        (pf, hook): (u8, u8),
        engine: Engine,
        table: TableId,
        rule: RuleRef,
    ) {
        let group = logging.group;
        self.groups.insert(group);
        let rules = self.by_place.entry(Place { group, pf, hook }).or_default();
        let rules = rules.entry(Arc::clone(&logging.prefix)).or_default();
        let id = RuleId {
            chain: ChainId {
                table,
                chain: number(logging.chain),
            },
            rule: number(logging.rule),
        };
        let expr = match table {
            TableId::Nft(_) => logging.expr,
            TableId::Legacy(_) => LogPoint::TARGET,
        };
        // A rule may log twice to the same group.
        if rules.iter().all(|known| known.point.rule != id) {
            rules.push(LogRule {
                engine,
                point: LogPoint { rule: id, expr },
                rule: Arc::new(rule),
            });
        }
    }
}

/// A rule that logs, by its place in its table.
struct Logging {
    chain: usize,
    rule: usize,
    /// Which part of it.
    expr: u16,
    group: u16,
    prefix: Arc<str>,
}

fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

/// Group and prefix that the expression logs to, if it does; `None`: that cannot be read.
fn nft_log(expr: &Expr) -> Option<Option<(u16, String)>> {
    match expr {
        Expr::Log {
            group: Some(group),
            prefix,
            ..
        } => Some(Some((*group, prefix.clone().unwrap_or_default()))),
        Expr::Target { name, rev, info } if name == "NFLOG" => {
            let rev = u8::try_from(*rev).ok()?;
            // It is the same for both families.
            xt_log(&Target::decode(name, rev, info, xtables::Family::V4))
        }
        Expr::Unknown { name, .. } if name == "log" => None,
        _ => Some(None),
    }
}

/// The same of a target of xtables.
fn xt_log(target: &Target) -> Option<Option<(u16, String)>> {
    match target {
        Target::Nflog(log) => Some(Some((log.group, log.prefix.clone()))),
        Target::Unknown { name, .. } if name == "NFLOG" => None,
        _ => Some(None),
    }
}

/// The chains that an expression may call.
fn called<'a>(table: &'a model::Table, expr: &'a Expr) -> Vec<&'a str> {
    match expr.ending() {
        Ending::Jump(chain) | Ending::Goto(chain) => vec![chain],
        Ending::Map(set) => {
            let elements = table.set(set).into_iter().flat_map(|set| &set.elements);
            let called = elements.filter_map(|element| match &element.data {
                Some(Data::Verdict(verdict)) => verdict.chain.as_deref(),
                _ => None,
            });
            called.collect()
        }
        _ => Vec::new(),
    }
}

/// Families and hooks at which a chain that is on hook `hook` of a table of this family sees packets.
fn places(family: Family, hook: u32) -> impl Iterator<Item = (u8, u8)> {
    let families: &[u8] = match family {
        Family::Inet => &[IPV4, IPV6],
        Family::Ip => &[IPV4],
        Family::Ip6 => &[IPV6],
        Family::Arp => &[3],
        Family::Netdev => &[5],
        Family::Bridge => &[7],
        Family::Other(_) => &[],
    };
    let hook = u8::try_from(hook).ok();
    families.iter().filter_map(move |pf| Some((*pf, hook?)))
}

/// By place, the chains that packets come to there, each with the base chains that lead to it. `bases` are the base chains, `calls` the
/// chains that each chain calls.
type Reached = BTreeMap<(u8, u8), BTreeMap<usize, Vec<usize>>>;

fn reached(bases: impl Iterator<Item = ((u8, u8), usize)>, calls: &[Vec<usize>]) -> Reached {
    let mut reached = Reached::new();
    for (place, base) in bases {
        let chains = reached.entry(place).or_default();
        let mut seen = BTreeSet::from([base]);
        let mut todo = vec![base];
        while let Some(chain) = todo.pop() {
            chains.entry(chain).or_default().push(base);
            let called = calls.get(chain).into_iter().flatten();
            todo.extend(called.filter(|chain| seen.insert(**chain)));
        }
    }
    reached
}

/// Where packets come to a chain, with the base chain that leads to it if there is only one.
fn entrances(reached: &Reached, chain: usize) -> impl Iterator<Item = ((u8, u8), Option<usize>)> {
    reached.iter().filter_map(move |(place, chains)| {
        let bases = chains.get(&chain)?;
        Some((
            *place,
            match bases[..] {
                [base] => Some(base),
                _ => None,
            },
        ))
    })
}

/// [`LogRules`] of a namespace, as its rulesets are now.
#[derive(Debug, Default)]
pub struct Followed {
    /// Readings of the nf_tables ruleset, and generation of the legacy tables.
    made_of: Option<(Option<u64>, Option<u32>)>,
    rules: Arc<LogRules>,
}

impl Followed {
    /// The rules of the newest readings; cheap where there is no newer one than the last time.
    pub fn rules(
        &mut self,
        rulesets: Option<&Snapshots>,
        legacy: Option<&Tables>,
        names: &Names,
    ) -> &Arc<LogRules> {
        let newest = (
            rulesets.map(Snapshots::readings),
            legacy.map(Tables::generation),
        );
        if self.made_of != Some(newest) {
            self.made_of = Some(newest);
            let nft = rulesets.map(|rulesets| &*rulesets.newest().ruleset);
            let tables = legacy.into_iter().flat_map(Tables::newest);
            self.rules = Arc::new(LogRules::new(nft, tables.map(|table| &**table), names));
        }
        &self.rules
    }
}

#[cfg(test)]
pub(crate) mod tests;
