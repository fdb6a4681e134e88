//! Sets and maps: their elements, and how a rule refers to them.

use std::iter;

use crate::ruleset::expr::Data;
use crate::ruleset::model::{Element, Set};

use super::Printer;
use super::key::{self, Shape};
use super::lift;
use super::node::{Node, value_text};
use super::relation::UNTYPED;
use super::types::{self, Kind, Order, Type, time_text};

/// Bytes of data, all registers (`NFT_DATA_VALUE_MAXLEN`).
const MAX_DATA: u32 = 64;

/// What the data of a map are; untyped for a concatenation.
pub(super) fn data_kind(set: &Set) -> Kind {
    match key::data(set) {
        Some(Shape {
            fields,
            concat: false,
            ..
        }) => fields.first().copied().unwrap_or(UNTYPED),
        _ => {
            let len = set.data_len.unwrap_or_default().min(MAX_DATA);
            Kind::new(Type::Hex, Order::Big, 8 * len)
        }
    }
}

/// The text of a key that a rule makes: constants have the types of the set.
pub(super) fn key_text(printer: &Printer<'_>, set: &Set, key: &Node<'_>) -> String {
    let shape = key::key(set);
    match key {
        Node::Concat(parts) => {
            let kinds = shape
                .fields
                .iter()
                .copied()
                .map(Some)
                .chain(iter::repeat(None));
            let texts = parts
                .iter()
                .zip(kinds)
                .map(|(part, kind)| part.text(printer, kind.unwrap_or(UNTYPED)));
            join(texts)
        }
        key => key.text(printer, shape.fields.first().copied().unwrap_or(UNTYPED)),
    }
}

pub(super) fn is_verdict_map(set: &Set) -> bool {
    set.data_type == Some(Set::VERDICT) && set.flags & Set::MAP != 0
}

/// Whether it was made by `meter`.
pub(super) fn is_meter(set: &Set) -> bool {
    const METER: u32 = Set::ANONYMOUS | Set::EVAL;
    set.flags & METER == METER
}

/// Whether the data are more than the addresses that a NAT statement takes: with ports, or ranges.
pub(super) fn has_more_than_addresses(set: &Set, ipv6: bool) -> bool {
    let address = if ipv6 { 16 } else { 4 };
    set.data_len.is_some_and(|len| len > address)
}

/// The first byte of the first key, as nft sorts them, of an anonymous set.
pub(super) fn first_key(set: &Set) -> Option<u8> {
    if set.flags & Set::ANONYMOUS == 0 {
        return None;
    }
    let keys = set
        .elements
        .iter()
        .filter_map(|element| element.key.as_ref()?.first());
    keys.min().copied()
}

/// The set in a rule that looks `key` up: by its name, or by its elements. `slice` are the bits of the set's keys that count, if not all.
pub(super) fn reference(
    printer: &Printer<'_>,
    set: &Set,
    key: &Node<'_>,
    slice: Option<(u32, u32)>,
) -> String {
    if set.flags & Set::ANONYMOUS == 0 {
        format!("@{}", set.name)
    } else if is_meter(set) {
        set.name.clone()
    } else {
        format!(
            "{{ {} }}",
            sorted(printer, set, &key::key_in_rule(set, key), slice).join(", ")
        )
    }
}

/// The elements in nft's order.
pub(super) fn elements(printer: &Printer<'_>, set: &Set) -> Vec<String> {
    sorted(printer, set, &key::key(set), None)
}

fn sorted(
    printer: &Printer<'_>,
    set: &Set,
    shape: &Shape,
    slice: Option<(u32, u32)>,
) -> Vec<String> {
    /// Longer keys are no numbers that could be compared.
    const NUMBER: u32 = 16;
    let data = key::data(set);
    let interval = set.flags & Set::INTERVAL != 0;
    let writer = Writer {
        printer,
        set,
        shape,
        data: data.as_ref(),
        slice,
    };
    let mut texts = match (interval, shape.concat) {
        (true, false) if set.key_len <= NUMBER => writer.intervals(),
        (true, true) => writer.concat_ranges(),
        _ => writer.points(),
    };
    let catchall = set.elements.iter().filter(|element| element.key.is_none());
    texts.extend(catchall.map(|element| writer.element("*".to_owned(), element)));
    texts
}

