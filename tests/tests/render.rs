//! Rules as fwtrace renders them, against `nft -a list ruleset`, over a corpus that covers every statement and match kind nft 1.0.6 has.
//!
//! Each corpus file is loaded by the real nft into a namespace of its own, read over netlink, rendered, and compared item by item: rules by
//! their handles, declarations of chains, sets, maps and objects with their elements. Needs root, nft and ip.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on must say where"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use e2e::netns::Netns;
use fwtrace::netlink::nftables::read_ruleset;
use fwtrace::netlink::socket::{Protocol, Socket};
use fwtrace::ruleset::model::{Chain, Data, Expr, Ruleset, Set, Table, Verdict};
use fwtrace::ruleset::render::{self, Names, Options};

/// The corpus: one file for each family.
const CORPUS: [&str; 6] = ["ip", "ip6", "inet", "arp", "bridge", "netdev"];

/// A rule that is not the same text, and why.
struct Difference {
    /// As nft lists it.
    nft: &'static str,
    /// As fwtrace does.
    ours: &'static str,
    why: &'static str,
}

/// What is known to differ: rules that nft itself lists as something else than they are. In all of these it is fwtrace's text that, loaded again,
/// gives the rule that the kernel has; the test checks that too.
const DIFFERENCES: &[Difference] = &[
    Difference {
        nft: "th dport 53",
        ours: "meta l4proto gre th dport 53",
        why: "nft leaves out the match on the protocol, which the ports of an unnamed one do not imply",
    },
    Difference {
        nft: "th dport 5",
        ours: "ip protocol gre th dport 5",
        why: "nft leaves out the match on the protocol, which the ports of an unnamed one do not imply",
    },
    Difference {
        nft: "tcp dport 1000-2000",
        ours: "tcp sport >= 1000 tcp dport <= 2000",
        why: "nft makes one range of the bounds of two fields",
    },
    Difference {
        nft: "meta length != 100-50",
        ours: "meta length < 100 meta length > 50",
        why: "nft takes the two bounds for a range that is excluded",
    },
    Difference {
        nft: "tcp dport 22",
        ours: "ct protocol tcp tcp dport 22",
        why: "nft leaves out the match on the connection's protocol, which is not the packet's in an ICMP error",
    },
    Difference {
        nft: "synproxy mss 1460 wscale 0",
        ours: "synproxy mss 1460",
        why: "nft writes an option that is not set",
    },
    Difference {
        nft: "synproxy mss 0 wscale 7 timestamp",
        ours: "synproxy wscale 7 timestamp",
        why: "nft writes an option that is not set",
    },
    Difference {
        nft: "ip saddr > 10.0.0.0/8",
        ours: "ip saddr & 255.0.0.0 > 10.0.0.0",
        why: "nft writes a masked comparison as one with a prefix",
    },
    Difference {
        nft: "ip saddr != 10.0.0.1 ip daddr != 10.0.0.2",
        ours: "@nh,96,64 != 0xa0000010a000002",
        why: "nft makes two matches, of which both must hold, of one that holds if either part differs",
    },
    Difference {
        nft: "ct expiration 0s-1s",
        ours: "ct expiration 500ms-1s500ms",
        why: "nft cuts the ends of the range to seconds",
    },
    Difference {
        nft: "(@nh,8,8 & 0xfc) >> 2 & 0x38 == 0x8",
        ours: "ip dscp & cs7 == cs1",
        why: "nft does not find the field",
    },
    Difference {
        nft: "ip version >> 4 . ip dscp >> 2 { 0 . 0x04 }",
        ours: "ip version . ip dscp { 4 . cs1 }",
        why: "nft shifts the values of the fields once too often",
    },
    Difference {
        nft: "meta l4proto tcp reject with tcp reset",
        ours: "meta nfproto ipv4 meta l4proto tcp reject with tcp reset",
        why: "nft leaves out the match on the family, which a TCP reset does not imply",
    },
    Difference {
        nft: "tcp dport 22 reject with tcp reset",
        ours: "meta nfproto ipv4 tcp dport 22 reject with tcp reset",
        why: "nft leaves out the match on the family, which a TCP reset does not imply",
    },
    Difference {
        nft: "vlan id 5 vlan pcp 0 vlan dei 0 vlan id 17 vlan type 0x2233 @ll,32,16 0x4455",
        ours: "vlan id 5 ether daddr 00:11:22:33:44:55",
        why: "nft reads the Ethernet address as a VLAN tag",
    },
    Difference {
        nft: "meta protocol ip",
        ours: "meta iiftype ether meta protocol ip",
        why: "nft leaves out the match on the device's type",
    },
    Difference {
        nft: "meta l4proto icmp",
        ours: "meta nfproto ipv4 meta l4proto icmp",
        why: "nft leaves out the match on the family, which the number of a protocol does not imply",
    },
    Difference {
        nft: "meta l4proto ipv6-icmp accept",
        ours: "meta nfproto ipv6 meta l4proto ipv6-icmp accept",
        why: "nft leaves out the match on the family, which the number of a protocol does not imply",
    },
    Difference {
        nft: "meta l4proto icmp",
        ours: "ether type ip meta l4proto icmp",
        why: "nft leaves out the match on the family, which the number of a protocol does not imply",
    },
    Difference {
        nft: "tcp dport 22",
        ours: "ip6 nexthdr tcp tcp dport 22",
        why: "nft leaves out that there is no extension header",
    },
    Difference {
        nft: "reject with tcp reset",
        ours: "ip6 nexthdr tcp reject with tcp reset",
        why: "nft leaves out that there is no extension header",
    },
];

