//! The walk.
//!
//! A [`State`] is a packet on its way. Where a condition is not known the way forks: the state goes on as if it held, with the
//! assumption noted, and another as if it did not.

use std::collections::{HashMap, HashSet, VecDeque};

use super::{
    before::{Before, Question},
    clock,
    code::{Decided, Op},
    field::{Field, Reason, Value},
    headers::{ETH_IPV4, ETH_IPV6},
    load::meta_key,
    logged::{Logging, Start, Translation},
    outcome::{ChainId, Decision, End, Fate, Outcome},
    packet::{Moment, Packet},
    program::{Base, Chain, Hook, Program},
    read::{Phase, Quick, Reader},
    registers::Registers,
    steps::{Did, Way, agrees},
    trail::{Event, Trail},
    write::{self, Kinds},
};

/// The most ends, and states at one time, that are followed.
const MAX_ENDS: usize = 64;
pub(super) const MAX_STATES: usize = 512;
/// Why it gives up beyond that.
pub(super) const TOO_MANY: &str = "there are too many ways that the packet can have taken";
/// The most rules of all states together: so many, and so many times those that there are. The kernel takes no rulesets with loops.
const MIN_RULES: u64 = 100_000;
const MAX_ROUNDS: u64 = 16;

/// A place where a chain goes on: the next rule's index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) chain: u32,
    pub(super) rule: u32,
}

/// A packet on its way.
#[derive(Debug, Clone)]
pub(super) struct State {
    /// It stands before the base chain `base`, not at `at`.
    pub(super) entering: bool,
    pub(super) order: usize,
    /// Index into the order.
    pub(super) base: usize,
    pub(super) at: Place,
    pub(super) stack: Vec<Place>,
    pub(super) writes: Vec<(Field, Value)>,
    pub(super) assumed: Vec<Reason>,
    pub(super) way: Way,
    pub(super) trail: Trail,
    /// The rule at `at` has just logged the packet: it goes on behind its expression of this index.
    pub(super) logged: Option<u16>,
}

impl State {
    /// Notes what its end rests on, once.
    pub(super) fn assume(&mut self, reason: Reason) {
        if !self.assumed.contains(&reason) {
            self.assumed.push(reason);
        }
    }
}

/// How a rule ended.
pub(super) enum Ended {
    /// A condition did not hold.
    Missed,
    /// With a verdict.
    Verdict(Decided),
    /// With one of these, or none of them.
    Several(Vec<Decided>),
    /// The packet cannot have come here.
    Impossible,
}

/// What cannot be known of the rule so far.
pub(super) struct Pending {
    pub(super) why: Reason,
    /// What would have to be known to know it.
    pub(super) question: Option<Question>,
    /// Writes made before.
    pub(super) writes: usize,
    /// What was found out before.
    pub(super) before: Before,
    /// It may have dropped the packet itself.
    pub(super) drops: bool,
}

pub(super) fn evaluate(program: &Program, packet: &Packet<'_>, reader: &mut Reader<'_>) -> Outcome {
    walk(program, packet, reader, false).0
}

/// The outcome, and with `trails` the way to each end.
pub(super) fn walk(
    program: &Program,
    packet: &Packet<'_>,
    reader: &mut Reader<'_>,
    trails: bool,
) -> (Outcome, Vec<Vec<Event>>) {
    let empty = Hook {
        orders: vec![Vec::new()],
        ..Hook::default()
    };
    let hook = program.hook(packet).unwrap_or(&empty);
    let mut walker = Walker::new(program, packet, hook);
    walker.begin(trails, reader);
    walker.run(reader);
    (walker.outcome, walker.trails)
}

