//! How deep into packets rules look: so much has to be captured of a packet for the evaluator to follow them.

use crate::{
    ruleset::{
        expr::{Expr, PayloadBase},
        model::{Family, Ruleset},
    },
    xtables::{
        self,
        legacy::Table,
        matches::{
            Match,
            payload::{StringMatch, U32, U32Op},
        },
    },
};

/// The longest IPv4 header, and the longest TCP header.
const HEADER: u32 = 60;

/// What rules ask of whoever captures for the evaluator.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reach {
    /// Bytes from the network header on that they can read at named places: strings, u32, payload expressions. `u32::MAX`: all that there
    /// are. What stands behind the extension headers of IPv6 may be deeper.
    pub bytes: u32,
    /// They have matches to whose extension headers [`super::overlong`] applies.
    pub extensions: bool,
}

impl Reach {
    /// Of these rules.
    pub fn new<'a>(nft: Option<&Ruleset>, legacy: impl IntoIterator<Item = &'a Table>) -> Self {
        let nft = nft.into_iter().flat_map(|nft| &nft.tables);
        let nft = nft.flat_map(|table| {
            let rules = table.chains.iter().flat_map(|chain| &chain.rules);
            let exprs = rules.flat_map(|rule| &rule.exprs);
            exprs.map(|expr| of_expr(expr, table.family))
        });
        let legacy = legacy.into_iter().flat_map(|table| {
            let rules = table.chains.iter().flat_map(|chain| &chain.rules);
            rules.flat_map(|rule| rule.matches.iter().map(of_match))
        });
        nft.chain(legacy).fold(Self::default(), Self::and)
    }

    /// Of these and those.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.max(other.bytes),
            extensions: self.extensions || other.extensions,
        }
    }
}

impl From<u32> for Reach {
    fn from(bytes: u32) -> Self {
        Self {
            bytes,
            extensions: false,
        }
    }
}

fn of_expr(expr: &Expr, family: Family) -> Reach {
    match expr {
        Expr::Payload {
            base, offset, len, ..
        }
        | Expr::PayloadSet {
            base, offset, len, ..
        } => {
            let before = match base {
                PayloadBase::Network => 0,
                PayloadBase::Transport => HEADER,
                PayloadBase::Inner => 2 * HEADER,
                // Captured whole, or not evaluated.
                PayloadBase::Link | PayloadBase::Tunnel => return Reach::default(),
            };
            offset.saturating_add(*len).saturating_add(before).into()
        }
        Expr::Match { name, rev, info } => {
            let family = match family {
                Family::Ip6 => xtables::Family::V6,
                _ => xtables::Family::V4,
            };
            of_match(&Match::decode(name, *rev as u8, info, family))
        }
        _ => Reach::default(),
    }
}

fn of_match(what: &Match) -> Reach {
    match what {
        Match::String(StringMatch { to, .. }) => u32::from(*to).into(),
        Match::U32(U32 { tests, .. }) => tests
            .iter()
            .map(|test| {
                let moves = |(op, _): &(U32Op, u32)| *op == U32Op::At;
                match test.steps.iter().any(moves) {
                    true => u32::MAX,
                    false => test.start.saturating_add(4),
                }
            })
            .max()
            .unwrap_or(0)
            .into(),
        Match::Hbh(_) | Match::Dst(_) | Match::Rt(_) | Match::Ah6(_) | Match::Ipv6Header(_) => {
            Reach {
                bytes: 0,
                extensions: true,
            }
        }
        _ => Reach::default(),
    }
}
