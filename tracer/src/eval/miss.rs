//! Which conditions of a rule do not hold for a packet, and what they are in words.

use std::cmp::Reverse;

use super::{
    code::{Decided, Op},
    field::{Field, Value},
    outcome::{ChainId, Fate, TableId, Words},
    program::Program,
    read::Reader,
    registers::Registers,
    steps::{Did, Way},
    xt::Answer,
};
use crate::{
    ruleset::{
        model::{Chain, Ruleset, Table},
        render::{self, Names, Options, Source},
    },
    xtables,
};

/// What a program was made of, for words.
#[derive(Debug, Clone, Copy)]
pub struct Texts<'a> {
    /// The nf_tables ruleset.
    pub nft: Option<&'a Ruleset>,
    /// The legacy tables.
    pub legacy: &'a [xtables::legacy::Table],
    /// Names of interfaces, marks and the like.
    pub names: &'a Names,
}

impl<'a> Texts<'a> {
    fn nft_chain(&self, id: ChainId) -> Option<(&'a Table, &'a Chain)> {
        let TableId::Nft(table) = id.table else {
            return None;
        };
        let table = self.nft?.tables.get(table as usize)?;
        Some((table, table.chains.get(id.chain as usize)?))
    }

    /// The name of a chain.
    pub(super) fn chain_name(&self, id: ChainId) -> Option<&'a str> {
        if let TableId::Legacy(table) = id.table {
            let table = self.legacy.get(table as usize)?;
            return Some(&table.chains.get(id.chain as usize)?.name);
        }
        self.nft_chain(id).map(|(_, chain)| chain.name.as_str())
    }
}

/// The most chains that are followed to see whether a jump would have led to an acceptance.
const MAX_JUMPS: u32 = 3;
/// The most rules of such chains that are looked at.
const MAX_RULES: u32 = 10_000;

/// A condition that does not hold.
struct Failure {
    /// The step.
    step: usize,
    /// What it met.
    value: Option<(Option<Field>, Vec<u8>)>,
    /// An xtables match has its own words.
    words: Option<Words>,
}

/// Every condition of a rule that does not hold, each looked at as if the others did; and what the rule does then. `None`: one of them
/// cannot be told.
fn failures(
    program: &Program,
    reader: &mut Reader<'_>,
    chain: u32,
    rule: usize,
) -> Option<(Vec<Failure>, Decided)> {
    let steps = program.steps(program.chains.get(chain as usize)?, rule);
    let mut failures = Vec::new();
    let mut registers = Registers::new();
    let mut way = Way::default();
    let before = reader.writes().len();
    let mut decided = Some(Decided::Continue);
    for step in steps {
        let Some(op) = program.ops.get(step) else {
            break;
        };
        let slot = match op {
            Op::Test { slot, .. }
            | Op::Within { slot, .. }
            | Op::Need { slot }
            | Op::Load { slot, .. }
            | Op::Member { slot, .. } => Some(*slot),
            _ => None,
        };
        let did = match op {
            Op::Test {
                slot,
                invert,
                mask,
                want,
            } => match reader.wide(*slot) {
                (Value::Bytes(_), wide) => Did::hold((wide & mask == *want) != *invert),
                (Value::Break, _) => Did::Miss,
                (Value::Unknown(reason), _) => Did::Unknown(reason.clone()),
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
                (Value::Unknown(reason), _) => Did::Unknown(reason.clone()),
            },
            Op::Match(matcher) => {
                if matcher.test(reader) == Answer::Miss {
                    let words = matcher.words(reader);
                    failures.push(Failure {
                        step,
                        value: None,
                        words: Some(words),
                    });
                }
                continue;
            }
            Op::Verdict(verdict) => {
                decided = Some(verdict.clone());
                break;
            }
            op => program.step(&mut way, reader, &mut registers, op),
        };
        match did {
            Did::On => {}
            Did::Verdict(verdict) => {
                decided = Some(verdict);
                break;
            }
            Did::Miss => {
                let value = match (slot, op.input()) {
                    (Some(slot), _) => {
                        let field = reader.field(slot);
                        let bytes = reader.value(slot).known().map(<[u8]>::to_vec);
                        bytes.map(|bytes| (field, bytes))
                    }
                    (None, Some(from)) => {
                        let bytes = registers.get(from).ok().map(<[u8]>::to_vec);
                        bytes.map(|bytes| (None, bytes))
                    }
                    (None, None) => None,
                };
                failures.push(Failure {
                    step,
                    value,
                    words: None,
                });
            }
            Did::Unknown(_) | Did::OrDrops(_) | Did::Asks(..) => {}
            Did::Several(..) | Did::Impossible => {
                decided = None;
                break;
            }
        }
    }
    reader.truncate_writes(before);
    Some((failures, decided?))
}

