//! Logged packets as events: which rule logged it, and what the rules behind that one have done with it.

use std::sync::Arc;

use jiff::Timestamp;

use super::{
    NFPROTO_BRIDGE, NFPROTO_NETDEV, Place,
    conntrack::CONNTRACK_PRIORITY,
    evaluate::{Depth, Ends, Evaluator, Named},
    family, hook,
    tracked::{self, Tracked, Use},
};
use crate::{
    eval::{
        logged::LogPoint,
        outcome::TableId,
        packet::{Device, Fact, Packet, Vlan},
    },
    event::{
        Candidate, Confidence, Doubt, DropEvent, Engine, Event, Evidence, EvidenceSource, LogRef,
        RuleRef, Verdict,
    },
    netlink::{conntrack as ctnetlink, nflog},
    nflog::rules::{LogRule, LogRules},
    packet::Capture,
    trace::join::Between,
};

/// `NF_INET_PRE_ROUTING` and `NF_INET_LOCAL_OUT`: conntrack looks at packets there.
const TRACKING: [u8; 2] = [0, 3];
/// `NF_NETDEV_EGRESS`: the packet starts with its link-layer header there.
const NETDEV_EGRESS: u8 = 1;
/// What a user that the reader's user namespace does not have is shown as (`overflowuid`).
const OVERFLOW: u32 = 65534;

/// Turns logged packets into events.
pub struct LoggedPackets {
    evaluator: Evaluator,
    /// By namespace: readings of its rulesets, and how they use conntrack.
    uses: std::collections::HashMap<u64, ((u64, u32), Use)>,
}

impl Default for LoggedPackets {
    fn default() -> Self {
        Self {
            evaluator: Evaluator::new(Depth::Rule, None),
            uses: std::collections::HashMap::new(),
        }
    }
}

/// What the rules have done with a packet.
struct Fate {
    verdict: Verdict,
    by: Option<Named>,
    confidence: Confidence,
    candidates: Vec<Candidate>,
    doubts: Vec<Doubt>,
    engine: Option<Engine>,
}

impl Fate {
    /// Nobody knows.
    const UNKNOWN: Self = Self {
        verdict: Verdict::Unknown,
        by: None,
        confidence: Confidence::Unknown,
        candidates: Vec::new(),
        doubts: Vec::new(),
        engine: None,
    };

    fn of(mut ends: Ends) -> Self {
        if ends.incomplete.is_some() || ends.other {
            return Self::UNKNOWN;
        }
        let engine = ends.drops.first().map(|first| first.engine);
        let engine = engine.filter(|engine| ends.drops.iter().all(|d| d.engine == *engine));
        let reject = ends.drops.iter().all(|named| named.reject);
        let dropped = if reject {
            Verdict::Reject
        } else {
            Verdict::Drop
        };
        match (ends.drops.len(), ends.accept) {
            (0, true) => Self {
                verdict: Verdict::Accept,
                confidence: Confidence::Computed,
                ..Self::UNKNOWN
            },
            (0, false) => Self::UNKNOWN,
            (1, false) => Self {
                verdict: dropped,
                by: ends.drops.pop(),
                confidence: Confidence::Computed,
                engine,
                ..Self::UNKNOWN
            },
            (_, accept) => Self {
                verdict: if accept { Verdict::Unknown } else { dropped },
                by: None,
                confidence: Confidence::of_several(&ends.doubts),
                candidates: ends.drops.into_iter().map(|named| named.what).collect(),
                doubts: ends.doubts,
                engine,
            },
        }
    }
}

