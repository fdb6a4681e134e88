//! What a filter lets through is shown, and nothing else; the summary adds up.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::expect::at;
use e2e::fwtrace::Fwtrace;
use e2e::net::{Net, Place};
use e2e::nft;

use crate::support::{L4, Packet, udp};

use Place::{A, B, R};

/// Drops TCP and UDP to ports 5000-5999 and echo requests: on input in `in`, on forward in `deny`;
/// UDP to 5900 on input in table `other` before that.
pub(crate) const RULES: &str = "table inet t {
    chain deny {
        meta l4proto { tcp, udp } th dport 5000-5999 counter drop
        icmp type echo-request counter drop
        icmpv6 type echo-request counter drop
    }
    chain in {
        type filter hook input priority 0
        meta l4proto { tcp, udp } th dport 5000-5999 counter drop
        icmp type echo-request counter drop
        icmpv6 type echo-request counter drop
    }
    chain fw { type filter hook forward priority 0; jump deny; }
}
table ip other {
    chain first { type filter hook input priority -5; udp dport 5900 counter drop; }
}
";

const fn packet(l4: L4, v6: bool, from: Place, to: Place, ports: (u16, u16)) -> Packet {
    Packet {
        l4,
        v6,
        from,
        to,
        ports,
    }
}

pub(crate) const U4: Packet = packet(L4::Udp, false, A, R, (4500, 5001));
pub(crate) const U6: Packet = packet(L4::Udp, true, A, R, (4500, 5001));
pub(crate) const T4: Packet = packet(L4::Tcp, false, A, R, (4501, 5001));
pub(crate) const T6: Packet = packet(L4::Tcp, true, A, R, (4501, 5001));
pub(crate) const I4: Packet = packet(L4::Icmp, false, A, R, (0, 9));
pub(crate) const I6: Packet = packet(L4::Icmp, true, A, R, (0, 9));
pub(crate) const PORT2: Packet = packet(L4::Udp, false, A, R, (4500, 5002));
const PORT3: Packet = packet(L4::Tcp, true, A, R, (4500, 5003));
const PORT4: Packet = packet(L4::Udp, false, A, R, (4500, 5004));
/// Port 5001 as the source.
pub(crate) const FROM1: Packet = packet(L4::Udp, false, A, R, (5001, 5050));
pub(crate) const F4: Packet = packet(L4::Udp, false, A, B, (4502, 5001));
pub(crate) const F6: Packet = packet(L4::Udp, true, A, B, (4502, 5001));
/// From the other side.
pub(crate) const BACK4: Packet = packet(L4::Udp, false, B, A, (4503, 5001));
pub(crate) const BACK6: Packet = packet(L4::Tcp, true, B, A, (4503, 5001));
const OTHER: Packet = packet(L4::Udp, false, A, R, (4504, 5900));

/// Arguments, the packets that they show, the packets that they do not.
const FILTERS: &[(&[&str], &[Packet], &[Packet])] = &[
    (
        &["--port", "5001"],
        &[U4, T4, U6, T6, FROM1, F4],
        &[PORT2, PORT3, I4, I6],
    ),
    (
        &["--port", "5001,5003"],
        &[U4, PORT3, FROM1],
        &[PORT2, PORT4],
    ),
    (
        &["--port", "5002-5003"],
        &[PORT2, PORT3],
        &[U4, T6, PORT4, FROM1],
    ),
    (&["--port", "5001,5003-5004"], &[U4, PORT3, PORT4], &[PORT2]),
    (&["--dport", "5001"], &[U4, T6], &[FROM1, PORT2, I4]),
    (&["--sport", "5001"], &[FROM1], &[U4, T6, PORT2, I6]),
    (
        &["--sport", "4500", "--dport", "5001"],
        &[U4, U6],
        &[T4, PORT2, F4],
    ),
    (
        &["--src", "10.1.0.1"],
        &[U4, T4, I4, F4],
        &[U6, BACK4, BACK6, I6],
    ),
    (&["--src", "10.2.0.0/16"], &[BACK4], &[U4, F4, BACK6]),
    (&["--src", "fd02::/64"], &[BACK6], &[U6, F6, BACK4]),
    (&["--dst", "10.2.0.1"], &[F4], &[U4, BACK4, F6]),
    (&["--dst", "fd02::1"], &[F6], &[U6, BACK6, F4]),
    (&["--dst", "fd01::/127"], &[BACK6], &[U6, F6, U4]),
    (&["--host", "10.2.0.1"], &[F4, BACK4], &[U4, F6, BACK6, I4]),
    (&["--host", "fd02::/16"], &[F6, BACK6], &[U6, F4, BACK4]),
    (
        &["--src", "10.1.0.1", "--dst", "10.1.0.0/24"],
        &[U4, I4],
        &[F4, BACK4, U6],
    ),
    (&["--proto", "udp"], &[U4, U6, F6], &[T4, T6, I4, I6]),
    (&["--proto", "tcp"], &[T4, T6], &[U4, U6, I4, I6]),
    (&["--proto", "icmp"], &[I4], &[U4, T4, U6, I6]),
    (&["--proto", "icmpv6"], &[I6], &[U4, T6, I4]),
    (&["--proto", "17"], &[U4, U6], &[T4, I6]),
    (&["-i", "r1"], &[F4, BACK4, F6], &[U4, U6, I4]),
    (&["--iface", "r0"], &[U4, F4, BACK6], &[]),
    (&["-4"], &[U4, T4, I4], &[U6, T6, I6]),
    (&["-6"], &[U6, T6, I6], &[U4, T4, I4]),
    (&["--hook", "forward"], &[F4, F6, BACK4], &[U4, U6, I4]),
    (&["--hook", "input"], &[U4, U6, I4], &[F4, F6]),
    (&["--table", "other"], &[OTHER], &[U4, F4]),
    (&["--table", "t"], &[U4, F6], &[OTHER]),
    (&["--chain", "deny"], &[F4, BACK6], &[U4, OTHER]),
    (&["--chain", "first"], &[OTHER], &[U4, F4]),
    (
        &["--proto", "udp", "-6", "--dport", "5001", "-i", "r1"],
        &[F6],
        &[U6, F4, T6, BACK6],
    ),
];

