//! Where captures go: pipes, rows of files, disks that fill up, floods.

use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use e2e::expect::at;
use e2e::fwtrace::{self, Fwtrace};
use e2e::net::{Net, Place};
use e2e::{nft, traffic, wait_until};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

use crate::capture::{reader, replayed, tshark};
use crate::support::udp;

use Place::{A, R};

const RULES: &str = "table inet t { chain in { type filter hook input priority 0\n\
                     udp dport 3900 counter drop comment \"hit\"\n}\n}";

/// A file system of so many bytes, unmounted when dropped.
struct Disk(TempDir);

impl Disk {
    fn new(size: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let options = format!("size={size}");
        let none = MsFlags::empty();
        mount(
            Some("tmpfs"),
            dir.path(),
            Some("tmpfs"),
            none,
            Some(options.as_str()),
        )?;
        Ok(Self(dir))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // It may still be busy: it goes with its last user then.
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("path")
}

/// Sends so many datagrams that are dropped.
fn send(net: &Net, count: u64, payload: &[u8]) -> Result<()> {
    let (src, dst) = net.path(A, R, false, (4900, 3900));
    let socket = net.a.run(|| UdpSocket::bind(src))?;
    for _ in 0..count {
        socket.send_to(payload, dst)?;
    }
    Ok(())
}

#[test]
fn a_hundred_thousand_drops_are_in_the_file_or_accounted_for() -> Result<()> {
    const COUNT: u64 = 100_000;
    let net = Net::routed()?;
    nft::load(&net.r, RULES)?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("flood.pcapng");
    let args = ["-q", "-w", text(&file)?, "--port", "3900"];
    let fwtrace = Fwtrace::start_as(Some(&net.r), &args)?;
    send(&net, COUNT, b"x")?;
    let end = fwtrace.interrupt()?;
    ensure!(end.status.success(), "{}: {}", end.status, end.stderr);
    // Its own last event, from the file.
    let read = fwtrace::run(None, &["--json", "-r", text(&file)?])?;
    let read = String::from_utf8(read.stdout)?;
    let mut lines = read.lines().rev();
    let summary: serde_json::Value = serde_json::from_str(lines.next().context("empty")?)?;
    let count = |key: &str| at(&summary, key).as_u64().context("no count");
    let (shown, lost) = (count("shown")?, count("lost")?);
    ensure!(shown + lost == COUNT, "{summary}");
    ensure!(count("written.packets")? == shown, "{summary}");
    ensure!(count("written.missing")? == 0, "{summary}");
    let drops = read
        .lines()
        .filter(|line| line.contains("\"type\":\"drop\""));
    ensure!(drops.count() as u64 == shown, "{summary}");
    let packets = tshark(&file, &["frame.comment"])?;
    ensure!(
        packets.len() as u64 == shown,
        "{} of {shown}",
        packets.len()
    );
    // Each with its rule.
    let rule = nft::list(&net.r)?;
    let rule = rule.commented("hit").context("no rule")?;
    let by = format!(
        "DROP by inet t in rule 1 (handle {}): {}",
        rule.handle, rule.text
    );
    let wrong = packets.iter().find(|fields| !fields[0].starts_with(&by));
    ensure!(wrong.is_none(), "{wrong:?}");
    let info = reader("capinfos", &["-M", "-c"], &file)?;
    ensure!(info.trim_end().ends_with(&format!(" {shown}")), "{info}");
    e2e::report(&format!(
        "{COUNT} drops: {shown} packets in the file, {lost} lost"
    ));
    Ok(())
}

#[test]
fn a_full_disk_loses_nothing_that_was_reported_as_written() -> Result<()> {
    let net = Net::routed()?;
    nft::load(&net.r, RULES)?;
    let disk = Disk::new("64k")?;
    let file = disk.0.path().join("x.pcapng");
    let mut fwtrace = Fwtrace::start(&net.r, &["-w", text(&file)?])?;
    let mut sent = 0;
    // Each with its answer, so that the disk fills up in the middle of a run.
    for _ in 0..100 {
        udp(&net, A, R, false, (4900, 3900));
        fwtrace.next_drop()?;
        sent += 1;
    }
    let end = fwtrace.interrupt()?;
    ensure!(
        end.status.code() == Some(1),
        "{}: {}",
        end.status,
        end.stderr
    );
    let told = end.stderr.matches("No space left on device").count();
    // When it happened, and at the end.
    ensure!(told == 2, "{}", end.stderr);
    let written = at(&end.summary, "written.packets")
        .as_u64()
        .context("no count")?;
    let missing = at(&end.summary, "written.missing")
        .as_u64()
        .context("no count")?;
    ensure!(written > 0 && missing > 0, "{}", end.summary);
    ensure!(written + missing == sent, "{sent}: {}", end.summary);
    // Valid up to its last whole block, for everybody.
    let packets = tshark(&file, &["frame.comment"])?;
    ensure!(
        packets.len() as u64 == written,
        "{} of {written}",
        packets.len()
    );
    reader("capinfos", &[], &file)?;
    let read = fwtrace::run(None, &["--json", "-r", text(&file)?])?;
    ensure!(read.status.success(), "{read:?}");
    let read = String::from_utf8(read.stdout)?;
    let live: Vec<&String> = end
        .stdout
        .iter()
        .filter(|line| line.contains("\"drop\""))
        .collect();
    let live = live.iter().take(written as usize);
    ensure!(read.lines().eq(live.map(|line| line.as_str())), "{read}");
    Ok(())
}

#[test]
fn a_compressed_file_on_a_full_disk_is_whole_up_to_its_last_frame() -> Result<()> {
    let net = Net::routed()?;
    nft::load(&net.r, RULES)?;
    let disk = Disk::new("160k")?;
    let file = disk.0.path().join("x.pcapng.zst");
    let args = ["-w", text(&file)?, "--compress", "zstd"];
    let mut fwtrace = Fwtrace::start(&net.r, &args)?;
    // What does not compress.
    let (src, dst) = net.path(A, R, false, (4900, 3900));
    let mut state = 1_u64;
    for _ in 0..400 {
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 56) as u8
        })
        .take(1000)
        .collect();
        net.a.run(|| traffic::datagram(src, dst, &noise))?;
        fwtrace.next_drop()?;
    }
    let end = fwtrace.interrupt()?;
    ensure!(
        end.status.code() == Some(1),
        "{}: {}",
        end.status,
        end.stderr
    );
    let written = at(&end.summary, "written.packets")
        .as_u64()
        .context("no count")?;
    let missing = at(&end.summary, "written.missing")
        .as_u64()
        .context("no count")?;
    ensure!(
        written + missing == 400 && written > 0 && missing > 0,
        "{}",
        end.summary
    );
    let read = fwtrace::run(None, &["--json", "-r", text(&file)?])?;
    ensure!(read.status.success(), "{read:?}");
    let lines = String::from_utf8(read.stdout)?.lines().count();
    ensure!(lines as u64 == written, "{lines} of {written}");
    Ok(())
}

