//! Drops that no rule made: the kernel's reason, and the sysctl, socket or route that explains it.

use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use e2e::fwtrace::Fwtrace;
use e2e::net::{Net, Place};
use e2e::{traffic, wait_until};
use serde_json::Value;

use crate::support::udp;

use Place::{A, B, R};

/// The next drop for this reason.
fn dropped(fwtrace: &mut Fwtrace, reason: &str) -> Result<Value> {
    loop {
        let event = fwtrace
            .next_drop()
            .with_context(|| format!("waiting for {reason}"))?
            .json;
        if event["reason"] == reason {
            ensure!(event["engine"] == "other", "{event}");
            ensure!(event["rule"].is_null(), "{event}");
            return Ok(event);
        }
    }
}

/// Makes sure that the next drop for this reason is explained so.
fn explained(fwtrace: &mut Fwtrace, reason: &str, why: &str) -> Result<()> {
    let event = dropped(fwtrace, reason)?;
    ensure!(event["why"] == why, "expected {why:?}: {event}");
    Ok(())
}

fn all(net: &Net) -> Result<Fwtrace> {
    Fwtrace::start(&net.r, &["--reason", "all"])
}

fn socket(text: &str) -> Result<SocketAddr> {
    Ok(text.parse()?)
}

/// Sends a datagram from an address that need not be A's.
fn from(net: &Net, src: &str, dst: &str) -> Result<()> {
    let (src, dst) = (socket(src)?, socket(dst)?);
    let packet = traffic::udp_packet(src, dst, &[]);
    net.a.run(|| traffic::ip_packet(dst.ip(), &packet))?;
    Ok(())
}

#[test]
fn the_reverse_path_is_told_with_its_sysctl() -> Result<()> {
    let net = Net::routed()?;
    net.r.sysctl("net/ipv4/conf/r0/rp_filter", "1")?;
    let mut fwtrace = all(&net)?;
    from(&net, "10.2.0.77:4951", "10.1.0.2:3951")?;
    explained(
        &mut fwtrace,
        "IP_RPFILTER",
        "rp_filter=1 on r0: the reverse route to 10.2.0.77 is r1",
    )?;
    from(&net, "10.66.0.1:4951", "10.1.0.2:3951")?;
    explained(
        &mut fwtrace,
        "IP_RPFILTER",
        "rp_filter=1 on r0: there is no reverse route to 10.66.0.1",
    )?;
    // The greater of the two holds.
    net.r.sysctl("net/ipv4/conf/all/rp_filter", "2")?;
    from(&net, "10.67.0.1:4951", "10.1.0.2:3951")?;
    explained(
        &mut fwtrace,
        "IP_RPFILTER",
        "rp_filter=2 on r0: there is no reverse route to 10.67.0.1",
    )?;
    // Reading what explains a drop made none.
    let seen = fwtrace.interrupt()?.stdout;
    let own = seen.iter().find(|line| line.contains("_rtm_"));
    ensure!(own.is_none(), "{own:?}");
    Ok(())
}

#[test]
fn missing_sockets_are_told_with_those_that_are_there() -> Result<()> {
    let net = Net::routed()?;
    let _elsewhere = net.r.run(|| UdpSocket::bind("127.0.0.1:3953"))?;
    let _listener = net.r.run(|| TcpListener::bind("127.0.0.1:3953"))?;
    let mut fwtrace = all(&net)?;
    for v6 in [false, true] {
        udp(&net, A, R, v6, (4952, 3952));
        let why = "no socket listens on udp port 3952";
        explained(&mut fwtrace, "NO_SOCKET", why)?;
        let (src, dst) = net.path(A, R, v6, (4952, 3952));
        net.a.run(|| traffic::syn(src, dst))?;
        let why = "no socket listens on tcp port 3952";
        explained(&mut fwtrace, "NO_SOCKET", why)?;
    }
    udp(&net, A, R, false, (4953, 3953));
    let why = "no socket listens on udp port 3953 (a socket is bound to 127.0.0.1:3953)";
    explained(&mut fwtrace, "NO_SOCKET", why)?;
    let (src, dst) = net.path(A, R, false, (4953, 3953));
    net.a.run(|| traffic::syn(src, dst))?;
    let why = "no socket listens on tcp port 3953 (a socket is bound to 127.0.0.1:3953)";
    explained(&mut fwtrace, "NO_SOCKET", why)?;
    // Whether there was a connection a moment ago is not known.
    net.a.run(|| traffic::segment(src, dst, 0x10))?;
    explained(&mut fwtrace, "NO_SOCKET", "no socket takes the packet")
}

