//! The evaluator against the kernel: real packets meet real rulesets, and the rules' counters say which of them matched.
//!
//! Needs root and nft.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on must say where"
)]

use std::collections::{BTreeMap, BTreeSet};

use e2e::{
    net::Net,
    netns::Netns,
    nft,
    traffic::{self, ethernet},
    wait_until,
};
use fwtrace::{
    eval::{
        miss::Texts,
        outcome::{Fate, Known, TableId},
        packet::{Connection, Device, Fact, Packet, Tracking, Tuple, Vlan},
        program::Program,
        walk::{Detail, StepResult},
        world::World,
    },
    netlink::{
        nftables::read_ruleset,
        routes::read_world_on,
        socket::{Protocol, Socket},
    },
    ruleset::{model::Ruleset, render::Names},
};

const A0: [u8; 6] = [2, 0, 0, 0, 0x0a, 0];
const R0: [u8; 6] = [2, 0, 0, 0, 0x0b, 0];
const V4: u16 = 0x0800;
const V6: u16 = 0x86dd;

fn ones_complement(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        }
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// An IPv4 packet from A to R.
#[derive(Clone)]
struct Ip4 {
    dst: [u8; 4],
    tos: u8,
    id: u16,
    fragment: u16,
    ttl: u8,
    options: Vec<u8>,
}

impl Default for Ip4 {
    fn default() -> Self {
        Self {
            dst: [10, 1, 0, 2],
            tos: 0,
            id: 1,
            fragment: 0,
            ttl: 64,
            options: Vec::new(),
        }
    }
}

impl Ip4 {
    fn packet(&self, proto: u8, payload: &[u8]) -> Vec<u8> {
        let header = 20 + self.options.len();
        let mut packet = vec![0x40 | (header / 4) as u8, self.tos];
        packet.extend(((header + payload.len()) as u16).to_be_bytes());
        packet.extend(self.id.to_be_bytes());
        packet.extend(self.fragment.to_be_bytes());
        packet.extend([self.ttl, proto, 0, 0, 10, 1, 0, 1]);
        packet.extend(self.dst);
        packet.extend(&self.options);
        let sum = ones_complement(&[&packet]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet.extend(payload);
        packet
    }

    fn pseudo(&self, proto: u8, len: usize) -> Vec<u8> {
        let mut pseudo = vec![10, 1, 0, 1];
        pseudo.extend(self.dst);
        pseudo.extend([0, proto]);
        pseudo.extend((len as u16).to_be_bytes());
        pseudo
    }
}

const SRC6: [u8; 16] = [0xfd, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const DST6: [u8; 16] = [0xfd, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];

fn pseudo6(proto: u8, len: usize) -> Vec<u8> {
    [
        &SRC6[..],
        &DST6,
        &(len as u32).to_be_bytes(),
        &[0, 0, 0, proto],
    ]
    .concat()
}

fn ip6(next: u8, flow: u32, payload: &[u8]) -> Vec<u8> {
    let mut packet = (0x6000_0000 | flow).to_be_bytes().to_vec();
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, 64]);
    packet.extend(SRC6);
    packet.extend(DST6);
    packet.extend(payload);
    packet
}

