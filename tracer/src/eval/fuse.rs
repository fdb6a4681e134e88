//! Loads and the comparisons that are the only ones to read them, made one step without registers.

use super::{
    code::{Bits, Op, Operand, Span},
    compile::Step,
    field::Field,
    read::{Fields, Slot},
};
use crate::ruleset::expr::CmpOp;

fn left_aligned(bytes: &[u8]) -> Option<u128> {
    let mut wide = [0; 16];
    wide.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(u128::from_be_bytes(wide))
}

/// Ones in the first `len` bytes.
fn ones(len: usize) -> u128 {
    match len {
        0 => 0,
        1..16 => u128::MAX << (128 - 8 * len),
        _ => u128::MAX,
    }
}

/// Words that a step reads.
fn reads(op: &Op) -> u16 {
    match op {
        Op::Cmp { from, .. }
        | Op::Range { from, .. }
        | Op::Byteorder { from, .. }
        | Op::Lookup { from, .. }
        | Op::ObjectMap { from, .. }
        | Op::Dynset { from, .. }
        | Op::Hash { from, .. }
        | Op::Write {
            from: Some(from), ..
        } => from.words(),
        Op::Bitwise { from, bits, .. } => {
            let other = match &**bits {
                Bits::And(Operand::Register(word))
                | Bits::Or(Operand::Register(word))
                | Bits::Xor(Operand::Register(word)) => Span {
                    word: *word,
                    len: from.len,
                }
                .words(),
                _ => 0,
            };
            from.words() | other
        }
        _ => 0,
    }
}

/// Words that a step sets.
fn sets(op: &Op) -> u16 {
    match op {
        Op::Load { to, .. }
        | Op::Set { to, .. }
        | Op::Bitwise { to, .. }
        | Op::Byteorder { to, .. }
        | Op::Lookup { to: Some(to), .. }
        | Op::Hash { to, .. }
        | Op::Forget { to, .. } => to.words(),
        _ => 0,
    }
}

/// A load, perhaps masked, and the comparison that is the only one to read it: one step without registers.
pub(super) fn fuse(steps: Vec<Step>) -> Vec<Step> {
    let mut fused = Vec::with_capacity(steps.len());
    let mut at = 0;
    while let Some((op, _)) = steps.get(at) {
        let (taken, replaced) = match op {
            Op::Load { .. } => fuse_load(&steps[at..]),
            _ => (0, Vec::new()),
        };
        if taken == 0 {
            fused.extend(steps.get(at).cloned());
            at += 1;
        } else {
            fused.extend(replaced);
            at += taken;
        }
    }
    fused
}

/// Lets rules that change a part of some bytes read and write no more than that part: checksums are made of two bytes at a time, so that nft
/// loads and writes IPv4's type of service together with the length of the header.
pub(super) fn narrow(steps: &mut [Step], fields: &mut Fields) {
    for at in 0..steps.len() {
        let Some(
            [
                (Op::Load { slot, to }, _),
                (
                    Op::Bitwise {
                        from,
                        to: dst,
                        bits,
                    },
                    _,
                ),
                (Op::Need { slot: there }, _),
                (
                    Op::Write {
                        field,
                        from: Some(source),
                    },
                    _,
                ),
                rest @ ..,
            ],
        ) = steps.get_mut(at..)
        else {
            continue;
        };
        let word = to.word;
        if slot != there
            || [from.word, dst.word, source.word] != [word; 3]
            || is_live(to.words(), rest)
        {
            continue;
        }
        let (Field::Payload { offset, len, .. }, Bits::MaskXor(and, xor)) = (&mut **field, &**bits)
        else {
            continue;
        };
        let changes = |(and, xor): (&u8, &u8)| *and != 0xff || *xor != 0;
        let first = and.iter().zip(xor).position(changes);
        let last = and.iter().zip(xor).rposition(changes);
        let (Some(first), Some(last)) = (first, last) else {
            continue;
        };
        let (Some(part), Some(flip)) = (and.get(first..=last), xor.get(first..=last)) else {
            continue;
        };
        if and.len() != *len as usize {
            continue;
        }
        let narrowed = Bits::MaskXor(part.into(), flip.into());
        let count = part.len();
        *offset += first as u32;
        *len = count as u32;
        *slot = fields.slot(**field);
        for span in [to, from, dst, source] {
            span.len = count as u8;
        }
        **bits = narrowed;
    }
}

