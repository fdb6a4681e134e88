//! `-m tcp`, `-m udp`, `-m icmp` and `-m icmp6` in nft's own expressions.

use super::load::{Load, Loaded};
use crate::ruleset::model::CmpOp;
use crate::xtables::Family;
use crate::xtables::info::{Cond, Span};
use crate::xtables::matches::{Match, icmp, transport};

pub(super) const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
pub(super) const ICMPV6: u8 = 58;

/// What a rule asks of a TCP or UDP header.
#[derive(Debug)]
pub(super) struct Ports {
    protocol: u8,
    source: Port,
    destination: Port,
    /// Mask, value, inverted.
    flags: Option<(u8, u8, bool)>,
}

/// A port as it is asked for so far.
#[derive(Debug, Default, Clone, Copy)]
struct Port {
    min: Option<u16>,
    max: Option<u16>,
    inverted: bool,
}

impl Ports {
    /// `None` for a protocol without such a match.
    pub(super) fn new(protocol: u8) -> Option<Self> {
        matches!(protocol, TCP | UDP).then(|| Self {
            protocol,
            source: Port::default(),
            destination: Port::default(),
            flags: None,
        })
    }

    pub(super) fn into_match(self) -> Match {
        let source = self.source.into_cond();
        let destination = self.destination.into_cond();
        if self.protocol == UDP {
            return Match::Udp(transport::Udp {
                source,
                destination,
            });
        }
        let (flags_mask, flags, flags_inverted) = self.flags.unwrap_or_default();
        Match::Tcp(transport::Tcp {
            source,
            destination,
            flags_mask,
            flags,
            flags_inverted,
            option: Cond::default(),
        })
    }

    /// A comparison of header bytes.
    pub(super) fn compare(&mut self, loaded: &Loaded, op: CmpOp, data: &[u8]) -> Option<()> {
        let Load::Payload { offset, len, .. } = loaded.load else {
            return None;
        };
        match (offset, len, data, &loaded.mask) {
            (0, 2, &[a, b], None) => self.source.compare(op, u16::from_be_bytes([a, b])),
            (2, 2, &[a, b], None) => self.destination.compare(op, u16::from_be_bytes([a, b])),
            // Up to 1.8.10, `! --sport 1 ! --dport 2` was compiled to this with `Neq`: then the kernel lets one of them match, and
            // iptables-save says what was asked for.
            (0, 4, &[a, b, c, d], None) if matches!(op, CmpOp::Eq | CmpOp::Neq) => {
                self.source.compare(op, u16::from_be_bytes([a, b]))?;
                self.destination.compare(op, u16::from_be_bytes([c, d]))
            }
            (13, 1, &[value], mask) if self.protocol == TCP && self.flags.is_none() => {
                let inverted = match op {
                    CmpOp::Eq => false,
                    CmpOp::Neq => true,
                    _ => return None,
                };
                let mask = match mask.as_deref() {
                    Some(&[mask]) => mask,
                    Some(_) => return None,
                    None => 0xff,
                };
                // No mask means to iptables that no flags are asked for.
                self.flags = Some((mask, value, inverted)).filter(|flags| flags.0 != 0);
                self.flags.map(|_| ())
            }
            _ => None,
        }
    }

    /// A range of ports.
    pub(super) fn range(&mut self, loaded: &Loaded, not: bool, from: u16, to: u16) -> Option<()> {
        let Loaded {
            load: Load::Payload { offset, len: 2, .. },
            mask: None,
        } = loaded
        else {
            return None;
        };
        let port = match offset {
            0 => &mut self.source,
            2 => &mut self.destination,
            _ => return None,
        };
        port.set(from, to, not)
    }
}

impl Port {
    fn into_cond(self) -> Cond<Span<u16>> {
        Cond {
            want: Span {
                min: self.min.unwrap_or(0),
                max: self.max.unwrap_or(u16::MAX),
            },
            inverted: self.inverted,
        }
    }

    fn compare(&mut self, op: CmpOp, port: u16) -> Option<()> {
        match op {
            CmpOp::Eq => self.set(port, port, false),
            CmpOp::Neq => self.set(port, port, true),
            CmpOp::Lt => self.at_most(port.checked_sub(1)?),
            CmpOp::Lte => self.at_most(port),
            CmpOp::Gt => self.at_least(port.checked_add(1)?),
            CmpOp::Gte => self.at_least(port),
        }
    }

    fn set(&mut self, min: u16, max: u16, inverted: bool) -> Option<()> {
        if self.min.is_some() || self.max.is_some() {
            return None;
        }
        *self = Self {
            min: Some(min),
            max: Some(max),
            inverted,
        };
        Some(())
    }

    fn at_least(&mut self, port: u16) -> Option<()> {
        if self.inverted || self.min.is_some() {
            return None;
        }
        self.min = Some(port);
        Some(())
    }

    fn at_most(&mut self, port: u16) -> Option<()> {
        if self.inverted || self.max.is_some() {
            return None;
        }
        self.max = Some(port);
        Some(())
    }
}

/// Type and perhaps code of an ICMP message.
pub(super) fn icmp(family: Family, loaded: &Loaded, op: CmpOp, data: &[u8]) -> Option<Match> {
    let Loaded {
        load: Load::Payload { offset: 0, len, .. },
        mask: None,
    } = loaded
    else {
        return None;
    };
    let (kind, code) = match (len, data) {
        (1, &[kind]) => (kind, Span { min: 0, max: 0xff }),
        (2, &[kind, code]) => (
            kind,
            Span {
                min: code,
                max: code,
            },
        ),
        _ => return None,
    };
    let inverted = match op {
        CmpOp::Eq => false,
        CmpOp::Neq => true,
        _ => return None,
    };
    let message = icmp::Icmp {
        kind,
        code,
        inverted,
    };
    // 255 is any type to `-m icmp`.
    if family == Family::V4 && kind == 0xff {
        return None;
    }
    Some(match family {
        Family::V4 => Match::Icmp(message),
        Family::V6 => Match::Icmp6(message),
    })
}