fn udp(ports: (u16, u16), payload: &[u8], pseudo: &dyn Fn(usize) -> Vec<u8>) -> Vec<u8> {
    let len = 8 + payload.len();
    let mut udp = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    udp.extend((len as u16).to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(payload);
    let sum = ones_complement(&[&pseudo(len), &udp]);
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    udp
}

fn tcp(ports: (u16, u16), flags: u8, options: &[u8], pseudo: &dyn Fn(usize) -> Vec<u8>) -> Vec<u8> {
    let len = 20 + options.len();
    let mut tcp = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    tcp.extend([
        0,
        0,
        0,
        7,
        0,
        0,
        0,
        0,
        ((len / 4) << 4) as u8,
        flags,
        0x03,
        0xe8,
        0,
        0,
        0,
        0,
    ]);
    tcp.extend(options);
    let sum = ones_complement(&[&pseudo(len), &tcp]);
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    tcp
}

/// What is sent, and what the kernel makes of it beside its bytes.
#[derive(Clone)]
struct Case {
    name: String,
    frame: Vec<u8>,
    /// The tag that the frame carries, which the kernel takes out of its bytes.
    vlan: Option<u16>,
    tracking: Tracking,
    /// Only ingress sees it.
    stops_at_ingress: bool,
    /// What hooks after ingress see, where that is another packet.
    later: Option<Vec<u8>>,
    pkttype: u8,
    /// What prerouting makes of it before input: mark, connection, and where its translated destination port is.
    input: (u32, Tracking, Option<u16>),
}

/// A packet that opens a connection, as conntrack sees it.
fn opens(l3: u8, l4: u8, ports: (u16, u16), dst: [u8; 4]) -> Tracking {
    let address = |v4: [u8; 4], v6: [u8; 16]| {
        if l3 == 10 {
            return v6;
        }
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&v4);
        bytes
    };
    let (src, dst) = (address([10, 1, 0, 1], SRC6), address(dst, DST6));
    let tuple = |src, dst, ports: (u16, u16)| Tuple {
        src,
        dst,
        sport: ports.0.to_be_bytes(),
        dport: ports.1.to_be_bytes(),
        l3proto: l3,
        l4proto: l4,
    };
    Tracking::Connection(Connection {
        info: 2,
        original: tuple(src, dst, ports),
        reply: tuple(dst, src, (ports.1, ports.0)),
        ..Connection::default()
    })
}

fn case(name: &str, ethertype: u16, packet: &[u8], tracking: Tracking) -> Case {
    Case {
        name: name.to_owned(),
        frame: ethernet(R0, A0, &[], ethertype, packet),
        vlan: None,
        tracking,
        stops_at_ingress: false,
        later: None,
        pkttype: 0,
        input: (0, tracking, None),
    }
}

