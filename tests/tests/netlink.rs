//! The ruleset as fwtrace reads it over netlink, against `nft -j -a list ruleset`.
//!
//! Every test runs on a thread in a new network namespace, which is gone when the thread ends. Needs root and nft.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on must say where"
)]

use std::{
    collections::BTreeMap,
    io::Write as _,
    os::fd::AsFd as _,
    process::{Command, Stdio},
};

use fwtrace::{
    netlink::{
        nftables::read_ruleset,
        socket::{Protocol, Socket},
    },
    ruleset::{
        model::{
            Chain, Data, Element, Ending, Expr, Family, ObjectState, Ruleset, Set, Table, Verdict,
        },
        snapshot::Snapshots,
    },
};
use nix::{
    sched::{CloneFlags, unshare},
    sys::socket::{setsockopt, sockopt},
};
use serde_json::Value;

/// Runs `test` on a thread in a network namespace of its own; processes it starts are in there too.
fn in_netns(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("unshare: the tests need root");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn nft(commands: &str) {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("start nft");
    child
        .stdin
        .take()
        .unwrap()
        .write_all(commands.as_bytes())
        .unwrap();
    assert!(child.wait().unwrap().success(), "nft refused:\n{commands}");
}

fn run(program: &str, args: &[&str]) {
    let status = Command::new(program).args(args).status().expect(program);
    assert!(status.success(), "{program} {args:?}");
}

fn socket() -> Socket {
    Socket::open(Protocol::Netfilter, &[]).unwrap()
}

/// What nft knows of the ruleset: every object with its kind, in nft's order.
fn nft_objects() -> Vec<(String, Value)> {
    let output = Command::new("nft")
        .args(["-j", "-a", "list", "ruleset"])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    let Value::Array(items) = &json["nftables"] else {
        panic!("no array: {json}")
    };
    items
        .iter()
        .flat_map(|item| item.as_object().unwrap().clone())
        .filter(|(kind, _)| kind != "metainfo")
        .collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// One line for each table, chain, rule, set, map, object and flowtable, as nft sees them.
fn facts_of_nft() -> Vec<String> {
    let mut rules: BTreeMap<String, u32> = BTreeMap::new();
    let mut facts = Vec::new();
    for (kind, v) in nft_objects() {
        let (family, name, handle) = (text(&v["family"]), text(&v["name"]), &v["handle"]);
        let at = format!("{family} {}", text(&v["table"]));
        facts.push(match kind.as_str() {
            "table" => format!("table {family} {name} {handle}"),
            "chain" if v["hook"].is_string() => {
                let (kind, hook, policy) = (text(&v["type"]), text(&v["hook"]), text(&v["policy"]));
                format!(
                    "chain {at} {name} {handle} {kind} {hook} {} {policy}",
                    v["prio"]
                )
            }
            "rule" => {
                let chain = format!("{at} {}", text(&v["chain"]));
                let number = rules.entry(chain.clone()).or_default();
                *number += 1;
                format!("rule {chain} #{number} {handle} {}", text(&v["comment"]))
            }
            "set" | "map" => {
                let elements = v["elem"].as_array().map_or(0, Vec::len);
                format!("{kind} {at} {name} {handle} {elements} elements")
            }
            other => format!("{other} {at} {name} {handle}"),
        });
    }
    facts.sort();
    facts
}

fn hook_name(family: Family, hook: u32) -> &'static str {
    match (family, hook) {
        (Family::Netdev, 0) | (Family::Inet, 5) => "ingress",
        (Family::Netdev, 1) => "egress",
        (Family::Arp, 0) => "input",
        (Family::Arp, 1) => "output",
        (_, 0) => "prerouting",
        (_, 1) => "input",
        (_, 2) => "forward",
        (_, 3) => "output",
        (_, 4) => "postrouting",
        _ => "?",
    }
}

/// How many elements nft lists: ranges are one, and the kernel holds them as a start and an end.
fn listed(set: &Set) -> usize {
    set.elements
        .iter()
        .filter(|element| element.flags & Element::INTERVAL_END == 0)
        .count()
}

/// The same lines from fwtrace's reading.
fn facts_of(ruleset: &Ruleset) -> Vec<String> {
    let mut facts = Vec::new();
    for table in &ruleset.tables {
        let at = format!("{} {}", table.family, table.name);
        facts.push(format!("table {at} {}", table.handle));
        // nft lists an anonymous chain within the rule that jumps to it.
        for chain in table
            .chains
            .iter()
            .filter(|chain| chain.flags & Chain::BINDING == 0)
        {
            let base = chain.base.as_ref().map_or(String::new(), |base| {
                let policy = if base.policy == 0 { "drop" } else { "accept" };
                let hook = hook_name(table.family, base.hook);
                format!(" {} {hook} {} {policy}", base.kind, base.priority)
            });
            facts.push(format!("chain {at} {} {}{base}", chain.name, chain.handle));
            for rule in &chain.rules {
                let comment = rule.comment.as_deref().unwrap_or_default();
                let (chain, number, handle) = (&chain.name, rule.number, rule.handle);
                facts.push(format!("rule {at} {chain} #{number} {handle} {comment}"));
            }
        }
        for set in table
            .sets
            .iter()
            .filter(|set| set.flags & Set::ANONYMOUS == 0)
        {
            let kind = if set.flags & (Set::MAP | Set::OBJECT) == 0 {
                "set"
            } else {
                "map"
            };
            let elements = listed(set);
            facts.push(format!(
                "{kind} {at} {} {} {elements} elements",
                set.name, set.handle
            ));
        }
        for object in &table.objects {
            let kind = match object.kind {
                1 => "counter",
                2 => "quota",
                3 => "ct helper",
                4 => "limit",
                7 => "ct timeout",
                8 => "secmark",
                9 => "ct expectation",
                10 => "synproxy",
                _ => "?",
            };
            facts.push(format!("{kind} {at} {} {}", object.name, object.handle));
        }
        for flowtable in &table.flowtables {
            facts.push(format!(
                "flowtable {at} {} {}",
                flowtable.name, flowtable.handle
            ));
        }
    }
    facts.sort();
    facts
}

fn exprs(ruleset: &Ruleset) -> impl Iterator<Item = &Expr> {
    let chains = ruleset.tables.iter().flat_map(|table| &table.chains);
    chains
        .flat_map(|chain| &chain.rules)
        .flat_map(|rule| &rule.exprs)
}

/// Reads the ruleset and compares it with nft's.
#[track_caller]
fn read_and_compare() -> Ruleset {
    let ruleset = read_ruleset(&mut socket()).unwrap();
    assert_eq!(facts_of(&ruleset), facts_of_nft());
    assert_eq!(ruleset.problems, Vec::<String>::new());
    let unknown: Vec<&Expr> = exprs(&ruleset)
        .filter(|expr| matches!(expr, Expr::Unknown { .. }))
        .collect();
    assert_eq!(unknown, Vec::<&Expr>::new());
    ruleset
}

fn chain<'a>(ruleset: &'a Ruleset, table: &str, name: &str) -> &'a Chain {
    ruleset
        .tables
        .iter()
        .find(|t| t.name == table)
        .unwrap()
        .chain(name)
        .unwrap()
}

