//! Drop record + ruleset -> attributed event.
//!
//! [`Attributor::event`] is called for every drop, in order. Which rule it was comes from the kernel's own
//! evidence in the record; where there is none, from the evaluator, which otherwise tells the way to it.

mod by_conntrack;
mod clock;
mod conntrack;
mod evaluate;
mod finding;
pub(crate) mod legacy;
mod location;
mod logged;
pub(crate) mod rules;
mod surroundings;
mod tracked;
mod view;

use std::{collections::HashMap, ffi::CStr, sync::Arc};

use fwtrace_abi::{FLAG_DST, FLAG_DST_READ, FLAG_PROCESS, RULE_POLICY, RULE_RULE, Record, UNKNOWN};
use jiff::Timestamp;

use self::{
    clock::WallClock,
    evaluate::{Clues, Evaluator},
    finding::Finding,
    legacy::LegacyRules,
    rules::RuleCache,
};
pub use self::{
    evaluate::Depth, location::Locations, logged::LoggedPackets, surroundings::Surroundings,
};
use crate::{
    bpf::{order::Lists, reader::RawDrop},
    cli::Ladder,
    conntrack::Connections,
    eval::{outcome::EngineKind, overlong::Overlong, packet::Packet},
    event::{Confidence, DecidedBy, DropEvent, Engine, Family, Hook, NetnsRef, Process, Verdict},
    explain::{self, Asked, Explainer},
    kernel::{hooks, reasons::Reasons},
    packet::{Capture, Family as PacketFamily},
    ruleset::{render::Names, snapshot::Snapshots},
    xtables::legacy::follow::Tables,
};

/// Where a drop happened.
#[derive(Debug)]
pub struct Place<'a> {
    /// The namespace, as events name it.
    pub netns: &'a NetnsRef,
    /// Its rulesets; `None` if they cannot be read.
    pub rulesets: Option<&'a mut Snapshots>,
    /// Its legacy tables; `None` if they cannot be read.
    pub legacy: Option<&'a mut Tables>,
    /// Its links, routes and ipsets; `None` if they cannot be read.
    pub surroundings: Option<&'a mut Surroundings>,
    /// What its hooks call; `None` if that cannot be read.
    pub lists: Option<Lists<'a>>,
    /// Conntrack there; `None` if it cannot be asked.
    pub connections: Option<&'a mut Connections>,
    /// Explains the drops that no rule made; `None` if it is gone.
    pub explainer: Option<&'a mut Explainer>,
    /// What its rules borrow from it and the machine: names of interfaces, protocols, marks.
    pub names: &'a Names,
    /// Another number for every namespace ever watched; inodes are used again.
    pub epoch: u64,
}

/// Turns drop records into events.
pub struct Attributor {
    reasons: Reasons,
    names: HashMap<u32, Arc<str>>,
    interned: HashMap<[u8; 16], Arc<str>>,
    locations: Locations,
    rules: RuleCache,
    legacy: LegacyRules,
    evaluator: Evaluator,
    clock: WallClock,
    ladder: Ladder,
    netfilter_drop: u32,
}

impl Attributor {
    /// `netfilter_drop` is the kernel's number of SKB_DROP_REASON_NETFILTER_DROP; `ladder`: the best evidence
    /// to use; `depth`: how much to tell beside the rule; `inverts_last`: see
    /// [`Program::inverting_last`](crate::eval::program::Program::inverting_last).
    pub fn new(
        reasons: Reasons,
        locations: Locations,
        netfilter_drop: u32,
        ladder: Ladder,
        depth: Depth,
        inverts_last: Option<bool>,
    ) -> Self {
        Self {
            reasons,
            names: HashMap::new(),
            interned: HashMap::new(),
            locations,
            rules: RuleCache::default(),
            legacy: LegacyRules::default(),
            evaluator: Evaluator::new(depth, inverts_last),
            clock: WallClock::new(),
            ladder,
            netfilter_drop,
        }
    }

    /// What is known of the legacy tables that the BPF programs know.
    pub(crate) fn legacy(&mut self) -> &mut LegacyRules {
        &mut self.legacy
    }

    /// Tells at least the paths from now on.
    pub(crate) fn tell_paths(&mut self) {
        self.evaluator.deepen(Depth::Path);
    }

    /// Takes in what the kernel does with extension headers that are too long.
    pub(crate) fn learn(&mut self, overlong: Overlong) {
        self.evaluator.learn(overlong);
    }

    /// Name of a drop reason, without its prefix.
    pub fn reason(&mut self, reason: u32) -> Arc<str> {
        self.names
            .entry(reason)
            .or_insert_with(|| self.reasons.name(reason).into())
            .clone()
    }

