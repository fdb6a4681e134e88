//! The ring's reader: a thread of its own that drains in batches.

use std::{
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use super::buffers::Buffers;
use aya::maps::{MapData, RingBuf};
use bytes::{Bytes, BytesMut};
use fwtrace_abi::{ABI_VERSION, FLAG_L2, FLAG_STACK, FLAG_WHOLE, Record, STACK_WORDS, Whole};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::mpsc;
use zerocopy::FromBytes;

/// Records in a batch at the most.
const BATCH: usize = 512;
/// Bytes that are allocated at a time for records.
const BUFFER: usize = 256 * 1024;
/// Look this often while records keep coming, milliseconds: a batch at a time, whatever the rate. Longer
/// than the interval in which the BPF program wakes the reader at most once.
const BUSY_PAUSE: u16 = 2;
/// Look at the stop flag this often, milliseconds.
const IDLE_POLL: u16 = 100;

/// One record from the ring, with what follows it.
#[derive(Clone, Debug)]
pub struct RawDrop {
    /// The fixed part.
    pub record: Record,
    /// The captured packet, from its link-layer header if `FLAG_L2`, as far as it is shown.
    pub packet: Bytes,
    /// Of its linear part, also what was captured beyond that because rules read it.
    pub deep: Bytes,
    /// Length of the whole packet from the start of `packet` on, bytes; `None`: not said.
    pub len: Option<u32>,
    /// Words of the kernel stack above the tracepoint's arguments, if asked for.
    pub stack: Vec<u64>,
}

/// Decodes one entry of the ring or of a perf buffer; `None` if it is too short or of another version.
#[must_use]
pub fn decode(entry: &Bytes) -> Option<RawDrop> {
    let (mut record, rest) = Record::read_from_prefix(entry).ok()?;
    if record.version != ABI_VERSION {
        return None;
    }
    let captured = usize::try_from(record.captured).ok()?;
    let mut packet = entry.slice_ref(rest.get(..captured)?);
    let mut stack = Vec::new();
    let mut behind = captured.next_multiple_of(8);
    if record.flags & FLAG_STACK != 0 {
        let words = rest.get(behind..)?;
        stack = words
            .chunks_exact(8)
            .take(STACK_WORDS)
            .filter_map(|w| w.try_into().ok().map(u64::from_ne_bytes))
            .collect();
        behind += STACK_WORDS * 8;
    }
    // `bm` does not look over the end of the linear part (lib/ts_bm.c, v6.18).
    let deep = packet.clone();
    let mut len = None;
    if record.flags & FLAG_WHOLE != 0 {
        let (whole, more) = Whole::read_from_prefix(rest.get(behind..)?).ok()?;
        let more = more.get(..usize::try_from(whole.bytes).ok()?)?;
        packet = [&packet, more].concat().into();
        record.captured = u32::try_from(packet.len()).ok()?;
        len = Some(whole.len).filter(|len| *len > 0);
    }
    Some(RawDrop {
        record,
        deep,
        packet,
        len,
        stack,
    })
}

impl RawDrop {
    /// Shows no more than `snaplen` bytes from the network header on, [`Settings::snaplen`](fwtrace_abi::Settings) as it was asked for.
    #[must_use]
    fn showing(mut self, snaplen: u32) -> Self {
        let l2_len = match self.record.flags & FLAG_L2 {
            0 => 0,
            _ => u32::from(self.record.l2_len),
        };
        let shown = snaplen.saturating_add(l2_len).min(self.record.captured);
        self.record.captured = shown;
        self.packet.truncate(shown as usize);
        self
    }
}

/// Where records come from.
pub enum Source {
    /// The ring: in order.
    Ring(RingBuf<MapData>),
    /// A perf buffer a processor: whole packets.
    Buffers(Buffers),
}

impl From<RingBuf<MapData>> for Source {
    fn from(ring: RingBuf<MapData>) -> Self {
        Self::Ring(ring)
    }
}

impl Source {
    /// Waits until there is something to read, or for a while.
    fn wait(&self) {
        let fd = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds: Vec<PollFd<'_>> = match self {
            Self::Ring(ring) => vec![fd(ring.as_fd())],
            Self::Buffers(buffers) => buffers.fds().map(fd).collect(),
        };
        // An interrupted poll is as good as a timeout.
        let _ = poll(&mut fds, PollTimeout::from(IDLE_POLL));
    }

    /// The next batches: as much as there is from the buffers, one from the ring; none if nothing is there.
    fn batches(
        &mut self,
        snaplen: u32,
        buffer: &mut BytesMut,
        undecoded: &AtomicU64,
    ) -> Vec<Vec<RawDrop>> {
        let mut batch = Vec::new();
        let mut take = |entry: Bytes| match decode(&entry) {
            Some(drop) => batch.push(drop.showing(snaplen)),
            None => {
                undecoded.fetch_add(1, Ordering::Relaxed);
            }
        };
        match self {
            Self::Ring(ring) => {
                for _ in 0..BATCH {
                    let Some(item) = ring.next() else { break };
                    // Records are cut out of it, so that there is no allocation for each.
                    if buffer.capacity() < item.len() {
                        buffer.reserve(BUFFER.max(item.len()));
                    }
                    buffer.extend_from_slice(&item);
                    take(buffer.split().freeze());
                }
                match batch.is_empty() {
                    true => Vec::new(),
                    false => vec![batch],
                }
            }
            Self::Buffers(buffers) => {
                buffers.drain(take);
                // Each processor has its own.
                batch.sort_by_key(|drop| drop.record.time);
                let mut rest = batch.into_iter().peekable();
                let mut batches = Vec::new();
                while rest.peek().is_some() {
                    batches.push(rest.by_ref().take(BATCH).collect());
                }
                batches
            }
        }
    }
}