const BROAD: &str = r#"
table inet t {
  comment "the first"
  counter hits { packets 7 bytes 420 }
  quota q { over 10 mbytes }
  limit slow { rate 5/second }
  ct timeout aggressive { protocol tcp; l3proto ip; policy = { established: 100, close_wait: 4 }; }
  ct expectation e { protocol tcp; dport 9876; timeout 60s; size 12; l3proto ip; }
  synproxy sp { mss 1460; wscale 7; timestamp sack-perm }
  set plain { type inet_service; elements = { 22, 80, 443 } }
  set ranges { type ipv4_addr; flags interval; elements = { 10.0.0.0/8, 192.168.1.1-192.168.1.9, 203.0.113.7 comment "one" } }
  set pairs { type ipv4_addr . inet_service; flags interval; elements = { 10.0.0.0/8 . 80-90, 1.2.3.4 . 22 } }
  set fading { type ipv4_addr; flags timeout; timeout 1h; elements = { 10.1.1.1 timeout 30m } }
  set counted { type ipv4_addr; counter; elements = { 10.2.2.2 counter packets 3 bytes 180 } }
  set seen { type ipv4_addr; flags dynamic, timeout; timeout 5m; size 1000; }
  map verdicts { type inet_service : verdict; elements = { 22 : accept, 23 : drop, 25 : jump sub } }
  map marks { type ipv4_addr : mark; elements = { 10.0.0.1 : 0x17 } }
  map objects { type ipv4_addr : counter; elements = { 10.0.0.9 : "hits" } }
  set everyone { typeof ip saddr; elements = { 10.0.0.1 } }
  map catch { type ipv4_addr : verdict; elements = { 10.0.0.1 : accept, * : drop } }
  chain in {
    comment "what comes in"
    type filter hook input priority filter; policy drop
    ct state established,related accept comment "replies"
    ct state invalid counter drop
    iifname "lo" accept
    tcp dport { 22, 80-90 } ip saddr @ranges accept
    tcp dport vmap @verdicts
    ip saddr . tcp dport @pairs log prefix "pair " group 7 drop
    meta mark set ip saddr map @marks
    tcp flags syn limit rate over 10/second burst 20 packets drop
    udp dport 53 reject with icmpx type admin-prohibited
    tcp dport 113 reject with tcp reset
    add @seen { ip saddr limit rate 3/minute } accept
    update @seen { ip saddr timeout 10m }
    counter name "hits" quota name "q" limit name "slow"
    counter name ip saddr map @objects
    ct count over 10 drop
    fib saddr . iif oif missing drop
    socket transparent 1 accept
    tcp option maxseg size set 1300
    tcp option timestamp exists accept
    ip6 nexthdr icmpv6 icmpv6 type { nd-neighbor-solicit } accept
    exthdr frag exists drop
    meta skuid 0 accept
    ip ttl < 5 drop
    ip dscp set cs1
    numgen random mod 4 0 drop
    jhash ip saddr mod 8 seed 0x5 3 drop
    symhash mod 4 1 drop
    osf name "Linux" accept
    ct mark set meta mark & 0xff | 0x100
    meta length 100-200 drop
    ipsec in reqid 3 drop
    quota over 5 mbytes drop
    synproxy name "sp"
    ct original ip saddr 10.0.0.1 accept
    jump { tcp dport 99 drop; udp dport 99 drop; }
  }
  chain sub { ip saddr 10.0.0.66 drop; goto other; }
  chain other { counter return; }
  chain pre { type filter hook prerouting priority raw + 5; notrack; }
  chain mangle { type filter hook prerouting priority mangle; meta l4proto tcp tproxy ip to 127.0.0.1:50080 accept; ct timeout set "aggressive"; ct expectation set "e"; }
  chain nat { type nat hook postrouting priority srcnat; oifname "lo" masquerade random; meta l4proto tcp snat ip to 10.0.0.1-10.0.0.9:1000-2000 persistent; }
  chain nat_in { type nat hook prerouting priority dstnat; tcp dport 81 redirect to :8080; dnat ip to tcp dport map { 82 : 10.0.0.8 . 80 }; }
  chain rerouted { type route hook output priority mangle; meta mark set 7; rt mtu 1000 drop; rt ip nexthop 10.0.0.3 drop; }
}
table ip copies {
  chain pre { type filter hook prerouting priority 7; ip daddr 10.0.0.4 dup to 10.0.0.3 device "lo"; }
}
table ip6 six {
  chain out { type filter hook output priority 5; ip6 daddr fe80::/10 counter accept; ip6 daddr != { ::1, ff02::1 } drop; }
}
table bridge br {
  chain across { type filter hook forward priority 0; ether type arp accept; vlan id 7 drop; }
}
table arp a {
  chain in { type filter hook input priority 0; arp operation request accept; }
}
table netdev n {
  chain in { type filter hook ingress device "lo" priority 10; policy accept; ip saddr 10.0.0.1 fwd to "lo"; udp dport 7 dup to "lo"; }
  chain out { type filter hook egress device "lo" priority -3; drop; }
}
table ip empty { }
table ip sleeping {
  flags dormant
  chain in { type filter hook input priority 3; drop; }
}
"#;

