//! What a drop record says about a packet's socket, priority and route, against the socket that sent it. Needs root.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on must say where"
)]

use std::{
    net::{Ipv4Addr, UdpSocket},
    os::fd::AsFd as _,
    path::Path,
};

use fwtrace::{
    bpf::{
        load::Programs,
        reader::{RawDrop, Reader},
    },
    kernel::{
        layout,
        reasons::Reasons,
        types::{BTF_DIR, KernelTypes},
    },
    netns::NetNs,
};
use fwtrace_abi::{
    FLAG_DST, FLAG_DST_READ, FLAG_META, FLAG_SK, FLAG_SK_CRED, FLAG_SK_READ, FLAG_SK_SOCKET,
    Record, Settings,
};
use nix::sys::socket::{setsockopt, sockopt};

/// A thread's ids for files, which sockets get from the thread that opens them.
const UID: u32 = 4711;
const GID: u32 = 4712;
/// `PACKET_HOST` and `PACKET_LOOPBACK`'s way in (include/uapi/linux/if_packet.h): what comes in over loopback is for this host.
const PACKET_HOST: u8 = 0;

/// Records of drops in this thread's namespace, by destination port, while `send` sends.
fn records(send: impl FnOnce()) -> Vec<RawDrop> {
    let types = KernelTypes::load(Path::new(BTF_DIR)).unwrap();
    let (layout, missing) = layout::resolve(&types);
    assert!(missing.is_empty(), "{missing:?}");
    let mut settings = Settings::NONE;
    settings.netfilter_drop = Reasons::load(&types).unwrap().netfilter_drop().unwrap();
    let mut programs = Programs::load(&layout).unwrap();
    programs.set_settings(&settings).unwrap();
    programs.watch(NetNs::current().unwrap().inode()).unwrap();
    let ring = programs.take_ring("RING").unwrap();
    let (reader, mut batches) = Reader::start(ring, 16, u32::MAX).unwrap();
    programs.attach("anchor").unwrap();
    programs.attach("drops").unwrap();
    send();
    programs.detach("drops").unwrap();
    reader.stop();
    let mut records = Vec::new();
    while let Some(batch) = batches.blocking_recv() {
        records.extend(batch);
    }
    records
}

fn to_port(records: &[RawDrop], port: u16) -> &Record {
    let is_to = |drop: &&RawDrop| {
        let start = usize::from(drop.record.l2_len) + 22;
        drop.packet.get(start..start + 2) == Some(&port.to_be_bytes()[..])
    };
    let found = records.iter().find(is_to);
    &found
        .unwrap_or_else(|| panic!("no drop to port {port}"))
        .record
}

#[test]
fn the_socket_is_its_owners() {
    std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
            .expect("unshare: the tests need root");
        let run = |program: &str, args: &str| {
            let status = std::process::Command::new(program)
                .args(args.split(' '))
                .status();
            assert!(status.unwrap().success(), "{program} {args}");
        };
        run("ip", "link set lo up");
        run("iptables-legacy", "-A OUTPUT -p udp --dport 3101 -j DROP");
        run("iptables-legacy", "-A INPUT -p udp --dport 3102 -j DROP");
        let records = records(|| {
            nix::unistd::setfsgid(GID.into());
            nix::unistd::setfsuid(UID.into());
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            nix::unistd::setfsuid(0.into());
            nix::unistd::setfsgid(0.into());
            setsockopt(&socket.as_fd(), sockopt::Priority, &5).unwrap();
            // The firewall's refusal on the way out is an error.
            let _ = socket.send_to(b"out", (Ipv4Addr::LOCALHOST, 3101));
            socket.send_to(b"in", (Ipv4Addr::LOCALHOST, 3102)).unwrap();
        });
        let out = to_port(&records, 3101);
        let known = FLAG_META | FLAG_DST_READ | FLAG_SK_READ;
        assert_eq!(out.flags & known, known, "{:#x}", out.flags);
        let owned = FLAG_DST | FLAG_SK | FLAG_SK_SOCKET | FLAG_SK_CRED;
        assert_eq!(out.flags & owned, owned, "{:#x}", out.flags);
        assert_eq!((out.sk_uid, out.sk_gid, out.priority), (UID, GID, 5));
        // Nobody listens there: what comes in has a route and no socket.
        let input = to_port(&records, 3102);
        assert_eq!(input.flags & known, known, "{:#x}", input.flags);
        assert_eq!(input.flags & owned, FLAG_DST, "{:#x}", input.flags);
        assert_eq!(input.pkt_type, PACKET_HOST);
    })
    .join()
    .unwrap();
}
