//! Legacy tables as they were loaded, in iptables-save syntax: which rule drops.

use std::collections::HashMap;

/// A chain: its policy and the target of each rule.
#[derive(Clone, Debug, Default)]
struct Chain {
    policy_drops: bool,
    /// What each rule does, and whether it looks at the transport header.
    rules: Vec<(Target, bool)>,
}

/// What a rule does with what it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Drop,
    Reject,
    Other,
}

/// What a rule or policy is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// It drops what it matches; not said of policies.
    pub drops: bool,
    /// And answers.
    pub rejects: bool,
    /// It looks at the transport header.
    pub needs_header: bool,
}

/// Family, table and chain.
pub type Place = (&'static str, String, String);

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
                let needs_header = words.contains(&"-p") || words.contains(&"-m");
                let rule = (target, needs_header);
                self.chains.entry(key).or_default().rules.push(rule);
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
        target.is_some_and(|target| target.0 != Target::Other)
    }

    /// Whether the policy drops.
    pub fn policy_drops(&self, family: &'static str, table: &str, chain: &str) -> bool {
        self.chain(family, table, chain)
            .is_some_and(|c| c.policy_drops)
    }

    /// All rules and policies: where, its number (0: the policy), what it does.
    pub fn all(&self) -> Vec<(Place, u32, Rule)> {
        let mut all = Vec::new();
        for (place, chain) in &self.chains {
            all.push((place.clone(), 0, Rule::default()));
            for (number, (target, needs_header)) in (1..).zip(&chain.rules) {
                let rule = Rule {
                    drops: *target != Target::Other,
                    rejects: *target == Target::Reject,
                    needs_header: *needs_header,
                };
                all.push((place.clone(), number, rule));
            }
        }
        all
    }
}
