//! Without eBPF: packets that several rules log are shown once, with all their logs, and as often as there are packets. The oracle is
//! what nft counts.

use anyhow::{Context, Result, ensure};
use e2e::expect::at;
use e2e::fwtrace::Fwtrace;
use e2e::net::{Net, Place};
use e2e::{nft, wait_until};
use serde_json::Value;

use crate::nflog::{Entry, entries, flood, logged};
use crate::support::udp;

const RULES: &str = r#"table inet t {
    chain pre { type filter hook prerouting priority -300
        udp dport { 70, 74 } log group 5 prefix "pre " comment "pre"
    }
    chain nat { type nat hook prerouting priority -100
        udp dport 74 redirect to :75
    }
    chain in { type filter hook input priority 0
        udp dport 70 counter log group 5 prefix "in " drop comment "in"
        udp dport 71 counter log group 5 prefix "a " comment "a"
        udp dport 71 counter log group 6 prefix "b " comment "b"
        udp dport 71 counter reject comment "71"
        udp dport 72 log group 5 prefix "one " comment "one"
        udp dport 72 log group 5 prefix "two " comment "two"
        udp dport 72 counter accept comment "72"
        udp dport 73 log group 5 prefix "same "
        udp dport 73 log group 5 prefix "same "
        udp dport 73 counter drop comment "73"
        udp dport 75 counter log group 6 prefix "nat " accept comment "75"
        udp dport 79 log group 5 prefix "w1 "
        udp dport 79 log group 6 prefix "w2 " drop
    }
    chain out { type filter hook output priority 0
        udp dport 80 log group 5 prefix "out "
    }
    chain post { type filter hook postrouting priority 0
        udp dport 80 counter log group 5 prefix "post " accept comment "80"
    }
}"#;

fn next(fwtrace: &mut Fwtrace) -> Result<Value> {
    Ok(serde_json::from_str(&fwtrace.next_line()?)?)
}

/// Starts it, and waits until the kernel notes when packets are received.
fn start(net: &Net) -> Result<Fwtrace> {
    let mut fwtrace = Fwtrace::start(&net.r, &["--source", "nflog"])?;
    let mut failed = None;
    let ready = wait_until(|| {
        udp(net, Place::A, Place::R, false, (4079, 79));
        let mut seen = || -> Result<bool> {
            let first = next(&mut fwtrace)?;
            if entries(&first).len() == 2 {
                return Ok(true);
            }
            let second = next(&mut fwtrace)?;
            ensure!(entries(&second).len() == 1, "{first} {second}");
            Ok(false)
        };
        match seen() {
            Ok(ready) => ready,
            Err(error) => {
                failed = Some(error);
                true
            }
        }
    });
    failed.map_or(Ok(()), Err)?;
    ensure!(ready, "logs of one packet stay apart");
    Ok(fwtrace)
}

fn entry(group: u64, prefix: &'static str, chain: &'static str, number: u64) -> Entry<'static> {
    (group, prefix, Some(("t", chain, number)))
}

