//! Packets that rules log over NFLOG stand with the drops that they end in. The oracle is what nft lists: handles, numbers, counters.

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::expect::at;
use e2e::fwtrace::{End, Fwtrace};
use e2e::net::{Net, Place};
use e2e::{nft, wait_until};
use serde_json::Value;

use crate::support::{hit, same, udp, want};

/// Drops and logs what goes to this port.
const DNS: &str = "table inet t { chain in { type filter hook input priority 0
    udp dport 53 counter log group 5 prefix \"dns \" drop comment \"hit\"
}\n}";

/// The group, the prefix and the rule (table, chain, number) of an entry of `log`.
pub(crate) type Entry<'a> = (u64, &'a str, Option<(&'a str, &'a str, u64)>);

fn entry(log: &Value) -> Entry<'_> {
    let rule = &log["rule"];
    let name = |key| rule[key].as_str().unwrap_or_default();
    let number = rule["number"].as_u64();
    let rule = number.map(|number| (name("table"), name("chain"), number));
    (
        log["group"].as_u64().unwrap_or(u64::MAX),
        log["prefix"].as_str().unwrap_or_default(),
        rule,
    )
}

pub(crate) fn entries(event: &Value) -> Vec<Entry<'_>> {
    let logs = event["log"].as_array();
    logs.into_iter().flatten().map(entry).collect()
}

/// Sends so many datagrams through one socket.
pub(crate) fn flood(net: &Net, count: usize, dst: SocketAddr, src: SocketAddr) -> Result<()> {
    net.a.run(|| -> Result<()> {
        let socket = UdpSocket::bind(src)?;
        for _ in 0..count {
            socket.send_to(b"flood", dst)?;
        }
        Ok(())
    })
}

pub(crate) fn logged(end: &End, key: &str) -> Result<u64> {
    end.summary["logged"][key]
        .as_u64()
        .with_context(|| format!("no logged.{key} in {}\n{}", end.summary, end.stderr))
}

/// What was told to be lost of NFLOG.
fn lost(fwtrace_said: &[String]) -> u64 {
    let lines = fwtrace_said.iter();
    let objects = lines.filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let lost = objects.filter(|o| o["type"] == "lost" && o["source"] == "nflog");
    lost.filter_map(|o| o["count"].as_u64()).sum()
}

#[test]
fn one_datagram_is_one_event_with_its_log() -> Result<()> {
    let net = Net::routed()?;
    nft::load(&net.r, DNS)?;
    let mut fwtrace = Fwtrace::start(&net.r, &[])?;
    udp(&net, Place::A, Place::R, false, (4053, 53));
    let drop = fwtrace.next_drop()?;
    let ruleset = hit(&net, 1)?;
    same(&drop, &want(&net, &ruleset, (4053, 53))?)?;
    let event = &drop.json;
    let rule = ruleset.commented("hit").context("no rule")?;
    ensure!(event["log"][0]["rule"] == event["rule"], "{event}");
    ensure!(at(event, "log").as_array().is_some_and(|l| l.len() == 1));
    ensure!(
        entries(event) == [(5, "dns ", Some(("t", "in", rule.number)))],
        "{event}"
    );
    ensure!(at(event, "rule.handle") == rule.handle, "{event}");
    ensure!(at(event, "conntrack.state") == "none", "{event}");
    let end = fwtrace.interrupt()?;
    ensure!(end.status.success() && end.drops.is_empty(), "{end:?}");
    for (key, count) in [
        ("received", 1),
        ("joined", 1),
        ("passed", 0),
        ("missing", 0),
    ] {
        ensure!(logged(&end, key)? == count, "{key}: {}", end.summary);
    }
    Ok(())
}

/// So many that the kernel hands them over in many batches, and with a tiny buffer not all.
const MANY: u64 = 10_000;

