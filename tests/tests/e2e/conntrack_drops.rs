//! Drops by conntrack itself, told apart from those of rules; what its counters say at the end.

use std::net::UdpSocket;

use anyhow::{Context, Result, ensure};
use e2e::conntrack;
use e2e::expect::at;
use e2e::fwtrace::Fwtrace;
use e2e::net::{Net, Place};
use e2e::queue::Queue;
use e2e::{legacy, nft, traffic};
use serde_json::json;

use crate::support::udp;

use Place::{A, B, R};

/// Switches tracking on, and drops nothing.
const TRACKED: &str =
    "table inet t { chain in { type filter hook input priority 0\nct state new counter\n}\n}";

#[test]
fn with_the_evidence_of_the_engine_alone_conntrack_is_not_named() -> Result<()> {
    let net = Net::routed()?;
    nft::load(&net.r, TRACKED)?;
    conntrack::fill(&net.r)?;
    let mut fwtrace = Fwtrace::start(&net.r, &["--evidence", "engine"])?;
    let before = conntrack::counter(&net.r, "drop")?;
    udp(&net, A, R, false, (4949, 3949));
    let event = fwtrace.drop_to_port(3949)?.json;
    let counted = conntrack::counter(&net.r, "drop")? - before;
    ensure!(counted == 1, "scenario: {counted} drops");
    ensure!(at(&event, "engine") == "other", "{event}");
    ensure!(at(&event, "evidence.source") == "engine", "{event}");
    ensure!(at(&event, "why").is_null(), "{event}");
    fwtrace.interrupt().map(drop)
}

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

#[test]
fn a_connection_that_another_packet_has_entered() -> Result<()> {
    let net = Net::routed()?;
    // Conntrack must not see the answer to the first one, which would end the connection.
    let silent = "table inet s { chain out { type filter hook output priority -300
                  tcp sport 3970 drop\n}\n}\n";
    nft::load(&net.r, &(silent.to_owned() + TRACKED))?;
    let rule = "-t mangle -A PREROUTING -p tcp --dport 3970 -j NFQUEUE --queue-num 7";
    legacy::run(&net.r, false, rule)?;
    let mut queue = Queue::open(&net.r, 7)?;
    let mut fwtrace = Fwtrace::start(&net.r, &[])?;
    let before = conntrack::counter(&net.r, "insert_failed")?;
    let (src, dst) = net.path(A, R, false, (4970, 3970));
    // Two of one connection are on their way at once.
    for seq in [1000, 1000] {
        net.a.run(|| traffic::segment_at(src, dst, 0x02, seq))?;
    }
    for id in queue.held(2)? {
        queue.accept(id)?;
    }
    let event = fwtrace.drop_to_port(3970)?.json;
    let failed = conntrack::counter(&net.r, "insert_failed")? - before;
    ensure!(failed == 1, "scenario: {failed} failed");
    ensure!(at(&event, "engine") == "conntrack", "{event}");
    ensure!(at(&event, "hook") == "input", "{event}");
    let why = at(&event, "why");
    ensure!(
        why.as_str()
            .is_some_and(|why| why.contains("(insert_failed)")),
        "{event}"
    );
    ensure!(at(&event, "evidence.confidence") == "exact", "{event}");
    let end = fwtrace.interrupt()?;
    let moved = &end.summary["conntrack"][0]["moved"];
    ensure!(moved["insert_failed"] == 1, "{moved}");
    Ok(())
}

#[test]
fn nothing_but_conntracks_own_drops_is_called_that() -> Result<()> {
    let net = Net::routed()?;
    nft::load(&net.r, TRACKED)?;
    for (table, chain, from_here) in [
        ("raw", "PREROUTING", false),
        ("mangle", "PREROUTING", false),
        ("mangle", "INPUT", false),
        ("raw", "OUTPUT", true),
    ] {
        let rule = format!("-t {table} -A {chain} -p udp --dport 3971 -j DROP");
        legacy::run(&net.r, false, &rule)?;
        let mut fwtrace = Fwtrace::start(&net.r, &[])?;
        for _ in 0..20 {
            match from_here {
                true => udp(&net, R, B, false, (4971, 3971)),
                false => udp(&net, A, R, false, (4971, 3971)),
            }
            let event = fwtrace.drop_to_port(3971)?.json;
            ensure!(at(&event, "engine") == "iptables-legacy", "{event}");
            ensure!(at(&event, "rule.table") == table, "{event}");
        }
        let end = fwtrace.interrupt()?;
        let moved = &end.summary["conntrack"][0]["moved"]["drop"];
        ensure!(moved.is_null(), "{}", end.summary);
        legacy::run(&net.r, false, &rule.replace("-A", "-D"))?;
    }
    Ok(())
}

