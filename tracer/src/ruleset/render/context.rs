//! What a rule has said about the protocols so far.
//!
//! Packet bytes have no names in the kernel: `tcp dport` is two bytes of the transport header, after a match that says that this is
//! TCP. From such matches the context knows which header a layer has, and so which field the bytes are; and it knows which of the
//! matches may be left out because a later one, by its name, implies them.

use crate::ruleset::model::Family;

use super::node::Payload;
use super::proto::{self, Field, Layer, Proto};

/// The left side of a match on a protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    /// `meta`, by the key's number.
    Meta(u32),
    /// A header field.
    Payload(&'static Proto, usize),
}

/// `NFT_META_*` that say what the protocol is.
pub(super) mod meta {
    pub(in super::super) const PROTOCOL: u32 = 1;
    pub(in super::super) const IIFTYPE: u32 = 8;
    pub(in super::super) const NFPROTO: u32 = 15;
    pub(in super::super) const L4PROTO: u32 = 16;
}

/// A match that a later one may make redundant.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dependency {
    /// Its number among the statements of the rule.
    pub(super) statement: usize,
    pub(super) key: Key,
    pub(super) value: u32,
}

/// `ARPHRD_ETHER`.
const ETHERNET: u32 = 1;
/// Layers are counted from 1, see [`Layer`].
const LAYERS: usize = 6;

/// See the module.
pub(super) struct Context {
    family: Family,
    protos: [Option<&'static Proto>; LAYERS],
    /// Link-layer headers below the current one.
    stacked: Vec<&'static Proto>,
    /// The ICMP message's type once it is known, 0 before. Echo requests stand for replies.
    icmp: u8,
    /// By the layer above the one that the match is about: the layer whose fields it explains.
    dependencies: [Option<Dependency>; LAYERS],
    /// [`Context::icmp`] of the match kept in [`Context::dependencies`].
    dependency_icmp: u8,
}

impl Context {
    pub(super) fn new(family: Family) -> Self {
        let mut protos = [None; LAYERS];
        match family {
            Family::Ip => protos[Layer::Network as usize] = Some(&proto::IP),
            Family::Ip6 => protos[Layer::Network as usize] = Some(&proto::IP6),
            Family::Arp => protos[Layer::Network as usize] = Some(&proto::ARP),
            Family::Bridge => protos[Layer::Link as usize] = Some(&proto::ETHER),
            Family::Netdev => protos[Layer::Link as usize] = Some(&proto::NETDEV),
            Family::Inet => protos[Layer::Link as usize] = Some(&proto::INET),
            Family::Other(_) => {}
        }
        Self {
            family,
            protos,
            stacked: Vec::new(),
            icmp: 0,
            dependencies: [None; LAYERS],
            dependency_icmp: 0,
        }
    }

    /// The protocol of a layer.
    pub(super) fn proto(&self, layer: Layer) -> Option<&'static Proto> {
        self.protos[layer as usize]
    }

    /// Whether packets of several network protocols come by.
    fn is_mixed(&self) -> bool {
        matches!(self.family, Family::Inet | Family::Bridge | Family::Netdev)
    }

    /// Forgets the matches that might have been left out: a statement with an effect of its own stands between them and what follows.
    pub(super) fn reset_dependencies(&mut self) {
        self.dependencies = [None; LAYERS];
        self.dependency_icmp = 0;
    }

    /// The header that covers a place in a layer, and the bits before that header.
    fn header(&self, layer: Layer, offset: u32) -> Option<(&'static Proto, u32)> {
        let top = self.proto(layer)?;
        let mut before = 0;
        if layer == Layer::Link {
            for below in &self.stacked {
                if offset < before + below.length {
                    return Some((below, before));
                }
                before += below.length;
            }
        }
        Some((top, before))
    }

    /// Whether ICMP messages of the known type have the field.
    fn has(&self, field: &Field) -> bool {
        field.icmp == 0 || self.icmp == 0 || field.icmp == self.icmp
    }

    /// Names the payload if it is exactly a field.
    pub(super) fn name(&self, payload: &mut Payload) {
        let Some((proto, before)) = self.header(payload.layer, payload.offset) else {
            return;
        };
        let offset = payload.offset.wrapping_sub(before);
        let found = proto.fields.iter().position(|field| {
            field.offset == offset && field.len == payload.len && self.has(field)
        });
        if let Some(index) = found {
            payload.field = Some((proto, index));
        }
    }

