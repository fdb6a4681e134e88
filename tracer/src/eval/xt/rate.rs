//! Matches that count packets, or draw lots: what they say is known in few cases only (net/netfilter/xt_limit.c, xt_hashlimit.c,
//! xt_recent.c, xt_statistic.c, xt_quota.c, xt_connlimit.c, v6.18).

use super::{
    super::{
        field::{Field, Value},
        outcome::Words,
        read::Reader,
    },
    Answer, XtField,
    answer::{Test, stateful, words},
    ct::key::DIRECTION,
};
use crate::xtables::matches::{Match, rate::Statistic, recent::Recent};

/// A probability of 1.
const CERTAIN: u32 = 0x8000_0000;

/// A match whose answer depends on other packets.
#[derive(Debug, Clone)]
pub(super) enum Rate {
    /// Not, after all.
    Always { subject: &'static str, holds: bool },
    /// How many connections there are, of packets that can be counted as one.
    Connlimit,
    /// The subject, and why it cannot be told.
    Depends(&'static str, &'static str),
}

impl Rate {
    /// For those matches that this module has.
    pub(super) fn new(what: &Match) -> Option<Self> {
        Some(match what {
            Match::Limit(_) => Self::Depends("limit", "a rate limit's tokens are not known"),
            Match::Hashlimit(_) => {
                Self::Depends("hashlimit", "a rate limit's tokens are not known")
            }
            Match::Connlimit(_) => Self::Connlimit,
            Match::Connbytes(_) => {
                Self::Depends("connbytes", "the connection's counters are not known")
            }
            Match::Quota(want) if want.bytes.want == 0 => Self::Always {
                subject: "quota",
                holds: want.bytes.inverted,
            },
            Match::Quota(_) => Self::Depends("quota", "what is left of the quota is not known"),
            Match::Nfacct(_) => Self::Depends("nfacct", "the object's quota is not known"),
            Match::Rateest(_) => Self::Depends("rateest", "the estimated rate is not known"),
            Match::Recent(want) => recent(want),
            Match::Statistic(want) => statistic(want),
            _ => return None,
        })
    }

    pub(super) fn test(&self, reader: &mut Reader<'_>) -> Test {
        match self {
            Self::Connlimit if is_no_connection(reader) => Err(Answer::Drop),
            Self::Connlimit => Err(stateful("the number of connections is not known")),
            Self::Always { holds, .. } => Ok(*holds),
            Self::Depends(_, reason) => Err(stateful(reason)),
        }
    }

    pub(super) fn words(&self) -> Words {
        match self {
            Self::Always { subject, .. } | Self::Depends(subject, _) => words(*subject, "", ""),
            Self::Connlimit => words("connlimit", "", ""),
        }
    }
}

/// Whether a packet has no connection, and cannot begin one: where connections are counted, it is dropped (net/netfilter/xt_connlimit.c,
/// nft_connlimit.c, v6.18).
pub(in crate::eval) fn is_no_connection(reader: &mut Reader<'_>) -> bool {
    let direction = Field::Ct {
        key: DIRECTION,
        direction: None,
    };
    let tuple = reader.read(Field::Xt(XtField::Tuple));
    tuple.known().and_then(<[u8]>::first) == Some(&0) && reader.read(direction) == Value::Break
}

fn recent(want: &Recent) -> Rate {
    if want.flags & Recent::SET != 0 {
        return Rate::Always {
            subject: "recent",
            holds: !want.inverted,
        };
    }
    Rate::Depends("recent", "the list of recent addresses is not known")
}

fn statistic(want: &Statistic) -> Rate {
    let always = |holds| Rate::Always {
        subject: "statistic",
        holds,
    };
    match want {
        Statistic::Random(cond) if cond.want == 0 => always(cond.inverted),
        Statistic::Random(cond) if cond.want >= CERTAIN => always(!cond.inverted),
        Statistic::Random(_) => Rate::Depends("statistic", "a random number decides"),
        Statistic::Nth {
            every: 0, inverted, ..
        } => always(!inverted),
        Statistic::Nth { .. } => Rate::Depends("statistic", "every n-th packet matches"),
        Statistic::Other(_) => Rate::Depends("statistic", "the mode is not known"),
    }
}
