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

/// Bytes from the network header on that these rules can read at named places: strings, u32, payload expressions. `u32::MAX`: all that
/// there are. What stands behind the extension headers of IPv6 may be deeper.
pub fn reach<'a>(nft: Option<&Ruleset>, legacy: impl IntoIterator<Item = &'a Table>) -> u32 {
    let nft = nft
        .into_iter()
        .flat_map(|nft| &nft.tables)
        .flat_map(|table| {
            let rules = table.chains.iter().flat_map(|chain| &chain.rules);
            let exprs = rules.flat_map(|rule| &rule.exprs);
            exprs.map(|expr| of_expr(expr, table.family))
        });
    let legacy = legacy.into_iter().flat_map(|table| {
        let rules = table.chains.iter().flat_map(|chain| &chain.rules);
        rules.flat_map(|rule| rule.matches.iter().map(of_match))
    });
    nft.chain(legacy).max().unwrap_or(0)
}

fn of_expr(expr: &Expr, family: Family) -> u32 {
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
                PayloadBase::Link | PayloadBase::Tunnel => return 0,
            };
            offset.saturating_add(*len).saturating_add(before)
        }
        // Decoded only where it may be one of those.
        Expr::Match { name, rev, info } if matches!(name.as_str(), "string" | "u32") => {
            let family = match family {
                Family::Ip6 => xtables::Family::V6,
                _ => xtables::Family::V4,
            };
            of_match(&Match::decode(name, *rev as u8, info, family))
        }
        _ => 0,
    }
}

fn of_match(what: &Match) -> u32 {
    match what {
        Match::String(StringMatch { to, .. }) => u32::from(*to),
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
            .unwrap_or(0),
        _ => 0,
    }
}
