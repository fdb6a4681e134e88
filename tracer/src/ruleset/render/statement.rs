//! Statements with an effect: counters, limits, log, NAT, changes of the packet, sets filled by rules.

use crate::ruleset::expr::{Expr, PayloadBase};
use crate::ruleset::model::Counters;

use super::lift::{self, Lifter, raw};
use super::node::{BitOp, Node, Payload, ct_key, ct_text, meta_key, meta_text, value_text};
use super::relation::{self, UNTYPED};
use super::types::{self, Kind, Order, Type, time_text};
use super::{Printer, set};

/// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
const IPV4: u32 = 2;
const IPV6: u32 = 10;

impl<'a> Lifter<'a> {
    /// Adds the statement for an expression that is not a load or a match.
    pub(super) fn effect(&mut self, expr: &Expr) {
        let text = match expr {
            Expr::MetaSet { sreg, key } => {
                let kind = meta_key(*key).map_or(UNTYPED, |key| key.1);
                let value = self.operand(*sreg, kind);
                format!("{} set {value}", meta_text(*key))
            }
            Expr::CtSet {
                sreg,
                key,
                direction,
            } => self.ct_set(*sreg, *key, *direction),
            Expr::PayloadSet {
                sreg,
                base,
                offset,
                len,
                ..
            } => self.payload_set(*sreg, *base, *offset, *len),
            Expr::ExthdrSet {
                sreg,
                kind,
                offset,
                len,
                flags,
                op,
            } => {
                let option = Node::Exthdr(lift::option(*kind, *offset, *len, *flags, *op));
                let value = self.operand(*sreg, option.kind());
                format!("{} set {value}", option.text(self.printer, option.kind()))
            }
            Expr::ExthdrReset { kind, op } => {
                let option = Node::Exthdr(lift::option(*kind, 0, 1, 1, *op));
                format!("reset {}", option.text(self.printer, option.kind()))
            }
            Expr::Reject { kind, code } => self.reject(*kind, *code),
            Expr::Nat { .. } => self.nat(expr),
            Expr::Masq {
                flags,
                proto_min,
                proto_max,
            } => self.nat_ports("masquerade", *flags, *proto_min, *proto_max),
            Expr::Redir {
                flags,
                proto_min,
                proto_max,
            } => self.nat_ports("redirect", *flags, *proto_min, *proto_max),
            Expr::Tproxy {
                family,
                reg_addr,
                reg_port,
            } => self.tproxy(*family, *reg_addr, *reg_port),
            Expr::Dup {
                sreg_addr,
                sreg_dev,
            } => self.dup(*sreg_addr, *sreg_dev),
            Expr::Fwd {
                sreg_dev,
                sreg_addr,
                nfproto,
            } => {
                let device = self.operand(*sreg_dev, Type::Ifindex.kind());
                match (sreg_addr, nfproto.and_then(address_family)) {
                    (Some(addr), Some((family, kind))) => {
                        let addr = self.operand(*addr, kind);
                        format!("fwd {family} to {addr} device {device}")
                    }
                    _ => format!("fwd to {device}"),
                }
            }
            Expr::Queue { .. } => self.queue(expr),
            Expr::Objref { kind, name } => format!("{} \"{name}\"", object_word(*kind)),
            Expr::ObjrefMap { sreg, set } => self.objref_map(*sreg, set),
            Expr::Dynset { .. } => self.dynset(expr),
            _ => stateful(self.printer, expr),
        };
        self.push(text);
    }

    /// The text of what a register holds, used as `kind`.
    fn operand(&mut self, register: u32, kind: Kind) -> String {
        let node = self.get(register);
        let node = self.complete(node);
        node.text(self.printer, kind)
    }

    fn ct_set(&mut self, sreg: u32, key: u32, direction: Option<u8>) -> String {
        const EVENTS: u32 = 18;
        let kind = ct_key(key).map_or(UNTYPED, |key| key.1);
        let value = match self.get(sreg) {
            Node::Value(bytes) if key == EVENTS => value_text(self.printer, kind, &bytes, ","),
            _ => self.operand(sreg, kind),
        };
        format!("{} set {value}", ct_text(key, direction, None))
    }

