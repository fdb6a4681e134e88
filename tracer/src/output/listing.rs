//! `fwtrace rules`: the rulesets as the kernel holds them.

mod legacy;

use std::io::{self, BufWriter, Write};

use serde::Serialize;

use crate::cli::{Rules, Watch};
use crate::event::{Engine, NetnsRef, VERSION};
use crate::netlink::ipset;
use crate::netlink::nftables::{ReadError, read_ruleset};
use crate::netlink::socket::{Protocol, Socket};
use crate::netns::{self, NetNs};
use crate::ruleset::model::{Chain, Counters, Expr, Rule, Ruleset, Table};
use crate::ruleset::render::{self, Names};
use crate::xtables::{legacy::read::ReadError as LegacyError, save};

/// NF_DROP (include/uapi/linux/netfilter.h, v6.18).
const NF_DROP: u32 = 0;

/// The rulesets could not be printed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] netns::Error),
    /// A ruleset could not be read.
    #[error("cannot read the ruleset of network namespace {netns}: {source}")]
    Read {
        /// Which namespace's.
        netns: String,
        /// Why.
        source: ReadError,
    },
    /// Legacy tables could not be read.
    #[error("network namespace {netns}: {source}")]
    Legacy {
        /// Which namespace's.
        netns: String,
        /// Why.
        source: LegacyError,
    },
    /// stdout.
    #[error("stdout: {0}")]
    Write(#[from] io::Error),
}

/// Prints what `plan` asks for to stdout.
///
/// # Errors
/// See [`Error`]. With every namespace watched, one that is gone meanwhile is none.
pub fn run(plan: &Rules) -> Result<(), Error> {
    let mut out = BufWriter::new(io::stdout());
    let system = Names::system();
    let mut failed = None;
    for netns in plan.watch.namespaces() {
        let read = netns.run(|| {
            Socket::open(Protocol::Netfilter, &[])
                .map_err(ReadError::from)
                .and_then(|mut socket| read_ruleset(&mut socket))
        });
        let (ruleset, interfaces) = match (read, netns.interfaces()) {
            (Ok(Ok(ruleset)), Ok(interfaces)) => (ruleset, interfaces),
            (Ok(Err(source)), _) => {
                let netns = netns.to_string();
                return Err(Error::Read { netns, source });
            }
            _ if matches!(plan.watch, Watch::All) => continue,
            (Err(err), _) | (_, Err(err)) => return Err(err.into()),
        };
        let tables = match legacy::read(&netns) {
            Ok(tables) => tables,
            Err(Error::Legacy {
                source: LegacyError::Netns(_),
                ..
            }) if matches!(plan.watch, Watch::All) => continue,
            // What can be read is printed first.
            Err(error) => {
                failed.get_or_insert(error);
                Vec::new()
            }
        };
        for problem in &ruleset.problems {
            log::warn!("{netns}: {problem}");
        }
        let mut names = system.clone().with_interfaces(interfaces);
        if save::names_ip_sets([&ruleset], &tables) {
            names = names.with_ip_sets(ipset::names_in(&netns));
        }
        let listing = Listing {
            plan,
            netns: plan.watch.several().then_some(&netns),
            ruleset: &ruleset,
            options: render::Options {
                names: &names,
                stateless: plan.stateless,
                handles: true,
            },
        };
        let legacy = legacy::Legacy {
            plan,
            netns: listing.netns,
            tables: &tables,
            names: &names,
        };
        if plan.json {
            listing.json(&mut out)?;
            legacy.json(&mut out)?;
        } else {
            listing.text(&mut out)?;
            legacy.text(&mut out)?;
        }
    }
    out.flush()?;
    failed.map_or(Ok(()), Err)
}

/// One namespace's ruleset, and what of it is wanted.
struct Listing<'a> {
    plan: &'a Rules,
    /// If the output has to say which.
    netns: Option<&'a NetNs>,
    ruleset: &'a Ruleset,
    options: render::Options<'a>,
}

