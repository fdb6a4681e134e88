//! Targets: what they do with the packet, and what they change of it (net/netfilter/xt_*.c, net/ipv4/netfilter/ipt_*.c, v6.18).

use super::{
    super::{
        before::{Before, Derived},
        field::{DoubtKind, Field, Reason, Value},
        read::{Fields, Reader, Slot},
    },
    Answer, Place, XtField,
    answer::{self, destination, network, source},
    ct::{field as ct_field, key, untracked},
    load::HERE,
    meta::{MARK, host},
    options::{tos, tos_field, tos_wide},
};
use crate::{
    ruleset::expr::{PayloadBase, Verdict},
    xtables::{
        Family,
        targets::{
            Target,
            conn::{Connmark, ConnmarkMode, Shift},
            packet::{Hops, HopsOp},
        },
    },
};

/// `NFT_META_PRIORITY`.
const PRIORITY: Field = Field::Meta(2);
/// `NFT_META_SECMARK`.
const SECMARK: Field = Field::Meta(14);
/// `NF_VERDICT_FLAG_QUEUE_BYPASS`.
const BYPASS: i32 = 0x8000;
const REWRITTEN: Reason = Reason::rewritten("a rule has rewritten it");

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
    target: Target,
    family: Family,
    /// What it reads first: the mark, the TOS, the hop limit, the TCP header.
    slot: Slot,
    /// The connection's mark.
    connmark: Slot,
}

impl Action {
    /// Compiles a target.
    pub fn new(what: &Target, place: Place, fields: &mut Fields) -> Self {
        let family = place.family;
        let field = match what {
            Target::Dscp(_) | Target::Tos(_) | Target::Ecn(_) => tos_field(family),
            Target::Ttl(_) | Target::Hl(_) => hops_field(family),
            Target::Tcpmss(_) | Target::Synproxy(_) => Field::Xt(XtField::Transport { need: 20 }),
            _ => MARK,
        };
        Self {
            target: what.clone(),
            family,
            slot: fields.slot(field),
            connmark: fields.slot(ct_field(key::MARK)),
        }
    }

    /// Runs it.
    pub fn run(&self, reader: &mut Reader<'_>) -> Effect {
        match &self.target {
            Target::Reject(_) => verdict(Verdict::DROP),
            Target::Nfqueue(queue) => {
                let bypass = if queue.bypass { BYPASS } else { 0 };
                verdict(Verdict::QUEUE | i32::from(queue.first) << 16 | bypass)
            }
            Target::Dnat(_)
            | Target::Snat(_)
            | Target::Masquerade(_)
            | Target::Redirect(_)
            | Target::Netmap(_) => verdict(Verdict::ACCEPT),
            Target::Tproxy(_) => Effect::Unknown(Reason::missing(
                "whether TPROXY finds a socket is not known",
            )),
            Target::Synproxy(_) => synproxy(self.transport(reader)),
            Target::Tcpmss(_) => match self.transport(reader) {
                // It drops what it cannot read.
                Err(Answer::Drop) => verdict(Verdict::DROP),
                Err(Answer::Unknown(reason)) => Effect::Unknown(reason),
                _ => {
                    self.forget(reader);
                    Effect::Continue
                }
            },
            Target::Mark(mark) => {
                self.change(reader, MARK, self.slot, |old| {
                    (old & !mark.mask) ^ mark.value
                });
                Effect::Continue
            }
            Target::Connmark(want) => {
                self.connection_mark(want, reader);
                Effect::Continue
            }
            Target::Classify(priority) => {
                reader.write(PRIORITY, Value::u32(*priority));
                Effect::Continue
            }
            Target::Ct(ct) => {
                if ct.notrack {
                    reader.write(ct_field(key::STATE), untracked());
                }
                Effect::Continue
            }
            Target::Dscp(dscp) => {
                self.set_tos(reader, |old| old & 3 | dscp << 2);
                Effect::Continue
            }
            Target::Tos(want) => {
                let (value, mask) = (want.tos.value, want.tos.mask);
                self.set_tos(reader, |old| (old & !mask) ^ value);
                Effect::Continue
            }
            Target::Ecn(want) => {
                if let Some(ect) = want.ip_ect {
                    self.set_tos(reader, |old| old & !3 | ect & 3);
                } else {
                    self.forget(reader);
                }
                Effect::Continue
            }
            Target::Ttl(hops) | Target::Hl(hops) => {
                self.set_hops(hops, reader);
                Effect::Continue
            }
            Target::Set(_)
            | Target::Hmark(_)
            | Target::Secmark(_)
            | Target::Connsecmark(_)
            | Target::Checksum(_)
            | Target::Tcpoptstrip(_)
            | Target::Dnpt(_)
            | Target::Snpt(_) => {
                self.forget(reader);
                Effect::Continue
            }
            Target::Audit(_)
            | Target::Idletimer(_)
            | Target::Led(_)
            | Target::Log(_)
            | Target::Nflog(_)
            | Target::Rateest(_)
            | Target::Tee(_)
            | Target::Trace => Effect::Continue,
            Target::Unknown { name, .. } => {
                let text = format!("target {name} is not evaluated");
                Effect::Unknown(Reason::new(DoubtKind::Missing, text))
            }
        }
    }

