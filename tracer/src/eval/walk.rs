//! The explanation: phases, steps, the nearest miss.

use super::{
    code::Decided,
    field::Reason,
    miss::{self, Texts},
    outcome::{Answer, ChainId, End, Fate, Known, Outcome, RuleId, Words},
    packet::Packet,
    program::Program,
    read::{Phase as Place, Reader},
    run,
    trail::{Event, Seen},
    world::World,
};

/// What a rule did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepResult {
    /// All of it held; its verdict in words (`accept`, `jump sub`, `continue`).
    Matched(String),
    /// This condition did not hold.
    Missed(Words),
    /// It cannot be told why; with the verdict where the walk that is told went on as if it had matched.
    Unknown(Reason, Option<String>),
}

/// A rule that was tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The rule.
    pub rule: RuleId,
    /// Chains that called this one.
    pub depth: u32,
    /// What it did.
    pub result: StepResult,
}

/// A base chain that was walked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Phase {
    /// The base chain.
    pub base: ChainId,
    /// Its priority.
    pub priority: i32,
    /// How many rules were tried, those of chains that were jumped to included.
    pub tried: u32,
    /// The rules, in order: all of them, or those only that did not miss ([`Detail`]).
    pub steps: Vec<Step>,
    /// The end of the phase in words: `accept`, `drop`, `policy drop`, ...
    pub end: String,
}

/// An accepting rule that did not match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Miss {
    /// The rule.
    pub rule: RuleId,
    /// Every way in which it failed.
    pub failed: Vec<Words>,
}

/// The way of a packet through the chains of a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Walk {
    /// Base chains in the order that they were walked.
    pub phases: Vec<Phase>,
    /// The end that this walk came to.
    pub end: End,
    /// The accepting rule that failed in the fewest ways; none where the packet was accepted, or where there is no such rule.
    pub nearest: Option<Miss>,
}

/// How much is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Detail {
    /// Rules that matched or cannot be told.
    Brief,
    /// Also rules that missed, with the first condition that did not hold.
    Full,
}

impl Program {
    /// The walk step by step, to the end that `known` leaves, or the first of them, with the nearest miss.
    ///
    /// `texts` must be what the program was made of. `None`: nothing can be told.
    pub fn explain(
        &self,
        packet: &Packet<'_>,
        world: &World,
        texts: &Texts<'_>,
        known: &Known,
        detail: Detail,
    ) -> Option<Walk> {
        let mut reader = Reader::new(&self.fields, packet, world);
        self.explain_with(packet, &mut reader, texts, known, detail)
    }

    /// [`Program::explain`] with a reader whose log is wanted afterwards.
    pub(super) fn explain_with(
        &self,
        packet: &Packet<'_>,
        reader: &mut Reader<'_>,
        texts: &Texts<'_>,
        known: &Known,
        detail: Detail,
    ) -> Option<Walk> {
        let (outcome, trails) = run::walk(self, packet, reader, true);
        let end = told(&outcome, known)?;
        let end = outcome.ends.get(end)?;
        let index = outcome.ends.iter().position(|other| other == end)?;
        let events = trails.get(index)?;
        reader.set_writes(Vec::new());
        reader.set_open(0);
        reader.set_instant(0);
        let mut teller = Teller {
            program: self,
            texts,
            detail,
            place: Place::default(),
            phases: Vec::new(),
        };
        for event in events {
            teller.event(reader, packet, event);
        }
        let mut phases = teller.phases;
        let nearest = match end.fate {
            Fate::Accept => None,
            _ => self.nearest(reader, packet, texts, events),
        };
        if let Some(last) = phases.last_mut()
            && last.end.is_empty()
        {
            last.end = end.fate.as_str().to_owned();
        }
        Some(Walk {
            phases,
            end: end.clone(),
            nearest,
        })
    }

