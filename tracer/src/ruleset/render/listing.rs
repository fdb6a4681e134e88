//! Whole tables as nft lists them.

use crate::ruleset::expr::Expr;
use crate::ruleset::model::{Chain, Flowtable, Object, ObjectState, Set, Table};

use super::key;
use super::lift;
use super::node::Node;
use super::stateful::{limit, quota, synproxy};
use super::statement::object_type;
use super::types::{Type, time_text};
use super::{Printer, chain_declaration, hook_name, priority, set};
use crate::ruleset::model::Family;

/// A table with all that is in it.
pub(super) fn table(printer: &Printer<'_>) -> String {
    let table = printer.table;
    let mut parts = Vec::new();
    let mut head = String::new();
    if table.flags != 0 {
        let names = [
            (Table::DORMANT, "dormant"),
            (Table::OWNER, "owner"),
            (Table::PERSIST, "persist"),
        ];
        let set: Vec<&str> = names
            .iter()
            .filter(|name| table.flags & name.0 != 0)
            .map(|name| name.1)
            .collect();
        head += &format!("\tflags {}\n", set.join(","));
    }
    if let Some(comment) = &table.comment {
        head += &format!("\tcomment \"{comment}\"\n");
    }
    for item in &table.objects {
        parts.push(object(printer, item));
    }
    for item in table
        .sets
        .iter()
        .filter(|set| set.flags & Set::ANONYMOUS == 0)
    {
        parts.push(named_set(printer, item));
    }
    for item in &table.flowtables {
        parts.push(flowtable(printer, item));
    }
    for item in table
        .chains
        .iter()
        .filter(|chain| chain.flags & Chain::BINDING == 0)
    {
        parts.push(chain(printer, item));
    }
    let between = if table.flags == 0 || parts.is_empty() {
        ""
    } else {
        "\n"
    };
    let open = opening(printer, table.handle);
    format!(
        "table {} {} {open}{head}{between}{}}}\n",
        table.family,
        table.name,
        parts.join("\n")
    )
}

/// The brace after a name, and the handle.
fn opening(printer: &Printer<'_>, handle: u64) -> String {
    if printer.options.handles {
        format!("{{ # handle {handle}\n")
    } else {
        "{\n".to_owned()
    }
}

fn chain(printer: &Printer<'_>, chain: &Chain) -> String {
    let mut text = format!("\tchain {} {}", chain.name, opening(printer, chain.handle));
    if let Some(comment) = &chain.comment {
        text += &format!("\t\tcomment \"{comment}\"\n");
    }
    if let Some(declaration) = chain_declaration(printer.table.family, chain) {
        text += &format!("\t\t{declaration}\n");
    }
    for rule in &chain.rules {
        text += &format!("\t\t{}", printer.rule(rule));
        if printer.numbers {
            text += &format!(" # rule {} (handle {})", rule.number, rule.handle);
        } else if printer.options.handles {
            text += &format!(" # handle {}", rule.handle);
        }
        text.push('\n');
    }
    text + "\t}\n"
}

/// What a set or map is declared as: `type ipv4_addr : verdict`, `typeof ip saddr`.
fn declaration(printer: &Printer<'_>, set: &Set) -> String {
    let by_expression = key::is_typeof(set);
    let shape_text = |shape: &key::Shape| match &shape.declared {
        Some(node) if by_expression => declared_text(printer, node),
        _ => {
            let names: Vec<&str> = shape.fields.iter().map(|field| field.ty.name()).collect();
            names.join(" . ")
        }
    };
    let word = if by_expression { "typeof" } else { "type" };
    let key_text = shape_text(&key::key(set));
    if let Some(data) = key::data(set) {
        let interval = if key::is_data_interval(set) {
            "interval "
        } else {
            ""
        };
        return format!("{word} {key_text} : {interval}{}", shape_text(&data));
    }
    match set.obj_type.filter(|_| set.flags & Set::OBJECT != 0) {
        Some(object) => format!("{word} {key_text} : {}", object_type(object)),
        None => format!("{word} {key_text}"),
    }
}

fn declared_text(printer: &Printer<'_>, node: &Node<'_>) -> String {
    node.text(printer, node.kind())
}

