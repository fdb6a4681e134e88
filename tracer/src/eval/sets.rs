//! Sets and maps, made ready for lookups.

use std::{collections::HashMap, time::Duration};

use super::{
    code::{Bounds, Decided},
    field::{DoubtKind, Reason},
    hash::BuildQuick,
    program::Jumps,
};
use crate::ruleset::{
    expr::{Data, Expr},
    model::{Element, Set, Table},
};

/// What an element gives.
#[derive(Debug, Clone)]
pub(super) enum Gives {
    /// Nothing, or an object.
    Nothing,
    /// Bytes for a register.
    Value(Box<[u8]>),
    /// A verdict.
    Verdict(Decided),
}

/// An element.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) gives: Gives,
    /// Why it may be gone, or may not let the packet through.
    pub(super) doubt: Option<Reason>,
}

#[derive(Debug, Clone)]
enum Keys {
    /// Single keys.
    Exact(HashMap<Box<[u8]>, u32, BuildQuick>),
    /// Ranges as the kernel's tree has them: from each key on it is this element, or none; sorted.
    Tree(Vec<(Box<[u8]>, Option<u32>)>),
    /// Ranges of concatenations: field by field, each within its bounds; first and last byte of each field.
    Fields {
        fields: Vec<(usize, usize)>,
        ranges: Vec<(Bounds, u32)>,
    },
}

/// A set or map, ready.
#[derive(Debug, Clone)]
pub(super) struct Lookup {
    keys: Keys,
    pub(super) entries: Vec<Entry>,
    catch_all: Option<u32>,
    pub(super) is_map: bool,
    /// Why an element that was not read may be there.
    pub(super) growing: Option<Reason>,
    /// Why it is not known what the objects of an object map do.
    pub(super) objects: Option<Reason>,
    /// Elements or objects may count connections, which drops what can be none where it is found: `nft_set_elem_update_expr()`.
    pub(super) counts: bool,
    /// Rules add to it, and it may be full.
    pub(super) crowded: bool,
    /// How long all elements that do expire, but not soon, are certainly there yet.
    pub(super) lasts: Option<Duration>,
}

/// What is found for a key.
#[derive(Debug)]
pub(super) enum Found<'a> {
    /// This element.
    Entry(&'a Entry),
    /// The catch-all element.
    CatchAll(&'a Entry),
    /// None.
    Nothing,
}

/// Sets that rules fill have room for this many more at least, or may be full.
const ROOM: u32 = 1024;
/// An element that expires is taken to be there as long as it has more time left than this: what is concluded from that holds so long at
/// least, and is not to be concluded again all the time.
const SOON: Duration = Duration::from_secs(10);

impl Lookup {
    /// Of a set that was read `age` ago. Chains that its verdicts name are looked up in `jumps`.
    pub(super) fn new(table: &Table, set: &Set, jumps: &Jumps<'_>, age: Duration) -> Self {
        let mut lookup = Self {
            keys: Keys::Exact(HashMap::default()),
            entries: Vec::new(),
            catch_all: None,
            is_map: set.flags & (Set::MAP | Set::OBJECT) != 0,
            growing: (set.flags & Set::EVAL != 0)
                .then(|| Reason::new(DoubtKind::State, format!("rules fill the set {}", set.name))),
            objects: match set.obj_type {
                Some(2 | 4 | 5 | 9 | 10) => Some(Reason::new(
                    DoubtKind::State,
                    format!("what the objects of {} let through", set.name),
                )),
                _ => None,
            },
            counts: counts(table, set),
            crowded: set
                .size
                .is_some_and(|size| size.saturating_sub(set.elements.len() as u32) < ROOM),
            lasts: None,
        };
        let shrinking = set.flags & Set::EVAL != 0 && deletes(table, &set.name);
        let interval = set.flags & Set::INTERVAL != 0;
        let by_field = interval
            && (set.flags & Set::CONCAT != 0
                || set.elements.iter().any(|element| element.key_end.is_some()));
        let mut points: Vec<(Box<[u8]>, Option<u32>)> = Vec::new();
        let mut ranges = Vec::new();
        let mut exact = HashMap::<_, _, BuildQuick>::default();
        for element in &set.elements {
            let entry = lookup.entries.len() as u32;
            let end = element.flags & Element::INTERVAL_END != 0;
            if !end {
                let gives = gives(element, jumps);
                let left = left(set, element, age);
                if let Left::Enough(left) = left {
                    lookup.lasts = Some(lookup.lasts.map_or(left, |lasts| lasts.min(left)));
                }
                let doubt = doubt(set, element, shrinking, &left);
                lookup.entries.push(Entry { gives, doubt });
            }
            let Some(key) = element.key.as_deref() else {
                if element.flags & Element::CATCHALL != 0 && !end {
                    lookup.catch_all = Some(entry);
                }
                continue;
            };
            let key: Box<[u8]> = key.into();
            if by_field {
                let last = element.key_end.as_deref().unwrap_or(&key).into();
                ranges.push(((key, last), entry));
            } else if interval {
                points.push((key, (!end).then_some(entry)));
            } else {
                exact.insert(key, entry);
            }
        }
        lookup.keys = if by_field {
            Keys::Fields {
                fields: fields(set),
                ranges,
            }
        } else if interval {
            // Where a range ends and another starts, the start counts.
            points.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.is_some().cmp(&b.1.is_some())));
            Keys::Tree(points)
        } else {
            Keys::Exact(exact)
        };
        lookup
    }

    /// The element for a key of a key's length.
    pub(super) fn find(&self, key: &[u8]) -> Found<'_> {
        let index = match &self.keys {
            Keys::Exact(exact) => exact.get(key).copied(),
            Keys::Tree(points) => {
                let after = points.partition_point(|(start, _)| **start <= *key);
                after
                    .checked_sub(1)
                    .and_then(|last| points.get(last))
                    .and_then(|(_, entry)| *entry)
            }
            Keys::Fields { fields, ranges } => ranges
                .iter()
                .find(|((from, to), _)| {
                    fields.iter().all(|&(start, end)| {
                        match (
                            key.get(start..end),
                            from.get(start..end),
                            to.get(start..end),
                        ) {
                            (Some(key), Some(from), Some(to)) => from <= key && key <= to,
                            _ => false,
                        }
                    })
                })
                .map(|(_, entry)| *entry),
        };
        let entry = |index: u32| self.entries.get(index as usize);
        match (index.and_then(entry), self.catch_all.and_then(entry)) {
            (Some(entry), _) => Found::Entry(entry),
            (None, Some(entry)) => Found::CatchAll(entry),
            (None, None) => Found::Nothing,
        }
    }

    /// Its keys, sorted, if they are single ones.
    pub(super) fn single_keys(&self) -> Option<Vec<&[u8]>> {
        let Keys::Exact(exact) = &self.keys else {
            return None;
        };
        let mut keys: Vec<&[u8]> = exact.keys().map(|key| &**key).collect();
        keys.sort_unstable();
        Some(keys)
    }

    /// What a key that is no element's finds.
    pub(super) fn other(&self) -> Found<'_> {
        self.catch_all().map_or(Found::Nothing, Found::CatchAll)
    }

    /// Whether all that is asked for in it is there or not, whatever happened to it since it was read.
    pub(super) fn is_certain(&self) -> bool {
        self.growing.is_none()
            && self.catch_all.is_none()
            && self.entries.iter().all(|entry| entry.doubt.is_none())
    }

    /// The catch-all element.
    pub(super) fn catch_all(&self) -> Option<&Entry> {
        self.entries.get(self.catch_all? as usize)
    }
}

