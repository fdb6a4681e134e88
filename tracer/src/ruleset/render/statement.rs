//! Statements with an effect: counters, limits, log, NAT, changes of the packet, sets filled by rules.

use crate::ruleset::expr::{Expr, PayloadBase};
use crate::ruleset::model::Family;

use super::lift::{self, Lifter, raw};
use super::load;
use super::nat::address_family;
use super::node::{BitOp, Node, Payload, ct_key, ct_text, meta_key, meta_text, value_text};
use super::relation::{self, UNTYPED};
use super::set;
use super::stateful::stateful;
use super::types::{self, Kind, Order, Type, time_text};

impl<'a> Lifter<'a> {
    /// Adds the statement for an expression that is not a load or a match.
    pub(super) fn effect(&mut self, expr: &Expr) {
        let text = match expr {
            Expr::MetaSet { sreg, key } => {
                let kind = meta_key(*key).map_or(UNTYPED, |key| key.1);
                let value = self.operand(*sreg, kind);
                format!("{} set {value}", meta_text(*key))
            }
            Expr::CtSet {
                sreg,
                key,
                direction,
            } => self.ct_set(*sreg, *key, *direction),
            Expr::PayloadSet {
                sreg,
                base,
                offset,
                len,
                ..
            } => self.payload_set(*sreg, *base, *offset, *len),
            Expr::ExthdrSet {
                sreg,
                kind,
                offset,
                len,
                flags,
                op,
            } => {
                let option = Node::Exthdr(load::option(*kind, *offset, *len, *flags, *op));
                let value = self.operand(*sreg, option.kind());
                format!("{} set {value}", option.text(self.printer, option.kind()))
            }
            Expr::ExthdrReset { kind, op } => {
                let option = Node::Exthdr(load::option(*kind, 0, 1, 1, *op));
                format!("reset {}", option.text(self.printer, option.kind()))
            }
            Expr::Reject { kind, code } => self.reject(*kind, *code),
            Expr::Nat { .. } => self.nat(expr),
            Expr::Masq {
                flags,
                proto_min,
                proto_max,
            } => self.nat_ports("masquerade", *flags, *proto_min, *proto_max),
            Expr::Redir {
                flags,
                proto_min,
                proto_max,
            } => self.nat_ports("redirect", *flags, *proto_min, *proto_max),
            Expr::Tproxy {
                family,
                reg_addr,
                reg_port,
            } => self.tproxy(*family, *reg_addr, *reg_port),
            Expr::Dup {
                sreg_addr,
                sreg_dev,
            } => self.dup(*sreg_addr, *sreg_dev),
            Expr::Fwd {
                sreg_dev,
                sreg_addr,
                nfproto,
            } => {
                let device = self.operand(*sreg_dev, Type::Ifindex.kind());
                match (sreg_addr, nfproto.and_then(address_family)) {
                    (Some(addr), Some((family, kind))) => {
                        let addr = self.operand(*addr, kind);
                        format!("fwd {family} to {addr} device {device}")
                    }
                    _ => format!("fwd to {device}"),
                }
            }
            Expr::Queue { .. } => self.queue(expr),
            Expr::Objref { kind, name } => format!("{} \"{name}\"", object_word(*kind)),
            Expr::ObjrefMap { sreg, set } => self.objref_map(*sreg, set),
            Expr::Dynset { .. } => self.dynset(expr),
            _ => stateful(self.printer, expr),
        };
        self.push(text);
    }

    /// The text of what a register holds, used as `kind`.
    pub(super) fn operand(&mut self, register: u32, kind: Kind) -> String {
        let node = self.get(register);
        let node = self.complete(node);
        node.text(self.printer, kind)
    }

    fn ct_set(&mut self, sreg: u32, key: u32, direction: Option<u8>) -> String {
        const EVENTS: u32 = 18;
        let kind = ct_key(key).map_or(UNTYPED, |key| key.1);
        let value = match self.get(sreg) {
            Node::Value(bytes) if key == EVENTS => value_text(self.printer, kind, &bytes, ","),
            _ => self.operand(sreg, kind),
        };
        format!("{} set {value}", ct_text(key, direction, None))
    }

    /// A write to the packet. A field that is not whole bytes is written by changing some bits of what is there.
    fn payload_set(&mut self, sreg: u32, base: PayloadBase, offset: u32, len: u32) -> String {
        let mut target = load::payload(base, offset, len);
        self.context.name(&mut target);
        let mut value = self.get(sreg);
        if target.field.is_none()
            && let Some((run, bits)) = changed_bits(&value, &target)
            && let Some(mut field) = self.context.trim(&target, run)
        {
            self.context.name(&mut field);
            target = field;
            value = Node::Value(bits);
        }
        let target = self.complete(Node::Payload(target));
        let value = self.complete(value);
        let kind = target.kind();
        format!(
            "{} set {}",
            target.text(self.printer, kind),
            value.text(self.printer, kind)
        )
    }