    /// A write to the packet. A field that is not whole bytes is written by changing some bits of what is there.
    fn payload_set(&mut self, sreg: u32, base: PayloadBase, offset: u32, len: u32) -> String {
        let mut target = lift::payload(base, offset, len);
        self.context.name(&mut target);
        let mut value = self.get(sreg);
        if target.field.is_none()
            && let Some((run, bits)) = changed_bits(&value, &target)
            && let Some(mut field) = self.context.trim(&target, run)
        {
            self.context.name(&mut field);
            target = field;
            value = Node::Value(bits);
        }
        let target = self.complete(Node::Payload(target));
        let value = self.complete(value);
        let kind = target.kind();
        format!(
            "{} set {}",
            target.text(self.printer, kind),
            value.text(self.printer, kind)
        )
    }

    fn reject(&mut self, kind: u32, code: Option<u8>) -> String {
        let names = self.printer.names();
        let code = code.unwrap_or_default();
        let named = |ty| types::number_text(names, ty, u128::from(code), false);
        let network = self
            .context
            .proto(super::proto::Layer::Network)
            .map(|proto| proto.name);
        let mixed = !matches!(
            self.printer.table.family,
            crate::ruleset::model::Family::Ip | crate::ruleset::model::Family::Ip6
        );
        match (kind, network) {
            (1, _) => {
                let implied = self.context.implied_by_reset();
                self.remove(implied);
                "reject with tcp reset".to_owned()
            }
            (2, _) if code == 1 => "reject".to_owned(),
            (2, _) => format!("reject with icmpx {}", named(Type::IcmpxCode)),
            (0, Some(network @ ("ip" | "ip6"))) => {
                let implied = self.context.implied_by_icmp_code();
                self.remove(implied);
                let (word, ty, usual) = match network {
                    "ip" => ("icmp", Type::IcmpCode, 3),
                    _ => ("icmpv6", Type::Icmp6Code, 4),
                };
                if !mixed && code == usual {
                    "reject".to_owned()
                } else {
                    format!("reject with {word} {}", named(ty))
                }
            }
            // Which codes these are depends on the packet.
            (0, _) => format!("reject with icmp code {code}"),
            _ => format!("reject with [ type {kind} code {code} ]"),
        }
    }

    fn nat(&mut self, expr: &Expr) -> String {
        let Expr::Nat {
            kind,
            family,
            addr_min,
            addr_max,
            proto_min,
            proto_max,
            flags,
        } = expr
        else {
            return raw(expr);
        };
        const NETMAP: u32 = 64;
        let (family_name, address) = address_family(*family).unwrap_or(("", UNTYPED));
        let mut family_shown = self.printer.table.family == crate::ruleset::model::Family::Inet;
        let mut ports = (*proto_min, *proto_max);
        let mut all_from_map = false;
        let mut target = String::new();
        if let Some(first) = addr_min {
            let first = self.get(*first);
            let first = self.complete(first);
            if let Node::Map { set, .. } = &first
                && set::has_more_than_addresses(set, *family == IPV6)
            {
                family_shown = true;
                all_from_map = true;
                ports = (None, None);
            }
            let last = addr_max.filter(|last| !all_from_map && Some(*last) != *addr_min);
            let last = last.map(|last| self.get(last));
            let bracketed = ports.0.is_some() && *family == IPV6;
            target = self.address(first, last, address, bracketed);
        }
        if let Some(first) = ports.0 {
            self.context.reset_dependencies();
            target += &format!(":{}", self.ports(first, ports.1));
        }
        let mut text = if *kind == 0 { "snat" } else { "dnat" }.to_owned();
        if !target.is_empty() {
            if family_shown && !family_name.is_empty() {
                text += &format!(" {family_name}");
            }
            if flags & NETMAP != 0 {
                text += " prefix";
            }
            text += &format!(" to {target}");
        }
        text + &nat_flags(*flags)
    }

