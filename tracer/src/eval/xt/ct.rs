//! Matches on the packet's connection (net/netfilter/xt_conntrack.c, xt_connmark.c, v6.18).

use super::{
    super::{
        field::{Field, Value},
        outcome::Words,
        read::{Fields, Reader, Slot},
    },
    Answer, Bounds,
    answer::{self, All, Test, cond_span, not, words},
    ip::high,
    meta::{host, mark},
};
use crate::xtables::{
    Family,
    info::{Cond, Masked, Span},
    matches::{conntrack::Conntrack, meta::Mark},
};
use std::net::IpAddr;

/// `NFT_CT_*`.
pub(super) mod key {
    pub(in super::super) const STATE: u32 = 0;
    pub(in super::super) const DIRECTION: u32 = 1;
    pub(in super::super) const STATUS: u32 = 2;
    pub(in super::super) const MARK: u32 = 3;
    pub(in super::super) const EXPIRATION: u32 = 5;
    pub(in super::super) const SRC: u32 = 8;
    pub(in super::super) const DST: u32 = 9;
    pub(in super::super) const PROTOCOL: u32 = 10;
    pub(in super::super) const PROTO_SRC: u32 = 11;
    pub(in super::super) const PROTO_DST: u32 = 12;
}

/// `XT_CONNTRACK_STATE_*`.
const INVALID: u32 = 1;
const SNAT: u32 = 1 << 6;
const DNAT: u32 = 1 << 7;
const UNTRACKED: u32 = 1 << 8;
/// `NF_CT_STATE_UNTRACKED_BIT`: nf_tables' bit for what xtables has at `1 << 8`.
pub(super) const NFT_UNTRACKED: u32 = 1 << 6;
/// `IPS_SRC_NAT`.
const SRC_NAT: u32 = 1 << 4;
/// `IPS_DST_NAT`.
const DST_NAT: u32 = 1 << 5;

/// A datum of the connection.
pub(super) fn field(key: u32) -> Field {
    Field::Ct {
        key,
        direction: None,
    }
}

fn directed(key: u32, direction: u8) -> Field {
    Field::Ct {
        key,
        direction: Some(direction),
    }
}

/// A match on the connection.
#[derive(Debug, Clone)]
pub(super) enum Ct {
    Conntrack(Box<Compiled>),
    Mark { want: Cond<Masked<u32>>, slot: Slot },
}

