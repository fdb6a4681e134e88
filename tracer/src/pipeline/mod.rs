//! The live run: sources, attribution, output, shutdown.
//!
//! ```text
//! ring thread --batches--> Run::batch -> Expression::judge -> Attributor -> Filter::shows -> Sink
//! netlink tasks (one per namespace) keep Namespaces' rulesets current
//! NFLOG groups -> Nflog, where drops wait for their logs between Attributor and Filter::shows
//! with --trace: the kernel's traces -> Tracing, which joins them with the drops of a batch before they are attributed
//! ```

mod legacy;
mod namespaces;
mod nflog;
mod replay;
mod start;
mod trace;

use std::{cell::RefCell, fs::File, io, path::Path, rc::Rc, time::Duration};

use fwtrace_abi::RULE_INVALID;
use jiff::{SignedDuration, Timestamp};
use nix::time::{ClockId, clock_gettime};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use self::{
    namespaces::Namespaces,
    nflog::{Heard, Nflog},
    start::{Started, Tracer},
    trace::{Joined, Tracing},
};
pub use self::{
    replay::{ReplayError, replay},
    start::{Kernel, StartError, kernel},
};
use crate::{
    attribute::{Attributor, LoggedPackets},
    bpf::{load::BpfError, reader::RawDrop},
    cli::{Ebpf, Live, Watch},
    event::{DropEvent, ErrorEvent, Event, Lost, Summary},
    expr::{Expression, Verdict, undecided},
    netlink,
    nflog::listener::now,
    output::{Format, Sink, Tally},
    pcapng::{Recorder, WriteError},
    trace::{join::Found, tell::Told},
    xtables::legacy::lock::Lock,
};

/// How often losses, replaced legacy tables and vanished namespaces are looked for.
const TICK: Duration = Duration::from_millis(250);
/// Calibrate again at most this often.
const RECALIBRATE: Duration = Duration::from_secs(1);

/// Why a run ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It could not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The kernel refused something while running.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// stdout, the ready file, a thread.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The capture file.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// All watched namespaces are gone.
    #[error("{0}")]
    Vanished(String),
}

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> RunError {
    move |source| RunError::Io {
        what: what.into(),
        source,
    }
}

/// Runs until a signal, the count, the duration or the reader's end. `on_ready` is called once every
/// source is attached.
///
/// # Errors
/// See [`RunError`]. A reader of stdout that goes away is none.
pub fn run(plan: Live, on_ready: impl FnOnce()) -> Result<(), RunError> {
    run_with(plan, on_ready, |_| ())
}

/// As [`run`]; `on_event` sees every event that is printed, after it was.
///
/// # Errors
/// As [`run`].
pub fn run_with(
    plan: Live,
    on_ready: impl FnOnce(),
    mut on_event: impl FnMut(&Event),
) -> Result<(), RunError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(io_error("tokio"))?;
    tokio::task::LocalSet::new().block_on(&runtime, live(plan, on_ready, &mut on_event))
}

