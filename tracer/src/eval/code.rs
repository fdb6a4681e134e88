//! What rules are compiled to: steps over numbered fields and registers.
//!
//! Most of what rules do is to load a field and compare it: that is one step here ([`Op::Test`]), without a register.

use super::{
    field::{Field, Reason, Value},
    outcome::Fate,
    read::Slot,
    xt::{Action, Matcher},
};
use crate::ruleset::expr::CmpOp;

/// Registers in units of four bytes, counted from the first behind the verdict's.
pub(super) const WORDS: usize = 16;

/// A verdict, resolved.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Decided {
    /// On with the rule.
    Continue,
    /// The rule does not match.
    Break,
    /// Back to the calling chain, or to the policy.
    Return,
    /// Call this chain of the program.
    Jump(u32),
    /// Go to it.
    Goto(u32),
    /// The end of the base chain, at the least.
    End(Fate),
    /// It is not known what it is.
    Unknown(Reason),
}

/// A range of registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    /// The first word.
    pub(super) word: u8,
    /// Bytes.
    pub(super) len: u8,
}

impl Span {
    /// The registers' words, one bit each.
    pub(super) fn words(self) -> u16 {
        let count = u32::from(self.len).div_ceil(4).min(WORDS as u32);
        let ones = (1_u32 << count) - 1;
        (ones << self.word) as u16
    }

    /// Their bytes.
    pub(super) fn bytes(self) -> std::ops::Range<usize> {
        let start = usize::from(self.word) * 4;
        start.min(WORDS * 4)..(start + usize::from(self.len)).min(WORDS * 4)
    }
}

/// What a [`Op::Bitwise`] does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Bits {
    /// `(src & mask) ^ xor`.
    MaskXor(Box<[u8]>, Box<[u8]>),
    /// To the left, in words of host order.
    Left(u32),
    /// To the right.
    Right(u32),
    /// With another register or with constants.
    And(Operand),
    Or(Operand),
    Xor(Operand),
}

/// The right side of a bitwise operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Operand {
    Register(u8),
    Bytes(Box<[u8]>),
}

/// The first and the last value of a range.
pub(super) type Bounds = (Box<[u8]>, Box<[u8]>);

/// A step of a rule.
#[derive(Debug, Clone)]
pub(super) enum Op {
    /// `(field & mask) == want` (or not, with `invert`), of the first 16 bytes.
    Test {
        slot: Slot,
        invert: bool,
        mask: u128,
        want: u128,
    },
    /// `from <= field & mask <= to` (or not).
    Within {
        slot: Slot,
        invert: bool,
        mask: u128,
        bounds: Box<(u128, u128)>,
    },
    /// The field must be there.
    Need { slot: Slot },
    /// The field into a register; so many bytes are set at the least.
    Load { slot: Slot, to: Span },
    /// Constants into a register.
    Set { to: Span, bytes: Box<[u8]> },
    /// A register against constants.
    Cmp {
        from: Span,
        op: CmpOp,
        data: Box<[u8]>,
    },
    /// A register within bounds.
    Range {
        from: Span,
        invert: bool,
        bounds: Box<Bounds>,
    },
    Bitwise {
        from: Span,
        to: Span,
        bits: Box<Bits>,
    },
    /// In units of 2, 4 or 8 bytes.
    Byteorder { from: Span, to: Span, size: u8 },
    /// Whether a field is in a set: [`Op::Lookup`] without a register.
    Member {
        slot: Slot,
        len: u8,
        set: u32,
        invert: bool,
    },
    /// A key's element: into a register, or, without one, its verdict if the set has any.
    Lookup {
        set: u32,
        from: Span,
        to: Option<Span>,
        verdict: bool,
        invert: bool,
    },
    /// The object that the key maps to; most do nothing that can be seen.
    ObjectMap { set: u32, from: Span },
    /// Adds to a set, or updates it.
    Dynset {
        set: Option<u32>,
        from: Span,
        invert: bool,
        stateful: Option<Box<Reason>>,
        /// Its elements count connections: what is none is dropped, see [`Self::Connlimit`].
        counts: bool,
    },
    /// Jenkins' hash of a register.
    Hash {
        from: Span,
        to: Span,
        seed: Option<u32>,
        modulus: u32,
        offset: u32,
    },
    /// Nothing is known of what these registers hold now.
    Forget { to: Span, why: Box<Reason> },
    /// Whether the rule goes on cannot be known.
    Doubt(Box<Reason>),
    /// Counts connections: drops what is none, of others nobody knows.
    Connlimit(Box<Reason>),
    /// A field is set to a register's value, or to something unknown.
    Write {
        field: Box<Field>,
        from: Option<Span>,
    },
    /// A field is set to a value.
    Assign(Box<(Field, Value)>),
    /// `synproxy`.
    Synproxy { proto: Slot, flags: Slot },
    /// Ends the walk of nat chains: the connection has its binding.
    Bound,
    /// The rule's verdict.
    Verdict(Decided),
    /// An xtables match.
    Match(Box<Matcher>),
    /// An xtables target.
    Action(Box<Action>),
}

/// A rule.
#[derive(Debug, Clone)]
pub(super) struct Code {
    /// Its first step in [`super::program::Program`]'s list; the next rule's is the end.
    pub(super) start: u32,
    /// What it reads of what rules may have written before the packet was taken ([`super::write::Kind`]s).
    pub(super) reads: super::write::Kinds,
}

impl Op {
    /// The registers that the step judges.
    pub(super) fn input(&self) -> Option<Span> {
        match self {
            Self::Cmp { from, .. }
            | Self::Range { from, .. }
            | Self::Lookup { from, .. }
            | Self::ObjectMap { from, .. }
            | Self::Dynset { from, .. } => Some(*from),
            _ => None,
        }
    }
}
