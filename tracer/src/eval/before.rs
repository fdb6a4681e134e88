//! What one way through the rules finds out about fields as they were before rules rewrote them.
//!
//! A dropped packet shows the last value only. On a way on which a field is read and written after that, what was read is one unknown value:
//! a test of it forks the way into one on which it holds and one on which it does not, and both remember it, so that no way is followed on
//! which the value would be two things at once. What was written last has to be what the packet shows: where it was made of the value read,
//! that tells something of it, too.

use super::{
    field::{Field, Value},
    load::{ct_key, meta_key},
    program::Program,
    read::Reader,
    write::{self, Kinds},
};
use crate::ruleset::expr::PayloadBase;

/// What may be asked about the unknown value of a field, its first byte the highest of the 16.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Question {
    of: Field,
    /// About the four bytes in the opposite order.
    swapped: bool,
    about: About,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum About {
    /// `low <= value & mask <= high`.
    Bits { mask: u128, low: u128, high: u128 },
    /// Whether its first `len` bytes are in the set of this number.
    In { set: u32, len: u8 },
}

/// A value made of an unknown one: `(value & and) ^ xor`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Derived {
    pub(super) and: u128,
    pub(super) xor: u128,
}

/// Whether an unknown value is what it is compared with.
#[derive(Debug, Clone, Copy)]
pub(super) enum Compared {
    Equals,
    Differs,
    /// If this is true.
    If(Question),
}

/// A field that is not known, but comes of what it was before it was written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Opened {
    pub(super) field: Field,
    /// Bytes.
    pub(super) len: u32,
    pub(super) value: Derived,
}

impl Opened {
    /// Whether `low <= field & mask <= high`. `None`: nothing can be asked about that.
    pub(super) fn within(&self, mask: u128, (low, high): (u128, u128)) -> Option<Compared> {
        let Derived { and, xor } = self.value;
        if mask & !ones(self.len) != 0 || (low != high && xor & mask != 0) {
            return None;
        }
        let flip = xor & mask;
        // Bounds that differ are not turned round: there is nothing to be.
        let (low, high) = (low ^ flip, if low == high { low ^ flip } else { high });
        if low == high && low & !(and & mask) != 0 {
            return Some(Compared::Differs);
        }
        if and & mask == 0 {
            return Some(match (low..=high).contains(&0) {
                true => Compared::Equals,
                false => Compared::Differs,
            });
        }
        Question::bits(self.field, and & mask, low, high).map(Compared::If)
    }

    /// The value after `(value & and) ^ xor`.
    pub(super) fn changed(&self, and: u128, xor: u128) -> Derived {
        Derived {
            and: self.value.and & and,
            xor: self.value.xor & and ^ xor,
        }
    }
}

/// What was found out, and what was made of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Before {
    known: Vec<(Question, bool)>,
    /// What was written to fields last, of those that are made of their own value before.
    written: Vec<(Field, Derived)>,
    /// Those whose value before stands among the writes, without a rule that wrote it.
    settled: Vec<Field>,
}

/// With the order of the first four bytes turned round.
fn swap(bits: u128) -> u128 {
    let word = (bits >> 96) as u32;
    u128::from(word.swap_bytes()) << 96
}

/// Ones in the first `len` of 16 bytes.
pub(super) fn ones(len: u32) -> u128 {
    match len {
        0 => 0,
        1..16 => u128::MAX << (128 - 8 * len),
        _ => u128::MAX,
    }
}

/// The value that a field is a part of: its bytes, and from which bit on they stand there.
fn whole(field: Field) -> Option<(Field, u32, u32)> {
    const HEADER: Field = Field::Payload {
        base: PayloadBase::Network,
        offset: 0,
        len: 16,
    };
    match field {
        Field::Meta(meta_key::MARK | meta_key::PRIORITY | meta_key::SECMARK)
        | Field::Ct {
            key: ct_key::MARK, ..
        } => Some((field, 4, 0)),
        Field::Payload {
            base: PayloadBase::Network,
            offset,
            len,
        } if offset.checked_add(len)? <= 16 => Some((HEADER, len, offset * 8)),
        _ => None,
    }
}

impl Question {
    /// Whether `low <= field & mask <= high`, all of them with the field's first byte highest. `None`: it is no field of which this can be asked.
    pub(super) fn bits(field: Field, mask: u128, low: u128, high: u128) -> Option<Self> {
        let (of, len, shift) = whole(field)?;
        // Registers have zeros behind a field.
        if mask & !ones(len) != 0 {
            return None;
        }
        let about = About::Bits {
            mask: mask.checked_shr(shift)?,
            low: low.checked_shr(shift)?,
            high: high.checked_shr(shift)?,
        };
        Some(Self {
            of,
            swapped: false,
            about,
        })
    }

    /// Whether the field is in a set.
    pub(super) fn member(field: Field, set: u32, len: u8) -> Option<Self> {
        let (of, whole, _) = whole(field)?;
        (of == field && u32::from(len) <= whole).then_some(Self {
            of,
            swapped: false,
            about: About::In { set, len },
        })
    }

