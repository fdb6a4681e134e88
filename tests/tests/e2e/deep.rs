//! Rules that look deeper into packets than is captured otherwise: as much as they look at is captured then, and no more is shown.

use anyhow::{Result, ensure};
use e2e::expect::at;
use e2e::fwtrace::Fwtrace;
use e2e::net::{Net, Place};
use e2e::nft;
use e2e::traffic;

use crate::capture::tshark;
use crate::support::{end_well, udp};

use Place::{A, R};

const PORT: u16 = 3960;
/// Drops a string and a word behind the first 128 bytes, and what is left.
const RULES: &str = "*filter
:INPUT ACCEPT [0:0]
-A INPUT -p udp --dport 3960 -m string --string needle --algo bm --from 200 --to 1400 -m comment --comment string -j DROP
-A INPUT -p udp --dport 3960 -m u32 --u32 \"1000=0x64656570\" -m comment --comment word -j DROP
-A INPUT -p udp --dport 3960 -m comment --comment rest -j DROP
COMMIT
";

/// Sends so many bytes with these at this place, counted from the IP header.
fn send(net: &Net, what: &[u8], place: usize) -> Result<()> {
    let mut payload = vec![b'.'; 1200];
    let start = place - 28;
    payload[start..start + what.len()].copy_from_slice(what);
    let (src, dst) = net.path(A, R, false, (4960, PORT));
    net.a.run(|| traffic::datagram(src, dst, &payload))?;
    Ok(())
}

/// Each packet, and the rule that drops it.
fn judge(net: &Net, run: &mut Fwtrace) -> Result<()> {
    for (what, place, comment) in [
        (&b"needle"[..], 900, "string"),
        (b"NEEDLE", 900, "rest"),
        (b"needle", 100, "rest"),
        (b"deep", 1000, "word"),
        (b"deep", 1004, "rest"),
    ] {
        send(net, what, place)?;
        let event = run.next_drop()?.json;
        ensure!(
            at(&event, "evidence.confidence") == "computed"
                && at(&event, "rule.comment") == comment,
            "expected {comment}: {event}"
        );
        ensure!(at(&event, "packet.len") == 1228, "{event}");
    }
    Ok(())
}

#[test]
fn rules_are_followed_as_deep_as_they_look_and_no_more_is_shown() -> Result<()> {
    let net = Net::routed()?;
    net.r.command(&["iptables-nft-restore"], RULES)?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("x.pcapng");
    let path = file.to_str().unwrap_or_default();
    let args = ["-w", path, "-s", "60", "--evidence", "evaluator"];
    let mut run = Fwtrace::start(&net.r, &args)?;
    judge(&net, &mut run)?;
    end_well(run)?;
    let lengths = tshark(&file, &["frame.cap_len", "frame.len"])?;
    ensure!(lengths == vec![["60", "1242"]; 5], "{lengths:?}");
    Ok(())
}

#[test]
fn rules_that_come_later_are_followed_too() -> Result<()> {
    for restore in ["iptables-nft-restore", "iptables-legacy-restore"] {
        let net = Net::routed()?;
        nft::load(
            &net.r,
            "table netdev t { chain in { type filter hook ingress device r0 priority 0\n\
             udp dport 3961 drop\n}\n}",
        )?;
        let mut run = Fwtrace::start(&net.r, &["--evidence", "evaluator"])?;
        net.r.command(&[restore], RULES)?;
        // With it the rules are read.
        loop {
            udp(&net, A, R, false, (4960, PORT));
            let event = run.next_drop()?.json;
            if at(&event, "rule.comment") == "rest" {
                break;
            }
        }
        judge(&net, &mut run)?;
        end_well(run)?;
    }
    Ok(())
}
