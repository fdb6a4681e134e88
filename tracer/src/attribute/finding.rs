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

    /// Takes in that conntrack did it; gives the reason.
    pub(super) fn by_conntrack(&mut self, told: ByConntrack) -> Arc<str> {
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
                self.evidence = computed(Confidence::Ambiguous, candidates, doubts);
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