/// The outcome of a walk to where the packet is logged, or from there.
pub(super) fn walk_logged(
    program: &Program,
    packet: &Packet<'_>,
    reader: &mut Reader<'_>,
    logging: Logging,
    translation: Translation,
) -> (Outcome, Logging) {
    let empty = Hook::default();
    let hook = program.hook(packet).unwrap_or(&empty);
    let mut walker = Walker::new(program, packet, hook);
    walker.translation = translation;
    match &logging {
        Logging::To(..) => walker.begin(false, reader),
        Logging::From(point, starts) => {
            let instants = reader.instants();
            let each = starts
                .iter()
                .flat_map(|start| (0..instants).map(move |instant| (start, instant)));
            let states = each.map(|(start, instant)| State {
                entering: false,
                order: start.order,
                base: start.base,
                at: Place {
                    chain: point.chain,
                    rule: point.rule,
                },
                stack: start.stack.clone(),
                writes: Vec::new(),
                assumed: (instant > 0).then_some(clock::WHICH).into_iter().collect(),
                way: Way {
                    bound: start.bound,
                    instant,
                    ..Way::default()
                },
                trail: Trail::new(false),
                logged: Some(point.expr),
            });
            walker.todo.extend(states);
        }
    }
    let mut logging = logging;
    walker.logging = Some(&mut logging);
    walker.run(reader);
    (walker.outcome, logging)
}

pub(super) struct Walker<'a> {
    pub(super) program: &'a Program,
    pub(super) packet: &'a Packet<'a>,
    pub(super) hook: &'a Hook,
    pub(super) outcome: Outcome,
    pub(super) trails: Vec<Vec<Event>>,
    pub(super) todo: VecDeque<State>,
    pub(super) visited: HashSet<Visit>,
    pub(super) ended: HashMap<(Decision, Fate), usize>,
    pub(super) rules: u64,
    pub(super) max_rules: u64,
    pub(super) states: usize,
    pub(super) volatile: Kinds,
    logging: Option<&'a mut Logging>,
    translation: Translation,
}

/// What tells states apart from which the same ends follow.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Visit {
    order: usize,
    base: usize,
    at: Place,
    stack: Vec<Place>,
    writes: Vec<(Field, Value)>,
    way: Way,
}

/// What a state does next.
pub(super) enum Next {
    /// The next base chain.
    Base,
    /// The rule at `State::at`.
    Rule,
    /// Nothing: it has ended.
    Done,
}

impl<'a> Walker<'a> {
    fn new(program: &'a Program, packet: &'a Packet<'a>, hook: &'a Hook) -> Self {
        Self {
            program,
            packet,
            hook,
            outcome: Outcome::default(),
            trails: Vec::new(),
            todo: VecDeque::new(),
            visited: HashSet::new(),
            ended: HashMap::new(),
            rules: 0,
            max_rules: MIN_RULES + MAX_ROUNDS * program.rules,
            states: 0,
            volatile: match packet.moment {
                Moment::Drop if hook.untracks => hook.writes | write::CT_STATE,
                Moment::Drop => hook.writes,
                Moment::Entry => 0,
            },
            logging: None,
            translation: Translation::default(),
        }
    }

    /// The packet stands before the hook.
    fn begin(&mut self, trails: bool, reader: &mut Reader<'_>) {
        let instants = reader.instants();
        let orders = 0..self.hook.orders.len();
        for (order, instant) in orders.flat_map(|o| (0..instants).map(move |i| (o, i))) {
            let which = (order > 0).then_some(Reason::order(
                "the order of chains with the same priority is not known",
            ));
            let when = (instant > 0).then_some(clock::WHICH);
            self.todo.push_back(State {
                entering: true,
                order,
                base: 0,
                at: Place { chain: 0, rule: 0 },
                stack: Vec::new(),
                writes: Vec::new(),
                assumed: which.into_iter().chain(when).collect(),
                way: Way {
                    instant,
                    ..Way::default()
                },
                trail: Trail::new(trails),
                logged: None,
            });
        }
    }

    fn run(&mut self, reader: &mut Reader<'_>) {
        while let Some(state) = self.todo.pop_front() {
            if self.outcome.incomplete.is_some() {
                break;
            }
            self.states += 1;
            if self.states > MAX_STATES {
                self.give_up(TOO_MANY);
                break;
            }
            self.follow(state, reader);
        }
        if self.hook.unordered && self.outcome.incomplete.is_none() {
            self.give_up("the order of chains with the same priority is not known");
        }
    }
}

