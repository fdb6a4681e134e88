//! A thousand drops of all kinds by a dozen firewalls: every handle is nft's.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Context, Result, ensure};
use e2e::expect::at;
use e2e::fwtrace::Fwtrace;
use e2e::net::{Net, Place};
use e2e::nft;

use crate::support::{L4, Packet};

use Place::{A, B, R};

/// A firewall, and packets with what drops each: the comment of a rule, or `policy CHAIN`.
struct Firewall {
    name: &'static str,
    ruleset: String,
    deeds: Vec<(Packet, String)>,
}

/// Xorshift: the same thousand packets every time.
struct Random(u32);

impl Random {
    fn below(&mut self, n: u16) -> u16 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        u16::try_from(self.0 % u32::from(n)).unwrap_or(0)
    }

    fn packet(&mut self, from: Place, to: Place, port: u16) -> Packet {
        Packet {
            l4: if self.below(2) == 0 { L4::Tcp } else { L4::Udp },
            v6: self.below(2) == 0,
            from,
            to,
            ports: (20_000 + self.below(10_000), port),
        }
    }

    fn udp(&mut self, from: Place, to: Place, v6: bool, port: u16) -> Packet {
        Packet {
            l4: L4::Udp,
            v6,
            from,
            to,
            ports: (20_000 + self.below(10_000), port),
        }
    }
}

/// A rule that drops TCP and UDP to a port, and is called after it.
fn rule(port: u16) -> String {
    format!("meta l4proto {{ tcp, udp }} th dport {port} counter drop comment \"d{port}\"\n")
}

fn echo(v6: bool, from: Place, to: Place, id: u16) -> Packet {
    Packet {
        l4: L4::Icmp,
        v6,
        from,
        to,
        ports: (0, id),
    }
}

fn thousand_rules(random: &mut Random) -> Firewall {
    let rules: String = (0..1000).map(|i| rule(6000 + i)).collect();
    let deeds = (0..90).map(|_| {
        let port = 6000 + random.below(1000);
        (random.packet(A, R, port), format!("d{port}"))
    });
    Firewall {
        name: "a thousand rules",
        deeds: deeds.collect(),
        ruleset: format!(
            "table inet t {{ chain in {{ type filter hook input priority 0\n{rules}}}\n}}"
        ),
    }
}

fn deep_jumps(random: &mut Random) -> Firewall {
    // Base chain, then 15 more: NFT_JUMP_STACK_SIZE is 16.
    let mut ruleset = "table inet t {\n".to_owned();
    for level in (1..=15_u16).rev() {
        let next = if level < 15 {
            format!("jump c{}\n", level + 1)
        } else {
            String::new()
        };
        // Half of them drop on the way down, half on the way back.
        let drop = rule(6000 + level);
        let body = if level % 2 == 0 {
            drop + &next
        } else {
            next + &drop
        };
        let _ = writeln!(ruleset, "chain c{level} {{\n{body}}}");
    }
    ruleset += "chain in { type filter hook input priority 0; udp dport 9 drop\njump c1\n}\n}";
    let deeds = (0..90).map(|i| {
        let port = 6001 + i % 15;
        (random.packet(A, R, port), format!("d{port}"))
    });
    Firewall {
        name: "jumps fifteen deep",
        deeds: deeds.collect(),
        ruleset,
    }
}

