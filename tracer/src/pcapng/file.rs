//! A file of whole blocks: what fails in the middle of a block leaves the file as it was before it.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom, Write},
    os::unix::fs::MetadataExt,
    time::{Duration, Instant},
};

use super::block;

/// Bytes that wait for each other at the most.
const BUFFER: usize = 256 * 1024;
/// How long they wait if they are compressed: small frames compress badly.
const WAIT: Duration = Duration::from_secs(1);

/// How a file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Compression {
    /// Zstandard (RFC 8878). Each group of blocks is a frame of its own, so that a file that was cut short can be read up to there.
    Zstd,
}

/// Takes one whole block a `write`.
#[derive(Debug)]
pub(super) struct BlockFile {
    file: File,
    /// It can be cut.
    regular: bool,
    compression: Option<Compression>,
    pending: Vec<u8>,
    blocks: Vec<Pending>,
    /// Bytes in the file: whole blocks, or frames of them.
    length: u64,
    /// Packets in the file.
    packets: u64,
    since: Option<Instant>,
}

/// A block in `pending`.
#[derive(Clone, Copy, Debug)]
struct Pending {
    end: usize,
    is_packet: bool,
}

impl BlockFile {
    /// `file` is empty, or a pipe.
    pub(super) fn new(file: File, compression: Option<Compression>) -> Self {
        let regular = file.metadata().is_ok_and(|metadata| metadata.is_file());
        Self {
            file,
            regular,
            compression,
            pending: Vec::new(),
            blocks: Vec::new(),
            length: 0,
            packets: 0,
            since: None,
        }
    }

    /// Packets in the file.
    pub(super) fn packets(&self) -> u64 {
        self.packets
    }

    /// Packets that wait to be written.
    pub(super) fn waiting(&self) -> u64 {
        let packets = self.blocks.iter().filter(|block| block.is_packet);
        packets.count().try_into().unwrap_or(u64::MAX)
    }

    /// Bytes in the file and on their way there.
    pub(super) fn size(&self) -> u64 {
        self.length
            .saturating_add(u64::try_from(self.pending.len()).unwrap_or(u64::MAX))
    }

    /// Writes out everything, whatever it costs.
    pub(super) fn settle(&mut self) -> io::Result<()> {
        self.since = None;
        if self.pending.is_empty() {
            return Ok(());
        }
        let (written, result) = match self.compression {
            None => write_as_far_as_possible(&mut self.file, &self.pending),
            Some(Compression::Zstd) => {
                let frame = zstd::bulk::compress(&self.pending, 0)?;
                let (written, result) = write_as_far_as_possible(&mut self.file, &frame);
                // A frame is whole, or nothing of it is of use.
                if written == frame.len() {
                    self.length += len64(frame.len());
                    self.count(self.pending.len());
                } else {
                    self.cut();
                }
                return result;
            }
        };
        let whole = self.blocks.iter().map(|block| block.end);
        let whole = whole.take_while(|end| *end <= written).last().unwrap_or(0);
        self.length += len64(whole);
        self.count(whole);
        if whole < written {
            self.cut();
        }
        result
    }

    /// All is in the file, and on the disk as far as it says; and the file is still there.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        self.settle()?;
        if !self.regular {
            return Ok(());
        }
        self.file.sync_all()?;
        if self.file.metadata()?.nlink() == 0 {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "the file has been removed while it was written",
            ));
        }
        Ok(())
    }

    /// The first `written` bytes of what was pending are in the file.
    fn count(&mut self, written: usize) {
        let there = self.blocks.iter().take_while(|block| block.end <= written);
        let (all, packets) = there.fold((0, 0), |(all, packets), block| {
            (all + 1, packets + u64::from(block.is_packet))
        });
        self.packets += packets;
        self.blocks.drain(..all);
        self.pending.drain(..written);
        for block in &mut self.blocks {
            block.end -= written;
        }
    }

    /// Cuts off a torn block.
    fn cut(&mut self) {
        if !self.regular {
            return;
        }
        // A file that cannot even be made shorter stays torn: whoever reads it is told.
        let cut = self.file.set_len(self.length);
        if let Err(error) =
            cut.and_then(|()| self.file.seek(SeekFrom::Start(self.length)).map(drop))
        {
            log::warn!("the last block of the file stays torn: {error}");
        }
    }
}

impl Write for BlockFile {
    /// Takes a whole block.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pending.extend(bytes);
        let kind = bytes.first_chunk().map(|kind| u32::from_le_bytes(*kind));
        self.blocks.push(Pending {
            end: self.pending.len(),
            is_packet: kind == Some(block::PACKET),
        });
        if self.pending.len() >= BUFFER {
            self.settle()?;
        } else if self.since.is_none() {
            self.since = Some(Instant::now());
        }
        Ok(bytes.len())
    }

    /// Writes out what waits, unless it is to be compressed and can wait for more.
    fn flush(&mut self) -> io::Result<()> {
        let patient = self.compression.is_some();
        match self.since {
            Some(since) if !patient || since.elapsed() >= WAIT => self.settle(),
            _ => Ok(()),
        }
    }
}

/// How much was written, and why not all.
fn write_as_far_as_possible(file: &mut File, bytes: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
        match file.write(rest) {
            Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}

fn len64(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}
