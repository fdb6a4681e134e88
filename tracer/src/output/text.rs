//! A drop in words: one line of what and by whom, one of the rule's text.

use std::fmt::{self, Write as _};
use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use jiff::{Timestamp, tz::TimeZone};

use super::{Options, walk};
use crate::conntrack::words;
use crate::event::{
    Candidate, Confidence, Conntrack, DecidedBy, DropEvent, Engine, LogRef, NetnsRef, PacketEvent,
    PolicyRef, RuleRef, Tuple, Verdict,
};
use crate::packet::{Numeric, Packet};

/// Columns before the interfaces: the time and the verdict; continuation lines start there.
const INDENT: usize = 20;
/// Columns that interfaces and packet take at least.
const PACKET: usize = 53;

/// Writes drops for people.
#[derive(Debug)]
pub(super) struct Text {
    zone: TimeZone,
    color: bool,
    numeric: bool,
    verbosity: u8,
    show_netns: bool,
    /// One line, built here so that its parts can be measured.
    line: String,
}

impl Text {
    pub(super) fn new(options: &Options, color: bool, zone: TimeZone) -> Self {
        Self {
            zone,
            color,
            numeric: options.numeric,
            verbosity: options.verbosity,
            show_netns: options.show_netns,
            line: String::new(),
        }
    }

    pub(super) fn show_netns(&mut self, show: bool) {
        self.show_netns = show;
    }

    /// Writes a packet of which nobody knows what became of it.
    pub(super) fn write_packet(
        &mut self,
        packet: &PacketEvent,
        out: &mut impl Write,
    ) -> io::Result<()> {
        self.line.clear();
        // Writing into a String cannot fail.
        let _ = self.time_and_word(packet.time, "PACKET", Style::new());
        let start = self.line.len();
        let _ = self.between(start, packet.interface.as_deref(), None, &packet.packet);
        self.line.push_str("not attributed\n");
        out.write_all(self.line.as_bytes())
    }

    /// Writes `drop`, a line or more.
    pub(super) fn write(&mut self, drop: &DropEvent, out: &mut impl Write) -> io::Result<()> {
        self.line.clear();
        // Writing into a String cannot fail.
        let _ = self.head(drop);
        let _ = self.tail(drop);
        self.line.push('\n');
        out.write_all(self.line.as_bytes())
    }

    /// Time, verdict, interfaces, packet.
    fn head(&mut self, drop: &DropEvent) -> fmt::Result {
        let (word, color) = match drop.verdict {
            Verdict::Drop => ("DROP", AnsiColor::Red),
            Verdict::Reject => ("REJECT", AnsiColor::Yellow),
            Verdict::Accept | Verdict::Unknown => ("LOG", AnsiColor::Cyan),
        };
        let style = if self.color {
            Style::new().fg_color(Some(color.into()))
        } else {
            Style::new()
        };
        self.time_and_word(drop.time, word, style)?;
        let start = self.line.len();
        if self.show_netns {
            write!(self.line, "{}: ", Netns(&drop.netns))?;
        }
        self.between(
            start,
            drop.iif.as_deref(),
            drop.oif.as_deref(),
            &drop.packet,
        )
    }

    fn time_and_word(&mut self, time: Timestamp, word: &str, style: Style) -> fmt::Result {
        let time = self.zone.to_datetime(time);
        write!(
            self.line,
            "{:02}:{:02}:{:02}.{:03} {style}{word}{style:#}{:pad$} ",
            time.hour(),
            time.minute(),
            time.second(),
            time.millisecond(),
            "",
            pad = "REJECT".len() - word.len()
        )
    }

    /// Interfaces and packet, in the columns from `start` on.
    fn between(
        &mut self,
        start: usize,
        iif: Option<&str>,
        oif: Option<&str>,
        packet: &Packet,
    ) -> fmt::Result {
        let line = &mut self.line;
        let ifaces = line.len();
        if let Some(iif) = iif {
            write!(line, "{}", Clean(iif))?;
        }
        line.push('>');
        if let Some(oif) = oif {
            write!(line, "{}", Clean(oif))?;
        }
        pad(line, ifaces, 7);
        line.push(' ');
        if self.numeric {
            write!(line, "{}", Numeric(packet))?;
        } else {
            write!(line, "{packet}")?;
        }
        pad(line, start, PACKET);
        line.push(' ');
        Ok(())
    }

