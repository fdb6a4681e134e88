//! Every hook and family with every shape of ruleset.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use e2e::expect::{By, Iface, Want, differences};
use e2e::fwtrace::Fwtrace;
use e2e::net::{Kind, Net, Place};
use e2e::{nft, traffic};

/// A hook of a family, and a packet that goes through it.
#[derive(Clone, Copy, Debug)]
struct Site {
    kind: Kind,
    /// The table's family.
    family: &'static str,
    hook: &'static str,
    device: Option<&'static str>,
    v6: bool,
    from: Place,
    to: Place,
    iif: Iface,
    oif: Iface,
    /// Conntrack has seen the packet when it gets here, if a rule uses it.
    ct: bool,
    reject: bool,
}

use Iface::{Is, Maybe, No};
use Place::{A, B, R};

/// The hooks of IP with the traffic that reaches them: name, from, to, interfaces.
const IP_HOOKS: [(&str, Place, Place, Iface, Iface); 6] = [
    ("prerouting", A, R, Is("r0"), No),
    ("input", A, R, Is("r0"), No),
    ("forward", A, B, Is("r0"), Is("r1")),
    ("output", R, B, No, Is("r1")),
    ("postrouting", A, B, Is("r0"), Is("r1")),
    ("postrouting", R, B, No, Is("r1")),
];

/// The bridge's; postrouting is not told where the frame came in.
const BRIDGE_HOOKS: [(&str, Place, Place, Iface, Iface); 5] = [
    ("prerouting", A, B, Is("r0"), No),
    ("input", A, R, Is("r0"), No),
    ("forward", A, B, Is("r0"), Is("r1")),
    ("output", R, B, No, Is("r1")),
    ("postrouting", A, B, Maybe("r0"), Is("r1")),
];

/// Where reject works: nft_reject_validate and its siblings in net/netfilter/nft_reject_inet.c,
/// nft_reject_netdev.c and net/bridge/netfilter/nft_reject_bridge.c, v6.18.
fn reject_works(family: &str, hook: &str) -> bool {
    match family {
        "bridge" => matches!(hook, "prerouting" | "input"),
        "netdev" => hook == "ingress",
        _ => matches!(
            hook,
            "prerouting" | "input" | "forward" | "output" | "ingress"
        ),
    }
}

/// Taken by a kernel with CONFIG_NFT_BRIDGE_REJECT.
const BRIDGE_REJECT: &str = "table bridge t {
    chain c { type filter hook input priority 0; udp dport 9 reject; }
}";

fn sites() -> Vec<Site> {
    let mut sites = Vec::new();
    let mut add = |kind, family, device, (hook, from, to, iif, oif), v6, ct| {
        sites.push(Site {
            kind,
            family,
            hook,
            device,
            v6,
            from,
            to,
            iif,
            oif,
            ct,
            reject: reject_works(family, hook),
        });
    };
    for v6 in [false, true] {
        for hook in IP_HOOKS {
            let family = if v6 { "ip6" } else { "ip" };
            add(Kind::Routed, family, None, hook, v6, true);
            add(Kind::Routed, "inet", None, hook, v6, true);
        }
        let ingress = ("ingress", A, R, Is("r0"), No);
        let forwarded = ("egress", A, B, Maybe("r0"), Is("r1"));
        let sent = ("egress", R, B, No, Is("r1"));
        add(Kind::Routed, "inet", Some("r0"), ingress, v6, false);
        add(Kind::Routed, "netdev", Some("r0"), ingress, v6, false);
        add(Kind::Routed, "netdev", Some("r1"), forwarded, v6, false);
        add(Kind::Routed, "netdev", Some("r1"), sent, v6, false);
        for hook in BRIDGE_HOOKS {
            add(Kind::Bridged, "bridge", None, hook, v6, false);
        }
    }
    sites
}