#[test]
fn routes_and_forwarding_are_told() -> Result<()> {
    let net = Net::routed()?;
    let mut fwtrace = all(&net)?;
    from(&net, "10.1.0.1:4954", "10.9.9.9:3954")?;
    explained(&mut fwtrace, "IP_INNOROUTES", "no route to 10.9.9.9")?;
    from(&net, "[fd01::1]:4954", "[fd09::9]:3954")?;
    explained(&mut fwtrace, "IP_INNOROUTES", "no route to fd09::9")?;
    net.r.sysctl("net/ipv4/ip_forward", "0")?;
    net.r.sysctl("net/ipv6/conf/all/forwarding", "0")?;
    udp(&net, A, B, false, (4954, 3954));
    explained(
        &mut fwtrace,
        "IP_INADDRERRORS",
        "net.ipv4.ip_forward=0, and 10.2.0.1 is not an address of this machine",
    )?;
    udp(&net, A, B, true, (4954, 3954));
    explained(
        &mut fwtrace,
        "IP_INADDRERRORS",
        "net.ipv6.conf.all.forwarding=0, and fd02::1 is not an address of this machine",
    )?;
    net.r.sysctl("net/ipv4/ip_forward", "1")?;
    net.r.sysctl("net/ipv4/conf/r0/forwarding", "0")?;
    from(&net, "10.1.0.1:4954", "10.2.0.9:3954")?;
    explained(
        &mut fwtrace,
        "IP_INADDRERRORS",
        "net.ipv4.conf.r0.forwarding=0, and 10.2.0.9 is not an address of this machine",
    )
}

#[test]
fn a_neighbour_that_does_not_answer_is_told() -> Result<()> {
    let net = Net::routed()?;
    let mut fwtrace = all(&net)?;
    from(&net, "10.1.0.1:4955", "10.2.0.99:3955")?;
    explained(
        &mut fwtrace,
        "NEIGH_FAILED",
        "10.2.0.99 did not answer on r1 (ARP)",
    )
}

#[test]
fn wrong_checksums_are_told() -> Result<()> {
    let net = Net::routed()?;
    let mut fwtrace = all(&net)?;
    let (src, dst) = net.path(A, R, false, (4956, 3956));
    let mut packet = traffic::udp_packet(src, dst, &[]);
    // The checksum of UDP, behind the IP header.
    packet[26] ^= 0x55;
    net.a.run(|| traffic::ip_packet(dst.ip(), &packet))?;
    explained(&mut fwtrace, "UDP_CSUM", "the UDP checksum is wrong")?;
    // The same bytes as TCP: a SYN whose checksum is none.
    let (IpAddr::V4(from), IpAddr::V4(to)) = (src.ip(), dst.ip()) else {
        anyhow::bail!("no IPv4");
    };
    let mut packet = vec![0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0];
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(src.port().to_be_bytes());
    packet.extend(dst.port().to_be_bytes());
    packet.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 1, 0, 0x12, 0x34, 0, 0]);
    net.a.run(|| traffic::ip_packet(dst.ip(), &packet))?;
    explained(&mut fwtrace, "TCP_CSUM", "the TCP checksum is wrong")?;
    // A protocol that nobody has.
    packet[9] = 99;
    net.a.run(|| traffic::ip_packet(dst.ip(), &packet))?;
    explained(
        &mut fwtrace,
        "IP_NOPROTO",
        "nothing here takes packets of this IP protocol",
    )
}

#[test]
fn a_full_receive_buffer_is_told() -> Result<()> {
    let net = Net::routed()?;
    let (src, dst) = net.path(A, R, false, (4957, 3957));
    let reader = net.r.run(|| UdpSocket::bind(dst))?;
    nix::sys::socket::setsockopt(&reader, nix::sys::socket::sockopt::RcvBuf, &2048)?;
    let mut fwtrace = all(&net)?;
    for _ in 0..20 {
        net.a.run(|| traffic::datagram(src, dst, &[0; 500]))?;
    }
    let event = dropped(&mut fwtrace, "SOCKET_RCVBUFF")?;
    let why = event["why"].as_str().unwrap_or_default();
    let start = "the receive buffer of the socket on udp port 3957 is full: ";
    let waiting = why
        .strip_prefix(start)
        .and_then(|rest| rest.strip_suffix(" bytes wait to be read"))
        .and_then(|bytes| bytes.parse::<u32>().ok());
    ensure!(waiting.is_some_and(|bytes| bytes > 500), "{event}");
    Ok(())
}