/// Rules that are another program when they are loaded again, one that does the same, and why.
const EQUIVALENT: &[(&str, &str)] = &[
    ("ip saddr 10.0.0.1 ip daddr 10.0.0.2", "loaded at once"),
    ("meta length 50-100", "loaded once for both ends"),
    (
        "meta mark 0x00000005-0x00000007",
        "loaded once for both ends",
    ),
    ("ip ttl { 1-5 }", "a set of one range is a range"),
    ("udp dport 53", "IPv4 says its protocol in both ways"),
    ("tcp dport 80", "IPv4 says its protocol in both ways"),
    (
        "reject with tcp reset",
        "IPv4 says its protocol in both ways",
    ),
    ("udp sport set 53", "IPv4 says its protocol in both ways"),
    ("tcp flags == 0x29", "a mask of all bits"),
    (
        "ip saddr 1.2.3.4",
        "the family of the packet and its type in the Ethernet header",
    ),
    (
        "ip saddr 10.0.0.1",
        "the family of the packet and its type in the Ethernet header",
    ),
    (
        "icmp type echo-request",
        "the family of the packet and its type in the Ethernet header",
    ),
    ("icmpv6 type nd-router-advert", "ICMPv6 is in IPv6"),
    ("ct original ip saddr 1.2.3.4", "the address of a family"),
    (
        "meta nfproto ipv4 ct original ip saddr != 1.2.3.4",
        "the address of a family",
    ),
];

/// A part of a listing by what it is: `inet t chain in`, `inet t chain in rule 5`, `inet t set s`.
type Items = BTreeMap<String, String>;

/// Splits a listing with handles.
fn items(listing: &str) -> Items {
    let mut items = Items::new();
    let mut table = String::new();
    let mut block = String::new();
    let mut rule = String::new();
    for line in listing.lines() {
        let line = without_expiry(line);
        if let Some(name) = line.strip_prefix("table ") {
            table = name.split(" {").next().unwrap().to_owned();
            items.insert(table.clone(), format!("{line}\n"));
            block = table.clone();
        } else if line.starts_with('\t')
            && !line.starts_with("\t\t")
            && line.ends_with(|c: char| c.is_ascii_digit())
            && line.contains(" { # handle ")
        {
            block = format!("{table} {}", line.trim().split(" {").next().unwrap());
            items.insert(block.clone(), format!("{line}\n"));
        } else if let Some((_, handle)) = line
            .rsplit_once(" # handle ")
            .filter(|_| block.contains(" chain "))
        {
            rule += line.trim();
            items.insert(format!("{block} rule {handle}"), std::mem::take(&mut rule));
        } else if line.starts_with("\t\ttype ")
            || line.starts_with("\t\tcomment ")
            || !block.contains(" chain ")
            || line.len() < 3
        {
            *items.entry(block.clone()).or_default() += &format!("{line}\n");
        } else {
            // A rule over several lines: its handle comes with the last.
            rule += &format!("{line}\n");
        }
    }
    items
}

