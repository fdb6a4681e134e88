//! Many drops counted exactly, and several tracers at once.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::expect::at;
use e2e::fwtrace::{End, Fwtrace};
use e2e::net::{Net, Place};
use e2e::nft;
use fwtrace::bpf::load::Programs;
use serde_json::Value;

use crate::support::{end_well, hit, same, udp, want};

use Place::{A, R};

/// A dropping rule behind a jump, so that its pointer has to be right.
const RULES: &str = "table inet t { chain sub { udp dport 9 drop\n\
                     udp dport 3400 counter drop comment \"hit\"\n}\n\
                     chain in { type filter hook input priority 0; udp dport 9 drop\n\
                     udp dport 3400 jump sub\n}\n}";

/// The summary accounts for so many drops.
fn adds_up(end: &End, drops: u64) -> Result<()> {
    let shown = end.count("shown")?;
    let accounted = shown + end.count("aggregated")? + end.count("lost")?;
    ensure!(accounted == drops, "{drops} dropped: {}", end.summary);
    ensure!(
        end.count("seen")? == accounted + end.count("filtered")?,
        "{}",
        end.summary
    );
    Ok(())
}

#[test]
fn five_thousand_drops_are_counted_exactly() -> Result<()> {
    const COUNT: u64 = 5000;
    let net = Net::routed()?;
    nft::load(&net.r, RULES)?;
    let fwtrace = Fwtrace::start(&net.r, &["--port", "3400"])?;
    let (src, dst) = net.path(A, R, false, (4400, 3400));
    let socket = net.a.run(|| UdpSocket::bind(src))?;
    for _ in 0..COUNT {
        socket.send_to(b"x", dst)?;
    }
    let ruleset = hit(&net, COUNT)?;
    let rule = ruleset.commented("hit").context("no rule")?;
    let end = fwtrace.interrupt()?;
    ensure!(end.status.success(), "{}: {}", end.status, end.stderr);
    let mut stood_for = 0;
    for event in &end.drops {
        ensure!(
            at(&event.json, "rule.handle") == rule.handle,
            "{}",
            event.json
        );
        stood_for += at(&event.json, "count").as_u64().context("no count")?;
    }
    e2e::report(&format!(
        "{COUNT} drops: {} events shown for {stood_for}, {} lost",
        end.drops.len(),
        end.count("lost")?
    ));
    ensure!(
        end.drops.len() as u64 == end.count("shown")?,
        "{}",
        end.summary
    );
    ensure!(stood_for + end.count("lost")? == COUNT, "{}", end.summary);
    // The summary's rules say the same.
    let by_rule = end.summary["rules"].as_array().context("no rules")?;
    ensure!(by_rule.len() == 1, "{}", end.summary);
    ensure!(
        at(&by_rule[0], "rule.handle") == rule.handle,
        "{}",
        end.summary
    );
    ensure!(by_rule[0]["count"] == stood_for, "{}", end.summary);
    adds_up(&end, COUNT)
}

#[test]
fn two_at_once_see_the_same() -> Result<()> {
    let net = Net::routed()?;
    nft::load(&net.r, RULES)?;
    let mut first = Fwtrace::start(&net.r, &[])?;
    udp(&net, A, R, false, (4401, 3400));
    let before = first.next_drop()?.json;
    let mut second = Fwtrace::start(&net.r, &[])?;
    let untimed = |mut event: Value| {
        event["time"] = Value::Null;
        event
    };
    for port in 4402..4502 {
        udp(&net, A, R, port % 2 == 0, (port, 3400));
    }
    let ruleset = hit(&net, 101)?;
    let rule = ruleset.commented("hit").context("no rule")?;
    ensure!(at(&before, "rule.handle") == rule.handle, "{before}");
    for port in 4402..4502 {
        let one = first.next_drop()?;
        let other = second.next_drop()?;
        ensure!(at(&one.json, "packet.sport") == port, "{}", one.json);
        ensure!(at(&one.json, "rule.handle") == rule.handle, "{}", one.json);
        let two = untimed(other.json);
        ensure!(untimed(one.json.clone()) == two, "{}\n{two}", one.json);
    }
    end_well(second)?;
    // Alone again, the first is as exact as before.
    udp(&net, A, R, false, (4502, 3400));
    let ruleset = hit(&net, 102)?;
    let mut want = want(&net, &ruleset, (4502, 3400))?;
    want.base_chain = "in";
    same(&first.next_drop()?, &want)?;
    end_well(first)
}

