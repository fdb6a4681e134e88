//! The bytes in a capture are those that were sent.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use e2e::expect::at;
use e2e::fwtrace::{End, Fwtrace};
use e2e::net::{Net, Place};
use e2e::{nft, traffic};
use serde_json::Value;
use tempfile::TempDir;

use crate::capture::{reader, replayed};

use Place::{A, B, R};

/// MAC addresses of `r0` and `a0`.
const R0: [u8; 6] = [2, 0, 0, 0, 0x0b, 0];
const A0: [u8; 6] = [2, 0, 0, 0, 0x0a, 0];

/// A run that writes.
struct Writing {
    net: Net,
    dir: TempDir,
    run: Fwtrace,
}

impl Writing {
    fn start(ruleset: &str, args: &[&str]) -> Result<Self> {
        let net = Net::routed()?;
        nft::load(&net.r, ruleset)?;
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("x.pcapng");
        let mut all = vec!["-w", file.to_str().context("path")?];
        all.extend(args);
        let run = Fwtrace::start(&net.r, &all)?;
        Ok(Self { net, dir, run })
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("x.pcapng")
    }

    /// Ends it; the packets as tshark reads them. What was recorded is what was shown.
    fn end(self) -> Result<(Vec<Frame>, End)> {
        let file = self.file();
        let end = self.run.interrupt()?;
        ensure!(end.status.success(), "{}", end.stderr);
        ensure!(at(&end.summary, "written.missing") == 0, "{}", end.summary);
        replayed(&file, &end)?;
        reader("capinfos", &[], &file)?;
        let json = reader("tshark", &["-n", "-T", "json", "-x", "-r"], &file)?;
        let packets: Vec<Value> = serde_json::from_str(&json)?;
        let frames = packets.iter().map(Frame::read).collect::<Result<_>>()?;
        Ok((frames, end))
    }
}

/// A packet as tshark reads it.
#[derive(Debug)]
struct Frame {
    bytes: Vec<u8>,
    /// Length of the whole packet.
    len: usize,
    /// Wireshark's number of the link type: 1 Ethernet, 7 raw IP, 25 cooked.
    link: String,
}

impl Frame {
    fn read(packet: &Value) -> Result<Self> {
        let layers = &packet["_source"]["layers"];
        let hex = layers["frame_raw"][0].as_str().context("no bytes")?;
        let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16);
        let bytes: Result<_, _> = (0..hex.len()).step_by(2).map(byte).collect();
        let field = |name: &str| layers["frame"][name].as_str().context("no field");
        Ok(Self {
            bytes: bytes?,
            len: field("frame.len")?.parse()?,
            link: field("frame.encap_type")?.to_owned(),
        })
    }

    /// All of it is there, and is this.
    fn is(&self, link: &str, bytes: &[u8]) -> Result<()> {
        ensure!(
            self.link == link && self.bytes == bytes && self.len == bytes.len(),
            "{self:?}\nis not link {link}: {bytes:?}"
        );
        Ok(())
    }
}

#[test]
fn frames_of_vlans_and_with_extension_headers_are_as_they_were_sent() -> Result<()> {
    let writing = Writing::start(
        "table netdev t { chain in { type filter hook ingress device \"r0\" priority 0\n\
         udp dport 3900-3999 counter drop\nvlan id 10 counter drop\n\
         vlan id 20 counter drop\nether type 0x88b5 counter drop\n}\n}",
        &[],
    )?;
    let net = &writing.net;
    let v4 = net.path(A, R, false, (4900, 3900));
    let v6 = net.path(A, R, true, (4900, 3900));
    let padding = [1, 4, 0, 0, 0, 0];
    let plain = traffic::udp_packet(v4.0, v4.1, &[]);
    let extended = traffic::udp_packet(v6.0, v6.1, &[(0, &padding), (60, &padding)]);
    let frames = [
        traffic::ethernet(R0, A0, &[], 0x0800, &plain),
        traffic::ethernet(R0, A0, &[], 0x86dd, &extended),
        traffic::ethernet(R0, A0, &[10], 0x0800, &plain),
        traffic::ethernet(R0, A0, &[10], 0x86dd, &extended),
        traffic::ethernet(R0, A0, &[0x6000 | 20, 30], 0x0800, &plain),
        traffic::ethernet(R0, A0, &[], 0x88b5, b"neither IP nor anything"),
    ];
    for frame in &frames {
        net.a.run(|| traffic::frame("a0", frame))?;
    }
    let (read, _) = writing.end()?;
    ensure!(read.len() == frames.len(), "{read:?}");
    for (read, sent) in read.iter().zip(&frames) {
        read.is("1", sent)?;
    }
    Ok(())
}