/// Floods, waits for the drops, ends it; the end, and how many of the events have their log.
fn flooded(net: &Net, args: &[&str]) -> Result<(End, u64)> {
    let mut fwtrace = Fwtrace::start(&net.r, args)?;
    let (src, dst) = net.path(Place::A, Place::R, false, (4053, 53));
    flood(net, usize::try_from(MANY)?, dst, src)?;
    let mut with_log = 0;
    for drop in fwtrace.next_drops(usize::try_from(MANY)?)? {
        let event = &drop.json;
        ensure!(at(event, "evidence.confidence") == "exact", "{event}");
        ensure!(at(event, "rule.comment") == "hit", "{event}");
        with_log += match entries(event)[..] {
            [(5, "dns ", Some(("t", "in", 1)))] => 1,
            [] => 0,
            _ => anyhow::bail!("{event}"),
        };
    }
    // One more, when all is quiet: its number tells of what was lost before it.
    udp(net, Place::A, Place::R, false, (4054, 53));
    let last = fwtrace.next_drop()?.json;
    ensure!(at(&last, "packet.sport") == 4054, "{last}");
    ensure!(entries(&last).len() == 1, "{last}");
    let end = fwtrace.interrupt()?;
    ensure!(end.status.success() && end.drops.is_empty(), "{end:?}");
    ensure!(end.count("shown")? == MANY + 1, "{}", end.summary);
    ensure!(end.count("lost")? == 0, "{}", end.summary);
    hit(net, MANY + 1)?;
    Ok((end, with_log))
}

#[test]
fn ten_thousand_datagrams_have_ten_thousand_logs() -> Result<()> {
    let net = Net::routed()?;
    nft::load(&net.r, DNS)?;
    let (end, with_log) = flooded(&net, &[])?;
    ensure!(with_log == MANY, "{with_log}: {}", end.summary);
    ensure!(logged(&end, "joined")? == MANY + 1, "{}", end.summary);
    for key in ["passed", "filtered", "unknown", "missing", "lost"] {
        ensure!(logged(&end, key)? == 0, "{key}: {}", end.summary);
    }
    Ok(())
}

#[test]
fn what_a_tiny_buffer_loses_is_told_exactly() -> Result<()> {
    let net = Net::routed()?;
    nft::load(&net.r, DNS)?;
    let (end, with_log) = flooded(&net, &["--nflog-buffer", "4096"])?;
    let missing = MANY - with_log;
    ensure!(missing > 0, "scenario: nothing was lost");
    ensure!(logged(&end, "missing")? == missing, "{}", end.summary);
    ensure!(
        logged(&end, "lost")? == missing,
        "{missing}: {}",
        end.summary
    );
    ensure!(lost(&end.stdout) == missing, "{:?}", end.stdout.last());
    for key in ["received", "joined"] {
        ensure!(logged(&end, key)? == with_log + 1, "{key}: {}", end.summary);
    }
    ensure!(
        end.stderr.contains("logged packets were lost"),
        "{}",
        end.stderr
    );
    Ok(())
}

#[test]
fn several_groups_in_several_namespaces() -> Result<()> {
    let net = Net::routed()?;
    for (ns, chain) in [(&net.r, "r"), (&net.b, "b")] {
        nft::load(
            ns,
            &format!(
                "table inet t {{ chain {chain} {{ type filter hook input priority 0
                    udp dport 3951 log group 51 prefix \"one {chain}\"
                    udp dport 3952 log group 52 prefix \"two {chain}\"
                    udp dport 3951-3952 log group 52
                    udp dport 3951-3952 counter drop
                }}\n}}"
            ),
        )?;
    }
    for groups in ["auto", "51-52", "52"] {
        let watched = format!("{},{}", net.r.name(), net.b.name());
        let mut fwtrace = Fwtrace::start(&net.a, &["-N", &watched, "--nflog", groups])?;
        for (to, chain) in [(Place::R, "r"), (Place::B, "b")] {
            let (one, two) = (format!("one {chain}"), format!("two {chain}"));
            let both = (52, "", Some(("t", chain, 3)));
            for (port, first) in [
                (3951, (51, one.as_str(), Some(("t", chain, 1)))),
                (3952, (52, two.as_str(), Some(("t", chain, 2)))),
            ] {
                udp(&net, Place::A, to, false, (4951, port));
                let event = fwtrace.next_drop()?.json;
                ensure!(at(&event, "packet.dport") == port, "{event}");
                ensure!(at(&event, "rule.number") == 4, "{event}");
                let want = match groups == "52" && first.0 == 51 {
                    true => vec![both],
                    false => vec![first, both],
                };
                ensure!(entries(&event) == want, "{groups}: {want:?}: {event}");
            }
        }
        let end = fwtrace.interrupt()?;
        ensure!(end.status.success(), "{}", end.stderr);
        ensure!(logged(&end, "passed")? == 0, "{}", end.summary);
        ensure!(logged(&end, "missing")? == 0, "{}", end.summary);
    }
    Ok(())
}

