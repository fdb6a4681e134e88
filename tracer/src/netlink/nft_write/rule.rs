//! Rules as nft compiles them.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::SetRef;
use crate::ruleset::model::{CmpOp, Counters, Data, Expr, Family, PayloadBase, Verdict};

/// `NFT_REG_VERDICT`.
const REG_VERDICT: u32 = 0;
/// `NFT_REG_1`, the 16-byte register that nft uses for every single match.
const REG_1: u32 = 1;
/// Keys of `meta`.
const NFT_META_IIF: u32 = 4;
const NFT_META_IIFNAME: u32 = 6;
const NFT_META_OIFNAME: u32 = 7;
const NFT_META_NFPROTO: u32 = 15;
const NFT_META_L4PROTO: u32 = 16;
const NFT_CT_STATE: u32 = 0;
const NFT_LOOKUP_F_INV: u32 = 1;
/// Longest comment that nft accepts, in bytes (`NFTNL_UDATA_COMMENT_MAXLEN`).
const COMMENT_MAX: usize = 128;
/// Size of an interface name's register content (`IFNAMSIZ`).
const IFNAMSIZ: usize = 16;

const IPPROTO_ICMP: u8 = 1;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
const IPPROTO_ICMPV6: u8 = 58;
/// `NFPROTO_IPV4` and `NFPROTO_IPV6`, also as values of `meta nfproto`.
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;

/// Bits of `ct state`, as the `ct` expression loads them (host order).
pub mod ct_state {
    /// No connection that the packet could belong to.
    pub const INVALID: u32 = 1;
    /// Packets were seen in both directions.
    pub const ESTABLISHED: u32 = 2;
    /// Belongs to another connection (ICMP errors, helpers).
    pub const RELATED: u32 = 4;
    /// The first direction only.
    pub const NEW: u32 = 8;
}

/// Verdicts, as the elements of verdict maps have them.
pub mod verdict {
    use crate::ruleset::model::Verdict;

    /// `accept`
    pub fn accept() -> Verdict {
        Verdict {
            code: Verdict::ACCEPT,
            chain: None,
        }
    }

    /// `drop`
    pub fn drop() -> Verdict {
        Verdict {
            code: Verdict::DROP,
            chain: None,
        }
    }

    /// `jump CHAIN`
    pub fn jump(chain: &str) -> Verdict {
        Verdict {
            code: Verdict::JUMP,
            chain: Some(chain.to_owned()),
        }
    }

    /// `goto CHAIN`
    pub fn goto(chain: &str) -> Verdict {
        Verdict {
            code: Verdict::GOTO,
            chain: Some(chain.to_owned()),
        }
    }
}

/// What a `reject` answers with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reject {
    /// An ICMP error of the table's own family (ip: ICMP, ip6: ICMPv6) with this code.
    Icmp(u8),
    /// A TCP reset.
    TcpReset,
    /// An ICMP error of the packet's family (tables inet, bridge, netdev): 0 no-route, 1 port-unreachable, 2 host-unreachable,
    /// 3 admin-prohibited.
    Icmpx(u8),
}

/// A rule, built match by match and statement by statement in the order of its text.
///
/// The matches add what nft adds by itself: `tcp dport 80` first compares `meta l4proto`, `ip saddr` in family inet first `meta nfproto`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    family: Family,
    /// With the number of a lookup's set within the batch.
    exprs: Vec<(Expr, u32)>,
    network: Option<u8>,
    transport: Option<u8>,
    comment: Option<String>,
}

impl Rule {
    /// A rule without a match or a verdict, for a table of this family.
    pub fn new(family: Family) -> Self {
        Self {
            family,
            exprs: Vec::new(),
            network: None,
            transport: None,
            comment: None,
        }
    }

    /// Any expression, after those that are there. A lookup in an anonymous set needs [`Rule::tcp_dport_in`] and its like, which know
    /// the set's number.
    pub fn push(mut self, expr: Expr) -> Self {
        self.exprs.push((expr, 0));
        self
    }