/// Elements of sets have less time left at each listing.
fn without_expiry(line: &str) -> String {
    let mut out = String::new();
    let mut words = line.split(' ').peekable();
    while let Some(word) = words.next() {
        out += word;
        if word == "expires" {
            let time = words.next().unwrap_or_default();
            let after: String = time
                .chars()
                .filter(|c| !c.is_ascii_alphanumeric())
                .collect();
            out += &format!(" T{after}");
        }
        if words.peek().is_some() {
            out.push(' ');
        }
    }
    out
}

struct Loaded {
    nft: String,
    ruleset: Ruleset,
    names: Names,
}

/// A namespace with the devices that the corpus names.
fn namespace() -> [Netns; 1] {
    let made = Netns::create().unwrap();
    made[0]
        .ip("link set lo up\nlink add d0 type veth peer name d1\n")
        .unwrap();
    made
}

fn read(ns: &Netns) -> Ruleset {
    ns.run(|| {
        let mut socket = Socket::open(Protocol::Netfilter, &[]).unwrap();
        read_ruleset(&mut socket).unwrap()
    })
}

/// Loads a corpus file into a new namespace; what nft lists and what fwtrace reads.
fn load(family: &str) -> Loaded {
    let [ns] = namespace();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("data/render/{family}.nft"));
    let rules = fs::read_to_string(path).unwrap();
    ns.command(&["nft", "-f", "-"], &rules).unwrap();
    let nft = ns.command(&["nft", "-a", "list", "ruleset"], "").unwrap();
    let ruleset = read(&ns);
    assert_eq!(ruleset.problems, Vec::<String>::new());
    let links = ns.command(&["ip", "-o", "link"], "").unwrap();
    let links = links.lines().map(|line| {
        let mut fields = line.split(": ");
        let index = fields.next().unwrap().parse().unwrap();
        let name = fields.next().unwrap().split('@').next().unwrap();
        (index, name.to_owned())
    });
    let names = Names::system().with_interfaces(links);
    Loaded {
        nft,
        ruleset,
        names,
    }
}