fn verdict_maps(random: &mut Random) -> Firewall {
    let mut chains = String::new();
    let mut elements = Vec::new();
    for port in 6000..6040 {
        let _ = writeln!(
            chains,
            "chain p{port} {{ udp dport 9 drop\n{}}}",
            rule(port)
        );
        let word = if port % 2 == 0 { "jump" } else { "goto" };
        elements.push(format!("{port} : {word} p{port}"));
    }
    elements.push("6100 : drop".to_owned());
    let ruleset = format!(
        "table inet t {{\n{chains}map m {{ type inet_service : verdict; elements = {{ {} }}; }}\n\
         chain in {{ type filter hook input priority 0\n\
         meta l4proto {{ tcp, udp }} th dport 6000-6100 th dport vmap @m comment \"map\"\n\
         th dport 6101 counter meta l4proto vmap {{ tcp : drop, udp : drop }} comment \"proto\"\n}}\n}}",
        elements.join(", ")
    );
    let mut deeds = Vec::new();
    for i in 0..90 {
        let (port, by) = match i % 5 {
            0 => (6100, "map".to_owned()),
            1 => (6101, "proto".to_owned()),
            _ => {
                let port = 6000 + random.below(40);
                (port, format!("d{port}"))
            }
        };
        deeds.push((random.packet(A, R, port), by));
    }
    Firewall {
        name: "verdict maps",
        ruleset,
        deeds,
    }
}

fn several_tables(random: &mut Random) -> Firewall {
    let mut ruleset = String::new();
    let mut deeds = Vec::new();
    for (family, table, priority, port) in [
        ("ip", "a", -10, 6001),
        ("ip6", "a", -10, 6002),
        ("inet", "a", 0, 6003),
        ("inet", "b", 5, 6004),
        ("ip", "b", 10, 6005),
        ("ip6", "b", 10, 6006),
    ] {
        let _ = writeln!(
            ruleset,
            "table {family} {table} {{ chain in {{ type filter hook input priority {priority}\n\
             udp dport 9 drop\n{}}}\n}}",
            rule(port)
        );
        for _ in 0..15 {
            let mut packet = random.packet(A, R, port);
            packet.v6 = family == "ip6" || family == "inet" && packet.v6;
            deeds.push((packet, format!("d{port}")));
        }
    }
    Firewall {
        name: "six tables on one hook",
        ruleset,
        deeds,
    }
}

fn sets(random: &mut Random) -> Firewall {
    let ruleset = "table inet t {
        set ports { type inet_service; flags interval; elements = { 6000-6099, 6200-6299 }; }
        set pairs { type ipv4_addr . inet_service; elements = { 10.1.0.1 . 6301, 10.9.9.9 . 6302 }; }
        set nets { type ipv6_addr; flags interval; elements = { fd01::/64 }; }
        chain in { type filter hook input priority 0
            udp dport @ports counter drop comment \"ports\"
            ip saddr . udp dport @pairs counter drop comment \"pairs\"
            ip6 saddr @nets udp dport != { 6400, 6401 } counter drop comment \"nets\"
            ip6 saddr . udp sport . udp dport { fd01::1 . 20000-29999 . 6400 } counter drop comment \"triple\"
            iifname . udp dport { \"r0\" . 6401, \"r1\" . 6402 } counter drop comment \"interface\"
        }
    }";
    let mut deeds = Vec::new();
    for i in 0..80 {
        let (v6, port, by) = match i % 5 {
            0 => (false, 6000 + random.below(100), "ports"),
            1 => (false, 6301, "pairs"),
            2 => (true, 6500 + random.below(50), "nets"),
            3 => (true, 6400, "triple"),
            _ => (i % 2 == 0, 6401, "interface"),
        };
        deeds.push((random.udp(A, R, v6, port), by.to_owned()));
    }
    Firewall {
        name: "sets and concatenations",
        ruleset: ruleset.to_owned(),
        deeds,
    }
}

