//! What explains each reason, and where that is read. Everything here runs in the drop's network namespace.
//!
//! Nothing here may have the kernel drop a packet, which would be a drop like any other: a lookup of a route (`RTM_GETROUTE` without
//! `NLM_F_DUMP`) makes one up and frees it as dropped (`inet_rtm_getroute()`, net/ipv4/route.c, v6.18). So routes come from the dump.

use std::{
    fs::File,
    io::Read,
    net::{IpAddr, SocketAddr},
};

use super::{Asked, Key, sockets};
use crate::eval::world::{World, rtn};

/// Lists of /proc are read up to this size; of a longer one nothing is known.
const LONGEST: u64 = 1 << 20;

/// Bits of the TCP flags.
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

const TCP: u8 = 6;
const UDP: u8 = 17;
const UDPLITE: u8 = 136;

/// What explains a reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// `rp_filter` and the route back to the source.
    ReversePath,
    /// The sockets of the destination's port.
    NoSocket,
    /// How much waits in them.
    FullSocket,
    /// Whether packets are forwarded.
    Forwarding,
    /// The route to the destination.
    Route,
    /// The next hop.
    Neighbour,
    /// A sysctl of the interface.
    Setting(&'static Setting),
}

/// A sysctl that has the kernel drop packets.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Setting {
    reason: &'static str,
    /// `ipv4` or `ipv6`.
    family: &'static str,
    name: &'static str,
    /// With this value, in `conf/INTERFACE` and in `conf/all`; else if it is another in one of them.
    zero: bool,
    /// What follows from it.
    words: &'static str,
}

const SETTINGS: &[Setting] = &[
    Setting {
        reason: "IPV6DISABLED",
        family: "ipv6",
        name: "disable_ipv6",
        zero: false,
        words: "IPv6 is switched off",
    },
    Setting {
        reason: "UNICAST_IN_L2_MULTICAST",
        family: "ipv4",
        name: "drop_unicast_in_l2_multicast",
        zero: false,
        words: "it is addressed to one machine in a frame that is addressed to many",
    },
    Setting {
        reason: "IP_LOCALNET",
        family: "ipv4",
        name: "route_localnet",
        zero: true,
        words: "loopback addresses are not taken from outside",
    },
    Setting {
        reason: "IP_LOCAL_SOURCE",
        family: "ipv4",
        name: "accept_local",
        zero: true,
        words: "the source is an address of this machine",
    },
];

/// What explains this drop; `None`: nothing that could be read.
pub(super) fn source(asked: &Asked<'_>) -> Option<Source> {
    Some(match &**asked.reason {
        "IP_RPFILTER" => Source::ReversePath,
        "NO_SOCKET" => Source::NoSocket,
        "SOCKET_RCVBUFF" | "TCP_LISTEN_OVERFLOW" => Source::FullSocket,
        "IP_INADDRERRORS" => Source::Forwarding,
        "IP_INNOROUTES" | "IP_OUTNOROUTES" => Source::Route,
        "NEIGH_FAILED" => Source::Neighbour,
        reason => Source::Setting(SETTINGS.iter().find(|setting| setting.reason == reason)?),
    })
}

impl Source {
    /// Whether it reads routes.
    pub(super) fn reads_routes(self) -> bool {
        matches!(self, Self::ReversePath | Self::Forwarding | Self::Route)
    }

    /// Of the drop what the answer depends on.
    pub(super) fn key(self, asked: &Asked<'_>) -> Key {
        let packet = asked.packet;
        let mut key = Key {
            reason: asked.reason.clone(),
            iif: None,
            oif: None,
            proto: None,
            src: None,
            dst: None,
            dport: None,
            opens: false,
        };
        match self {
            Self::ReversePath => (key.iif, key.src) = (asked.iif.cloned(), packet.src),
            Self::NoSocket | Self::FullSocket => {
                key.proto = packet.proto.map(|proto| proto.0);
                (key.dst, key.dport) = (packet.dst, packet.dport);
                key.opens = opens(asked);
            }
            Self::Forwarding => (key.iif, key.dst) = (asked.iif.cloned(), packet.dst),
            Self::Route => key.dst = packet.dst,
            Self::Neighbour => (key.oif, key.dst) = (asked.oif.cloned(), packet.dst),
            Self::Setting(_) => key.iif = asked.iif.cloned(),
        }
        key
    }

