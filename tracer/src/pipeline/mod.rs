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
mod run;
mod start;
mod trace;

use std::{fs::File, io, path::Path, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use self::{namespaces::Namespaces, run::Run, start::Started};
pub use self::{
    replay::{ReplayError, replay},
    start::{Kernel, StartError, kernel},
};
use crate::{
    attribute::LoggedPackets,
    bpf::load::BpfError,
    cli::{Ebpf, Live, Watch},
    event::Event,
    output::{Format, Sink, Tally},
    pcapng::{Recorder, WriteError},
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
        hidden_more: 0,
        reported: 0,
        suspicious: false,
    };
    for line in notes {
        run.sink.say(&line);
    }
    run.follow_rules(&mut tracer)?;
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
                // Before it is told, so that nobody who waits for that comes too early.
                let followed = run.follow_rules(&mut tracer);
                run.follow_groups();
                followed.and_then(|()| run.emit(&change))
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
        if let Err(error) = step.and_then(|()| run.follow_rules(&mut tracer)) {
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