struct Writer<'a> {
    printer: &'a Printer<'a>,
    set: &'a Set,
    shape: &'a Shape,
    data: Option<&'a Shape>,
    slice: Option<(u32, u32)>,
}

impl Writer<'_> {
    /// Key, state, timeout, comment, data.
    fn element(&self, key: String, element: &Element) -> String {
        let mut text = key;
        for expr in &element.exprs {
            text += &format!(" {}", lift::single(self.printer, expr));
        }
        if let Some(timeout) = element.timeout.filter(|timeout| *timeout != 0) {
            text += &format!(" timeout {}", time_text(timeout));
        }
        if let Some(expires) = element.expiration.filter(|expires| *expires != 0)
            && !self.printer.is_stateless()
        {
            text += &format!(" expires {}", time_text(expires));
        }
        if let Some(comment) = &element.comment {
            text += &format!(" comment \"{comment}\"");
        }
        if let Some(object) = &element.objref {
            text += &format!(" : \"{object}\"");
        }
        if let Some(data) = &element.data {
            text += &format!(" : {}", self.data(data));
        }
        text
    }

    fn data(&self, data: &Data) -> String {
        let bytes = match data {
            Data::Verdict(verdict) => return lift::verdict_text(verdict),
            Data::Value(bytes) => bytes,
        };
        let Some(shape) = self.data else {
            return types::hex(bytes);
        };
        let names = self.printer.names();
        if key::is_data_interval(self.set) {
            let (from, to) = bytes.split_at(bytes.len() / 2);
            let ends = fields(shape, from).zip(fields(shape, to));
            return join(
                ends.map(|((kind, from), (_, to))| range_text(self.printer, kind, from, to)),
            );
        }
        match &shape.fields[..] {
            [kind] if !shape.concat => types::bytes_text(names, *kind, bytes, false),
            _ => join(
                fields(shape, bytes)
                    .map(|(kind, bytes)| value_text(self.printer, kind, bytes, " | ")),
            ),
        }
    }

    /// Single keys, sorted as nft does: numbers by value, strings and concatenations by their last bytes; of equal ones the last first.
    fn points(&self) -> Vec<String> {
        let keyed = self
            .set
            .elements
            .iter()
            .rev()
            .filter_map(|element| Some((element.key.as_deref()?, element)));
        let mut keyed: Vec<(Vec<u8>, &[u8], &Element)> = keyed
            .map(|(key, element)| (self.sort_key(key), key, element))
            .collect();
        keyed.sort_by(|a, b| a.0.cmp(&b.0));
        let texts = keyed
            .iter()
            .map(|(_, key, element)| self.element(self.point(key), element));
        texts.collect()
    }

    fn sort_key(&self, key: &[u8]) -> Vec<u8> {
        let first = self.shape.fields.first();
        let reversed = self.shape.concat || first.is_some_and(|kind| kind.order == Order::Host);
        let mut bytes: Vec<u8> = if self.shape.concat {
            fields(self.shape, key)
                .flat_map(|(_, bytes)| bytes.to_vec())
                .collect()
        } else {
            key.to_vec()
        };
        if reversed {
            bytes.reverse();
        }
        // Several flags come where the lowest of them does.
        let flags = first.is_some_and(|kind| kind.ty.is_bitmask()) && !self.shape.concat;
        if let Some(number) = types::number(&bytes, Order::Big).filter(|_| flags) {
            bytes = (number & number.wrapping_neg()).to_be_bytes().to_vec();
        }
        bytes
    }

    fn point(&self, key: &[u8]) -> String {
        if self.shape.concat {
            return join(
                fields(self.shape, key)
                    .map(|(kind, bytes)| value_text(self.printer, kind, bytes, " | ")),
            );
        }
        let kind = self.shape.fields.first().copied().unwrap_or(UNTYPED);
        match self.slice {
            Some((start, len)) => {
                let kind = Kind::new(kind.ty, Order::Big, len);
                value_text(self.printer, kind, &types::bits(key, start, len), " | ")
            }
            None => value_text(self.printer, kind, key, " | "),
        }
    }

    /// Ranges of concatenations: each element has both ends.
    fn concat_ranges(&self) -> Vec<String> {
        let keyed = self
            .set
            .elements
            .iter()
            .filter_map(|element| Some((element.key.as_deref()?, element)));
        let texts = keyed.map(|(from, element)| {
            let to = element.key_end.as_deref().unwrap_or(from);
            let ends = fields(self.shape, from).zip(fields(self.shape, to));
            let key =
                join(ends.map(|((kind, from), (_, to))| {
                    range_text(self.printer, network(kind), from, to)
                }));
            self.element(key, element)
        });
        texts.collect()
    }

    /// Ranges: the kernel has where each begins, and where none is.
    fn intervals(&self) -> Vec<String> {
        let top = 1u128
            .checked_shl(8 * self.set.key_len)
            .map_or(u128::MAX, |end| end.wrapping_sub(1));
        let mut marks: Vec<(u128, bool, &Element)> = Vec::new();
        for element in &self.set.elements {
            if let Some(value) = element
                .key
                .as_deref()
                .and_then(|key| types::number(key, Order::Big))
            {
                marks.push((value, element.flags & Element::INTERVAL_END == 0, element));
            }
        }
        marks.sort_by_key(|mark| (mark.0, mark.1));
        let mut texts = Vec::new();
        let mut open: Option<(u128, &Element)> = None;
        for (value, begins, element) in marks {
            if let Some((from, begun)) = open.take()
                && value > from
            {
                texts.push(self.element(self.interval(from, value - 1), begun));
            }
            open = begins.then_some((value, element));
        }
        if let Some((from, begun)) = open {
            texts.push(self.element(self.interval(from, top), begun));
        }
        texts
    }

    fn interval(&self, from: u128, to: u128) -> String {
        let kind = network(self.shape.fields.first().copied().unwrap_or(UNTYPED));
        let width = self.set.key_len as usize;
        let bytes = |number: u128| number.to_be_bytes()[16usize.saturating_sub(width)..].to_vec();
        let (from, to) = (bytes(from), bytes(to));
        match self.slice {
            Some((start, len)) => {
                let kind = Kind::new(kind.ty, Order::Big, len);
                range_text(
                    self.printer,
                    kind,
                    &types::bits(&from, start, len),
                    &types::bits(&to, start, len),
                )
            }
            None => range_text(self.printer, kind, &from, &to),
        }
    }
}

