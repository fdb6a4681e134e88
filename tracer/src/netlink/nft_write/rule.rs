//! Rules as nft compiles them.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Family, SetRef};
use crate::netlink::attr::Writer;

/// `NFT_REG_VERDICT`.
const REG_VERDICT: u32 = 0;
/// `NFT_REG_1`, the 16-byte register that nft uses for every single match.
const REG_1: u32 = 1;
const NFT_CT_STATE: u32 = 0;
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

/// A verdict of nf_tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// `accept`
    Accept,
    /// `drop`
    Drop,
    /// `return`
    Return,
    /// `jump CHAIN`
    Jump(String),
    /// `goto CHAIN`
    Goto(String),
}

impl Verdict {
    /// Writes what stands in a data attribute (`NFTA_DATA_VERDICT`).
    pub(super) fn write(&self, w: &mut Writer) {
        // enum nft_verdicts: negative codes travel in two's complement.
        let (code, chain) = match self {
            Self::Drop => (0_i32, None),
            Self::Accept => (1, None),
            Self::Jump(chain) => (-3, Some(chain)),
            Self::Goto(chain) => (-4, Some(chain)),
            Self::Return => (-5, None),
        };
        w.nest(2, |w| {
            w.bytes(1, &code.to_be_bytes());
            if let Some(chain) = chain {
                w.str(2, chain);
            }
        });
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

/// Keys of `meta` (`NFT_META_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Meta {
    /// Mark, 4 bytes in host order.
    Mark = 3,
    /// Index of the interface the packet came in by, 4 bytes in host order.
    Iif = 4,
    /// Index of the interface it leaves by.
    Oif = 5,
    /// Name of the interface it came in by, 16 bytes.
    Iifname = 6,
    /// Name of the interface it leaves by.
    Oifname = 7,
    /// Address family of the packet, 1 byte.
    Nfproto = 15,
    /// Transport protocol, 1 byte.
    L4proto = 16,
}

/// Where a `payload` expression starts to count (`enum nft_payload_bases`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Payload {
    /// Link layer header.
    Link = 0,
    /// Network header.
    Network = 1,
    /// Transport header.
    Transport = 2,
}

/// Comparisons (`enum nft_cmp_ops`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Cmp {
    /// `==`
    Eq = 0,
    /// `!=`
    Neq = 1,
    /// `<`
    Lt = 2,
    /// `<=`
    Lte = 3,
    /// `>`
    Gt = 4,
    /// `>=`
    Gte = 5,
}

/// An expression, with the attributes of its kind (NFTA_META_*, NFTA_PAYLOAD_*, ...).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// `meta load KEY => reg 1`
    Meta(Meta),
    /// `payload load LENGTH @ BASE + OFFSET => reg 1`
    Payload {
        /// The header that the offset counts from.
        base: Payload,
        /// Bytes from its start.
        offset: u32,
        /// Bytes to load.
        length: u32,
    },
    /// `ct load state => reg 1`
    CtState,
    /// `reg 1 = (reg 1 & mask) ^ 0`
    And(Vec<u8>),
    /// `cmp OP reg 1 DATA`, with the raw content of the register.
    Cmp(Cmp, Vec<u8>),
    /// `lookup reg 1 set NAME`; with `verdict`, the element's verdict is the rule's.
    Lookup {
        /// The set.
        set: SetRef,
        /// Whether it is a verdict map.
        verdict: bool,
    },
    /// `counter`
    Counter,
    /// `log prefix "TEXT"`
    Log(String),
    /// `reject`
    Reject(Reject),
    /// A verdict.
    Immediate(Verdict),
}

impl Expr {
    /// Writes the expression as the content of an `NFTA_LIST_ELEM`.
    pub(super) fn write(&self, w: &mut Writer) {
        let name = match self {
            Self::Meta(_) => "meta",
            Self::Payload { .. } => "payload",
            Self::CtState => "ct",
            Self::And(_) => "bitwise",
            Self::Cmp(..) => "cmp",
            Self::Lookup { .. } => "lookup",
            Self::Counter => "counter",
            Self::Log(_) => "log",
            Self::Reject(_) => "reject",
            Self::Immediate(_) => "immediate",
        };
        w.str(1, name).nest(2, |w| self.attributes(w));
    }

