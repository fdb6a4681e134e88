//! A run changes nothing, and leaves nothing behind however it ends.

use anyhow::{Context, Result, ensure};
use e2e::fwtrace::Fwtrace;
use e2e::net::{Net, Place};
use e2e::system::{self, BpfKind};
use e2e::{nft, wait_until};
use nix::sys::signal::Signal;

use crate::support::udp;

use Place::{A, R};

/// Without counters: the listing does not change with the traffic.
const RULES: &str = "table inet t { chain in { type filter hook input priority 0\n\
                     ct state invalid drop\nudp dport 3500 drop\n}\n}";

/// What must be the same before, during and after.
#[derive(PartialEq)]
struct State {
    ruleset: String,
    sysctls: std::collections::BTreeMap<String, Vec<u8>>,
    links: String,
}

fn state(net: &Net) -> Result<State> {
    Ok(State {
        ruleset: nft::text(&net.r)?,
        sysctls: system::sysctls(&net.r),
        links: net.r.command(&["ip", "-o", "addr"], "")?,
    })
}

fn same(now: &State, before: &State, when: &str) -> Result<()> {
    ensure!(now.ruleset == before.ruleset, "{when}: {}", now.ruleset);
    ensure!(now.links == before.links, "{when}: {}", now.links);
    for (key, value) in &before.sysctls {
        let now = now.sysctls.get(key);
        ensure!(now == Some(value), "{when}: {key}: {value:?}, now {now:?}");
    }
    ensure!(now == before, "{when}: a sysctl more");
    Ok(())
}

/// Runs it, ends it by `end`, and looks around.
fn nothing_is_left(end: impl FnOnce(Fwtrace) -> Result<()>) -> Result<()> {
    let net = Net::routed()?;
    nft::load(&net.r, RULES)?;
    let namespaces = system::named_namespaces();
    let before = state(&net)?;
    ensure!(
        before.sysctls.len() > 100,
        "{} sysctls",
        before.sysctls.len()
    );
    let mut fwtrace = Fwtrace::start(&net.r, &[])?;
    let pid = fwtrace.pid();
    udp(&net, A, R, false, (4700, 3500));
    fwtrace.drop_to_port(3500)?;
    same(&state(&net)?, &before, "during the run")?;
    let objects = system::bpf_objects_of(pid);
    let programs = objects.iter().filter(|o| o.0 == BpfKind::Program).count();
    ensure!(programs > 0, "no BPF program in its fdinfo: {objects:?}");
    ensure!(objects.is_subset(&system::bpf_objects()), "{objects:?}");
    ensure!(system::processes_in(&net.r).contains(&pid), "not in R");
    end(fwtrace)?;
    same(&state(&net)?, &before, "after the run")?;
    // The kernel frees them a little after the last descriptor.
    let mut left = objects.clone();
    wait_until(|| {
        left = &objects & &system::bpf_objects();
        left.is_empty()
    });
    ensure!(left.is_empty(), "left: {left:?}");
    let processes = system::processes_in(&net.r);
    ensure!(processes.is_empty(), "processes left: {processes:?}");
    // Other tests' namespaces come and go.
    let new: Vec<_> = system::named_namespaces()
        .difference(&namespaces)
        .filter(|name| !name.starts_with("fwt-"))
        .cloned()
        .collect();
    ensure!(
        !new.iter().any(|name| name.contains("fwtrace")),
        "namespaces left: {new:?}"
    );
    Ok(())
}

#[test]
fn interrupted() -> Result<()> {
    nothing_is_left(|fwtrace| {
        let end = fwtrace.interrupt()?;
        ensure!(end.status.code() == Some(0), "{}", end.status);
        ensure!(end.count("shown")? == 1, "{}", end.summary);
        ensure!(!end.stderr.contains("panicked"), "{}", end.stderr);
        Ok(())
    })
}

#[test]
fn terminated() -> Result<()> {
    nothing_is_left(|fwtrace| {
        fwtrace.signal(Signal::SIGTERM)?;
        let end = fwtrace.wait()?;
        ensure!(end.status.code() == Some(0), "{}", end.status);
        ensure!(end.count("shown")? == 1, "{}", end.summary);
        Ok(())
    })
}

