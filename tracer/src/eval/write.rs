//! What rules may change of the packet that others read.

use std::ops::Range;

use super::{
    fib,
    field::{DoubtKind, Field, Reason, Value},
    load::{ct_key, meta_key},
    xt::XtField,
};
use crate::ruleset::expr::PayloadBase;

/// One bit for each thing that rules change.
pub(super) type Kinds = u16;

/// The packet's mark.
const MARK: Kinds = 1;
/// Its priority.
const PRIORITY: Kinds = 1 << 1;
/// Its type.
const PKTTYPE: Kinds = 1 << 2;
/// Its security mark.
const SECMARK: Kinds = 1 << 3;
/// The connection's mark.
const CT_MARK: Kinds = 1 << 4;
/// Whether it is tracked.
pub(super) const CT_STATE: Kinds = 1 << 5;
/// Those of its bytes that have no kind of their own: addresses and ports among them.
const BYTES: Kinds = 1 << 6;
/// TOS or traffic class.
const TOS: Kinds = 1 << 7;
/// TTL or hop limit.
const HOPS: Kinds = 1 << 8;
/// TCP's flags, window and checksum.
const FLAGS: Kinds = 1 << 9;
/// What follows them: TCP's options.
const OPTIONS: Kinds = 1 << 10;
/// The link-layer header.
const LINK: Kinds = 1 << 11;

/// The names of the kinds, the lowest bit first.
const NAMES: [&str; 12] = [
    "the mark",
    "the priority",
    "the packet type",
    "the security mark",
    "the connection's mark",
    "the connection",
    "the packet's bytes",
    "the type of service",
    "the hop limit",
    "the TCP flags",
    "the TCP options",
    "the link-layer header",
];

/// What a field belongs to, 0 for those that no rule changes.
pub(super) fn kind(field: &Field) -> Kinds {
    match field {
        Field::Meta(meta_key::MARK) => MARK,
        Field::Meta(meta_key::PRIORITY) => PRIORITY,
        Field::Meta(meta_key::PKTTYPE) => PKTTYPE,
        Field::Meta(meta_key::SECMARK) => SECMARK,
        Field::Ct {
            key: ct_key::MARK, ..
        } => CT_MARK,
        Field::Ct { .. } => CT_STATE,
        Field::Payload { base, offset, len } => bytes(*base, *offset, *len),
        Field::Exthdr { op: 1, .. } => OPTIONS,
        Field::Exthdr { .. } => BYTES,
        Field::Xt(XtField::Chunk(_)) => BYTES | TOS | HOPS | FLAGS | OPTIONS,
        Field::Xt(XtField::TcpOptions) => OPTIONS,
        // The ports are read as a field of their own.
        Field::Xt(XtField::Transport { need: 20 } | XtField::AnyTransport) => FLAGS,
        Field::Xt(
            XtField::Transport { .. }
            | XtField::SetPort { .. }
            | XtField::Extension { .. }
            | XtField::Extensions,
        ) => BYTES,
        // An address: [`super::fib`] has no answers that depend on the mark or the type of service.
        Field::Fib { .. } => BYTES,
        _ => 0,
    }
}

/// Whether no rule makes the field appear or disappear, whatever it writes.
pub(super) fn stays(field: &Field) -> bool {
    const OF_PACKET: Kinds = MARK | PRIORITY | PKTTYPE | SECMARK | CT_MARK;
    match field {
        Field::Payload {
            base: PayloadBase::Network,
            offset,
            len,
        } => offset.saturating_add(*len) <= 20,
        field => kind(field) & OF_PACKET != 0,
    }
}

