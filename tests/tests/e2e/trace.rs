//! `--trace`: the way of a packet through the rules is what the scenario, nft's listing and the counters say.

use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};
use e2e::expect::at;
use e2e::fwtrace::Fwtrace;
use e2e::net::{Net, Place};
use e2e::netns::Netns;
use e2e::nft;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{L4, Packet, end_well, udp};

use Place::{A, B, R};

/// Starts it with a directory for its notes that no other run uses.
pub(crate) fn start(ns: &Netns, notes: &TempDir, args: &[&str]) -> Result<Fwtrace> {
    let directory = format!("RUNTIME_DIRECTORY={}", notes.path().display());
    let mut all = vec!["--json"];
    all.extend(args);
    Fwtrace::start_under(Some(ns), &["env", &directory], &all)
}

/// Runs a command with its words separated by spaces.
fn run(ns: &Netns, command: &str) -> Result<String> {
    ns.command(&command.split(' ').collect::<Vec<_>>(), "")
}

/// With the kernel's stack beside the trace, and with the trace alone.
const EVIDENCE: [&[&str]; 2] = [&["--trace=0"], &["--trace=0", "--evidence", "engine"]];

/// From where to where, and the chain that drops.
const HOOKS: [(Place, Place, &str); 3] = [(A, R, "input"), (A, B, "forward"), (R, B, "output")];

/// Chains on three hooks, each with a jump, and a policy that drops.
fn ruleset() -> String {
    let mut text = "table inet t {
        chain sub {
            udp dport 9 counter drop comment \"other 1\"
            udp dport 3901 counter drop comment \"hit sub\"
            udp dport 3902 counter reject comment \"hit reject\"
            udp dport 3904 counter goto last comment \"pass goto\"
            udp dport 3903 counter return comment \"pass return\"
        }
        chain last {
            udp dport 3904 meta mark set 7 counter comment \"pass last\"
        }
        chain pre { type filter hook prerouting priority -10; policy accept
            udp dport 3900-3999 counter accept comment \"pass pre\"
        }\n"
    .to_owned();
    for (_, _, hook) in HOOKS {
        let _ = writeln!(
            text,
            "chain {hook} {{ type filter hook {hook} priority 0; policy drop
                meta l4proto {{ icmp, icmpv6, tcp }} accept
                udp dport 3901-3904 counter comment \"pass {hook} count\"
                udp dport 3901-3904 counter jump sub comment \"pass {hook} jump\"
            }}"
        );
    }
    text + "}"
}

/// The rules with these comments in the order of the path; "policy CHAIN" for a policy.
fn expected(listed: &nft::Ruleset, comments: &[String], verdicts: &[&str]) -> Result<Value> {
    let step = |(comment, verdict): (&String, &&str)| -> Result<Value> {
        if let Some(chain) = comment.strip_prefix("policy ") {
            return Ok(json!({"table": "t", "chain": chain, "number": null, "verdict": verdict}));
        }
        let rule = listed.commented(comment).context("no such rule")?;
        Ok(json!({
            "table": rule.table, "chain": rule.chain, "number": rule.number,
            "handle": rule.handle, "verdict": verdict
        }))
    };
    comments.iter().zip(verdicts).map(step).collect()
}

