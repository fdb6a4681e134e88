//! Three namespaces in a row: A -- R -- B. The firewall is R's.
//!
//! Neighbours are permanent and nobody solicits, so that the only packets are the test's.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};

use crate::netns::Netns;
use crate::{traffic, wait_until};

/// What R is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A router: A and B in networks of their own, `r0` and `r1`.
    Routed,
    /// A bridge: A and B in one network, ports `r0` and `r1` of `br0`.
    Bridged,
}

/// One of the three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Left.
    A,
    /// The middle, with the firewall.
    R,
    /// Right.
    B,
}

/// The topology. Dropping it removes everything.
#[derive(Debug)]
pub struct Net {
    kind: Kind,
    /// Left: interface `a0`.
    pub a: Netns,
    /// The middle: `r0` and `r1`, and `br0` if it is a bridge.
    pub r: Netns,
    /// Right: interface `b0`.
    pub b: Netns,
}

/// A permanent neighbour, in both families.
fn neighbour(dev: &str, v4: &str, v6: &str, mac: &str) -> String {
    format!(
        "neigh replace {v4} lladdr {mac} dev {dev} nud permanent\n\
         neigh replace {v6} lladdr {mac} dev {dev} nud permanent\n"
    )
}

/// An address in each family on an interface that is then up.
fn address(dev: &str, v4: &str, v6: &str) -> String {
    format!("addr add {v4}/24 dev {dev}\naddr add {v6}/64 dev {dev} nodad\nlink set {dev} up\n")
}

/// MAC addresses of the interfaces.
const A0: &str = "02:00:00:00:0a:00";
const R0: &str = "02:00:00:00:0b:00";
const R1: &str = "02:00:00:00:0b:01";
const BR0: &str = "02:00:00:00:0b:02";
const B0: &str = "02:00:00:00:0c:00";

impl Net {
    /// A -- router -- B.
    ///
    /// # Errors
    /// A command fails or no packet comes through.
    pub fn routed() -> Result<Self> {
        Self::new(Kind::Routed)
    }

    /// A -- bridge -- B.
    ///
    /// # Errors
    /// A command fails or no packet comes through.
    pub fn bridged() -> Result<Self> {
        Self::new(Kind::Bridged)
    }

    /// Either.
    ///
    /// # Errors
    /// A command fails or no packet comes through.
    pub fn new(kind: Kind) -> Result<Self> {
        let [a, r, b] = Netns::create()?;
        let net = Self { kind, a, r, b };
        for ns in [&net.a, &net.r, &net.b] {
            ns.run(|| -> std::io::Result<()> {
                let conf = std::path::Path::new("/proc/sys/net/ipv6/conf/default");
                std::fs::write(conf.join("accept_dad"), "0")?;
                std::fs::write(conf.join("router_solicitations"), "0")?;
                std::fs::write(conf.join("addr_gen_mode"), "1")
            })?;
        }
        let mut middle = format!(
            "link set lo up\n\
             link add r0 address {R0} type veth peer name a0 address {A0} netns {}\n\
             link add r1 address {R1} type veth peer name b0 address {B0} netns {}\n",
            net.a.name(),
            net.b.name()
        );
        let (mut left, mut right) = ("link set lo up\n".to_owned(), "link set lo up\n".to_owned());
        match kind {
            Kind::Routed => {
                net.r.sysctl("net/ipv4/ip_forward", "1")?;
                net.r.sysctl("net/ipv6/conf/all/forwarding", "1")?;
                middle += &address("r0", "10.1.0.2", "fd01::2");
                middle += &address("r1", "10.2.0.2", "fd02::2");
                middle += &neighbour("r0", "10.1.0.1", "fd01::1", A0);
                middle += &neighbour("r1", "10.2.0.1", "fd02::1", B0);
                left += &address("a0", "10.1.0.1", "fd01::1");
                left += &neighbour("a0", "10.1.0.2", "fd01::2", R0);
                left += "route add default via 10.1.0.2\nroute add default via fd01::2\n";
                right += &address("b0", "10.2.0.1", "fd02::1");
                right += &neighbour("b0", "10.2.0.2", "fd02::2", R1);
                right += "route add default via 10.2.0.2\nroute add default via fd02::2\n";
            }
            Kind::Bridged => {
                middle += &format!(
                    "link add br0 address {BR0} type bridge forward_delay 0 mcast_snooping 0\n\
                     link set r0 master br0\nlink set r1 master br0\n\
                     link set r0 up\nlink set r1 up\n"
                );
                middle += &address("br0", "10.1.0.2", "fd01::2");
                middle += &neighbour("br0", "10.1.0.1", "fd01::1", A0);
                middle += &neighbour("br0", "10.1.0.9", "fd01::9", B0);
                left += &address("a0", "10.1.0.1", "fd01::1");
                left += &neighbour("a0", "10.1.0.2", "fd01::2", BR0);
                left += &neighbour("a0", "10.1.0.9", "fd01::9", B0);
                right += &address("b0", "10.1.0.9", "fd01::9");
                right += &neighbour("b0", "10.1.0.2", "fd01::2", BR0);
                right += &neighbour("b0", "10.1.0.1", "fd01::1", A0);
            }
        }
        net.r.ip(&middle)?;
        net.a.ip(&left)?;
        net.b.ip(&right)?;
        // Interfaces come up behind the command's back: packets tell when.
        for v6 in [false, true] {
            for (from, to) in [(Place::A, Place::B), (Place::R, Place::B)] {
                let target = net.address(to, from, v6);
                ensure!(
                    wait_until(|| net.ns(from).run(|| traffic::ping(target))),
                    "no answer from {target} in a fresh {kind:?} net"
                );
            }
        }
        Ok(net)
    }

    /// What R is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The namespace.
    pub fn ns(&self, place: Place) -> &Netns {
        match place {
            Place::A => &self.a,
            Place::R => &self.r,
            Place::B => &self.b,
        }
    }

    /// The address that `place` uses towards `peer`.
    pub fn address(&self, place: Place, peer: Place, v6: bool) -> IpAddr {
        let text = match (self.kind, place, peer, v6) {
            (_, Place::A, _, false) => "10.1.0.1",
            (_, Place::A, _, true) => "fd01::1",
            (Kind::Routed, Place::R, Place::B, false) => "10.2.0.2",
            (Kind::Routed, Place::R, Place::B, true) => "fd02::2",
            (_, Place::R, _, false) => "10.1.0.2",
            (_, Place::R, _, true) => "fd01::2",
            (Kind::Routed, Place::B, _, false) => "10.2.0.1",
            (Kind::Routed, Place::B, _, true) => "fd02::1",
            (Kind::Bridged, Place::B, _, false) => "10.1.0.9",
            (Kind::Bridged, Place::B, _, true) => "fd01::9",
        };
        text.parse().unwrap_or(IpAddr::from([0, 0, 0, 0]))
    }

    /// Source and destination of a packet from one to the other.
    pub fn path(
        &self,
        from: Place,
        to: Place,
        v6: bool,
        ports: (u16, u16),
    ) -> (SocketAddr, SocketAddr) {
        (
            SocketAddr::new(self.address(from, to, v6), ports.0),
            SocketAddr::new(self.address(to, from, v6), ports.1),
        )
    }
}