    /// The expressions so far; for a lookup, with the number of its set within the batch (0: none).
    pub(super) fn exprs(&self) -> &[(Expr, u32)] {
        &self.exprs
    }

    fn eq(self, data: impl Into<Vec<u8>>) -> Self {
        self.push(Expr::Cmp {
            sreg: REG_1,
            op: CmpOp::Eq,
            data: data.into(),
        })
    }

    fn meta(self, key: u32) -> Self {
        self.push(Expr::Meta { dreg: REG_1, key })
    }

    fn load(self, base: PayloadBase, offset: u32, len: u32) -> Self {
        self.push(Expr::Payload {
            dreg: REG_1,
            base,
            offset,
            len,
        })
    }

    /// Keeps the bits of `mask`.
    fn and(self, mask: Vec<u8>) -> Self {
        let len = u32::try_from(mask.len()).unwrap_or(u32::MAX);
        let (xor, data) = (vec![0; mask.len()], Vec::new());
        self.push(Expr::Bitwise {
            sreg: REG_1,
            sreg2: None,
            dreg: REG_1,
            len,
            op: 0,
            mask,
            xor,
            data,
        })
    }

    fn lookup(self, set: &SetRef, dreg: Option<u32>) -> Self {
        self.lookup_with(set, dreg, 0)
    }

    fn lookup_with(mut self, set: &SetRef, dreg: Option<u32>, flags: u32) -> Self {
        let lookup = Expr::Lookup {
            set: set.name.clone(),
            sreg: REG_1,
            dreg,
            flags,
        };
        self.exprs.push((lookup, set.id));
        self
    }

    /// A verdict, as the rule's last expression.
    pub fn verdict(self, verdict: Verdict) -> Self {
        self.push(Expr::Immediate {
            dreg: REG_VERDICT,
            data: Data::Verdict(verdict),
        })
    }

    /// `iifname NAME`; `eth*` stands for every name that starts so.
    pub fn iifname(self, name: &str) -> Self {
        self.meta(NFT_META_IIFNAME).eq(interface(name))
    }

    /// `oifname NAME`; `eth*` stands for every name that starts so.
    pub fn oifname(self, name: &str) -> Self {
        self.meta(NFT_META_OIFNAME).eq(interface(name))
    }

    /// `iif INDEX`
    pub fn iif(self, index: u32) -> Self {
        self.meta(NFT_META_IIF).eq(index.to_ne_bytes())
    }

    /// `meta nfproto ipv4|ipv6`, unless the table's family or an earlier match says so already.
    fn network(mut self, nfproto: u8) -> Self {
        let known = match self.family {
            Family::Ip => Some(NFPROTO_IPV4),
            Family::Ip6 => Some(NFPROTO_IPV6),
            _ => self.network,
        };
        if known == Some(nfproto) {
            return self;
        }
        self.network = Some(nfproto);
        self.meta(NFT_META_NFPROTO).eq([nfproto])
    }

    /// `meta nfproto ipv4`, or `ipv6` for version 6.
    pub fn ip_version(self, version: u8) -> Self {
        self.network(match version {
            6 => NFPROTO_IPV6,
            _ => NFPROTO_IPV4,
        })
    }

    /// `meta l4proto PROTOCOL`, unless an earlier match says so already.
    pub fn l4proto(mut self, protocol: u8) -> Self {
        if self.transport == Some(protocol) {
            return self;
        }
        self.transport = Some(protocol);
        self.meta(NFT_META_L4PROTO).eq([protocol])
    }

    /// `ip saddr ADDRESS`
    pub fn ip_saddr(self, address: Ipv4Addr) -> Self {
        self.network(NFPROTO_IPV4)
            .load(PayloadBase::Network, 12, 4)
            .eq(address.octets())
    }

    /// `ip daddr ADDRESS`
    pub fn ip_daddr(self, address: Ipv4Addr) -> Self {
        self.network(NFPROTO_IPV4)
            .load(PayloadBase::Network, 16, 4)
            .eq(address.octets())
    }