/// In sets of ranges all numbers are in network order.
fn network(kind: Kind) -> Kind {
    Kind {
        order: Order::Big,
        ..kind
    }
}

/// The fields of a concatenation, which are padded to four bytes, or the one value.
fn fields<'a>(shape: &'a Shape, bytes: &'a [u8]) -> impl Iterator<Item = (Kind, &'a [u8])> {
    let mut rest = bytes;
    shape.fields.iter().map(move |kind| {
        let len = if shape.concat {
            kind.bytes()
        } else {
            rest.len()
        };
        let (field, _) = rest.split_at(len.min(rest.len()));
        rest = rest.get(len.div_ceil(4) * 4..).unwrap_or_default();
        (*kind, field)
    })
}

fn join(texts: impl Iterator<Item = String>) -> String {
    texts.collect::<Vec<_>>().join(" . ")
}

/// A range: one value, a prefix, a wildcard, or both ends, which are in network order.
fn range_text(printer: &Printer<'_>, kind: Kind, from: &[u8], to: &[u8]) -> String {
    if from == to {
        return value_text(printer, kind, from, " | ");
    }
    let prefix = match (
        types::number(from, Order::Big),
        types::number(to, Order::Big),
    ) {
        (Some(low), Some(high)) => types::prefix_len(low, high, 8 * from.len() as u32),
        _ => None,
    };
    match prefix {
        Some(len) if kind.ty.is_string() && len % 8 == 0 => {
            types::string(&from[..(len / 8) as usize])
        }
        Some(len) if kind.ty.has_prefixes() => {
            format!(
                "{}/{len}",
                types::bytes_text(printer.names(), kind, from, false)
            )
        }
        _ => {
            let names = printer.names();
            let from = types::bytes_text(names, kind, from, true);
            format!("{from}-{}", types::bytes_text(names, kind, to, true))
        }
    }
}
