//! The filter on events: what the kernel side decides live, for what was recorded.

use std::net::IpAddr;

use super::plan::{Filter, Reasons, Side};
use super::values::{mask4, mask6};
use super::{Ports, Prefix};
use crate::event::{DropEvent, PacketEvent};
use crate::packet::{Family, Packet};

impl Filter {
    /// Whether a recorded drop meets the conditions. Without `--reason`, all reasons do that were recorded.
    #[must_use]
    pub fn selects_drop(&self, drop: &DropEvent) -> bool {
        let reason = match &self.reasons {
            Reasons::Netfilter | Reasons::All => true,
            Reasons::Names(names) => drop
                .reason
                .as_deref()
                .is_some_and(|reason| names.iter().any(|name| name == reason)),
        };
        let ifaces = [drop.iif.as_deref(), drop.oif.as_deref()];
        reason && self.selects_bytes(&drop.packet, &ifaces) && self.shows(drop)
    }

    /// Whether a packet without attribution does. Nothing is known of it that `--hook`, `--table`, `--chain` and `--reason` ask for.
    #[must_use]
    pub fn selects_packet(&self, packet: &PacketEvent) -> bool {
        let asks_for_drops = !self.hooks.is_empty()
            || !self.tables.is_empty()
            || !self.chains.is_empty()
            || matches!(self.reasons, Reasons::Names(_));
        !asks_for_drops && self.selects_bytes(&packet.packet, &[packet.interface.as_deref()])
    }

    /// The conditions on the packet itself: version, protocol, interfaces, addresses, ports.
    pub(crate) fn selects_bytes(&self, packet: &Packet, ifaces: &[Option<&str>]) -> bool {
        let version = match packet.family {
            Family::Ipv4 => Some(4),
            Family::Ipv6 => Some(6),
            Family::Arp | Family::Other => None,
        };
        if self.ip_version.is_some() && self.ip_version != version
            || self.proto.is_some() && (version.is_none() || self.proto != packet.proto)
        {
            return false;
        }
        let iface = |wanted: &String| ifaces.iter().flatten().any(|iface| *iface == wanted);
        if !self.ifaces.is_empty() && !self.ifaces.iter().any(iface) {
            return false;
        }
        let ends = version.and(packet.src).zip(packet.dst);
        let ports = packet.proto.filter(|proto| proto.has_ports());
        let ports = ports.and(packet.sport).zip(packet.dport);
        [Side::Any, Side::Src, Side::Dst].into_iter().all(|side| {
            let mut prefixes = self.prefixes.iter().filter(|p| p.side == side).peekable();
            let prefix = prefixes.peek().is_none()
                || ends.is_some_and(|ends| {
                    prefixes.any(|p| either(side, ends, |addr| p.prefix.contains(addr)))
                });
            let mut wanted = self.ports.iter().filter(|p| p.side == side).peekable();
            let port = wanted.peek().is_none()
                || ports.is_some_and(|ports| {
                    wanted.any(|p| either(side, ports, |port| p.ports.contains(port)))
                });
            prefix && port
        })
    }
}

/// Asks for the side that is meant, or for both.
fn either<T>(side: Side, (source, destination): (T, T), mut is: impl FnMut(T) -> bool) -> bool {
    match side {
        Side::Src => is(source),
        Side::Dst => is(destination),
        Side::Any => is(source) || is(destination),
    }
}

impl Prefix {
    fn contains(&self, addr: IpAddr) -> bool {
        match (self.addr, addr) {
            (IpAddr::V4(own), IpAddr::V4(addr)) => {
                addr.to_bits() & mask4(self.len) == own.to_bits()
            }
            (IpAddr::V6(own), IpAddr::V6(addr)) => {
                addr.to_bits() & mask6(self.len) == own.to_bits()
            }
            _ => false,
        }
    }
}

impl Ports {
    fn contains(&self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}