/// A way to write a ruleset that drops a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Plain,
    Jump,
    JumpTwice,
    Goto,
    Vmap,
    VmapJump,
    NamedMap,
    AnonymousSet,
    NamedSet,
    IntervalSet,
    Concatenation,
    Policy,
    PolicyAfterReturn,
    PolicyAfterGoto,
    RejectIcmp,
    RejectReset,
    LogDrop,
    TwoTables,
    TwoChains,
}

const SHAPES: [Shape; 19] = [
    Shape::Plain,
    Shape::Jump,
    Shape::JumpTwice,
    Shape::Goto,
    Shape::Vmap,
    Shape::VmapJump,
    Shape::NamedMap,
    Shape::AnonymousSet,
    Shape::NamedSet,
    Shape::IntervalSet,
    Shape::Concatenation,
    Shape::Policy,
    Shape::PolicyAfterReturn,
    Shape::PolicyAfterGoto,
    Shape::RejectIcmp,
    Shape::RejectReset,
    Shape::LogDrop,
    Shape::TwoTables,
    Shape::TwoChains,
];

/// A ruleset and what it does to one packet. Comments of rules with counters say what the counter
/// has to show: `hit` and `pass`: 1, `other`: 0.
#[derive(Debug)]
struct Case {
    site: Site,
    shape: Shape,
    port: u16,
    ruleset: String,
    base_chain: &'static str,
    /// The chain whose policy drops; else the rule with comment `hit` does.
    policy: Option<(&'static str, &'static str)>,
}

/// Rules that match nothing, to move the one that counts from its place.
fn others(count: usize) -> String {
    let rule = |i| format!("udp dport 9 counter drop comment \"other {i}\"\n");
    (0..count).map(rule).collect()
}

