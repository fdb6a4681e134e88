//! What the running kernel makes of `!= @set` where the set has a catch-all element: kernels differ, and none says.

use std::{
    io,
    net::{Ipv4Addr, UdpSocket},
};

use crate::{
    netlink::nft_write::{BaseChain, Batch, Key, Rule, WriteError},
    ruleset::model::Family,
};

/// A port of this probe's own.
const PORT: u16 = 50_100;

/// The kernel could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// It took no ruleset.
    #[error(transparent)]
    Ruleset(#[from] WriteError),
    /// No datagram could be sent.
    #[error("sending: {0}")]
    Send(#[from] io::Error),
}

/// Whether the kernel inverts last, so that no packet is outside a set with a catch-all element, rather than every packet: see
/// [`Program::inverting_last`](crate::eval::program::Program::inverting_last).
///
/// Adds a table to the calling thread's network namespace, whose loopback must be up: call it in one of fwtrace's own.
///
/// # Errors
/// See [`ProbeError`].
pub fn inverts_last() -> Result<bool, ProbeError> {
    let mut batch = Batch::new(Family::Inet, "inversion");
    batch.add_table();
    let everything = batch.add_set_of_everything("everything", Key::Service);
    batch.add_base_chain("out", &BaseChain::OUTPUT);
    let outside = Rule::new(Family::Inet)
        .udp_dport(PORT)
        .udp_dport_not_in(&everything);
    batch.add_rule("out", outside.drop());
    batch.commit()?;
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    match socket.send_to(b"fwtrace", (Ipv4Addr::LOCALHOST, PORT)) {
        Ok(_) => Ok(true),
        // What a process gets whose packet a rule on OUTPUT drops.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(false),
        Err(error) => Err(error.into()),
    }
}
