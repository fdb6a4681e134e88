//! Without eBPF: packets that rules log over NFLOG, and what the rules behind have done with them. The oracle is what nft and iptables
//! list: handles, numbers, counters.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use e2e::expect::at;
use e2e::fwtrace::{self, Fwtrace};
use e2e::net::{Net, Place};
use e2e::nft::Ruleset;
use e2e::{legacy, nft, wait_until};
use serde_json::Value;

use crate::support::udp;

/// What is expected of a logged packet.
struct Case {
    /// It goes to this port; its source port is 4000 more.
    port: u16,
    /// `drop`, `reject`, `accept`; empty: not known.
    verdict: &'static str,
    confidence: &'static str,
    /// Comment of the rule that drops it.
    rule: Option<&'static str>,
    /// Comments of those that it can have been.
    candidates: &'static [&'static str],
    /// Comment of the rule that has logged it.
    log: Option<&'static str>,
}

const RULES: &str = r#"table inet t {
    chain in { type filter hook input priority 0
        ct state established accept
        udp dport 53 counter log group 5 prefix "dns " drop comment "direct"
        udp dport 54 log group 5 prefix "limited " comment "l54"
        udp dport 54 limit rate 1/hour burst 1 packets counter drop comment "limit"
        udp dport 55 log group 6 accept comment "l55"
        udp dport 56 log group 6 prefix "jump " jump refuse comment "l56"
        udp dport 57 log group 5 prefix "late " comment "l57"
        udp dport { 58, 158 } jump twice
        udp dport 59 log group 5 prefix "same " counter drop comment "same1"
        ip saddr != 10.99.99.99 udp dport 60 limit rate 1/hour burst 1 packets log group 5 prefix "same2 " accept comment "s1"
        udp dport 60 log group 5 prefix "same2 " counter drop comment "s2"
    }
    chain refuse {
        counter reject comment "refuse"
    }
    chain twice {
        log group 6 prefix "sub " comment "l58"
        udp dport 158 counter drop comment "sub158"
    }
    chain last { type filter hook input priority 10
        udp dport 57 counter drop comment "late"
        udp dport 58 counter accept
    }
}"#;

const CASES: &[Case] = &[
    Case {
        port: 53,
        verdict: "drop",
        confidence: "computed",
        rule: Some("direct"),
        candidates: &[],
        log: Some("direct"),
    },
    Case {
        port: 54,
        verdict: "",
        confidence: "ambiguous",
        rule: None,
        candidates: &["limit"],
        log: Some("l54"),
    },
    Case {
        port: 55,
        verdict: "accept",
        confidence: "computed",
        rule: None,
        candidates: &[],
        log: Some("l55"),
    },
    Case {
        port: 56,
        verdict: "reject",
        confidence: "computed",
        rule: Some("refuse"),
        candidates: &[],
        log: Some("l56"),
    },
    Case {
        port: 57,
        verdict: "drop",
        confidence: "computed",
        rule: Some("late"),
        candidates: &[],
        log: Some("l57"),
    },
    Case {
        port: 58,
        verdict: "accept",
        confidence: "computed",
        rule: None,
        candidates: &[],
        log: Some("l58"),
    },
    Case {
        port: 158,
        verdict: "drop",
        confidence: "computed",
        rule: Some("sub158"),
        candidates: &[],
        log: Some("l58"),
    },
    Case {
        port: 59,
        verdict: "drop",
        confidence: "computed",
        rule: Some("same1"),
        candidates: &[],
        log: Some("same1"),
    },
    // One of two rules that log alike: which, and so what became of it, depends on a limit.
    Case {
        port: 60,
        verdict: "",
        confidence: "ambiguous",
        rule: None,
        candidates: &["s2"],
        log: None,
    },
];

/// The object, a drop or not.
fn next(fwtrace: &mut Fwtrace) -> Result<Value> {
    Ok(serde_json::from_str(&fwtrace.next_line()?)?)
}

