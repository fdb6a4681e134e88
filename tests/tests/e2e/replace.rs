//! A ruleset that is replaced while packets are dropped: every drop by the rule that was there.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use e2e::expect::at;
use e2e::fwtrace::Fwtrace;
use e2e::net::{Net, Place};
use e2e::nft::{self, Rule};
use serde_json::Value;

use crate::support::{end_well, udp};

use Place::{A, R};

/// Ports that packets are sent to all the time; a generation drops those to one of them.
const PORTS: [u16; 4] = [3300, 3301, 3302, 3303];
const GENERATIONS: usize = 150;

/// One ruleset: its dropping rule as nft lists it, and when it can have been in force (seconds
/// since midnight, UTC).
struct Generation {
    hit: Rule,
    from: f64,
    until: f64,
}

/// Every generation starts its handles anew, so the same handle is another rule in the next.
fn ruleset(generation: usize) -> String {
    let port = PORTS[generation % PORTS.len()];
    let other = |i: usize| format!("udp dport {i} counter drop comment \"other\"\n");
    // Not in step with the ports.
    let before: String = (0..generation * 7 % 11).map(|i| other(i + 1)).collect();
    let hit = format!("udp dport {port} counter drop comment \"gen {generation}\"\n");
    let head = "type filter hook input priority 0\n";
    if generation.is_multiple_of(3) {
        format!(
            "table inet t {{ chain sub {{\n{before}{hit}}}\nchain in {{ {head}{}udp dport 3300-3399 jump sub\n}}\n}}",
            other(1)
        )
    } else {
        format!(
            "table inet t {{ chain in {{ {head}{before}{hit}{}}}\n}}",
            other(1)
        )
    }
}

/// Seconds since midnight, UTC.
fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64() % 86_400.0
}

/// The same of an event's time, `2026-11-22T14:03:41.512345678Z`.
fn time_of(event: &Value) -> Option<f64> {
    let clock = event["time"]
        .as_str()?
        .split_once('T')?
        .1
        .strip_suffix('Z')?;
    let parts: Vec<f64> = clock.split(':').filter_map(|p| p.parse().ok()).collect();
    match parts.as_slice() {
        [h, m, s] => Some(h * 3600.0 + m * 60.0 + s),
        _ => None,
    }
}

/// The generation that dropped the packet, by what it was sent to and when.
fn judge<'a>(event: &Value, generations: &'a [Generation]) -> Option<&'a Generation> {
    // The kernel's monotonic clock is translated: allow for what the translation may be off.
    const SLACK: f64 = 0.002;
    let time = time_of(event)?;
    let same = |g: &&Generation| {
        let rule = &event["rule"];
        rule["table"] == g.hit.table
            && rule["chain"] == g.hit.chain
            && rule["handle"] == g.hit.handle
            && rule["number"] == g.hit.number
            && g.hit
                .text
                .contains(&format!("dport {} ", event["packet"]["dport"]))
            && event["evidence"]["confidence"] == "exact"
            && g.from - SLACK <= time
            && time <= g.until + SLACK
    };
    generations.iter().find(same)
}