#[test]
fn the_corpus_is_rendered_as_nft_lists_it() {
    let (mut rules, mut same, mut declarations) = (0, 0, 0);
    let mut wrong = Vec::new();
    let mut seen = vec![false; DIFFERENCES.len()];
    for family in CORPUS {
        let loaded = load(family);
        let options = Options {
            names: &loaded.names,
            stateless: false,
            handles: true,
        };
        let expected = items(&loaded.nft);
        let mut actual = items(&render::ruleset(&loaded.ruleset, &options));
        for (what, nft) in &expected {
            let ours = actual.remove(what).unwrap_or_default();
            let is_rule = what.contains(" rule ");
            rules += usize::from(is_rule);
            declarations += usize::from(!is_rule);
            if *nft == ours {
                same += usize::from(is_rule);
                continue;
            }
            let text = |item: &str| {
                item.rsplit_once(" # handle ")
                    .map_or_else(|| item.to_owned(), |parts| parts.0.to_owned())
            };
            let known = DIFFERENCES
                .iter()
                .position(|known| text(nft) == known.nft && text(&ours) == known.ours);
            match known {
                Some(known) if is_rule => seen[known] = true,
                _ => wrong.push(format!("{what}\n  nft:  {nft}\n  ours: {ours}")),
            }
        }
        wrong.extend(
            actual
                .iter()
                .map(|(what, ours)| format!("{what}\n  nft has none\n  ours: {ours}")),
        );
    }
    for (known, seen) in DIFFERENCES.iter().zip(seen) {
        if !seen {
            wrong.push(format!(
                "listed as different ({}), and is not: {}",
                known.why, known.nft
            ));
        }
    }
    println!(
        "{same} of {rules} rules are the same text; {declarations} tables, chains, sets and objects are"
    );
    assert!(
        wrong.is_empty(),
        "{} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(rules >= 220 && same * 100 >= rules * 95);
}

/// What the kernel runs, by rule: its place, its program with anonymous sets by their contents and anonymous chains by their order, and
/// its text.
fn programs(ruleset: &Ruleset, options: &Options<'_>) -> Vec<(String, String, String)> {
    let mut programs = Vec::new();
    for table in &ruleset.tables {
        let bound: Vec<&str> = table
            .chains
            .iter()
            .filter(|chain| chain.flags & Chain::BINDING != 0)
            .map(|chain| chain.name.as_str())
            .collect();
        let chain_name = |name: &str| match bound.iter().position(|bound| *bound == name) {
            Some(index) => format!("anonymous {index}"),
            None => name.to_owned(),
        };
        for chain in &table.chains {
            for rule in &chain.rules {
                let exprs = rule.exprs.iter().map(|expr| match expr {
                    Expr::Lookup {
                        set,
                        sreg,
                        dreg,
                        flags,
                    } => {
                        format!(
                            "lookup {sreg} {dreg:?} {flags} {}",
                            set_contents(table, set)
                        )
                    }
                    Expr::ObjrefMap { sreg, set } => {
                        format!("objref {sreg} {}", set_contents(table, set))
                    }
                    Expr::Immediate {
                        data:
                            Data::Verdict(Verdict {
                                code,
                                chain: Some(chain),
                            }),
                        ..
                    } => {
                        format!("verdict {code} {}", chain_name(chain))
                    }
                    // The kernel makes a seed up where none is given.
                    Expr::Hash {
                        modulus, offset, ..
                    } => format!("hash {modulus} {offset}"),
                    expr => format!("{expr:?}"),
                });
                let program = exprs.collect::<Vec<_>>().join("\n");
                let (family, chain) = (table.family, chain_name(&chain.name));
                let place = format!("{family} {} {chain} {}", table.name, rule.number);
                programs.push((place, program, render::rule(table, rule, options)));
            }
        }
    }
    programs.sort();
    programs
}

/// A named set by its name, an anonymous one by what it holds.
fn set_contents(table: &Table, name: &str) -> String {
    let set = table
        .set(name)
        .filter(|set| set.flags & Set::ANONYMOUS != 0);
    let Some(set) = set else {
        return name.to_owned();
    };
    let mut elements: Vec<String> = set
        .elements
        .iter()
        .map(|element| format!("{:?} {:?} {:?}", element.key, element.key_end, element.data))
        .collect();
    elements.sort();
    format!("{} {}", set.flags, elements.join(", "))
}

#[test]
fn what_is_rendered_is_the_rule_again_when_it_is_loaded() {
    let (mut rules, mut same) = (0, 0);
    let mut wrong = Vec::new();
    let mut seen = vec![false; EQUIVALENT.len()];
    for family in CORPUS {
        let loaded = load(family);
        let options = Options {
            names: &loaded.names,
            stateless: false,
            handles: false,
        };
        let again = render::ruleset(&loaded.ruleset, &options);
        let [ns] = namespace();
        ns.command(&["nft", "-f", "-"], &again).unwrap();
        let second = programs(&read(&ns), &options);
        let first = programs(&loaded.ruleset, &options);
        rules += first.len();
        assert_eq!(first.len(), second.len());
        for ((place, before, text), (_, after, _)) in first.iter().zip(&second) {
            if before == after {
                same += 1;
                continue;
            }
            match EQUIVALENT.iter().position(|known| known.0 == text) {
                Some(known) => seen[known] = true,
                None => wrong.push(format!("{place}: {text}\n{before}\n  becomes\n{after}")),
            }
        }
    }
    for ((text, why), seen) in EQUIVALENT.iter().zip(seen) {
        if !seen {
            wrong.push(format!(
                "listed as another program ({why}), and is not: {text}"
            ));
        }
    }
    println!("{same} of {rules} rules are the same program again");
    assert!(
        wrong.is_empty(),
        "{} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn iptables_extensions_are_shown_by_name() {
    let [ns] = namespace();
    let rules = "*filter\n\
        -A INPUT -p tcp -m tcp --dport 22 -m conntrack --ctstate NEW -m comment --comment ssh -j REJECT\n\
        -A INPUT -s 10.0.0.0/8 -i eth0 -j DROP\n\
        COMMIT\n";
    ns.command(&["iptables-nft-restore"], rules).unwrap();
    let ruleset = read(&ns);
    let names = Names::system();
    let options = Options {
        names: &names,
        stateless: true,
        handles: false,
    };
    let table = &ruleset.tables[0];
    let chain = table.chain("INPUT").unwrap();
    let texts: Vec<String> = chain
        .rules
        .iter()
        .map(|rule| render::rule(table, rule, &options))
        .collect();
    assert_eq!(
        texts,
        [
            "tcp dport 22 xt match \"conntrack\" xt match \"comment\" counter xt target \"REJECT\"",
            "iifname \"eth0\" ip saddr 10.0.0.0/8 counter drop",
        ]
    );
}
