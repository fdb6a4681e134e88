//! What tracing costs: one flood of UDP packets with and without fwtrace, in turns, in namespaces
//! of its own; and the time from start to ready. Prints, judges nothing. Needs root.
#![expect(clippy::print_stdout, reason = "prints its findings")]

use std::io::IoSlice;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::fwtrace::{Fwtrace, binary};
use e2e::net::Net;
use e2e::netns::Netns;
use e2e::{nft, wait_until};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, sendmmsg};
use nix::unistd::Pid;

/// Packets a flood.
const PACKETS: u32 = 200_000;
/// Packets a system call.
const BATCH: u32 = 50;
/// Payload; 100 bytes of IP packet.
const PAYLOAD: [u8; 72] = [0; 72];
/// Floods of each kind.
const ROUNDS: usize = 7;
/// Starts whose time is taken.
const STARTS: usize = 10;

/// Both packets come to R from A: one for R itself, dropped on input; one that R forwards to a
/// dummy interface, which consumes it.
const RULESET: &str = "table inet bench {
    chain in { type filter hook input priority 0; udp dport 9 counter drop; }
    chain fwd { type filter hook forward priority 0; udp dport 9 counter accept; }
}";

/// A kind of flood.
struct Kind {
    name: &'static str,
    to: &'static str,
    /// Conditions of the fwtrace that watches it.
    tracer: Option<&'static [&'static str]>,
    /// The kind that it is compared with.
    base: usize,
}

const DROPPED: &str = "10.1.0.2:9";
const FORWARDED: &str = "10.3.0.2:9";
const KINDS: [Kind; 5] = [
    Kind {
        name: "accepted, no tracer",
        to: FORWARDED,
        tracer: None,
        base: 0,
    },
    Kind {
        name: "accepted, traced",
        to: FORWARDED,
        tracer: Some(&[]),
        base: 0,
    },
    Kind {
        name: "dropped, no tracer",
        to: DROPPED,
        tracer: None,
        base: 2,
    },
    Kind {
        name: "dropped, filtered out (--port 10)",
        to: DROPPED,
        tracer: Some(&["--port", "10"]),
        base: 2,
    },
    Kind {
        name: "dropped, every drop reported",
        to: DROPPED,
        tracer: Some(&[]),
        base: 2,
    },
];

fn main() -> Result<()> {
    let net = Net::routed()?;
    net.r.ip("link add sink0 type dummy\n\
         addr add 10.3.0.1/24 dev sink0\n\
         link set sink0 up\n\
         neigh replace 10.3.0.2 lladdr 02:00:00:00:0d:00 dev sink0 nud permanent\n")?;
    nft::load(&net.r, RULESET)?;

    let mut times: [Vec<Duration>; KINDS.len()] = Default::default();
    let mut accounts = Vec::new();
    // The first round warms up.
    for round in 0..=ROUNDS {
        for (kind, times) in KINDS.iter().zip(&mut times) {
            let (time, account) = measure(&net, kind)?;
            if round > 0 {
                times.push(time);
                accounts.extend(account.map(|account| (kind.name, account)));
            }
        }
    }
    let mut starts = (0..STARTS)
        .map(|_| {
            let run = Fwtrace::start(&net.r, &[])?;
            let time = run.ready_after();
            run.interrupt()?;
            Ok(time)
        })
        .collect::<Result<Vec<_>>>()?;

    let medians = times.map(|mut times| median(&mut times));
    println!("{ROUNDS} floods of each kind, {PACKETS} UDP packets of 100 bytes each; medians\n");
    println!("{:<36}{:>12}{:>9}", "", "ns a packet", "ratio");
    for (i, (kind, time)) in KINDS.iter().zip(medians).enumerate() {
        print!("{:<36}{:>12.0}", kind.name, nanoseconds(time));
        if i != kind.base {
            print!(
                "{:>9.2}",
                nanoseconds(time) / nanoseconds(medians[kind.base])
            );
        }
        println!();
    }
    println!("\nfwtrace's own account of its last flood of each kind:");
    for kind in &KINDS {
        if let Some((name, account)) = accounts.iter().rev().find(|(name, _)| *name == kind.name) {
            println!("    {name}: {account}");
        }
    }
    let worst = starts.iter().max().copied().unwrap_or_default();
    println!(
        "\nstart to ready: median {:.0} ms, worst {:.0} ms, of {STARTS} starts",
        median(&mut starts).as_secs_f64() * 1e3,
        worst.as_secs_f64() * 1e3
    );
    Ok(())
}