#[test]
fn others_come_and_go_under_traffic() -> Result<()> {
    let net = Net::routed()?;
    nft::load(&net.r, RULES)?;
    let fwtrace = Fwtrace::start(&net.r, &["--port", "3400"])?;
    let (src, dst) = net.path(A, R, false, (4403, 3400));
    let socket = net.a.run(|| UdpSocket::bind(src))?;
    let stop = AtomicBool::new(false);
    let sent = std::thread::scope(|scope| -> Result<u64> {
        let sender = scope.spawn(|| {
            let mut sent = 0;
            while !stop.load(Ordering::Relaxed) {
                sent += u64::from(socket.send_to(b"x", dst).is_ok());
                // The pace of the traffic.
                std::thread::sleep(Duration::from_micros(300));
            }
            sent
        });
        // Each attaches to the same tracepoint and leaves it again, two of them not in order.
        let come_and_go = || -> Result<()> {
            // A program of another process, alone, quickly: this one's.
            let mut other = Programs::load(&fwtrace::pipeline::kernel()?.layout)?;
            for _ in 0..50 {
                other.attach("anchor")?;
                other.detach("anchor")?;
            }
            for _ in 0..4 {
                let one = Fwtrace::start(&net.r, &["--port", "9"])?;
                let two = Fwtrace::start(&net.r, &["--port", "9"])?;
                end_well(one)?;
                end_well(two)?;
            }
            Ok(())
        };
        let result = come_and_go();
        stop.store(true, Ordering::Relaxed);
        let sent = sender.join();
        result?;
        sent.map_err(|_| anyhow::anyhow!("the sender failed"))
    })?;
    let ruleset = hit(&net, sent)?;
    let end = fwtrace.interrupt()?;
    ensure!(end.status.success(), "{}", end.stderr);
    let mut want = want(&net, &ruleset, (4403, 3400))?;
    want.base_chain = "in";
    for event in &end.drops {
        same(event, &want)?;
    }
    e2e::report(&format!(
        "{sent} drops while others came and went: {} right, {} lost",
        end.drops.len(),
        end.count("lost")?
    ));
    ensure!(end.drops.len() > 500, "{} drops only", end.drops.len());
    adds_up(&end, sent)
}

#[test]
fn drops_on_several_processors_are_counted_exactly() -> Result<()> {
    const COUNT: u64 = 10_000;
    let net = Net::routed()?;
    // In the sender's context and in softirqs, all at once: one interrupts the other.
    nft::load(
        &net.r,
        "table inet t { chain out { type filter hook output priority 0\n\
         udp dport 3405 counter drop comment \"out\"\n}\n\
         chain in { type filter hook input priority 0\n\
         udp dport 3405 counter drop comment \"in\"\n}\n}",
    )?;
    let fwtrace = Fwtrace::start(&net.r, &["--port", "3405"])?;
    std::thread::scope(|scope| {
        for (from, to, sport) in [(A, R, 4405), (R, A, 4406), (A, R, 4407), (R, A, 4408)] {
            let (src, dst) = net.path(from, to, false, (sport, 3405));
            let ns = net.ns(from);
            scope.spawn(move || {
                let socket = ns.run(|| UdpSocket::bind(src).expect("bind"));
                for _ in 0..COUNT {
                    // EPERM on OUTPUT.
                    let _ = socket.send_to(b"x", dst);
                }
            });
        }
    });
    let listed = nft::list(&net.r)?;
    let end = fwtrace.interrupt()?;
    ensure!(end.status.success(), "{}", end.stderr);
    let mut counted = 0;
    for (comment, hook) in [("in", "input"), ("out", "output")] {
        let rule = listed.commented(comment).context("no rule")?;
        counted += rule.packets.unwrap_or_default();
        for event in end.drops.iter().filter(|d| d.json["hook"] == hook) {
            ensure!(
                at(&event.json, "rule.handle") == rule.handle,
                "{}",
                event.json
            );
            ensure!(at(&event.json, "rule.chain") == comment, "{}", event.json);
        }
    }
    e2e::report(&format!(
        "{counted} drops on several processors: {} shown, {} lost",
        end.count("shown")?,
        end.count("lost")?
    ));
    adds_up(&end, counted)
}
