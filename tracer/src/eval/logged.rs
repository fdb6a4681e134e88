//! The way of a packet that a rule has logged, from that rule on.
//!
//! The log proves that the rule matched: what could not be known before it no longer matters, and the packet that came with the log is
//! the one that the rules after it see. So the hook is walked twice: to the rule, for the chains that called it, and from there to the end.

use super::{
    field::Reason,
    outcome::{ChainId, Outcome, RuleId},
    packet::{Connection, Moment, Packet, Tracking},
    program::{HookKey, Program},
    read::Reader,
    run::{self, Place},
    world::World,
};

/// The expression of a rule that logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LogPoint {
    /// The rule.
    pub rule: RuleId,
    /// The expression's index in the rule; of legacy tables, whose target is what logs, [`LogPoint::TARGET`].
    pub expr: u16,
}

impl LogPoint {
    /// Behind all matches of a rule of a legacy table.
    pub const TARGET: u16 = u16::MAX;
}

/// A [`LogPoint`] in a walk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Point {
    pub(super) chain: u32,
    pub(super) rule: u32,
    pub(super) expr: u16,
    /// Index of the base chain in its hook by which the packet came there.
    pub(super) base: usize,
}

/// A packet that has just been logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) order: usize,
    /// Index into the order.
    pub(super) base: usize,
    pub(super) stack: Vec<Place>,
    pub(super) bound: bool,
    /// What it took to come there.
    pub(super) assumed: Vec<Reason>,
}

impl Start {
    /// Whether the same follows from both.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        let key = |start: &Self| (start.order, start.base, start.bound);
        key(self) == key(other) && self.stack == other.stack
    }
}

/// What is special about a walk because of a log.
#[derive(Debug, Clone)]
pub(super) enum Logging {
    /// To the point, gathering the states that come to it.
    To(Point, Vec<Start>),
    /// From the point on.
    From(Point, Vec<Start>),
}

/// Where a log is in its hook.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Translation {
    /// The hook has not translated addresses when the packet is logged.
    pub(super) before: bool,
    /// What addresses the packet has after that is not known.
    pub(super) unknown_after: bool,
}

impl Program {
    /// Every end that the walk of a packet can have which was logged there, by the base chain that led there; `packet` is as it was
    /// logged ([`Packet::moment`] does not matter). No ends: by what is known of packet and rules, it cannot have been logged there.
    pub fn evaluate_logged(&self, packet: &Packet<'_>, world: &World, point: LogPoint) -> Logged {
        let mut logged = Logged::default();
        let nothing = |text| Outcome {
            ends: Vec::new(),
            incomplete: Some(Reason::missing(text)),
        };
        let LogPoint { rule, expr } = point;
        let chain = self.chains.iter().position(|c| c.id == rule.chain);
        let Some(chain) = chain.and_then(|chain| u32::try_from(chain).ok()) else {
            logged.outcome = nothing("the rule is not in this ruleset");
            return logged;
        };
        let Some(hook) = self.hook(packet) else {
            return logged;
        };
        for (base, registered) in hook.bases.iter().enumerate() {
            if registered.id.table != rule.chain.table {
                continue;
            }
            let point = Point {
                chain,
                rule: rule.rule,
                expr,
                base,
            };
            let at = |moment| Packet { moment, ..*packet };
            let translation = Translation {
                before: registered.before_nat || !self.translates(packet),
                unknown_after: registered.before_nat
                    && self.translates(packet)
                    && may_be_translated(packet.tracking),
            };
            let before = at(Moment::Drop);
            let mut reader = Reader::new(&self.fields, &before, world);
            let to = Logging::To(point, Vec::new());
            let (outcome, to) = run::walk_logged(self, &before, &mut reader, to, translation);
            let Logging::To(_, starts) = to else {
                continue;
            };
            if outcome.incomplete.is_some() {
                logged.outcome.incomplete = outcome.incomplete;
                return logged;
            }
            if starts.is_empty() {
                continue;
            }
            for reason in starts.iter().flat_map(|start| &start.assumed) {
                if !logged.way.contains(reason) {
                    logged.way.push(reason.clone());
                }
            }
            let after = at(Moment::Entry);
            let mut reader = Reader::new(&self.fields, &after, world);
            let from = Logging::From(point, starts);
            let (outcome, _) = run::walk_logged(self, &after, &mut reader, from, translation);
            logged.bases.push(registered.id);
            logged.outcome.add(outcome);
            if logged.outcome.incomplete.is_some() {
                return logged;
            }
        }
        logged
    }

    /// Whether addresses may be translated on the packet's hook: with the first chain of type nat the kernel does it on all four
    /// (`nf_nat_register_fn()`, net/netfilter/nf_nat_core.c, v6.18).
    fn translates(&self, packet: &Packet<'_>) -> bool {
        let same = |key: &HookKey| key.pf() == packet.pf;
        let mut hooks = self.hooks.iter().filter(|(key, _)| same(key));
        hooks.any(|(_, hook)| hook.bases.iter().any(|base| base.nat.is_some()))
    }
}

/// What became of a logged packet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Logged {
    /// Every end that its walk can have.
    pub outcome: Outcome,
    /// The base chains that it can have come by.
    pub bases: Vec<ChainId>,
    /// What had to be so for it to come to the rule that logged it: settled, unless another rule can have logged it instead.
    pub way: Vec<Reason>,
}

impl Outcome {
    /// Takes in the ends of another walk that the packet can have taken.
    pub fn add(&mut self, other: Self) {
        for end in other.ends {
            let same = |known: &&super::outcome::End| {
                (known.decision, known.fate) == (end.decision, end.fate)
            };
            if self.ends.iter().find(same).is_none() {
                self.ends.push(end);
            }
        }
        self.incomplete = self.incomplete.take().or(other.incomplete);
    }
}

fn may_be_translated(tracking: Tracking) -> bool {
    const NAT: u32 = Connection::SRC_NAT | Connection::DST_NAT;
    match tracking {
        Tracking::None | Tracking::Untracked => false,
        Tracking::Connection(connection) => {
            connection.status & NAT != 0 || connection.status & Connection::CONFIRMED == 0
        }
        Tracking::Unknown => true,
    }
}