    /// An address, range or prefix; IPv6 addresses before a port are in brackets.
    fn address(
        &mut self,
        first: Node<'a>,
        last: Option<Node<'a>>,
        kind: Kind,
        bracketed: bool,
    ) -> String {
        let brackets = |text: String, node: &Node<'_>| match node {
            Node::Value(_) if bracketed => format!("[{text}]"),
            _ => text,
        };
        let Some(last) = last else {
            let text = first.text(self.printer, kind);
            return brackets(text, &first);
        };
        if let (Node::Value(from), Node::Value(to)) = (&first, &last)
            && let Some(len) = types::prefix_of_range(from, to)
        {
            return format!("{}/{len}", first.text(self.printer, kind));
        }
        let last = self.complete(last);
        let from = brackets(first.text(self.printer, kind), &first);
        format!("{from}-{}", brackets(last.text(self.printer, kind), &last))
    }

    fn ports(&mut self, first: u32, last: Option<u32>) -> String {
        let kind = Type::Service.kind();
        let from = self.operand(first, kind);
        match last.filter(|last| *last != first) {
            Some(last) => format!("{from}-{}", self.operand(last, kind)),
            None => from,
        }
    }

    fn nat_ports(
        &mut self,
        word: &str,
        flags: u32,
        first: Option<u32>,
        last: Option<u32>,
    ) -> String {
        let target = match first {
            Some(first) => {
                self.context.reset_dependencies();
                format!(" to :{}", self.ports(first, last))
            }
            None => String::new(),
        };
        format!("{word}{target}{}", nat_flags(flags))
    }

    fn tproxy(&mut self, family: u32, addr: Option<u32>, port: Option<u32>) -> String {
        let mut text = "tproxy".to_owned();
        let known = address_family(family);
        if let (crate::ruleset::model::Family::Inet, Some((name, _))) =
            (self.printer.table.family, known)
        {
            text += &format!(" {name}");
        }
        text += " to ";
        if let Some(addr) = addr {
            let node = self.get(addr);
            let constant = matches!(node, Node::Value(_));
            let addr = self.operand(addr, known.map_or(UNTYPED, |known| known.1));
            text += &if constant && family == IPV6 {
                format!("[{addr}]")
            } else {
                addr
            };
        }
        if let Some(port) = port {
            self.context.reset_dependencies();
            text += &format!(":{}", self.operand(port, Type::Service.kind()));
        }
        text
    }

    fn dup(&mut self, addr: Option<u32>, device: Option<u32>) -> String {
        use crate::ruleset::model::Family;
        let kind = match self.printer.table.family {
            Family::Ip => Type::Ip.kind(),
            Family::Ip6 => Type::Ip6.kind(),
            _ => UNTYPED,
        };
        let addr = addr.map(|addr| self.operand(addr, kind));
        let device = device.map(|device| self.operand(device, Type::Ifindex.kind()));
        match (addr, device) {
            (Some(addr), Some(device)) => format!("dup to {addr} device {device}"),
            (Some(to), None) | (None, Some(to)) => format!("dup to {to}"),
            (None, None) => "dup".to_owned(),
        }
    }

    fn queue(&mut self, expr: &Expr) -> String {
        let Expr::Queue {
            num,
            total,
            flags,
            sreg,
        } = expr
        else {
            return raw(expr);
        };
        let mut words = Vec::new();
        if flags & 1 == 1 {
            words.push("bypass");
        }
        if flags & 2 == 2 {
            words.push("fanout");
        }
        let flags = if words.is_empty() {
            String::new()
        } else {
            format!(" flags {}", words.join(","))
        };
        let target = match sreg {
            Some(sreg) => self.operand(*sreg, Kind::new(Type::Integer, Order::Host, 16)),
            None => {
                let first = u32::from(num.unwrap_or_default());
                match u32::from(total.unwrap_or(1)) {
                    0 | 1 => first.to_string(),
                    total => format!("{first}-{}", first + total - 1),
                }
            }
        };
        format!("queue{flags} to {target}")
    }

    fn objref_map(&mut self, sreg: u32, name: &str) -> String {
        let Some(set) = self.set(name) else {
            let key = self.operand(sreg, UNTYPED);
            return format!("[ object {key} map @{name} ]");
        };
        let key = self.get_wide(sreg, 8 * set.key_len);
        let node = self.complete(Node::Map {
            key: Box::new(key),
            set,
            slice: None,
        });
        let word = object_word(set.obj_type.unwrap_or_default());
        format!("{word} {}", node.text(self.printer, node.kind()))
    }

    fn dynset(&mut self, expr: &Expr) -> String {
        let Expr::Dynset {
            set,
            op,
            sreg_key,
            sreg_data,
            timeout,
            exprs,
            ..
        } = expr
        else {
            return raw(expr);
        };
        let known = self.set(set);
        let key = match known {
            Some(known) => self.get_wide(*sreg_key, 8 * known.key_len),
            None => self.get(*sreg_key),
        };
        let key = self.complete_field(key);
        let mut element = match known {
            Some(known) => set::key_text(self.printer, known, &key),
            None => key.text(self.printer, UNTYPED),
        };
        if let Some(timeout) = timeout.filter(|timeout| *timeout != 0) {
            element += &format!(" timeout {}", time_text(timeout));
        }
        let stateless = self.printer.stateless();
        for expr in exprs {
            element += &format!(" {}", lift::single(&stateless, expr));
        }
        let meter = known.filter(|known| set::is_meter(known));
        if let (Some(meter), None) = (meter, sreg_data) {
            let size = meter.size.unwrap_or_default();
            return format!("meter {set} size {size} {{ {element} }}");
        }
        if let Some(sreg_data) = sreg_data {
            let data = match known {
                Some(known) => self.get_wide(*sreg_data, 8 * known.data_len.unwrap_or_default()),
                None => self.get(*sreg_data),
            };
            let data = self.complete_field(data);
            element += &format!(
                " : {}",
                data.text(self.printer, known.map_or(UNTYPED, set::data_kind))
            );
        }
        let word = match op {
            0 => "add",
            1 => "update",
            _ => "delete",
        };
        format!("{word} @{set} {{ {element} }}")
    }
}

