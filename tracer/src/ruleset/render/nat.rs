//! Statements that send packets elsewhere: NAT, tproxy, dup.

use crate::ruleset::expr::Expr;
use crate::ruleset::model::Family;

use super::lift::{Lifter, raw};
use super::node::Node;
use super::relation::UNTYPED;
use super::set;
use super::types::{self, Kind, Type};

/// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
const IPV4: u32 = 2;
const IPV6: u32 = 10;

impl<'a> Lifter<'a> {
    pub(super) fn nat(&mut self, expr: &Expr) -> String {
        let Expr::Nat {
            kind,
            family,
            addr_min,
            addr_max,
            proto_min,
            proto_max,
            flags,
        } = expr
        else {
            return raw(expr);
        };
        const NETMAP: u32 = 64;
        let (family_name, address) = address_family(*family).unwrap_or(("", UNTYPED));
        let mut family_shown = self.printer.table.family == Family::Inet;
        let mut ports = (*proto_min, *proto_max);
        let mut all_from_map = false;
        let mut target = String::new();
        if let Some(first) = addr_min {
            let first = self.get(*first);
            let first = self.complete(first);
            if let Node::Map { set, .. } = &first
                && set::has_more_than_addresses(set, *family == IPV6)
            {
                family_shown = true;
                all_from_map = true;
                ports = (None, None);
            }
            let last = addr_max.filter(|last| !all_from_map && Some(*last) != *addr_min);
            let last = last.map(|last| self.get(last));
            let bracketed = ports.0.is_some() && *family == IPV6;
            target = self.address(first, last, address, bracketed);
        }
        if let Some(first) = ports.0 {
            self.context.reset_dependencies();
            target += &format!(":{}", self.ports(first, ports.1));
        }
        let mut text = if *kind == 0 { "snat" } else { "dnat" }.to_owned();
        if !target.is_empty() {
            if family_shown && !family_name.is_empty() {
                text += &format!(" {family_name}");
            }
            if flags & NETMAP != 0 {
                text += " prefix";
            }
            text += &format!(" to {target}");
        }
        text + &nat_flags(*flags)
    }

    /// An address, range or prefix; IPv6 addresses before a port are in brackets.
    fn address(
        &mut self,
        first: Node<'a>,
        last: Option<Node<'a>>,
        kind: Kind,
        bracketed: bool,
    ) -> String {
        let brackets = |text: String, node: &Node<'_>| match node {
            Node::Value(_) if bracketed => format!("[{text}]"),
            _ => text,
        };
        let Some(last) = last else {
            let text = first.text(self.printer, kind);
            return brackets(text, &first);
        };
        if let (Node::Value(from), Node::Value(to)) = (&first, &last)
            && let Some(len) = types::prefix_of_range(from, to)
        {
            return format!("{}/{len}", first.text(self.printer, kind));
        }
        let last = self.complete(last);
        let from = brackets(first.text(self.printer, kind), &first);
        format!("{from}-{}", brackets(last.text(self.printer, kind), &last))
    }

    fn ports(&mut self, first: u32, last: Option<u32>) -> String {
        let kind = Type::Service.kind();
        let from = self.operand(first, kind);
        match last.filter(|last| *last != first) {
            Some(last) => format!("{from}-{}", self.operand(last, kind)),
            None => from,
        }
    }

    pub(super) fn nat_ports(
        &mut self,
        word: &str,
        flags: u32,
        first: Option<u32>,
        last: Option<u32>,
    ) -> String {
        let target = match first {
            Some(first) => {
                self.context.reset_dependencies();
                format!(" to :{}", self.ports(first, last))
            }
            None => String::new(),
        };
        format!("{word}{target}{}", nat_flags(flags))
    }

    pub(super) fn tproxy(&mut self, family: u32, addr: Option<u32>, port: Option<u32>) -> String {
        let mut text = "tproxy".to_owned();
        let known = address_family(family);
        if let (Family::Inet, Some((name, _))) = (self.printer.table.family, known) {
            text += &format!(" {name}");
        }
        text += " to ";
        if let Some(addr) = addr {
            let node = self.get(addr);
            let constant = matches!(node, Node::Value(_));
            let addr = self.operand(addr, known.map_or(UNTYPED, |known| known.1));
            text += &if constant && family == IPV6 {
                format!("[{addr}]")
            } else {
                addr
            };
        }
        if let Some(port) = port {
            self.context.reset_dependencies();
            text += &format!(":{}", self.operand(port, Type::Service.kind()));
        }
        text
    }

    pub(super) fn dup(&mut self, addr: Option<u32>, device: Option<u32>) -> String {
        let kind = match self.printer.table.family {
            Family::Ip => Type::Ip.kind(),
            Family::Ip6 => Type::Ip6.kind(),
            _ => UNTYPED,
        };
        let addr = addr.map(|addr| self.operand(addr, kind));
        let device = device.map(|device| self.operand(device, Type::Ifindex.kind()));
        match (addr, device) {
            (Some(addr), Some(device)) => format!("dup to {addr} device {device}"),
            (Some(to), None) | (None, Some(to)) => format!("dup to {to}"),
            (None, None) => "dup".to_owned(),
        }
    }
}

/// The name of a family and the kind of its addresses.
pub(super) fn address_family(family: u32) -> Option<(&'static str, Kind)> {
    match family {
        IPV4 => Some(("ip", Type::Ip.kind())),
        IPV6 => Some(("ip6", Type::Ip6.kind())),
        _ => None,
    }
}

fn nat_flags(flags: u32) -> String {
    let names = [(4, "random"), (16, "fully-random"), (8, "persistent")];
    let set: Vec<&str> = names
        .iter()
        .filter(|name| flags & name.0 != 0)
        .map(|name| name.1)
        .collect();
    if set.is_empty() {
        String::new()
    } else {
        format!(" {}", set.join(","))
    }
}