    /// The same of the field with its four bytes in the opposite order.
    pub(super) fn swapped(mut self) -> Option<Self> {
        whole(self.of).filter(|(of, len, _)| *of == self.of && *len == 4)?;
        match &mut self.about {
            // In the field's own order it is the same as any other question for bits.
            About::Bits { mask, low, high } if low == high => {
                (*mask, *low, *high) = (swap(*mask), swap(*low), swap(*high));
            }
            _ => self.swapped = true,
        }
        Some(self)
    }

    /// The field and its value, if `true` for an answer leaves nothing unknown of it.
    pub(super) fn value(&self) -> Option<(Field, Value)> {
        let About::Bits { mask, low, high } = self.about else {
            return None;
        };
        let (_, len, _) = whole(self.of).filter(|(of, len, _)| *of == self.of && *len == 4)?;
        if low != high || mask != ones(len) {
            return None;
        }
        let bytes = low.to_be_bytes();
        Some((self.of, Value::bytes(bytes.get(..len as usize)?)))
    }
}

impl Before {
    /// How much was found out.
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    /// The bits that are known: which, and their values.
    fn bits(&self, of: Field) -> (u128, u128) {
        let mut known = (0, 0);
        for (question, holds) in &self.known {
            if let (true, About::Bits { mask, low, high }) = (*holds, question.about)
                && question.of == of
                && low == high
            {
                known = (known.0 | mask, known.1 | low);
            }
        }
        known
    }

    /// The answer that follows from the bits that are known.
    fn follows(&self, question: &Question, program: &Program) -> Option<bool> {
        let (mut known, mut bits) = self.bits(question.of);
        if question.swapped {
            (known, bits) = (swap(known), swap(bits));
        }
        match question.about {
            About::Bits { mask, low, high } if mask & !known == 0 => {
                Some((low..=high).contains(&(bits & mask)))
            }
            About::Bits { mask, low, high } => {
                (low == high && (bits ^ low) & mask & known != 0).then_some(false)
            }
            About::In { set, len } => {
                let all = ones(len.into());
                let key = bits.to_be_bytes();
                (all & !known == 0)
                    .then(|| program.contains(set, key.get(..usize::from(len))?))
                    .flatten()
            }
        }
    }

    /// The answer, if it is known.
    pub(super) fn answer(&self, question: &Question, program: &Program) -> Option<bool> {
        let asked = || self.known.iter().find(|(known, _)| known == question);
        self.follows(question, program)
            .or_else(|| asked().map(|(_, holds)| *holds))
    }

    /// Notes an answer; whether it does not contradict what was known.
    pub(super) fn learn(&mut self, question: Question, holds: bool, program: &Program) -> bool {
        self.known.push((question, holds));
        self.known
            .iter()
            .all(|(known, holds)| self.follows(known, program).is_none_or(|f| f == *holds))
    }

    /// Notes what a field was set to: `None` if that is known, or does not come of what the field was.
    pub(super) fn set(&mut self, field: Field, derived: Option<Derived>) {
        self.written.retain(|(written, _)| *written != field);
        self.written.extend(derived.map(|derived| (field, derived)));
    }

    /// A value that a field had before is known from now on, and with it what was made of it: nothing has to be asked about it any more.
    pub(super) fn settle(&mut self, reader: &mut Reader<'_>, field: Field, value: Value) {
        let mut writes = reader.writes().iter().rev();
        let last = writes.find(|(at, _)| write::kind(at) & write::kind(&field) != 0);
        let now = match (last, self.written(field)) {
            (None, _) => {
                self.settled.push(field);
                value
            }
            (Some((at, Value::Unknown(_))), Some(derived)) if *at == field => {
                let Value::Bytes(bytes) = value else { return };
                let made = (bytes.wide() & derived.and ^ derived.xor).to_be_bytes();
                Value::bytes(made.get(..bytes.as_slice().len()).unwrap_or_default())
            }
            _ => return,
        };
        self.set(field, None);
        reader.write(field, now);
    }

    /// How many of the writes of this kind no rule has made.
    pub(super) fn unwritten(&self, kind: Kinds) -> usize {
        let of_kind = |field: &&Field| write::kind(field) & kind != 0;
        self.settled.iter().filter(of_kind).count()
    }

    /// What a field was set to last, if it comes of what it was.
    pub(super) fn written(&self, field: Field) -> Option<Derived> {
        let mut written = self.written.iter();
        written
            .find(|(written, _)| *written == field)
            .map(|(_, derived)| *derived)
    }

    /// Whether what the field was last set to can be what the packet shows; what follows from that is learnt.
    pub(super) fn becomes(&mut self, field: Field, shown: u128, program: &Program) -> bool {
        let (Some(derived), Some((_, len, _))) = (self.written(field), whole(field)) else {
            return true;
        };
        let before = (shown ^ derived.xor) & ones(len);
        let mask = derived.and & ones(len);
        let question = Question::bits(field, mask, before & mask, before & mask);
        before & !mask == 0 && question.is_none_or(|question| self.learn(question, true, program))
    }
}