#[test]
fn replaced_under_traffic() -> Result<()> {
    let net = Net::routed()?;
    let mut fwtrace = Fwtrace::start(&net.r, &["--port", "3300-3303"])?;
    let (src, dst) = net.path(A, R, false, (4300, 0));
    let socket = net.a.run(|| UdpSocket::bind(src))?;
    let stop = AtomicBool::new(false);
    let mut generations: Vec<Generation> = Vec::new();
    std::thread::scope(|scope| -> Result<()> {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for port in PORTS {
                    let _ = socket.send_to(b"x", (dst.ip(), port));
                }
                // The pace of the traffic, 10,000 packets a second or so.
                std::thread::sleep(Duration::from_micros(300));
            }
        });
        let replace = || -> Result<()> {
            for i in 0..GENERATIONS {
                let from = now();
                nft::load(&net.r, &ruleset(i))?;
                if let Some(last) = generations.last_mut() {
                    last.until = now();
                }
                let listed = nft::list(&net.r)?;
                let hit = listed.commented(&format!("gen {i}"));
                generations.push(Generation {
                    hit: hit.context("no rule")?.clone(),
                    from,
                    until: f64::INFINITY,
                });
            }
            Ok(())
        };
        let mut replace = replace;
        let result = replace();
        stop.store(true, Ordering::Relaxed);
        result
    })?;
    // A mark that comes after everything else.
    let last = &generations[GENERATIONS - 1].hit;
    udp(
        &net,
        A,
        R,
        false,
        (4999, PORTS[(GENERATIONS - 1) % PORTS.len()]),
    );
    let (mut right, mut gone, mut seen) = (0, 0, BTreeSet::new());
    let mut wrong = Vec::new();
    loop {
        let event = fwtrace.next_drop()?.json;
        if at(&event, "packet.sport") == 4999 {
            ensure!(at(&event, "rule.handle") == last.handle, "{event}");
            break;
        }
        let Some(generation) = judge(&event, &generations) else {
            wrong.push(event.to_string());
            continue;
        };
        if at(&event, "rule.text").is_null() {
            // Gone before it could be read: then nothing is made up.
            ensure!(at(&event, "rule.comment").is_null(), "{event}");
            gone += 1;
        } else if at(&event, "rule.text") == generation.hit.text
            && at(&event, "rule.comment") == generation.hit.comment.clone().unwrap_or_default()
        {
            right += 1;
            seen.insert(generation.hit.comment.clone());
        } else {
            wrong.push(event.to_string());
        }
    }
    let end = fwtrace.interrupt()?;
    ensure!(end.status.success(), "{}", end.stderr);
    e2e::report(&format!(
        "{} drops while the ruleset was replaced {GENERATIONS} times: {right} right with their text, {gone} right \
         without, {} wrong, {} lost",
        right + gone + wrong.len(),
        wrong.len(),
        end.count("lost")?
    ));
    let some: Vec<_> = wrong.iter().take(5).collect();
    ensure!(wrong.is_empty(), "{} wrong: {some:#?}", wrong.len());
    ensure!(
        right > 500 && gone * 10 <= right,
        "{right} right, {gone} gone"
    );
    ensure!(
        seen.len() > GENERATIONS / 2,
        "{} generations seen",
        seen.len()
    );
    Ok(())
}

/// As fast as nft can: generations too short-lived to be read. The port says which ruleset it was,
/// so a rule that does not belong to it is a guess.
#[test]
fn replaced_faster_than_it_can_be_read() -> Result<()> {
    const RULESETS: usize = 12;
    let port = |i: usize| 3340 + i;
    // Handles and numbers differ, and what is a dropping rule's handle here is another's there.
    let commands = |i: usize| {
        let other = |n: usize| format!("add rule inet t in udp dport {} drop", n + 1);
        let mut lines = vec![
            "flush ruleset".to_owned(),
            "add table inet t".to_owned(),
            "add chain inet t in { type filter hook input priority 0 ; }".to_owned(),
        ];
        lines.extend((0..i).map(other));
        let port = port(i);
        lines.push(format!(
            "add rule inet t in udp dport {port} counter drop comment \"fast {port}\""
        ));
        lines.extend((i..RULESETS).map(other));
        lines.join("; ") + "\n"
    };
    let net = Net::routed()?;
    let mut rules = Vec::new();
    for i in 0..RULESETS {
        net.r.command(&["nft", "-f", "-"], &commands(i))?;
        let listed = nft::list(&net.r)?;
        let rule = listed.commented(&format!("fast {}", port(i)));
        rules.push(rule.context("no rule")?.clone());
    }
    nft::load(&net.r, "")?;
    let fwtrace = Fwtrace::start(&net.r, &["--port", "3340-3351"])?;
    let (src, dst) = net.path(A, R, false, (4340, 0));
    let socket = net.a.run(|| UdpSocket::bind(src))?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<()> {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for i in 0..RULESETS {
                    let port = u16::try_from(port(i)).unwrap_or(0);
                    let _ = socket.send_to(b"x", (dst.ip(), port));
                }
                std::thread::sleep(Duration::from_micros(500));
            }
        });
        // A line is a transaction.
        let script: String = (0..600).map(|i| commands(i * 5 % RULESETS)).collect();
        let result = net.r.command(&["nft", "-i"], &script);
        stop.store(true, Ordering::Relaxed);
        result.map(drop)
    })?;
    let last = nft::list(&net.r)?;
    ensure!(last.rules.len() == RULESETS + 1, "scenario: {last:?}");
    let end = fwtrace.interrupt()?;
    ensure!(end.status.success(), "{}", end.stderr);
    let (mut right, mut textless, mut seen) = (0, 0, BTreeSet::new());
    for event in &end.drops {
        let event = &event.json;
        let to = at(event, "packet.dport").as_u64().context("no port")?;
        let rule = &rules[usize::try_from(to)? - port(0)];
        ensure!(at(event, "rule.handle") == rule.handle, "{rule:?}: {event}");
        ensure!(at(event, "rule.number") == rule.number, "{rule:?}: {event}");
        ensure!(at(event, "rule.table") == "t", "{event}");
        ensure!(at(event, "rule.chain") == "in", "{event}");
        if at(event, "rule.text").is_null() {
            textless += 1;
        } else {
            ensure!(at(event, "rule.text") == rule.text, "{rule:?}: {event}");
            right += 1;
        }
        seen.insert(to);
    }
    e2e::report(&format!(
        "{} drops while the ruleset was replaced 600 times at full speed: {right} right with their \
         text, {textless} right without, 0 wrong, {} lost",
        end.drops.len(),
        end.count("lost")?
    ));
    ensure!(seen.len() == RULESETS, "only {seen:?}");
    ensure!(end.drops.len() > 200, "{} drops only", end.drops.len());
    Ok(())
}

