//! Why packets are invalid: what the kernel logs of them with `--trace`.

use std::net::TcpListener;

use anyhow::{Result, ensure};
use e2e::expect::at;
use e2e::fwtrace::Fwtrace;
use e2e::net::{Net, Place};
use e2e::{conntrack, nft, traffic};
use fwtrace::netlink::nflog;
use fwtrace::netlink::socket::{Protocol, Socket};

use crate::support::hit;
use crate::trace::start;

use Place::{A, R};

/// Drops what is invalid.
const RULES: &str = "table inet t { chain in { type filter hook input priority 0
                     ct state invalid counter drop comment \"hit\"\n}\n}";
const ACK: u8 = 0x10;
const SYN_ACK: u8 = 0x12;
const SYN_FIN: u8 = 0x03;

#[test]
fn the_kernels_reason_stands_in_the_event() -> Result<()> {
    let net = Net::routed()?;
    let notes = tempfile::tempdir()?;
    net.r.sysctl("net/netfilter/nf_conntrack_tcp_loose", "0")?;
    nft::load(&net.r, RULES)?;
    let before = conntrack::counter(&net.r, "invalid")?;
    let mut fwtrace = start(&net.r, &notes, &["--trace"])?;
    let mut packets = 0;
    for v6 in [false, true] {
        for (flags, reason) in [
            // Of these the kernel says nothing.
            (
                ACK,
                "not picked up, net.netfilter.nf_conntrack_tcp_loose is 0",
            ),
            (SYN_ACK, "invalid new"),
            (SYN_FIN, "invalid tcp flag combination"),
        ] {
            let (src, dst) = net.path(A, R, v6, (4960, 3960));
            net.a.run(|| traffic::segment(src, dst, flags))?;
            packets += 1;
            hit(&net, packets)?;
            let event = fwtrace.drop_to_port(3960)?.json;
            ensure!(at(&event, "rule.comment") == "hit", "{event}");
            ensure!(at(&event, "conntrack.state") == "invalid", "{event}");
            ensure!(at(&event, "conntrack.invalid") == reason, "{event}");
        }
    }
    let end = fwtrace.interrupt()?;
    ensure!(end.status.success(), "{}", end.stderr);
    let counted = conntrack::counter(&net.r, "invalid")? - before;
    ensure!(counted == packets, "scenario: {counted} invalid");
    ensure!(
        end.summary["conntrack"][0]["moved"]["invalid"] == packets,
        "{}",
        end.summary
    );
    Ok(())
}

#[test]
fn out_of_window() -> Result<()> {
    let net = Net::routed()?;
    let notes = tempfile::tempdir()?;
    nft::load(&net.r, RULES)?;
    let (_, address) = net.path(A, R, false, (0, 3961));
    let listener = net.r.run(|| TcpListener::bind(address))?;
    let client = net.a.run(|| traffic::tcp(address))?;
    let _server = listener.accept()?;
    let source = client.local_addr()?;
    let mut fwtrace = start(&net.r, &notes, &["--trace"])?;
    // Wherever the connection is, some of them are far ahead of it.
    for quarter in 0..4_u32 {
        net.a
            .run(|| traffic::segment_at(source, address, ACK, quarter << 30))?;
    }
    let ruleset = nft::list(&net.r)?;
    let dropped = ruleset.commented("hit").and_then(|rule| rule.packets);
    ensure!(
        dropped.is_some_and(|dropped| dropped > 0),
        "scenario: {dropped:?}"
    );
    let mut over = 0;
    for _ in 0..dropped.unwrap_or(0) {
        let event = fwtrace.drop_to_port(3961)?.json;
        ensure!(at(&event, "conntrack.state") == "invalid", "{event}");
        let reason = at(&event, "conntrack.invalid");
        let reason = reason.as_str().unwrap_or_default();
        ensure!(
            reason.starts_with("SEQ is ") || reason.starts_with("ACK is "),
            "{event}"
        );
        over += usize::from(reason.starts_with("SEQ is over upper bound"));
    }
    ensure!(over > 0, "none was over the window");
    let end = fwtrace.interrupt()?;
    ensure!(end.status.success(), "{}", end.stderr);
    Ok(())
}

#[test]
fn people_read_what_it_means() -> Result<()> {
    let net = Net::routed()?;
    let notes = tempfile::tempdir()?;
    nft::load(&net.r, RULES)?;
    let directory = format!("RUNTIME_DIRECTORY={}", notes.path().display());
    let mut fwtrace = Fwtrace::start_under(Some(&net.r), &["env", &directory], &["--trace"])?;
    let (src, dst) = net.path(A, R, false, (4962, 3962));
    net.a.run(|| traffic::segment(src, dst, SYN_ACK))?;
    let line = fwtrace.next_line()?;
    let reason = "ct invalid (invalid new: mid-stream packet, its SYN was never seen here)";
    ensure!(line.contains(reason), "{line}");
    let end = fwtrace.interrupt()?;
    ensure!(
        end.stderr.contains("conntrack: invalid +1; "),
        "{}",
        end.stderr
    );
    Ok(())
}

#[test]
fn without_the_group_nothing_is_changed_and_the_rest_is_told() -> Result<()> {
    let net = Net::routed()?;
    let notes = tempfile::tempdir()?;
    net.r.sysctl("net/netfilter/nf_conntrack_tcp_loose", "0")?;
    nft::load(&net.r, RULES)?;
    let mut socket = net.r.run(|| Socket::open(Protocol::Netfilter, &[]))?;
    nflog::listen(&mut socket, 0, &[])?;
    let mut fwtrace = start(&net.r, &notes, &["--trace"])?;
    let path = "/proc/sys/net/netfilter/nf_conntrack_log_invalid";
    let value = net.r.run(|| std::fs::read_to_string(path))?;
    ensure!(value.trim() == "0", "changed in vain: {value}");
    let (src, dst) = net.path(A, R, false, (4963, 3963));
    net.a.run(|| traffic::segment(src, dst, ACK))?;
    let event = fwtrace.drop_to_port(3963)?.json;
    ensure!(at(&event, "conntrack.state") == "invalid", "{event}");
    ensure!(at(&event, "conntrack.invalid").is_null(), "{event}");
    let end = fwtrace.interrupt()?;
    ensure!(
        end.stderr
            .contains("nor is it told why packets are invalid")
            && end.stderr.contains("NFLOG group 0"),
        "{}",
        end.stderr
    );
    Ok(())
}
