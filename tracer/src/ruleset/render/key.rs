//! What the keys and data of a set are. nft says so in the type numbers, and in the set's userdata: byte orders, and for `typeof` sets
//! the expressions they were declared with (nft 1.0.6, libnftnl's `enum nftnl_udata_set_types`).

use crate::ruleset::model::Set;

use super::exthdr::Exthdr;
use super::node::{Node, Payload, ct_key, meta_key};
use super::proto::{self, Layer};
use super::types::{Kind, Order, Type};

/// Attributes of a set's userdata.
mod udata {
    pub(super) const KEY_ORDER: u8 = 0;
    pub(super) const DATA_ORDER: u8 = 1;
    pub(super) const AUTO_MERGE: u8 = 2;
    pub(super) const KEY_TYPEOF: u8 = 3;
    pub(super) const DATA_TYPEOF: u8 = 4;
    pub(super) const DATA_INTERVAL: u8 = 6;
}

/// Longer than anything in a register.
const MAX_BITS: u32 = 4096;

/// Values of a set: their fields, and the expression they were declared with.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    /// One, or those of a concatenation.
    pub(super) fields: Vec<Kind>,
    pub(super) concat: bool,
    /// `typeof`.
    pub(super) declared: Option<Node<'static>>,
}

/// What the keys are.
pub(super) fn key(set: &Set) -> Shape {
    let order = number(&set.userdata, udata::KEY_ORDER);
    let declared = declared(set, udata::KEY_TYPEOF, set.key_len);
    shape(set.key_type, set.key_len, order, declared)
}

/// [`key`] for a set in a rule: where the set does not say how wide a number in a concatenation is, the rule does.
pub(super) fn key_in_rule(set: &Set, used: &Node<'_>) -> Shape {
    let mut shape = key(set);
    if let Node::Concat(parts) = used
        && shape.declared.is_none()
        && parts.len() == shape.fields.len()
    {
        for (field, part) in shape.fields.iter_mut().zip(parts) {
            if field.ty.bits() == 0 {
                *field = part.kind();
            }
        }
    }
    shape
}

/// What the data are; `None` for a set or an object map.
pub(super) fn data(set: &Set) -> Option<Shape> {
    let ty = set.data_type.filter(|_| set.flags & Set::MAP != 0)?;
    let len = set.data_len.unwrap_or_default();
    let order = number(&set.userdata, udata::DATA_ORDER);
    if ty == Set::VERDICT {
        let fields = vec![Type::Verdict.kind()];
        let declared = find(&set.userdata, udata::DATA_TYPEOF).and_then(node);
        return Some(Shape {
            fields,
            concat: false,
            declared,
        });
    }
    let len = if is_data_interval(set) { len / 2 } else { len };
    let declared = declared(set, udata::DATA_TYPEOF, len);
    Some(shape(ty, len, order, declared))
}

/// Whether nft is to merge neighbouring ranges.
pub(super) fn is_auto_merge(set: &Set) -> bool {
    number(&set.userdata, udata::AUTO_MERGE).is_some_and(|merge| merge != 0)
}

/// Whether the data are ranges.
pub(super) fn is_data_interval(set: &Set) -> bool {
    number(&set.userdata, udata::DATA_INTERVAL).is_some_and(|interval| interval != 0)
}

/// Whether the set was declared by expressions: nft needs them for keys and data.
pub(super) fn is_typeof(set: &Set) -> bool {
    let whole = data(set).is_none_or(|data| data.declared.is_some());
    whole && key(set).declared.is_some()
}

fn declared(set: &Set, attribute: u8, len: u32) -> Option<Node<'static>> {
    let node = node(find(&set.userdata, attribute)?)?;
    (node.kind().bits.div_ceil(8) == len).then_some(node)
}

fn shape(ty: u32, len: u32, order: Option<u32>, declared: Option<Node<'static>>) -> Shape {
    if let Some(node) = declared {
        let fields = match &node {
            Node::Concat(parts) => parts.iter().map(Node::kind).collect(),
            node => vec![node.kind()],
        };
        let concat = matches!(node, Node::Concat(_));
        return Shape {
            fields,
            concat,
            declared: Some(node),
        };
    }
    let len = len.min(MAX_BITS / 8);
    if ty >> 6 == 0 {
        let ty = Type::from_number(ty).unwrap_or(Type::Hex);
        let order = match order {
            Some(1) => Order::Host,
            Some(2) => Order::Big,
            _ => ty.order(),
        };
        let fields = vec![Kind::new(ty, order, 8 * len)];
        return Shape {
            fields,
            concat: false,
            declared: None,
        };
    }
    Shape {
        fields: concatenation(ty, len),
        concat: true,
        declared: None,
    }
}

/// The fields of a concatenation: six bits each, the first one highest. The kernel knows only the length of all; a field of a type
/// without a size of its own has what the others leave.
fn concatenation(ty: u32, len: u32) -> Vec<Kind> {
    let types = (0..5)
        .rev()
        .map(|i| ty >> (6 * i) & 0x3f)
        .skip_while(|ty| *ty == 0);
    let mut fields: Vec<Kind> = types
        .map(|ty| Type::from_number(ty).unwrap_or(Type::Hex).kind())
        .collect();
    let taken: u32 = fields.iter().map(|field| field.bits.div_ceil(32) * 4).sum();
    if let Some(open) = fields.iter_mut().find(|field| field.bits == 0) {
        open.bits = 8 * len.saturating_sub(taken);
    }
    fields
}

