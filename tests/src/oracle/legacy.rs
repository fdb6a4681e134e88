//! Legacy tables as they were loaded, in iptables-save syntax: which rule drops.

use std::collections::HashMap;

/// A chain: its policy and the target of each rule.
#[derive(Clone, Debug, Default)]
struct Chain {
    policy_drops: bool,
    /// What each rule does.
    rules: Vec<Target>,
}

/// What a rule does with what it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Drop,
    Reject,
    Other,
}

/// Family, table and chain.
type Place = (&'static str, String, String);

/// The legacy tables of a namespace.
#[derive(Clone, Debug, Default)]
pub struct Legacy {
    chains: HashMap<Place, Chain>,
}

impl Legacy {
    /// Adds what `iptables-legacy-restore` was given; the tables named in it are replaced.
    pub fn load(&mut self, family: &'static str, text: &str) {
        let mut table = String::new();
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            if let Some(name) = line.strip_prefix('*') {
                table = name.to_owned();
                self.chains
                    .retain(|key, _| key.0 != family || key.1 != table);
            } else if let Some(name) = words[0].strip_prefix(':') {
                let chain = Chain {
                    policy_drops: words.get(1) == Some(&"DROP"),
                    rules: Vec::new(),
                };
                self.chains
                    .insert((family, table.clone(), name.to_owned()), chain);
            } else if let ["-A", chain, ..] = words.as_slice() {
                let target = words
                    .iter()
                    .position(|w| *w == "-j")
                    .and_then(|at| words.get(at + 1));
                let target = match target {
                    Some(&"DROP") => Target::Drop,
                    Some(&"REJECT") => Target::Reject,
                    _ => Target::Other,
                };
                let key = (family, table.clone(), (*chain).to_owned());
                self.chains.entry(key).or_default().rules.push(target);
            }
        }
    }

    fn chain(&self, family: &'static str, table: &str, chain: &str) -> Option<&Chain> {
        self.chains
            .get(&(family, table.to_owned(), chain.to_owned()))
    }

    /// How many rules the chain has.
    pub fn rules(&self, family: &'static str, table: &str, chain: &str) -> u64 {
        self.chain(family, table, chain)
            .map_or(0, |c| c.rules.len() as u64)
    }

    /// Whether the rule drops.
    pub fn drops(&self, family: &'static str, table: &str, chain: &str, number: u64) -> bool {
        let index = usize::try_from(number).unwrap_or(0).wrapping_sub(1);
        let target = self
            .chain(family, table, chain)
            .and_then(|c| c.rules.get(index));
        target.is_some_and(|target| *target != Target::Other)
    }

    /// Whether the policy drops.
    pub fn policy_drops(&self, family: &'static str, table: &str, chain: &str) -> bool {
        self.chain(family, table, chain)
            .is_some_and(|c| c.policy_drops)
    }

    /// All that can drop: where, its number (0: the policy), whether it rejects.
    pub fn droppers(&self) -> Vec<(Place, u32, bool)> {
        let mut all = Vec::new();
        for (place, chain) in &self.chains {
            all.push((place.clone(), 0, false));
            for (number, target) in (1..).zip(&chain.rules) {
                if *target != Target::Other {
                    all.push((place.clone(), number, *target == Target::Reject));
                }
            }
        }
        all
    }
}