/// First and last byte of each field of a key; fields start at multiples of four.
fn fields(set: &Set) -> Vec<(usize, usize)> {
    if set.fields.is_empty() {
        return vec![(0, set.key_len as usize)];
    }
    let mut at = 0;
    let mut fields = Vec::new();
    for len in &set.fields {
        let len = *len as usize;
        fields.push((at, at + len));
        at += len.next_multiple_of(4);
    }
    fields
}

fn gives(element: &Element, jumps: &Jumps<'_>) -> Gives {
    match &element.data {
        Some(Data::Value(bytes)) => Gives::Value(bytes.as_slice().into()),
        Some(Data::Verdict(verdict)) => Gives::Verdict(jumps.decided(verdict)),
        None => Gives::Nothing,
    }
}

/// How long an element lives.
enum Left {
    /// It does not expire.
    Forever,
    /// So long at least: more than [`SOON`].
    Enough(Duration),
    /// It may be gone.
    Unknown,
}

/// What an element has left that had [`Element::expiration`] left `age` ago. Only user space takes elements away before, with a new
/// generation, or rules that delete; other rules can only prolong its life.
fn left(set: &Set, element: &Element, age: Duration) -> Left {
    let expires = element.timeout.or(element.expiration).is_some()
        || set.timeout.is_some() && element.flags & Element::CATCHALL == 0;
    if !expires {
        return Left::Forever;
    }
    // What rules add may have been added after the drop, and read then.
    let filled = set.flags & Set::EVAL != 0;
    let left = element.expiration.filter(|_| !filled).map(|left| {
        let left = Duration::from_millis(left);
        left.saturating_sub(age)
    });
    match left {
        Some(left) if left > SOON => Left::Enough(left),
        _ => Left::Unknown,
    }
}

/// Why an element that was read may be gone by now, or may not let packets through.
fn doubt(set: &Set, element: &Element, shrinking: bool, left: &Left) -> Option<Reason> {
    let name = &set.name;
    if let Left::Unknown = left {
        return Some(Reason::new(
            DoubtKind::State,
            format!("elements of {name} expire"),
        ));
    }
    if shrinking {
        return Some(Reason::new(
            DoubtKind::State,
            format!("rules delete from {name}"),
        ));
    }
    let exprs = element.exprs.iter().chain(&set.exprs);
    let stateful = exprs
        .into_iter()
        .find(|expr| !matches!(expr, Expr::Counter(_) | Expr::Last { .. }));
    stateful.map(|expr| {
        let text = format!("elements of {name} have a {}", expr.name());
        Reason::new(DoubtKind::State, text)
    })
}

fn expressions(table: &Table) -> impl Iterator<Item = &Expr> {
    let rules = table.chains.iter().flat_map(|chain| &chain.rules);
    rules.flat_map(|rule| &rule.exprs)
}

/// Whether a rule of the table deletes from this set.
fn deletes(table: &Table, name: &str) -> bool {
    const DELETE: u32 = 2;
    expressions(table)
        .any(|expr| matches!(expr, Expr::Dynset { set, op: DELETE, .. } if set == name))
}

/// Whether elements of the set, or those that rules of the table add, may count connections; or the objects that it maps to.
fn counts(table: &Table, set: &Set) -> bool {
    const CONNLIMIT: u32 = 5;
    let is_connlimit = |expr: &Expr| matches!(expr, Expr::Connlimit { .. });
    let of_elements = set.elements.iter().flat_map(|element| &element.exprs);
    let added = |expr: &Expr| match expr {
        Expr::Dynset {
            set: name, exprs, ..
        } => *name == set.name && exprs.iter().any(is_connlimit),
        _ => false,
    };
    set.obj_type == Some(CONNLIMIT)
        || set.exprs.iter().chain(of_elements).any(is_connlimit)
        || set.flags & Set::EVAL != 0 && expressions(table).any(added)
}
