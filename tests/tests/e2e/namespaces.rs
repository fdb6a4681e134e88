//! Which namespaces are watched, and what they are called.

use anyhow::{Context, Result, ensure};
use e2e::expect::at;
use e2e::fwtrace::Fwtrace;
use e2e::net::{Net, Place};
use e2e::netns::Netns;
use e2e::{nft, wait_until};
use serde_json::{Value, json};

use crate::support::{end_well, udp};

use Place::{A, B, R};

/// The same handles in every namespace, and another rule.
fn load(ns: &Netns, port: u16, comment: &str) -> Result<u64> {
    nft::load(
        ns,
        &format!(
            "table inet t {{ chain in {{ type filter hook input priority 0\n\
             udp dport {port} counter drop comment \"{comment}\"\n}}\n}}"
        ),
    )?;
    let listed = nft::list(ns)?;
    Ok(listed.commented(comment).context("no rule")?.handle)
}

fn is_by(event: &Value, ns: &Netns, handle: u64, comment: &str) -> Result<()> {
    let netns = json!({"inode": ns.inode(), "name": ns.name()});
    ensure!(event["netns"] == netns, "expected {netns}: {event}");
    ensure!(at(event, "rule.handle") == handle, "{event}");
    ensure!(at(event, "rule.comment") == comment, "{event}");
    ensure!(at(event, "evidence.confidence") == "exact", "{event}");
    Ok(())
}

#[test]
fn the_current_one_and_no_other() -> Result<()> {
    let net = Net::routed()?;
    let (in_b, in_r) = (load(&net.b, 3600, "b")?, load(&net.r, 3600, "r")?);
    ensure!(in_b == in_r, "handles {in_b} and {in_r}");
    let mut fwtrace = Fwtrace::start(&net.r, &[])?;
    udp(&net, A, B, false, (4600, 3600));
    udp(&net, A, R, false, (4601, 3600));
    is_by(&fwtrace.next_drop()?.json, &net.r, in_r, "r")?;
    end_well(fwtrace)
}

#[test]
fn named_by_name_path_and_pid() -> Result<()> {
    let net = Net::routed()?;
    let (in_a, in_b, in_r) = (
        load(&net.a, 3601, "a")?,
        load(&net.b, 3601, "b")?,
        load(&net.r, 3601, "r")?,
    );
    // A process in B to name it by; it ends when its stdin does.
    let mut process = net.b.run(|| {
        std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
    })?;
    let pid = process.id().to_string();
    let path = format!("/run/netns/{}", net.r.name());
    let watched = ["--json", "-N", net.a.name(), "--netns", &path, "-N", &pid];
    let started = Fwtrace::start_as(None, &watched);
    drop(process.stdin.take());
    process.wait()?;
    let mut fwtrace = started?;
    udp(&net, B, A, false, (4602, 3601));
    is_by(&fwtrace.next_drop()?.json, &net.a, in_a, "a")?;
    udp(&net, A, R, true, (4602, 3601));
    is_by(&fwtrace.next_drop()?.json, &net.r, in_r, "r")?;
    udp(&net, A, B, false, (4602, 3601));
    is_by(&fwtrace.next_drop()?.json, &net.b, in_b, "b")?;
    end_well(fwtrace)
}

#[test]
fn all_of_them() -> Result<()> {
    let net = Net::routed()?;
    let mut fwtrace = Fwtrace::start_as(None, &["--json", "--all-netns", "--port", "3602"])?;
    let (in_a, in_b, in_r) = (
        load(&net.a, 3602, "a")?,
        load(&net.b, 3602, "b")?,
        load(&net.r, 3602, "r")?,
    );
    for _ in 0..3 {
        udp(&net, B, A, false, (4603, 3602));
        is_by(&fwtrace.next_drop()?.json, &net.a, in_a, "a")?;
        udp(&net, A, R, true, (4603, 3602));
        is_by(&fwtrace.next_drop()?.json, &net.r, in_r, "r")?;
        udp(&net, R, B, false, (4603, 3602));
        is_by(&fwtrace.next_drop()?.json, &net.b, in_b, "b")?;
    }
    // One that is made while it runs.
    let late = Net::routed()?;
    let in_late = load(&late.r, 3602, "late")?;
    udp(&late, A, R, false, (4603, 3602));
    is_by(&fwtrace.next_drop()?.json, &late.r, in_late, "late")?;
    end_well(fwtrace)
}

#[test]
fn deleted_while_watched() -> Result<()> {
    let (doomed, net) = (Net::routed()?, Net::routed()?);
    let in_doomed = load(&doomed.r, 3603, "doomed")?;
    let in_r = load(&net.r, 3603, "r")?;
    let watched = ["--json", "-N", doomed.r.name(), "-N", net.r.name()];
    let mut fwtrace = Fwtrace::start_as(None, &watched)?;
    udp(&doomed, A, R, false, (4604, 3603));
    is_by(&fwtrace.next_drop()?.json, &doomed.r, in_doomed, "doomed")?;
    // The guard holds a file of the namespace too: all of them have to go.
    let Net { a, r, b, .. } = doomed;
    r.delete()?;
    drop((r, b));
    for i in 0..20 {
        udp(&net, A, R, i % 2 == 0, (4604 + i, 3603));
        is_by(&fwtrace.next_drop()?.json, &net.r, in_r, "r")?;
    }
    end_well(fwtrace)?;
    // Nothing holds it any more: its end of the veth pair has taken the other with it.
    ensure!(
        wait_until(|| a
            .command(&["ip", "-o", "link"], "")
            .is_ok_and(|links| !links.contains("a0"))),
        "the deleted namespace lives on"
    );
    Ok(())
}

#[test]
fn started_by_ip_netns_exec() -> Result<()> {
    // A sysfs of its own, without bpffs and tracefs: what an admin's `ip netns exec` gives.
    let net = Net::routed()?;
    let in_r = load(&net.r, 3604, "r")?;
    let mut fwtrace = Fwtrace::start_under(
        None,
        &["ip", "netns", "exec", net.r.name()],
        &["--json", "--port", "3604", "-c", "1"],
    )?;
    udp(&net, A, R, false, (4605, 3604));
    is_by(&fwtrace.next_drop()?.json, &net.r, in_r, "r")?;
    let end = fwtrace.wait()?;
    ensure!(end.status.success(), "{}: {}", end.status, end.stderr);
    Ok(())
}
