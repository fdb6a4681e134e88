//! A drop and its trace -> what the event says.

use std::sync::Arc;

use fwtrace_abi::{RULE_NONE, RULE_POLICY, RULE_RULE, Record};

use super::{
    assemble::{Did, Dropped},
    lines::Logged,
    resolve,
};
use crate::{
    event::{
        Confidence, DropEvent, Engine, Evidence, EvidenceSource, Family, PathStep, PolicyRef,
        RuleRef, Verdict,
    },
    ruleset::{
        model::{self, Ruleset},
        snapshot::Snapshots,
    },
    xtables::{self, legacy},
};

/// What a trace adds to an event.
#[derive(Debug, Clone)]
pub enum Told {
    /// nf_tables: the rule is in the record that is attributed, see [`Told::nftables`].
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
        /// The rule.
        rule: Option<Arc<RuleRef>>,
        /// Or the policy.
        policy: Option<Arc<PolicyRef>>,
        /// The rule answers the sender.
        reject: bool,
    },
}

impl Told {
    /// What nf_tables' trace tells. Where the kernel's stack has not named the rule, the trace does: it is put into `record` in its place.
    pub fn nftables(
        dropped: &Dropped,
        record: &mut Record,
        rulesets: Option<&mut Snapshots>,
    ) -> Self {
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

    /// What ip_tables' lines tell; `table` gives the tables of the packet's family as they were then. `None`: the rule is in none of them.
    pub fn legacy(
        logged: &Logged,
        table: impl Fn(&str) -> Option<Arc<legacy::Table>>,
    ) -> Option<Self> {
        let last = logged.entries.last()?;
        let within = table(&last.table)?;
        let (chain, at) = resolve::legacy_rule(last, &within)?;
        let family = match logged.family() {
            xtables::Family::V4 => Family::Ip,
            xtables::Family::V6 => Family::Ip6,
        };
        let base = within.on_hook(last.hook);
        let path = resolve::legacy_path(logged, &table);
        let reject = path.last().is_some_and(|step| &*step.verdict == "reject");
        let (mut rule, mut policy) = (None, None);
        match at {
            Some(at) => {
                let found = chain.rules.get(at)?;
                rule = Some(Arc::new(RuleRef {
                    family,
                    table: last.table.as_str().into(),
                    chain: last.chain.as_str().into(),
                    base_chain: base.map(|chain| chain.name.as_str().into()),
                    number: Some(found.number),
                    handle: None,
                    text: None,
                    comment: None,
                    gone: false,
                }));
            }
            None => {
                policy = Some(Arc::new(PolicyRef {
                    family,
                    table: last.table.as_str().into(),
                    chain: last.chain.as_str().into(),
                    rules: u32::try_from(chain.rules.len()).ok(),
                    none_matched: None,
                }));
            }
        }
        Some(Self::Legacy {
            path,
            rule,
            policy,
            reject,
        })
    }

    /// Completes the event.
    pub fn tell(self, event: &mut DropEvent) {
        match self {
            Self::Nftables { path, unread } => {
                event.path = Some(path);
                if event.rule.is_none() && event.policy.is_none() {
                    if unread.is_none() {
                        return;
                    }
                    event.rule = unread;
                    event.engine = Engine::Nftables;
                }
            }
            Self::Legacy {
                path,
                rule,
                policy,
                reject,
            } => {
                let named = event.evidence.confidence == Confidence::Exact;
                if named && !same_place(event, rule.as_deref(), policy.as_deref()) {
                    log::info!(
                        "a trace of ip_tables names another rule than the kernel's counters"
                    );
                    return;
                }
                event.path = Some(path);
                event.engine = Engine::IptablesLegacy;
                if !named {
                    (event.rule, event.policy) = (rule, policy);
                }
                if reject {
                    event.verdict = Verdict::Reject;
                }
            }
        }
        let disagreement = event.evidence.disagreement.take();
        event.evidence = Evidence {
            disagreement,
            ..Evidence::exact(EvidenceSource::Trace)
        };
    }
}

/// Whether the event names this rule or policy already.
fn same_place(event: &DropEvent, rule: Option<&RuleRef>, policy: Option<&PolicyRef>) -> bool {
    let rule_of = |r: &RuleRef| (r.family, r.table.clone(), r.chain.clone(), r.number);
    let policy_of = |p: &PolicyRef| (p.family, p.table.clone(), p.chain.clone());
    event.rule.as_deref().map(rule_of) == rule.map(rule_of)
        && event.policy.as_deref().map(policy_of) == policy.map(policy_of)
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
