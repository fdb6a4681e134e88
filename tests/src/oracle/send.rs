//! Hands packets to sockets, all of them on one CPU, so that the kernel works on them in order.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Mutex;

use anyhow::{Context as _, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, setsockopt,
    socket, sockopt,
};
use nix::unistd::Pid;

use crate::net::{Net, Place};
use crate::netns::Netns;
use crate::oracle::case::Sent;
use crate::oracle::flow::LISTENER;
use crate::traffic;

/// The sockets that packets leave through.
#[derive(Debug)]
pub struct Sender {
    a: (OwnedFd, u32),
    b: (OwnedFd, u32),
    r4: OwnedFd,
    r6: OwnedFd,
    listener: Mutex<Option<TcpListener>>,
}

impl Sender {
    /// Opens them.
    ///
    /// # Errors
    /// As of the system calls.
    pub fn new(net: &Net) -> Result<Self> {
        let packet = |ns: &Netns, interface: &str| -> Result<(OwnedFd, u32)> {
            ns.run(|| {
                let index = nix::net::if_::if_nametoindex(interface)?;
                let kind = (AddressFamily::Packet, SockType::Raw);
                Ok((socket(kind.0, kind.1, SockFlag::SOCK_CLOEXEC, None)?, index))
            })
        };
        let raw = |family| {
            net.r.run(|| {
                socket(
                    family,
                    SockType::Raw,
                    SockFlag::SOCK_CLOEXEC,
                    SockProtocol::Raw,
                )
            })
        };
        Ok(Self {
            a: packet(&net.a, "a0")?,
            b: packet(&net.b, "b0")?,
            r4: raw(AddressFamily::Inet)?,
            r6: raw(AddressFamily::Inet6)?,
            listener: Mutex::new(None),
        })
    }

    /// R listens anew: connections of before are gone.
    ///
    /// # Errors
    /// As of the system calls.
    pub fn listen(&self, net: &Net) -> Result<()> {
        let mut listener = self.listener.lock().ok().context("no listener")?;
        *listener = None;
        let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), LISTENER);
        *listener = Some(
            net.r
                .run(|| TcpListener::bind(any))
                .context("R's listener")?,
        );
        Ok(())
    }

    /// Sends them in order; what the kernel does not take (an OUTPUT rule dropped it) is its
    /// business. `patch` may change a packet when it is its turn.
    pub fn send(&self, packets: &[Sent], mut patch: impl FnMut(&Sent) -> Option<Vec<u8>> + Send) {
        let all = || {
            let mut one = CpuSet::new();
            // On any CPU the packets are right, too, but not in order.
            let pinned = one
                .set(0)
                .and_then(|()| sched_setaffinity(Pid::from_raw(0), &one));
            if let Err(error) = pinned {
                eprintln!("oracle: not on one CPU: {error}");
            }
            for packet in packets {
                let patched = patch(packet);
                // Refused: then there is no packet, and neither a trace nor an event of it.
                let _ = self.send_one(packet, patched.as_deref().unwrap_or(&packet.bytes));
            }
        };
        std::thread::scope(|scope| scope.spawn(all).join()).unwrap_or_default();
    }

    fn send_one(&self, packet: &Sent, bytes: &[u8]) -> Result<()> {
        match packet.from {
            Place::A => Ok(traffic::send_frame(&self.a.0, self.a.1, bytes)?),
            Place::B => Ok(traffic::send_frame(&self.b.0, self.b.1, bytes)?),
            Place::R => {
                let (fd, to) = if bytes.first().is_some_and(|b| b >> 4 == 6) {
                    let to = bytes.get(24..40).and_then(|b| b.first_chunk::<16>());
                    (
                        &self.r6,
                        IpAddr::from(Ipv6Addr::from(*to.context("short")?)),
                    )
                } else {
                    let to = bytes.get(16..20).and_then(|b| b.first_chunk::<4>());
                    (
                        &self.r4,
                        IpAddr::from(Ipv4Addr::from(*to.context("short")?)),
                    )
                };
                setsockopt(fd, sockopt::Mark, &packet.mark)?;
                let to = SockaddrStorage::from(SocketAddr::new(to, 0));
                sendto(fd.as_raw_fd(), bytes, &to, MsgFlags::empty())?;
                Ok(())
            }
        }
    }
}