/// How many of the first steps are replaced, and by what.
fn fuse_load(steps: &[Step]) -> (usize, Vec<Step>) {
    let nothing = (0, Vec::new());
    let [(Op::Load { slot, to }, _), rest @ ..] = steps else {
        return nothing;
    };
    let (slot, to) = (*slot, *to);
    let loaded = usize::from(to.len).next_multiple_of(4);
    let mut mask = u128::MAX;
    let mut flip = 0;
    let mut taken = 1;
    let mut rest = rest;
    if let [
        (
            Op::Bitwise {
                from,
                to: dst,
                bits,
            },
            _,
        ),
        after @ ..,
    ] = rest
        && from.word == to.word
        && dst.word == to.word
        && from.len <= to.len
        && let Bits::MaskXor(and, xor) = &**bits
        && let (Some(and_wide), Some(xor_wide)) = (left_aligned(and), left_aligned(xor))
    {
        // The last word is masked whole, with zeros behind the mask's end.
        mask = and_wide | !ones(and.len().next_multiple_of(4));
        flip = xor_wide;
        rest = after;
        taken += 1;
    }
    let mut fused = Vec::new();
    for (op, expr) in rest {
        let test = match op {
            Op::Cmp { from, op, data } if from.word == to.word && data.len() <= loaded.min(16) => {
                compare(slot, mask, flip, *op, data)
            }
            Op::Range {
                from,
                invert,
                bounds,
            } if from.word == to.word && bounds.0.len() <= loaded.min(16) && flip == 0 => {
                match (left_aligned(&bounds.0), left_aligned(&bounds.1)) {
                    (Some(low), Some(high)) => Some(Op::Within {
                        slot,
                        invert: *invert,
                        mask: mask & ones(bounds.0.len()),
                        bounds: Box::new((low, high)),
                    }),
                    _ => None,
                }
            }
            Op::Lookup {
                set,
                from,
                to: None,
                verdict: false,
                invert,
            } if from.word == to.word
                && usize::from(from.len) <= loaded
                && mask == u128::MAX
                && flip == 0 =>
            {
                Some(Op::Member {
                    slot,
                    len: from.len,
                    set: *set,
                    invert: *invert,
                })
            }
            _ => None,
        };
        let Some(test) = test else { break };
        fused.push((test, *expr));
        taken += 1;
    }
    let words = to.words();
    if fused.is_empty() || is_live(words, &steps[taken..]) {
        return nothing;
    }
    (taken, fused)
}

/// `((field & mask) ^ flip) op data`.
fn compare(slot: Slot, mask: u128, flip: u128, op: CmpOp, data: &[u8]) -> Option<Op> {
    let all = ones(data.len());
    let mask = mask & all;
    let want = left_aligned(data)?;
    let bounds = match op {
        CmpOp::Eq | CmpOp::Neq => {
            return Some(Op::Test {
                slot,
                invert: op == CmpOp::Neq,
                mask,
                want: want ^ (flip & all),
            });
        }
        _ if flip != 0 => return None,
        CmpOp::Lte => (0, want),
        CmpOp::Gte => (want, u128::MAX),
        CmpOp::Lt => {
            return Some(Op::Within {
                slot,
                invert: true,
                mask,
                bounds: Box::new((want, u128::MAX)),
            });
        }
        CmpOp::Gt => {
            return Some(Op::Within {
                slot,
                invert: true,
                mask,
                bounds: Box::new((0, want)),
            });
        }
    };
    Some(Op::Within {
        slot,
        invert: false,
        mask,
        bounds: Box::new(bounds),
    })
}

/// Whether one of these words is read before it is set again.
fn is_live(words: u16, steps: &[Step]) -> bool {
    let mut live = words;
    for (op, _) in steps {
        if reads(op) & live != 0 {
            return true;
        }
        live &= !sets(op);
        if live == 0 {
            return false;
        }
    }
    false
}
