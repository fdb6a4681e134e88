//! What rules may change of the packet that others read.

use super::{
    field::{Field, Reason, Value},
    load::{ct_key, meta_key},
};
use crate::ruleset::expr::PayloadBase;

/// One bit for each thing that rules change.
pub(super) type Kinds = u8;

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
const CT_STATE: Kinds = 1 << 5;
/// Its bytes.
const BYTES: Kinds = 1 << 6;

/// The names of the kinds, the lowest bit first.
const NAMES: [&str; 7] = [
    "the mark",
    "the priority",
    "the packet type",
    "the security mark",
    "the connection's mark",
    "the connection",
    "the packet's bytes",
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
        Field::Payload { .. } | Field::Exthdr { .. } => BYTES,
        // Routing by mark and by address.
        Field::Fib { .. } => MARK | BYTES,
        _ => 0,
    }
}

/// Why the value before the first write is not known.
pub(super) fn reason(kind: Kinds) -> Reason {
    let name = NAMES
        .get(kind.trailing_zeros() as usize)
        .copied()
        .unwrap_or("the packet");
    Reason::new(
        false,
        format!("a rule changed {name}, and what was before is not known"),
    )
}

/// What a write does to a field that is read later: nothing, or this value.
pub(super) fn effect(written: &Field, value: &Value, read: &Field) -> Option<Value> {
    if written == read {
        return Some(value.clone());
    }
    let changed = || {
        Some(Value::Unknown(Reason::missing(
            "an earlier rule changed it",
        )))
    };
    match (written, read) {
        (
            Field::Payload {
                base: a,
                offset: from,
                len,
            },
            Field::Payload {
                base: b,
                offset,
                len: wanted,
            },
        ) => {
            let apart = from + len <= *offset || offset + wanted <= *from;
            let headers = (*a == PayloadBase::Network && from + len <= 20 && *b == PayloadBase::Transport)
                || (*b == PayloadBase::Network && offset + wanted <= 20 && *a == PayloadBase::Transport)
                || (*a == PayloadBase::Link) != (*b == PayloadBase::Link);
            match a == b {
                true if apart => None,
                false if headers => None,
                _ => changed(),
            }
        }
        (Field::Payload { base: PayloadBase::Link, .. }, Field::Exthdr { .. }) => None,
        (Field::Payload { .. } | Field::Exthdr { .. }, Field::Exthdr { .. })
        | (Field::Exthdr { .. }, Field::Payload { base: PayloadBase::Transport, .. })
        | (Field::Payload { base: PayloadBase::Network, .. }, Field::Fib { .. })
        | (Field::Meta(meta_key::MARK), Field::Fib { .. })
        // A packet that is not tracked any more has no connection.
        | (Field::Ct { key: ct_key::STATE, .. }, Field::Ct { .. }) => changed(),
        _ => None,
    }
}