#[test]
fn none_and_no_logging_rule_listen_to_nothing() -> Result<()> {
    let net = Net::routed()?;
    let listeners = || {
        net.r
            .run(|| std::fs::read_to_string("/proc/thread-self/net/netfilter/nfnetlink_log"))
    };
    for (ruleset, args) in [(DNS, &["--nflog", "none"][..]), ("flush ruleset", &[])] {
        nft::load(&net.r, ruleset)?;
        let fwtrace = Fwtrace::start(&net.r, args)?;
        ensure!(listeners()?.is_empty(), "{}", listeners()?);
        let end = fwtrace.interrupt()?;
        ensure!(end.summary.get("logged").is_none(), "{}", end.summary);
    }
    Ok(())
}

#[test]
fn a_rule_that_comes_later_is_listened_to_and_one_that_goes_is_not() -> Result<()> {
    let net = Net::routed()?;
    let groups = || -> Result<Vec<u32>> {
        let read = || std::fs::read_to_string("/proc/thread-self/net/netfilter/nfnetlink_log");
        let text = net.r.run(read)?;
        let first = |line: &str| line.split_whitespace().next()?.parse().ok();
        Ok(text.lines().filter_map(first).collect())
    };
    let mut fwtrace = Fwtrace::start(&net.r, &[])?;
    ensure!(groups()?.is_empty());
    nft::load(&net.r, DNS)?;
    ensure!(
        wait_until(|| groups().is_ok_and(|g| g == [5])),
        "{:?}",
        groups()
    );
    udp(&net, Place::A, Place::R, false, (4053, 53));
    let event = fwtrace.next_drop()?.json;
    ensure!(entries(&event).len() == 1, "{event}");
    ensure!(event["log"][0]["rule"] == event["rule"], "{event}");
    // iptables of both kinds; nobody tells of the legacy one.
    for (tool, group) in [("iptables-nft", 8), ("iptables-legacy", 9)] {
        let rule = format!("-A INPUT -p udp --dport 53 -j NFLOG --nflog-group {group}");
        let words: Vec<&str> = rule.split(' ').collect();
        net.r.command(&[&[tool], &words[..]].concat(), "")?;
        ensure!(
            wait_until(|| groups().is_ok_and(|g| g.contains(&group))),
            "{:?}",
            groups()
        );
    }
    net.r.command(&["iptables-legacy", "-F"], "")?;
    net.r.command(&["nft", "flush", "ruleset"], "")?;
    ensure!(
        wait_until(|| groups().is_ok_and(|g| g.is_empty())),
        "{:?}",
        groups()
    );
    let end = fwtrace.interrupt()?;
    ensure!(end.status.success() && end.drops.is_empty(), "{end:?}");
    Ok(())
}

/// The kernel gives a group to one program.
#[test]
fn a_group_that_another_has_is_told_with_its_name_and_taken_when_free() -> Result<()> {
    let net = Net::routed()?;
    nft::load(&net.r, DNS)?;
    let mut first = Fwtrace::start(&net.r, &[])?;
    let mut second = Fwtrace::start(&net.r, &[])?;
    udp(&net, Place::A, Place::R, false, (4053, 53));
    let event = first.next_drop()?.json;
    ensure!(entries(&event).len() == 1, "{event}");
    let event = second.next_drop()?.json;
    ensure!(at(&event, "rule.comment") == "hit", "{event}");
    ensure!(entries(&event).is_empty(), "{event}");
    let pid = first.pid();
    first.interrupt()?;
    let port = || -> Result<String> {
        let read = || std::fs::read_to_string("/proc/thread-self/net/netfilter/nfnetlink_log");
        Ok(net.r.run(read)?)
    };
    ensure!(
        wait_until(|| port().is_ok_and(|p| !p.is_empty())),
        "not taken"
    );
    udp(&net, Place::A, Place::R, false, (4053, 53));
    let event = second.next_drop()?.json;
    ensure!(entries(&event).len() == 1, "{event}");
    let end = second.interrupt()?;
    let said = format!(
        "NFLOG group 5 of network namespace {} cannot be listened to: fwtrace (process {pid}) has it; drops are shown without what is logged there",
        net.r.name()
    );
    ensure!(end.stderr.matches(&said).count() == 1, "{}", end.stderr);
    ensure!(
        end.stderr.contains("is free; fwtrace has it now"),
        "{}",
        end.stderr
    );
    Ok(())
}

