//! nf_tables expressions as data.
//!
//! Registers are the kernel's numbers: 0 is the verdict, 1 to 4 are 16 bytes each, 8 to 23 are the same 64 bytes in steps of four
//! (register `n` of 1 to 4 starts where `8 + 4 * (n - 1)` does). The kernel sends the old numbers wherever they will do.

use super::model::{Counters, Ending};

/// A verdict.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// `NF_*` (0 drop, 1 accept, 2 stolen, 3 queue with the queue number in the high half) or `NFT_*`, see the constants.
    pub code: i32,
    /// The chain of a jump or goto.
    pub chain: Option<String>,
}

impl Verdict {
    /// `NF_DROP`.
    pub const DROP: i32 = 0;
    /// `NF_ACCEPT`.
    pub const ACCEPT: i32 = 1;
    /// `NF_STOLEN`.
    pub const STOLEN: i32 = 2;
    /// `NF_QUEUE`.
    pub const QUEUE: i32 = 3;
    /// `NFT_CONTINUE`.
    pub const CONTINUE: i32 = -1;
    /// `NFT_BREAK`: the rule does not match.
    pub const BREAK: i32 = -2;
    /// `NFT_JUMP`.
    pub const JUMP: i32 = -3;
    /// `NFT_GOTO`.
    pub const GOTO: i32 = -4;
    /// `NFT_RETURN`.
    pub const RETURN: i32 = -5;

    /// What it does with the packet.
    pub fn ending(&self) -> Ending<'_> {
        let chain = self.chain.as_deref().unwrap_or_default();
        match self.code {
            Self::DROP => Ending::Drop,
            Self::ACCEPT => Ending::Accept,
            Self::STOLEN => Ending::Stolen,
            Self::CONTINUE => Ending::Continue,
            Self::JUMP => Ending::Jump(chain),
            Self::GOTO => Ending::Goto(chain),
            Self::RETURN => Ending::Return,
            code if code >= 0 && code & 0xff == Self::QUEUE => Ending::Queue,
            code => Ending::Other(code),
        }
    }
}

/// What a register is set to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// Bytes, as the register holds them.
    Value(Vec<u8>),
    /// A verdict, for register 0.
    Verdict(Verdict),
}

/// `NFT_CMP_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CmpOp {
    /// Equal.
    Eq,
    /// Not equal.
    Neq,
    /// Less.
    Lt,
    /// Less or equal.
    Lte,
    /// Greater.
    Gt,
    /// Greater or equal.
    Gte,
}

/// `NFT_PAYLOAD_*`: what an offset counts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PayloadBase {
    /// The link-layer header.
    Link,
    /// The network header.
    Network,
    /// The transport header.
    Transport,
    /// What follows the transport header.
    Inner,
    /// A tunnel's header, inside of [`Expr::Inner`] only (`NFT_PAYLOAD_TUN_HEADER`).
    Tunnel,
}

