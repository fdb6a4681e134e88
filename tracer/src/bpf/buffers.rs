//! Perf buffers, one a processor: where records come from when whole packets are asked for.

use std::os::fd::{AsFd, BorrowedFd};

use aya::{
    maps::{
        MapData, MapError, PerfEventArray,
        perf::{PerfBufferError, PerfEvent, PerfEventArrayBuffer},
    },
    util::online_cpus,
};
use bytes::{Bytes, BytesMut};
use nix::unistd::{SysconfVar, sysconf};

/// Bytes of all buffers together, and of one.
const ALL: usize = 64 << 20;
const ONE_MIN: usize = 1 << 20;
const ONE_MAX: usize = 16 << 20;

/// The buffers cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BuffersError {
    /// Which processors there are.
    #[error("cannot list the processors ({0}): {1}")]
    Processors(&'static str, std::io::Error),
    /// The kernel's refusal.
    #[error("cannot open a perf buffer for whole packets: {0}; -s 2048 does without")]
    Open(#[from] PerfBufferError),
    /// The map.
    #[error(transparent)]
    Map(#[from] MapError),
}

/// The buffers of all processors.
pub struct Buffers(Vec<PerfEventArrayBuffer<MapData>>);

impl Buffers {
    /// Opens them.
    ///
    /// # Errors
    /// See [`BuffersError`].
    pub fn open(mut map: PerfEventArray<MapData>) -> Result<Self, BuffersError> {
        let processors =
            online_cpus().map_err(|(what, error)| BuffersError::Processors(what, error))?;
        let each = (ALL / processors.len().max(1)).clamp(ONE_MIN, ONE_MAX);
        let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
        let page = page.and_then(|page| usize::try_from(page).ok());
        let pages = (each / page.unwrap_or(4096).max(1)).next_power_of_two();
        let open = |processor| map.open(processor, Some(pages));
        let buffers: Result<Vec<_>, _> = processors.into_iter().map(open).collect();
        Ok(Self(buffers?))
    }

    /// To wait on.
    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().map(AsFd::as_fd)
    }

    /// Hands over what is there. Records that did not fit were counted by the program that sent them.
    pub(super) fn drain(&mut self, mut take: impl FnMut(Bytes)) {
        for buffer in &mut self.0 {
            buffer.for_each(|event| {
                if let PerfEvent::Sample { head, tail } = event {
                    let mut entry = BytesMut::with_capacity(head.len() + tail.len());
                    entry.extend_from_slice(head);
                    entry.extend_from_slice(tail);
                    take(entry.freeze());
                }
            });
        }
    }
}
