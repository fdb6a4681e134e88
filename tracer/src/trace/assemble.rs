//! Messages of nf_tables traces -> the whole way of a packet that nf_tables dropped.

use std::collections::HashMap;

use super::{headers::Headers, table};
use crate::{
    netlink::nftrace::{Kind, Trace},
    ruleset::{expr::Verdict, model::Family},
};

/// Packets whose way is followed at a time. One that is accepted in its last hook is never told of again.
const FOLLOWED: usize = 1024;
/// Steps that are kept of one packet; the first ones go when there are more.
const STEPS: usize = 256;

/// A rule that matched, or a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The table's family.
    pub family: Family,
    /// Its name.
    pub table: String,
    /// The chain of the rule; the base chain of the policy.
    pub chain: String,
    /// What decided, and how.
    pub did: Did,
}

/// What decided, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Did {
    /// The rule with this handle.
    Rule(u64, Verdict),
    /// The base chain's policy; whether it drops.
    Policy(bool),
}

/// A packet that nf_tables dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropped {
    /// As they were when the base chain that drops began.
    pub headers: Headers,
    /// The base chain that drops.
    pub base_chain: String,
    /// Everything that matched, the last one dropping.
    pub steps: Vec<Step>,
}

/// A packet on its way.
#[derive(Debug)]
struct Following {
    headers: Headers,
    base: (Family, String, String),
    passed: Vec<(Family, String, String)>,
    steps: Vec<Step>,
    /// Number of the last message about it.
    last: u64,
}

/// Follows the packets of one network namespace by their trace ids.
#[derive(Debug, Default)]
pub struct Assembler {
    following: HashMap<u32, Following>,
    messages: u64,
}

impl Assembler {
    /// Takes a message; gives the packet if that is the end of it.
    pub fn feed(&mut self, trace: Trace) -> Option<Dropped> {
        self.messages += 1;
        let drops = trace.drops();
        if let Some(headers) = &trace.headers {
            self.enter(&trace, Headers::of_trace(headers)?);
        }
        let following = self.following.get_mut(&trace.id)?;
        following.last = self.messages;
        let did = match (trace.kind, trace.rule, trace.verdict) {
            (Kind::Policy, _, _) => Did::Policy(drops),
            (Kind::Rule | Kind::Return, Some(handle), Some(verdict)) => Did::Rule(handle, verdict),
            // The end of a chain.
            _ => return None,
        };
        // What sets the trace bit is not on the packet's way.
        if !table::is_ours(trace.family, &trace.table) {
            if following.steps.len() >= STEPS {
                following.steps.remove(0);
            }
            following.steps.push(Step {
                family: trace.family,
                table: trace.table,
                chain: trace.chain,
                did,
            });
        }
        if !drops {
            return None;
        }
        let following = self.following.remove(&trace.id)?;
        Some(Dropped {
            headers: following.headers,
            base_chain: following.base.2,
            steps: following.steps,
        })
    }

    /// A base chain begins to look at the packet.
    fn enter(&mut self, trace: &Trace, headers: Headers) {
        let base = (trace.family, trace.table.clone(), trace.chain.clone());
        if !self.following.contains_key(&trace.id) && self.following.len() >= FOLLOWED {
            self.forget();
        }
        let following = self.following.entry(trace.id).or_insert_with(|| Following {
            headers: headers.clone(),
            base: base.clone(),
            passed: Vec::new(),
            steps: Vec::new(),
            last: 0,
        });
        // Ids are used again: a packet passes a base chain once.
        if following.passed.contains(&base) {
            following.passed.clear();
            following.steps.clear();
        }
        following.passed.push(base.clone());
        following.headers = headers;
        following.base = base;
    }

