//! Statements that need no register: counters, limits, quotas, log.

use crate::ruleset::expr::Expr;
use crate::ruleset::model::Counters;

use super::Printer;
use super::lift::raw;
use super::types::time_text;

/// A statement that needs no register.
pub(super) fn stateful(printer: &Printer<'_>, expr: &Expr) -> String {
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
