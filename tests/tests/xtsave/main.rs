//! Whole rules in iptables-save syntax, of both engines and families, against `iptables-nft-save`, `iptables-legacy-save` and their ip6tables
//! siblings; their numbers and counters against `iptables -L -v --line-numbers`; and which tables are iptables-nft's. Needs root, nft, ip,
//! iptables, ipset and nfacct.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on must say where"
)]

mod owner;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use e2e::netns::Netns;
use fwtrace::netlink::ipset;
use fwtrace::netlink::nftables::read_ruleset;
use fwtrace::netlink::socket::{Protocol, Socket};
use fwtrace::netns::NetNs;
use fwtrace::ruleset::model::{Counters, Expr, Family, Rule, Ruleset};
use fwtrace::ruleset::render::{Names, Options};
use fwtrace::xtables::legacy::read::Reader;
use fwtrace::xtables::{self, save};

/// Sets that the rules name.
const SETS: &str = "create addresses hash:net counters timeout 0\n\
    create pairs hash:ip,port\n\
    create triples hash:ip,port,ip\n\
    create addresses6 hash:net family inet6\n\
    create skb hash:ip skbinfo\n";

/// Objects of nfacct that they name.
const OBJECTS: [&str; 2] = ["http-traffic", "two words"];

/// Lines that differ from the reference, which is wrong: its own, ours, and why.
const DIFFERENCES: &[(&str, &str, &str)] = &[
    (
        "-A INPUT -j ACCEPT",
        "-A INPUT ! -i + -j ACCEPT",
        "iptables-legacy-save 1.8.9 leaves out `! -i +`, which no packet passes (1.8.11 does not)",
    ),
    (
        "-A FORWARD -j ACCEPT",
        "-A FORWARD ! -o + -j ACCEPT",
        "iptables-legacy-save 1.8.9 leaves out `! -o +`, which no packet passes (1.8.11 does not)",
    ),
];

/// The commands of one engine and family.
#[derive(Clone, Copy)]
struct Engine {
    iptables: &'static str,
    restore: &'static str,
    save: &'static str,
    legacy: bool,
    v6: bool,
}

const NFT4: Engine = Engine {
    iptables: "iptables-nft",
    restore: "iptables-nft-restore",
    save: "iptables-nft-save",
    legacy: false,
    v6: false,
};
const NFT6: Engine = Engine {
    iptables: "ip6tables-nft",
    restore: "ip6tables-nft-restore",
    save: "ip6tables-nft-save",
    legacy: false,
    v6: true,
};
const LEGACY4: Engine = Engine {
    iptables: "iptables-legacy",
    restore: "iptables-legacy-restore",
    save: "iptables-legacy-save",
    legacy: true,
    v6: false,
};
const LEGACY6: Engine = Engine {
    iptables: "ip6tables-legacy",
    restore: "ip6tables-legacy-restore",
    save: "ip6tables-legacy-save",
    legacy: true,
    v6: true,
};

pub(crate) fn read(ns: &Netns) -> Ruleset {
    let ruleset = ns.run(|| {
        let mut socket = Socket::open(Protocol::Netfilter, &[]).unwrap();
        read_ruleset(&mut socket).unwrap()
    });
    assert_eq!(ruleset.problems, Vec::<String>::new());
    ruleset
}

/// The lines of iptables-save, by table.
fn by_table(saved: &str) -> BTreeMap<String, Vec<String>> {
    let mut tables = BTreeMap::new();
    let mut lines: &mut Vec<String> = &mut Vec::new();
    for line in saved.lines().filter(|line| !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('*') {
            lines = tables.entry(name.to_owned()).or_default();
        } else if line != "COMMIT" {
            lines.push(line.to_owned());
        }
    }
    tables
}

/// Rules for iptables-restore: those of whole rules, and for each table those of matches and targets.
fn corpus(v6: bool) -> Vec<String> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("data");
    let family = if v6 { "ipv6" } else { "ipv4" };
    let whole = data.join(format!("xtsave/{family}.rules"));
    let mut corpus = vec![fs::read_to_string(whole).unwrap()];
    for file in fs::read_dir(data.join("xtables")).unwrap() {
        let file = file.unwrap().path();
        let name = file.file_stem().unwrap().to_str().unwrap();
        if let Some((of, table)) = name.split_once('-')
            && of == family
        {
            let rules = fs::read_to_string(&file).unwrap();
            corpus.push(format!("*{table}\n{rules}COMMIT\n"));
        }
    }
    assert!(corpus.len() > 3);
    corpus
}

