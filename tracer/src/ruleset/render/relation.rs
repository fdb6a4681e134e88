//! Matches: a register compared with a constant, a range or a set.

use crate::ruleset::expr::CmpOp;
use crate::ruleset::model::Set;

use super::context::{Dependency, Key, meta};
use super::lift::Lifter;
use super::node::{BitOp, Node, Payload, value_text};
use super::proto;
use super::set;
use super::types::{self, Kind, Order, Type};

/// What a register is compared with, as the kernel has it.
#[derive(Debug, Clone)]
pub(super) enum Right<'a> {
    Value(Vec<u8>),
    Range(Vec<u8>, Vec<u8>),
    Set(&'a Set),
}

/// The one run of set bits in a mask: its first bit and its length.
pub(super) fn run(mask: &[u8]) -> Option<(u32, u32)> {
    let bit = |i: usize| mask[i / 8] >> (7 - i % 8) & 1 == 1;
    let total = mask.len() * 8;
    let first = (0..total).find(|i| bit(*i))?;
    let end = (first..total).find(|i| !bit(*i)).unwrap_or(total);
    let only = (end..total).all(|i| !bit(i));
    only.then_some((first as u32, (end - first) as u32))
}

fn token(op: CmpOp) -> &'static str {
    match op {
        CmpOp::Eq => "==",
        CmpOp::Neq => "!=",
        CmpOp::Lt => "<",
        CmpOp::Lte => "<=",
        CmpOp::Gt => ">",
        CmpOp::Gte => ">=",
    }
}

fn is_equality(op: CmpOp) -> bool {
    matches!(op, CmpOp::Eq | CmpOp::Neq)
}

impl<'a> Lifter<'a> {
    /// `cmp`: as many bytes as there are. Fewer than the register has are a prefix, more are a concatenation.
    pub(super) fn compare(&mut self, sreg: u32, op: CmpOp, data: &[u8]) {
        let left = self.get_wide(sreg, data.len() as u32);
        let bits = 8 * data.len() as u32;
        match left {
            Node::Concat(parts) => self.compare_fields(parts, op, data),
            left => {
                let own = left.kind();
                if own.bits > bits && !own.ty.is_string() && own.bits >= 8 {
                    self.compare_prefix(left, op, data, own);
                } else {
                    self.relation(left, op, Right::Value(data.to_vec()));
                }
            }
        }
    }

    fn compare_prefix(&mut self, left: Node<'a>, op: CmpOp, data: &[u8], kind: Kind) {
        let bits = 8 * data.len() as u32;
        let mut whole = data.to_vec();
        whole.resize(kind.bytes(), 0);
        let left = self.complete(left);
        let kind = left.kind();
        let value = types::bytes_text(self.printer.names(), kind, &whole, false);
        self.push_relation(&left, op, &format!("{value}/{bits}"), false);
    }

    /// A concatenation compared field by field.
    fn compare_fields(&mut self, parts: Vec<Node<'a>>, op: CmpOp, data: &[u8]) {
        let mut offset = 0;
        let mut values = Vec::new();
        let mut nodes = Vec::new();
        for part in parts {
            let bytes = part.kind().bytes();
            let field: Vec<u8> = data.iter().skip(offset).take(bytes).copied().collect();
            offset += bytes.div_ceil(4) * 4;
            let node = self.complete_field(part);
            values.push(value_text(self.printer, node.kind(), &field, " | "));
            nodes.push(node);
        }
        let left = Node::Concat(nodes);
        self.push_relation(&left, op, &values.join(" . "), false);
    }

    /// Adds `left op right`. The operator of equality is written only where something else would be read.
    fn push_relation(&mut self, left: &Node<'a>, op: CmpOp, right: &str, flag: bool) -> usize {
        let explicit = flag || matches!(left, Node::Op(..));
        let name = left.text(self.printer, left.kind());
        let text = match op {
            CmpOp::Eq if !explicit => format!("{name} {right}"),
            op => format!("{name} {} {right}", token(op)),
        };
        let statement = self.push_match(text);
        self.set_subject(left);
        statement
    }

    /// Adds a match.
    pub(super) fn relation(&mut self, left: Node<'a>, op: CmpOp, right: Right<'a>) {
        match self.unshift(left) {
            Node::Payload(payload) => self.payload_relation(payload, op, right),
            left => {
                let left = self.complete(left);
                self.tree_relation(left, op, right);
            }
        }
    }

    fn tree_relation(&mut self, left: Node<'a>, op: CmpOp, right: Right<'a>) {
        if let Node::Op(BitOp::And, inner, mask) = &left
            && let Node::Value(mask) = &**mask
        {
            let (inner, mask) = ((**inner).clone(), mask.clone());
            self.masked(left, inner, &mask, op, right);
            return;
        }
        let statement = self.plain(&left, op, &right, None);
        if let (Right::Value(value), CmpOp::Eq) = (&right, op) {
            self.learn(&left, value, statement);
        }
    }