    fn attributes(&self, w: &mut Writer) {
        match self {
            Self::Meta(key) => {
                w.be32(2, *key as u32).be32(1, REG_1);
            }
            Self::Payload {
                base,
                offset,
                length,
            } => {
                w.be32(1, REG_1)
                    .be32(2, *base as u32)
                    .be32(3, *offset)
                    .be32(4, *length);
            }
            Self::CtState => {
                w.be32(2, NFT_CT_STATE).be32(1, REG_1);
            }
            Self::And(mask) => {
                let length = u32::try_from(mask.len()).unwrap_or(u32::MAX);
                w.be32(1, REG_1).be32(2, REG_1).be32(3, length);
                value(w, 4, mask);
                value(w, 5, &vec![0; mask.len()]);
            }
            Self::Cmp(op, data) => {
                w.be32(1, REG_1).be32(2, *op as u32);
                value(w, 3, data);
            }
            Self::Lookup { set, verdict } => {
                w.str(1, &set.name).be32(2, REG_1);
                if *verdict {
                    w.be32(3, REG_VERDICT);
                }
                w.be32(4, set.id);
            }
            Self::Counter => {
                w.be64(1, 0).be64(2, 0);
            }
            Self::Log(prefix) => {
                w.str(2, prefix);
            }
            Self::Reject(reject) => {
                let (kind, code) = match reject {
                    Reject::Icmp(code) => (0, *code),
                    Reject::TcpReset => (1, 0),
                    Reject::Icmpx(code) => (2, *code),
                };
                w.be32(1, kind).u8(2, code);
            }
            Self::Immediate(verdict) => {
                w.be32(1, REG_VERDICT).nest(2, |w| verdict.write(w));
            }
        }
    }
}

/// A data attribute with a register's raw content (`NFTA_DATA_VALUE`).
fn value(w: &mut Writer, kind: u16, data: &[u8]) {
    w.nest(kind, |w| {
        w.bytes(1, data);
    });
}

