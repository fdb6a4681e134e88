//! Plays scenes on stdout: the story, the firewall, what is sent, and what fwtrace says of it.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Instant,
};

use anstream::ColorChoice;
use anstyle::Style;
use serde::Serialize;
use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
};

use super::{
    DEADLINE, Error,
    lab::{CLIENT, FIREWALL, FIREWALL_WAN, Host, Lab, SERVER},
    scenes::Scene,
    traffic,
};
use crate::{
    cli::{Demo, Ebpf, Filter, Groups, Ladder, Live, Watch},
    event::{self, DropEvent, Event},
    kernel::caps,
    output::{Format, Options},
    pipeline,
};

/// Lists or plays scenes on stdout.
///
/// # Errors
/// See [`Error`]; a scene whose drops are not attributed is one. A signal ends the demo early and well.
pub fn run(demo: &Demo) -> Result<(), Error> {
    let mut out = anstream::stdout();
    if demo.list {
        for scene in &demo.scenes {
            writeln!(out, "{:<20}{}", scene.name, scene.story).map_err(Error::Output)?;
        }
        return Ok(());
    }
    caps::check_live_run()?;
    if !demo.json {
        introduce(&mut out).map_err(Error::Output)?;
    }
    let stopped = stopped_by_signal().map_err(Error::Signals)?;
    for scene in &demo.scenes {
        play(scene, demo.json, &stopped, &mut out)?;
        if stopped.load(Ordering::Relaxed) {
            break;
        }
    }
    Ok(())
}

/// Becomes true with SIGINT or SIGTERM. The pipeline watches for them too, but only while it runs, and not between two scenes.
fn stopped_by_signal() -> io::Result<Arc<AtomicBool>> {
    let runtime = Builder::new_current_thread().enable_io().build()?;
    let (mut interrupt, mut terminate) = {
        let _context = runtime.enter();
        (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        )
    };
    let stopped = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stopped);
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
            });
            flag.store(true, Ordering::Relaxed);
        })?;
    Ok(stopped)
}

fn introduce(out: &mut impl Write) -> io::Result<()> {
    writeln!(
        out,
        "Three network namespaces of fwtrace's own, which end with it; the rest of this machine is not touched.\n\n    \
         client {CLIENT} -- lan0 [{FIREWALL} firewall {FIREWALL_WAN}] wan0 -- {SERVER} server"
    )
}

/// Plays one scene, or as much of it as there is before `stopped`.
fn play(
    scene: &'static Scene,
    json: bool,
    stopped: &AtomicBool,
    out: &mut impl Write,
) -> Result<(), Error> {
    let lab = Lab::new()?;
    for table in (scene.tables)() {
        lab.load(&table)?;
    }
    let service = scene
        .service
        .map(|(host, port)| traffic::listen(&lab, host, port))
        .transpose()?;
    announce(scene, json, out).map_err(Error::Output)?;

    let started = Instant::now();
    let mut sent = Ok(Vec::new());
    let mut drops: Vec<DropEvent> = Vec::new();
    pipeline::run_with(
        watch(&lab, scene, json),
        || sent = scene.sent.iter().map(|packet| packet.send(&lab)).collect(),
        |event| {
            if let Event::Drop(drop) = event {
                drops.push(DropEvent::clone(drop));
            }
        },
    )?;
    drop((sent?, service));

    if let Some(missing) = scene.missing(&drops) {
        // A run that neither its count nor its duration ended was ended by a signal, whether or not that is known here already.
        let early = drops.len() < scene.expected.len() && started.elapsed() < DEADLINE;
        return match early || stopped.load(Ordering::Relaxed) {
            true => {
                stopped.store(true, Ordering::Relaxed);
                Ok(())
            }
            false => Err(Error::Missed {
                scene: scene.name,
                missing,
            }),
        };
    }
    if !json {
        writeln!(out, "\n=> {}", scene.look_at).map_err(Error::Output)?;
    }
    Ok(())
}

/// The live run of a scene: as many drops in the firewall's namespace as there should be.
fn watch(lab: &Lab, scene: &Scene, json: bool) -> Live {
    Live {
        filter: Filter::default(),
        expression: None,
        watch: Watch::These(vec![lab.netns(Host::Firewall).clone()]),
        count: u64::try_from(scene.expected.len()).ok(),
        duration: Some(DEADLINE),
        output: Options {
            format: if json { Format::Json } else { Format::Text },
            color: ColorChoice::Auto,
            verbosity: 0,
            quiet: true,
            numeric: false,
            show_netns: false,
        },
        ready_file: None,
        evidence: Ladder::Best,
        trace: None,
        snaplen: None,
        write: None,
        ebpf: Ebpf::Must,
        nflog: Groups::NONE,
        nflog_buffer: 0,
    }
}

/// A scene in JSON; its drops follow as in a live run.
#[derive(Serialize)]
struct SceneLine<'a> {
    v: u32,
    #[serde(rename = "type")]
    kind: &'a str,
    name: &'a str,
    story: &'a str,
    ruleset: &'a str,
    sent: Vec<String>,
    look_at: &'a str,
}

/// What is wrong, the firewall, what is sent.
fn announce(scene: &Scene, json: bool, out: &mut impl Write) -> io::Result<()> {
    if json {
        let line = SceneLine {
            v: event::VERSION,
            kind: "scene",
            name: scene.name,
            story: scene.story,
            ruleset: scene.ruleset,
            sent: scene.sent.iter().map(ToString::to_string).collect(),
            look_at: scene.look_at,
        };
        serde_json::to_writer(&mut *out, &line)?;
        writeln!(out)?;
    } else {
        let bold = Style::new().bold();
        writeln!(out, "\n\n{bold}{}{bold:#}\n{}\n", scene.name, scene.story)?;
        for line in scene.ruleset.lines() {
            let line = format!("    {}", line.replace('\t', "    "));
            writeln!(out, "{}", line.trim_end())?;
        }
        writeln!(out)?;
        for packet in scene.sent {
            writeln!(out, "{packet}")?;
        }
        writeln!(out)?;
    }
    // The pipeline writes to stdout through a buffer of its own.
    out.flush()
}