    /// What the rule now says about the protocols.
    fn learn(&mut self, left: &Node<'a>, value: &[u8], statement: usize) {
        let Some(value) = types::number(value, left.kind().order) else {
            return;
        };
        let value = value as u32;
        match left {
            Node::Meta(key @ (meta::PROTOCOL | meta::IIFTYPE | meta::NFPROTO | meta::L4PROTO)) => {
                self.context.learn_meta(*key, value);
                if *key == meta::L4PROTO {
                    let implied = self.context.implied_by_family();
                    self.remove(implied);
                }
                self.context.keep(Dependency {
                    statement,
                    key: Key::Meta(*key),
                    value,
                });
            }
            // The address of a family is only in connections of that family.
            Node::Ct {
                family: Some(family),
                ..
            } => {
                let proto = if *family == "ip" {
                    &proto::IP
                } else {
                    &proto::IP6
                };
                let implied = self.context.implied_by_option(proto);
                self.remove(implied);
            }
            Node::Ct { key: 7, .. } => self.context.learn_ct(true, value),
            Node::Ct { key: 10, .. } => self.context.learn_ct(false, value),
            _ => {}
        }
    }

    /// Adds a match as it is. Two that bound the same thing become a range.
    fn plain(
        &mut self,
        left: &Node<'a>,
        op: CmpOp,
        right: &Right<'a>,
        slice: Option<(u32, u32)>,
    ) -> usize {
        let kind = left.kind();
        let text = self.right_text(left, right, slice);
        let flag = kind.ty.is_bitmask()
            && matches!(right, Right::Value(value) if types::number(value, kind.order).is_some_and(|value| value.count_ones() < 2));
        let Right::Value(value) = right else {
            return self.push_relation(left, op, &text, flag);
        };
        if op == CmpOp::Lte
            && let Some(last) = self.statements.last_mut()
            && let Some((other, CmpOp::Gte, from)) = &last.bound
            && other == left
            && !last.removed
        {
            let range = Right::Range(from.clone(), value.clone());
            last.removed = true;
            let text = self.right_text(left, &range, None);
            return self.push_relation(left, CmpOp::Eq, &text, false);
        }
        let statement = self.push_relation(left, op, &text, flag);
        if let Some(added) = self.statements.last_mut() {
            added.bound = Some((left.clone(), op, value.clone()));
        }
        statement
    }

    fn right_text(&self, left: &Node<'a>, right: &Right<'a>, slice: Option<(u32, u32)>) -> String {
        let (names, kind) = (self.printer.names(), left.kind());
        match right {
            Right::Value(value) => value_text(self.printer, kind, value, " | "),
            Right::Range(from, to) => {
                let from = types::bytes_text(names, kind, from, true);
                format!("{from}-{}", types::bytes_text(names, kind, to, true))
            }
            Right::Set(set) => set::reference(self.printer, set, left, slice),
        }
    }

    /// A match on packet bytes.
    fn payload_relation(&mut self, payload: Payload, op: CmpOp, right: Right<'a>) {
        if let Right::Value(value) = &right
            && is_equality(op)
        {
            return self.payload_equals(&payload, op, value);
        }
        if let Right::Set(set) = right {
            self.learn_icmp_set(&payload, set);
        }
        let left = self.complete(Node::Payload(payload));
        self.plain(&left, op, &right, None);
    }

    fn learn_icmp_set(&mut self, payload: &Payload, set: &Set) {
        let mut named = payload.clone();
        self.context.name(&mut named);
        if let (8, Some(first)) = (payload.len, set::first_key(set)) {
            self.context.learn_icmp_set(&named, u32::from(first));
        }
    }

    /// `payload == value` or `!=`: nft may have merged matches on neighbouring fields into one.
    fn payload_equals(&mut self, payload: &Payload, op: CmpOp, value: &[u8]) {
        let mut parts = self.context.split(payload);
        if parts.len() > 1 && op == CmpOp::Neq {
            // One of several fields differs: that is not what one match for each would say.
            parts = vec![Payload {
                field: None,
                ..payload.clone()
            }];
        }
        let mut start = (8 * value.len() as u32).saturating_sub(payload.len);
        for part in parts {
            let bits = types::bits(value, start, part.len);
            start += part.len;
            self.part_equals(part, op, &bits);
        }
    }

    fn part_equals(&mut self, part: Payload, op: CmpOp, bits: &[u8]) {
        let whole = part.field().map_or(part.len, |field| field.len);
        let kind = part.kind();
        let number = types::number(bits, Order::Big);
        let text = match number {
            Some(number) if part.len < whole => {
                let value = number << (whole - part.len);
                let value = types::number_text(self.printer.names(), kind.ty, value, false);
                format!("{value}/{}", part.len)
            }
            _ => types::bytes_text(self.printer.names(), kind, bits, false),
        };
        let key = op == CmpOp::Eq && part.is_key() && part.len == whole;
        let value = number.unwrap_or_default() as u32;
        if key {
            self.context.learn(&part, value);
        }
        self.leave_out(&part);
        let field = part.field;
        let statement = self.push_relation(&Node::Payload(part), op, &text, kind.ty.is_bitmask());
        if let (true, Some((proto, index))) = (key, field) {
            self.context.keep(Dependency {
                statement,
                key: Key::Payload(proto, index),
                value,
            });
        }
    }

