//! The walk.
//!
//! A [`State`] is a packet on its way. Where a condition is not known the way forks: the state goes on as if it held, with the
//! assumption noted, and another as if it did not.

use std::collections::{HashMap, HashSet, VecDeque};

use super::{
    code::{Bits, Decided, Op, Operand, Span, WORDS},
    field::{Field, Reason, Value},
    hash,
    headers::{ETH_IPV4, ETH_IPV6},
    load::meta_key,
    outcome::{Decision, End, Fate, Outcome, RuleId},
    packet::{Moment, Packet},
    program::{Base, Hook, HookKey, Program},
    read::{Phase, Reader, Slot},
    sets::{Found, Gives},
    trail::{Event, Seen, Trail},
    write::{self, Kinds},
    xt::{Answer, Effect},
};

/// `NFT_JUMP_STACK_SIZE`; legacy tables have no fixed limit.
const MAX_DEPTH: usize = 64;
/// The most ends, and states at one time, that are followed.
const MAX_ENDS: usize = 64;
const MAX_STATES: usize = 512;
/// The most rules of all states together.
const MAX_RULES: u64 = 1_000_000;

/// A place where a chain goes on: the next rule's index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Place {
    chain: u32,
    rule: u32,
}

/// A packet on its way.
#[derive(Debug, Clone)]
struct State {
    /// It stands before the base chain `base`, not at `at`.
    entering: bool,
    order: usize,
    /// Index into the order.
    base: usize,
    at: Place,
    stack: Vec<Place>,
    writes: Vec<(Field, Value)>,
    assumed: Vec<Reason>,
    /// What was read before it could be written, taken to be what the packet shows, and never written.
    fixed: Kinds,
    /// What was read and is taken to be written after that.
    open: Kinds,
    /// The connection has its binding: other nat chains are not asked.
    bound: bool,
    trail: Trail,
}

/// How a rule ended.
enum Ended {
    /// A condition did not hold: this step.
    Missed(usize),
    /// With a verdict.
    Verdict(Decided),
    /// With one of these, or none of them.
    Several(Vec<Decided>),
    /// The packet cannot have come here.
    Impossible,
}

/// Register contents.
struct Registers {
    bytes: [u8; WORDS * 4],
    known: u16,
    why: Option<Reason>,
}

impl Registers {
    fn get(&self, span: Span) -> Result<&[u8], Reason> {
        if self.known & span.words() != span.words() {
            let why = self.why.clone();
            return Err(why.unwrap_or(Reason::missing("a register that nothing was loaded into")));
        }
        Ok(self.bytes.get(span.bytes()).unwrap_or_default())
    }

    fn set(&mut self, span: Span, bytes: &[u8]) {
        let start = usize::from(span.word) * 4;
        let whole = usize::from(span.len)
            .next_multiple_of(4)
            .max(bytes.len().next_multiple_of(4));
        if let Some(room) = self.bytes.get_mut(start..(start + whole).min(WORDS * 4)) {
            room.fill(0);
            let len = bytes.len().min(room.len());
            room[..len].copy_from_slice(&bytes[..len]);
            let words = Span {
                word: span.word,
                len: room.len() as u8,
            };
            self.known |= words.words();
        }
    }

    fn forget(&mut self, span: Span, why: Reason) {
        self.known &= !span.words();
        self.why = Some(why);
    }
}