/// The time of one flood, and fwtrace's account of it.
fn measure(net: &Net, kind: &Kind) -> Result<(Duration, Option<String>)> {
    let tracer = kind.tracer.map(|args| Tracer::start(&net.r, args));
    let tracer = tracer.transpose()?;
    let before = counted(&net.r)?;
    let time = net.a.run(|| flood(kind.to.parse()?))?;
    let counted = counted(&net.r)? - before;
    ensure!(
        counted == u64::from(PACKETS),
        "{}: {counted} of {PACKETS} packets reached their rule",
        kind.name
    );
    let account = tracer.map(Tracer::stop).transpose()?;
    Ok((time, account))
}

/// Packets that the rules have counted.
fn counted(ns: &Netns) -> Result<u64> {
    Ok(nft::list(ns)?.rules.iter().filter_map(|r| r.packets).sum())
}

/// Sends a flood from this thread's namespace. With veth, each packet is through the receiver's
/// firewall before its system call returns, so the sender's time is the packet's whole way.
fn flood(to: SocketAddr) -> Result<Duration> {
    let mut cpu = CpuSet::new();
    cpu.set(0)?;
    sched_setaffinity(Pid::from_raw(0), &cpu)?;
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(to)?;
    let slices = vec![[IoSlice::new(&PAYLOAD)]; BATCH as usize];
    let addresses = vec![None::<SockaddrStorage>; BATCH as usize];
    let mut headers = MultiHeaders::preallocate(BATCH as usize, None);
    let start = Instant::now();
    for _ in 0..PACKETS / BATCH {
        let sent = sendmmsg(
            socket.as_raw_fd(),
            &mut headers,
            &slices,
            &addresses,
            [],
            MsgFlags::empty(),
        )?;
        ensure!(sent.count() == BATCH as usize, "the socket is full");
    }
    Ok(start.elapsed())
}

/// fwtrace, writing JSON to nowhere; killed when dropped.
struct Tracer(Child);

impl Tracer {
    fn start(ns: &Netns, args: &[&str]) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let ready = dir.path().join("ready");
        let mut command = Command::new(binary()?);
        command
            .arg("--json")
            .args(args)
            .arg("--ready-file")
            .arg(&ready)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut tracer = Self(ns.run(|| command.spawn())?);
        let mut ended = None;
        wait_until(|| {
            ended = tracer.0.try_wait().ok().flatten();
            ready.exists() || ended.is_some()
        });
        ensure!(ready.exists(), "fwtrace did not get ready: {ended:?}");
        Ok(tracer)
    }

    /// Ends it as Ctrl-C does; the first line of its summary.
    fn stop(mut self) -> Result<String> {
        kill(Pid::from_raw(i32::try_from(self.0.id())?), Signal::SIGINT)?;
        let mut stderr = self.0.stderr.take().context("no stderr")?;
        let said = std::io::read_to_string(&mut stderr)?;
        let status = self.0.wait()?;
        ensure!(status.success(), "fwtrace ended with {status}: {said}");
        said.lines()
            .find(|line| line.contains(" seen: "))
            .map(String::from)
            .with_context(|| format!("no summary: {said}"))
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // Gone already, if all went well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn nanoseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e9 / f64::from(PACKETS)
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