impl LoggedPackets {
    /// The event: a drop if the hook that logged the packet has dropped it, as far as the rules tell. `when` the kernel logged it,
    /// `received` is the wall-clock time of `when.until`, `rules` are those of the newest rulesets.
    ///
    /// Blocks for milliseconds when a ruleset has to be read first.
    pub fn event(
        &mut self,
        logged: &nflog::Packet<'_>,
        when: Between,
        received: Timestamp,
        rules: &LogRules,
        mut place: Place<'_>,
    ) -> Event {
        let pf = u8::from(logged.family);
        let prefix = logged.prefix.as_deref().unwrap_or_default();
        let in_force = was_in_force(&mut place, when);
        let found = match in_force && !rules.is_incomplete() {
            true => rules.find(logged.group, prefix, pf, logged.hook),
            false => &[],
        };
        let (link, network) = bytes(logged);
        let capture = Capture {
            bytes: network,
            ethertype: logged.protocol,
            wire_len: u32::try_from(network.len()).unwrap_or(u32::MAX),
            vlan: logged.vlan.map(|(proto, tci)| (tci, proto)),
        };
        let packet = capture.packet();
        let tracked = match found {
            // Only of rules that are known is it known whether conntrack has been asked before.
            [] => Tracked::default(),
            found => self.tracked(logged, pf, &packet, network, found, &mut place),
        };
        let iif = device(logged.iif, &mut place);
        let oif = device(logged.oif, &mut place);
        let physin = device(logged.physical_iif, &mut place);
        let physout = device(logged.physical_oif, &mut place);
        let joined;
        let view = Packet {
            bytes: match link {
                [] => network,
                link => {
                    joined = [link, network].concat();
                    &joined
                }
            },
            l2_len: link.len(),
            len: packet.len.unwrap_or(0),
            pf,
            hook: logged.hook,
            protocol: logged.protocol,
            iif: fact(iif.as_ref()),
            oif: fact(oif.as_ref()),
            physin: fact(physin.as_ref()),
            physout: fact(physout.as_ref()),
            mark: Fact::Known(logged.mark),
            uid: owner(logged.uid),
            gid: owner(logged.gid),
            vlan: match (logged.vlan, pf) {
                (Some((proto, tci)), _) => Fact::Known(Vlan { proto, tci }),
                (None, NFPROTO_BRIDGE | NFPROTO_NETDEV) => Fact::Absent,
                (None, _) => Fact::Unknown,
            },
            tracking: tracked.tracking,
            ..Packet::default()
        };
        let (rule, fate) = self.fate(found, &view, when, &mut place);
        let engine = fate.engine.or_else(|| engine_of(found));
        let time = logged.time.and_then(|(seconds, micros)| {
            let seconds = i64::try_from(seconds).ok()?;
            let nanos = i32::try_from(micros).ok()?.checked_mul(1000)?;
            Timestamp::new(seconds, nanos).ok()
        });
        let (by_rule, by_policy) = match fate.by {
            Some(Named {
                what: Candidate::Rule(rule),
                ..
            }) => (Some(rule), None),
            Some(Named {
                what: Candidate::Policy(policy),
                ..
            }) => (None, Some(policy)),
            None => (None, None),
        };
        let event = Box::new(DropEvent {
            time: time.unwrap_or(received),
            verdict: fate.verdict,
            netns: place.netns.clone(),
            engine: engine.unwrap_or(Engine::Other),
            family: family(pf, packet.family),
            hook: hook(pf, logged.hook),
            reason: None,
            iif: iif.map(label),
            oif: oif.map(label),
            mark: logged.mark,
            packet,
            rule: by_rule,
            policy: by_policy,
            path: None,
            nearest_miss: None,
            walk: None,
            evidence: Evidence {
                confidence: fate.confidence,
                candidates: fate.candidates,
                doubts: fate.doubts,
                ..Evidence::exact(EvidenceSource::Nflog)
            },
            log: vec![LogRef {
                group: logged.group,
                prefix: (!prefix.is_empty()).then(|| prefix.into()),
                rule,
            }],
            why: None,
            conntrack: tracked.conntrack,
            process: None,
            count: 1,
        });
        match fate.verdict {
            Verdict::Drop | Verdict::Reject => Event::Drop(event),
            Verdict::Accept | Verdict::Unknown => Event::Log(event),
        }
    }

    /// The rule that logged the packet, if it is only this one that can have, and what became of the packet.
    fn fate(
        &mut self,
        found: &[LogRule],
        packet: &Packet<'_>,
        when: Between,
        place: &mut Place<'_>,
    ) -> (Option<Arc<RuleRef>>, Fate) {
        let points: Vec<LogPoint> = found.iter().map(|rule| rule.point).collect();
        let ends = self.evaluator.logged(packet, &points, when, place);
        let ends = ends.unwrap_or_default();
        let rule = match (found, &ends[..]) {
            // Nothing else logs like this, whatever the evaluation says.
            ([only], _) => Some(only),
            (found, [(point, _)]) => found.iter().find(|rule| rule.point == *point),
            _ => None,
        };
        if ends.is_empty() && !found.is_empty() {
            log::info!("a packet was logged by a rule that it cannot have come to");
        }
        let several = ends.len() > 1;
        let mut all: Option<Ends> = None;
        for (_, mut ends) in ends {
            if several {
                ends.doubts.append(&mut ends.way);
            }
            let Some(all) = &mut all else {
                all = Some(ends);
                continue;
            };
            for named in ends.drops {
                if all.drops.iter().all(|known| known.what != named.what) {
                    all.drops.push(named);
                }
            }
            for doubt in ends.doubts {
                if !all.doubts.contains(&doubt) {
                    all.doubts.push(doubt);
                }
            }
            all.accept |= ends.accept;
            all.other |= ends.other;
            all.incomplete = all.incomplete.take().or(ends.incomplete);
        }
        let rule = rule.map(|rule| Arc::clone(&rule.rule));
        (rule, all.map_or(Fate::UNKNOWN, Fate::of))
    }

