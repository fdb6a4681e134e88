//! Drops that interrupt the work on another drop: the kernel does not show them to a tracing program.

use std::net::UdpSocket;

use anyhow::{Context, Result, ensure};
use e2e::fwtrace::Fwtrace;
use e2e::net::{Net, Place};
use e2e::{nft, wait_until};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use Place::{A, R};

/// Drops that are to be skipped before a test may end.
const ENOUGH: u64 = 50;

/// What the kernel did not show to the programs of a process.
fn misses(pid: u32) -> u64 {
    let files = std::fs::read_dir(format!("/proc/{pid}/fdinfo"));
    let texts = files.into_iter().flatten().flatten();
    let texts = texts.filter_map(|file| std::fs::read_to_string(file.path()).ok());
    let most = texts.filter_map(|text| {
        let mut lines = text.lines();
        let count = lines.find_map(|line| line.strip_prefix("recursion_misses:"))?;
        count.trim().parse().ok()
    });
    most.max().unwrap_or(0)
}

/// Has R of the first net drop what it sends, while a timer lets packets go that R of the other net drops, all on one processor,
/// until the kernel has skipped some.
fn collide(own: &Net, other: &Net, pid: u32) -> Result<()> {
    let (src, dst) = own.path(R, A, false, (4931, 3931));
    let (other_src, other_dst) = other.path(A, R, false, (4932, 3932));
    let there = other.a.run(|| UdpSocket::bind(other_src))?;
    own.r.run(|| -> Result<()> {
        // Of this thread only.
        let mut one = CpuSet::new();
        one.set(0)?;
        sched_setaffinity(Pid::from_raw(0), &one)?;
        let here = UdpSocket::bind(src)?;
        let enough = wait_until(|| {
            for _ in 0..100 {
                // A full queue is as good as a packet more, and EPERM is what the firewall says.
                let _ = there.send_to(b"late", other_dst);
                for _ in 0..10 {
                    let _ = here.send_to(b"now", dst);
                }
            }
            misses(pid) >= ENOUGH
        });
        ensure!(enough, "scenario: no drop was skipped");
        Ok(())
    })
}

/// Waits until the queue is empty; the packets that R has counted.
fn counted(net: &Net) -> Result<u64> {
    let empty = wait_until(|| {
        let shown = net
            .a
            .command(&["tc", "-s", "qdisc", "show", "dev", "a0"], "");
        shown.is_ok_and(|shown| shown.contains("backlog 0b 0p"))
    });
    ensure!(empty, "scenario: packets wait");
    let listed = nft::list(&net.r)?;
    let hit = listed.commented("hit").context("no rule")?;
    hit.packets.context("no counter")
}

#[test]
fn drops_that_are_skipped_count_where_they_happened() -> Result<()> {
    let (own, other) = (Net::routed()?, Net::routed()?);
    let rule = |hook: &str| {
        format!(
            "table inet t {{ chain c {{ type filter hook {hook} priority 0\n\
             meta l4proto udp counter drop comment \"hit\"\n}}\n}}"
        )
    };
    nft::load(&own.r, &rule("output"))?;
    nft::load(&other.r, &rule("input"))?;
    // A timer lets a packet go every 50 us or so.
    let slow = "qdisc add dev a0 root tbf rate 8mbit burst 200 limit 20000";
    let words: Vec<&str> = ["tc"].into_iter().chain(slow.split(' ')).collect();
    other.a.command(&words, "")?;
    let name = other.r.name().to_owned();
    for (args, both) in [
        (vec!["--port", "1"], false),
        (vec!["--port", "1", "-N", own.r.name(), "-N", &name], true),
    ] {
        let before = (counted(&own)?, counted(&other)?);
        let fwtrace = Fwtrace::start(&own.r, &args)?;
        collide(&own, &other, fwtrace.pid())?;
        let after = (counted(&own)?, counted(&other)?);
        let end = fwtrace.interrupt()?;
        let (own, other) = (after.0 - before.0, after.1 - before.1);
        let context = format!("{own} and {other} dropped: {}\n{}", end.summary, end.stderr);
        ensure!(end.status.success(), "{}: {context}", end.status);
        let (seen, lost) = (end.count("seen")?, end.count("lost")?);
        // Skipped are those that the timer let go: they interrupt, and are not interrupted by their like.
        let want = own + if both { other } else { 0 };
        // Interfaces have drops of their own now and then.
        ensure!((want..want + 10).contains(&seen), "{context}");
        ensure!(if both { lost >= ENOUGH } else { lost == 0 }, "{context}");
    }
    Ok(())
}