/// A rule, built match by match and statement by statement in the order of its text.
///
/// The matches add what nft adds by itself: `tcp dport 80` first compares `meta l4proto`, `ip saddr` in family inet first `meta nfproto`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    family: Family,
    exprs: Vec<Expr>,
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

    /// Any expression, after those that are there.
    pub fn push(mut self, expr: Expr) -> Self {
        self.exprs.push(expr);
        self
    }

    /// The expressions so far.
    pub fn exprs(&self) -> &[Expr] {
        &self.exprs
    }

    fn eq(self, data: impl Into<Vec<u8>>) -> Self {
        self.push(Expr::Cmp(Cmp::Eq, data.into()))
    }

    fn load(self, base: Payload, offset: u32, length: u32) -> Self {
        self.push(Expr::Payload {
            base,
            offset,
            length,
        })
    }

    /// `iifname NAME`; `eth*` stands for every name that starts so.
    pub fn iifname(self, name: &str) -> Self {
        self.push(Expr::Meta(Meta::Iifname)).eq(interface(name))
    }

    /// `oifname NAME`; `eth*` stands for every name that starts so.
    pub fn oifname(self, name: &str) -> Self {
        self.push(Expr::Meta(Meta::Oifname)).eq(interface(name))
    }

    /// `iif INDEX`
    pub fn iif(self, index: u32) -> Self {
        self.push(Expr::Meta(Meta::Iif)).eq(index.to_ne_bytes())
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
        self.push(Expr::Meta(Meta::Nfproto)).eq([nfproto])
    }

    /// `meta l4proto PROTOCOL`, unless an earlier match says so already.
    pub fn l4proto(mut self, protocol: u8) -> Self {
        if self.transport == Some(protocol) {
            return self;
        }
        self.transport = Some(protocol);
        self.push(Expr::Meta(Meta::L4proto)).eq([protocol])
    }

    /// `ip saddr ADDRESS`
    pub fn ip_saddr(self, address: Ipv4Addr) -> Self {
        self.network(NFPROTO_IPV4)
            .load(Payload::Network, 12, 4)
            .eq(address.octets())
    }

    /// `ip daddr ADDRESS`
    pub fn ip_daddr(self, address: Ipv4Addr) -> Self {
        self.network(NFPROTO_IPV4)
            .load(Payload::Network, 16, 4)
            .eq(address.octets())
    }

    /// `ip saddr ADDRESS/LENGTH`; a length over 32 is 32.
    pub fn ip_saddr_in(self, address: Ipv4Addr, length: u8) -> Self {
        self.network(NFPROTO_IPV4)
            .prefix(12, &address.octets(), length)
    }

    /// `ip6 saddr ADDRESS`
    pub fn ip6_saddr(self, address: Ipv6Addr) -> Self {
        self.network(NFPROTO_IPV6)
            .load(Payload::Network, 8, 16)
            .eq(address.octets())
    }

    /// `ip6 saddr ADDRESS/LENGTH`; a length over 128 is 128.
    pub fn ip6_saddr_in(self, address: Ipv6Addr, length: u8) -> Self {
        self.network(NFPROTO_IPV6)
            .prefix(8, &address.octets(), length)
    }

    /// nft compares whole bytes where the prefix ends on a byte, and masks otherwise.
    fn prefix(self, offset: u32, address: &[u8], length: u8) -> Self {
        let whole = usize::from(length) / 8;
        if whole > 0 && (length.is_multiple_of(8) || whole >= address.len()) {
            let bytes = &address[..whole.min(address.len())];
            let count = u32::try_from(bytes.len()).unwrap_or(16);
            return self.load(Payload::Network, offset, count).eq(bytes);
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
        self.load(Payload::Network, offset, count)
            .push(Expr::And(mask))
            .eq(network)
    }

    /// `tcp dport PORT`
    pub fn tcp_dport(self, port: u16) -> Self {
        self.load_dport(IPPROTO_TCP).eq(port.to_be_bytes())
    }

    /// `tcp sport PORT`
    pub fn tcp_sport(self, port: u16) -> Self {
        self.l4proto(IPPROTO_TCP)
            .load(Payload::Transport, 0, 2)
            .eq(port.to_be_bytes())
    }

    /// `udp dport PORT`
    pub fn udp_dport(self, port: u16) -> Self {
        self.load_dport(IPPROTO_UDP).eq(port.to_be_bytes())
    }

    /// `udp sport PORT`
    pub fn udp_sport(self, port: u16) -> Self {
        self.l4proto(IPPROTO_UDP)
            .load(Payload::Transport, 0, 2)
            .eq(port.to_be_bytes())
    }

    /// `tcp dport @SET` or `tcp dport { ... }`
    pub fn tcp_dport_in(self, set: &SetRef) -> Self {
        self.load_dport(IPPROTO_TCP).push(Expr::Lookup {
            set: set.clone(),
            verdict: false,
        })
    }

    /// `tcp dport vmap @MAP` or `tcp dport vmap { ... }`
    pub fn tcp_dport_vmap(self, map: &SetRef) -> Self {
        self.load_dport(IPPROTO_TCP).push(Expr::Lookup {
            set: map.clone(),
            verdict: true,
        })
    }

    /// `udp dport vmap @MAP` or `udp dport vmap { ... }`
    pub fn udp_dport_vmap(self, map: &SetRef) -> Self {
        self.load_dport(IPPROTO_UDP).push(Expr::Lookup {
            set: map.clone(),
            verdict: true,
        })
    }

    fn load_dport(self, protocol: u8) -> Self {
        self.l4proto(protocol).load(Payload::Transport, 2, 2)
    }

    /// `icmp type TYPE`
    pub fn icmp_type(self, kind: u8) -> Self {
        self.network(NFPROTO_IPV4)
            .l4proto(IPPROTO_ICMP)
            .load(Payload::Transport, 0, 1)
            .eq([kind])
    }

    /// `icmpv6 type TYPE`
    pub fn icmpv6_type(self, kind: u8) -> Self {
        self.network(NFPROTO_IPV6)
            .l4proto(IPPROTO_ICMPV6)
            .load(Payload::Transport, 0, 1)
            .eq([kind])
    }

    /// `ct state STATES`, the bits of [`ct_state`]. Switches connection tracking on in the namespace.
    pub fn ct_state(self, states: u32) -> Self {
        self.push(Expr::CtState)
            .push(Expr::And(states.to_ne_bytes().into()))
            .push(Expr::Cmp(Cmp::Neq, vec![0; 4]))
    }

    /// `counter`
    pub fn counter(self) -> Self {
        self.push(Expr::Counter)
    }

    /// `log prefix "TEXT"`
    pub fn log(self, prefix: &str) -> Self {
        self.push(Expr::Log(prefix.to_owned()))
    }

    /// `accept`
    pub fn accept(self) -> Self {
        self.push(Expr::Immediate(Verdict::Accept))
    }

    /// `drop`
    pub fn drop(self) -> Self {
        self.push(Expr::Immediate(Verdict::Drop))
    }

    /// `jump CHAIN`
    pub fn jump(self, chain: &str) -> Self {
        self.push(Expr::Immediate(Verdict::Jump(chain.to_owned())))
    }

    /// `goto CHAIN`
    pub fn goto(self, chain: &str) -> Self {
        self.push(Expr::Immediate(Verdict::Goto(chain.to_owned())))
    }

    /// `reject with ...`
    pub fn reject(self, with: Reject) -> Self {
        self.push(Expr::Reject(with))
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
