//! `fwtrace demo`: a broken firewall in namespaces of its own, with real traffic.
//!
//! A scene ([`scenes`]) plays in a network of three hosts ([`lab`]): the firewall gets its rules, the packets are sent ([`traffic`]) once
//! fwtrace watches, and the same pipeline as in a live run attributes what is dropped.

use std::{io, time::Duration};

use crate::{
    kernel::caps::CapsError,
    netlink::{nft_write::WriteError, rtnl::RtnlError},
    netns,
    pipeline::RunError,
};

pub mod lab;
mod play;
pub mod scenes;
pub mod traffic;

pub use self::play::run;
use self::scenes::{SCENES, Scene};

/// How long a scene waits for its drops; they take some milliseconds.
const DEADLINE: Duration = Duration::from_secs(5);

/// Why the demo could not be played to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This process may not make namespaces or watch drops.
    #[error(transparent)]
    Permission(#[from] CapsError),
    /// The kernel gives no new network namespace.
    #[error("cannot make a network namespace: {0}")]
    NewNetns(#[source] io::Error),
    /// A namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] netns::Error),
    /// A link, an address or a route could not be had.
    #[error("cannot set up the demo's network: {0}")]
    Network(#[from] RtnlError),
    /// The kernel refused the scene's rules.
    #[error("cannot load the scene's firewall: {0}")]
    Firewall(#[from] WriteError),
    /// A packet could not be sent.
    #[error("{what}: {source}")]
    Traffic {
        /// What was to be sent, and by whom.
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// The live run failed.
    #[error(transparent)]
    Run(#[from] RunError),
    /// SIGINT and SIGTERM cannot be caught.
    #[error("signals: {0}")]
    Signals(#[source] io::Error),
    /// stdout.
    #[error("stdout: {0}")]
    Output(#[source] io::Error),
    /// The drops came, but not all of them were attributed as they should be.
    #[error("scene {scene}: not found within {} s: {missing}", DEADLINE.as_secs())]
    Missed {
        /// The scene.
        scene: &'static str,
        /// What was not found.
        missing: String,
    },
}

/// The scene of this name, or all of them. Errors: the names that there are.
pub fn select(name: Option<&str>) -> Result<Vec<&'static Scene>, Vec<&'static str>> {
    let selected: Vec<&Scene> = SCENES
        .iter()
        .filter(|scene| name.is_none_or(|name| name == scene.name))
        .collect();
    match selected.is_empty() {
        true => Err(SCENES.iter().map(|scene| scene.name).collect()),
        false => Ok(selected),
    }
}
