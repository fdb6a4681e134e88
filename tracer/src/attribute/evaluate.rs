//! The evaluator's opinion about a drop, and the way that the packet took.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use fwtrace_abi::Record;

use super::{Place, legacy, rules, surroundings};
use crate::{
    eval::{
        cache::Cache,
        field::Reason,
        logged::LogPoint,
        miss::Texts,
        outcome::{Answer, ChainId, Decision, End, EngineKind, Fate, Known, RuleId, TableId},
        overlong::Overlong,
        packet::Packet,
        program::Program,
        walk::{self, Detail, Walk},
        world::World,
    },
    event::{
        Candidate, Doubt, Engine, Family, NearestMiss, PathStep, Phase, PolicyRef, RuleRef, Step,
        StepResult,
    },
    ruleset::{
        model::{self, Ruleset},
        render::Names,
        snapshot::Snapshots,
    },
    trace::join::Between,
    xtables::{
        self,
        legacy::{Table, follow::Tables},
    },
};

/// Compiled rulesets that are kept of a namespace: drops of the one before are still on their way.
const KEPT: usize = 2;
/// Namespaces with compiled rulesets; beyond that all are compiled again.
const NAMESPACES: usize = 256;
/// Ways that are kept for events; beyond that all are told again.
const WAYS: usize = 4096;

/// How often the kernel is asked for the order of a hook's chains, a ruleset.
const TRIES: u32 = 5;
/// Of how many hooks: those of devices are many where devices come and go.
const ASKED: usize = 4096;
/// And how long it is left alone in between.
const PAUSE: Duration = Duration::from_millis(50);

/// How much is told beside the rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// Nothing.
    Rule,
    /// The path and the nearest miss.
    Path,
    /// Also the rules that matched, base chain by base chain.
    Walk,
    /// Also those that did not.
    All,
}

/// What the evaluator says about a drop.
#[derive(Debug)]
pub(super) struct Opinion {
    pub(super) answer: Said,
    pub(super) way: Way,
    /// What the kernel says is none of what the evaluator says: what it says instead.
    pub(super) disagreement: Option<Vec<Candidate>>,
}

/// The way that the packet took, as far as it is told.
#[derive(Clone, Debug, Default)]
pub(super) struct Way {
    pub(super) path: Option<Arc<[PathStep]>>,
    pub(super) nearest_miss: Option<Arc<NearestMiss>>,
    pub(super) walk: Option<Arc<[Phase]>>,
}

/// Which rule or policy it was.
#[derive(Debug)]
pub(super) enum Said {
    /// This one.
    Computed(Named),
    /// One of these; what that depends on.
    Ambiguous(Vec<Named>, Vec<Doubt>),
    /// It cannot be told.
    Unknown,
}

/// A rule or policy that drops.
#[derive(Clone, Debug)]
pub(super) struct Named {
    pub(super) what: Candidate,
    pub(super) engine: Engine,
    pub(super) reject: bool,
    /// Priority of the base chain, of nf_tables.
    pub(super) priority: Option<i32>,
}

/// What can become of a logged packet at its hook.
#[derive(Debug, Default)]
pub(super) struct Ends {
    /// One of these drops it.
    pub(super) drops: Vec<Named>,
    /// The hook lets it pass.
    pub(super) accept: bool,
    /// It goes to user space, or the kernel takes it over.
    pub(super) other: bool,
    /// What decides which of these it is.
    pub(super) doubts: Vec<Doubt>,
    /// What decides whether it was this rule that logged it.
    pub(super) way: Vec<Doubt>,
    /// There may be more.
    pub(super) incomplete: Option<Reason>,
}

/// What is known of a drop before the evaluator is asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clues<'a> {
    pub(super) engine: Option<EngineKind>,
    pub(super) by_rule: Option<bool>,
    /// What the kernel has said; the engine is known then.
    pub(super) exact: Option<&'a Candidate>,
}

/// Which rulesets a program was made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    readings: u64,
    generation: u32,
    legacy: u32,
}

/// Evaluates drops.
#[derive(Debug)]
pub(super) struct Evaluator {
    depth: Depth,
    inverts_last: Option<bool>,
    overlong: Overlong,
    /// By [`Place::epoch`], the newest first.
    compiled: HashMap<u64, VecDeque<Compiled>>,
}

