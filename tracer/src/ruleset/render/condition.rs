//! A rule's matches one by one: what each compares, with what, and how a value that it meets is written.

use crate::ruleset::{
    expr::PayloadBase,
    model::{Rule, Table},
};

use super::{
    Options, Printer, lift,
    node::{BitOp, Node, value_text},
    one_line,
    proto::Layer,
    types,
};

/// A match of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// The index of the expression that decides it.
    pub expr: usize,
    /// What is compared: `tcp dport`. Of a match that is no comparison, all of it.
    pub subject: String,
    /// With what: `8080`, `!= 10.0.0.0/8`, `{ 22, 80 }`.
    pub wanted: String,
    /// What the packet has, if the match was asked about; `None` if there is no telling.
    pub found: Option<String>,
}

/// Where a value that a match met comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Packet bytes: base and offset in bytes.
    Payload(PayloadBase, u32),
    /// A field as a whole.
    Field,
    /// Registers, as the match reads them: masks and shifts are done.
    Registers,
}

/// The rule's matches, those too that its text leaves out as implied. `met` tells the value that the expression with an index met, if it
/// did.
pub fn conditions(
    table: &Table,
    rule: &Rule,
    options: &Options<'_>,
    met: impl Fn(usize) -> Option<(Source, Vec<u8>)>,
) -> Vec<Condition> {
    let printer = Printer::new(table, options, false);
    let lifter = lift::lift(&printer, rule);
    let mut conditions = Vec::new();
    for statement in &lifter.statements {
        let found = statement
            .subject
            .as_ref()
            .zip(met(statement.expr))
            .and_then(|(node, (source, bytes))| found(&printer, node, source, &bytes));
        let name = statement
            .subject
            .as_ref()
            .map(|node| node.text(&printer, node.kind()));
        let split = name.as_deref().and_then(|name| {
            let wanted = statement.text.strip_prefix(name)?;
            Some((name.to_owned(), wanted.trim_start().to_owned()))
        });
        let (subject, wanted) = split.unwrap_or((statement.text.clone(), String::new()));
        conditions.push(Condition {
            expr: statement.expr,
            subject: one_line(subject),
            wanted: one_line(wanted),
            found: found.map(one_line),
        });
    }
    conditions
}

fn found(printer: &Printer<'_>, node: &Node<'_>, source: Source, bytes: &[u8]) -> Option<String> {
    let plain = |node: &Node<'_>, bytes: &[u8]| {
        let kind = node.kind();
        let len = kind.bytes().min(bytes.len());
        let bytes = if len == 0 { bytes } else { &bytes[..len] };
        value_text(printer, kind, bytes, ",")
    };
    match node {
        // The value as it is, not what is left of it: `new`, not `0`.
        Node::Op(BitOp::And, inner, _) if source != Source::Registers => {
            found(printer, inner, source, bytes)
        }
        Node::Payload(payload) => {
            let start = match (source, payload.layer) {
                (Source::Payload(base, offset), layer) if layer_of(base) == Some(layer) => {
                    payload.offset.checked_sub(8 * offset)?
                }
                (Source::Payload(..), _) => return None,
                (Source::Field | Source::Registers, _) => 0,
            };
            let bits = types::bits(bytes, start, payload.len);
            Some(types::bytes_text(
                printer.names(),
                node.kind(),
                &bits,
                false,
            ))
        }
        Node::Meta(_) | Node::Ct { .. } | Node::Load(..) | Node::Swap(_) | Node::Exthdr(_) => {
            Some(plain(node, bytes))
        }
        Node::Concat(parts) => {
            let mut at = 0;
            let mut texts = Vec::new();
            for part in parts {
                let len = part.kind().bytes();
                texts.push(plain(part, bytes.get(at..)?));
                at += len.div_ceil(4) * 4;
            }
            Some(texts.join(" . "))
        }
        _ => None,
    }
}

fn layer_of(base: PayloadBase) -> Option<Layer> {
    Some(match base {
        PayloadBase::Link => Layer::Link,
        PayloadBase::Network => Layer::Network,
        PayloadBase::Transport => Layer::Transport,
        PayloadBase::Inner | PayloadBase::Tunnel => return None,
    })
}