    /// The sentence; `None`: what is there now does not explain the drop, or cannot be read.
    pub(super) fn read(self, asked: &Asked<'_>, world: Option<&World>) -> Option<String> {
        let packet = asked.packet;
        match self {
            Self::ReversePath => reverse_path(asked.iif?, packet.src?, world?),
            Self::NoSocket => {
                let protocol = protocol(asked)?;
                // Whether a connection was there a moment ago, nobody knows now.
                if protocol == "tcp" && !opens(asked) {
                    return None;
                }
                let to = SocketAddr::new(packet.dst?, packet.dport?);
                sockets::none_takes(protocol, to, &listed(protocol, to.ip())?)
            }
            Self::FullSocket => {
                let protocol = protocol(asked)?;
                let to = SocketAddr::new(packet.dst?, packet.dport?);
                let fullest = sockets::fullest(to, &listed(protocol, to.ip())?)?;
                full(protocol, fullest)
            }
            Self::Forwarding => forwarding(asked.iif, packet.dst?, world?),
            Self::Route => {
                let dst = packet.dst?;
                matches!(route(dst, world?)?, Found::None).then(|| format!("no route to {dst}"))
            }
            Self::Neighbour => neighbour(asked.oif?, packet.dst?),
            Self::Setting(setting) => setting.read(asked.iif?),
        }
    }
}

fn reverse_path(iif: &str, src: IpAddr, world: &World) -> Option<String> {
    let value = |of: &str| number(&format!("ipv4/conf/{of}/rp_filter"));
    // IN_DEV_MAXCONF (include/linux/inetdevice.h, v6.18).
    let effective = value("all")?.max(value(iif)?);
    let because = format!("rp_filter={effective} on {iif}: ");
    match (effective, route(src, world)?) {
        (1 | 2, Found::None) => Some(because + &format!("there is no reverse route to {src}")),
        (1, Found::Through(devices)) if devices.iter().all(|device| *device != iif) => {
            let devices = devices.join(" and ");
            Some(because + &format!("the reverse route to {src} is {devices}"))
        }
        _ => None,
    }
}

fn forwarding(iif: Option<&std::sync::Arc<str>>, dst: IpAddr, world: &World) -> Option<String> {
    // What is this machine's own is not forwarded anyway.
    if matches!(route(dst, world)?, Found::Here) {
        return None;
    }
    let off = |key: String| (number(&key)? == 0).then_some(key);
    let key = match dst {
        IpAddr::V4(_) => {
            // The interface's decides; the other one sets them all.
            let own = off(format!("ipv4/conf/{}/forwarding", iif?))?;
            off("ipv4/ip_forward".to_owned()).unwrap_or(own)
        }
        IpAddr::V6(_) => off("ipv6/conf/all/forwarding".to_owned())?,
    };
    Some(format!(
        "{}=0, and {dst} is not an address of this machine",
        dotted(&key)
    ))
}

/// Of IPv4, where /proc lists them. A packet to a router's neighbour is told in words: which router it was is not asked.
fn neighbour(oif: &str, dst: IpAddr) -> Option<String> {
    let listed = list("arp")?;
    let failed = failed(&listed, oif).any(|neighbour| neighbour == dst);
    failed.then(|| format!("{dst} did not answer on {oif} (ARP)"))
}

/// The neighbours on a device whose link address is not known, of /proc/net/arp (`arp_seq_show()`, net/ipv4/arp.c, v6.18).
fn failed<'a>(listed: &'a str, device: &'a str) -> impl Iterator<Item = IpAddr> + 'a {
    // Address, type, flags, link address, mask, device.
    listed.lines().filter_map(move |line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [address, _, "0x0", _, _, on] = *words.as_slice() else {
            return None;
        };
        address.parse().ok().filter(|_| on == device)
    })
}

fn full(protocol: &str, socket: sockets::Socket) -> Option<String> {
    let (waiting, port) = (socket.waiting, socket.local.port());
    match (waiting, socket.state) {
        (0, _) => None,
        (_, sockets::LISTEN) if protocol == "tcp" => Some(format!(
            "{waiting} connections wait to be accepted on tcp port {port}"
        )),
        _ => Some(format!(
            "the receive buffer of the socket on {protocol} port {port} is full: {waiting} bytes wait to be read"
        )),
    }
}

impl Setting {
    fn read(&self, iif: &str) -> Option<String> {
        let key = |of: &str| format!("{}/conf/{of}/{}", self.family, self.name);
        let (own, all) = (number(&key(iif))?, number(&key("all"))?);
        let of = match (self.zero, own, all) {
            (true, 0, 0) => iif,
            (false, 1.., _) => iif,
            (false, 0, 1..) => "all",
            _ => return None,
        };
        let value = if of == iif { own } else { all };
        Some(format!("{}={value}: {}", dotted(&key(of)), self.words))
    }
}