/// Of these rules the accepting one that fails in the fewest ways; a jump accepts if its chain would have.
pub(super) fn nearest(
    program: &Program,
    reader: &mut Reader<'_>,
    missed: impl Iterator<Item = (u32, usize)>,
) -> Option<(u32, usize)> {
    let mut best = None;
    let mut budget = MAX_RULES;
    for (chain, rule) in missed {
        let Some((failures, decided)) = failures(program, reader, chain, rule) else {
            continue;
        };
        let more = match decided {
            Decided::End(Fate::Accept) => Some(0),
            Decided::Jump(to) | Decided::Goto(to) => {
                inside(program, reader, to, MAX_JUMPS, &mut budget)
            }
            _ => None,
        };
        let Some(more) = more else { continue };
        let ways = failures.len() + more;
        // Of two that fail in as many ways, the one that asks for more was met in more.
        let steps = program.chains.get(chain as usize);
        let steps = steps.map_or(0, |chain| program.steps(chain, rule).len());
        let distance = (ways, Reverse(steps));
        let nearer = match &best {
            Some((nearest, _, _)) => distance < *nearest,
            None => true,
        };
        if ways > 0 && nearer {
            best = Some((distance, chain, rule));
        }
    }
    best.map(|(_, chain, rule)| (chain, rule))
}

/// In how many ways the nearest accepting rule of a chain fails.
fn inside(
    program: &Program,
    reader: &mut Reader<'_>,
    chain: u32,
    jumps: u32,
    budget: &mut u32,
) -> Option<usize> {
    let rules = program.chains.get(chain as usize)?.rules.len();
    let mut fewest: Option<usize> = None;
    for rule in 0..rules {
        *budget = budget.saturating_sub(1);
        if *budget == 0 {
            break;
        }
        let Some((failures, decided)) = failures(program, reader, chain, rule) else {
            continue;
        };
        let failed = failures.len();
        let ways = match decided {
            Decided::End(Fate::Accept) => Some(failed),
            Decided::Jump(to) | Decided::Goto(to) if jumps > 0 => {
                inside(program, reader, to, jumps - 1, budget).map(|more| more + failed)
            }
            // What ends the packet's way before an acceptance.
            Decided::End(_) | Decided::Return if failed == 0 => break,
            _ => None,
        };
        if let Some(ways) = ways {
            fewest = Some(fewest.map_or(ways, |fewest| fewest.min(ways)));
        }
    }
    fewest
}

/// The conditions of a rule that do not hold, in words, in the rule's order.
pub(super) fn words(
    program: &Program,
    reader: &mut Reader<'_>,
    texts: &Texts<'_>,
    chain: u32,
    rule: usize,
) -> Vec<Words> {
    let Some((failures, _)) = failures(program, reader, chain, rule) else {
        return Vec::new();
    };
    let expr = |failure: &Failure| program.exprs.get(failure.step).copied().map(usize::from);
    let chain = program.chains.get(chain as usize);
    let nft = chain.and_then(|chain| texts.nft_chain(chain.id));
    let Some((table, chain)) = nft else {
        return failures.into_iter().filter_map(|f| f.words).collect();
    };
    let Some(model) = chain.rules.get(rule) else {
        return Vec::new();
    };
    let options = Options {
        names: texts.names,
        stateless: true,
        handles: false,
    };
    let met = |index: usize| {
        let failure = failures.iter().find(|f| expr(f) == Some(index))?;
        let (field, bytes) = failure.value.as_ref()?;
        let source = match field {
            Some(Field::Payload { base, offset, .. }) => Source::Payload(*base, *offset),
            Some(_) => Source::Field,
            None => Source::Registers,
        };
        Some((source, bytes.clone()))
    };
    let conditions = render::conditions(table, model, &options, met);
    let mut all = Vec::new();
    for failure in &failures {
        if let Some(words) = &failure.words {
            all.push(words.clone());
            continue;
        }
        let Some(at) = expr(failure) else { continue };
        // A load that fails is told by the match that it is for: the first that ends at it or after it.
        let last = conditions
            .iter()
            .find(|condition| condition.expr >= at)
            .map(|condition| condition.expr);
        let of_step = conditions
            .iter()
            .filter(|condition| Some(condition.expr) == last);
        for condition in of_step {
            let found = condition.found.clone().unwrap_or_default();
            // One comparison can be several matches for a reader: those that hold are not told.
            if !found.is_empty() && condition.wanted == found {
                continue;
            }
            let words = Words {
                subject: condition.subject.clone(),
                wanted: condition.wanted.clone(),
                found,
            };
            if !all.contains(&words) {
                all.push(words);
            }
        }
    }
    all
}
