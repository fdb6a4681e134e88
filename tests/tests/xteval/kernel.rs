//! The two that are compared: the kernel's counters, and the evaluator.

use anyhow::{Context, Result, bail, ensure};
use e2e::netns::Netns;
use fwtrace::{
    eval::{
        outcome::{Decision, Fate, Outcome},
        packet::Packet,
        program::Program,
        world::World,
    },
    event::DoubtKind,
    netlink::{
        ipset::read_sets,
        nftables::read_ruleset,
        routes::read_world_on,
        socket::{Protocol, Socket},
    },
    netns::NetNs,
    ruleset::{
        expr::{Data, Expr, Verdict},
        model::Ruleset,
    },
    xtables::legacy::{Jump, Table, read::Reader},
};

/// What the evaluator says of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Match,
    Miss,
    /// The match itself dropped the packet.
    Hotdrop,
    /// Why it cannot be told, and whether all of it is state.
    Unknown(String, bool),
}

/// Which iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tool {
    pub(crate) name: &'static str,
    pub(crate) legacy: bool,
    pub(crate) v6: bool,
}

pub(crate) const TOOLS: [Tool; 4] = [
    Tool {
        name: "iptables-legacy",
        legacy: true,
        v6: false,
    },
    Tool {
        name: "ip6tables-legacy",
        legacy: true,
        v6: true,
    },
    Tool {
        name: "iptables-nft",
        legacy: false,
        v6: false,
    },
    Tool {
        name: "ip6tables-nft",
        legacy: false,
        v6: true,
    },
];

impl Tool {
    /// Loads rules without targets into a chain; the first of them counts every packet.
    pub(crate) fn load(self, ns: &Netns, table: &str, chain: &str, rules: &[&str]) -> Result<()> {
        let mut script = format!("*{table}\n-A {chain}\n");
        for rule in rules {
            script += &format!("-A {chain} {rule}\n");
        }
        script += "COMMIT\n";
        ns.command(&[&format!("{}-restore", self.name)], &script)?;
        Ok(())
    }

    /// Packets that each rule of a chain has counted.
    pub(crate) fn counters(self, ns: &Netns, table: &str, chain: &str) -> Result<Vec<u64>> {
        let saved = ns.command(&[&format!("{}-save", self.name), "-c", "-t", table], "")?;
        let start = format!(" -A {chain}");
        saved
            .lines()
            .filter(|line| line.contains(&format!("]{start} ")) || line.ends_with(&start))
            .map(|line| {
                let packets = line
                    .strip_prefix('[')
                    .and_then(|rest| rest.split(':').next());
                Ok(packets.context("no counters")?.parse()?)
            })
            .collect()
    }

    /// A program for each rule of the chain, in which the rule alone queues what it matches.
    pub(crate) fn programs(self, ns: &Netns, table: &str, chain: &str) -> Result<Vec<Program>> {
        if self.legacy {
            let raw = Reader::open(&NetNs::find(ns.name())?)?.read()?;
            let tables: Vec<Table> = raw.iter().map(|raw| raw.parse()).collect();
            let v6 = |table: &Table| table.family == fwtrace::xtables::Family::V6;
            let found = tables.iter().find(|t| t.name == table && v6(t) == self.v6);
            let found = found.context("no such table")?;
            let position = found.chains.iter().position(|c| c.name == chain);
            let position = position.context("no such chain")?;
            return Ok(found.chains[position]
                .rules
                .iter()
                .map(|rule| {
                    let mut alone = found.clone();
                    let mut rule = rule.clone();
                    rule.jump = Jump::Queue;
                    alone.chains[position].rules = vec![rule];
                    Program::new(None, &[alone])
                })
                .collect());
        }
        let ruleset = ns.run(|| -> Result<Ruleset> {
            Ok(read_ruleset(&mut Socket::open(Protocol::Netfilter, &[])?)?)
        })?;
        ensure!(ruleset.problems.is_empty(), "{:?}", ruleset.problems);
        let family = if self.v6 { "ip6" } else { "ip" };
        let tables = ruleset.tables.iter();
        let found = tables
            .clone()
            .find(|t| t.name == table && t.family.to_string() == family);
        let found = found.context("no such table")?;
        let position = found.chains.iter().position(|c| c.name == chain);
        let position = position.context("no such chain")?;
        Ok(found.chains[position]
            .rules
            .iter()
            .map(|rule| {
                let mut alone = found.clone();
                let mut rule = rule.clone();
                rule.exprs.push(Expr::Immediate {
                    dreg: 0,
                    data: Data::Verdict(Verdict {
                        code: Verdict::QUEUE,
                        chain: None,
                    }),
                });
                alone.chains[position].rules = vec![rule];
                let ruleset = Ruleset {
                    generation: ruleset.generation,
                    tables: vec![alone],
                    problems: Vec::new(),
                };
                Program::new(Some(&ruleset), &[])
            })
            .collect())
    }
}

/// What is known of the namespace.
pub(crate) fn world(ns: &Netns) -> Result<World> {
    ns.run(|| {
        let mut world = read_world_on(&mut Socket::open(Protocol::Route, &[])?)?;
        world.sets = Some(read_sets(&mut Socket::open(Protocol::Netfilter, &[])?)?);
        Ok(world)
    })
}

/// What the evaluator says of the only rule of a program.
pub(crate) fn evaluate(program: &Program, packet: &Packet<'_>, world: &World) -> Result<Said> {
    let outcome = program.evaluate(packet, world);
    said(&outcome)
}

fn said(outcome: &Outcome) -> Result<Said> {
    if let Some(reason) = &outcome.incomplete {
        return Ok(Said::Unknown(
            reason.to_string(),
            reason.kind == DoubtKind::State,
        ));
    }
    Ok(match outcome.ends.as_slice() {
        [end] => match (end.decision, end.fate) {
            (Decision::Rule(_), Fate::Queue { .. }) => Said::Match,
            (Decision::Rule(_), Fate::Drop) => Said::Hotdrop,
            (Decision::Passed, _) => Said::Miss,
            other => bail!("{other:?}"),
        },
        ends => {
            let reasons: Vec<_> = ends.iter().flat_map(|end| &end.assumed).collect();
            ensure!(!reasons.is_empty(), "ends without reasons: {ends:?}");
            let texts: Vec<String> = reasons.iter().map(ToString::to_string).collect();
            let stateful = reasons.iter().all(|reason| reason.kind == DoubtKind::State);
            Said::Unknown(texts.join("; "), stateful)
        }
    })
}
