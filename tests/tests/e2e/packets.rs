//! Packets out of the ordinary give a record, and its rule is exact like any other's.

use anyhow::{Result, ensure};
use e2e::expect::{Iface, at};
use e2e::fwtrace::Fwtrace;
use e2e::net::{Net, Place};
use e2e::{nft, traffic};
use serde_json::{Value, json};

use crate::support::{end_well, hit, same, want};

use Place::{A, B, R};

/// MAC addresses of `r0` and `a0`.
const R0: [u8; 6] = [2, 0, 0, 0, 0x0b, 0];
const A0: [u8; 6] = [2, 0, 0, 0, 0x0a, 0];

/// A base chain on ingress of `r0`.
fn ingress(rules: &str) -> String {
    format!(
        "table netdev t {{ chain in {{ type filter hook ingress device \"r0\" priority 0\n{rules}\n}}\n}}"
    )
}

/// Says which fields of an event differ from these.
fn fields(event: &Value, expected: &[(&str, Value)]) -> Result<()> {
    for (path, value) in expected {
        let got = at(event, path);
        ensure!(got == *value, "{path}: {got}, expected {value}, in {event}");
    }
    Ok(())
}

/// The part of an event that names the rule, checked against nft.
fn rule_is_hit(net: &Net, event: &Value, packets: u64) -> Result<()> {
    let ruleset = hit(net, packets)?;
    let Some(rule) = ruleset.commented("hit") else {
        anyhow::bail!("no rule");
    };
    fields(
        event,
        &[
            ("rule.family", json!(rule.family)),
            ("rule.table", json!(rule.table)),
            ("rule.chain", json!(rule.chain)),
            ("rule.handle", json!(rule.handle)),
            ("rule.number", json!(rule.number)),
            ("evidence.source", json!("kernel-stack")),
            ("evidence.confidence", json!("exact")),
            ("iif", json!("r0")),
            ("netns.inode", json!(net.r.inode())),
        ],
    )
}

#[test]
fn echo_requests() -> Result<()> {
    let net = Net::routed()?;
    let mut fwtrace = Fwtrace::start(&net.r, &[])?;
    for (v6, proto, kind, family) in [(false, "icmp", 8, "ip"), (true, "icmpv6", 128, "ip6")] {
        nft::load(
            &net.r,
            &format!(
                "table inet t {{ chain in {{ type filter hook input priority 0\n\
                 {proto} type echo-request counter drop comment \"hit\"\n}}\n}}"
            ),
        )?;
        let (src, dst) = net.path(A, R, v6, (0, 0));
        net.a.run(|| traffic::echo(src.ip(), dst.ip(), 77))?;
        let ruleset = hit(&net, 1)?;
        let event = fwtrace.next_drop()?;
        let mut want = want(&net, &ruleset, (0, 0))?;
        (want.src, want.dst) = (src, dst);
        (want.family, want.proto) = (family, proto);
        want.len = Some(if v6 { 40 } else { 20 } + 8 + traffic::PAYLOAD.len() as u64);
        same(&event, &want)?;
        ensure!(
            at(&event.json, "packet.icmp.type") == kind,
            "{}",
            event.json
        );
        ensure!(at(&event.json, "packet.sport").is_null(), "{}", event.json);
    }
    end_well(fwtrace)
}

#[test]
fn fragments() -> Result<()> {
    let net = Net::routed()?;
    let mut fwtrace = Fwtrace::start(&net.r, &[])?;
    // Without conntrack nobody puts fragments together on the way through.
    nft::load(
        &net.r,
        "table ip t { chain fw { type filter hook forward priority 0\n\
         ip frag-off & 0x1fff != 0 counter drop comment \"hit\"\n}\n}",
    )?;
    let (src, dst) = net.path(A, B, false, (4201, 3201));
    net.a.run(|| traffic::datagram(src, dst, &[7; 4000]))?;
    for (offset, more, len) in [(1480, true, 1500), (2960, false, 20 + 4008 - 2960)] {
        let event = fwtrace.next_drop()?.json;
        rule_is_hit(&net, &event, 2)?;
        fields(
            &event,
            &[
                ("packet.proto", json!("udp")),
                ("packet.fragment.offset", json!(offset)),
                ("packet.fragment.more", json!(more)),
                ("packet.src", json!("10.1.0.1")),
                ("packet.dst", json!("10.2.0.1")),
                ("packet.sport", Value::Null),
                ("packet.dport", Value::Null),
                ("packet.len", json!(len)),
            ],
        )?;
    }
    nft::load(
        &net.r,
        "table ip6 t { chain fw { type filter hook forward priority 0\n\
         exthdr frag exists counter drop comment \"hit\"\n}\n}",
    )?;
    let (src, dst) = net.path(A, B, true, (4202, 3202));
    net.a.run(|| traffic::datagram(src, dst, &[7; 2000]))?;
    let first = fwtrace.next_drop()?.json;
    rule_is_hit(&net, &first, 2)?;
    fields(
        &first,
        &[
            ("packet.fragment.offset", json!(0)),
            ("packet.fragment.more", json!(true)),
            ("packet.proto", json!("udp")),
            ("packet.dport", json!(3202)),
        ],
    )?;
    let second = fwtrace.next_drop()?.json;
    rule_is_hit(&net, &second, 2)?;
    fields(
        &second,
        &[
            ("packet.fragment.more", json!(false)),
            ("packet.proto", json!("udp")),
            ("packet.dport", Value::Null),
        ],
    )?;
    ensure!(
        at(&first, "packet.fragment.id") == at(&second, "packet.fragment.id"),
        "{first}\n{second}"
    );
    end_well(fwtrace)
}