    /// By whom, conntrack, process; the rule's text below; with -v the details below that.
    fn tail(&mut self, drop: &DropEvent) -> fmt::Result {
        let line = &mut self.line;
        by(line, drop)?;
        if let Some(ct) = &drop.conntrack {
            write!(line, "  ct {}", ct.state.as_str())?;
            if let Some(reason) = &ct.invalid {
                invalid(line, reason)?;
            }
        }
        if let Some(process) = &drop.process {
            write!(line, "  [{} {}", Clean(&process.comm), process.pid)?;
            if let Some(uid) = process.uid {
                write!(line, " uid {uid}")?;
            }
            line.push(']');
        }
        if drop.count > 1 {
            write!(line, "  x{}", drop.count)?;
        }
        for log in &drop.log {
            write!(line, "  {}", LogName(log))?;
        }
        if let Some(rule) = &drop.rule {
            rule_text(line, rule)?;
        } else if let (Engine::Other, Some(why)) = (drop.engine, &drop.why) {
            below(line);
            write!(line, "{}", Clean(why))?;
        }
        for candidate in &drop.evidence.candidates {
            below(line);
            match candidate {
                Candidate::Rule(rule) => {
                    write!(line, "{}", RuleName(rule))?;
                    if let Some(text) = &rule.text {
                        write!(line, ": {}", Clean(text))?;
                    }
                }
                Candidate::Policy(policy) => write!(line, "{}", PolicyName(policy))?,
            }
        }
        if self.verbosity > 0 {
            details(line, drop)?;
        }
        Ok(())
    }
}

pub(super) fn by(line: &mut String, drop: &DropEvent) -> fmt::Result {
    if matches!(drop.verdict, Verdict::Accept | Verdict::Unknown) {
        return passed(line, drop);
    }
    if let Some(rule) = &drop.rule {
        write!(line, "by {}", RuleName(rule))?;
    } else if let Some(policy) = &drop.policy {
        write!(line, "by {}", PolicyName(policy))?;
        let none = match policy.none_matched {
            Some(true) => "none matched",
            Some(false) | None => "none decided",
        };
        match policy.rules {
            Some(0) => line.push_str(" (no rules)"),
            Some(1) => write!(line, " (1 rule, {none})")?,
            Some(rules) => write!(line, " ({rules} rules, {none})")?,
            None => {}
        }
    } else if let (Engine::Conntrack, Some(why)) = (drop.engine, &drop.why) {
        write!(line, "by conntrack: {}", Clean(why))?;
    } else if drop.engine == Engine::Other {
        match drop.reason.as_deref() {
            // iptables-legacy, ebtables, IPVS, conntrack.
            Some(super::FIREWALL) => {
                line.push_str("by netfilter");
                if let Some(hook) = drop.hook {
                    write!(line, " {}", hook.as_str())?;
                }
                line.push_str(" (rule not known)");
            }
            reason => {
                let reason = reason.unwrap_or("reason not known");
                write!(line, "not by the firewall: {reason}")?;
            }
        }
        return place(line, drop);
    } else {
        write!(line, "by {}", drop.engine.as_str())?;
        if let Some(hook) = drop.hook {
            write!(line, " {}", hook.as_str())?;
        }
        return match (drop.evidence.confidence, drop.engine) {
            (Confidence::Ambiguous, _) => write!(
                line,
                ", one of {} candidates ({} evidence)",
                drop.evidence.candidates.len(),
                drop.evidence.source.as_str()
            ),
            _ if !drop.evidence.candidates.is_empty() => write!(
                line,
                " (rule not known: one of {} candidates, {} evidence)",
                drop.evidence.candidates.len(),
                drop.evidence.source.as_str()
            ),
            (_, Engine::Conntrack | Engine::Bpf) => place(line, drop),
            _ if drop.evidence.decided_by == Some(DecidedBy::Policy) => write!(
                line,
                " policy (chain not known: {} evidence)",
                drop.evidence.source.as_str()
            ),
            _ => write!(
                line,
                " (rule not known: {} evidence)",
                drop.evidence.source.as_str()
            ),
        };
    }
    match drop.evidence.confidence {
        Confidence::Exact => Ok(()),
        other => write!(line, " ({})", other.as_str()),
    }
}

