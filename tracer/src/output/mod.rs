//! Sinks: text, JSON lines, the summary. stdout is data, stderr is talk.

mod comment;
pub mod listing;
mod summary;
mod text;
mod walk;

use std::error::Error;
use std::fs::File;
use std::io::{self, BufWriter, Stderr, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anstream::{AutoStream, ColorChoice};
use jiff::tz::TimeZone;

use crate::event::{Event, Lost, RulesetChange};
pub use comment::comment;
pub use summary::Tally;

/// The drop reason of netfilter, whoever in it.
const FIREWALL: &str = "NETFILTER_DROP";
/// How long an event may wait in the buffer while others follow.
const WAIT: Duration = Duration::from_millis(10);
/// Bytes that are buffered at most.
const BUFFER: usize = 64 * 1024;

/// How events are shown.
#[derive(Clone, Debug)]
pub struct Options {
    /// Text or JSON lines.
    pub format: Format,
    /// When text is coloured.
    pub color: ColorChoice,
    /// How often -v was given.
    pub verbosity: u8,
    /// No talk on stderr.
    pub quiet: bool,
    /// Protocols and ICMP types as numbers.
    pub numeric: bool,
    /// Each line says where it happened.
    pub show_netns: bool,
}

/// Form of the events on stdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One or two lines an event, for people.
    Text,
    /// One object a line.
    Json,
    /// Nothing: stdout is not wanted, or holds a capture.
    Nothing,
}

/// Where events go: data to `out`, talk to `talk`.
///
/// A reader that goes away shows as an error of kind [`io::ErrorKind::BrokenPipe`]: the run ends,
/// quietly and well.
#[derive(Debug)]
pub struct Sink<W: Write = File, T: Write = Stderr> {
    format: Format,
    text: text::Text,
    verbosity: u8,
    quiet: bool,
    show_netns: bool,
    out: BufWriter<W>,
    talk: T,
    /// Since when the oldest event waits in the buffer.
    waiting: Option<Instant>,
}

impl Sink {
    /// Writes to this process's stdout and stderr.
    ///
    /// # Errors
    /// stdout is closed.
    pub fn stdout(options: &Options) -> io::Result<Self> {
        // Not through std's Stdout: that flushes every line.
        let out = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        let choice = match options.color {
            ColorChoice::Auto => AutoStream::choice(&io::stdout()),
            chosen => chosen,
        };
        let color = choice != ColorChoice::Never;
        Ok(Self::new(
            options,
            color,
            TimeZone::system(),
            out,
            io::stderr(),
        ))
    }
}

impl<W: Write, T: Write> Sink<W, T> {
    fn new(options: &Options, color: bool, zone: TimeZone, out: W, talk: T) -> Self {
        Self {
            format: options.format,
            text: text::Text::new(options, color, zone),
            verbosity: options.verbosity,
            quiet: options.quiet,
            show_netns: options.show_netns,
            out: BufWriter::with_capacity(BUFFER, out),
            talk,
            waiting: None,
        }
    }

    /// Takes `event`. It is on its way 10 ms later at most if others follow; call
    /// [`flush`](Self::flush) when none do.
    ///
    /// # Errors
    /// What writing to stdout reports. stderr's errors are of no consequence.
    pub fn event(&mut self, event: &Event) -> io::Result<()> {
        match self.format {
            Format::Json => event.write_json(&mut self.out)?,
            Format::Nothing => {}
            Format::Text => match event {
                Event::Drop(drop) | Event::Log(drop) => self.text.write(drop, &mut self.out)?,
                Event::Packet(packet) => self.text.write_packet(packet, &mut self.out)?,
                _ => {}
            },
        }
        match self.waiting {
            Some(since) if since.elapsed() >= WAIT => self.flush()?,
            Some(_) => {}
            None => self.waiting = Some(Instant::now()),
        }
        if !matches!(event, Event::Drop(_) | Event::Log(_) | Event::Packet(_)) {
            // In order with what went before.
            self.flush()?;
            let _ = self.tell(event);
        }
        Ok(())
    }

    /// Says what is no drop to the user only, where stdout is to hold drops and nothing else.
    ///
    /// # Errors
    /// As [`event`](Self::event).
    pub fn aside(&mut self, event: &Event) -> io::Result<()> {
        self.flush()?;
        let _ = self.tell(event);
        Ok(())
    }

    /// Writes out what is buffered.
    ///
    /// # Errors
    /// As [`event`](Self::event).
    pub fn flush(&mut self) -> io::Result<()> {
        if self.waiting.take().is_some() {
            self.out.flush()?;
        }
        Ok(())
    }

    /// Whether each line says where it happened: known only by and by where events come from a file.
    pub fn show_netns(&mut self, show: bool) {
        self.show_netns = show;
        self.text.show_netns(show);
    }

    /// Says a line to the user, unless -q.
    pub fn say(&mut self, line: &str) {
        if !self.quiet {
            let _ = writeln!(self.talk, "{line}");
        }
    }

    /// What is not a drop, for people.
    fn tell(&mut self, event: &Event) -> io::Result<()> {
        match event {
            // Whoever prints an error at the end of the run prints it; this is for the others.
            Event::Error(error) => return writeln!(self.talk, "fwtrace: {}", error.message),
            _ if self.quiet => {}
            Event::Drop(_) | Event::Log(_) | Event::Packet(_) => {}
            Event::Lost(lost) if &*lost.source == Lost::TRACE => writeln!(
                self.talk,
                "fwtrace: {} messages of the kernel's trace were lost; their drops are shown without it",
                lost.count
            )?,
            Event::Lost(lost) if &*lost.source == Lost::NFLOG => writeln!(
                self.talk,
                "fwtrace: {} logged packets were lost; their drops are shown without them, or not at all where there is no eBPF",
                lost.count
            )?,
            Event::Lost(Lost { source, count, .. }) => {
                writeln!(self.talk, "fwtrace: {count} drops lost: {source}")?;
            }
            Event::RulesetChange(change) if self.verbosity > 0 => self.tell_change(change)?,
            Event::RulesetChange(_) => {}
            Event::Summary(summary) => summary::write(summary, self.show_netns, &mut self.talk)?,
        }
        self.talk.flush()
    }

    fn tell_change(&mut self, change: &RulesetChange) -> io::Result<()> {
        write!(self.talk, "fwtrace: ruleset changed")?;
        if self.show_netns {
            write!(self.talk, " in {}", text::Netns(&change.netns))?;
        }
        if let Some(by) = &change.by {
            write!(self.talk, " by {} {}", text::Clean(&by.comm), by.pid)?;
        }
        writeln!(self.talk, ", generation {}", change.generation)
    }
}

/// An error and what caused it, in one line. Many errors repeat their cause: it is said once.
pub fn error_text(err: &dyn Error) -> String {
    let mut text = err.to_string();
    let mut source = err.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests;
