//! Floods: a record stands for several drops, and each drop is accounted for.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::expect::at;
use e2e::fwtrace::Fwtrace;
use e2e::net::{Net, Place};
use e2e::{legacy, nft, traffic, wait_until};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;

use Place::{A, R};

const PORT: u16 = 3941;
const OTHER: u16 = 3942;
/// More than the ring has room for.
const PACKETS: u32 = 20_000;
/// Longer than a flow goes without a record.
const PAUSE: Duration = Duration::from_millis(50);

/// Two rules drop the flood in turn, a third one the other flow.
const NFT: &str = "table inet t { chain c { type filter hook input priority 0\n\
    udp dport 3941 numgen inc mod 2 0 counter drop comment \"first\"\n\
    udp dport 3941 counter drop comment \"second\"\n\
    udp dport 3942 counter drop comment \"other\"\n}\n}";
const LEGACY: &str = "*filter\n\
    -A INPUT -p udp --dport 3941 -m statistic --mode nth --every 2 --packet 0 -m comment --comment first -j DROP\n\
    -A INPUT -p udp --dport 3941 -m comment --comment second -j DROP\n\
    -A INPUT -p udp --dport 3942 -m comment --comment other -j DROP\nCOMMIT\n";

/// Fills the ring while nobody reads it; one other drop in the middle. At the end two packets come late enough for a record of their rules each.
fn flood(net: &Net, fwtrace: &Fwtrace) -> Result<()> {
    let (src, dst) = net.path(A, R, false, (4941, PORT));
    let (other_src, other_dst) = net.path(A, R, false, (4942, OTHER));
    fwtrace.signal(Signal::SIGSTOP)?;
    net.a.run(|| -> Result<()> {
        // Of this thread only.
        let mut one = CpuSet::new();
        one.set(0)?;
        sched_setaffinity(Pid::from_raw(0), &one)?;
        let socket = UdpSocket::bind(src)?;
        let begin = Instant::now();
        let mut sent = 0;
        while sent < PACKETS || begin.elapsed() < PAUSE {
            socket.send_to(b"flood", dst)?;
            sent += 1;
            if sent == PACKETS * 3 / 4 {
                traffic::udp(other_src, other_dst)?;
            }
        }
        let end = Instant::now();
        wait_until(|| end.elapsed() >= PAUSE);
        for _ in 0..2 {
            socket.send_to(b"late", dst)?;
        }
        Ok(())
    })?;
    fwtrace.signal(Signal::SIGCONT)
}

/// What the kernel has counted, by comment.
fn counted(net: &Net, is_legacy: bool) -> Result<Vec<(&'static str, u64)>> {
    let names = ["first", "second", "other"];
    if !is_legacy {
        let listed = nft::list(&net.r)?;
        let count = |name| {
            let rule = listed.commented(name).context("no rule")?;
            Ok((name, rule.packets.context("no counter")?))
        };
        return names.into_iter().map(count).collect();
    }
    let listed = legacy::list(&net.r, false, "filter")?;
    let rules = listed.iter().filter(|rule| rule.number.is_some());
    Ok(names.into_iter().zip(rules.map(|r| r.packets)).collect())
}

#[test]
fn a_record_stands_for_the_drops_of_its_flow_by_its_rule() -> Result<()> {
    for is_legacy in [false, true] {
        let net = Net::routed()?;
        if is_legacy {
            legacy::restore(&net.r, false, LEGACY)?;
        } else {
            nft::load(&net.r, NFT)?;
        }
        for args in [&[][..], &["--proto", "udp"]] {
            let before = counted(&net, is_legacy)?;
            let fwtrace = Fwtrace::start(&net.r, args)?;
            flood(&net, &fwtrace)?;
            let after = counted(&net, is_legacy)?;
            let end = fwtrace.interrupt()?;
            let context = format!(
                "legacy: {is_legacy}, {args:?}: {}\n{}",
                end.summary, end.stderr
            );
            let mut total = 0;
            for ((name, before), (_, after)) in before.iter().zip(&after) {
                let of_rule = |drop: &&Value| at(drop, "rule.comment") == *name;
                let drops: Vec<&Value> =
                    end.drops.iter().map(|d| &d.json).filter(of_rule).collect();
                let counts = drops.iter().map(|drop| drop["count"].as_u64().unwrap_or(0));
                let sum: u64 = counts.clone().sum();
                ensure!(
                    sum == after - before,
                    "{name}: {sum} of {}, {context}",
                    after - before
                );
                let exact = |drop: &&Value| at(drop, "evidence.confidence") == "exact";
                ensure!(drops.iter().all(exact), "{name}: {context}");
                // The other flow has its own record, and of the flood most have none.
                let most = counts.max().unwrap_or(0);
                ensure!(
                    if *name == "other" {
                        most == 1
                    } else {
                        most > 100
                    },
                    "{name}: {context}"
                );
                total += after - before;
            }
            let (seen, shown) = (end.count("seen")?, end.count("shown")?);
            let (aggregated, lost) = (end.count("aggregated")?, end.count("lost")?);
            // Interfaces have drops of their own now and then.
            ensure!(
                (total..total + 10).contains(&seen),
                "{total} dropped: {context}"
            );
            ensure!(shown + aggregated == total && lost == 0, "{context}");
        }
    }
    Ok(())
}

#[test]
fn whoever_needs_each_drop_gets_each_that_there_is_room_for() -> Result<()> {
    let net = Net::routed()?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("drops.pcapng");
    let file = file.to_str().context("no name")?;
    for (args, rules) in [
        (&["-w", file][..], NFT),
        (&["udp"][..], NFT),
        (
            &[][..],
            &NFT.replace(
                "counter drop comment \"other\"",
                "log group 5 counter drop comment \"other\"",
            ),
        ),
    ] {
        nft::load(&net.r, &format!("flush ruleset\n{rules}"))?;
        let before: u64 = counted(&net, false)?.iter().map(|(_, count)| count).sum();
        let fwtrace = Fwtrace::start(&net.r, args)?;
        flood(&net, &fwtrace)?;
        let after: u64 = counted(&net, false)?.iter().map(|(_, count)| count).sum();
        let end = fwtrace.interrupt()?;
        let context = format!("{args:?}: {}\n{}", end.summary, end.stderr);
        ensure!(
            end.drops.iter().all(|drop| drop.json["count"] == 1),
            "{context}"
        );
        ensure!(end.count("aggregated")? == 0, "{context}");
        let (shown, lost) = (end.count("shown")?, end.count("lost")?);
        ensure!(shown + lost == after - before && shown > 1000, "{context}");
    }
    Ok(())
}
