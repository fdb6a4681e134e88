//! `xtables::legacy` against iptables-legacy: what is read is what `-L` and `-save` show. Needs root.
#![expect(clippy::unwrap_used, reason = "a test's helpers may panic")]

mod follow;

use std::{
    fmt::Write as _,
    net::UdpSocket,
    sync::atomic::{AtomicBool, Ordering},
};

use caps::{CapSet, Capability};
use e2e::netns::Netns;
use fwtrace::{
    netns::NetNs,
    xtables::{
        Family,
        legacy::{Drops, Jump, Table, read::Reader},
    },
};

const TOOLS: [(&str, Family); 2] = [
    ("iptables-legacy", Family::V4),
    ("ip6tables-legacy", Family::V6),
];

fn netns() -> Netns {
    let [netns] = Netns::create().expect("needs root");
    netns.ip("link set lo up\n").unwrap();
    netns
}

fn reader(netns: &Netns) -> Reader {
    Reader::open(&NetNs::find(netns.name()).unwrap()).unwrap()
}

fn read(netns: &Netns) -> Vec<Table> {
    let raw = reader(netns).read().unwrap();
    raw.iter().map(|raw| raw.parse()).collect()
}

fn run(netns: &Netns, command: &str) -> String {
    let argv: Vec<_> = command.split(' ').collect();
    netns.command(&argv, "").unwrap()
}

fn restore(netns: &Netns, tool: &str, rules: &str) {
    let tool = format!("{tool}-restore");
    netns.command(&[&tool, "-w", "-c"], rules).unwrap();
}

fn jump_name(table: &Table, jump: &Jump) -> String {
    match jump {
        Jump::Next => "",
        Jump::Accept => "ACCEPT",
        Jump::Drop => "DROP",
        Jump::Queue => "QUEUE",
        Jump::Return => "RETURN",
        Jump::Chain(chain) | Jump::Goto(chain) => &table.chains[*chain].name,
        Jump::Target(target) => target.name(),
    }
    .to_owned()
}

/// The table as `-L -v -n -x --line-numbers` prints it, as far as target and interfaces.
fn listing(table: &Table) -> Vec<String> {
    let mut lines = Vec::new();
    for (index, chain) in table.chains.iter().enumerate() {
        let about = match &chain.base {
            Some(base) => format!(
                "policy {} {} packets, {} bytes",
                jump_name(table, &base.policy),
                base.counters.packets,
                base.counters.bytes
            ),
            None => {
                let rules = table.chains.iter().flat_map(|chain| &chain.rules);
                let jumps = rules.filter(
                    |rule| matches!(rule.jump, Jump::Chain(to) | Jump::Goto(to) if to == index),
                );
                format!("{} references", jumps.count())
            }
        };
        lines.push(format!("Chain {} ({about})", chain.name));
        for rule in &chain.rules {
            let star = |name: &str| if name.is_empty() { "*" } else { name }.to_owned();
            let not = |flag, name| match rule.ip.inverted & flag {
                0 => name,
                _ => format!("!{name}"),
            };
            let fields = [
                rule.number.to_string(),
                rule.counters.packets.to_string(),
                rule.counters.bytes.to_string(),
                jump_name(table, &rule.jump),
                not(1, star(&rule.ip.iface_in)),
                not(2, star(&rule.ip.iface_out)),
            ];
            lines.push(fields.join(" "));
        }
    }
    lines
}

/// What the tool prints, in the same form.
fn listed(netns: &Netns, tool: &str, table: &str) -> Vec<String> {
    let text = run(
        netns,
        &format!("{tool} -w -t {table} -L -v -n -x --line-numbers"),
    );
    let lines = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with("num "));
    lines
        .map(|line| {
            if line.starts_with("Chain ") {
                return line.to_owned();
            }
            // num pkts bytes target prot [opt] in out source destination; target is empty for a rule without one.
            let columns: Vec<_> = line.split_whitespace().collect();
            let numbers = &columns[..3];
            let blank = target_column_is_empty(line);
            let target = if blank { "" } else { columns[3] };
            // The protocol is a word, "opt" is "--", "-f" or "!f" for IPv4 and nothing for IPv6.
            let mut rest = columns[if blank { 4 } else { 5 }..].iter();
            let mut next = rest.next().unwrap();
            if ["--", "-f", "!f"].contains(next) {
                next = rest.next().unwrap();
            }
            format!(
                "{} {target} {next} {}",
                numbers.join(" "),
                rest.next().unwrap()
            )
        })
        .collect()
}

/// The target is printed left-justified after the counters: two blanks and more where there is none.
fn target_column_is_empty(line: &str) -> bool {
    let mut rest = line;
    for _ in 0..3 {
        rest = rest.trim_start();
        rest = rest.trim_start_matches(|c: char| c.is_ascii_digit());
    }
    rest.starts_with("      ")
}

