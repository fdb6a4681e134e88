//! The process behind a drop on OUTPUT, and nobody where nobody sent it.

use std::net::TcpListener;
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};
use e2e::expect::at;
use e2e::fwtrace::Fwtrace;
use e2e::net::{Net, Place};
use e2e::{nft, system, traffic};
use serde_json::json;

use crate::support::{end_well, hit, udp};

use Place::{A, B, R};

const OUTPUT: &str = "table inet t { chain out { type filter hook output priority 0\n\
                      meta l4proto { tcp, udp } th dport 3100-3199 counter drop comment \"hit\"\n}\n}";

#[test]
fn the_sender_is_named() -> Result<()> {
    let net = Net::routed()?;
    let mut fwtrace = Fwtrace::start(&net.r, &[])?;
    nft::load(&net.r, OUTPUT)?;
    let own = json!({"pid": std::process::id(), "comm": system::own_comm(), "uid": 0});
    for v6 in [false, true] {
        udp(&net, R, B, v6, (4101, 3101));
        let event = fwtrace.next_drop()?;
        ensure!(event.json["process"] == own, "{}", event.json);
        let (src, dst) = net.path(R, B, v6, (4102, 3102));
        let _ = net.r.run(|| traffic::syn(src, dst));
        let event = fwtrace.next_drop()?;
        ensure!(event.json["process"] == own, "{}", event.json);
    }
    // Another program, another user.
    let mut bash = net.r.run(|| {
        Command::new("setpriv")
            .args(["--reuid=65534", "--clear-groups", "bash", "-c"])
            .arg("echo fwtrace > /dev/udp/10.2.0.1/3103")
            .stderr(Stdio::null())
            .spawn()
    })?;
    let event = fwtrace.next_drop()?;
    let pid = bash.id();
    bash.wait()?;
    hit(&net, 5)?;
    let expected = json!({"pid": pid, "comm": "bash", "uid": 65534});
    ensure!(event.json["process"] == expected, "{}", event.json);
    end_well(fwtrace)
}

#[test]
fn nobody_is_named_for_what_the_kernel_sent_or_forwarded() -> Result<()> {
    let net = Net::routed()?;
    let mut fwtrace = Fwtrace::start(&net.r, &[])?;
    // The SYN-ACK leaves R in the softirq of whoever runs just then: here, of this test.
    nft::load(
        &net.r,
        "table inet t { chain out { type filter hook output priority 0\n\
         tcp sport 3110 tcp flags & (syn|ack) == syn|ack counter drop comment \"hit\"\n}\n\
         chain fw { type filter hook forward priority 0; udp dport 3111 counter drop\n}\n\
         chain in { type filter hook input priority 0; udp dport 3112 counter drop\n}\n}",
    )?;
    let (src, dst) = net.path(A, R, false, (4110, 3110));
    let listener = net.r.run(|| TcpListener::bind(dst))?;
    net.a.run(|| traffic::syn(src, dst))?;
    let event = fwtrace.next_drop()?;
    // With it goes the request that would send the SYN-ACK again.
    drop(listener);
    hit(&net, 1)?;
    ensure!(at(&event.json, "packet.flags") == "S.", "{}", event.json);
    ensure!(at(&event.json, "hook") == "output", "{}", event.json);
    ensure!(event.json["process"].is_null(), "{}", event.json);
    udp(&net, A, B, false, (4111, 3111));
    let event = fwtrace.next_drop()?;
    ensure!(at(&event.json, "packet.dport") == 3111, "{}", event.json);
    ensure!(event.json["process"].is_null(), "{}", event.json);
    udp(&net, A, R, false, (4112, 3112));
    let event = fwtrace.next_drop()?;
    ensure!(at(&event.json, "packet.dport") == 3112, "{}", event.json);
    ensure!(event.json["process"].is_null(), "{}", event.json);
    end_well(fwtrace)
}
