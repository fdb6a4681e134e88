//! Drops by conntrack itself, told apart from those of rules; what its counters say at the end.

use anyhow::{Result, ensure};
use e2e::conntrack;
use e2e::expect::at;
use e2e::fwtrace::Fwtrace;
use e2e::net::{Net, Place};
use e2e::{legacy, nft};

use crate::support::udp;

use Place::{A, B, R};

/// Switches tracking on, and drops nothing.
const TRACKED: &str =
    "table inet t { chain in { type filter hook input priority 0\nct state new counter\n}\n}";

#[test]
fn a_full_table_and_a_legacy_drop_at_once() -> Result<()> {
    let net = Net::routed()?;
    nft::load(&net.r, TRACKED)?;
    legacy::run(
        &net.r,
        false,
        "-t raw -A PREROUTING -p udp --dport 3950 -j DROP",
    )?;
    conntrack::fill(&net.r)?;
    let limit = conntrack::limit(&net.r)?;
    let mut fwtrace = Fwtrace::start(&net.r, &[])?;
    let before = conntrack::counter(&net.r, "drop")?;
    let text = format!("table full ({limit} of {limit} entries, net.netfilter.nf_conntrack_max)");
    for round in 0..10 {
        let (by_rule, by_conntrack, v6) = (3950, 3951 + round, round % 2 == 1);
        udp(&net, A, R, false, (4950, by_rule));
        let event = fwtrace.drop_to_port(by_rule)?.json;
        ensure!(at(&event, "engine") == "iptables-legacy", "{event}");
        ensure!(at(&event, "rule.table") == "raw", "{event}");
        ensure!(at(&event, "evidence.confidence") == "exact", "{event}");
        ensure!(at(&event, "why").is_null(), "{event}");

        // From here too: OUTPUT.
        let (from, hook) = match round % 3 {
            2 => (R, "output"),
            _ => (A, "prerouting"),
        };
        let to = if from == R { B } else { R };
        udp(&net, from, to, v6, (4951, by_conntrack));
        let event = fwtrace.drop_to_port(by_conntrack)?.json;
        ensure!(at(&event, "engine") == "conntrack", "{event}");
        ensure!(at(&event, "hook") == hook, "{event}");
        ensure!(at(&event, "why") == text.as_str(), "{event}");
        ensure!(at(&event, "rule").is_null(), "{event}");
        ensure!(
            at(&event, "evidence.source") == "kernel-counters"
                && at(&event, "evidence.confidence") == "exact",
            "{event}"
        );
    }
    let dropped = conntrack::counter(&net.r, "drop")? - before;
    ensure!(dropped == 10, "scenario: conntrack dropped {dropped}");
    let end = fwtrace.interrupt()?;
    ensure!(end.status.success(), "{}", end.stderr);
    let told = &end.summary["conntrack"][0];
    ensure!(told["moved"]["drop"] == 10, "{told}");
    ensure!(
        told["entries"] == limit && told["peak"] == limit && told["max"] == limit,
        "{told}"
    );
    let rules = end.summary["rules"].as_array().cloned().unwrap_or_default();
    let of = |engine: &str| rules.iter().find(|rule| rule["engine"] == engine).cloned();
    ensure!(
        of("conntrack").is_some_and(|rule| rule["count"] == 10 && rule["rule"].is_null()),
        "{rules:?}"
    );
    Ok(())
}