/// tcpdump is such a program.
#[test]
fn a_group_that_tcpdump_has() -> Result<()> {
    let net = Net::routed()?;
    nft::load(&net.r, DNS)?;
    let mut tcpdump = net.r.run(|| {
        std::process::Command::new("tcpdump")
            .args(["-ni", "nflog:5", "-c", "1"])
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
    })?;
    let read = || std::fs::read_to_string("/proc/thread-self/net/netfilter/nfnetlink_log");
    let bound = wait_until(|| net.r.run(read).is_ok_and(|text| !text.is_empty()));
    ensure!(bound, "tcpdump does not listen");
    let mut fwtrace = Fwtrace::start(&net.r, &["--nflog", "5"])?;
    udp(&net, Place::A, Place::R, false, (4053, 53));
    let event = fwtrace.next_drop()?.json;
    ensure!(entries(&event).is_empty(), "{event}");
    // It got its packet.
    ensure!(tcpdump.wait()?.success());
    let end = fwtrace.interrupt()?;
    let said = format!("tcpdump (process {}) has it", tcpdump.id());
    ensure!(end.stderr.contains(&said), "{}", end.stderr);
    Ok(())
}

/// Logged on its way in, with the address that the sender wrote; dropped with another.
#[test]
fn a_log_before_address_translation_is_joined() -> Result<()> {
    let net = Net::routed()?;
    nft::load(
        &net.r,
        "table inet t {
            chain pre { type filter hook prerouting priority -300
                udp dport { 3961, 3962 } log group 61 prefix \"in: \"
            }
            chain nat { type nat hook prerouting priority -100
                udp dport 3961 dnat ip to 10.2.0.1:3999
            }
            chain ahead { type filter hook forward priority 0
                udp dport { 3999, 3962 } log group 62 counter drop comment \"hit\"
            }
        }",
    )?;
    let mut fwtrace = Fwtrace::start(&net.r, &[])?;
    for (to, port, now) in [(Place::R, 3961, 3999), (Place::B, 3962, 3962)] {
        udp(&net, Place::A, to, false, (4961, port));
        let event = fwtrace.next_drop()?.json;
        ensure!(at(&event, "rule.comment") == "hit", "{event}");
        ensure!(at(&event, "packet.dport") == now, "{event}");
        ensure!(
            entries(&event)
                == [
                    (61, "in: ", Some(("t", "pre", 1))),
                    (62, "", Some(("t", "ahead", 1)))
                ],
            "{event}"
        );
    }
    let end = fwtrace.interrupt()?;
    ensure!(logged(&end, "joined")? == 4, "{}", end.summary);
    ensure!(logged(&end, "passed")? == 0, "{}", end.summary);
    Ok(())
}

/// Both kinds of iptables, with their numbers.
#[test]
fn nflog_rules_of_iptables() -> Result<()> {
    for tool in ["iptables-nft", "iptables-legacy"] {
        let net = Net::routed()?;
        for rule in [
            "-N SUB",
            "-A SUB -p udp --dport 3972 -j NFLOG --nflog-group 72 --nflog-prefix sub",
            "-A SUB -p udp --dport 3971:3972 -j DROP",
            "-A INPUT -p udp --dport 3971 -j NFLOG --nflog-group 71 --nflog-prefix in:",
            "-A INPUT -j SUB",
        ] {
            let words: Vec<&str> = rule.split(' ').collect();
            net.r.command(&[&[tool], &words[..]].concat(), "")?;
        }
        let mut fwtrace = Fwtrace::start(&net.r, &[])?;
        for (port, want) in [
            (3971, (71, "in:", Some(("filter", "INPUT", 1)))),
            (3972, (72, "sub", Some(("filter", "SUB", 1)))),
        ] {
            udp(&net, Place::A, Place::R, false, (4971, port));
            let event = fwtrace.next_drop()?.json;
            ensure!(event["engine"] == tool, "{event}");
            ensure!(at(&event, "rule.number") == 2, "{event}");
            ensure!(entries(&event) == [want], "{tool}: {want:?}: {event}");
        }
        let end = fwtrace.interrupt()?;
        ensure!(end.status.success(), "{}", end.stderr);
        ensure!(logged(&end, "passed")? == 0, "{}", end.summary);
    }
    Ok(())
}