/// A table as fwtrace reads it, whoever made it.
struct Ours {
    name: String,
    chains: Vec<OurChain>,
    listing: String,
}

struct OurChain {
    name: String,
    /// Number, counters, text.
    rules: Vec<(u64, Counters, String)>,
}

fn counters(rule: &Rule) -> Counters {
    let counter = rule.exprs.iter().find_map(|expr| match expr {
        Expr::Counter(counters) => Some(*counters),
        _ => None,
    });
    counter.unwrap()
}

fn nft_tables(ns: &Netns, family: Family, names: &Names) -> Vec<Ours> {
    let ruleset = read(ns);
    let tables = ruleset.tables.iter().filter(|t| t.family == family);
    let options = Options {
        names,
        stateless: false,
        handles: true,
    };
    tables
        .map(|table| {
            assert!(table.iptables, "{} is iptables'", table.name);
            let chains = table.chains.iter().map(|chain| {
                let text = |rule| {
                    let line = save::rule(table, chain, rule, names);
                    line.unwrap_or_else(|| format!("none: {:?}", rule.exprs))
                };
                let rules = chain.rules.iter();
                let rules = rules.map(|r| (u64::from(r.number), counters(r), text(r)));
                OurChain {
                    name: chain.name.clone(),
                    rules: rules.collect(),
                }
            });
            Ours {
                name: table.name.clone(),
                chains: chains.collect(),
                listing: save::table(table, &options).unwrap(),
            }
        })
        .collect()
}

fn legacy_tables(ns: &Netns, family: xtables::Family, names: &Names) -> Vec<Ours> {
    let mut reader = Reader::open(&NetNs::find(ns.name()).unwrap()).unwrap();
    let tables = reader.read().unwrap().into_iter().map(|raw| raw.parse());
    tables
        .filter(|table| table.family == family)
        .map(|table| {
            assert_eq!(table.problems, Vec::<String>::new());
            let chains = table.chains.iter().map(|chain| {
                let text = |rule| save::legacy_rule(&table, chain, rule, names);
                let rules = chain.rules.iter();
                let rules = rules.map(|r| (u64::from(r.number), r.counters, text(r)));
                OurChain {
                    name: chain.name.clone(),
                    rules: rules.collect(),
                }
            });
            Ours {
                name: table.name.clone(),
                chains: chains.collect(),
                listing: save::legacy_table(&table, names, false, |_| true),
            }
        })
        .collect()
}

