//! Whole tables: chains, returns, policies, targets that change the packet. The counters say which rule dropped.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use e2e::{net::Net, netns::Netns, report, traffic, wait_until};
use fwtrace::{
    eval::{
        outcome::{ChainId, Decision, End, Fate, Outcome, TableId},
        packet::{Connection, Device, Fact, Moment, Packet, Tracking, Tuple},
        program::Program,
    },
    netlink::{
        nftables::read_ruleset,
        socket::{Protocol, Socket},
    },
    netns::NetNs,
    ruleset::model::Ruleset,
    xtables::{
        Family,
        legacy::{Table, read::Reader},
    },
};

use crate::{
    compare::{index, quiet},
    corpus::{V4, V6},
    kernel::{TOOLS, Tool, world},
    packets::{Ip, udp},
    received,
};

/// The tables. `{a}`: A's address, `{hops}` and `{set-hops}`: how the family says TTL.
const TABLES: &str = "\
*raw
-A PREROUTING -p udp -m udp --dport 113 -j DROP
-A PREROUTING -p udp -m udp --dport 114 -j CT --notrack
-A PREROUTING -p udp -m udp --dport 120 -j TRACE
COMMIT
*mangle
:sub - [0:0]
:gone - [0:0]
:deep - [0:0]
:deeper - [0:0]
-A PREROUTING -p udp -m udp --dport 100 -j MARK --set-xmark 0x7/0xff
-A PREROUTING -m mark --mark 0x7 -j DROP
-A PREROUTING -p udp -m udp --dport 101 -j {set-hops} 9
-A PREROUTING {hops} 9 -j DROP
-A PREROUTING -p udp -m udp --dport 102 -j TOS --set-tos 0x10
-A PREROUTING -m tos --tos 0x10 -j DROP
-A PREROUTING -p udp -m udp --dport 103 -j DSCP --set-dscp 10
-A PREROUTING -m dscp --dscp 10 -j DROP
-A PREROUTING -p udp -m udp --dport 104 -j sub
-A PREROUTING -p udp -m udp --dport 104 -j DROP
-A PREROUTING -p udp -m udp --dport 105 -g gone
-A PREROUTING -p udp -m udp --dport 105 -j DROP
-A PREROUTING -p udp -m udp --dport 106 -j deep
-A PREROUTING -p udp -m udp --dport 107 -j CONNMARK --set-xmark 0x3/0xffffffff
-A PREROUTING -m connmark --mark 0x3 -j DROP
-A PREROUTING -p udp -m udp --dport 108 -j MARK --set-xmark 0x10/0x10
-A PREROUTING -m mark --mark 0x10/0x10 -j CONNMARK --save-mark
-A PREROUTING -m connmark --mark 0x10 -j DROP
-A PREROUTING -p udp -m udp --dport 109 -j ACCEPT
-A PREROUTING -p udp -m udp --dport 109 -j DROP
-A PREROUTING -p udp -m conntrack --ctstate UNTRACKED -j DROP
-A PREROUTING -p udp -m udp --dport 118 -j NFLOG --nflog-group 9
-A PREROUTING -p udp -m udp --dport 118 -m recent --set --name w -j DROP
-A sub -s {a} -j RETURN
-A sub -j DROP
-A gone -p udp -m udp --dport 1 -j DROP
-A deep -j deeper
-A deep -j DROP
-A deeper -j RETURN
COMMIT
*filter
:FORWARD DROP [0:0]
-A FORWARD -p udp -m udp --dport 110 -j ACCEPT
-A FORWARD -p udp -m udp --dport 111 -j REJECT
-A FORWARD -p udp -m udp --dport 112 -j NFQUEUE --queue-num 3
-A FORWARD -p udp -m udp --dport 116 -j DROP
-A FORWARD -p udp -m udp --dport 117 -m limit --limit 1/hour -j DROP
-A FORWARD -p udp -m udp --dport 117 -j DROP
COMMIT
*nat
-A PREROUTING -p udp -m udp --dport 115 -j DNAT --to-destination :116
COMMIT
";

/// `table chain number`, or `table chain policy`.
type Place = (String, String, String);

/// Packets that each rule that ends a packet's way has counted.
fn counters(tool: Tool, ns: &Netns) -> Result<HashMap<Place, u64>> {
    let saved = ns.command(&[&format!("{}-save", tool.name), "-c"], "")?;
    let mut found = HashMap::new();
    let mut numbers: HashMap<(String, String), u32> = HashMap::new();
    let mut table = String::new();
    for line in saved.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let packets = |text: &str| {
            text.trim_start_matches('[')
                .split(':')
                .next()
                .map(str::parse)
        };
        match words.as_slice() {
            [name] if name.starts_with('*') => table = name[1..].to_owned(),
            [chain, "DROP", count] if chain.starts_with(':') => {
                let place = (table.clone(), chain[1..].to_owned(), "policy".to_owned());
                found.insert(place, packets(count).context("no count")??);
            }
            [count, "-A", chain, ..] => {
                let key = (table.clone(), (*chain).to_owned());
                let number = numbers.entry(key).or_default();
                *number += 1;
                let ends = ["DROP", "REJECT", "NFQUEUE"];
                if line
                    .split(" -j ")
                    .nth(1)
                    .is_some_and(|t| ends.iter().any(|e| t.starts_with(e)))
                {
                    let place = (table.clone(), (*chain).to_owned(), number.to_string());
                    found.insert(place, packets(count).context("no count")??);
                }
            }
            _ => {}
        }
    }
    Ok(found)
}

