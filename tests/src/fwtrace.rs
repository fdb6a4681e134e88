//! Runs the `fwtrace` binary and reads what it says.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::netns::Netns;
use crate::{PATIENCE, wait_until};

/// The binary under test: `FWTRACE_BIN`, else the one of the profile that built this test.
///
/// # Errors
/// There is none.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("FWTRACE_BIN") {
        return Ok(path.into());
    }
    let own = std::env::current_exe()?;
    // A test is in `deps` below it, a binary beside it.
    let dirs = own.ancestors().skip(1).take(2);
    let found = dirs
        .map(|dir| dir.join("fwtrace"))
        .find(|path| path.is_file());
    found.with_context(|| format!("no fwtrace is built for {}", own.display()))
}

/// Runs `fwtrace` to its end, in the namespace if one is named.
///
/// # Errors
/// It cannot be started.
pub fn run(ns: Option<&Netns>, args: &[&str]) -> Result<Output> {
    let mut command = Command::new(binary()?);
    command.args(args).stdin(Stdio::null());
    Ok(match ns {
        Some(ns) => ns.run(|| command.output())?,
        None => command.output()?,
    })
}

/// A line of stdout, and when it was read.
#[derive(Debug)]
struct Line {
    text: String,
    read: Instant,
}

/// A drop as `--json` printed it.
#[derive(Clone, Debug)]
pub struct Drop {
    /// The object.
    pub json: Value,
    /// When its line was read.
    pub read: Instant,
}

/// A run, killed when dropped.
#[derive(Debug)]
pub struct Fwtrace {
    child: Child,
    lines: Receiver<Line>,
    errors: Option<JoinHandle<String>>,
    pending: VecDeque<Drop>,
    /// Everything that stdout said.
    pub said: Vec<String>,
    /// Objects that are not drops, but for the summary.
    pub others: Vec<Value>,
    summary: Option<Value>,
    ready_after: Duration,
    _ready: TempDir,
}

/// How a run ended.
#[derive(Debug)]
pub struct End {
    /// Exit status.
    pub status: ExitStatus,
    /// The summary, with `--json`.
    pub summary: Value,
    /// Drops that nobody had asked for by then.
    pub drops: Vec<Drop>,
    /// All of stdout.
    pub stdout: Vec<String>,
    /// All of stderr.
    pub stderr: String,
}

impl Fwtrace {
    /// Starts `fwtrace --json ARGS` in the namespace and waits until its sources are attached.
    ///
    /// # Errors
    /// It ends before that, or does not get there.
    pub fn start(ns: &Netns, args: &[&str]) -> Result<Self> {
        let mut all = vec!["--json"];
        all.extend(args);
        Self::start_as(Some(ns), &all)
    }

    /// Starts it with these arguments only, in a namespace or in this process's own.
    ///
    /// # Errors
    /// It ends before it is ready, or does not get there.
    pub fn start_as(ns: Option<&Netns>, args: &[&str]) -> Result<Self> {
        Self::start_under(ns, &[], args)
    }

