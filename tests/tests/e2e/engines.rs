//! Firewalls that are not nft's own: iptables on nf_tables is as exact, legacy iptables is not guessed.

use anyhow::{Context, Result, ensure};
use e2e::expect::at;
use e2e::fwtrace::Fwtrace;
use e2e::net::{Net, Place};
use e2e::{nft, wait_until};
use serde_json::Value;

use crate::support::{end_well, udp};

use Place::{A, B, R};

#[test]
fn iptables_nft_rules_have_handles_and_their_own_syntax() -> Result<()> {
    let net = Net::routed()?;
    let mut fwtrace = Fwtrace::start(&net.r, &[])?;
    for (command, v6) in [("iptables-nft", false), ("ip6tables-nft", true)] {
        let iptables = |args: &str| {
            let mut argv = vec![command];
            argv.extend(args.split(' '));
            net.r.command(&argv, "")
        };
        iptables("-N SUB")?;
        iptables("-A INPUT -p udp --dport 9 -j ACCEPT")?;
        iptables("-A INPUT -p udp --dport 3951 -j DROP")?;
        iptables("-A INPUT -p udp --dport 3952 -j REJECT")?;
        iptables("-A INPUT -p udp --dport 3953 -j SUB")?;
        iptables("-A SUB -m comment --comment never -p udp --dport 9 -j DROP")?;
        iptables("-A SUB -j DROP")?;
        let listed = nft::list(&net.r)?;
        let family = if v6 { "ip6" } else { "ip" };
        for (port, chain, number, verdict) in [
            (3951, "INPUT", 2, "drop"),
            (3952, "INPUT", 3, "reject"),
            (3953, "SUB", 2, "drop"),
        ] {
            udp(&net, A, R, v6, (4951, port));
            let event = fwtrace.drop_to_port(port)?.json;
            let rule = listed
                .rules
                .iter()
                .find(|r| r.family == family && r.chain == chain && r.number == number);
            let rule = rule.context("no rule")?;
            let saved = saved_rule(&net, command, chain, number)?;
            for (path, expected) in [
                ("engine", Value::from("iptables-nft")),
                ("rule.text", Value::from(saved)),
                ("rule.family", Value::from(family)),
                ("rule.table", Value::from("filter")),
                ("rule.chain", Value::from(chain)),
                ("rule.base_chain", Value::from("INPUT")),
                ("rule.number", Value::from(number)),
                ("rule.handle", Value::from(rule.handle)),
                ("verdict", Value::from(verdict)),
                ("evidence.confidence", Value::from("exact")),
            ] {
                let got = at(&event, path);
                ensure!(
                    got == expected,
                    "{path}: {got}, expected {expected}: {event}"
                );
            }
        }
    }
    end_well(fwtrace)
}

/// The rule with this `--line-numbers` number, as iptables itself writes it.
fn saved_rule(net: &Net, command: &str, chain: &str, number: u64) -> Result<String> {
    let number = number.to_string();
    let saved = net.r.command(&[command, "-S", chain, &number], "")?;
    Ok(saved.trim_end().to_owned())
}

/// Not one match or target of xtables in the table: neither the rule nor the policy is nft's for that.
#[test]
fn iptables_nft_without_extensions_is_told() -> Result<()> {
    let net = Net::routed()?;
    let mut fwtrace = Fwtrace::start(&net.r, &[])?;
    for (command, v6) in [("iptables-nft", false), ("ip6tables-nft", true)] {
        for args in ["-A INPUT -p udp --dport 3955 -j DROP", "-P FORWARD DROP"] {
            let mut argv = vec![command];
            argv.extend(args.split(' '));
            net.r.command(&argv, "")?;
        }
        udp(&net, A, R, v6, (4955, 3955));
        let event = fwtrace.drop_to_port(3955)?.json;
        ensure!(event["engine"] == "iptables-nft", "{event}");
        let expected = "-A INPUT -p udp -m udp --dport 3955 -j DROP";
        ensure!(at(&event, "rule.text") == expected, "{event}");
        udp(&net, A, B, v6, (4956, 3956));
        let event = fwtrace.drop_to_port(3956)?.json;
        ensure!(event["engine"] == "iptables-nft", "{event}");
        ensure!(at(&event, "policy.chain") == "FORWARD", "{event}");
    }
    end_well(fwtrace)
}