/// The bits of the target that a write changes: their place, and the value they get. `value` is what is there, with some bits cleared
/// and some set.
fn changed_bits(value: &Node<'_>, target: &Payload) -> Option<((u32, u32), Vec<u8>)> {
    let zeros = vec![0; (target.len / 8) as usize];
    let (node, set) = match value {
        Node::Op(BitOp::Or, left, right) => match &**right {
            Node::Value(set) => (&**left, set.clone()),
            _ => return None,
        },
        node => (node, zeros),
    };
    let (node, keep) = match node {
        Node::Op(BitOp::And, left, right) => match &**right {
            Node::Value(keep) => (&**left, keep.clone()),
            _ => return None,
        },
        node => (node, vec![0xff; set.len()]),
    };
    let Node::Payload(source) = node else {
        return None;
    };
    if (source.layer, source.offset, source.len) != (target.layer, target.offset, target.len) {
        return None;
    }
    let changed: Vec<u8> = keep
        .iter()
        .zip(&set)
        .map(|(keep, set)| !keep | set)
        .collect();
    let run = relation::run(&changed)?;
    Some((run, types::bits(&set, run.0, run.1)))
}

/// The name of a family and the kind of its addresses.
fn address_family(family: u32) -> Option<(&'static str, Kind)> {
    match family {
        IPV4 => Some(("ip", Type::Ip.kind())),
        IPV6 => Some(("ip6", Type::Ip6.kind())),
        _ => None,
    }
}

fn nat_flags(flags: u32) -> String {
    let names = [(4, "random"), (16, "fully-random"), (8, "persistent")];
    let set: Vec<&str> = names
        .iter()
        .filter(|name| flags & name.0 != 0)
        .map(|name| name.1)
        .collect();
    if set.is_empty() {
        String::new()
    } else {
        format!(" {}", set.join(","))
    }
}

/// The name of an object's type.
pub(super) fn object_type(kind: u32) -> &'static str {
    match kind {
        1 => "counter",
        2 => "quota",
        3 => "ct helper",
        4 => "limit",
        5 => "ct count",
        6 => "tunnel",
        7 => "ct timeout",
        8 => "secmark",
        9 => "ct expectation",
        10 => "synproxy",
        _ => "unknown",
    }
}

/// What stands before an object's name in a rule.
fn object_word(kind: u32) -> String {
    match kind {
        3 | 7 | 9 => format!("{} set", object_type(kind)),
        8 => "meta secmark set".to_owned(),
        kind => format!("{} name", object_type(kind)),
    }
}

/// A statement that needs no register.
fn stateful(printer: &Printer<'_>, expr: &Expr) -> String {
    match expr {
        Expr::Counter(_) if printer.is_stateless() => "counter".to_owned(),
        Expr::Counter(Counters { packets, bytes }) => {
            format!("counter packets {packets} bytes {bytes}")
        }
        Expr::Limit { .. } => format!("limit {}", limit(expr)),
        Expr::Quota { .. } => format!("quota {}", quota(printer, expr)),
        Expr::Connlimit { count, flags } => {
            let over = if flags & 1 == 1 { "over " } else { "" };
            format!("ct count {over}{count}")
        }
        Expr::Last { .. } if printer.is_stateless() => "last".to_owned(),
        Expr::Last { msecs: None } => "last used never".to_owned(),
        Expr::Last { msecs: Some(msecs) } => format!("last used {}", time_text(*msecs)),
        Expr::Log { .. } => log(expr),
        Expr::Notrack => "notrack".to_owned(),
        Expr::Synproxy { mss, wscale, flags } => {
            format!("synproxy{}", synproxy(*mss, *wscale, *flags).join(""))
        }
        Expr::FlowOffload { table } => format!("flow add @{table}"),
        Expr::Match { name, .. } => format!("xt match \"{name}\""),
        Expr::Target { name, .. } => format!("xt target \"{name}\""),
        _ => raw(expr),
    }
}

