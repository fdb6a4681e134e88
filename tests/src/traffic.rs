//! Packets. Every function sends from the network namespace of the calling thread:
//! `net.a.run(|| traffic::udp(..))`. A firewall on the way out makes some of them fail with EPERM;
//! that is for the caller to judge.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect,
    recv, sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

/// The payload of the UDP and ICMP packets here, bytes.
pub const PAYLOAD: &[u8] = b"fwtrace";

/// Sends one datagram.
///
/// # Errors
/// As of the system call; EPERM if the firewall of this namespace dropped it.
pub fn udp(src: SocketAddr, dst: SocketAddr) -> io::Result<()> {
    datagram(src, dst, PAYLOAD)
}

/// Sends one datagram with this payload; above the MTU it leaves in fragments.
///
/// # Errors
/// As of the system call.
pub fn datagram(src: SocketAddr, dst: SocketAddr, payload: &[u8]) -> io::Result<()> {
    UdpSocket::bind(src)?.send_to(payload, dst)?;
    Ok(())
}

/// Sends a SYN and no second one: the socket is closed at once.
///
/// # Errors
/// As of the system calls, but for the connection not being there yet.
pub fn syn(src: SocketAddr, dst: SocketAddr) -> io::Result<()> {
    let family = match dst {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let tcp = socket(family, SockType::Stream, flags, None)?;
    setsockopt(&tcp, sockopt::ReuseAddr, &true)?;
    bind(tcp.as_raw_fd(), &SockaddrStorage::from(src))?;
    match connect(tcp.as_raw_fd(), &SockaddrStorage::from(dst)) {
        Ok(()) | Err(nix::Error::EINPROGRESS) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Connects for good.
///
/// # Errors
/// As of the system calls.
pub fn tcp(dst: SocketAddr) -> io::Result<TcpStream> {
    TcpStream::connect_timeout(&dst, crate::PATIENCE)
}

/// Sends a TCP segment that belongs to no connection. `flags` as in the header: 0x10 is ACK.
///
/// # Errors
/// As of the system calls.
pub fn segment(src: SocketAddr, dst: SocketAddr, flags: u8) -> io::Result<()> {
    segment_at(src, dst, flags, 7777)
}

/// As [`segment`], with this sequence number.
///
/// # Errors
/// It cannot be sent.
pub fn segment_at(src: SocketAddr, dst: SocketAddr, flags: u8, seq: u32) -> io::Result<()> {
    let mut header = Vec::with_capacity(20);
    header.extend(src.port().to_be_bytes());
    header.extend(dst.port().to_be_bytes());
    header.extend(seq.to_be_bytes());
    header.extend(99_u32.to_be_bytes());
    header.extend([0x50, flags]);
    header.extend(1000_u16.to_be_bytes());
    header.extend([0; 4]);
    let sum = checksum(&[&pseudo(src.ip(), dst.ip(), 6, header.len()), &header]);
    header[16..18].copy_from_slice(&sum.to_be_bytes());
    raw(dst.ip(), SockProtocol::Tcp, &header)
}

/// Sends an echo request.
///
/// # Errors
/// As of the system calls.
pub fn echo(src: IpAddr, dst: IpAddr, id: u16) -> io::Result<()> {
    let (protocol, request) = echo_request(src, dst, id);
    raw(dst, protocol, &request)
}

fn echo_request(src: IpAddr, dst: IpAddr, id: u16) -> (SockProtocol, Vec<u8>) {
    let v6 = dst.is_ipv6();
    let mut message = vec![if v6 { 128 } else { 8 }, 0, 0, 0];
    message.extend(id.to_be_bytes());
    message.extend([0, 1]);
    message.extend(PAYLOAD);
    let sum = if v6 {
        checksum(&[&pseudo(src, dst, 58, message.len()), &message])
    } else {
        checksum(&[&message])
    };
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let protocol = if v6 {
        SockProtocol::IcmpV6
    } else {
        SockProtocol::Icmp
    };
    (protocol, message)
}

/// Whether an echo request is answered within 50 ms.
pub fn ping(dst: IpAddr) -> bool {
    const ID: u16 = 0x6677;
    let answered = || -> nix::Result<bool> {
        // The kernel fills in an ICMPv6 checksum that is wrong, so the source need not be known.
        let (protocol, request) = echo_request(dst, dst, ID);
        let socket = open_raw(dst, protocol)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(0, 50_000))?;
        send_raw(&socket, dst, &request)?;
        let (reply, skip) = if dst.is_ipv6() { (129, 0) } else { (0, 20) };
        let mut buffer = [0; 256];
        loop {
            let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let message = buffer.get(skip..length).unwrap_or_default();
            if message.first() == Some(&reply) && message.get(4..6) == Some(&ID.to_be_bytes()) {
                return Ok(true);
            }
        }
    };
    answered().unwrap_or(false)
}

fn open_raw(dst: IpAddr, protocol: SockProtocol) -> nix::Result<OwnedFd> {
    let family = if dst.is_ipv6() {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    };
    socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)
}

fn send_raw(socket: &OwnedFd, dst: IpAddr, bytes: &[u8]) -> nix::Result<()> {
    let to = SockaddrStorage::from(SocketAddr::new(dst, 0));
    sendto(socket.as_raw_fd(), bytes, &to, MsgFlags::empty())?;
    Ok(())
}

/// Sends an IP payload through a raw socket; the kernel writes the IP header.
fn raw(dst: IpAddr, protocol: SockProtocol, payload: &[u8]) -> io::Result<()> {
    let socket = open_raw(dst, protocol)?;
    Ok(send_raw(&socket, dst, payload)?)
}

/// Sends a whole IP packet, header included.
///
/// # Errors
/// As of the system calls.
pub fn ip_packet(dst: IpAddr, packet: &[u8]) -> io::Result<()> {
    raw(dst, SockProtocol::Raw, packet)
}

/// Sends a whole Ethernet frame out of an interface.
///
/// # Errors
/// As of the system calls.
pub fn frame(interface: &str, bytes: &[u8]) -> io::Result<()> {
    let index = nix::net::if_::if_nametoindex(interface)?;
    let socket = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    send_frame(&socket, index, bytes)
}

#[expect(
    unsafe_code,
    reason = "nix has no way to make a link-layer address for sendto"
)]
pub(crate) fn send_frame(socket: &OwnedFd, index: u32, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: sockaddr_ll is plain integers, for which zero is a value.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_ifindex = i32::try_from(index).map_err(io::Error::other)?;
    to.sll_halen = 6;
    to.sll_addr[..6].copy_from_slice(&bytes[..6]);
    // SAFETY: the buffer and the address live through the call, with the lengths that are passed.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            0,
            (&raw const to).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A UDP datagram in an IPv4 or IPv6 packet with these IPv6 extension headers (protocol number,
/// body of 8n-2 bytes that follows next-header and length) in front of it.
pub fn udp_packet(src: SocketAddr, dst: SocketAddr, extensions: &[(u8, &[u8])]) -> Vec<u8> {
    let mut udp = Vec::new();
    udp.extend(src.port().to_be_bytes());
    udp.extend(dst.port().to_be_bytes());
    udp.extend(length16(8 + PAYLOAD.len()));
    udp.extend([0, 0]);
    udp.extend(PAYLOAD);
    let sum = checksum(&[&pseudo(src.ip(), dst.ip(), 17, udp.len()), &udp]);
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    match (src.ip(), dst.ip()) {
        (IpAddr::V4(s), IpAddr::V4(d)) => {
            let mut packet = vec![0x45, 0];
            packet.extend(length16(20 + udp.len()));
            packet.extend([0, 1, 0, 0, 64, 17, 0, 0]);
            packet.extend(s.octets());
            packet.extend(d.octets());
            let sum = checksum(&[&packet]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
            packet.extend(udp);
            packet
        }
        (s, d) => {
            let mut body = Vec::new();
            for (i, (_, content)) in extensions.iter().enumerate() {
                body.push(extensions.get(i + 1).map_or(17, |next| next.0));
                body.push(u8::try_from((content.len() + 2) / 8 - 1).unwrap_or(0));
                body.extend(*content);
            }
            body.extend(udp);
            let mut packet = vec![0x60, 0, 0, 0];
            packet.extend(length16(body.len()));
            packet.extend([extensions.first().map_or(17, |e| e.0), 64]);
            packet.extend(octets(s));
            packet.extend(octets(d));
            packet.extend(body);
            packet
        }
    }
}

/// A frame with VLAN tags (outermost first) around a packet.
pub fn ethernet(
    dst: [u8; 6],
    src: [u8; 6],
    vlans: &[u16],
    ethertype: u16,
    packet: &[u8],
) -> Vec<u8> {
    let mut frame = Vec::new();
    frame.extend(dst);
    frame.extend(src);
    for vlan in vlans {
        frame.extend([0x81, 0x00]);
        frame.extend(vlan.to_be_bytes());
    }
    frame.extend(ethertype.to_be_bytes());
    frame.extend(packet);
    frame
}

/// A receive timeout that stands for "never" in a test.
///
/// # Errors
/// As of the system call.
pub fn patient(socket: &UdpSocket) -> io::Result<()> {
    socket.set_read_timeout(Some(Duration::from_secs(20)))
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

fn length16(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes()
}

/// The pseudo header of TCP, UDP and ICMPv6 checksums.
fn pseudo(src: IpAddr, dst: IpAddr, protocol: u8, length: usize) -> Vec<u8> {
    let mut header = octets(src);
    header.extend(octets(dst));
    header.extend([0, protocol]);
    header.extend(length16(length));
    header
}

/// The Internet checksum over parts of even length (the last may be odd).
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for pair in parts.iter().flat_map(|p| p.chunks(2)) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
