//! A run under way: what becomes of each batch, and the account at the end.

use std::{cell::RefCell, io, rc::Rc};

use fwtrace_abi::{RULE_INVALID, Record};
use jiff::{SignedDuration, Timestamp};
use nix::time::{ClockId, clock_gettime};

use super::{
    RunError, io_error,
    namespaces::Namespaces,
    nflog::{Heard, Nflog},
    start::Tracer,
    trace::{self, Joined, Tracing},
};
use crate::{
    attribute::{Attributor, LoggedPackets},
    bpf::reader::RawDrop,
    event::{DropEvent, ErrorEvent, Event, Lost, Summary},
    expr::{Expression, Verdict, undecided},
    netlink,
    nflog::listener::now,
    output::{Sink, Tally},
    pcapng::Recorder,
    trace::{join::Found, tell::Told},
};

/// A run under way.
pub(super) struct Run<'a> {
    pub(super) sink: Sink,
    /// With `-w`.
    pub(super) recorder: Option<Recorder>,
    /// Events are recorded with their walk, and shown without.
    pub(super) trims: bool,
    pub(super) on_event: &'a mut dyn FnMut(&Event),
    pub(super) tally: Tally,
    pub(super) attributor: Attributor,
    pub(super) namespaces: Rc<RefCell<Namespaces>>,
    /// With `--trace`.
    pub(super) tracing: Option<Rc<RefCell<Tracing>>>,
    pub(super) nflog: Nflog,
    /// For those that are shown for themselves.
    pub(super) logged: LoggedPackets,
    /// How many were shown that are no drops.
    pub(super) logs: u64,
    pub(super) filter: crate::cli::Filter,
    /// The kernel is asked about the connections of drops.
    pub(super) complete: bool,
    /// What packets have to meet besides.
    pub(super) expression: Option<Expression>,
    /// Records of which it is not known whether they meet it.
    pub(super) undecided: u64,
    /// Events that may still be shown.
    pub(super) left: Option<u64>,
    /// Drops whose records were not shown.
    pub(super) hidden: u64,
    /// Those of them that had no record of their own.
    pub(super) hidden_more: u64,
    /// Losses that were reported.
    pub(super) reported: u64,
    /// A drop at a learnt site had no valid rule pointer.
    pub(super) suspicious: bool,
}

