//! `netlink::nft_write` against nft: what it writes lists as the rules it means, with the bytecode that nft compiles for them.
//!
//! Needs root, nft and a kernel with nf_tables. Every test works in anonymous network namespaces, which end with their threads.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use fwtrace::netlink::nft_write::{
    BaseChain, Batch, Key, Reject, Rule, WriteError, ct_state, verdict,
};
use fwtrace::netlink::{
    nftables::read_ruleset,
    socket::{Protocol, Socket},
};
use fwtrace::ruleset::model::{CmpOp, Counters, Data, Expr, Family, PayloadBase};
use nix::sched::{CloneFlags, unshare};

/// Runs `work` in a new network namespace that ends with it.
fn in_new_netns<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).expect("needs root");
                work()
            })
            .join()
            .expect("the test's thread")
    })
}

fn nft(args: &[&str], input: &str) -> String {
    let mut child = Command::new("nft")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("nft is installed");
    child
        .stdin
        .take()
        .expect("a pipe")
        .write_all(input.as_bytes())
        .expect("nft reads");
    let output = child.wait_with_output().expect("nft ends");
    assert!(
        output.status.success(),
        "nft {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text")
}

/// The bytecode that nft reads from the kernel, without what depends on the order of creation: the handles that head each rule,
/// and the order of elements in hash sets.
fn bytecode() -> Vec<String> {
    let mut lines: Vec<String> = nft(&["--debug=netlink", "list", "ruleset"], "")
        .lines()
        .map(|line| match line.starts_with(|c: char| c.is_whitespace()) {
            true => line.to_owned(),
            false => line
                .trim_end_matches(|c: char| c.is_ascii_digit() || c == ' ')
                .to_owned(),
        })
        .collect();
    for elements in
        lines.chunk_by_mut(|a, b| a.starts_with("\telement") && b.starts_with("\telement"))
    {
        elements.sort();
    }
    lines
}

/// Applies the batches in a new namespace and `text` with nft in another; both must list as `text`, with the same bytecode.
fn assert_same(batches: &[Batch], text: &str) {
    let ours = in_new_netns(|| {
        for batch in batches {
            batch.commit().expect("the kernel takes the batch");
        }
        (nft(&["list", "ruleset"], ""), bytecode())
    });
    let theirs = in_new_netns(|| {
        nft(&["-f", "-"], text);
        (nft(&["list", "ruleset"], ""), bytecode())
    });
    assert_eq!(ours.0, text);
    assert_eq!(theirs.0, text);
    assert_eq!(ours.1, theirs.1);
}

fn batch(family: Family, table: &str) -> Batch {
    let mut batch = Batch::new(family, table);
    batch.add_table();
    batch
}

#[test]
fn inet_matches_and_verdicts() {
    let family = Family::Inet;
    let rule = || Rule::new(family);
    let mut fw = batch(family, "fw");
    fw.add_chain("sub").add_rule("sub", rule().drop());
    fw.add_base_chain("in", &BaseChain::INPUT.policy_drop());
    fw.add_rule("in", rule().iifname("lo").accept())
        .add_rule("in", rule().iif(1).accept())
        .add_rule(
            "in",
            rule()
                .ct_state(ct_state::ESTABLISHED | ct_state::RELATED)
                .accept(),
        )
        .add_rule("in", rule().ct_state(ct_state::INVALID).drop())
        .add_rule(
            "in",
            rule().tcp_dport(80).counter().drop().comment("block web"),
        )
        .add_rule("in", rule().udp_dport(53).reject(Reject::Icmpx(1)))
        .add_rule("in", rule().tcp_dport(443).reject(Reject::TcpReset))
        .add_rule("in", rule().reject(Reject::Icmpx(3)))
        .add_rule("in", rule().ip_saddr_in([10, 0, 0, 0].into(), 8).drop())
        .add_rule("in", rule().ip_saddr_in([10, 1, 16, 0].into(), 20).drop())
        .add_rule("in", rule().ip_saddr([10, 0, 0, 1].into()).jump("sub"))
        .add_rule(
            "in",
            rule()
                .ip6_saddr_in("fe80::".parse().unwrap(), 64)
                .goto("sub"),
        )
        .add_rule(
            "in",
            rule()
                .ip6_saddr("fd00::1".parse().unwrap())
                .tcp_sport(22)
                .accept(),
        )
        .add_rule("in", rule().l4proto(1).accept())
        .add_rule("in", rule().icmp_type(8).drop())
        .add_rule("in", rule().icmpv6_type(128).drop())
        .add_rule("in", rule().oifname("eth*").accept())
        .add_rule("in", rule().udp_sport(53).log("dns ").accept());
    assert_same(
        &[fw],
        "table inet fw {
\tchain sub {
\t\tdrop
\t}

\tchain in {
\t\ttype filter hook input priority filter; policy drop;
\t\tiifname \"lo\" accept
\t\tiif \"lo\" accept
\t\tct state established,related accept
\t\tct state invalid drop
\t\ttcp dport 80 counter packets 0 bytes 0 drop comment \"block web\"
\t\tudp dport 53 reject
\t\ttcp dport 443 reject with tcp reset
\t\treject with icmpx admin-prohibited
\t\tip saddr 10.0.0.0/8 drop
\t\tip saddr 10.1.16.0/20 drop
\t\tip saddr 10.0.0.1 jump sub
\t\tip6 saddr fe80::/64 goto sub
\t\tip6 saddr fd00::1 tcp sport 22 accept
\t\tmeta l4proto icmp accept
\t\ticmp type echo-request drop
\t\ticmpv6 type echo-request drop
\t\toifname \"eth*\" accept
\t\tudp sport 53 log prefix \"dns \" accept
\t}
}
",
    );
}

