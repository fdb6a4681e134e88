//! Reading fields with three-valued answers: `Ok(true)` matches, `Ok(false)` does not, `Err` is whatever else.

use super::{
    super::{
        field::{Field, Reason, Value},
        outcome::Words,
        read::{Reader, Slot},
    },
    Answer,
};
use crate::{
    ruleset::expr::PayloadBase,
    xtables::{
        Family,
        info::{Cond, Span},
    },
};

/// What a test says.
pub(super) type Test = Result<bool, Answer>;

/// Information is missing.
pub(super) fn missing(text: &'static str) -> Answer {
    Answer::Unknown(Reason::missing(text))
}

/// The outcome depends on other packets.
pub(super) fn stateful(text: &'static str) -> Answer {
    Answer::Unknown(Reason::stateful(text))
}

/// The first 16 bytes of a field as a number, the first byte highest; a field that is not there answers `absent`.
pub(super) fn wide(reader: &mut Reader<'_>, slot: Slot, absent: &Answer) -> Result<u128, Answer> {
    match reader.wide(slot) {
        (Value::Bytes(_), wide) => Ok(wide),
        (Value::Break, _) => Err(absent.clone()),
        (Value::Unknown(reason), _) => Err(Answer::Unknown(reason.clone())),
    }
}

/// A number of the field's first `len` bytes in network order.
pub(super) fn number(
    reader: &mut Reader<'_>,
    slot: Slot,
    len: u32,
    absent: &Answer,
) -> Result<u128, Answer> {
    Ok(wide(reader, slot, absent)? >> (128 - 8 * len))
}

/// A number of 32 bits in host order, as meta and ct have them.
pub(super) fn host(reader: &mut Reader<'_>, slot: Slot, absent: &Answer) -> Result<u32, Answer> {
    let value = number(reader, slot, 4, absent)?;
    Ok(u32::from_ne_bytes((value as u32).to_be_bytes()))
}

/// The bytes of a field.
pub(super) fn bytes(
    reader: &mut Reader<'_>,
    field: Field,
    absent: Answer,
) -> Result<super::super::field::Bytes, Answer> {
    match reader.read(field) {
        Value::Bytes(bytes) => Ok(bytes),
        Value::Break => Err(absent),
        Value::Unknown(reason) => Err(Answer::Unknown(reason)),
    }
}

/// Bytes of the network header.
pub(super) fn network(offset: u32, len: u32) -> Field {
    Field::Payload {
        base: PayloadBase::Network,
        offset,
        len,
    }
}

/// The packet's source address.
pub(super) fn source(family: Family) -> Field {
    match family {
        Family::V4 => network(12, 4),
        Family::V6 => network(8, 16),
    }
}

/// The packet's destination address.
pub(super) fn destination(family: Family) -> Field {
    match family {
        Family::V4 => network(16, 4),
        Family::V6 => network(24, 16),
    }
}

/// Conditions that must all hold. One that does not decides, whatever is not known of the others.
#[derive(Default)]
pub(super) struct All {
    unknown: Option<Reason>,
}

impl All {
    /// One more; the error is the answer of the whole.
    pub(super) fn also(&mut self, test: Test) -> Result<(), Answer> {
        match test {
            Ok(true) => Ok(()),
            Ok(false) => Err(Answer::Miss),
            Err(Answer::Unknown(reason)) => {
                self.unknown.get_or_insert(reason);
                Ok(())
            }
            // Whether it comes to that is not known.
            Err(other) => match self.unknown.take() {
                Some(reason) => Err(Answer::Unknown(reason)),
                None => Err(other),
            },
        }
    }

    /// The answer when there are no more.
    pub(super) fn end(self) -> Test {
        match self.unknown {
            None => Ok(true),
            Some(reason) => Err(Answer::Unknown(reason)),
        }
    }
}

/// Words for what was wanted and found.
pub(super) fn words(
    subject: impl Into<String>,
    wanted: impl Into<String>,
    found: impl Into<String>,
) -> Words {
    Words {
        subject: subject.into(),
        wanted: wanted.into(),
        found: found.into(),
    }
}

/// `! ` where a condition is turned round.
pub(super) fn not(inverted: bool) -> &'static str {
    if inverted { "! " } else { "" }
}

/// A range with its `!`.
pub(super) fn cond_span<T: std::fmt::Display + PartialEq>(cond: &Cond<Span<T>>) -> String {
    format!("{}{}", not(cond.inverted), cond.want)
}

/// What a packet has, or nothing.
pub(super) fn found<T: std::fmt::Display>(value: Result<T, Answer>) -> String {
    match value {
        Ok(value) => value.to_string(),
        Err(Answer::Unknown(_)) => "something unknown".to_owned(),
        Err(_) => String::new(),
    }
}
