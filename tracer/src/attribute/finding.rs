//! What is known of who dropped a packet, and how sure that is.

use std::sync::Arc;

use fwtrace_abi::Record;

use super::{
    by_conntrack::ByConntrack,
    evaluate::{Named, Opinion, Said, Way},
    legacy::Told,
    location::Locations,
    rules::Resolved,
};
use crate::event::{
    Candidate, Confidence, Doubt, Engine, Evidence, EvidenceSource, PolicyRef, RuleRef,
};

/// Who dropped a packet.
#[derive(Debug)]
pub(super) struct Finding {
    pub(super) engine: Engine,
    pub(super) rule: Option<Arc<RuleRef>>,
    pub(super) policy: Option<Arc<PolicyRef>>,
    pub(super) reject: bool,
    /// Priority of the base chain, of nf_tables.
    pub(super) priority: Option<i32>,
    pub(super) evidence: Evidence,
}

impl Finding {
    /// Only the engine is known, or not even that.
    pub(super) fn none(engine: Engine, locations: &Locations, record: &Record) -> Self {
        Self {
            engine,
            rule: None,
            policy: None,
            reject: false,
            priority: None,
            evidence: Evidence::engine(
                locations.symbol(record.location),
                locations.decided_by(record.location),
            ),
        }
    }

    /// Takes in what the kernel's stack says.
    pub(super) fn resolved(&mut self, resolved: Resolved) {
        if resolved.rule.is_some() || resolved.policy.is_some() {
            self.evidence = Evidence::exact(EvidenceSource::KernelStack);
        }
        self.rule = resolved.rule;
        self.policy = resolved.policy;
        self.reject = resolved.reject;
        self.priority = resolved.priority;
    }

    /// Takes in what the counters of legacy tables say.
    pub(super) fn told(&mut self, told: Told) {
        self.rule = told.rule;
        self.policy = told.policy;
        self.reject = told.reject;
        if let Some(evidence) = told.evidence {
            self.evidence = evidence;
        }
    }

    /// Takes in that conntrack did it, unless rules of ip_tables are candidates, too; gives the reason.
    pub(super) fn by_conntrack(
        &mut self,
        told: ByConntrack,
        locations: &Locations,
        record: &Record,
    ) -> Arc<str> {
        if !self.evidence.candidates.is_empty() {
            *self = Self::none(Engine::Other, locations, record);
            return "a rule of iptables-legacy or conntrack itself: both have counted a packet"
                .into();
        }
        self.engine = Engine::Conntrack;
        self.evidence = Evidence {
            confidence: told.confidence,
            ..Evidence::exact(EvidenceSource::KernelCounters)
        };
        told.why
    }

    /// The rule or policy that the kernel has named.
    pub(super) fn exact(&self) -> Option<Candidate> {
        let rule = self.rule.clone().map(Candidate::Rule);
        rule.or_else(|| self.policy.clone().map(Candidate::Policy))
    }

    /// Takes in what the evaluator says.
    pub(super) fn consider(&mut self, opinion: Opinion) -> Way {
        if self.rule.is_some() || self.policy.is_some() {
            self.evidence.disagreement = opinion.disagreement;
            return opinion.way;
        }
        let doubtful = self.evidence.confidence == Confidence::Ambiguous;
        let candidates = std::mem::take(&mut self.evidence.candidates);
        let possible = |named: &Named| !doubtful || candidates.contains(&named.what);
        match opinion.answer {
            Said::Computed(named) if possible(&named) => {
                self.evidence = computed(Confidence::Computed, Vec::new(), Vec::new());
                self.engine = named.engine;
                self.reject = named.reject;
                self.priority = named.priority;
                match named.what {
                    Candidate::Rule(rule) => self.rule = Some(rule),
                    Candidate::Policy(policy) => self.policy = Some(policy),
                }
                return opinion.way;
            }
            Said::Ambiguous(named, doubts) if !doubtful => {
                if let Some(first) = named.first()
                    && named.iter().all(|other| other.engine == first.engine)
                {
                    self.engine = first.engine;
                }
                let candidates = named.into_iter().map(|named| named.what).collect();
                let confidence = Confidence::of_several(&doubts);
                self.evidence = computed(confidence, candidates, doubts);
            }
            _ => self.evidence.candidates = candidates,
        }
        Way::default()
    }
}

fn computed(confidence: Confidence, candidates: Vec<Candidate>, doubts: Vec<Doubt>) -> Evidence {
    Evidence {
        confidence,
        candidates,
        doubts,
        ..Evidence::exact(EvidenceSource::Evaluator)
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;
    use crate::{event::DoubtKind, kernel::symbols::Symbols};

    #[test]
    fn with_candidates_of_ip_tables_nobody_knows_that_it_was_conntrack() {
        let locations = Locations::new(Symbols::default(), &[]);
        let record = Record::new_zeroed();
        let told = || ByConntrack {
            confidence: Confidence::Exact,
            why: "table full".into(),
        };
        let mut alone = Finding::none(Engine::Other, &locations, &record);
        let why = alone.by_conntrack(told(), &locations, &record);
        assert_eq!((alone.engine, &*why), (Engine::Conntrack, "table full"));
        assert_eq!(
            alone.evidence,
            Evidence::exact(EvidenceSource::KernelCounters)
        );
        let mut both = Finding::none(Engine::IptablesLegacy, &locations, &record);
        both.evidence.confidence = Confidence::Ambiguous;
        both.evidence.candidates = vec![policy("raw")];
        let why = both.by_conntrack(told(), &locations, &record);
        assert_eq!(both.engine, Engine::Other);
        assert_eq!(both.evidence.confidence, Confidence::Engine);
        assert!(why.contains("or conntrack itself"), "{why}");
    }

    fn policy(table: &str) -> Candidate {
        Candidate::Policy(Arc::new(PolicyRef {
            family: crate::event::Family::Ip,
            table: table.into(),
            chain: "in".into(),
            rules: Some(0),
            none_matched: None,
        }))
    }

    #[test]
    fn one_of_several_is_ambiguous_for_a_state_and_else_unknown() {
        let locations = Locations::new(Symbols::default(), &[]);
        let candidates = vec![policy("a"), policy("b")];
        let considered = |kinds: &[DoubtKind]| {
            let named = candidates.iter().map(|what| Named {
                what: what.clone(),
                engine: Engine::Nftables,
                reject: false,
                priority: Some(0),
            });
            let doubt = |kind: &DoubtKind| Doubt {
                kind: *kind,
                text: kind.as_str().into(),
            };
            let doubts: Vec<Doubt> = kinds.iter().map(doubt).collect();
            let mut finding = Finding::none(Engine::Other, &locations, &Record::new_zeroed());
            finding.consider(Opinion {
                answer: Said::Ambiguous(named.collect(), doubts.clone()),
                way: Way::default(),
                disagreement: None,
            });
            assert_eq!(finding.engine, Engine::Nftables);
            assert_eq!(finding.exact(), None);
            assert_eq!(finding.evidence.source, EvidenceSource::Evaluator);
            assert_eq!(finding.evidence.candidates, candidates);
            assert_eq!(finding.evidence.doubts, doubts);
            finding.evidence.confidence
        };
        use DoubtKind::{Missing, Order, Rewritten, State};
        assert_eq!(considered(&[State]), Confidence::Ambiguous);
        assert_eq!(considered(&[Rewritten, State]), Confidence::Ambiguous);
        for kind in [Rewritten, Order, Missing] {
            assert_eq!(considered(&[kind]), Confidence::Unknown, "{kind:?}");
        }
    }
}