#[test]
fn sets_and_verdict_maps() {
    let family = Family::Inet;
    let rule = || Rule::new(family);
    let (ssh, web) = (22_u16.to_be_bytes(), 80_u16.to_be_bytes());
    let jump = verdict::jump("sub");
    let mut fw = batch(family, "fw");
    let allowed = fw.add_set("allowed", Key::Service, &[&ssh, &web]);
    fw.add_chain("sub").add_rule("sub", rule().drop());
    let hosts = fw.add_verdict_map(
        "hosts",
        Key::Ipv4,
        &[
            (&[10, 0, 0, 1], verdict::accept()),
            (&[10, 0, 0, 2], jump.clone()),
        ],
    );
    assert_eq!((hosts.name.as_str(), hosts.id), ("hosts", 2));
    let ports =
        fw.add_anonymous_verdict_map(Key::Service, &[(&ssh, verdict::accept()), (&web, jump)]);
    let both = fw.add_anonymous_set(Key::Service, &[&ssh, &web]);
    fw.add_base_chain("in", &BaseChain::INPUT);
    fw.add_rule("in", rule().tcp_dport_in(&allowed).accept());
    fw.add_rule("in", rule().tcp_dport_vmap(&ports));
    fw.add_rule("in", rule().tcp_dport_in(&both).drop());
    assert_same(
        &[fw],
        "table inet fw {
\tset allowed {
\t\ttype inet_service
\t\telements = { 22, 80 }
\t}

\tmap hosts {
\t\ttype ipv4_addr : verdict
\t\telements = { 10.0.0.1 : accept, 10.0.0.2 : jump sub }
\t}

\tchain sub {
\t\tdrop
\t}

\tchain in {
\t\ttype filter hook input priority filter; policy accept;
\t\ttcp dport @allowed accept
\t\ttcp dport vmap { 22 : accept, 80 : jump sub }
\t\ttcp dport { 22, 80 } drop
\t}
}
",
    );
}

#[test]
fn families_hooks_and_devices() {
    let mut ip = batch(Family::Ip, "v4");
    ip.add_base_chain(
        "fw",
        &BaseChain {
            priority: -300,
            ..BaseChain::FORWARD
        },
    );
    ip.add_rule(
        "fw",
        Rule::new(Family::Ip)
            .ip_daddr([10, 0, 0, 1].into())
            .reject(Reject::Icmp(10)),
    );
    ip.add_rule(
        "fw",
        Rule::new(Family::Ip).tcp_dport(22).reject(Reject::Icmp(3)),
    );
    let mut ip6 = batch(Family::Ip6, "v6");
    ip6.add_base_chain("out", &BaseChain::OUTPUT);
    ip6.add_rule("out", Rule::new(Family::Ip6).icmpv6_type(135).drop());
    let mut netdev = batch(Family::Netdev, "nd");
    netdev.add_base_chain(
        "ing",
        &BaseChain {
            devices: &["lo"],
            ..BaseChain::filter(0)
        },
    );
    netdev.add_rule("ing", Rule::new(Family::Netdev).udp_dport(9).drop());
    assert_same(
        &[ip, ip6, netdev],
        "table ip v4 {
\tchain fw {
\t\ttype filter hook forward priority raw; policy accept;
\t\tip daddr 10.0.0.1 reject with icmp host-prohibited
\t\ttcp dport 22 reject
\t}
}
table ip6 v6 {
\tchain out {
\t\ttype filter hook output priority filter; policy accept;
\t\ticmpv6 type nd-neighbor-solicit drop
\t}
}
table netdev nd {
\tchain ing {
\t\ttype filter hook ingress device \"lo\" priority filter; policy accept;
\t\tudp dport 9 drop
\t}
}
",
    );
}

