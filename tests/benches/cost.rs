//! What tracing costs: floods of packets with and without fwtrace, in turns, in namespaces of its own; and the time from start to ready. Prints, judges nothing. Needs root.
//!
//! Times are the sender's CPU time: with veth and in a local flood, the packet's whole way to its drop
//! is part of that, and what else the machine does is not.
#![expect(clippy::print_stdout, reason = "prints its findings")]

use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::fwtrace::{Fwtrace, binary};
use e2e::net::Net;
use e2e::netns::Netns;
use e2e::{legacy, nft, wait_until};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{
    AddressFamily, MsgFlags, MultiHeaders, SockFlag, SockProtocol, SockType, SockaddrStorage,
    connect, sendmmsg, socket,
};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

/// Packets a flood.
const PACKETS: u32 = 200_000;
/// Packets a system call.
const BATCH: u32 = 50;
/// An ICMP timestamp reply that nobody asked for: the kernel takes it in and consumes it. The only
/// other bytes are its checksum. 100 bytes of IP packet.
const ICMP: [u8; 80] = {
    let mut message = [0; 80];
    message[0] = 14;
    message[2] = !14;
    message[3] = !0;
    message
};
/// UDP payload; 100 bytes of IP packet.
const UDP: [u8; 72] = [0; 72];
/// Floods of each kind.
const ROUNDS: usize = 7;
/// Floods of each kind against iptables-legacy, and packets of one that hits deep rules, which take ten times as long.
const LEGACY_ROUNDS: usize = 5;
const DEEP_PACKETS: u32 = 50_000;
/// Starts whose time is taken.
const STARTS: usize = 10;

/// The firewall of R, which A floods.
const RULESET: &str = "table inet bench {
    chain in {
        type filter hook input priority 0
        udp dport 9 counter drop
        icmp type timestamp-reply counter accept
    }
}";

/// What is sent.
#[derive(Clone, Copy)]
enum Packet {
    /// The firewall accepts it.
    Icmp,
    /// The firewall drops it.
    Udp,
}

/// A kind of flood.
struct Kind {
    name: &'static str,
    packet: Packet,
    /// Conditions of the fwtrace that watches it.
    tracer: Option<&'static [&'static str]>,
    /// The kind that it is compared with.
    base: usize,
}

const KINDS: [Kind; 5] = [
    Kind {
        name: "accepted, no tracer",
        packet: Packet::Icmp,
        tracer: None,
        base: 0,
    },
    Kind {
        name: "accepted, traced",
        packet: Packet::Icmp,
        tracer: Some(&[]),
        base: 0,
    },
    Kind {
        name: "dropped, no tracer",
        packet: Packet::Udp,
        tracer: None,
        base: 2,
    },
    Kind {
        name: "dropped, filtered out (--port 10)",
        packet: Packet::Udp,
        tracer: Some(&["--port", "10"]),
        base: 2,
    },
    Kind {
        name: "dropped, every drop reported",
        packet: Packet::Udp,
        tracer: Some(&[]),
        base: 2,
    },
];

/// Rules of iptables-legacy that drop datagrams to ports from this one on, on input and on output.
const LEGACY_PORT: u16 = 10_000;
const LEGACY_RULES: u16 = 1000;

/// A flood against them.
struct Legacy {
    name: &'static str,
    /// From R, so that it is dropped on output.
    local: bool,
    /// Rules that are hit in turn, from 0.
    rules: &'static [u16],
    /// Of fwtrace.
    args: &'static [&'static str],
}

impl Legacy {
    /// Packets of a flood.
    fn packets(&self) -> u32 {
        let deep = self.rules.iter().any(|rule| *rule > 10);
        if deep { DEEP_PACKETS } else { PACKETS }
    }
}