#[test]
fn a_file_that_goes_away_is_told_at_the_end() -> Result<()> {
    let net = Net::routed()?;
    nft::load(&net.r, RULES)?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("x.pcapng");
    let mut fwtrace = Fwtrace::start(&net.r, &["-w", text(&file)?])?;
    std::fs::remove_file(&file)?;
    udp(&net, A, R, false, (4900, 3900));
    fwtrace.next_drop()?;
    let end = fwtrace.interrupt()?;
    ensure!(
        end.status.code() == Some(1),
        "{}: {}",
        end.status,
        end.stderr
    );
    ensure!(end.stderr.contains("has been removed"), "{}", end.stderr);
    let missing = dir.path().join("no/x.pcapng");
    let refused = fwtrace::run(Some(&net.r), &["-w", text(&missing)?])?;
    let stderr = String::from_utf8_lossy(&refused.stderr);
    ensure!(refused.status.code() == Some(1), "{refused:?}");
    ensure!(
        stderr.contains("no/x.pcapng: No such file or directory") && stderr.contains("-w"),
        "{stderr}"
    );
    Ok(())
}

#[test]
fn tshark_reads_the_pipe_while_it_happens() -> Result<()> {
    let net = Net::routed()?;
    nft::load(&net.r, RULES)?;
    let dir = tempfile::tempdir()?;
    let ready = dir.path().join("ready");
    let binary = fwtrace::binary()?;
    let mut run = net.r.run(|| {
        Command::new(&binary)
            .args(["-w", "-", "--ready-file", text(&ready)?])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("fwtrace")
    })?;
    let pipe = run.stdout.take().context("no stdout")?;
    let mut tshark = Command::new("tshark")
        .args(["-n", "-l", "-r", "-", "-T", "fields", "-e", "frame.comment"])
        .stdin(pipe)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(
        tshark.stdout.take().context("no stdout")?,
    ));
    ensure!(wait_until(|| ready.exists()), "not ready");
    for _ in 0..3 {
        udp(&net, A, R, false, (4900, 3900));
        // Before the next one is sent: it is not the pipe's end that lets it out.
        let line = lines.next().context("tshark ended")??;
        ensure!(
            line.starts_with("DROP by inet t in rule 1 (handle "),
            "{line}"
        );
    }
    tshark.kill()?;
    tshark.wait()?;
    // Its reader is gone: it ends, quietly, when it notices.
    let ended = wait_until(|| {
        udp(&net, A, R, false, (4900, 3900));
        run.try_wait().is_ok_and(|status| status.is_some())
    });
    if !ended {
        run.kill()?;
        bail!("it goes on without its reader");
    }
    let output = run.wait_with_output()?;
    ensure!(output.status.code() == Some(0), "{output:?}");
    ensure!(output.stderr == b"sources: ebpf\n", "{output:?}");
    Ok(())
}