/// Sends what is not to be shown first, so that it would come first.
pub(crate) fn check(net: &Net, args: &[&str], shown: &[Packet], hidden: &[Packet]) -> Result<()> {
    let mut fwtrace = Fwtrace::start(&net.r, args)?;
    for packet in hidden.iter().chain(shown) {
        packet.send(net)?;
    }
    for packet in shown {
        let event = fwtrace.next_drop().with_context(|| format!("{packet:?}"))?;
        ensure!(
            packet.is_of(net, &event.json),
            "expected {packet:?}, got {}",
            event.json
        );
    }
    let end = fwtrace.interrupt()?;
    ensure!(end.status.success(), "{}: {}", end.status, end.stderr);
    ensure!(end.drops.is_empty(), "shown as well: {:?}", end.drops);
    let count = |key| end.count(key);
    ensure!(count("shown")? == shown.len() as u64, "{}", end.summary);
    ensure!(count("lost")? == 0, "{}", end.summary);
    ensure!(count("filtered")? >= hidden.len() as u64, "{}", end.summary);
    ensure!(
        count("seen")? == count("shown")? + count("filtered")? + count("aggregated")?,
        "{}",
        end.summary
    );
    Ok(())
}

#[test]
fn in_and_out() -> Result<()> {
    let net = Net::routed()?;
    nft::load(&net.r, RULES)?;
    let mut report = String::new();
    for (args, shown, hidden) in FILTERS {
        if let Err(e) = check(&net, args, shown, hidden) {
            report += &format!("{args:?}: {e:#}\n");
        }
    }
    let wrong = report.lines().filter(|l| l.starts_with("[\"")).count();
    e2e::report(&format!(
        "filters: {} cases: {} right",
        FILTERS.len(),
        FILTERS.len() - wrong
    ));
    ensure!(report.is_empty(), "{report}");
    Ok(())
}

#[test]
fn reasons() -> Result<()> {
    let net = Net::routed()?;
    nft::load(&net.r, RULES)?;
    // Nobody listens on 6000, and no rule is about it.
    let closed = packet(L4::Udp, false, A, R, (4500, 6000));
    let ports = ["--port", "5001,6000"];
    check(&net, &ports, &[U4], &[closed])?;
    check(
        &net,
        &[&ports[..], &["--reason", "NO_SOCKET"]].concat(),
        &[closed],
        &[U4],
    )?;
    check(
        &net,
        &[&ports[..], &["--reason", "all"]].concat(),
        &[U4, closed],
        &[],
    )?;
    // By default they are counted and summed up.
    let fwtrace = Fwtrace::start(&net.r, &ports)?;
    closed.send(&net)?;
    closed.send(&net)?;
    let end = fwtrace.interrupt()?;
    ensure!(end.summary["other"]["NO_SOCKET"] == 2, "{}", end.summary);
    ensure!(
        end.stderr
            .contains("2 more were dropped, not by the firewall: 2 NO_SOCKET"),
        "{}",
        end.stderr
    );
    // A drop by another reason has no rule and says so.
    let mut fwtrace = Fwtrace::start(&net.r, &["--reason", "all", "--port", "6000"])?;
    closed.send(&net)?;
    let event = fwtrace.next_drop()?.json;
    ensure!(event["reason"] == "NO_SOCKET", "{event}");
    ensure!(event["engine"] == "other", "{event}");
    ensure!(event["rule"].is_null(), "{event}");
    ensure!(event["evidence"]["source"] == "engine", "{event}");
    Ok(())
}

#[test]
fn count_ends_the_run() -> Result<()> {
    let net = Net::routed()?;
    nft::load(&net.r, RULES)?;
    let fwtrace = Fwtrace::start(&net.r, &["-c", "2"])?;
    for port in 5001..5006 {
        udp(&net, A, R, false, (4500, port));
    }
    let end = fwtrace.wait()?;
    ensure!(end.status.success(), "{}: {}", end.status, end.stderr);
    let ports: Vec<_> = end
        .drops
        .iter()
        .map(|d| at(&d.json, "packet.dport"))
        .collect();
    ensure!(ports == [5001, 5002], "{ports:?}");
    ensure!(end.stdout.len() == 2, "{:?}", end.stdout);
    ensure!(end.stderr.contains(": 2 shown, "), "{}", end.stderr);
    Ok(())
}

#[test]
fn duration_ends_the_run() -> Result<()> {
    let net = Net::routed()?;
    nft::load(&net.r, RULES)?;
    let fwtrace = Fwtrace::start(&net.r, &["--duration", "1"])?;
    let ready = Instant::now();
    udp(&net, A, R, false, (4500, 5001));
    let end = fwtrace.wait()?;
    ensure!(end.status.success(), "{}: {}", end.status, end.stderr);
    ensure!(end.drops.len() == 1, "{:?}", end.drops);
    let took = ready.elapsed();
    ensure!(
        took > Duration::from_millis(500) && took < Duration::from_secs(10),
        "{took:?}"
    );
    Ok(())
}
