//! Legacy drops by the rules' counters: the kernel's word where TRACE lines go to fwtrace.

use std::collections::HashMap;

use anyhow::Result;
use fwtrace::event::{DropEvent, Engine};

use crate::netns::Netns;
use crate::oracle::compare::{Answer, Grade, Rules, is_hotdrop};
use crate::oracle::cut::Cut;
use crate::oracle::legacy::Legacy;

/// Family, table, chain, and the rule's number; 0 is the policy.
type Place = (String, String, String, u32);

/// What each rule and policy has counted.
#[derive(Clone, Debug, Default)]
pub struct Tally(HashMap<Place, u64>);

impl Tally {
    /// Reads the counters of a namespace.
    ///
    /// # Errors
    /// iptables fails.
    pub fn read(ns: &Netns) -> Result<Self> {
        let mut tally = Self::default();
        tally.add("ip", &ns.command(&["iptables-legacy-save", "-c"], "")?);
        tally.add("ip6", &ns.command(&["ip6tables-legacy-save", "-c"], "")?);
        Ok(tally)
    }

    fn add(&mut self, family: &str, text: &str) {
        let mut table = "";
        let mut numbers: HashMap<&str, u32> = HashMap::new();
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let place = match words.as_slice() {
                [name, ..] if name.starts_with('*') => {
                    table = &name[1..];
                    numbers.clear();
                    continue;
                }
                [chain, _, counters] if chain.starts_with(':') => (&chain[1..], 0, *counters),
                [counters, "-A", chain, ..] => {
                    let number = numbers.entry(chain).or_default();
                    *number += 1;
                    (*chain, *number, *counters)
                }
                _ => continue,
            };
            let (chain, number, counters) = place;
            let packets = counters.trim_start_matches('[').split(':').next();
            let packets = packets.and_then(|p| p.parse().ok()).unwrap_or(0);
            let place = (family.into(), table.into(), chain.into(), number);
            self.0.insert(place, packets);
        }
    }

    /// Holds events of legacy rules against what those that drop have counted since `before`.
    /// Packets are not told apart: only how often a rule is named can be right or wrong.
    pub fn grade(&self, before: &Self, legacy: &Legacy, events: &[DropEvent]) -> Vec<Answer> {
        let mut named: HashMap<Place, Vec<&DropEvent>> = HashMap::new();
        for event in events {
            named.entry(place(event)).or_default().push(event);
        }
        let mut answers = Vec::new();
        let mut answer = |grade, why: &str, event: Option<&DropEvent>| {
            answers.push(Answer {
                grade,
                engine: Engine::IptablesLegacy,
                source: event.map(|e| e.evidence.source),
                why: vec![why.to_owned()],
                truth: None,
                event: event.cloned(),
            });
        };
        for (at, number, rule) in legacy.all() {
            let place = (at.0.to_owned(), at.1, at.2.clone(), number);
            let policy = number == 0 && legacy.policy_drops(at.0, &place.1, &at.2);
            if !policy && !rule.drops {
                continue;
            }
            let count = |tally: &Self| tally.0.get(&place).copied().unwrap_or(0);
            let counted = usize::try_from(count(self) - count(before)).unwrap_or(0);
            let events = named.remove(&place).unwrap_or_default();
            for (index, event) in events.iter().enumerate() {
                if index < counted {
                    answer(Grade::Right, "", Some(event));
                } else {
                    answer(
                        Grade::Wrong,
                        "the rule has counted fewer packets",
                        Some(event),
                    );
                }
            }
            for _ in events.len()..counted {
                answer(
                    Grade::Wrong,
                    &format!("{place:?} has counted a packet more"),
                    None,
                );
            }
        }
        for event in named.into_values().flatten() {
            answer(Grade::Wrong, "the rule does not drop", Some(event));
        }
        answers
    }
}

/// The rule or policy that an event names.
fn place(event: &DropEvent) -> Place {
    if let Some(rule) = &event.rule {
        let number = rule.number.unwrap_or(u32::MAX);
        return (
            rule.family.as_str().into(),
            rule.table.to_string(),
            rule.chain.to_string(),
            number,
        );
    }
    let policy = event.policy.as_ref();
    policy.map_or_else(Place::default, |policy| {
        (
            policy.family.as_str().into(),
            policy.table.to_string(),
            policy.chain.to_string(),
            0,
        )
    })
}

/// Whether a legacy rule or policy is named.
pub fn is_named(event: &DropEvent) -> bool {
    let named = event.rule.is_some() || event.policy.is_some();
    event.engine == Engine::IptablesLegacy && named
}

/// Whether a legacy rule or policy is named that must have counted.
pub fn must_have_counted(event: &DropEvent, rules: &Rules, cut: &Cut) -> bool {
    is_named(event) && !is_hotdrop(event, rules, cut)
}
