//! Traces and logged packets from the running kernel: which packets fwtrace's own table traces, and what listeners get. Needs root.
#![expect(clippy::unwrap_used, reason = "a test's helpers may panic")]

use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use e2e::{
    net::{Net, Place},
    nft, traffic,
};
use fwtrace::{
    cli::{self, Filter, Plan},
    netlink::{
        nflog::{self, Copy, Setting, wants},
        nftrace,
        socket::{Protocol, Socket},
    },
    trace::table,
};

use Place::{A, B, R};

/// The filter of this command line, in this namespace.
fn filter(net: &Net, args: &str) -> Filter {
    let words: Vec<String> = std::iter::once("fwtrace")
        .chain(args.split_whitespace())
        .map(str::to_owned)
        .collect();
    match net.r.run(|| cli::parse(words)).unwrap() {
        Plan::Live(live) => live.filter,
        other => panic!("{args}: {other:?}"),
    }
}

/// All messages that come until `done` says so, at most for a long time.
fn receive(socket: &mut Socket, mut done: impl FnMut(u16, &[u8]) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        assert!(socket.wait(deadline).unwrap(), "nothing comes");
        for message in socket.recv().unwrap().unwrap() {
            let message = message.unwrap();
            if done(message.kind, message.payload) {
                return;
            }
        }
    }
}

/// A packet: protocol, from, to, version 6, source and destination port.
type Sent = (&'static str, Place, Place, bool, u16, u16);

/// Sends it, and lets the firewall of the sender do what it likes.
fn send(net: &Net, (proto, from, to, v6, sport, dport): Sent) {
    let (src, dst) = net.path(from, to, v6, (sport, dport));
    let _ = net.ns(from).run(|| match proto {
        "tcp" => traffic::syn(src, dst),
        "udp" => traffic::udp(src, dst),
        _ => traffic::echo(src.ip(), dst.ip(), dport),
    });
}

/// Which of the packets, by index, the table that this command line makes traces.
fn traced(net: &Net, args: &str, packets: &[Sent]) -> Vec<usize> {
    let filter = filter(net, args);
    let open = |groups: &[u32]| net.r.run(|| Socket::open(Protocol::Netfilter, groups));
    let mut events = open(&[nftrace::GROUP]).unwrap();
    let mut owner = open(&[]).unwrap();
    let name = table::free_name(&mut owner).unwrap();
    assert_eq!(name, "fwtrace");
    table::add(&mut owner, &name, &filter, 0).unwrap();
    // Nothing that would switch connection tracking on.
    let listed = net
        .r
        .command(&["nft", "list", "table", "inet", "fwtrace"], "");
    assert!(!listed.unwrap().contains("ct "));
    // What ends the test is traced by a table of its own.
    let mut last_owner = open(&[]).unwrap();
    let last = net
        .r
        .run(|| cli::parse(["fwtrace", "--sport", "4999", "--proto", "udp"]));
    let Plan::Live(last) = last.unwrap() else {
        panic!("no live run")
    };
    let name = table::free_name(&mut last_owner).unwrap();
    assert_ne!(name, "fwtrace");
    table::add(&mut last_owner, &name, &last.filter, 0).unwrap();
    for packet in packets {
        send(net, *packet);
    }
    send(net, ("udp", A, R, false, 4999, 4999));
    let mut found = Vec::new();
    receive(&mut events, |kind, payload| {
        assert_eq!(kind, nftrace::NFT_MSG_TRACE);
        let trace = nftrace::decode(payload).unwrap();
        let Some(headers) = trace.headers.filter(|_| trace.chain == "trace") else {
            return false;
        };
        let port = headers
            .transport
            .first_chunk()
            .map(|port| u16::from_be_bytes(*port));
        let version = headers.network[0] >> 4;
        let proto = headers.network[if version == 6 { 6 } else { 9 }];
        let is = |(name, _, _, v6, sport, _): &Sent| match *name {
            "tcp" => proto == 6 && port == Some(*sport) && *v6 == (version == 6),
            "udp" => proto == 17 && port == Some(*sport) && *v6 == (version == 6),
            _ => proto == if *v6 { 58 } else { 1 } && *v6 == (version == 6),
        };
        if trace.table == "fwtrace"
            && let Some(index) = packets.iter().position(is)
        {
            found.push(index);
        }
        proto == 17 && port == Some(4999)
    });
    found.sort_unstable();
    found.dedup();
    found
}

#[test]
fn the_table_traces_what_the_filter_says() {
    let net = Net::routed().unwrap();
    nft::load(
        &net.r,
        "table inet t { chain in { type filter hook input priority 0; policy drop
            meta l4proto icmpv6 accept\n}\n}",
    )
    .unwrap();
    let packets: &[Sent] = &[
        ("udp", A, R, false, 4001, 5001),
        ("tcp", A, R, false, 4002, 5002),
        ("udp", A, B, true, 4003, 5003),
        ("udp", R, B, false, 4004, 5004),
        ("icmp", A, R, false, 0, 7),
        ("tcp", B, R, true, 4006, 5001),
    ];
    for (args, want) in [
        ("", &[0, 1, 2, 3, 4, 5][..]),
        ("--port 5001", &[0, 5]),
        ("--port 4001,5002", &[0, 1]),
        ("--sport 4001-4003", &[0, 1, 2]),
        ("--dport 5002-5004 --sport 4003-5000", &[2, 3]),
        // No ports: what stands in their place is not compared.
        ("--port 0-65535", &[0, 1, 2, 3, 5]),
        ("--proto udp", &[0, 2, 3]),
        ("--proto icmp", &[4]),
        ("-4", &[0, 1, 3, 4]),
        ("-6 --proto tcp", &[5]),
        ("--host 10.1.0.0/16", &[0, 1, 4]),
        ("--src 10.2.0.2", &[3]),
        ("--dst 10.0.0.0/9,fd02::/64", &[0, 1, 2, 3, 4, 5]),
        ("--dst fd02::2/127", &[5]),
        ("--src fd00::/13 --dport 5003", &[2]),
        (
            "--src 10.1.0.1 --dst 10.1.0.2 --port 5002 --proto tcp",
            &[1],
        ),
        ("--src 10.1.0.1 --dst 10.2.0.1", &[]),
        // In or out.
        ("-i r0", &[0, 1, 2, 4]),
        ("-i r1", &[2, 3, 5]),
        ("-i r1 --proto udp -4", &[3]),
        ("--hook output", &[3]),
        ("--hook input,forward", &[0, 1, 2, 4, 5]),
    ] {
        assert_eq!(traced(&net, args, packets), want, "{args}");
    }
}

