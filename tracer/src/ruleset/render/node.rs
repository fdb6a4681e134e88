//! What a register holds: the tree of loads and operations that led to it, and how it is written.

use crate::ruleset::model::Set;

use super::Printer;
use super::exthdr::Exthdr;
use super::proto::{Field, Layer, Proto, TH};
use super::set;
use super::types::{self, Kind, Order, Type};

/// Packet bytes, and the header field they are once that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Payload {
    pub(super) layer: Layer,
    /// Bits.
    pub(super) offset: u32,
    /// Bits.
    pub(super) len: u32,
    /// The protocol and the number of its field, counted from 0. The payload may be a part of the field, from its start.
    pub(super) field: Option<(&'static Proto, usize)>,
}

impl Payload {
    /// Bytes that are no field yet, except the ports, which are the same in all transport protocols.
    pub(super) fn raw(layer: Layer, offset: u32, len: u32) -> Self {
        let ports = layer == Layer::Transport && len == 16 && matches!(offset, 0 | 16);
        let field = ports.then_some((&TH, (offset / 16) as usize));
        Self {
            layer,
            offset,
            len,
            field,
        }
    }

    pub(super) fn field(&self) -> Option<&'static Field> {
        let (proto, index) = self.field?;
        proto.fields.get(index)
    }

    pub(super) fn kind(&self) -> Kind {
        let ty = self.field().map_or(Type::Hex, |field| field.ty);
        Kind::new(ty, Order::Big, self.len)
    }

    /// Whether it says which protocol comes next.
    pub(super) fn is_key(&self) -> bool {
        self.field
            .is_some_and(|(proto, index)| proto.key == Some(index))
    }

    fn text(&self) -> String {
        match (self.field, self.field()) {
            (Some((proto, _)), Some(field)) => format!("{} {}", proto.name, field.name),
            _ => format!("@{},{},{}", self.layer.token(), self.offset, self.len),
        }
    }
}

/// An operation on a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BitOp {
    And,
    Or,
    Xor,
    Left,
    Right,
}

impl BitOp {
    fn token(self) -> &'static str {
        match self {
            Self::And => "&",
            Self::Or => "|",
            Self::Xor => "^",
            Self::Left => "<<",
            Self::Right => ">>",
        }
    }

    /// The lower, the tighter it binds.
    fn precedence(self) -> u8 {
        match self {
            Self::Left | Self::Right => 1,
            Self::And => 2,
            Self::Xor => 3,
            Self::Or => 4,
        }
    }
}