/// Chains, policies and counters of all rules, as `-save -c` prints them.
fn saved_counters(text: &str, table: &str) -> Vec<String> {
    let mut lines = text.lines().skip_while(|line| *line != format!("*{table}"));
    lines.next().unwrap();
    lines
        .take_while(|line| *line != "COMMIT")
        .map(|line| {
            if line.starts_with(':') {
                return line.to_owned();
            }
            let words: Vec<_> = line.split(' ').collect();
            format!("{} {} {}", words[0], words[1], words[2])
        })
        .collect()
}

fn counters(table: &Table) -> Vec<String> {
    let mut lines = Vec::new();
    for chain in &table.chains {
        lines.push(match &chain.base {
            Some(base) => format!(
                ":{} {} [{}:{}]",
                chain.name,
                jump_name(table, &base.policy),
                base.counters.packets,
                base.counters.bytes
            ),
            None => format!(":{} - [0:0]", chain.name),
        });
    }
    for chain in &table.chains {
        for rule in &chain.rules {
            let counters = rule.counters;
            let (packets, bytes) = (counters.packets, counters.bytes);
            lines.push(format!("[{packets}:{bytes}] -A {}", chain.name));
        }
    }
    lines
}

/// Everything that is read is what the tools show.
fn compare(netns: &Netns) -> Vec<Table> {
    let tables = read(netns);
    for table in &tables {
        assert_eq!(table.problems, Vec::<String>::new());
        let (tool, _) = TOOLS
            .iter()
            .find(|(_, family)| *family == table.family)
            .unwrap();
        let name = &table.name;
        assert_eq!(listing(table), listed(netns, tool, name), "{tool} {name}");
        let save = run(netns, &format!("{tool}-save -c -t {name}"));
        assert_eq!(
            counters(table),
            saved_counters(&save, name),
            "{tool} {name}"
        );
    }
    tables
}

/// User chains, jumps, gotos, policies, inversion, rules without target, in one table.
const FILTER: &str = "\
*filter
:INPUT DROP [7:700]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [12:3400]
:alpha - [0:0]
:beta - [0:0]
:empty - [0:0]
[1:100] -A INPUT -i lo -j alpha
[2:200] -A INPUT -i eth+ -p tcp -m tcp --dport 22 -j ACCEPT
[3:300] -A INPUT ! -i lo -g beta
[4:400] -A INPUT -p udp
[5:500] -A INPUT -j RETURN
[6:600] -A OUTPUT ! -o eth0 -p tcp -m tcp --dport 25 -m comment --comment \"no mail\" -j REJECT
[7:700] -A OUTPUT -o lo -j alpha
[8:800] -A alpha -p udp -m udp --dport 9 -j DROP
[9:900] -A alpha -j beta
[18446744073709551615:1] -A alpha -j RETURN
[10:1000] -A beta -m limit --limit 1/sec -j LOG --log-prefix \"beta \"
[11:1100] -A beta -g empty
COMMIT
";

fn others(family: Family) -> String {
    let mut text = String::new();
    for (table, chain) in [
        ("raw", "PREROUTING"),
        ("mangle", "POSTROUTING"),
        ("nat", "PREROUTING"),
        ("security", "FORWARD"),
    ] {
        let target = match table {
            "raw" => "CT --notrack",
            "mangle" => "MARK --set-mark 7",
            "nat" => "REDIRECT --to-ports 8080",
            _ => "ACCEPT",
        };
        let address = match family {
            Family::V4 => "10.1.2.3",
            Family::V6 => "fd00::17",
        };
        writeln!(
            text,
            "*{table}\n[3:180] -A {chain} -d {address} -p tcp -m tcp --dport 80 -j {target}\nCOMMIT"
        )
        .unwrap();
    }
    text
}

#[test]
fn all_tables_of_both_families_as_the_tools_show_them() {
    let netns = netns();
    for (tool, family) in TOOLS {
        restore(&netns, tool, &(FILTER.to_owned() + &others(family)));
    }
    // Some of it counts for real: dropped by alpha's first rule, and passed on to beta.
    netns.run(|| {
        for host in ["127.0.0.1", "[::1]"] {
            let socket = UdpSocket::bind(format!("{host}:0")).unwrap();
            for _ in 0..20 {
                let dropped = socket.send_to(b"x", format!("{host}:9")).unwrap_err();
                assert_eq!(dropped.kind(), std::io::ErrorKind::PermissionDenied);
            }
        }
    });
    let tables = compare(&netns);
    let mut names: Vec<_> = tables.iter().map(|t| (t.family, t.name.as_str())).collect();
    names.sort_unstable();
    let five = ["filter", "mangle", "nat", "raw", "security"];
    let all: Vec<_> = TOOLS
        .iter()
        .flat_map(|(_, f)| five.map(|n| (*f, n)))
        .collect();
    assert_eq!(names, all);

    for filter in tables.iter().filter(|table| table.name == "filter") {
        // The packets count in OUTPUT on their way: dropped there.
        let (_, alpha) = filter.chain("alpha").unwrap();
        assert_eq!(alpha.rules[0].counters.packets, 28);
        let goto = &filter.on_hook(1).unwrap().rules[2];
        assert_eq!(goto.jump, Jump::Goto(filter.chain("beta").unwrap().0));
        let (_, beta) = filter.chain("beta").unwrap();
        assert!(matches!(beta.rules[1].jump, Jump::Goto(_)));

        let input = filter.terminals(1);
        let plain: Vec<_> = input
            .iter()
            .map(|t| (t.chain, t.rule, t.drops, t.local))
            .collect();
        let (alpha, _) = filter.chain("alpha").unwrap();
        assert_eq!(
            plain,
            [
                (filter.hooks[1].unwrap(), None, Drops::Always, false),
                (alpha, Some(0), Drops::Always, true),
            ]
        );
        let output = filter.terminals(3);
        assert_eq!(output.len(), 2, "REJECT and alpha's DROP: {output:?}");
    }
}

