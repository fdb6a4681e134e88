//! Matches on connections, on sockets and on the outgoing interface.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use e2e::{net::Net, traffic};
use fwtrace::eval::packet::{Connection, Device, Fact, Packet, Tracking, Tuple};

use crate::{
    compare::{Case, compare, index, quiet},
    corpus::{V4, V6},
    kernel::{TOOLS, Tool, world},
    packets::{Ip, icmp, tcp, udp},
    received,
};

const STATES: &[&str] = &[
    "-m conntrack --ctstate NEW",
    "-m conntrack ! --ctstate NEW",
    "-m conntrack --ctstate ESTABLISHED",
    "-m conntrack --ctstate RELATED,ESTABLISHED",
    "-m conntrack --ctstate INVALID",
    "-m conntrack ! --ctstate INVALID",
    "-m conntrack --ctstate UNTRACKED",
    "-m conntrack --ctstate INVALID,UNTRACKED",
    "-m conntrack --ctstate SNAT,DNAT",
    "-m conntrack ! --ctstate DNAT",
    "-m state --state NEW",
    "-m state --state RELATED,ESTABLISHED",
    "-m state --state INVALID",
    "-m state --state UNTRACKED",
    "-m conntrack --ctdir ORIGINAL",
    "-m conntrack --ctdir REPLY",
    "-m conntrack --ctstate ESTABLISHED --ctdir REPLY",
    "-m conntrack --ctproto 17",
    "-m conntrack ! --ctproto 17",
    "-m conntrack --ctorigsrcport 5000",
    "-m conntrack --ctorigdstport 53:60",
    "-m conntrack ! --ctorigdstport 53:60",
    "-m conntrack --ctreplsrcport 53 --ctrepldstport 5000",
    "-m conntrack --ctstatus SEEN_REPLY",
    "-m conntrack ! --ctstatus SEEN_REPLY",
    "-m conntrack --ctstatus CONFIRMED,ASSURED",
    "-m conntrack --ctstatus NONE",
    "-m conntrack ! --ctstatus NONE",
    "-m connmark --mark 0x0",
    "-m connmark ! --mark 0x5",
    "-m connmark --mark 0x1/0x1",
    "? -m conntrack --ctexpire 1:1000",
    "? -m connbytes --connbytes 1: --connbytes-dir both --connbytes-mode packets",
    "? -m connlimit --connlimit-above 1",
    "? -m helper --helper ftp",
];

const STATES_V4: &[&str] = &[
    "-m conntrack --ctorigsrc 10.1.0.1",
    "-m conntrack --ctorigsrc 10.2.0.0/24",
    "-m conntrack ! --ctorigdst 10.2.0.0/16",
    "-m conntrack --ctreplsrc 10.2.0.1 --ctrepldst 10.1.0.1",
];

const STATES_V6: &[&str] = &[
    "-m conntrack --ctorigsrc fd01::1",
    "-m conntrack --ctorigsrc fd02::/64",
    "-m conntrack ! --ctorigdst fd02::/64",
    "-m conntrack --ctreplsrc fd02::1 --ctrepldst fd01::1",
];

fn raw(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        }
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// A's connection to B.
fn connection(v6: bool, proto: u8, ports: (u16, u16), info: u8, status: u32) -> Tracking {
    let at = if v6 { &V6 } else { &V4 };
    let address = |text: &str| raw(text.parse().expect("an address"));
    let original = Tuple {
        src: address(at.a),
        dst: address(at.b),
        sport: ports.0.to_be_bytes(),
        dport: ports.1.to_be_bytes(),
        l3proto: if v6 { 10 } else { 2 },
        l4proto: proto,
    };
    Tracking::Connection(Connection {
        info,
        status,
        mark: 0,
        zone: 0,
        original,
        reply: Tuple {
            src: original.dst,
            dst: original.src,
            sport: original.dport,
            dport: original.sport,
            ..original
        },
        tcp_state: None,
    })
}

