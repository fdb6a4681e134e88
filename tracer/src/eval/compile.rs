//! A rule of nf_tables -> steps.

use super::{
    clock,
    code::{Bits, Decided, Op, Operand, Span, WORDS},
    field::{DoubtKind, Field, Reason, Value},
    fuse,
    load::{self, ct_key, meta_key},
    outcome::Fate,
    program::{Jumps, TableNames},
    read::Fields,
    xt::{Action, Matcher, Place},
};
use crate::{
    ruleset::{
        expr::{Data, Expr, PayloadBase},
        model::{Family, ObjectState, Rule},
    },
    xtables::{self, matches::Match, targets::Target},
};

/// What is needed beside the rule.
pub(super) struct Compiler<'a> {
    pub(super) family: Family,
    pub(super) jumps: &'a Jumps<'a>,
    pub(super) names: &'a TableNames<'a>,
    pub(super) fields: &'a mut Fields,
}

/// A step and the index of the expression that it comes from.
pub(super) type Step = (Op, u16);

fn word(register: u32) -> Option<u8> {
    match register {
        1..=4 => Some((register as u8 - 1) * 4),
        8..=23 => Some(register as u8 - 8),
        _ => None,
    }
}

fn span(register: u32, len: u32) -> Option<Span> {
    let word = word(register)?;
    let len = u8::try_from(len).ok()?;
    (usize::from(word) * 4 + usize::from(len) <= WORDS * 4).then_some(Span { word, len })
}

fn boxed(bytes: &[u8]) -> Box<[u8]> {
    bytes.into()
}