/// What a register holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Node<'a> {
    /// A constant, as the register holds it; its type comes from where it is used.
    Value(Vec<u8>),
    Payload(Payload),
    Exthdr(Exthdr),
    Meta(u32),
    Ct {
        key: u32,
        direction: Option<u8>,
        /// The network protocol where the key is an address of unspecified family.
        family: Option<&'static str>,
    },
    /// A load whose text and kind do not depend on anything else.
    Load(String, Kind),
    /// `jhash`: the input and the text after it.
    Hash(Box<Node<'a>>, String),
    Op(BitOp, Box<Node<'a>>, Box<Node<'a>>),
    /// A conversion between byte orders, which is not written.
    Swap(Box<Node<'a>>),
    Concat(Vec<Node<'a>>),
    /// The data that a map has for the key. `slice` are the bits of the set's keys that count, if not all.
    Map {
        key: Box<Node<'a>>,
        set: &'a Set,
        slice: Option<(u32, u32)>,
    },
}

/// A key of `meta`: name, and what it is.
pub(super) fn meta_key(key: u32) -> Option<(&'static str, Kind)> {
    use Order::{Big, Host};
    let name = |name, ty, bits| Some((name, Kind::new(ty, Host, bits)));
    match key {
        0 => name("length", Type::Integer, 32),
        1 => Some(("protocol", Kind::new(Type::Ethertype, Big, 16))),
        2 => name("priority", Type::Classid, 32),
        3 => name("mark", Type::Mark, 32),
        4 => name("iif", Type::Ifindex, 32),
        5 => name("oif", Type::Ifindex, 32),
        6 => name("iifname", Type::Ifname, 128),
        7 => name("oifname", Type::Ifname, 128),
        8 => name("iiftype", Type::Arphrd, 16),
        9 => name("oiftype", Type::Arphrd, 16),
        10 => name("skuid", Type::Uid, 32),
        11 => name("skgid", Type::Gid, 32),
        12 => name("nftrace", Type::Integer, 8),
        13 => name("rtclassid", Type::Realm, 32),
        14 => name("secmark", Type::Integer, 32),
        15 => name("nfproto", Type::Nfproto, 8),
        16 => name("l4proto", Type::InetProto, 8),
        17 => name("ibrname", Type::Ifname, 128),
        18 => name("obrname", Type::Ifname, 128),
        19 => name("pkttype", Type::Pkttype, 8),
        20 => name("cpu", Type::Integer, 32),
        21 => name("iifgroup", Type::Devgroup, 32),
        22 => name("oifgroup", Type::Devgroup, 32),
        23 => name("cgroup", Type::Integer, 32),
        24 => Some(("random", Kind::new(Type::Integer, Big, 32))),
        25 => name("ipsec", Type::Boolean, 8),
        26 => name("iifkind", Type::Ifname, 128),
        27 => name("oifkind", Type::Ifname, 128),
        28 => name("ibrpvid", Type::Integer, 16),
        29 => Some(("ibrvproto", Kind::new(Type::Ethertype, Big, 16))),
        30 => name("time", Type::Date, 64),
        31 => name("day", Type::Day, 8),
        32 => name("hour", Type::Hour, 32),
        33 => name("sdif", Type::Ifindex, 32),
        34 => name("sdifname", Type::Ifname, 128),
        35 => name("broute", Type::Integer, 8),
        _ => None,
    }
}

/// `meta` is left out before the oldest keys.
pub(super) fn meta_text(key: u32) -> String {
    match meta_key(key) {
        Some((name, _)) if matches!(key, 4..=7 | 21 | 22) => name.to_owned(),
        Some((name, _)) => format!("meta {name}"),
        None => format!("meta key-{key}"),
    }
}

fn meta_kind(key: u32) -> Kind {
    meta_key(key).map_or(Kind::new(Type::Integer, Order::Host, 32), |key| key.1)
}

/// A key of `ct`: name, and what it is.
pub(super) fn ct_key(key: u32) -> Option<(&'static str, Kind)> {
    use Order::{Big, Host};
    let host = |name, ty, bits| Some((name, Kind::new(ty, Host, bits)));
    let big = |name, ty, bits| Some((name, Kind::new(ty, Big, bits)));
    match key {
        0 => host("state", Type::CtState, 32),
        1 => host("direction", Type::CtDir, 8),
        2 => host("status", Type::CtStatus, 32),
        3 => host("mark", Type::Mark, 32),
        4 => host("secmark", Type::Integer, 32),
        5 => host("expiration", Type::Time, 32),
        6 => host("helper", Type::Str, 128),
        7 => host("l3proto", Type::Nfproto, 8),
        8 => big("saddr", Type::Hex, 0),
        9 => big("daddr", Type::Hex, 0),
        10 => big("protocol", Type::InetProto, 8),
        11 => big("proto-src", Type::Service, 16),
        12 => big("proto-dst", Type::Service, 16),
        13 => host("label", Type::CtLabel, 128),
        14 => host("packets", Type::Integer, 64),
        15 => host("bytes", Type::Integer, 64),
        16 => host("avgpkt", Type::Integer, 64),
        17 => host("zone", Type::Integer, 16),
        18 => host("event", Type::CtEvent, 32),
        19 => big("ip saddr", Type::Ip, 32),
        20 => big("ip daddr", Type::Ip, 32),
        21 => big("ip6 saddr", Type::Ip6, 128),
        22 => big("ip6 daddr", Type::Ip6, 128),
        23 => big("id", Type::Integer, 32),
        _ => None,
    }
}

pub(super) fn ct_text(key: u32, direction: Option<u8>, family: Option<&str>) -> String {
    let direction = match direction {
        Some(0) => "original ",
        Some(1) => "reply ",
        _ => "",
    };
    let family = family
        .map(|family| format!("{family} "))
        .unwrap_or_default();
    match ct_key(key) {
        Some((name, _)) => format!("ct {direction}{family}{name}"),
        None => format!("ct {direction}key-{key}"),
    }
}

fn ct_kind(key: u32, family: Option<&str>) -> Kind {
    match (family, ct_key(key)) {
        (Some("ip"), _) => Type::Ip.kind(),
        (Some("ip6"), _) => Type::Ip6.kind(),
        (_, Some((_, kind))) => kind,
        (_, None) => Kind::new(Type::Integer, Order::Host, 32),
    }
}

impl Node<'_> {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Value(bytes) => Kind::new(Type::Hex, Order::Big, 8 * bytes.len() as u32),
            Self::Payload(payload) => payload.kind(),
            Self::Exthdr(exthdr) => exthdr.kind(),
            Self::Meta(key) => meta_kind(*key),
            Self::Ct { key, family, .. } => ct_kind(*key, *family),
            Self::Load(_, kind) => *kind,
            Self::Hash(..) => Kind::new(Type::Integer, Order::Host, 32),
            Self::Op(_, left, _) => left.kind(),
            Self::Swap(inner) => {
                let kind = inner.kind();
                Kind::new(kind.ty, kind.order.swapped(), kind.bits)
            }
            Self::Concat(parts) => {
                let bits = parts
                    .iter()
                    .map(|part| part.kind().bits.div_ceil(32) * 32)
                    .sum();
                Kind::new(Type::Hex, Order::Big, bits)
            }
            Self::Map { set, .. } => set::data_kind(set),
        }
    }

    /// How many nodes the tree has.
    pub(super) fn nodes(&self) -> usize {
        1 + match self {
            Self::Op(_, left, right) => left.nodes() + right.nodes(),
            Self::Hash(inner, _) | Self::Swap(inner) | Self::Map { key: inner, .. } => {
                inner.nodes()
            }
            Self::Concat(parts) => parts.iter().map(Self::nodes).sum(),
            _ => 0,
        }
    }

    /// As nft writes it; `kind` is for constants, whose type is that of what they are used for.
    pub(super) fn text(&self, printer: &Printer<'_>, kind: Kind) -> String {
        match self {
            Self::Value(bytes) => value_text(printer, kind, bytes, " | "),
            Self::Payload(payload) => payload.text(),
            Self::Exthdr(exthdr) => exthdr.text(),
            Self::Meta(key) => meta_text(*key),
            Self::Ct {
                key,
                direction,
                family,
            } => ct_text(*key, *direction, *family),
            Self::Load(text, _) => text.clone(),
            Self::Hash(input, rest) => format!("jhash {}{rest}", input.text(printer, input.kind())),
            Self::Op(op, left, right) => {
                let shift = matches!(op, BitOp::Left | BitOp::Right);
                let own = match **left {
                    Self::Value(_) => kind,
                    _ => left.kind(),
                };
                let amount = Kind::new(Type::Integer, Order::Host, 32);
                let right_kind = if shift { amount } else { own };
                let left = op.argument(left, printer, own);
                let right = op.argument(right, printer, right_kind);
                format!("{left} {} {right}", op.token())
            }
            Self::Swap(inner) => inner.text(printer, kind),
            Self::Concat(parts) => {
                let texts: Vec<String> = parts
                    .iter()
                    .map(|part| part.text(printer, part.kind()))
                    .collect();
                texts.join(" . ")
            }
            Self::Map { key, set, slice } => {
                let word = if set::is_verdict_map(set) {
                    "vmap"
                } else {
                    "map"
                };
                let text = key.text(printer, key.kind());
                let elements = set::reference(printer, set, key, *slice);
                format!("{text} {word} {elements}")
            }
        }
    }
}

impl BitOp {
    fn argument(self, argument: &Node<'_>, printer: &Printer<'_>, kind: Kind) -> String {
        let text = argument.text(printer, kind);
        let looser = match argument {
            Node::Op(inner, ..) => self.precedence() < inner.precedence(),
            // Several flags are an or of them.
            Node::Value(_) => text.contains(" | ") && self.precedence() < Self::Or.precedence(),
            _ => false,
        };
        if looser { format!("({text})") } else { text }
    }
}

/// A constant. Several flags are joined by `separator`.
pub(super) fn value_text(
    printer: &Printer<'_>,
    kind: Kind,
    bytes: &[u8],
    separator: &str,
) -> String {
    if kind.ty.is_bitmask()
        && let Some(number) = types::number(bytes, kind.order)
        && number.count_ones() > 1
    {
        return types::flags(printer.names(), kind.ty, number).join(separator);
    }
    types::bytes_text(printer.names(), kind, bytes, false)
}
