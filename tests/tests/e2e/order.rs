//! Base chains of one priority on one hook, and of that of connection tracking and address translation: which comes first is what the
//! kernel's list of the hook says.

use anyhow::{Context, Result, ensure};
use e2e::expect::at;
use e2e::fwtrace::{Drop, Fwtrace};
use e2e::net::{Net, Place};
use e2e::nft::{self, Rule, Ruleset};
use e2e::traffic;

use crate::support::{end_well, udp};

use Place::{A, B, R};

const PORT: u16 = 3800;

/// A table with one base chain on input that drops, at this priority.
fn dropping(family: &str, name: &str, priority: i32) -> String {
    format!(
        "table {family} {name} {{ chain in {{ type filter hook input priority {priority}\n\
         udp dport {PORT} counter drop comment \"{name}\"\n}}\n}}\n"
    )
}

/// Changes the ruleset, in one transaction.
fn add(net: &Net, commands: &str) -> Result<()> {
    net.r.command(&["nft", "-f", "-"], commands).map(drop)
}

/// The comment of the one of these rules whose counter has moved since.
fn moved(before: &Ruleset, net: &Net) -> Result<String> {
    let after = nft::list(&net.r)?;
    let counted = |ruleset: &Ruleset, rule: &Rule| {
        let same = |other: &&Rule| other.table == rule.table && other.handle == rule.handle;
        ruleset
            .rules
            .iter()
            .find(same)
            .and_then(|rule| rule.packets)
    };
    let moved: Vec<_> = after
        .rules
        .iter()
        .filter(|rule| rule.packets != counted(before, rule))
        .collect();
    ensure!(moved.len() == 1, "scenario: {moved:?}");
    moved[0].comment.clone().context("no comment")
}

/// The evaluator, which the kernel tells nothing of the rule, names this one and no other.
fn is_computed(drop: &Drop, comment: &str) -> Result<()> {
    let event = &drop.json;
    ensure!(
        at(event, "evidence.confidence") == "computed",
        "expected {comment}: {event}"
    );
    ensure!(at(event, "rule.comment") == comment, "{comment}: {event}");
    Ok(())
}

fn start(net: &Net) -> Result<Fwtrace> {
    let port = PORT.to_string();
    Fwtrace::start(&net.r, &["--evidence", "evaluator", "--port", &port])
}

/// Sends a datagram from A to R; the rule whose counter moved is the one that is named. Gives its comment.
fn dropped_by(net: &Net, fwtrace: &mut Fwtrace, v6: bool) -> Result<String> {
    dropped(net, fwtrace, || udp(net, A, R, v6, (4800, PORT)))
}

/// Likewise of a packet that is sent so.
fn dropped(net: &Net, fwtrace: &mut Fwtrace, send: impl FnOnce()) -> Result<String> {
    let before = nft::list(&net.r)?;
    send();
    let drop = fwtrace.next_drop()?;
    let moved = moved(&before, net)?;
    is_computed(&drop, &moved)?;
    Ok(moved)
}

#[test]
fn of_chains_with_one_priority_the_one_is_named_that_the_kernel_calls_first() -> Result<()> {
    let net = Net::routed()?;
    add(&net, &dropping("ip", "one", 0))?;
    add(&net, &dropping("inet", "two", 0))?;
    add(&net, &dropping("ip", "three", 0))?;
    let mut fwtrace = start(&net)?;
    let mut seen = vec![dropped_by(&net, &mut fwtrace, false)?];
    // The family's own tables are not in the list of IPv6.
    add(&net, &dropping("ip6", "four", 0))?;
    seen.push(dropped_by(&net, &mut fwtrace, true)?);
    // Each in turn goes to the end of the tables, and to another place in the list.
    for name in ["one", "two", "three"] {
        let family = if name == "two" { "inet" } else { "ip" };
        let again = format!(
            "delete table {family} {name}\n{}",
            dropping(family, name, 0)
        );
        add(&net, &again)?;
        seen.push(dropped_by(&net, &mut fwtrace, false)?);
        add(&net, &format!("delete table {family} {name}"))?;
        seen.push(dropped_by(&net, &mut fwtrace, false)?);
        add(&net, &dropping(family, name, 0))?;
        seen.push(dropped_by(&net, &mut fwtrace, false)?);
    }
    // Out of the list and into it again, without a change of handles.
    add(&net, "table ip one { flags dormant; }")?;
    seen.push(dropped_by(&net, &mut fwtrace, false)?);
    add(&net, "table ip one { }")?;
    seen.push(dropped_by(&net, &mut fwtrace, false)?);
    e2e::report(&format!("the order of four tables: {}", seen.join(" ")));
    for name in ["one", "two", "three", "four"] {
        ensure!(seen.iter().any(|seen| seen == name), "{name}: {seen:?}");
    }
    end_well(fwtrace)
}