/// `conntrack` and `state`.
#[derive(Debug, Clone)]
pub(super) struct Compiled {
    want: Conntrack,
    state: Slot,
    status: Slot,
    addresses: Vec<(&'static str, Slot, Cond<Masked<IpAddr>>)>,
    ports: Vec<(&'static str, Slot, Cond<Span<u16>>)>,
    protocol: Slot,
    direction: Slot,
    expires: Slot,
    family: Family,
}

fn states(bits: u32) -> String {
    let names = [
        (1, "INVALID"),
        (1 << 3, "NEW"),
        (1 << 2, "RELATED"),
        (1 << 1, "ESTABLISHED"),
        (UNTRACKED, "UNTRACKED"),
        (SNAT, "SNAT"),
        (DNAT, "DNAT"),
    ];
    let set: Vec<&str> = names
        .iter()
        .filter(|(bit, _)| bits & bit != 0)
        .map(|(_, name)| *name)
        .collect();
    set.join(",")
}

impl Ct {
    pub(super) fn conntrack(want: &Conntrack, family: Family, fields: &mut Fields) -> Self {
        let addresses = [
            ("ctorigsrc", key::SRC, 0, want.orig_src),
            ("ctorigdst", key::DST, 0, want.orig_dst),
            ("ctreplsrc", key::SRC, 1, want.reply_src),
            ("ctrepldst", key::DST, 1, want.reply_dst),
        ];
        let ports = [
            ("ctorigsrcport", key::PROTO_SRC, 0, want.orig_sport),
            ("ctorigdstport", key::PROTO_DST, 0, want.orig_dport),
            ("ctreplsrcport", key::PROTO_SRC, 1, want.reply_sport),
            ("ctrepldstport", key::PROTO_DST, 1, want.reply_dport),
        ];
        let mut slot = |field| fields.slot(field);
        Self::Conntrack(Box::new(Compiled {
            state: slot(field(key::STATE)),
            status: slot(field(key::STATUS)),
            addresses: addresses
                .into_iter()
                .filter_map(|(name, key, dir, cond)| Some((name, slot(directed(key, dir)), cond?)))
                .collect(),
            ports: ports
                .into_iter()
                .filter_map(|(name, key, dir, cond)| Some((name, slot(directed(key, dir)), cond?)))
                .collect(),
            protocol: slot(directed(key::PROTOCOL, 0)),
            direction: slot(field(key::DIRECTION)),
            expires: slot(field(key::EXPIRATION)),
            want: want.clone(),
            family,
        }))
    }

    pub(super) fn connmark(want: &Mark, fields: &mut Fields) -> Self {
        Self::Mark {
            want: want.mark,
            slot: fields.slot(field(key::MARK)),
        }
    }

    /// See [`super::Matcher::asks`].
    pub(super) fn bounds(&self) -> Option<Bounds> {
        let Self::Mark { want, slot } = self else {
            return None;
        };
        let value = host(want.want.value);
        Some((*slot, host(want.want.mask), (value, value), want.inverted))
    }

    pub(super) fn test(&self, reader: &mut Reader<'_>) -> Test {
        match self {
            Self::Conntrack(compiled) => compiled.test(reader),
            Self::Mark { want, slot } => {
                let has = answer::host(reader, *slot, &Answer::Miss)?;
                Ok((has & want.want.mask == want.want.value) != want.inverted)
            }
        }
    }

    pub(super) fn words(&self, reader: &mut Reader<'_>) -> Words {
        match self {
            Self::Conntrack(compiled) => compiled.words(reader),
            Self::Mark { want, slot } => {
                let has = answer::host(reader, *slot, &Answer::Miss);
                let found = answer::found(has.map(|has| format!("{has:#x}")));
                words("connmark", mark(want), found)
            }
        }
    }
}

impl Compiled {
    /// The packet's `XT_CONNTRACK_STATE_*` bits, and whether it has a connection.
    fn state(&self, reader: &mut Reader<'_>) -> Result<(u32, bool), Answer> {
        let bits = answer::host(reader, self.state, &Answer::Unknown(NO_STATE))?;
        Ok(match bits {
            INVALID => (INVALID, false),
            NFT_UNTRACKED => (UNTRACKED, false),
            bits => (bits, true),
        })
    }

    /// The state with the bits for NAT.
    fn full_state(&self, reader: &mut Reader<'_>) -> Result<u32, Answer> {
        let (mut bits, connected) = self.state(reader)?;
        let asks = self
            .want
            .state
            .is_some_and(|cond| u32::from(cond.want) & (SNAT | DNAT) != 0);
        if connected && asks {
            let status = answer::host(reader, self.status, &Answer::Miss)?;
            for (from, to) in [(SRC_NAT, SNAT), (DST_NAT, DNAT)] {
                if status & from != 0 {
                    bits |= to;
                }
            }
        }
        Ok(bits)
    }

    fn state_holds(&self, cond: Cond<u16>, reader: &mut Reader<'_>) -> Test {
        let has = self.full_state(reader)?;
        Ok((has & u32::from(cond.want) != 0) != cond.inverted)
    }

    /// `conntrack_mt()`.
    fn test(&self, reader: &mut Reader<'_>) -> Test {
        let mut all = All::default();
        if let Some(cond) = self.want.state {
            all.also(self.state_holds(cond, reader))?;
        }
        match self.state(reader) {
            // Without a connection nothing but the state is looked at.
            Ok((_, false)) => {
                all.also(Ok(self.want.state.is_some()))?;
                return all.end();
            }
            Ok((_, true)) => {}
            Err(answer) => all.also(Err(answer))?,
        }
        if let Some(direction) = self.want.direction {
            let has = answer::number(reader, self.direction, 1, &Answer::Miss);
            all.also(has.map(|has| (has == 0) == (direction as u8 == 0)))?;
        }
        for (_, slot, cond) in &self.addresses {
            let has = answer::wide(reader, *slot, &Answer::Miss);
            let (want, mask) = (high(cond.want.value), high(cond.want.mask));
            all.also(has.map(|has| ((has ^ want) & mask == 0) != cond.inverted))?;
        }
        if let Some(cond) = self.want.proto {
            let has = answer::number(reader, self.protocol, 1, &Answer::Miss);
            all.also(has.map(|has| (has == u128::from(cond.want)) != cond.inverted))?;
        }
        for (_, slot, cond) in &self.ports {
            let has = answer::number(reader, *slot, 2, &Answer::Miss);
            all.also(has.map(|has| cond.want.contains(&(has as u16)) != cond.inverted))?;
        }
        if let Some(cond) = self.want.status {
            let has = answer::host(reader, self.status, &Answer::Miss);
            all.also(has.map(|has| (has & u32::from(cond.want) != 0) != cond.inverted))?;
        }
        if let Some(cond) = self.want.expires {
            // Milliseconds.
            let has = answer::host(reader, self.expires, &Answer::Miss);
            all.also(has.map(|has| cond.want.contains(&(has / 1000)) != cond.inverted))?;
        }
        all.end()
    }

    fn words(&self, reader: &mut Reader<'_>) -> Words {
        if let Some(cond) = self.want.state
            && self.state_holds(cond, reader) != Ok(true)
        {
            let wanted = format!("{}{}", not(cond.inverted), states(u32::from(cond.want)));
            let found = answer::found(self.full_state(reader).map(states));
            return words("ctstate", wanted, found);
        }
        if let Some(cond) = self.want.status {
            let has = answer::host(reader, self.status, &Answer::Miss);
            let wanted = format!("{}{:#x}", not(cond.inverted), cond.want);
            return words(
                "ctstatus",
                wanted,
                answer::found(has.map(|h| format!("{h:#x}"))),
            );
        }
        if let Some((subject, slot, cond)) = self.addresses.first() {
            let has = answer::wide(reader, *slot, &Answer::Miss);
            let found = has.map(|has| super::ip::address(has, self.family));
            let Masked { value, mask } = cond.want;
            let wanted = format!("{}{value}/{mask}", not(cond.inverted));
            return words(*subject, wanted, answer::found(found));
        }
        if let Some((subject, slot, cond)) = self.ports.first() {
            let has = answer::number(reader, *slot, 2, &Answer::Miss);
            return words(*subject, cond_span(cond), answer::found(has));
        }
        words("conntrack", "", "")
    }
}

const NO_STATE: super::super::field::Reason =
    super::super::field::Reason::missing("the connection's state is not known");

/// The value of the state of a packet that is not tracked.
pub(super) fn untracked() -> Value {
    Value::u32(NFT_UNTRACKED)
}
