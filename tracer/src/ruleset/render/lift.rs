//! From the kernel's register machine back to statements: loads and operations fill registers with trees, and each expression that
//! has an effect or ends the rule's match takes its operands from there.

use crate::ruleset::expr::{CmpOp, Data, Expr, Verdict};
use crate::ruleset::model::{Rule, Set};

use super::Printer;
use super::context::Context;
use super::load::{option, payload};
use super::node::{BitOp, Node};
use super::relation::{Right, UNTYPED};
use super::types::{self, Kind, Order, Type};

/// Registers in units of four bytes.
const SLOTS: usize = 16;

/// The most expressions a rule has in the kernel (`NFT_RULE_MAXEXPRS`).
const MAX_EXPRS: usize = 128;

/// The most nodes a tree may have: rules that people write have a few.
const MAX_NODES: usize = 64;

/// A statement of the rule.
#[derive(Debug)]
pub(super) struct Statement<'a> {
    pub(super) text: String,
    /// Left out, because a later one implies it.
    pub(super) removed: bool,
    /// One end of what may be a range.
    pub(super) bound: Option<(Node<'a>, CmpOp, Vec<u8>)>,
    /// The index of the expression that ends it.
    pub(super) expr: usize,
    /// Of a match: what is compared.
    pub(super) subject: Option<Node<'a>>,
}

/// See the module.
pub(super) struct Lifter<'a> {
    pub(super) printer: &'a Printer<'a>,
    pub(super) context: Context,
    pub(super) statements: Vec<Statement<'a>>,
    registers: [Option<Node<'a>>; SLOTS],
    /// The index of the expression at hand.
    expr: usize,
}

/// The text of a rule's statements.
pub(super) fn statements(printer: &Printer<'_>, rule: &Rule) -> Vec<String> {
    let mut lifter = lift(printer, rule);
    if let Some(more) = rule
        .exprs
        .len()
        .checked_sub(MAX_EXPRS)
        .filter(|more| *more > 0)
    {
        lifter.push(format!("[ {more} more expressions ]"));
    }
    let kept = lifter
        .statements
        .into_iter()
        .filter(|statement| !statement.removed);
    kept.map(|statement| statement.text).collect()
}

/// The rule's statements.
pub(super) fn lift<'a>(printer: &'a Printer<'a>, rule: &Rule) -> Lifter<'a> {
    let mut lifter = Lifter::new(printer);
    for (index, expr) in rule.exprs.iter().enumerate().take(MAX_EXPRS) {
        lifter.expr = index;
        lifter.step(expr);
    }
    lifter
}

/// The text of an expression that stands alone: of a set, an element, an object.
pub(super) fn single(printer: &Printer<'_>, expr: &Expr) -> String {
    let mut lifter = Lifter::new(printer);
    lifter.step(expr);
    let texts: Vec<String> = lifter
        .statements
        .into_iter()
        .map(|statement| statement.text)
        .collect();
    texts.join(" ")
}

fn slot(register: u32) -> Option<usize> {
    match register {
        1..=4 => Some((register as usize - 1) * 4),
        8..=23 => Some(register as usize - 8),
        _ => None,
    }
}

/// An expression that cannot be written in nft's syntax.
pub(super) fn raw(expr: &Expr) -> String {
    match expr {
        Expr::Unknown { name, data } => format!("[ unknown \"{name}\" {} ]", types::hex(data)),
        expr => format!("[ {} {expr:?} ]", expr.name()),
    }
}

impl<'a> Lifter<'a> {
    fn new(printer: &'a Printer<'a>) -> Self {
        Self {
            printer,
            context: Context::new(printer.table.family),
            statements: Vec::new(),
            registers: [const { None }; SLOTS],
            expr: 0,
        }
    }

    /// Adds a statement that only matches.
    pub(super) fn push_match(&mut self, text: String) -> usize {
        self.statements.push(Statement {
            text,
            removed: false,
            bound: None,
            expr: self.expr,
            subject: None,
        });
        self.statements.len() - 1
    }

    /// Says what the last statement compares.
    pub(super) fn set_subject(&mut self, subject: &Node<'a>) {
        if let Some(statement) = self.statements.last_mut() {
            statement.subject = Some(subject.clone());
        }
    }

    /// Adds a statement with an effect.
    pub(super) fn push(&mut self, text: String) {
        self.push_match(text);
        self.context.reset_dependencies();
    }

    /// Leaves a statement out again.
    pub(super) fn remove(&mut self, statement: Option<usize>) {
        if let Some(statement) = statement.and_then(|index| self.statements.get_mut(index)) {
            statement.removed = true;
        }
    }