/// One of each kind. Source ports differ where a connection must be new.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let ip4 = Ip4::default();
    let pseudo_udp = |len| Ip4::default().pseudo(17, len);
    let pseudo_tcp = |len| Ip4::default().pseudo(6, len);
    let mut udp4 = |name: &str, ip4: &Ip4, ports, payload: &[u8]| {
        let packet = ip4.packet(17, &udp(ports, payload, &pseudo_udp));
        cases.push(case(name, V4, &packet, opens(2, 17, ports, [10, 1, 0, 2])));
    };
    udp4("udp", &ip4, (1234, 53), b"abcd");
    udp4("udp without payload", &ip4, (1235, 53), b"");
    udp4("udp to a high port", &ip4, (1236, 60001), b"abcdefghijkl");
    let other = Ip4 {
        tos: 0x20 | 3,
        id: 777,
        ttl: 5,
        fragment: 0x4000,
        ..Ip4::default()
    };
    udp4("udp with other fields", &other, (1237, 67), b"abcd");
    let alert = Ip4 {
        options: vec![148, 4, 0, 0],
        ..Ip4::default()
    };
    udp4("udp with router alert", &alert, (1238, 53), b"abcd");
    let mss = [2, 4, 5, 0x78, 1, 3, 3, 7, 4, 2, 0, 0];
    for (name, ports, flags, options, valid) in [
        ("syn", (1234, 80), 2, &[][..], true),
        ("syn with options", (1240, 443), 2, &mss[..], true),
        ("syn to a range", (1241, 250), 2, &[], true),
        ("syn fin", (1242, 80), 3, &[], false),
        ("stray syn ack", (1243, 22), 0x12, &[], false),
        ("stray rst", (1244, 81), 4, &[], false),
        ("no flags", (1245, 85), 0, &[], false),
    ] {
        let packet = ip4.packet(6, &tcp(ports, flags, options, &pseudo_tcp));
        let tracking = if valid {
            opens(2, 6, ports, [10, 1, 0, 2])
        } else {
            Tracking::None
        };
        cases.push(case(name, V4, &packet, tracking));
    }
    let mut echo = vec![8, 0, 0, 0, 0, 7, 0, 1];
    let sum = ones_complement(&[&echo]);
    echo[2..4].copy_from_slice(&sum.to_be_bytes());
    let by_id = opens(2, 1, (7, 0x0800), [10, 1, 0, 2]);
    cases.push(case("echo request", V4, &ip4.packet(1, &echo), by_id));
    for (name, proto, payload) in [
        ("esp", 50, [0, 0, 0, 100, 0, 0, 0, 1].to_vec()),
        ("ah", 51, [4, 4, 0, 0, 0, 0, 0, 100, 0, 0, 0, 1].repeat(2)),
        ("ipcomp", 108, vec![4, 0, 0, 5, 1, 2, 3, 4]),
        ("an unknown protocol", 253, vec![1, 2, 3, 4]),
    ] {
        let packet = ip4.packet(proto, &payload);
        cases.push(case(
            name,
            V4,
            &packet,
            opens(2, proto, (0, 0), [10, 1, 0, 2]),
        ));
    }
    let pseudo6_udp = |len| pseudo6(17, len);
    let datagram = udp((1250, 53), b"abcd", &pseudo6_udp);
    let new6 = opens(10, 17, (1250, 53), [0; 4]);
    cases.push(case("udp over ipv6", V6, &ip6(17, 5, &datagram), new6));
    let pseudo6_tcp = |len| pseudo6(6, len);
    let segment = tcp((1251, 80), 2, &mss, &pseudo6_tcp);
    let new6 = opens(10, 6, (1251, 80), [0; 4]);
    cases.push(case("syn over ipv6", V6, &ip6(6, 0, &segment), new6));
    let mut echo6 = vec![128, 0, 0, 0, 0, 7, 0, 1];
    let sum = ones_complement(&[&pseudo6(58, 8), &echo6]);
    echo6[2..4].copy_from_slice(&sum.to_be_bytes());
    let new6 = opens(10, 58, (7, 0x8000), [0; 4]);
    cases.push(case(
        "echo request over ipv6",
        V6,
        &ip6(58, 0, &echo6),
        new6,
    ));
    for (name, next, header, sport) in [
        ("hop-by-hop options", 0, [17, 0, 1, 4, 0, 0, 0, 0], 1252),
        ("destination options", 60, [17, 0, 1, 4, 0, 0, 0, 0], 1253),
        ("an atomic fragment", 44, [17, 0, 0, 0, 0, 0, 0, 9], 1254),
    ] {
        let datagram = udp((sport, 53), b"abcd", &pseudo6_udp);
        let packet = ip6(next, 0, &[&header[..], &datagram].concat());
        let mut sent = case(name, V6, &packet, opens(10, 17, (sport, 53), [0; 4]));
        if next == 44 {
            // Connection tracking has put it together before prerouting: its header is gone.
            sent.later = Some(ethernet(R0, A0, &[], V6, &ip6(17, 0, &datagram)));
        }
        cases.push(sent);
    }
    // Tagged: the kernel takes the tag out, and there is no device for it.
    let packet = ip4.packet(17, &udp((1255, 53), b"abcd", &pseudo_udp));
    let tci = 3 << 13 | 42;
    cases.push(Case {
        frame: ethernet(R0, A0, &[tci], V4, &packet),
        vlan: Some(tci),
        stops_at_ingress: true,
        ..case("tagged", V4, &packet, Tracking::None)
    });
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
    arp.extend(A0);
    arp.extend([10, 1, 0, 1, 0, 0, 0, 0, 0, 0, 10, 1, 0, 2]);
    cases.push(Case {
        stops_at_ingress: true,
        ..case("arp request", 0x0806, &arp, Tracking::None)
    });
    let mut elsewhere = case("for another host", V4, &packet, Tracking::None);
    elsewhere.frame[5] = 0x77;
    elsewhere.pkttype = 3;
    elsewhere.stops_at_ingress = true;
    cases.push(elsewhere);
    cases
}

/// Rules by table, chain and number.
type RuleKey = (String, String, u64);