#[test]
fn a_broad_ruleset_is_read_as_nft_reads_it() {
    in_netns(|| {
        nft(BROAD);
        let ruleset = read_and_compare();
        let (_, t) = ruleset.table_named(Family::Inet, "t").unwrap();
        assert_eq!(t.comment.as_deref(), Some("the first"));
        assert_eq!(
            t.chain("in").unwrap().comment.as_deref(),
            Some("what comes in")
        );
        let (_, sleeping) = ruleset.table_named(Family::Ip, "sleeping").unwrap();
        assert_eq!(sleeping.flags, Table::DORMANT);
        let netdev = chain(&ruleset, "n", "in").base.as_ref().unwrap();
        assert_eq!(
            (netdev.devices.as_slice(), netdev.hook),
            (["lo".to_owned()].as_slice(), 0)
        );

        let Ending::Jump(block) = t.chain("in").unwrap().rules[34].ending() else {
            panic!()
        };
        let block = t.chain(block).unwrap();
        assert_eq!(
            (block.flags & Chain::BINDING, block.rules.len()),
            (Chain::BINDING, 2)
        );

        let verdicts = t.set("verdicts").unwrap();
        assert_eq!(
            (verdicts.data_type, verdicts.key_len),
            (Some(Set::VERDICT), 2)
        );
        let mut found: Vec<(Option<Vec<u8>>, Option<Data>)> = verdicts
            .elements
            .iter()
            .map(|e| (e.key.clone(), e.data.clone()))
            .collect();
        found.sort_by(|a, b| a.0.cmp(&b.0));
        let verdict = |code, chain: Option<&str>| {
            Some(Data::Verdict(Verdict {
                code,
                chain: chain.map(str::to_owned),
            }))
        };
        let expected = [
            (Some(vec![0, 22]), verdict(Verdict::ACCEPT, None)),
            (Some(vec![0, 23]), verdict(Verdict::DROP, None)),
            (Some(vec![0, 25]), verdict(Verdict::JUMP, Some("sub"))),
        ];
        assert_eq!(found, expected);

        let pairs = t.set("pairs").unwrap();
        assert_eq!(pairs.fields, [4, 2]);
        assert!(pairs.elements.iter().any(|e| {
            e.key.as_deref() == Some(&[10, 0, 0, 0, 0, 80, 0, 0])
                && e.key_end.as_deref() == Some(&[10, 255, 255, 255, 0, 90, 0, 0])
        }));
        let ranges = t.set("ranges").unwrap();
        assert!(
            ranges
                .elements
                .iter()
                .any(|e| e.comment.as_deref() == Some("one"))
        );
        let fading = &t.set("fading").unwrap().elements[0];
        assert_eq!(fading.timeout, Some(1_800_000));
        assert!(
            fading
                .expiration
                .is_some_and(|left| left > 1_700_000 && left <= 1_800_000)
        );
        let counted = &t.set("counted").unwrap().elements[0].exprs[0];
        assert!(matches!(counted, Expr::Counter(c) if c.packets == 3 && c.bytes == 180));
        let object = &t.set("objects").unwrap().elements[0];
        assert_eq!(object.objref.as_deref(), Some("hits"));
        let caught = &t.set("catch").unwrap().elements;
        assert!(
            caught
                .iter()
                .any(|e| e.key.is_none() && e.flags == Element::CATCHALL)
        );

        let state = |name: &str| &t.objects.iter().find(|o| o.name == name).unwrap().state;
        assert!(matches!(state("hits"), ObjectState::Expr(Expr::Counter(c)) if c.packets == 7));
        assert!(matches!(
            state("e"),
            ObjectState::CtExpectation {
                dport: 9876,
                timeout: 60_000,
                size: 12,
                ..
            }
        ));
        let ObjectState::CtTimeout { timeouts, .. } = state("aggressive") else {
            panic!()
        };
        // CTA_TIMEOUT_TCP_ESTABLISHED and CTA_TIMEOUT_TCP_CLOSE_WAIT.
        assert!(
            timeouts.contains(&(3, 100)) && timeouts.contains(&(5, 4)),
            "{timeouts:?}"
        );
    });
}

