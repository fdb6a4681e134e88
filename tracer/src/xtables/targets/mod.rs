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

use std::fmt::{self, Write as _};

use super::{
    Family,
    info::{Masked, fits, read, write_unknown},
};
use crate::ruleset::render::Names;

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
    ///
    /// `info` is the kernel's structure, of the size that the revision has or padded to a multiple of eight bytes, as both
    /// `NFTA_TARGET_INFO` and the blob of a legacy table hold it.
    pub fn decode(name: &str, rev: u8, info: &[u8], family: Family) -> Self {
        Self::known(name, rev, info, family).unwrap_or_else(|| Self::Unknown {
            name: name.to_owned(),
            rev,
            info: info.to_vec(),
        })
    }

    fn known(name: &str, rev: u8, info: &[u8], family: Family) -> Option<Self> {
        use Family::{V4, V6};
        let nat = || nat::NatRange::decode(rev, info, family);
        Some(match (name, rev, family) {
            ("AUDIT", 0, _) => Self::Audit(read(info)?),
            ("CHECKSUM", 0, _) => Self::Checksum(read(info)?),
            ("CLASSIFY", 0, _) => Self::Classify(read(info)?),
            ("CONNMARK", _, _) => Self::Connmark(conn::Connmark::decode(rev, info)?),
            ("CONNSECMARK", 0, _) => Self::Connsecmark(read(info)?),
            ("CT", _, _) => Self::Ct(conn::Ct::decode(rev, info)?),
            ("DNAT", _, _) => Self::Dnat(nat()?),
            ("DNPT", 0, V6) => Self::Dnpt(packet::Npt::decode(info)?),
            ("DSCP", 0, _) => Self::Dscp(read(info)?),
            ("ECN", 0, V4) => Self::Ecn(packet::Ecn::decode(info)?),
            ("HL", 0, V6) => Self::Hl(packet::Hops::decode(info)?),
            ("HMARK", 0, _) => Self::Hmark(mark::Hmark::decode(info, family)?),
            ("IDLETIMER", _, _) => Self::Idletimer(log::Idletimer::decode(rev, info)?),
            ("LED", 0, _) => Self::Led(log::Led::decode(info)?),
            ("LOG", 0, _) => Self::Log(log::Log::decode(info)?),
            ("MARK", 2, _) => {
                let [value, mask] = read(info)?;
                Self::Mark(Masked { value, mask })
            }
            ("MASQUERADE", 0, _) => Self::Masquerade(nat()?),
            ("NETMAP", 0, _) => Self::Netmap(nat()?),
            ("NFLOG", 0, _) => Self::Nflog(log::Nflog::decode(info)?),
            ("NFQUEUE", _, _) => Self::Nfqueue(verdict::Nfqueue::decode(rev, info)?),
            ("NOTRACK", 0, _) => Self::Ct(conn::Ct::decode_notrack(info)?),
            ("RATEEST", 0, _) => Self::Rateest(log::Rateest::decode(info)?),
            ("REDIRECT", 0, _) => Self::Redirect(nat()?),
            ("REJECT", 0, _) => Self::Reject(verdict::Reject::decode(info, family)?),
            ("SECMARK", _, _) => Self::Secmark(mark::Secmark::decode(rev, info)?),
            ("SET", _, _) => Self::Set(mark::Set::decode(rev, info)?),
            ("SNAT", 0 | 1, _) => Self::Snat(nat()?),
            ("SNPT", 0, V6) => Self::Snpt(packet::Npt::decode(info)?),
            ("SYNPROXY", 0, _) => Self::Synproxy(verdict::Synproxy::decode(info)?),
            ("TCPMSS", 0, _) => Self::Tcpmss(read(info)?),
            ("TCPOPTSTRIP", 0, _) => Self::Tcpoptstrip(read(info)?),
            ("TEE", 1, _) => Self::Tee(log::Tee::decode(info, family)?),
            ("TOS", _, _) => Self::Tos(packet::Tos::decode(rev, info)?),
            ("TPROXY", 0, V4) | ("TPROXY", 1, _) => {
                Self::Tproxy(verdict::Tproxy::decode(rev, info, family)?)
            }
            ("TRACE", 0, _) if fits(info, 0) => Self::Trace,
            ("TTL", 0, V4) => Self::Ttl(packet::Hops::decode(info)?),
            _ => return None,
        })
    }

    /// The name that follows `-j`.
    pub fn name(&self) -> &str {
        match self {
            Self::Audit(_) => "AUDIT",
            Self::Checksum(_) => "CHECKSUM",
            Self::Classify(_) => "CLASSIFY",
            Self::Connmark(_) => "CONNMARK",
            Self::Connsecmark(_) => "CONNSECMARK",
            Self::Ct(ct) if ct.alias => "NOTRACK",
            Self::Ct(_) => "CT",
            Self::Dnat(_) => "DNAT",
            Self::Dnpt(_) => "DNPT",
            Self::Dscp(_) => "DSCP",
            Self::Ecn(_) => "ECN",
            Self::Hl(_) => "HL",
            Self::Hmark(_) => "HMARK",
            Self::Idletimer(_) => "IDLETIMER",
            Self::Led(_) => "LED",
            Self::Log(_) => "LOG",
            Self::Mark(_) => "MARK",
            Self::Masquerade(_) => "MASQUERADE",
            Self::Netmap(_) => "NETMAP",
            Self::Nflog(_) => "NFLOG",
            Self::Nfqueue(_) => "NFQUEUE",
            Self::Rateest(_) => "RATEEST",
            Self::Redirect(_) => "REDIRECT",
            Self::Reject(_) => "REJECT",
            Self::Secmark(_) => "SECMARK",
            Self::Set(_) => "SET",
            Self::Snat(_) => "SNAT",
            Self::Snpt(_) => "SNPT",
            Self::Synproxy(_) => "SYNPROXY",
            Self::Tcpmss(_) => "TCPMSS",
            Self::Tcpoptstrip(_) => "TCPOPTSTRIP",
            Self::Tee(_) => "TEE",
            Self::Tos(_) => "TOS",
            Self::Tproxy(_) => "TPROXY",
            Self::Trace => "TRACE",
            Self::Ttl(_) => "TTL",
            Self::Unknown { name, .. } => name,
        }
    }

    /// What becomes of a packet that reaches the target.
    ///
    /// Targets that change the packet drop it when there is no memory to do so or when it is malformed; that is not counted here.
    pub fn fate(&self) -> Fate {
        match self {
            Self::Reject(_) => Fate::Dropped,
            // nf_nat_setup_info accepts; it drops only if there is no free tuple.
            Self::Dnat(_)
            | Self::Snat(_)
            | Self::Masquerade(_)
            | Self::Redirect(_)
            | Self::Netmap(_) => Fate::Accepted,
            Self::Nfqueue(_) => Fate::Queued,
            // TPROXY accepts if there is a socket and drops otherwise; SYNPROXY takes SYN and ACK of a handshake and lets others go on.
            Self::Tproxy(_) | Self::Synproxy(_) | Self::Unknown { .. } => Fate::Unknown,
            Self::Audit(_)
            | Self::Checksum(_)
            | Self::Classify(_)
            | Self::Connmark(_)
            | Self::Connsecmark(_)
            | Self::Ct(_)
            | Self::Dnpt(_)
            | Self::Dscp(_)
            | Self::Ecn(_)
            | Self::Hl(_)
            | Self::Hmark(_)
            | Self::Idletimer(_)
            | Self::Led(_)
            | Self::Log(_)
            | Self::Mark(_)
            | Self::Nflog(_)
            | Self::Rateest(_)
            | Self::Secmark(_)
            | Self::Set(_)
            | Self::Snpt(_)
            | Self::Tcpmss(_)
            | Self::Tcpoptstrip(_)
            | Self::Tee(_)
            | Self::Tos(_)
            | Self::Trace
            | Self::Ttl(_) => Fate::Continues,
        }
    }

    /// Whether the target ends the packet's way through the table, as far as the rule tells.
    pub fn is_terminal(&self) -> bool {
        matches!(self.fate(), Fate::Accepted | Fate::Dropped | Fate::Queued)
    }

    /// Appends the target as iptables-save prints it, a space before each word: ` -j REJECT --reject-with icmp-port-unreachable`.
    pub fn save(&self, names: &Names, out: &mut String) {
        out.push_str(" -j ");
        out.push_str(self.name());
        // Writing to a String cannot fail.
        let _: fmt::Result = self.options(names, out);
    }

    fn options(&self, names: &Names, out: &mut String) -> fmt::Result {
        match self {
            Self::Audit(kind) => match kind {
                0 => write!(out, " --type accept"),
                1 => write!(out, " --type drop"),
                2 => write!(out, " --type reject"),
                other => write!(out, " [type {other}]"),
            },
            Self::Checksum(operation) if operation & 1 != 0 => write!(out, " --checksum-fill"),
            Self::Checksum(_) | Self::Trace => Ok(()),
            Self::Classify(priority) => {
                write!(
                    out,
                    " --set-class {:04x}:{:04x}",
                    priority >> 16,
                    priority & 0xffff
                )
            }
            Self::Connmark(it) => it.options(out),
            Self::Connsecmark(mode) => match mode {
                1 => write!(out, " --save"),
                2 => write!(out, " --restore"),
                other => write!(out, " [mode {other}]"),
            },
            Self::Ct(it) => it.options(out),
            Self::Dnat(range) => range.options(out, "--to-destination"),
            Self::Snat(range) => range.options(out, "--to-source"),
            Self::Masquerade(range) | Self::Redirect(range) => range.options(out, "--to-ports"),
            Self::Netmap(range) => range.netmap_options(out),
            Self::Dnpt(it) | Self::Snpt(it) => it.options(out),
            Self::Dscp(dscp) => write!(out, " --set-dscp {dscp:#04x}"),
            Self::Ecn(it) => it.options(out),
            Self::Hl(it) => it.options(out, "hl"),
            Self::Hmark(it) => it.options(out),
            Self::Idletimer(it) => it.options(out),
            Self::Led(it) => it.options(out),
            Self::Log(it) => it.options(out),
            Self::Mark(Masked { value, mask }) => write!(out, " --set-xmark {value:#x}/{mask:#x}"),
            Self::Nflog(it) => it.options(out),
            Self::Nfqueue(it) => it.options(out),
            Self::Rateest(it) => it.options(out),
            Self::Reject(with) => with.options(out),
            Self::Secmark(it) => it.options(out),
            Self::Set(it) => it.options(names, out),
            Self::Synproxy(it) => it.options(out),
            Self::Tcpmss(0xffff) => write!(out, " --clamp-mss-to-pmtu"),
            Self::Tcpmss(mss) => write!(out, " --set-mss {mss}"),
            Self::Tcpoptstrip(map) => write_tcp_options(map, out),
            Self::Tee(it) => it.options(out),
            Self::Tos(it) => it.options(out),
            Self::Tproxy(it) => it.options(out),
            Self::Ttl(it) => it.options(out, "ttl"),
            Self::Unknown { rev, info, .. } => write_unknown(out, *rev, info),
        }
    }
}

/// Writes the options of TCP that `TCPOPTSTRIP` takes away, by their numbers.
fn write_tcp_options(map: &[u32; 8], out: &mut String) -> fmt::Result {
    let set = |kind: u32| {
        usize::try_from(kind / 32)
            .ok()
            .and_then(|word| map.get(word))
            .is_some_and(|word| word & 1 << (kind % 32) != 0)
    };
    let mut separator = " --strip-options ";
    for kind in (0..256).filter(|kind| set(*kind)) {
        write!(out, "{separator}{kind}")?;
        separator = ",";
    }
    Ok(())
}