async fn live(
    plan: Live,
    on_ready: impl FnOnce(),
    on_event: &mut dyn FnMut(&Event),
) -> Result<(), RunError> {
    // Before anything is attached, so that no signal finds the process unprepared.
    let mut interrupt = signal(SignalKind::interrupt()).map_err(io_error("signals"))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(io_error("signals"))?;

    let sink = Sink::stdout(&plan.output).map_err(io_error("stdout"))?;
    let (changes, mut changed) = mpsc::unbounded_channel();
    let namespaces = Namespaces::new(matches!(plan.watch, Watch::All), changes);
    let Started {
        mut tracer,
        attributor,
        mut batches,
        tracing,
        nflog,
        notes,
        without,
    } = start::start(&plan, &namespaces)?;
    let mut run = Run {
        sink,
        recorder: match plan.write {
            Some(write) => Some(Recorder::open(write, plan.output.show_netns)?),
            None => None,
        },
        // The file keeps more than that.
        trims: plan.output.format == Format::Json && plan.output.verbosity == 0,
        on_event,
        tally: Tally::default(),
        attributor,
        namespaces,
        tracing,
        nflog,
        logged: LoggedPackets::default(),
        logs: 0,
        filter: plan.filter,
        complete: plan.output.verbosity > 0 || plan.output.format == Format::Json,
        expression: plan.expression,
        undecided: 0,
        left: plan.count,
        hidden: 0,
        reported: 0,
        suspicious: false,
    };
    for line in notes {
        run.sink.say(&line);
    }
    run.follow_groups();
    let sources = run.sources(without.as_deref(), plan.ebpf == Ebpf::Off);
    run.sink.say(&sources);
    drop(plan.watch);
    if let Some(path) = &plan.ready_file {
        create(path)?;
    }
    on_ready();

    // Without it, tables are looked at as often as the clock ticks.
    let mut lock = Lock::watch().ok();
    let deadline = plan.duration.map(|d| Instant::now() + d);
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut calibrated = Instant::now();
    let mut vanished = None;
    let mut result = Ok(());
    loop {
        let step = tokio::select! {
            batch = batches.recv() => match batch {
                Some(batch) => {
                    batch.iter().for_each(|raw| tracer.note(&raw.record));
                    run.batch(&batch, batches.is_empty(), &mut tracer)
                }
                None => break,
            },
            Some(change) = changed.recv() => {
                run.follow_groups();
                run.emit(&change)
            }
            () = run.nflog.ready() => run.heard(),
            _ = tick.tick() => {
                run.namespaces.borrow_mut().poll_legacy(false);
                run.sync_legacy(&mut tracer);
                run.namespaces.borrow_mut().sample_conntrack();
                tracer.tell_counters(&mut run.namespaces.borrow_mut());
                run.follow_groups();
                let shown = match batches.is_empty() {
                    true => {
                        run.nflog.forget();
                        run.heard()
                    }
                    false => Ok(()),
                };
                vanished = run.let_go(&mut tracer);
                shown.and_then(|()| run.report_losses(&tracer))
            }
            () = released(&mut lock) => {
                run.namespaces.borrow_mut().poll_legacy(true);
                run.sync_legacy(&mut tracer);
                run.follow_groups();
                Ok(())
            }
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            () = until(deadline) => break,
        };
        if let Err(error) = step {
            result = Err(error);
            break;
        }
        if run.left == Some(0) || vanished.is_some() || run.is_recorded() {
            break;
        }
        if tracer.is_legacy_due() {
            run.sync_legacy(&mut tracer);
        }
        if run.suspicious && calibrated.elapsed() >= RECALIBRATE {
            run.suspicious = false;
            calibrated = Instant::now();
            let line = tracer.recalibrate().unwrap_or_else(|error| {
                format!("cannot calibrate again: {error}; more drops may be without their rule")
            });
            run.sink.say(&line);
        }
    }

    // What is in the ring still counts, and is shown unless the count is full.
    tracer.stop()?;
    while let Some(batch) = batches.recv().await {
        if result.is_ok() {
            result = run.batch(&batch, false, &mut tracer);
        }
    }
    if result.is_ok() {
        run.nflog.end();
        result = run
            .show_joined(u64::MAX)
            .and_then(|()| run.show_logged(u64::MAX))
            .and_then(|()| run.finish(&tracer));
    }
    // However it ended: the file is to be whole.
    let recorded = run.recorder.take().map_or(Ok(()), Recorder::finish);
    match result {
        Err(RunError::Io { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => {
            Ok(recorded?)
        }
        Ok(()) => {
            recorded?;
            vanished.map_or(Ok(()), |names| Err(RunError::Vanished(names)))
        }
        other => other,
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

async fn released(lock: &mut Option<Lock>) {
    match lock {
        Some(lock) => lock.released().await,
        None => std::future::pending().await,
    }
}

fn create(path: &Path) -> Result<(), RunError> {
    File::create(path)
        .map(drop)
        .map_err(io_error(format!("cannot create {}", path.display())))
}

/// A run under way.
struct Run<'a> {
    sink: Sink,
    /// With `-w`.
    recorder: Option<Recorder>,
    /// Events are recorded with their walk, and shown without.
    trims: bool,
    on_event: &'a mut dyn FnMut(&Event),
    tally: Tally,
    attributor: Attributor,
    namespaces: Rc<RefCell<Namespaces>>,
    /// With `--trace`.
    tracing: Option<Rc<RefCell<Tracing>>>,
    nflog: Nflog,
    /// For those that are shown for themselves.
    logged: LoggedPackets,
    /// How many were shown that are no drops.
    logs: u64,
    filter: crate::cli::Filter,
    /// The kernel is asked about the connections of drops.
    complete: bool,
    /// What packets have to meet besides.
    expression: Option<Expression>,
    /// Records of which it is not known whether they meet it.
    undecided: u64,
    /// Events that may still be shown.
    left: Option<u64>,
    /// Records that were not shown.
    hidden: u64,
    /// Losses that were reported.
    reported: u64,
    /// A drop at a learnt site had no valid rule pointer.
    suspicious: bool,
}

impl Run<'_> {
    /// Attributes and shows a batch; `last`: none is waiting behind it.
    fn batch(
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
                self.hidden += 1;
                continue;
            }
            self.suspicious |= raw.record.rule.kind == RULE_INVALID;
            if !self.accepts(raw) {
                self.hidden += 1;
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
        self.release()?;
        if last {
            self.record(Recorder::flush)?;
            self.sink.flush().map_err(io_error("stdout"))?;
        }
        Ok(())
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
    fn show_logged(&mut self, now: u64) -> Result<(), RunError> {
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
    fn sources(&self, without: Option<&str>, off: bool) -> String {
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
    fn heard(&mut self) -> Result<(), RunError> {
        self.release()?;
        self.sink.flush().map_err(io_error("stdout"))
    }

    fn show_joined(&mut self, now: u64) -> Result<(), RunError> {
        while let Some((event, raw)) = self.nflog.next(now) {
            self.pass_on(event, &raw)?;
        }
        Ok(())
    }

    /// Shows a drop if it is asked for.
    fn pass_on(&mut self, event: DropEvent, raw: &RawDrop) -> Result<(), RunError> {
        if self.left == Some(0) || !self.filter.shows(&event) {
            self.hidden += 1;
            return Ok(());
        }
        self.tally.add(&event);
        self.left = self.left.map(|left| left - 1);
        self.show(event, raw)
    }

    /// Listens to the NFLOG groups that are wanted by now.
    fn follow_groups(&mut self) {
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
    fn sync_legacy(&mut self, tracer: &mut Tracer) {
        let mut namespaces = self.namespaces.borrow_mut();
        for line in tracer.sync_legacy(&mut namespaces, &mut self.attributor) {
            self.sink.say(&line);
        }
    }

    /// Lets go of dead namespaces; tells which, if none is left to watch.
    fn let_go(&mut self, tracer: &mut Tracer) -> Option<String> {
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
    fn emit(&mut self, event: &Event) -> Result<(), RunError> {
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
    fn is_recorded(&self) -> bool {
        self.recorder.as_ref().is_some_and(Recorder::is_over)
    }

    /// Tells of losses since the last time.
    fn report_losses(&mut self, tracer: &Tracer) -> Result<(), RunError> {
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
    fn finish(&mut self, tracer: &Tracer) -> Result<(), RunError> {
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
            aggregated: self.tally.aggregated(),
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