#[test]
fn a_connection_is_as_conntrack_lists_it() -> Result<()> {
    let net = Net::routed()?;
    net.r.sysctl("net/netfilter/nf_conntrack_acct", "1")?;
    nft::load(
        &net.r,
        "table inet t {
            ct helper h { type \"tftp\" protocol udp; }
            chain pre { type filter hook prerouting priority 0
                udp dport 3972 ct zone set 0
                udp dport 3972 ct state new ct helper set \"h\"
                udp dport 3972 ct label set 5
                udp dport 3972 ct label set 77
                udp dport 3972 ct mark set 0x42
            }
            chain in { type filter hook input priority 0
                udp dport 3972 ct state established counter drop comment \"hit\"
            }
        }",
    )?;
    let mut fwtrace = Fwtrace::start(&net.r, &[])?;
    for v6 in [false, true] {
        let (src, dst) = net.path(A, R, v6, (4972, 3972));
        let server = net.r.run(|| UdpSocket::bind(dst))?;
        let client = net.a.run(|| UdpSocket::bind(src))?;
        traffic::patient(&server)?;
        traffic::patient(&client)?;
        let mut buffer = [0; 64];
        client.send_to(b"one", dst)?;
        let (_, peer) = server.recv_from(&mut buffer)?;
        server.send_to(b"answer", peer)?;
        client.recv_from(&mut buffer)?;
        client.send_to(traffic::PAYLOAD, dst)?;
        let event = fwtrace.drop_to_port(3972)?.json;
        let family = if v6 { "ipv6" } else { "ipv4" };
        let listed = net.r.command(
            &[
                "conntrack",
                "-L",
                "-p",
                "udp",
                "-f",
                family,
                "-o",
                "id,extended",
            ],
            "",
        )?;
        let listed = listed
            .lines()
            .find(|line| line.contains("dport=3972"))
            .with_context(|| format!("scenario: {listed}"))?;
        let all = |key: &str| -> Vec<u64> {
            let words = listed.split_ascii_whitespace();
            let values = words.filter_map(|word| word.strip_prefix(key)?.strip_prefix('='));
            values.filter_map(|value| value.parse().ok()).collect()
        };
        let (packets, bytes) = (all("packets"), all("bytes"));
        ensure!(packets == [2, 1], "scenario: {listed}");
        ensure!(
            at(&event, "conntrack.counters")
                == json!({
                    "orig": {"packets": packets[0], "bytes": bytes[0]},
                    "reply": {"packets": packets[1], "bytes": bytes[1]},
                }),
            "{event}\n{listed}"
        );
        ensure!(listed.contains("helper=tftp"), "scenario: {listed}");
        ensure!(at(&event, "conntrack.helper") == "tftp", "{event}");
        ensure!(at(&event, "conntrack.labels") == json!([5, 77]), "{event}");
        ensure!(at(&event, "conntrack.mark") == 0x42, "{event}");
        // `ipv4 2 udp 17 TIMEOUT ...`; the listing comes later.
        let left: i64 = listed
            .split_ascii_whitespace()
            .nth(4)
            .and_then(|left| left.parse().ok())
            .with_context(|| format!("no timeout in {listed}"))?;
        let told = at(&event, "conntrack.timeout").as_i64();
        ensure!(
            told.is_some_and(|told| (left..=left + 20).contains(&told)),
            "{told:?}, and {left} later"
        );
    }
    let end = fwtrace.interrupt()?;
    ensure!(end.status.success(), "{}", end.stderr);
    Ok(())
}

#[test]
fn new_connections_are_not_looked_up() -> Result<()> {
    let net = Net::routed()?;
    nft::load(
        &net.r,
        "table inet t { chain in { type filter hook input priority 0
         udp dport 3973 ct state new counter drop comment \"hit\"\n}\n}",
    )?;
    let mut fwtrace = Fwtrace::start(&net.r, &[])?;
    udp(&net, A, R, false, (4973, 3973));
    let event = fwtrace.drop_to_port(3973)?.json;
    ensure!(at(&event, "conntrack.state") == "new", "{event}");
    for key in ["timeout", "helper", "counters", "labels"] {
        let path = format!("conntrack.{key}");
        ensure!(at(&event, &path).is_null(), "{event}");
    }
    fwtrace.interrupt()?;
    Ok(())
}