fn named_set(printer: &Printer<'_>, set: &Set) -> String {
    let word = match set.flags {
        _ if set::is_meter(set) => "meter",
        flags if flags & (Set::MAP | Set::OBJECT) != 0 => "map",
        _ => "set",
    };
    let mut text = format!("\t{word} {} {}", set.name, opening(printer, set.handle));
    let mut line = |line: String| text += &format!("\t\t{line}\n");
    line(declaration(printer, set));
    if set.flags & Set::CONSTANT == 0 {
        if set.policy == Some(1) {
            line("policy memory".to_owned());
        }
        if let Some(size) = set.size.filter(|size| *size != 0) {
            line(format!("size {size}"));
        }
    }
    let flags = set_flags(set);
    if !flags.is_empty() {
        line(format!("flags {}", flags.join(",")));
    }
    if !set.exprs.is_empty() {
        let stateless = printer.stateless();
        let exprs: Vec<String> = set
            .exprs
            .iter()
            .map(|expr| lift::single(&stateless, expr))
            .collect();
        line(exprs.join(" "));
    }
    if key::is_auto_merge(set) {
        line("auto-merge".to_owned());
    }
    if let Some(timeout) = set.timeout.filter(|timeout| *timeout != 0) {
        line(format!("timeout {}", time_text(timeout)));
    }
    if let Some(interval) = set.gc_interval.filter(|interval| *interval != 0) {
        line(format!("gc-interval {}", time_text(u64::from(interval))));
    }
    if let Some(comment) = &set.comment {
        line(format!("comment \"{comment}\""));
    }
    let elements = set::elements(printer, set);
    if !elements.is_empty() {
        line(format!("elements = {{ {} }}", wrapped(set, &elements)));
    }
    text + "\t}\n"
}

fn set_flags(set: &Set) -> Vec<&'static str> {
    let mut shown = set.flags;
    // A default timeout says it already, unless there are other flags to show.
    let others = Set::CONSTANT | Set::INTERVAL | Set::EVAL;
    if set.timeout.is_some_and(|timeout| timeout != 0) && shown & others == 0 {
        shown &= !Set::TIMEOUT;
    }
    let names = [
        (Set::CONSTANT, "constant"),
        (Set::EVAL, "dynamic"),
        (Set::INTERVAL, "interval"),
        (Set::TIMEOUT, "timeout"),
    ];
    names
        .iter()
        .filter(|name| shown & name.0 != 0)
        .map(|name| name.1)
        .collect()
}

/// Elements over several lines: as many in one as are narrow.
fn wrapped(set: &Set, elements: &[String]) -> String {
    let shape = key::key(set);
    let ty = if shape.concat {
        None
    } else {
        shape.fields.first().map(|field| field.ty)
    };
    let in_line = match ty {
        Some(
            Type::Nfproto
            | Type::Integer
            | Type::Hex
            | Type::ArpOp
            | Type::InetProto
            | Type::Service
            | Type::TcpFlag
            | Type::DccpPacket
            | Type::Mark
            | Type::Ifindex
            | Type::Classid
            | Type::Uid
            | Type::Gid
            | Type::CtDir,
        ) => 5,
        Some(Type::Ip | Type::CtState | Type::CtStatus | Type::Pkttype) => 2,
        _ => 1,
    };
    let lines: Vec<String> = elements
        .chunks(in_line)
        .map(|line| line.join(", "))
        .collect();
    lines.join(",\n\t\t\t     ")
}

fn flowtable(printer: &Printer<'_>, flowtable: &Flowtable) -> String {
    const OFFLOAD: u32 = 1;
    const COUNTER: u32 = 2;
    let mut text = format!(
        "\tflowtable {} {}",
        flowtable.name,
        opening(printer, flowtable.handle)
    );
    let mut line = |line: String| text += &format!("\t\t{line}\n");
    line(format!(
        "hook {} priority {}",
        hook_name(Family::Netdev, flowtable.hook),
        priority(Family::Netdev, flowtable.hook, flowtable.priority)
    ));
    if !flowtable.devices.is_empty() {
        let mut devices = flowtable.devices.clone();
        devices.sort();
        line(format!("devices = {{ {} }}", devices.join(", ")));
    }
    if flowtable.flags & OFFLOAD != 0 {
        line("flags offload".to_owned());
    }
    if flowtable.flags & COUNTER != 0 {
        line("counter".to_owned());
    }
    text + "\t}\n"
}

fn object(printer: &Printer<'_>, object: &Object) -> String {
    let open = opening(printer, object.handle);
    let mut text = format!("\t{} {} {open}", object_type(object.kind), object.name);
    if let Some(comment) = &object.comment {
        text += &format!("\t\tcomment \"{comment}\"\n");
    }
    for line in object_lines(printer, &object.state) {
        text += &format!("\t\t{line}\n");
    }
    text + "\t}\n"
}

