//! xtables' matches and targets, of nf_tables rules (`nft_compat`) and of legacy tables alike.
//!
//! They are compiled once per generation ([`Matcher::new`], [`Action::new`]), where fields get their numbers, and run for each packet.
//! What a match says follows net/netfilter/xt_*.c and net/ipv{4,6}/netfilter/, v6.18.
//!
//! | module | subject |
//! |---|---|
//! | `load` | fields that only xtables ask for |
//! | `answer` | reading fields with three-valued answers |
//! | `ip` | `struct ipt_ip`, `struct ip6t_ip6` |
//! | `transport` | tcp, udp, sctp, multiport, icmp, esp, ah, ipcomp, mh |
//! | `options` | TCP options and flags: tcpmss, ecn |
//! | `extension` | extension headers of IPv6: hbh, dst, frag, rt, ah, ipv6header |
//! | `header` | length, ttl, dscp, tos, iprange, mac |
//! | `meta` | mark, owner, physdev, pkttype and other things beside the packet |
//! | `ct` | conntrack, state, connmark |
//! | `route` | addrtype, rpfilter |
//! | `set` | ipsets |
//! | `bytes` | string, u32, time |
//! | `rate` | what counts packets |
//! | `action` | targets |

mod action;
mod answer;
mod bytes;
mod ct;
mod extension;
mod header;
mod ip;
mod load;
mod meta;
mod options;
pub(super) mod rate;
mod route;
mod set;
#[cfg(test)]
mod tests;
mod transport;

pub use action::{Action, Effect};
pub use load::XtField;
pub(super) use load::load;

use super::{
    before::{Before, Compared},
    field::{DoubtKind, Reason},
    outcome::Words,
    read::{Fields, Reader, Slot},
};
use crate::xtables::{Family, legacy::Ip, matches::Match};

/// What a match says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It holds.
    Match,
    /// It does not.
    Miss,
    /// It drops the packet by itself (`hotdrop`): a header is cut short, a fragment that no port can be read from.
    Drop,
    /// It cannot be told.
    Unknown(Reason),
}

/// Whether and where a rule's rest is evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// IPv4 or IPv6.
    pub family: Family,
    /// `NF_INET_*` hook; `None` in a chain that more than one base chain may call.
    pub hook: Option<u8>,
}

/// What a match on bits of one field wants: the mask, the bounds, and whether it is turned round; the field's first byte is the highest of 16.
type Bounds = (Slot, u128, (u128, u128), bool);

/// A match, compiled.
#[derive(Debug, Clone)]
pub struct Matcher(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Address(ip::Address),
    Interface(ip::Interface),
    Protocol(ip::Protocol),
    Fragment(ip::Fragment),
    Transport(transport::Transport),
    Options(options::Options),
    Header(header::Header),
    Meta(meta::Meta),
    Ct(ct::Ct),
    Extension(extension::Extension),
    Route(route::Route),
    Set(set::Set),
    Bytes(bytes::Bytes),
    Rate(rate::Rate),
    /// Always holds: a comment.
    Nothing,
    /// Not evaluated, by its name.
    Foreign(String),
}

impl Matcher {
    /// Compiles a match. `fields` numbers those that it will read.
    pub fn new(what: &Match, place: Place, fields: &mut Fields) -> Self {
        let family = place.family;
        Self(match what {
            Match::Comment(_) => Kind::Nothing,
            Match::Tcp(_)
            | Match::Udp(_)
            | Match::Udplite(_)
            | Match::Sctp(_)
            | Match::Multiport(_)
            | Match::Icmp(_)
            | Match::Icmp6(_)
            | Match::Esp(_)
            | Match::Ah(_)
            | Match::Ipcomp(_)
            | Match::Mh(_) => transport::Transport::new(what, fields)
                .map_or_else(|| Kind::Foreign(what.name().to_owned()), Kind::Transport),
            Match::Tcpmss(want) => Kind::Options(options::Options::mss(want, fields)),
            Match::Ecn(want) => Kind::Options(options::Options::ecn(want, family, fields)),
            Match::Length(_)
            | Match::Ttl(_)
            | Match::Hl(_)
            | Match::Dscp(_)
            | Match::Tos(_)
            | Match::Iprange(_)
            | Match::Mac(_) => header::Header::new(what, family, fields)
                .map_or_else(|| Kind::Foreign(what.name().to_owned()), Kind::Header),
            Match::Mark(_)
            | Match::Pkttype(_)
            | Match::Owner(_)
            | Match::Physdev(_)
            | Match::Devgroup(_)
            | Match::Cgroup(_)
            | Match::Cpu(_) => meta::Meta::new(what, fields)
                .map_or_else(|| Kind::Foreign(what.name().to_owned()), Kind::Meta),
            Match::Conntrack(want) => Kind::Ct(ct::Ct::conntrack(want, family, fields)),
            Match::Connmark(want) => Kind::Ct(ct::Ct::connmark(want, fields)),
            Match::Addrtype(want) => Kind::Route(route::Route::addrtype(want, family, fields)),
            Match::Rpfilter(want) => Kind::Route(route::Route::rpfilter(want, family, fields)),
            Match::Hbh(_)
            | Match::Dst(_)
            | Match::Frag(_)
            | Match::Rt(_)
            | Match::Ah6(_)
            | Match::Ipv6Header(_) => extension::Extension::new(what, fields)
                .map_or_else(|| Kind::Foreign(what.name().to_owned()), Kind::Extension),
            Match::Set(want) => Kind::Set(set::Set::new(want, family, fields)),
            Match::String(want) => Kind::Bytes(bytes::Bytes::string(want, fields)),
            Match::U32(want) => Kind::Bytes(bytes::Bytes::u32(want, fields)),
            Match::Time(want) => Kind::Bytes(bytes::Bytes::time(want, fields)),
            other => rate::Rate::new(other)
                .map_or_else(|| Kind::Foreign(other.name().to_owned()), Kind::Rate),
        })
    }

