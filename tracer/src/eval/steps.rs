//! The steps of rules: what each does to registers and to the packet, and whether it holds.

use super::{
    before::{Before, Compared, Question, ones},
    code::{Decided, Op, Span},
    field::{Field, Reason, Value},
    hash,
    outcome::Fate,
    program::Program,
    read::{Reader, Slot},
    registers::{Registers, bitwise},
    write::{self, Kinds},
    xt::{Answer, Effect, rate::is_no_connection},
};
use crate::ruleset::expr::CmpOp;

/// What steps know and change of the way so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Way {
    /// What was read before it could be written, taken to be what the packet shows, and never written.
    pub(super) fixed: Kinds,
    /// What was read and is taken to be written after that.
    pub(super) open: Kinds,
    /// The connection has its binding: other nat chains are not asked.
    pub(super) bound: bool,
    /// What was found out about what was read and is written after that.
    pub(super) before: Before,
    /// Which of the seconds it is that the rules can have run at.
    pub(super) instant: u8,
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
                    match reader.before(*slot, &way.before) {
                        Some(opened) => registers.load_open(*to, &opened, reason.clone()),
                        None => registers.forget(*to, reason.clone()),
                    }
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
                Err(reason) => self
                    .compare_open(way, registers, *from, *op, data)
                    .unwrap_or(Did::Unknown(reason)),
            },
            Op::Range {
                from,
                invert,
                bounds,
            } => match registers.get(*from) {
                Ok(bytes) => Did::hold((*bounds.0 <= *bytes && *bytes <= *bounds.1) != *invert),
                Err(reason) => wide(&bounds.0)
                    .zip(wide(&bounds.1))
                    .and_then(|(low, high)| registers.within(*from, low, high))
                    .map_or(Did::Unknown(reason.clone()), |question| {
                        self.ask(way, Compared::If(question), *invert, reason)
                    }),
            },
            Op::Bitwise { from, to, bits } => {
                bitwise(registers, *from, *to, bits);
                Did::On
            }
            Op::Byteorder { from, to, size } => {
                registers.swap(*from, *to, usize::from(*size));
                Did::On
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
                registers.put(*to, number);
                Did::On
            }
            Op::Forget { to, why } => {
                registers.forget(*to, (**why).clone());
                Did::On
            }
            Op::Doubt(reason) => Did::Unknown((**reason).clone()),
            Op::Connlimit(_) if is_no_connection(reader) => Did::Verdict(Decided::End(Fate::Drop)),
            Op::Connlimit(reason) => Did::Unknown((**reason).clone()),
            Op::Member {
                slot,
                len,
                set,
                invert,
            } => {
                let key = match reader.value(*slot) {
                    Value::Bytes(bytes) => *bytes,
                    Value::Break => return Did::Miss,
                    Value::Unknown(reason) => {
                        let reason = reason.clone();
                        let Some(opened) = reader.before(*slot, &way.before) else {
                            return Did::Unknown(reason);
                        };
                        let span = Span { word: 0, len: *len };
                        registers.load_open(span, &opened, reason.clone());
                        let did = self
                            .lookup_part(&way.before, registers, *set, span, (None, false, *invert))
                            .unwrap_or(Did::Unknown(reason));
                        return counted(!invert && self.counts(*set), reader, did);
                    }
                };
                let key = Ok(key.padded(usize::from(*len)));
                let did = self.lookup(registers, *set, key, None, false, *invert);
                counted(!invert && self.counts(*set), reader, did)
            }
            Op::Lookup {
                set,
                from,
                to,
                verdict,
                invert,
            } => {
                let key = registers.get(*from).map(<[u8]>::to_vec);
                let with = (*to, *verdict, *invert);
                if key.is_err()
                    && let Some(did) = self.lookup_part(&way.before, registers, *set, *from, with)
                {
                    return counted(!invert && self.counts(*set), reader, did);
                }
                let key = key.as_deref().map_err(Clone::clone);
                let did = self.lookup(registers, *set, key, *to, *verdict, *invert);
                counted(!invert && self.counts(*set), reader, did)
            }
            Op::ObjectMap { set, from } => {
                let did = self.object_map(registers, *set, *from);
                counted(self.counts(*set), reader, did)
            }
            Op::Dynset {
                set,
                from,
                invert,
                stateful,
                counts,
            } => {
                let did = self.dynset(registers, *set, *from, *invert, stateful.as_deref());
                // Unless there is no room for the element, or it was put there without a counter.
                counted(*counts, reader, did)
            }
            Op::Write { field, from } => {
                let value = match from {
                    Some(span) => match registers.get(*span) {
                        Ok(bytes) => Value::bytes(bytes),
                        Err(reason) => Value::Unknown(reason),
                    },
                    None => Value::Unknown(Reason::rewritten("an earlier rule changed it")),
                };
                let derived = from.and_then(|span| registers.derived(span, **field));
                // Without a connection its mark cannot be set, and nothing comes of it.
                if matches!(**field, Field::Ct { .. }) && reader.read(**field) == Value::Break {
                    return Did::On;
                }
                way.before.set(**field, derived);
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
                way.before.set(*field, None);
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
                Answer::Unknown(reason) => match matcher.asks(reader, &way.before) {
                    Some((compared, invert)) => self.ask(way, compared, invert, reason),
                    None => Did::Unknown(reason),
                },
            },
            Op::Action(action) => {
                let before = reader.writes().len();
                let derived = action.derives(reader, &way.before);
                let effect = action.run(reader);
                for (field, _) in reader.writes().get(before..).unwrap_or_default() {
                    let derived = derived.filter(|(of, _)| of == field);
                    way.before.set(*field, derived.map(|(_, derived)| derived));
                }
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

    /// A question about a value that is not known.
    fn ask(&self, way: &Way, compared: Compared, invert: bool, why: Reason) -> Did {
        let question = match compared {
            Compared::Equals => return Did::hold(!invert),
            Compared::Differs => return Did::hold(invert),
            Compared::If(question) => question,
        };
        match way.before.answer(&question, self) {
            Some(holds) => Did::hold(holds != invert),
            None => Did::Asks(question, why),
        }
    }

    /// A comparison of a field that is not known.
    #[expect(clippy::too_many_arguments, reason = "a step's, and what they are for")]
    pub(super) fn ask_bits(
        &self,
        way: &Way,
        reader: &mut Reader<'_>,
        slot: Slot,
        mask: u128,
        bounds: (u128, u128),
        invert: bool,
        why: Reason,
    ) -> Did {
        let opened = reader.before(slot, &way.before);
        match opened.and_then(|opened| opened.within(mask, bounds)) {
            Some(compared) => self.ask(way, compared, invert, why),
            None => Did::Unknown(why),
        }
    }

    /// [`Op::Cmp`] of a register that comes of such a value.
    fn compare_open(
        &self,
        way: &Way,
        registers: &Registers,
        from: Span,
        op: CmpOp,
        data: &[u8],
    ) -> Option<Did> {
        let why = registers.why();
        let (low, high, invert) = match op {
            CmpOp::Eq | CmpOp::Neq => {
                let invert = op == CmpOp::Neq;
                return Some(self.ask(way, registers.compare(from, data)?, invert, why));
            }
            CmpOp::Lte => (0, wide(data)?, false),
            CmpOp::Gte => (wide(data)?, u128::MAX, false),
            CmpOp::Lt => (wide(data)?, u128::MAX, true),
            CmpOp::Gt => (0, wide(data)?, true),
        };
        let question = registers.within(from, low, high & ones(from.len.into()))?;
        Some(self.ask(way, Compared::If(question), invert, why))
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
    /// It goes on, or not, or drops the packet.
    OrDrops(Reason),
    /// It goes on, or not, by the answer; without one as with [`Did::Unknown`].
    Asks(Question, Reason),
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

/// What comes of a step that is not known, if it finds an element which may count connections: of a packet that can be none, a drop, too.
fn counted(counts: bool, reader: &mut Reader<'_>, did: Did) -> Did {
    const DROP: Decided = Decided::End(Fate::Drop);
    match did {
        Did::Unknown(reason) if counts && is_no_connection(reader) => Did::OrDrops(reason),
        Did::Several(mut verdicts, reason) if counts && is_no_connection(reader) => {
            if !verdicts.contains(&DROP) {
                verdicts.push(DROP);
            }
            Did::Several(verdicts, reason)
        }
        did => did,
    }
}

/// The first byte highest of 16.
fn wide(bytes: &[u8]) -> Option<u128> {
    let mut wide = [0; 16];
    wide.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(u128::from_be_bytes(wide))
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
