//! `fwtrace rules`, `features` and `demo`.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use e2e::net::{Net, Place};
use e2e::{fwtrace, nft, system, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::udp;

use Place::{A, R};

const RULES: &str = "table inet t {
    set s { type ipv4_addr; flags interval; elements = { 10.0.0.0/8, 192.168.0.0/16 }; }
    chain sub { counter drop comment \"block web\"
    }
    chain in { type filter hook input priority -5; policy drop
        ct state established,related accept
        iifname \"lo\" accept
        meta l4proto icmpv6 accept
        udp dport 3901 counter accept
        tcp dport { 22, 80-90 } jump sub
        ip saddr @s udp dport 3902 counter reject with icmp type host-unreachable
        tcp dport vmap { 1 : accept, 2 : jump sub }
    }
}
table ip nat {
    chain post { type nat hook postrouting priority srcnat; oifname \"r1\" masquerade
    }
}
table netdev d {
    chain i { type filter hook ingress device \"r0\" priority 0; udp dport 9 drop
    }
}";

/// Lines of JSON that a command prints.
fn json_lines(net: &Net, args: &[&str]) -> Result<Vec<Value>> {
    let output = fwtrace::run(Some(&net.r), args)?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {stderr}", output.status);
    let text = String::from_utf8(output.stdout)?;
    let lines = text.lines().map(serde_json::from_str);
    lines
        .collect::<Result<_, _>>()
        .with_context(|| text.clone())
}

fn key(object: &Value) -> String {
    format!(
        "{} {} {} {}",
        object["family"], object["table"], object["chain"], object["handle"]
    )
}

#[test]
fn rules_are_nfts() -> Result<()> {
    let net = Net::routed()?;
    nft::load(&net.r, RULES)?;
    udp(&net, A, R, false, (4901, 3901));
    udp(&net, A, R, false, (4901, 3901));
    let lines = json_lines(&net, &["rules", "--json"])?;
    ensure!(lines.iter().all(|l| l["v"] == 1), "{lines:?}");
    // Texts with their state, as `nft -a list ruleset` has them.
    let listing = nft::text(&net.r)?;
    let listed = nft::list(&net.r)?;
    let printed: BTreeMap<String, &Value> = lines
        .iter()
        .filter(|l| l["type"] == "rule")
        .map(|l| (key(l), l))
        .collect();
    ensure!(printed.len() == listed.rules.len(), "{printed:#?}");
    for rule in &listed.rules {
        let expected = serde_json::json!({
            "family": rule.family, "table": rule.table, "chain": rule.chain, "handle": rule.handle
        });
        let rule_printed = printed
            .get(&key(&expected))
            .with_context(|| format!("no {rule:?}"))?;
        ensure!(rule_printed["engine"] == "nftables", "{rule_printed}");
        ensure!(
            rule_printed["number"] == rule.number,
            "{rule:?}: {rule_printed}"
        );
        ensure!(
            rule_printed["packets"].as_u64() == rule.packets,
            "{rule:?}: {rule_printed}"
        );
        let text = rule_printed["text"].as_str().context("no text")?;
        let line = format!("{text} # handle {}", rule.handle);
        ensure!(
            listing.lines().any(|l| l.trim() == line),
            "{line} is not in\n{listing}"
        );
    }
    let chains: HashMap<_, _> = lines
        .iter()
        .filter(|l| l["type"] == "chain")
        .map(|l| (l["chain"].as_str().unwrap_or_default(), l))
        .collect();
    ensure!(chains.len() == listed.chains.len(), "{chains:#?}");
    let input = chains.get("in").context("no chain in")?;
    ensure!(input["hook"] == "input", "{input}");
    ensure!(input["priority"] == -5, "{input}");
    ensure!(input["policy"] == "drop", "{input}");
    ensure!(
        chains["sub"].get("hook").is_none_or(Value::is_null),
        "{input}"
    );
    // Only one chain, for people.
    let output = fwtrace::run(Some(&net.r), &["rules", "--chain", "sub"])?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(text.contains("block web"), "{text}");
    ensure!(!text.contains("3901"), "{text}");
    Ok(())
}

