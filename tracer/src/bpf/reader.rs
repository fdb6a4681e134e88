//! The ring's reader: a thread of its own that drains in batches.

use std::{
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use aya::maps::{MapData, RingBuf};
use bytes::{Bytes, BytesMut};
use fwtrace_abi::{ABI_VERSION, FLAG_STACK, Record, STACK_WORDS};
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
    /// The captured packet, from its link-layer header if `FLAG_L2`.
    pub packet: Bytes,
    /// Length of the whole packet from the start of `packet` on, bytes; `None`: not said.
    pub len: Option<u32>,
    /// Words of the kernel stack above the tracepoint's arguments, if asked for.
    pub stack: Vec<u64>,
}

/// Decodes one ring entry; `None` if it is too short or of another version.
#[must_use]
pub fn decode(entry: &Bytes) -> Option<RawDrop> {
    let (record, rest) = Record::read_from_prefix(entry).ok()?;
    if record.version != ABI_VERSION {
        return None;
    }
    let captured = usize::try_from(record.captured).ok()?;
    let packet = entry.slice_ref(rest.get(..captured)?);
    let mut stack = Vec::new();
    if record.flags & FLAG_STACK != 0 {
        let words = rest.get(captured.next_multiple_of(8)..)?;
        stack = words
            .chunks_exact(8)
            .take(STACK_WORDS)
            .filter_map(|w| w.try_into().ok().map(u64::from_ne_bytes))
            .collect();
    }
    Some(RawDrop {
        record,
        packet,
        len: None,
        stack,
    })
}

/// The reading thread. Dropping it stops the thread.
pub struct Reader {
    stop: Arc<AtomicBool>,
    undecoded: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    /// Starts reading. A full channel makes the reader wait, and then the ring counts what it refuses:
    /// no record is lost in between.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn start(
        ring: RingBuf<MapData>,
        capacity: usize,
    ) -> std::io::Result<(Self, mpsc::Receiver<Vec<RawDrop>>)> {
        let (sender, receiver) = mpsc::channel(capacity);
        let stop = Arc::new(AtomicBool::new(false));
        let undecoded = Arc::new(AtomicU64::new(0));
        let thread = {
            let (stop, undecoded) = (Arc::clone(&stop), Arc::clone(&undecoded));
            std::thread::Builder::new()
                .name("ring".into())
                .spawn(move || read(ring, &sender, &stop, &undecoded))?
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
    mut ring: RingBuf<MapData>,
    sender: &mpsc::Sender<Vec<RawDrop>>,
    stop: &AtomicBool,
    undecoded: &AtomicU64,
) {
    let mut busy = false;
    // Records are cut out of it, so that there is no allocation for each.
    let mut buffer = BytesMut::new();
    loop {
        let stopping = stop.load(Ordering::Acquire);
        // An interrupted poll is as good as a timeout.
        let _ = if stopping {
            Ok(0)
        } else if busy {
            poll(&mut [], PollTimeout::from(BUSY_PAUSE))
        } else {
            poll(
                &mut [PollFd::new(ring.as_fd(), PollFlags::POLLIN)],
                PollTimeout::from(IDLE_POLL),
            )
        };
        busy = false;
        loop {
            let mut batch = Vec::new();
            while batch.len() < BATCH {
                let Some(item) = ring.next() else { break };
                if buffer.capacity() < item.len() {
                    buffer.reserve(BUFFER.max(item.len()));
                }
                buffer.extend_from_slice(&item);
                match decode(&buffer.split().freeze()) {
                    Some(drop) => batch.push(drop),
                    None => {
                        undecoded.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
            if batch.is_empty() {
                break;
            }
            busy = true;
            if sender.blocking_send(batch).is_err() {
                return;
            }
        }
        if stopping {
            return;
        }
    }
}