/// An expression: one step of a rule.
///
/// Optional fields are attributes that the kernel leaves out where they do not apply.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "the fields are the attributes of the kernel's NFTA_* enums, by their names there"
)]
pub enum Expr {
    /// `immediate`: sets a register, 0 being the verdict.
    Immediate { dreg: u32, data: Data },
    /// `cmp`: breaks unless the register compares so; only as many bytes as `data` has.
    Cmp { sreg: u32, op: CmpOp, data: Vec<u8> },
    /// `range`: breaks unless the register is within, ends included (or not, with `invert`).
    Range {
        sreg: u32,
        invert: bool,
        from: Vec<u8>,
        to: Vec<u8>,
    },
    /// `bitwise`: `NFT_BITWISE_*`: 0 `dreg = (sreg & mask) ^ xor`, 1 left shift and 2 right shift by `data` (u32, host order),
    /// from 6.13 on 3 and, 4 or, 5 xor, with `data` or `sreg2`.
    Bitwise {
        sreg: u32,
        sreg2: Option<u32>,
        dreg: u32,
        len: u32,
        op: u32,
        mask: Vec<u8>,
        xor: Vec<u8>,
        data: Vec<u8>,
    },
    /// `byteorder`: `NFT_BYTEORDER_*`: 0 network to host, 1 host to network, for `len` bytes in units of `size`.
    Byteorder {
        sreg: u32,
        dreg: u32,
        op: u32,
        len: u32,
        size: u32,
    },
    /// `lookup`: breaks unless the key is in the set (`flags` 1: is not), and sets `dreg` to its data.
    Lookup {
        set: String,
        sreg: u32,
        dreg: Option<u32>,
        flags: u32,
    },
    /// `dynset`: `NFT_DYNSET_OP_*` 0 add, 1 update, 2 delete; flags 1 invert, 2 expressions. The timeout is in milliseconds.
    Dynset {
        set: String,
        op: u32,
        sreg_key: u32,
        sreg_data: Option<u32>,
        timeout: Option<u64>,
        flags: u32,
        exprs: Vec<Expr>,
    },
    /// `payload`: loads packet bytes.
    Payload {
        dreg: u32,
        base: PayloadBase,
        offset: u32,
        len: u32,
    },
    /// `payload`: writes packet bytes.
    PayloadSet {
        sreg: u32,
        base: PayloadBase,
        offset: u32,
        len: u32,
        csum_type: u32,
        csum_offset: u32,
        csum_flags: u32,
    },
    /// `exthdr`: loads from an IPv6 extension header or a TCP, IP, SCTP or DCCP option (`NFT_EXTHDR_OP_*` 0 ipv6, 1 tcpopt, 2 ipv4,
    /// 3 sctp, 4 dccp); flag 1: whether it is there.
    Exthdr {
        dreg: u32,
        kind: u8,
        offset: u32,
        len: u32,
        flags: u32,
        op: u32,
    },
    /// `exthdr`: writes to one.
    ExthdrSet {
        sreg: u32,
        kind: u8,
        offset: u32,
        len: u32,
        flags: u32,
        op: u32,
    },
    /// `exthdr`: removes a TCP option (`reset tcp option`).
    ExthdrReset { kind: u8, op: u32 },
    /// `meta`: loads a packet's metadatum, `NFT_META_*`.
    Meta { dreg: u32, key: u32 },
    /// `meta`: sets one.
    MetaSet { sreg: u32, key: u32 },
    /// `ct`: loads a property of the connection, `NFT_CT_*`, of one direction (0 original, 1 reply) or of none.
    Ct {
        dreg: u32,
        key: u32,
        direction: Option<u8>,
    },
    /// `ct`: sets one.
    CtSet {
        sreg: u32,
        key: u32,
        direction: Option<u8>,
    },
    /// `notrack`.
    Notrack,
    /// `counter`.
    Counter(Counters),
    /// `limit`: `NFT_LIMIT_*` 0 packets, 1 bytes; `rate` per `unit` seconds; flag 1: over.
    Limit {
        rate: u64,
        unit: u64,
        burst: u32,
        kind: u32,
        flags: u32,
    },
    /// `quota`: flags 1 over, 2 depleted.
    Quota {
        bytes: u64,
        consumed: u64,
        flags: u32,
    },
    /// `connlimit`: flag 1: over.
    Connlimit { count: u32, flags: u32 },
    /// `last`: milliseconds since a packet came by, if one did.
    Last { msecs: Option<u64> },
    /// `log`: to syslog (`level`, `flags`) or to NFLOG (`group`, `snaplen`, `qthreshold`).
    Log {
        prefix: Option<String>,
        level: Option<u32>,
        flags: Option<u32>,
        group: Option<u16>,
        snaplen: Option<u32>,
        qthreshold: Option<u16>,
    },
    /// `reject`: `NFT_REJECT_*` 0 icmp, 1 tcp reset, 2 icmpx.
    Reject { kind: u32, code: Option<u8> },
    /// `queue`: flags 1 bypass, 2 fanout; either `num` and `total`, or a register.
    Queue {
        num: Option<u16>,
        total: Option<u16>,
        flags: u16,
        sreg: Option<u32>,
    },
    /// `nat`: `NFT_NAT_*` 0 source, 1 destination; registers of addresses and ports; flags `NF_NAT_RANGE_*`.
    Nat {
        kind: u32,
        family: u32,
        addr_min: Option<u32>,
        addr_max: Option<u32>,
        proto_min: Option<u32>,
        proto_max: Option<u32>,
        flags: u32,
    },
    /// `masq`.
    Masq {
        flags: u32,
        proto_min: Option<u32>,
        proto_max: Option<u32>,
    },
    /// `redir`.
    Redir {
        flags: u32,
        proto_min: Option<u32>,
        proto_max: Option<u32>,
    },
    /// `tproxy`.
    Tproxy {
        family: u32,
        reg_addr: Option<u32>,
        reg_port: Option<u32>,
    },
    /// `dup`: sends a copy.
    Dup {
        sreg_addr: Option<u32>,
        sreg_dev: Option<u32>,
    },
    /// `fwd`: sends the packet out of a device.
    Fwd {
        sreg_dev: u32,
        sreg_addr: Option<u32>,
        nfproto: Option<u32>,
    },
    /// `synproxy`: flags `NF_SYNPROXY_OPT_*`.
    Synproxy { mss: u16, wscale: u8, flags: u32 },
    /// `flow_offload`: adds the flow to a flowtable, after which its packets bypass the chains.
    FlowOffload { table: String },
    /// `fib`: `NFT_FIB_RESULT_*` 1 oif, 2 oifname, 3 address type; flags 1 saddr, 2 daddr, 4 mark, 8 iif, 16 oif, 32 presence.
    Fib { dreg: u32, result: u32, flags: u32 },
    /// `rt`: `NFT_RT_*` 0 classid, 1 nexthop, 2 nexthop of IPv6, 3 tcp mss, 4 ipsec.
    Rt { dreg: u32, key: u32 },
    /// `socket`: `NFT_SOCKET_*` 0 transparent, 1 mark, 2 wildcard, 3 cgroupv2 (of `level`).
    Socket {
        dreg: u32,
        key: u32,
        level: Option<u32>,
    },
    /// `osf`: the sender's operating system; flag 1: with its version.
    Osf { dreg: u32, ttl: u8, flags: u32 },
    /// `xfrm`: `NFT_XFRM_KEY_*`; direction 0 in, 1 out.
    Xfrm {
        dreg: u32,
        key: u32,
        direction: u8,
        spnum: u32,
    },
    /// `tunnel`: `NFT_TUNNEL_*` 0 path, 1 id; mode 0 any, 1 receive, 2 send.
    Tunnel { dreg: u32, key: u32, mode: u32 },
    /// `numgen`: `NFT_NG_*` 0 incremental, 1 random.
    Numgen {
        dreg: u32,
        modulus: u32,
        kind: u32,
        offset: u32,
    },
    /// `hash`: `NFT_HASH_*` 0 jenkins (of `len` bytes from `sreg`), 1 symmetric.
    Hash {
        sreg: Option<u32>,
        dreg: u32,
        len: u32,
        modulus: u32,
        seed: Option<u32>,
        offset: u32,
        kind: u32,
    },
    /// `objref`: uses the object of this type (`NFT_OBJECT_*`) and name.
    Objref { kind: u32, name: String },
    /// `objref`: uses the object that an object map gives for the key.
    ObjrefMap { sreg: u32, set: String },
    /// `inner`: runs the expression on the packet inside a tunnel: `NFT_INNER_*` 1 vxlan, 2 geneve; flags 1 header size, 2 link layer,
    /// 4 network, 8 transport.
    Inner {
        num: u32,
        kind: u32,
        flags: u32,
        hdrsize: u32,
        expr: Box<Expr>,
    },
    /// `match`: an xtables match; `info` is its `struct xt_*_info`, in host order.
    Match {
        name: String,
        rev: u32,
        info: Vec<u8>,
    },
    /// `target`: an xtables target; as [`Expr::Match`].
    Target {
        name: String,
        rev: u32,
        info: Vec<u8>,
    },
    /// An expression of any other name, or one whose attributes could not be read: they are in `data`.
    Unknown { name: String, data: Vec<u8> },
}

