//! The registers of a rule: what is known of each, and how one that holds a value that is not known depends on it.

use super::{
    before::{Compared, Derived, Opened, Question, ones},
    code::{Bits, Operand, Span, WORDS},
    field::{Field, Reason},
};

const BYTES: usize = WORDS * 4;

/// Register contents.
pub(super) struct Registers {
    bytes: [u8; BYTES],
    known: u16,
    /// In words that are not known but come of [`Self::open`]: the bits that do, which are to be turned round where `bytes` has ones.
    vague: [u8; BYTES],
    open: Option<Open>,
    why: Option<Reason>,
}

/// A field whose value is not known, in registers.
#[derive(Clone, Copy)]
struct Open {
    field: Field,
    /// The word that its first byte was loaded into.
    word: u8,
    /// The words that come of it, one bit each.
    words: u16,
    /// Its four bytes are in the opposite order.
    swapped: bool,
}

impl Registers {
    /// Of which nothing is known.
    pub(super) fn new() -> Self {
        Self {
            bytes: [0; BYTES],
            known: 0,
            vague: [0; BYTES],
            open: None,
            why: None,
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.known = 0;
        self.open = None;
        self.why = None;
    }

    /// Why something is not known.
    pub(super) fn why(&self) -> Reason {
        let nothing = Reason::missing("a register that nothing was loaded into");
        self.why.clone().unwrap_or(nothing)
    }

    pub(super) fn get(&self, span: Span) -> Result<&[u8], Reason> {
        if self.known & span.words() != span.words() {
            return Err(self.why());
        }
        Ok(self.bytes.get(span.bytes()).unwrap_or_default())
    }

    pub(super) fn set(&mut self, span: Span, bytes: &[u8]) {
        let start = usize::from(span.word) * 4;
        let whole = usize::from(span.len)
            .next_multiple_of(4)
            .max(bytes.len().next_multiple_of(4));
        if let Some(room) = self.bytes.get_mut(start..(start + whole).min(BYTES)) {
            room.fill(0);
            let len = bytes.len().min(room.len());
            room[..len].copy_from_slice(&bytes[..len]);
            let words = Span {
                word: span.word,
                len: room.len() as u8,
            };
            self.shut(words);
            self.known |= words.words();
        }
    }

    /// These words come of nothing that is not known any more.
    fn shut(&mut self, span: Span) {
        if let Some(open) = &mut self.open {
            open.words &= !span.words();
        }
    }

    pub(super) fn forget(&mut self, span: Span, why: Reason) {
        self.shut(span);
        self.known &= !span.words();
        self.why = Some(why);
    }

    /// A field was loaded whose value is not known, but what it is made of is to be followed.
    pub(super) fn load_open(&mut self, span: Span, opened: &Opened, why: Reason) {
        self.forget(span, why);
        let Opened { field, len, value } = *opened;
        let loaded = Span {
            word: span.word,
            len: len as u8,
        };
        let room = whole(loaded).bytes();
        let (and, xor) = (value.and.to_be_bytes(), value.xor.to_be_bytes());
        for (to, from) in [(&mut self.vague, and), (&mut self.bytes, xor)] {
            let from = from.iter().take(len as usize).chain(std::iter::repeat(&0));
            for (to, from) in to
                .get_mut(room.clone())
                .unwrap_or_default()
                .iter_mut()
                .zip(from)
            {
                *to = *from;
            }
        }
        self.open = Some(Open {
            field,
            word: span.word,
            words: loaded.words(),
            swapped: false,
        });
    }

    /// The field that these registers come of, where nothing else is unknown of them.
    fn opened(&self, span: Span) -> Option<Open> {
        let open = self.open?;
        let words = span.words();
        (words & open.words != 0 && words & !(open.words | self.known) == 0).then_some(open)
    }

    /// How a register comes of the field that was loaded into it.
    fn made(&self, span: Span) -> Option<(Open, Derived)> {
        let open = self.opened(span)?;
        if open.word != span.word || span.words() & !open.words != 0 {
            return None;
        }
        let wide = |bytes: &[u8; BYTES]| {
            let mut wide = [0; 16];
            let bytes = bytes.get(span.bytes())?;
            wide.get_mut(..bytes.len())?.copy_from_slice(bytes);
            Some(u128::from_be_bytes(wide))
        };
        let derived = Derived {
            and: wide(&self.vague)?,
            xor: wide(&self.bytes)?,
        };
        Some((open, derived))
    }

    /// How a register's value comes of what this field was.
    pub(super) fn derived(&self, span: Span, field: Field) -> Option<Derived> {
        self.made(span)
            .filter(|(open, _)| open.field == field && !open.swapped)
            .map(|(_, derived)| derived)
    }

    /// Whether a register that comes of an unknown value, perhaps with others that are known, is equal to these bytes.
    pub(super) fn compare(&self, span: Span, data: &[u8]) -> Option<Compared> {
        let open = self.opened(span)?;
        let start = usize::from(open.word) * 4;
        let (mut mask, mut want) = ([0; 16], [0; 16]);
        for (at, data) in span.bytes().zip(data) {
            let vague = match open.words >> (at / 4) & 1 {
                1 => *self.vague.get(at)?,
                _ => 0,
            };
            let differs = self.bytes.get(at)? ^ data;
            if differs & !vague != 0 {
                return Some(Compared::Differs);
            }
            if vague != 0 {
                let place = at.checked_sub(start)?;
                *mask.get_mut(place)? = vague;
                *want.get_mut(place)? = differs & vague;
            }
        }
        let (mask, want) = (u128::from_be_bytes(mask), u128::from_be_bytes(want));
        if mask == 0 {
            return Some(Compared::Equals);
        }
        let question = Question::bits(open.field, mask, want, want)?;
        Some(Compared::If(open.ask(question)?))
    }

    /// Whether a register that has an unknown value, perhaps masked, is within bounds (their first bytes highest).
    pub(super) fn within(&self, span: Span, low: u128, high: u128) -> Option<Question> {
        let (open, Derived { and, xor }) = self.made(span)?;
        let question = Question::bits(open.field, and, low, high)?;
        (xor == 0).then(|| open.ask(question)).flatten()
    }

    /// Whether a register that has an unknown value is in a set.
    pub(super) fn member(&self, set: u32, span: Span) -> Option<Question> {
        let (open, Derived { and, xor }) = self.made(span)?;
        let question = Question::member(open.field, set, span.len)?;
        (and == ones(span.len.into()) && xor == 0)
            .then(|| open.ask(question))
            .flatten()
    }

    pub(super) fn put(&mut self, to: Span, bytes: Result<Vec<u8>, Reason>) {
        match bytes {
            Ok(bytes) => self.set(to, &bytes),
            Err(reason) => self.forget(to, reason),
        }
    }

    /// Turns the bytes of units of this size round.
    pub(super) fn swap(&mut self, from: Span, to: Span, size: usize) {
        let words = from.words();
        if let Some(open) = &mut self.open
            && (open.words, open.word, from.word, to.word, size, from.len)
                == (words, to.word, to.word, to.word, 4, 4)
        {
            open.swapped = !open.swapped;
            for bytes in [&mut self.bytes, &mut self.vague] {
                bytes.get_mut(from.bytes()).unwrap_or_default().reverse();
            }
            return;
        }
        let swapped = self.get(from).map(|bytes| {
            let mut swapped = bytes.to_vec();
            for unit in swapped.chunks_exact_mut(size) {
                unit.reverse();
            }
            swapped
        });
        self.put(to, swapped);
    }

    /// A bitwise operation on such a value, in place; whether it was one.
    fn bitwise_open(&mut self, from: Span, to: Span, bits: &Bits) -> bool {
        let whole = whole(from);
        let Some(open) = self.opened(whole).filter(|_| from.word == to.word) else {
            return false;
        };
        if whole.words() & !open.words != 0 {
            return false;
        }
        // (value & and) ^ xor, byte by byte.
        let pairs: Vec<(u8, u8)> = match bits {
            Bits::MaskXor(and, xor) => and.iter().copied().zip(xor.iter().copied()).collect(),
            Bits::And(Operand::Bytes(and)) => and.iter().map(|and| (*and, 0)).collect(),
            Bits::Or(Operand::Bytes(or)) => or.iter().map(|or| (!or, *or)).collect(),
            Bits::Xor(Operand::Bytes(xor)) => xor.iter().map(|xor| (0xff, *xor)).collect(),
            _ => return false,
        };
        for (at, (and, xor)) in whole
            .bytes()
            .zip(pairs.into_iter().chain(std::iter::repeat((0, 0))))
        {
            if let (Some(byte), Some(vague)) = (self.bytes.get_mut(at), self.vague.get_mut(at)) {
                *byte = *byte & and ^ xor;
                *vague &= and;
            }
        }
        let vague = self.vague.get(whole.bytes()).unwrap_or_default();
        if vague.iter().all(|bits| *bits == 0) {
            self.shut(whole);
            self.known |= whole.words();
        }
        true
    }
}

impl Open {
    fn ask(&self, question: Question) -> Option<Question> {
        if self.swapped {
            question.swapped()
        } else {
            Some(question)
        }
    }
}

fn whole(span: Span) -> Span {
    Span {
        word: span.word,
        len: span.len.next_multiple_of(4),
    }
}

/// `nft_bitwise_eval()` (net/netfilter/nft_bitwise.c, v6.18): whole words in host order.
pub(super) fn bitwise(registers: &mut Registers, from: Span, to: Span, bits: &Bits) {
    if registers.bitwise_open(from, to, bits) {
        return;
    }
    let operand = |other: &Operand| match other {
        Operand::Bytes(bytes) => Ok(bytes.to_vec()),
        Operand::Register(word) => {
            let span = Span {
                word: *word,
                len: from.len,
            };
            registers.get(whole(span)).map(<[u8]>::to_vec)
        }
    };
    let result = registers
        .get(whole(from))
        .map(<[u8]>::to_vec)
        .and_then(|src| {
            let zip = |other: &[u8], f: fn(u8, u8) -> u8| -> Vec<u8> {
                let other = other.iter().copied().chain(std::iter::repeat(0));
                src.iter().zip(other).map(|(a, b)| f(*a, b)).collect()
            };
            Ok(match bits {
                Bits::MaskXor(mask, xor) => {
                    let masked = zip(mask, |a, b| a & b);
                    let xor = xor.iter().copied().chain(std::iter::repeat(0));
                    masked.iter().zip(xor).map(|(a, b)| a ^ b).collect()
                }
                Bits::And(other) => zip(&operand(other)?, |a, b| a & b),
                Bits::Or(other) => zip(&operand(other)?, |a, b| a | b),
                Bits::Xor(other) => zip(&operand(other)?, |a, b| a ^ b),
                Bits::Left(by) => shift(&src, *by, true),
                Bits::Right(by) => shift(&src, *by, false),
            })
        });
    registers.put(whole(to), result);
}

fn shift(bytes: &[u8], by: u32, left: bool) -> Vec<u8> {
    let mut words: Vec<u32> = bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|word| u32::from_ne_bytes(*word))
        .collect();
    let mut carry = 0;
    let mut step = |word: &mut u32| {
        let old = *word;
        if left {
            *word = (old << by) | carry;
            carry = old.checked_shr(32 - by).unwrap_or(0);
        } else {
            *word = (old >> by) | carry;
            carry = old.checked_shl(32 - by).unwrap_or(0);
        }
    };
    if left {
        words.iter_mut().rev().for_each(&mut step);
    } else {
        words.iter_mut().for_each(&mut step);
    }
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}