impl Compiler<'_> {
    /// The rule's steps.
    pub(super) fn rule(&mut self, rule: &Rule) -> Vec<Step> {
        let mut steps = Vec::new();
        if rule.broken {
            let why = Reason::missing("part of the rule could not be read");
            steps.push((Op::Doubt(Box::new(why)), 0));
        }
        if clock::asks_for_fractions(&rule.exprs, |set| Some(self.names.set(set)?.1.key_len)) {
            let why = Reason::missing("the time is compared with parts of a second");
            steps.push((Op::Doubt(Box::new(why)), 0));
        }
        for (index, expr) in rule.exprs.iter().enumerate() {
            let index = index as u16;
            let before = steps.len();
            if self.expr(expr, &mut |op| steps.push((op, index))).is_none() {
                steps.truncate(before);
                let why = Reason::new(
                    DoubtKind::Missing,
                    format!("this {} is not understood", expr.name()),
                );
                steps.push((Op::Doubt(Box::new(why)), index));
            }
        }
        fuse::narrow(&mut steps, self.fields);
        fuse::fuse(steps)
    }

    fn load(&mut self, dreg: u32, field: Field, push: &mut impl FnMut(Op)) -> Option<()> {
        let to = span(dreg, self.width(&field))?;
        let slot = self.fields.slot(field);
        push(Op::Load { slot, to });
        Some(())
    }

    /// How many bytes of registers the kernel sets.
    fn width(&self, field: &Field) -> u32 {
        match *field {
            Field::Payload { len, .. } => len,
            Field::Exthdr { len, flags, .. } if flags & 1 == 0 => len,
            Field::Meta(6 | 7 | 17 | 18 | 26 | 27 | 34) => 16,
            Field::Meta(30) => 8,
            Field::Ct { key: 8 | 9, .. } if self.family == Family::Ip => 4,
            Field::Ct {
                key: 6 | 8 | 9 | 13 | 21 | 22,
                ..
            } => 16,
            Field::Ct { key: 14..=16, .. } => 8,
            Field::Fib { result: 2, flags } if flags & 32 == 0 => 16,
            Field::Rt(2) | Field::Osf { .. } => 16,
            Field::Socket { key: 3, .. } => 8,
            Field::Xfrm { key: 2 | 4, .. } => 16,
            _ => 4,
        }
    }

    /// `None`: an attribute makes no sense.
    fn expr(&mut self, expr: &Expr, push: &mut impl FnMut(Op)) -> Option<()> {
        match expr {
            Expr::Immediate {
                dreg: 0,
                data: Data::Verdict(verdict),
            } => push(Op::Verdict(self.jumps.decided(verdict))),
            Expr::Immediate {
                dreg,
                data: Data::Value(bytes),
            } => push(Op::Set {
                to: span(*dreg, bytes.len() as u32)?,
                bytes: boxed(bytes),
            }),
            Expr::Immediate { .. } => return None,
            Expr::Cmp { sreg, op, data } => push(Op::Cmp {
                from: span(*sreg, data.len() as u32)?,
                op: *op,
                data: boxed(data),
            }),
            Expr::Range {
                sreg,
                invert,
                from,
                to,
            } => {
                if from.len() != to.len() {
                    return None;
                }
                push(Op::Range {
                    from: span(*sreg, from.len() as u32)?,
                    invert: *invert,
                    bounds: Box::new((boxed(from), boxed(to))),
                });
            }
            Expr::Bitwise {
                sreg,
                sreg2,
                dreg,
                len,
                op,
                mask,
                xor,
                data,
            } => {
                let operand = || match sreg2 {
                    Some(register) => word(*register).map(Operand::Register),
                    None if data.len() >= *len as usize => Some(Operand::Bytes(boxed(data))),
                    None => None,
                };
                let shift = || {
                    let bytes: [u8; 4] = data.get(..4)?.try_into().ok()?;
                    Some(u32::from_ne_bytes(bytes)).filter(|shift| *shift < 32)
                };
                let bits = match op {
                    0 if mask.len() == *len as usize && xor.len() == *len as usize => {
                        Bits::MaskXor(boxed(mask), boxed(xor))
                    }
                    1 => Bits::Left(shift()?),
                    2 => Bits::Right(shift()?),
                    3 => Bits::And(operand()?),
                    4 => Bits::Or(operand()?),
                    5 => Bits::Xor(operand()?),
                    _ => return None,
                };
                push(Op::Bitwise {
                    from: span(*sreg, *len)?,
                    to: span(*dreg, *len)?,
                    bits: Box::new(bits),
                });
            }
            Expr::Byteorder {
                sreg,
                dreg,
                len,
                size,
                ..
            } => push(Op::Byteorder {
                from: span(*sreg, *len)?,
                to: span(*dreg, *len)?,
                size: u8::try_from(*size)
                    .ok()
                    .filter(|size| matches!(size, 2 | 4 | 8))?,
            }),
            Expr::Lookup {
                set,
                sreg,
                dreg,
                flags,
            } => {
                let (set, model) = self.names.set(set)?;
                let to = match dreg {
                    None | Some(0) => None,
                    Some(register) => Some(span(*register, model.data_len.unwrap_or(0))?),
                };
                push(Op::Lookup {
                    set,
                    from: span(*sreg, model.key_len)?,
                    to,
                    verdict: *dreg == Some(0),
                    invert: flags & 1 != 0,
                });
            }
            Expr::Dynset {
                set,
                op,
                sreg_key,
                flags,
                exprs,
                ..
            } => {
                let (number, model) = self.names.set(set)?;
                let from = span(*sreg_key, model.key_len)?;
                let stateful = exprs
                    .iter()
                    .chain(&model.exprs)
                    .find(|expr| !matches!(expr, Expr::Counter(_) | Expr::Last { .. }))
                    .map(|expr| {
                        let text = format!("elements of {set} have a {}", expr.name());
                        Box::new(Reason::new(DoubtKind::State, text))
                    });
                let mut all = exprs.iter().chain(&model.exprs);
                let counts = all.any(|expr| matches!(expr, Expr::Connlimit { .. }));
                // 2: delete, which goes on whatever it finds.
                push(Op::Dynset {
                    set: (*op != 2).then_some(number),
                    from,
                    invert: flags & 1 != 0,
                    stateful,
                    // Inverted, the rule ends without a verdict behind it (`nft_dynset_eval()`, net/netfilter/nft_dynset.c, v6.18).
                    counts: counts && *op != 2 && flags & 1 == 0,
                });
            }
            Expr::Payload {
                dreg,
                base,
                offset,
                len,
            } => self.load(
                *dreg,
                Field::Payload {
                    base: *base,
                    offset: *offset,
                    len: *len,
                },
                push,
            )?,
            Expr::PayloadSet {
                sreg,
                base,
                offset,
                len,
                ..
            } => {
                let field = Field::Payload {
                    base: *base,
                    offset: *offset,
                    len: *len,
                };
                let slot = self.fields.slot(field);
                push(Op::Need { slot });
                push(Op::Write {
                    field: Box::new(field),
                    from: Some(span(*sreg, *len)?),
                });
            }
            Expr::Exthdr {
                dreg,
                kind,
                offset,
                len,
                flags,
                op,
            } => self.load(
                *dreg,
                Field::Exthdr {
                    op: *op,
                    kind: *kind,
                    offset: *offset,
                    len: *len,
                    flags: *flags,
                },
                push,
            )?,
            Expr::ExthdrSet {
                sreg,
                kind,
                offset,
                len,
                op,
                ..
            } => {
                let field = Field::Exthdr {
                    op: *op,
                    kind: *kind,
                    offset: *offset,
                    len: *len,
                    flags: 0,
                };
                let slot = self.fields.slot(field);
                push(Op::Need { slot });
                push(Op::Write {
                    field: Box::new(field),
                    from: Some(span(*sreg, *len)?),
                });
            }
            Expr::ExthdrReset { kind, op } => push(Op::Write {
                field: Box::new(Field::Exthdr {
                    op: *op,
                    kind: *kind,
                    offset: 0,
                    len: 0,
                    flags: 0,
                }),
                from: None,
            }),
            Expr::Meta { dreg, key } => self.load(*dreg, Field::Meta(*key), push)?,
            Expr::MetaSet { sreg, key } => {
                if let meta_key::MARK | meta_key::PRIORITY | meta_key::SECMARK = *key {
                    push(Op::Write {
                        field: Box::new(Field::Meta(*key)),
                        from: Some(span(*sreg, 4)?),
                    });
                } else if *key == meta_key::PKTTYPE {
                    // Set only between some of the types.
                    push(Op::Write {
                        field: Box::new(Field::Meta(*key)),
                        from: None,
                    });
                }
            }
            Expr::Ct {
                dreg,
                key,
                direction,
            } => self.load(
                *dreg,
                Field::Ct {
                    key: *key,
                    direction: *direction,
                },
                push,
            )?,
            Expr::CtSet {
                sreg,
                key: key @ ct_key::MARK,
                ..
            } => push(Op::Write {
                field: Box::new(Field::Ct {
                    key: *key,
                    direction: None,
                }),
                from: Some(span(*sreg, 4)?),
            }),
            Expr::CtSet { .. } => {}
            Expr::Notrack => push(Op::Assign(Box::new((
                Field::Ct {
                    key: ct_key::STATE,
                    direction: None,
                },
                Value::u32(load::STATE_UNTRACKED),
            )))),
            Expr::Counter(_) | Expr::Last { .. } | Expr::Log { .. } | Expr::Dup { .. } => {}
            Expr::Limit { .. } => push(doubt_stateful("how many tokens the limit has left")),
            Expr::Quota { .. } => push(doubt_stateful("how much of the quota is used up")),
            Expr::Connlimit { .. } => push(Op::Connlimit(Box::new(Reason::stateful(
                "how many connections there are",
            )))),
            Expr::Reject { .. } => push(Op::Verdict(Decided::End(Fate::Reject))),
            Expr::Queue { num, flags, .. } => push(Op::Verdict(Decided::End(Fate::Queue {
                number: num.unwrap_or(0),
                bypass: flags & 1 != 0,
            }))),
            Expr::Nat { .. } | Expr::Masq { .. } | Expr::Redir { .. } => {
                push(Op::Bound);
                push(Op::Verdict(Decided::End(Fate::Accept)));
            }
            Expr::Tproxy { .. } => {
                push(Op::Doubt(Box::new(Reason::new(
                    DoubtKind::State,
                    "whether a socket takes the packet is not known".to_owned(),
                ))));
            }
            Expr::Fwd { .. } => push(Op::Verdict(Decided::End(Fate::Stolen))),
            Expr::Synproxy { .. } => self.synproxy(push),
            Expr::FlowOffload { .. } => push(doubt_stateful("whether the flow is offloaded")),
            Expr::Fib {
                dreg,
                result,
                flags,
            } => self.load(
                *dreg,
                Field::Fib {
                    result: *result,
                    flags: *flags,
                },
                push,
            )?,
            Expr::Rt { dreg, key } => self.load(*dreg, Field::Rt(*key), push)?,
            Expr::Socket { dreg, key, level } => self.load(
                *dreg,
                Field::Socket {
                    key: *key,
                    level: *level,
                },
                push,
            )?,
            Expr::Osf { dreg, ttl, flags } => self.load(
                *dreg,
                Field::Osf {
                    ttl: *ttl,
                    flags: *flags,
                },
                push,
            )?,
            Expr::Xfrm {
                dreg,
                key,
                direction,
                spnum,
            } => self.load(
                *dreg,
                Field::Xfrm {
                    key: *key,
                    direction: *direction,
                    spnum: *spnum,
                },
                push,
            )?,
            Expr::Tunnel { dreg, key, mode } => self.load(
                *dreg,
                Field::Tunnel {
                    key: *key,
                    mode: *mode,
                },
                push,
            )?,
            Expr::Numgen {
                dreg,
                modulus: 1,
                offset,
                ..
            } => push(Op::Set {
                to: span(*dreg, 4)?,
                bytes: boxed(&offset.to_ne_bytes()),
            }),
            Expr::Numgen { dreg, kind, .. } => push(Op::Forget {
                to: span(*dreg, 4)?,
                why: Box::new(Reason::stateful(match kind {
                    0 => "a number that counts packets",
                    _ => "a random number",
                })),
            }),
            Expr::Hash {
                sreg: Some(sreg),
                dreg,
                len,
                modulus,
                seed,
                offset,
                kind: 0,
            } => push(Op::Hash {
                from: span(*sreg, *len)?,
                to: span(*dreg, 4)?,
                seed: *seed,
                modulus: *modulus,
                offset: *offset,
            }),
            Expr::Hash { dreg, .. } => self.load(*dreg, Field::SymmetricHash, push)?,
            Expr::Objref { kind, name } => self.object(*kind, name, push),
            Expr::ObjrefMap { sreg, set } => {
                let (set, model) = self.names.set(set)?;
                push(Op::ObjectMap {
                    set,
                    from: span(*sreg, model.key_len)?,
                });
            }
            Expr::Inner { expr, .. } => {
                let why = Reason::missing("packets in tunnels are not evaluated");
                match **expr {
                    Expr::Payload { dreg, len, .. } => push(Op::Forget {
                        to: span(dreg, len)?,
                        why: Box::new(why.clone()),
                    }),
                    Expr::Meta { dreg, .. } => push(Op::Forget {
                        to: span(dreg, 4)?,
                        why: Box::new(why.clone()),
                    }),
                    _ => {}
                }
                push(Op::Doubt(Box::new(why)));
            }
            Expr::Match { name, rev, info } => {
                let place = self.place()?;
                let what = Match::decode(name, *rev as u8, info, place.family);
                push(Op::Match(Box::new(Matcher::new(&what, place, self.fields))));
            }
            Expr::Target { name, rev, info } => {
                let place = self.place()?;
                let what = Target::decode(name, *rev as u8, info, place.family);
                push(Op::Action(Box::new(Action::new(&what, place, self.fields))));
            }
            Expr::Unknown { name, .. } => push(Op::Doubt(Box::new(Reason::new(
                DoubtKind::Missing,
                format!("the expression {name} is not known"),
            )))),
        }
        Some(())
    }

    fn place(&self) -> Option<Place> {
        let family = match self.family {
            Family::Ip => xtables::Family::V4,
            Family::Ip6 => xtables::Family::V6,
            _ => return None,
        };
        Some(Place { family, hook: None })
    }

    fn synproxy(&mut self, push: &mut impl FnMut(Op)) {
        let proto = self.fields.slot(Field::Meta(meta_key::L4PROTO));
        let flags = self.fields.slot(Field::Payload {
            base: PayloadBase::Transport,
            offset: 13,
            len: 1,
        });
        push(Op::Synproxy { proto, flags });
    }

    /// `nft_objref_eval()`: what an object's own evaluation does to the rule.
    fn object(&mut self, kind: u32, name: &str, push: &mut impl FnMut(Op)) {
        match kind {
            2 | 4 | 5 => {
                let what = match kind {
                    2 => "quota",
                    4 => "limit",
                    _ => "connlimit",
                };
                let text = format!("how far the {what} {name} is used up");
                let why = Box::new(Reason::new(DoubtKind::State, text));
                push(match kind {
                    5 => Op::Connlimit(why),
                    _ => Op::Doubt(why),
                });
            }
            10 => match self.names.object(kind, name) {
                Some(ObjectState::Expr(Expr::Synproxy { .. })) => self.synproxy(push),
                _ => push(Op::Doubt(Box::new(Reason::missing(
                    "this synproxy is not known",
                )))),
            },
            // `nft_ct_expect_obj_eval()` (net/netfilter/nft_ct.c): breaks where there is no connection, or too many are expected of it.
            9 => push(doubt_stateful("how many connections are expected")),
            1 | 3 | 6..=8 => {}
            _ => push(Op::Doubt(Box::new(Reason::new(
                DoubtKind::Missing,
                format!("objects of type {kind} are not known"),
            )))),
        }
    }
}

fn doubt_stateful(text: &'static str) -> Op {
    Op::Doubt(Box::new(Reason::stateful(text)))
}