impl Evaluator {
    pub(super) fn new(depth: Depth, inverts_last: Option<bool>) -> Self {
        Self {
            depth,
            inverts_last,
            overlong: Overlong::default(),
            compiled: HashMap::new(),
        }
    }

    /// Takes in what the kernel does with extension headers that are too long.
    pub(super) fn learn(&mut self, overlong: Overlong) {
        if self.overlong != overlong {
            self.overlong = overlong;
            self.compiled.clear();
        }
    }

    /// Tells no less than this from now on.
    pub(super) fn deepen(&mut self, depth: Depth) {
        self.depth = self.depth.max(depth);
    }

    /// The opinion about the packet of `record`; `None`: there is no ruleset to evaluate.
    pub(super) fn opinion(
        &mut self,
        record: &Record,
        packet: &Packet<'_>,
        place: &mut Place<'_>,
        clues: Clues<'_>,
    ) -> Option<Opinion> {
        let exact = clues.exact.is_some();
        let stamp = stamp(record, place, exact);
        let past = |stamp: &Stamp| {
            exact && record.generation != 0 && stamp.generation == record.generation
        };
        let depth = self.depth;
        let compiled = self.compiled(stamp, past, place)?;
        if stamp == Some(compiled.stamp) {
            compiled.arrange(packet, place);
        }
        let nothing = World::default();
        let surroundings = match &mut place.surroundings {
            Some(surroundings) => {
                let needs = compiled.cache.program().needs();
                surroundings.at(record.time, needs, !exact)
            }
            None => surroundings::Known {
                world: &nothing,
                blind: None,
            },
        };
        Some(compiled.opinion(packet, &surroundings, place.names, clues, depth))
    }

    /// What becomes of a logged packet behind the rule that has logged it, of these the one or the other, by the rulesets as they are
    /// now. Only of rules that it can have come to.
    pub(super) fn logged(
        &mut self,
        packet: &Packet<'_>,
        points: &[LogPoint],
        when: Between,
        place: &mut Place<'_>,
    ) -> Option<Vec<(LogPoint, Ends)>> {
        let stamp = newest(place);
        let compiled = self.compiled(Some(stamp), |_| false, place)?;
        let nothing = World::default();
        let world = match &mut place.surroundings {
            Some(surroundings) => {
                let needs = compiled.cache.program().needs();
                let changed = surroundings.at(when.until, needs, true).blind.is_some();
                let known = surroundings.at(when.since, needs, false);
                match (known.blind, changed) {
                    (Some(blind), _) => blind,
                    (None, true) => &nothing,
                    (None, false) => known.world,
                }
            }
            None => &nothing,
        };
        let mut all = Vec::new();
        for point in points {
            let program = Arc::clone(compiled.cache.program());
            let logged = program.evaluate_logged(packet, world, *point);
            if logged.bases.is_empty() && logged.outcome.incomplete.is_none() {
                continue;
            }
            let every: Vec<&End> = logged.outcome.ends.iter().collect();
            let mut ends = Ends {
                doubts: doubts(&every),
                way: said(&logged.way),
                incomplete: logged.outcome.incomplete,
                ..Ends::default()
            };
            for end in &logged.outcome.ends {
                match (end.fate, compiled.named(end, place.names)) {
                    (Fate::Accept, _) => ends.accept = true,
                    (Fate::Drop | Fate::Reject, Some(named)) => ends.drops.push(named),
                    _ => ends.other = true,
                }
            }
            all.push((*point, ends));
        }
        Some(all)
    }

    /// The rulesets with this stamp, made ready now if need be; without one, those that `past` is true of.
    fn compiled(
        &mut self,
        stamp: Option<Stamp>,
        past: impl Fn(&Stamp) -> bool,
        place: &Place<'_>,
    ) -> Option<&mut Compiled> {
        if self.compiled.len() >= NAMESPACES {
            self.compiled.clear();
        }
        let known = self.compiled.entry(place.epoch).or_default();
        if known.iter().any(|compiled| compiled.until.is_some()) {
            let now = Instant::now();
            known.retain(|compiled| compiled.until.is_none_or(|until| now < until));
        }
        let at = match stamp {
            Some(stamp) => known.iter().position(|compiled| compiled.stamp == stamp),
            // Of a ruleset that has been replaced since.
            None => known.iter().position(|compiled| past(&compiled.stamp)),
        };
        let at = match (at, stamp) {
            (Some(at), _) => at,
            (None, Some(stamp)) => {
                known.truncate(KEPT - 1);
                known.push_front(Compiled::new(
                    stamp,
                    place,
                    self.inverts_last,
                    self.overlong,
                ));
                0
            }
            (None, None) => return None,
        };
        known.get_mut(at)
    }
}