fn states(tool: Tool) -> Result<()> {
    let net = quiet()?;
    let v6 = tool.v6;
    let at = if v6 { &V6 } else { &V4 };
    let icmp_proto = if v6 { 58 } else { 1 };
    let raw_table = "*raw\n-A PREROUTING -p udp -m udp --dport 9 -j CT --notrack\nCOMMIT\n";
    net.r
        .command(&[&format!("{}-restore", tool.name)], raw_table)?;
    let world = world(&net.r)?;
    let (r0, r1) = (index(&world, "r0")?, index(&world, "r1")?);

    let query = Ip::new(at.a, at.b, 17, udp((5000, 53), b"query"));
    let answer = Ip::new(at.b, at.a, 17, udp((53, 5000), b"answer"));
    let quoting = |quoted: &Ip| {
        let mut message = if v6 { icmp(1, 4) } else { icmp(3, 3) };
        message.truncate(4);
        message.extend([0; 4]);
        message.extend(&quoted.bytes());
        Ip::new(at.b, at.a, icmp_proto, message)
    };
    let stranger = Ip::new(at.a, at.b, 17, udp((7, 7), b""));
    // IPS_SEEN_REPLY, IPS_CONFIRMED.
    let both_ways = 0xa;
    let udp_connection = |info, status| connection(v6, 17, (5000, 53), info, status);
    let packets: Vec<(&str, Ip, Tracking)> = vec![
        ("new", query.clone(), udp_connection(2, 0)),
        ("new again", query.clone(), udp_connection(2, 8)),
        ("reply", answer.clone(), udp_connection(3, both_ways)),
        ("established", query.clone(), udp_connection(0, both_ways)),
        (
            "related reply",
            quoting(&query),
            udp_connection(4, both_ways),
        ),
        ("an error about nothing", quoting(&stranger), Tracking::None),
        (
            "syn",
            Ip::new(at.a, at.b, 6, tcp((1500, 80), 2, &[], b"")),
            connection(v6, 6, (1500, 80), 2, 0),
        ),
        (
            "reset of nothing",
            Ip::new(at.a, at.b, 6, tcp((1501, 80), 4, &[], b"")),
            Tracking::None,
        ),
        (
            "untracked",
            Ip::new(at.a, at.b, 17, udp((5000, 9), b"")),
            Tracking::Untracked,
        ),
    ];
    let cases: Vec<Case<'_>> = packets
        .iter()
        .map(|(name, ip, tracking)| {
            let from_b = ip.src == at.b.parse::<IpAddr>().expect("an address");
            let frame = if from_b {
                let kind = if v6 { 0x86dd } else { 0x0800 };
                let (r1, b0) = ([2, 0, 0, 0, 0x0b, 1], [2, 0, 0, 0, 0x0c, 0]);
                traffic::ethernet(r1, b0, &[], kind, &ip.bytes())
            } else {
                ip.frame(crate::R0)
            };
            let sent = frame.clone();
            let facts = if from_b {
                received("r1", r1, v6)
            } else {
                received("r0", r0, v6)
            };
            Case {
                name,
                send: Box::new(move |net: &Net| {
                    let (ns, device) = if from_b {
                        (&net.b, "b0")
                    } else {
                        (&net.a, "a0")
                    };
                    Ok(ns.run(|| traffic::frame(device, &sent))?)
                }),
                bytes: frame,
                facts: Packet {
                    tracking: *tracking,
                    ..facts
                },
            }
        })
        .collect();
    let own = if v6 { STATES_V6 } else { STATES_V4 };
    let rules: Vec<&str> = STATES.iter().chain(own).copied().collect();
    let tally = compare(tool, &net, ("mangle", "PREROUTING"), &rules, &cases)?;
    ensure!(tally.matches > 80 && tally.misses > 80, "{tally:?}");
    Ok(())
}

