//! Loads: what a rule takes from the packet's surroundings.

use crate::ruleset::expr::{Expr, PayloadBase};

use super::exthdr::{self, Exthdr};
use super::lift::{Lifter, raw};
use super::node::{Node, Payload};
use super::proto::{self, Layer};
use super::types::{Kind, Order, Type};

impl Lifter<'_> {
    /// The loads that stand for themselves.
    pub(super) fn step_load(&mut self, expr: &Expr) {
        use Order::{Big, Host};
        match expr {
            Expr::Fib {
                dreg,
                result,
                flags,
            } => {
                let (text, ty, bits) = fib(*result, *flags);
                self.load_text(*dreg, text, ty, Host, bits);
            }
            Expr::Rt { dreg, key } => {
                let (text, ty, order, bits) = match key {
                    0 => ("rt classid", Type::Realm, Host, 32),
                    1 => ("rt ip nexthop", Type::Ip, Big, 32),
                    2 => ("rt ip6 nexthop", Type::Ip6, Big, 128),
                    3 => ("rt mtu", Type::Integer, Host, 16),
                    4 => ("rt ipsec", Type::Boolean, Host, 8),
                    _ => return self.load_text(*dreg, raw(expr), Type::Hex, Host, 32),
                };
                self.load_text(*dreg, text.to_owned(), ty, order, bits);
            }
            Expr::Socket { dreg, key, level } => {
                let level = level.unwrap_or_default();
                let (text, ty, bits) = match key {
                    0 => ("socket transparent".to_owned(), Type::Integer, 8),
                    1 => ("socket mark".to_owned(), Type::Mark, 32),
                    2 => ("socket wildcard".to_owned(), Type::Integer, 8),
                    3 => (format!("socket cgroupv2 level {level}"), Type::Cgroupv2, 64),
                    _ => (raw(expr), Type::Hex, 32),
                };
                self.load_text(*dreg, text, ty, Host, bits);
            }
            Expr::Osf { dreg, ttl, flags } => {
                let ttl = match ttl {
                    1 => "ttl loose ",
                    2 => "ttl skip ",
                    _ => "",
                };
                let what = if flags & 1 == 1 { "version" } else { "name" };
                self.load_text(*dreg, format!("osf {ttl}{what}"), Type::Str, Host, 128);
            }
            Expr::Xfrm {
                dreg,
                key,
                direction,
                spnum,
            } => match xfrm(*key, *direction, *spnum) {
                Some((text, kind)) => self.load(*dreg, Node::Load(text, kind)),
                None => self.load_text(*dreg, raw(expr), Type::Hex, Host, 32),
            },
            Expr::Numgen {
                dreg,
                modulus,
                kind,
                offset,
            } => {
                let kind = if *kind == 0 { "inc" } else { "random" };
                let offset = if *offset == 0 {
                    String::new()
                } else {
                    format!(" offset {offset}")
                };
                let text = format!("numgen {kind} mod {modulus}{offset}");
                self.load_text(*dreg, text, Type::Integer, Host, 32);
            }
            Expr::Hash {
                sreg,
                dreg,
                len,
                modulus,
                seed,
                offset,
                kind,
            } => {
                let seed = seed
                    .map(|seed| format!(" seed 0x{seed:x}"))
                    .unwrap_or_default();
                let offset = if *offset == 0 {
                    String::new()
                } else {
                    format!(" offset {offset}")
                };
                let rest = format!(" mod {modulus}{seed}{offset}");
                match sreg {
                    Some(sreg) if *kind == 0 => {
                        let input = self.get_wide(*sreg, *len);
                        self.load(*dreg, Node::Hash(Box::new(input), rest));
                    }
                    _ => self.load_text(*dreg, format!("symhash{rest}"), Type::Integer, Host, 32),
                }
            }
            Expr::Tunnel { dreg, key, mode } => {
                let mode = match mode {
                    1 => " rx",
                    2 => " tx",
                    _ => "",
                };
                let (key, ty, bits) = if *key == 0 {
                    ("path", Type::Boolean, 8)
                } else {
                    ("id", Type::Integer, 32)
                };
                self.load_text(*dreg, format!("tunnel{mode} {key}"), ty, Host, bits);
            }
            Expr::Inner {
                kind, expr: inner, ..
            } => self.inner(expr, *kind, inner),
            _ => self.effect(expr),
        }
    }

    /// A load from the packet inside a tunnel.
    fn inner(&mut self, whole: &Expr, kind: u32, inner: &Expr) {
        let tunnel = match kind {
            1 => "vxlan",
            2 => "geneve",
            _ => "inner",
        };
        let (dreg, node) = match inner {
            Expr::Payload {
                dreg,
                base,
                offset,
                len,
            } => (*dreg, Node::Payload(payload(*base, *offset, *len))),
            Expr::Meta { dreg, key } => (*dreg, Node::Meta(*key)),
            _ => return self.push(raw(whole)),
        };
        let kind = node.kind();
        let text = format!("{tunnel} {}", node.text(self.printer, kind));
        self.load_text(dreg, text, kind.ty, kind.order, kind.bits);
    }
}

