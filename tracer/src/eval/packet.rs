//! Everything that is known about a packet at a hook.

use super::clock::Clock;

/// A datum that may not be there, or may not be known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Fact<T> {
    /// It is this.
    Known(T),
    /// It is known not to be there: no outgoing interface at input, no socket.
    Absent,
    /// Nobody said.
    #[default]
    Unknown,
}

impl<T> Fact<T> {
    /// The datum, if it is known and there.
    pub fn known(self) -> Option<T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Absent | Self::Unknown => None,
        }
    }

    /// Changes the datum.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Fact<U> {
        match self {
            Self::Known(value) => Fact::Known(f(value)),
            Self::Absent => Fact::Absent,
            Self::Unknown => Fact::Unknown,
        }
    }
}

/// A network device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device<'a> {
    /// Its index.
    pub index: u32,
    /// Its name; empty if not known.
    pub name: &'a str,
}

/// A VLAN tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vlan {
    /// EtherType, host order: 0x8100 or 0x88a8.
    pub proto: u16,
    /// Priority, drop eligibility, VLAN number; host order.
    pub tci: u16,
}

/// When the packet's bytes and marks were taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Moment {
    /// Before the first chain of the hook.
    #[default]
    Entry,
    /// When the hook dropped it: what its rules had rewritten until then is in them.
    Drop,
}

/// `struct nf_conntrack_tuple`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Source address; IPv4 in the first four bytes.
    pub src: [u8; 16],
    /// Destination address.
    pub dst: [u8; 16],
    /// Source port or identifier, network order.
    pub sport: [u8; 2],
    /// Destination port, or type and code, network order.
    pub dport: [u8; 2],
    /// `NFPROTO_IPV4` 2 or `NFPROTO_IPV6` 10.
    pub l3proto: u8,
    /// IP protocol number.
    pub l4proto: u8,
}

/// The packet's connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Connection {
    /// `enum ip_conntrack_info`: 0 established, 1 related, 2 new, 3 established reply, 4 related reply.
    pub info: u8,
    /// `IPS_*` bits.
    pub status: u32,
    /// `nf_conn.mark`.
    pub mark: u32,
    /// `nf_conn.zone.id`.
    pub zone: u16,
    /// The direction that opened it.
    pub original: Tuple,
    /// The other.
    pub reply: Tuple,
    /// `nf_conn.proto.tcp.state`, of TCP.
    pub tcp_state: Option<u8>,
}

impl Connection {
    /// `IPS_EXPECTED`.
    pub const EXPECTED: u32 = 1;
    /// `IPS_SEEN_REPLY`.
    pub const SEEN_REPLY: u32 = 1 << 1;
    /// `IPS_CONFIRMED`.
    pub const CONFIRMED: u32 = 1 << 3;
    /// `IPS_SRC_NAT`.
    pub const SRC_NAT: u32 = 1 << 4;
    /// `IPS_DST_NAT`.
    pub const DST_NAT: u32 = 1 << 5;
    /// `IPS_SRC_NAT_DONE`.
    pub const SRC_NAT_DONE: u32 = 1 << 7;
    /// `IPS_DST_NAT_DONE`.
    pub const DST_NAT_DONE: u32 = 1 << 8;

    /// Whether the packet goes in the reply direction (`CTINFO2DIR`).
    pub fn is_reply(&self) -> bool {
        self.info >= 3
    }
}

/// What `skb->_nfct` says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Tracking {
    /// No connection, and not untracked: invalid, or tracking has not looked at it.
    None,
    /// `notrack`.
    Untracked,
    /// This connection.
    Connection(Connection),
    /// Nobody said.
    #[default]
    Unknown,
}

/// A packet at a hook.
#[derive(Debug, Clone, Copy, Default)]
pub struct Packet<'a> {
    /// The captured bytes: `l2_len` bytes of link-layer header, then the network header. May be cut short.
    pub bytes: &'a [u8],
    /// Length of the link-layer header in `bytes`; 0 if it was not captured or there is none.
    pub l2_len: usize,
    /// Bytes from the network header to the packet's end.
    pub len: u32,
    /// `NFPROTO_*` of the hook: 2 IPv4, 3 ARP, 5 netdev, 7 bridge, 10 IPv6; of inet ingress 1.
    pub pf: u8,
    /// Hook number within `pf`.
    pub hook: u8,
    /// EtherType (`skb->protocol`), host order.
    pub protocol: u16,
    /// Incoming device, as the hook has it.
    pub iif: Fact<Device<'a>>,
    /// Outgoing device, as the hook has it.
    pub oif: Fact<Device<'a>>,
    /// Incoming port of a bridge, of packets that the bridge hands to IP.
    pub physin: Fact<Device<'a>>,
    /// Outgoing port of a bridge, likewise.
    pub physout: Fact<Device<'a>>,
    /// `skb->mark`.
    pub mark: Fact<u32>,
    /// `skb->priority`.
    pub priority: Fact<u32>,
    /// `skb->pkt_type`.
    pub pkttype: Fact<u8>,
    /// `skb->secmark`.
    pub secmark: Fact<u32>,
    /// The tag in the packet's metadata, outside of `bytes`.
    pub vlan: Fact<Vlan>,
    /// Class of the sending socket's cgroup (`sock_cgroup_classid()`).
    pub cgroup: Fact<u32>,
    /// User that owns the socket, if there is one with a file.
    pub uid: Fact<u32>,
    /// Its group.
    pub gid: Fact<u32>,
    /// The connection.
    pub tracking: Tracking,
    /// When all this was taken.
    pub moment: Moment,
    /// When the hook's rules ran, if known.
    pub clock: Option<Clock>,
}