    fn tracked(
        &mut self,
        logged: &nflog::Packet<'_>,
        pf: u8,
        packet: &crate::packet::Packet,
        bytes: &[u8],
        found: &[LogRule],
        place: &mut Place<'_>,
    ) -> Tracked {
        if let (Some(attributes), Some(info)) = (logged.connection, logged.connection_info) {
            // As in a message of ctnetlink, behind its header.
            let message = [&[0; 4], attributes].concat();
            return match ctnetlink::decode(&message) {
                Ok(connection) => tracked::told(&connection, info),
                Err(_) => Tracked::default(),
            };
        }
        let used = self.used(place);
        let looked_at = !TRACKING.contains(&logged.hook)
            || found
                .iter()
                .all(|rule| is_tracked(rule, place) == Some(true));
        if !used.can_ask(pf) || !looked_at {
            return Tracked::default();
        }
        let (Some(tuple), Some(surroundings)) = (
            tracked::tuple(packet, bytes),
            place.surroundings.as_deref_mut(),
        ) else {
            return Tracked::default();
        };
        let mut answer = surroundings.connection(&tuple);
        if answer == tracked::Answer::Nothing {
            // Translated, it is the answer's tuple that it shows, the other way round.
            answer = surroundings.connection(&tracked::inverse(&tuple));
        }
        tracked::conclude(used, pf, packet, &tuple, &answer)
    }

    /// How the namespace's rules use conntrack.
    fn used(&mut self, place: &Place<'_>) -> Use {
        /// Namespaces that are remembered.
        const MOST: usize = 256;
        let (nft, legacy) = (place.rulesets.as_deref(), place.legacy.as_deref());
        let made_of = (
            nft.map_or(0, |nft| nft.readings()),
            legacy.map_or(0, |legacy| legacy.generation()),
        );
        if let Some((known, used)) = self.uses.get(&place.epoch)
            && *known == made_of
        {
            return *used;
        }
        if self.uses.len() >= MOST {
            self.uses.clear();
        }
        let tables = legacy.into_iter().flat_map(|legacy| legacy.newest());
        let ruleset = nft.map(|nft| &*nft.newest().ruleset);
        let used = Use::of(ruleset, tables.map(|table| &**table));
        self.uses.insert(place.epoch, (made_of, used));
        used
    }
}

/// Whether the rulesets as they are now are those that had the packet.
fn was_in_force(place: &mut Place<'_>, when: Between) -> bool {
    let nft = match place.rulesets.as_deref_mut() {
        Some(rulesets) => rulesets.was_in_force(when.since, when.until),
        None => false,
    };
    let legacy = match place.legacy.as_deref_mut() {
        Some(tables) => tables.settle(when.until) && tables.settle(when.since),
        None => false,
    };
    nft && legacy
}

/// Whether conntrack comes before the chain by which packets come to this rule, at a hook where it looks at them; `None`: not known.
fn is_tracked(rule: &LogRule, place: &Place<'_>) -> Option<bool> {
    let base = rule.rule.base_chain.as_deref()?;
    match rule.point.rule.chain.table {
        TableId::Nft(table) => {
            let ruleset = &place.rulesets.as_deref()?.newest().ruleset;
            let base = ruleset.tables.get(table as usize)?.chain(base)?;
            Some(base.base.as_ref()?.priority > CONNTRACK_PRIORITY)
        }
        TableId::Legacy(_) => Some(&*rule.rule.table != "raw"),
    }
}

/// What the rules have in common.
fn engine_of(rules: &[LogRule]) -> Option<Engine> {
    let first = rules.first()?.engine;
    rules
        .iter()
        .all(|rule| rule.engine == first)
        .then_some(first)
}

/// The link-layer header, if there is one, and the packet from its network header on.
fn bytes<'a>(logged: &nflog::Packet<'a>) -> (&'a [u8], &'a [u8]) {
    let egress = u8::from(logged.family) == NFPROTO_NETDEV && logged.hook == NETDEV_EGRESS;
    if egress {
        let at = ethernet(logged.payload).unwrap_or(logged.payload.len());
        return logged.payload.split_at(at);
    }
    let link = logged.l2_header.or(logged.hw_header);
    (link.unwrap_or_default(), logged.payload)
}

/// Length of an Ethernet header with its tags.
fn ethernet(frame: &[u8]) -> Option<usize> {
    let mut at = 12;
    loop {
        let &[high, low] = frame.get(at..)?.first_chunk::<2>()?;
        match u16::from_be_bytes([high, low]) {
            0x8100 | 0x88a8 => at += 4,
            _ => return Some(at + 2),
        }
    }
}

/// Index and name of an interface; empty if it is not known.
fn device(index: Option<u32>, place: &mut Place<'_>) -> Option<(u32, Arc<str>)> {
    let index = index?;
    let surroundings = place.surroundings.as_deref_mut();
    let name = surroundings.and_then(|known| known.interface(index));
    Some((index, name.unwrap_or_default()))
}

/// How an event calls an interface.
fn label((index, name): (u32, Arc<str>)) -> Arc<str> {
    match &*name {
        "" => format!("if{index}").into(),
        _ => name,
    }
}

/// The kernel leaves out what is not there.
fn fact(device: Option<&(u32, Arc<str>)>) -> Fact<Device<'_>> {
    match device {
        Some((index, name)) => Fact::Known(Device {
            index: *index,
            name,
        }),
        None => Fact::Absent,
    }
}

/// It is left out too where a packet's socket is one that only waits for a connection.
fn owner(id: Option<u32>) -> Fact<u32> {
    match id {
        None | Some(OVERFLOW) => Fact::Unknown,
        Some(id) => Fact::Known(id),
    }
}