fn forwarding(random: &mut Random) -> Firewall {
    let ruleset = "table inet fw {
        chain lan { udp dport 9 drop
            udp dport 6001 counter drop comment \"lan\"
        }
        chain wan { udp dport 9 drop
            udp dport 9 drop
            udp dport 6001 counter drop comment \"wan\"
        }
        chain both { type filter hook forward priority 0
            iifname \"r0\" oifname \"r1\" jump lan
            iifname \"r1\" oifname \"r0\" goto wan
        }
        chain raw { type filter hook prerouting priority -300
            udp dport 6002 counter drop comment \"raw\"
        }
        chain late { type filter hook postrouting priority 300
            oifname \"r1\" udp dport 6003 counter drop comment \"late\"
        }
    }";
    let mut deeds = Vec::new();
    for i in 0..80 {
        let v6 = random.below(2) == 0;
        let (from, to, port, by) = match i % 4 {
            0 => (A, B, 6001, "lan"),
            1 => (B, A, 6001, "wan"),
            2 => (B, A, 6002, "raw"),
            _ => (A, B, 6003, "late"),
        };
        deeds.push((random.udp(from, to, v6, port), by.to_owned()));
    }
    Firewall {
        name: "a router's",
        ruleset: ruleset.to_owned(),
        deeds,
    }
}

fn output(random: &mut Random) -> Firewall {
    let rules: String = (0..20).map(|i| rule(6000 + i)).collect();
    let ruleset = format!(
        "table inet t {{ chain out {{ type filter hook output priority 0\n{rules}}}\n\
         chain route {{ type route hook output priority -150\n{}}}\n\
         chain post {{ type filter hook postrouting priority 0\n{}}}\n}}",
        rule(6100),
        rule(6101)
    );
    let mut deeds = Vec::new();
    for i in 0..80 {
        let port = match i % 4 {
            0 => 6100,
            1 => 6101,
            _ => 6000 + random.below(20),
        };
        let to = if random.below(2) == 0 { A } else { B };
        deeds.push((random.packet(R, to, port), format!("d{port}")));
    }
    Firewall {
        name: "output",
        ruleset,
        deeds,
    }
}

fn devices(random: &mut Random) -> Firewall {
    let ruleset = format!(
        "table netdev d {{\n\
         chain sub {{ udp dport 9 drop\n{}}}\n\
         chain ingress0 {{ type filter hook ingress device \"r0\" priority 0\n{}jump sub\n}}\n\
         chain egress1 {{ type filter hook egress device \"r1\" priority 0\nudp dport 9 drop\n{}}}\n}}\n\
         table inet t {{ chain ingress1 {{ type filter hook ingress device \"r1\" priority 0\n\
         udp dport 9 drop\n{}}}\n}}",
        rule(6001),
        rule(6000),
        rule(6002),
        rule(6003)
    );
    let mut deeds = Vec::new();
    for i in 0..80 {
        let (from, to, port) = match i % 5 {
            0 => (A, R, 6000),
            1 => (A, B, 6001),
            2 => (A, B, 6002),
            3 => (R, B, 6002),
            _ => (B, A, 6003),
        };
        deeds.push((random.packet(from, to, port), format!("d{port}")));
    }
    Firewall {
        name: "ingress and egress",
        ruleset,
        deeds,
    }
}

fn rejects(random: &mut Random) -> Firewall {
    let ruleset = "table inet t { chain in { type filter hook input priority 0
            udp dport 6000 counter reject comment \"reject\"
            udp dport 6001 counter reject with icmpx type admin-prohibited comment \"admin\"
            tcp dport 6002 counter reject with tcp reset comment \"reset\"
            meta nfproto ipv4 udp dport 6003 counter reject with icmp type host-unreachable comment \"host\"
            meta nfproto ipv6 udp dport 6003 counter reject with icmpv6 type no-route comment \"route\"
            udp dport 6004 counter drop comment \"drop\"
        }
    }";
    let mut deeds = Vec::new();
    for i in 0..80 {
        let v6 = random.below(2) == 0;
        let (port, by) = match i % 5 {
            0 => (6000, "reject"),
            1 => (6001, "admin"),
            2 => (6002, "reset"),
            3 => (6003, if v6 { "route" } else { "host" }),
            _ => (6004, "drop"),
        };
        let mut packet = random.udp(A, R, v6, port);
        if by == "reset" {
            packet.l4 = L4::Tcp;
        }
        deeds.push((packet, by.to_owned()));
    }
    Firewall {
        name: "rejects",
        ruleset: ruleset.to_owned(),
        deeds,
    }
}

