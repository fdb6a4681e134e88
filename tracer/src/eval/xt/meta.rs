//! Matches on what belongs to the packet without being in it (net/netfilter/xt_mark.c, xt_pkttype.c, xt_owner.c, xt_physdev.c,
//! xt_devgroup.c, xt_cgroup.c, xt_cpu.c, v6.18).

use super::{
    super::{
        field::{Field, Value},
        outcome::Words,
        read::{Fields, Reader, Slot},
    },
    Answer, Bounds, XtField,
    answer::{self, All, Test, missing, not, words},
    ip::{name, pattern},
};
use crate::xtables::{
    info::{Cond, Masked, Span},
    matches::{
        Match,
        meta::{Devgroup, Owner, Physdev},
    },
};

/// `NFT_META_*`.
mod key {
    pub(super) const MARK: u32 = 3;
    pub(super) const SKUID: u32 = 10;
    pub(super) const SKGID: u32 = 11;
    pub(super) const PKTTYPE: u32 = 19;
    pub(super) const CPU: u32 = 20;
    pub(super) const IIFGROUP: u32 = 21;
    pub(super) const OIFGROUP: u32 = 22;
    pub(super) const CGROUP: u32 = 23;
}

/// A number in host order as the first of 16 bytes.
pub(super) fn host(number: u32) -> u128 {
    u128::from(u32::from_be_bytes(number.to_ne_bytes())) << 96
}

/// The packet's mark.
pub(super) const MARK: Field = Field::Meta(key::MARK);

/// A match on such a thing.
#[derive(Debug, Clone)]
pub(super) struct Meta {
    /// What it looks at: the mark, the user, the incoming interface's group or port.
    first: Slot,
    /// The group, the outgoing interface's group or port.
    second: Slot,
    want: Want,
}

#[derive(Debug, Clone)]
enum Want {
    Mark(Cond<Masked<u32>>),
    Pkttype(Cond<i32>),
    Owner(Owner),
    Physdev(Physdev),
    Devgroup(Devgroup),
    Classid(Cond<u32>),
    Cpu(Cond<u32>),
}

impl Meta {
    /// For those matches that this module has.
    pub(super) fn new(what: &Match, fields: &mut Fields) -> Option<Self> {
        let (first, second, want) = match what {
            Match::Mark(want) => (MARK, MARK, Want::Mark(want.mark)),
            Match::Pkttype(want) => {
                let field = Field::Meta(key::PKTTYPE);
                (field, field, Want::Pkttype(want.kind))
            }
            Match::Owner(want) => (
                Field::Meta(key::SKUID),
                Field::Meta(key::SKGID),
                Want::Owner(want.clone()),
            ),
            Match::Physdev(want) => (
                Field::Xt(XtField::PhysinName),
                Field::Xt(XtField::PhysoutName),
                Want::Physdev(want.clone()),
            ),
            Match::Devgroup(want) => (
                Field::Meta(key::IIFGROUP),
                Field::Meta(key::OIFGROUP),
                Want::Devgroup(want.clone()),
            ),
            Match::Cgroup(want) => {
                let field = Field::Meta(key::CGROUP);
                let (None, Some(class)) = (&want.path, want.classid) else {
                    return None;
                };
                (field, field, Want::Classid(class))
            }
            Match::Cpu(want) => {
                let field = Field::Meta(key::CPU);
                (field, field, Want::Cpu(want.cpu))
            }
            _ => return None,
        };
        Some(Self {
            first: fields.slot(first),
            second: fields.slot(second),
            want,
        })
    }

    pub(super) fn test(&self, reader: &mut Reader<'_>) -> Test {
        match &self.want {
            Want::Mark(want) => {
                let has = answer::host(reader, self.first, &Answer::Miss)?;
                Ok((has & want.want.mask == want.want.value) != want.inverted)
            }
            Want::Pkttype(want) => {
                let has = answer::number(reader, self.first, 1, &Answer::Miss)? as i32;
                Ok((has == want.want) != want.inverted)
            }
            Want::Owner(want) => self.owner(want, reader),
            Want::Physdev(want) => self.physdev(want, reader),
            Want::Devgroup(want) => {
                let mut all = All::default();
                for (cond, slot) in [(want.source, self.first), (want.destination, self.second)] {
                    let Some(cond) = cond else { continue };
                    let test = answer::host(reader, slot, &Answer::Miss);
                    let Masked { value, mask } = cond.want;
                    all.also(test.map(|has| ((has ^ value) & mask == 0) != cond.inverted))?;
                }
                all.end()
            }
            Want::Classid(want) | Want::Cpu(want) => {
                let has = answer::host(reader, self.first, &Answer::Miss)?;
                Ok((has == want.want) != want.inverted)
            }
        }
    }

    /// See [`super::Matcher::asks`].
    pub(super) fn bounds(&self) -> Option<Bounds> {
        let Want::Mark(want) = &self.want else {
            return None;
        };
        let value = host(want.want.value);
        let mask = host(want.want.mask);
        Some((self.first, mask, (value, value), want.inverted))
    }