#[test]
fn compressed_files_read_back() -> Result<()> {
    let net = Net::routed()?;
    nft::load(&net.r, RULES)?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("x.pcapng.zst");
    let args = ["-w", text(&file)?, "--compress", "zstd"];
    let fwtrace = Fwtrace::start(&net.r, &args)?;
    send(&net, 1000, &[0; 1000])?;
    let end = fwtrace.interrupt()?;
    ensure!(end.status.success(), "{}", end.stderr);
    ensure!(
        at(&end.summary, "written.packets") == 1000,
        "{}",
        end.summary
    );
    let size = std::fs::metadata(&file)?.len();
    ensure!(size < 300_000, "{size} bytes for a million and more");
    replayed(&file, &end)
}

/// Names of the files there, in order.
fn names(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        names.push(entry?.path());
    }
    names.sort();
    Ok(names)
}

#[test]
fn the_next_file_begins_when_one_is_large() -> Result<()> {
    let net = Net::routed()?;
    nft::load(&net.r, RULES)?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("x.pcapng");
    let fwtrace = Fwtrace::start(&net.r, &["-w", text(&file)?, "-C", "64k"])?;
    send(&net, 400, &[0; 1000])?;
    let end = fwtrace.interrupt()?;
    ensure!(end.status.success(), "{}", end.stderr);
    ensure!(
        at(&end.summary, "written.packets") == 400,
        "{}",
        end.summary
    );
    let files = names(dir.path())?;
    ensure!(files.len() > 5, "{files:?}");
    let name = |at: usize| {
        dir.path().join(if at == 0 {
            "x.pcapng".into()
        } else {
            format!("x.pcapng{at}")
        })
    };
    let mut lines = Vec::new();
    let mut packets = 0;
    for number in 0..files.len() {
        let path = name(number);
        let size = std::fs::metadata(&path)?.len();
        ensure!(size < 68 * 1024, "{path:?}: {size} bytes");
        packets += tshark(&path, &["frame.number"])?.len();
        let read = fwtrace::run(None, &["--json", "-r", text(&path)?])?;
        lines.extend(String::from_utf8(read.stdout)?.lines().map(str::to_owned));
    }
    ensure!(packets == 400, "{packets} packets in {files:?}");
    ensure!(lines == end.stdout, "{lines:#?}");

    // Three in turn.
    let ring = tempfile::tempdir()?;
    let file = ring.path().join("x");
    let args = ["-w", text(&file)?, "-C", "64k", "-W", "3"];
    let fwtrace = Fwtrace::start(&net.r, &args)?;
    send(&net, 400, &[0; 1000])?;
    let end = fwtrace.interrupt()?;
    ensure!(end.status.success(), "{}", end.stderr);
    let files = names(ring.path())?;
    let wanted = ["x0", "x1", "x2"].map(|name| ring.path().join(name));
    ensure!(files == wanted, "{files:?}");
    Ok(())
}

#[test]
fn a_file_a_second_and_then_the_end() -> Result<()> {
    let net = Net::routed()?;
    nft::load(&net.r, RULES)?;
    let dir = tempfile::tempdir()?;
    let format = dir.path().join("x-%s.pcapng");
    let args = ["-w", text(&format)?, "-G", "1", "-W", "2"];
    let mut fwtrace = Fwtrace::start(&net.r, &args)?;
    let mut sent = 0;
    let ended = wait_until(|| {
        udp(&net, A, R, false, (4900, 3900));
        sent += 1;
        fwtrace.has_ended()
    });
    ensure!(ended, "it goes on");
    let end = fwtrace.wait()?;
    ensure!(
        end.status.code() == Some(0),
        "{}: {}",
        end.status,
        end.stderr
    );
    let files = names(dir.path())?;
    ensure!(files.len() == 2, "{files:?}");
    let mut packets = 0;
    for file in &files {
        let seconds: u64 = text(file)?
            .rsplit('-')
            .next()
            .and_then(|rest| rest.strip_suffix(".pcapng"))
            .context("name")?
            .parse()?;
        ensure!(seconds > 1_700_000_000, "{file:?}");
        let found = tshark(file, &["frame.number"])?.len();
        ensure!(found > 0, "nothing in {file:?}");
        packets += found as u64;
    }
    ensure!(
        at(&end.summary, "written.packets") == packets,
        "{}",
        end.summary
    );
    Ok(())
}

