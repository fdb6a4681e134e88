//! Names for what is in a tree: header fields, and the masks and shifts that only select them.

use crate::ruleset::model::Set;

use super::lift::Lifter;
use super::load::option_proto;
use super::node::{BitOp, Node, Payload};
use super::proto::Layer;
use super::relation::run;
use super::types::{self, Order};

impl<'a> Lifter<'a> {
    /// The field that a mask selects.
    pub(super) fn trim(&self, inner: &Node<'a>, run: (u32, u32)) -> Option<Node<'a>> {
        match inner {
            Node::Payload(payload) => self.context.trim(payload, run).map(Node::Payload),
            Node::Exthdr(exthdr) => exthdr.trim(run).map(Node::Exthdr),
            _ => None,
        }
    }

    /// `(payload & mask) >> shift` is a field where mask and shift are made for it.
    pub(super) fn unshift(&self, node: Node<'a>) -> Node<'a> {
        let Node::Op(BitOp::Right, left, amount) = &node else {
            return node;
        };
        let (Node::Op(BitOp::And, inner, mask), Node::Value(amount)) = (&**left, &**amount) else {
            return node;
        };
        let Node::Value(mask) = &**mask else {
            return node;
        };
        let amount = types::number(amount, Order::Host);
        let field = run(mask).and_then(|run| {
            let below = 8 * mask.len() as u32 - run.0 - run.1;
            (amount == Some(u128::from(below))).then(|| self.trim(inner, run))?
        });
        field.unwrap_or(node)
    }

    /// Leaves out the matches that the payload's name implies.
    pub(super) fn leave_out(&mut self, payload: &Payload) {
        let implied = self.context.implied_by(payload);
        if implied.is_some() {
            let family = self.context.implied_by_icmp(payload);
            self.remove(family);
        }
        self.remove(implied);
    }

    /// Names what is in the tree and leaves out the matches that it implies.
    pub(super) fn complete(&mut self, node: Node<'a>) -> Node<'a> {
        match self.unshift(node) {
            Node::Payload(mut payload) => {
                self.context.name(&mut payload);
                self.leave_out(&payload);
                Node::Payload(payload)
            }
            Node::Exthdr(exthdr) => {
                let proto = option_proto(exthdr.op);
                let implied = proto.and_then(|proto| self.context.implied_by_option(proto));
                self.remove(implied);
                Node::Exthdr(exthdr)
            }
            Node::Ct {
                key: key @ (8 | 9),
                direction,
                family: None,
            } => {
                let family = self.context.proto(Layer::Network).map(|proto| proto.name);
                let family = family.filter(|name| matches!(*name, "ip" | "ip6"));
                Node::Ct {
                    key,
                    direction,
                    family,
                }
            }
            Node::Op(op, left, right) => {
                let left = Box::new(self.complete(*left));
                Node::Op(op, left, Box::new(self.complete(*right)))
            }
            Node::Swap(inner) => Node::Swap(Box::new(self.complete(*inner))),
            Node::Hash(input, rest) => Node::Hash(Box::new(self.complete(*input)), rest),
            Node::Concat(parts) => Node::Concat(
                parts
                    .into_iter()
                    .map(|part| self.complete_field(part))
                    .collect(),
            ),
            Node::Map { key, set, slice } => self.complete_map(*key, set, slice),
            node @ (Node::Value(_) | Node::Meta(_) | Node::Ct { .. } | Node::Load(..)) => node,
        }
    }

    /// [`Lifter::complete`] for a part of a concatenation or a key of a set, where a mask is never the user's.
    pub(super) fn complete_field(&mut self, node: Node<'a>) -> Node<'a> {
        if let Node::Op(BitOp::And, inner, mask) = &node
            && let Node::Value(mask) = &**mask
            && let Some(field) = run(mask).and_then(|run| self.trim(inner, run))
        {
            return self.complete(field);
        }
        self.complete(node)
    }

    fn complete_map(&mut self, key: Node<'a>, set: &'a Set, slice: Option<(u32, u32)>) -> Node<'a> {
        let mut slice = slice;
        let mut key = key;
        if let Node::Op(BitOp::And, inner, mask) = &key
            && let Node::Value(mask) = &**mask
            && let Some(run) = run(mask)
            && let Some(field) = self.trim(inner, run)
        {
            slice = Some(run);
            key = field;
        }
        let key = Box::new(self.complete(key));
        Node::Map { key, set, slice }
    }
}
