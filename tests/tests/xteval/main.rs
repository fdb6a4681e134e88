//! The evaluation of xtables' matches against the kernel: both kinds of iptables, both families, real packets, and the rules' own
//! counters as the oracle. Needs root.

mod compare;
mod corpus;
mod kernel;
mod packets;
mod rules;
mod states;
mod walk;

use anyhow::{Result, ensure};
use compare::{Case, compare, index, quiet};
use e2e::traffic;
use fwtrace::eval::packet::{Device, Fact, Packet, Tracking};
use kernel::{TOOLS, Tool, world};
use packets::R0;

/// Bytes of an Ethernet header.
const L2: usize = 14;

/// What is known of a packet that came in by an interface, before routing.
fn received(name: &'static str, index: u32, v6: bool) -> Packet<'static> {
    Packet {
        l2_len: L2,
        pf: if v6 { 10 } else { 2 },
        hook: 0,
        protocol: if v6 { 0x86dd } else { 0x0800 },
        iif: Fact::Known(Device { index, name }),
        oif: Fact::Absent,
        physin: Fact::Absent,
        physout: Fact::Absent,
        mark: Fact::Known(0),
        priority: Fact::Known(0),
        pkttype: Fact::Known(0),
        secmark: Fact::Known(0),
        vlan: Fact::Absent,
        cgroup: Fact::Absent,
        uid: Fact::Absent,
        gid: Fact::Absent,
        tracking: Tracking::None,
        ..Packet::default()
    }
}

/// Every match on every packet, before routing.
fn matches(tool: Tool) -> Result<()> {
    let net = quiet()?;
    net.r.ip("link set r0 group 7\n")?;
    net.r.command(&["ipset", "restore"], rules::SETS)?;
    let own = if tool.v6 { rules::IPV6 } else { rules::IPV4 };
    let all: Vec<&str> = own.iter().chain(rules::COMMON).copied().collect();
    let r0 = index(&world(&net.r)?, "r0")?;
    let packets = corpus::corpus(tool.v6);
    let cases: Vec<Case<'_>> = packets
        .iter()
        .map(|(name, ip, to)| {
            let frame = ip.frame(*to);
            let sent = frame.clone();
            Case {
                name,
                send: Box::new(move |net| Ok(net.a.run(|| traffic::frame("a0", &sent))?)),
                bytes: frame,
                facts: Packet {
                    pkttype: Fact::Known((*to != R0).into()),
                    ..received("r0", r0, tool.v6)
                },
            }
        })
        .collect();
    let tally = compare(tool, &net, ("mangle", "PREROUTING"), &all, &cases)?;
    ensure!(tally.matches > 500 && tally.misses > 500 && tally.hotdrops > 3);
    Ok(())
}

#[test]
fn matches_of_iptables_legacy() -> Result<()> {
    matches(TOOLS[0])
}

#[test]
fn matches_of_ip6tables_legacy() -> Result<()> {
    matches(TOOLS[1])
}

#[test]
fn matches_of_iptables_nft() -> Result<()> {
    matches(TOOLS[2])
}

#[test]
fn matches_of_ip6tables_nft() -> Result<()> {
    matches(TOOLS[3])
}