/// What became of a logged packet that was not dropped for sure.
fn passed(line: &mut String, drop: &DropEvent) -> fmt::Result {
    let hook = drop.hook.map_or("its hook", |hook| hook.as_str());
    match (drop.verdict, drop.evidence.candidates.len()) {
        (Verdict::Accept, _) => write!(line, "let pass at {hook}")?,
        (_, 0) => write!(line, "what became of it at {hook} is not known")?,
        (_, 1) => write!(line, "let pass at {hook}, or dropped by the candidate")?,
        (_, n) => write!(
            line,
            "let pass at {hook}, or dropped by one of {n} candidates"
        )?,
    }
    match drop.evidence.confidence {
        Confidence::Unknown if drop.evidence.candidates.is_empty() => Ok(()),
        Confidence::Unknown => {
            line.push_str(" (not known)");
            Ok(())
        }
        other => write!(line, " ({})", other.as_str()),
    }
}

/// Where in the kernel, if that is known.
fn place(line: &mut String, drop: &DropEvent) -> fmt::Result {
    match &drop.evidence.location {
        Some(location) => write!(line, " ({location})"),
        None => Ok(()),
    }
}

/// Why conntrack calls it invalid, in the kernel's words and in ours.
fn invalid(line: &mut String, reason: &str) -> fmt::Result {
    match words::meaning(reason) {
        Some(meaning) => write!(line, " ({}: {meaning})", Clean(reason)),
        None => write!(line, " ({})", Clean(reason)),
    }
}

fn rule_text(line: &mut String, rule: &RuleRef) -> fmt::Result {
    below(line);
    match &rule.text {
        Some(text) => write!(line, "{}", Clean(text)),
        None if rule.gone => {
            line.push_str("rule no longer in the ruleset");
            Ok(())
        }
        None => {
            line.push_str("rule's text not known");
            Ok(())
        }
    }
}

/// Evidence, mark, conntrack's detail, the path.
fn details(line: &mut String, drop: &DropEvent) -> fmt::Result {
    below(line);
    let evidence = &drop.evidence;
    write!(
        line,
        "evidence {}, {}",
        evidence.source.as_str(),
        evidence.confidence.as_str()
    )?;
    if let Some(location) = &evidence.location {
        write!(line, ", at {location}")?;
    }
    if drop.rule.is_some() || drop.policy.is_some() {
        if let Some(hook) = drop.hook {
            write!(line, "; hook {}", hook.as_str())?;
        }
        if let Some(base) = drop.rule.as_ref().and_then(|r| r.base_chain.as_ref()) {
            write!(line, ", base chain {}", Clean(base))?;
        }
    }
    write!(line, "; mark {:#x}; netns {}", drop.mark, drop.netns.inode)?;
    if let Some(ct) = &drop.conntrack {
        conntrack(line, ct)?;
    }
    for log in &drop.log {
        below(line);
        write!(line, "{} ", LogName(log))?;
        match &log.rule {
            Some(rule) => write!(line, "by {}", RuleName(rule))?,
            None => line.push_str("by a rule that is not known"),
        }
    }
    for (i, doubt) in evidence.doubts.iter().enumerate() {
        if i == 0 {
            below(line);
            line.push_str("not known: ");
        } else {
            line.push_str("; ");
        }
        write!(line, "{}", Clean(&doubt.text))?;
    }
    if let Some(candidates) = &evidence.disagreement {
        below(line);
        line.push_str("the evaluator disagrees (a bug in fwtrace, please report it): ");
        if candidates.is_empty() {
            line.push_str("nothing drops this packet");
        }
        for (i, candidate) in candidates.iter().enumerate() {
            line.push_str(if i == 0 { "" } else { ", or " });
            match candidate {
                Candidate::Rule(rule) => write!(line, "{}", RuleName(rule))?,
                Candidate::Policy(policy) => write!(line, "{}", PolicyName(policy))?,
            }
        }
    }
    walk::write(line, drop)
}

