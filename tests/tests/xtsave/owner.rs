//! Which tables are iptables-nft's.

use e2e::netns::Netns;
use fwtrace::ruleset::model::{Counters, Table};

use super::{NFT4, NFT6, compare, read};

/// Tables that iptables-nft made, down to those without a rule or an extension of xtables.
#[test]
fn tables_of_iptables_are_told() {
    for commands in [
        &["-P INPUT DROP"][..],
        &["-A INPUT -p tcp --dport 80 -j DROP"],
        &["-A INPUT -j DROP"],
        &["-A INPUT"],
        &["-A FORWARD -i eth0 -o eth1 -j ACCEPT"],
        &["-A INPUT ! -i + -j DROP"],
        &[
            "-N SUB",
            "-A SUB -j RETURN",
            "-A INPUT -j SUB",
            "-A INPUT -g SUB",
        ],
        &["-t raw -A PREROUTING -p udp --dport 53 -j TRACE"],
        &["-t mangle -A OUTPUT -m mark --mark 1 -j ACCEPT"],
        &["-t nat -A POSTROUTING -o eth0 -j ACCEPT"],
        &["-t security -A INPUT -p udp --sport 1:5 -m limit --limit 3/min -j DROP"],
        &["-A INPUT -j NFLOG --nflog-group 5 --nflog-prefix x"],
        &["-A INPUT -p tcp --syn -j DROP"],
        &["-A INPUT -m conntrack --ctstate NEW -j DROP"],
    ] {
        for engine in [NFT4, NFT6] {
            let [ns] = Netns::create().unwrap();
            for command in commands {
                let mut argv = vec![engine.iptables];
                argv.extend(command.split(' '));
                ns.command(&argv, "").unwrap();
            }
            let ruleset = read(&ns);
            let table = ruleset.tables.first().unwrap();
            assert!(table.iptables, "{commands:?}");
            compare(&ns, engine);
        }
    }
}

/// nft wants line breaks.
fn load(ns: &Netns, table: &str) {
    let lines = table.replace("; ", "\n").replace(" }", "\n}");
    ns.command(&["nft", "-f", "-"], &lines).unwrap();
}

/// Tables that nft made under iptables' names, each with something that iptables-nft would not have made so.
#[test]
fn tables_of_nft_are_told() {
    for (what, table) in [
        (
            "no built-in chain",
            "table ip filter { chain input { type filter hook input priority 0; } }",
        ),
        ("no chain", "table ip filter { }"),
        (
            "another name",
            "table ip firewall { chain INPUT { type filter hook input priority 0; } }",
        ),
        (
            "another family",
            "table inet filter { chain INPUT { type filter hook input priority 0; } }",
        ),
        (
            "another priority",
            "table ip filter { chain INPUT { type filter hook input priority 1; } }",
        ),
        (
            "another hook",
            "table ip filter { chain INPUT { type filter hook output priority 0; } }",
        ),
        (
            "another type",
            "table ip mangle { chain OUTPUT { type filter hook output priority mangle; } }",
        ),
        (
            "nft's security",
            "table ip security { chain INPUT { type filter hook input priority security; } }",
        ),
        (
            "no counter",
            "table ip filter { chain INPUT { type filter hook input priority 0; tcp dport 80 drop; } }",
        ),
        (
            "two counters",
            "table ip filter { chain INPUT { type filter hook input priority 0; counter counter drop; } }",
        ),
        (
            "counter first",
            "table ip filter { chain INPUT { type filter hook input priority 0; counter tcp dport 80 drop; } }",
        ),
        (
            "padded name",
            "table ip filter { chain INPUT { type filter hook input priority 0; iifname \"eth0\" counter drop; } }",
        ),
        (
            "order",
            "table ip filter { chain INPUT { type filter hook input priority 0; ip saddr 10.0.0.1 tcp dport 80 counter drop; } }",
        ),
        (
            "order of v6",
            "table ip6 filter { chain INPUT { type filter hook input priority 0; tcp dport 80 ip6 saddr ::1 counter drop; } }",
        ),
        (
            "ct",
            "table ip filter { chain INPUT { type filter hook input priority 0; ct state new counter drop; } }",
        ),
        (
            "reject",
            "table ip filter { chain INPUT { type filter hook input priority 0; counter reject; } }",
        ),
        (
            "a set",
            "table ip filter { set s { type ipv4_addr; }; chain INPUT { type filter hook input priority 0; } }",
        ),
        (
            "an anonymous set",
            "table ip filter { chain INPUT { type filter hook input priority 0; tcp dport { 1, 2 } counter drop; } }",
        ),
        (
            "an object",
            "table ip filter { counter c { }; chain INPUT { type filter hook input priority 0; } }",
        ),
        (
            "a comment",
            "table ip filter { chain INPUT { type filter hook input priority 0; counter drop comment \"x\"; } }",
        ),
        (
            "a chain's comment",
            "table ip filter { chain INPUT { comment \"x\"; type filter hook input priority 0; } }",
        ),
        (
            "a base chain more",
            "table ip filter { chain INPUT { type filter hook input priority 0; }; chain in { type filter hook input priority 5; } }",
        ),
        (
            "interface by index",
            "table ip filter { chain INPUT { type filter hook input priority 0; iif lo counter accept; } }",
        ),
        (
            "nftrace",
            "table ip raw { chain PREROUTING { type filter hook prerouting priority raw; meta nftrace set 1; } }",
        ),
    ] {
        let [ns] = Netns::create().unwrap();
        load(&ns, table);
        let ruleset = read(&ns);
        assert!(!ruleset.tables[0].iptables, "{what}: {table}");
    }
}

fn counters(tables: &[Table]) -> Option<Counters> {
    tables[0].chains[0].base.as_ref().unwrap().counters
}

/// What nft makes byte for byte as iptables-nft does: it is said to be iptables', who shows it as its own.
#[test]
fn what_nothing_tells_apart_is_iptables() {
    let made = |argv: &[&str], input: &str| {
        let [ns] = Netns::create().unwrap();
        ns.command(argv, input).unwrap();
        let tables = read(&ns).tables;
        (ns, tables)
    };
    let hook = "type filter hook input priority 0";
    let rules =
        format!("table ip filter {{\nchain INPUT {{\n{hook}\ntcp dport 80 counter drop\n}}\n}}");
    let (ns, by_nft) = made(&["nft", "-f", "-"], &rules);
    let append = "iptables-nft -A INPUT -p tcp --dport 80 -j DROP".split(' ');
    let (_, by_iptables) = made(&append.collect::<Vec<_>>(), "");
    // 1.8.10 and later lets every chain count.
    if counters(&by_iptables).is_none() {
        assert_eq!(by_nft, by_iptables);
    }
    assert!(by_nft[0].iptables);
    assert_eq!(compare(&ns, NFT4), 1);
    // A policy that iptables sets does tell: the chain then counts.
    let (_, by_iptables) = made(&["iptables-nft", "-P", "INPUT", "DROP"], "");
    assert_eq!(counters(&by_iptables), Some(Counters::default()));
}