/// Bytes as bits. The kernel takes no more than 255 (`nft_parse_u32_check`, net/netfilter/nft_payload.c, v6.18).
fn bits(bytes: u32) -> u32 {
    8 * bytes.min(255)
}

pub(super) fn payload(base: PayloadBase, offset: u32, len: u32) -> Payload {
    let layer = match base {
        PayloadBase::Link => Layer::Link,
        PayloadBase::Network => Layer::Network,
        PayloadBase::Transport => Layer::Transport,
        PayloadBase::Inner => Layer::Inner,
        PayloadBase::Tunnel => Layer::Tunnel,
    };
    Payload::raw(layer, bits(offset), bits(len))
}

pub(super) fn option(kind: u8, offset: u32, len: u32, flags: u32, op: u32) -> Exthdr {
    Exthdr {
        op,
        kind,
        offset: bits(offset),
        len: bits(len),
        present: flags & 1 == 1,
    }
}

/// The protocol that an option belongs to.
pub(super) fn option_proto(op: u32) -> Option<&'static proto::Proto> {
    match op {
        exthdr::op::TCP => Some(&proto::TCP),
        exthdr::op::IPV6 => Some(&proto::IP6),
        exthdr::op::IPV4 => Some(&proto::IP),
        _ => None,
    }
}

pub(super) fn fib(result: u32, flags: u32) -> (String, Type, u32) {
    const PRESENT: u32 = 32;
    let names = [
        (1, "saddr"),
        (2, "daddr"),
        (4, "mark"),
        (8, "iif"),
        (16, "oif"),
    ];
    let tuple: Vec<&str> = names
        .iter()
        .filter(|name| flags & name.0 != 0)
        .map(|name| name.1)
        .collect();
    let (result, ty, bits) = match result {
        1 => ("oif", Type::Ifindex, 32),
        2 => ("oifname", Type::Ifname, 128),
        3 => ("type", Type::FibAddr, 32),
        _ => ("unknown", Type::Hex, 32),
    };
    let ty = if flags & PRESENT == 0 {
        ty
    } else {
        Type::Boolean
    };
    (format!("fib {} {result}", tuple.join(" . ")), ty, bits)
}

/// `ipsec`: the text of a load, and what it is.
pub(super) fn xfrm(key: u32, direction: u8, spnum: u32) -> Option<(String, Kind)> {
    let (key, kind) = match key {
        1 => ("ip daddr", Type::Ip.kind()),
        2 => ("ip6 daddr", Type::Ip6.kind()),
        3 => ("ip saddr", Type::Ip.kind()),
        4 => ("ip6 saddr", Type::Ip6.kind()),
        5 => ("reqid", Kind::new(Type::Integer, Order::Host, 32)),
        6 => ("spi", Kind::new(Type::Integer, Order::Big, 32)),
        _ => return None,
    };
    let direction = if direction == 0 { "in" } else { "out" };
    let spnum = if spnum == 0 {
        String::new()
    } else {
        format!(" spnum {spnum}")
    };
    Some((format!("ipsec {direction}{spnum} {key}"), kind))
}
