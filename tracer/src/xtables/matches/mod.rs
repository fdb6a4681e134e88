//! Matches: `struct xt_*_info` -> [`Match`], and its iptables-save text.
//!
//! | module | subject |
//! |---|---|
//! | [`address`] | addrtype, iprange, mac, rpfilter, policy |
//! | [`connection`] | connbytes, connlimit, connlabel, helper, cluster |
//! | [`conntrack`] | conntrack, state |
//! | [`icmp`] | icmp, icmp6, esp, ah, ipcomp |
//! | [`ipv6`] | extension headers |
//! | [`meta`] | mark, owner, socket, physdev and other things that are not in the packet |
//! | [`packet`] | length, ttl, dscp, tcpmss and other fields |
//! | [`payload`] | string, u32, bpf |
//! | [`rate`] | limit, hashlimit, quota, statistic |
//! | [`recent`] | recent, nfacct, rateest |
//! | [`sctp`] | sctp |
//! | [`set`] | set |
//! | [`time`] | time |
//! | [`transport`] | tcp, udp, udplite, dccp, multiport |

pub mod address;
pub mod connection;
pub mod conntrack;
pub mod icmp;
pub mod ipv6;
pub mod meta;
pub mod packet;
pub mod payload;
pub mod rate;
pub mod recent;
pub mod sctp;
pub mod set;
pub mod time;
pub mod transport;

use std::fmt::{self, Write as _};

use super::{
    Family,
    info::{Quoted, fits, text, write_unknown},
};
use crate::ruleset::render::Names;