#[test]
fn a_packet_that_two_rules_log_is_one_event() -> Result<()> {
    const MANY: u64 = 100;
    let net = Net::routed()?;
    nft::load(&net.r, RULES)?;
    let mut fwtrace = start(&net)?;
    // In two hooks, in two groups, in one chain.
    for (port, comment, kind, verdict, logs) in [
        (
            70,
            "in",
            "drop",
            "drop",
            [entry(5, "pre ", "pre", 1), entry(5, "in ", "in", 1)],
        ),
        (
            71,
            "71",
            "drop",
            "reject",
            [entry(5, "a ", "in", 2), entry(6, "b ", "in", 3)],
        ),
        (
            72,
            "72",
            "log",
            "accept",
            [entry(5, "one ", "in", 5), entry(5, "two ", "in", 6)],
        ),
    ] {
        let (src, dst) = net.path(Place::A, Place::R, false, (4000 + port, port));
        flood(&net, usize::try_from(MANY)?, dst, src)?;
        for at_ in 0..MANY {
            let event = next(&mut fwtrace).with_context(|| format!("{port}: {at_}"))?;
            ensure!(at(&event, "packet.dport") == port, "{at_}: {event}");
            ensure!(at(&event, "type") == kind, "{event}");
            ensure!(at(&event, "verdict") == verdict, "{event}");
            ensure!(at(&event, "evidence.confidence") == "computed", "{event}");
            ensure!(entries(&event) == logs, "{at_}: {event}");
            if kind == "drop" {
                ensure!(at(&event, "rule.comment") == comment, "{event}");
            }
        }
        let ruleset = nft::list(&net.r)?;
        let rule = ruleset.commented(comment).context("no rule")?;
        ensure!(rule.packets == Some(MANY), "{rule:?}");
    }
    let end = fwtrace.interrupt()?;
    ensure!(end.status.success(), "{end:?}");
    let (shown, folded) = (end.count("shown")?, end.count("aggregated")?);
    ensure!(folded >= 3 * MANY && shown >= 3 * MANY, "{}", end.summary);
    ensure!(end.count("filtered")? == 0 && end.count("lost")? == 0);
    let received = logged(&end, "received")?;
    ensure!(
        end.count("seen")? == received && received == shown + folded,
        "{}",
        end.summary
    );
    ensure!(logged(&end, "passed")? == 2 * MANY, "{}", end.summary);
    ensure!(
        logged(&end, "joined")? == received - 2 * MANY,
        "{}",
        end.summary
    );
    Ok(())
}

#[test]
fn a_packet_is_known_again_behind_address_translation() -> Result<()> {
    let net = Net::routed()?;
    nft::load(&net.r, RULES)?;
    let mut fwtrace = start(&net)?;
    udp(&net, Place::A, Place::R, false, (4074, 74));
    let event = next(&mut fwtrace)?;
    let logs = [entry(5, "pre ", "pre", 1), entry(6, "nat ", "in", 11)];
    ensure!(entries(&event) == logs, "{event}");
    ensure!(at(&event, "packet.dport") == 75, "{event}");
    ensure!(at(&event, "verdict") == "accept", "{event}");
    let ruleset = nft::list(&net.r)?;
    let rule = ruleset.commented("75").context("no rule")?;
    ensure!(rule.packets == Some(1), "{rule:?}");
    let end = fwtrace.interrupt()?;
    ensure!(end.status.success(), "{end:?}");
    Ok(())
}

/// Nothing is put together by guess: two logs that nothing tells apart, packets that are sent and have no identification.
#[test]
fn what_may_be_two_packets_stays_two_events() -> Result<()> {
    let net = Net::routed()?;
    nft::load(&net.r, RULES)?;
    let mut fwtrace = start(&net)?;
    udp(&net, Place::A, Place::R, false, (4073, 73));
    for _ in 0..2 {
        let event = next(&mut fwtrace)?;
        ensure!(at(&event, "packet.dport") == 73, "{event}");
        ensure!(entries(&event) == [(5, "same ", None)], "{event}");
    }
    // IPv4 numbers its packets, IPv6 does not.
    for (v6, wanted) in [
        (false, &[&["out ", "post "][..]][..]),
        (true, &[&["out "], &["post "]]),
    ] {
        udp(&net, Place::R, Place::A, v6, (4080, 80));
        for wanted in wanted {
            let event = next(&mut fwtrace)?;
            ensure!(at(&event, "packet.dport") == 80, "{event}");
            ensure!(at(&event, "type") == "log", "{event}");
            let prefixes: Vec<&str> = entries(&event).iter().map(|entry| entry.1).collect();
            ensure!(prefixes == *wanted, "{event}");
        }
    }
    let ruleset = nft::list(&net.r)?;
    let rule = ruleset.commented("80").context("no rule")?;
    ensure!(rule.packets == Some(2), "{rule:?}");
    let end = fwtrace.interrupt()?;
    ensure!(end.status.success(), "{end:?}");
    Ok(())
}
