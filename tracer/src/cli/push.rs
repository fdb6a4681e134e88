//! What of a filter expression the kernel's side of the filter can check.
//!
//! Only conditions that every packet which the expression accepts must meet are taken: the operands of
//! its topmost `and`s, where they are plain ones. The expression itself is run on each drop that the
//! kernel's side lets through, so that what is left out here costs time and nothing else.

use super::plan::{Filter, PortMatch, PrefixMatch, Side};
use super::values::{self, Ports, Prefix};
use crate::expr::has_word;
use crate::packet::Proto;
use fwtrace_abi::{PORTS, PREFIXES};

/// What was done with an expression's operands, each in its own words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pushed {
    /// Checked by the kernel's side.
    pub(super) kernel: Vec<String>,
    /// Checked on the captured bytes only.
    pub(super) rest: Vec<String>,
}

/// Adds to `filter` what it can check of `text`, an expression that libpcap has compiled.
pub(super) fn push(text: &str, filter: &mut Filter) -> Pushed {
    let operands: Vec<(String, Option<Condition>)> = operands(text)
        .into_iter()
        .map(|operand| {
            let condition = condition(&operand);
            (spell(text, &operand), condition)
        })
        .collect();
    // An address of IPv4 is looked for in ARP too, unless something else says IP.
    let ip = filter.ip_version.is_some()
        || filter.proto.is_some()
        || !filter.ports.is_empty()
        || !filter.prefixes.is_empty()
        || operands
            .iter()
            .filter_map(|(_, condition)| *condition)
            .any(|condition| !condition.maybe_arp);
    let mut pushed = Pushed::default();
    for (text, condition) in operands {
        let taken = condition
            .filter(|condition| ip || !condition.maybe_arp)
            .is_some_and(|condition| condition.add(filter));
        if taken {
            pushed.kernel.push(text);
        } else {
            pushed.rest.push(text);
        }
    }
    pushed
}

/// What packets must be, where it says something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Condition {
    version: Option<u8>,
    proto: Option<u8>,
    prefix: Option<PrefixMatch>,
    ports: Option<PortMatch>,
    /// ARP can meet the operand as well.
    maybe_arp: bool,
}

impl Condition {
    /// Adds it to `filter`; false, and nothing, if that has no room for it. Conditions of one side are
    /// alternatives, so that a side takes those of one operand, and none if the flags have given some.
    fn add(&self, filter: &mut Filter) -> bool {
        let fits = |mine: Option<u8>, other: Option<u8>| {
            mine.is_none() || other.is_none() || mine == other
        };
        let prefixes = self.prefix.is_none_or(|prefix| {
            filter.prefixes.len() < PREFIXES
                && filter.prefixes.iter().all(|p| p.side != prefix.side)
        });
        let ports = self.ports.is_none_or(|ports| {
            filter.ports.len() < PORTS && filter.ports.iter().all(|p| p.side != ports.side)
        });
        if !prefixes
            || !ports
            || !fits(self.version, filter.ip_version)
            || !fits(self.proto, filter.proto.map(|proto| proto.0))
        {
            return false;
        }
        let mut both = filter.clone();
        both.ip_version = both.ip_version.or(self.version);
        both.proto = both.proto.or(self.proto.map(Proto));
        both.prefixes.extend(self.prefix);
        both.ports.extend(self.ports);
        // A contradiction to the flags: no packet meets both, which the expression's run shows.
        if both.check().is_err() {
            return false;
        }
        *filter = both;
        true
    }
}

/// A token of an expression: what it is, and where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Token<'a> {
    kind: Kind<'a>,
    begin: usize,
    end: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind<'a> {
    And,
    Or,
    Open,
    Close,
    /// A word, `not`, or a sign that plain conditions do not have.
    Word(&'a str),
}

/// Signs that stand for themselves, wherever they stand.
const SIGNS: [char; 14] = [
    '!', '&', '|', '<', '>', '=', '[', ']', '+', '*', '%', '^', '(', ')',
];

fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("&&") || rest.starts_with("||") {
            2
        } else if SIGNS.contains(&first) {
            1
        } else {
            rest.find(|c: char| c.is_whitespace() || SIGNS.contains(&c))
                .unwrap_or(rest.len())
        };
        let begin = text.len() - rest.len();
        let (word, behind) = rest.split_at(length);
        tokens.push(Token {
            kind: match word {
                "and" | "&&" => Kind::And,
                "or" | "||" => Kind::Or,
                "(" => Kind::Open,
                ")" => Kind::Close,
                word => Kind::Word(word),
            },
            begin,
            end: begin + length,
        });
        rest = behind.trim_start();
    }
    tokens
}

/// The operands of the topmost `and`s. `and` and `or` bind alike, from the left: what stands before the
/// last `or` is one operand with what follows it.
fn operands(text: &str) -> Vec<Vec<Token<'_>>> {
    let tokens = tokens(text);
    // Behind these, offsets and so the meaning of all that follows are others; a backslash or a quote
    // makes a name of a keyword.
    let elsewhere = ["vlan", "mpls", "pppoed", "pppoes", "geneve", "vxlan"];
    if elsewhere.iter().any(|word| has_word(text, word)) || text.contains(['\\', '"', '\'']) {
        return vec![tokens];
    }
    let mut operands = Vec::new();
    split(&tokens, &mut operands);
    operands
}

