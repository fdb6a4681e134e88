//! The steps of rules: what each does to registers and to the packet, and whether it holds.

use super::{
    code::{Bits, Decided, Op, Operand, Span, WORDS},
    field::{Field, Reason, Value},
    hash,
    outcome::Fate,
    program::Program,
    read::{Reader, Slot},
    write::{self, Kinds},
    xt::{Answer, Effect},
};
use crate::ruleset::expr::CmpOp;

/// What steps know and change of the way so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct Way {
    /// What was read before it could be written, taken to be what the packet shows, and never written.
    pub(super) fixed: Kinds,
    /// What was read and is taken to be written after that.
    pub(super) open: Kinds,
    /// The connection has its binding: other nat chains are not asked.
    pub(super) bound: bool,
    /// Which of the seconds it is that the rules can have run at.
    pub(super) instant: u8,
}

/// Register contents.
pub(super) struct Registers {
    bytes: [u8; WORDS * 4],
    known: u16,
    why: Option<Reason>,
}

impl Registers {
    /// Of which nothing is known.
    pub(super) fn new() -> Self {
        Self {
            bytes: [0; WORDS * 4],
            known: 0,
            why: None,
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.known = 0;
        self.why = None;
    }

    pub(super) fn get(&self, span: Span) -> Result<&[u8], Reason> {
        if self.known & span.words() != span.words() {
            let why = self.why.clone();
            return Err(why.unwrap_or(Reason::missing("a register that nothing was loaded into")));
        }
        Ok(self.bytes.get(span.bytes()).unwrap_or_default())
    }

    pub(super) fn set(&mut self, span: Span, bytes: &[u8]) {
        let start = usize::from(span.word) * 4;
        let whole = usize::from(span.len)
            .next_multiple_of(4)
            .max(bytes.len().next_multiple_of(4));
        if let Some(room) = self.bytes.get_mut(start..(start + whole).min(WORDS * 4)) {
            room.fill(0);
            let len = bytes.len().min(room.len());
            room[..len].copy_from_slice(&bytes[..len]);
            let words = Span {
                word: span.word,
                len: room.len() as u8,
            };
            self.known |= words.words();
        }
    }

    pub(super) fn forget(&mut self, span: Span, why: Reason) {
        self.known &= !span.words();
        self.why = Some(why);
    }
}

impl Program {
    /// Every step that is not one of the quick ones.
    pub(super) fn step(
        &self,
        way: &mut Way,
        reader: &mut Reader<'_>,
        registers: &mut Registers,
        op: &Op,
    ) -> Did {
        match op {
            Op::Test { .. } | Op::Within { .. } | Op::Verdict(_) => Did::On,
            Op::Need { slot } => match reader.value(*slot).clone() {
                Value::Bytes(_) => Did::On,
                Value::Break => Did::Miss,
                Value::Unknown(_) if reader.is_there(*slot) => Did::On,
                Value::Unknown(reason) => Did::Unknown(reason),
            },
            Op::Load { slot, to } => match reader.value(*slot) {
                Value::Bytes(bytes) => {
                    registers.set(*to, bytes.as_slice());
                    Did::On
                }
                Value::Break => Did::Miss,
                Value::Unknown(reason) => {
                    let reason = reason.clone();
                    registers.forget(*to, reason.clone());
                    if reader.is_there(*slot) {
                        Did::On
                    } else {
                        Did::Unknown(reason)
                    }
                }
            },
            Op::Set { to, bytes } => {
                registers.set(*to, bytes);
                Did::On
            }
            Op::Cmp { from, op, data } => match registers.get(*from) {
                Ok(bytes) => Did::hold(compares(*op, bytes, data)),
                Err(reason) => Did::Unknown(reason),
            },
            Op::Range {
                from,
                invert,
                bounds,
            } => match registers.get(*from) {
                Ok(bytes) => Did::hold((*bounds.0 <= *bytes && *bytes <= *bounds.1) != *invert),
                Err(reason) => Did::Unknown(reason),
            },
            Op::Bitwise { from, to, bits } => bitwise(registers, *from, *to, bits),
            Op::Byteorder { from, to, size } => {
                let swapped = registers.get(*from).map(|bytes| {
                    let mut swapped = bytes.to_vec();
                    for unit in swapped.chunks_exact_mut(usize::from(*size)) {
                        unit.reverse();
                    }
                    swapped
                });
                registers.put(*to, swapped)
            }
            Op::Hash {
                from,
                to,
                seed,
                modulus,
                offset,
            } => {
                let number = registers.get(*from).and_then(|bytes| {
                    let seed = seed.ok_or(Reason::missing("the hash's seed is not known"))?;
                    let hash = hash::scale(hash::jenkins(bytes, seed), *modulus);
                    Ok(hash.wrapping_add(*offset).to_ne_bytes().to_vec())
                });
                registers.put(*to, number)
            }
            Op::Forget { to, why } => {
                registers.forget(*to, (**why).clone());
                Did::On
            }
            Op::Doubt(reason) => Did::Unknown((**reason).clone()),
            Op::Member {
                slot,
                len,
                set,
                invert,
            } => {
                let key = match reader.value(*slot) {
                    Value::Bytes(bytes) => *bytes,
                    Value::Break => return Did::Miss,
                    Value::Unknown(reason) => return Did::Unknown(reason.clone()),
                };
                self.lookup(
                    registers,
                    *set,
                    Ok(key.padded(usize::from(*len))),
                    None,
                    false,
                    *invert,
                )
            }
            Op::Lookup {
                set,
                from,
                to,
                verdict,
                invert,
            } => {
                let key = registers.get(*from).map(<[u8]>::to_vec);
                let key = key.as_deref().map_err(Clone::clone);
                self.lookup(registers, *set, key, *to, *verdict, *invert)
            }
            Op::ObjectMap { set, from } => self.object_map(registers, *set, *from),
            Op::Dynset {
                set,
                from,
                invert,
                stateful,
            } => self.dynset(registers, *set, *from, *invert, stateful.as_deref()),
            Op::Write { field, from } => {
                let value = match from {
                    Some(span) => match registers.get(*span) {
                        Ok(bytes) => Value::bytes(bytes),
                        Err(reason) => Value::Unknown(reason),
                    },
                    None => Value::Unknown(Reason::rewritten("an earlier rule changed it")),
                };
                // Without a connection its mark cannot be set, and nothing comes of it.
                if matches!(**field, Field::Ct { .. }) && reader.read(**field) == Value::Break {
                    return Did::On;
                }
                self.write(way, reader, **field, value)
            }
            Op::Assign(assigned) => {
                let (field, value) = &**assigned;
                // A packet that has a connection keeps it.
                if let Value::Bytes(bytes) = reader.read(*field) {
                    let tracked = bytes
                        .as_slice()
                        .first()
                        .is_some_and(|byte| byte & 0x0e != 0);
                    if tracked {
                        return Did::On;
                    }
                }
                self.write(way, reader, *field, value.clone())
            }
            Op::Synproxy { proto, flags } => synproxy(reader, *proto, *flags),
            Op::Bound => {
                way.bound = true;
                reader.translate();
                Did::On
            }
            Op::Match(matcher) => match matcher.test(reader) {
                Answer::Match => Did::On,
                Answer::Miss => Did::Miss,
                Answer::Drop => Did::Verdict(Decided::End(Fate::Drop)),
                Answer::Unknown(reason) => Did::Unknown(reason),
            },
            Op::Action(action) => {
                let before = reader.writes().len();
                let effect = action.run(reader);
                way.bound |= action.binds();
                if !Self::allows(way, reader, before) {
                    return Did::Impossible;
                }
                match effect {
                    Effect::Continue => Did::On,
                    Effect::Verdict(verdict) => {
                        let fate = match verdict.code {
                            0 if action.rejects() => Fate::Reject,
                            0 => Fate::Drop,
                            1 => Fate::Accept,
                            2 => Fate::Stolen,
                            -1 => return Did::On,
                            -5 => return Did::Verdict(Decided::Return),
                            code => Fate::Queue {
                                number: (code >> 16) as u16,
                                bypass: code & 0x8000 != 0,
                            },
                        };
                        Did::Verdict(Decided::End(fate))
                    }
                    Effect::Unknown(reason) => Did::Several(
                        vec![
                            Decided::End(Fate::Drop),
                            Decided::End(Fate::Accept),
                            Decided::Return,
                        ],
                        reason,
                    ),
                }
            }
        }
    }