#[test]
fn one_refused_setting_costs_no_other() {
    let net = Net::routed().unwrap();
    nft::load(
        &net.r,
        "table inet t { chain in { type filter hook input priority 0
            udp dport 4010 log group 7 prefix \"seven \" drop\n}\n}",
    )
    .unwrap();
    let mut socket = net
        .r
        .run(|| Socket::open(Protocol::Netfilter, &[]))
        .unwrap();
    let conntrack = Setting::Flags(wants::CONNTRACK);
    let settings = [
        Setting::Copy(Copy::Packet(32)),
        conntrack,
        Setting::Flags(wants::SEQ | wants::SEQ_GLOBAL),
        Setting::Threshold(1),
        Setting::Timeout(7),
        Setting::BufferSize(64 * 1024),
    ];
    let refused = nflog::listen(&mut socket, 7, &settings).unwrap();
    // This depends on CONFIG_NETFILTER_NETLINK_GLUE_CT.
    assert!(
        refused.iter().all(|(setting, _)| *setting == conntrack),
        "{refused:?}"
    );
    let listed = net
        .r
        .run(|| fs::read_to_string("/proc/thread-self/net/netfilter/nfnetlink_log"))
        .unwrap();
    let instances = nflog::instances(&listed);
    assert_eq!(instances.len(), 1, "{listed}");
    assert_eq!((instances[0].group, instances[0].timeout), (7, 7));
    assert_eq!(instances[0].copy, Copy::Packet(32));

    // Another socket does not get it.
    let mut other = net
        .r
        .run(|| Socket::open(Protocol::Netfilter, &[]))
        .unwrap();
    assert!(nflog::listen(&mut other, 7, &[]).is_err());

    let (src, dst): (SocketAddr, SocketAddr) = net.path(A, R, false, (4010, 4010));
    net.a.run(|| {
        let sender = UdpSocket::bind(src).unwrap();
        for _ in 0..3 {
            sender.send_to(b"0123456789", dst).unwrap();
        }
    });
    let mut numbers = Vec::new();
    receive(&mut socket, |kind, payload| {
        if kind != nflog::NFULNL_MSG_PACKET {
            return false;
        }
        let packet = nflog::decode(payload).unwrap();
        assert_eq!((packet.group, packet.hook), (7, 1));
        assert_eq!(packet.prefix.as_deref(), Some("seven "));
        assert_eq!(packet.payload.len(), 32);
        assert_eq!(packet.payload[20..24], [0x0f, 0xaa, 0x0f, 0xaa]);
        assert_eq!(packet.seq.map(|seq| seq + 1), packet.seq_global);
        assert!(packet.time.is_some() && packet.iif.is_some() && packet.oif.is_none());
        numbers.push(packet.seq.unwrap());
        numbers.len() == 3
    });
    assert_eq!(numbers, [0, 1, 2]);
}