    /// The fields that the payload consists of, one after another: nft merges matches on neighbours. The last may be a part of a
    /// field, or bytes without a name.
    pub(super) fn split(&self, payload: &Payload) -> Vec<Payload> {
        let Payload {
            layer,
            mut offset,
            mut len,
            ..
        } = *payload;
        let mut parts = Vec::new();
        if let Some((proto, before)) = self.header(layer, offset) {
            for (index, field) in proto.fields.iter().enumerate() {
                if len == 0 || field.offset != offset.wrapping_sub(before) || !self.has(field) {
                    continue;
                }
                let part = Payload {
                    layer,
                    offset,
                    len: field.len.min(len),
                    field: Some((proto, index)),
                };
                offset += part.len;
                len -= part.len;
                parts.push(part);
            }
        }
        if len > 0 {
            parts.push(Payload::raw(layer, offset, len));
        }
        parts
    }

    /// The field, or neighbouring fields, that a mask of one run of bits selects from the payload. `run` is the run's first bit, counted
    /// from the payload's, and its length.
    pub(super) fn trim(&self, payload: &Payload, run: (u32, u32)) -> Option<Payload> {
        let (start, len) = (payload.offset + run.0, run.1);
        let (proto, before) = self.header(payload.layer, payload.offset)?;
        let mut next = start.wrapping_sub(before);
        let end = next.wrapping_add(len);
        for field in proto.fields {
            if field.offset == next && next < end {
                next += field.len;
            }
        }
        let whole = len == payload.len;
        (next == end && !whole).then_some(Payload {
            layer: payload.layer,
            offset: start,
            len,
            field: None,
        })
    }

    /// Learns from `field == value`.
    pub(super) fn learn(&mut self, payload: &Payload, value: u32) {
        let Some(base) = self.proto(payload.layer) else {
            return;
        };
        let Some(next) = (base.upper)(value) else {
            self.learn_icmp(base, value);
            return;
        };
        if next.layer == base.layer && base.layer == Layer::Link {
            self.stacked.push(base);
        }
        self.protos[next.layer as usize] = Some(next);
    }

    fn learn_icmp(&mut self, proto: &Proto, kind: u32) {
        let kind = u8::try_from(kind).unwrap_or_default();
        if *proto == proto::ICMP {
            self.icmp = if kind == 0 { proto::ICMP_ECHO } else { kind };
        } else if *proto == proto::ICMPV6 {
            let reply = kind == proto::ICMPV6_ECHO_REPLY;
            self.icmp = if reply { proto::ICMPV6_ECHO } else { kind };
        }
    }

    /// Learns from a set of ICMP types that starts with `kind`.
    pub(super) fn learn_icmp_set(&mut self, payload: &Payload, kind: u32) {
        let typed = payload.is_key() && payload.layer == Layer::Transport;
        if typed && self.icmp == 0 && payload.field.is_some_and(|(proto, _)| self.is_icmp(proto)) {
            self.icmp = u8::try_from(kind).unwrap_or_default();
        }
    }

    fn is_icmp(&self, proto: &Proto) -> bool {
        *proto == proto::ICMP || *proto == proto::ICMPV6
    }

    /// Learns from `meta key == value`.
    pub(super) fn learn_meta(&mut self, key: u32, value: u32) {
        let link = self.proto(Layer::Link);
        let unknown = Some(&proto::UNKNOWN);
        match key {
            meta::IIFTYPE if self.family != Family::Bridge => {
                let ethernet = value == ETHERNET;
                self.protos[Layer::Link as usize] = if ethernet {
                    Some(&proto::ETHER)
                } else {
                    unknown
                };
            }
            meta::NFPROTO if self.family == Family::Inet => {
                let next = (proto::INET.upper)(value);
                self.protos[Layer::Network as usize] = next.or(unknown);
            }
            meta::L4PROTO => {
                let next = proto::by_protocol(value);
                self.protos[Layer::Transport as usize] = next.or(unknown);
            }
            meta::PROTOCOL if matches!(self.family, Family::Netdev | Family::Bridge) => {
                let next = link.and_then(|_| (proto::NETDEV.upper)(value));
                // A VLAN tag that the device took off says nothing about the link layer's bytes.
                let next = next.filter(|next| next.layer == Layer::Network);
                self.protos[Layer::Network as usize] = next.or(unknown);
            }
            _ => {}
        }
    }

