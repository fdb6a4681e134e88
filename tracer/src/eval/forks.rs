//! What follows from a rule: the next one, a jump, an end, and, where something is not known, a fork.

use super::{
    before::Question,
    code::Decided,
    field::Reason,
    outcome::{Decision, Fate, RuleId},
    read::Reader,
    run::{Ended, MAX_STATES, Next, Pending, Place, State, TOO_MANY, Walker},
    trail::Seen,
    write::{self, Kinds},
};

/// `NFT_JUMP_STACK_SIZE`; legacy tables have no fixed limit.
const MAX_DEPTH: usize = 64;
impl Walker<'_> {
    /// What follows from a rule. `None`: the next rule.
    pub(super) fn after(
        &mut self,
        state: &mut State,
        reader: &mut Reader<'_>,
        index: usize,
        ended: Ended,
        pending: Option<Pending>,
    ) -> Option<Next> {
        let chain = state.at.chain;
        if let (Ended::Missed, None) = (&ended, &pending) {
            state.trail.rule(chain, index, || Seen::Missed);
            return None;
        }
        let rule = self.program.rule_id(chain, index)?;
        if let Some(pending) = pending.as_ref().filter(|pending| pending.drops) {
            self.dropped(state, reader, index, rule, pending);
        }
        match (ended, pending) {
            (Ended::Missed, None) => None,
            (Ended::Missed, Some(pending)) => {
                // It misses in any case; only what it wrote before that depends on what is not known.
                if reader.writes().len() > pending.writes {
                    let mut other = state.clone();
                    other.way.before = pending.before;
                    self.put_aside(other, reader, pending.writes);
                    state.assume(pending.why);
                }
                state.trail.rule(chain, index, || Seen::Missed);
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
                other.way.before = pending.before;
                other.assume(pending.why.clone());
                other.trail.rule(chain, index, || Seen::Unknown {
                    why: pending.why.clone(),
                    taken: None,
                });
                self.put_aside(other, reader, pending.writes);
                state.trail.rule(chain, index, || Seen::Unknown {
                    why: pending.why.clone(),
                    taken: Some(verdict.clone()),
                });
                state.assume(pending.why);
                self.verdict(state, reader, rule, verdict)
            }
            (Ended::Impossible, pending) => {
                // If the rule does not match, it has not come to what is impossible.
                let Some(pending) = pending else {
                    return Some(Next::Done);
                };
                state.assume(pending.why);
                state.way.before = pending.before;
                reader.truncate_writes(pending.writes);
                None
            }
            (Ended::Several(verdicts), pending) => {
                let why = pending.map_or(Reason::missing("the key is not known"), |p| p.why);
                let writes = reader.writes().len();
                for verdict in verdicts {
                    let mut other = state.clone();
                    other.assume(why.clone());
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
                state.assume(why);
                None
            }
        }
    }

    /// The end of a packet that a step has dropped of which nothing more is known.
    fn dropped(
        &mut self,
        state: &State,
        reader: &mut Reader<'_>,
        index: usize,
        rule: RuleId,
        pending: &Pending,
    ) {
        let drop = Decided::End(Fate::Drop);
        let mut other = state.clone();
        other.way.before = pending.before.clone();
        other.assume(pending.why.clone());
        other.trail.rule(state.at.chain, index, || Seen::Unknown {
            why: pending.why.clone(),
            taken: Some(drop.clone()),
        });
        let made = reader.writes().to_vec();
        reader.truncate_writes(pending.writes);
        self.verdict(&mut other, reader, rule, drop);
        reader.set_writes(made);
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

    /// Before a rule reads what other rules may write later: the packet shows the last value only. Forks into never written, and
    /// written later.
    pub(super) fn suppose(
        &mut self,
        state: &mut State,
        reader: &mut Reader<'_>,
        reads: Kinds,
    ) -> bool {
        for bit in 0..Kinds::BITS {
            let kind = 1 << bit;
            let undecided = self.volatile & reads & kind & !state.way.fixed & !state.way.open;
            if undecided == 0 || reader.has_written(kind) {
                continue;
            }
            // What is not untracked has not been untracked.
            let by_rules = self.hook.writes & kind != 0;
            if kind == write::CT_STATE
                && !(reader.is_untracked() && (by_rules || reader.is_untracked_by_kernel()))
            {
                state.way.fixed |= kind;
                continue;
            }
            let mut other = state.clone();
            other.way.open |= kind;
            other.assume(write::reason(kind));
            self.put_aside(other, reader, reader.writes().len());
            state.way.fixed |= kind;
        }
        reader.set_open(state.way.open);
        true
    }

    /// What must be known of a field before it was written, to know what comes of a rule: `None` if nothing comes of it either way, or ways
    /// get too many.
    pub(super) fn decisive(
        &self,
        state: &State,
        reader: &Reader<'_>,
        ended: &Ended,
        pending: Option<&Pending>,
    ) -> Option<Question> {
        const MOST: usize = 24;
        let pending = pending?;
        let written = reader.writes().len() > pending.writes;
        let idle = matches!(
            ended,
            Ended::Missed | Ended::Verdict(Decided::Continue | Decided::Break)
        );
        let room = self.states + self.todo.len() < MAX_STATES / 2 && state.way.before.len() < MOST;
        pending.question.filter(|_| room && (written || !idle))
    }

    /// Forks a state that stands before a rule by the answer to a question; whether the state goes on, as one with the answer yes.
    pub(super) fn split(
        &mut self,
        state: &mut State,
        reader: &mut Reader<'_>,
        question: Question,
    ) -> bool {
        let mut other = state.clone();
        if other.way.before.learn(question, false, self.program) {
            self.put_aside(other, reader, reader.writes().len());
        }
        if !state.way.before.learn(question, true, self.program) {
            return false;
        }
        if let Some((field, value)) = question.value() {
            state.way.before.settle(reader, field, value);
        }
        true
    }

    /// Puts a state aside that has made only the first so many writes.
    pub(super) fn put_aside(&mut self, mut state: State, reader: &Reader<'_>, writes: usize) {
        // Each of them will be followed: there is no need to collect more than that.
        if self.states + self.todo.len() >= MAX_STATES {
            self.give_up(TOO_MANY);
            return;
        }
        let made = reader.writes();
        state.writes = made.get(..writes).unwrap_or(made).to_vec();
        self.todo.push_back(state);
    }
}