    /// `ip saddr ADDRESS/LENGTH`; a length over 32 is 32.
    pub fn ip_saddr_in(self, address: Ipv4Addr, length: u8) -> Self {
        self.network(NFPROTO_IPV4)
            .prefix(12, &address.octets(), length)
    }

    /// `ip daddr ADDRESS/LENGTH`; a length over 32 is 32.
    pub fn ip_daddr_in(self, address: Ipv4Addr, length: u8) -> Self {
        self.network(NFPROTO_IPV4)
            .prefix(16, &address.octets(), length)
    }

    /// `ip6 saddr ADDRESS`
    pub fn ip6_saddr(self, address: Ipv6Addr) -> Self {
        self.network(NFPROTO_IPV6)
            .load(PayloadBase::Network, 8, 16)
            .eq(address.octets())
    }

    /// `ip6 saddr ADDRESS/LENGTH`; a length over 128 is 128.
    pub fn ip6_saddr_in(self, address: Ipv6Addr, length: u8) -> Self {
        self.network(NFPROTO_IPV6)
            .prefix(8, &address.octets(), length)
    }

    /// `ip6 daddr ADDRESS/LENGTH`; a length over 128 is 128.
    pub fn ip6_daddr_in(self, address: Ipv6Addr, length: u8) -> Self {
        self.network(NFPROTO_IPV6)
            .prefix(24, &address.octets(), length)
    }

    /// nft compares whole bytes where the prefix ends on a byte, and masks otherwise.
    fn prefix(self, offset: u32, address: &[u8], length: u8) -> Self {
        let whole = usize::from(length) / 8;
        if whole > 0 && (length.is_multiple_of(8) || whole >= address.len()) {
            let bytes = &address[..whole.min(address.len())];
            let count = u32::try_from(bytes.len()).unwrap_or(16);
            return self.load(PayloadBase::Network, offset, count).eq(bytes);
        }
        let mask: Vec<u8> = (0..address.len())
            .map(|at| {
                let bits = usize::from(length).saturating_sub(at * 8).min(8);
                !u8::try_from(0xff_usize >> bits).unwrap_or(0)
            })
            .collect();
        let network: Vec<u8> = address
            .iter()
            .zip(&mask)
            .map(|(byte, mask)| byte & mask)
            .collect();
        let count = u32::try_from(address.len()).unwrap_or(16);
        self.load(PayloadBase::Network, offset, count)
            .and(mask)
            .eq(network)
    }

    /// `tcp dport PORT`
    pub fn tcp_dport(self, port: u16) -> Self {
        self.load_dport(IPPROTO_TCP).eq(port.to_be_bytes())
    }

    /// `tcp sport PORT`
    pub fn tcp_sport(self, port: u16) -> Self {
        self.l4proto(IPPROTO_TCP)
            .load(PayloadBase::Transport, 0, 2)
            .eq(port.to_be_bytes())
    }

    /// `udp dport PORT`
    pub fn udp_dport(self, port: u16) -> Self {
        self.load_dport(IPPROTO_UDP).eq(port.to_be_bytes())
    }

    /// `udp sport PORT`
    pub fn udp_sport(self, port: u16) -> Self {
        self.l4proto(IPPROTO_UDP)
            .load(PayloadBase::Transport, 0, 2)
            .eq(port.to_be_bytes())
    }

    /// `tcp dport @SET` or `tcp dport { ... }`
    pub fn tcp_dport_in(self, set: &SetRef) -> Self {
        self.load_dport(IPPROTO_TCP).lookup(set, None)
    }

    /// `tcp dport vmap @MAP` or `tcp dport vmap { ... }`
    pub fn tcp_dport_vmap(self, map: &SetRef) -> Self {
        self.load_dport(IPPROTO_TCP).lookup(map, Some(REG_VERDICT))
    }

    /// `udp dport != @SET`
    pub fn udp_dport_not_in(self, set: &SetRef) -> Self {
        self.load_dport(IPPROTO_UDP)
            .lookup_with(set, None, NFT_LOOKUP_F_INV)
    }

