//! The demo's network: a client, a firewall and a server.
//!
//! ```text
//! client eth0 ------- lan0 firewall wan0 ------- eth0 server
//! 192.0.2.10    192.0.2.1          198.51.100.1   198.51.100.10
//! ```
//!
//! The namespaces have no name and no process: nothing but the descriptors held here keeps them, so they are gone with fwtrace, however it ends.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::Path,
    thread,
};

use nix::sched::{CloneFlags, unshare};

use super::Error;
use crate::{
    netlink::{
        nft_write::Batch,
        rtnl::{Rtnl, RtnlError},
    },
    netns::NetNs,
};

/// The client's address (TEST-NET-1, RFC 5737).
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
/// The firewall's address on the client's side.
pub const FIREWALL: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The firewall's address on the server's side.
pub const FIREWALL_WAN: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The server's address (TEST-NET-2).
pub const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
const PREFIX: u8 = 24;

/// A host of the demo's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host {
    /// On the near side.
    Client,
    /// In the middle: its ruleset is the scene's.
    Firewall,
    /// On the far side.
    Server,
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Client => "client",
            Self::Firewall => "firewall",
            Self::Server => "server",
        })
    }
}

/// The three hosts, connected.
#[derive(Debug)]
pub struct Lab {
    client: NetNs,
    firewall: NetNs,
    server: NetNs,
}

impl Lab {
    /// Makes the namespaces and the links; there is no firewall yet. Needs CAP_SYS_ADMIN and CAP_NET_ADMIN.
    pub fn new() -> Result<Self, Error> {
        let lab = Self {
            client: new_netns()?,
            firewall: new_netns()?,
            server: new_netns()?,
        };
        let mut firewall = Rtnl::open_in(lab.firewall.as_fd())?;
        firewall.up("lo")?;
        let sides = [
            ("lan0", FIREWALL, &lab.client, CLIENT),
            ("wan0", FIREWALL_WAN, &lab.server, SERVER),
        ];
        for (link, gateway, host, address) in sides {
            firewall.add_veth(link, "eth0", Some(host.as_fd()))?;
            configure(&mut firewall, link, gateway.into())?;
            firewall.forward_ipv4(link)?;
            let mut host = Rtnl::open_in(host.as_fd())?;
            host.up("lo")?;
            configure(&mut host, "eth0", address.into())?;
            host.add_default_route(gateway.into())?;
        }
        Ok(lab)
    }

    /// A host's namespace.
    pub fn netns(&self, host: Host) -> &NetNs {
        match host {
            Host::Client => &self.client,
            Host::Firewall => &self.firewall,
            Host::Server => &self.server,
        }
    }

    /// Gives the firewall a table.
    pub fn load(&self, table: &Batch) -> Result<(), Error> {
        self.firewall.run(|| table.commit())??;
        Ok(())
    }
}

fn configure(rtnl: &mut Rtnl, link: &str, address: IpAddr) -> Result<(), RtnlError> {
    // Or the firewall would also drop the IPv6 chatter of links that come up.
    rtnl.no_link_local(link)?;
    rtnl.add_address(link, address, PREFIX)?;
    rtnl.up(link)
}

/// A new network namespace that lives as long as what is returned.
fn new_netns() -> Result<NetNs, Error> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("new-netns".to_owned())
            .spawn_scoped(scope, || {
                unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| Error::NewNetns(errno.into()))?;
                NetNs::from_path(Path::new("/proc/thread-self/ns/net")).map_err(Error::Netns)
            });
        match thread.map_err(Error::NewNetns)?.join() {
            Ok(made) => made,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