/// What cannot be known of the rule so far.
struct Pending {
    why: Reason,
    /// Writes made before.
    writes: usize,
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
    let hook = program.hooks.get(&HookKey::of(packet)).unwrap_or(&empty);
    let mut walker = Walker {
        program,
        packet,
        hook,
        outcome: Outcome::default(),
        trails: Vec::new(),
        todo: VecDeque::new(),
        visited: HashSet::new(),
        ended: HashMap::new(),
        rules: 0,
        states: 0,
        volatile: match packet.moment {
            Moment::Drop => hook.writes,
            Moment::Entry => 0,
        },
    };
    for order in 0..hook.orders.len() {
        walker.todo.push_back(State {
            entering: true,
            order,
            base: 0,
            at: Place { chain: 0, rule: 0 },
            stack: Vec::new(),
            writes: Vec::new(),
            assumed: match order {
                0 => Vec::new(),
                _ => vec![Reason::missing(
                    "the order of chains with the same priority is not known",
                )],
            },
            fixed: 0,
            open: 0,
            bound: false,
            trail: Trail::new(trails),
        });
    }
    while let Some(state) = walker.todo.pop_front() {
        if walker.outcome.incomplete.is_some() {
            break;
        }
        walker.states += 1;
        if walker.states > MAX_STATES {
            walker.give_up("there are too many ways that the packet can have taken");
            break;
        }
        walker.follow(state, reader);
    }
    if hook.unordered && walker.outcome.incomplete.is_none() {
        walker.give_up("the order of chains with the same priority is not known");
    }
    (walker.outcome, walker.trails)
}

struct Walker<'a> {
    program: &'a Program,
    packet: &'a Packet<'a>,
    hook: &'a Hook,
    outcome: Outcome,
    trails: Vec<Vec<Event>>,
    todo: VecDeque<State>,
    visited: HashSet<Visit>,
    ended: HashMap<(Decision, Fate), usize>,
    rules: u64,
    states: usize,
    volatile: Kinds,
}

/// What tells states apart from which the same ends follow.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Visit {
    order: usize,
    base: usize,
    at: Place,
    stack: Vec<Place>,
    writes: Vec<(Field, Value)>,
    hypotheses: (Kinds, Kinds, bool),
}

/// What a state does next.
enum Next {
    /// The next base chain.
    Base,
    /// The rule at `State::at`.
    Rule,
    /// Nothing: it has ended.
    Done,
}

