//! Conntrack's view of a dropped packet. What the state is follows from how the traffic was made;
//! the dropping rule matches on it too, so the kernel agrees if it dropped.

use std::io::Write;
use std::net::{TcpListener, UdpSocket};

use anyhow::{Result, ensure};
use e2e::expect::{Iface, at};
use e2e::fwtrace::Fwtrace;
use e2e::net::{Net, Place};
use e2e::{nft, traffic};
use serde_json::json;

use crate::support::{end_well, hit, same, udp, want};

use Place::{A, B, R};

/// A base chain on input of `table inet t`.
fn input(rules: &str) -> String {
    format!("table inet t {{ chain in {{ type filter hook input priority 0\n{rules}\n}}\n}}")
}

#[test]
fn new_with_mark_and_zone() -> Result<()> {
    let net = Net::routed()?;
    let mut fwtrace = Fwtrace::start(&net.r, &[])?;
    let zone =
        "table inet z { chain c { type filter hook prerouting priority -300\nct zone set 7\n}\n}\n";
    let drop = input(
        "udp dport 3001 ct mark set 0x77 meta mark set 0x99\n\
         udp dport 3001 ct state new counter drop comment \"hit\"",
    );
    nft::load(&net.r, &(zone.to_owned() + &drop))?;
    for v6 in [false, true] {
        udp(&net, A, R, v6, (4001, 3001));
        let ruleset = hit(&net, if v6 { 2 } else { 1 })?;
        let event = fwtrace.next_drop()?;
        let mut want = want(&net, &ruleset, (4001, 3001))?;
        (want.src, want.dst) = net.path(A, R, v6, (4001, 3001));
        want.family = if v6 { "ip6" } else { "ip" };
        want.ct = Some("new");
        same(&event, &want)?;
        ensure!(at(&event.json, "conntrack.mark") == 0x77, "{}", event.json);
        ensure!(at(&event.json, "mark") == 0x99, "{}", event.json);
        ensure!(at(&event.json, "conntrack.zone") == 7, "{}", event.json);
        ensure!(
            at(&event.json, "conntrack.status") == json!([]),
            "{}",
            event.json
        );
    }
    end_well(fwtrace)
}

#[test]
fn established_udp_as_conntrack_lists_it() -> Result<()> {
    let net = Net::routed()?;
    let mut fwtrace = Fwtrace::start(&net.r, &[])?;
    nft::load(
        &net.r,
        &input(
            "udp dport 3002 ct mark set 0x42\n\
             udp dport 3002 ct state established counter drop comment \"hit\"",
        ),
    )?;
    let (src, dst) = net.path(A, R, false, (4002, 3002));
    let server = net.r.run(|| UdpSocket::bind(dst))?;
    let client = net.a.run(|| UdpSocket::bind(src))?;
    traffic::patient(&server)?;
    traffic::patient(&client)?;
    let mut buffer = [0; 64];
    client.send_to(b"one", dst)?;
    let (_, peer) = server.recv_from(&mut buffer)?;
    server.send_to(b"two", peer)?;
    client.recv_from(&mut buffer)?;
    client.send_to(traffic::PAYLOAD, dst)?;
    let ruleset = hit(&net, 1)?;
    let listed = net.r.command(&["conntrack", "-L", "-p", "udp"], "")?;
    ensure!(
        listed.contains("dport=3002")
            && listed.contains("mark=66")
            && !listed.contains("UNREPLIED"),
        "scenario: {listed}"
    );
    let event = fwtrace.next_drop()?;
    let mut want = want(&net, &ruleset, (4002, 3002))?;
    want.ct = Some("established");
    same(&event, &want)?;
    ensure!(at(&event.json, "conntrack.mark") == 66, "{}", event.json);
    let status = at(&event.json, "conntrack.status");
    ensure!(
        status == json!(["seen-reply", "confirmed"]),
        "status {status}, listed {listed}"
    );
    ensure!(
        at(&event.json, "conntrack.tcp_state").is_null(),
        "{}",
        event.json
    );
    end_well(fwtrace)
}