const LEGACY: [Legacy; 10] = [
    Legacy {
        name: "input, rule 1 of 1000",
        local: false,
        rules: &[0],
        args: &[],
    },
    Legacy {
        name: "input, rule 500",
        local: false,
        rules: &[499],
        args: &[],
    },
    Legacy {
        name: "input, rule 1000",
        local: false,
        rules: &[999],
        args: &[],
    },
    Legacy {
        name: "input, rules 1 and 2 in turn",
        local: false,
        rules: &[0, 1],
        args: &[],
    },
    Legacy {
        name: "input, ten of the first rules in turn",
        local: false,
        rules: &[0, 3, 1, 4, 2, 9, 8, 7, 6, 5],
        args: &[],
    },
    Legacy {
        name: "input, ten of all rules in turn",
        local: false,
        rules: &[0, 300, 100, 400, 200, 900, 800, 700, 600, 500],
        args: &[],
    },
    Legacy {
        name: "output, rule 1",
        local: true,
        rules: &[0],
        args: &[],
    },
    Legacy {
        name: "output, ten of all rules in turn",
        local: true,
        rules: &[0, 300, 100, 400, 200, 900, 800, 700, 600, 500],
        args: &[],
    },
    Legacy {
        name: "input, rule 1, --port 10000",
        local: false,
        rules: &[0],
        args: &["--port", "10000"],
    },
    Legacy {
        name: "output, rule 1, --port 10000",
        local: true,
        rules: &[0],
        args: &["--port", "10000"],
    },
];

/// What tracing the drops of iptables-legacy costs: of the floods whose names contain one of `names`, or all.
fn legacy(names: &[String]) -> Result<()> {
    let net = Net::routed()?;
    let text = legacy::many("INPUT", LEGACY_PORT, LEGACY_RULES).replace("COMMIT\n", "")
        + &legacy::many("OUTPUT", LEGACY_PORT, LEGACY_RULES).replace("*filter\n", "");
    legacy::restore(&net.r, false, &text)?;
    println!(
        "\niptables-legacy, {LEGACY_RULES} rules on input, as many on output; {LEGACY_ROUNDS} floods of each kind, {PACKETS} packets each, of deep rules {DEEP_PACKETS}:\n"
    );
    println!(
        "{:<40}{:>12}{:>12}{:>9}",
        "", "ns untraced", "ns traced", "ratio"
    );
    let is_wanted =
        |kind: &&Legacy| names.is_empty() || names.iter().any(|n| kind.name.contains(n.as_str()));
    for kind in LEGACY.iter().filter(is_wanted) {
        let (mut times, mut account) = ([vec![], vec![]], None);
        for round in 0..=LEGACY_ROUNDS {
            for (traced, times) in times.iter_mut().enumerate() {
                let tracer = (traced == 1)
                    .then(|| Tracer::start(&net.r, kind.args))
                    .transpose()?;
                let before = legacy_counted(&net)?;
                let (from, to) = if kind.local {
                    (&net.r, "10.1.0.1")
                } else {
                    (&net.a, "10.1.0.2")
                };
                let time = from.run(|| legacy_flood(to, kind))?;
                let counted = legacy_counted(&net)? - before;
                ensure!(
                    counted == u64::from(kind.packets()),
                    "{}: {counted}",
                    kind.name
                );
                account = tracer.map(Tracer::stop).transpose()?.or(account);
                if round > 0 {
                    times.push(time.as_secs_f64() * 1e9 / f64::from(kind.packets()));
                }
            }
        }
        let [untraced, traced] = times;
        let ratios = traced.iter().zip(&untraced).map(|(own, base)| own / base);
        println!(
            "{:<40}{:>12.0}{:>12.0}{:>9.2}    {}",
            kind.name,
            median(untraced.clone()),
            median(traced.clone()),
            median(ratios.collect()),
            account.unwrap_or_default()
        );
    }
    Ok(())
}

/// Packets that the legacy rules have counted.
fn legacy_counted(net: &Net) -> Result<u64> {
    let listed = legacy::list(&net.r, false, "filter")?;
    let rules = listed.iter().filter(|rule| rule.number.is_some());
    Ok(rules.map(|rule| rule.packets).sum())
}