/// The rulesets as fwtrace reads them.
struct Rules {
    nft: Option<Ruleset>,
    legacy: Vec<Table>,
}

impl Rules {
    fn read(tool: Tool, ns: &Netns) -> Result<Self> {
        if tool.legacy {
            let raw = Reader::open(&NetNs::find(ns.name())?)?.read()?;
            let family = if tool.v6 { Family::V6 } else { Family::V4 };
            let tables = raw.iter().map(|raw| raw.parse());
            return Ok(Self {
                nft: None,
                legacy: tables.filter(|table| table.family == family).collect(),
            });
        }
        let nft = ns.run(|| -> Result<Ruleset> {
            Ok(read_ruleset(&mut Socket::open(Protocol::Netfilter, &[])?)?)
        })?;
        Ok(Self {
            nft: Some(nft),
            legacy: Vec::new(),
        })
    }

    fn chain(&self, id: ChainId) -> Option<(String, String)> {
        match id.table {
            TableId::Nft(index) => {
                let table = self.nft.as_ref()?.tables.get(index as usize)?;
                let chain = table.chains.get(id.chain as usize)?;
                Some((table.name.clone(), chain.name.clone()))
            }
            TableId::Legacy(index) => {
                let table = self.legacy.get(index as usize)?;
                let chain = table.chains.get(id.chain as usize)?;
                Some((table.name.clone(), chain.name.clone()))
            }
        }
    }

    /// Where an end comes from; `None`: the packet passes.
    fn place(&self, end: &End) -> Option<Place> {
        let (chain, number) = match end.decision {
            Decision::Rule(rule) => (rule.chain, (rule.rule + 1).to_string()),
            Decision::Policy(chain) => (chain, "policy".to_owned()),
            Decision::Passed => return None,
        };
        let (table, chain) = self.chain(chain)?;
        Some((table, chain, number))
    }

    fn places(&self, outcome: &Outcome) -> Vec<Option<Place>> {
        outcome.ends.iter().map(|end| self.place(end)).collect()
    }
}

fn tracked(ip: &Ip, dport: u16, new_dport: u16) -> Tracking {
    let octets = |address: std::net::IpAddr| match address {
        std::net::IpAddr::V4(v4) => {
            let mut all = [0; 16];
            all[..4].copy_from_slice(&v4.octets());
            all
        }
        std::net::IpAddr::V6(v6) => v6.octets(),
    };
    let original = Tuple {
        src: octets(ip.src),
        dst: octets(ip.dst),
        sport: 5000_u16.to_be_bytes(),
        dport: dport.to_be_bytes(),
        l3proto: if ip.src.is_ipv4() { 2 } else { 10 },
        l4proto: 17,
    };
    let translated = dport != new_dport;
    Tracking::Connection(Connection {
        info: 2,
        status: if translated {
            Connection::DST_NAT | Connection::DST_NAT_DONE
        } else {
            0
        },
        mark: 0,
        zone: 0,
        original,
        reply: Tuple {
            src: original.dst,
            dst: original.src,
            sport: new_dport.to_be_bytes(),
            dport: original.sport,
            ..original
        },
        tcp_state: None,
    })
}

/// What the evaluator says of a packet to this port: the ends at the hook that drops it.
fn walk(rules: &Rules, net: &Net, v6: bool, port: u16) -> Result<Outcome> {
    let at = if v6 { &V6 } else { &V4 };
    let world = world(&net.r)?;
    let program = Program::new(rules.nft.as_ref(), &rules.legacy);
    let (r0, r1) = (index(&world, "r0")?, index(&world, "r1")?);
    let ip = Ip::new(at.a, at.b, 17, udp((5000, port), b"walk"));
    let frame = ip.frame(crate::R0);
    let untracked = port == 114;
    let facts = received("r0", r0, v6);
    let entry = Packet {
        bytes: &frame,
        len: (frame.len() - crate::L2) as u32,
        moment: Moment::Entry,
        tracking: if untracked {
            Tracking::Untracked
        } else {
            tracked(&ip, port, port)
        },
        ..facts
    };
    let outcome = program.evaluate(&entry, &world);
    ensure!(outcome.incomplete.is_none(), "{port}: {outcome:?}");
    if outcome.ends.iter().any(|end| end.fate != Fate::Accept) {
        return Ok(outcome);
    }
    let new_port = if port == 115 { 116 } else { port };
    let forwarded = Ip::new(at.a, at.b, 17, udp((5000, new_port), b"walk")).with(|ip| ip.ttl = 63);
    let frame = forwarded.frame(crate::R0);
    let packet = Packet {
        bytes: &frame,
        hook: 2,
        oif: Fact::Known(Device {
            index: r1,
            name: "r1",
        }),
        tracking: tracked(&ip, port, new_port),
        ..entry
    };
    Ok(program.evaluate(&packet, &world))
}