    /// The accepting rule of the last base chain that failed in the fewest ways.
    fn nearest(
        &self,
        reader: &mut Reader<'_>,
        packet: &Packet<'_>,
        texts: &Texts<'_>,
        events: &[Event],
    ) -> Option<Miss> {
        let start = events
            .iter()
            .rposition(|event| matches!(event, Event::Base { .. }))?;
        let Event::Base { chain, .. } = events.get(start)? else {
            return None;
        };
        let place = self.place(packet, reader, *chain);
        reader.enter(place);
        let missed = events.iter().skip(start).filter_map(|event| match event {
            Event::Rule {
                chain,
                rule,
                seen: Seen::Missed,
                ..
            } => Some((*chain, *rule)),
            _ => None,
        });
        let (chain, rule) = miss::nearest(self, reader, missed)?;
        let id = self.rule_id(chain, rule)?;
        Some(Miss {
            rule: id,
            failed: miss::words(self, reader, texts, chain, rule),
        })
    }

    /// What is special about the chains that this base chain calls.
    fn place(&self, packet: &Packet<'_>, reader: &mut Reader<'_>, chain: u32) -> Place {
        self.base(packet, chain)
            .map_or(Place::default(), |base| run::phase(base, reader))
    }
}

/// The end that is told: the one that is left, or the first of those that are possible.
fn told(outcome: &Outcome, known: &Known) -> Option<usize> {
    let end = match outcome.answer(known) {
        Answer::Computed(end) => Some(end),
        Answer::Ambiguous(ends) => ends.first().copied(),
        Answer::Unknown(_) => outcome.ends.first(),
    }?;
    outcome.ends.iter().position(|other| other == end)
}

impl Fate {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Drop => "drop",
            Self::Reject => "reject",
            Self::Queue { .. } => "queue",
            Self::Stolen => "stolen",
        }
    }
}

struct Teller<'a> {
    program: &'a Program,
    texts: &'a Texts<'a>,
    detail: Detail,
    place: Place,
    phases: Vec<Phase>,
}

impl Teller<'_> {
    fn event(&mut self, reader: &mut Reader<'_>, packet: &Packet<'_>, event: &Event) {
        let program = self.program;
        match event {
            Event::Base { chain, priority } => {
                self.place = program.place(packet, reader, *chain);
                reader.enter(self.place);
                let Some(base) = program.chains.get(*chain as usize) else {
                    return;
                };
                self.phases.push(Phase {
                    base: base.id,
                    priority: *priority,
                    tried: 0,
                    steps: Vec::new(),
                    end: String::new(),
                });
            }
            Event::Rule {
                chain,
                rule,
                depth,
                seen,
            } => {
                let Some(id) = program.rule_id(*chain, *rule) else {
                    return;
                };
                let result = match seen {
                    Seen::Missed if self.detail == Detail::Brief => None,
                    Seen::Missed => {
                        let words = miss::words(program, reader, self.texts, *chain, *rule);
                        let first = words.into_iter().next();
                        Some(StepResult::Missed(first.unwrap_or_default()))
                    }
                    Seen::Matched(verdict) => Some(StepResult::Matched(self.verdict(verdict))),
                    Seen::Unknown { why, taken } => Some(StepResult::Unknown(
                        why.clone(),
                        taken.as_ref().map(|verdict| self.verdict(verdict)),
                    )),
                };
                let Some(phase) = self.phases.last_mut() else {
                    return;
                };
                phase.tried += 1;
                if let Seen::Matched(Decided::End(fate))
                | Seen::Unknown {
                    taken: Some(Decided::End(fate)),
                    ..
                } = seen
                {
                    phase.end = fate.as_str().to_owned();
                }
                if let Some(result) = result {
                    phase.steps.push(Step {
                        rule: id,
                        depth: *depth,
                        result,
                    });
                }
            }
            Event::Policy(fate) => {
                if let Some(phase) = self.phases.last_mut() {
                    phase.end = format!("policy {}", fate.as_str());
                }
            }
        }
    }

    fn verdict(&self, verdict: &Decided) -> String {
        let name = |chain: &u32| {
            let chain = self.program.chains.get(*chain as usize);
            chain
                .and_then(|chain| self.texts.chain_name(chain.id))
                .unwrap_or_default()
                .to_owned()
        };
        match verdict {
            Decided::Continue => "continue".to_owned(),
            Decided::Break => "break".to_owned(),
            Decided::Return => "return".to_owned(),
            Decided::Jump(chain) => format!("jump {}", name(chain)),
            Decided::Goto(chain) => format!("goto {}", name(chain)),
            Decided::End(fate) => fate.as_str().to_owned(),
            Decided::Unknown(reason) => reason.to_string(),
        }
    }
}