const OUTPUT: &[&str] = &[
    "-o r1",
    "! -o r1",
    "-o r0",
    "-o r+",
    "! -o lo",
    "-m owner --uid-owner 0",
    "-m owner ! --uid-owner 0",
    "-m owner --uid-owner 1-1000",
    "-m owner --gid-owner 0",
    "-m owner --uid-owner 0 --gid-owner 7",
    "-m owner --socket-exists",
    "-m owner ! --socket-exists",
    "-m mark --mark 0x0",
    "-m devgroup --dst-group 0x9",
    "-m devgroup ! --dst-group 0x9",
    "-m addrtype --src-type LOCAL",
    "-m addrtype --dst-type LOCAL",
    "-m addrtype --src-type LOCAL --limit-iface-out",
    "-p udp -m udp --dport 53",
    "-m physdev ! --physdev-is-bridged",
];

/// What R sends itself.
fn output(tool: Tool) -> Result<()> {
    let net = quiet()?;
    let v6 = tool.v6;
    let at = if v6 { &V6 } else { &V4 };
    net.r.ip("link set r1 group 9\n")?;
    let r1 = index(&world(&net.r)?, "r1")?;
    let address = |text: &str, port| SocketAddr::new(text.parse().expect("an address"), port);
    let (from, to) = (address(at.r1, 5000), address(at.b, 53));
    let case = Case {
        name: "r's own",
        send: Box::new(move |net: &Net| Ok(net.r.run(|| traffic::udp(from, to))?)),
        bytes: Ip::new(at.r1, at.b, 17, udp((5000, 53), traffic::PAYLOAD)).bytes(),
        facts: Packet {
            hook: 3,
            l2_len: 0,
            iif: Fact::Absent,
            oif: Fact::Known(Device {
                index: r1,
                name: "r1",
            }),
            uid: Fact::Known(0),
            gid: Fact::Known(0),
            ..received("", 0, v6)
        },
    };
    let tally = compare(tool, &net, ("mangle", "OUTPUT"), OUTPUT, &[case])?;
    ensure!(
        tally.matches > 8 && tally.misses > 6 && tally.unknown == 0,
        "{tally:?}"
    );
    Ok(())
}

const FORWARD: &[&str] = &[
    "-i r0 -o r1",
    "-i r1 -o r0",
    "-i r0 ! -o r1",
    "-i r+ -o r+",
    "-m mac --mac-source 02:00:00:00:0a:00",
    "-m addrtype --src-type UNICAST --limit-iface-in",
    "-m addrtype --dst-type LOCAL --limit-iface-out",
    "-m length --length 20:200",
    "-p udp -m udp --sport 5000 --dport 53",
    "-m physdev --physdev-is-in",
];

/// What R forwards: a hop further.
fn forward(tool: Tool) -> Result<()> {
    let net = quiet()?;
    let v6 = tool.v6;
    let at = if v6 { &V6 } else { &V4 };
    let world = world(&net.r)?;
    let (r0, r1) = (index(&world, "r0")?, index(&world, "r1")?);
    let ip = Ip::new(at.a, at.b, 17, udp((5000, 53), b"query"));
    let sent = ip.frame(crate::R0);
    let case = Case {
        name: "forwarded",
        send: Box::new(move |net: &Net| Ok(net.a.run(|| traffic::frame("a0", &sent))?)),
        bytes: ip.with(|ip| ip.ttl = 63).frame(crate::R0),
        facts: Packet {
            hook: 2,
            oif: Fact::Known(Device {
                index: r1,
                name: "r1",
            }),
            ..received("r0", r0, v6)
        },
    };
    let hops = if v6 {
        ["-m hl --hl-eq 63", "-m hl --hl-eq 64"]
    } else {
        ["-m ttl --ttl-eq 63", "-m ttl --ttl-eq 64"]
    };
    let rules: Vec<&str> = FORWARD.iter().copied().chain(hops).collect();
    let tally = compare(tool, &net, ("filter", "FORWARD"), &rules, &[case])?;
    ensure!(
        tally.matches > 5 && tally.misses > 3 && tally.unknown == 0,
        "{tally:?}"
    );
    Ok(())
}

#[test]
fn states_of_connections() -> Result<()> {
    TOOLS.into_iter().try_for_each(states)
}

#[test]
fn what_goes_out() -> Result<()> {
    TOOLS.into_iter().try_for_each(output)
}

#[test]
fn what_is_forwarded() -> Result<()> {
    TOOLS.into_iter().try_for_each(forward)
}