fn split<'a>(tokens: &[Token<'a>], operands: &mut Vec<Vec<Token<'a>>>) {
    let mut depth = 0_u32;
    let mut begins = Vec::new();
    let mut first = 0;
    for (at, token) in tokens.iter().enumerate() {
        // `src and dst port 80` is one operand.
        let beside = [at.checked_sub(1), at.checked_add(1)].map(|at| tokens.get(at?));
        let is_side = |token: Option<&Token<'_>>| {
            token.is_some_and(|t| matches!(t.kind, Kind::Word("src" | "dst")))
        };
        match token.kind {
            Kind::And | Kind::Or if beside.into_iter().all(is_side) => {}
            Kind::Open => depth += 1,
            Kind::Close => depth = depth.saturating_sub(1),
            Kind::And if depth == 0 => begins.push(at),
            // What came before belongs to the same operand.
            Kind::Or if depth == 0 => begins.clear(),
            _ => {}
        }
    }
    for end in begins.into_iter().chain([tokens.len()]) {
        let operand = tokens.get(first..end).unwrap_or_default();
        match operand {
            [open, inner @ .., close]
                if open.kind == Kind::Open && close.kind == Kind::Close && is_balanced(inner) =>
            {
                split(inner, operands);
            }
            _ => operands.push(operand.to_vec()),
        }
        first = end + 1;
    }
}

/// Whether each bracket has its other one.
fn is_balanced(tokens: &[Token<'_>]) -> bool {
    let mut depth = 0_i32;
    for token in tokens {
        match token.kind {
            Kind::Open => depth += 1,
            Kind::Close => depth -= 1,
            _ => {}
        }
        if depth < 0 {
            return false;
        }
    }
    depth == 0
}

/// An operand as it stands in the expression.
fn spell(text: &str, operand: &[Token<'_>]) -> String {
    let begin = operand.first().map_or(0, |token| token.begin);
    let end = operand.last().map_or(0, |token| token.end);
    text.get(begin..end).unwrap_or_default().to_owned()
}

/// What the kernel's side can check of an operand.
fn condition(operand: &[Token<'_>]) -> Option<Condition> {
    let words: Option<Vec<&str>> = operand
        .iter()
        .map(|token| match token.kind {
            Kind::Word(word) => Some(word),
            _ => None,
        })
        .collect();
    let words = words?;
    let (proto, rest) = match words.split_first() {
        Some((first, rest)) => match protocol(first) {
            Some(condition) => (Some(condition), rest),
            None => (None, words.as_slice()),
        },
        None => return None,
    };
    let (side, rest) = match rest {
        ["src", rest @ ..] => (Some(Side::Src), rest),
        ["dst", rest @ ..] => (Some(Side::Dst), rest),
        rest => (None, rest),
    };
    let base = proto.unwrap_or_default();
    let by_version = base.proto.is_none();
    let by_transport = proto.is_none_or(|p| p.proto.is_some_and(|proto| Proto(proto).has_ports()));
    match (rest, side) {
        ([], None) => proto,
        (["proto", number], None) if by_version => {
            // The kernel's side looks behind the extension headers of IPv6, libpcap does not.
            let number: u8 = number.parse().ok()?;
            let extension = matches!(number, 0 | 43 | 44 | 51 | 60);
            (!extension || base.version == Some(4)).then_some(Condition {
                proto: Some(number),
                ..base
            })
        }
        (["port", port], _) if by_transport => {
            let port = port.parse().ok()?;
            Some(with_ports(base, port, port, side))
        }
        (["portrange", range], _) if by_transport => {
            let (first, last) = range.split_once('-')?;
            let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
            Some(with_ports(base, first.min(last), first.max(last), side))
        }
        (["host", address], _) if by_version => with_prefix(base, address, side, true),
        (["net", address], _) if by_version => with_prefix(base, address, side, false),
        ([address], Some(_)) if by_version => with_prefix(base, address, side, true),
        _ => None,
    }
}

/// What a protocol's name says: those that mean the same to libpcap and to the kernel's side. (`ah` does
/// not: there it is a header before the transport's.)
fn protocol(name: &str) -> Option<Condition> {
    let (version, proto) = match name {
        "ip" => (Some(4), None),
        "ip6" => (Some(6), None),
        "tcp" => (None, Some(6)),
        "udp" => (None, Some(17)),
        "sctp" => (None, Some(132)),
        "esp" => (None, Some(50)),
        "icmp" => (Some(4), Some(1)),
        "igmp" => (Some(4), Some(2)),
        "icmp6" => (Some(6), Some(58)),
        _ => return None,
    };
    Some(Condition {
        version,
        proto,
        ..Condition::default()
    })
}

fn with_ports(base: Condition, first: u16, last: u16, side: Option<Side>) -> Condition {
    let ports = Ports { first, last };
    Condition {
        ports: Some(PortMatch::new(ports, side.unwrap_or(Side::Any))),
        ..base
    }
}

/// Of an address; names are libpcap's to look up.
fn with_prefix(
    base: Condition,
    address: &str,
    side: Option<Side>,
    host: bool,
) -> Option<Condition> {
    let prefix: Prefix = if host {
        let address: std::net::IpAddr = address.parse().ok()?;
        values::prefix(&address.to_string()).ok()?
    } else {
        values::prefix(address).ok()?
    };
    let prefix = PrefixMatch::new(prefix, side.unwrap_or(Side::Any));
    if base
        .version
        .is_some_and(|version| version != prefix.version())
    {
        return None;
    }
    Some(Condition {
        prefix: Some(prefix),
        maybe_arp: base.version.is_none() && prefix.version() == 4,
        ..base
    })
}

#[cfg(test)]
mod tests;
