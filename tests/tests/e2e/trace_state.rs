//! `--trace` changes what it says, no more, and leaves nothing behind however it ends.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use e2e::expect::at;
use e2e::net::{Net, Place};
use e2e::netns::Netns;
use e2e::system;
use e2e::{nft, wait_until};
use fwtrace::netlink::nflog;
use fwtrace::netlink::socket::{Protocol, Socket};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::support::udp;
use crate::trace::start;

use Place::{A, B, R};

const RULES: &str = "table inet t { chain in { type filter hook input priority 0
                     udp dport 3930 counter drop comment \"hit\"\n}\n}";

/// The loggers of IPv4 and IPv6.
fn loggers(ns: &Netns) -> Result<[String; 2]> {
    let read =
        |pf: u8| ns.run(|| fs::read_to_string(format!("/proc/sys/net/netfilter/nf_log/{pf}")));
    Ok([read(2)?.trim().to_owned(), read(10)?.trim().to_owned()])
}

/// Everything that a trace could leave changed. The rule has no state but its counter.
#[derive(Debug, PartialEq)]
struct State {
    rules: String,
    loggers: [String; 2],
    sysctls: BTreeMap<String, Vec<u8>>,
}

/// Of which protocol conntrack logs invalid packets.
fn log_invalid(ns: &Netns) -> Result<String> {
    let path = "/proc/sys/net/netfilter/nf_conntrack_log_invalid";
    Ok(ns.run(|| fs::read_to_string(path))?.trim().to_owned())
}

fn state(ns: &Netns) -> Result<State> {
    let rules = ns.command(&["nft", "-s", "-a", "list", "ruleset"], "")?;
    Ok(State {
        rules,
        loggers: loggers(ns)?,
        sysctls: system::sysctls(ns),
    })
}

fn legacy(ns: &Netns) -> Result<()> {
    for tool in ["iptables-legacy", "ip6tables-legacy"] {
        ns.command(
            &[
                tool, "-A", "INPUT", "-p", "udp", "--dport", "3931", "-j", "DROP",
            ],
            "",
        )?;
    }
    Ok(())
}

/// The note of what a run has changed there.
fn note(notes: &TempDir, ns: &Netns) -> PathBuf {
    notes.path().join(format!("nf_log.{}", ns.inode()))
}

fn ours(ns: &Netns) -> Result<String> {
    ns.command(&["nft", "list", "table", "inet", "fwtrace"], "")
}

#[test]
fn nothing_is_left_after_a_signal() -> Result<()> {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let net = Net::routed()?;
        let notes = tempfile::tempdir()?;
        nft::load(&net.r, RULES)?;
        legacy(&net.r)?;
        let before = state(&net.r)?;
        let mut fwtrace = start(&net.r, &notes, &["--trace"])?;
        let table = ours(&net.r)?;
        ensure!(table.contains("flags owner"), "{table}");
        ensure!(!table.contains(" ct "), "{table}");
        ensure!(loggers(&net.r)? == ["nfnetlink_log"; 2], "not set");
        ensure!(log_invalid(&net.r)? == "255", "not set");
        ensure!(fs::read_dir(notes.path())?.count() == 1, "no note");
        for (port, source) in [(3930, "trace"), (3931, "trace")] {
            udp(&net, A, R, false, (4930, port));
            let event = fwtrace.drop_to_port(port)?.json;
            ensure!(at(&event, "evidence.source") == source, "{event}");
        }
        fwtrace.signal(signal)?;
        let end = fwtrace.wait()?;
        ensure!(end.status.success(), "{signal}: {}", end.stderr);
        ensure!(state(&net.r)? == before, "{signal}: {:?}", state(&net.r)?);
        ensure!(fs::read_dir(notes.path())?.count() == 0, "a note is left");
        // Each change was announced.
        for said in [
            "adds table inet fwtrace",
            "nf_log/2 ",
            "nf_log/10 ",
            "sets /proc/sys/net/netfilter/nf_conntrack_log_invalid",
            "puts /proc/sys/net/netfilter/nf_conntrack_log_invalid",
        ] {
            ensure!(end.stderr.contains(said), "{said}: {}", end.stderr);
        }
    }
    Ok(())
}

#[test]
fn quiet_announces_changes_all_the_same() -> Result<()> {
    let net = Net::routed()?;
    let notes = tempfile::tempdir()?;
    let end = start(&net.r, &notes, &["--trace", "-q"])?.interrupt()?;
    for said in [
        "adds table inet fwtrace",
        "sets /proc/sys/net/netfilter/nf_log/2 ",
        "sets /proc/sys/net/netfilter/nf_log/10 ",
        "sets /proc/sys/net/netfilter/nf_conntrack_log_invalid ",
    ] {
        ensure!(end.stderr.contains(said), "{said}: {}", end.stderr);
    }
    Ok(())
}

