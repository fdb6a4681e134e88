//! Real packets: sockets in the demo's namespaces.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, connect, sendto,
        socket,
    },
};

use super::{
    Error,
    lab::{Host, Lab},
};

/// Something that a host sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// Opens a TCP connection.
    Tcp {
        /// Who.
        from: Host,
        /// To whom.
        to: SocketAddrV4,
    },
    /// Sends a datagram.
    Udp {
        /// Who.
        from: Host,
        /// To whom.
        to: SocketAddrV4,
    },
    /// Sends an ICMP echo request.
    Ping {
        /// Who.
        from: Host,
        /// To whom.
        to: Ipv4Addr,
    },
}

impl std::fmt::Display for Traffic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp { from, to } => write!(
                f,
                "{from}: TCP connection to {} port {}",
                to.ip(),
                to.port()
            ),
            Self::Udp { from, to } => {
                write!(f, "{from}: UDP datagram to {} port {}", to.ip(), to.port())
            }
            Self::Ping { from, to } => write!(f, "{from}: ping to {to}"),
        }
    }
}

/// What keeps a connection attempt or a service going; closing it ends the retransmissions.
#[derive(Debug)]
pub struct Open(#[expect(dead_code, reason = "held for its Drop")] OwnedFd);

impl Traffic {
    /// Sends it, once. Does not wait for an answer.
    pub fn send(&self, lab: &Lab) -> Result<Open, Error> {
        let sent = match *self {
            Self::Tcp { from, to } => lab.netns(from).run(|| start_connection(to))?,
            Self::Udp { from, to } => lab.netns(from).run(|| send_datagram(to))?,
            Self::Ping { from, to } => lab.netns(from).run(|| send_echo_request(to))?,
        };
        sent.map(Open).map_err(|source| Error::Traffic {
            what: self.to_string(),
            source,
        })
    }
}

/// A TCP service of a host that takes connections and says nothing.
pub fn listen(lab: &Lab, host: Host, port: u16) -> Result<Open, Error> {
    lab.netns(host)
        .run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))?
        .map(|listener| Open(listener.into()))
        .map_err(|source| Error::Traffic {
            what: format!("{host}: a service on port {port}"),
            source,
        })
}

fn start_connection(to: SocketAddrV4) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(
        AddressFamily::Inet,
        SockType::Stream,
        flags,
        SockProtocol::Tcp,
    )?;
    match connect(fd.as_raw_fd(), &SockaddrIn::from(to)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(fd),
        Err(errno) => Err(errno.into()),
    }
}

fn send_datagram(to: SocketAddrV4) -> io::Result<OwnedFd> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.send_to(b"fwtrace demo", to)?;
    Ok(socket.into())
}

fn send_echo_request(to: Ipv4Addr) -> io::Result<OwnedFd> {
    let fd = socket(
        AddressFamily::Inet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::Icmp,
    )?;
    let to = SockaddrIn::from(SocketAddrV4::new(to, 0));
    sendto(
        fd.as_raw_fd(),
        &echo_request(*b"fwtrace demo"),
        &to,
        MsgFlags::empty(),
    )?;
    Ok(fd)
}

/// An ICMP echo request, identifier 1 and sequence number 1, with its checksum (RFC 792).
fn echo_request(data: [u8; 12]) -> [u8; 20] {
    let mut packet = [0; 20];
    packet[0] = 8;
    packet[5] = 1;
    packet[7] = 1;
    packet[8..].copy_from_slice(&data);
    let sum = internet_checksum(&packet);
    packet[2..4].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// The one's complement of the one's complement sum of the 16-bit words (RFC 1071); `bytes` is even.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let sum = bytes.chunks_exact(2).fold(0_u32, |sum, pair| {
        sum + u32::from(u16::from_be_bytes([pair[0], pair[1]]))
    });
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    !u16::try_from(folded).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_request_checks_out() {
        let packet = echo_request(*b"fwtrace demo");
        assert_eq!(packet[..2], [8, 0]);
        // With the checksum in place the sum over all of it is 0.
        assert_eq!(internet_checksum(&packet), 0);
        // The example of RFC 1071, section 3.
        assert_eq!(
            internet_checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]),
            !0xddf2
        );
    }
}