#[test]
fn edited_between_packets() -> Result<()> {
    let net = Net::routed()?;
    let mut fwtrace = Fwtrace::start(&net.r, &["--port", "3310"])?;
    nft::load(
        &net.r,
        "table inet t { chain in { type filter hook input priority 0\n\
         udp dport 3310 counter drop comment \"hit\"\n}\n}",
    )?;
    let hit = nft::list(&net.r)?;
    let hit = hit.commented("hit").context("no rule")?;
    let mut numbers = Vec::new();
    let mut first = Vec::new();
    let mut number = 1;
    for i in 0..40 {
        udp(&net, A, R, false, (4310, 3310));
        numbers.push(number);
        // No waiting for the event: the rule moves as soon as the packet is dropped.
        if i % 4 == 3 {
            let handle: u64 = first.pop().context("nothing to delete")?;
            let delete = format!("delete rule inet t in handle {handle}\n");
            net.r.command(&["nft", "-f", "-"], &delete)?;
            number -= 1;
        } else {
            net.r.command(
                &[
                    "nft", "insert", "rule", "inet", "t", "in", "udp", "dport", "9", "drop",
                ],
                "",
            )?;
            number += 1;
            first.push(nft::list(&net.r)?.rules[0].handle);
        }
    }
    for (i, number) in numbers.into_iter().enumerate() {
        let event = fwtrace.next_drop()?.json;
        ensure!(
            at(&event, "rule.handle") == hit.handle,
            "packet {i}: {event}"
        );
        ensure!(
            at(&event, "rule.number") == number,
            "packet {i}, {number}: {event}"
        );
        ensure!(at(&event, "rule.text") == hit.text, "packet {i}: {event}");
    }
    end_well(fwtrace)
}

