//! `iptables-legacy` and `ip6tables-legacy`: rules, and what these have counted.

use std::fmt::Write as _;

use anyhow::{Context, Result, bail};

use crate::netns::Netns;

/// A rule or a policy, as `iptables-legacy -L -v -x --line-numbers` lists it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Counted {
    /// `ip` or `ip6`.
    pub family: &'static str,
    /// Table.
    pub table: String,
    /// Chain.
    pub chain: String,
    /// As `--line-numbers` numbers it; `None`: the policy.
    pub number: Option<u32>,
    /// Target, or the policy.
    pub target: String,
    /// Packets.
    pub packets: u64,
}

impl Counted {
    /// Whether it is the same rule, whatever it has counted.
    pub fn is(&self, other: &Self) -> bool {
        Self {
            packets: 0,
            ..self.clone()
        } == Self {
            packets: 0,
            ..other.clone()
        }
    }
}

/// `iptables-legacy` or `ip6tables-legacy`.
pub fn command(v6: bool) -> &'static str {
    if v6 {
        "ip6tables-legacy"
    } else {
        "iptables-legacy"
    }
}

/// Runs `iptables-legacy` with these arguments, which have no spaces in them.
///
/// # Errors
/// It fails.
pub fn run(ns: &Netns, v6: bool, args: &str) -> Result<String> {
    let mut argv = vec![command(v6)];
    argv.extend(args.split_whitespace());
    ns.command(&argv, "")
}

/// Loads tables in the format of `iptables-save`.
///
/// # Errors
/// It is refused.
pub fn restore(ns: &Netns, v6: bool, text: &str) -> Result<()> {
    ns.command(&[&format!("{}-restore", command(v6))], text)?;
    Ok(())
}

/// A filter table for [`restore`]: `count` rules on `chain` that drop datagrams to ports from `port` on.
pub fn many(chain: &str, port: u16, count: u16) -> String {
    let mut text = "*filter\n".to_owned();
    for n in 0..count {
        let port = port + n;
        // Writing to a String does not fail.
        let _ = writeln!(text, "-A {chain} -p udp -m udp --dport {port} -j DROP");
    }
    text + "COMMIT\n"
}

/// Lists a table's rules and policies.
///
/// # Errors
/// There is none, or its listing is not understood.
pub fn list(ns: &Netns, v6: bool, table: &str) -> Result<Vec<Counted>> {
    let text = run(ns, v6, &format!("-t {table} -L -v -x -n --line-numbers"))?;
    let mut rules = Vec::new();
    let mut chain = String::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let mut counted = |number, target: &str, packets| {
            rules.push(Counted {
                family: if v6 { "ip6" } else { "ip" },
                table: table.to_owned(),
                chain: chain.clone(),
                number,
                target: target.to_owned(),
                packets,
            });
        };
        match words.as_slice() {
            [] | ["num", ..] => {}
            // Chain INPUT (policy DROP 3 packets, 180 bytes)
            ["Chain", name, "(policy", policy, packets, ..] => {
                chain = (*name).to_owned();
                rules.push(Counted {
                    family: if v6 { "ip6" } else { "ip" },
                    table: table.to_owned(),
                    chain: chain.clone(),
                    number: None,
                    target: (*policy).to_owned(),
                    packets: packets.parse().context("a policy's packets")?,
                });
            }
            ["Chain", name, ..] => chain = (*name).to_owned(),
            [number, packets, _bytes, target, ..] => counted(
                Some(number.parse().context("a rule's number")?),
                target,
                packets.parse().context("a rule's packets")?,
            ),
            _ => bail!("not understood: {line}"),
        }
    }
    Ok(rules)
}

/// Lists several tables.
///
/// # Errors
/// As [`list`].
pub fn list_all(ns: &Netns, v6: bool, tables: &[&str]) -> Result<Vec<Counted>> {
    let mut all = Vec::new();
    for table in tables {
        all.extend(list(ns, v6, table)?);
    }
    Ok(all)
}

/// What has counted so many packets between two listings of the same rules.
pub fn moved(before: &[Counted], after: &[Counted]) -> Vec<(Counted, u64)> {
    after
        .iter()
        .filter_map(|rule| {
            let old = before.iter().find(|old| old.is(rule))?;
            let packets = rule.packets.checked_sub(old.packets)?;
            (packets > 0).then(|| (rule.clone(), packets))
        })
        .collect()
}
