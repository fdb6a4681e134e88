//! `-r`: a capture shown as the live run would have shown it.

use std::{
    fs::File,
    io::{self, Read},
};

use jiff::Timestamp;

use crate::{
    cli::Replay,
    event::{Event, Lost, Summary},
    expr::{Expression, Verdict, undecided},
    output::{Format, Sink, Tally},
    pcapng::{Captured, Item, ReadError, Reader},
};

/// A capture cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// It cannot be opened. In words: it is not this process's rights that a caller is to judge by.
    #[error("cannot read {path}: {reason}")]
    Open {
        /// Which.
        path: String,
        /// What the system said.
        reason: String,
    },
    /// It cannot be read to its end.
    #[error("{path}: {source}")]
    Read {
        /// Which.
        path: String,
        /// Where and why.
        source: ReadError,
    },
    /// stdout.
    #[error("stdout: {0}")]
    Output(#[from] io::Error),
}

/// Shows what a capture holds.
///
/// # Errors
/// See [`ReplayError`]. A reader of stdout that goes away is none.
pub fn replay(plan: &Replay) -> Result<(), ReplayError> {
    match show(plan) {
        Err(ReplayError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

fn show(plan: &Replay) -> Result<(), ReplayError> {
    let path = plan.path.display().to_string();
    let input: Box<dyn Read> = if path == "-" {
        Box::new(io::stdin().lock())
    } else {
        let opened = File::open(&plan.path).map_err(|error| ReplayError::Open {
            path: path.clone(),
            reason: error.to_string(),
        })?;
        Box::new(opened)
    };
    let failed = |source| ReplayError::Read {
        path: path.clone(),
        source,
    };
    let mut reader = Reader::new(input).map_err(failed)?;
    let mut shown = Shown::new(plan)?;
    let result = loop {
        shown.sink.show_netns(reader.several());
        match reader.next_item() {
            Ok(Some(item)) => shown.item(item)?,
            Ok(None) => break Ok(()),
            Err(error) => break Err(failed(error)),
        }
        if shown.left == Some(0) {
            break Ok(());
        }
    };
    shown.end()?;
    result
}

struct Shown<'a> {
    plan: &'a Replay,
    expression: Option<Expression>,
    /// Packets of which it is not known whether they meet it.
    undecided: u64,
    sink: Sink,
    left: Option<u64>,
    tally: Tally,
    hidden: u64,
    lost: u64,
    packets: u64,
    /// Time of the newest event.
    time: Timestamp,
    /// The run's own account was shown.
    told: bool,
}

impl<'a> Shown<'a> {
    fn new(plan: &'a Replay) -> io::Result<Self> {
        Ok(Self {
            plan,
            expression: plan.expression.clone(),
            undecided: 0,
            sink: Sink::stdout(&plan.output)?,
            left: plan.count,
            tally: Tally::default(),
            hidden: 0,
            lost: 0,
            packets: 0,
            time: Timestamp::UNIX_EPOCH,
            told: false,
        })
    }

    fn item(&mut self, item: Item) -> io::Result<()> {
        let (mut event, captured, aside) = match item {
            Item::Event(event, captured) => (event, captured, false),
            Item::Aside(event) => (event, None, true),
        };
        let all = self.plan.filter.is_none() && self.expression.is_none() && self.left.is_none();
        if captured.is_some_and(|captured| !self.accepts(&captured)) {
            self.hidden += u64::from(matches!(&*event, Event::Drop(_) | Event::Log(_)));
            return Ok(());
        }
        let dropped = matches!(&*event, Event::Drop(_));
        match &mut *event {
            Event::Drop(drop) | Event::Log(drop) => {
                self.time = drop.time;
                if self
                    .plan
                    .filter
                    .as_ref()
                    .is_some_and(|f| !f.selects_drop(drop))
                {
                    self.hidden += 1;
                    return Ok(());
                }
                if self.plan.output.format == Format::Json && self.plan.output.verbosity == 0 {
                    drop.walk = None;
                }
                if dropped {
                    self.tally.add(drop);
                }
                self.left = self.left.map(|left| left - 1);
            }
            Event::Packet(packet) => {
                self.time = packet.time;
                if self
                    .plan
                    .filter
                    .as_ref()
                    .is_some_and(|f| !f.selects_packet(packet))
                {
                    return Ok(());
                }
                self.packets += 1;
                self.left = self.left.map(|left| left - 1);
            }
            Event::Lost(lost) => {
                if &*lost.source != Lost::TRACE {
                    self.lost += lost.count;
                }
            }
            // It accounts for all that the run has shown, which is not what is shown here.
            Event::Summary(_) if !all => return Ok(()),
            Event::Summary(_) => self.told = true,
            Event::RulesetChange(_) | Event::Error(_) => {}
        }
        let is_packet = matches!(&*event, Event::Drop(_) | Event::Log(_) | Event::Packet(_));
        if aside || self.plan.count.is_some() && !is_packet {
            self.sink.aside(&event)
        } else {
            self.sink.event(&event)
        }
    }

    /// Whether a packet meets the expression. One of which that is not known is shown, and told of.
    fn accepts(&mut self, captured: &Captured) -> bool {
        let Some(expression) = &mut self.expression else {
            return true;
        };
        let Captured {
            link,
            bytes,
            original_len,
        } = captured;
        let verdict = expression.judge_captured(*link, bytes, *original_len);
        self.undecided += u64::from(verdict == Verdict::Unknown);
        verdict != Verdict::NoMatch
    }

    /// The account, where the run's own does not hold or is not there.
    fn end(&mut self) -> io::Result<()> {
        if self.undecided > 0 {
            self.sink.say(&undecided(self.undecided));
        }
        if self.packets > 0 {
            let (packets, were) = match self.packets {
                1 => ("packet", "is"),
                _ => ("packets", "are"),
            };
            self.sink.say(&format!(
                "{} {packets} shown that {were} not attributed: fwtrace did not write them, and nothing says what became of them",
                self.packets
            ));
        }
        let shown = self.tally.shown();
        let drops = shown + self.hidden;
        if !self.told && drops > 0 {
            let summary = Event::Summary(Summary {
                time: self.time,
                seen: drops + self.tally.aggregated() + self.lost,
                shown,
                filtered: self.hidden,
                aggregated: self.tally.aggregated(),
                lost: self.lost,
                other: std::collections::BTreeMap::new(),
                rules: self.tally.rules(),
                written: None,
                disagreed: self.tally.disagreed(),
                conntrack: Vec::new(),
                logged: None,
            });
            self.sink.aside(&summary)?;
        }
        self.sink.flush()
    }
}