/// The newest rulesets, whenever they were read.
fn newest(place: &Place<'_>) -> Stamp {
    let rulesets = place.rulesets.as_deref();
    Stamp {
        readings: rulesets.map_or(0, Snapshots::readings),
        generation: rulesets.map_or(0, |rulesets| rulesets.newest().first()),
        legacy: place.legacy.as_deref().map_or(0, Tables::generation),
    }
}

/// What the ends rest on, each once.
fn doubts(ends: &[&End]) -> Vec<Doubt> {
    said(ends.iter().flat_map(|end| &end.assumed))
}

/// Reasons as events have them, each once.
fn said<'a>(reasons: impl IntoIterator<Item = &'a Reason>) -> Vec<Doubt> {
    let mut doubts = Vec::new();
    for reason in reasons {
        let doubt = Doubt {
            kind: reason.kind,
            text: reason.text.as_ref().into(),
        };
        if !doubts.contains(&doubt) {
            doubts.push(doubt);
        }
    }
    doubts
}

/// The newest rulesets, if they were in force at the time of the drop.
fn stamp(record: &Record, place: &mut Place<'_>, exact: bool) -> Option<Stamp> {
    let (readings, generation) = match place.rulesets.as_deref_mut() {
        Some(rulesets) => {
            rulesets.settle(record.generation)?;
            (rulesets.readings(), rulesets.newest().first())
        }
        None => (0, 0),
    };
    let legacy = match place.legacy.as_deref_mut() {
        Some(tables) => {
            // Nobody tells when a table is replaced. What the kernel has named holds anyway.
            if !exact && !tables.settle(record.time) {
                return None;
            }
            tables.generation()
        }
        None => 0,
    };
    Some(Stamp {
        readings,
        generation,
        legacy,
    })
}

/// How the kernel is asked for the order of a hook's chains.
#[derive(Debug)]
struct Asked {
    /// How often it may still be.
    tries: u32,
    next: Instant,
}

/// The rulesets of a namespace, ready to be evaluated.
#[derive(Debug)]
struct Compiled {
    stamp: Stamp,
    nft: Option<Arc<Ruleset>>,
    legacy: Vec<Table>,
    /// Then an element expires that was taken to be there.
    until: Option<Instant>,
    /// By family, hook and device index.
    asked: HashMap<(u8, u8, u32), Asked>,
    cache: Cache,
    /// By address of the walk, which is kept with it.
    ways: HashMap<usize, (Arc<Walk>, Way)>,
    rules: HashMap<(RuleId, Option<ChainId>), Arc<RuleRef>>,
    policies: HashMap<ChainId, Arc<PolicyRef>>,
    /// By address of the rule or policy, which is kept with it.
    decisions: HashMap<usize, (Candidate, Option<Decision>)>,
}

impl Compiled {
    fn new(
        stamp: Stamp,
        place: &Place<'_>,
        inverts_last: Option<bool>,
        overlong: Overlong,
    ) -> Self {
        let nft = place
            .rulesets
            .as_deref()
            .map(|rulesets| Arc::clone(&rulesets.newest().ruleset));
        let tables = place.legacy.as_deref().into_iter();
        let legacy: Vec<Table> = tables
            .flat_map(|tables| tables.newest())
            .map(|table| Table::clone(table))
            .collect();
        let now = Instant::now();
        let rulesets = place.rulesets.as_deref();
        let age = rulesets.map(Snapshots::age).unwrap_or_default();
        let program = Program::aged(nft.as_deref(), &legacy, age)
            .inverting_last(inverts_last)
            .reacting(overlong);
        Self {
            stamp,
            until: program.lasts().map(|lasts| now + lasts),
            asked: HashMap::new(),
            cache: Cache::new(Arc::new(program)),
            nft,
            legacy,
            ways: HashMap::new(),
            rules: HashMap::new(),
            policies: HashMap::new(),
            decisions: HashMap::new(),
        }
    }

