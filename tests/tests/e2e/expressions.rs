//! Filter expressions: what tcpdump takes is shown, and nothing else.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use e2e::fwtrace::{self, End, Fwtrace};
use e2e::net::{Net, Place};
use e2e::{nft, traffic};

use crate::filters::{self, BACK4, BACK6, F4, F6, FROM1, I4, I6, PORT2, T4, T6, U4, U6, check};
use crate::support::{Packet, udp};

use Place::{A, R};

/// Arguments, the packets that they show, the packets that they do not.
const EXPRESSIONS: &[(&[&str], &[Packet], &[Packet])] = &[
    (&["port 5001"], &[U4, T6, FROM1, F4], &[PORT2, I4, I6]),
    (
        &["udp and dst port 5001 and not src net fd00::/8"],
        &[U4, F4],
        &[T4, U6, FROM1, PORT2],
    ),
    (&["tcp", "or", "icmp6"], &[T4, T6, I6], &[U4, U6, I4]),
    (
        &["(src 10.2.0.1 or src fd02::1) and ip6"],
        &[BACK6],
        &[BACK4, F6, U6],
    ),
    (
        &["ip host 10.2.0.1 and udp", "-i", "r1"],
        &[F4, BACK4],
        &[U4, F6],
    ),
    (&["tcp[tcpflags] == tcp-syn"], &[T4], &[U4, T6]),
    (&["udp[8:4] = 0x66777472"], &[U4, F4], &[T4, I4]),
    (
        &["--port", "5001", "ip6", "and", "not", "tcp"],
        &[U6, F6],
        &[U4, T6, I6],
    ),
    (
        &["--proto", "udp", "src or dst host 10.1.0.1 and port 5002"],
        &[PORT2],
        &[U4, T4],
    ),
    (&["icmp[icmptype] = icmp-echo"], &[I4], &[U4, I6]),
    (
        &["-4", "less 60 and port (5001 or 5002)"],
        &[U4, PORT2, FROM1],
        &[U6, T4],
    ),
];

#[test]
fn shown_and_hidden() -> Result<()> {
    let net = Net::routed()?;
    nft::load(&net.r, filters::RULES)?;
    let mut report = String::new();
    for (args, shown, hidden) in EXPRESSIONS {
        if let Err(e) = check(&net, args, shown, hidden) {
            report += &format!("{args:?}: {e:#}\n");
        }
    }
    ensure!(report.is_empty(), "{report}");
    Ok(())
}

/// What tcpdump shows of these frames, by number.
fn tcpdump(dir: &Path, frames: &[Vec<u8>], expression: &str) -> Result<BTreeSet<usize>> {
    // pcap's file format: magic number, version, zone, accuracy, snaplen, DLT_EN10MB.
    let mut file = Vec::new();
    for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65535, 1] {
        file.extend(word.to_ne_bytes());
    }
    for (number, frame) in frames.iter().enumerate() {
        let length = u32::try_from(frame.len())?;
        for word in [u32::try_from(number)?, 0, length, length] {
            file.extend(word.to_ne_bytes());
        }
        file.extend(frame);
    }
    let path = dir.join("frames.pcap");
    std::fs::write(&path, file)?;
    // -tt: the time stamp in seconds, which is the number.
    let out = Command::new("tcpdump")
        .args(["-nn", "-q", "-tt", "-r"])
        .arg(&path)
        .arg(expression)
        .output()
        .context("tcpdump")?;
    ensure!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    // A packet's further lines are indented.
    let lines = text
        .lines()
        .filter(|l| l.starts_with(|c: char| c.is_ascii_digit()));
    lines
        .map(|line| Ok(line.split('.').next().unwrap_or_default().parse()?))
        .collect()
}

