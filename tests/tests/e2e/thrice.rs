//! The same drop, made with nft, with iptables-nft and with iptables-legacy: the same three facts, each in its own syntax.

use anyhow::{Context, Result, ensure};
use e2e::expect::at;
use e2e::fwtrace::Fwtrace;
use e2e::net::{Net, Place};
use e2e::nft;
use serde_json::Value;

use crate::support::{end_well, udp};

/// Hook of nft, chain of iptables, and the way of a packet that comes there.
const HOOKS: [(&str, &str, Place, Place); 3] = [
    ("input", "INPUT", Place::A, Place::R),
    ("forward", "FORWARD", Place::A, Place::B),
    ("output", "OUTPUT", Place::R, Place::B),
];

/// What an event has to say.
struct Expected {
    engine: &'static str,
    source: &'static str,
    family: &'static str,
    chain: String,
    text: String,
}

#[test]
fn the_same_drop_in_three_engines() -> Result<()> {
    for engine in ["nftables", "iptables-nft", "iptables-legacy"] {
        let net = Net::routed()?;
        let mut cases = Vec::new();
        let mut port = 4100;
        for v6 in [false, true] {
            for (hook, builtin, from, to) in HOOKS {
                port += 1;
                let expected = make(&net, engine, v6, hook, builtin, port)?;
                cases.push((v6, hook, from, to, port, expected));
            }
        }
        // A table that is there at the start is known from the first drop on.
        let mut fwtrace = Fwtrace::start(&net.r, &[])?;
        for (v6, hook, from, to, port, expected) in cases {
            udp(&net, from, to, v6, (4100, port));
            let event = fwtrace.drop_to_port(port)?.json;
            for (path, want) in [
                ("engine", Value::from(expected.engine)),
                ("hook", Value::from(hook)),
                ("verdict", Value::from("drop")),
                ("rule.family", Value::from(expected.family)),
                ("rule.table", Value::from("filter")),
                ("rule.chain", Value::from(expected.chain.as_str())),
                ("rule.base_chain", Value::from(expected.chain.as_str())),
                ("rule.number", Value::from(2)),
                ("rule.text", Value::from(expected.text.as_str())),
                ("evidence.source", Value::from(expected.source)),
                ("evidence.confidence", Value::from("exact")),
            ] {
                let got = at(&event, path);
                ensure!(got == want, "{path}: {got}, expected {want}: {event}");
            }
            ensure!(
                event["path"] == Value::Array(Vec::new()),
                "path: {}: {event}",
                event["path"]
            );
            ensure!(
                counted(&net, engine, v6, &expected.chain, port)?,
                "scenario: {engine} {hook} has not counted the packet"
            );
        }
        end_well(fwtrace)?;
    }
    Ok(())
}

fn iptables(engine: &str, v6: bool) -> String {
    let program = if v6 { "ip6tables" } else { "iptables" };
    let kind = engine.strip_prefix("iptables-").unwrap_or_default();
    format!("{program}-{kind}")
}

fn run(net: &Net, line: &str) -> Result<String> {
    net.r.command(&line.split(' ').collect::<Vec<_>>(), "")
}

/// A rule that does not match, and below it one that drops datagrams to `port`.
fn make(
    net: &Net,
    engine: &str,
    v6: bool,
    hook: &str,
    builtin: &str,
    port: u16,
) -> Result<Expected> {
    let family = if v6 { "ip6" } else { "ip" };
    if engine == "nftables" {
        net.r.command(
            &["nft", "-f", "-"],
            &format!(
                "table {family} filter {{ chain {hook} {{ type filter hook {hook} priority 0\n\
                 tcp dport 9 accept\nudp dport {port} counter drop\n}}\n}}"
            ),
        )?;
        return Ok(Expected {
            engine: "nftables",
            source: "kernel-stack",
            family,
            chain: hook.to_owned(),
            text: format!("udp dport {port} counter drop"),
        });
    }
    let program = iptables(engine, v6);
    run(
        net,
        &format!("{program} -A {builtin} -p tcp --dport 9 -j ACCEPT"),
    )?;
    run(
        net,
        &format!("{program} -A {builtin} -p udp --dport {port} -j DROP"),
    )?;
    let legacy = engine == "iptables-legacy";
    Ok(Expected {
        engine: if legacy {
            "iptables-legacy"
        } else {
            "iptables-nft"
        },
        source: if legacy {
            "kernel-counters"
        } else {
            "kernel-stack"
        },
        family,
        chain: builtin.to_owned(),
        text: format!("-A {builtin} -p udp -m udp --dport {port} -j DROP"),
    })
}

/// Whether the dropping rule has counted one packet, as its own program lists it.
fn counted(net: &Net, engine: &str, v6: bool, chain: &str, port: u16) -> Result<bool> {
    if engine == "nftables" {
        let family = if v6 { "ip6" } else { "ip" };
        let listed = nft::list(&net.r)?;
        let mut rules = listed.rules.iter();
        let rule = rules.find(|r| r.family == family && r.chain == chain && r.number == 2);
        return Ok(rule.context("no rule")?.packets == Some(1));
    }
    let program = iptables(engine, v6);
    let listed = run(
        net,
        &format!("{program} -L {chain} -v -n -x --line-numbers"),
    )?;
    let rule = listed.lines().find(|line| line.starts_with("2 "));
    let rule = rule.context("no rule 2")?;
    let packets = rule.split_whitespace().nth(1);
    Ok(packets == Some("1") && rule.contains(&format!("dpt:{port}")))
}
