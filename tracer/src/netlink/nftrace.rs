//! nf_tables traces: what the kernel says about a packet whose nftrace bit is set, rule by rule.
//!
//! The messages come by multicast, [`GROUP`], one for each rule that matches and one for a base chain's policy; rules that do not
//! match are silent. All numbers are big-endian but the id, which is opaque (net/netfilter/nf_tables_trace.c, v6.18). The headers,
//! the interfaces and the connection come with the first message of a base chain's evaluation only.

use super::attr::{Attr, AttrError, Attrs};
use crate::ruleset::{expr::Verdict, model::Family};

/// `NFNLGRP_NFTRACE`.
pub const GROUP: u32 = 9;
/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_TRACE`.
pub const NFT_MSG_TRACE: u16 = 10 << 8 | 17;

/// Size of `struct nfgenmsg`.
const NFGENMSG: usize = 4;

/// What a message is about (`enum nft_trace_types`, include/uapi/linux/netfilter/nf_tables.h, v6.18).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A base chain was left at its end: [`Trace::policy`] decides.
    Policy,
    /// A chain was left.
    Return,
    /// A rule matched; without [`Trace::rule`] the end of a chain was reached (6.18 says it so, other kernels with [`Kind::Return`]).
    Rule,
    /// Any other.
    Other(u32),
}

impl From<u32> for Kind {
    fn from(number: u32) -> Self {
        match number {
            1 => Self::Policy,
            2 => Self::Return,
            3 => Self::Rule,
            other => Self::Other(other),
        }
    }
}

/// The packet's headers, as far as the kernel copies them, and its interfaces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers {
    /// From the link layer's header on, at most 20 bytes; a VLAN tag that the device took out is put back.
    pub link: Vec<u8>,
    /// From the network layer's header on: up to the transport header if that is known, at most 40 bytes.
    pub network: Vec<u8>,
    /// From the transport header on, payload included, at most 20 bytes; none of fragments but the first.
    pub transport: Vec<u8>,
    /// Index of the input interface.
    pub iif: Option<u32>,
    /// Its type, `ARPHRD_*`.
    pub iif_type: Option<u16>,
    /// Index of the output interface.
    pub oif: Option<u32>,
    /// Its type, `ARPHRD_*`.
    pub oif_type: Option<u16>,
}

/// The packet's connection; kernels from 6.16 on send it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Connection {
    /// `NFTA_TRACE_CT_ID`, as `conntrack -L -o id` prints it.
    pub id: Option<u32>,
    /// 0 original, 1 reply.
    pub direction: Option<u8>,
    /// `IPS_*` bits; 0 is not sent.
    pub status: Option<u32>,
    /// Bits of `ct state`: 2 established, 4 related, 8 new, 0x40 untracked. **Absent for invalid packets** as for those that
    /// conntrack has not seen.
    pub state: Option<u32>,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// The table's family.
    pub family: Family,
    /// The packet's family, `NFPROTO_*`.
    pub nfproto: Option<Family>,
    /// The same for all messages of a packet in one hook, and often in later hooks; ids are used again.
    pub id: u32,
    /// What the message is about.
    pub kind: Kind,
    /// Name of the table.
    pub table: String,
    /// Name of the chain.
    pub chain: String,
    /// Handle of the rule that matched.
    pub rule: Option<u64>,
    /// What was done; none for [`Kind::Policy`].
    pub verdict: Option<Verdict>,
    /// The base chain's policy, for [`Kind::Policy`]: `NF_DROP` 0 or `NF_ACCEPT` 1.
    pub policy: Option<u32>,
    /// The packet's mark.
    pub mark: u32,
    /// In the first message of a base chain's evaluation.
    pub headers: Option<Headers>,
    /// In the same message, if the packet has one.
    pub connection: Option<Connection>,
}

impl Trace {
    /// Whether a base chain's policy or a rule drops the packet here.
    pub fn drops(&self) -> bool {
        match self.kind {
            Kind::Policy => self.policy == Some(0),
            // The high bits can carry an error number (NF_DROP_ERR).
            _ => self
                .verdict
                .as_ref()
                .is_some_and(|verdict| verdict.code >= 0 && verdict.code & 0xff == Verdict::DROP),
        }
    }
}

/// Decodes the payload of a [`NFT_MSG_TRACE`].
///
/// # Errors
/// What is no attribute, has not its size, or lacks the id, the type, the table or the chain.
pub fn decode(payload: &[u8]) -> Result<Trace, AttrError> {
    let Some(&[family, ..]) = payload.first_chunk::<NFGENMSG>() else {
        return Err(AttrError::Truncated {
            offset: 0,
            length: NFGENMSG,
            left: payload.len(),
        });
    };
    let (mut id, mut kind, mut table, mut chain) = (None, None, None, None);
    let (mut nfproto, mut rule, mut verdict, mut policy, mut mark) = (None, None, None, None, 0);
    let mut headers: Option<Headers> = None;
    let mut connection: Option<Connection> = None;
    for attr in Attrs::after(payload, NFGENMSG) {
        let attr = attr?;
        match attr.kind {
            1 => table = Some(attr.str()?.to_owned()),
            2 => chain = Some(attr.str()?.to_owned()),
            3 => rule = Some(attr.be64()?),
            4 => kind = Some(attr.be32()?.into()),
            5 => verdict = decode_verdict(&attr)?,
            6 => id = Some(attr.u32()?),
            7..=13 => header(headers.get_or_insert_default(), &attr)?,
            14 => mark = attr.be32()?,
            15 => nfproto = u8::try_from(attr.be32()?).ok().map(Family::from),
            16 => policy = Some(attr.be32()?),
            18 => connection.get_or_insert_default().id = Some(attr.be32()?),
            19 => connection.get_or_insert_default().direction = Some(attr.u8()?),
            20 => connection.get_or_insert_default().status = Some(attr.be32()?),
            21 => connection.get_or_insert_default().state = Some(attr.be32()?),
            _ => {}
        }
    }
    let missing = |kind| AttrError::Missing { kind };
    Ok(Trace {
        family: family.into(),
        nfproto,
        id: id.ok_or(missing(6))?,
        kind: kind.ok_or(missing(4))?,
        table: table.ok_or(missing(1))?,
        chain: chain.ok_or(missing(2))?,
        rule,
        verdict,
        policy,
        mark,
        headers,
        connection,
    })
}

fn header(headers: &mut Headers, attr: &Attr<'_>) -> Result<(), AttrError> {
    match attr.kind {
        7 => headers.link = attr.payload.to_vec(),
        8 => headers.network = attr.payload.to_vec(),
        9 => headers.transport = attr.payload.to_vec(),
        10 => headers.iif = Some(attr.be32()?),
        11 => headers.iif_type = Some(attr.be16()?),
        12 => headers.oif = Some(attr.be32()?),
        13 => headers.oif_type = Some(attr.be16()?),
        _ => {}
    }
    Ok(())
}

/// `NFTA_VERDICT_CODE` 1, `NFTA_VERDICT_CHAIN` 2.
fn decode_verdict(attr: &Attr<'_>) -> Result<Option<Verdict>, AttrError> {
    let Some(code) = attr.nested().find(1)? else {
        return Ok(None);
    };
    let chain = attr.nested().find(2)?;
    Ok(Some(Verdict {
        code: code.be32()?.cast_signed(),
        chain: chain
            .map(|chain| chain.str())
            .transpose()?
            .map(str::to_owned),
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::netlink::socket::Messages;

    /// What `nft_trace_notify` of 6.18.44 sent for a datagram to port 53 in `table inet t`: base chain `in` (policy drop) with
    /// `ct state new counter` (handle 6) and `udp dport 53-60 counter jump sub` (7), and in `sub` `udp dport 53 counter drop` (4).
    const FIRST: &str = "bc000000110a000000000000000000000100000008000f0000000002080004000000000308000600e9a3d8f807000200696e000006000100740000000c00030000000000000000060c00050008000100ffffffff08000a000000000206000b00000100001800080045000021af374000401176f80a4d00010a4d0002110009001b580035000d14bb68656c6c6f000000120007001a9280890fdd8ef6298657fd08000000080015000000000805001300000000000800120068f7c03c";
    const JUMP: &str = "5c000000110a000000000000000000000100000008000f0000000002080004000000000308000600e9a3d8f807000200696e000006000100740000000c00030000000000000000071400050008000100fffffffd0800020073756200";
    const DROP: &str = "54000000110a000000000000000000000100000008000f0000000002080004000000000308000600e9a3d8f8080002007375620006000100740000000c00030000000000000000040c0005000800010000000000";
    /// A datagram to port 55, which a rule has marked: the end of `sub`, and the policy of `in`.
    const END: &str = "50000000110a000000000000000000000100000008000f0000000002080004000000000308000600e6cab03e080002007375620006000100740000000c00050008000100ffffffff08000e0000000007";
    const POLICY: &str = "4c000000110a000000000000000000000100000008000f0000000002080004000000000108000600e6cab03e07000200696e00000600010074000000080010000000000008000e0000000007";
    /// An IPv6 datagram, and one that this machine sends.
    const IPV6: &str = "b8000000110a000000000000000000000100000008000f000000000a080004000000000308000600ff50a965080002007072650007000100747200000c00030000000000000000030c00050008000100ffffffff08000a000000000206000b00000100002c0008006003515d000e1140fd770000000000000000000000000001fd770000000000000000000000000002120009001b580035000efb1168656c6c6f360000120007001a9280890fdd8ef6298657fd86dd0000";
    const OUTPUT: &str = "8c000000110a000000000000000000000100000008000f0000000002080004000000000308000600fa9c0403080002006f75740007000100747200000c00030000000000000000040c00050008000100ffffffff08000c000000000206000d0000010000180008004500001f8ed340004011975e0a4d00020a4d00010f0009001e610063000b14b96f757400";

    fn payload(hex: &str) -> Vec<u8> {
        let bytes: Vec<u8> = (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
            .collect();
        let message = Messages::new(&bytes).next().unwrap().unwrap();
        assert_eq!(message.kind, NFT_MSG_TRACE);
        message.payload.to_vec()
    }

    fn trace(hex: &str) -> Trace {
        decode(&payload(hex)).unwrap()
    }

    #[test]
    fn the_first_message_has_headers_and_connection() {
        let first = trace(FIRST);
        assert_eq!(first.family, Family::Inet);
        assert_eq!(first.nfproto, Some(Family::Ip));
        assert_eq!(first.id, u32::from_ne_bytes([0xe9, 0xa3, 0xd8, 0xf8]));
        assert_eq!((&*first.table, &*first.chain), ("t", "in"));
        assert_eq!((first.kind, first.rule), (Kind::Rule, Some(6)));
        assert_eq!(first.verdict.as_ref().unwrap().code, Verdict::CONTINUE);
        assert!(!first.drops());
        let headers = first.headers.unwrap();
        assert_eq!(headers.network.len(), 20);
        assert_eq!(headers.network[12..16], [10, 77, 0, 1]);
        assert_eq!(headers.transport[..4], [0x1b, 0x58, 0, 53]);
        assert_eq!(headers.transport[8..], *b"hello");
        assert_eq!(headers.link[12..], [8, 0]);
        assert_eq!((headers.iif, headers.iif_type), (Some(2), Some(1)));
        assert_eq!((headers.oif, headers.oif_type), (None, None));
        assert_eq!(
            first.connection,
            Some(Connection {
                id: Some(0x68f7_c03c),
                direction: Some(0),
                status: None,
                state: Some(8),
            })
        );
    }

    #[test]
    fn later_messages_have_rule_and_verdict() {
        let jump = trace(JUMP);
        assert_eq!(jump.rule, Some(7));
        let verdict = jump.verdict.unwrap();
        assert_eq!(
            (verdict.code, verdict.chain.as_deref()),
            (Verdict::JUMP, Some("sub"))
        );
        let drop = trace(DROP);
        assert_eq!((&*drop.chain, drop.rule), ("sub", Some(4)));
        assert!(drop.drops());
        assert_eq!((drop.headers, drop.connection), (None, None));
    }

    #[test]
    fn ends_of_chains() {
        let end = trace(END);
        assert_eq!((end.kind, end.rule, end.mark), (Kind::Rule, None, 7));
        assert_eq!(end.verdict.as_ref().unwrap().code, Verdict::CONTINUE);
        assert!(!end.drops());
        let policy = trace(POLICY);
        assert_eq!((policy.kind, policy.policy), (Kind::Policy, Some(0)));
        assert_eq!(policy.verdict, None);
        assert!(policy.drops());
    }

    #[test]
    fn other_directions_and_families() {
        let ipv6 = trace(IPV6);
        assert_eq!(ipv6.nfproto, Some(Family::Ip6));
        assert_eq!(ipv6.headers.unwrap().network.len(), 40);
        assert_eq!(ipv6.connection, None);
        let headers = trace(OUTPUT).headers.unwrap();
        assert_eq!((headers.iif, headers.oif), (None, Some(2)));
        assert!(headers.link.is_empty());
    }

    #[test]
    fn what_is_missing_is_named() {
        let whole = payload(DROP);
        assert_eq!(decode(&whole[..4]), Err(AttrError::Missing { kind: 6 }));
        assert!(matches!(
            decode(&whole[..3]),
            Err(AttrError::Truncated { .. })
        ));
        // A queue's number and an error stand in the high bits of the code.
        let queue = |code: i32| Trace {
            verdict: Some(Verdict { code, chain: None }),
            ..trace(DROP)
        };
        assert!(!queue(0x0005_0003).drops());
        assert!(queue(0x000d_0000).drops());
        assert!(!queue(-3).drops());
    }

    proptest! {
        #[test]
        fn never_panics(
            edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
            length in any::<prop::sample::Index>(),
            which in 0..3_usize,
        ) {
            let mut bytes = payload([FIRST, JUMP, POLICY][which]);
            for (at, value) in edits {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            bytes.truncate(length.index(bytes.len() + 1));
            if let Ok(trace) = decode(&bytes) {
                let _ = trace.drops();
            }
        }
    }
}