fn policies(random: &mut Random) -> Firewall {
    let ruleset = "table inet t {
        chain in { type filter hook input priority 0; policy drop
            meta l4proto icmpv6 icmpv6 type != echo-request accept
            udp dport 6000 counter drop comment \"rule\"
            udp dport 6004 return
            jump sub
            udp dport 6005 goto last
        }
        chain last { udp dport 6005 return
            drop
        }
        chain sub { udp dport 9 drop
            udp dport 6001 counter drop comment \"sub\"
            udp dport 6002 return
        }
        chain fw { type filter hook forward priority 0; policy drop; }
        chain out { type filter hook output priority 0; policy drop
            meta l4proto icmpv6 accept
        }
    }";
    let mut deeds = Vec::new();
    for i in 0..80 {
        let v6 = random.below(2) == 0;
        let (from, to, port, by) = match i % 8 {
            0 => (A, R, 6000, "rule"),
            1 => (A, R, 6001, "sub"),
            2 => (A, R, 6002, "policy in"),
            3 => (B, R, 6003, "policy in"),
            4 => (A, B, 6000, "policy fw"),
            5 => (A, R, 6004, "policy in"),
            6 => (A, R, 6005, "policy in"),
            _ => (R, B, 6000, "policy out"),
        };
        deeds.push((random.udp(from, to, v6, port), by.to_owned()));
    }
    for id in 0..10 {
        deeds.push((echo(id % 2 == 0, A, R, id), "policy in".to_owned()));
    }
    Firewall {
        name: "policies",
        ruleset: ruleset.to_owned(),
        deeds,
    }
}

fn pings(_: &mut Random) -> Firewall {
    let rules = |proto: &str| -> String {
        let rule = |id| {
            format!(
                "{proto} type echo-request {proto} id {id} counter drop comment \"{proto} {id}\"\n"
            )
        };
        (1..=20).map(rule).collect()
    };
    let ruleset = format!(
        "table inet t {{ chain four {{\n{}}}\nchain six {{\n{}}}\n\
         chain in {{ type filter hook input priority 0\n\
         meta l4proto vmap {{ icmp : jump four, icmpv6 : goto six }}\n}}\n\
         chain fw {{ type filter hook forward priority 0\n\
         icmp type echo-request counter drop comment \"forward\"\n}}\n}}",
        rules("icmp"),
        rules("icmpv6")
    );
    let mut deeds = Vec::new();
    for i in 0..80 {
        let id = 1 + i % 20;
        deeds.push(match i % 3 {
            0 => (echo(false, A, R, id), format!("icmp {id}")),
            1 => (echo(true, B, R, id), format!("icmpv6 {id}")),
            _ => (echo(false, A, B, id), "forward".to_owned()),
        });
    }
    Firewall {
        name: "pings",
        ruleset,
        deeds,
    }
}

fn stateful(random: &mut Random) -> Firewall {
    let ruleset = "table inet t {
        counter named { }
        chain in { type filter hook input priority 0
            ct state established,related counter accept
            ct state invalid counter drop
            udp dport 6000 limit rate over 1/day burst 1 packets counter drop comment \"limit\"
            udp dport 6000 counter log group 9 drop comment \"log\"
            udp dport 6001 ct state new meta mark set 0x1 counter drop comment \"new\"
            meta mark 0x1 drop
            udp dport 6002 counter name \"named\" counter drop comment \"named\"
            udp dport 6003 quota 1 bytes counter drop comment \"quota\"
            udp dport 6003 counter drop comment \"over\"
            tcp flags & (fin|syn|rst|ack) == syn tcp dport 6004 counter drop comment \"syn\"
            ip ttl 64 udp dport 6005 counter drop comment \"ttl\"
            ip6 hoplimit 64 udp dport 6005 counter drop comment \"hops\"
        }
    }";
    let mut deeds = Vec::new();
    for i in 0..70 {
        let v6 = random.below(2) == 0;
        let (port, by) = match i % 6 {
            0 => (6000, if i == 0 { "log" } else { "limit" }),
            1 => (6001, "new"),
            2 => (6002, "named"),
            3 => (6003, "over"),
            4 => (6004, "syn"),
            _ => (6005, if v6 { "hops" } else { "ttl" }),
        };
        let mut packet = random.udp(A, R, v6, port);
        if by == "syn" {
            packet.l4 = L4::Tcp;
        }
        deeds.push((packet, by.to_owned()));
    }
    Firewall {
        name: "state",
        ruleset: ruleset.to_owned(),
        deeds,
    }
}