    /// The fields that it may change, for [`Reader::write`].
    pub fn writes(&self) -> Vec<Field> {
        match &self.target {
            Target::Mark(_) | Target::Hmark(_) => vec![MARK],
            Target::Connmark(want) => match want.mode {
                ConnmarkMode::Restore => vec![MARK],
                _ => vec![ct_field(key::MARK)],
            },
            Target::Classify(_) => vec![PRIORITY],
            Target::Ct(ct) if ct.notrack => vec![ct_field(key::STATE)],
            Target::Set(set) if set.map.is_some() => vec![MARK, PRIORITY],
            Target::Secmark(_) | Target::Connsecmark(_) => vec![SECMARK],
            Target::Dscp(_) | Target::Tos(_) => vec![tos_field(self.family)],
            Target::Ecn(want) if want.ip_ect.is_some() => vec![tos_field(self.family)],
            Target::Ecn(_) => vec![transport(12, 2)],
            Target::Ttl(_) | Target::Hl(_) => vec![hops_field(self.family)],
            Target::Tcpmss(_) | Target::Tcpoptstrip(_) => vec![transport(20, 40)],
            Target::Checksum(_) => vec![transport(6, 12)],
            Target::Dnpt(_) | Target::Snpt(_) => {
                vec![source(self.family), destination(self.family)]
            }
            _ => Vec::new(),
        }
    }

    /// What it makes of a field that is not known, but comes of what it was before it was written.
    pub(in super::super) fn derives(
        &self,
        reader: &mut Reader<'_>,
        before: &Before,
    ) -> Option<(Field, Derived)> {
        let tos = |bits: u8| tos_wide(self.family, bits);
        let (slot, and, xor) = match &self.target {
            Target::Mark(mark) => (self.slot, host(!mark.mask), host(mark.value)),
            Target::Connmark(want) if want.mode == ConnmarkMode::Set && want.shift.is_none() => {
                (self.connmark, host(!want.ctmask), host(want.ctmark))
            }
            Target::Dscp(dscp) => (self.slot, !tos(0xfc), tos(dscp.checked_shl(2)?)),
            Target::Tos(want) => (self.slot, !tos(want.tos.mask), tos(want.tos.value)),
            _ => return None,
        };
        let opened = reader.before(slot, before)?;
        Some((opened.field, opened.changed(and, xor)))
    }

    /// Whether it decides on the connection's translation: other nat chains of its kind are not asked then.
    pub fn binds(&self) -> bool {
        matches!(
            self.target,
            Target::Dnat(_)
                | Target::Snat(_)
                | Target::Masquerade(_)
                | Target::Redirect(_)
                | Target::Netmap(_)
        )
    }

    /// Whether a drop by it answers the sender.
    pub fn rejects(&self) -> bool {
        matches!(self.target, Target::Reject(_))
    }

    /// What it changes is not known from now on.
    fn forget(&self, reader: &mut Reader<'_>) {
        for field in self.writes() {
            reader.write(field, Value::Unknown(REWRITTEN));
        }
    }

    /// Changes a field of 32 bits in host order.
    fn change(
        &self,
        reader: &mut Reader<'_>,
        field: Field,
        slot: Slot,
        change: impl FnOnce(u32) -> u32,
    ) {
        let value = match answer::host(reader, slot, &Answer::Miss) {
            Ok(old) => Value::u32(change(old)),
            Err(Answer::Unknown(reason)) => Value::Unknown(reason),
            Err(_) => return,
        };
        reader.write(field, value);
    }

