//! Targets: `struct xt_*_info` -> [`Target`], and its iptables-save text.
//!
//! | module | subject |
//! |---|---|
//! | [`conn`] | CT, CONNMARK |
//! | [`log`] | LOG, NFLOG, TEE and others that tell somebody of the packet |
//! | [`mark`] | MARK, HMARK, SET, SECMARK and others that mark it |
//! | [`nat`] | DNAT, SNAT, MASQUERADE, REDIRECT, NETMAP |
//! | [`packet`] | TTL, TOS and others that change it |
//! | [`verdict`] | REJECT, NFQUEUE, TPROXY, SYNPROXY |

pub mod conn;
pub mod log;
pub mod mark;
pub mod nat;
pub mod packet;
pub mod verdict;

use super::{Family, info::Masked};

/// A target other than a plain verdict or a jump, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// `AUDIT`: 0 accept, 1 drop, 2 reject; the packet goes on.
    Audit(u8),
    /// `CHECKSUM`: bit 1 fills it in.
    Checksum(u8),
    /// `CLASSIFY`: the packet's priority.
    Classify(u32),
    /// `CONNMARK`.
    Connmark(conn::Connmark),
    /// `CONNSECMARK`: 1 save, 2 restore.
    Connsecmark(u8),
    /// `CT`, `NOTRACK`.
    Ct(conn::Ct),
    /// `DNAT`.
    Dnat(nat::NatRange),
    /// `DNPT`.
    Dnpt(packet::Npt),
    /// `DSCP`: the six bits.
    Dscp(u8),
    /// `ECN`.
    Ecn(packet::Ecn),
    /// `HL`.
    Hl(packet::Hops),
    /// `HMARK`.
    Hmark(mark::Hmark),
    /// `IDLETIMER`.
    Idletimer(log::Idletimer),
    /// `LED`.
    Led(log::Led),
    /// `LOG`.
    Log(log::Log),
    /// `MARK`, revision 2: `(mark & !mask) ^ value`.
    Mark(Masked<u32>),
    /// `MASQUERADE`.
    Masquerade(nat::NatRange),
    /// `NETMAP`.
    Netmap(nat::NatRange),
    /// `NFLOG`.
    Nflog(log::Nflog),
    /// `NFQUEUE`.
    Nfqueue(verdict::Nfqueue),
    /// `RATEEST`.
    Rateest(log::Rateest),
    /// `REDIRECT`.
    Redirect(nat::NatRange),
    /// `REJECT`.
    Reject(verdict::Reject),
    /// `SECMARK`: mode and context.
    Secmark(mark::Secmark),
    /// `SET`.
    Set(mark::Set),
    /// `SNAT`.
    Snat(nat::NatRange),
    /// `SNPT`.
    Snpt(packet::Npt),
    /// `SYNPROXY`.
    Synproxy(verdict::Synproxy),
    /// `TCPMSS`: the value; 0xffff clamps it to the path's.
    Tcpmss(u16),
    /// `TCPOPTSTRIP`: a bit for each option.
    Tcpoptstrip([u32; 8]),
    /// `TEE`.
    Tee(log::Tee),
    /// `TOS`.
    Tos(packet::Tos),
    /// `TPROXY`.
    Tproxy(verdict::Tproxy),
    /// `TRACE`.
    Trace,
    /// `TTL`.
    Ttl(packet::Hops),
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

/// What becomes of the packet after a target has seen it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The next rule (`XT_CONTINUE`).
    Continues,
    /// It is accepted by this table.
    Accepted,
    /// It is dropped.
    Dropped,
    /// It is handed to user space.
    Queued,
    /// It depends on more than the rule, or the target is not known.
    Unknown,
}

impl Target {
    /// Decodes a target. Total: what is not understood is [`Target::Unknown`].
    pub fn decode(name: &str, rev: u8, info: &[u8], family: Family) -> Self {
        let _ = family;
        Self::Unknown {
            name: name.to_owned(),
            rev,
            info: info.to_vec(),
        }
    }
}
