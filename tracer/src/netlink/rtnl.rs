//! rtnetlink: links, addresses and routes of fwtrace's own network namespaces.
//!
//! Message layouts: include/uapi/linux/{rtnetlink,if_link,if_addr,veth}.h, v6.18. All integers are in host order, addresses in network order.

use std::{
    net::IpAddr,
    os::fd::{AsRawFd, BorrowedFd},
};

use thiserror::Error;

use super::{
    attr::{AttrError, Writer},
    socket::{Protocol, Socket, SocketError, flags, message},
};

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;

const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_INET_CONF: u16 = 1;
/// `IPV4_DEVCONF_FORWARDING`.
const IPV4_FORWARDING: u16 = 1;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
const IFF_UP: u32 = 1;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// No duplicate address detection: the address can be used at once.
const IFA_F_NODAD: u8 = 2;

const RTA_DST: u16 = 1;
const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Why a link, an address or a route could not be had.
#[derive(Debug, Error)]
pub enum RtnlError {
    /// The kernel refused it.
    #[error("{what}: {source}")]
    Refused {
        /// What was tried, in words.
        what: String,
        /// The kernel's answer.
        source: SocketError,
    },
    /// The socket could not be opened.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// A message could not be built.
    #[error(transparent)]
    Attr(#[from] AttrError),
}

/// Sets up links in one network namespace.
#[derive(Debug)]
pub struct Rtnl {
    socket: Socket,
}

impl Rtnl {
    /// For the calling thread's network namespace.
    pub fn open() -> Result<Self, RtnlError> {
        Ok(Self {
            socket: Socket::open(Protocol::Route, &[])?,
        })
    }

    /// For the network namespace that `netns` refers to.
    pub fn open_in(netns: BorrowedFd<'_>) -> Result<Self, RtnlError> {
        Ok(Self {
            socket: Socket::open_in(netns, Protocol::Route, &[])?,
        })
    }

    /// Index of the link of this name.
    pub fn index(&mut self, link: &str) -> Result<u32, RtnlError> {
        let body = Writer::new()
            .raw(&ifinfomsg(0, 0))
            .str(IFLA_IFNAME, link)
            .finish()?;
        let request = message(
            RTM_GETLINK,
            flags::REQUEST | flags::ACK,
            self.socket.next_seq(),
            &body,
        );
        let mut index = None;
        self.socket
            .query(&request, |answer| {
                // ifinfomsg: family, padding, type (u16), index (i32, never negative), ...
                if let Some(bytes) = answer.payload.get(4..).and_then(<[u8]>::first_chunk) {
                    index = Some(u32::from_ne_bytes(*bytes));
                }
            })
            .map_err(|source| RtnlError::Refused {
                what: format!("link {link}"),
                source,
            })?;
        index.ok_or_else(|| RtnlError::Refused {
            what: format!("link {link}"),
            source: SocketError::Timeout,
        })
    }

    /// `ip link set LINK up`
    pub fn up(&mut self, link: &str) -> Result<(), RtnlError> {
        self.request(RTM_SETLINK, 0, format!("set {link} up"), |w| {
            w.raw(&ifinfomsg(0, IFF_UP)).str(IFLA_IFNAME, link);
        })
    }

    /// `ip link add LINK type veth peer name PEER`, the peer in another namespace if one is given.
    pub fn add_veth(
        &mut self,
        link: &str,
        peer: &str,
        peer_netns: Option<BorrowedFd<'_>>,
    ) -> Result<(), RtnlError> {
        let what = format!("add veth {link} with peer {peer}");
        self.request(RTM_NEWLINK, flags::CREATE | flags::EXCL, what, |w| {
            w.raw(&ifinfomsg(0, 0))
                .str(IFLA_IFNAME, link)
                .nest(IFLA_LINKINFO, |w| {
                    w.str(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, |w| {
                        w.nest(VETH_INFO_PEER, |w| {
                            w.raw(&ifinfomsg(0, 0)).str(IFLA_IFNAME, peer);
                            if let Some(netns) = peer_netns {
                                w.bytes(IFLA_NET_NS_FD, &netns.as_raw_fd().to_ne_bytes());
                            }
                        });
                    });
                });
        })
    }

    /// `ip link add LINK type bridge`
    pub fn add_bridge(&mut self, link: &str) -> Result<(), RtnlError> {
        self.request(
            RTM_NEWLINK,
            flags::CREATE | flags::EXCL,
            format!("add bridge {link}"),
            |w| {
                w.raw(&ifinfomsg(0, 0))
                    .str(IFLA_IFNAME, link)
                    .nest(IFLA_LINKINFO, |w| {
                        w.str(IFLA_INFO_KIND, "bridge");
                    });
            },
        )
    }

    /// `ip link set LINK master BRIDGE`
    pub fn set_master(&mut self, link: &str, bridge: &str) -> Result<(), RtnlError> {
        let master = self.index(bridge)?;
        self.request(RTM_SETLINK, 0, format!("put {link} into {bridge}"), |w| {
            w.raw(&ifinfomsg(0, 0))
                .str(IFLA_IFNAME, link)
                .u32(IFLA_MASTER, master);
        })
    }