#[test]
fn the_way_through_nft_chains_is_the_kernels() -> Result<()> {
    let net = Net::routed()?;
    let notes = tempfile::tempdir()?;
    for args in EVIDENCE {
        nft::load(&net.r, &ruleset())?;
        let mut fwtrace = start(&net.r, &notes, args)?;
        let listed = nft::list(&net.r)?;
        for (from, to, hook) in HOOKS {
            let lead = |hits: &[&str]| -> Vec<String> {
                // What this machine sends does not pass PREROUTING.
                let pre = (from != R).then(|| "pass pre".to_owned());
                let here = ["count", "jump"].map(|word| format!("pass {hook} {word}"));
                let hits = hits.iter().map(|hit| (*hit).to_owned());
                pre.into_iter().chain(here).chain(hits).collect()
            };
            let policy = format!("policy {hook}");
            for (port, verdict, hits, verdicts) in [
                (3901, "drop", lead(&["hit sub"]), &["drop"][..]),
                (3902, "reject", lead(&["hit reject"]), &["reject"]),
                (
                    3903,
                    "drop",
                    lead(&["pass return", &policy]),
                    &["return", "policy drop"],
                ),
                (
                    3904,
                    "drop",
                    lead(&["pass goto", "pass last", &policy]),
                    &["goto last", "continue", "policy drop"],
                ),
            ] {
                for v6 in [false, true] {
                    let all: Vec<&str> = (from != R)
                        .then_some("accept")
                        .into_iter()
                        .chain(["continue", "jump sub"])
                        .chain(verdicts.iter().copied())
                        .collect();
                    let want = expected(&listed, &hits, &all)?;
                    udp(&net, from, to, v6, (4901, port));
                    let event = fwtrace.drop_to_port(port)?.json;
                    let context = format!("{args:?} {hook} {port} v6 {v6}: {event}");
                    ensure!(event["path"] == want, "expected {want}\n{context}");
                    ensure!(at(&event, "evidence.source") == "trace", "{context}");
                    ensure!(at(&event, "evidence.confidence") == "exact", "{context}");
                    ensure!(event["verdict"] == verdict, "{context}");
                    ensure!(event["engine"] == "nftables", "{context}");
                    ensure!(event["hook"] == hook, "{context}");
                    match hits.last().and_then(|last| listed.commented(last)) {
                        Some(rule) => {
                            ensure!(at(&event, "rule.handle") == rule.handle, "{context}");
                            ensure!(at(&event, "rule.number") == rule.number, "{context}");
                            ensure!(at(&event, "rule.base_chain") == hook, "{context}");
                            ensure!(
                                at(&event, "rule.comment")
                                    == *rule.comment.as_deref().unwrap_or_default(),
                                "{context}"
                            );
                        }
                        None => ensure!(at(&event, "policy.chain") == hook, "{context}"),
                    }
                }
            }
        }
        // Each packet was counted by each rule of its path once: the kernel agrees that it went that way.
        let counted = nft::list(&net.r)?;
        for (comment, packets) in [
            ("hit sub", 6),
            ("hit reject", 6),
            ("pass last", 6),
            ("pass pre", 16),
            ("other 1", 0),
        ] {
            let rule = counted.commented(comment).context("no rule")?;
            ensure!(rule.packets == Some(packets), "{rule:?}");
        }
        end_well(fwtrace)?;
    }
    Ok(())
}

/// The rule as `iptables-save` prints it.
fn saved(ns: &Netns, tool: &str, chain: &str, number: u64) -> Result<String> {
    let saved = run(ns, &format!("{tool}-save -t filter"))?;
    let start = format!("-A {chain} ");
    let mut rules = saved.lines().filter(|line| line.starts_with(&start));
    let rule = rules.nth(usize::try_from(number)? - 1);
    Ok(rule.context("no such rule")?.to_owned())
}

/// Packets of `-L CHAIN -v -x -n --line-numbers`, by rule.
fn counters(ns: &Netns, tool: &str, chain: &str) -> Result<Vec<(u64, u64)>> {
    let listed = run(ns, &format!("{tool} -nvxL {chain} --line-numbers"))?;
    let rules = listed.lines().skip(2);
    rules
        .map(|line| {
            let mut words = line.split_whitespace();
            let mut number = || words.next().and_then(|word| word.parse().ok());
            number().zip(number()).context("no rule")
        })
        .collect()
}

/// The rules of `iptables`, of one kind or the other: a jump, a rule behind it, a rule without matches at the end of the chain.
fn load_iptables(ns: &Netns, tool: &str, hook: &str) -> Result<()> {
    for rule in [
        format!("-N SUB{hook}"),
        format!("-A SUB{hook} -p udp --dport 9 -j ACCEPT"),
        format!("-A SUB{hook} -p udp --dport 3911 -j DROP"),
        format!("-A SUB{hook} -p udp --dport 3912 -j REJECT"),
        format!("-A {hook} -p udp --dport 3911:3914 -j SUB{hook}"),
        format!("-A {hook} -p udp --dport 3913 -j DROP"),
        format!("-A {hook} -p udp --dport 3914 -m mark --mark 0 -j MARK --set-mark 5"),
        format!("-A {hook} ! -p udp -j ACCEPT"),
        format!("-P {hook} DROP"),
    ] {
        run(ns, &format!("{tool} {rule}"))?;
    }
    Ok(())
}