    /// Has the kernel say which of the chains of one priority come first on the packet's hook. It may be at work on the ruleset: then
    /// again after a while.
    fn arrange(&mut self, packet: &Packet<'_>, place: &mut Place<'_>) {
        let (Some(tie), Some(lists)) = (self.cache.program().tie(packet), &mut place.lists) else {
            return;
        };
        let now = Instant::now();
        let of = (
            tie.pf,
            tie.hook,
            tie.device.map_or(0, |device| device.index),
        );
        if self.asked.len() >= ASKED && !self.asked.contains_key(&of) {
            return;
        }
        let asked = self.asked.entry(of).or_insert(Asked {
            tries: TRIES,
            next: now,
        });
        if asked.tries == 0 || now < asked.next {
            return;
        }
        asked.tries -= 1;
        asked.next = now + PAUSE;
        if let Some(calls) = lists.read(&tie, self.stamp.generation) {
            let nft = self.nft.as_deref();
            self.cache.arrange(&tie, &calls, nft, &self.legacy);
        }
    }

    fn opinion(
        &mut self,
        packet: &Packet<'_>,
        surroundings: &surroundings::Known<'_>,
        names: &Names,
        clues: Clues<'_>,
        depth: Depth,
    ) -> Opinion {
        let world = surroundings.world;
        let outcome = match surroundings.blind {
            // What is not known stays out of the cache.
            Some(blind) if clues.exact.is_none() => {
                Arc::new(self.cache.program().evaluate(packet, blind))
            }
            _ => self.cache.evaluate(packet, world),
        };
        let mut known = Known {
            engine: clues.engine,
            by_rule: clues.by_rule,
            ..Known::default()
        };
        let answer = match outcome.answer(&known) {
            Answer::Computed(end) => match self.named(end, names) {
                Some(named) => Said::Computed(named),
                None => Said::Unknown,
            },
            Answer::Ambiguous(ends) => {
                let named = ends.iter().filter_map(|end| self.named(end, names));
                Said::Ambiguous(named.collect(), doubts(&ends))
            }
            Answer::Unknown(_) => Said::Unknown,
        };
        let mut disagreement = None;
        if let Some(exact) = clues.exact {
            known.decision = self.decision(clues.engine, exact);
            let dropping = || outcome.ends.iter().filter(|end| end.fate.is_drop());
            // A set may have been changed since.
            let agrees = outcome.incomplete.is_some()
                || surroundings.blind.is_some()
                || dropping().any(|end| Some(end.decision) == known.decision);
            if known.decision.is_some() && !agrees {
                let named = dropping().filter_map(|end| self.named(end, names));
                disagreement = Some(named.map(|named| named.what).collect());
            }
        }
        let told = match (clues.exact, &disagreement) {
            (Some(_), None) => known.decision.is_some(),
            (Some(_), Some(_)) => false,
            (None, _) => matches!(answer, Said::Computed(_)) && surroundings.blind.is_none(),
        };
        let mut way = Way::default();
        if depth > Depth::Rule && told {
            let texts = Texts {
                nft: self.nft.as_deref(),
                legacy: &self.legacy,
                names,
            };
            let detail = match depth {
                Depth::All => Detail::Full,
                _ => Detail::Brief,
            };
            if let Some(walk) = self.cache.explain(packet, world, &texts, &known, detail) {
                way = self.way(walk, names, depth);
            }
        }
        Opinion {
            answer,
            way,
            disagreement,
        }
    }