#[test]
fn no_payload_and_no_link_header() -> Result<()> {
    let writing = Writing::start(
        "table inet t { chain in { type filter hook input priority 0\n\
         udp dport 3901 counter drop\n}\n\
         chain out { type filter hook output priority 0\nudp dport 3902 counter drop\n}\n}",
        &[],
    )?;
    let net = &writing.net;
    let (src, dst) = net.path(A, R, false, (4901, 3901));
    net.a.run(|| traffic::datagram(src, dst, &[]))?;
    let (src, dst) = net.path(R, B, true, (4902, 3902));
    // Refused by the firewall.
    let _ = net.r.run(|| traffic::datagram(src, dst, b"outward"));
    let (read, end) = writing.end()?;
    ensure!(read.len() == 2, "{read:?}");
    // The kernel has built these: their headers are checked by tshark's own reading of the length.
    let [empty, outward] = read.as_slice() else {
        anyhow::bail!("{read:?}");
    };
    ensure!(empty.link == "1" && empty.len == 14 + 28, "{empty:?}");
    ensure!(empty.bytes.len() == empty.len, "{empty:?}");
    ensure!(
        outward.link == "7" && outward.len == 40 + 8 + 7,
        "{outward:?}"
    );
    ensure!(outward.bytes.ends_with(b"outward"), "{outward:?}");
    ensure!(
        at(&end.drops[0].json, "packet.len") == 28,
        "{:?}",
        end.drops
    );
    Ok(())
}

#[test]
fn a_segment_longer_than_any_wire_is_there_as_a_whole() -> Result<()> {
    let writing = Writing::start("", &["--port", "3903"])?;
    let net = &writing.net;
    let (_, address) = net.path(A, R, false, (0, 3903));
    let listener = net.r.run(|| std::net::TcpListener::bind(address))?;
    let mut client = net.a.run(|| traffic::tcp(address))?;
    let _server = listener.accept()?;
    nft::load(
        &net.r,
        "table inet t { chain in { type filter hook input priority 0\n\
         tcp dport 3903 meta length > 2000 counter drop\n}\n}",
    )?;
    let sent: Vec<u8> = (0..12_000_u32).map(|i| (i % 251) as u8).collect();
    client.write_all(&sent)?;
    let mut writing = writing;
    let first = writing.run.next_drop()?;
    nft::load(&writing.net.r, "")?;
    drop(client);
    let (read, _) = writing.end()?;
    let frame = read.first().context("no packet")?;
    let len = at(&first.json, "packet.len")
        .as_u64()
        .context("no length")?;
    ensure!(frame.len as u64 == 14 + len, "{} is not {len}", frame.len);
    let payload = frame.bytes.get(14 + 52..).context("no payload")?;
    ensure!(sent.starts_with(payload), "the payload is another");
    ensure!(
        payload.len() as u64 == len - 52 && payload.len() > 1948,
        "{len}"
    );
    Ok(())
}

#[test]
fn fragments_put_together_and_addresses_translated() -> Result<()> {
    let writing = Writing::start(
        "table ip n { chain pre { type nat hook prerouting priority -100\n\
         udp dport 3904 dnat to 10.1.0.2:3905\n}\n}\n\
         table ip t { chain in { type filter hook input priority 0\n\
         udp dport 3905 counter drop\n}\n}",
        &[],
    )?;
    let net = &writing.net;
    // Conntrack puts the fragments together, as a list behind the first.
    let (src, dst) = net.path(A, B, false, (4904, 3904));
    let sent: Vec<u8> = (0..4000_u32).map(|i| (i % 251) as u8).collect();
    net.a.run(|| traffic::datagram(src, dst, &sent))?;
    let (read, end) = writing.end()?;
    let [frame] = read.as_slice() else {
        anyhow::bail!("{read:?}");
    };
    ensure!(frame.len == 14 + 28 + sent.len(), "{}", frame.len);
    ensure!(frame.bytes.get(14 + 28..) == Some(&sent[..]), "{frame:?}");
    let event = &end.drops[0].json;
    ensure!(at(event, "conntrack.nat.orig.dst") == "10.2.0.1", "{event}");
    ensure!(at(event, "packet.dst") == "10.1.0.2", "{event}");
    Ok(())
}

#[test]
fn a_snaplen_cuts_and_says_how_much_there_was() -> Result<()> {
    let writing = Writing::start(
        "table inet t { chain in { type filter hook input priority 0\n\
         udp dport 3906 counter drop\n}\n}",
        &["-s", "60"],
    )?;
    let net = &writing.net;
    let (src, dst) = net.path(A, R, false, (4906, 3906));
    net.a.run(|| traffic::datagram(src, dst, &[7; 500]))?;
    let (read, _) = writing.end()?;
    let [frame] = read.as_slice() else {
        anyhow::bail!("{read:?}");
    };
    ensure!(
        frame.bytes.len() == 60 && frame.len == 14 + 28 + 500,
        "{frame:?}"
    );
    Ok(())
}