    fn reject(&mut self, kind: u32, code: Option<u8>) -> String {
        let names = self.printer.names();
        let code = code.unwrap_or_default();
        let named = |ty| types::number_text(names, ty, u128::from(code), false);
        let network = self
            .context
            .proto(super::proto::Layer::Network)
            .map(|proto| proto.name);
        let mixed = !matches!(self.printer.table.family, Family::Ip | Family::Ip6);
        match (kind, network) {
            (1, _) => {
                let implied = self.context.implied_by_reset();
                self.remove(implied);
                "reject with tcp reset".to_owned()
            }
            (2, _) if code == 1 => "reject".to_owned(),
            (2, _) => format!("reject with icmpx {}", named(Type::IcmpxCode)),
            (0, Some(network @ ("ip" | "ip6"))) => {
                let implied = self.context.implied_by_icmp_code();
                self.remove(implied);
                let (word, ty, usual) = match network {
                    "ip" => ("icmp", Type::IcmpCode, 3),
                    _ => ("icmpv6", Type::Icmp6Code, 4),
                };
                if !mixed && code == usual {
                    "reject".to_owned()
                } else {
                    format!("reject with {word} {}", named(ty))
                }
            }
            // Which codes these are depends on the packet.
            (0, _) => format!("reject with icmp code {code}"),
            _ => format!("reject with [ type {kind} code {code} ]"),
        }
    }

    fn queue(&mut self, expr: &Expr) -> String {
        let Expr::Queue {
            num,
            total,
            flags,
            sreg,
        } = expr
        else {
            return raw(expr);
        };
        let mut words = Vec::new();
        if flags & 1 == 1 {
            words.push("bypass");
        }
        if flags & 2 == 2 {
            words.push("fanout");
        }
        let flags = if words.is_empty() {
            String::new()
        } else {
            format!(" flags {}", words.join(","))
        };
        let target = match sreg {
            Some(sreg) => self.operand(*sreg, Kind::new(Type::Integer, Order::Host, 16)),
            None => {
                let first = u32::from(num.unwrap_or_default());
                match u32::from(total.unwrap_or(1)) {
                    0 | 1 => first.to_string(),
                    total => format!("{first}-{}", first + total - 1),
                }
            }
        };
        format!("queue{flags} to {target}")
    }

    fn objref_map(&mut self, sreg: u32, name: &str) -> String {
        let Some(set) = self.set(name) else {
            let key = self.operand(sreg, UNTYPED);
            return format!("[ object {key} map @{name} ]");
        };
        let key = self.get_wide(sreg, set.key_len);
        let node = self.complete(Node::Map {
            key: Box::new(key),
            set,
            slice: None,
        });
        let word = object_word(set.obj_type.unwrap_or_default());
        format!("{word} {}", node.text(self.printer, node.kind()))
    }

    fn dynset(&mut self, expr: &Expr) -> String {
        let Expr::Dynset {
            set,
            op,
            sreg_key,
            sreg_data,
            timeout,
            exprs,
            ..
        } = expr
        else {
            return raw(expr);
        };
        let known = self.set(set);
        let key = match known {
            Some(known) => self.get_wide(*sreg_key, known.key_len),
            None => self.get(*sreg_key),
        };
        let key = self.complete_field(key);
        let mut element = match known {
            Some(known) => set::key_text(self.printer, known, &key),
            None => key.text(self.printer, UNTYPED),
        };
        if let Some(timeout) = timeout.filter(|timeout| *timeout != 0) {
            element += &format!(" timeout {}", time_text(timeout));
        }
        let stateless = self.printer.stateless();
        for expr in exprs {
            element += &format!(" {}", lift::single(&stateless, expr));
        }
        let meter = known.filter(|known| set::is_meter(known));
        if let (Some(meter), None) = (meter, sreg_data) {
            let size = meter.size.unwrap_or_default();
            return format!("meter {set} size {size} {{ {element} }}");
        }
        if let Some(sreg_data) = sreg_data {
            let data = match known {
                Some(known) => self.get_wide(*sreg_data, known.data_len.unwrap_or_default()),
                None => self.get(*sreg_data),
            };
            let data = self.complete_field(data);
            element += &format!(
                " : {}",
                data.text(self.printer, known.map_or(UNTYPED, set::data_kind))
            );
        }
        let word = match op {
            0 => "add",
            1 => "update",
            _ => "delete",
        };
        format!("{word} @{set} {{ {element} }}")
    }
}

/// The bits of the target that a write changes: their place, and the value they get. `value` is what is there, with some bits cleared
/// and some set.
fn changed_bits(value: &Node<'_>, target: &Payload) -> Option<((u32, u32), Vec<u8>)> {
    let zeros = vec![0; (target.len / 8) as usize];
    let (node, set) = match value {
        Node::Op(BitOp::Or, left, right) => match &**right {
            Node::Value(set) => (&**left, set.clone()),
            _ => return None,
        },
        node => (node, zeros),
    };
    let (node, keep) = match node {
        Node::Op(BitOp::And, left, right) => match &**right {
            Node::Value(keep) => (&**left, keep.clone()),
            _ => return None,
        },
        node => (node, vec![0xff; set.len()]),
    };
    let Node::Payload(source) = node else {
        return None;
    };
    if (source.layer, source.offset, source.len) != (target.layer, target.offset, target.len) {
        return None;
    }
    let changed: Vec<u8> = keep
        .iter()
        .zip(&set)
        .map(|(keep, set)| !keep | set)
        .collect();
    let run = relation::run(&changed)?;
    Some((run, types::bits(&set, run.0, run.1)))
}

/// The name of an object's type.
pub(super) fn object_type(kind: u32) -> &'static str {
    match kind {
        1 => "counter",
        2 => "quota",
        3 => "ct helper",
        4 => "limit",
        5 => "ct count",
        6 => "tunnel",
        7 => "ct timeout",
        8 => "secmark",
        9 => "ct expectation",
        10 => "synproxy",
        _ => "unknown",
    }
}

/// What stands before an object's name in a rule.
fn object_word(kind: u32) -> String {
    match kind {
        3 | 7 | 9 => format!("{} set", object_type(kind)),
        8 => "meta secmark set".to_owned(),
        kind => format!("{} name", object_type(kind)),
    }
}