    /// `udp dport vmap @MAP` or `udp dport vmap { ... }`
    pub fn udp_dport_vmap(self, map: &SetRef) -> Self {
        self.load_dport(IPPROTO_UDP).lookup(map, Some(REG_VERDICT))
    }

    fn load_dport(self, protocol: u8) -> Self {
        self.l4proto(protocol).load(PayloadBase::Transport, 2, 2)
    }

    /// `icmp type TYPE`
    pub fn icmp_type(self, kind: u8) -> Self {
        self.network(NFPROTO_IPV4)
            .l4proto(IPPROTO_ICMP)
            .load(PayloadBase::Transport, 0, 1)
            .eq([kind])
    }

    /// `icmpv6 type TYPE`
    pub fn icmpv6_type(self, kind: u8) -> Self {
        self.network(NFPROTO_IPV6)
            .l4proto(IPPROTO_ICMPV6)
            .load(PayloadBase::Transport, 0, 1)
            .eq([kind])
    }

    /// `ct state STATES`, the bits of [`ct_state`]. Switches connection tracking on in the namespace.
    pub fn ct_state(self, states: u32) -> Self {
        self.push(Expr::Ct {
            dreg: REG_1,
            key: NFT_CT_STATE,
            direction: None,
        })
        .and(states.to_ne_bytes().into())
        .push(Expr::Cmp {
            sreg: REG_1,
            op: CmpOp::Neq,
            data: vec![0; 4],
        })
    }

    /// `counter`
    pub fn counter(self) -> Self {
        self.push(Expr::Counter(Counters::default()))
    }

    /// `log prefix "TEXT"`
    pub fn log(self, prefix: &str) -> Self {
        self.push(Expr::Log {
            prefix: Some(prefix.to_owned()),
            level: None,
            flags: None,
            group: None,
            snaplen: None,
            qthreshold: None,
        })
    }

    /// `accept`
    pub fn accept(self) -> Self {
        self.verdict(verdict::accept())
    }

    /// `drop`
    pub fn drop(self) -> Self {
        self.verdict(verdict::drop())
    }

    /// `jump CHAIN`
    pub fn jump(self, chain: &str) -> Self {
        self.verdict(verdict::jump(chain))
    }

    /// `goto CHAIN`
    pub fn goto(self, chain: &str) -> Self {
        self.verdict(verdict::goto(chain))
    }

    /// `reject with ...`
    pub fn reject(self, with: Reject) -> Self {
        let (kind, code) = match with {
            Reject::Icmp(code) => (0, code),
            Reject::TcpReset => (1, 0),
            Reject::Icmpx(code) => (2, code),
        };
        self.push(Expr::Reject {
            kind,
            code: Some(code),
        })
    }

    /// `comment "TEXT"`; at most 128 bytes, as in nft, what is over is cut off.
    pub fn comment(mut self, text: &str) -> Self {
        let end = (0..=text.len().min(COMMENT_MAX))
            .rev()
            .find(|&at| text.is_char_boundary(at));
        self.comment = text.get(..end.unwrap_or(0)).map(str::to_owned);
        self
    }

    /// The comment as nft stores it (`NFTNL_UDATA_RULE_COMMENT`: type 0, length with the NUL, text).
    pub(super) fn userdata(&self) -> Option<Vec<u8>> {
        let text = self.comment.as_ref()?;
        let mut bytes = vec![0, u8::try_from(text.len() + 1).ok()?];
        bytes.extend_from_slice(text.as_bytes());
        bytes.push(0);
        Some(bytes)
    }
}

/// The register content that an interface name is compared with: 16 bytes padded with NULs, or the part before a final `*`.
fn interface(name: &str) -> Vec<u8> {
    match name.strip_suffix('*') {
        Some(start) => start.into(),
        None => {
            let mut bytes = name.as_bytes().to_vec();
            bytes.resize(IFNAMSIZ, 0);
            bytes
        }
    }
}
