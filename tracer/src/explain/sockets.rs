//! Sockets as /proc/net lists them, and what they say about a packet that none took.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// `TCP_LISTEN` (include/net/tcp_states.h, v6.18).
pub(super) const LISTEN: u8 = 10;

/// A line of /proc/net/{tcp,udp,udplite} or the same with a 6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Socket {
    /// Address and port that it is bound to.
    pub(super) local: SocketAddr,
    /// What it is connected to; port 0: nothing.
    pub(super) remote: SocketAddr,
    /// `TCP_*`.
    pub(super) state: u8,
    /// Bytes that wait to be read; of a listening socket, connections that wait to be accepted.
    pub(super) waiting: u32,
}

impl Socket {
    /// Whether what comes for `address` can be for it, whoever sends it.
    fn takes(&self, address: IpAddr) -> bool {
        let bound = self.local.ip().to_canonical();
        // One that is bound to [::] takes IPv4 too, unless it is told not to.
        bound == address || bound.is_unspecified() && (address.is_ipv4() || bound.is_ipv6())
    }
}

/// Decodes what /proc says (`tcp4_seq_show()`, `udp4_seq_show()` and theirs of IPv6, v6.18): addresses are words in host order, ports numbers.
/// Lines that are none are left out.
pub(super) fn parse(text: &str) -> Vec<Socket> {
    let line = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let (local, remote) = (address(words.next()?)?, address(words.next()?)?);
        let state = u8::from_str_radix(words.next()?, 16).ok()?;
        let (_, waiting) = words.next()?.split_once(':')?;
        Some(Socket {
            local,
            remote,
            state,
            waiting: u32::from_str_radix(waiting, 16).ok()?,
        })
    };
    text.lines().filter_map(line).collect()
}

fn address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        let digits = address.get(at * 8..at * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    let ip = match address.len() {
        8 => IpAddr::from(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (at, to) in bytes.chunks_exact_mut(4).enumerate() {
                to.copy_from_slice(&word(at)?);
            }
            IpAddr::from(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// Why no socket took a packet to `to`, of the sockets of `protocol` ("udp", "tcp") that there are now; `None`: one would take it.
/// Of TCP only those that listen count.
pub(super) fn none_takes(protocol: &str, to: SocketAddr, sockets: &[Socket]) -> Option<String> {
    let listens = |socket: &&Socket| protocol != "tcp" || socket.state == LISTEN;
    let on_port: Vec<&Socket> = sockets
        .iter()
        .filter(listens)
        .filter(|socket| socket.local.port() == to.port())
        .collect();
    let address = to.ip().to_canonical();
    let there = |socket: &&&Socket| socket.takes(address);
    let other = match on_port.iter().find(there) {
        Some(socket) if socket.remote.port() == 0 => return None,
        Some(socket) => format!(" (a socket there is connected to {})", plain(socket.remote)),
        None => match on_port.first() {
            Some(socket) => format!(" (a socket is bound to {})", plain(socket.local)),
            None => String::new(),
        },
    };
    // Several may be connected; one of them all is no reason.
    if on_port.iter().filter(there).any(|s| s.remote.port() == 0) {
        return None;
    }
    Some(format!(
        "no socket listens on {protocol} port {}{other}",
        to.port()
    ))
}

/// The fullest of the sockets that take what comes to `to`.
pub(super) fn fullest(to: SocketAddr, sockets: &[Socket]) -> Option<Socket> {
    let address = to.ip().to_canonical();
    let takers = sockets
        .iter()
        .filter(|socket| socket.local.port() == to.port() && socket.takes(address));
    takers.copied().max_by_key(|socket| socket.waiting)
}

fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";

    /// A line as a machine of this byte order prints it.
    fn line(local: [u8; 4], port: u16, remote_port: u16, state: u8, waiting: u32) -> String {
        format!(
            "  12: {:08X}:{port:04X} 00000000:{remote_port:04X} {state:02X} 00000000:{waiting:08X} 00:00000000 00000000  0 0 1 2 0 0\n",
            u32::from_ne_bytes(local)
        )
    }

    fn udp(lines: &[String]) -> Vec<Socket> {
        parse(&format!("{HEAD}{}", lines.concat()))
    }

    fn to(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn lines_are_sockets() {
        let found = udp(&[line([127, 0, 0, 1], 53, 0, 7, 0x300)]);
        assert_eq!(
            found,
            [Socket {
                local: to("127.0.0.1:53"),
                remote: to("0.0.0.0:0"),
                state: 7,
                waiting: 0x300
            }]
        );
        let word = |bytes: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(bytes));
        let v6 = [[0xfd, 1, 0, 0], [0; 4], [0; 4], [0, 0, 0, 2]]
            .map(word)
            .concat();
        let none = "0".repeat(32);
        let line = format!("1: {v6}:0050 {none}:0000 0A 00000000:00000002 rest\n");
        let found = parse(&line);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].local, to("[fd01::2]:80"));
        assert_eq!((found[0].state, found[0].waiting), (LISTEN, 2));
        for bad in ["", "1:", "1: 00:0 00:0 0A", "1: 0100007F:0035 00000000 07"] {
            assert_eq!(parse(bad), [], "{bad}");
        }
    }

    #[test]
    fn what_is_bound_elsewhere_is_told() {
        let why = |sockets: &[String]| none_takes("udp", to("10.0.0.1:53"), &udp(sockets));
        assert_eq!(why(&[]).unwrap(), "no socket listens on udp port 53");
        assert_eq!(
            why(&[line([127, 0, 0, 1], 53, 0, 7, 0), line([0; 4], 54, 0, 7, 0)]).unwrap(),
            "no socket listens on udp port 53 (a socket is bound to 127.0.0.1:53)"
        );
        assert_eq!(
            why(&[line([10, 0, 0, 1], 53, 9, 1, 0)]).unwrap(),
            "no socket listens on udp port 53 (a socket there is connected to 0.0.0.0:9)"
        );
        for taker in [[0; 4], [10, 0, 0, 1]] {
            let connected = line([10, 0, 0, 1], 53, 9, 1, 0);
            assert_eq!(why(&[connected, line(taker, 53, 0, 7, 0)]), None);
        }
        // A connection of TCP is nothing that listens.
        let tcp = udp(&[line([10, 0, 0, 1], 53, 9, 1, 0)]);
        assert_eq!(
            none_takes("tcp", to("10.0.0.1:53"), &tcp).unwrap(),
            "no socket listens on tcp port 53"
        );
    }

    #[test]
    fn sockets_of_ipv6_take_ipv4() {
        let any = parse(&format!(
            "1: {0}:0035 {0}:0000 07 00000000:00000005 rest",
            "0".repeat(32)
        ));
        assert_eq!(none_takes("udp", to("10.0.0.1:53"), &any), None);
        assert_eq!(fullest(to("10.0.0.1:53"), &any).unwrap().waiting, 5);
        assert_eq!(fullest(to("10.0.0.1:54"), &any), None);
        // But not the other way round.
        let v4 = udp(&[line([0; 4], 53, 0, 7, 0)]);
        assert!(none_takes("udp", to("[fd01::1]:53"), &v4).is_some());
    }
}