fn case(site: Site, shape: Shape, index: usize) -> Case {
    let port = 2000 + u16::try_from(index).expect("fewer cases than ports");
    let family = site.family;
    let proto = if shape == Shape::RejectReset {
        "tcp"
    } else {
        "udp"
    };
    let head = |priority: i32, policy: &str| {
        let device = site.device.map(|d| format!("device \"{d}\" "));
        format!(
            "type filter hook {} {}priority {priority}; policy {policy};\n",
            site.hook,
            device.unwrap_or_default()
        )
    };
    let before = others(index % 4);
    let after = others(index % 3);
    // The kernel's own word on the conntrack state.
    let probe = if site.ct {
        format!("{proto} dport {port} ct state new counter comment \"pass ct\"\n")
    } else {
        String::new()
    };
    let hit = format!("{proto} dport {port} counter drop comment \"hit\"\n");
    let table = |content: String| format!("table {family} t {{\n{content}}}\n");
    // A base chain of that body, beside chains and sets of its own.
    let base = |body: &str, beside: &str| {
        let chain = format!(
            "chain base {{\n{}{probe}{before}{body}{after}}}\n",
            head(0, "accept")
        );
        table(format!("{beside}{chain}"))
    };
    let sub = |name: &str, body: &str| format!("chain {name} {{\n{after}{body}{before}}}\n");
    let ip = if site.v6 { "ip6" } else { "ip" };
    let source = match (site.kind, site.from, site.v6) {
        (_, Place::A, false) => "10.1.0.1",
        (_, Place::A, true) => "fd01::1",
        (Kind::Routed, _, false) => "10.2.0.2",
        (Kind::Routed, _, true) => "fd02::2",
        (Kind::Bridged, _, false) => "10.1.0.2",
        (Kind::Bridged, _, true) => "fd01::2",
    };
    let icmp = match family {
        "ip" => "icmp",
        "ip6" => "icmpv6",
        _ => "icmpx",
    };
    let vmap = |verdict: &str, comment: &str| {
        format!(
            "udp dport 2000-9999 counter udp dport vmap {{ 9 : accept, {port} : {verdict} }} \
             comment \"{comment}\"\n"
        )
    };
    let jump = |word: &str, to: &str, n: u32| {
        format!("udp dport {port} counter {word} {to} comment \"pass {n}\"\n")
    };
    let mut policy = None;
    let mut base_chain = "base";
    let ruleset = match shape {
        Shape::Plain => base(&hit, ""),
        Shape::Jump => base(&jump("jump", "sub", 1), &sub("sub", &hit)),
        Shape::JumpTwice => base(
            &jump("jump", "one", 1),
            &(sub("two", &hit) + &sub("one", &jump("jump", "two", 2))),
        ),
        Shape::Goto => base(&jump("goto", "sub", 1), &sub("sub", &hit)),
        Shape::Vmap => base(&vmap("drop", "hit"), ""),
        Shape::VmapJump => base(&vmap("jump sub", "pass"), &sub("sub", &hit)),
        Shape::NamedMap => base(
            "udp dport 2000-9999 counter udp dport vmap @m comment \"hit\"\n",
            &format!(
                "map m {{ type inet_service : verdict; elements = {{ 9 : accept, {port} : drop }}; }}\n"
            ),
        ),
        Shape::AnonymousSet => base(
            &format!("udp dport {{ 9, {port}, 10000-10010 }} counter drop comment \"hit\"\n"),
            "",
        ),
        Shape::NamedSet => base(
            "udp dport @s counter drop comment \"hit\"\n",
            &format!("set s {{ type inet_service; elements = {{ 9, {port} }}; }}\n"),
        ),
        Shape::IntervalSet => base(
            "udp dport @s counter drop comment \"hit\"\n",
            &format!(
                "set s {{ type inet_service; flags interval; elements = {{ 9, {port}-{} }}; }}\n",
                port + 3
            ),
        ),
        Shape::Concatenation => base(
            &format!(
                "{ip} saddr . udp dport {{ {source} . 9, {source} . {port} }} counter drop comment \"hit\"\n"
            ),
            "",
        ),
        Shape::Policy | Shape::PolicyAfterReturn | Shape::PolicyAfterGoto => {
            policy = Some(("t", "base"));
            let arp = if matches!(family, "bridge" | "netdev") {
                "meta protocol arp accept\n"
            } else {
                ""
            };
            let keep = "meta l4proto != { tcp, udp } accept\n";
            let word = if shape == Shape::PolicyAfterGoto {
                "goto"
            } else {
                "jump"
            };
            let (last, beside) = if shape == Shape::Policy {
                (format!("udp dport {port} counter comment \"pass\"\n"), "")
            } else {
                (
                    jump(word, "sub", 1),
                    "chain sub {\nudp dport 9 counter drop comment \"other sub\"\n}\n",
                )
            };
            table(format!(
                "{beside}chain base {{\n{}{arp}{keep}{probe}{before}{last}}}\n",
                head(0, "drop")
            ))
        }
        Shape::RejectIcmp => base(
            &format!(
                "udp dport {port} counter reject with {icmp} type port-unreachable comment \"hit\"\n"
            ),
            "",
        ),
        Shape::RejectReset => base(
            &format!("tcp dport {port} counter reject with tcp reset comment \"hit\"\n"),
            "",
        ),
        Shape::LogDrop => base(
            &format!("udp dport {port} log prefix \"fwt \" counter drop comment \"hit\"\n"),
            "",
        ),
        Shape::TwoTables => {
            let accept = format!("udp dport {port} counter accept comment \"pass first\"\n");
            let first = format!("chain base {{\n{}{accept}}}\n", head(-10, "accept"));
            format!("table {family} first {{\n{first}}}\n{}", base(&hit, ""))
        }
        Shape::TwoChains => {
            base_chain = "late";
            let accept = format!("udp dport {port} counter accept comment \"pass early\"\n");
            let early = format!(
                "chain early {{\n{}{before}{accept}}}\n",
                head(-10, "accept")
            );
            let late = format!(
                "chain late {{\n{}{probe}{hit}{after}}}\n",
                head(10, "accept")
            );
            table(late + &early)
        }
    };
    Case {
        site,
        shape,
        port,
        ruleset,
        base_chain,
        policy,
    }
}