    /// As [`event`](Self::event), for a drop whose trace says the same as the record or has completed it: that counts whatever evidence
    /// is to be used otherwise.
    pub fn traced(&mut self, raw: &RawDrop, time: Timestamp, place: Place<'_>) -> DropEvent {
        self.by(Ladder::Best, raw, time, place)
    }

    /// The event. `time` is the drop's wall-clock time.
    ///
    /// Blocks for milliseconds when the ruleset has to be read first.
    pub fn event(&mut self, raw: &RawDrop, time: Timestamp, place: Place<'_>) -> DropEvent {
        self.by(self.ladder, raw, time, place)
    }

    fn by(
        &mut self,
        ladder: Ladder,
        raw: &RawDrop,
        time: Timestamp,
        mut place: Place<'_>,
    ) -> DropEvent {
        let record = &raw.record;
        let capture = Capture::new(record, &raw.packet);
        let packet = capture.packet();
        let (pf, number) = self.hook(raw, packet.family);
        let hook = number.and_then(|number| hook(pf, number));
        let mut finding = Finding::none(Engine::Other, &self.locations, record);
        let (mut opinion, mut why) = (None, None);
        if record.reason == self.netfilter_drop {
            let clues;
            (finding, clues) = self.kernel(ladder, record, &mut place);
            let legacy = finding.engine == Engine::IptablesLegacy;
            let doubtful = legacy && finding.evidence.confidence == Confidence::Ambiguous;
            if ladder != Ladder::Engine
                && (finding.engine == Engine::Other || doubtful)
                && let Some(told) = by_conntrack::tell(record, pf, hook, &mut place)
            {
                why = Some(finding.by_conntrack(told, &self.locations, record));
            }
            if finding.engine != Engine::Conntrack
                && let Some(clues) = clues
                && let Some(packet) = view::packet(raw, pf, number)
            {
                let packet = Packet {
                    clock: self.clock.at(record.time),
                    ..packet
                };
                let exact = finding.exact();
                let clues = Clues {
                    exact: exact.as_ref(),
                    ..clues
                };
                opinion = self.evaluator.opinion(record, &packet, &mut place, clues);
            }
        }
        let reason = self.reason(record.reason);
        let iif = self.interface(record.iif, &record.iif_name);
        let oif = self.interface(record.oif, &record.oif_name);
        if record.reason != self.netfilter_drop {
            let asked = Asked {
                reason: &reason,
                packet: &packet,
                iif: iif.as_ref(),
                oif: oif.as_ref(),
            };
            why = Some(match &mut place.explainer {
                Some(explainer) => explainer.why(&asked, || {
                    let surroundings = place.surroundings.as_deref_mut();
                    surroundings.map(Surroundings::routes)
                }),
                None => explain::words(&reason),
            });
        }
        let way = opinion
            .map(|opinion| finding.consider(opinion))
            .unwrap_or_default();
        DropEvent {
            time,
            verdict: if finding.reject {
                Verdict::Reject
            } else {
                Verdict::Drop
            },
            netns: place.netns.clone(),
            engine: finding.engine,
            family: family(pf, packet.family),
            hook,
            reason: Some(reason),
            mark: record.mark,
            iif,
            oif,
            conntrack: conntrack::of(
                record,
                pf,
                hook,
                finding.priority,
                place.rulesets.as_deref(),
            ),
            process: if hook == Some(Hook::Output) {
                self.process(record)
            } else {
                None
            },
            packet,
            rule: finding.rule,
            policy: finding.policy,
            path: way.path,
            nearest_miss: way.nearest_miss,
            walk: way.walk,
            log: Vec::new(),
            why,
            evidence: finding.evidence,
            count: record.count.max(1),
        }
    }