/// Comment and handle of a rule as fwtrace tells them are those that nft lists.
fn check_rule(told: &Value, comment: Option<&str>, ruleset: &Ruleset) -> Result<()> {
    let Some(comment) = comment else {
        ensure!(told.is_null(), "{told}");
        return Ok(());
    };
    let rule = ruleset.commented(comment).context("no such rule")?;
    ensure!(at(told, "handle") == rule.handle, "{comment}: {told}");
    ensure!(at(told, "number") == rule.number, "{comment}: {told}");
    ensure!(at(told, "chain") == *rule.chain, "{comment}: {told}");
    Ok(())
}

fn check(event: &Value, case: &Case, ruleset: &Ruleset) -> Result<()> {
    let dropped = matches!(case.verdict, "drop" | "reject");
    let kind = if dropped { "drop" } else { "log" };
    ensure!(at(event, "type") == kind, "{event}");
    ensure!(at(event, "packet.dport") == case.port, "{event}");
    ensure!(at(event, "packet.sport") == case.port + 4000, "{event}");
    match case.verdict {
        "" => ensure!(event["verdict"].is_null(), "{event}"),
        verdict => ensure!(at(event, "verdict") == verdict, "{event}"),
    }
    ensure!(at(event, "evidence.source") == "nflog", "{event}");
    ensure!(
        at(event, "evidence.confidence") == case.confidence,
        "{event}"
    );
    ensure!(
        at(event, "hook") == "input" && at(event, "iif") == "r0",
        "{event}"
    );
    ensure!(at(event, "engine") == "nftables", "{event}");
    check_rule(&event["rule"], case.rule, ruleset)?;
    let candidates = event["evidence"]["candidates"].as_array();
    let candidates = candidates.context("no candidates")?;
    ensure!(candidates.len() == case.candidates.len(), "{event}");
    for (told, comment) in candidates.iter().zip(case.candidates) {
        check_rule(&told["rule"], Some(comment), ruleset)?;
    }
    check_rule(&event["log"][0]["rule"], case.log, ruleset)?;
    // The rules ask for connections, so there is one.
    ensure!(at(event, "conntrack.state") == "new", "{event}");
    Ok(())
}

#[test]
fn what_rules_log_is_shown_with_what_became_of_it() -> Result<()> {
    let net = Net::routed()?;
    nft::load(&net.r, RULES)?;
    let mut fwtrace = Fwtrace::start(&net.r, &["--source", "nflog"])?;
    for case in CASES {
        udp(
            &net,
            Place::A,
            Place::R,
            false,
            (case.port + 4000, case.port),
        );
        let event = next(&mut fwtrace).with_context(|| format!("port {}", case.port))?;
        let ruleset = nft::list(&net.r)?;
        check(&event, case, &ruleset).with_context(|| format!("port {}", case.port))?;
        // What it says has dropped the packet has counted it.
        if let Some(comment) = case.rule {
            let rule = ruleset.commented(comment).context("no such rule")?;
            ensure!(rule.packets == Some(1), "{comment}: {rule:?}");
        }
    }
    let end = fwtrace.interrupt()?;
    ensure!(end.status.success(), "{}", end.stderr);
    ensure!(
        end.stderr.starts_with("sources: nflog groups 5, 6\n"),
        "{}",
        end.stderr
    );
    let count = u64::try_from(CASES.len())?;
    ensure!(end.count("seen")? == count && end.count("shown")? == count);
    ensure!(end.count("lost")? == 0 && end.count("filtered")? == 0);
    let logged = &end.summary["logged"];
    ensure!(logged["only"] == true, "{logged}");
    for (key, wanted) in [
        ("received", count),
        ("joined", 5),
        ("passed", 2),
        ("unknown", 2),
    ] {
        ensure!(logged[key] == wanted, "{key}: {logged}");
    }
    Ok(())
}