#[test]
fn killed() -> Result<()> {
    nothing_is_left(|mut fwtrace| {
        fwtrace.kill();
        Ok(())
    })
}

#[test]
fn interrupted_before_it_is_ready() -> Result<()> {
    let net = Net::routed()?;
    let binary = e2e::fwtrace::binary()?;
    // At any moment of the start, calibration included.
    for micros in (0..250_000).step_by(25_000) {
        let mut child = net.r.run(|| {
            std::process::Command::new(&binary)
                .arg("--json")
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::piped())
                .spawn()
        })?;
        // Not a wait for anything: the moment is what varies.
        std::thread::sleep(std::time::Duration::from_micros(micros));
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id())?);
        nix::sys::signal::kill(pid, Signal::SIGINT)?;
        let mut status = None;
        wait_until(|| {
            status = child.try_wait().ok().flatten();
            status.is_some()
        });
        let status = match status {
            Some(status) => status,
            None => {
                child.kill()?;
                anyhow::bail!("SIGINT after {micros} us is not heard");
            }
        };
        // Before main has run, the signal itself ends it.
        use std::os::unix::process::ExitStatusExt;
        let by_signal = status.signal() == Some(Signal::SIGINT as i32);
        ensure!(
            status.code() == Some(0) || by_signal,
            "{micros} us: {status}"
        );
        ensure!(system::processes_in(&net.r).is_empty(), "{micros} us: left");
    }
    Ok(())
}

#[test]
fn nobody_reads_stdout_any_more() -> Result<()> {
    let net = Net::routed()?;
    nft::load(&net.r, RULES)?;
    let mut fwtrace = Fwtrace::start(&net.r, &[])?;
    udp(&net, A, R, false, (4701, 3500));
    fwtrace.next_drop()?;
    fwtrace.close_stdout();
    // It notices when it writes.
    let ended = wait_until(|| {
        udp(&net, A, R, false, (4701, 3500));
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
    let stderr = end.stderr.to_lowercase();
    ensure!(
        !stderr.contains("pipe") && !stderr.contains("panic") && !stderr.contains("error"),
        "{stderr}"
    );
    Ok(())
}

#[test]
fn the_initial_namespace_is_left_alone() -> Result<()> {
    let list = || -> Result<String> {
        let output = std::process::Command::new("nft")
            .args(["-a", "list", "ruleset"])
            .output()?;
        Ok(String::from_utf8(output.stdout)?)
    };
    let before = list()?;
    let fwtrace = Fwtrace::start_as(None, &["--json", "--port", "9"])?;
    let objects = system::bpf_objects_of(fwtrace.pid());
    ensure!(!objects.is_empty(), "nothing is attached");
    ensure!(list()? == before, "during: {}", list()?);
    let end = fwtrace.interrupt()?;
    ensure!(end.status.success(), "{}", end.stderr);
    ensure!(list()? == before, "after: {}", list()?);
    Ok(())
}

#[test]
fn ready_in_time_and_prompt() -> Result<()> {
    let net = Net::routed()?;
    nft::load(&net.r, RULES)?;
    let mut fwtrace = Fwtrace::start(&net.r, &[])?;
    let mut slowest = std::time::Duration::ZERO;
    for _ in 0..50 {
        let sent = std::time::Instant::now();
        udp(&net, A, R, false, (4702, 3500));
        let event = fwtrace.drop_to_port(3500)?;
        slowest = slowest.max(event.read.duration_since(sent));
    }
    e2e::report(&format!(
        "ready after {:?}, slowest of 50 drops on stdout after {slowest:?}",
        fwtrace.ready_after()
    ));
    // Loose: what it must cost is for the benches. This is for a lost wakeup.
    ensure!(slowest < std::time::Duration::from_secs(1), "{slowest:?}");
    fwtrace.interrupt().context("end")?;
    Ok(())
}