/// What packet bytes belong to. The two families have the hop limit at different places, so that only reading it alone counts as that.
fn bytes(base: PayloadBase, offset: u32, len: u32) -> Kinds {
    let end = offset + len;
    match (base, offset, len) {
        (PayloadBase::Link, ..) => LINK,
        (PayloadBase::Network, 7 | 8, 1) => HOPS,
        (PayloadBase::Network, ..) if end <= 2 => TOS,
        // An IPv6 source address.
        (PayloadBase::Network, 8, 16) => BYTES,
        (PayloadBase::Network, ..) => {
            let tos = if offset < 2 { TOS } else { 0 };
            let hops = if offset < 9 && end > 7 { HOPS } else { 0 };
            BYTES | tos | hops
        }
        (PayloadBase::Transport, ..) => {
            let ports = if offset < 12 { BYTES } else { 0 };
            let flags = if offset < 20 && end > 12 { FLAGS } else { 0 };
            let options = if end > 20 { OPTIONS } else { 0 };
            ports | flags | options
        }
        (PayloadBase::Inner | PayloadBase::Tunnel, ..) => BYTES,
    }
}

/// Why the value before the first write is not known.
pub(super) fn reason(kind: Kinds) -> Reason {
    let name = NAMES
        .get(kind.trailing_zeros() as usize)
        .copied()
        .unwrap_or("the packet");
    Reason::new(
        DoubtKind::Rewritten,
        format!("a rule changed {name}, and what was before is not known"),
    )
}

/// Why a field that was written is not known.
fn changed() -> Value {
    Value::Unknown(Reason::rewritten("an earlier rule changed it"))
}

/// What writes have made of a field of an IPv4 or IPv6 packet: `None` if they do not touch it. `shown` is what the packet itself has.
pub(super) fn effect(
    writes: &[(Field, Value)],
    read: &Field,
    v6: bool,
    shown: impl FnOnce() -> Value,
) -> Option<Value> {
    if let Field::Payload { base, offset, len } = read {
        let mut touching = writes
            .iter()
            .filter(|(written, _)| touches(written, *base, *offset, *len, v6))
            .peekable();
        touching.peek()?;
        return Some(patched(touching, *base, *offset, v6, shown()));
    }
    writes
        .iter()
        .rev()
        .find_map(|(written, value)| whole(written, value, read, v6))
}

/// Whether a write can change these bytes.
fn touches(written: &Field, base: PayloadBase, offset: u32, len: u32, v6: bool) -> bool {
    let Field::Payload {
        base: other,
        offset: from,
        len: size,
    } = *written
    else {
        return matches!(written, Field::Exthdr { .. }) && base != PayloadBase::Link;
    };
    let link = PayloadBase::Link;
    match (other, base) {
        (a, b) if a == b => {
            let apart = from + size <= offset || offset + len <= from;
            !apart || is_checksum(base, offset, len, v6)
        }
        (a, b) if a == link || b == link => false,
        // A write to a network header that stays in it, and likewise a read.
        // Addresses are part of the transport header's checksum, other fields are not.
        (PayloadBase::Network, _) if from + size <= 20 => {
            size >= 4 && is_checksum(base, offset, len, v6)
        }
        (_, PayloadBase::Network) if offset + len <= 20 => false,
        _ => true,
    }
}

/// Whether one of the bytes can be a checksum that a write brings up to date.
fn is_checksum(base: PayloadBase, offset: u32, len: u32, v6: bool) -> bool {
    let within = |from: u32| offset < from + 2 && from < offset + len;
    match base {
        // IPv6 has none.
        PayloadBase::Network => !v6 && within(10),
        // ICMP's is where others have their destination port: who reads that of ICMP is not worth doubting every port.
        PayloadBase::Transport => within(16) || within(6),
        _ => false,
    }
}

/// The bytes with what was written to them.
fn patched<'a>(
    writes: impl Iterator<Item = &'a (Field, Value)>,
    base: PayloadBase,
    offset: u32,
    v6: bool,
    shown: Value,
) -> Value {
    let Value::Bytes(bytes) = shown else {
        return shown;
    };
    let mut bytes = bytes.as_slice().to_vec();
    for (written, value) in writes {
        let (
            Field::Payload {
                base: other,
                offset: from,
                ..
            },
            Some(value),
        ) = (written, value.known())
        else {
            return changed();
        };
        if *other != base {
            return changed();
        }
        for (at, byte) in (*from..).zip(value) {
            let index = at.checked_sub(offset).map(|index| index as usize);
            if let Some(place) = index.and_then(|index| bytes.get_mut(index)) {
                *place = *byte;
            }
        }
        let end = offset + bytes.len() as u32;
        if is_checksum(base, offset, end - offset, v6) && !covers(*from, value.len(), offset, end) {
            return changed();
        }
    }
    Value::bytes(&bytes)
}

