//! Conntrack's view of a logged packet, where nobody has read it from the packet itself.
//!
//! The kernel adds it to the log if it can and was asked to. Otherwise conntrack is asked for the packet's connection when the log
//! arrives, a moment later. Only what must have been so at the packet's moment is said; the rest is not known.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    NFPROTO_IPV4, NFPROTO_IPV6,
    conntrack::{STATUS, TCP_STATES},
};
use crate::{
    eval::packet::{self as view, Tracking},
    event::{self, CtState},
    netlink::conntrack::{Connection, Tuple},
    packet::{Family, Packet},
    ruleset::{
        expr::Expr,
        model::{self, Ruleset},
    },
    xtables::{
        self,
        legacy::{Jump, Table},
        targets::Target,
    },
};

const TCP: u8 = 6;
const UDP: u8 = 17;
/// Echo request and reply of ICMP and ICMPv6.
const ECHO: [u8; 2] = [8, 0];
const ECHO_V6: [u8; 2] = [128, 129];
/// `IPS_*` (include/uapi/linux/netfilter/nf_conntrack_common.h, v6.18).
const EXPECTED: u32 = 1;
const SEEN_REPLY: u32 = 1 << 1;
const ASSURED: u32 = 1 << 2;
/// `TCP_CONNTRACK_SYN_SENT`.
const SYN_SENT: u8 = 1;
const SYN: u8 = 0x02;
/// FIN, SYN, RST and ACK.
const KIND: u8 = 0x17;

/// How a network namespace's rules use conntrack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Use {
    /// It tracks packets of IPv4, or of IPv6, for sure.
    ipv4: bool,
    ipv6: bool,
    /// Some packets may not be tracked, or by a helper's expectation be related to another connection.
    special: bool,
    /// There may be zones: the same tuple can be of several connections.
    zones: bool,
    /// Addresses are translated: a packet may not show what its connection was asked for by.
    nat: bool,
}

impl Use {
    /// Of these rulesets. A rule that asks for connections switches their tracking on (`nf_ct_netns_get()`,
    /// net/netfilter/nf_conntrack_proto.c, v6.18).
    pub(super) fn of<'a>(
        nft: Option<&Ruleset>,
        legacy: impl IntoIterator<Item = &'a Table>,
    ) -> Self {
        let mut found = Self::default();
        for table in nft.iter().flat_map(|nft| &nft.tables) {
            let rules = table.chains.iter().flat_map(|chain| &chain.rules);
            for expr in rules.flat_map(|rule| &rule.exprs) {
                found.expr(table.family, expr);
            }
        }
        for table in legacy {
            let family = match table.family {
                xtables::Family::V4 => model::Family::Ip,
                xtables::Family::V6 => model::Family::Ip6,
            };
            for rule in table.chains.iter().flat_map(|chain| &chain.rules) {
                for found_match in &rule.matches {
                    found.matches(family, found_match.name());
                }
                if let Jump::Target(target) = &rule.jump {
                    found.target(family, target);
                }
            }
        }
        found
    }

    fn expr(&mut self, family: model::Family, expr: &Expr) {
        /// `NFT_CT_ZONE`.
        const ZONE: u32 = 17;
        match expr {
            Expr::CtSet { key: ZONE, .. } => self.zones = true,
            Expr::Notrack => self.special = true,
            // A helper, an expectation: `NFT_OBJECT_CT_HELPER`, `NFT_OBJECT_CT_EXPECT`. Others may be given by a map.
            Expr::Objref { kind: 3 | 9, .. } | Expr::ObjrefMap { .. } => self.special = true,
            Expr::Match { name, .. } => return self.matches(family, name),
            Expr::Target { name, rev, info } => {
                let rev = u8::try_from(*rev).unwrap_or(u8::MAX);
                let target = Target::decode(name, rev, info, xtables::Family::V4);
                return self.target(family, &target);
            }
            _ => {}
        }
        self.nat |= matches!(
            expr,
            Expr::Nat { .. } | Expr::Masq { .. } | Expr::Redir { .. }
        );
        if matches!(
            expr,
            Expr::Ct { .. }
                | Expr::CtSet { .. }
                | Expr::Connlimit { .. }
                | Expr::Nat { .. }
                | Expr::Masq { .. }
                | Expr::Redir { .. }
        ) {
            self.on(family);
        }
    }

    fn matches(&mut self, family: model::Family, name: &str) {
        if matches!(
            name,
            "conntrack" | "state" | "connmark" | "connbytes" | "connlabel" | "connlimit" | "helper"
        ) {
            self.on(family);
        }
    }

    fn target(&mut self, family: model::Family, target: &Target) {
        match target.name() {
            "CT" | "NOTRACK" => {
                self.special = true;
                self.zones = true;
            }
            "CONNMARK" => self.on(family),
            "SNAT" | "DNAT" | "MASQUERADE" | "REDIRECT" | "NETMAP" => {
                self.on(family);
                self.nat = true;
            }
            _ => {}
        }
    }

    fn on(&mut self, family: model::Family) {
        match family {
            model::Family::Ip => self.ipv4 = true,
            model::Family::Ip6 => self.ipv6 = true,
            model::Family::Inet => (self.ipv4, self.ipv6) = (true, true),
            _ => {}
        }
    }

    /// Whether the connections of packets of family `pf` can be asked for by their tuples.
    pub(super) fn can_ask(self, pf: u8) -> bool {
        !self.zones && matches!(pf, NFPROTO_IPV4 | NFPROTO_IPV6)
    }

    /// Whether a packet of family `pf` that has no connection yet is given a new one.
    fn makes_new(self, pf: u8) -> bool {
        !self.special
            && match pf {
                NFPROTO_IPV4 => self.ipv4,
                NFPROTO_IPV6 => self.ipv6,
                _ => false,
            }
    }
}