#[test]
fn what_tcp_refuses_is_told() -> Result<()> {
    let net = Net::routed()?;
    let (_, dst) = net.path(A, R, false, (0, 3958));
    let listener = net.r.run(|| TcpListener::bind(dst))?;
    let mut client = net.a.run(|| traffic::tcp(dst))?;
    let (_server, src) = listener.accept()?;
    client.write_all(b"first")?;
    let mut fwtrace = all(&net)?;
    // Its numbers have nothing to do with the connection's.
    net.a.run(|| traffic::segment(src, dst, 0x10))?;
    let mut event = Value::Null;
    let found = wait_until(|| {
        event = fwtrace.next_drop().map_or(Value::Null, |drop| drop.json);
        event["packet"]["dport"] == 3958
    });
    ensure!(found, "{event}");
    let why = event["why"].as_str().unwrap_or_default();
    let known = match event["reason"].as_str().unwrap_or_default() {
        "TCP_OLD_SEQUENCE" => "the TCP sequence number is one of the past",
        "TCP_INVALID_SEQUENCE" => "the TCP sequence number is outside the window",
        "TCP_INVALID_END_SEQUENCE" => "the TCP segment ends beyond the window",
        "TCP_INVALID_ACK_SEQUENCE" => "the TCP acknowledgement number is outside the window",
        _ => "another reason",
    };
    ensure!(why == known, "{event}");
    Ok(())
}

#[test]
fn a_switched_off_ipv6_is_told_with_its_sysctl() -> Result<()> {
    let net = Net::routed()?;
    let mut fwtrace = all(&net)?;
    net.r.sysctl("net/ipv6/conf/r0/disable_ipv6", "1")?;
    udp(&net, A, R, true, (4959, 3959));
    explained(
        &mut fwtrace,
        "IPV6DISABLED",
        "net.ipv6.conf.r0.disable_ipv6=1: IPv6 is switched off",
    )
}

/// One that holds no longer is not told: the words of the reason are.
#[test]
fn what_explains_it_no_longer_is_not_told() -> Result<()> {
    let net = Net::routed()?;
    net.r.sysctl("net/ipv4/conf/r0/rp_filter", "1")?;
    let mut fwtrace = all(&net)?;
    // By the time that it looks at the drop, the filter is off.
    fwtrace.signal(nix::sys::signal::Signal::SIGSTOP)?;
    from(&net, "10.2.0.78:4951", "10.1.0.2:3951")?;
    net.r.sysctl("net/ipv4/conf/r0/rp_filter", "0")?;
    fwtrace.signal(nix::sys::signal::Signal::SIGCONT)?;
    explained(
        &mut fwtrace,
        "IP_RPFILTER",
        "the reverse path filter refused the source address",
    )
}

#[test]
fn text_has_it_where_a_rules_text_would_stand() -> Result<()> {
    let net = Net::routed()?;
    let mut fwtrace =
        Fwtrace::start_as(Some(&net.r), &["--reason", "NO_SOCKET", "--port", "3960"])?;
    udp(&net, A, R, false, (4960, 3960));
    let line = fwtrace.next_line()?;
    ensure!(line.contains("not by the firewall: NO_SOCKET"), "{line}");
    let why = fwtrace.next_line()?;
    ensure!(
        why.trim() == "no socket listens on udp port 3960" && why.starts_with(' '),
        "{why:?}"
    );
    Ok(())
}

/// A flood of drops that all differ is explained in words, not by reading for each.
#[test]
fn a_flood_is_told_in_words() -> Result<()> {
    let net = Net::routed()?;
    let mut fwtrace = Fwtrace::start(&net.r, &["--reason", "NO_SOCKET"])?;
    let start = Instant::now();
    for port in 20_000..20_200 {
        udp(&net, A, R, false, (4961, port));
    }
    let drops = fwtrace.next_drops(200)?;
    let short = drops
        .iter()
        .filter(|drop| drop.json["why"] == "no socket takes the packet")
        .count();
    let long = drops.iter().filter(|drop| {
        let port = &drop.json["packet"]["dport"];
        drop.json["why"] == format!("no socket listens on udp port {port}")
    });
    let long = long.count();
    ensure!(short + long == 200, "{short} and {long} of 200");
    let most = 20 * (2 + usize::try_from(start.elapsed().as_secs())?);
    ensure!((20..=most).contains(&long), "{long} explained");
    Ok(())
}