#[test]
fn captures_of_others_are_shown_without_attribution() -> Result<()> {
    let net = Net::routed()?;
    nft::load(&net.r, RULES)?;
    let dir = tempfile::tempdir()?;
    let own = dir.path().join("own.pcapng");
    let fwtrace = Fwtrace::start(&net.r, &["-w", text(&own)?])?;
    send(&net, 3, b"abc")?;
    fwtrace.interrupt()?;
    // tcpdump keeps the packets only, editcap keeps all that is in them.
    let (bare, kept) = (dir.path().join("bare.pcap"), dir.path().join("kept.pcapng"));
    reader("tcpdump", &["-w", text(&bare)?, "-r"], &own)?;
    reader("editcap", &[text(&own)?], &kept)?;
    let show = |path: &Path, args: &[&str]| -> Result<Vec<String>> {
        let mut all = vec!["-r", text(path)?];
        all.extend(args);
        let read = fwtrace::run(None, &all)?;
        ensure!(read.status.success(), "{read:?}");
        let read = String::from_utf8(read.stdout)?;
        Ok(read.lines().map(str::to_owned).collect())
    };
    for line in show(&bare, &["--json"])? {
        let event: serde_json::Value = serde_json::from_str(&line)?;
        ensure!(
            event["type"] == "packet" && event["verdict"].is_null(),
            "{line}"
        );
        ensure!(at(&event, "packet.dport") == 3900, "{line}");
    }
    let text = show(&bare, &[])?;
    ensure!(text.len() == 3, "{text:?}");
    ensure!(
        text.iter()
            .all(|line| line.contains("PACKET") && line.contains("not attributed")),
        "{text:?}"
    );
    let drops = show(&kept, &["--json"])?;
    ensure!(
        drops.len() == 3 && drops.iter().all(|line| line.contains("\"drop\"")),
        "{drops:?}"
    );
    // Filters choose among what there is.
    ensure!(show(&own, &["--port", "3900", "--chain", "in", "-c", "2", "-j"])?.len() == 2);
    for none in [
        ["--port", "1"],
        ["--chain", "out"],
        ["-i", "r9"],
        ["--reason", "NO_SOCKET"],
    ] {
        let shown = show(&own, &none)?;
        ensure!(shown.is_empty(), "{none:?}: {shown:?}");
    }
    Ok(())
}

#[test]
fn a_file_that_was_cut_short_is_shown_as_far_as_it_goes() -> Result<()> {
    let net = Net::routed()?;
    nft::load(&net.r, RULES)?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("x.pcapng");
    let fwtrace = Fwtrace::start(&net.r, &["-w", text(&file)?])?;
    send(&net, 2, b"abc")?;
    let end = fwtrace.interrupt()?;
    let bytes = std::fs::read(&file)?;
    let cut = dir.path().join("cut.pcapng");
    let mut seen = std::collections::BTreeSet::new();
    for length in (0..bytes.len()).step_by(97) {
        std::fs::write(&cut, &bytes[..length])?;
        let read = fwtrace::run(None, &["--json", "-r", text(&cut)?])?;
        let stdout = String::from_utf8(read.stdout)?;
        let stderr = String::from_utf8(read.stderr)?;
        let events = stdout.lines().filter(|line| !line.contains("\"error\""));
        let events: Vec<&str> = events.collect();
        ensure!(
            end.stdout
                .starts_with(&events.iter().map(|l| (*l).to_owned()).collect::<Vec<_>>()),
            "{stdout}"
        );
        let code = read.status.code();
        ensure!(
            code == Some(1) || code == Some(0) && stderr.lines().all(|l| !l.contains("error")),
            "{length}: {code:?} {stderr}"
        );
        if code == Some(1) {
            ensure!(
                stderr.contains("offset") || stderr.contains("no capture"),
                "{stderr}"
            );
        }
        seen.insert(events.len());
    }
    ensure!(
        seen.contains(&0) && seen.contains(&1) && seen.contains(&2),
        "{seen:?}"
    );
    Ok(())
}