    /// Starts it through another program, `ip netns exec NAME`.
    ///
    /// # Errors
    /// It ends before it is ready, or does not get there.
    pub fn start_under(ns: Option<&Netns>, program: &[&str], args: &[&str]) -> Result<Self> {
        let ready = tempfile::tempdir()?;
        let ready_file = ready.path().join("ready");
        let mut argv: Vec<OsString> = program.iter().map(OsString::from).collect();
        argv.push(binary()?.into());
        argv.extend(args.iter().map(OsString::from));
        let mut command = Command::new(&argv[0]);
        command
            .args(&argv[1..])
            .arg("--ready-file")
            .arg(&ready_file)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let started = Instant::now();
        let mut child = match ns {
            Some(ns) => ns.run(|| command.spawn())?,
            None => command.spawn()?,
        };
        let stdout = child.stdout.take().context("no stdout")?;
        let mut stderr = child.stderr.take().context("no stderr")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for text in BufReader::new(stdout).lines().map_while(Result::ok) {
                let read = Instant::now();
                if sender.send(Line { text, read }).is_err() {
                    break;
                }
            }
        });
        let errors = std::thread::spawn(move || {
            let mut text = Vec::new();
            // What was read before an error is what there is.
            let _ = stderr.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        let mut run = Self {
            child,
            lines,
            errors: Some(errors),
            pending: VecDeque::new(),
            said: Vec::new(),
            others: Vec::new(),
            summary: None,
            ready_after: Duration::ZERO,
            _ready: ready,
        };
        let mut ended = None;
        let there = wait_until(|| {
            ended = run.child.try_wait().ok().flatten();
            ready_file.exists() || ended.is_some()
        });
        run.ready_after = started.elapsed();
        if let Some(status) = ended {
            bail!("fwtrace {args:?} ended with {status}: {}", run.stderr());
        }
        if !there {
            run.kill();
            bail!("fwtrace {args:?} did not get ready: {}", run.stderr());
        }
        Ok(run)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Time from start to ready file.
    pub fn ready_after(&self) -> Duration {
        self.ready_after
    }

    /// The next line of stdout, parsed if it is JSON; drops go to `pending`. False at the end of
    /// stdout or of patience.
    fn read_line(&mut self, deadline: Instant) -> Result<bool> {
        let left = deadline.saturating_duration_since(Instant::now());
        let line = match self.lines.recv_timeout(left) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return Ok(false),
        };
        self.said.push(line.text.clone());
        if line.text.starts_with('{') {
            let json: Value = serde_json::from_str(&line.text)
                .with_context(|| format!("not JSON: {}", line.text))?;
            ensure!(json["v"] == 1, "no version 1: {}", line.text);
            match json["type"].as_str() {
                Some("drop") => self.pending.push_back(Drop {
                    json,
                    read: line.read,
                }),
                Some("summary") => self.summary = Some(json),
                _ => self.others.push(json),
            }
        }
        Ok(true)
    }

    /// The next drop.
    ///
    /// # Errors
    /// None comes, or a line is not JSON.
    pub fn next_drop(&mut self) -> Result<Drop> {
        let deadline = Instant::now() + PATIENCE;
        while self.pending.is_empty() {
            if !self.read_line(deadline)? {
                bail!("no further event from fwtrace");
            }
        }
        self.pending.pop_front().context("no event")
    }

    /// The next drops.
    ///
    /// # Errors
    /// Fewer come.
    pub fn next_drops(&mut self, count: usize) -> Result<Vec<Drop>> {
        let mut drops = Vec::with_capacity(count);
        for i in 0..count {
            let drop = self.next_drop();
            drops.push(drop.with_context(|| format!("{i} of {count} events"))?);
        }
        Ok(drops)
    }

    /// The next drop whose destination port is this one; those before it are thrown away.
    ///
    /// # Errors
    /// None comes.
    pub fn drop_to_port(&mut self, port: u16) -> Result<Drop> {
        loop {
            let drop = self
                .next_drop()
                .with_context(|| format!("waiting for port {port}"))?;
            if drop.json["packet"]["dport"] == port {
                return Ok(drop);
            }
        }
    }

    /// The next line of text output.
    ///
    /// # Errors
    /// None comes.
    pub fn next_line(&mut self) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        ensure!(self.read_line(deadline)?, "no further line from fwtrace");
        self.said.last().cloned().context("no line")
    }

    /// Closes the reading end of its stdout: what `| head` does.
    pub fn close_stdout(&mut self) {
        // The reader thread owns the pipe and goes when the channel's end is gone and a line comes.
        let (_, nothing) = channel();
        self.lines = nothing;
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|s| s.is_some())
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), signal)?;
        Ok(())
    }

    /// Ends it as Ctrl-C does, and reads the rest.
    ///
    /// # Errors
    /// It does not end, or says what is not JSON.
    pub fn interrupt(self) -> Result<End> {
        self.signal(Signal::SIGINT)?;
        self.wait()
    }

    /// Reads everything until it ends by itself.
    ///
    /// # Errors
    /// It does not end, or says what is not JSON.
    pub fn wait(mut self) -> Result<End> {
        let deadline = Instant::now() + PATIENCE;
        while self.read_line(deadline)? {}
        let mut status = None;
        wait_until(|| {
            status = self.child.try_wait().ok().flatten();
            status.is_some()
        });
        let status = status.context("fwtrace does not end")?;
        Ok(End {
            status,
            summary: self.summary.take().unwrap_or_default(),
            drops: self.pending.drain(..).collect(),
            stdout: std::mem::take(&mut self.said),
            stderr: self.stderr(),
        })
    }

    /// SIGKILL, and wait.
    pub fn kill(&mut self) {
        // Already ended: that is what was wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// All of stderr; it must have ended.
    fn stderr(&mut self) -> String {
        let reader = self.errors.take();
        reader.and_then(|t| t.join().ok()).unwrap_or_default()
    }
}

impl std::ops::Drop for Fwtrace {
    fn drop(&mut self) {
        let running = self.child.try_wait().is_ok_and(|s| s.is_none());
        if running {
            // The test did not come to its end; cargo shows this if it failed.
            self.kill();
            let stderr = self.stderr();
            let last = self.said.len().saturating_sub(20);
            eprintln!("--- fwtrace's stderr\n{stderr}");
            eprintln!("--- its last lines\n{}", self.said[last..].join("\n"));
        }
    }
}

impl End {
    /// A number of the summary.
    ///
    /// # Errors
    /// It is not there.
    pub fn count(&self, key: &str) -> Result<u64> {
        self.summary[key]
            .as_u64()
            .with_context(|| format!("no {key} in the summary {}\n{}", self.summary, self.stderr))
    }
}
