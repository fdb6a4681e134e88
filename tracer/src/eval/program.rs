//! Rulesets compiled once per generation.

use super::{
    field::Reason, outcome::Outcome, packet::Packet, read::Fields, walk::Walk, world::World,
};
use crate::{
    ruleset::{model::Ruleset, render::Names},
    xtables::legacy::Table,
};

/// The rulesets of a network namespace at one moment, ready to be evaluated.
#[derive(Debug, Clone, Default)]
pub struct Program {
    fields: Fields,
}

impl Program {
    /// Compiles the nf_tables ruleset and the legacy tables of a network namespace.
    pub fn new(nft: Option<&Ruleset>, legacy: &[Table]) -> Self {
        let _ = (nft, legacy);
        Self::default()
    }

    /// Every end that the packet's walk through its hook can have.
    pub fn evaluate(&self, packet: &Packet<'_>, world: &World) -> Outcome {
        let _ = (packet, world, &self.fields);
        Outcome {
            ends: Vec::new(),
            incomplete: Some(Reason::missing("not evaluated")),
        }
    }

    /// The walk step by step, to the end that is known of it or to the first it can have, with the nearest miss.
    pub fn explain(&self, packet: &Packet<'_>, world: &World, names: &Names) -> Option<Walk> {
        let _ = (packet, world, names);
        None
    }
}