    /// What the kernel's own evidence says about a drop by netfilter, and what it leaves to the
    /// evaluator; `None`: nothing, it may not have been a rule at all.
    fn kernel(
        &mut self,
        ladder: Ladder,
        record: &Record,
        place: &mut Place<'_>,
    ) -> (Finding, Option<Clues<'static>>) {
        let resolved = match record.rule.kind {
            RULE_RULE | RULE_POLICY => Some(self.rules.resolve(record, place)),
            _ => None,
        };
        let in_place = self.locations.is_nftables(record.location);
        let told = match resolved {
            None if !in_place => self.legacy.tell(record, place),
            _ => None,
        };
        let engine = match &resolved {
            Some(resolved) if resolved.iptables => Engine::IptablesNft,
            Some(_) => Engine::Nftables,
            None if in_place => Engine::Nftables,
            None if told.is_some() => Engine::IptablesLegacy,
            None => Engine::Other,
        };
        let clues = Clues {
            engine: match engine {
                Engine::Nftables | Engine::IptablesNft => Some(EngineKind::Nftables),
                Engine::IptablesLegacy => Some(EngineKind::Legacy),
                _ => None,
            },
            by_rule: self
                .locations
                .decided_by(record.location)
                .map(|by| by == DecidedBy::Rule),
            exact: None,
        };
        // Where nf_tables drops in place, a drop elsewhere is that of some other part of netfilter.
        let elsewhere = clues.engine.is_none() && self.locations.drops_in_place();
        let clues = (ladder != Ladder::Engine && !elsewhere).then_some(clues);
        let mut finding = Finding::none(engine, &self.locations, record);
        if ladder != Ladder::Best {
            return (finding, clues);
        }
        match (resolved, told) {
            (Some(resolved), _) => finding.resolved(resolved),
            (None, Some(told)) => finding.told(told),
            (None, None) => {}
        }
        (finding, clues)
    }

    /// Protocol family and number of the hook: from the hook state, else from the functions on the stack.
    fn hook(&self, raw: &RawDrop, packet: PacketFamily) -> (u8, Option<u8>) {
        let record = &raw.record;
        if record.hook != UNKNOWN {
            return (record.pf, Some(record.hook));
        }
        // What comes back over the loopback device has a route from its first way.
        let told = record.flags & FLAG_DST_READ != 0 && !record.iif_name.starts_with(b"lo\0");
        let routed = told.then_some(record.flags & FLAG_DST != 0);
        match self.locations.hook(&raw.stack, routed) {
            Some((pf, number)) => (pf, Some(number)),
            None => match packet {
                PacketFamily::Ipv4 => (NFPROTO_IPV4, None),
                PacketFamily::Ipv6 => (NFPROTO_IPV6, None),
                _ => (UNKNOWN, None),
            },
        }
    }

    /// An interface's name; by number if the kernel did not tell it.
    fn interface(&mut self, index: u32, name: &[u8; 16]) -> Option<Arc<str>> {
        if index == 0 {
            return None;
        }
        if name[0] == 0 {
            return Some(format!("if{index}").into());
        }
        Some(self.intern(name))
    }

    fn intern(&mut self, name: &[u8; 16]) -> Arc<str> {
        let text = || match CStr::from_bytes_until_nul(name) {
            Ok(name) => name.to_string_lossy().into(),
            Err(_) => String::from_utf8_lossy(name).into(),
        };
        // Names come and go; the table of those in use is small.
        if self.interned.len() > 4096 {
            self.interned.clear();
        }
        self.interned.entry(*name).or_insert_with(text).clone()
    }

    fn process(&mut self, record: &Record) -> Option<Process> {
        (record.flags & FLAG_PROCESS != 0).then(|| Process {
            pid: record.tgid,
            comm: self.intern(&record.comm),
            uid: Some(record.uid),
        })
    }
}

// NFPROTO_* (include/uapi/linux/netfilter.h, v6.18).
const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_ARP: u8 = 3;
const NFPROTO_NETDEV: u8 = 5;
const NFPROTO_BRIDGE: u8 = 7;
const NFPROTO_IPV6: u8 = 10;
/// `NF_INET_INGRESS`; an inet ingress chain sees the packet's own family beside it.
const NF_INET_INGRESS: u8 = 5;

/// The hook with this number in family `pf`.
fn hook(pf: u8, number: u8) -> Option<Hook> {
    if matches!(pf, NFPROTO_INET | NFPROTO_IPV4 | NFPROTO_IPV6) && number == NF_INET_INGRESS {
        return Some(Hook::Ingress);
    }
    Some(match hooks::hook_name(pf, number)? {
        "prerouting" => Hook::Prerouting,
        "input" => Hook::Input,
        "forward" => Hook::Forward,
        "output" => Hook::Output,
        "postrouting" => Hook::Postrouting,
        "ingress" => Hook::Ingress,
        "egress" => Hook::Egress,
        _ => return None,
    })
}

/// The packet's family as a rule would call it.
fn family(pf: u8, packet: PacketFamily) -> Option<Family> {
    Some(match (pf, packet) {
        (NFPROTO_BRIDGE, _) => Family::Bridge,
        (NFPROTO_ARP, _) | (_, PacketFamily::Arp) => Family::Arp,
        (_, PacketFamily::Ipv4) => Family::Ip,
        (_, PacketFamily::Ipv6) => Family::Ip6,
        (NFPROTO_IPV4, _) => Family::Ip,
        (NFPROTO_IPV6, _) => Family::Ip6,
        (NFPROTO_NETDEV, _) => Family::Netdev,
        _ => return None,
    })
}