/// Whether it is a SYN.
fn opens(asked: &Asked<'_>) -> bool {
    let flags = asked.packet.flags;
    flags.is_some_and(|flags| flags.0 & (SYN | ACK) == SYN)
}

/// The transport's name in /proc/net.
fn protocol(asked: &Asked<'_>) -> Option<&'static str> {
    match asked.packet.proto?.0 {
        TCP => Some("tcp"),
        UDP => Some("udp"),
        UDPLITE => Some("udplite"),
        _ => None,
    }
}

/// The sockets that can take what comes to an address of this family.
fn listed(protocol: &str, address: IpAddr) -> Option<Vec<sockets::Socket>> {
    let mut all = Vec::new();
    for name in [format!("{protocol}6"), protocol.to_owned()] {
        if address.is_ipv6() && name == protocol {
            continue;
        }
        let text = match list(&name) {
            Some(text) => text,
            // Without IPv6 there is no such list.
            None if name.ends_with('6') && address.is_ipv4() => continue,
            None => return None,
        };
        all.extend(sockets::parse(&text));
    }
    Some(all)
}

/// A list of /proc/net; `None`: it is not there or too long.
fn list(name: &str) -> Option<String> {
    let file = File::open(format!("/proc/thread-self/net/{name}")).ok()?;
    let mut text = String::new();
    file.take(LONGEST + 1).read_to_string(&mut text).ok()?;
    (text.len() as u64 <= LONGEST).then_some(text)
}

/// What routing makes of an address.
enum Found<'a> {
    /// It is this machine's own.
    Here,
    /// Out through one of these.
    Through(Vec<&'a str>),
    None,
}

/// `None`: it is not known, or not for this alone to say (policy rules).
fn route(dst: IpAddr, world: &World) -> Option<Found<'_>> {
    let hit = match dst {
        IpAddr::V4(_) => world.route4(dst),
        IpAddr::V6(_) => world.route6(dst, None, false),
    };
    let Some(hit) = hit.ok()? else {
        return Some(Found::None);
    };
    match hit.route.kind {
        rtn::LOCAL => Some(Found::Here),
        rtn::UNICAST => {
            let name = |index: &u32| Some(world.link(*index).ok()?.name.as_str());
            let devices: Option<Vec<&str>> = hit.route.oifs.iter().map(name).collect();
            Some(Found::Through(devices.filter(|all| !all.is_empty())?))
        }
        _ => None,
    }
}

/// A sysctl below net.
fn number(key: &str) -> Option<u32> {
    let text = std::fs::read_to_string(format!("/proc/sys/net/{key}")).ok()?;
    text.trim().parse().ok()
}

/// As sysctl(8) writes it: dots and slashes change places.
fn dotted(key: &str) -> String {
    let swap = |c| match c {
        '/' => '.',
        '.' => '/',
        c => c,
    };
    format!("net.{}", key.chars().map(swap).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_as_sysctl_writes_them() {
        assert_eq!(dotted("ipv4/ip_forward"), "net.ipv4.ip_forward");
        assert_eq!(
            dotted("ipv4/conf/eth0.100/rp_filter"),
            "net.ipv4.conf.eth0/100.rp_filter"
        );
    }

    #[test]
    fn neighbours_without_link_address_have_failed() {
        let listed = "IP address       HW type     Flags       HW address            Mask     Device\n\
                      10.2.0.1         0x1         0x2         02:00:00:00:0c:00     *        r1\n\
                      10.2.0.99        0x1         0x0         00:00:00:00:00:00     *        r1\n\
                      10.1.0.98        0x1         0x0         00:00:00:00:00:00     *        r0\n\
                      half a line\n";
        let found: Vec<IpAddr> = failed(listed, "r1").collect();
        assert_eq!(found, [IpAddr::from([10, 2, 0, 99])]);
    }

    #[test]
    fn what_waits_is_told_and_nothing_is_not() {
        let socket = |state, waiting| sockets::Socket {
            local: "10.0.0.1:53".parse().unwrap(),
            remote: "0.0.0.0:0".parse().unwrap(),
            state,
            waiting,
        };
        assert_eq!(full("udp", socket(7, 0)), None);
        assert_eq!(
            full("udp", socket(7, 2304)).unwrap(),
            "the receive buffer of the socket on udp port 53 is full: 2304 bytes wait to be read"
        );
        assert_eq!(
            full("tcp", socket(sockets::LISTEN, 2)).unwrap(),
            "2 connections wait to be accepted on tcp port 53"
        );
    }
}