impl Run<'_> {
    /// Attributes and shows a batch; `last`: none is waiting behind it.
    pub(super) fn batch(
        &mut self,
        batch: &[RawDrop],
        last: bool,
        tracer: &mut Tracer,
    ) -> Result<(), RunError> {
        let since_boot = boot_offset();
        let traces = match &self.tracing {
            Some(tracing) => {
                let mut namespaces = self.namespaces.borrow_mut();
                tracing.borrow_mut().join(batch, &mut namespaces)
            }
            None => Vec::new(),
        };
        let traces = traces
            .into_iter()
            .chain(std::iter::repeat_with(Joined::default));
        for (raw, told) in batch.iter().zip(traces) {
            if self.left == Some(0) {
                self.hide(&raw.record);
                continue;
            }
            self.suspicious |= raw.record.rule.kind == RULE_INVALID;
            if !self.accepts(raw) {
                self.hide(&raw.record);
                continue;
            }
            let time = since_boot
                .checked_add(SignedDuration::from_nanos_i128(i128::from(raw.record.time)))
                .unwrap_or_default();
            let mut event = self.attribute(raw, time, told.trace, tracer);
            event.invalid_for(told.invalid);
            if self.complete
                && self.filter.shows(&event)
                && let Some(connections) =
                    self.namespaces.borrow_mut().connections(raw.record.netns)
            {
                connections.complete(&raw.record, &mut event);
            }
            if self.nflog.is_idle() {
                self.pass_on(event, raw)?;
            } else {
                self.nflog.hold(raw, event);
            }
        }
        // Rulesets may have been read; before their drops are told, so that nobody who waits for these comes too early.
        self.follow_rules(tracer)?;
        self.release()?;
        if last {
            self.record(Recorder::flush)?;
            self.sink.flush().map_err(io_error("stdout"))?;
        }
        Ok(())
    }

    /// Counts a record that is not shown, with the drops that it stands for.
    fn hide(&mut self, record: &Record) {
        let more = record.count.saturating_sub(1);
        self.hidden += 1 + more;
        self.hidden_more += more;
    }

    /// Whether a drop meets the expression. One of which that is not known is shown, and told of.
    fn accepts(&mut self, raw: &RawDrop) -> bool {
        let Some(expression) = &self.expression else {
            return true;
        };
        let verdict = expression.judge(&raw.record, &raw.packet);
        if verdict == Verdict::Unknown {
            if self.undecided == 0 {
                self.sink.say("the expression asks for bytes of a packet that are not known (an Ethernet address that it does not have yet, data that was not captured): such drops are shown");
            }
            self.undecided += 1;
        }
        verdict != Verdict::NoMatch
    }

    /// Takes in what was logged, and shows the drops that need not wait for it any more.
    fn release(&mut self) -> Result<(), RunError> {
        if self.nflog.is_idle() {
            return Ok(());
        }
        // What was there by now is looked at before a drop has waited long enough.
        let now = now();
        self.nflog.hear();
        self.show_joined(now)?;
        self.show_logged(now)
    }

    /// Shows logged packets that are not shown with a drop, if they need not wait for other logs of theirs; with `u64::MAX` each.
    pub(super) fn show_logged(&mut self, now: u64) -> Result<(), RunError> {
        while let Some(heard) = self.nflog.pop() {
            let Ok(packet) = netlink::nflog::decode(&heard.message) else {
                continue;
            };
            let mut namespaces = self.namespaces.borrow_mut();
            let mut event = namespaces.with(heard.netns, None, |place| {
                let Heard { when, received, .. } = heard;
                self.logged
                    .event(&packet, when, received, &heard.rules, place)
            });
            drop(namespaces);
            if !self.nflog.is_alone() {
                event = event.not_dropped();
            }
            self.nflog.wait(&packet, &heard, event);
        }
        while let Some((event, logs)) = self.nflog.whole(now) {
            let (Event::Drop(shown) | Event::Log(shown)) = &event else {
                continue;
            };
            let wanted = self.left != Some(0) && self.filter.shows(shown);
            self.nflog.shown(wanted.then_some(shown.verdict), logs);
            if !wanted {
                continue;
            }
            match &event {
                Event::Drop(shown) => self.tally.add(shown),
                _ => self.logs += 1,
            }
            if self.nflog.is_alone() {
                self.left = self.left.map(|left| left - 1);
            }
            self.sink.event(&event).map_err(io_error("stdout"))?;
            (self.on_event)(&event);
        }
        Ok(())
    }

    /// The sources of this run, in a line; `without`: why there is no eBPF, `off`: it was not asked for.
    pub(super) fn sources(&self, without: Option<&str>, off: bool) -> String {
        let groups: Vec<String> = self.nflog.groups().iter().map(u16::to_string).collect();
        let groups = match &groups[..] {
            [] => None,
            [group] => Some(format!("nflog group {group}")),
            groups => Some(format!("nflog groups {}", groups.join(", "))),
        };
        let what = match (without, &groups) {
            (Some(why), _) if !off => {
                let groups = groups.as_deref().unwrap_or("no group yet");
                return format!(
                    "no eBPF ({why}): only packets that NFLOG rules log are shown ({groups})"
                );
            }
            (Some(_), None) => "nflog, no group yet: no rule logs to one".to_owned(),
            (Some(_), Some(groups)) => groups.clone(),
            (None, _) => {
                let trace = self.tracing.as_ref().map(|_| "trace".to_owned());
                let all = [Some("ebpf".to_owned()), groups, trace];
                all.into_iter().flatten().collect::<Vec<_>>().join(", ")
            }
        };
        format!("sources: {what}")
    }

    /// Something was logged, or a drop has waited long enough.
    pub(super) fn heard(&mut self) -> Result<(), RunError> {
        self.release()?;
        self.sink.flush().map_err(io_error("stdout"))
    }

    pub(super) fn show_joined(&mut self, now: u64) -> Result<(), RunError> {
        while let Some((event, raw)) = self.nflog.next(now) {
            self.pass_on(event, &raw)?;
        }
        Ok(())
    }

    /// Shows a drop if it is asked for.
    fn pass_on(&mut self, event: DropEvent, raw: &RawDrop) -> Result<(), RunError> {
        if self.left == Some(0) || !self.filter.shows(&event) {
            self.hide(&raw.record);
            return Ok(());
        }
        self.tally.add(&event);
        self.left = self.left.map(|left| left - 1);
        self.show(event, raw)
    }

    /// Listens to the NFLOG groups that are wanted by now.
    pub(super) fn follow_groups(&mut self) {
        let reserved = |inode, group| {
            let tracing = self.tracing.as_ref()?.borrow();
            (group == trace::GROUP && tracing.has_lines(inode))
                .then_some("--trace has it for the rules of iptables-legacy and for conntrack")
        };
        let mut namespaces = self.namespaces.borrow_mut();
        for line in self.nflog.sync(&mut namespaces, reserved) {
            self.sink.say(&line);
        }
        if self.nflog.has_heard() {
            self.attributor.tell_paths();
        }
    }

    fn attribute(
        &mut self,
        raw: &RawDrop,
        time: Timestamp,
        trace: Option<Found>,
        tracer: &mut Tracer,
    ) -> DropEvent {
        let inode = raw.record.netns;
        let mut namespaces = self.namespaces.borrow_mut();
        if let (Some(netns), Some(tracing)) = (namespaces.meet(inode), &self.tracing)
            && let Err(error) = tracing.borrow_mut().add(&netns)
        {
            self.sink
                .say(&format!("network namespace {netns}: {error}"));
        }
        namespaces.with(inode, tracer.order(), |mut place| {
            let Some(trace) = trace else {
                return self.attributor.event(raw, time, place);
            };
            let mut raw = raw.clone();
            let told = Told::new(&trace, &mut raw.record, &mut place);
            let mut event = self.attributor.traced(&raw, time, place);
            if let Some(told) = told {
                told.tell(&mut event);
            }
            event
        })
    }

    /// Takes in legacy tables that are new or have been replaced.
    pub(super) fn sync_legacy(&mut self, tracer: &mut Tracer) {
        let mut namespaces = self.namespaces.borrow_mut();
        for line in tracer.sync_legacy(&mut namespaces, &mut self.attributor) {
            self.sink.say(&line);
        }
    }

    /// Has as much of packets captured as rules look at by now, and, in a flood, of each flow only some, where nobody needs each.
    pub(super) fn follow_rules(&mut self, tracer: &mut Tracer) -> Result<(), RunError> {
        let mut namespaces = self.namespaces.borrow_mut();
        // Each drop has its own place in a file, its own trace, its own logs; and what is asked of packets may be true of one of a flow only.
        let all = self.recorder.is_some()
            || self.tracing.is_some()
            || self.expression.is_some()
            || !self.nflog.is_idle()
            || self.nflog.is_wanted(&mut namespaces);
        tracer.sample(!all)?;
        Ok(tracer.follow_reach(&mut namespaces, &mut self.attributor)?)
    }

    /// Lets go of dead namespaces; tells which, if none is left to watch.
    pub(super) fn let_go(&mut self, tracer: &mut Tracer) -> Option<String> {
        let gone = self.namespaces.borrow_mut().let_go();
        let mut names = Vec::new();
        for netns in gone {
            if let Err(error) = tracer.unwatch(netns.inode) {
                log::warn!(
                    "network namespace {0} is gone, but still looked out for: {error}; drops of a later one with the inode {0} are shown too",
                    netns.inode
                );
            }
            if let Some(tracing) = &self.tracing {
                tracing.borrow_mut().remove(netns.inode);
            }
            self.nflog.remove(netns.inode);
            names.push(match netns.name {
                Some(name) => name.to_string(),
                None => netns.inode.to_string(),
            });
        }
        let over = self.namespaces.borrow().is_over();
        if names.is_empty() {
            return None;
        }
        let line = format!("network namespace {} is gone", names.join(", "));
        if over {
            return Some(line);
        }
        self.sink.say(&line);
        None
    }

    /// Records and shows a drop.
    fn show(&mut self, drop: DropEvent, raw: &RawDrop) -> Result<(), RunError> {
        let mut event = Event::Drop(Box::new(drop));
        if self.recorder.is_some() {
            self.record(|recorder| recorder.drop(&event, raw))?;
            if let (Event::Drop(drop), true) = (&mut event, self.trims) {
                drop.walk = None;
            }
        }
        self.sink.event(&event).map_err(io_error("stdout"))?;
        (self.on_event)(&event);
        Ok(())
    }

    /// Records and tells what is no drop.
    pub(super) fn emit(&mut self, event: &Event) -> Result<(), RunError> {
        // Who asks for COUNT drops gets COUNT objects.
        let aside = self.left.is_some();
        self.record(|recorder| recorder.event(event, aside))?;
        let told = match aside {
            true => self.sink.aside(event),
            false => self.sink.event(event),
        };
        told.map_err(io_error("stdout"))?;
        (self.on_event)(event);
        Ok(())
    }

    /// Does something to the record, if one is kept. If that fails, it is said once, and the run goes on without.
    fn record(
        &mut self,
        write: impl FnOnce(&mut Recorder) -> io::Result<()>,
    ) -> Result<(), RunError> {
        let Some(recorder) = &mut self.recorder else {
            return Ok(());
        };
        write(recorder).map_err(io_error("-w"))?;
        let Some(message) = recorder.failure() else {
            return Ok(());
        };
        let time = Timestamp::now();
        let event = Event::Error(ErrorEvent { time, message });
        self.sink.aside(&event).map_err(io_error("stdout"))
    }

    /// Whether as many files are there as were asked for.
    pub(super) fn is_recorded(&self) -> bool {
        self.recorder.as_ref().is_some_and(Recorder::is_over)
    }

    /// Tells of losses since the last time.
    pub(super) fn report_losses(&mut self, tracer: &Tracer) -> Result<(), RunError> {
        let lost = tracer.lost()?;
        if lost > self.reported {
            let count = lost - self.reported;
            self.reported = lost;
            self.emit(&Event::Lost(Lost {
                time: Timestamp::now(),
                source: "ring".into(),
                count,
            }))?;
        }
        self.report_lost_traces()?;
        self.record(|recorder| recorder.tick(lost))?;
        let count = self.nflog.lost();
        if count > 0 {
            self.emit(&Event::Lost(Lost {
                time: Timestamp::now(),
                source: Lost::NFLOG.into(),
                count,
            }))?;
        }
        self.sink.flush().map_err(io_error("stdout"))
    }

    /// Tells of traces that were lost since the last time. Their drops are shown all the same.
    fn report_lost_traces(&mut self) -> Result<(), RunError> {
        let Some(tracing) = &self.tracing else {
            return Ok(());
        };
        let count = tracing.borrow_mut().lost();
        if count == 0 {
            return Ok(());
        }
        self.emit(&Event::Lost(Lost {
            time: Timestamp::now(),
            source: Lost::TRACE.into(),
            count,
        }))
    }

    /// The summary.
    pub(super) fn finish(&mut self, tracer: &Tracer) -> Result<(), RunError> {
        self.report_losses(tracer)?;
        if self.undecided > 0 {
            self.sink.say(&undecided(self.undecided));
        }
        let counters = tracer.counters()?;
        let lost = tracer.lost()?;
        let mut other = std::collections::BTreeMap::new();
        for (reason, count) in tracer.reason_counts()? {
            *other.entry(self.attributor.reason(reason)).or_insert(0) += count;
        }
        let mut written = None;
        self.record(|recorder| {
            written = Some(recorder.account(lost)?);
            Ok(())
        })?;
        let logged = self.nflog.account();
        // Given up just now: their drops have not come.
        self.show_logged(u64::MAX)?;
        let mut summary = Summary {
            time: Timestamp::now(),
            seen: counters.seen + tracer.missed()?,
            shown: self.tally.shown(),
            filtered: counters.filtered + counters.other + self.hidden,
            aggregated: counters.aggregated.saturating_sub(self.hidden_more),
            lost,
            other,
            disagreed: self.tally.disagreed(),
            rules: self.tally.rules(),
            written,
            conntrack: self.namespaces.borrow_mut().conntrack(),
            logged,
        };
        if let Some(logged) = summary.logged.as_ref().filter(|logged| logged.only) {
            summary.seen = logged.received + logged.lost;
            summary.shown += self.logs;
            summary.filtered = logged.filtered;
            summary.aggregated += self.nflog.merged();
            summary.lost = logged.lost;
        }
        self.emit(&Event::Summary(summary))
    }
}

/// Wall-clock time of CLOCK_MONOTONIC's zero, as of now.
fn boot_offset() -> Timestamp {
    let monotonic = clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map(|t| SignedDuration::new(t.tv_sec(), t.tv_nsec() as i32))
        .unwrap_or_default();
    Timestamp::now().checked_sub(monotonic).unwrap_or_default()
}