const FIREWALLS: [fn(&mut Random) -> Firewall; 12] = [
    thousand_rules,
    deep_jumps,
    verdict_maps,
    several_tables,
    sets,
    forwarding,
    output,
    devices,
    rejects,
    policies,
    pings,
    stateful,
];

/// Sends a firewall's packets and compares their events; what is wrong.
fn run(net: &Net, firewall: &Firewall, fwtrace: &mut Fwtrace) -> Result<Vec<String>> {
    nft::load(&net.r, &firewall.ruleset)?;
    let mut counts = BTreeMap::<&str, u64>::new();
    for (packet, by) in &firewall.deeds {
        packet.send(net)?;
        *counts.entry(by).or_default() += 1;
    }
    let ruleset = nft::list(&net.r)?;
    for (by, count) in counts {
        if !by.starts_with("policy") {
            let rule = ruleset.commented(by).with_context(|| by.to_owned())?;
            let counted = rule.packets.is_none_or(|packets| packets == count);
            ensure!(counted, "scenario: {rule:?}, sent {count}");
        }
    }
    let mut wrong = Vec::new();
    for (packet, by) in &firewall.deeds {
        let event = fwtrace.next_drop()?.json;
        let has = |key: &str, value: &str| at(&event, key) == value;
        let known = packet.is_of(net, &event)
            && has("evidence.source", "kernel-stack")
            && has("evidence.confidence", "exact");
        let same = if let Some(chain) = by.strip_prefix("policy ") {
            event["rule"].is_null() && has("policy.table", "t") && has("policy.chain", chain)
        } else {
            let rule = ruleset.commented(by).with_context(|| by.clone())?;
            let verdict = if rule.text.contains("reject") {
                "reject"
            } else {
                "drop"
            };
            has("rule.family", &rule.family)
                && has("rule.table", &rule.table)
                && has("rule.chain", &rule.chain)
                && at(&event, "rule.handle") == rule.handle
                && at(&event, "rule.number") == rule.number
                && has("rule.comment", by)
                && has("verdict", verdict)
        };
        if !known || !same {
            wrong.push(format!("{}: {packet:?} by {by}: {event}", firewall.name));
        }
    }
    Ok(wrong)
}

#[test]
fn a_thousand_mixed_drops() -> Result<()> {
    let net = Net::routed()?;
    let mut fwtrace = Fwtrace::start(&net.r, &[])?;
    let mut random = Random(0x2545_f491);
    let mut wrong = Vec::new();
    let mut total = 0;
    for firewall in FIREWALLS {
        let firewall = firewall(&mut random);
        total += firewall.deeds.len();
        let more = run(&net, &firewall, &mut fwtrace);
        wrong.extend(more.with_context(|| firewall.name)?);
    }
    let end = fwtrace.interrupt()?;
    e2e::report(&format!(
        "{total} drops: {} right, {} wrong",
        total - wrong.len(),
        wrong.len()
    ));
    let some: Vec<_> = wrong.iter().take(10).collect();
    ensure!(wrong.is_empty(), "{some:#?}");
    ensure!(total >= 1000, "{total} drops only");
    ensure!(end.status.success(), "{}", end.stderr);
    ensure!(end.drops.is_empty(), "more: {:?}", end.drops);
    Ok(())
}