#[test]
fn reading_makes_no_table() {
    let netns = netns();
    let names = || {
        let both = ["ip_tables_names", "ip6_tables_names"];
        netns.run(|| {
            both.map(|f| std::fs::read_to_string(format!("/proc/thread-self/net/{f}")).unwrap())
        })
    };
    assert_eq!(names(), ["", ""]);
    let mut reader = reader(&netns);
    assert_eq!(reader.read().unwrap(), []);
    assert_eq!(names(), ["", ""]);

    // Nor does asking for one.
    for name in ["filter", "mangle"] {
        reader.info(Family::V4, name).unwrap_err();
        reader.raw(Family::V6, name).unwrap_err();
    }
    assert_eq!(names(), ["", ""]);

    // One that appears later is read, and no other.
    run(
        &netns,
        "iptables-legacy -w -t mangle -A OUTPUT -j MARK --set-mark 1",
    );
    let tables = reader.read().unwrap();
    assert_eq!(tables.len(), 1);
    assert_eq!(tables[0].name, "mangle");
    reader.raw(Family::V4, "filter").unwrap_err();
    assert_eq!(names(), ["mangle\n", ""]);
}

#[test]
fn without_cap_net_admin_the_refusal_says_so() {
    let netns = netns();
    run(&netns, "ip6tables-legacy -w -t raw -P OUTPUT DROP");
    let mut reader = reader(&netns);
    assert_eq!(reader.read().unwrap().len(), 1);
    let refused = std::thread::scope(|scope| {
        let without = scope.spawn(|| {
            // Of this thread only.
            caps::drop(None, CapSet::Effective, Capability::CAP_NET_ADMIN).unwrap();
            reader.read().unwrap_err().to_string()
        });
        without.join().unwrap()
    });
    for part in ["table raw", "ip6tables-legacy", "CAP_NET_ADMIN"] {
        assert!(refused.contains(part), "{refused}");
    }
}

#[test]
fn a_thousand_rules() {
    let netns = netns();
    let mut rules = String::from("*filter\n:many - [0:0]\n-A INPUT -j many\n");
    for n in 0..1000 {
        let (high, low) = (n / 250, n % 250 + 1);
        writeln!(
            rules,
            "[{n}:{}] -A many -s 10.9.{high}.{low} -p tcp -m tcp --dport {} -m comment --comment r{n} -j DROP",
            n * 60,
            1000 + n
        )
        .unwrap();
    }
    rules += "COMMIT\n";
    restore(&netns, "iptables-legacy", &rules);
    let tables = compare(&netns);
    let filter = &tables[0];
    let (many, chain) = filter.chain("many").unwrap();
    assert_eq!(chain.rules.len(), 1000);
    let terminals = filter.terminals(1);
    assert_eq!(terminals.len(), 1000);
    assert!(terminals.iter().all(|t| t.chain == many && !t.local));
    assert_eq!(filter.terminals(2), []);
}

#[test]
fn replaced_while_it_is_read() {
    let netns = netns();
    // Three tables that take turns: of one size, and of another.
    let table = |name: &str, rules: usize| {
        let mut text = format!("*filter\n:{name} - [0:0]\n-A INPUT -j {name}\n");
        for n in 0..rules {
            writeln!(text, "-A {name} -p udp -m udp --dport {} -j DROP", n + 1).unwrap();
        }
        text + "COMMIT\n"
    };
    let versions = [("one", 100), ("two", 100), ("three", 160)];
    let texts = versions.map(|(name, rules)| table(name, rules));
    restore(&netns, "iptables-legacy", &texts[0]);
    let done = AtomicBool::new(false);
    let mut seen = [0; 3];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..60 {
                restore(&netns, "iptables-legacy", &texts[n % 3]);
            }
            done.store(true, Ordering::Release);
        });
        let mut reader = reader(&netns);
        while !done.load(Ordering::Acquire) {
            let raw = reader.read().unwrap();
            let filter = raw[0].parse();
            assert_eq!(filter.problems, Vec::<String>::new());
            let version = versions.iter().position(|(name, rules)| {
                filter.chain(name).is_some_and(|(index, chain)| {
                    assert_eq!(chain.rules.len(), *rules);
                    let input = filter.on_hook(1).unwrap();
                    assert_eq!(input.rules.len(), 1);
                    assert_eq!(input.rules[0].jump, Jump::Chain(index));
                    true
                })
            });
            seen[version.expect("one of the three")] += 1;
        }
    });
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
}