    /// `owner_mt()`: a packet without a socket matches if all that is asked for is turned round.
    fn owner(&self, want: &Owner, reader: &mut Reader<'_>) -> Test {
        let uid = match reader.value(self.first) {
            Value::Bytes(_) => answer::host(reader, self.first, &Answer::Miss)?,
            Value::Break => {
                let users = [want.uid, want.gid]
                    .iter()
                    .flatten()
                    .all(|cond| cond.inverted);
                let socket = want.socket.is_none_or(|cond| cond.inverted);
                // No socket, or one that no file stands for.
                let none = users && socket && !want.supplementary_groups;
                let no_file = users && want.socket.is_none_or(|cond| !cond.inverted);
                return if none == no_file {
                    Ok(none)
                } else {
                    Err(missing("whether the packet has a socket is not known"))
                };
            }
            Value::Unknown(reason) => return Err(Answer::Unknown(reason.clone())),
        };
        let mut all = All::default();
        all.also(Ok(want.socket.is_none_or(|cond| !cond.inverted)))?;
        let within = |cond: Cond<Span<u32>>, has: u32| cond.want.contains(&has) != cond.inverted;
        all.also(Ok(want.uid.is_none_or(|cond| within(cond, uid))))?;
        if let Some(cond) = want.gid {
            let test = answer::host(reader, self.second, &Answer::Miss);
            all.also(match test {
                Ok(gid) if !cond.want.contains(&gid) && want.supplementary_groups => {
                    Err(missing("the process's supplementary groups are not known"))
                }
                test => test.map(|gid| within(cond, gid)),
            })?;
        }
        all.end()
    }

    /// `physdev_mt()`.
    fn physdev(&self, want: &Physdev, reader: &mut Reader<'_>) -> Test {
        let input = port(reader, self.first)?;
        let output = port(reader, self.second)?;
        let flag = |cond: Option<Cond<()>>, has: bool| cond.is_none_or(|cond| has != cond.inverted);
        if input.is_none() && output.is_none() {
            // Not a packet of a bridge.
            let names = [&want.input, &want.output];
            return Ok(names
                .iter()
                .all(|cond| cond.as_ref().is_none_or(|c| c.inverted))
                && [want.is_in, want.is_out, want.is_bridged]
                    .iter()
                    .all(|cond| flag(*cond, false)));
        }
        if !flag(want.is_bridged, output.is_some())
            || !flag(want.is_in, input.is_some())
            || !flag(want.is_out, output.is_some())
        {
            return Ok(false);
        }
        let same = |cond: &Cond<String>, has: u128| {
            let (name, mask) = pattern(&cond.want);
            (has & mask == name) != cond.inverted
        };
        if let (Some(cond), Some(has)) = (&want.input, input)
            && !same(cond, has)
        {
            return Ok(false);
        }
        Ok(match (&want.output, output) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(cond), Some(has)) => same(cond, has),
        })
    }

    pub(super) fn words(&self, reader: &mut Reader<'_>) -> Words {
        match &self.want {
            Want::Mark(want) => {
                let has = answer::host(reader, self.first, &Answer::Miss);
                words(
                    "mark",
                    mark(want),
                    answer::found(has.map(|has| format!("{has:#x}"))),
                )
            }
            Want::Pkttype(want) => {
                let text = |kind: i32| match kind {
                    0 => "unicast".to_owned(),
                    1 => "broadcast".to_owned(),
                    2 => "multicast".to_owned(),
                    other => other.to_string(),
                };
                let has = answer::number(reader, self.first, 1, &Answer::Miss);
                let wanted = format!("{}{}", not(want.inverted), text(want.want));
                words(
                    "pkt-type",
                    wanted,
                    answer::found(has.map(|has| text(has as i32))),
                )
            }
            Want::Owner(want) => {
                let (subject, cond, slot) = match (want.uid, want.gid) {
                    (Some(cond), _) => ("uid-owner", cond, self.first),
                    (None, Some(cond)) => ("gid-owner", cond, self.second),
                    (None, None) => return words("socket-exists", "", ""),
                };
                let has = answer::host(reader, slot, &Answer::Miss);
                let wanted = format!("{}{}", not(cond.inverted), cond.want);
                words(subject, wanted, answer::found(has))
            }
            Want::Physdev(want) => {
                let (subject, cond, slot) = match (&want.input, &want.output) {
                    (Some(cond), _) => ("physdev-in", cond, self.first),
                    (None, Some(cond)) => ("physdev-out", cond, self.second),
                    (None, None) => return words("physdev", "", ""),
                };
                let has = answer::wide(reader, slot, &Answer::Miss);
                let wanted = format!("{}{}", not(cond.inverted), cond.want);
                words(subject, wanted, answer::found(has.map(name)))
            }
            Want::Devgroup(want) => {
                let (subject, cond, slot) = match (want.source, want.destination) {
                    (Some(cond), _) => ("src-group", cond, self.first),
                    (None, Some(cond)) => ("dst-group", cond, self.second),
                    (None, None) => return words("devgroup", "", ""),
                };
                let has = answer::host(reader, slot, &Answer::Miss);
                words(
                    subject,
                    mark(&cond),
                    answer::found(has.map(|has| format!("{has:#x}"))),
                )
            }
            Want::Classid(want) | Want::Cpu(want) => {
                let subject = match self.want {
                    Want::Cpu(_) => "cpu",
                    _ => "cgroup",
                };
                let has = answer::host(reader, self.first, &Answer::Miss);
                let wanted = format!("{}{}", not(want.inverted), want.want);
                words(subject, wanted, answer::found(has))
            }
        }
    }
}

/// A mark under a mask as iptables writes it.
pub(super) fn mark(cond: &Cond<Masked<u32>>) -> String {
    format!("{}{}", not(cond.inverted), cond.want)
}

/// The name of a bridge port, if there is one.
fn port(reader: &mut Reader<'_>, slot: Slot) -> Result<Option<u128>, Answer> {
    match reader.wide(slot) {
        (Value::Bytes(_), wide) => Ok(Some(wide)),
        (Value::Break, _) => Ok(None),
        (Value::Unknown(reason), _) => Err(Answer::Unknown(reason.clone())),
    }
}
