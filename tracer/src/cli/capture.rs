//! The flags of capture files.

use std::path::PathBuf;
use std::time::Duration;

use crate::output::Format;
use crate::pcapng::{Compression, Plan, Rotation, SNAPLEN};

use super::Error;

#[derive(Debug, clap::Args)]
pub(super) struct CaptureArgs {
    /// Write each shown drop and its packet to FILE, as pcapng with the rule in the packet's comment; `-`: to stdout, instead of text
    #[arg(short, long, value_name = "FILE", help_heading = "Capture files")]
    write: Option<PathBuf>,
    /// Show what FILE holds instead of what happens now, with the same flags; `-`: stdin. Captures of other programs are shown without attribution
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["write", "snaplen", "netns", "all_netns", "trace", "duration"], help_heading = "Capture files")]
    read: Option<PathBuf>,
    /// Capture so many bytes of each packet; 0: all [default: with -w all, else the headers]
    #[arg(short, long, value_name = "BYTES", value_parser = snaplen, help_heading = "Capture files")]
    snaplen: Option<u32>,
    /// With -w: begin the next file, FILE1, FILE2 ..., when one is larger than this: millions of bytes, or a number with k, m or g (KiB, MiB, GiB)
    #[arg(short = 'C', long, value_name = "SIZE", value_parser = size, requires = "write", help_heading = "Capture files")]
    rotate_size: Option<u64>,
    /// With -w: begin the next file after so many seconds; FILE can have a time in it as strftime(3) writes it (`%H%M%S`)
    #[arg(short = 'G', long, value_name = "SECONDS", value_parser = seconds, requires = "write", help_heading = "Capture files")]
    rotate_seconds: Option<Duration>,
    /// With -C: so many files in turn. With -G: end after so many files
    #[arg(short = 'W', long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..), requires = "write", help_heading = "Capture files")]
    rotate_count: Option<u32>,
    /// With -w: compress
    #[arg(
        long,
        value_enum,
        value_name = "HOW",
        requires = "write",
        help_heading = "Capture files"
    )]
    compress: Option<Compression>,
}

impl CaptureArgs {
    /// The file to show.
    pub(super) fn read(&mut self) -> Option<PathBuf> {
        self.read.take()
    }

    /// Bytes of each packet that were asked for.
    pub(super) fn snaplen(&self) -> Option<u32> {
        self.snaplen
    }

    /// Whether a file is to be written.
    pub(super) fn writes(&self) -> bool {
        self.write.is_some()
    }

    /// What to write, and what is left for stdout.
    pub(super) fn plan(
        self,
        format: Format,
        quiet: bool,
        is_terminal: bool,
    ) -> Result<(Option<Plan>, Format), Error> {
        let Some(path) = self.write else {
            return Ok((None, format));
        };
        let rotation = Rotation {
            size: self.rotate_size,
            period: self.rotate_seconds,
            count: self.rotate_count,
        };
        let rotates = rotation.size.is_some() || rotation.period.is_some();
        if rotation.count.is_some() && !rotates {
            return Err(Error::usage(
                "-W counts files, but nothing says when the next one begins; add -C SIZE or -G SECONDS",
            ));
        }
        let plan = Plan {
            path,
            snaplen: self.snaplen.unwrap_or(SNAPLEN),
            rotation,
            compression: self.compress,
        };
        let format = match format {
            _ if !plan.is_stdout() => match format {
                Format::Text if quiet => Format::Nothing,
                format => format,
            },
            Format::Json => {
                return Err(Error::usage(
                    "-w - and --json both want stdout; name a file for one of them",
                ));
            }
            _ if rotates => {
                return Err(Error::usage(
                    "-w - is one stream, -C and -G begin new files; leave one out",
                ));
            }
            _ if is_terminal => {
                return Err(Error::usage(
                    "-w - writes pcapng, and stdout is a terminal; name a file, or pipe it: fwtrace -w - | tshark -r -",
                ));
            }
            _ => Format::Nothing,
        };
        Ok((Some(plan), format))
    }
}

/// As tcpdump: 0 is the most there is.
fn snaplen(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(0) => Ok(SNAPLEN),
        Ok(bytes) if bytes <= SNAPLEN => Ok(bytes),
        _ => Err(format!("a number of bytes up to {SNAPLEN} is needed")),
    }
}

/// As tcpdump: millions of bytes, or KiB, MiB, GiB.
fn size(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (text.get(..at), 1 << 10),
        Some((at, 'm' | 'M')) => (text.get(..at), 1 << 20),
        Some((at, 'g' | 'G')) => (text.get(..at), 1 << 30),
        _ => (Some(text), 1_000_000),
    };
    let number: Option<u64> = digits.and_then(|digits| digits.parse().ok());
    let bytes = number.and_then(|number| number.checked_mul(unit));
    bytes.filter(|bytes| *bytes > 0).ok_or_else(|| {
        "a positive number is needed, of millions of bytes, or with k, m or g behind it".to_owned()
    })
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| *seconds > 0);
    seconds
        .map(Duration::from_secs)
        .ok_or_else(|| "a positive number of seconds is needed".to_owned())
}