#[test]
fn ipv6_extension_headers() -> Result<()> {
    let net = Net::routed()?;
    let mut fwtrace = Fwtrace::start(&net.r, &["--port", "3203"])?;
    nft::load(
        &net.r,
        "table ip6 t { chain in { type filter hook input priority 0\n\
         udp dport 3203 counter drop comment \"hit\"\n}\n}",
    )?;
    let (src, dst) = net.path(A, R, true, (4203, 3203));
    // Hop-by-hop and destination options that are padding only (PadN).
    let padding = [1, 4, 0, 0, 0, 0];
    let packet = traffic::udp_packet(src, dst, &[(0, &padding), (60, &padding)]);
    net.a.run(|| traffic::ip_packet(dst.ip(), &packet))?;
    let ruleset = hit(&net, 1)?;
    let event = fwtrace.next_drop()?;
    let mut want = want(&net, &ruleset, (4203, 3203))?;
    (want.src, want.dst, want.family) = (src, dst, "ip6");
    want.len = Some(packet.len() as u64);
    same(&event, &want)?;
    end_well(fwtrace)
}

#[test]
fn ipv4_options() -> Result<()> {
    let net = Net::routed()?;
    let mut fwtrace = Fwtrace::start(&net.r, &["--port", "3204"])?;
    nft::load(
        &net.r,
        "table inet t { chain in { type filter hook input priority 0\n\
         udp dport 3204 counter drop comment \"hit\"\n}\n}",
    )?;
    let (src, dst) = net.path(A, R, false, (4204, 3204));
    let mut packet = traffic::udp_packet(src, dst, &[]);
    // Two words of no-operation; the kernel fills in length and checksum.
    packet[0] = 0x47;
    packet.splice(20..20, [1; 8]);
    net.a.run(|| traffic::ip_packet(dst.ip(), &packet))?;
    let ruleset = hit(&net, 1)?;
    let event = fwtrace.next_drop()?;
    let mut want = want(&net, &ruleset, (4204, 3204))?;
    want.len = Some(packet.len() as u64);
    same(&event, &want)?;
    end_well(fwtrace)
}

#[test]
fn vlan_tags() -> Result<()> {
    let net = Net::routed()?;
    let mut fwtrace = Fwtrace::start(&net.r, &[])?;
    for v6 in [false, true] {
        let (src, dst) = net.path(A, R, v6, (4205, 3205));
        let packet = traffic::udp_packet(src, dst, &[]);
        let ethertype = if v6 { 0x86dd } else { 0x0800 };
        nft::load(&net.r, &ingress("vlan id 10 counter drop comment \"hit\""))?;
        let frame = traffic::ethernet(R0, A0, &[10], ethertype, &packet);
        net.a.run(|| traffic::frame("a0", &frame))?;
        let event = fwtrace.next_drop()?.json;
        rule_is_hit(&net, &event, 1)?;
        fields(
            &event,
            &[
                (
                    "packet.vlan",
                    json!([{"id": 10, "pcp": 0, "proto": 0x8100}]),
                ),
                ("packet.src", json!(src.ip().to_string())),
                ("packet.dst", json!(dst.ip().to_string())),
                ("packet.proto", json!("udp")),
                ("packet.sport", json!(4205)),
                ("packet.dport", json!(3205)),
                ("packet.len", json!(packet.len())),
            ],
        )?;
    }
    let (src, dst) = net.path(A, R, false, (4206, 3206));
    let packet = traffic::udp_packet(src, dst, &[]);
    let frame = traffic::ethernet(R0, A0, &[0x6000 | 20, 30], 0x0800, &packet);
    nft::load(&net.r, &ingress("vlan id 20 counter drop comment \"hit\""))?;
    net.a.run(|| traffic::frame("a0", &frame))?;
    let event = fwtrace.next_drop()?.json;
    rule_is_hit(&net, &event, 1)?;
    fields(
        &event,
        &[
            (
                "packet.vlan",
                json!([{"id": 20, "pcp": 3, "proto": 0x8100}, {"id": 30, "pcp": 0, "proto": 0x8100}]),
            ),
            ("packet.src", json!("10.1.0.1")),
            ("packet.dport", json!(3206)),
        ],
    )?;
    end_well(fwtrace)
}