#[test]
fn an_iptables_nft_ruleset_is_read() {
    in_netns(|| {
        run("iptables-nft", &["-P", "INPUT", "DROP"]);
        run("iptables-nft", &["-N", "UC"]);
        run(
            "iptables-nft",
            &["-A", "INPUT", "-p", "tcp", "--dport", "80", "-j", "UC"],
        );
        let comment = ["-m", "comment", "--comment", "no", "-j", "REJECT"];
        run(
            "iptables-nft",
            &[["-A", "UC"].as_slice(), comment.as_slice()].concat(),
        );
        run(
            "ip6tables-nft",
            &[
                "-A",
                "INPUT",
                "-m",
                "conntrack",
                "--ctstate",
                "INVALID",
                "-j",
                "DROP",
            ],
        );
        let ruleset = read_ruleset(&mut socket()).unwrap();
        assert_eq!(ruleset.problems, Vec::<String>::new());
        let input = chain(&ruleset, "filter", "INPUT");
        assert_eq!(input.base.as_ref().unwrap().policy, 0);
        assert!(matches!(input.rules[0].ending(), Ending::Jump("UC")));
        let uc = &chain(&ruleset, "filter", "UC").rules[0];
        assert!(uc.is_reject() && uc.decides());
        assert!(matches!(&uc.exprs[0], Expr::Match { name, rev: 0, info }
            if name == "comment" && info.starts_with(b"no\0")));
        let (_, six) = ruleset.table_named(Family::Ip6, "filter").unwrap();
        let rule = &six.chain("INPUT").unwrap().rules[0];
        assert!(matches!(&rule.exprs[0], Expr::Match { name, info, .. }
            if name == "conntrack" && info.len() == 168));
        assert!(matches!(rule.ending(), Ending::Drop));
    });
}

