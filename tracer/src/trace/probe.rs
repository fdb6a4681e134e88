//! Whether `--trace` can be had here: tried in a network namespace of the probe's own, which ends with it.

use nix::sched::{CloneFlags, unshare};

use super::table::{self, TableError};
use crate::{
    cli::Filter,
    netlink::{
        nflog::{self, ListenError},
        nftrace,
        socket::{Protocol, Socket, SocketError},
    },
};

/// `--trace` cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// No network namespace of the probe's own.
    #[error("cannot make a network namespace: {0}")]
    Netns(#[from] std::io::Error),
    /// No netlink socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// No table that goes with its process, or none of the chains or rules.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The thread ended.
    #[error("the probe panicked")]
    Panicked,
}

/// What `--trace` reaches.
#[derive(Debug)]
pub struct Reach {
    /// Why rules of iptables-legacy are not among it.
    pub legacy: Result<(), ListenError>,
}

/// Adds `--trace`'s table to a network namespace made for it, and listens to NFLOG there. Blocks for milliseconds.
///
/// # Errors
/// See [`ProbeError`].
pub fn probe() -> Result<Reach, ProbeError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("probe".to_owned());
        let probing = thread.spawn_scoped(scope, in_own_netns)?;
        probing.join().map_err(|_| ProbeError::Panicked)?
    })
}

fn in_own_netns() -> Result<Reach, ProbeError> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from)?;
    let _traces = Socket::open(Protocol::Netfilter, &[nftrace::GROUP])?;
    let mut owner = Socket::open(Protocol::Netfilter, &[])?;
    let name = table::free_name(&mut owner)?;
    table::add(&mut owner, &name, &Filter::default(), 1)?;
    let mut lines = Socket::open(Protocol::Netfilter, &[])?;
    Ok(Reach {
        legacy: nflog::listen(&mut lines, 0, &[]).map(drop),
    })
}