    fn way(&mut self, walk: Arc<Walk>, names: &Names, depth: Depth) -> Way {
        let address = Arc::as_ptr(&walk).addr();
        if let Some((_, way)) = self.ways.get(&address) {
            return way.clone();
        }
        let nearest_miss = walk.nearest.as_ref().and_then(|miss| {
            let misses = miss.failed.iter().map(|way| way.to_string().into());
            Some(Arc::new(NearestMiss {
                rule: self.rule(miss.rule, None, names)?,
                misses: misses.collect(),
            }))
        });
        let phases = walk.phases.iter().map(|phase| self.phase(phase, names));
        let way = Way {
            walk: match depth {
                Depth::Rule | Depth::Path => None,
                Depth::Walk | Depth::All => phases.collect(),
            },
            path: self.path(&walk, names),
            nearest_miss,
        };
        if self.ways.len() >= WAYS {
            self.ways.clear();
        }
        self.ways.insert(address, (walk, way.clone()));
        way
    }

    /// The rules that matched before the one that decided; `None`: of some it is not known whether they did.
    fn path(&mut self, walk: &Walk, names: &Names) -> Option<Arc<[PathStep]>> {
        let steps = walk.phases.iter().flat_map(|phase| {
            let base = phase.base;
            phase.steps.iter().map(move |step| (base, step))
        });
        let mut path = Vec::new();
        for (base, step) in steps {
            let verdict = match &step.result {
                walk::StepResult::Matched(verdict) => verdict,
                walk::StepResult::Missed(_) => continue,
                walk::StepResult::Unknown(..) => return None,
            };
            if walk.end.decision == Decision::Rule(step.rule) && walk.end.base == Some(base) {
                continue;
            }
            let rule = self.rule(step.rule, Some(base), names)?;
            path.push(PathStep {
                table: Arc::clone(&rule.table),
                chain: Arc::clone(&rule.chain),
                number: rule.number,
                handle: rule.handle,
                verdict: verdict.as_str().into(),
            });
        }
        Some(path.into())
    }

    fn phase(&mut self, phase: &walk::Phase, names: &Names) -> Option<Phase> {
        let (table, family, engine) = self.table(phase.base.table)?;
        let chain = self.chain_name(phase.base)?;
        let steps = phase.steps.iter().map(|step| {
            Some(Step {
                rule: self.rule(step.rule, Some(phase.base), names)?,
                result: match &step.result {
                    walk::StepResult::Matched(verdict) => StepResult::Matched {
                        verdict: verdict.as_str().into(),
                    },
                    walk::StepResult::Missed(words) => StepResult::Missed {
                        why: words.to_string().into(),
                    },
                    walk::StepResult::Unknown(reason, _) => StepResult::Unknown {
                        why: reason.text.as_ref().into(),
                    },
                },
            })
        });
        Some(Phase {
            engine,
            family,
            table,
            chain,
            priority: phase.priority,
            steps: steps.collect::<Option<_>>()?,
            tried: phase.tried,
            verdict: phase.end.as_str().into(),
        })
    }

    fn named(&mut self, end: &End, names: &Names) -> Option<Named> {
        let base = end.base;
        let (what, table) = match end.decision {
            Decision::Rule(id) => (Candidate::Rule(self.rule(id, base, names)?), id.chain.table),
            Decision::Policy(id) => (Candidate::Policy(self.policy(id)?), id.table),
            Decision::Passed => return None,
        };
        let (_, _, engine) = self.table(table)?;
        Some(Named {
            what,
            engine,
            reject: end.fate == Fate::Reject,
            priority: base.and_then(|base| Some(self.nft_chain(base)?.1.base.as_ref()?.priority)),
        })
    }

    fn nft_chain(&self, id: ChainId) -> Option<(&model::Table, &model::Chain)> {
        let TableId::Nft(table) = id.table else {
            return None;
        };
        let table = self.nft.as_ref()?.tables.get(table as usize)?;
        Some((table, table.chains.get(id.chain as usize)?))
    }

    fn legacy_chain(&self, id: ChainId) -> Option<(&Table, &xtables::legacy::Chain)> {
        let TableId::Legacy(table) = id.table else {
            return None;
        };
        let table = self.legacy.get(table as usize)?;
        Some((table, table.chains.get(id.chain as usize)?))
    }

    fn table(&self, id: TableId) -> Option<(Arc<str>, Family, Engine)> {
        match id {
            TableId::Nft(table) => {
                let table = self.nft.as_ref()?.tables.get(table as usize)?;
                let engine = match table.iptables {
                    true => Engine::IptablesNft,
                    false => Engine::Nftables,
                };
                Some((
                    table.name.as_str().into(),
                    rules::family(table.family),
                    engine,
                ))
            }
            TableId::Legacy(table) => {
                let table = self.legacy.get(table as usize)?;
                let family = legacy::family(table.family);
                Some((table.name.as_str().into(), family, Engine::IptablesLegacy))
            }
        }
    }