#[test]
fn a_legacy_table_and_a_chain_of_its_priority_are_told_apart() -> Result<()> {
    for nft_first in [true, false] {
        let net = Net::routed()?;
        let load_nft = || add(&net, &dropping("ip", "nft", 0));
        if nft_first {
            load_nft()?;
        }
        e2e::legacy::run(
            &net.r,
            false,
            &format!("-A INPUT -p udp --dport {PORT} -j DROP"),
        )?;
        if !nft_first {
            load_nft()?;
        }
        let mut fwtrace = start(&net)?;
        udp(&net, A, R, false, (4800, PORT));
        let event = fwtrace.next_drop()?.json;
        let legacy = e2e::legacy::list(&net.r, false, "filter")?;
        let by_legacy = legacy.iter().any(|rule| rule.packets > 0);
        let by_nft = nft::list(&net.r)?
            .commented("nft")
            .and_then(|rule| rule.packets)
            == Some(1);
        ensure!(by_legacy != by_nft, "scenario: {legacy:?}");
        let engine = if by_nft {
            "nf_tables"
        } else {
            "xtables-legacy"
        };
        e2e::report(&format!("nft first: {nft_first}, dropped by {engine}"));
        ensure!(
            at(&event, "evidence.confidence") == "computed",
            "{by_nft}: {event}"
        );
        let named = at(&event, "rule.comment") == "nft";
        ensure!(named == by_nft, "{by_nft}: {event}");
        end_well(fwtrace)?;
    }
    Ok(())
}

#[test]
fn a_chain_with_the_priority_of_tracking_sees_the_connection_only_behind_it() -> Result<()> {
    let table = |name: &str| {
        format!(
            "table ip {name} {{ chain pre {{ type filter hook prerouting priority -200\n\
             udp dport {PORT} ct state new counter drop comment \"{name} behind\"\n\
             udp dport {PORT} ct state invalid counter drop comment \"{name} before\"\n}}\n}}\n"
        )
    };
    let net = Net::routed()?;
    // Tracking is registered for the rule, after the chain.
    add(&net, &table("one"))?;
    let mut fwtrace = start(&net)?;
    let mut seen = vec![dropped_by(&net, &mut fwtrace, false)?];
    // Tracking is there already.
    add(&net, &table("two"))?;
    seen.push(dropped_by(&net, &mut fwtrace, false)?);
    add(&net, "delete table ip two")?;
    seen.push(dropped_by(&net, &mut fwtrace, false)?);
    ensure!(
        seen == ["one behind", "two before", "one behind"],
        "{seen:?}"
    );
    end_well(fwtrace)
}

#[test]
fn a_chain_with_the_priority_of_translation_sees_either_address() -> Result<()> {
    let to = PORT + 1;
    let filter = format!(
        "table ip f {{ chain pre {{ type filter hook prerouting priority -100\n\
         udp dport {PORT} counter drop comment \"before\"\n\
         udp dport {to} counter drop comment \"behind\"\n}}\n}}\n"
    );
    let nat = format!(
        "table ip n {{ chain pre {{ type nat hook prerouting priority -100\n\
         udp dport {PORT} redirect to :{to}\n}}\n}}\n"
    );
    let mut seen = Vec::new();
    for tables in [[&filter, &nat], [&nat, &filter]] {
        let net = Net::routed()?;
        for table in tables {
            add(&net, table)?;
        }
        let mut fwtrace = Fwtrace::start(&net.r, &["--evidence", "evaluator"])?;
        seen.push(dropped_by(&net, &mut fwtrace, false)?);
        end_well(fwtrace)?;
    }
    ensure!(seen == ["behind", "before"], "{seen:?}");
    Ok(())
}

/// A base chain that drops on these devices.
fn on_devices(family: &str, hook: &str, table: &str, chain: &str, devices: &str) -> String {
    format!(
        "table {family} {table} {{ chain {chain} {{ type filter hook {hook} devices = {{ {devices} }} priority 0\n\
         udp dport {PORT} counter drop comment \"{table} {chain}\"\n}}\n}}\n"
    )
}