impl Walker<'_> {
    pub(super) fn give_up(&mut self, text: &'static str) {
        self.outcome.incomplete = Some(Reason::missing(text));
    }

    /// Follows a state to its end.
    fn follow(&mut self, mut state: State, reader: &mut Reader<'_>) {
        let mut next = if state.entering {
            Next::Base
        } else {
            if let Some(base) = self.base(&state) {
                let phase = self.phase(base, reader);
                reader.enter(phase);
            }
            Next::Rule
        };
        reader.set_writes(std::mem::take(&mut state.writes));
        reader.set_open(state.way.open);
        reader.set_instant(state.way.instant);
        if !state.entering && state.logged.is_none() && !self.is_new(&state, reader) {
            return;
        }
        loop {
            next = match next {
                Next::Base => self.enter(&mut state, reader),
                Next::Rule => self.rules(&mut state, reader),
                Next::Done => return,
            };
            if self.outcome.incomplete.is_some() {
                return;
            }
        }
    }

    fn base(&self, state: &State) -> Option<&Base> {
        let order = self.hook.orders.get(state.order)?;
        self.hook.bases.get(*order.get(state.base)?)
    }

    /// Starts the base chain that the state has come to.
    fn enter(&mut self, state: &mut State, reader: &mut Reader<'_>) -> Next {
        let hook = self.hook;
        let base = hook
            .orders
            .get(state.order)
            .and_then(|order| order.get(state.base))
            .and_then(|index| hook.bases.get(*index));
        let Some(base) = base else {
            self.end(state, reader, Decision::Passed, None, Fate::Accept);
            return Next::Done;
        };
        let phase = self.phase(base, reader);
        reader.enter(phase);
        // Since the packet was logged, the hook may have given it other addresses.
        if self.translation.unknown_after && !base.before_nat && base.nat.is_none() {
            reader.translate();
        }
        let walked = match self.is_walked(base, state, reader) {
            Ok(walked) => walked,
            Err(reason) => {
                let mut skipped = state.clone();
                skipped.assume(reason.clone());
                skipped.base += 1;
                skipped.entering = true;
                self.put_aside(skipped, reader, reader.writes().len());
                state.assume(reason);
                true
            }
        };
        if !walked {
            state.base += 1;
            return Next::Base;
        }
        // `nft_set_pktinfo_ipv4_ingress()`: what is no good IP packet ends here.
        if base.inet_ingress && !matches!(self.packet.protocol, ETH_IPV4 | ETH_IPV6) {
            state.base += 1;
            return Next::Base;
        }
        state.trail.base(base);
        state.entering = false;
        state.at = Place {
            chain: base.chain,
            rule: 0,
        };
        if self.is_new(state, reader) {
            Next::Rule
        } else {
            Next::Done
        }
    }

    /// Whether the packet comes by this chain.
    fn is_walked(
        &self,
        base: &Base,
        state: &State,
        reader: &mut Reader<'_>,
    ) -> Result<bool, Reason> {
        if base.devices.is_some() {
            let key = match self.packet.hook {
                1 if !base.inet_ingress && self.packet.pf == 5 => meta_key::OIFNAME,
                _ => meta_key::IIFNAME,
            };
            return match reader.read(Field::Meta(key)) {
                Value::Bytes(name) => {
                    let name = name.as_slice();
                    let len = name
                        .iter()
                        .position(|byte| *byte == 0)
                        .unwrap_or(name.len());
                    Ok(base.is_on(&name[..len]))
                }
                Value::Break => Ok(false),
                Value::Unknown(reason) => Err(reason),
            };
        }
        let Some(source) = base.nat else {
            return Ok(true);
        };
        if state.way.bound {
            return Ok(false);
        }
        match reader.read(Field::NatWalk { source }) {
            Value::Bytes(walked) => Ok(walked.as_slice().first() == Some(&1)),
            Value::Break => Ok(false),
            Value::Unknown(reason) => Err(reason),
        }
    }

    /// Whether no state with the same future has been here. Only those that forked can meet.
    fn is_new(&mut self, state: &State, reader: &Reader<'_>) -> bool {
        if self.states == 1 && self.todo.is_empty() {
            return true;
        }
        self.visited.insert(Visit {
            order: state.order,
            base: state.base,
            at: state.at,
            stack: state.stack.clone(),
            writes: reader.writes().to_vec(),
            way: state.way.clone(),
        })
    }

    /// Evaluates rules up to the end of the base chain.
    fn rules(&mut self, state: &mut State, reader: &mut Reader<'_>) -> Next {
        let program = self.program;
        let mut registers = Registers::new();
        while let Some(chain) = program.chains.get(state.at.chain as usize) {
            if !state.trail.is_kept() {
                let skipped = self.skip(reader, chain, state.at.rule);
                self.rules += u64::from(skipped);
                state.at.rule += skipped;
            }
            let index = state.at.rule as usize;
            let Some(code) = chain.rules.get(index) else {
                match self.leave(state, reader) {
                    Some(next) => return next,
                    None => continue,
                }
            };
            self.rules += 1;
            if self.rules > self.max_rules {
                self.give_up("the packet's way through the chains does not end");
                return Next::Done;
            }
            if self.volatile & code.reads != 0 && !self.suppose(state, reader, code.reads) {
                continue;
            }
            state.at.rule += 1;
            registers.clear();
            let mut pending = None;
            let mut steps = program.steps(chain, index);
            let start = (state.logged.is_none() && self.volatile & code.reads != 0)
                .then(|| (state.way.clone(), reader.writes().len()));
            match state.logged.take() {
                Some(expr) => {
                    // What comes before the log has held, and what it wrote is in the packet.
                    let split = program.behind(steps.clone(), expr);
                    self.steps(state, reader, &mut registers, &mut None, steps.start..split);
                    reader.set_writes(Vec::new());
                    steps.start = split;
                }
                None => self.reach(state, reader, index, steps.clone()),
            }
            let ended = self.steps(state, reader, &mut registers, &mut pending, steps);
            if let (Some((way, writes)), Some(question)) = (
                start,
                self.decisive(state, reader, &ended, pending.as_ref()),
            ) {
                state.at.rule = index as u32;
                state.way = way;
                reader.truncate_writes(writes);
                if self.split(state, reader, question) {
                    continue;
                }
                return Next::Done;
            }
            if let Some(next) = self.after(state, reader, index, ended, pending) {
                return next;
            }
        }
        Next::Done
    }

    /// Notes the state if this is the rule that logs the packet, and it can come to log it.
    fn reach(
        &mut self,
        state: &State,
        reader: &mut Reader<'_>,
        index: usize,
        steps: std::ops::Range<usize>,
    ) {
        let (order, hook) = (state.order, self.hook);
        let base = hook.orders.get(order).and_then(|o| o.get(state.base));
        let point = match &self.logging {
            Some(Logging::To(point, _)) => *point,
            _ => return,
        };
        let here = (point.chain, point.rule as usize) == (state.at.chain, index);
        if !here || base != Some(&point.base) {
            return;
        }
        let writes = reader.writes().to_vec();
        let mut state = state.clone();
        let before = steps.start..self.program.behind(steps, point.expr);
        let mut registers = Registers::new();
        let mut pending = None;
        let ended = self.steps(&mut state, reader, &mut registers, &mut pending, before);
        if let Some(pending) = pending {
            state.assume(pending.why);
        }
        let comes =
            !matches!(ended, Ended::Missed | Ended::Impossible) && self.is_written(&state, reader);
        reader.set_writes(writes);
        if comes && let Some(Logging::To(_, starts)) = self.logging.as_deref_mut() {
            let start = Start {
                order: state.order,
                base: state.base,
                stack: state.stack,
                bound: state.way.bound,
                assumed: state.assumed,
            };
            if !starts.iter().any(|known| known.is_like(&start)) {
                starts.push(start);
            }
        }
    }

    /// What is special about a base chain for what its rules read of this packet.
    fn phase(&self, base: &Base, reader: &mut Reader<'_>) -> Phase {
        if !self.translation.before {
            return phase(base, reader);
        }
        Phase {
            early: base.early,
            with_tracking: base.with_tracking,
            before_nat: false,
        }
    }

    /// How many rules from this one on miss by a comparison with a field that was read before: most do, and this is the quick way to
    /// find out.
    fn skip(&self, reader: &Reader<'_>, chain: &Chain, first: u32) -> u32 {
        let rules = chain.rules.get(first as usize..).unwrap_or_default();
        let ends = rules.iter().skip(1).map(|code| code.start);
        let mut skipped = 0;
        for (code, end) in rules.iter().zip(ends.chain([chain.end])) {
            let steps = self.program.ops.get(code.start as usize..end as usize);
            if self.volatile & code.reads != 0 || !misses(reader, steps.unwrap_or_default()) {
                break;
            }
            skipped += 1;
        }
        skipped
    }

    /// The end of a chain: back to the calling one, or the policy.
    pub(super) fn leave(&mut self, state: &mut State, reader: &mut Reader<'_>) -> Option<Next> {
        if let Some(back) = state.stack.pop() {
            state.at = back;
            state.trail.leave();
            if !state.assumed.is_empty() && !self.is_new(state, reader) {
                return Some(Next::Done);
            }
            return None;
        }
        let program = self.program;
        let base = self.base(state)?.clone();
        let policy = program
            .chains
            .get(base.chain as usize)
            .and_then(|chain| chain.policy)
            .unwrap_or(Fate::Accept);
        state.trail.policy(policy);
        Some(self.finish(state, reader, Decision::Policy(base.id), policy))
    }

    /// The base chain has decided.
    pub(super) fn finish(
        &mut self,
        state: &mut State,
        reader: &mut Reader<'_>,
        decision: Decision,
        fate: Fate,
    ) -> Next {
        if fate == Fate::Accept {
            state.stack.clear();
            state.base += 1;
            return Next::Base;
        }
        let base = self.base(state).map(|base| base.id);
        self.end(state, reader, decision, base, fate);
        // A queue that nobody listens to lets the packet go on.
        if let Fate::Queue { bypass: true, .. } = fate {
            state
                .assumed
                .push(Reason::stateful("nobody listens to the queue"));
            state.stack.clear();
            state.base += 1;
            return Next::Base;
        }
        Next::Done
    }

    fn end(
        &mut self,
        state: &State,
        reader: &mut Reader<'_>,
        decision: Decision,
        base: Option<ChainId>,
        fate: Fate,
    ) {
        if !self.is_written(state, reader) {
            return;
        }
        if let Some(&known) = self.ended.get(&(decision, fate)) {
            if let Some(end) = self.outcome.ends.get_mut(known)
                && state.assumed.len() < end.assumed.len()
            {
                end.assumed.clone_from(&state.assumed);
                if let Some(trail) = self.trails.get_mut(known) {
                    *trail = state.trail.events().to_vec();
                }
            }
            return;
        }
        if self.outcome.ends.len() >= MAX_ENDS {
            self.give_up("there are too many ends that the packet's way can have");
            return;
        }
        self.ended.insert((decision, fate), self.outcome.ends.len());
        self.outcome.ends.push(End {
            decision,
            base,
            fate,
            assumed: dedup(&state.assumed),
        });
        self.trails.push(state.trail.events().to_vec());
    }

    /// Whether what was taken to be written later has been.
    fn is_written(&self, state: &State, reader: &mut Reader<'_>) -> bool {
        let mut before = state.way.before.clone();
        (0..Kinds::BITS).map(|bit| 1 << bit).all(|kind| {
            state.way.open & kind == 0
                || self.is_consistent(&mut before, reader, kind)
                || kind == write::CT_STATE && self.is_left_to_kernel(state, reader)
        })
    }

    /// Whether no rule has untracked the packet, but connection tracking can have done that on this hook.
    fn is_left_to_kernel(&self, state: &State, reader: &mut Reader<'_>) -> bool {
        let early = self.base(state).is_some_and(|base| base.early);
        self.hook.untracks
            && !early
            && !reader.has_written(write::CT_STATE)
            && reader.is_untracked_by_kernel()
    }

    /// Whether the last value that was written of this kind can be the one that the packet shows.
    fn is_consistent(&self, before: &mut Before, reader: &mut Reader<'_>, kind: Kinds) -> bool {
        let of_kind = |(field, _): &&(Field, Value)| write::kind(field) & kind != 0;
        let mut writes = reader.writes().iter().filter(of_kind);
        if writes.clone().count() <= before.unwritten(kind) {
            return false;
        }
        let last = writes.next_back().cloned();
        last.is_some_and(|(field, value)| match (&value, reader.shown(field)) {
            (Value::Unknown(_), Value::Bytes(shown)) => {
                before.becomes(field, shown.wide(), self.program)
            }
            _ => agrees(reader, field, &value),
        })
    }

    /// Runs the steps of a rule.
    fn steps(
        &self,
        state: &mut State,
        reader: &mut Reader<'_>,
        registers: &mut Registers,
        pending: &mut Option<Pending>,
        steps: std::ops::Range<usize>,
    ) -> Ended {
        let program = self.program;
        for at in steps {
            let Some(op) = program.ops.get(at) else {
                break;
            };
            let did = match op {
                Op::Test {
                    slot,
                    invert,
                    mask,
                    want,
                } => match reader.wide(*slot) {
                    (Value::Bytes(_), wide) => Did::hold(((wide & mask) == *want) != *invert),
                    (Value::Break, _) => Did::Miss,
                    (Value::Unknown(reason), _) => {
                        let why = reason.clone();
                        let bounds = (*want, *want);
                        program.ask_bits(&state.way, reader, *slot, *mask, bounds, *invert, why)
                    }
                },
                Op::Within {
                    slot,
                    invert,
                    mask,
                    bounds,
                } => match reader.wide(*slot) {
                    (Value::Bytes(_), wide) => {
                        let wide = wide & mask;
                        Did::hold((bounds.0 <= wide && wide <= bounds.1) != *invert)
                    }
                    (Value::Break, _) => Did::Miss,
                    (Value::Unknown(reason), _) => {
                        let why = reason.clone();
                        program.ask_bits(&state.way, reader, *slot, *mask, **bounds, *invert, why)
                    }
                },
                Op::Verdict(verdict) => match verdict {
                    Decided::Continue => continue,
                    Decided::Break => return Ended::Missed,
                    verdict => return Ended::Verdict(verdict.clone()),
                },
                op => program.step(&mut state.way, reader, registers, op),
            };
            let drops = matches!(did, Did::OrDrops(_));
            let (why, question, several) = match did {
                Did::On => continue,
                Did::Miss => return Ended::Missed,
                Did::Unknown(why) | Did::OrDrops(why) => (why, None, None),
                Did::Asks(question, why) => (why, Some(question), None),
                Did::Verdict(verdict) => return Ended::Verdict(verdict),
                Did::Impossible => return Ended::Impossible,
                Did::Several(verdicts, why) => (why, None, Some(verdicts)),
            };
            let pending = pending.get_or_insert_with(|| Pending {
                why,
                question,
                writes: reader.writes().len(),
                before: state.way.before.clone(),
                drops,
            });
            pending.drops |= drops;
            if let Some(verdicts) = several {
                return Ended::Several(verdicts);
            }
        }
        Ended::Verdict(Decided::Continue)
    }
}