#[test]
fn established_tcp_in_both_directions() -> Result<()> {
    let net = Net::routed()?;
    let mut fwtrace = Fwtrace::start(&net.r, &[])?;
    for v6 in [false, true] {
        for from_server in [false, true] {
            let (hook, match_) = if from_server {
                ("output", "tcp sport 3003 ct direction reply")
            } else {
                ("input", "tcp dport 3003 ct direction original")
            };
            nft::load(
                &net.r,
                &format!(
                    "table inet t {{ chain c {{ type filter hook {hook} priority 0\n\
                     {match_} ct state established meta length 140-160 counter drop comment \"hit\"\n}}\n}}"
                ),
            )?;
            let (_, address) = net.path(A, R, v6, (0, 3003));
            let listener = net.r.run(|| TcpListener::bind(address))?;
            let client = net.a.run(|| traffic::tcp(address))?;
            let (server, peer) = listener.accept()?;
            let (mut sender, other) = if from_server {
                (server, client)
            } else {
                (client, server)
            };
            sender.write_all(&[b'x'; 88])?;
            // A retransmission of the connection before can still come.
            let event = loop {
                let event = fwtrace.next_drop()?;
                let ports = ["packet.sport", "packet.dport"].map(|path| at(&event.json, path));
                if ports.contains(&json!(peer.port())) {
                    break event;
                }
            };
            let listed = net.r.command(
                &[
                    "conntrack",
                    "-L",
                    "-p",
                    "tcp",
                    "-f",
                    if v6 { "ipv6" } else { "ipv4" },
                ],
                "",
            )?;
            ensure!(
                listed.contains("ESTABLISHED") && listed.contains("[ASSURED]"),
                "scenario: {listed}"
            );
            // The retransmission is dropped too if it comes before the listing.
            let ruleset = nft::list(&net.r)?;
            let mut want = want(&net, &ruleset, (peer.port(), 3003))?;
            (want.src, want.dst) = (peer, address);
            want.family = if v6 { "ip6" } else { "ip" };
            want.proto = "tcp";
            want.ct = Some("established");
            want.len = Some(if v6 { 72 + 88 } else { 52 + 88 });
            if from_server {
                (want.src, want.dst) = (want.dst, want.src);
                want.hook = "output";
                (want.iif, want.oif) = (Iface::No, Iface::Is("r0"));
            }
            same(&event, &want)?;
            let tcp = at(&event.json, "conntrack.tcp_state");
            ensure!(tcp == "ESTABLISHED", "{}", event.json);
            let status = at(&event.json, "conntrack.status");
            ensure!(
                status == json!(["seen-reply", "assured", "confirmed"]),
                "{status}"
            );
            // Nothing more is sent: the firewall goes first.
            nft::load(&net.r, "")?;
            drop((sender, other));
        }
    }
    let end = fwtrace.interrupt()?;
    ensure!(end.status.success(), "{}", end.stderr);
    Ok(())
}

#[test]
fn related_icmp_error() -> Result<()> {
    let net = Net::routed()?;
    let mut fwtrace = Fwtrace::start(&net.r, &[])?;
    nft::load(
        &net.r,
        "table inet t { chain out { type filter hook output priority 0\n\
         ct state related counter drop comment \"hit\"\n}\n}",
    )?;
    for (v6, proto) in [(false, "icmp"), (true, "icmpv6")] {
        udp(&net, A, R, v6, (4004, 3004));
        let ruleset = hit(&net, if v6 { 2 } else { 1 })?;
        let event = fwtrace.next_drop()?;
        let mut want = want(&net, &ruleset, (0, 0))?;
        (want.src, want.dst) = net.path(R, A, v6, (0, 0));
        want.family = if v6 { "ip6" } else { "ip" };
        want.hook = "output";
        (want.iif, want.oif) = (Iface::No, Iface::Is("r0"));
        want.proto = proto;
        want.ct = Some("related");
        same(&event, &want)?;
        let kind = at(&event.json, "packet.icmp.type");
        ensure!(kind == if v6 { 1 } else { 3 }, "{}", event.json);
    }
    end_well(fwtrace)
}

#[test]
fn invalid_is_not_none() -> Result<()> {
    let net = Net::routed()?;
    let mut fwtrace = Fwtrace::start(&net.r, &[])?;
    net.r.sysctl("net/netfilter/nf_conntrack_tcp_loose", "0")?;
    nft::load(
        &net.r,
        &input("ct state invalid counter drop comment \"hit\""),
    )?;
    for v6 in [false, true] {
        let (src, dst) = net.path(A, R, v6, (4005, 3005));
        net.a.run(|| traffic::segment(src, dst, 0x10))?;
        let ruleset = hit(&net, if v6 { 2 } else { 1 })?;
        let event = fwtrace.next_drop()?;
        let mut want = want(&net, &ruleset, (4005, 3005))?;
        (want.src, want.dst) = (src, dst);
        want.family = if v6 { "ip6" } else { "ip" };
        want.proto = "tcp";
        want.ct = Some("invalid");
        same(&event, &want)?;
        ensure!(at(&event.json, "packet.flags") == ".", "{}", event.json);
        ensure!(
            at(&event.json, "conntrack.mark").is_null(),
            "{}",
            event.json
        );
    }
    // The same packet before conntrack has seen it.
    nft::load(
        &net.r,
        "table inet t { chain pre { type filter hook prerouting priority -400\n\
         tcp dport 3005 counter drop comment \"hit\"\n}\n\
         chain in { type filter hook input priority 0; ct state invalid counter\n}\n}",
    )?;
    let (src, dst) = net.path(A, R, false, (4005, 3005));
    net.a.run(|| traffic::segment(src, dst, 0x10))?;
    let ruleset = hit(&net, 1)?;
    let mut want = want(&net, &ruleset, (4005, 3005))?;
    want.hook = "prerouting";
    want.proto = "tcp";
    want.ct = Some("none");
    same(&fwtrace.next_drop()?, &want)?;
    end_well(fwtrace)
}

