//! Rules that count, packets, and what the evaluator says of each.

use anyhow::{Context, Result, ensure};
use e2e::net::Net;
use e2e::{nft, report, wait_until};
use fwtrace::eval::packet::Packet;
use fwtrace::eval::world::World;

use crate::kernel::{Said, Tool, evaluate, world};

/// A packet, how it is sent, and as what it comes to the rules.
pub(crate) struct Case<'a> {
    pub(crate) name: &'a str,
    pub(crate) send: Box<dyn Fn(&Net) -> Result<()> + 'a>,
    /// From its link-layer header, if it has one.
    pub(crate) bytes: Vec<u8>,
    /// All but the bytes and the length.
    pub(crate) facts: Packet<'static>,
}

impl Case<'_> {
    fn packet(&self) -> Packet<'_> {
        Packet {
            bytes: &self.bytes,
            len: (self.bytes.len() - self.facts.l2_len) as u32,
            ..self.facts
        }
    }
}

/// A and B whose own stacks are deaf and dumb (frames that a test sends pass them by): R sees nothing but what the test sends.
pub(crate) fn quiet() -> Result<Net> {
    let net = Net::routed()?;
    for ns in [&net.a, &net.b] {
        nft::load(
            ns,
            "table inet t {\n\
             chain in { type filter hook prerouting priority -500; policy drop; }\n\
             chain out { type filter hook output priority -500; policy drop; }\n}\n",
        )?;
    }
    Ok(net)
}

/// The index of a link.
pub(crate) fn index(world: &World, name: &str) -> Result<u32> {
    let links = world.links.as_ref().context("no links")?;
    let link = links.iter().find(|link| link.name == name);
    Ok(link.with_context(|| format!("no {name}"))?.index)
}

/// How many answers were of which kind.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) matches: usize,
    pub(crate) misses: usize,
    pub(crate) hotdrops: usize,
    pub(crate) unknown: usize,
    wrong: Vec<String>,
}

/// The counters' increments by one packet that the first rule has seen exactly once; others were in between otherwise.
fn counted(
    tool: Tool,
    net: &Net,
    (table, chain): (&str, &str),
    case: &Case<'_>,
) -> Result<Vec<u64>> {
    for _ in 0..5 {
        let before = tool.counters(&net.r, table, chain)?;
        let seen = |counters: &[u64]| counters.first() > before.first();
        (case.send)(net)?;
        let mut after = Vec::new();
        let arrived = wait_until(|| {
            after = tool.counters(&net.r, table, chain).unwrap_or_default();
            seen(&after)
        });
        ensure!(arrived, "{} did not arrive", case.name);
        after = tool.counters(&net.r, table, chain)?;
        let more = after.iter().zip(&before).map(|(a, b)| a - b);
        let more: Vec<u64> = more.collect();
        if more.first() == Some(&1) {
            return Ok(more);
        }
    }
    anyhow::bail!("other packets all the time")
}

/// Compares every rule with every packet. `?` before a rule: the evaluator cannot know.
pub(crate) fn compare(
    tool: Tool,
    net: &Net,
    place: (&str, &str),
    rules: &[&str],
    cases: &[Case<'_>],
) -> Result<Tally> {
    let plain: Vec<&str> = rules
        .iter()
        .map(|rule| rule.trim_start_matches("? "))
        .collect();
    tool.load(&net.r, place.0, place.1, &plain)?;
    let programs = tool.programs(&net.r, place.0, place.1)?;
    ensure!(
        programs.len() == rules.len() + 1,
        "{} rules",
        programs.len()
    );
    let world = world(&net.r)?;
    let mut tally = Tally::default();
    for case in cases {
        let name = case.name;
        let counts = counted(tool, net, place, case)?;
        let packet = case.packet();
        let rules = std::iter::once("").chain(rules.iter().copied());
        let mut dropped = false;
        for ((program, rule), count) in programs.iter().zip(rules).zip(&counts) {
            if dropped {
                if *count > 0 {
                    let wrong = format!("{name}: {rule}: counted after a drop");
                    tally.wrong.push(wrong);
                }
                continue;
            }
            let said = evaluate(program, &packet, &world)?;
            let right = match &said {
                Said::Match => *count == 1,
                Said::Miss | Said::Hotdrop => *count == 0,
                Said::Unknown(..) => rule.starts_with("? "),
            };
            if !right {
                let wrong = format!("{name}: {rule}: {said:?}, counted {count}");
                tally.wrong.push(wrong);
            }
            match said {
                Said::Match => tally.matches += 1,
                Said::Miss => tally.misses += 1,
                Said::Hotdrop => {
                    tally.hotdrops += 1;
                    dropped = true;
                }
                Said::Unknown(..) => tally.unknown += 1,
            }
        }
    }
    report(&format!(
        "{} {}: {} matches, {} misses, {} drops by matches, {} unknown, {} wrong",
        tool.name,
        place.1,
        tally.matches,
        tally.misses,
        tally.hotdrops,
        tally.unknown,
        tally.wrong.len()
    ));
    ensure!(tally.wrong.is_empty(), "{}", tally.wrong.join("\n"));
    Ok(tally)
}