    /// `(inner & mask) op right`: flags, a prefix, a field narrower than a byte, or just that.
    fn masked(
        &mut self,
        left: Node<'a>,
        inner: Node<'a>,
        mask: &[u8],
        op: CmpOp,
        right: Right<'a>,
    ) -> usize {
        let kind = inner.kind();
        if let (Right::Value(value), true) = (&right, is_equality(op)) {
            if kind.ty.is_bitmask() {
                return self.flags(&left, inner, mask, op, value);
            }
            if kind.ty.has_prefixes()
                && let Some(len) = prefix(mask, kind.order)
            {
                let value = types::bytes_text(self.printer.names(), kind, value, false);
                return self.push_relation(&inner, op, &format!("{value}/{len}"), false);
            }
        }
        let Some(run) = run(mask) else {
            return self.plain(&left, op, &right, None);
        };
        match self.trim(&inner, run) {
            Some(Node::Payload(payload)) => {
                let slice = |bytes: &[u8]| types::bits(bytes, run.0, run.1);
                match right {
                    Right::Value(value) if is_equality(op) => {
                        self.payload_equals(&payload, op, &slice(&value));
                        self.statements.len().saturating_sub(1)
                    }
                    Right::Value(value) => {
                        let left = self.complete(Node::Payload(payload));
                        self.plain(&left, op, &Right::Value(slice(&value)), None)
                    }
                    Right::Range(from, to) => {
                        let left = self.complete(Node::Payload(payload));
                        self.plain(&left, op, &Right::Range(slice(&from), slice(&to)), None)
                    }
                    Right::Set(_) => {
                        let left = self.complete(Node::Payload(payload));
                        self.plain(&left, op, &right, Some(run))
                    }
                }
            }
            Some(node) => {
                let slice = |bytes: &[u8]| types::bits(bytes, run.0, run.1);
                let right = match right {
                    Right::Value(value) => Right::Value(slice(&value)),
                    Right::Range(from, to) => Right::Range(slice(&from), slice(&to)),
                    set => set,
                };
                self.plain(&node, op, &right, Some(run))
            }
            None => self.plain(&left, op, &right, None),
        }
    }

    /// Flags: `syn,ack` is any of them, `! syn,ack` none, `syn / syn,ack` these of those.
    fn flags(
        &mut self,
        left: &Node<'a>,
        inner: Node<'a>,
        mask: &[u8],
        op: CmpOp,
        value: &[u8],
    ) -> usize {
        let kind = inner.kind();
        let (Some(mask_number), Some(number)) = (
            types::number(mask, kind.order),
            types::number(value, kind.order),
        ) else {
            return self.plain(left, op, &Right::Value(value.to_vec()), None);
        };
        let list = |number| types::flags(self.printer.names(), kind.ty, number).join(",");
        let what = inner.text(self.printer, kind);
        let text = match (number, op) {
            (0, CmpOp::Eq) => format!("{what} ! {}", list(mask_number)),
            (0, _) => format!("{what} {}", list(mask_number)),
            (number, op) if number == mask_number && number.count_ones() == 1 => {
                return self.plain(left, op, &Right::Value(value.to_vec()), None);
            }
            (number, CmpOp::Neq) => format!("{what} != {} / {}", list(number), list(mask_number)),
            (number, _) => format!("{what} {} / {}", list(number), list(mask_number)),
        };
        let statement = self.push_match(text);
        self.set_subject(&inner);
        statement
    }
}

/// The length of the prefix that a mask selects.
fn prefix(mask: &[u8], order: Order) -> Option<u32> {
    let bytes: Vec<u8> = if order == Order::Host && cfg!(target_endian = "little") {
        mask.iter().rev().copied().collect()
    } else {
        mask.to_vec()
    };
    if bytes.iter().all(|byte| *byte == 0) {
        return Some(0);
    }
    let (first, len) = run(&bytes)?;
    (first == 0).then_some(len)
}

/// The kind of text that stands for a constant without a type.
pub(super) const UNTYPED: Kind = Kind::new(Type::Hex, Order::Big, 0);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_bits() {
        assert_eq!(run(&[0x0f, 0xff]), Some((4, 12)));
        assert_eq!(run(&[0xfc]), Some((0, 6)));
        assert_eq!(run(&[0xf0, 0x0f]), None);
        assert_eq!(run(&[0, 0]), None);
        assert_eq!(prefix(&[0xff, 0xff, 0, 0], Order::Big), Some(16));
        assert_eq!(prefix(&[0, 0xff], Order::Big), None);
    }
}