/// Frames of many kinds: VLAN tags, packets.
fn frames(net: &Net) -> Result<Vec<(Vec<u16>, Vec<u8>)>> {
    let mut frames = Vec::new();
    for v6 in [false, true] {
        for ports in [(4600, 80), (53, 4600), (4600, 4601)] {
            let (src, dst) = net.path(A, R, v6, ports);
            let padding = [1, 4, 0, 0, 0, 0];
            let mut packets = vec![traffic::udp_packet(src, dst, &[])];
            if v6 {
                packets.push(traffic::udp_packet(
                    src,
                    dst,
                    &[(0, &padding), (60, &padding)],
                ));
                // The first and a later fragment (RFC 8200, 4.5).
                for offset in [[0, 1, 0, 0, 0, 7], [0, 9, 0, 0, 0, 7]] {
                    packets.push(traffic::udp_packet(src, dst, &[(44, &offset)]));
                }
            } else {
                let mut tcp = packets[0].clone();
                tcp[9] = 6;
                packets.push(tcp);
                for fragment in [[0x20, 0], [0, 0xb9]] {
                    let mut packet = packets[0].clone();
                    packet[6..8].copy_from_slice(&fragment);
                    packets.push(packet);
                }
            }
            for packet in packets {
                for tags in [vec![], vec![10], vec![20, 30]] {
                    frames.push((tags, packet.clone()));
                }
            }
        }
    }
    Ok(frames)
}

/// The frame on the wire; `beside`: its outermost tag as the kernel holds it, beside the packet.
fn ethernet(tags: &[u16], packet: &[u8], beside: bool) -> Vec<u8> {
    let tags = if beside {
        tags.get(1..).unwrap_or_default()
    } else {
        tags
    };
    let kind = if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd };
    traffic::ethernet([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1], tags, kind, packet)
}

/// Sends the frames, and makes sure that each is accounted for.
fn one_run(net: &Net, sent: &[(Vec<u16>, Vec<u8>)], expression: &str) -> Result<End> {
    let run = Fwtrace::start(&net.r, &[expression])?;
    net.a.run(|| {
        sent.iter()
            .try_for_each(|(tags, packet)| traffic::frame("a0", &ethernet(tags, packet, false)))
    })?;
    let end = run.interrupt()?;
    let accounted = end.count("shown")? + end.count("filtered")? + end.count("lost")?;
    ensure!(end.count("seen")? == accounted, "{}", end.summary);
    Ok(end)
}

#[test]
fn as_tcpdump_has_it() -> Result<()> {
    let net = Net::routed()?;
    nft::load(
        &net.r,
        "table netdev t { chain c { type filter hook ingress device \"r0\" priority 0
            counter drop
        }\n}",
    )?;
    let dir = tempfile::tempdir()?;
    let sent = frames(&net)?;
    let mut report = String::new();
    let mut total = 0;
    for expression in [
        "udp",
        "port 80",
        "tcp and port 80",
        "ip6 and dst port 80",
        "src port 53 or ip6",
        "ip6 protochain 17",
        "ip6[6] = 44",
        "ip[6:2] & 0x1fff != 0",
        "vlan",
        "vlan 10 and udp port 80",
        "vlan 20 and vlan 30 and ip6",
        "not vlan and ip",
        "ether dst 02:00:00:00:00:02 and not udp",
        "ether src 02:00:00:00:00:02",
        "less 62",
    ] {
        let about_tags = expression.contains("vlan");
        let seen: Vec<_> = sent
            .iter()
            .map(|(tags, packet)| ethernet(tags, packet, !about_tags))
            .collect();
        let expected = tcpdump(dir.path(), &seen, expression)?;
        total += expected.len();
        let mut end = one_run(&net, &sent, expression)?;
        // A drop within a drop, which the kernel skips, is counted and no fault of the expression.
        for _ in 0..3 {
            if end.count("lost")? > 0 {
                end = one_run(&net, &sent, expression)?;
            }
        }
        // What the kernel sends of its own accord, such as neighbour discovery, is to no port.
        let is_sent = |json: &serde_json::Value| {
            json["packet"]["src"] == "10.1.0.1" || json["packet"]["src"] == "fd01::1"
        };
        let shown = end
            .drops
            .iter()
            .filter(|d| is_sent(&d.json) && d.json["packet"]["proto"] != "icmpv6")
            .count();
        if shown != expected.len() {
            report += &format!(
                "{expression}: {shown} shown, tcpdump has {}: {expected:?}\n",
                expected.len()
            );
        }
    }
    ensure!(report.is_empty(), "{report}");
    e2e::report(&format!(
        "expressions: {} frames, {total} matches as tcpdump's",
        sent.len()
    ));
    Ok(())
}

/// Drops by the firewall that were not shown: others come from the kernel's own packets, too.
fn hidden(end: &End) -> Result<u64> {
    let other = end.summary["other"].as_object().context("no reasons")?;
    let other: u64 = other.values().filter_map(serde_json::Value::as_u64).sum();
    Ok(end.count("filtered")? - other)
}