    /// The conditions of `struct ipt_ip` or `struct ip6t_ip6`, in the order in which the kernel looks at them.
    pub fn of_ip(ip: &Ip, family: Family, fields: &mut Fields) -> Vec<Self> {
        let addresses = ip::Address::of(ip, family, fields)
            .into_iter()
            .map(Kind::Address);
        let interfaces = ip::Interface::of(ip, fields)
            .into_iter()
            .map(Kind::Interface);
        let mut kinds: Vec<Kind> = addresses.chain(interfaces).collect();
        kinds.extend(ip::Protocol::of(ip, family, fields).map(Kind::Protocol));
        kinds.extend(ip::Fragment::of(ip, family, fields).map(Kind::Fragment));
        kinds.into_iter().map(Self).collect()
    }

    /// Whether it holds.
    pub fn test(&self, reader: &mut Reader<'_>) -> Answer {
        let result = match &self.0 {
            Kind::Address(what) => what.test(reader),
            Kind::Interface(what) => what.test(reader),
            Kind::Protocol(what) => what.test(reader),
            Kind::Fragment(what) => what.test(reader),
            Kind::Transport(what) => what.test(reader),
            Kind::Options(what) => what.test(reader),
            Kind::Header(what) => what.test(reader),
            Kind::Meta(what) => what.test(reader),
            Kind::Ct(what) => what.test(reader),
            Kind::Extension(what) => what.test(reader),
            Kind::Route(what) => what.test(reader),
            Kind::Set(what) => what.test(reader),
            Kind::Bytes(what) => what.test(reader),
            Kind::Rate(what) => what.test(reader),
            Kind::Nothing => Ok(true),
            Kind::Foreign(name) => {
                let text = format!("match {name} is not evaluated");
                Err(Answer::Unknown(Reason::new(DoubtKind::Missing, text)))
            }
        };
        match result {
            Ok(true) => Answer::Match,
            Ok(false) => Answer::Miss,
            Err(answer) => answer,
        }
    }

    /// What decides if it cannot be told because a rule changes it later, and whether the answer is turned round.
    pub(super) fn asks(
        &self,
        reader: &mut Reader<'_>,
        before: &Before,
    ) -> Option<(Compared, bool)> {
        let (slot, mask, bounds, invert) = match &self.0 {
            Kind::Meta(what) => what.bounds()?,
            Kind::Header(what) => what.bounds()?,
            Kind::Ct(what) => what.bounds()?,
            _ => return None,
        };
        let compared = reader.before(slot, before)?.within(mask, bounds)?;
        Some((compared, invert))
    }

    /// For a match that does not hold: what it wanted and what the packet has, as an administrator says it.
    pub fn words(&self, reader: &mut Reader<'_>) -> Words {
        match &self.0 {
            Kind::Address(what) => what.words(reader),
            Kind::Interface(what) => what.words(reader),
            Kind::Protocol(what) => what.words(reader),
            Kind::Fragment(what) => what.words(reader),
            Kind::Transport(what) => what.words(reader),
            Kind::Options(what) => what.words(reader),
            Kind::Header(what) => what.words(reader),
            Kind::Meta(what) => what.words(reader),
            Kind::Ct(what) => what.words(reader),
            Kind::Extension(what) => what.words(reader),
            Kind::Route(what) => what.words(reader),
            Kind::Set(what) => what.words(reader),
            Kind::Bytes(what) => what.words(),
            Kind::Rate(what) => what.words(),
            Kind::Nothing => answer::words("comment", "", ""),
            Kind::Foreign(name) => answer::words(name, "", ""),
        }
    }
}
