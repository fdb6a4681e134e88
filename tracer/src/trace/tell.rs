//! A drop and its trace -> what the event says.

use std::sync::Arc;

use fwtrace_abi::{RULE_NONE, RULE_POLICY, RULE_RULE, Record};

use super::{
    assemble::{Did, Dropped},
    join::Found,
    lines::Logged,
    resolve,
};
use crate::{
    attribute::{Place, legacy},
    event::{
        Candidate, Confidence, DropEvent, Engine, Evidence, EvidenceSource, Family, PathStep,
        RuleRef, Verdict,
    },
    ruleset::{
        model::{self, Ruleset},
        snapshot::Snapshots,
    },
};

/// What a trace adds to an event.
#[derive(Debug, Clone)]
pub enum Told {
    /// nf_tables: the rule is in the record that is attributed.
    Nftables {
        /// Everything that matched, the last one dropping.
        path: Arc<[PathStep]>,
        /// For a rule that is in no ruleset that was read.
        unread: Option<Arc<RuleRef>>,
    },
    /// ip_tables or ip6_tables.
    Legacy {
        /// Where the packet came by, the last one dropping.
        path: Arc<[PathStep]>,
        /// The rule, or the policy.
        what: Candidate,
    },
}

impl Told {
    /// What the trace tells; `None`: nothing, since the rule is in no table that is known.
    ///
    /// Where the kernel's stack has not named the rule of nf_tables, the trace does: it is put into `record` in its place.
    pub fn new(found: &Found, record: &mut Record, place: &mut Place<'_>) -> Option<Self> {
        match found {
            Found::Nftables(dropped) => Some(Self::nftables(dropped, record, place)),
            Found::Legacy(logged) => Self::legacy(logged, record, place),
        }
    }

    fn nftables(dropped: &Dropped, record: &mut Record, place: &mut Place<'_>) -> Self {
        let rulesets = place.rulesets.as_deref_mut();
        let ruleset = rulesets
            .map(|rulesets| ruleset(rulesets, record.generation))
            .unwrap_or_default();
        let mut unread = None;
        if !matches!(record.rule.kind, RULE_RULE | RULE_POLICY) {
            match resolve::evidence(dropped, &ruleset) {
                Some(evidence) => record.rule = evidence,
                None => {
                    record.rule.kind = RULE_NONE;
                    unread = unread_rule(dropped);
                }
            }
        }
        Self::Nftables {
            path: resolve::path(dropped, &ruleset),
            unread,
        }
    }

    fn legacy(logged: &Logged, record: &Record, place: &mut Place<'_>) -> Option<Self> {
        let tables = place.legacy.as_deref_mut()?;
        if let Err(error) = tables.refresh() {
            log::warn!("{error}");
        }
        let table = |name: &str| Some(tables.at(logged.family(), name, record.time)?.table);
        let last = logged.entries.last()?;
        let within = table(&last.table)?;
        let (chain, rule) = resolve::legacy_rule(last, &within)?;
        let what = match rule {
            Some(at) => {
                let rule = chain.rules.get(at)?;
                let base = within.on_hook(last.hook);
                Candidate::Rule(Arc::new(legacy::reference(
                    &within,
                    chain,
                    rule,
                    base,
                    place.names,
                )))
            }
            None => Candidate::Policy(Arc::new(legacy::policy_reference(&within, chain))),
        };
        Some(Self::Legacy {
            path: resolve::legacy_path(logged, table),
            what,
        })
    }

    /// Completes the event.
    pub fn tell(self, event: &mut DropEvent) {
        match self {
            Self::Nftables { path, unread } => {
                if unread.is_some() {
                    (event.rule, event.policy) = (unread, None);
                    (event.nearest_miss, event.walk) = (None, None);
                    event.engine = Engine::Nftables;
                }
                event.path = Some(path);
                if event.rule.is_none() && event.policy.is_none() {
                    return;
                }
            }
            Self::Legacy { path, what } => {
                if !agrees(event, &what) {
                    return;
                }
                let rejects = path.last().is_some_and(|step| &*step.verdict == "reject");
                event.verdict = match rejects {
                    true => Verdict::Reject,
                    false => Verdict::Drop,
                };
                event.path = Some(path);
                event.engine = Engine::IptablesLegacy;
                (event.rule, event.policy) = match what {
                    Candidate::Rule(rule) => (Some(rule), None),
                    Candidate::Policy(policy) => (None, Some(policy)),
                };
            }
        }
        let disagreement = event.evidence.disagreement.take();
        event.evidence = Evidence {
            disagreement,
            ..Evidence::exact(EvidenceSource::Trace)
        };
    }
}

/// Whether the trace may have its way: what the event says so far is the same, or not the kernel's word. The evaluator's other opinion is
/// kept as a disagreement.
fn agrees(event: &mut DropEvent, what: &Candidate) -> bool {
    let rule = event.rule.clone().map(Candidate::Rule);
    let said = rule.or_else(|| event.policy.clone().map(Candidate::Policy));
    match (event.evidence.confidence, said) {
        (_, Some(said)) if place_of(&said) == place_of(what) => true,
        (Confidence::Exact, Some(_)) => {
            log::info!("a trace of ip_tables names another rule than the kernel's counters");
            false
        }
        (Confidence::Computed, Some(said)) => {
            event.evidence.disagreement = Some(vec![said]);
            (event.nearest_miss, event.walk) = (None, None);
            true
        }
        _ => true,
    }
}

/// What makes two descriptions one of the same rule or policy.
fn place_of(what: &Candidate) -> (Family, Arc<str>, Arc<str>, Option<u32>) {
    match what {
        Candidate::Rule(rule) => (
            rule.family,
            Arc::clone(&rule.table),
            Arc::clone(&rule.chain),
            rule.number,
        ),
        Candidate::Policy(policy) => (
            policy.family,
            Arc::clone(&policy.table),
            Arc::clone(&policy.chain),
            None,
        ),
    }
}