/// Sends datagrams that hit the flood's rules in turn.
fn legacy_flood(to: &str, kind: &Legacy) -> Result<Duration> {
    let mut cpu = CpuSet::new();
    cpu.set(0)?;
    sched_setaffinity(Pid::from_raw(0), &cpu)?;
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let to: IpAddr = to.parse()?;
    let targets: Vec<SocketAddr> = kind
        .rules
        .iter()
        .map(|rule| SocketAddr::new(to, LEGACY_PORT + rule))
        .collect();
    let start = cpu_time()?;
    for target in targets.iter().cycle().take(kind.packets() as usize) {
        // On the way out the firewall's refusal is an error.
        let _ = socket.send_to(&UDP, target);
    }
    Ok(cpu_time()? - start)
}

/// CPU time of this thread.
fn cpu_time() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

fn main() -> Result<()> {
    // Only these: `cargo xtask bench legacy [NAME...]`.
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(at) = args.iter().position(|arg| arg == "legacy") {
        let names = args.iter().skip(at + 1).filter(|arg| !arg.starts_with('-'));
        return legacy(&names.cloned().collect::<Vec<_>>());
    }
    let net = Net::routed()?;
    nft::load(&net.r, RULESET)?;

    let mut times: [Vec<f64>; KINDS.len()] = Default::default();
    let mut accounts = Vec::new();
    // The first round warms up.
    for round in 0..=ROUNDS {
        for (kind, times) in KINDS.iter().zip(&mut times) {
            let (time, account) = measure(&net, kind)?;
            if round > 0 {
                times.push(time.as_secs_f64() * 1e9 / f64::from(PACKETS));
                accounts.extend(account.map(|account| (kind.name, account)));
            }
        }
    }
    let starts = (0..STARTS)
        .map(|_| {
            let run = Fwtrace::start(&net.r, &[])?;
            let time = run.ready_after().as_secs_f64() * 1e3;
            run.interrupt()?;
            Ok(time)
        })
        .collect::<Result<Vec<_>>>()?;

    println!(
        "{ROUNDS} floods of each kind in turns, {PACKETS} packets of 100 bytes each; medians\n"
    );
    println!("{:<36}{:>12}{:>9}", "", "ns a packet", "ratio");
    for (i, (kind, own)) in KINDS.iter().zip(&times).enumerate() {
        print!("{:<36}{:>12.0}", kind.name, median(own.clone()));
        if i != kind.base {
            // Within a round, so that a machine that slows down meanwhile does not matter.
            let ratios = own
                .iter()
                .zip(&times[kind.base])
                .map(|(own, base)| own / base);
            print!("{:>9.2}", median(ratios.collect()));
        }
        println!();
    }
    println!("\nfwtrace's own account of its last flood of each kind:");
    for kind in &KINDS {
        if let Some((name, account)) = accounts.iter().rev().find(|(name, _)| *name == kind.name) {
            println!("    {name}: {account}");
        }
    }
    println!(
        "\nstart to ready: median {:.0} ms, worst {:.0} ms, of {STARTS} starts",
        median(starts.clone()),
        starts.iter().copied().fold(0.0, f64::max)
    );
    drop(net);
    legacy(&[])
}

/// The time of one flood, and fwtrace's account of it.
fn measure(net: &Net, kind: &Kind) -> Result<(Duration, Option<String>)> {
    let tracer = kind.tracer.map(|args| Tracer::start(&net.r, args));
    let tracer = tracer.transpose()?;
    let before = counted(&net.r)?;
    let time = net.a.run(|| flood(kind.packet, "10.1.0.2:9".parse()?))?;
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
fn flood(packet: Packet, to: SocketAddr) -> Result<Duration> {
    let mut cpu = CpuSet::new();
    cpu.set(0)?;
    sched_setaffinity(Pid::from_raw(0), &cpu)?;
    let (kind, protocol, payload) = match packet {
        Packet::Icmp => (SockType::Raw, SockProtocol::Icmp, &ICMP[..]),
        Packet::Udp => (SockType::Datagram, SockProtocol::Udp, &UDP[..]),
    };
    let socket = socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, protocol)?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
    let slices = vec![[IoSlice::new(payload)]; BATCH as usize];
    let addresses = vec![None::<SockaddrStorage>; BATCH as usize];
    let mut headers = MultiHeaders::preallocate(BATCH as usize, None);
    let start = cpu_time()?;
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
    Ok(cpu_time()? - start)
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

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
