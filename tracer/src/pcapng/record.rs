//! Keeping a record of a run: which file comes next, and what has become of each packet.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use jiff::{Timestamp, Zoned, tz::TimeZone};

use super::{Compression, Frame, Section, Writer, file::BlockFile};
use crate::{
    bpf::reader::RawDrop,
    event::{Event, Written},
};

/// What to write, and where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The file; with a period, a format for its name. `-`: stdout.
    pub path: PathBuf,
    /// Bytes of each packet at the most.
    pub snaplen: u32,
    /// When the next file begins.
    pub rotation: Rotation,
    /// How it is compressed.
    pub compression: Option<Compression>,
}

impl Plan {
    /// Whether stdout is the file.
    #[must_use]
    pub fn is_stdout(&self) -> bool {
        self.path == Path::new("-")
    }
}

/// When the next file begins, as tcpdump's -C, -G and -W say it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rotation {
    /// When the file is larger than this, bytes.
    pub size: Option<u64>,
    /// After so long.
    pub period: Option<Duration>,
    /// With a size: so many files in turn. With a period only: so many, and then the run ends.
    pub count: Option<u32>,
}

/// The record cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The file cannot be made.
    #[error("cannot create {path}: {reason}; choose another path for -w", path = .path.display())]
    Create {
        /// Which.
        path: PathBuf,
        /// What the system said. In words: it is not this process's rights that a caller is to judge by.
        reason: String,
    },
    /// The name of the next file.
    #[error("-w: '{format}' is no file name for -G: {reason}; see strftime(3)")]
    Name {
        /// What was asked for.
        format: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Writing failed some time ago.
    #[error("cannot write {path}: {reason}; {written} packets were written, {missing} were not", path = .path.display())]
    Write {
        /// What.
        path: PathBuf,
        /// What the system said.
        reason: String,
        /// Packets in all files of the run.
        written: u64,
        /// Packets that were shown only.
        missing: u64,
    },
}

/// The record of a run.
#[derive(Debug)]
pub struct Recorder {
    plan: Plan,
    section: Section,
    zone: TimeZone,
    writer: Option<Writer<BlockFile>>,
    /// The file that is written.
    path: PathBuf,
    /// Its number since the last period began.
    number: u32,
    /// Periods that have begun.
    periods: u32,
    began: Instant,
    over: bool,
    /// Packets in files that are finished.
    written: u64,
    missing: u64,
    /// Lost drops of the run, and those before this file.
    lost: u64,
    lost_before: u64,
    /// Why nothing is written any more.
    failure: Option<String>,
    /// That has been told.
    told: bool,
}

impl Recorder {
    /// Opens the first file; `several`: drops of several namespaces will come.
    ///
    /// # Errors
    /// It cannot be made, or its name is none.
    pub fn open(plan: Plan, several: bool) -> Result<Self, WriteError> {
        let mut recorder = Self {
            plan,
            section: this_machine(several),
            zone: TimeZone::system(),
            writer: None,
            path: PathBuf::new(),
            number: 0,
            periods: 1,
            began: Instant::now(),
            over: false,
            written: 0,
            missing: 0,
            lost: 0,
            lost_before: 0,
            failure: None,
            told: false,
        };
        recorder.next_file()?;
        Ok(recorder)
    }

    /// Writes a drop and its packet.
    ///
    /// # Errors
    /// A reader that has gone away; everything else is told by [`Recorder::failure`].
    pub fn drop(&mut self, event: &Event, raw: &RawDrop) -> io::Result<()> {
        if let (Some(writer), Some(size)) = (&mut self.writer, self.plan.rotation.size)
            && writer.out().size() > size
        {
            self.number += 1;
            if self
                .plan
                .rotation
                .count
                .is_some_and(|count| self.number >= count)
            {
                self.number = 0;
            }
            self.rotate()?;
        }
        if self.writer.is_none() {
            self.missing += 1;
            return Ok(());
        }
        // Once taken, a packet is counted by its file, in it or waiting.
        self.put(|writer| writer.event(event, Some(&Frame::new(raw))))
    }

    /// Writes another event; `aside`: one that stdout does not show.
    ///
    /// # Errors
    /// As [`Recorder::drop`].
    pub fn event(&mut self, event: &Event, aside: bool) -> io::Result<()> {
        self.put(|writer| match aside {
            true => writer.aside(event),
            false => writer.event(event, None),
        })
    }

    /// Lets out what waits.
    ///
    /// # Errors
    /// As [`Recorder::drop`].
    pub fn flush(&mut self) -> io::Result<()> {
        self.put(|writer| writer.out().flush())
    }

    /// Looks at the clock; `lost`: drops of the run that were lost.
    ///
    /// # Errors
    /// As [`Recorder::drop`].
    pub fn tick(&mut self, lost: u64) -> io::Result<()> {
        self.lost = lost;
        let due = self
            .plan
            .rotation
            .period
            .is_some_and(|p| self.began.elapsed() >= p);
        if !due || self.writer.is_none() {
            return self.flush();
        }
        let limited = self.plan.rotation.size.is_none();
        let count = self.plan.rotation.count.filter(|_| limited);
        if count.is_some_and(|count| self.periods >= count) {
            self.over = true;
            return self.flush();
        }
        self.periods += 1;
        self.number = 0;
        self.rotate()
    }