/// The ruleset in force in `generation`; the newest if that is not known.
fn ruleset(rulesets: &mut Snapshots, generation: u32) -> Arc<Ruleset> {
    let known = |rulesets: &Snapshots| {
        let snapshot = rulesets.history().at_generation(generation)?;
        Some(Arc::clone(&snapshot.ruleset))
    };
    if let Some(ruleset) = known(rulesets) {
        return ruleset;
    }
    if let Err(error) = rulesets.refresh() {
        log::warn!("cannot read the ruleset of a trace: {error}");
    }
    known(rulesets).unwrap_or_else(|| Arc::clone(&rulesets.newest().ruleset))
}

/// What the trace alone knows of a rule.
fn unread_rule(dropped: &Dropped) -> Option<Arc<RuleRef>> {
    let last = dropped.steps.last()?;
    let Did::Rule(handle, _) = last.did else {
        return None;
    };
    Some(Arc::new(RuleRef {
        family: match last.family {
            model::Family::Ip => Family::Ip,
            model::Family::Ip6 => Family::Ip6,
            model::Family::Arp => Family::Arp,
            model::Family::Bridge => Family::Bridge,
            model::Family::Netdev => Family::Netdev,
            model::Family::Inet | model::Family::Other(_) => Family::Inet,
        },
        table: last.table.as_str().into(),
        chain: last.chain.as_str().into(),
        base_chain: Some(dropped.base_chain.as_str().into()),
        number: None,
        handle: Some(handle),
        text: None,
        comment: None,
        gone: true,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{PolicyRef, tests::drop_event};

    fn rule(number: u32) -> Candidate {
        Candidate::Rule(Arc::new(RuleRef {
            family: Family::Ip,
            table: "filter".into(),
            chain: "INPUT".into(),
            base_chain: Some("INPUT".into()),
            number: Some(number),
            handle: None,
            text: None,
            comment: None,
            gone: false,
        }))
    }

    fn policy() -> Candidate {
        Candidate::Policy(Arc::new(PolicyRef {
            family: Family::Ip,
            table: "filter".into(),
            chain: "INPUT".into(),
            rules: Some(3),
            none_matched: None,
        }))
    }

    fn step(verdict: &str) -> Arc<[PathStep]> {
        Arc::new([PathStep {
            table: "filter".into(),
            chain: "INPUT".into(),
            number: Some(2),
            handle: None,
            verdict: verdict.into(),
        }])
    }

    fn told(what: Candidate, verdict: &str) -> Told {
        Told::Legacy {
            path: step(verdict),
            what,
        }
    }

    /// An event that says so far that it was `what`.
    fn event(what: Option<Candidate>, confidence: Confidence) -> DropEvent {
        let mut event = drop_event();
        (event.path, event.rule) = (None, None);
        event.engine = Engine::IptablesLegacy;
        event.evidence = Evidence::exact(EvidenceSource::KernelCounters);
        event.evidence.confidence = confidence;
        match what {
            Some(Candidate::Rule(rule)) => event.rule = Some(rule),
            Some(Candidate::Policy(policy)) => event.policy = Some(policy),
            None => {}
        }
        event
    }

    fn said(event: &DropEvent) -> Option<Candidate> {
        let rule = event.rule.clone().map(Candidate::Rule);
        rule.or_else(|| event.policy.clone().map(Candidate::Policy))
    }

    #[test]
    fn a_trace_completes_what_is_not_known() {
        for confidence in [
            Confidence::Engine,
            Confidence::Ambiguous,
            Confidence::Unknown,
        ] {
            let mut event = event(None, confidence);
            event.evidence.candidates = vec![rule(1), rule(2)];
            told(rule(2), "reject").tell(&mut event);
            assert_eq!(said(&event), Some(rule(2)));
            assert_eq!(event.evidence, Evidence::exact(EvidenceSource::Trace));
            assert_eq!(event.verdict, Verdict::Reject);
            assert_eq!(event.path, Some(step("reject")));
        }
        let mut event = event(None, Confidence::Engine);
        told(policy(), "policy drop").tell(&mut event);
        assert_eq!(said(&event), Some(policy()));
    }

    #[test]
    fn the_counters_have_the_last_word_and_the_evaluator_has_not() {
        let mut same = event(Some(rule(2)), Confidence::Exact);
        told(rule(2), "drop").tell(&mut same);
        assert_eq!(same.evidence, Evidence::exact(EvidenceSource::Trace));
        for other in [rule(1), policy()] {
            let before = event(Some(other.clone()), Confidence::Exact);
            let mut after = before.clone();
            told(rule(2), "drop").tell(&mut after);
            assert_eq!(after, before);

            let mut computed = event(Some(other.clone()), Confidence::Computed);
            told(rule(2), "drop").tell(&mut computed);
            assert_eq!(said(&computed), Some(rule(2)));
            assert_eq!(computed.evidence.source, EvidenceSource::Trace);
            assert_eq!(computed.evidence.disagreement, Some(vec![other]));
        }
    }

    #[test]
    fn a_rule_that_nobody_has_read_has_its_handle() {
        let Candidate::Rule(unread) = rule(2) else {
            panic!("no rule")
        };
        let mut event = event(Some(policy()), Confidence::Computed);
        let told = Told::Nftables {
            path: step("drop"),
            unread: Some(unread),
        };
        told.tell(&mut event);
        assert_eq!(said(&event), Some(rule(2)));
        assert_eq!(event.engine, Engine::Nftables);
        assert_eq!(event.evidence, Evidence::exact(EvidenceSource::Trace));
    }
}