#[test]
fn a_filter_and_a_count_hold_for_logged_packets() -> Result<()> {
    let net = Net::routed()?;
    nft::load(&net.r, RULES)?;
    let args = ["--source", "nflog", "--port", "53,57", "-c", "2"];
    let mut fwtrace = Fwtrace::start(&net.r, &args)?;
    for port in [56, 53, 55, 57] {
        udp(&net, Place::A, Place::R, false, (4000 + port, port));
    }
    for port in [53, 57] {
        let event = next(&mut fwtrace)?;
        ensure!(at(&event, "packet.dport") == port, "{event}");
    }
    let end = fwtrace.wait()?;
    ensure!(end.status.success(), "{}", end.stderr);
    Ok(())
}

/// The rules of a chain as `iptables -L --line-numbers` numbers them; the second one drops.
fn iptables(net: &Net, load: impl FnOnce(&str) -> Result<()>, engine: &str) -> Result<()> {
    load(
        "*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:sub - [0:0]
-A INPUT -p udp --dport 53 -j sub
-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT
-A INPUT -p udp --dport 54 -j NFLOG --nflog-group 3 --nflog-prefix passes
-A sub -j NFLOG --nflog-group 2 --nflog-prefix \"ipt \"
-A sub -j DROP
COMMIT
",
    )?;
    let mut fwtrace = Fwtrace::start(&net.r, &["--source", "nflog"])?;
    udp(net, Place::A, Place::R, false, (4053, 53));
    let event = next(&mut fwtrace)?;
    for (key, value) in [
        ("type", "drop"),
        ("verdict", "drop"),
        ("engine", engine),
        ("evidence.source", "nflog"),
        ("evidence.confidence", "computed"),
        ("rule.text", "-A sub -j DROP"),
        ("rule.base_chain", "INPUT"),
        ("conntrack.state", "new"),
    ] {
        ensure!(at(&event, key) == value, "{key}: {event}");
    }
    ensure!(at(&event, "rule.number") == 2, "{event}");
    let log = &event["log"][0];
    ensure!(log["group"] == 2 && log["prefix"] == "ipt ", "{event}");
    ensure!(
        log["rule"]["chain"] == "sub" && log["rule"]["number"] == 1,
        "{event}"
    );
    udp(net, Place::A, Place::R, false, (4054, 54));
    let event = next(&mut fwtrace)?;
    ensure!(at(&event, "type") == "log", "{event}");
    ensure!(at(&event, "verdict") == "accept", "{event}");
    ensure!(event["log"][0]["rule"]["number"] == 3, "{event}");
    let end = fwtrace.interrupt()?;
    ensure!(end.status.success() && end.count("shown")? == 2, "{end:?}");
    Ok(())
}

#[test]
fn iptables_nft_is_told_as_iptables() -> Result<()> {
    let net = Net::routed()?;
    let load = |text: &str| {
        net.r.command(&["iptables-nft-restore"], text)?;
        Ok(())
    };
    iptables(&net, load, "iptables-nft")
}

#[test]
fn iptables_legacy_is_told_too() -> Result<()> {
    let net = Net::routed()?;
    iptables(
        &net,
        |text| legacy::restore(&net.r, false, text),
        "iptables-legacy",
    )?;
    // The rule that it names has counted the packet.
    let counted = legacy::list(&net.r, false, "filter")?;
    let dropped = counted
        .iter()
        .find(|rule| rule.chain == "sub" && rule.number == Some(2));
    ensure!(dropped.is_some_and(|rule| rule.packets == 1), "{counted:?}");
    Ok(())
}

/// Rules, a listener and a datagram in a user namespace that owns its network namespace and nothing else.
const INSIDE: &str = r#"
ip link set lo up
nft -f - <<'END'
table inet t {
    chain in { type filter hook input priority 0
        ct state established accept
        udp dport 53 counter log group 5 prefix "dns " drop comment "hit"
    }
}
END
"$0" --json -c 1 --ready-file "$1/ready" 2> "$1/stderr" &
until [ -e "$1/ready" ]; do kill -0 $! || exit 1; done
echo hello > /dev/udp/127.0.0.1/53
wait $!
nft -a list chain inet t in > "$1/rules"
"#;