impl Listing<'_> {
    fn tables(&self) -> impl Iterator<Item = &Table> {
        self.ruleset.tables.iter().filter(|table| {
            let family = table.family.to_string();
            let wanted = &self.plan.tables;
            let named = wanted.is_empty() || wanted.iter().any(|w| w.matches(&family, &table.name));
            named && (self.plan.chains.is_empty() || table.chains.iter().any(|c| self.wants(c)))
        })
    }

    fn wants(&self, chain: &Chain) -> bool {
        self.plan.chains.is_empty() || self.plan.chains.contains(&chain.name)
    }

    /// As `nft -a list ruleset` has it, or for tables of iptables as iptables-save has it; each rule with its number.
    fn text(&self, out: &mut impl Write) -> io::Result<()> {
        if let Some(netns) = self.netns {
            writeln!(out, "# network namespace {netns}")?;
        }
        for table in self.tables() {
            let mut table = table.clone();
            // Anonymous chains are printed within the rules that jump to them.
            table
                .chains
                .retain(|chain| self.wants(chain) || chain.flags & Chain::BINDING != 0);
            let iptables = table.iptables;
            let text = iptables.then(|| save::table(&table, &self.options));
            let text = text
                .flatten()
                .unwrap_or_else(|| render::numbered_table(&table, &self.options));
            out.write_all(printable(&text).as_bytes())?;
        }
        Ok(())
    }

    fn json(&self, out: &mut impl Write) -> io::Result<()> {
        let netns = self.netns.map(NetNs::to_ref);
        for table in self.tables() {
            let family = table.family.to_string();
            let engine = engine(table);
            for chain in table.chains.iter().filter(|chain| self.wants(chain)) {
                let base = chain.base.as_ref();
                let object = Object::Chain(ChainObject {
                    netns: netns.as_ref(),
                    engine,
                    family: &family,
                    table: &table.name,
                    chain: &chain.name,
                    handle: Some(chain.handle),
                    kind: base.map(|base| base.kind.as_str()),
                    hook: base.map(|base| render::hook_name(table.family, base.hook)),
                    priority: base.map(|base| base.priority),
                    policy: base.map(|base| policy(base.policy)),
                    devices: base.map_or(&[], |base| &base.devices),
                    rules: chain.rules.len(),
                    counters: self.kept(base.and_then(|base| base.counters)),
                    comment: chain.comment.as_deref(),
                });
                write_line(&object, out)?;
                for rule in &chain.rules {
                    let object = Object::Rule(RuleObject {
                        netns: netns.as_ref(),
                        engine,
                        family: &family,
                        table: &table.name,
                        chain: &chain.name,
                        number: rule.number,
                        handle: Some(rule.handle),
                        text: &self.rule_text(engine, table, chain, rule),
                        comment: save::comment(rule),
                        counters: self.kept(counters(rule)),
                    });
                    write_line(&object, out)?;
                }
            }
        }
        Ok(())
    }

    /// Counters, unless they are to be left out.
    fn kept(&self, counters: Option<Counters>) -> CountersObject {
        CountersObject::new(counters.filter(|_| !self.plan.stateless))
    }

    fn rule_text(&self, engine: Engine, table: &Table, chain: &Chain, rule: &Rule) -> String {
        let line = match engine {
            Engine::IptablesNft => save::rule(table, chain, rule, self.options.names),
            _ => None,
        };
        line.unwrap_or_else(|| render::rule(table, rule, &self.options))
    }
}

/// An object of `--json`.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
enum Object<'a> {
    Chain(ChainObject<'a>),
    Rule(RuleObject<'a>),
}

#[derive(Serialize)]
struct ChainObject<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    netns: Option<&'a NetnsRef>,
    engine: Engine,
    family: &'a str,
    table: &'a str,
    chain: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    handle: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hook: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    devices: &'a [String],
    /// How many it has.
    rules: usize,
    #[serde(flatten)]
    counters: CountersObject,
    #[serde(skip_serializing_if = "Option::is_none")]
    comment: Option<&'a str>,
}

#[derive(Serialize)]
struct RuleObject<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    netns: Option<&'a NetnsRef>,
    engine: Engine,
    family: &'a str,
    table: &'a str,
    chain: &'a str,
    number: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    handle: Option<u64>,
    text: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    comment: Option<String>,
    #[serde(flatten)]
    counters: CountersObject,
}

#[derive(Serialize)]
struct CountersObject {
    #[serde(skip_serializing_if = "Option::is_none")]
    packets: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
}

impl CountersObject {
    fn new(counters: Option<Counters>) -> Self {
        Self {
            packets: counters.map(|counters| counters.packets),
            bytes: counters.map(|counters| counters.bytes),
        }
    }
}

/// Without what could play tricks on a terminal.
fn printable(text: &str) -> String {
    let is_control = |c: char| c.is_control() && c != '\n' && c != '\t';
    text.replace(is_control, "\u{fffd}")
}

/// One line: the version, then the object.
fn write_line(object: &Object<'_>, out: &mut impl Write) -> io::Result<()> {
    #[derive(Serialize)]
    struct Line<'a> {
        v: u32,
        #[serde(flatten)]
        object: &'a Object<'a>,
    }
    let line = Line { v: VERSION, object };
    serde_json::to_writer(&mut *out, &line)?;
    out.write_all(b"\n")
}

/// Who manages the table.
fn engine(table: &Table) -> Engine {
    if table.iptables {
        Engine::IptablesNft
    } else {
        Engine::Nftables
    }
}

/// The rule's first counter.
fn counters(rule: &Rule) -> Option<Counters> {
    rule.exprs.iter().find_map(|expr| match expr {
        Expr::Counter(counters) => Some(*counters),
        _ => None,
    })
}

fn policy(verdict: u32) -> &'static str {
    if verdict == NF_DROP { "drop" } else { "accept" }
}