    /// Lets go of the half that was heard of least recently.
    fn forget(&mut self) {
        let mut last: Vec<u64> = self.following.values().map(|f| f.last).collect();
        last.sort_unstable();
        let middle = last.get(last.len() / 2).copied().unwrap_or(0);
        self.following.retain(|_, f| f.last > middle);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::nftrace;

    fn packet(id: u8) -> nftrace::Headers {
        nftrace::Headers {
            network: [
                vec![0x45, 0, 0, 28, 0, id, 0, 0, 64, 17, 0, 0],
                vec![10, 0, 0, 1, 10, 0, 0, 2],
            ]
            .concat(),
            transport: vec![0, 1, 0, 2, 0, 8, 0, 0],
            ..nftrace::Headers::default()
        }
    }

    fn message(id: u32, table: &str, chain: &str, first: bool) -> Trace {
        Trace {
            family: Family::Inet,
            nfproto: Some(Family::Ip),
            id,
            kind: Kind::Rule,
            table: table.to_owned(),
            chain: chain.to_owned(),
            rule: None,
            verdict: None,
            policy: None,
            mark: 0,
            headers: first.then(|| packet(u8::try_from(id).unwrap())),
            connection: None,
        }
    }

    fn verdict(code: i32, chain: Option<&str>) -> Verdict {
        Verdict {
            code,
            chain: chain.map(str::to_owned),
        }
    }

    fn rule(id: u32, chain: &str, first: bool, handle: u64, code: i32, to: Option<&str>) -> Trace {
        Trace {
            rule: Some(handle),
            verdict: Some(verdict(code, to)),
            ..message(id, "t", chain, first)
        }
    }

    fn end(id: u32, chain: &str, kind: Kind) -> Trace {
        Trace {
            kind,
            verdict: Some(verdict(Verdict::CONTINUE, None)),
            ..message(id, "t", chain, false)
        }
    }

    fn policy(id: u32, chain: &str, first: bool, policy: u32) -> Trace {
        Trace {
            kind: Kind::Policy,
            policy: Some(policy),
            ..message(id, "t", chain, first)
        }
    }

    fn did(dropped: &Dropped) -> Vec<(&str, &Did)> {
        let steps = dropped.steps.iter();
        steps.map(|step| (&*step.chain, &step.did)).collect()
    }

    #[test]
    fn all_hooks_of_a_packet_are_one_way() {
        let mut all = Assembler::default();
        let own = Trace {
            rule: Some(3),
            verdict: Some(verdict(Verdict::CONTINUE, None)),
            ..message(1, "fwtrace", "trace", true)
        };
        assert_eq!(all.feed(own), None);
        assert_eq!(
            all.feed(rule(1, "in", true, 7, Verdict::JUMP, Some("sub"))),
            None
        );
        // Another packet in between.
        assert_eq!(
            all.feed(rule(2, "in", true, 6, Verdict::CONTINUE, None)),
            None
        );
        let dropped = all
            .feed(rule(1, "sub", false, 4, Verdict::DROP, None))
            .unwrap();
        assert_eq!(
            did(&dropped),
            [
                ("in", &Did::Rule(7, verdict(Verdict::JUMP, Some("sub")))),
                ("sub", &Did::Rule(4, verdict(Verdict::DROP, None))),
            ]
        );
        assert_eq!(dropped.base_chain, "in");
        assert_eq!(Some(dropped.headers), Headers::of_trace(&packet(1)));
        let dropped = all.feed(policy(2, "in", false, 0)).unwrap();
        assert_eq!(did(&dropped)[1], ("in", &Did::Policy(true)));
    }

    #[test]
    fn both_encodings_of_a_chains_end() {
        for kind in [Kind::Rule, Kind::Return] {
            let mut all = Assembler::default();
            all.feed(rule(1, "in", true, 7, Verdict::JUMP, Some("sub")));
            all.feed(rule(1, "sub", false, 5, Verdict::CONTINUE, None));
            assert_eq!(all.feed(end(1, "sub", kind)), None);
            assert_eq!(all.feed(end(1, "in", kind)), None);
            let dropped = all.feed(policy(1, "in", false, 0)).unwrap();
            let ways: Vec<&str> = did(&dropped).iter().map(|(chain, _)| *chain).collect();
            assert_eq!(ways, ["in", "sub", "in"]);
        }
    }

    #[test]
    fn a_policy_can_be_all_there_is() {
        let mut all = Assembler::default();
        let dropped = all.feed(policy(1, "in", true, 0)).unwrap();
        assert_eq!(did(&dropped), [("in", &Did::Policy(true))]);
        assert_eq!(all.feed(policy(1, "in", true, 1)), None);
    }

    #[test]
    fn an_id_that_is_used_again_is_another_packet() {
        let mut all = Assembler::default();
        all.feed(rule(1, "in", true, 7, Verdict::ACCEPT, None));
        all.feed(rule(1, "in", true, 8, Verdict::CONTINUE, None));
        let dropped = all
            .feed(rule(1, "in", false, 9, Verdict::DROP, None))
            .unwrap();
        assert_eq!(dropped.steps.len(), 2);
        // Of a packet whose beginning was lost nothing is known.
        assert_eq!(all.feed(rule(1, "in", false, 9, Verdict::DROP, None)), None);
    }

    #[test]
    fn memory_is_bounded() {
        let mut all = Assembler::default();
        for id in 0..10_000_u32 {
            let mut accepted = rule(1, "in", true, 7, Verdict::ACCEPT, None);
            accepted.id = id;
            all.feed(accepted);
            assert!(all.following.len() <= FOLLOWED);
        }
        assert!(all.following.contains_key(&9_999));
        let mut again = Assembler::default();
        again.feed(rule(1, "in", true, 1, Verdict::CONTINUE, None));
        for handle in 2..1000 {
            again.feed(rule(1, "in", false, handle, Verdict::CONTINUE, None));
        }
        let dropped = again
            .feed(rule(1, "in", false, 1000, Verdict::DROP, None))
            .unwrap();
        assert_eq!(dropped.steps.len(), STEPS);
    }
}