/// Tables of iptables-nft in iptables' words, rules of nft among them in nft's.
#[test]
fn rules_of_iptables_are_iptables_saves() -> Result<()> {
    let net = Net::routed()?;
    net.r
        .command(&["ipset", "create", "blocked", "hash:ip"], "")?;
    for args in [
        "-N SUB",
        "-A INPUT -s 10.0.0.0/8 -p udp --dport 3903 -j SUB",
        "-A SUB -m comment --comment blocked -j REJECT",
        "-A SUB -m set --match-set blocked src -j DROP",
        "-P FORWARD DROP",
    ] {
        let mut argv = vec!["iptables-nft"];
        argv.extend(args.split(' '));
        net.r.command(&argv, "")?;
    }
    let of_nft = "ct state new counter packets 0 bytes 0 accept";
    let add = format!("add rule ip filter INPUT {of_nft}");
    net.r.command(&["nft", &add], "")?;
    udp(&net, A, R, false, (4903, 3903));
    let listed = nft::list(&net.r)?;
    let lines = json_lines(&net, &["rules", "--json"])?;
    let rules: Vec<&Value> = lines.iter().filter(|l| l["type"] == "rule").collect();
    ensure!(rules.len() == 4, "{rules:?}");
    let output = fwtrace::run(Some(&net.r), &["rules"])?;
    let text = String::from_utf8(output.stdout)?;
    for (chain, number, expected) in [
        (
            "INPUT",
            1,
            "-A INPUT -s 10.0.0.0/8 -p udp -m udp --dport 3903 -j SUB",
        ),
        ("INPUT", 2, of_nft),
        (
            "SUB",
            1,
            "-A SUB -m comment --comment blocked -j REJECT --reject-with icmp-port-unreachable",
        ),
    ] {
        let has = |rule: &&&Value| rule["chain"] == chain && rule["number"] == number;
        let printed = rules.iter().find(has).context(expected)?;
        let rule = listed.rules.iter();
        let mut rule = rule.filter(|rule| rule.chain == chain && rule.number == number);
        let rule = rule.next().context("not listed")?;
        ensure!(printed["engine"] == "iptables-nft", "{printed}");
        ensure!(printed["text"] == expected, "{printed}");
        ensure!(printed["handle"] == rule.handle, "{printed}");
        ensure!(printed["packets"].as_u64() == rule.packets, "{printed}");
        ensure!(
            printed["packets"] == u64::from(expected != of_nft),
            "{printed}"
        );
        let bytes = printed["bytes"].as_u64().context("no bytes")?;
        let line = if expected == of_nft {
            format!("# -A INPUT in nft's words: {expected}")
        } else {
            format!("[1:{bytes}] {expected}")
        };
        let line = format!("{line} # rule {number} (handle {})", rule.handle);
        ensure!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
    for line in ["*filter", ":FORWARD DROP [0:0]", ":SUB - [0:0]", "COMMIT"] {
        ensure!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
    let set = "-A SUB -m set --match-set blocked src -j DROP";
    ensure!(rules.iter().any(|rule| rule["text"] == set), "{rules:?}");
    ensure!(text.contains(set), "{text}");
    let commented = rules.iter().filter(|rule| rule["comment"] == "blocked");
    ensure!(commented.count() == 1, "{rules:?}");
    let output = fwtrace::run(Some(&net.r), &["rules", "--chain", "SUB", "--stateless"])?;
    let text = String::from_utf8(output.stdout)?;
    let rules: Vec<&str> = text.lines().filter(|l| l.contains("-A ")).collect();
    ensure!(
        rules.len() == 2 && rules[0].starts_with("-A SUB -m comment"),
        "{text}"
    );
    Ok(())
}

#[test]
fn rules_of_another_namespace() -> Result<()> {
    let net = Net::routed()?;
    nft::load(&net.r, RULES)?;
    let lines = json_lines(&net, &["rules", "--json", "-N", net.a.name()])?;
    ensure!(!lines.iter().any(|l| l["type"] == "rule"), "{lines:?}");
    let output = fwtrace::run(None, &["rules", "-N", net.r.name(), "--table", "nat"])?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(
        text.contains("masquerade") && !text.contains("3901"),
        "{text}"
    );
    Ok(())
}

#[test]
fn features_name_the_source_in_use() -> Result<()> {
    let output = fwtrace::run(None, &["features"])?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(output.status.success(), "{}: {text}", output.status);
    let line = text.lines().find(|l| l.contains("kernel-stack"));
    let line = line.with_context(|| format!("no kernel-stack: {text}"))?;
    ensure!(!line.contains("not available"), "{text}");
    ensure!(text.contains("slot"), "{text}");
    let trace = text.lines().find(|l| l.starts_with("trace "));
    let trace = trace.with_context(|| format!("no trace: {text}"))?;
    ensure!(trace.contains("  yes  --trace"), "{trace}");
    ensure!(!trace.contains("but not of"), "{trace}");
    let output = fwtrace::run(None, &["features", "--json"])?;
    let json = String::from_utf8(output.stdout)?;
    for line in json.lines() {
        let _: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
    }
    ensure!(json.contains("kernel-stack"), "{json}");
    Ok(())
}

#[test]
fn demo_plays_every_scene() -> Result<()> {
    let namespaces = own_namespaces();
    let list = fwtrace::run(None, &["demo", "--list"])?;
    let list = String::from_utf8(list.stdout)?;
    let names: Vec<&str> = list
        .lines()
        .filter_map(|l| l.split_whitespace().next())
        .collect();
    ensure!(names.len() >= 6, "{list}");
    let output = fwtrace::run(None, &["demo"])?;
    let text = String::from_utf8(output.stdout)?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {text}{stderr}", output.status);
    let said = format!("{text}{stderr}");
    for name in names {
        ensure!(said.contains(name), "no scene {name}: {said}");
    }
    // An attributed drop a scene at least, a policy and a reject among them.
    let drops = |word: &str| {
        let line = |l: &&str| l.contains(word) && l.contains(" by ");
        text.lines().filter(line).count()
    };
    ensure!(drops(" DROP ") >= 5, "{text}");
    ensure!(drops(" REJECT ") >= 1, "{text}");
    ensure!(drops("policy drop") >= 1, "{text}");
    ensure!(!text.contains("not known"), "{text}");
    ensure!(own_namespaces() == namespaces, "namespaces left");
    Ok(())
}

/// Named namespaces but those of tests that run beside this one.
fn own_namespaces() -> Vec<String> {
    let names = system::named_namespaces().into_iter();
    names.filter(|n| !n.starts_with("fwt-")).collect()
}

#[test]
fn demo_interrupted_leaves_nothing() -> Result<()> {
    let namespaces = own_namespaces();
    let mut child = Command::new(fwtrace::binary()?)
        .arg("demo")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no stdout")?).lines();
    // In the middle: after the first attributed drop.
    let first = lines
        .by_ref()
        .map_while(Result::ok)
        .find(|l| l.contains(" by "));
    let pid = child.id();
    let held = namespaces_of(pid);
    kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGINT)?;
    let rest = lines
        .map_while(Result::ok)
        .filter(|l| l.contains("DROP"))
        .count();
    let mut status = None;
    wait_until(|| {
        status = child.try_wait().ok().flatten();
        status.is_some()
    });
    if status.is_none() {
        child.kill()?;
    }
    let status = status.context("SIGINT is not heard")?;
    ensure!(first.is_some(), "no drop before the end");
    ensure!(status.code() == Some(0), "{status}");
    ensure!(rest < 5, "it played on: {rest} more drops");
    ensure!(held > 1, "the demo holds {held} namespaces open");
    ensure!(own_namespaces() == namespaces, "namespaces left");
    Ok(())
}

/// How many network namespaces a process holds open or runs in.
fn namespaces_of(pid: u32) -> usize {
    let mut found = std::collections::BTreeSet::new();
    let files = std::fs::read_dir(format!("/proc/{pid}/fd"));
    for file in files.into_iter().flatten().flatten() {
        if let Ok(target) = std::fs::read_link(file.path())
            && target.to_string_lossy().starts_with("net:[")
        {
            found.insert(target);
        }
    }
    let own = std::fs::read_link(format!("/proc/{pid}/ns/net"));
    found.extend(own);
    found.len()
}