impl Expr {
    /// What the expression does with the packet, as far as it matters beyond the rule's match.
    pub fn ending(&self) -> Ending<'_> {
        match self {
            Self::Immediate {
                dreg: 0,
                data: Data::Verdict(verdict),
            } => verdict.ending(),
            Self::Lookup {
                set, dreg: Some(0), ..
            } => Ending::Map(set),
            Self::Reject { .. } => Ending::Reject,
            Self::Queue { .. } => Ending::Queue,
            Self::Nat { .. } | Self::Masq { .. } | Self::Redir { .. } | Self::Tproxy { .. } => {
                Ending::Accept
            }
            Self::Fwd { .. } | Self::Synproxy { .. } => Ending::Stolen,
            Self::Target { name, .. } => match name.as_str() {
                "REJECT" => Ending::Reject,
                "NFQUEUE" | "QUEUE" => Ending::Queue,
                "SYNPROXY" => Ending::Stolen,
                "SNAT" | "DNAT" | "MASQUERADE" | "REDIRECT" | "NETMAP" | "TPROXY" => Ending::Accept,
                "LOG" | "NFLOG" | "ULOG" | "MARK" | "CONNMARK" | "CONNSECMARK" | "SECMARK"
                | "CT" | "NOTRACK" | "TCPMSS" | "TCPOPTSTRIP" | "DSCP" | "TOS" | "TTL" | "HL"
                | "ECN" | "CLASSIFY" | "CHECKSUM" | "TRACE" | "SET" | "TEE" | "HMARK"
                | "IDLETIMER" | "LED" | "RATEEST" | "AUDIT" => Ending::Continue,
                _ => Ending::Target(name),
            },
            _ => Ending::Continue,
        }
    }

    /// Whether this is the same expression as `other`, apart from what was counted or measured.
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Counter(_), Self::Counter(_)) | (Self::Last { .. }, Self::Last { .. }) => true,
            (Self::Quota { bytes: a, .. }, Self::Quota { bytes: b, .. }) => a == b,
            (a, b) => a == b,
        }
    }

    /// The name of the expression's type in the kernel.
    pub fn name(&self) -> &str {
        match self {
            Self::Immediate { .. } => "immediate",
            Self::Cmp { .. } => "cmp",
            Self::Range { .. } => "range",
            Self::Bitwise { .. } => "bitwise",
            Self::Byteorder { .. } => "byteorder",
            Self::Lookup { .. } => "lookup",
            Self::Dynset { .. } => "dynset",
            Self::Payload { .. } | Self::PayloadSet { .. } => "payload",
            Self::Exthdr { .. } | Self::ExthdrSet { .. } | Self::ExthdrReset { .. } => "exthdr",
            Self::Meta { .. } | Self::MetaSet { .. } => "meta",
            Self::Ct { .. } | Self::CtSet { .. } => "ct",
            Self::Notrack => "notrack",
            Self::Counter(_) => "counter",
            Self::Limit { .. } => "limit",
            Self::Quota { .. } => "quota",
            Self::Connlimit { .. } => "connlimit",
            Self::Last { .. } => "last",
            Self::Log { .. } => "log",
            Self::Reject { .. } => "reject",
            Self::Queue { .. } => "queue",
            Self::Nat { .. } => "nat",
            Self::Masq { .. } => "masq",
            Self::Redir { .. } => "redir",
            Self::Tproxy { .. } => "tproxy",
            Self::Dup { .. } => "dup",
            Self::Fwd { .. } => "fwd",
            Self::Synproxy { .. } => "synproxy",
            Self::FlowOffload { .. } => "flow_offload",
            Self::Fib { .. } => "fib",
            Self::Rt { .. } => "rt",
            Self::Socket { .. } => "socket",
            Self::Osf { .. } => "osf",
            Self::Xfrm { .. } => "xfrm",
            Self::Tunnel { .. } => "tunnel",
            Self::Numgen { .. } => "numgen",
            Self::Hash { .. } => "hash",
            Self::Objref { .. } | Self::ObjrefMap { .. } => "objref",
            Self::Inner { .. } => "inner",
            Self::Match { .. } => "match",
            Self::Target { .. } => "target",
            Self::Unknown { name, .. } => name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ruleset::model::Rule;

    fn verdict(code: i32, chain: Option<&str>) -> Expr {
        let chain = chain.map(str::to_owned);
        Expr::Immediate {
            dreg: 0,
            data: Data::Verdict(Verdict { code, chain }),
        }
    }

    fn rule(exprs: Vec<Expr>) -> Rule {
        Rule {
            exprs,
            ..Rule::default()
        }
    }

    #[test]
    fn the_verdict_is_the_ending() {
        let counter = Expr::Counter(Counters::default());
        let drop = rule(vec![counter.clone(), verdict(Verdict::DROP, None)]);
        assert_eq!(
            (drop.ending(), drop.decides(), drop.is_reject()),
            (Ending::Drop, true, false)
        );
        let none = rule(vec![counter]);
        assert_eq!((none.ending(), none.decides()), (Ending::Continue, false));
        let jump = rule(vec![verdict(Verdict::JUMP, Some("sub"))]);
        assert_eq!(
            (jump.ending(), jump.decides()),
            (Ending::Jump("sub"), false)
        );
        let map = Expr::Lookup {
            set: "__map0".into(),
            sreg: 1,
            dreg: Some(0),
            flags: 0,
        };
        assert_eq!(rule(vec![map]).ending(), Ending::Map("__map0"));
        assert_eq!(
            rule(vec![verdict(3 | 7 << 16, None)]).ending(),
            Ending::Queue
        );
    }

    #[test]
    fn a_rule_that_counted_is_the_same_rule() {
        let counted = |packets| Expr::Counter(Counters { packets, bytes: 0 });
        let drop = verdict(Verdict::DROP, None);
        let (one, two) = (
            rule(vec![counted(1), drop.clone()]),
            rule(vec![counted(2), drop]),
        );
        assert!(one.is_same(&two));
        assert!(!one.is_same(&rule(vec![counted(1), verdict(Verdict::ACCEPT, None)])));
        assert!(!one.is_same(&rule(vec![counted(1)])));
    }

    #[test]
    fn rejections_of_both_kinds() {
        let native = rule(vec![Expr::Reject {
            kind: 1,
            code: None,
        }]);
        let target = Expr::Target {
            name: "REJECT".into(),
            rev: 0,
            info: vec![0; 4],
        };
        let compat = rule(vec![target]);
        assert!(native.is_reject() && native.decides() && compat.is_reject() && compat.decides());
        let log = Expr::Target {
            name: "LOG".into(),
            rev: 0,
            info: Vec::new(),
        };
        let logged = rule(vec![log, verdict(Verdict::DROP, None)]);
        assert!(logged.decides() && !logged.is_reject());
    }
}