/// SYNs that the kernel sends again are drops of their own, each with its own log; what was accepted has none.
#[test]
fn a_syn_that_is_sent_again_and_what_is_accepted() -> Result<()> {
    let net = Net::routed()?;
    nft::load(
        &net.r,
        "table inet t { chain in { type filter hook input priority 0
            tcp dport 3981 log group 81 prefix \"syn\" counter drop comment \"hit\"
            udp dport 3982 log group 81 prefix \"ok\" accept
            udp dport 3983 log group 81 prefix \"other\" accept
        }\n}",
    )?;
    let mut fwtrace = Fwtrace::start(&net.r, &["--port", "3981,3982"])?;
    let (_, dst) = net.path(Place::A, Place::R, true, (4981, 3981));
    // The kernel sends the second one after a second.
    let refused = net
        .a
        .run(|| TcpStream::connect_timeout(&dst, Duration::from_millis(1500)));
    ensure!(refused.is_err(), "scenario: connected");
    for _ in 0..5 {
        udp(&net, Place::A, Place::R, false, (4982, 3982));
        udp(&net, Place::A, Place::R, false, (4983, 3983));
    }
    let mut times = Vec::new();
    for drop in fwtrace.next_drops(2)? {
        ensure!(
            entries(&drop.json) == [(81, "syn", Some(("t", "in", 1)))],
            "{}",
            drop.json
        );
        times.push(drop.json["time"].to_string());
    }
    ensure!(times[0] < times[1], "{times:?}");
    let end = fwtrace.interrupt()?;
    ensure!(end.status.success() && end.drops.is_empty(), "{end:?}");
    for (key, count) in [
        ("received", 12),
        ("joined", 2),
        ("passed", 5),
        ("filtered", 5),
    ] {
        ensure!(logged(&end, key)? == count, "{key}: {}", end.summary);
    }
    ensure!(
        end.stderr.contains("NFLOG: 5 logged and not dropped"),
        "{}",
        end.stderr
    );
    Ok(())
}

/// What waits for its log does not let others pass.
#[test]
fn drops_stay_in_order() -> Result<()> {
    let net = Net::routed()?;
    nft::load(
        &net.r,
        "table inet t { chain in { type filter hook input priority 0
            udp dport 3991 log group 91 drop
            udp dport 3992 drop
        }\n}",
    )?;
    let mut fwtrace = Fwtrace::start(&net.r, &[])?;
    let ports = [3991_u16, 3992, 3992, 3991, 3992];
    let (src, to) = net.path(Place::A, Place::R, false, (4991, 0));
    net.a.run(|| -> Result<()> {
        let socket = UdpSocket::bind(src)?;
        for port in ports.iter().cycle().take(200) {
            socket.send_to(b"order", SocketAddr::new(to.ip(), *port))?;
        }
        Ok(())
    })?;
    for (port, drop) in ports.iter().cycle().zip(fwtrace.next_drops(200)?) {
        let event = &drop.json;
        ensure!(at(event, "packet.dport") == *port, "{port}: {event}");
        let logs = usize::from(*port == 3991);
        ensure!(entries(event).len() == logs, "{event}");
    }
    let end = fwtrace.interrupt()?;
    ensure!(logged(&end, "joined")? == 80, "{}", end.summary);
    ensure!(logged(&end, "missing")? == 0, "{}", end.summary);
    Ok(())
}