#[test]
fn the_way_through_iptables_chains_is_the_kernels() -> Result<()> {
    let notes = tempfile::tempdir()?;
    for (legacy, tools) in [
        (false, ["iptables-nft", "ip6tables-nft"]),
        (true, ["iptables-legacy", "ip6tables-legacy"]),
    ] {
        let net = Net::routed()?;
        for tool in tools {
            for (_, _, hook) in HOOKS {
                load_iptables(&net.r, tool, &hook.to_uppercase())?;
            }
        }
        for args in EVIDENCE {
            let mut fwtrace = start(&net.r, &notes, args)?;
            for (from, to, hook) in HOOKS {
                for (v6, tool) in [(false, tools[0]), (true, tools[1])] {
                    iptables_drops(&net, &mut fwtrace, (from, to, hook), v6, tool, legacy)
                        .with_context(|| format!("{args:?} {hook} {tool}"))?;
                }
            }
            end_well(fwtrace)?;
        }
    }
    Ok(())
}

fn iptables_drops(
    net: &Net,
    fwtrace: &mut Fwtrace,
    (from, to, hook): (Place, Place, &str),
    v6: bool,
    tool: &str,
    legacy: bool,
) -> Result<()> {
    let builtin = hook.to_uppercase();
    let sub = format!("SUB{builtin}");
    for (port, chain, number, verdict, way) in [
        (3911, &sub, 2, "drop", vec![(&builtin, 1), (&sub, 2)]),
        (3912, &sub, 3, "reject", vec![(&builtin, 1), (&sub, 3)]),
        (
            3913,
            &builtin,
            2,
            "drop",
            vec![(&builtin, 1), (&builtin, 2)],
        ),
        (
            3914,
            &builtin,
            0,
            "drop",
            vec![(&builtin, 1), (&builtin, 3)],
        ),
    ] {
        let before = counters(&net.r, tool, chain)?;
        udp(net, from, to, v6, (4911, port));
        let event = fwtrace.drop_to_port(port)?.json;
        let after = counters(&net.r, tool, chain)?;
        ensure!(at(&event, "evidence.source") == "trace", "{event}");
        ensure!(at(&event, "evidence.confidence") == "exact", "{event}");
        ensure!(event["verdict"] == verdict, "{event}");
        let engine = if legacy {
            "iptables-legacy"
        } else {
            "iptables-nft"
        };
        ensure!(event["engine"] == engine, "{event}");
        let steps = event["path"].as_array().context("no path")?;
        // Ends of user chains stand in legacy's trace only.
        let numbered: Vec<(Value, Value)> = steps
            .iter()
            .filter(|step| !step["number"].is_null())
            .map(|step| (step["chain"].clone(), step["number"].clone()))
            .collect();
        let want: Vec<(Value, Value)> = way
            .into_iter()
            .map(|(chain, number)| (json!(chain), json!(number)))
            .collect();
        ensure!(numbered == want, "expected {want:?}: {event}");
        let last = steps.last().context("an empty path")?;
        if number == 0 {
            ensure!(last["verdict"] == "policy drop", "{event}");
            ensure!(at(&event, "policy.chain") == *builtin, "{event}");
            continue;
        }
        ensure!(last["verdict"] == verdict, "{event}");
        for (key, want) in [
            ("rule.family", json!(if v6 { "ip6" } else { "ip" })),
            ("rule.table", json!("filter")),
            ("rule.chain", json!(chain)),
            ("rule.number", json!(number)),
            ("rule.base_chain", json!(builtin)),
            ("rule.text", json!(saved(&net.r, tool, chain, number)?)),
        ] {
            ensure!(at(&event, key) == want, "{key}: {event}");
        }
        // The counter of that rule, and of no other that drops, has moved.
        for (old, new) in before.iter().zip(&after) {
            let moved = new.1 - old.1;
            let passed = chain == &builtin && new.0 == 1;
            let want = u64::from(new.0 == number || passed);
            ensure!(moved == want, "scenario: rule {} counted {moved}", new.0);
        }
    }
    Ok(())
}