/// The reading thread. Dropping it stops the thread.
pub struct Reader {
    stop: Arc<AtomicBool>,
    undecoded: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    /// Starts reading; of a packet `snaplen` bytes from the network header on are shown at the most. A full channel makes the reader wait, and then the ring counts what it refuses:
    /// no record is lost in between.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn start(
        source: impl Into<Source>,
        capacity: usize,
        snaplen: u32,
    ) -> std::io::Result<(Self, mpsc::Receiver<Vec<RawDrop>>)> {
        let source = source.into();
        let (sender, receiver) = mpsc::channel(capacity);
        let stop = Arc::new(AtomicBool::new(false));
        let undecoded = Arc::new(AtomicU64::new(0));
        let thread = {
            let (stop, undecoded) = (Arc::clone(&stop), Arc::clone(&undecoded));
            std::thread::Builder::new()
                .name("ring".into())
                .spawn(move || read(source, snaplen, &sender, &stop, &undecoded))?
        };
        Ok((
            Self {
                stop,
                undecoded,
                thread: Some(thread),
            },
            receiver,
        ))
    }

    /// Tells the thread to drain what is there and end; the channel closes behind the last batch.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    /// Ring entries that were no records of this version.
    #[must_use]
    pub fn undecoded(&self) -> u64 {
        self.undecoded.load(Ordering::Relaxed)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed; the channel's end ends the run.
            let _ = thread.join();
        }
    }
}

fn read(
    mut source: Source,
    snaplen: u32,
    sender: &mpsc::Sender<Vec<RawDrop>>,
    stop: &AtomicBool,
    undecoded: &AtomicU64,
) {
    let mut busy = false;
    let mut buffer = BytesMut::new();
    loop {
        let stopping = stop.load(Ordering::Acquire);
        if busy && !stopping {
            let _ = poll(&mut [], PollTimeout::from(BUSY_PAUSE));
        } else if !stopping {
            source.wait();
        }
        busy = false;
        loop {
            let batches = source.batches(snaplen, &mut buffer, undecoded);
            if batches.is_empty() {
                break;
            }
            busy = true;
            for batch in batches {
                if sender.blocking_send(batch).is_err() {
                    return;
                }
            }
        }
        if stopping {
            return;
        }
    }
}