/// What conntrack had to say about the packet's tuple.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// This connection has it.
    Found(Box<Connection>),
    /// None has.
    Nothing,
    /// It could not be asked.
    Unknown,
}

/// What is known of a packet's connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Tracked {
    /// For the evaluator.
    pub(super) tracking: Tracking,
    /// For the event.
    pub(super) conntrack: Option<event::Conntrack>,
}

/// The tuple that the packet is of, in its own direction; `None`: it has none, or not enough of it was captured.
pub(super) fn tuple(packet: &Packet, bytes: &[u8]) -> Option<Tuple> {
    if packet.fragment.is_some() {
        return None;
    }
    let proto = packet.proto?;
    let (from, to) = match packet.icmp {
        Some(icmp) => {
            let echo = match packet.family {
                Family::Ipv4 => ECHO,
                _ => ECHO_V6,
            };
            let header = match packet.family {
                Family::Ipv4 => usize::from(bytes.first()? & 0x0f) * 4,
                // No extension headers.
                _ if *bytes.get(6)? == proto.0 => 40,
                _ => return None,
            };
            let id = bytes.get(header + 4..)?.first_chunk()?;
            let known = echo.contains(&icmp.kind);
            known.then(|| {
                (
                    u16::from_be_bytes(*id),
                    u16::from_be_bytes([icmp.kind, icmp.code]),
                )
            })?
        }
        None if proto.has_ports() => (packet.sport?, packet.dport?),
        None => return None,
    };
    Some(Tuple {
        src: packet.src?,
        dst: packet.dst?,
        proto: proto.0,
        from,
        to,
    })
}

/// What an answer to this tuple has.
pub(super) fn inverse(tuple: &Tuple) -> Tuple {
    let (from, to) = match tuple.proto {
        1 | 58 => {
            let [kind, code] = tuple.to.to_be_bytes();
            let kind = match kind {
                8 => 0,
                0 => 8,
                128 => 129,
                129 => 128,
                other => other,
            };
            (tuple.from, u16::from_be_bytes([kind, code]))
        }
        _ => (tuple.to, tuple.from),
    };
    Tuple {
        src: tuple.dst,
        dst: tuple.src,
        proto: tuple.proto,
        from,
        to,
    }
}

/// What follows from conntrack's answer; `pf` is the hook's family.
pub(super) fn conclude(
    used: Use,
    pf: u8,
    packet: &Packet,
    tuple: &Tuple,
    answer: &Answer,
) -> Tracked {
    match answer {
        Answer::Found(found) => match state(found, packet, tuple) {
            Some((state, info)) => known(found, state, info),
            None => Tracked::default(),
        },
        // What is dropped before it is confirmed is in no table.
        Answer::Nothing if used.makes_new(pf) && begins(packet) => Tracked {
            tracking: match used.nat {
                true => Tracking::Unknown,
                false => Tracking::Connection(view::Connection {
                    info: 2,
                    original: view_tuple(tuple),
                    reply: view_tuple(&inverse(tuple)),
                    tcp_state: (tuple.proto == TCP).then_some(SYN_SENT),
                    ..view::Connection::default()
                }),
            },
            conntrack: Some(event::Conntrack::stateless(CtState::New)),
        },
        Answer::Nothing | Answer::Unknown => Tracked::default(),
    }
}