#[test]
fn sets_and_maps_change_under_their_rule() -> Result<()> {
    let net = Net::routed()?;
    let mut fwtrace = Fwtrace::start(&net.r, &["--port", "3320-3329"])?;
    nft::load(
        &net.r,
        "table inet t { set s { type inet_service; flags dynamic,timeout; }\n\
         map m { type inet_service : verdict; }\n\
         chain one { udp dport 3320-3329 counter drop comment \"one\"\n}\n\
         chain two { counter accept\nudp dport 3320-3329 counter drop comment \"never\"\n}\n\
         chain in { type filter hook input priority 0\n\
         udp dport @s counter drop comment \"set\"\nudp dport vmap @m\n}\n}",
    )?;
    let listed = nft::list(&net.r)?;
    let rule = |comment: &str| listed.commented(comment).context("no rule").cloned();
    let (one, set) = (rule("one")?, rule("set")?);
    for (command, expected) in [
        ("add element inet t s { 3320 timeout 1h }", Some(&set)),
        (
            "flush set inet t s; add element inet t m { 3320 : jump one }",
            Some(&one),
        ),
        (
            "delete element inet t m { 3320 }; add element inet t m { 3320 : jump two }",
            None,
        ),
        ("add element inet t s { 3320 }", Some(&set)),
    ] {
        net.r
            .command(&["nft", "-f", "-"], &command.replace("; ", "\n"))?;
        udp(&net, A, R, false, (4320, 3320));
        if let Some(rule) = expected {
            let event = fwtrace.next_drop()?.json;
            ensure!(
                at(&event, "rule.handle") == rule.handle,
                "{command}: {event}"
            );
            ensure!(at(&event, "rule.chain") == rule.chain, "{command}: {event}");
            ensure!(at(&event, "rule.text") == rule.text, "{command}: {event}");
        }
    }
    end_well(fwtrace)
}

/// `replace rule` leaves the handle: only the port tells which of two rules dropped a packet.
#[test]
fn replaced_under_the_same_handle() -> Result<()> {
    const PORTS: [u16; 2] = [3370, 3371];
    const REPLACED: usize = 200;
    let net = Net::routed()?;
    nft::load(
        &net.r,
        "table inet t { chain in { type filter hook input priority 0\n\
         udp dport 3370 counter drop comment \"hit 3370\"\n}\n}",
    )?;
    let listed = nft::list(&net.r)?;
    let handle = listed.commented("hit 3370").context("no rule")?.handle;
    let fwtrace = Fwtrace::start(&net.r, &["--port", "3370-3371"])?;
    let (src, dst) = net.path(A, R, false, (4370, 0));
    let socket = net.a.run(|| UdpSocket::bind(src))?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<()> {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for port in PORTS {
                    let _ = socket.send_to(b"x", (dst.ip(), port));
                }
                std::thread::sleep(Duration::from_micros(100));
            }
        });
        let replace = |i: usize| {
            let port = PORTS[i % 2];
            let command = format!(
                "replace rule inet t in handle {handle} udp dport {port} counter drop comment \
                 \"hit {port}\"\n"
            );
            net.r.command(&["nft", "-f", "-"], &command).map(drop)
        };
        let result = (1..=REPLACED).try_for_each(replace);
        stop.store(true, Ordering::Relaxed);
        result
    })?;
    let listed = nft::list(&net.r)?;
    let kept = listed.commented("hit 3370").context("scenario")?;
    ensure!(kept.handle == handle, "scenario: {kept:?}");
    let end = fwtrace.interrupt()?;
    ensure!(end.status.success(), "{}", end.stderr);
    let (mut right, mut textless, mut seen) = (0, 0, BTreeSet::new());
    for event in &end.drops {
        let event = &event.json;
        let port = at(event, "packet.dport").as_u64().context("no port")?;
        ensure!(at(event, "rule.handle") == handle, "{event}");
        ensure!(at(event, "rule.number") == 1, "{event}");
        if at(event, "rule.text").is_null() {
            textless += 1;
        } else {
            let text = format!("udp dport {port} counter drop comment \"hit {port}\"");
            ensure!(at(event, "rule.text") == text, "{event}");
            ensure!(
                at(event, "rule.comment") == format!("hit {port}"),
                "{event}"
            );
            right += 1;
            seen.insert(port);
        }
    }
    e2e::report(&format!(
        "{} drops while their rule was replaced {REPLACED} times under its handle: {right} right with their \
         text, {textless} right without, 0 wrong, {} lost",
        end.drops.len(),
        end.count("lost")?
    ));
    ensure!(seen.len() == 2, "only {seen:?}");
    ensure!(
        right > 200 && textless * 2 < right,
        "{right} right, {textless} without text"
    );
    Ok(())
}