/// An attribute of userdata: type and length are a byte each.
fn find(userdata: &[u8], attribute: u8) -> Option<&[u8]> {
    let mut rest = userdata;
    while let [ty, len, tail @ ..] = rest {
        let value = tail.get(..usize::from(*len))?;
        if *ty == attribute {
            return Some(value);
        }
        rest = &tail[value.len()..];
    }
    None
}

fn number(userdata: &[u8], attribute: u8) -> Option<u32> {
    let bytes = find(userdata, attribute)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// An expression in userdata: its type and what it needs, `enum expr_types` of nft.
fn node(attributes: &[u8]) -> Option<Node<'static>> {
    const VERDICT: u32 = 1;
    const PAYLOAD: u32 = 7;
    const EXTHDR: u32 = 8;
    const META: u32 = 9;
    const SOCKET: u32 = 10;
    const OSF: u32 = 11;
    const CT: u32 = 12;
    const CONCAT: u32 = 13;
    const NUMGEN: u32 = 23;
    const RT: u32 = 25;
    const FIB: u32 = 26;
    const XFRM: u32 = 27;
    let data = find(attributes, 1)?;
    let get = |attribute| number(data, attribute);
    let load = |text: &str, ty: Type, order, bits| {
        Some(Node::Load(text.to_owned(), Kind::new(ty, order, bits)))
    };
    match number(attributes, 0)? {
        VERDICT => load("verdict", Type::Verdict, Order::Big, 0),
        PAYLOAD => payload(data),
        EXTHDR => {
            Exthdr::from_typeof(get(0)?, get(1)?, get(2).unwrap_or_default()).map(Node::Exthdr)
        }
        META => {
            let key = get(0)?;
            meta_key(key).map(|_| Node::Meta(key))
        }
        SOCKET => match get(0)? {
            0 => load("socket transparent", Type::Integer, Order::Host, 8),
            1 => load("socket mark", Type::Mark, Order::Host, 32),
            2 => load("socket wildcard", Type::Integer, Order::Host, 8),
            _ => None,
        },
        OSF => load("osf name", Type::Str, Order::Host, 128),
        CT => {
            let key = get(0)?;
            let direction = u8::try_from(get(1)?).ok();
            ct_key(key).map(|_| Node::Ct {
                key,
                direction,
                family: None,
            })
        }
        CONCAT => {
            let parts = (0..16)
                .map_while(|i| find(data, i))
                .map(node)
                .collect::<Option<Vec<_>>>()?;
            Some(Node::Concat(parts))
        }
        NUMGEN => {
            let kind = if get(0)? == 0 { "inc" } else { "random" };
            let offset = match get(2).unwrap_or_default() {
                0 => String::new(),
                offset => format!(" offset {offset}"),
            };
            let text = format!("numgen {kind} mod {}{offset}", get(1)?);
            load(&text, Type::Integer, Order::Host, 32)
        }
        RT => match get(0)? {
            0 => load("rt classid", Type::Realm, Order::Host, 32),
            1 => load("rt ip nexthop", Type::Ip, Order::Big, 32),
            2 => load("rt ip6 nexthop", Type::Ip6, Order::Big, 128),
            3 => load("rt mtu", Type::Integer, Order::Host, 16),
            _ => None,
        },
        XFRM => {
            let direction = u8::try_from(get(2)?).ok()?;
            let (text, kind) = super::load::xfrm(get(0)?, direction, get(1)?)?;
            Some(Node::Load(text, kind))
        }
        FIB => {
            let (text, ty, bits) = super::load::fib(get(0)?, get(1)?);
            load(&text, ty, Order::Host, bits)
        }
        _ => None,
    }
}

fn payload(data: &[u8]) -> Option<Node<'static>> {
    let get = |attribute| number(data, attribute);
    let (proto, index) = (get(0)?, get(1)?);
    let payload = match proto::by_id(proto) {
        Some(proto) => {
            let index = usize::try_from(index).ok()?.checked_sub(1)?;
            let field = proto.fields.get(index)?;
            Payload {
                layer: proto.layer,
                offset: field.offset,
                len: field.len,
                field: Some((proto, index)),
            }
        }
        None => {
            let layer = match get(2)? {
                1 => Layer::Link,
                2 => Layer::Network,
                3 => Layer::Transport,
                4 => Layer::Inner,
                _ => return None,
            };
            Payload {
                layer,
                offset: get(3)?.min(MAX_BITS),
                len: get(4)?.min(MAX_BITS),
                field: None,
            }
        }
    };
    Some(Node::Payload(payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn userdata_attributes() {
        let data = [0, 4, 1, 0, 0, 0, 7, 2, b'a', 0, 9, 200];
        assert_eq!(find(&data, 7), Some(&b"a\0"[..]));
        assert_eq!(find(&data, 9), None);
        assert_eq!(number(&data, 0), Some(u32::from_ne_bytes([1, 0, 0, 0])));
        assert_eq!(number(&data, 7), None);
    }

    #[test]
    fn concatenations_by_number() {
        // ipv4_addr . inet_service
        let fields = concatenation(7 << 6 | 13, 8);
        assert_eq!(fields, [Type::Ip.kind(), Type::Service.kind()]);
        let fields = concatenation(7 << 6 | 4, 8);
        assert_eq!(fields[1], Kind::new(Type::Integer, Order::Big, 32));
    }
}