/// The kernel's trace of iptables-legacy comes over group 0, which has one listener; other groups are not touched by that.
#[test]
fn the_trace_has_group_0_to_itself() -> Result<()> {
    let net = Net::routed()?;
    let notes = tempfile::tempdir()?;
    nft::load(
        &net.r,
        "table inet t { chain in { type filter hook input priority -1
            udp dport 3993 log group 0 log group 93 prefix \"x\" counter drop comment \"hit\"
        }\n}",
    )?;
    let rule = "iptables-legacy -A INPUT -p udp --dport 3994 -j DROP";
    net.r.command(&rule.split(' ').collect::<Vec<_>>(), "")?;
    let mut fwtrace = crate::trace::start(&net.r, &notes, &["--trace=0"])?;
    for (port, logs) in [(3993, 1), (3994, 0)] {
        udp(&net, Place::A, Place::R, false, (4993, port));
        let event = fwtrace.drop_to_port(port)?.json;
        ensure!(at(&event, "evidence.source") == "trace", "{event}");
        ensure!(entries(&event).len() == logs, "{event}");
    }
    let end = fwtrace.interrupt()?;
    let said = "NFLOG group 0 of network namespace";
    ensure!(end.stderr.matches(said).count() == 1, "{}", end.stderr);
    ensure!(end.stderr.contains("--trace has it"), "{}", end.stderr);
    ensure!(logged(&end, "missing")? == 0, "{}", end.summary);
    Ok(())
}

/// Logs of packets that the filter or the expression does not want are not taken for packets that were let through.
#[test]
fn logs_of_drops_that_are_filtered_out_are_no_accepted_packets() -> Result<()> {
    let net = Net::routed()?;
    nft::load(&net.r, DNS)?;
    for args in [
        &["--port", "54"][..],
        &["--proto", "tcp"],
        &["-i", "r1"],
        &["udp", "and", "src", "port", "4052"],
    ] {
        let fwtrace = Fwtrace::start(&net.r, args)?;
        udp(&net, Place::A, Place::R, false, (4053, 53));
        let end = fwtrace.interrupt()?;
        ensure!(end.status.success() && end.drops.is_empty(), "{end:?}");
        ensure!(logged(&end, "filtered")? == 1, "{args:?}: {}", end.summary);
        ensure!(logged(&end, "passed")? == 0, "{args:?}: {}", end.summary);
    }
    Ok(())
}

/// Whoever names a group sees what is logged to it, each packet once: with its drop, or for itself.
#[test]
fn a_group_that_is_named_is_shown_whole_and_nothing_twice() -> Result<()> {
    const PACKETS: usize = 20;
    let net = Net::routed()?;
    nft::load(
        &net.r,
        "table inet t { chain in { type filter hook input priority 0
            udp dport 53 counter log group 5 prefix \"dns \" drop comment \"hit\"
            udp dport 54 counter log group 5 prefix \"ok \" accept comment \"ok\"
            udp dport 55 log group 6 prefix \"other \" accept
        }\n}",
    )?;
    let mut fwtrace = Fwtrace::start(&net.r, &["--nflog", "5"])?;
    for _ in 0..PACKETS {
        for port in [55, 54, 53] {
            udp(&net, Place::A, Place::R, false, (4000 + port, port));
        }
    }
    let mut events = Vec::new();
    for _ in 0..2 * PACKETS {
        events.push(serde_json::from_str::<Value>(&fwtrace.next_line()?)?);
    }
    let end = fwtrace.interrupt()?;
    ensure!(end.status.success() && end.count("shown")? == PACKETS as u64);
    ensure!(
        end.stdout.len() == 2 * PACKETS + 1,
        "{} lines",
        end.stdout.len()
    );
    let ruleset = hit(&net, PACKETS as u64)?;
    let accepted = ruleset.commented("ok").context("no rule")?;
    ensure!(accepted.packets == Some(PACKETS as u64), "{accepted:?}");
    for (kind, port, verdict, log) in [
        ("drop", 53, "drop", (5, "dns ", Some(("t", "in", 1)))),
        ("log", 54, "accept", (5, "ok ", Some(("t", "in", 2)))),
    ] {
        let of_kind = events.iter().filter(|event| event["type"] == kind);
        let of_kind: Vec<_> = of_kind.collect();
        ensure!(of_kind.len() == PACKETS, "{kind}: {}", of_kind.len());
        for event in of_kind {
            ensure!(at(event, "packet.dport") == port, "{event}");
            ensure!(at(event, "verdict") == verdict, "{event}");
            ensure!(entries(event) == [log], "{event}");
        }
    }
    for (key, count) in [
        ("received", 2 * PACKETS),
        ("joined", PACKETS),
        ("passed", PACKETS),
    ] {
        let told = logged(&end, key)?;
        ensure!(told == count as u64, "{key}: {}", end.summary);
    }
    Ok(())
}