#[test]
fn a_deep_byte_is_captured_and_an_unknown_one_is_told_of() -> Result<()> {
    let net = Net::routed()?;
    nft::load(
        &net.r,
        "table inet t {
            chain in { type filter hook input priority 0; udp dport 4700 counter drop; }
            chain out { type filter hook output priority 0; udp dport 4701 counter drop; }
        }",
    )?;
    let mut run = Fwtrace::start(&net.r, &["udp[1100] = 7 and udp[1101] = 8"])?;
    let (src, dst) = net.path(A, R, false, (4600, 4700));
    let mut payload = vec![7; 1200];
    net.a.run(|| traffic::datagram(src, dst, &payload))?;
    payload[1101 - 8] = 8;
    net.a.run(|| traffic::datagram(src, dst, &payload))?;
    let shown = run.next_drop()?.json;
    ensure!(shown["packet"]["dport"] == 4700, "{shown}");
    let end = run.interrupt()?;
    ensure!(
        end.drops.is_empty() && hidden(&end)? == 1,
        "{}",
        end.summary
    );
    ensure!(!end.stderr.contains("unknown"), "{}", end.stderr);

    // On its way out a packet has no Ethernet address yet.
    let mut run = Fwtrace::start(&net.r, &["ether host 02:00:00:00:00:77 and udp"])?;
    udp(&net, A, R, false, (4600, 4700));
    udp(&net, R, A, false, (4600, 4701));
    let shown = run.next_drop()?.json;
    ensure!(shown["packet"]["dport"] == 4701, "{shown}");
    let end = run.interrupt()?;
    ensure!(
        end.drops.is_empty() && hidden(&end)? == 1,
        "{}",
        end.summary
    );
    ensure!(
        end.stderr
            .contains("1 packet had bytes unknown that the expression asks for"),
        "{}",
        end.stderr
    );
    Ok(())
}

#[test]
fn the_program_is_tcpdumps() -> Result<()> {
    for expression in [
        "tcp and dst net 10.0.0.0/8 and not port 22",
        "vlan 10 and (host fd00::1 or ip6 protochain 6)",
        "tcp[(tcp[12] & 0xf0) >> 2:4] = 0x47455420",
    ] {
        let ours = fwtrace::run(None, &["-d", expression])?;
        let ours = String::from_utf8(ours.stdout)?;
        let theirs = Command::new("tcpdump")
            .args(["-y", "EN10MB", "-d", expression])
            .output()?;
        let theirs = String::from_utf8(theirs.stdout)?;
        let program: Vec<_> = ours
            .lines()
            .filter(|l| !l.starts_with('#'))
            .map(str::trim_end)
            .collect();
        let expected: Vec<_> = theirs.lines().map(str::trim_end).collect();
        ensure!(
            !expected.is_empty() && program == expected,
            "{ours}\n{theirs}"
        );
    }
    Ok(())
}

#[test]
fn wrong_ones_and_no_library() -> Result<()> {
    for (args, why) in [
        (&["tcp prot 80"][..], "syntax error"),
        (&["tcp and udp"], "rejects all packets"),
        (&["-d", "port 99999"], "99999"),
    ] {
        let out = fwtrace::run(None, args)?;
        let text = String::from_utf8_lossy(&out.stderr);
        ensure!(
            out.status.code() == Some(2) && text.contains(why),
            "{args:?}: {text}"
        );
        ensure!(out.stdout.is_empty());
    }
    // Libraries that are none, found before the real one.
    let dir = tempfile::tempdir()?;
    for name in ["libpcap.so.0.8", "libpcap.so.1", "libpcap.so"] {
        std::fs::write(dir.path().join(name), "no library")?;
    }
    let run = |args: &[&str]| {
        Command::new(fwtrace::binary()?)
            .args(args)
            .env("LD_LIBRARY_PATH", dir.path())
            .output()
            .context("fwtrace")
    };
    let out = run(&["-d", "tcp"])?;
    let text = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.code() == Some(1), "{}: {text}", out.status);
    ensure!(
        text.contains("filter expressions take libpcap") && text.contains("install it"),
        "{text}"
    );
    // Nothing else takes it.
    ensure!(run(&["--help"])?.status.success());
    Ok(())
}