#[test]
fn a_user_namespace_is_enough() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().to_str().context("no text")?;
    let binary = fwtrace::binary()?;
    let output = Command::new("timeout")
        .args(["60", "unshare", "-Urn", "bash", "-c", INSIDE])
        .arg(&binary)
        .arg(path)
        .output()?;
    let said = std::fs::read_to_string(dir.path().join("stderr")).unwrap_or_default();
    ensure!(output.status.success(), "{output:?}\n{said}");
    ensure!(
        said.starts_with("no eBPF (CAP_BPF does not count in a user namespace): only packets that NFLOG rules log are shown (nflog group 5)\n"),
        "{said}"
    );
    let stdout = String::from_utf8(output.stdout)?;
    let event: Value = serde_json::from_str(stdout.lines().next().context("nothing shown")?)?;
    let rules = std::fs::read_to_string(dir.path().join("rules"))?;
    let rule = rules.lines().find(|line| line.contains("hit"));
    let rule = rule.context("no rule")?;
    ensure!(rule.contains("packets 1 "), "{rule}");
    let handle: u64 = rule.rsplit(' ').next().context("no handle")?.parse()?;
    ensure!(at(&event, "rule.handle") == handle, "{event}");
    ensure!(at(&event, "log")[0]["prefix"] == "dns ", "{event}");
    ensure!(at(&event, "evidence.confidence") == "computed", "{event}");
    ensure!(at(&event, "conntrack.state") == "new", "{event}");
    ensure!(at(&event, "packet.dport") == 53, "{event}");
    Ok(())
}

#[test]
fn with_nothing_to_listen_to_the_cause_is_told() -> Result<()> {
    let output = Command::new("unshare")
        .args(["-Urn"])
        .arg(fwtrace::binary()?)
        .output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(3), "{output:?}");
    ensure!(stderr.contains("BPF"), "{stderr}");
    Ok(())
}

#[test]
fn rules_that_change_are_followed() -> Result<()> {
    let net = Net::routed()?;
    let mut fwtrace = Fwtrace::start(&net.r, &["--source", "nflog"])?;
    nft::load(&net.r, RULES)?;
    // The group is not listened to at once, and what was logged about then has no rule.
    let mut event = Value::Null;
    let mut port = 5000;
    let told = wait_until(|| {
        port += 1;
        udp(&net, Place::A, Place::R, false, (port, 53));
        let listening = std::iter::once_with(|| net.r.run(groups)).any(|groups| groups > 0);
        if listening {
            event = next(&mut fwtrace).unwrap_or_default();
        }
        at(&event, "type") == "drop"
    });
    ensure!(told, "{event}");
    check_rule(&event["rule"], Some("direct"), &nft::list(&net.r)?)?;
    let end = fwtrace.interrupt()?;
    ensure!(
        end.stderr.starts_with("sources: nflog, no group yet"),
        "{}",
        end.stderr
    );
    Ok(())
}

/// How many groups have a listener in this network namespace.
fn groups() -> usize {
    let listed = std::fs::read_to_string("/proc/thread-self/net/netfilter/nfnetlink_log");
    listed.unwrap_or_default().lines().count()
}

#[test]
fn sources_that_make_no_sense_are_refused() -> Result<()> {
    for (args, naming) in [
        (&["--source", "nflog", "--trace"][..], "trace"),
        (&["--source", "trace"], "trace"),
        (&["--source", "nflog", "--reason", "all"], "--reason"),
        (&["--source", "nflog", "-w", "/dev/null"], "-w"),
        (&["--source", "ebpf", "--nflog", "5"], "--nflog"),
        (&["--source", "nflog", "--nflog", "none"], "--nflog none"),
        (&["--source", "gossip"], "gossip"),
    ] {
        let output = fwtrace::run(None, args)?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(2), "{args:?}: {stderr}");
        ensure!(stderr.contains(naming), "{args:?}: {stderr}");
    }
    Ok(())
}