    fn chain_name(&self, id: ChainId) -> Option<Arc<str>> {
        let name = match id.table {
            TableId::Nft(_) => &self.nft_chain(id)?.1.name,
            TableId::Legacy(_) => &self.legacy_chain(id)?.1.name,
        };
        Some(name.as_str().into())
    }

    fn rule(&mut self, id: RuleId, base: Option<ChainId>, names: &Names) -> Option<Arc<RuleRef>> {
        if let Some(rule) = self.rules.get(&(id, base)) {
            return Some(Arc::clone(rule));
        }
        let index = id.rule as usize;
        let rule = Arc::new(match id.chain.table {
            TableId::Nft(_) => {
                let (table, chain) = self.nft_chain(id.chain)?;
                let base = base.and_then(|base| Some(self.nft_chain(base)?.1));
                rules::reference(table, chain, chain.rules.get(index)?, base, names)
            }
            TableId::Legacy(_) => {
                let (table, chain) = self.legacy_chain(id.chain)?;
                let base = base.and_then(|base| Some(self.legacy_chain(base)?.1));
                legacy::reference(table, chain, chain.rules.get(index)?, base, names)
            }
        });
        self.rules.insert((id, base), Arc::clone(&rule));
        Some(rule)
    }

    fn policy(&mut self, id: ChainId) -> Option<Arc<PolicyRef>> {
        if let Some(policy) = self.policies.get(&id) {
            return Some(Arc::clone(policy));
        }
        let policy = Arc::new(match id.table {
            TableId::Nft(_) => {
                let (table, chain) = self.nft_chain(id)?;
                rules::policy_reference(table, chain)
            }
            TableId::Legacy(_) => {
                let (table, chain) = self.legacy_chain(id)?;
                legacy::policy_reference(table, chain)
            }
        });
        self.policies.insert(id, Arc::clone(&policy));
        Some(policy)
    }

    /// What the kernel has named, in the program's terms; `None`: it is not in these rulesets.
    fn decision(&mut self, engine: Option<EngineKind>, exact: &Candidate) -> Option<Decision> {
        let address = match exact {
            Candidate::Rule(rule) => Arc::as_ptr(rule).addr(),
            Candidate::Policy(policy) => Arc::as_ptr(policy).addr(),
        };
        if let Some((_, decision)) = self.decisions.get(&address) {
            return *decision;
        }
        let legacy = engine == Some(EngineKind::Legacy);
        let decision = match exact {
            Candidate::Rule(rule) => {
                let chain = self.find(legacy, rule.family, &rule.table, &rule.chain);
                chain.and_then(|chain| {
                    let number = rule.number?.checked_sub(1)?;
                    Some(Decision::Rule(RuleId {
                        chain,
                        rule: number,
                    }))
                })
            }
            Candidate::Policy(policy) => self
                .find(legacy, policy.family, &policy.table, &policy.chain)
                .map(Decision::Policy),
        };
        if self.decisions.len() >= WAYS {
            self.decisions.clear();
        }
        self.decisions.insert(address, (exact.clone(), decision));
        decision
    }

    fn find(&self, legacy: bool, family: Family, table: &str, chain: &str) -> Option<ChainId> {
        if legacy {
            let is = |t: &Table| legacy::family(t.family) == family && t.name == table;
            let at = self.legacy.iter().position(is)?;
            let chains = &self.legacy.get(at)?.chains;
            return Some(ChainId {
                table: TableId::Legacy(at as u32),
                chain: chains.iter().position(|c| c.name == chain)? as u32,
            });
        }
        let tables = &self.nft.as_ref()?.tables;
        let is = |t: &model::Table| rules::family(t.family) == family && t.name == table;
        let at = tables.iter().position(is)?;
        let chains = &tables.get(at)?.chains;
        Some(ChainId {
            table: TableId::Nft(at as u32),
            chain: chains.iter().position(|c| c.name == chain)? as u32,
        })
    }
}