#[test]
fn untracked_and_none() -> Result<()> {
    let net = Net::routed()?;
    let mut fwtrace = Fwtrace::start(&net.r, &[])?;
    let notrack = "table inet r { chain c { type filter hook prerouting priority -300\nudp dport 3006 notrack\n}\n}\n";
    let drop = input("udp dport 3006 ct state untracked counter drop comment \"hit\"");
    nft::load(&net.r, &(notrack.to_owned() + &drop))?;
    udp(&net, A, R, false, (4006, 3006));
    let ruleset = hit(&net, 1)?;
    let mut expected = want(&net, &ruleset, (4006, 3006))?;
    expected.ct = Some("untracked");
    same(&fwtrace.next_drop()?, &expected)?;
    // Nobody asks for conntrack: it is not there.
    nft::load(
        &net.r,
        &input("udp dport 3006 counter drop comment \"hit\""),
    )?;
    udp(&net, A, R, false, (4006, 3006));
    let ruleset = hit(&net, 1)?;
    let mut expected = want(&net, &ruleset, (4006, 3006))?;
    expected.ct = Some("none");
    same(&fwtrace.next_drop()?, &expected)?;
    end_well(fwtrace)
}

#[test]
fn destination_nat_shows_both_tuples() -> Result<()> {
    let net = Net::routed()?;
    let mut fwtrace = Fwtrace::start(&net.r, &[])?;
    nft::load(
        &net.r,
        "table ip n { chain pre { type nat hook prerouting priority -100\n\
         udp dport 3007 dnat to 10.2.0.1:4107\n}\n}\n\
         table ip t { chain fw { type filter hook forward priority 0\n\
         udp dport 4107 ct status dnat counter drop comment \"hit\"\n}\n}",
    )?;
    udp(&net, A, R, false, (4007, 3007));
    let ruleset = hit(&net, 1)?;
    let event = fwtrace.next_drop()?;
    let mut want = want(&net, &ruleset, (4007, 4107))?;
    want.dst = net.path(A, B, false, (0, 4107)).1;
    want.hook = "forward";
    want.oif = Iface::Is("r1");
    want.ct = Some("new");
    same(&event, &want)?;
    let nat = at(&event.json, "conntrack.nat");
    ensure!(
        nat == json!({
            "orig": {"src": "10.1.0.1", "sport": 4007, "dst": "10.1.0.2", "dport": 3007},
            "reply": {"src": "10.2.0.1", "sport": 4107, "dst": "10.1.0.1", "dport": 4007},
        }),
        "{nat}"
    );
    let status = at(&event.json, "conntrack.status");
    ensure!(
        status
            .as_array()
            .is_some_and(|s| s.contains(&json!("dnat"))),
        "{status}"
    );
    end_well(fwtrace)
}

#[test]
fn source_nat_shows_both_tuples() -> Result<()> {
    let net = Net::routed()?;
    let mut fwtrace = Fwtrace::start(&net.r, &[])?;
    nft::load(
        &net.r,
        "table ip6 n { chain post { type nat hook postrouting priority 100\n\
         udp dport 3008 masquerade to :5555\n}\n}\n\
         table ip6 t { chain post { type filter hook postrouting priority 200\n\
         udp dport 3008 ct status snat counter drop comment \"hit\"\n}\n}",
    )?;
    udp(&net, A, B, true, (4008, 3008));
    let ruleset = hit(&net, 1)?;
    let event = fwtrace.next_drop()?;
    let mut want = want(&net, &ruleset, (4008, 3008))?;
    want.src = "[fd02::2]:5555".parse()?;
    want.dst = net.path(A, B, true, (0, 3008)).1;
    want.family = "ip6";
    want.hook = "postrouting";
    want.oif = Iface::Is("r1");
    want.ct = Some("new");
    same(&event, &want)?;
    let nat = at(&event.json, "conntrack.nat");
    ensure!(
        nat == json!({
            "orig": {"src": "fd01::1", "sport": 4008, "dst": "fd02::1", "dport": 3008},
            "reply": {"src": "fd02::1", "sport": 3008, "dst": "fd02::2", "dport": 5555},
        }),
        "{nat}"
    );
    end_well(fwtrace)
}