/// The parts of a synproxy, each with a space before it.
pub(super) fn synproxy(mss: u16, wscale: u8, flags: u32) -> Vec<String> {
    let parts = [
        (1, format!(" mss {mss}")),
        (2, format!(" wscale {wscale}")),
        (8, " timestamp".to_owned()),
        (4, " sack-perm".to_owned()),
    ];
    parts
        .into_iter()
        .filter(|part| flags & part.0 != 0)
        .map(|part| part.1)
        .collect()
}

/// Bytes in the largest unit that they are a multiple of.
fn data_unit(bytes: u64) -> String {
    match bytes {
        0 => "0 bytes".to_owned(),
        bytes if bytes % (1 << 20) == 0 => format!("{} mbytes", bytes >> 20),
        bytes if bytes % (1 << 10) == 0 => format!("{} kbytes", bytes >> 10),
        bytes => format!("{bytes} bytes"),
    }
}

/// What follows `limit`.
pub(super) fn limit(expr: &Expr) -> String {
    /// What nft asks for if nothing is said, and does not show.
    const USUAL_BURST: u32 = 5;
    let Expr::Limit {
        rate,
        unit,
        burst,
        kind,
        flags,
    } = expr
    else {
        return raw(expr);
    };
    let over = if flags & 1 == 1 { "over " } else { "" };
    let unit = match unit {
        1 => "second".to_owned(),
        60 => "minute".to_owned(),
        3600 => "hour".to_owned(),
        86_400 => "day".to_owned(),
        604_800 => "week".to_owned(),
        seconds => format!("{seconds}s"),
    };
    if *kind == 0 {
        let burst = match *burst {
            0 | USUAL_BURST => String::new(),
            burst => format!(" burst {burst} packets"),
        };
        format!("rate {over}{rate}/{unit}{burst}")
    } else {
        let burst = match *burst {
            0 => String::new(),
            burst => format!(" burst {}", data_unit(u64::from(burst))),
        };
        format!("rate {over}{}/{unit}{burst}", data_unit(*rate))
    }
}

/// What follows `quota`.
pub(super) fn quota(printer: &Printer<'_>, expr: &Expr) -> String {
    let Expr::Quota {
        bytes,
        consumed,
        flags,
    } = expr
    else {
        return raw(expr);
    };
    let over = if flags & 1 == 1 { "over " } else { "" };
    let used = if printer.is_stateless() || *consumed == 0 {
        String::new()
    } else {
        format!(" used {}", data_unit(*consumed))
    };
    format!("{over}{}{used}", data_unit(*bytes))
}

fn log(expr: &Expr) -> String {
    /// `LOGLEVEL_WARNING`, which nft does not show.
    const WARNING: u32 = 4;
    const ALL: u32 = 0x2f;
    let Expr::Log {
        prefix,
        level,
        flags,
        group,
        snaplen,
        qthreshold,
    } = expr
    else {
        return raw(expr);
    };
    let mut text = "log".to_owned();
    if let Some(prefix) = prefix {
        text += &format!(" prefix \"{prefix}\"");
    }
    if let Some(group) = group {
        text += &format!(" group {group}");
    }
    if let Some(snaplen) = snaplen {
        text += &format!(" snaplen {snaplen}");
    }
    if let Some(qthreshold) = qthreshold {
        text += &format!(" queue-threshold {qthreshold}");
    }
    if let Some(level) = level.filter(|level| *level != WARNING) {
        const LEVELS: [&str; 9] = [
            "emerg", "alert", "crit", "err", "warn", "notice", "info", "debug", "audit",
        ];
        let name = LEVELS.get(level as usize).copied().unwrap_or("unknown");
        text += &format!(" level {name}");
    }
    let flags = flags.unwrap_or_default();
    if flags & ALL == ALL {
        return text + " flags all";
    }
    text += match flags & 3 {
        1 => " flags tcp sequence",
        2 => " flags tcp options",
        3 => " flags tcp sequence,options",
        _ => "",
    };
    for (flag, word) in [(4, "ip options"), (8, "skuid"), (32, "ether")] {
        if flags & flag != 0 {
            text += &format!(" flags {word}");
        }
    }
    text
}