    fn write(&self, way: &mut Way, reader: &mut Reader<'_>, field: Field, value: Value) -> Did {
        let before = reader.writes().len();
        reader.write(field, value);
        if Self::allows(way, reader, before) {
            Did::On
        } else {
            Did::Impossible
        }
    }

    /// Whether what was just written is not against what was supposed of it.
    fn allows(way: &Way, reader: &mut Reader<'_>, before: usize) -> bool {
        if way.fixed == 0 {
            return true;
        }
        let made = reader.writes().get(before..).unwrap_or_default().to_vec();
        made.into_iter().all(|(field, value)| {
            write::kind(&field) & way.fixed == 0 || agrees(reader, field, &value)
        })
    }
}

/// Whether a value that was written can be what the packet shows.
pub(super) fn agrees(reader: &mut Reader<'_>, field: Field, written: &Value) -> bool {
    match (written.known(), reader.shown(field).known()) {
        (Some(written), Some(shown)) => {
            let len = written.len().min(shown.len());
            written[..len] == shown[..len]
        }
        _ => true,
    }
}

/// What a step did.
pub(super) enum Did {
    On,
    Miss,
    Unknown(Reason),
    Verdict(Decided),
    /// One of these verdicts, or the rule does not match.
    Several(Vec<Decided>, Reason),
    /// What was read as the last value was not the last: this way was not taken.
    Impossible,
}

impl Did {
    pub(super) fn hold(holds: bool) -> Self {
        if holds { Self::On } else { Self::Miss }
    }
}

impl Registers {
    fn put(&mut self, to: Span, bytes: Result<Vec<u8>, Reason>) -> Did {
        match bytes {
            Ok(bytes) => self.set(to, &bytes),
            Err(reason) => self.forget(to, reason),
        }
        Did::On
    }
}

fn compares(op: CmpOp, bytes: &[u8], data: &[u8]) -> bool {
    match op {
        CmpOp::Eq => bytes == data,
        CmpOp::Neq => bytes != data,
        CmpOp::Lt => bytes < data,
        CmpOp::Lte => bytes <= data,
        CmpOp::Gt => bytes > data,
        CmpOp::Gte => bytes >= data,
    }
}

/// `nft_bitwise_eval()` (net/netfilter/nft_bitwise.c, v6.18): whole words in host order.
fn bitwise(registers: &mut Registers, from: Span, to: Span, bits: &Bits) -> Did {
    let whole = |span: Span| Span {
        word: span.word,
        len: span.len.next_multiple_of(4),
    };
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
    registers.put(whole(to), result)
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

/// `nft_synproxy_do_eval()` (net/netfilter/nft_synproxy.c, v6.18).
fn synproxy(reader: &mut Reader<'_>, proto: Slot, flags: Slot) -> Did {
    const SYN: u8 = 2;
    const ACK: u8 = 16;
    let first = |value: &Value| match value {
        Value::Bytes(bytes) => Ok(bytes.as_slice().first().copied()),
        Value::Break => Ok(None),
        Value::Unknown(reason) => Err(reason.clone()),
    };
    match first(reader.value(proto)) {
        Ok(Some(6)) => {}
        Ok(_) => return Did::Miss,
        Err(reason) => return Did::Unknown(reason),
    }
    let either = vec![Decided::End(Fate::Stolen), Decided::End(Fate::Drop)];
    match first(reader.value(flags)) {
        Ok(Some(flags)) if flags & SYN != 0 => Did::Verdict(Decided::End(Fate::Stolen)),
        Ok(Some(flags)) if flags & ACK != 0 => {
            Did::Several(either, Reason::stateful("whether the SYN cookie is good"))
        }
        Ok(Some(_)) => Did::On,
        Ok(None) => Did::Verdict(Decided::End(Fate::Drop)),
        Err(reason) => Did::Several(either, reason),
    }
}