fn conntrack(line: &mut String, ct: &Conntrack) -> fmt::Result {
    if let Some(mark) = ct.mark {
        write!(line, "; ct mark {mark:#x}")?;
    }
    if let Some(zone) = ct.zone {
        write!(line, " zone {zone}")?;
    }
    if let Some(state) = &ct.tcp_state {
        write!(line, " {state}")?;
    }
    for (i, status) in ct.status.iter().enumerate() {
        line.push_str(if i == 0 { " status " } else { "," });
        line.push_str(status);
    }
    if let Some(timeout) = ct.timeout {
        write!(line, " timeout {timeout} s")?;
    }
    if let Some(helper) = &ct.helper {
        write!(line, " helper {}", Clean(helper))?;
    }
    for (i, label) in ct.labels.iter().enumerate() {
        line.push_str(if i == 0 { " label " } else { "," });
        write!(line, "{label}")?;
    }
    if let Some(counters) = &ct.counters {
        below(line);
        let (orig, reply) = (counters.orig, counters.reply);
        write!(
            line,
            "connection: packets {} bytes {}, answers: packets {} bytes {}",
            orig.packets, orig.bytes, reply.packets, reply.bytes
        )?;
    }
    if let Some(nat) = &ct.nat {
        below(line);
        write!(
            line,
            "nat: {} answered by {}",
            Flow(&nat.orig),
            Flow(&nat.reply)
        )?;
    }
    Ok(())
}

/// Starts a continuation line.
pub(super) fn below(line: &mut String) {
    line.push('\n');
    line.extend(std::iter::repeat_n(' ', INDENT));
}

/// Fills up with blanks until `width` columns stand behind `start`.
fn pad(line: &mut String, start: usize, width: usize) {
    let columns = line.get(start..).map_or(0, |text| text.chars().count());
    line.extend(std::iter::repeat_n(' ', width.saturating_sub(columns)));
}

/// Text from outside without what could steer a terminal.
pub(super) struct Clean<'a>(pub(super) &'a str);

impl fmt::Display for Clean<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in self.0.split_inclusive(char::is_control) {
            match part.strip_suffix(char::is_control) {
                Some(plain) => write!(f, "{plain}\u{fffd}")?,
                None => f.write_str(part)?,
            }
        }
        Ok(())
    }
}

/// `web`, or `netns 4026532246` where there is no name.
pub(super) struct Netns<'a>(pub(super) &'a NetnsRef);

impl fmt::Display for Netns<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.name {
            Some(name) => write!(f, "{}", Clean(name)),
            None => write!(f, "netns {}", self.0.inode),
        }
    }
}

/// `inet t sub rule 1 (handle 3)`.
pub(super) struct RuleName<'a>(pub(super) &'a RuleRef);

impl fmt::Display for RuleName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rule = self.0;
        let (family, table, chain) = (rule.family.as_str(), Clean(&rule.table), Clean(&rule.chain));
        write!(f, "{family} {table} {chain} rule")?;
        match rule.number {
            Some(number) => write!(f, " {number}")?,
            None => f.write_str(" of unknown number")?,
        }
        match rule.handle {
            Some(handle) => write!(f, " (handle {handle})"),
            None => Ok(()),
        }
    }
}

/// `log group 5 "dns "`.
struct LogName<'a>(&'a LogRef);

impl fmt::Display for LogName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "log group {}", self.0.group)?;
        match &self.0.prefix {
            Some(prefix) => write!(f, " \"{}\"", Clean(prefix)),
            None => Ok(()),
        }
    }
}

/// `inet fw forward policy drop`.
pub(super) struct PolicyName<'a>(pub(super) &'a PolicyRef);

impl fmt::Display for PolicyName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let policy = self.0;
        let (table, chain) = (Clean(&policy.table), Clean(&policy.chain));
        write!(f, "{} {table} {chain} policy drop", policy.family.as_str())
    }
}

/// `10.0.0.1:5 > 10.0.0.2:80`.
struct Flow<'a>(&'a Tuple);

impl fmt::Display for Flow<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = |f: &mut fmt::Formatter<'_>, addr, port| match port {
            Some(port) => write!(f, "{}", std::net::SocketAddr::new(addr, port)),
            None => write!(f, "{addr}"),
        };
        end(f, self.0.src, self.0.sport)?;
        f.write_str(" > ")?;
        end(f, self.0.dst, self.0.dport)
    }
}