/// Whether the packet can begin a connection, and be nothing else.
fn begins(packet: &Packet) -> bool {
    match (packet.proto.map(|proto| proto.0), packet.flags, packet.icmp) {
        (Some(TCP), Some(flags), _) => flags.0 & KIND == SYN,
        (Some(UDP), _, _) => true,
        (Some(1), _, Some(icmp)) => icmp.kind == ECHO[0],
        (Some(58), _, Some(icmp)) => icmp.kind == ECHO_V6[0],
        _ => false,
    }
}

/// State and `enum ip_conntrack_info` of a packet, from its connection as it is a moment later (`resolve_normal_ct()`,
/// net/netfilter/nf_conntrack_core.c, v6.18). Segments of TCP may also have been invalid, which no connection tells.
fn state(found: &Connection, packet: &Packet, tuple: &Tuple) -> Option<(CtState, u8)> {
    let original = *tuple == found.orig || inverse(tuple) == found.reply;
    let reply = *tuple == found.reply || inverse(tuple) == found.orig;
    let seen_reply = found.status & SEEN_REPLY != 0;
    if tuple.proto == TCP {
        let first = begins(packet) && found.tcp_state == Some(SYN_SENT);
        return (original && first && !seen_reply && found.status & EXPECTED == 0)
            .then_some((CtState::New, 2));
    }
    match (original, reply) {
        (true, false) if !seen_reply && found.status & EXPECTED != 0 => Some((CtState::Related, 1)),
        (true, false) if !seen_reply => Some((CtState::New, 2)),
        // The first answer may have come since; not of a connection that has been one for seconds.
        (true, false) => (found.status & ASSURED != 0).then_some((CtState::Established, 0)),
        (false, true) => Some((CtState::Established, 3)),
        _ => None,
    }
}

/// What the kernel has added to the log; `info` is `enum ip_conntrack_info`.
pub(super) fn told(found: &Connection, info: u32) -> Tracked {
    let (state, info) = match info {
        0 => (CtState::Established, 0),
        1 => (CtState::Related, 1),
        2 => (CtState::New, 2),
        3 => (CtState::Established, 3),
        4 => (CtState::Related, 4),
        _ => return Tracked::default(),
    };
    known(found, state, info)
}

fn known(found: &Connection, state: CtState, info: u8) -> Tracked {
    let tcp_state = found.tcp_state.and_then(|s| TCP_STATES.get(usize::from(s)));
    Tracked {
        tracking: Tracking::Connection(view::Connection {
            info,
            status: found.status,
            mark: found.mark,
            zone: found.zone,
            original: view_tuple(&found.orig),
            reply: view_tuple(&found.reply),
            tcp_state: found.tcp_state,
        }),
        conntrack: Some(event::Conntrack {
            status: STATUS
                .iter()
                .filter(|(bit, _)| found.status & bit != 0)
                .map(|&(_, name)| name.into())
                .collect(),
            mark: Some(found.mark),
            zone: Some(found.zone),
            tcp_state: tcp_state.map(|&name| name.into()),
            nat: (inverse(&found.orig) != found.reply).then(|| event::Nat {
                orig: event_tuple(&found.orig),
                reply: event_tuple(&found.reply),
            }),
            ..event::Conntrack::stateless(state)
        }),
    }
}

fn event_tuple(tuple: &Tuple) -> event::Tuple {
    let ports = crate::packet::Proto(tuple.proto).has_ports();
    event::Tuple {
        src: tuple.src,
        sport: ports.then_some(tuple.from),
        dst: tuple.dst,
        dport: ports.then_some(tuple.to),
    }
}

fn view_tuple(tuple: &Tuple) -> view::Tuple {
    let octets = |address: IpAddr| -> [u8; 16] {
        match address {
            IpAddr::V4(v4) => {
                let mut octets = [0; 16];
                let [a, b, c, d] = Ipv4Addr::octets(&v4);
                [octets[0], octets[1], octets[2], octets[3]] = [a, b, c, d];
                octets
            }
            IpAddr::V6(v6) => Ipv6Addr::octets(&v6),
        }
    };
    view::Tuple {
        src: octets(tuple.src),
        dst: octets(tuple.dst),
        sport: tuple.from.to_be_bytes(),
        dport: tuple.to.to_be_bytes(),
        l3proto: match tuple.src {
            IpAddr::V4(_) => NFPROTO_IPV4,
            IpAddr::V6(_) => NFPROTO_IPV6,
        },
        l4proto: tuple.proto,
    }
}

#[cfg(test)]
mod tests;