fn counters(ns: &Netns) -> BTreeMap<RuleKey, (u64, String)> {
    let rules = nft::list(ns).unwrap().rules;
    rules
        .into_iter()
        .filter_map(|rule| {
            let key = (rule.table, rule.chain, rule.number);
            Some((key, (rule.packets?, rule.text)))
        })
        .collect()
}

/// What the evaluator says of the packet's way through R.
struct Said {
    matched: BTreeSet<RuleKey>,
    unknown: BTreeMap<RuleKey, String>,
    dropped: Option<String>,
}

fn evaluate(
    case: &Case,
    ruleset: &Ruleset,
    program: &Program,
    world: &World,
    names: &Names,
) -> Said {
    let mut bytes = case.frame.clone();
    if case.vlan.is_some() {
        bytes.drain(12..16);
    }
    let protocol = u16::from_be_bytes([bytes[12], bytes[13]]);
    let ip_len = match protocol {
        V4 => u32::from(u16::from_be_bytes([bytes[16], bytes[17]])),
        V6 => 40 + u32::from(u16::from_be_bytes([bytes[18], bytes[19]])),
        _ => bytes.len() as u32 - 14,
    };
    let index = world
        .links
        .iter()
        .flatten()
        .find(|link| link.name == "r0")
        .unwrap()
        .index;
    let texts = Texts {
        nft: Some(ruleset),
        legacy: &[],
        names,
    };
    let mut said = Said {
        matched: BTreeSet::new(),
        unknown: BTreeMap::new(),
        dropped: None,
    };
    let pf = if protocol == V4 { 2 } else { 10 };
    let hooks: &[(u8, u8)] = if case.stops_at_ingress {
        &[(5, 0)]
    } else {
        &[(5, 0), (pf, 0), (pf, 1)]
    };
    let (mut mark, mut tracking) = (0, case.tracking);
    for &(pf, hook) in hooks {
        let seen = match &case.later {
            Some(later) if pf != 5 => later.clone(),
            _ => bytes.clone(),
        };
        let ip_len = ip_len.min(seen.len() as u32 - 14);
        let packet = Packet {
            bytes: &seen,
            l2_len: 14,
            len: ip_len,
            pf,
            hook,
            protocol,
            iif: Fact::Known(Device { index, name: "r0" }),
            oif: Fact::Absent,
            mark: Fact::Known(mark),
            priority: Fact::Known(0),
            pkttype: Fact::Known(case.pkttype),
            vlan: match case.vlan {
                Some(tci) => Fact::Known(Vlan { proto: 0x8100, tci }),
                None => Fact::Absent,
            },
            uid: Fact::Absent,
            gid: Fact::Absent,
            tracking: if pf == 5 { Tracking::None } else { tracking },
            ..Packet::default()
        };
        let known = Known::default();
        let walk = program.explain(&packet, world, &texts, &known, Detail::Full);
        let outcome = program.evaluate(&packet, world);
        assert_eq!(outcome.incomplete, None, "{}", case.name);
        let walk = walk.unwrap_or_else(|| panic!("{}: nothing at {pf} {hook}", case.name));
        for step in walk.phases.iter().flat_map(|phase| &phase.steps) {
            let TableId::Nft(table) = step.rule.chain.table else {
                panic!("no legacy tables here");
            };
            let table = &ruleset.tables[table as usize];
            let chain = &table.chains[step.rule.chain.chain as usize];
            let key = (
                table.name.clone(),
                chain.name.clone(),
                u64::from(step.rule.rule) + 1,
            );
            match &step.result {
                StepResult::Matched(_) => {
                    said.matched.insert(key);
                }
                StepResult::Missed(words) => {
                    assert!(
                        !words.subject.is_empty(),
                        "{}: no words for {key:?}",
                        case.name
                    );
                }
                StepResult::Unknown(reason, _) => {
                    said.unknown.insert(key, reason.to_string());
                }
            }
        }
        if walk.end.fate != Fate::Accept {
            said.dropped = Some(format!("{:?}", walk.end.decision));
            break;
        }
        if hook == 0 && pf != 5 {
            let port;
            (mark, tracking, port) = case.input;
            if let Some(port) = port {
                bytes[36..38].copy_from_slice(&port.to_be_bytes());
            }
        }
    }
    said
}

