//! Self-calibration: packets of fwtrace's own, through a ruleset of its own, in a network namespace
//! of its own that ends with it, teach where nft_do_chain keeps its variables when it drops.

use std::{
    io,
    net::{Ipv4Addr, UdpSocket},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use aya::maps::{MapData, RingBuf};
use fwtrace_abi::{Calibration, Site};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, unshare},
    sys::socket::{setsockopt, sockopt},
};
use zerocopy::FromBytes;

use super::{
    load::{BpfError, Programs},
    slots::{Expected, Unlearnt, kinds, learn},
};
use crate::{
    kernel::inversion::inverts_last,
    netlink::{
        nft_write::{BaseChain, Batch, Key, Reject, Rule, WriteError},
        rtnl,
    },
    netns::NetNs,
    ruleset::model::{Family, Verdict},
};

/// Loopback delivers within the sender's system call, or, under load, soon after.
const PATIENCE: Duration = Duration::from_millis(500);
/// First of the UDP ports that the scenes use.
const PORT: u16 = 50_000;

/// Why calibration could not be done, or taught nothing.
#[derive(Debug, thiserror::Error)]
pub enum CalibrationError {
    /// No namespace, no socket.
    #[error("calibration: {what}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// The kernel's word.
        source: io::Error,
    },
    /// The namespace could not be looked at.
    #[error("calibration: {0}")]
    NetNs(#[from] crate::netns::Error),
    /// The namespace's loopback could not be set up.
    #[error("calibration: loopback: {0}")]
    Link(#[from] rtnl::RtnlError),
    /// The kernel took no ruleset.
    #[error("calibration: {0}")]
    Ruleset(#[from] WriteError),
    /// BPF.
    #[error("calibration: {0}")]
    Bpf(#[from] BpfError),
    /// Nothing reproducible.
    #[error("calibration: {reason}")]
    Unlearnt {
        /// Why.
        reason: Unlearnt,
        /// What was learnt all the same: sites without slots.
        kinds: Vec<Site>,
    },
    /// The thread ended.
    #[error("calibration: its thread panicked")]
    Panicked,
}

/// One packet: the port it goes to, the rule that drops it (an index into the ruleset's rules, none
/// for a policy), and a rule that drops in the base chain itself (none: the chain is empty).
struct Scene {
    port: u16,
    rule: Option<usize>,
    base: Option<usize>,
}

/// The calibration program's ring.
pub struct Calibrator {
    ring: RingBuf<MapData>,
    inverts_last: Option<bool>,
}

impl Calibrator {
    /// Attaches `anchor`, which stays until [`super::legacy`] has another in its place.
    ///
    /// # Errors
    /// The kernel's; or the ring has been taken.
    pub fn new(programs: &mut Programs) -> Result<Self, BpfError> {
        programs.attach("anchor")?;
        let ring = programs.take_ring("CALIBRATION_RING")?;
        Ok(Self {
            ring,
            inverts_last: None,
        })
    }

    /// What [`inverts_last`] says, once calibrated.
    pub fn inverts_last(&self) -> Option<bool> {
        self.inverts_last
    }

    /// Calibrates. Attaches `calibrate` and leaves it attached: detach it once another program is.
    ///
    /// # Errors
    /// See [`CalibrationError`]; without slots there is no `kernel-stack` evidence, all else works.
    pub fn calibrate(&mut self, programs: &mut Programs) -> Result<Vec<Site>, CalibrationError> {
        programs.attach("calibrate")?;
        std::thread::scope(|scope| {
            std::thread::Builder::new()
                .name("calibrate".into())
                .spawn_scoped(scope, || in_own_netns(programs, self))
                .map_err(io_error("thread"))?
                .join()
                .map_err(|_| CalibrationError::Panicked)?
        })
    }
}

fn io_error(what: &'static str) -> impl Fn(io::Error) -> CalibrationError {
    move |source| CalibrationError::Io { what, source }
}

fn in_own_netns(
    programs: &mut Programs,
    calibrator: &mut Calibrator,
) -> Result<Vec<Site>, CalibrationError> {
    unshare(CloneFlags::CLONE_NEWNET)
        .map_err(|e| io_error("cannot make a network namespace")(e.into()))?;
    programs.set_calibration_netns(NetNs::current()?.inode())?;
    rtnl::Rtnl::open()?.up("lo")?;
    if calibrator.inverts_last.is_none() {
        match inverts_last() {
            Ok(last) => calibrator.inverts_last = Some(last),
            Err(error) => log::info!("calibration: inverted lookups: {error}"),
        }
    }
    let (batch, scenes) = ruleset();
    let handles = batch.commit()?;
    let handle = |rule: usize| handles.get(rule).copied().unwrap_or_default();
    let mut samples = Vec::with_capacity(scenes.len());
    for (mark, scene) in (1..).zip(&scenes) {
        let expected = Expected {
            rule: scene.rule.map(handle),
            base: scene.base.map(handle),
        };
        send(scene.port, mark).map_err(io_error("sending"))?;
        samples.push((expected, receive(&mut calibrator.ring, mark)));
    }
    programs.set_calibration_netns(0)?;
    learn(&samples).map_err(|reason| CalibrationError::Unlearnt {
        reason,
        kinds: kinds(&samples),
    })
}

/// Rules dropped by a plain rule, in the second and third of three base chains, two jumps deep,
/// after a jump that returned, through a verdict map, by reject; and the policies of two chains with
/// rules and of one without.
fn ruleset() -> (Batch, Vec<Scene>) {
    let rule = || Rule::new(Family::Inet);
    let mut batch = Batch::new(Family::Inet, "calibration");
    let input = |priority| BaseChain {
        priority,
        ..BaseChain::INPUT
    };
    batch.add_table();
    for chain in ["empty", "deep", "sub"] {
        batch.add_chain(chain);
    }
    batch
        .add_base_chain("first", &input(0))
        .add_base_chain("second", &input(10).policy_drop())
        .add_base_chain("third", &input(20).policy_drop())
        .add_base_chain("last", &input(30).policy_drop());
    let port = |n: u16| PORT + n;
    let (vmap_drop, vmap_goto) = (port(3).to_be_bytes(), port(4).to_be_bytes());
    let verdict = |code, chain: Option<&str>| Verdict {
        code,
        chain: chain.map(str::to_owned),
    };
    let vmap = batch.add_anonymous_verdict_map(
        Key::Service,
        &[
            (&vmap_drop, verdict(Verdict::DROP, None)),
            (&vmap_goto, verdict(Verdict::GOTO, Some("sub"))),
        ],
    );
    let rules = [
        ("first", rule().udp_dport(port(0)).counter().drop()),
        ("first", rule().udp_dport(port(1)).jump("sub")),
        ("first", rule().udp_dport_vmap(&vmap)),
        ("first", rule().udp_dport(port(5)).reject(Reject::Icmpx(1))),
        ("first", rule().udp_dport(port(2)).jump("empty")),
        ("first", rule().udp_dport(port(2)).drop()),
        ("sub", rule().udp_dport(port(1)).jump("deep")),
        ("sub", rule().udp_dport(port(4)).counter().drop()),
        ("deep", rule().counter().udp_dport(port(1)).drop()),
        ("second", rule().udp_dport(port(6)).drop()),
        ("second", rule().udp_dport(port(8)).jump("empty")),
        ("second", rule().udp_dport(port(9)).accept()),
        ("second", rule().udp_dport(port(10)).accept()),
        ("third", rule().udp_dport(port(10)).drop()),
        ("second", rule().udp_dport(port(11)).accept()),
        ("third", rule().udp_dport(port(11)).accept()),
    ];
    for (chain, rule) in rules {
        batch.add_rule(chain, rule);
    }
    let scene = |n, rule, base| Scene {
        port: port(n),
        rule,
        base,
    };
    let scenes = vec![
        scene(0, Some(0), Some(0)),
        scene(1, Some(8), Some(0)),
        scene(2, Some(5), Some(0)),
        scene(3, Some(2), Some(0)),
        scene(4, Some(7), Some(0)),
        scene(5, Some(3), Some(0)),
        scene(6, Some(9), Some(9)),
        scene(10, Some(13), Some(13)),
        scene(7, None, Some(9)),
        scene(8, None, Some(9)),
        scene(9, None, Some(13)),
        scene(11, None, None),
    ];
    (batch, scenes)
}

/// Sends one datagram; the mark tells the calibration program's records apart.
fn send(port: u16, mark: u32) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    setsockopt(&socket, sockopt::Mark, &mark)?;
    socket.send_to(b"fwtrace", (Ipv4Addr::LOCALHOST, port))?;
    Ok(())
}

/// Waits for the record of the packet with this mark.
fn receive(ring: &mut RingBuf<MapData>, mark: u32) -> Option<Calibration> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        while let Some(item) = ring.next() {
            if let Ok((sample, _)) = Calibration::read_from_prefix(&item)
                && sample.mark == mark
            {
                return Some(sample);
            }
        }
        let left = deadline.checked_duration_since(Instant::now())?;
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        poll(&mut [PollFd::new(ring.as_fd(), PollFlags::POLLIN)], left).ok()?;
    }
}