fn covers(from: u32, len: usize, start: u32, end: u32) -> bool {
    from <= start && end <= from + len as u32
}

/// Which bytes of the packet, counted from its network header, are or may be others than it shows: by these writes, and by what is written later,
/// of the kinds in `open`. `None`: they can be any.
pub(super) fn doubtful(
    writes: &[(Field, Value)],
    open: Kinds,
    v6: bool,
) -> Option<Vec<Range<u32>>> {
    const IN_PACKET: Kinds = BYTES | TOS | HOPS | FLAGS | OPTIONS;
    let mut ranges = Vec::new();
    for (written, _) in writes {
        match *written {
            Field::Payload {
                base: PayloadBase::Network,
                offset,
                len,
            } if offset + len <= 10 => ranges.push(offset..offset + len),
            _ if kind(written) & IN_PACKET != 0 => return None,
            _ => {}
        }
    }
    match open & IN_PACKET & !(TOS | HOPS) {
        0 => {}
        _ => return None,
    }
    if open & TOS != 0 {
        ranges.push(0..2);
    }
    if open & HOPS != 0 {
        ranges.push(7..9);
    }
    if !ranges.is_empty() && !v6 {
        ranges.push(10..12);
    }
    Some(ranges)
}

/// Whether some of these bytes of the network header tell where other headers and options are and which, or are such themselves.
fn places(offset: u32, end: u32, v6: bool) -> bool {
    let has = |from: u32, to: u32| offset < to && from < end;
    match v6 {
        // The header's length, the packet's, fragments, the protocol.
        false => has(0, 1) || has(2, 4) || has(6, 8) || has(9, 10) || end > 20,
        // The packet's length, the next header.
        true => has(4, 7) || end > 40,
    }
}

/// What a write does to a field other than packet bytes.
fn whole(written: &Field, value: &Value, read: &Field, v6: bool) -> Option<Value> {
    if written == read {
        return Some(value.clone());
    }
    match (written, read) {
        (Field::Payload { base, offset, len }, Field::Exthdr { op, .. }) => {
            let (offset, end) = (*offset, offset + len);
            let apart = match base {
                PayloadBase::Link => true,
                PayloadBase::Network => !places(offset, end, v6),
                // A TCP option: whether there are any stands in the header's byte 12.
                PayloadBase::Transport => *op == 1 && end <= 20 && (end <= 12 || offset > 12),
                _ => false,
            };
            (!apart).then(changed)
        }
        (Field::Exthdr { .. }, Field::Exthdr { .. }) => Some(changed()),
        (
            Field::Payload {
                base: PayloadBase::Network,
                offset,
                len,
            },
            Field::Fib { flags, .. },
        ) => {
            let address = fib::address(*flags, v6);
            let apart = offset + len <= address.start || address.end <= *offset;
            (!apart).then(changed)
        }
        // A packet that is not tracked has no connection.
        (
            Field::Ct {
                key: ct_key::STATE, ..
            },
            Field::Ct { .. },
        ) => Some(Value::Break),
        (
            Field::Ct {
                key: ct_key::STATE, ..
            },
            Field::NatWalk { .. },
        ) => Some(Value::u8(0)),
        (Field::Payload { base, offset, len }, Field::Xt(field)) => {
            let (offset, end) = (*offset, offset + len);
            let apart = match (base, field) {
                (PayloadBase::Link, _) => true,
                // Who searches in them asks [`doubtful`].
                (_, XtField::Chunk(_)) => true,
                (PayloadBase::Network, _) => !places(offset, end, v6),
                // The ports are read as a field of their own.
                (_, XtField::Transport { .. } | XtField::SetPort { .. }) => end <= 4,
                (_, XtField::TcpOptions | XtField::AnyTransport) => end <= 12,
                (_, XtField::Extension { .. } | XtField::Extensions) => false,
                _ => true,
            };
            (!apart).then(changed)
        }
        _ => None,
    }
}