/// Each device has a list of its own: table `one` has a chain on `r0`, table `two`, of this family, one on both, then `one` another
/// on `r1`. Packets come by `r0` and by `r1`.
fn each_device(hook: &str, family: &str, paths: [(Place, Place); 2]) -> Result<()> {
    let net = Net::routed()?;
    let on_r0 = on_devices("netdev", hook, "one", "a", "r0");
    let on_r1 = on_devices("netdev", hook, "one", "b", "r1");
    let on_both = on_devices(family, hook, "two", "c", "r0, r1");
    add(&net, &on_r0)?;
    add(&net, &on_both)?;
    add(&net, &on_r1)?;
    let mut fwtrace = start(&net)?;
    let mut both = |what: &str, expected: [&str; 2]| -> Result<()> {
        for v6 in [false, true] {
            for ((from, to), expected) in paths.into_iter().zip(expected) {
                let send = || udp(&net, from, to, v6, (4800, PORT));
                let seen = dropped(&net, &mut fwtrace, send)?;
                ensure!(seen == expected, "scenario: {what}, {hook}: {seen}");
            }
        }
        Ok(())
    };
    both("as they came", ["two c", "one b"])?;
    add(&net, &format!("delete table {family} two\n{on_both}"))?;
    both("deleted and added again", ["two c", "two c"])?;
    add(&net, &format!("delete table {family} two"))?;
    both("deleted", ["one a", "one b"])?;
    add(&net, &on_both)?;
    both("added again", ["two c", "two c"])?;
    add(&net, &format!("delete chain netdev one a\n{on_r0}"))?;
    both("a chain anew", ["one a", "two c"])?;
    // Out of the lists and into them again, without a change of handles.
    add(&net, &format!("table {family} two {{ flags dormant; }}"))?;
    both("asleep", ["one a", "one b"])?;
    add(&net, &format!("table {family} two {{ }}"))?;
    both("awake", ["two c", "two c"])?;
    end_well(fwtrace)
}

#[test]
fn of_two_chains_on_ingress_the_one_is_named_that_the_device_calls_first() -> Result<()> {
    for family in ["netdev", "inet"] {
        each_device("ingress", family, [(A, R), (B, R)])?;
    }
    Ok(())
}

#[test]
fn of_two_chains_on_egress_the_one_is_named_that_the_device_calls_first() -> Result<()> {
    // One is sent, the other is forwarded.
    each_device("egress", "netdev", [(R, A), (A, B)])
}

/// Three tables with a chain of one priority, which `send` goes by. Each is deleted and added again.
fn three_tables(
    net: &Net,
    table: impl Fn(&str) -> String,
    family: &str,
    send: &dyn Fn(),
) -> Result<()> {
    let names = ["one", "two", "three"];
    for name in names {
        add(net, &table(name))?;
    }
    let mut fwtrace = Fwtrace::start(&net.r, &["--evidence", "evaluator"])?;
    let mut seen = vec![dropped(net, &mut fwtrace, send)?];
    for name in names {
        add(net, &format!("delete table {family} {name}"))?;
        seen.push(dropped(net, &mut fwtrace, send)?);
        add(net, &table(name))?;
        seen.push(dropped(net, &mut fwtrace, send)?);
        add(
            net,
            &format!("delete table {family} {name}\n{}", table(name)),
        )?;
        seen.push(dropped(net, &mut fwtrace, send)?);
    }
    e2e::report(&format!(
        "the order of three {family} tables: {}",
        seen.join(" ")
    ));
    let all = names
        .iter()
        .all(|name| seen.iter().any(|seen| seen == name));
    ensure!(all, "scenario: {seen:?}");
    end_well(fwtrace)
}

#[test]
fn of_chains_of_family_arp_the_first_is_named() -> Result<()> {
    let net = Net::routed()?;
    let table = |name: &str| {
        format!(
            "table arp {name} {{ chain in {{ type filter hook input priority 0\n\
             arp operation request counter drop comment \"{name}\"\n}}\n}}\n"
        )
    };
    let mac = [2, 0, 0, 0, 0x0a, 0];
    let mut request = vec![0, 1, 8, 0, 6, 4, 0, 1];
    request.extend(mac);
    request.extend([10, 1, 0, 1, 0, 0, 0, 0, 0, 0, 10, 1, 0, 2]);
    let frame = traffic::ethernet([0xff; 6], mac, &[], 0x0806, &request);
    three_tables(&net, table, "arp", &|| {
        let _ = net.a.run(|| traffic::frame("a0", &frame));
    })
}

#[test]
fn of_chains_of_family_bridge_the_first_is_named() -> Result<()> {
    for (hook, to) in [("forward", B), ("input", R)] {
        let net = Net::bridged()?;
        let table = |name: &str| {
            format!(
                "table bridge {name} {{ chain base {{ type filter hook {hook} priority 0\n\
                 udp dport {PORT} counter drop comment \"{name}\"\n}}\n}}\n"
            )
        };
        three_tables(&net, table, "bridge", &|| {
            udp(&net, A, to, false, (4800, PORT));
        })?;
    }
    Ok(())
}
