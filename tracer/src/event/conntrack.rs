//! What conntrack says about a packet.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Conntrack's view of the packet. `mark` and `zone` are absent where there is no connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conntrack {
    /// State, as `ct state` matches it.
    pub state: CtState,
    /// The connection's status bits, by the names of `ct status`.
    pub status: Vec<Arc<str>>,
    /// `ct mark`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<u32>,
    /// `ct zone`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<u16>,
    /// Conntrack's TCP state, as `conntrack -L` prints it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_state: Option<Arc<str>>,
    /// Why conntrack calls the packet invalid, in the kernel's words where it says something; with `--trace` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invalid: Option<Arc<str>>,
    /// Seconds until the connection is forgotten, if nothing more comes. This and what follows is asked of the kernel moments after
    /// the drop: of connections that were there before the packet, and not of each in a flood.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u32>,
    /// The connection's helper.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub helper: Option<Arc<str>>,
    /// The connection's packets and bytes, where the kernel counts them (net.netfilter.nf_conntrack_acct).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counters: Option<ConntrackCounters>,
    /// Bits of `ct label` that are set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<u16>,
    /// The tuples, if they show that addresses or ports were rewritten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nat: Option<Nat>,
}

impl Conntrack {
    /// No connection: `none` (conntrack has not seen the packet), `untracked` or `invalid`.
    pub fn stateless(state: CtState) -> Self {
        Self {
            state,
            status: Vec::new(),
            mark: None,
            zone: None,
            tcp_state: None,
            invalid: None,
            timeout: None,
            helper: None,
            counters: None,
            labels: Vec::new(),
            nat: None,
        }
    }
}

/// What a connection has carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConntrackCounters {
    /// Original direction.
    pub orig: Counted,
    /// Reply direction.
    pub reply: Counted,
}

/// Packets and bytes of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// Packets.
    pub packets: u64,
    /// Bytes, IP headers included.
    pub bytes: u64,
}

/// Conntrack state of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CtState {
    /// First packet of a connection.
    New,
    /// Seen in both directions.
    Established,
    /// Expected by another connection, or an ICMP error about one.
    Related,
    /// Conntrack could not place it.
    Invalid,
    /// Told not to track it.
    Untracked,
    /// Conntrack has not seen it: not in use, or the drop came first.
    None,
}

impl CtState {
    /// The word that `ct state` uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Established => "established",
            Self::Related => "related",
            Self::Invalid => "invalid",
            Self::Untracked => "untracked",
            Self::None => "none",
        }
    }
}

/// The two tuples of a connection with address translation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nat {
    /// Original direction: as the sender wrote it.
    pub orig: Tuple,
    /// Reply direction: what an answer looks like here.
    pub reply: Tuple,
}

/// One direction of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tuple {
    /// Source address.
    pub src: std::net::IpAddr,
    /// Source port; protocols without ports have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sport: Option<u16>,
    /// Destination address.
    pub dst: std::net::IpAddr,
    /// Destination port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dport: Option<u16>,
}