#[test]
fn neither_ip_nor_whole() -> Result<()> {
    let net = Net::routed()?;
    let mut fwtrace = Fwtrace::start(&net.r, &[])?;
    nft::load(
        &net.r,
        &ingress("ether type 0x88b5 counter drop comment \"hit\""),
    )?;
    let frame = traffic::ethernet(R0, A0, &[], 0x88b5, b"local experimental");
    net.a.run(|| traffic::frame("a0", &frame))?;
    let event = fwtrace.next_drop()?.json;
    rule_is_hit(&net, &event, 1)?;
    fields(
        &event,
        &[
            ("packet.family", json!("other")),
            ("packet.ethertype", json!(0x88b5)),
            ("packet.src", Value::Null),
        ],
    )?;
    // Ten bytes of an IPv4 header, then a UDP header cut short, in a frame that ends there.
    nft::load(
        &net.r,
        &ingress("meta protocol ip counter drop comment \"hit\""),
    )?;
    let (src, dst) = net.path(A, R, false, (4207, 3207));
    let packet = traffic::udp_packet(src, dst, &[]);
    for (count, length) in [(1, 10), (2, 22)] {
        let frame = traffic::ethernet(R0, A0, &[], 0x0800, &packet[..length]);
        net.a.run(|| traffic::frame("a0", &frame))?;
        let event = fwtrace.next_drop()?.json;
        rule_is_hit(&net, &event, count)?;
        fields(&event, &[("packet.truncated", json!(true))])?;
    }
    end_well(fwtrace)
}

#[test]
fn arp() -> Result<()> {
    let net = Net::routed()?;
    let mut fwtrace = Fwtrace::start(&net.r, &[])?;
    nft::load(
        &net.r,
        "table arp t { chain in { type filter hook input priority 0\n\
         arp operation request counter drop comment \"hit\"\n}\n}",
    )?;
    let mut request = vec![0, 1, 8, 0, 6, 4, 0, 1];
    request.extend(A0);
    request.extend([10, 1, 0, 1]);
    request.extend([0; 6]);
    request.extend([10, 1, 0, 2]);
    let frame = traffic::ethernet([0xff; 6], A0, &[], 0x0806, &request);
    net.a.run(|| traffic::frame("a0", &frame))?;
    let event = fwtrace.next_drop()?.json;
    rule_is_hit(&net, &event, 1)?;
    fields(
        &event,
        &[
            ("family", json!("arp")),
            ("hook", json!("input")),
            ("packet.family", json!("arp")),
            ("packet.src", json!("10.1.0.1")),
            ("packet.dst", json!("10.1.0.2")),
        ],
    )?;
    end_well(fwtrace)
}

#[test]
fn a_segment_longer_than_any_wire() -> Result<()> {
    use std::io::Write;
    let net = Net::routed()?;
    let mut fwtrace = Fwtrace::start(&net.r, &["--port", "3208"])?;
    let (_, address) = net.path(A, R, false, (0, 3208));
    let listener = net.r.run(|| std::net::TcpListener::bind(address))?;
    let mut client = net.a.run(|| traffic::tcp(address))?;
    let (server, peer) = listener.accept()?;
    nft::load(
        &net.r,
        "table inet t { chain in { type filter hook input priority 0\n\
         tcp dport 3208 meta length > 2000 counter drop comment \"hit\"\n}\n}",
    )?;
    client.write_all(&[1; 12_000])?;
    let event = fwtrace.next_drop()?;
    let ruleset = nft::list(&net.r)?;
    nft::load(&net.r, "")?;
    drop((client, server));
    let mut want = want(&net, &ruleset, (peer.port(), 3208))?;
    want.proto = "tcp";
    want.iif = Iface::Is("r0");
    same(&event, &want)?;
    let len = at(&event.json, "packet.len").as_u64();
    ensure!(len.is_some_and(|l| l > 2000), "{}", event.json);
    let end = fwtrace.interrupt()?;
    ensure!(end.status.success(), "{}", end.stderr);
    Ok(())
}
