//! Which rule of iptables-legacy dropped: what an event names is what has counted.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail, ensure};
use e2e::expect::at;
use e2e::fwtrace::{End, Fwtrace};
use e2e::legacy::{self, Counted};
use e2e::net::{Net, Place};
use e2e::wait_until;
use serde_json::Value;

use crate::support::{end_well, udp};

use Place::{A, B, R};

const TABLES: [&str; 4] = ["raw", "mangle", "filter", "security"];

/// Every table and hook, user chains, goto, return, a chain of several hooks, reject, policies.
const RULES: &str = "*raw
-A PREROUTING -p udp --dport 3001 -j DROP
-A OUTPUT -p udp --dport 3002 -j DROP
COMMIT
*mangle
-A PREROUTING -p udp --dport 3003 -j DROP
-A INPUT -p udp --dport 3004 -j DROP
-A FORWARD -p udp --dport 3005 -j DROP
-A OUTPUT -p udp --dport 3006 -j DROP
-A POSTROUTING -p udp --dport 3007 -j DROP
COMMIT
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT DROP [0:0]
:jumped - [0:0]
:gone-to - [0:0]
:deep - [0:0]
:shared - [0:0]
-A INPUT -p udp --dport 9 -j DROP
-A INPUT -p udp --dport 3010 -j DROP
-A INPUT -p udp --dport 3011 -j REJECT
-A INPUT -p udp --dport 3012:3013 -j jumped
-A INPUT -p udp --dport 3014:3015 -g gone-to
-A INPUT -p udp --dport 3016:3017 -j shared
-A INPUT -p udp --dport 3020 -j ACCEPT
-A INPUT -p udp --dport 3007 -j ACCEPT
-A FORWARD -p udp --dport 3010 -j DROP
-A FORWARD -p udp --dport 3011 -j REJECT
-A FORWARD -p udp --dport 3016:3017 -j shared
-A FORWARD -p udp --dport 3007 -j ACCEPT
-A OUTPUT -p udp --dport 3010 -j DROP
-A OUTPUT -p udp --dport 3011 -j REJECT
-A OUTPUT -p udp --dport 3016:3017 -j shared
-A OUTPUT -p udp --dport 3007 -j ACCEPT
-A OUTPUT ! -p udp -j ACCEPT
-A jumped -p udp --dport 3012 -j DROP
-A jumped -p udp --dport 3013 -j deep
-A gone-to -p udp --dport 3014 -j DROP
-A deep -p udp --dport 9 -j RETURN
-A deep -j DROP
-A shared -p udp --dport 3016 -j DROP
-A shared -j REJECT
COMMIT
*security
-A INPUT -p udp --dport 3020 -j DROP
COMMIT
";

/// What is sent: port, from, to, the hook that it is dropped on.
const SENT: [(u16, Place, Place, &str); 24] = [
    (3001, A, R, "prerouting"),
    (3001, A, B, "prerouting"),
    (3002, R, B, "output"),
    (3003, A, R, "prerouting"),
    (3004, A, R, "input"),
    (3005, A, B, "forward"),
    (3006, R, B, "output"),
    (3007, A, B, "postrouting"),
    (3007, R, B, "postrouting"),
    (3010, A, R, "input"),
    (3011, A, R, "input"),
    (3012, A, R, "input"),
    (3013, A, R, "input"),
    (3014, A, R, "input"),
    (3015, A, R, "input"),
    (3016, A, R, "input"),
    (3017, A, R, "input"),
    (3999, A, R, "input"),
    (3020, A, R, "input"),
    (3010, A, B, "forward"),
    (3016, A, B, "forward"),
    (3999, A, B, "forward"),
    (3016, R, B, "output"),
    (3999, R, B, "output"),
];

fn drops(rule: &Counted) -> bool {
    rule.target == "DROP" || rule.target == "REJECT"
}

/// What is different from the rule or policy in the event.
fn differences(event: &Value, rule: &Counted, hook: &str) -> Vec<String> {
    let by = if rule.number.is_some() {
        "rule"
    } else {
        "policy"
    };
    let verdict = if rule.target == "REJECT" {
        "reject"
    } else {
        "drop"
    };
    let mut wanted = vec![
        ("engine".to_owned(), Value::from("iptables-legacy")),
        (format!("{by}.family"), rule.family.into()),
        (format!("{by}.table"), rule.table.as_str().into()),
        (format!("{by}.chain"), rule.chain.as_str().into()),
        ("hook".into(), hook.into()),
        ("verdict".into(), verdict.into()),
        ("evidence.source".into(), "kernel-counters".into()),
        ("evidence.confidence".into(), "exact".into()),
    ];
    if let Some(number) = rule.number {
        wanted.push(("rule.number".into(), number.into()));
        wanted.push(("rule.base_chain".into(), hook.to_ascii_uppercase().into()));
    }
    wanted
        .into_iter()
        .filter(|(path, value)| at(event, path) != *value)
        .map(|(path, value)| format!("{path}: {}, expected {value}", at(event, &path)))
        .collect()
}