impl Walker<'_> {
    fn give_up(&mut self, text: &'static str) {
        self.outcome.incomplete = Some(Reason::missing(text));
    }

    /// Follows a state to its end.
    fn follow(&mut self, mut state: State, reader: &mut Reader<'_>) {
        let mut next = if state.entering {
            Next::Base
        } else {
            if let Some(base) = self.base(&state) {
                reader.enter(phase(base));
            }
            Next::Rule
        };
        reader.set_writes(std::mem::take(&mut state.writes));
        reader.set_open(state.open);
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
        reader.enter(phase(base));
        let walked = match self.is_walked(base, state, reader) {
            Ok(walked) => walked,
            Err(reason) => {
                let mut skipped = state.clone();
                skipped.assumed.push(reason.clone());
                skipped.base += 1;
                skipped.entering = true;
                self.put_aside(skipped, reader, reader.writes().len());
                state.assumed.push(reason);
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
        if let Some(devices) = &base.devices {
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
                    Ok(devices
                        .iter()
                        .any(|device| device.as_bytes() == &name[..len]))
                }
                Value::Break => Ok(false),
                Value::Unknown(reason) => Err(reason),
            };
        }
        let Some(source) = base.nat else {
            return Ok(true);
        };
        if state.bound {
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
            hypotheses: (state.fixed, state.open, state.bound),
        })
    }

    /// Evaluates rules up to the end of the base chain.
    fn rules(&mut self, state: &mut State, reader: &mut Reader<'_>) -> Next {
        let program = self.program;
        let mut registers = Registers {
            bytes: [0; WORDS * 4],
            known: 0,
            why: None,
        };
        while let Some(chain) = program.chains.get(state.at.chain as usize) {
            let index = state.at.rule as usize;
            let Some(code) = chain.rules.get(index) else {
                match self.leave(state, reader) {
                    Some(next) => return next,
                    None => continue,
                }
            };
            self.rules += 1;
            if self.rules > MAX_RULES {
                self.give_up("the packet's way through the chains does not end");
                return Next::Done;
            }
            if self.volatile & code.reads != 0 && !self.suppose(state, reader, code.reads) {
                continue;
            }
            state.at.rule += 1;
            registers.known = 0;
            registers.why = None;
            let mut pending = None;
            let steps = program.steps(chain, index);
            let ended = self.steps(state, reader, &mut registers, &mut pending, steps);
            if let Some(next) = self.after(state, reader, index, ended, pending) {
                return next;
            }
        }
        Next::Done
    }

    /// Before a rule reads what other rules may write later: the packet shows the last value only. Forks into never written, and
    /// written later.
    fn suppose(&mut self, state: &mut State, reader: &mut Reader<'_>, reads: Kinds) -> bool {
        for bit in 0..Kinds::BITS {
            let kind = 1 << bit;
            let undecided = self.volatile & reads & kind & !state.fixed & !state.open;
            if undecided == 0 || reader.has_written(kind) {
                continue;
            }
            let mut other = state.clone();
            other.open |= kind;
            other.assumed.push(write::reason(kind));
            self.put_aside(other, reader, reader.writes().len());
            state.fixed |= kind;
        }
        reader.set_open(state.open);
        true
    }

    /// Puts a state aside that has made only the first so many writes.
    fn put_aside(&mut self, mut state: State, reader: &Reader<'_>, writes: usize) {
        let made = reader.writes();
        state.writes = made.get(..writes).unwrap_or(made).to_vec();
        self.todo.push_back(state);
    }

    /// The end of a chain: back to the calling one, or the policy.
    fn leave(&mut self, state: &mut State, reader: &mut Reader<'_>) -> Option<Next> {
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
    fn finish(
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
        base: Option<super::outcome::ChainId>,
        fate: Fate,
    ) {
        // What was taken to be written later must have been.
        for bit in 0..Kinds::BITS {
            let kind = 1 << bit;
            if state.open & kind != 0 && !Self::is_consistent(reader, kind) {
                return;
            }
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

    /// Whether the last value that was written of this kind can be the one that the packet shows.
    fn is_consistent(reader: &mut Reader<'_>, kind: Kinds) -> bool {
        let last = reader
            .writes()
            .iter()
            .rev()
            .find(|(field, _)| write::kind(field) & kind != 0)
            .cloned();
        last.is_some_and(|(field, value)| agrees(reader, field, &value))
    }

    /// What follows from a rule. `None`: the next rule.
    fn after(
        &mut self,
        state: &mut State,
        reader: &mut Reader<'_>,
        index: usize,
        ended: Ended,
        pending: Option<Pending>,
    ) -> Option<Next> {
        let chain = state.at.chain;
        let rule = self.program.rule_id(chain, index)?;
        match (ended, pending) {
            (Ended::Missed(step), None) => {
                state.trail.rule(chain, index, || Seen::Missed(step));
                None
            }
            (Ended::Missed(step), Some(pending)) => {
                // It misses in any case; only what it wrote before that depends on what is not known.
                if reader.writes().len() > pending.writes {
                    self.put_aside(state.clone(), reader, pending.writes);
                    state.assumed.push(pending.why);
                }
                state.trail.rule(chain, index, || Seen::Missed(step));
                None
            }
            (Ended::Verdict(Decided::Break), _) => {
                state
                    .trail
                    .rule(chain, index, || Seen::Matched(Decided::Break));
                None
            }
            (Ended::Verdict(Decided::Continue), Some(pending))
                if reader.writes().len() == pending.writes =>
            {
                state.trail.rule(chain, index, || Seen::Unknown {
                    why: pending.why,
                    taken: None,
                });
                None
            }
            (Ended::Verdict(verdict), None) => {
                state
                    .trail
                    .rule(chain, index, || Seen::Matched(verdict.clone()));
                self.verdict(state, reader, rule, verdict)
            }
            (Ended::Verdict(verdict), Some(pending)) => {
                let mut other = state.clone();
                other.assumed.push(pending.why.clone());
                other.trail.rule(chain, index, || Seen::Unknown {
                    why: pending.why.clone(),
                    taken: None,
                });
                self.put_aside(other, reader, pending.writes);
                state.trail.rule(chain, index, || Seen::Unknown {
                    why: pending.why.clone(),
                    taken: Some(verdict.clone()),
                });
                state.assumed.push(pending.why);
                self.verdict(state, reader, rule, verdict)
            }
            (Ended::Impossible, pending) => {
                // If the rule does not match, it has not come to what is impossible.
                let Some(pending) = pending else {
                    return Some(Next::Done);
                };
                state.assumed.push(pending.why);
                reader.truncate_writes(pending.writes);
                None
            }
            (Ended::Several(verdicts), pending) => {
                let why = pending.map_or(Reason::missing("the key is not known"), |p| p.why);
                let writes = reader.writes().len();
                for verdict in verdicts {
                    let mut other = state.clone();
                    other.assumed.push(why.clone());
                    other.trail.rule(chain, index, || Seen::Unknown {
                        why: why.clone(),
                        taken: Some(verdict.clone()),
                    });
                    let made = reader.writes().to_vec();
                    if let Some(next) = self.verdict(&mut other, reader, rule, verdict) {
                        // It has ended, or goes on at the next base chain.
                        if matches!(next, Next::Base) {
                            other.entering = true;
                            self.put_aside(other, reader, writes);
                        }
                    } else {
                        self.put_aside(other, reader, writes);
                    }
                    reader.set_writes(made);
                    if self.outcome.incomplete.is_some() {
                        return Some(Next::Done);
                    }
                }
                state.trail.rule(chain, index, || Seen::Unknown {
                    why: why.clone(),
                    taken: None,
                });
                state.assumed.push(why);
                None
            }
        }
    }

    /// A rule's verdict. `None`: on with the rule at `State::at`.
    fn verdict(
        &mut self,
        state: &mut State,
        reader: &mut Reader<'_>,
        rule: RuleId,
        verdict: Decided,
    ) -> Option<Next> {
        match verdict {
            Decided::Continue | Decided::Break => None,
            Decided::Return => self.leave(state, reader),
            Decided::Jump(chain) => {
                if state.stack.len() >= MAX_DEPTH {
                    self.give_up("chains call each other too deeply");
                    return Some(Next::Done);
                }
                state.stack.push(state.at);
                state.at = Place { chain, rule: 0 };
                state.trail.enter();
                None
            }
            Decided::Goto(chain) => {
                state.at = Place { chain, rule: 0 };
                None
            }
            Decided::End(fate) => Some(self.finish(state, reader, Decision::Rule(rule), fate)),
            Decided::Unknown(reason) => {
                // Whatever it is: nothing after it can be told.
                self.outcome.incomplete = Some(reason);
                Some(Next::Done)
            }
        }
    }

    /// Runs the steps of a rule.
    fn steps(
        &mut self,
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
            let unknown = match op {
                Op::Test {
                    slot,
                    invert,
                    mask,
                    want,
                } => match reader.wide(*slot) {
                    (Value::Bytes(_), wide) => {
                        if ((wide & mask) == *want) == *invert {
                            return Ended::Missed(at);
                        }
                        continue;
                    }
                    (Value::Break, _) => return Ended::Missed(at),
                    (Value::Unknown(reason), _) => reason.clone(),
                },
                Op::Within {
                    slot,
                    invert,
                    mask,
                    bounds,
                } => match reader.wide(*slot) {
                    (Value::Bytes(_), wide) => {
                        let wide = wide & mask;
                        if (bounds.0 <= wide && wide <= bounds.1) == *invert {
                            return Ended::Missed(at);
                        }
                        continue;
                    }
                    (Value::Break, _) => return Ended::Missed(at),
                    (Value::Unknown(reason), _) => reason.clone(),
                },
                Op::Verdict(verdict) => match verdict {
                    Decided::Continue => continue,
                    Decided::Break => return Ended::Missed(at),
                    verdict => return Ended::Verdict(verdict.clone()),
                },
                op => match self.step(state, reader, registers, op) {
                    Did::On => continue,
                    Did::Miss => return Ended::Missed(at),
                    Did::Unknown(reason) => reason,
                    Did::Verdict(verdict) => return Ended::Verdict(verdict),
                    Did::Impossible => return Ended::Impossible,
                    Did::Several(verdicts, reason) => {
                        if pending.is_none() {
                            *pending = Some(Pending {
                                why: reason,
                                writes: reader.writes().len(),
                            });
                        }
                        return Ended::Several(verdicts);
                    }
                },
            };
            if pending.is_none() {
                *pending = Some(Pending {
                    why: unknown,
                    writes: reader.writes().len(),
                });
            }
        }
        Ended::Verdict(Decided::Continue)
    }

    /// Every step that is not one of the quick ones.
    fn step(
        &mut self,
        state: &mut State,
        reader: &mut Reader<'_>,
        registers: &mut Registers,
        op: &Op,
    ) -> Did {
        match op {
            Op::Test { .. } | Op::Within { .. } | Op::Verdict(_) => Did::On,
            Op::Need { slot } => match reader.value(*slot) {
                Value::Bytes(_) => Did::On,
                Value::Break => Did::Miss,
                Value::Unknown(reason) => Did::Unknown(reason.clone()),
            },
            Op::Load { slot, to } => match reader.value(*slot) {
                Value::Bytes(bytes) => {
                    registers.set(*to, bytes.as_slice());
                    Did::On
                }
                Value::Break => Did::Miss,
                Value::Unknown(reason) => {
                    let reason = reason.clone();
                    registers.forget(*to, reason.clone());
                    Did::Unknown(reason)
                }
            },
            Op::Set { to, bytes } => {
                registers.set(*to, bytes);
                Did::On
            }
            Op::Cmp { from, op, data } => match registers.get(*from) {
                Ok(bytes) => Did::hold(compares(*op, bytes, data)),
                Err(reason) => Did::Unknown(reason),
            },
            Op::Range {
                from,
                invert,
                bounds,
            } => match registers.get(*from) {
                Ok(bytes) => Did::hold((*bounds.0 <= *bytes && *bytes <= *bounds.1) != *invert),
                Err(reason) => Did::Unknown(reason),
            },
            Op::Bitwise { from, to, bits } => bitwise(registers, *from, *to, bits),
            Op::Byteorder { from, to, size } => {
                let swapped = registers.get(*from).map(|bytes| {
                    let mut swapped = bytes.to_vec();
                    for unit in swapped.chunks_exact_mut(usize::from(*size)) {
                        unit.reverse();
                    }
                    swapped
                });
                registers.put(*to, swapped)
            }
            Op::Hash {
                from,
                to,
                seed,
                modulus,
                offset,
            } => {
                let number = registers.get(*from).and_then(|bytes| {
                    let seed = seed.ok_or(Reason::missing("the hash's seed is not known"))?;
                    let hash = hash::scale(hash::jenkins(bytes, seed), *modulus);
                    Ok(hash.wrapping_add(*offset).to_ne_bytes().to_vec())
                });
                registers.put(*to, number)
            }
            Op::Forget { to, why } => {
                registers.forget(*to, (**why).clone());
                Did::On
            }
            Op::Doubt(reason) => Did::Unknown((**reason).clone()),
            Op::Member {
                slot,
                len,
                set,
                invert,
            } => {
                let key = match reader.value(*slot) {
                    Value::Bytes(bytes) => *bytes,
                    Value::Break => return Did::Miss,
                    Value::Unknown(reason) => return Did::Unknown(reason.clone()),
                };
                self.lookup(
                    registers,
                    *set,
                    Ok(key.padded(usize::from(*len))),
                    None,
                    false,
                    *invert,
                )
            }
            Op::Lookup {
                set,
                from,
                to,
                verdict,
                invert,
            } => {
                let key = registers.get(*from).map(<[u8]>::to_vec);
                let key = key.as_deref().map_err(Clone::clone);
                self.lookup(registers, *set, key, *to, *verdict, *invert)
            }
            Op::ObjectMap { set, from } => self.object_map(registers, *set, *from),
            Op::Dynset {
                set,
                from,
                invert,
                stateful,
            } => self.dynset(registers, *set, *from, *invert, stateful.as_deref()),
            Op::Write { field, from } => {
                let value = match from {
                    Some(span) => match registers.get(*span) {
                        Ok(bytes) => Value::bytes(bytes),
                        Err(reason) => Value::Unknown(reason),
                    },
                    None => Value::Unknown(Reason::missing("an earlier rule changed it")),
                };
                self.write(state, reader, **field, value)
            }
            Op::Assign(assigned) => {
                let (field, value) = &**assigned;
                // A packet that has a connection keeps it.
                if let Value::Bytes(bytes) = reader.read(*field) {
                    let tracked = bytes
                        .as_slice()
                        .first()
                        .is_some_and(|byte| byte & 0x0e != 0);
                    if tracked {
                        return Did::On;
                    }
                }
                self.write(state, reader, *field, value.clone())
            }
            Op::Synproxy { proto, flags } => synproxy(reader, *proto, *flags),
            Op::Bound => {
                state.bound = true;
                Did::On
            }
            Op::Match(matcher) => match matcher.test(reader) {
                Answer::Match => Did::On,
                Answer::Miss => Did::Miss,
                Answer::Drop => Did::Verdict(Decided::End(Fate::Drop)),
                Answer::Unknown(reason) => Did::Unknown(reason),
            },
            Op::Action(action) => {
                let before = reader.writes().len();
                let effect = action.run(reader);
                state.bound |= action.binds();
                if !Self::allows(state, reader, before) {
                    return Did::Impossible;
                }
                match effect {
                    Effect::Continue => Did::On,
                    Effect::Verdict(verdict) => {
                        let fate = match verdict.code {
                            0 if action.rejects() => Fate::Reject,
                            0 => Fate::Drop,
                            1 => Fate::Accept,
                            2 => Fate::Stolen,
                            -1 => return Did::On,
                            -5 => return Did::Verdict(Decided::Return),
                            code => Fate::Queue {
                                number: (code >> 16) as u16,
                                bypass: code & 0x8000 != 0,
                            },
                        };
                        Did::Verdict(Decided::End(fate))
                    }
                    Effect::Unknown(reason) => Did::Several(
                        vec![
                            Decided::End(Fate::Drop),
                            Decided::End(Fate::Accept),
                            Decided::Return,
                        ],
                        reason,
                    ),
                }
            }
        }
    }

    fn write(
        &mut self,
        state: &mut State,
        reader: &mut Reader<'_>,
        field: Field,
        value: Value,
    ) -> Did {
        let before = reader.writes().len();
        reader.write(field, value);
        if Self::allows(state, reader, before) {
            Did::On
        } else {
            Did::Impossible
        }
    }

    /// Whether what was just written is not against what was supposed of it.
    fn allows(state: &State, reader: &mut Reader<'_>, before: usize) -> bool {
        if state.fixed == 0 {
            return true;
        }
        let made = reader.writes().get(before..).unwrap_or_default().to_vec();
        made.into_iter().all(|(field, value)| {
            write::kind(&field) & state.fixed == 0 || agrees(reader, field, &value)
        })
    }

    fn lookup(
        &self,
        registers: &mut Registers,
        set: u32,
        key: Result<&[u8], Reason>,
        to: Option<Span>,
        verdict: bool,
        invert: bool,
    ) -> Did {
        let Some(set) = self.program.sets.get(set as usize) else {
            return Did::Unknown(Reason::missing("the set is not known"));
        };
        let several = |reason: Reason| {
            let mut verdicts = Vec::new();
            for entry in &set.entries {
                if let Gives::Verdict(verdict) = &entry.gives
                    && !verdicts.contains(verdict)
                {
                    verdicts.push(verdict.clone());
                }
            }
            Did::Several(verdicts, reason)
        };
        let key = match key {
            Ok(key) => key,
            Err(reason) if verdict => return several(reason),
            Err(reason) => {
                if let Some(to) = to {
                    registers.forget(to, reason.clone());
                }
                return Did::Unknown(reason);
            }
        };
        let found = set.find(key);
        let (entry, mut doubt) = match &found {
            Found::Entry(entry) => (Some(*entry), entry.doubt.clone()),
            Found::CatchAll(entry) => {
                let doubt = set.growing.clone().or_else(|| entry.doubt.clone());
                (Some(*entry), doubt)
            }
            Found::Nothing => (None, set.growing.clone()),
        };
        if invert {
            // The catch-all element is looked for after the inversion.
            return match (&found, doubt, set.catch_all()) {
                (_, _, Some(_)) => Did::On,
                (_, Some(reason), None) => Did::Unknown(reason),
                (Found::Nothing, None, None) => Did::On,
                (_, None, None) => Did::Miss,
            };
        }
        let Some(entry) = entry else {
            return match doubt {
                None => Did::Miss,
                Some(reason) if verdict => several(reason),
                Some(reason) => {
                    if let Some(to) = to {
                        registers.forget(to, reason.clone());
                    }
                    Did::Unknown(reason)
                }
            };
        };
        // An element that is gone leaves the key to the catch-all element.
        if doubt.is_some() && set.catch_all().is_some() && set.is_map {
            let reason = doubt.take().unwrap_or(Reason::missing(""));
            if verdict {
                return several(reason);
            }
            if let Some(to) = to {
                registers.forget(to, reason.clone());
            }
            return Did::Unknown(reason);
        }
        match (&entry.gives, to, verdict) {
            (Gives::Verdict(decided), _, true) => match (doubt, decided) {
                (None, Decided::Continue) => Did::On,
                (None, decided) => Did::Verdict(decided.clone()),
                (Some(reason), decided) => Did::Several(vec![decided.clone()], reason),
            },
            (Gives::Value(bytes), Some(to), _) => {
                registers.set(to, bytes);
                doubt.map_or(Did::On, Did::Unknown)
            }
            _ => doubt.map_or(Did::On, Did::Unknown),
        }
    }

    fn object_map(&self, registers: &Registers, set: u32, from: Span) -> Did {
        let Some(set) = self.program.sets.get(set as usize) else {
            return Did::Unknown(Reason::missing("the map is not known"));
        };
        let key = match registers.get(from) {
            Ok(key) => key,
            Err(reason) => return Did::Unknown(reason),
        };
        match set.find(key) {
            Found::Entry(entry) | Found::CatchAll(entry) => match (&entry.doubt, &set.objects) {
                (Some(reason), _) => Did::Unknown(reason.clone()),
                (None, None) => Did::On,
                (None, Some(reason)) => Did::Unknown(reason.clone()),
            },
            Found::Nothing => match &set.growing {
                Some(reason) => Did::Unknown(reason.clone()),
                None => Did::Miss,
            },
        }
    }

    fn dynset(
        &self,
        registers: &Registers,
        set: Option<u32>,
        from: Span,
        invert: bool,
        stateful: Option<&Reason>,
    ) -> Did {
        let Some(set) = set.map(|set| self.program.sets.get(set as usize)) else {
            return Did::On;
        };
        if let Some(reason) = stateful {
            return Did::Unknown(reason.clone());
        }
        let Some(set) = set else {
            return Did::Unknown(Reason::missing("the set is not known"));
        };
        let present = registers
            .get(from)
            .is_ok_and(|key| matches!(set.find(key), Found::Entry(entry) if entry.doubt.is_none()));
        if set.crowded && !present {
            return Did::Unknown(Reason::stateful("the set may be full"));
        }
        Did::hold(!invert)
    }
}

/// Whether a value that was written can be what the packet shows.
fn agrees(reader: &mut Reader<'_>, field: Field, written: &Value) -> bool {
    match (written.known(), reader.shown(field).known()) {
        (Some(written), Some(shown)) => {
            let len = written.len().min(shown.len());
            written[..len] == shown[..len]
        }
        _ => true,
    }
}

/// What a step did.
enum Did {
    On,
    Miss,
    Unknown(Reason),
    Verdict(Decided),
    /// One of these verdicts, or the rule does not match.
    Several(Vec<Decided>, Reason),
    /// What was read as the last value was not the last: this way was not taken.
    Impossible,
}

impl Did {
    fn hold(holds: bool) -> Self {
        if holds { Self::On } else { Self::Miss }
    }
}

impl Registers {
    fn put(&mut self, to: Span, bytes: Result<Vec<u8>, Reason>) -> Did {
        match bytes {
            Ok(bytes) => self.set(to, &bytes),
            Err(reason) => self.forget(to, reason),
        }
        Did::On
    }
}

fn compares(op: crate::ruleset::expr::CmpOp, bytes: &[u8], data: &[u8]) -> bool {
    use crate::ruleset::expr::CmpOp;
    match op {
        CmpOp::Eq => bytes == data,
        CmpOp::Neq => bytes != data,
        CmpOp::Lt => bytes < data,
        CmpOp::Lte => bytes <= data,
        CmpOp::Gt => bytes > data,
        CmpOp::Gte => bytes >= data,
    }
}

/// `nft_bitwise_eval()` (net/netfilter/nft_bitwise.c, v6.18): whole words in host order.
fn bitwise(registers: &mut Registers, from: Span, to: Span, bits: &Bits) -> Did {
    let whole = |span: Span| Span {
        word: span.word,
        len: span.len.next_multiple_of(4),
    };
    let operand = |other: &Operand| match other {
        Operand::Bytes(bytes) => Ok(bytes.to_vec()),
        Operand::Register(word) => {
            let span = Span {
                word: *word,
                len: from.len,
            };
            registers.get(whole(span)).map(<[u8]>::to_vec)
        }
    };
    let result = registers
        .get(whole(from))
        .map(<[u8]>::to_vec)
        .and_then(|src| {
            let zip = |other: &[u8], f: fn(u8, u8) -> u8| -> Vec<u8> {
                let other = other.iter().copied().chain(std::iter::repeat(0));
                src.iter().zip(other).map(|(a, b)| f(*a, b)).collect()
            };
            Ok(match bits {
                Bits::MaskXor(mask, xor) => {
                    let masked = zip(mask, |a, b| a & b);
                    let xor = xor.iter().copied().chain(std::iter::repeat(0));
                    masked.iter().zip(xor).map(|(a, b)| a ^ b).collect()
                }
                Bits::And(other) => zip(&operand(other)?, |a, b| a & b),
                Bits::Or(other) => zip(&operand(other)?, |a, b| a | b),
                Bits::Xor(other) => zip(&operand(other)?, |a, b| a ^ b),
                Bits::Left(by) => shift(&src, *by, true),
                Bits::Right(by) => shift(&src, *by, false),
            })
        });
    registers.put(whole(to), result)
}

fn shift(bytes: &[u8], by: u32, left: bool) -> Vec<u8> {
    let mut words: Vec<u32> = bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|word| u32::from_ne_bytes(*word))
        .collect();
    let mut carry = 0;
    let mut step = |word: &mut u32| {
        let old = *word;
        if left {
            *word = (old << by) | carry;
            carry = old.checked_shr(32 - by).unwrap_or(0);
        } else {
            *word = (old >> by) | carry;
            carry = old.checked_shl(32 - by).unwrap_or(0);
        }
    };
    if left {
        words.iter_mut().rev().for_each(&mut step);
    } else {
        words.iter_mut().for_each(&mut step);
    }
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// `nft_synproxy_do_eval()` (net/netfilter/nft_synproxy.c, v6.18).
fn synproxy(reader: &mut Reader<'_>, proto: Slot, flags: Slot) -> Did {
    const SYN: u8 = 2;
    const ACK: u8 = 16;
    let first = |value: &Value| match value {
        Value::Bytes(bytes) => Ok(bytes.as_slice().first().copied()),
        Value::Break => Ok(None),
        Value::Unknown(reason) => Err(reason.clone()),
    };
    match first(reader.value(proto)) {
        Ok(Some(6)) => {}
        Ok(_) => return Did::Miss,
        Err(reason) => return Did::Unknown(reason),
    }
    let either = vec![Decided::End(Fate::Stolen), Decided::End(Fate::Drop)];
    match first(reader.value(flags)) {
        Ok(Some(flags)) if flags & SYN != 0 => Did::Verdict(Decided::End(Fate::Stolen)),
        Ok(Some(flags)) if flags & ACK != 0 => {
            Did::Several(either, Reason::stateful("whether the SYN cookie is good"))
        }
        Ok(Some(_)) => Did::On,
        Ok(None) => Did::Verdict(Decided::End(Fate::Drop)),
        Err(reason) => Did::Several(either, reason),
    }
}

fn phase(base: &Base) -> Phase {
    Phase {
        early: base.early,
        with_tracking: base.with_tracking,
        before_nat: base.before_nat,
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