/// A match, decoded. Addresses and ports are in host order as Rust has them, unless a field says otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// `addrtype`.
    Addrtype(address::Addrtype),
    /// `ah` of IPv4.
    Ah(icmp::Spi),
    /// `ah` of IPv6.
    Ah6(ipv6::Ah6),
    /// `bpf`.
    Bpf(payload::Bpf),
    /// `cgroup`.
    Cgroup(meta::Cgroup),
    /// `cluster`.
    Cluster(connection::Cluster),
    /// `comment`: always matches.
    Comment(String),
    /// `connbytes`.
    Connbytes(connection::Connbytes),
    /// `connlabel`.
    Connlabel(connection::Connlabel),
    /// `connlimit`.
    Connlimit(connection::Connlimit),
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
    Esp(icmp::Spi),
    /// `eui64`: the source's interface identifier is made of the Ethernet source.
    Eui64,
    /// `frag`.
    Frag(ipv6::Frag),
    /// `hashlimit`.
    Hashlimit(rate::Hashlimit),
    /// `hbh`: hop-by-hop options of IPv6.
    Hbh(ipv6::Options),
    /// `helper`.
    Helper(connection::Helper),
    /// `hl`.
    Hl(packet::Hops),
    /// `icmp`.
    Icmp(icmp::Icmp),
    /// `icmp6`.
    Icmp6(icmp::Icmp),
    /// `ipcomp`.
    Ipcomp(icmp::Spi),
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
    Nfacct(recent::Nfacct),
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
    Rateest(recent::Rateest),
    /// `realm`.
    Realm(meta::Realm),
    /// `recent`.
    Recent(recent::Recent),
    /// `rpfilter`.
    Rpfilter(address::Rpfilter),
    /// `rt`.
    Rt(ipv6::Rt),
    /// `sctp`.
    Sctp(sctp::Sctp),
    /// `set`.
    Set(set::Set),
    /// `socket`.
    Socket(meta::Socket),
    /// `srh`: segment routing header of IPv6.
    Srh(ipv6::Srh),
    /// `statistic`.
    Statistic(rate::Statistic),
    /// `string`.
    String(payload::StringMatch),
    /// `tcp`.
    Tcp(transport::Tcp),
    /// `tcpmss`.
    Tcpmss(packet::Tcpmss),
    /// `time`.
    Time(time::Time),
    /// `tos`.
    Tos(packet::Tos),
    /// `ttl`.
    Ttl(packet::Hops),
    /// `u32`.
    U32(payload::U32),
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
    ///
    /// `info` is the kernel's structure, of the size that the revision has or padded to a multiple of eight bytes, as both
    /// `NFTA_MATCH_INFO` and the blob of a legacy table hold it.
    pub fn decode(name: &str, rev: u8, info: &[u8], family: Family) -> Self {
        Self::known(name, rev, info, family).unwrap_or_else(|| Self::Unknown {
            name: name.to_owned(),
            rev,
            info: info.to_vec(),
        })
    }

    fn known(name: &str, rev: u8, info: &[u8], family: Family) -> Option<Self> {
        use Family::{V4, V6};
        Some(match (name, rev, family) {
            ("addrtype", _, _) => Self::Addrtype(address::Addrtype::decode(rev, info)?),
            ("ah", 0, V4) => Self::Ah(icmp::Spi::decode(name, info)?),
            ("ah", 0, V6) => Self::Ah6(ipv6::Ah6::decode(info)?),
            ("bpf", _, _) => Self::Bpf(payload::Bpf::decode(rev, info)?),
            ("cgroup", _, _) => Self::Cgroup(meta::Cgroup::decode(rev, info)?),
            ("cluster", 0, _) => Self::Cluster(connection::Cluster::decode(info)?),
            ("comment", 0, _) if fits(info, 256) => Self::Comment(text(info)),
            ("connbytes", 0, _) => Self::Connbytes(connection::Connbytes::decode(info)?),
            ("connlabel", 0, _) => Self::Connlabel(connection::Connlabel::decode(info)?),
            ("connlimit", 0 | 1, _) => {
                Self::Connlimit(connection::Connlimit::decode(rev, info, family)?)
            }
            ("connmark", 1, _) => Self::Connmark(meta::Mark::decode(info)?),
            ("conntrack", _, _) => {
                Self::Conntrack(conntrack::Conntrack::decode(rev, info, family)?)
            }
            ("cpu", 0, _) => Self::Cpu(meta::Cpu::decode(info)?),
            ("dccp", 0, _) => Self::Dccp(transport::Dccp::decode(info)?),
            ("devgroup", 0, _) => Self::Devgroup(meta::Devgroup::decode(info)?),
            ("dscp", 0, _) => Self::Dscp(packet::Dscp::decode(info)?),
            ("dst", 0, V6) => Self::Dst(ipv6::Options::decode(info)?),
            ("ecn", 0, _) => Self::Ecn(packet::Ecn::decode(info)?),
            ("esp", 0, _) => Self::Esp(icmp::Spi::decode(name, info)?),
            // Its structure is an int that says nothing.
            ("eui64", 0, V6) if fits(info, 4) => Self::Eui64,
            ("frag", 0, V6) => Self::Frag(ipv6::Frag::decode(info)?),
            ("hashlimit", _, _) => Self::Hashlimit(rate::Hashlimit::decode(rev, info, family)?),
            ("hbh", 0, V6) => Self::Hbh(ipv6::Options::decode(info)?),
            ("helper", 0, _) => Self::Helper(connection::Helper::decode(info)?),
            ("hl", 0, V6) => Self::Hl(packet::Hops::decode(info)?),
            ("icmp", 0, V4) => Self::Icmp(icmp::Icmp::decode(info)?),
            ("icmp6", 0, V6) => Self::Icmp6(icmp::Icmp::decode(info)?),
            ("ipcomp", 0, _) => Self::Ipcomp(icmp::Spi::decode(name, info)?),
            ("iprange", 1, _) => Self::Iprange(address::Iprange::decode(info, family)?),
            ("ipv6header", 0, V6) => Self::Ipv6Header(ipv6::Ipv6Header::decode(info)?),
            ("length", 0, _) => Self::Length(packet::Length::decode(info)?),
            ("limit", 0, _) => Self::Limit(rate::Limit::decode(info)?),
            ("mac", 0, _) => Self::Mac(address::Mac::decode(info)?),
            ("mark", 1, _) => Self::Mark(meta::Mark::decode(info)?),
            ("mh", 0, V6) => Self::Mh(ipv6::Mh::decode(info)?),
            ("multiport", _, _) => Self::Multiport(transport::Multiport::decode(rev, info)?),
            ("nfacct", 0 | 1, _) => Self::Nfacct(recent::Nfacct::decode(info)?),
            ("osf", 0, _) => Self::Osf(meta::Osf::decode(info)?),
            ("owner", 1, _) => Self::Owner(meta::Owner::decode(info)?),
            ("physdev", 0, _) => Self::Physdev(meta::Physdev::decode(info)?),
            ("pkttype", 0, _) => Self::Pkttype(packet::Pkttype::decode(info)?),
            ("policy", 0, _) => Self::Policy(address::Policy::decode(info, family)?),
            ("quota", 0, _) => Self::Quota(rate::Quota::decode(info)?),
            ("rateest", 0, _) => Self::Rateest(recent::Rateest::decode(info)?),
            ("realm", 0, _) => Self::Realm(meta::Realm::decode(info)?),
            ("recent", _, _) => Self::Recent(recent::Recent::decode(rev, info, family)?),
            ("rpfilter", 0, _) => Self::Rpfilter(address::Rpfilter::decode(info)?),
            ("rt", 0, V6) => Self::Rt(ipv6::Rt::decode(info)?),
            ("sctp", 0, _) => Self::Sctp(sctp::Sctp::decode(info)?),
            ("set", _, _) => Self::Set(set::Set::decode(rev, info)?),
            ("socket", _, _) => Self::Socket(meta::Socket::decode(rev, info)?),
            ("srh", _, V6) => Self::Srh(ipv6::Srh::decode(rev, info)?),
            ("state", 0, _) => Self::Conntrack(conntrack::Conntrack::decode_state(info)?),
            ("statistic", 0, _) => Self::Statistic(rate::Statistic::decode(info)?),
            ("string", 0 | 1, _) => Self::String(payload::StringMatch::decode(rev, info)?),
            ("tcp", 0, _) => Self::Tcp(transport::Tcp::decode(info)?),
            ("tcpmss", 0, _) => Self::Tcpmss(packet::Tcpmss::decode(info)?),
            ("time", 0, _) => Self::Time(time::Time::decode(info)?),
            ("tos", _, _) => Self::Tos(packet::Tos::decode(rev, info)?),
            ("ttl", 0, V4) => Self::Ttl(packet::Hops::decode(info)?),
            ("u32", 0, _) => Self::U32(payload::U32::decode(info)?),
            ("udp", 0, _) => Self::Udp(transport::Udp::decode(info)?),
            ("udplite", 0, _) => Self::Udplite(transport::Udp::decode(info)?),
            _ => return None,
        })
    }

    /// The name that follows `-m`.
    pub fn name(&self) -> &str {
        match self {
            Self::Addrtype(_) => "addrtype",
            Self::Ah(_) | Self::Ah6(_) => "ah",
            Self::Bpf(_) => "bpf",
            Self::Cgroup(_) => "cgroup",
            Self::Cluster(_) => "cluster",
            Self::Comment(_) => "comment",
            Self::Connbytes(_) => "connbytes",
            Self::Connlabel(_) => "connlabel",
            Self::Connlimit(_) => "connlimit",
            Self::Connmark(_) => "connmark",
            Self::Conntrack(conntrack) if conntrack.alias => "state",
            Self::Conntrack(_) => "conntrack",
            Self::Cpu(_) => "cpu",
            Self::Dccp(_) => "dccp",
            Self::Devgroup(_) => "devgroup",
            Self::Dscp(_) => "dscp",
            Self::Dst(_) => "dst",
            Self::Ecn(_) => "ecn",
            Self::Esp(_) => "esp",
            Self::Eui64 => "eui64",
            Self::Frag(_) => "frag",
            Self::Hashlimit(_) => "hashlimit",
            Self::Hbh(_) => "hbh",
            Self::Helper(_) => "helper",
            Self::Hl(_) => "hl",
            Self::Icmp(_) => "icmp",
            Self::Icmp6(_) => "icmp6",
            Self::Ipcomp(_) => "ipcomp",
            Self::Iprange(_) => "iprange",
            Self::Ipv6Header(_) => "ipv6header",
            Self::Length(_) => "length",
            Self::Limit(_) => "limit",
            Self::Mac(_) => "mac",
            Self::Mark(_) => "mark",
            Self::Mh(_) => "mh",
            Self::Multiport(_) => "multiport",
            Self::Nfacct(_) => "nfacct",
            Self::Osf(_) => "osf",
            Self::Owner(_) => "owner",
            Self::Physdev(_) => "physdev",
            Self::Pkttype(_) => "pkttype",
            Self::Policy(_) => "policy",
            Self::Quota(_) => "quota",
            Self::Rateest(_) => "rateest",
            Self::Realm(_) => "realm",
            Self::Recent(_) => "recent",
            Self::Rpfilter(_) => "rpfilter",
            Self::Rt(_) => "rt",
            Self::Sctp(_) => "sctp",
            Self::Set(_) => "set",
            Self::Socket(_) => "socket",
            Self::Srh(_) => "srh",
            Self::Statistic(_) => "statistic",
            Self::String(_) => "string",
            Self::Tcp(_) => "tcp",
            Self::Tcpmss(_) => "tcpmss",
            Self::Time(_) => "time",
            Self::Tos(_) => "tos",
            Self::Ttl(_) => "ttl",
            Self::U32(_) => "u32",
            Self::Udp(_) => "udp",
            Self::Udplite(_) => "udplite",
            Self::Unknown { name, .. } => name,
        }
    }

    /// Appends the match as iptables-save prints it, a space before each word: ` -m tcp --dport 80`.
    pub fn save(&self, names: &Names, out: &mut String) {
        out.push_str(" -m ");
        out.push_str(self.name());
        // Writing to a String cannot fail.
        let _: fmt::Result = self.options(names, out);
    }

    fn options(&self, names: &Names, out: &mut String) -> fmt::Result {
        match self {
            Self::Addrtype(it) => it.options(out),
            Self::Ah(it) => it.options(out, "--ahspi"),
            Self::Ah6(it) => it.options(out),
            Self::Bpf(it) => it.options(out),
            Self::Cgroup(it) => it.options(out),
            Self::Cluster(it) => it.options(out),
            Self::Comment(comment) => write!(out, " --comment {}", Quoted(comment)),
            Self::Connbytes(it) => it.options(out),
            Self::Connlabel(it) => it.options(names, out),
            Self::Connlimit(it) => it.options(out),
            Self::Conntrack(it) => it.options(out),
            Self::Connmark(it) | Self::Mark(it) => it.options(out),
            Self::Cpu(it) => it.options(out),
            Self::Dccp(it) => it.options(out),
            Self::Devgroup(it) => it.options(names, out),
            Self::Dscp(it) => it.options(out),
            Self::Dst(it) => it.options(out, "dst"),
            Self::Ecn(it) => it.options(out),
            Self::Esp(it) => it.options(out, "--espspi"),
            Self::Eui64 => Ok(()),
            Self::Frag(it) => it.options(out),
            Self::Hashlimit(it) => it.options(out),
            Self::Hbh(it) => it.options(out, "hbh"),
            Self::Helper(it) => it.options(out),
            Self::Hl(it) => it.options(out, "hl"),
            Self::Icmp(it) => it.options4(out),
            Self::Icmp6(it) => it.options6(out),
            Self::Ipcomp(it) => it.options(out, "--ipcompspi"),
            Self::Iprange(it) => it.options(out),
            Self::Ipv6Header(it) => it.options(names, out),
            Self::Length(it) => it.options(out),
            Self::Limit(it) => it.options(out),
            Self::Mac(it) => it.options(out),
            Self::Mh(it) => it.options(out),
            Self::Multiport(it) => it.options(out),
            Self::Nfacct(it) => it.options(out),
            Self::Osf(it) => it.options(out),
            Self::Owner(it) => it.options(out),
            Self::Physdev(it) => it.options(out),
            Self::Pkttype(it) => it.options(out),
            Self::Policy(it) => it.options(names, out),
            Self::Quota(it) => it.options(out),
            Self::Rateest(it) => it.options(out),
            Self::Realm(it) => it.options(names, out),
            Self::Recent(it) => it.options(out),
            Self::Rpfilter(it) => it.options(out),
            Self::Rt(it) => it.options(out),
            Self::Sctp(it) => it.options(out),
            Self::Set(it) => it.options(names, out),
            Self::Socket(it) => it.options(out),
            Self::Srh(it) => it.options(out),
            Self::Statistic(it) => it.options(out),
            Self::String(it) => it.options(out),
            Self::Tcp(it) => it.options(out),
            Self::Tcpmss(it) => it.options(out),
            Self::Time(it) => it.options(out),
            Self::Tos(it) => it.options(out),
            Self::Ttl(it) => it.options(out, "ttl"),
            Self::U32(it) => it.options(out),
            Self::Udp(it) | Self::Udplite(it) => it.options(out),
            Self::Unknown { rev, info, .. } => write_unknown(out, *rev, info),
        }
    }
}