#[test]
fn a_large_set_is_read_whole() {
    in_netns(|| {
        const COUNT: u32 = 50_000;
        let elements: Vec<String> = (0..COUNT)
            .map(|i| format!("10.{}.{}.{}", i >> 16, i >> 8 & 255, i & 255))
            .collect();
        let elements = elements.join(", ");
        nft(&format!(
            "add table ip t; add set ip t s {{ type ipv4_addr; elements = {{ {elements} }}; }}"
        ));
        let ruleset = read_ruleset(&mut socket()).unwrap();
        let set = ruleset.tables[0].set("s").unwrap();
        let mut keys: Vec<&[u8]> = set
            .elements
            .iter()
            .filter_map(|e| e.key.as_deref())
            .collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), COUNT as usize);
    });
}

/// A table with one rule, handle 2 of chain `in`, and a set `s`.
const SMALL: &str = "add table inet t; add chain inet t in { type filter hook input priority 0; }
    add set inet t s { type ipv4_addr; }; add rule inet t in tcp dport 80 drop";

#[test]
fn two_hundred_commits_are_followed() {
    in_netns(|| {
        nft(SMALL);
        let mut snapshots = Snapshots::open(None).unwrap();
        let first = snapshots.newest_generation();
        // Interactively, each line is a transaction.
        let mut child = Command::new("nft")
            .arg("-i")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let writer = std::thread::spawn(move || {
            for i in 0..200 {
                let line = match i % 4 {
                    0 => format!("add rule inet t in tcp dport {i} drop comment \"rule {i}\""),
                    1 => format!("add chain inet t c{i}"),
                    2 => format!("add element inet t s {{ 10.0.0.{i} }}"),
                    _ => format!("insert rule inet t in udp dport {i} accept"),
                };
                writeln!(stdin, "{line}").unwrap();
            }
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let mut commits = Vec::new();
        runtime.block_on(async {
            let watch = snapshots.watch().unwrap();
            while commits.len() < 200 {
                let timeout = std::time::Duration::from_secs(30);
                let ready = tokio::time::timeout(timeout, watch.readable()).await;
                ready.expect("no change in time").unwrap().clear_ready();
                let changes = snapshots.drain().unwrap();
                assert!(!changes.lost);
                commits.extend(changes.commits);
            }
        });
        writer.join().unwrap();
        assert!(child.wait().unwrap().success());
        let generations: Vec<u32> = commits.iter().map(|commit| commit.generation).collect();
        assert_eq!(generations, (first + 1..=first + 200).collect::<Vec<u32>>());
        assert!(
            commits
                .iter()
                .all(|commit| commit.process == "nft" && commit.pid == child.id())
        );
        assert_eq!(commits.iter().filter(|commit| !commit.rules).count(), 50);
        assert_eq!(snapshots.newest_generation(), first + 200);
        let mut expected = facts_of_nft();
        let mut found = facts_of(&snapshots.newest().ruleset);
        // The last commit that touched elements came before the last that touched rules, so that these agree too.
        expected.sort();
        found.sort();
        assert_eq!(found, expected);
        assert!(
            snapshots.readings() <= 302,
            "{} readings",
            snapshots.readings()
        );
        println!("200 commits, {} readings", snapshots.readings());
    });
}

#[test]
fn elements_alone_do_not_make_it_read_again() {
    in_netns(|| {
        nft(SMALL);
        let mut snapshots = Snapshots::open(None).unwrap();
        let first = snapshots.newest_generation();
        let readings = snapshots.readings();
        for i in 1..=20 {
            nft(&format!("add element inet t s {{ 10.0.0.{i} }}"));
            nft(&format!("delete element inet t s {{ 10.0.0.{i} }}"));
            let changes = snapshots.drain().unwrap();
            assert_eq!((changes.commits.len(), changes.reread), (2, false));
        }
        assert_eq!(snapshots.readings(), readings);
        assert_eq!(snapshots.newest_generation(), first + 40);
        let snapshot = snapshots.history().at_generation(first + 17).unwrap();
        assert_eq!(snapshot.first(), first);
        assert_eq!(read_ruleset(&mut socket()).unwrap().generation, first + 40);
    });
}

#[test]
fn a_replaced_rule_is_still_found() {
    in_netns(|| {
        nft(SMALL);
        let mut snapshots = Snapshots::open(None).unwrap();
        let first = snapshots.newest_generation();
        let table = snapshots.newest().ruleset.tables[0].clone();
        let (chain, rule) = (table.chains[0].handle, table.chains[0].rules[0].handle);
        let found = snapshots
            .resolve(Some(first), table.handle, chain, Some(rule))
            .unwrap()
            .unwrap();
        assert!(found.newest && found.certain && found.rule == Some(0));

        // The handle stays the same: only the generation tells the two apart.
        nft(&format!(
            "replace rule inet t in handle {rule} tcp dport 81 drop"
        ));
        let mut resolve = |generation| {
            let found = snapshots
                .resolve(generation, table.handle, chain, Some(rule))
                .unwrap();
            let found = found.unwrap();
            let exprs = found.ruleset.tables[found.table].chains[0].rules[0]
                .exprs
                .clone();
            let old = exprs == table.chains[0].rules[0].exprs;
            (old, found.newest, found.certain)
        };
        assert_eq!(resolve(Some(first + 1)), (false, true, true));
        assert_eq!(resolve(Some(first)), (true, false, true));
        assert_eq!(resolve(None), (false, true, false));
        let changes = snapshots.drain().unwrap();
        assert!(changes.reread && !changes.lost && changes.commits.len() == 1);

        nft("flush chain inet t in");
        let found = snapshots
            .resolve(None, table.handle, chain, Some(rule))
            .unwrap()
            .unwrap();
        assert!(!found.newest);
        // A new table of the same name starts its handles anew; its own handle tells it apart.
        nft("delete table inet t");
        nft(SMALL);
        snapshots.drain().unwrap();
        let again = snapshots.newest().ruleset.tables[0].clone();
        assert_eq!(again.chains[0].rules[0].handle, rule);
        assert_ne!(again.handle, table.handle);
        let mut newest = |table: u64, rule| {
            let found = snapshots.resolve(None, table, chain, rule).unwrap();
            found.map(|found| found.newest)
        };
        assert_eq!(newest(table.handle, Some(rule)), Some(false));
        assert_eq!(newest(again.handle, Some(rule)), Some(true));
        assert_eq!(newest(again.handle, None), Some(true));
        assert_eq!(newest(again.handle + 1, Some(rule)), None);
    });
}

/// A drop that is seen before fwtrace took in any notification.
#[test]
fn a_generation_that_was_not_announced_yet_is_read() {
    in_netns(|| {
        nft(SMALL);
        let mut snapshots = Snapshots::open(None).unwrap();
        let table = snapshots.newest().ruleset.tables[0].handle;
        nft("add rule inet t in tcp dport 81 drop");
        let added = read_ruleset(&mut socket()).unwrap();
        let handle = added.tables[0].chains[0].rules[1].handle;
        let found = snapshots
            .resolve(Some(added.generation), table, 1, Some(handle))
            .unwrap();
        assert!(found.is_some_and(|found| found.newest && found.certain && found.rule == Some(1)));
        let readings = snapshots.readings();
        assert!(
            snapshots
                .resolve(None, table, 1, Some(999))
                .unwrap()
                .is_none()
        );
        assert_eq!(snapshots.readings(), readings);
    });
}

#[test]
fn lost_notifications_are_made_up_for() {
    in_netns(|| {
        nft(SMALL);
        let mut snapshots = Snapshots::open(None).unwrap();
        // The kernel makes it its minimum, which is soon full.
        setsockopt(&snapshots, sockopt::RcvBuf, &1).unwrap();
        nft(&"add rule inet t in counter\n".repeat(1_000));
        let changes = snapshots.drain().unwrap();
        assert!(changes.lost && changes.reread);
        assert_eq!(
            snapshots.newest().ruleset.tables[0].chains[0].rules.len(),
            1_001
        );
        nft("add chain inet t late");
        let changes = snapshots.drain().unwrap();
        assert!(changes.reread && !changes.lost);
        let ruleset = &snapshots.newest().ruleset;
        assert!(ruleset.tables[0].chain("late").is_some());
    });
}

/// A namespace under `/run/netns`, deleted on drop.
struct Named(String);

impl Named {
    fn new(suffix: &str) -> Self {
        let name = format!("fwt-netlink-{}-{suffix}", std::process::id());
        run("ip", &["netns", "add", &name]);
        Self(name)
    }

    fn delete(&self) {
        run("ip", &["netns", "del", &self.0]);
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let path = format!("/run/netns/{}", self.0);
        if std::path::Path::new(&path).exists() {
            self.delete();
        }
    }
}

#[test]
fn a_namespace_that_is_deleted_while_watched_does_no_harm() {
    let named = Named::new("gone");
    run("ip", &["netns", "exec", &named.0, "nft", SMALL]);
    let file = std::fs::File::open(format!("/run/netns/{}", named.0)).unwrap();
    let here = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    let mut snapshots = Snapshots::open(Some(file.as_fd())).unwrap();
    assert_eq!(
        std::fs::read_link("/proc/thread-self/ns/net").unwrap(),
        here
    );
    assert_eq!(
        snapshots.newest().ruleset.tables[0].chains[0].rules.len(),
        1
    );
    run(
        "ip",
        &[
            "netns", "exec", &named.0, "nft", "add", "chain", "inet", "t", "last",
        ],
    );
    named.delete();
    assert!(snapshots.drain().unwrap().reread);
    snapshots.refresh().unwrap();
    assert!(snapshots.newest().ruleset.tables[0].chain("last").is_some());
}