fn object_lines(printer: &Printer<'_>, state: &ObjectState) -> Vec<String> {
    let protocol = |number: u8| match printer.names().protocol(u32::from(number)) {
        Some(name) => name.to_owned(),
        None => number.to_string(),
    };
    let family = |number: u16| Family::from(u8::try_from(number).unwrap_or_default()).to_string();
    match state {
        ObjectState::Expr(expr) => expr_lines(printer, expr),
        ObjectState::CtHelper {
            name,
            l3proto,
            l4proto,
        } => vec![
            format!("type \"{name}\" protocol {}", protocol(*l4proto)),
            format!("l3proto {}", family(*l3proto)),
        ],
        ObjectState::CtTimeout {
            l3proto,
            l4proto,
            timeouts,
        } => vec![
            format!("protocol {}", protocol(*l4proto)),
            format!("l3proto {}", family(*l3proto)),
            format!("policy = {{ {} }}", timeout_policy(*l4proto, timeouts)),
        ],
        ObjectState::CtExpectation {
            l3proto,
            l4proto,
            dport,
            timeout,
            size,
        } => vec![
            format!("protocol {}", protocol(*l4proto)),
            format!("dport {dport}"),
            format!("timeout {}", time_text(u64::from(*timeout))),
            format!("size {size}"),
            format!("l3proto {}", family(*l3proto)),
        ],
        ObjectState::Secmark { context } => vec![format!("\"{context}\"")],
        ObjectState::Tunnel { id, .. } => vec![format!("[ tunnel id {id} ]")],
        ObjectState::Unknown(bytes) => vec![format!("[ {} ]", super::types::hex(bytes))],
    }
}

fn expr_lines(printer: &Printer<'_>, expr: &Expr) -> Vec<String> {
    match expr {
        Expr::Counter(_) if printer.is_stateless() => Vec::new(),
        Expr::Counter(counters) => vec![format!(
            "packets {} bytes {}",
            counters.packets, counters.bytes
        )],
        Expr::Quota { .. } => vec![quota(printer, expr)],
        Expr::Limit { .. } => vec![limit(expr)],
        Expr::Connlimit { count, flags } => {
            let over = if flags & 1 == 1 { "over " } else { "" };
            vec![format!("{over}{count}")]
        }
        Expr::Synproxy { mss, wscale, flags } => {
            // Sizes have lines of their own, the two options share one.
            let parts = synproxy(*mss, *wscale, *flags);
            let is_size = |part: &&String| part.contains(char::is_numeric);
            let mut lines: Vec<String> = parts
                .iter()
                .filter(is_size)
                .map(|part| part.trim().to_owned())
                .collect();
            let options: String = parts
                .iter()
                .filter(|part| !is_size(part))
                .map(String::as_str)
                .collect();
            if !options.is_empty() {
                lines.push(options.trim().to_owned());
            }
            lines
        }
        expr => vec![lift::raw(expr)],
    }
}

/// The timeouts that are not the usual ones, by the names of the states (`CTA_TIMEOUT_TCP_*`, `CTA_TIMEOUT_UDP_*`, counted from 1).
fn timeout_policy(l4proto: u8, timeouts: &[(u16, u32)]) -> String {
    const TCP: &[(&str, u32)] = &[
        ("syn_sent", 120),
        ("syn_recv", 60),
        ("established", 432_000),
        ("fin_wait", 120),
        ("close_wait", 60),
        ("last_ack", 30),
        ("time_wait", 120),
        ("close", 10),
        ("syn_sent2", 120),
        ("retrans", 300),
        ("unack", 300),
    ];
    const UDP: &[(&str, u32)] = &[("unreplied", 30), ("replied", 120)];
    let states = match l4proto {
        6 => TCP,
        17 => UDP,
        _ => &[],
    };
    let shown = timeouts.iter().filter_map(|(state, seconds)| {
        let known = usize::from(*state)
            .checked_sub(1)
            .and_then(|index| states.get(index));
        match known {
            Some((_, usual)) if usual == seconds => None,
            Some((name, _)) => Some(format!("{name} : {seconds}")),
            None => Some(format!("{state} : {seconds}")),
        }
    });
    shown.collect::<Vec<_>>().join(", ")
}