#[test]
fn the_next_run_puts_back_what_a_killed_one_left() -> Result<()> {
    let net = Net::routed()?;
    let notes = tempfile::tempdir()?;
    nft::load(&net.r, RULES)?;
    legacy(&net.r)?;
    net.r.sysctl("net/netfilter/nf_log/10", "NONE")?;
    net.r
        .sysctl("net/netfilter/nf_conntrack_log_invalid", "6")?;
    let before = state(&net.r)?;
    let mut killed = start(&net.r, &notes, &["--trace"])?;
    killed.kill();
    // The kernel removes the table with the socket.
    ensure!(wait_until(|| ours(&net.r).is_err()), "the table is left");
    ensure!(
        loggers(&net.r)? == ["nfnetlink_log"; 2],
        "scenario: put back"
    );
    ensure!(log_invalid(&net.r)? == "255", "scenario: put back");
    ensure!(
        fs::read_dir(notes.path())?.count() == 1,
        "scenario: no note"
    );
    // Any other run will do, wherever it traces.
    let other = start(&net.b, &notes, &["--trace"])?;
    ensure!(loggers(&net.r)? == before.loggers, "not put back");
    ensure!(!note(&notes, &net.r).exists(), "the note is left");
    let end = other.interrupt()?;
    ensure!(
        end.stderr.contains("an earlier run did not end well")
            && end.stderr.contains("nf_log/2 ")
            && end.stderr.contains(" NONE")
            && end
                .stderr
                .contains("nf_conntrack_log_invalid of network namespace")
            && end.stderr.contains("back to 6"),
        "{}",
        end.stderr
    );
    ensure!(state(&net.r)? == before, "{:?}", state(&net.r)?);
    Ok(())
}

#[test]
fn a_note_of_a_living_run_and_what_others_set_are_left_alone() -> Result<()> {
    let net = Net::routed()?;
    let notes = tempfile::tempdir()?;
    legacy(&net.r)?;
    let mut first = start(&net.r, &notes, &["--trace"])?;
    // Another one beside it has a table of its own, and no NFLOG group.
    let second = start(&net.r, &notes, &["--trace"])?;
    ensure!(
        loggers(&net.r)? == ["nfnetlink_log"; 2],
        "put back under its feet"
    );
    let tables = net.r.command(&["nft", "list", "tables"], "")?;
    ensure!(tables.matches("inet fwtrace").count() == 2, "{tables}");
    let end = second.interrupt()?;
    let holder = format!("fwtrace (process {})", first.pid());
    ensure!(end.stderr.contains(&holder), "{}", end.stderr);
    udp(&net, A, R, false, (4932, 3931));
    let event = first.drop_to_port(3931)?.json;
    ensure!(at(&event, "evidence.source") == "trace", "{event}");
    // Somebody sets it himself after a crash: that is not undone.
    first.kill();
    net.r.sysctl("net/netfilter/nf_log/2", "nf_log_ipv4")?;
    net.r.sysctl("net/netfilter/nf_log/10", "NONE")?;
    net.r
        .sysctl("net/netfilter/nf_conntrack_log_invalid", "17")?;
    let end = start(&net.b, &notes, &["--trace"])?.interrupt()?;
    ensure!(
        loggers(&net.r)? == ["nf_log_ipv4", "NONE"],
        "{}",
        end.stderr
    );
    ensure!(log_invalid(&net.r)? == "17", "{}", end.stderr);
    ensure!(!end.stderr.contains("did not end well"), "{}", end.stderr);
    Ok(())
}

#[test]
fn flush_ruleset_of_others_does_not_stop_it() -> Result<()> {
    let net = Net::routed()?;
    let notes = tempfile::tempdir()?;
    nft::load(&net.r, RULES)?;
    let mut fwtrace = start(&net.r, &notes, &["--trace"])?;
    for command in [
        "delete table inet fwtrace",
        "add rule inet fwtrace trace drop",
    ] {
        let mut argv = vec!["nft"];
        argv.extend(command.split(' '));
        ensure!(net.r.command(&argv, "").is_err(), "{command} was done");
    }
    // Flushes, and loads the rules again.
    nft::load(&net.r, RULES)?;
    ours(&net.r)?;
    udp(&net, A, R, false, (4930, 3930));
    let event = fwtrace.drop_to_port(3930)?.json;
    ensure!(at(&event, "evidence.source") == "trace", "{event}");
    ensure!(at(&event, "rule.comment") == "hit", "{event}");
    fwtrace.interrupt()?;
    Ok(())
}

#[test]
fn the_rate_bounds_the_traces_and_not_the_drops() -> Result<()> {
    let net = Net::routed()?;
    let notes = tempfile::tempdir()?;
    nft::load(&net.r, RULES)?;
    let mut fwtrace = start(&net.r, &notes, &["--trace=5"])?;
    let (src, dst) = net.path(A, R, false, (4933, 3930));
    burst(&net, src, dst, 100)?;
    let drops = fwtrace.next_drops(100)?;
    let of = |source: &str| {
        let of = |drop: &&e2e::fwtrace::Drop| at(&drop.json, "evidence.source") == source;
        drops.iter().filter(of).count()
    };
    let traced = of("trace");
    // Five at once, and five a second.
    ensure!((1..=15).contains(&traced), "{traced} of 100 traced");
    ensure!(of("kernel-stack") == 100 - traced, "{traced} traced");
    ensure!(
        drops.iter().all(|d| at(&d.json, "rule.comment") == "hit"),
        "another rule"
    );
    fwtrace.interrupt()?;
    Ok(())
}