    pub(super) fn load(&mut self, register: u32, node: Node<'a>) {
        let Some(first) = slot(register) else {
            return;
        };
        let node = if node.nodes() > MAX_NODES {
            Node::Load("[ a long expression ]".to_owned(), node.kind())
        } else {
            node
        };
        let space = node.kind().bits.div_ceil(32).max(1) as usize;
        for taken in self.registers.iter_mut().skip(first).take(space) {
            *taken = None;
        }
        if let Some(free) = self.registers.get_mut(first) {
            *free = Some(node);
        }
    }

    pub(super) fn load_text(
        &mut self,
        register: u32,
        text: String,
        ty: Type,
        order: Order,
        bits: u32,
    ) {
        self.load(register, Node::Load(text, Kind::new(ty, order, bits)));
    }

    /// The tree in a register. A register that nothing is known about is shown as such.
    pub(super) fn get(&self, register: u32) -> Node<'a> {
        let known = slot(register).and_then(|slot| self.registers.get(slot)?.clone());
        known.unwrap_or_else(|| {
            let kind = Kind::new(Type::Hex, Order::Big, 0);
            Node::Load(format!("[ register {register} ]"), kind)
        })
    }

    /// The trees from a register on that make up `bytes`; more than one is a concatenation.
    pub(super) fn get_wide(&self, register: u32, bytes: u32) -> Node<'a> {
        let slots = bytes.div_ceil(4).min(SLOTS as u32);
        let first = self.get(register);
        let own = first.kind().bits;
        let (Some(start), 1..) = (slot(register), own) else {
            return first;
        };
        if own.div_ceil(8) >= bytes {
            return first;
        }
        let mut parts = Vec::new();
        let mut taken = 0;
        while taken < slots {
            let part = self.get(8 + start as u32 + taken);
            taken += part.kind().bits.div_ceil(32).max(1);
            parts.push(part);
        }
        Node::Concat(parts)
    }

    /// The set of this name, or an empty one that shows the name.
    pub(super) fn set(&self, name: &str) -> Option<&'a Set> {
        self.printer.table.set(name)
    }

    fn step(&mut self, expr: &Expr) {
        match expr {
            Expr::Immediate {
                dreg: 0,
                data: Data::Verdict(verdict),
            } => {
                let text = self.verdict(verdict);
                self.push(text);
            }
            Expr::Immediate {
                dreg,
                data: Data::Value(bytes),
            } => self.load(*dreg, Node::Value(bytes.clone())),
            Expr::Cmp { sreg, op, data } => self.compare(*sreg, *op, data),
            Expr::Range {
                sreg,
                invert,
                from,
                to,
            } => {
                let op = if *invert { CmpOp::Neq } else { CmpOp::Eq };
                let left = self.get(*sreg);
                self.relation(left, op, Right::Range(from.clone(), to.clone()));
            }
            Expr::Lookup {
                set,
                sreg,
                dreg,
                flags,
            } => self.lookup(set, *sreg, *dreg, *flags),
            Expr::Bitwise { .. } => self.bitwise(expr),
            Expr::Byteorder { sreg, dreg, .. } => {
                let node = Node::Swap(Box::new(self.get(*sreg)));
                self.load(*dreg, node);
            }
            Expr::Payload {
                dreg,
                base,
                offset,
                len,
            } => {
                let node = Node::Payload(payload(*base, *offset, *len));
                self.load(*dreg, node);
            }
            Expr::Exthdr {
                dreg,
                kind,
                offset,
                len,
                flags,
                op,
            } => {
                let node = Node::Exthdr(option(*kind, *offset, *len, *flags, *op));
                self.load(*dreg, node);
            }
            Expr::Meta { dreg, key } => self.load(*dreg, Node::Meta(*key)),
            Expr::Ct {
                dreg,
                key,
                direction,
            } => {
                let (key, direction) = (*key, *direction);
                self.load(
                    *dreg,
                    Node::Ct {
                        key,
                        direction,
                        family: None,
                    },
                );
            }
            _ => self.step_load(expr),
        }
    }

    /// The kernel's `(register & mask) ^ xor`, as and, or, xor of the register.
    fn bitwise(&mut self, expr: &Expr) {
        let Expr::Bitwise {
            sreg,
            sreg2,
            dreg,
            op,
            mask,
            xor,
            data,
            ..
        } = expr
        else {
            return;
        };
        let left = Box::new(self.get(*sreg));
        let right = || match sreg2 {
            Some(sreg2) => self.get(*sreg2),
            None => Node::Value(data.clone()),
        };
        let node = match op {
            0 => mask_xor(*left, mask, xor),
            1 => Node::Op(BitOp::Left, left, Box::new(Node::Value(data.clone()))),
            2 => Node::Op(BitOp::Right, left, Box::new(Node::Value(data.clone()))),
            3 => Node::Op(BitOp::And, left, Box::new(right())),
            4 => Node::Op(BitOp::Or, left, Box::new(right())),
            5 => Node::Op(BitOp::Xor, left, Box::new(right())),
            _ => Node::Load(raw(expr), Kind::new(Type::Hex, Order::Big, 0)),
        };
        self.load(*dreg, node);
    }

    fn lookup(&mut self, name: &str, sreg: u32, dreg: Option<u32>, flags: u32) {
        let op = if flags & 1 == 1 {
            CmpOp::Neq
        } else {
            CmpOp::Eq
        };
        let Some(set) = self.set(name) else {
            let key = self.get(sreg);
            let key = self.complete(key);
            let key = key.text(self.printer, key.kind());
            let word = match (dreg, op) {
                (None, CmpOp::Neq) => "!= ",
                (None, _) => "",
                (Some(0), _) => "vmap ",
                (Some(_), _) => "map ",
            };
            let text = format!("{key} {word}@{name}");
            match dreg {
                Some(dreg @ 1..) => self.load(dreg, Node::Load(text, UNTYPED)),
                _ => {
                    self.push_match(text);
                }
            }
            return;
        };
        let key = self.get_wide(sreg, set.key_len);
        let map = |key| Node::Map {
            key: Box::new(key),
            set,
            slice: None,
        };
        match dreg {
            None => self.relation(key, op, Right::Set(set)),
            Some(0) => {
                let node = self.complete(map(key));
                let text = node.text(self.printer, node.kind());
                self.push_match(text);
                if let Node::Map { key, .. } = &node {
                    self.set_subject(key);
                }
            }
            Some(dreg) => self.load(dreg, map(key)),
        }
    }

    fn verdict(&self, verdict: &Verdict) -> String {
        match (verdict.code, &verdict.chain) {
            (Verdict::JUMP | Verdict::GOTO, Some(chain)) => {
                let word = if verdict.code == Verdict::JUMP {
                    "jump"
                } else {
                    "goto"
                };
                match self.printer.bound_chain(chain) {
                    Some(body) => format!("{word} {body}"),
                    None => format!("{word} {chain}"),
                }
            }
            _ => verdict_text(verdict),
        }
    }
}

