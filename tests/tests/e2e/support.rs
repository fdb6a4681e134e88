//! What several tests share.

use anyhow::{Context, Result, bail, ensure};
use e2e::expect::at;
use e2e::expect::{By, Iface, Want, differences};
use e2e::fwtrace::{Drop, Fwtrace};
use e2e::net::{Net, Place};
use e2e::nft::{self, Ruleset};
use e2e::traffic;
use serde_json::Value;

/// What a datagram of [`traffic::udp`] from A to R is, dropped by the rule with comment `hit` in a
/// base chain on input. Tests change what is different.
pub(crate) fn want<'a>(net: &'a Net, ruleset: &'a Ruleset, ports: (u16, u16)) -> Result<Want<'a>> {
    let rule = ruleset.commented("hit").context("no rule \"hit\"")?;
    let (src, dst) = net.path(Place::A, Place::R, false, ports);
    Ok(Want {
        netns: &net.r,
        by: By::Rule(rule),
        base_chain: &rule.chain,
        family: "ip",
        hook: "input",
        iif: Iface::Is("r0"),
        oif: Iface::No,
        verdict: "drop",
        proto: "udp",
        src,
        dst,
        len: None,
        ct: None,
    })
}

/// Fails with what is different.
pub(crate) fn same(drop: &Drop, want: &Want<'_>) -> Result<()> {
    let wrong = differences(&drop.json, want);
    ensure!(wrong.is_empty(), "{}\nin {}", wrong.join("\n"), drop.json);
    Ok(())
}

/// Lists the rules and makes sure that `hit` has counted so many packets.
pub(crate) fn hit(net: &Net, packets: u64) -> Result<Ruleset> {
    let ruleset = nft::list(&net.r)?;
    let hit = ruleset.commented("hit").context("no rule \"hit\"")?;
    ensure!(
        hit.packets == Some(packets),
        "scenario: {hit:?}, expected {packets} packets"
    );
    Ok(ruleset)
}

/// Sends a datagram and drops the answer of the system call: on OUTPUT it is the firewall's.
pub(crate) fn udp(net: &Net, from: Place, to: Place, v6: bool, ports: (u16, u16)) {
    let (src, dst) = net.path(from, to, v6, ports);
    let _ = net.ns(from).run(|| traffic::udp(src, dst));
}

/// Interrupts it and makes sure that it ended well and showed all there was.
pub(crate) fn end_well(fwtrace: Fwtrace) -> Result<()> {
    let end = fwtrace.interrupt()?;
    // The head of a message survives where logs are cut off.
    let lost = end.count("lost");
    let fault = match &lost {
        _ if !end.status.success() => format!("it ended with {}", end.status),
        _ if !end.drops.is_empty() => format!("{} more events", end.drops.len()),
        Ok(0) => return Ok(()),
        Ok(lost) => format!("{lost} lost"),
        Err(error) => format!("no account: {error}"),
    };
    let drops = end.drops.iter().map(|drop| drop.json.to_string());
    let drops = drops.collect::<Vec<_>>().join("\n");
    bail!(
        "{fault}\n--- its stderr\n{}\n--- its summary\n{}\n--- more events\n{drops}",
        end.stderr,
        end.summary
    )
}

/// What a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum L4 {
    Tcp,
    Udp,
    /// An echo request; its id is the destination port.
    Icmp,
}

/// A packet that a test sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) l4: L4,
    pub(crate) v6: bool,
    pub(crate) from: Place,
    pub(crate) to: Place,
    /// Source and destination port.
    pub(crate) ports: (u16, u16),
}

impl Packet {
    /// Sends it. Dropped on OUTPUT, it fails: the counters tell whether it was sent.
    pub(crate) fn send(self, net: &Net) -> Result<()> {
        let (src, dst) = net.path(self.from, self.to, self.v6, self.ports);
        let sent = net.ns(self.from).run(|| match self.l4 {
            L4::Tcp => traffic::syn(src, dst),
            L4::Udp => traffic::udp(src, dst),
            L4::Icmp => traffic::echo(src.ip(), dst.ip(), dst.port()),
        });
        ensure!(sent.is_ok() || self.from == Place::R, "{self:?}: {sent:?}");
        Ok(())
    }

    /// Whether the event is of this packet.
    pub(crate) fn is_of(self, net: &Net, event: &Value) -> bool {
        let (src, dst) = net.path(self.from, self.to, self.v6, self.ports);
        let proto = match (self.l4, self.v6) {
            (L4::Tcp, _) => "tcp",
            (L4::Udp, _) => "udp",
            (L4::Icmp, false) => "icmp",
            (L4::Icmp, true) => "icmpv6",
        };
        let ports = self.l4 == L4::Icmp
            || at(event, "packet.sport") == src.port() && at(event, "packet.dport") == dst.port();
        ports
            && at(event, "packet.proto") == proto
            && at(event, "packet.src") == src.ip().to_string()
            && at(event, "packet.dst") == dst.ip().to_string()
    }
}