/// Compares all that fwtrace says of a namespace's tables of iptables with iptables' own words. How many rules there are.
fn compare(ns: &Netns, engine: Engine) -> usize {
    let sets = ns.run(|| {
        let mut socket = Socket::open(Protocol::Netfilter, &[]).unwrap();
        ipset::read_sets(&mut socket).unwrap()
    });
    let sets = sets.into_iter().map(|set| (set.index.unwrap(), set.name));
    let names = Names::system().with_ip_sets(sets);
    let tables = match (engine.legacy, engine.v6) {
        (false, false) => nft_tables(ns, Family::Ip, &names),
        (false, true) => nft_tables(ns, Family::Ip6, &names),
        (true, false) => legacy_tables(ns, xtables::Family::V4, &names),
        (true, true) => legacy_tables(ns, xtables::Family::V6, &names),
    };
    let expected = by_table(&ns.command(&[engine.save, "-c"], "").unwrap());
    let (mut compared, mut wrong) = (0, Vec::new());
    for table in tables {
        let saved = &expected[&table.name];
        for chain in &table.chains {
            let prefix = format!("-A {} ", chain.name);
            let lines = saved.iter().filter(|line| {
                let rule = line.split_once("] ").map_or("", |parts| parts.1);
                format!("{rule} ").starts_with(&prefix)
            });
            let lines: Vec<&String> = lines.collect();
            assert_eq!(lines.len(), chain.rules.len(), "rules of {}", chain.name);
            for ((_, counters, text), line) in chain.rules.iter().zip(lines) {
                compared += 1;
                let counters = format!("[{}:{}] ", counters.packets, counters.bytes);
                if !is_same(engine, line, &format!("{counters}{text}")) {
                    wrong.push(format!("{line}\n  ours: {counters}{text}"));
                }
            }
            assert_numbers(ns, engine, &table.name, chain);
        }
        wrong.extend(listing_differs(engine, &table, saved));
    }
    assert!(
        wrong.is_empty(),
        "{} of {compared}:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    compared
}

/// The same line, or one of the known differences. Versions of iptables differ in two things: 1.8.7 and earlier have a space behind a rule
/// without a target, 1.8.10 and later write the number of a protocol that it has no name of its own for.
fn is_same(engine: Engine, line: &str, ours: &str) -> bool {
    let named = with_protocol_name(line.trim_end());
    let line = named.as_str();
    let is_known = |(theirs, known, _): &(&str, &str, &str)| {
        let same_counters = line.strip_suffix(theirs) == ours.strip_suffix(known);
        engine.legacy && line.ends_with(theirs) && same_counters
    };
    line == ours || DIFFERENCES.iter().any(is_known)
}

/// A line in which the number of a protocol is its name in /etc/protocols.
fn with_protocol_name(line: &str) -> String {
    let split = line.split_once(" -p ").and_then(|(head, rest)| {
        let (number, tail) = rest.split_once(' ').unwrap_or((rest, ""));
        let number: u32 = number.parse().ok()?;
        let protocols = fs::read_to_string("/etc/protocols").unwrap();
        let mut lines = protocols.lines().filter(|line| !line.starts_with('#'));
        let name = lines.find_map(|line| {
            let mut words = line.split_whitespace();
            let name = words.next()?;
            (words.next() == Some(&number.to_string())).then(|| name.to_owned())
        })?;
        Some(format!("{head} -p {name} {tail}").trim_end().to_owned())
    });
    split.unwrap_or_else(|| line.to_owned())
}

/// `iptables -L` numbers a chain's rules as we do, and its counters stand at the same numbers.
fn assert_numbers(ns: &Netns, engine: Engine, table: &str, chain: &OurChain) {
    let name = chain.name.as_str();
    let list = [
        engine.iptables,
        "-w",
        "-t",
        table,
        "-L",
        name,
        "-v",
        "-n",
        "-x",
        "--line-numbers",
    ];
    let listed = ns.command(&list, "").unwrap();
    let number = |word: Option<&str>| word.unwrap().parse::<u64>().unwrap();
    let listed: Vec<(u64, u64, u64)> = listed
        .lines()
        .skip(2)
        .map(|line| {
            let mut words = line.split_whitespace();
            (
                number(words.next()),
                number(words.next()),
                number(words.next()),
            )
        })
        .collect();
    let rules = chain.rules.iter();
    let ours: Vec<(u64, u64, u64)> = rules
        .map(|(number, counters, _)| (*number, counters.packets, counters.bytes))
        .collect();
    assert_eq!(listed, ours, "{table} {name}");
}

/// Our listing of a table has the lines of iptables-save in its order, but for built-in chains that are not there.
fn listing_differs(engine: Engine, table: &Ours, saved: &[String]) -> Option<String> {
    let lines = table.listing.lines().skip(2);
    let ours: Vec<&str> = lines
        .filter(|line| *line != "COMMIT")
        .map(|line| line.rsplit_once(" # rule ").map_or(line, |parts| parts.0))
        .collect();
    let is_there = |line: &&String| match line.strip_prefix(':') {
        Some(chain) => {
            let name = chain.split(' ').next().unwrap();
            table.chains.iter().any(|chain| chain.name == name)
        }
        None => true,
    };
    let saved: Vec<&str> = saved.iter().filter(is_there).map(String::as_str).collect();
    let mut pairs = ours.iter().zip(&saved);
    let first = pairs.find(|(ours, saved)| !is_same(engine, saved, ours));
    (first.is_some() || ours.len() != saved.len())
        .then(|| format!("listing of {}: {first:?}", table.name))
}

#[test]
fn rules_are_iptables_saves() {
    for engine in [NFT4, NFT6, LEGACY4, LEGACY6] {
        let [ns] = Netns::create().unwrap();
        ns.command(&["ipset", "restore"], SETS).unwrap();
        for object in OBJECTS {
            ns.command(&["nfacct", "add", object], "").unwrap();
        }
        let mut compared = 0;
        for rules in corpus(engine.v6) {
            ns.command(&[engine.restore, "-w", "-c"], &rules).unwrap();
            compared += compare(&ns, engine);
        }
        assert!(compared > 150, "{compared} of {}", engine.save);
    }
}

#[test]
fn every_protocol_has_its_name() {
    for engine in [NFT4, NFT6, LEGACY4, LEGACY6] {
        let [ns] = Netns::create().unwrap();
        let rules = (1..=255).map(|p| format!("-A INPUT -p {p}\n-A INPUT ! -p {p} -j DROP\n"));
        let rules = format!(
            "*filter\n:INPUT ACCEPT\n{}COMMIT\n",
            rules.collect::<String>()
        );
        ns.command(&[engine.restore, "-w"], &rules).unwrap();
        assert_eq!(compare(&ns, engine), 510);
    }
}

#[test]
fn every_prefix_and_some_masks() {
    let mut v4 = String::new();
    for bits in 0..=32_u32 {
        let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
        let odd = std::net::Ipv4Addr::from(mask.rotate_right(bits / 2 + 3));
        v4 += &format!("-A INPUT -s 203.0.113.119/{bits} ! -d 203.0.113.119/{odd}\n");
    }
    // A test that no packet passes is one that iptables-nft cannot write: `! -d 0.0.0.0/0`.
    let v4 = v4.replace(" ! -d 203.0.113.119/0.0.0.0\n", "\n");
    let mut v6 = String::new();
    for bits in 0..=128_u32 {
        let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
        let odd = std::net::Ipv6Addr::from(mask.rotate_right(bits / 2 + 5));
        v6 += &format!("-A INPUT -s 2001:db8:77:ff00:a5a5::7777/{bits} ! -d ff77::/{odd}\n");
    }
    let v6 = v6.replace(" ! -d ff77::/::\n", "\n");
    for (engine, rules, count) in [
        (NFT4, &v4, 33),
        (LEGACY4, &v4, 33),
        (NFT6, &v6, 129),
        (LEGACY6, &v6, 129),
    ] {
        let [ns] = Netns::create().unwrap();
        let rules = format!("*filter\n:INPUT ACCEPT\n{rules}COMMIT\n");
        ns.command(&[engine.restore, "-w"], &rules).unwrap();
        assert_eq!(compare(&ns, engine), count);
    }
}

/// Rules that nft added to a table of iptables: what iptables has words for, and what it has none for.
#[test]
fn rules_of_nft_in_tables_of_iptables() {
    let [ns] = Netns::create().unwrap();
    ns.command(
        &[
            "iptables-nft",
            "-A",
            "INPUT",
            "-m",
            "conntrack",
            "--ctstate",
            "NEW",
        ],
        "",
    )
    .unwrap();
    let rules = [
        (
            "tcp dport 1-1000 counter accept",
            Some("-p tcp -m tcp --dport 1:1000 -j ACCEPT"),
        ),
        (
            "ip saddr 10.0.0.1 udp dport 53 drop",
            Some("-s 10.0.0.1/32 -p udp -m udp --dport 53 -j DROP"),
        ),
        (
            "ip protocol icmp icmp type echo-request counter drop",
            Some("-p icmp -m icmp --icmp-type 8 -j DROP"),
        ),
        ("ip ttl 5 counter", Some("-m ttl --ttl-eq 5")),
        (
            "meta pkttype broadcast drop",
            Some("-m pkttype --pkt-type broadcast -j DROP"),
        ),
        (
            "counter drop comment \"by hand\"",
            Some("-m comment --comment \"by hand\" -j DROP"),
        ),
        (
            "meta mark set 0x2",
            Some("-j MARK --set-xmark 0x2/0xffffffff"),
        ),
        (
            "tcp dport >= 100 tcp dport <= 200 drop",
            Some("-p tcp -m tcp --dport 100:200 -j DROP"),
        ),
        ("ct state new counter drop", None),
        ("log prefix \"x\" group 1 drop", None),
        ("tcp dport { 1, 2 } drop", None),
        ("ip saddr 10.0.0.1 ip saddr 10.0.0.2 drop", None),
        ("ip saddr > 10.0.0.1 drop", None),
        ("iif lo accept", None),
        ("ip ttl > 5 tcp dport 80 tcp dport 81 drop", None),
        ("limit rate over 5/second drop", None),
        ("limit rate 3/week drop", None),
        ("udp length 5 drop", None),
        ("th dport 5 drop", None),
        ("ip dscp 5 drop", None),
        ("counter reject", None),
    ];
    for (rule, _) in rules {
        ns.command(&["nft", &format!("add rule ip filter INPUT {rule}")], "")
            .unwrap();
    }
    let ruleset = read(&ns);
    let table = &ruleset.tables[0];
    let chain = table.chain("INPUT").unwrap();
    let names = Names::system();
    assert_eq!(chain.rules.len(), rules.len() + 1);
    for (rule, (nft, expected)) in chain.rules.iter().skip(1).zip(rules) {
        let ours = save::rule(table, chain, rule, &names);
        let expected = expected.map(|rule| format!("-A INPUT {rule}"));
        assert_eq!(ours, expected, "{nft}");
    }
}