#[test]
fn handles_are_those_that_nft_lists() {
    in_new_netns(|| {
        let mut fw = batch(Family::Inet, "t");
        fw.add_chain("sub").add_base_chain("in", &BaseChain::INPUT);
        for port in 1..=300 {
            fw.add_rule("in", Rule::new(Family::Inet).tcp_dport(port).drop());
        }
        fw.add_rule("sub", Rule::new(Family::Inet).counter());
        let handles = fw.commit().expect("the kernel takes the batch");
        assert_eq!(handles.len(), 301);
        let listing = nft(&["-a", "list", "ruleset"], "");
        for (port, handle) in (1..=300).zip(&handles) {
            let line = format!("tcp dport {port} drop # handle {handle}\n");
            assert!(listing.contains(&line), "{line}{listing}");
        }
        let line = format!("counter packets 0 bytes 0 # handle {}\n", handles[300]);
        assert!(listing.contains(&line), "{line}{listing}");
    });
}

#[test]
fn a_refusal_names_the_command_and_leaves_nothing() {
    in_new_netns(|| {
        let mut fw = batch(Family::Inet, "t");
        fw.add_base_chain("in", &BaseChain::INPUT);
        fw.add_rule("in", Rule::new(Family::Inet).jump("nowhere"));
        let error = fw.commit().expect_err("there is no such chain");
        let WriteError::Refused { command, source } = &error else {
            panic!("{error}");
        };
        assert_eq!(command, "add rule inet t in");
        assert_eq!(source.errno(), Some(nix::libc::ENOENT), "{error}");
        assert_eq!(nft(&["list", "ruleset"], ""), "");
    });
}

#[test]
fn the_kernel_keeps_the_expressions() {
    let limit = Expr::Limit {
        rate: 7,
        unit: 60,
        burst: 5,
        kind: 0,
        flags: 1,
    };
    let load = Expr::Payload {
        dreg: 1,
        base: PayloadBase::Network,
        offset: 12,
        len: 4,
    };
    let mask = Expr::Bitwise {
        sreg: 1,
        sreg2: None,
        dreg: 1,
        len: 4,
        op: 0,
        mask: vec![255, 255, 240, 0],
        xor: vec![0; 4],
        data: Vec::new(),
    };
    let compare = Expr::Cmp {
        sreg: 1,
        op: CmpOp::Gte,
        data: vec![10, 0, 16, 0],
    };
    let one = Expr::Immediate {
        dreg: 1,
        data: Data::Value(1_u32.to_ne_bytes().into()),
    };
    let counters = Counters {
        packets: 3,
        bytes: 180,
    };
    let exprs = vec![
        load,
        mask,
        compare,
        limit,
        one,
        Expr::MetaSet { sreg: 1, key: 3 },
        Expr::Counter(counters),
        Expr::Immediate {
            dreg: 0,
            data: Data::Verdict(verdict::jump("sub")),
        },
    ];
    let ruleset = in_new_netns(|| {
        let mut fw = batch(Family::Ip, "t");
        fw.add_chain("sub").add_base_chain("in", &BaseChain::INPUT);
        let rule = exprs
            .iter()
            .cloned()
            .fold(Rule::new(Family::Ip), Rule::push);
        fw.add_rule("in", rule.comment("as it was"));
        fw.commit().expect("the kernel takes the batch");
        let mut socket = Socket::open(Protocol::Netfilter, &[]).expect("a socket");
        read_ruleset(&mut socket).expect("the ruleset")
    });
    let (_, table) = ruleset.table_named(Family::Ip, "t").expect("the table");
    let rule = &table.chain("in").expect("the chain").rules[0];
    assert_eq!(rule.exprs, exprs);
    assert_eq!(rule.comment.as_deref(), Some("as it was"));
}