#[test]
fn every_rule_is_the_one_that_has_counted() -> Result<()> {
    let net = Net::routed()?;
    for v6 in [false, true] {
        legacy::restore(&net.r, v6, RULES)?;
    }
    let mut fwtrace = Fwtrace::start(&net.r, &[])?;
    for v6 in [false, true] {
        for (n, (port, from, to, hook)) in (0..).zip(SENT) {
            // Twice: the second time it is among those that have dropped lately.
            for again in [0, 100] {
                let before = legacy::list_all(&net.r, v6, &TABLES)?;
                udp(&net, from, to, v6, (5000 + n + again, port));
                let after = legacy::list_all(&net.r, v6, &TABLES)?;
                let moved = legacy::moved(&before, &after);
                let mut moved = moved.iter().filter(|(rule, _)| drops(rule));
                let (rule, packets) = moved.next().context("scenario: nothing has dropped")?;
                ensure!(
                    *packets == 1 && moved.next().is_none(),
                    "scenario: {port} {from:?} {to:?}: {before:?} {after:?}"
                );
                let event = fwtrace.drop_to_port(port)?.json;
                let wrong = differences(&event, rule, hook);
                ensure!(
                    wrong.is_empty(),
                    "{port} {from:?} {to:?} {hook}: {}\nin {event}",
                    wrong.join("\n")
                );
            }
        }
    }
    end_well(fwtrace)
}

/// Whether the counters have told the rule; what the evaluator computes is not judged here.
fn is_exact(event: &Value) -> Result<bool> {
    let counted = at(event, "evidence.source") == "kernel-counters";
    let exact = at(event, "evidence.confidence") == "exact";
    // Neither is anything else exact here, nor do counters that leave it open name one rule.
    ensure!(counted || !exact, "{event}");
    ensure!(!counted || exact || event["rule"].is_null(), "{event}");
    Ok(exact)
}

/// If the event is exact, it is right: its rule is the one that drops datagrams to its port, which is
/// rule `port - first + 1` of the chain. True if it is.
fn right(event: &Value, chain: &str, first: u16) -> Result<bool> {
    if !is_exact(event)? {
        return Ok(false);
    }
    let port = at(event, "packet.dport").as_u64().context("no port")?;
    let number = port.checked_sub(first.into()).map(|n| n + 1);
    let text = format!("-A {chain} -p udp -m udp --dport {port} -j DROP");
    ensure!(
        at(event, "engine") == "iptables-legacy"
            && at(event, "rule.text") == text
            && at(event, "rule.chain") == chain
            && at(event, "rule.number") == number.context("no such rule")?,
        "wrong: {event}"
    );
    Ok(true)
}

/// Sends bursts until an event names its rule: then the tables as they are now have been taken in.
fn settle(net: &Net, fwtrace: &mut Fwtrace, port: u16) -> Result<Value> {
    let mut last = Value::Null;
    let settled = wait_until(|| {
        udp(net, A, R, false, (5900, port));
        match fwtrace.drop_to_port(port) {
            Ok(drop) => last = drop.json,
            Err(_) => return false,
        }
        at(&last, "evidence.confidence") == "exact"
    });
    ensure!(settled, "never exact: {last}");
    Ok(last)
}

#[test]
fn a_table_of_a_thousand_rules_is_told_apart() -> Result<()> {
    const FIRST: u16 = 10_000;
    let net = Net::routed()?;
    legacy::restore(&net.r, false, &legacy::many("INPUT", FIRST, 1000))?;
    let mut fwtrace = Fwtrace::start(&net.r, &[])?;
    // Neighbours in a block of counters, in different blocks, and again and again.
    for n in (0..1000)
        .step_by(37)
        .chain([0, 1, 0, 999, 255, 256, 511, 512, 999])
    {
        udp(&net, A, R, false, (5000, FIRST + n));
        let event = fwtrace.drop_to_port(FIRST + n)?.json;
        ensure!(right(&event, "INPUT", FIRST)?, "not exact: {event}");
    }
    end_well(fwtrace)
}

/// Ports of a burst, in the order that they are sent in: all, in steps that jump between blocks.
fn burst(first: u16, count: u16) -> impl Iterator<Item = u16> + Clone {
    (0..count).map(move |n| first + (u32::from(n) * 389 % u32::from(count)) as u16)
}