/// On the way out of a device the packet still has its bit, and with another source address it is the same packet still.
#[test]
fn the_egress_of_a_device_is_traced_too() -> Result<()> {
    let net = Net::routed()?;
    let notes = tempfile::tempdir()?;
    nft::load(
        &net.r,
        "table ip n {
            chain post { type nat hook postrouting priority 100
                udp dport 3923 masquerade comment \"nat\"
            }
        }
        table netdev d {
            chain out { type filter hook egress device \"r1\" priority 0
                udp dport 3922-3923 counter drop comment \"hit\"
            }
        }",
    )?;
    let mut fwtrace = start(&net.r, &notes, EVIDENCE[1])?;
    for (from, port) in [(A, 3922), (R, 3922), (A, 3923)] {
        udp(&net, from, B, false, (4922, port));
        let event = fwtrace.drop_to_port(port)?.json;
        ensure!(at(&event, "evidence.source") == "trace", "{event}");
        ensure!(at(&event, "rule.comment") == "hit", "{event}");
        ensure!(event["hook"] == "egress", "{event}");
        let path = event["path"].as_array().context("no path")?;
        let last = path.last().context("an empty path")?;
        ensure!(last["table"] == "d" && last["verdict"] == "drop", "{event}");
        let nat = path
            .iter()
            .any(|step| step["chain"] == "post" && step["verdict"] == "accept");
        ensure!(nat == (port == 3923), "{event}");
    }
    end_well(fwtrace)
}

/// A TCP segment and an echo request.
#[test]
fn other_protocols_are_joined_too() -> Result<()> {
    let net = Net::routed()?;
    let notes = tempfile::tempdir()?;
    nft::load(
        &net.r,
        "table inet t { chain in { type filter hook forward priority 0
            tcp dport 3921 counter drop comment \"tcp\"
            meta l4proto { icmp, icmpv6 } counter drop comment \"icmp\"
        }\n}",
    )?;
    let mut fwtrace = start(&net.r, &notes, EVIDENCE[1])?;
    for v6 in [false, true] {
        for (l4, comment) in [(L4::Tcp, "tcp"), (L4::Icmp, "icmp")] {
            let packet = Packet {
                l4,
                v6,
                from: A,
                to: B,
                ports: (4921, 3921),
            };
            packet.send(&net)?;
            let event = fwtrace.next_drop()?.json;
            ensure!(packet.is_of(&net, &event), "{packet:?}: {event}");
            ensure!(at(&event, "rule.comment") == comment, "{event}");
            ensure!(at(&event, "evidence.source") == "trace", "{event}");
        }
    }
    end_well(fwtrace)
}

/// Datagrams that differ in nothing, dropped by two rules in turn: a trace says the right one or is not used.
#[test]
fn twins_are_not_mixed_up() -> Result<()> {
    let net = Net::routed()?;
    let notes = tempfile::tempdir()?;
    nft::load(
        &net.r,
        "table inet t { chain in { type filter hook input priority 0
            udp dport 3925 numgen inc mod 2 0 counter drop comment \"even\"
            udp dport 3925 counter drop comment \"odd\"
        }\n}",
    )?;
    let (src, dst) = net.path(A, R, true, (4925, 3925));
    for rate in ["--trace=0", "--trace=7"] {
        let mut exact = Fwtrace::start(&net.r, &["--port", "3925"])?;
        let mut traced = start(
            &net.r,
            &notes,
            &["--port", "3925", rate, "--evidence", "engine"],
        )?;
        net.a.run(|| -> Result<()> {
            // On one processor: from two, the order of drops would not be the same for both runs.
            let mut one = nix::sched::CpuSet::new();
            one.set(nix::sched::sched_getcpu()?)?;
            nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &one)?;
            let socket = std::net::UdpSocket::bind(src)?;
            for _ in 0..200 {
                socket.send_to(b"twin", dst)?;
            }
            Ok(())
        })?;
        let mut used = 0;
        for (stack, trace) in exact.next_drops(200)?.iter().zip(traced.next_drops(200)?) {
            ensure!(
                at(&stack.json, "evidence.source") == "kernel-stack",
                "{}",
                stack.json
            );
            if at(&trace.json, "evidence.source") == "trace" {
                used += 1;
                let (got, want) = (
                    at(&trace.json, "rule.handle"),
                    at(&stack.json, "rule.handle"),
                );
                ensure!(
                    got == want,
                    "{rate}: {got}, the stack says {want}: {}",
                    trace.json
                );
            }
        }
        // Where all are traced, none is in doubt.
        ensure!(used == 200 || rate != "--trace=0", "{used} of 200");
        end_well(exact)?;
        end_well(traced)?;
    }
    Ok(())
}