/// The kernel keeps the index of a set: the name is asked for, of a set that was there and of one made later.
#[test]
fn sets_of_ipset_have_their_names() -> Result<()> {
    let net = Net::routed()?;
    let block = |set: &str, port: u16| -> Result<String> {
        let make = format!("create {set} hash:net\nadd {set} 10.0.0.0/8\n");
        net.r.command(&["ipset", "restore"], &make)?;
        let rule = format!("-A INPUT -p udp -m udp --dport {port} -m set --match-set {set} src");
        let rule = format!("{rule} -j DROP");
        let mut argv = vec!["iptables-nft"];
        argv.extend(rule.split(' '));
        net.r.command(&argv, "")?;
        Ok(rule)
    };
    let before = block("before", 3957)?;
    let mut fwtrace = Fwtrace::start(&net.r, &[])?;
    let after = block("after", 3958)?;
    let mut text = |port| {
        udp(&net, A, R, false, (4957, port));
        let event = fwtrace.drop_to_port(port)?.json;
        anyhow::Ok(at(&event, "rule.text"))
    };
    ensure!(text(3957)? == before, "{before}");
    // A drop by a rule of the last moment may come before the name.
    let mut last = Value::Null;
    wait_until(|| {
        last = text(3958).unwrap_or_default();
        last == after
    });
    ensure!(last == after, "{after}: {last}");
    end_well(fwtrace)
}

/// Nobody tells that an ipset has been changed: a drop just after that is not judged by what it held before.
#[test]
fn a_changed_ipset_is_not_taken_for_what_it_was() -> Result<()> {
    let net = Net::routed()?;
    net.r
        .command(&["ipset", "create", "fickle", "hash:net"], "")?;
    for rule in ["-m set --match-set fickle src -j DROP", "-j DROP"] {
        let rule = format!("-A INPUT -p udp --dport 3959 {rule}");
        let mut argv = vec!["iptables-nft"];
        argv.extend(rule.split(' '));
        net.r.command(&argv, "")?;
    }
    let mut fwtrace = Fwtrace::start(&net.r, &["--evidence", "evaluator"])?;
    let mut answer = || {
        udp(&net, A, R, false, (4959, 3959));
        let event = fwtrace.drop_to_port(3959)?.json;
        let computed = at(&event, "evidence.confidence") == "computed";
        anyhow::Ok(computed.then(|| at(&event, "rule.number")))
    };
    for (verb, number) in [("add", 1), ("del", 2)].into_iter().cycle().take(20) {
        net.r
            .command(&["ipset", verb, "fickle", "10.1.0.0/24"], "")?;
        // Known again once two readings have found the same.
        let mut last = None;
        let known = wait_until(|| {
            last = answer().ok().flatten();
            last.is_some()
        });
        ensure!(known, "never computed again");
        ensure!(last == Some(number.into()), "{verb}: {last:?}");
    }
    end_well(fwtrace)
}