/// Loads, sends, and compares; what is different.
fn run(net: &Net, case: &Case, fwtrace: &mut Fwtrace) -> Result<Vec<String>> {
    let site = case.site;
    nft::load(&net.r, &case.ruleset)?;
    let (src, dst) = net.path(site.from, site.to, site.v6, (4444, case.port));
    let (proto, len) = send(net, site, case.shape, src, dst);
    let ruleset = nft::list(&net.r)?;
    for rule in &ruleset.rules {
        if let (Some(comment), Some(packets)) = (&rule.comment, rule.packets) {
            let expected = u64::from(!comment.starts_with("other"));
            ensure!(
                packets == expected,
                "scenario: the kernel counted {packets} for {rule:?}"
            );
        }
    }
    let by = match case.policy {
        Some((table, chain)) => By::Policy(ruleset.chain(table, chain).context("no chain")?),
        None => By::Rule(ruleset.commented("hit").context("no hit")?),
    };
    let event = fwtrace.drop_to_port(case.port)?;
    let reject = matches!(case.shape, Shape::RejectIcmp | Shape::RejectReset);
    Ok(differences(
        &event.json,
        &Want {
            netns: &net.r,
            by,
            base_chain: case.base_chain,
            family: match (site.family, site.v6) {
                ("bridge", _) => "bridge",
                (_, false) => "ip",
                (_, true) => "ip6",
            },
            hook: site.hook,
            iif: site.iif,
            oif: site.oif,
            verdict: if reject { "reject" } else { "drop" },
            proto,
            src,
            dst,
            len: Some(len),
            // At egress no connection can also mean an invalid one: that is not told apart.
            ct: match (site.ct, site.hook) {
                (true, _) => Some("new"),
                (false, "egress") => None,
                (false, _) => Some("none"),
            },
        },
    ))
}

/// Sends the case's packet; its protocol and IP total length.
fn send(
    net: &Net,
    site: Site,
    shape: Shape,
    src: SocketAddr,
    dst: SocketAddr,
) -> (&'static str, u64) {
    let header = if site.v6 { 40 } else { 20 };
    net.ns(site.from).run(|| {
        // Dropped on OUTPUT, a packet fails with EPERM or ECONNREFUSED; the counters tell whether
        // it was sent.
        if shape == Shape::RejectReset {
            let _ = traffic::syn(src, dst);
            ("tcp", header + 40)
        } else {
            let _ = traffic::udp(src, dst);
            ("udp", header + 8 + traffic::PAYLOAD.len() as u64)
        }
    })
}

#[test]
fn every_hook_family_and_shape() -> Result<()> {
    let (mut count, mut right) = (0, 0);
    let mut report = String::new();
    for kind in [Kind::Routed, Kind::Bridged] {
        let net = Net::new(kind)?;
        let bridge_rejects = nft::load(&net.r, BRIDGE_REJECT).is_ok();
        let mut fwtrace = Fwtrace::start(&net.r, &[])?;
        for site in sites().into_iter().filter(|s| s.kind == kind) {
            for shape in SHAPES {
                if matches!(shape, Shape::RejectIcmp | Shape::RejectReset)
                    && (!site.reject || site.family == "bridge" && !bridge_rejects)
                {
                    continue;
                }
                let case = case(site, shape, count);
                count += 1;
                let wrong = run(&net, &case, &mut fwtrace)
                    .unwrap_or_else(|e| vec![format!("{e:#}\n{}", case.ruleset)]);
                if wrong.is_empty() {
                    right += 1;
                } else {
                    let place = format!("{} {} v6 {}", site.family, site.hook, site.v6);
                    report += &format!("{place} {shape:?}:\n  {}\n", wrong.join("\n  "));
                }
            }
        }
        let end = fwtrace.interrupt()?;
        ensure!(end.status.success(), "{}: {}", end.status, end.stderr);
    }
    e2e::report(&format!(
        "every hook, family and shape: {count} cases: {right} right"
    ));
    ensure!(right == count, "{} cases wrong\n{report}", count - right);
    Ok(())
}