    /// `ip link set LINK name NAME`
    pub fn rename(&mut self, link: &str, name: &str) -> Result<(), RtnlError> {
        let index = self.index(link)?;
        self.request(RTM_SETLINK, 0, format!("rename {link} to {name}"), |w| {
            w.raw(&ifinfomsg(index, 0)).str(IFLA_IFNAME, name);
        })
    }

    /// `sysctl net.ipv4.conf.LINK.forwarding=1`, without needing `/proc`.
    pub fn forward_ipv4(&mut self, link: &str) -> Result<(), RtnlError> {
        self.request(
            RTM_SETLINK,
            0,
            format!("forward what comes in by {link}"),
            |w| {
                w.raw(&ifinfomsg(0, 0))
                    .str(IFLA_IFNAME, link)
                    .nest(IFLA_AF_SPEC, |w| {
                        w.nest(u16::from(AF_INET), |w| {
                            w.nest(IFLA_INET_CONF, |w| {
                                w.u32(IPV4_FORWARDING, 1);
                            });
                        });
                    });
            },
        )
    }

    /// `ip link set LINK addrgenmode none`: no IPv6 link-local address, hence no IPv6 traffic by itself. Before the link is up.
    pub fn no_link_local(&mut self, link: &str) -> Result<(), RtnlError> {
        let what = format!("keep {link} without a link-local address");
        self.request(RTM_SETLINK, 0, what, |w| {
            w.raw(&ifinfomsg(0, 0))
                .str(IFLA_IFNAME, link)
                .nest(IFLA_AF_SPEC, |w| {
                    w.nest(u16::from(AF_INET6), |w| {
                        w.u8(IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE);
                    });
                });
        })
    }

    /// `ip address add ADDRESS/PREFIX dev LINK`, IPv6 with `nodad`.
    pub fn add_address(
        &mut self,
        link: &str,
        address: IpAddr,
        prefix: u8,
    ) -> Result<(), RtnlError> {
        let index = self.index(link)?;
        let (family, bytes) = raw_address(address);
        let address_flags = if family == AF_INET6 { IFA_F_NODAD } else { 0 };
        let what = format!("add address {address}/{prefix} to {link}");
        self.request(RTM_NEWADDR, flags::CREATE | flags::EXCL, what, |w| {
            let mut header = [family, prefix, address_flags, 0, 0, 0, 0, 0];
            header[4..].copy_from_slice(&index.to_ne_bytes());
            w.raw(&header)
                .bytes(IFA_LOCAL, &bytes)
                .bytes(IFA_ADDRESS, &bytes);
        })
    }

    /// `ip route add default via GATEWAY`
    pub fn add_default_route(&mut self, gateway: IpAddr) -> Result<(), RtnlError> {
        let any = match gateway {
            IpAddr::V4(_) => IpAddr::from([0; 4]),
            IpAddr::V6(_) => IpAddr::from([0; 16]),
        };
        self.add_route(any, 0, gateway)
    }

    /// `ip route add NETWORK/PREFIX via GATEWAY`, both of one family.
    pub fn add_route(
        &mut self,
        network: IpAddr,
        prefix: u8,
        gateway: IpAddr,
    ) -> Result<(), RtnlError> {
        let (family, destination) = raw_address(network);
        let (_, gateway_bytes) = raw_address(gateway);
        let what = format!("add route {network}/{prefix} via {gateway}");
        self.request(RTM_NEWROUTE, flags::CREATE | flags::EXCL, what, |w| {
            w.raw(&[
                family,
                prefix,
                0,
                0,
                RT_TABLE_MAIN,
                RTPROT_STATIC,
                0,
                RTN_UNICAST,
                0,
                0,
                0,
                0,
            ]);
            if prefix > 0 {
                w.bytes(RTA_DST, &destination);
            }
            w.bytes(RTA_GATEWAY, &gateway_bytes);
        })
    }

    fn request(
        &mut self,
        kind: u16,
        extra: u16,
        what: String,
        fill: impl FnOnce(&mut Writer),
    ) -> Result<(), RtnlError> {
        let mut writer = Writer::new();
        fill(&mut writer);
        let body = writer.finish()?;
        let request = message(
            kind,
            flags::REQUEST | flags::ACK | extra,
            self.socket.next_seq(),
            &body,
        );
        self.socket
            .request_ack(&request)
            .map_err(|source| RtnlError::Refused { what, source })
    }
}

/// `struct ifinfomsg`: family and type unspecified, the index (0: by name), flags, and which of the flags to change: those that are set.
fn ifinfomsg(index: u32, link_flags: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&link_flags.to_ne_bytes());
    header[12..].copy_from_slice(&link_flags.to_ne_bytes());
    header
}

/// Address family and bytes in network order.
fn raw_address(address: IpAddr) -> (u8, Vec<u8>) {
    match address {
        IpAddr::V4(v4) => (AF_INET, v4.octets().to_vec()),
        IpAddr::V6(v6) => (AF_INET6, v6.octets().to_vec()),
    }
}