/// Sends every packet, and compares the rules whose counters have moved with those that the evaluator says matched.
fn compare(file: &str, cases: &[Case], known_unknown: &[&str]) {
    let net = Net::routed().unwrap();
    // What the kernel says by itself would count too.
    let quiet =
        "table ip6 quiet { chain out { type filter hook output priority 0; policy drop; }\n}";
    for ns in [&net.a, &net.b] {
        nft::load(ns, quiet).unwrap();
    }
    nft::load(&net.r, file).unwrap();
    let (ruleset, world) = net.r.run(|| {
        let ruleset = read_ruleset(&mut Socket::open(Protocol::Netfilter, &[]).unwrap()).unwrap();
        let world = read_world_on(&mut Socket::open(Protocol::Route, &[]).unwrap()).unwrap();
        (ruleset, world)
    });
    let links = world.links.iter().flatten();
    let names = Names::system().with_interfaces(links.map(|link| (link.index, link.name.clone())));
    let program = Program::new(Some(&ruleset), &[]);
    let mut wrong = Vec::new();
    let mut compared = 0;
    for case in cases {
        let before = counters(&net.r);
        net.a.run(|| traffic::frame("a0", &case.frame).unwrap());
        let sentinel = |counters: &BTreeMap<RuleKey, (u64, String)>| -> u64 {
            let mut all = counters.values();
            all.find(|(_, text)| text.contains("sentinel")).unwrap().0
        };
        let mut after = BTreeMap::new();
        assert!(
            wait_until(|| {
                after = counters(&net.r);
                sentinel(&after) > sentinel(&before)
            }),
            "{}: never seen",
            case.name
        );
        // The first counter moves first: one more reading has those of the whole way.
        after = counters(&net.r);
        let said = evaluate(case, &ruleset, &program, &world, &names);
        for (key, (packets, text)) in &after {
            let matched = *packets > before[key].0;
            if let Some(reason) = said.unknown.get(key) {
                if !known_unknown.iter().any(|part| text.contains(part)) {
                    wrong.push(format!("{}: {text}: not known: {reason}", case.name));
                }
                continue;
            }
            compared += 1;
            if matched != said.matched.contains(key) {
                wrong.push(format!(
                    "{}: {key:?} {text}: the kernel says {matched}, the evaluator does not",
                    case.name
                ));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {compared} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(compared > cases.len() * 10, "{compared} is too few");
}

#[test]
fn matches_hold_where_the_kernel_says_so() {
    let mut cases = cases();
    for case in &mut cases {
        // What the last rules of prerouting set.
        let mut tracking = case.tracking;
        if let Tracking::Connection(connection) = &mut tracking {
            connection.mark = 5;
        }
        case.input = (77, tracking, None);
    }
    let unknown = ["@expiring", "meta cpu"];
    compare(include_str!("../data/eval/matches.nft"), &cases, &unknown);
}

#[test]
fn verdicts_lead_where_the_kernel_says() {
    let mut cases = Vec::new();
    let mut sport = 3000;
    let ip4 = Ip4::default();
    let pseudo = |len| Ip4::default().pseudo(17, len);
    for dport in (1..=9).chain(19..=41).chain(50..=61).chain([70, 80, 81]) {
        for fixed in [true, false] {
            sport += 1;
            // Some rules ask for this one.
            let ports = (if fixed { 1234 } else { sport }, dport);
            let packet = ip4.packet(17, &udp(ports, b"abcd", &pseudo));
            let tracking = opens(2, 17, ports, [10, 1, 0, 2]);
            let mut case = case(&format!("udp {ports:?}"), V4, &packet, tracking);
            case.input = match dport {
                61 => (61, tracking, None),
                70 => (0, Tracking::Untracked, None),
                80 => (0, tracking, Some(8)),
                81 => (0, tracking, Some(9)),
                _ => (0, tracking, None),
            };
            cases.push(case);
        }
    }
    compare(include_str!("../data/eval/verdicts.nft"), &cases, &[]);
}