/// Whether a comparison with a field that was read before does not hold, with nothing but such comparisons in front of it.
fn misses(reader: &Reader<'_>, steps: &[Op]) -> bool {
    for op in steps {
        let missed = match op {
            Op::Test {
                slot,
                invert,
                mask,
                want,
            } => match reader.quick(*slot) {
                Quick::Bytes(wide) => ((wide & mask) == *want) == *invert,
                Quick::Break => true,
                Quick::Other => return false,
            },
            Op::Within {
                slot,
                invert,
                mask,
                bounds,
            } => match reader.quick(*slot) {
                Quick::Bytes(wide) => {
                    let wide = wide & mask;
                    (bounds.0 <= wide && wide <= bounds.1) == *invert
                }
                Quick::Break => true,
                Quick::Other => return false,
            },
            _ => return false,
        };
        if missed {
            return true;
        }
    }
    false
}

/// What is special about a base chain for what its rules read of this packet.
pub(super) fn phase(base: &Base, reader: &mut Reader<'_>) -> Phase {
    Phase {
        early: base.early,
        with_tracking: base.with_tracking,
        before_nat: base.before_nat && reader.is_translated(),
    }
}

fn dedup(reasons: &[Reason]) -> Vec<Reason> {
    let mut unique: Vec<Reason> = Vec::new();
    for reason in reasons {
        if !unique.contains(reason) {
            unique.push(reason.clone());
        }
    }
    unique
}
