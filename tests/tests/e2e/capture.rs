//! Capture files, read by those who made the formats.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use e2e::expect::at;
use e2e::fwtrace::{self, End, Fwtrace};
use e2e::net::{Net, Place};
use e2e::nft;

use crate::support::{L4, Packet};

use Place::{A, B, R};

/// Three rules that drop, and what decides between them.
const RULES: &str = "table inet t {
    chain sub { tcp dport 4000-4099 counter drop comment \"web\"
    }
    chain in { type filter hook input priority 0
        ct state established accept
        tcp dport 4000-4099 jump sub
        udp dport 4100-4199 counter drop comment \"dns\"
    }
    chain fw { type filter hook forward priority 0
        meta l4proto { icmp, icmpv6 } counter reject comment \"ping\"
    }
}";

/// Runs a reader of captures to its end; its stdout.
pub(crate) fn reader(program: &str, args: &[&str], file: &Path) -> Result<String> {
    let output = Command::new(program)
        .args(args)
        .arg(file)
        .output()
        .with_context(|| format!("{program}: `cargo xtask setup --tests` installs it"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program}: {stderr}");
    Ok(String::from_utf8(output.stdout)?)
}

/// What tshark says of each packet: these fields.
pub(crate) fn tshark(file: &Path, fields: &[&str]) -> Result<Vec<Vec<String>>> {
    let mut args = vec!["-n", "-T", "fields"];
    args.extend(fields.iter().flat_map(|field| ["-e", field]));
    args.push("-r");
    let listing = reader("tshark", &args, file)?;
    // It escapes quotes.
    let split = |line: &str| line.split('\t').map(|f| f.replace("\\\"", "\"")).collect();
    Ok(listing.lines().map(split).collect())
}

/// `-r` prints the very lines that the run has printed.
pub(crate) fn replayed(file: &Path, end: &End) -> Result<()> {
    let again = fwtrace::run(None, &["--json", "-r", file.to_str().context("path")?])?;
    ensure!(again.status.success(), "{again:?}");
    let again = String::from_utf8(again.stdout)?;
    let again: Vec<&str> = again.lines().collect();
    ensure!(again == end.stdout, "{again:#?}\n\n{:#?}", end.stdout);
    Ok(())
}

#[test]
fn tshark_reads_the_right_comment_on_each_of_300_packets() -> Result<()> {
    let net = Net::routed()?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("x.pcapng");
    let path = file.to_str().context("path")?;
    nft::load(&net.r, RULES)?;
    let fwtrace = Fwtrace::start(&net.r, &["-w", path])?;
    let mut comments = HashMap::new();
    let ruleset = nft::list(&net.r)?;
    for (comment, word) in [("web", "DROP"), ("dns", "DROP"), ("ping", "REJECT")] {
        let rule = ruleset.commented(comment).context("no rule")?;
        comments.insert(
            comment,
            format!(
                "{word} by inet t {} rule {} (handle {}): {} | ct new | kernel-stack, exact",
                rule.chain, rule.number, rule.handle, rule.text
            ),
        );
    }
    let mut expected = Vec::new();
    for i in 0..300_u16 {
        let (l4, to, ports, comment) = match i % 3 {
            0 => (L4::Tcp, R, (20_000 + i, 4000 + i % 100), "web"),
            1 => (L4::Udp, R, (20_000 + i, 4100 + i % 100), "dns"),
            _ => (L4::Icmp, B, (0, i), "ping"),
        };
        let packet = Packet {
            l4,
            v6: i % 2 == 1,
            from: A,
            to,
            ports,
        };
        packet.send(&net)?;
        expected.push((packet, comments[comment].clone()));
    }
    let end = fwtrace.interrupt()?;
    ensure!(end.status.success(), "{}", end.stderr);
    ensure!(end.drops.len() == 300, "{}", end.summary);
    ensure!(
        at(&end.summary, "written.packets") == 300,
        "{}",
        end.summary
    );
    ensure!(at(&end.summary, "written.missing") == 0, "{}", end.summary);
    let packets = tshark(&file, &["frame.comment", "frame.interface_name"])?;
    ensure!(packets.len() == 300, "{} packets", packets.len());
    for ((packet, comment), read) in expected.iter().zip(&packets) {
        ensure!(
            *read == [comment.as_str(), "r0"],
            "{packet:?}: {read:?}, not {comment}"
        );
    }
    for ((packet, _), drop) in expected.iter().zip(&end.drops) {
        ensure!(packet.is_of(&net, &drop.json), "{packet:?}: {}", drop.json);
    }
    replayed(&file, &end)
}