/// The ends before routing for a packet as it was when it was dropped, with what the rules had made of it.
/// `None`: so much is written here that not all ends are looked at.
fn at_drop(rules: &Rules, net: &Net, v6: bool, port: u16) -> Result<Option<Vec<Option<Place>>>> {
    let at = if v6 { &V6 } else { &V4 };
    let world = world(&net.r)?;
    let program = Program::new(rules.nft.as_ref(), &rules.legacy);
    let ip = Ip::new(at.a, at.b, 17, udp((5000, port), b"walk")).with(|ip| match port {
        101 => ip.ttl = 9,
        102 => ip.tos = 0x10,
        103 => ip.tos = 0x28,
        _ => {}
    });
    let frame = ip.frame(crate::R0);
    let mut tracking = tracked(&ip, port, port);
    if let Tracking::Connection(connection) = &mut tracking {
        connection.mark = match port {
            107 => 3,
            108 => 0x10,
            _ => 0,
        };
    }
    let packet = Packet {
        bytes: &frame,
        len: (frame.len() - crate::L2) as u32,
        moment: Moment::Drop,
        mark: Fact::Known(match port {
            100 => 7,
            108 => 0x10,
            _ => 0,
        }),
        tracking,
        ..received("r0", index(&world, "r0")?, v6)
    };
    let outcome = program.evaluate(&packet, &world);
    let whole = outcome.incomplete.is_none();
    Ok(whole.then(|| rules.places(&outcome)))
}

fn tables(tool: Tool) -> Result<()> {
    let net = quiet()?;
    let (at, hops, set) = if tool.v6 {
        (&V6, "-m hl --hl-eq", "HL --hl-set")
    } else {
        (&V4, "-m ttl --ttl-eq", "TTL --ttl-set")
    };
    let script = TABLES
        .replace("{a}", at.a)
        .replace("{hops}", hops)
        .replace("{set-hops}", set);
    net.r
        .command(&[&format!("{}-restore", tool.name)], &script)?;
    let rules = Rules::read(tool, &net.r)?;
    let (mut right, mut one) = (0, 0);
    for port in 100..=121_u16 {
        let before = counters(tool, &net.r)?;
        let ip = Ip::new(at.a, at.b, 17, udp((5000, port), b"walk"));
        let mut moved = Vec::new();
        net.a.run(|| traffic::frame("a0", &ip.frame(crate::R0)))?;
        // Those that are accepted come to B; all others have a rule or a policy that counts them.
        let accepted = port == 110;
        if !accepted {
            let seen = wait_until(|| {
                let after = counters(tool, &net.r).unwrap_or_default();
                let more = after
                    .iter()
                    .filter(|(place, n)| before.get(*place) < Some(*n));
                moved = more.map(|(place, _)| place.clone()).collect();
                !moved.is_empty()
            });
            ensure!(seen, "{port}: nothing counted it");
        }
        let outcome = walk(&rules, &net, tool.v6, port)?;
        ensure!(outcome.incomplete.is_none(), "{port}: {outcome:?}");
        let places = rules.places(&outcome);
        match (port, moved.as_slice()) {
            (110, []) => ensure!(places == [None], "{port}: {places:?}"),
            // A limit: both rules are possible, and one of them it was.
            (117, [place]) => {
                ensure!(places.len() == 2, "{port}: {places:?}");
                ensure!(places.contains(&Some(place.clone())), "{port}: {places:?}");
            }
            (_, [place]) => {
                ensure!(
                    places == [Some(place.clone())],
                    "{port}: {place:?}, evaluator {places:?}"
                );
                let fate = outcome.ends.first().map(|end| end.fate);
                let wanted = match port {
                    111 => Fate::Reject,
                    112 => Fate::Queue {
                        number: 3,
                        bypass: false,
                    },
                    _ => Fate::Drop,
                };
                ensure!(fate == Some(wanted), "{port}: {fate:?}");
                if matches!(port, 100..=109) {
                    let Some(places) = at_drop(&rules, &net, tool.v6, port)? else {
                        right += 1;
                        continue;
                    };
                    let dropping: Vec<_> = places.iter().flatten().collect();
                    ensure!(dropping.contains(&place), "{port} at its drop: {places:?}");
                    one += usize::from(dropping.len() == 1);
                }
            }
            (_, moved) => bail!("{port}: counted by {moved:?}"),
        }
        right += 1;
    }
    report(&format!(
        "{}: {right} packets through whole tables; of 8 at their drop {one} had one end",
        tool.name
    ));
    Ok(())
}

#[test]
fn tables_of_iptables_legacy() -> Result<()> {
    tables(TOOLS[0])
}

#[test]
fn tables_of_ip6tables_legacy() -> Result<()> {
    tables(TOOLS[1])
}

#[test]
fn tables_of_iptables_nft() -> Result<()> {
    tables(TOOLS[2])
}

#[test]
fn tables_of_ip6tables_nft() -> Result<()> {
    tables(TOOLS[3])
}