/// Sends datagrams that differ, one after the other.
fn burst(net: &Net, src: SocketAddr, dst: SocketAddr, count: u32) -> Result<()> {
    net.a.run(|| -> Result<()> {
        let socket = std::net::UdpSocket::bind(src)?;
        for number in 0..count {
            socket.send_to(&number.to_be_bytes(), dst)?;
        }
        Ok(())
    })
}

#[test]
fn connection_tracking_stays_off() -> Result<()> {
    let net = Net::routed()?;
    let notes = tempfile::tempdir()?;
    nft::load(&net.r, RULES)?;
    let mut fwtrace = start(
        &net.r,
        &notes,
        &["--trace", "--port", "3930", "--host", "10.1.0.0/16"],
    )?;
    udp(&net, A, B, false, (4934, 9));
    udp(&net, A, R, false, (4934, 3930));
    let event = fwtrace.drop_to_port(3930)?.json;
    ensure!(at(&event, "evidence.source") == "trace", "{event}");
    ensure!(at(&event, "conntrack.state") == "none", "{event}");
    let count = net
        .r
        .run(|| fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count"))?;
    ensure!(count.trim() == "0", "{count} connections");
    fwtrace.interrupt()?;
    Ok(())
}

#[test]
fn a_group_that_is_taken_is_told_with_its_holder() -> Result<()> {
    let net = Net::routed()?;
    let notes = tempfile::tempdir()?;
    legacy(&net.r)?;
    let before = loggers(&net.r)?;
    let mut socket = net.r.run(|| Socket::open(Protocol::Netfilter, &[]))?;
    let refused = nflog::listen(&mut socket, 0, &[nflog::Setting::Timeout(5)])?;
    ensure!(refused.is_empty(), "{refused:?}");
    let mut fwtrace = start(&net.r, &notes, &["--trace"])?;
    ensure!(loggers(&net.r)? == before, "changed in vain");
    // The run goes on without.
    udp(&net, A, R, false, (4935, 3931));
    fwtrace.drop_to_port(3931)?;
    let end = fwtrace.interrupt()?;
    let me = format!("{} (process {})", system::own_comm(), std::process::id());
    ensure!(
        end.stderr.contains("NFLOG group 0") && end.stderr.contains(&me),
        "{me}: {}",
        end.stderr
    );
    Ok(())
}

#[test]
fn losses_are_told_and_end_nothing() -> Result<()> {
    let net = Net::routed()?;
    let notes = tempfile::tempdir()?;
    nft::load(&net.r, RULES)?;
    let mut fwtrace = start(&net.r, &notes, &["--trace=0"])?;
    fwtrace.signal(Signal::SIGSTOP)?;
    let (src, dst) = net.path(A, R, false, (4936, 3930));
    // Five messages each, of 1,280 bytes in the kernel's account; the buffer has twice 16 MiB.
    burst(&net, src, dst, 7_000)?;
    fwtrace.signal(Signal::SIGCONT)?;
    udp(&net, A, R, true, (4936, 3930));
    let mut all = 0_u64;
    loop {
        let event = fwtrace.next_drop()?.json;
        all += 1;
        ensure!(at(&event, "rule.comment") == "hit", "{event}");
        if at(&event, "packet.family") == "ipv6" {
            break;
        }
    }
    let end = fwtrace.interrupt()?;
    ensure!(end.status.success(), "{}", end.stderr);
    let lost: Vec<&String> = end
        .stdout
        .iter()
        .filter(|line| line.contains("\"type\":\"lost\"") && line.contains("\"trace\""))
        .collect();
    ensure!(!lost.is_empty(), "no loss was told: {}", end.stderr);
    ensure!(
        end.count("seen")? >= 7_001 && end.count("shown")? == all,
        "{all} shown: {}",
        end.summary
    );
    let accounted = end.count("shown")? + end.count("filtered")? + end.count("lost")?;
    ensure!(end.count("seen")? == accounted, "{}", end.summary);
    Ok(())
}

#[test]
fn a_namespace_that_goes_takes_its_traces_along() -> Result<()> {
    let net = Net::routed()?;
    let notes = tempfile::tempdir()?;
    legacy(&net.b)?;
    nft::load(&net.r, RULES)?;
    let watched = format!("{},{}", net.r.name(), net.b.name());
    let mut fwtrace = start(&net.a, &notes, &["--trace", "-N", &watched])?;
    ensure!(note(&notes, &net.b).exists(), "no note");
    net.b.delete()?;
    ensure!(
        wait_until(|| !note(&notes, &net.b).exists()),
        "its note is left"
    );
    udp(&net, A, R, false, (4937, 3930));
    let event = fwtrace.drop_to_port(3930)?.json;
    ensure!(at(&event, "evidence.source") == "trace", "{event}");
    let end = fwtrace.interrupt()?;
    ensure!(end.status.success(), "{}", end.stderr);
    end.stderr
        .contains("is gone")
        .then_some(())
        .context(end.stderr)
}