/// Reads the events of a run whose packets each have one rule; (all, exact) of those.
fn judge(end: &End, judge: impl Fn(&Value) -> Result<bool>) -> Result<(usize, usize)> {
    let mut exact = 0;
    for drop in &end.drops {
        exact += usize::from(judge(&drop.json)?);
    }
    Ok((end.drops.len(), exact))
}

/// Input and output at once, on both processors, with traffic in between that the filter refuses.
#[test]
fn a_flood_from_all_sides_is_never_told_wrong() -> Result<()> {
    const INPUT: u16 = 11_000;
    const OUTPUT: u16 = 12_000;
    const ROUNDS: u16 = 6;
    let net = Net::routed()?;
    let text = legacy::many("INPUT", INPUT, 300).replace("COMMIT\n", "")
        + &legacy::many("OUTPUT", OUTPUT, 300).replace("*filter\n", "");
    legacy::restore(&net.r, false, &text)?;
    let fwtrace = Fwtrace::start(&net.r, &["--port", "11000-11199,12000-12199"])?;
    std::thread::scope(|scope| {
        for (from, to, first) in [(A, R, INPUT), (R, B, OUTPUT), (A, R, INPUT), (R, A, OUTPUT)] {
            let net = &net;
            scope.spawn(move || {
                let (src, dst) = net.path(from, to, false, (0, 0));
                let Ok(socket) = net.ns(from).run(|| UdpSocket::bind(src)) else {
                    return;
                };
                for _ in 0..ROUNDS {
                    for port in burst(first, 300) {
                        // On the way out the firewall's refusal is an error.
                        let _ = socket.send_to(b"x", (dst.ip(), port));
                    }
                }
            });
        }
    });
    let listed = legacy::list(&net.r, false, "filter")?;
    let dropped: u64 = listed.iter().filter(|r| drops(r)).map(|r| r.packets).sum();
    ensure!(
        dropped == 4 * 300 * u64::from(ROUNDS),
        "scenario: {dropped}"
    );
    let end = fwtrace.interrupt()?;
    let (all, exact) = judge(&end, |event| {
        if at(event, "hook") == "input" {
            right(event, "INPUT", INPUT)
        } else {
            right(event, "OUTPUT", OUTPUT)
        }
    })?;
    e2e::report(&format!("flood: {exact} of {all} drops exact"));
    // Not all of them: a packet of a process can be interrupted between its counter and its end.
    ensure!(exact * 100 >= all * 90, "{exact} of {all} exact");
    ensure!(
        all as u64 + end.count("lost")? == 4 * 200 * u64::from(ROUNDS),
        "{}",
        end.summary
    );
    // What was exact is no more than what the rules have counted.
    for rule in listed.iter().filter(|rule| rule.number.is_some()) {
        let told = end.drops.iter().filter(|drop| {
            at(&drop.json, "rule.chain") == rule.chain.as_str()
                && at(&drop.json, "rule.number") == rule.number.unwrap_or(0)
        });
        let told = told.count() as u64;
        ensure!(told <= rule.packets, "{told} events: {rule:?}");
    }
    Ok(())
}