    /// `connmark_tg_shift()`.
    fn connection_mark(&self, want: &Connmark, reader: &mut Reader<'_>) {
        let shifted = |mark: u32| match want.shift {
            Some(Shift::Left(bits)) => mark.checked_shl(bits.into()).unwrap_or(0),
            Some(Shift::Right(bits)) => mark.checked_shr(bits.into()).unwrap_or(0),
            None => mark,
        };
        // A packet without a connection is left alone.
        let old = match answer::host(reader, self.connmark, &Answer::Miss) {
            Err(Answer::Miss) => return,
            other => other,
        };
        let mark = answer::host(reader, self.slot, &Answer::Miss);
        let (field, new) = match want.mode {
            ConnmarkMode::Set => (
                ct_field(key::MARK),
                old.map(|old| shifted((old & !want.ctmask) ^ want.ctmark)),
            ),
            ConnmarkMode::Save => (
                ct_field(key::MARK),
                old.and_then(|old| {
                    mark.map(|mark| (old & !want.ctmask) ^ shifted(mark & want.nfmask))
                }),
            ),
            ConnmarkMode::Restore => (
                MARK,
                old.and_then(|old| {
                    mark.map(|mark| (mark & !want.nfmask) ^ shifted(old & want.ctmask))
                }),
            ),
            ConnmarkMode::Other(_) => return,
        };
        let value = match new {
            Ok(new) => Value::u32(new),
            Err(_) => Value::Unknown(REWRITTEN),
        };
        reader.write(field, value);
    }

    fn set_tos(&self, reader: &mut Reader<'_>, change: impl FnOnce(u8) -> u8) {
        let value = match tos(reader, self.slot, self.family) {
            Ok(old) => {
                let new = change(old);
                match self.family {
                    Family::V4 => Value::bytes(&[new]),
                    Family::V6 => {
                        let both = answer::number(reader, self.slot, 2, &Answer::Miss);
                        let both = both.map_or(0, |both| both as u16);
                        Value::bytes(&(both & 0xf00f | u16::from(new) << 4).to_be_bytes())
                    }
                }
            }
            Err(_) => Value::Unknown(REWRITTEN),
        };
        reader.write(tos_field(self.family), value);
    }

    /// `ttl_tg()`, `hl_tg6()`.
    fn set_hops(&self, hops: &Hops, reader: &mut Reader<'_>) {
        let value = match answer::number(reader, self.slot, 1, &Answer::Miss) {
            Ok(old) => {
                let old = old as u8;
                Value::bytes(&[match hops.op {
                    HopsOp::Set => hops.value,
                    HopsOp::Inc => old.saturating_add(hops.value),
                    HopsOp::Dec => old.saturating_sub(hops.value),
                    HopsOp::Other(_) => old,
                }])
            }
            Err(_) => Value::Unknown(REWRITTEN),
        };
        reader.write(hops_field(self.family), value);
    }

    /// The TCP header's flags; [`Answer::Drop`] if it is cut short, [`Answer::Miss`] if there is none.
    fn transport(&self, reader: &mut Reader<'_>) -> Result<u8, Answer> {
        let value = answer::wide(reader, self.slot, &Answer::Drop)?;
        let [status, header @ ..] = value.to_be_bytes();
        let [.., length, flags, _] = header;
        match status {
            HERE if length >> 4 >= 5 => Ok(flags),
            super::load::FRAGMENT | super::load::FRAGMENT_ONE => Err(Answer::Miss),
            _ => Err(Answer::Drop),
        }
    }
}

fn verdict(code: i32) -> Effect {
    Effect::Verdict(Verdict { code, chain: None })
}

/// `synproxy_tg4()`: a SYN is answered in the server's place; whether an ACK belongs to such an answer is in its cookie.
fn synproxy(flags: Result<u8, Answer>) -> Effect {
    const FIN_SYN_RST: u8 = 7;
    const SYN: u8 = 2;
    const ACK: u8 = 0x10;
    match flags {
        Ok(flags) if flags & (FIN_SYN_RST | ACK) == SYN => verdict(Verdict::STOLEN),
        Ok(flags) if flags & (FIN_SYN_RST | ACK) == ACK => {
            Effect::Unknown(Reason::stateful("whether SYNPROXY takes the ACK"))
        }
        Ok(_) => Effect::Continue,
        Err(Answer::Unknown(reason)) => Effect::Unknown(reason),
        Err(_) => verdict(Verdict::DROP),
    }
}

fn hops_field(family: Family) -> Field {
    match family {
        Family::V4 => network(8, 1),
        Family::V6 => network(7, 1),
    }
}

fn transport(offset: u32, len: u32) -> Field {
    Field::Payload {
        base: PayloadBase::Transport,
        offset,
        len,
    }
}
