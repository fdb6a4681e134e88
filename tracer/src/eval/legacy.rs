//! Rules of legacy tables as conditions that a [`super::program::Program`] can walk: chains, jumps, policies and forks are its own.

use super::{
    read::Fields,
    xt::{Action, Matcher, Place},
};
use crate::xtables::{
    Family,
    legacy::{Jump, Rule},
};

/// A rule, compiled.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// In the order of evaluation: those of `struct ipt_ip` first, one for each thing that a rule names, then its matches.
    pub conditions: Vec<Matcher>,
    /// The extension that the rule jumps to; plain verdicts and jumps to chains stay in [`Rule::jump`].
    pub action: Option<Action>,
}

/// Compiles a rule.
pub fn compile(rule: &Rule, family: Family, fields: &mut Fields) -> Compiled {
    let place = Place { family, hook: None };
    let mut conditions = Matcher::of_ip(&rule.ip, family, fields);
    let matches = rule.matches.iter();
    conditions.extend(matches.map(|what| Matcher::new(what, place, fields)));
    let action = match &rule.jump {
        Jump::Target(target) => Some(Action::new(target, place, fields)),
        _ => None,
    };
    Compiled { conditions, action }
}
