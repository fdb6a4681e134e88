//! `fwtrace demo`: a broken firewall in namespaces of its own, with real traffic.
//!
//! A scene ([`scenes`]) plays in a network of three hosts ([`lab`]): the firewall gets its rules, the packets are sent ([`traffic`]) once
//! fwtrace watches, and fwtrace's own pipeline attributes what is dropped.

use std::io;

use crate::{
    netlink::{nft_write::WriteError, rtnl::RtnlError},
    netns,
};

pub mod lab;
pub mod scenes;
pub mod traffic;

/// Why a scene could not be played.
#[derive(Debug, thiserror::Error)]
pub enum Error {
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
        /// What was to be sent.
        what: String,
        /// By whom.
        from: lab::Host,
        /// Why not.
        source: io::Error,
    },
}