    /// Whether the last period is over, and with it the run.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// What is in the files. Everything that waits is written before.
    ///
    /// # Errors
    /// As [`Recorder::drop`].
    pub fn account(&mut self, lost: u64) -> io::Result<Written> {
        self.lost = lost;
        self.put(|writer| writer.out().settle())?;
        Ok(Written {
            file: self.plan.path.to_string_lossy().as_ref().into(),
            packets: self.packets(),
            missing: self.missing,
        })
    }

    /// A failure that has not been told yet, in words.
    pub fn failure(&mut self) -> Option<String> {
        let told = self.failure.clone().filter(|_| !self.told)?;
        self.told = true;
        let packets = self.packets();
        Some(format!(
            "cannot write {}: {told}; {packets} packets were written, those from now on are not",
            self.path.display()
        ))
    }

    /// Ends the record.
    ///
    /// # Errors
    /// Not all of it could be written.
    pub fn finish(mut self) -> Result<(), WriteError> {
        if self.close().is_err() && self.failure.is_none() {
            // The reader has gone: it has what it wanted.
            return Ok(());
        }
        let written = self.packets();
        match self.failure {
            None => Ok(()),
            Some(reason) => Err(WriteError::Write {
                path: self.path,
                reason,
                written,
                missing: self.missing,
            }),
        }
    }

    fn packets(&mut self) -> u64 {
        let current = self.writer.as_mut().map_or(0, |w| w.out().packets());
        self.written + current
    }

    /// Writes, unless that has failed before.
    fn put(
        &mut self,
        write: impl FnOnce(&mut Writer<BlockFile>) -> io::Result<()>,
    ) -> io::Result<()> {
        let Some(writer) = &mut self.writer else {
            return Ok(());
        };
        let written = write(writer);
        self.check(written)
    }

    /// Notes a failure; only a reader that has gone away ends the run.
    fn check(&mut self, written: io::Result<()>) -> io::Result<()> {
        let Err(error) = written else {
            return Ok(());
        };
        if let Some(mut writer) = self.writer.take() {
            self.written += writer.out().packets();
            self.missing += writer.out().waiting();
        }
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Err(error);
        }
        self.failure = Some(error.to_string());
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.close()?;
        if self.failure.is_some() {
            return Ok(());
        }
        if let Err(error) = self.next_file() {
            self.failure = Some(match error {
                WriteError::Create { reason, .. } | WriteError::Name { reason, .. } => reason,
                WriteError::Write { reason, .. } => reason,
            });
        }
        Ok(())
    }

    /// Ends the file.
    fn close(&mut self) -> io::Result<()> {
        let lost = self.lost.saturating_sub(self.lost_before);
        self.lost_before = self.lost;
        self.put(|writer| {
            writer.statistics(lost)?;
            writer.out().finish()
        })?;
        if let Some(mut writer) = self.writer.take() {
            self.written += writer.out().packets();
        }
        Ok(())
    }

    fn next_file(&mut self) -> Result<(), WriteError> {
        self.began = Instant::now();
        self.path = self.name()?;
        let created = if self.plan.is_stdout() {
            io::stdout().as_fd().try_clone_to_owned().map(File::from)
        } else {
            File::create(&self.path)
        };
        let refused = |error: io::Error| WriteError::Create {
            path: self.path.clone(),
            reason: error.to_string(),
        };
        let file = BlockFile::new(created.map_err(refused)?, self.plan.compression);
        let mut writer = Writer::new(file, &self.section, self.plan.snaplen).map_err(refused)?;
        // The header at once: a reader at the other end waits for it, and a disk that is full is known now.
        writer.out().settle().map_err(refused)?;
        self.writer = Some(writer);
        Ok(())
    }

    /// The name of the next file, as tcpdump 4.99 makes it (MakeFilename of tcpdump.c).
    fn name(&self) -> Result<PathBuf, WriteError> {
        let Rotation {
            size,
            period,
            count,
        } = self.plan.rotation;
        let mut name = self.plan.path.clone().into_os_string();
        if period.is_some() {
            let format = name.to_string_lossy();
            let now = Zoned::new(Timestamp::now(), self.zone.clone());
            let formatted = jiff::fmt::strtime::format(format.as_bytes(), &now);
            let formatted = formatted.map_err(|error| WriteError::Name {
                format: format.clone().into_owned(),
                reason: error.to_string(),
            })?;
            name = formatted.into();
        }
        if size.is_some() {
            let digits = count.map_or(0, |count| count.saturating_sub(1).to_string().len());
            if self.number > 0 || digits > 0 {
                name.push(format!("{:0digits$}", self.number));
            }
        }
        Ok(name.into())
    }
}

/// What the section header says.
fn this_machine(several: bool) -> Section {
    let kernel = |name: &str| {
        let text = std::fs::read_to_string(Path::new("/proc/sys/kernel").join(name));
        text.map_or_else(|_| "not known".to_owned(), |text| text.trim().to_owned())
    };
    Section {
        hardware: format!("{}, host {}", std::env::consts::ARCH, kernel("hostname")),
        os: format!("{} {}", kernel("ostype"), kernel("osrelease")),
        application: format!("fwtrace {}", env!("CARGO_PKG_VERSION")),
        several,
    }
}