    /// Learns from a match on the protocol of the connection.
    pub(super) fn learn_ct(&mut self, l3: bool, value: u32) {
        let layer = if l3 { Layer::Link } else { Layer::Network };
        let next = self.proto(layer).and_then(|base| (base.upper)(value));
        if let Some(next) = next {
            self.protos[next.layer as usize] = Some(next);
        }
    }

    /// Keeps a match on a protocol, which a match on a header above may make redundant.
    pub(super) fn keep(&mut self, dependency: Dependency) {
        let layer = match dependency.key {
            Key::Meta(meta::L4PROTO) => Layer::Network as usize,
            Key::Meta(meta::IIFTYPE) => 0,
            Key::Meta(_) => Layer::Link as usize,
            Key::Payload(proto, _) => {
                let stacked =
                    (proto.upper)(dependency.value).is_some_and(|next| next.layer == proto.layer);
                proto.layer as usize - usize::from(stacked)
            }
        };
        if let Key::Payload(proto, _) = dependency.key
            && self.is_icmp(proto)
        {
            self.dependency_icmp = self.icmp;
            if matches!(self.icmp, proto::ICMP_ECHO | proto::ICMPV6_ECHO) {
                return;
            }
        }
        self.dependencies[layer + 1] = Some(dependency);
    }

    /// The match that explains the fields of a layer. That of ICMP's type explains the rest of the ICMP header.
    fn slot(&self, layer: Layer) -> Option<usize> {
        let own = layer as usize;
        if self.dependencies[own].is_some() {
            return Some(own);
        }
        let inner = Layer::Inner as usize;
        (layer == Layer::Transport && self.dependencies[inner].is_some()).then_some(inner)
    }

    /// The statement that a match on the payload makes redundant.
    pub(super) fn implied_by(&mut self, payload: &Payload) -> Option<usize> {
        let (proto, _) = payload.field?;
        // The ports of an unnamed protocol imply nothing.
        if *proto == proto::TH {
            return None;
        }
        let slot = self.slot(payload.layer)?;
        let dependency = self.dependencies[slot]?;
        if !self.implies(payload, proto, &dependency) {
            return None;
        }
        self.dependencies[slot] = None;
        Some(dependency.statement)
    }

    fn implies(&self, payload: &Payload, proto: &Proto, dependency: &Dependency) -> bool {
        let Key::Payload(base, _) = dependency.key else {
            return true;
        };
        // `ip protocol tcp` also says that it is IPv4, `ip6 nexthdr tcp` that there is no extension header.
        let says_more = *base == proto::IP6 || (*base == proto::IP && self.is_mixed());
        if says_more && payload.layer == Layer::Transport {
            return false;
        }
        if self.is_mixed() && base.layer == payload.layer {
            if payload.is_key() {
                return false;
            }
            if payload.layer == Layer::Link {
                return *base != proto::VLAN
                    && (*base != proto::ETHER || dependency.value == 0x8100);
            }
        }
        if payload.layer != Layer::Transport || base.layer != Layer::Transport {
            return true;
        }
        if self.is_icmp(base) {
            let needed = payload.field().map_or(0, |field| field.icmp);
            return needed != 0 && base == proto && needed == self.dependency_icmp;
        }
        true
    }

    /// The statement about the network protocol that a match on a field of ICMP or ICMPv6 makes redundant.
    pub(super) fn implied_by_icmp(&mut self, payload: &Payload) -> Option<usize> {
        let (proto, _) = payload.field?;
        let slot = self.slot(Layer::Network)?;
        let dependency = self.dependencies[slot]?;
        let network = dependency_family(&dependency)?;
        let implied = (*network == proto::IP && *proto == proto::ICMP)
            || (*network == proto::IP6 && *proto == proto::ICMPV6);
        if !implied || !self.is_mixed() {
            return None;
        }
        self.dependencies[slot] = None;
        Some(dependency.statement)
    }

    /// The statement about the network protocol that the table's family makes redundant.
    pub(super) fn implied_by_family(&mut self) -> Option<usize> {
        let slot = self.slot(Layer::Network)?;
        let dependency = self.dependencies[slot]?;
        let network = dependency_family(&dependency)?;
        let implied = match self.family {
            Family::Ip => *network == proto::IP,
            Family::Ip6 => *network == proto::IP6,
            _ => false,
        };
        if !implied {
            return None;
        }
        self.dependencies[slot] = None;
        Some(dependency.statement)
    }