#[test]
fn a_legacy_rule_is_not_guessed() -> Result<()> {
    let net = Net::routed()?;
    let mut fwtrace = Fwtrace::start(&net.r, &[])?;
    // A rule of nf_tables beside it that could have been.
    nft::load(
        &net.r,
        "table inet t { chain in { type filter hook input priority 10\n\
         udp dport 3961 counter drop comment \"not reached\"\n}\n}",
    )?;
    let append = "iptables-legacy -A INPUT -p udp --dport 3961 -j DROP";
    net.r.command(&append.split(' ').collect::<Vec<_>>(), "")?;
    udp(&net, A, R, false, (4961, 3961));
    let listed = nft::list(&net.r)?;
    let nft_rule = listed.commented("not reached").context("no rule")?;
    ensure!(nft_rule.packets == Some(0), "scenario: {nft_rule:?}");
    let event = fwtrace.drop_to_port(3961)?.json;
    ensure!(event["reason"] == "NETFILTER_DROP", "{event}");
    ensure!(event["verdict"] == "drop", "{event}");
    ensure!(event["engine"] == "iptables-legacy", "{event}");
    ensure!(event["hook"] == "input", "{event}");
    ensure!(event["policy"].is_null(), "{event}");
    // The table is a moment old: either it has been taken in by now, or its rule is not known.
    if at(&event, "evidence.confidence") == "exact" {
        ensure!(
            at(&event, "evidence.source") == "kernel-counters",
            "{event}"
        );
        ensure!(at(&event, "rule.table") == "filter", "{event}");
        ensure!(at(&event, "rule.chain") == "INPUT", "{event}");
        ensure!(at(&event, "rule.number") == 1, "{event}");
    } else {
        ensure!(
            at(&event, "evidence.source") != "kernel-counters",
            "{event}"
        );
    }
    end_well(fwtrace)
}

/// Without slots: engine, hook, and whether a rule or a policy did it; never a rule.
#[test]
fn without_the_stack_the_engine_and_the_hook_are_known() -> Result<()> {
    let net = Net::routed()?;
    nft::load(
        &net.r,
        "table inet t {
            chain in { type filter hook input priority 0; policy drop
                udp dport 3962 counter drop
                ip protocol icmp accept
            }
            chain fw { type filter hook forward priority 0
                udp dport 3962 counter drop
            }
            chain pre { type filter hook prerouting priority 0
                udp dport 3964 counter drop
            }
            chain out { type filter hook output priority 0
                udp dport 3962 counter drop
            }
        }",
    )?;
    let mut fwtrace = Fwtrace::start(&net.r, &["--evidence", "engine"])?;
    for (from, to, port, hook, by) in [
        (A, R, 3962, "input", "rule"),
        (A, R, 3963, "input", "policy"),
        (A, B, 3962, "forward", "rule"),
        (A, R, 3964, "prerouting", "rule"),
        (R, B, 3962, "output", "rule"),
    ] {
        for v6 in [false, true] {
            udp(&net, from, to, v6, (4962, port));
            let event = fwtrace.drop_to_port(port)?.json;
            ensure!(
                event["rule"].is_null() && event["policy"].is_null(),
                "{event}"
            );
            ensure!(event["engine"] == "nftables", "{event}");
            ensure!(event["hook"] == hook, "{hook}: {event}");
            ensure!(at(&event, "evidence.source") == "engine", "{event}");
            ensure!(at(&event, "evidence.confidence") == "engine", "{event}");
            ensure!(at(&event, "evidence.decided_by") == by, "{by}: {event}");
        }
    }
    end_well(fwtrace)
}

#[test]
fn long_names_are_whole() -> Result<()> {
    let net = Net::routed()?;
    let mut fwtrace = Fwtrace::start(&net.r, &[])?;
    let (table, chain) = ("t".repeat(120), "c".repeat(120));
    // Two that are the same as far as a record can hold them.
    nft::load(
        &net.r,
        &format!(
            "table inet {table} {{ chain {chain}1 {{ udp dport 3971 counter drop\n}}\n\
             chain {chain}2 {{ udp dport 3972 counter drop\n}}\n\
             chain {chain} {{ type filter hook input priority 0\njump {chain}1\njump {chain}2\n}}\n}}"
        ),
    )?;
    let listed = nft::list(&net.r)?;
    for (port, suffix) in [(3971, "1"), (3972, "2")] {
        udp(&net, A, R, false, (4971, port));
        let event = fwtrace.drop_to_port(port)?.json;
        let name = format!("{chain}{suffix}");
        let rule = listed.rules.iter().find(|r| r.chain == name);
        let rule = rule.context("no rule")?;
        ensure!(at(&event, "rule.table") == table, "{event}");
        ensure!(at(&event, "rule.chain") == name, "{event}");
        ensure!(at(&event, "rule.base_chain") == chain, "{event}");
        ensure!(at(&event, "rule.handle") == rule.handle, "{event}");
    }
    end_well(fwtrace)
}