/// A rule in front moves all others by one, again and again, while packets are dropped.
#[test]
fn a_table_replaced_under_traffic_is_never_told_wrong() -> Result<()> {
    const FIRST: u16 = 13_000;
    let net = Net::routed()?;
    legacy::restore(&net.r, false, &legacy::many("INPUT", FIRST, 50))?;
    let mut fwtrace = Fwtrace::start(&net.r, &[])?;
    settle(&net, &mut fwtrace, FIRST)?;
    let mut texts: Vec<String> = Vec::new();
    // Tables of one size and with the same number of rules, which the kernel may put where the last but
    // one was. In chain `c7` rule 1 drops what rule 8 drops in `c0`.
    for shift in 0..30u16 {
        let chain = format!("c{shift:02}");
        let mut lines: Vec<String> = legacy::many(&chain, FIRST, 50)
            .lines()
            .map(str::to_owned)
            .collect();
        let last = lines.len() - 1;
        lines[1..last].rotate_left(shift.into());
        lines.insert(1, format!(":{chain} - [0:0]\n-A INPUT -j {chain}"));
        texts.push(lines.join("\n") + "\n");
    }
    let judge = |event: &Value| -> Result<bool> {
        if !is_exact(event)? {
            return Ok(false);
        }
        let chain = at(event, "rule.chain");
        let shift: u64 = match chain.as_str().and_then(|chain| chain.strip_prefix('c')) {
            Some(shift) => shift.parse()?,
            None => 0,
        };
        let number = at(event, "rule.number").as_u64().context("no number")?;
        let port = at(event, "packet.dport").as_u64().context("no port")?;
        ensure!(
            (number - 1 + shift) % 50 + u64::from(FIRST) == port,
            "wrong: {event}"
        );
        Ok(true)
    };
    let (mut all, mut exact) = (0, 0);
    for (shift, text) in texts.iter().enumerate() {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (src, dst) = net.path(A, R, false, (0, 0));
                let Ok(socket) = net.a.run(|| UdpSocket::bind(src)) else {
                    return;
                };
                // Bounded, should the command hang.
                for port in burst(FIRST, 50).cycle().take(1_000) {
                    let _ = socket.send_to(b"x", (dst.ip(), port));
                    if done.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
            let restored = legacy::restore(&net.r, false, text);
            done.store(true, Ordering::Relaxed);
            restored
        })?;
        // All that was sent meanwhile is judged, and more until the new table is known. Every other time
        // the next replacement comes at once.
        let chain = format!("c{shift:02}");
        let mut known = shift % 2 == 1;
        let mut error = None;
        let settled = wait_until(|| {
            if known {
                return true;
            }
            udp(&net, A, R, false, (5900, FIRST + 7));
            match fwtrace.drop_to_port(FIRST + 7) {
                Ok(drop) => known = at(&drop.json, "rule.chain") == chain.as_str(),
                Err(e) => error = Some(e),
            }
            known
        });
        ensure!(settled, "{chain} is never known: {error:?}");
    }
    let end = fwtrace.interrupt()?;
    for line in end
        .stdout
        .iter()
        .filter(|line| line.contains(r#""type":"drop""#))
    {
        all += 1;
        exact += usize::from(judge(&serde_json::from_str(line)?)?);
    }
    e2e::report(&format!("30 replacements: {exact} of {all} drops exact"));
    ensure!(exact >= 15, "{exact} of {all} exact");
    Ok(())
}

#[test]
fn counters_set_to_zero_do_not_confuse() -> Result<()> {
    const FIRST: u16 = 14_000;
    let net = Net::routed()?;
    legacy::restore(&net.r, false, &legacy::many("INPUT", FIRST, 20))?;
    let mut fwtrace = Fwtrace::start(&net.r, &[])?;
    for n in 0..20 {
        for _ in 0..=n {
            udp(&net, A, R, false, (5000, FIRST + n));
            let event = fwtrace.drop_to_port(FIRST + n)?.json;
            ensure!(right(&event, "INPUT", FIRST)?, "not exact: {event}");
        }
    }
    for zero in ["-Z", "-Z INPUT", "-Z INPUT 7"] {
        legacy::run(&net.r, false, zero)?;
        let mut exact = 0;
        for n in (0..20).chain(0..20) {
            udp(&net, A, R, false, (5001, FIRST + n));
            let event = fwtrace.drop_to_port(FIRST + n)?.json;
            exact += u32::from(right(&event, "INPUT", FIRST)?);
        }
        ensure!(exact >= 20, "{zero}: {exact} of 40 exact");
        settle(&net, &mut fwtrace, FIRST)?;
    }
    end_well(fwtrace)
}

/// Tables that come while fwtrace runs, one after the other.
#[test]
fn new_tables_are_taken_in() -> Result<()> {
    let net = Net::routed()?;
    let mut fwtrace = Fwtrace::start(&net.r, &[])?;
    for (port, table) in [(15_001, "filter"), (15_002, "mangle"), (15_003, "security")] {
        let rule = format!("-t {table} -A INPUT -p udp --dport {port} -j DROP");
        legacy::run(&net.r, false, &rule)?;
        let event = settle(&net, &mut fwtrace, port)?;
        ensure!(
            at(&event, "rule.table") == table && at(&event, "rule.number") == 1,
            "{event}"
        );
    }
    // All three still are.
    for (port, table) in [(15_001, "filter"), (15_002, "mangle"), (15_003, "security")] {
        let event = settle(&net, &mut fwtrace, port)?;
        ensure!(at(&event, "rule.table") == table, "{event}");
    }
    fwtrace.interrupt()?;
    Ok(())
}

#[test]
fn namespaces_are_kept_apart() -> Result<()> {
    const FIRST: u16 = 16_000;
    let nets: Vec<Net> = (0..4).map(|_| Net::routed()).collect::<Result<_>>()?;
    let mut args = Vec::new();
    for (n, net) in (1..).zip(&nets) {
        // In each another rule drops the same packet.
        legacy::restore(&net.r, false, &legacy::many("INPUT", FIRST - n, 20))?;
        args.extend(["--netns", net.r.name()]);
    }
    let mut fwtrace = Fwtrace::start_as(None, &[&["--json"], &args[..]].concat())?;
    for round in 0..5 {
        for (n, net) in (1..).zip(&nets) {
            udp(net, A, R, false, (5000 + round, FIRST));
            let event = fwtrace.drop_to_port(FIRST)?.json;
            ensure!(at(&event, "netns.inode") == net.r.inode(), "{event}");
            ensure!(right(&event, "INPUT", FIRST - n)?, "not exact: {event}");
        }
    }
    end_well(fwtrace)
}

/// Packets that are dropped in nf_hook_slow without being counted by a rule that drops.
#[test]
fn what_no_rule_has_counted_is_no_rules() -> Result<()> {
    let net = Net::routed()?;
    legacy::restore(
        &net.r,
        false,
        "*filter\n-A INPUT -p udp -m udp --dport 9 -j DROP\n-A INPUT -p tcp -m tcp --dport 80 -j DROP\n-A INPUT -p udp -j DROP\nCOMMIT\n",
    )?;
    let mut fwtrace = Fwtrace::start(&net.r, &[])?;
    let (src, dst) = net.path(A, R, false, (5000, 3030));
    net.a.run(|| e2e::traffic::udp(src, dst))?;
    let event = fwtrace.next_drop()?.json;
    ensure!(at(&event, "rule.number") == 3, "{event}");
    // Eight bytes of TCP: the match of port 80 gives up, and drops.
    let mut packet = e2e::traffic::udp_packet(src, dst, &[]);
    let Some(protocol) = packet.get_mut(9) else {
        bail!("no IPv4 header");
    };
    *protocol = 6;
    packet.truncate(28);
    net.a.run(|| e2e::traffic::ip_packet(dst.ip(), &packet))?;
    let event = fwtrace.next_drop()?.json;
    ensure!(at(&event, "packet.proto") == "tcp", "{event}");
    ensure!(!is_exact(&event)?, "{event}");
    ensure!(
        at(&event, "evidence.source") != "kernel-counters",
        "{event}"
    );
    ensure!(at(&event, "engine") == "iptables-legacy", "{event}");
    end_well(fwtrace)
}

/// REJECT on OUTPUT counts a packet, then sends its answer, which is dropped on OUTPUT too, and only then
/// drops the packet.
#[test]
fn an_answer_dropped_before_what_it_answers() -> Result<()> {
    const PORT: u16 = 3050;
    let net = Net::routed()?;
    // Conntrack stands on the hook too: what no rule has dropped could be its doing.
    let tracked = "-A INPUT -m conntrack --ctstate INVALID -p tcp --dport 9 -j DROP\n";
    for (v6, error) in [
        (false, "-p icmp -m icmp --icmp-type 3"),
        (true, "-p ipv6-icmp -m icmp6 --icmpv6-type 1"),
    ] {
        // Another rule drops the answer; then the same one does, which leaves the answer's open.
        for (rules, own) in [
            (
                format!("-A OUTPUT -p udp --dport {PORT} -j REJECT\n-A OUTPUT {error} -j DROP\n"),
                2,
            ),
            (
                format!(
                    "-A OUTPUT -p udp --dport 9 -j DROP\n-A OUTPUT {error} -g reject\n-A OUTPUT -p udp -g reject\n-A reject -j REJECT\n"
                ),
                1,
            ),
        ] {
            let text = format!("*filter\n:reject - [0:0]\n{tracked}{rules}COMMIT\n");
            legacy::restore(&net.r, v6, &text)?;
            let mut fwtrace = Fwtrace::start(&net.r, &[])?;
            for n in 0..8 {
                udp(&net, R, B, v6, (5000 + n, PORT));
                let answer = fwtrace.next_drop()?.json;
                let event = fwtrace.next_drop()?.json;
                let proto = at(&answer, "packet.proto");
                ensure!(proto == "icmp" || proto == "icmpv6", "scenario: {answer}");
                ensure!(at(&event, "packet.dport") == PORT, "scenario: {event}");
                ensure!(is_exact(&event)?, "not exact: {event}");
                ensure!(at(&event, "verdict") == "reject", "{event}");
                ensure!(at(&event, "rule.number") == 1, "{event}");
                if own == 2 {
                    ensure!(is_exact(&answer)?, "not exact: {answer}");
                    ensure!(at(&answer, "rule.number") == 2, "{answer}");
                }
                ensure!(at(&answer, "engine") == "iptables-legacy", "{answer}");
            }
            end_well(fwtrace)?;
        }
    }
    Ok(())
}