    /// The statement that a match on an extension header or option of `proto` makes redundant.
    pub(super) fn implied_by_option(&mut self, proto: &'static Proto) -> Option<usize> {
        let slot = self.slot(proto.layer)?;
        let known = self.proto(proto.layer) == Some(proto);
        let dependency = self.dependencies[slot].filter(|_| known)?;
        if matches!(dependency.key, Key::Payload(base, _) if *base == proto::IP6) {
            return None;
        }
        self.dependencies[slot] = None;
        Some(dependency.statement)
    }

    /// The statement that says that it is TCP, which a reset implies where there is no doubt about the network protocol.
    pub(super) fn implied_by_reset(&mut self) -> Option<usize> {
        if self.is_mixed() {
            return None;
        }
        self.implied_by_option(&proto::TCP)
    }

    /// The statement that says that it is IPv4 or IPv6, which an ICMP code of that protocol implies.
    pub(super) fn implied_by_icmp_code(&mut self) -> Option<usize> {
        let network = self.proto(Layer::Network)?;
        let known = *network == proto::IP || *network == proto::IP6;
        if !self.is_mixed() || !known {
            return None;
        }
        let slot = self.slot(Layer::Network)?;
        let dependency =
            self.dependencies[slot].filter(|dependency| dependency_family(dependency).is_some())?;
        self.dependencies[slot] = None;
        Some(dependency.statement)
    }
}

/// The network protocol that a match is about.
fn dependency_family(dependency: &Dependency) -> Option<&'static Proto> {
    match dependency.key {
        Key::Meta(meta::NFPROTO) => (proto::INET.upper)(dependency.value),
        Key::Meta(meta::PROTOCOL) | Key::Payload(_, _) => {
            (proto::NETDEV.upper)(dependency.value).filter(|next| next.layer == Layer::Network)
        }
        Key::Meta(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_get_names_from_what_is_known() {
        let mut context = Context::new(Family::Inet);
        let mut port = Payload::raw(Layer::Transport, 16, 16);
        context.name(&mut port);
        assert_eq!(port.field, Some((&proto::TH, 1)));
        context.learn_meta(meta::L4PROTO, 6);
        context.name(&mut port);
        assert_eq!(port.field, Some((&proto::TCP, 1)));
        context.keep(Dependency {
            statement: 0,
            key: Key::Meta(meta::L4PROTO),
            value: 6,
        });
        assert_eq!(context.implied_by(&port), Some(0));
        assert_eq!(context.implied_by(&port), None);
    }

    #[test]
    fn neighbours_are_split() {
        let context = Context::new(Family::Ip);
        let parts = context.split(&Payload::raw(Layer::Network, 96, 64));
        let names: Vec<_> = parts
            .iter()
            .map(|part| part.field().unwrap().name)
            .collect();
        assert_eq!(names, ["saddr", "daddr"]);
        let parts = context.split(&Payload::raw(Layer::Network, 96, 24));
        assert_eq!((parts.len(), parts[0].len), (1, 24));
        assert!(
            context.split(&Payload::raw(Layer::Inner, 0, 8))[0]
                .field
                .is_none()
        );
    }

    #[test]
    fn masks_select_fields() {
        let context = Context::new(Family::Ip);
        let word = Payload::raw(Layer::Network, 8, 8);
        assert_eq!(
            context
                .trim(&word, (0, 6))
                .map(|part| (part.offset, part.len)),
            Some((8, 6))
        );
        assert_eq!(context.trim(&word, (1, 5)), None);
        assert_eq!(context.trim(&word, (0, 8)), None);
    }

    #[test]
    fn a_vlan_tag_is_a_header_of_its_own() {
        let mut context = Context::new(Family::Bridge);
        let mut kind = Payload::raw(Layer::Link, 96, 16);
        context.name(&mut kind);
        context.learn(&kind, 0x8100);
        let mut id = context
            .trim(&Payload::raw(Layer::Link, 112, 16), (4, 12))
            .unwrap();
        context.name(&mut id);
        assert_eq!(id.field().unwrap().name, "id");
        let mut source = Payload::raw(Layer::Link, 48, 48);
        context.name(&mut source);
        assert_eq!(source.field().unwrap().name, "saddr");
    }
}
