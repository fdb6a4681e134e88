//! A hint that legacy tables have been changed: iptables-legacy has let go of its lock.
//!
//! Every iptables-legacy and ip6tables-legacy holds `/run/xtables.lock` from before it reads a table until it ends (xshared.c, 1.8.9), in
//! whatever network namespace it is at work. The lock is a file that anybody can watch, which changes nothing. It is a hint only: a
//! container has a `/run` of its own, and other programs need not take the lock. What it does not tell, polling finds.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::{
    io::unix::AsyncFd,
    time::{Instant, sleep_until},
};

use crate::ruleset::snapshot::watch_readable;

/// Where the lock is; it is made by the first who takes it.
const DIRECTORY: &str = "/run";
/// Its name there.
const NAME: &str = "xtables.lock";
/// Told at most this often: a script can call iptables a thousand times a second.
const PAUSE: Duration = Duration::from_millis(5);

/// Watches the lock.
#[derive(Debug)]
pub struct Lock {
    inotify: Inotify,
    readable: AsyncFd<OwnedFd>,
    /// It was let go of, which was not told yet.
    released: bool,
    told: Option<Instant>,
}

impl Lock {
    /// Watches the lock from now on, on the current tokio runtime.
    ///
    /// # Errors
    /// There is no such directory, or no watch or descriptor is left.
    pub fn watch() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        inotify.add_watch(DIRECTORY, AddWatchFlags::IN_CLOSE)?;
        let readable = watch_readable(inotify.as_fd().try_clone_to_owned()?)?;
        Ok(Self {
            inotify,
            readable,
            released: false,
            told: None,
        })
    }

    /// Waits until somebody has let go of the lock; several may be told as one. Nothing is lost when the future is dropped.
    pub async fn released(&mut self) {
        while !self.released {
            match self.readable.readable().await {
                Ok(mut ready) => ready.clear_ready(),
                // The runtime is shutting down.
                Err(_) => std::future::pending().await,
            }
            // All that there is: readiness is told once for it. An event without a name: some were lost.
            while let Ok(events) = self.inotify.read_events()
                && !events.is_empty()
            {
                let mut names = events.iter().map(|event| &event.name);
                self.released |= names.any(|name| name.as_ref().is_none_or(|n| n == NAME));
            }
        }
        if let Some(told) = self.told {
            sleep_until(told + PAUSE).await;
        }
        self.told = Some(Instant::now());
        self.released = false;
    }
}