/// A verdict in one line.
pub(super) fn verdict_text(verdict: &Verdict) -> String {
    let chain = verdict.chain.as_deref().unwrap_or_default();
    match verdict.code {
        Verdict::DROP => "drop".to_owned(),
        Verdict::ACCEPT => "accept".to_owned(),
        Verdict::STOLEN => "stolen".to_owned(),
        Verdict::CONTINUE => "continue".to_owned(),
        Verdict::BREAK => "break".to_owned(),
        Verdict::RETURN => "return".to_owned(),
        Verdict::JUMP => format!("jump {chain}"),
        Verdict::GOTO => format!("goto {chain}"),
        code if code >= 0 && code & 0xff == Verdict::QUEUE => "queue".to_owned(),
        code => format!("unknown verdict value {code}"),
    }
}

/// `(left & mask) ^ xor`: bits that are cleared and then set are an or.
fn mask_xor<'a>(left: Node<'a>, mask: &[u8], xor: &[u8]) -> Node<'a> {
    let xor_at = |i: usize| xor.get(i).copied().unwrap_or_default();
    let set: Vec<u8> = mask
        .iter()
        .enumerate()
        .map(|(i, mask)| !mask & xor_at(i))
        .collect();
    let flip: Vec<u8> = mask
        .iter()
        .enumerate()
        .map(|(i, mask)| mask & xor_at(i))
        .collect();
    let keep: Vec<u8> = mask
        .iter()
        .zip(&set)
        .map(|(mask, set)| mask | set)
        .collect();
    let mut node = left;
    let steps = [
        (BitOp::And, keep.iter().any(|byte| *byte != 0xff), keep),
        (BitOp::Xor, flip.iter().any(|byte| *byte != 0), flip),
        (BitOp::Or, set.iter().any(|byte| *byte != 0), set),
    ];
    for (op, needed, value) in steps {
        if needed {
            node = Node::Op(op, Box::new(node), Box::new(Node::Value(value)));
        }
    }
    node
}
