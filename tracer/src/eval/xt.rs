//! xtables' matches and targets, of nf_tables rules (`nft_compat`) and of legacy tables alike.
//!
//! They are compiled once per generation ([`Matcher::new`], [`Effect`]), where fields get their numbers, and run for each packet.

use super::{
    field::{Field, Reason, Value},
    outcome::Words,
    packet::Packet,
    read::{Fields, Reader},
    world::World,
};
use crate::{
    ruleset::expr::Verdict,
    xtables::{Family, matches::Match, targets::Target},
};

/// What a match says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It holds.
    Match,
    /// It does not.
    Miss,
    /// It drops the packet by itself (`hotdrop`): a header is cut short, a fragment that no port can be read from.
    Drop,
    /// It cannot be told.
    Unknown(Reason),
}

/// Fields that only xtables' matches ask for, beside those of [`Field`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum XtField {
    /// Name of the bridge port that the packet came in by, 16 bytes.
    PhysinName,
    /// Name of the bridge port that it goes out by, 16 bytes.
    PhysoutName,
}

/// The value of such a field.
pub(super) fn load(field: XtField, packet: &Packet<'_>, _world: &World) -> Value {
    let _ = (field, packet);
    Value::Unknown(Reason::missing("not evaluated"))
}

/// Whether and where a rule's rest is evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// IPv4 or IPv6.
    pub family: Family,
    /// `NF_INET_*` hook; `None` in a chain that more than one base chain may call.
    pub hook: Option<u8>,
}

/// A match, compiled.
#[derive(Debug, Clone)]
pub struct Matcher {
    name: String,
}

impl Matcher {
    /// Compiles a match. `fields` numbers those that it will read.
    pub fn new(what: &Match, place: Place, fields: &mut Fields) -> Self {
        let _ = (place, fields);
        let name = match what {
            Match::Unknown { name, .. } => name.clone(),
            other => format!("{other:?}"),
        };
        Self { name }
    }

    /// Whether it holds.
    pub fn test(&self, reader: &mut Reader<'_>) -> Answer {
        let _ = reader;
        Answer::Unknown(Reason::new(
            false,
            format!("match {} is not evaluated", self.name),
        ))
    }

    /// For a match that does not hold: what it wanted and what the packet has, as an administrator says it.
    pub fn words(&self, reader: &mut Reader<'_>) -> Words {
        let _ = reader;
        Words {
            subject: self.name.clone(),
            wanted: String::new(),
            found: String::new(),
        }
    }
}

/// What a target does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// The next rule (`XT_CONTINUE`); what it changes of the packet it has told [`Reader::write`].
    Continue,
    /// This verdict. A REJECT is a drop: [`Action::rejects`] tells them apart.
    Verdict(Verdict),
    /// It cannot be told what it does.
    Unknown(Reason),
}

/// A target, compiled.
#[derive(Debug, Clone)]
pub struct Action {
    name: String,
}

impl Action {
    /// Compiles a target.
    pub fn new(what: &Target, place: Place, fields: &mut Fields) -> Self {
        let _ = (place, fields);
        let name = match what {
            Target::Unknown { name, .. } => name.clone(),
            other => format!("{other:?}"),
        };
        Self { name }
    }

    /// Runs it.
    pub fn run(&self, reader: &mut Reader<'_>) -> Effect {
        let _ = (reader, Field::Meta(0));
        Effect::Unknown(Reason::new(
            false,
            format!("target {} is not evaluated", self.name),
        ))
    }

    /// The fields that it may change, for [`Reader::write`].
    pub fn writes(&self) -> Vec<Field> {
        Vec::new()
    }

    /// Whether a drop by it answers the sender.
    pub fn rejects(&self) -> bool {
        self.name == "REJECT"
    }
}
