//! nf_tables expressions -> what iptables was asked for.
//!
//! What is written natively grew with the versions: 1.8.0 wrote all matches as xtables', 1.8.8 and later write ports, TCP flags, marks,
//! limits, NFLOG and TRACE as nft's own, 1.8.10 moved addresses before interfaces and wrote the protocol of IPv4 as packet bytes, 1.8.11
//! wrote inverted ports apart. All of it is understood, and beyond that the native forms that iptables-nft reads but does not write
//! (`iptables/nft-shared.c`, 1.8.9; `nft-ruleparse*.c`, 1.8.13). Stricter than iptables-nft, which does not look at everything: an expression
//! that says more or other than the words would is no rule of iptables.

use super::ip::{self, inverted};
use super::load::{Load, Loaded, Registers};
use super::ports::{self, Ports};
use super::{Action, Spec};
use crate::ruleset::model::{self, CmpOp, Data, Expr, PayloadBase, Rule, Verdict};
use crate::xtables::info::{Cond, Masked};
use crate::xtables::matches::{Match, meta, packet, rate};
use crate::xtables::targets::{Target, log};
use crate::xtables::{Family, legacy::Ip};

/// `NFT_META_*` (include/uapi/linux/netfilter/nf_tables.h, v6.18).
pub(super) mod key {
    pub(crate) const MARK: u32 = 3;
    pub(crate) const IIFNAME: u32 = 6;
    pub(crate) const OIFNAME: u32 = 7;
    pub(crate) const NFTRACE: u32 = 12;
    pub(crate) const L4PROTO: u32 = 16;
    pub(crate) const PKTTYPE: u32 = 19;
}

/// `XT_LIMIT_SCALE` (include/uapi/linux/netfilter/xt_limit.h, v6.18): units in a second.
const LIMIT_SCALE: u64 = 10_000;
const DAY: u64 = 24 * 60 * 60;

/// What the rule says in iptables' words, if that is all that it says.
pub(super) fn spec(family: model::Family, rule: &Rule) -> Option<Spec<'_>> {
    let family = match family {
        model::Family::Ip => Family::V4,
        model::Family::Ip6 => Family::V6,
        _ => return None,
    };
    if rule.broken {
        return None;
    }
    let mut lift = Lift {
        family,
        ip: ip::any(family),
        pieces: Vec::new(),
        registers: Registers::default(),
        action: Action::Nothing,
    };
    for expr in &rule.exprs {
        lift.step(expr)?;
    }
    let mut matches: Vec<Match> = lift.pieces.into_iter().map(Piece::into_match).collect();
    // iptables-nft 1.8.2 and earlier, and nft, keep comments apart; iptables-nft reads them as matches.
    if let Some(comment) = &rule.comment {
        matches.push(Match::Comment(comment.clone()));
    }
    Some(Spec {
        family,
        ip: lift.ip,
        matches,
        action: lift.action,
    })
}

/// A match, or what of one has been read.
enum Piece {
    Whole(Match),
    Ports(Ports),
}

impl Piece {
    fn into_match(self) -> Match {
        match self {
            Self::Whole(whole) => whole,
            Self::Ports(ports) => ports.into_match(),
        }
    }
}

struct Lift<'a> {
    family: Family,
    ip: Ip,
    pieces: Vec<Piece>,
    registers: Registers,
    action: Action<'a>,
}

impl<'a> Lift<'a> {
    fn step(&mut self, expr: &'a Expr) -> Option<()> {
        // A counter does not change what a rule does; anything else behind the target would be done after it.
        if self.action != Action::Nothing && !matches!(expr, Expr::Counter(_)) {
            return None;
        }
        match expr {
            Expr::Counter(_) => Some(()),
            Expr::Payload {
                dreg,
                base,
                offset,
                len,
            } => {
                let load = Load::Payload {
                    base: *base,
                    offset: *offset,
                    len: *len,
                };
                self.registers.set(*dreg, *len, plain(load))
            }
            Expr::Meta { dreg, key } => {
                let len = match *key {
                    key::IIFNAME | key::OIFNAME => 16,
                    _ => 4,
                };
                self.registers.set(*dreg, len, plain(Load::Meta(*key)))
            }
            Expr::Bitwise { .. } => self.bitwise(expr),
            Expr::Cmp { sreg, op, data } => {
                let loaded = self.registers.get(*sreg)?.clone();
                self.compare(&loaded, *op, data)
            }
            Expr::Range {
                sreg,
                invert,
                from,
                to,
            } => {
                let loaded = self.registers.get(*sreg)?.clone();
                let (protocol, load) = self.transport(&loaded)?;
                let from = u16::from_be_bytes(from.as_slice().try_into().ok()?);
                let to = u16::from_be_bytes(to.as_slice().try_into().ok()?);
                self.ports(protocol)?.range(load, *invert, from, to)
            }
            Expr::Limit {
                rate,
                unit,
                burst,
                kind: 0,
                flags: 0,
            } => self.limit(*rate, *unit, *burst),
            Expr::Immediate {
                dreg: 0,
                data: Data::Verdict(verdict),
            } => self.verdict(verdict),
            Expr::Immediate {
                dreg,
                data: Data::Value(bytes),
            } => {
                let len = u32::try_from(bytes.len()).ok()?;
                let load = Load::Immediate(bytes.clone());
                self.registers.set(*dreg, len, plain(load))
            }
            Expr::MetaSet { sreg, key } => self.meta_set(*sreg, *key),
            Expr::Log { .. } => self.log(expr),
            Expr::Match { name, rev, info } => {
                let rev = u8::try_from(*rev).ok()?;
                let decoded = Match::decode(name, rev, info, self.family);
                self.whole(decoded)
            }
            Expr::Target { name, rev, info } => {
                let rev = u8::try_from(*rev).ok()?;
                let target = Target::decode(name, rev, info, self.family);
                self.act(Action::Target(target))
            }
            _ => None,
        }
    }

    fn act(&mut self, action: Action<'a>) -> Option<()> {
        self.action = action;
        Some(())
    }

    fn whole(&mut self, whole: Match) -> Option<()> {
        self.pieces.push(Piece::Whole(whole));
        Some(())
    }

    fn verdict(&mut self, verdict: &'a Verdict) -> Option<()> {
        let chain = verdict.chain.as_deref();
        self.act(match verdict.code {
            Verdict::ACCEPT => Action::Verdict("ACCEPT"),
            Verdict::DROP => Action::Verdict("DROP"),
            Verdict::RETURN => Action::Verdict("RETURN"),
            Verdict::JUMP => Action::Jump(chain?),
            Verdict::GOTO => Action::Goto(chain?),
            _ => return None,
        })
    }

    fn bitwise(&mut self, expr: &Expr) -> Option<()> {
        let Expr::Bitwise {
            sreg,
            sreg2: None,
            dreg,
            len,
            op: 0,
            mask,
            xor,
            ..
        } = expr
        else {
            return None;
        };
        let loaded = self.registers.get(*sreg)?;
        let fresh = loaded.mask.is_none() && !matches!(loaded.load, Load::Immediate(_));
        if !fresh || mask.len() != usize::try_from(*len).ok()? || xor.iter().any(|byte| *byte != 0)
        {
            return None;
        }
        let masked = Loaded {
            load: loaded.load.clone(),
            mask: Some(mask.clone()),
        };
        self.registers.set(*dreg, *len, masked)
    }

    fn compare(&mut self, loaded: &Loaded, op: CmpOp, data: &[u8]) -> Option<()> {
        match &loaded.load {
            Load::Immediate(_) => None,
            Load::Meta(key) => self.meta(*key, loaded.mask.as_deref(), op, data),
            Load::Payload {
                base: PayloadBase::Network,
                offset,
                len,
            } => {
                let len = usize::try_from(*len).ok()?;
                if data.len() != len || loaded.mask.as_ref().is_some_and(|m| m.len() != len) {
                    return None;
                }
                self.network(*offset, loaded.mask.as_deref(), op, data)
            }
            Load::Payload { .. } => {
                let (protocol, load) = self.transport(loaded)?;
                match (self.family, protocol) {
                    (Family::V4, ports::ICMP) | (Family::V6, ports::ICMPV6) => {
                        let icmp = ports::icmp(self.family, load, op, data)?;
                        self.whole(icmp)
                    }
                    _ => self.ports(protocol)?.compare(load, op, data),
                }
            }
        }
    }

    /// The protocol whose header was loaded from, which the rule must have asked for before.
    fn transport<'l>(&self, loaded: &'l Loaded) -> Option<(u8, &'l Loaded)> {
        let known = self.ip.inverted & inverted::PROTOCOL == 0;
        match loaded.load {
            Load::Payload {
                base: PayloadBase::Transport,
                ..
            } if known && self.ip.proto != 0 => Some((u8::try_from(self.ip.proto).ok()?, loaded)),
            _ => None,
        }
    }

    /// `-m tcp` or `-m udp` of this rule: native forms of several comparisons are one match.
    fn ports(&mut self, protocol: u8) -> Option<&mut Ports> {
        let at = self
            .pieces
            .iter()
            .position(|piece| matches!(piece, Piece::Ports(_)));
        let at = match at {
            Some(at) => at,
            None => {
                self.pieces.push(Piece::Ports(Ports::new(protocol)?));
                self.pieces.len() - 1
            }
        };
        match self.pieces.get_mut(at)? {
            Piece::Ports(ports) => Some(ports),
            Piece::Whole(_) => None,
        }
    }

    fn meta(&mut self, key: u32, mask: Option<&[u8]>, op: CmpOp, data: &[u8]) -> Option<()> {
        let not = inversion(op)?;
        match (key, mask) {
            (key::IIFNAME, None) => {
                let name = ip::interface(data, not)?;
                ip::set_interface(&mut self.ip.iface_in, name.0)?;
                self.invert(inverted::IN, name.1)
            }
            (key::OIFNAME, None) => {
                let name = ip::interface(data, not)?;
                ip::set_interface(&mut self.ip.iface_out, name.0)?;
                self.invert(inverted::OUT, name.1)
            }
            (key::L4PROTO, None) => self.protocol(data, not),
            (key::MARK, mask) => {
                let word = |bytes: &[u8]| Some(u32::from_ne_bytes(bytes.try_into().ok()?));
                let mark = Cond {
                    want: Masked {
                        value: word(data)?,
                        mask: mask.map_or(Some(u32::MAX), word)?,
                    },
                    inverted: not,
                };
                self.whole(Match::Mark(meta::Mark { mark }))
            }
            (key::PKTTYPE, None) => {
                let &[kind] = data else { return None };
                let kind = Cond {
                    want: i32::from(kind),
                    inverted: not,
                };
                self.whole(Match::Pkttype(packet::Pkttype { kind }))
            }
            _ => None,
        }
    }

    fn protocol(&mut self, data: &[u8], not: bool) -> Option<()> {
        let &[protocol] = data else { return None };
        // 0 is every protocol to iptables.
        if self.ip.proto != 0 || protocol == 0 {
            return None;
        }
        self.ip.proto = u16::from(protocol);
        self.invert(inverted::PROTOCOL, not)
    }

    fn invert(&mut self, flag: u8, not: bool) -> Option<()> {
        if not {
            self.ip.inverted |= flag;
        }
        Some(())
    }

    /// A field of the IP header (RFC 791, RFC 8200: offsets).
    fn network(&mut self, offset: u32, mask: Option<&[u8]>, op: CmpOp, data: &[u8]) -> Option<()> {
        match (self.family, offset, data.len()) {
            (Family::V4, 12, 1..=4) | (Family::V6, 8, 1..=16) => {
                let not = inversion(op)?;
                let (address, mask) = ip::address(self.family, data, mask)?;
                ip::set_address(&mut self.ip.src, &mut self.ip.src_mask, address, mask)?;
                self.invert(inverted::SOURCE, not)
            }
            (Family::V4, 16, 1..=4) | (Family::V6, 24, 1..=16) => {
                let not = inversion(op)?;
                let (address, mask) = ip::address(self.family, data, mask)?;
                ip::set_address(&mut self.ip.dst, &mut self.ip.dst_mask, address, mask)?;
                self.invert(inverted::DESTINATION, not)
            }
            // The fragment offset: 13 bits, 0 in the first fragment.
            (Family::V4, 6, 2) if mask == Some(&[0x1f, 0xff]) && data == [0, 0] => {
                if self.ip.flags & ip::FRAGMENT != 0 {
                    return None;
                }
                self.ip.flags |= ip::FRAGMENT;
                let not = !inversion(op)?;
                self.invert(inverted::FRAGMENT, not)
            }
            (Family::V4, 9, 1) | (Family::V6, 6, 1) if mask.is_none() => {
                self.protocol(data, inversion(op)?)
            }
            (Family::V4, 8, 1) | (Family::V6, 7, 1) if mask.is_none() => {
                let &[value] = data else { return None };
                let (op, value) = match op {
                    CmpOp::Eq => (packet::HopsOp::Eq, value),
                    CmpOp::Neq => (packet::HopsOp::Ne, value),
                    CmpOp::Lt => (packet::HopsOp::Lt, value),
                    CmpOp::Gt => (packet::HopsOp::Gt, value),
                    CmpOp::Lte => (packet::HopsOp::Lt, value.checked_add(1)?),
                    CmpOp::Gte => (packet::HopsOp::Gt, value.checked_sub(1)?),
                };
                let hops = packet::Hops { op, value };
                self.whole(match self.family {
                    Family::V4 => Match::Ttl(hops),
                    Family::V6 => Match::Hl(hops),
                })
            }
            _ => None,
        }
    }

    /// iptables keeps the time between two packets, nft the packets in a time: only where the one gives the other is it the same limit.
    fn limit(&mut self, rate: u64, unit: u64, burst: u32) -> Option<()> {
        if unit > DAY {
            return None;
        }
        let scaled = LIMIT_SCALE.checked_mul(unit)?;
        let average = scaled.checked_div(rate)?;
        if scaled.checked_div(average)? != rate {
            return None;
        }
        let average = u32::try_from(average).ok()?;
        self.whole(Match::Limit(rate::Limit { average, burst }))
    }

    fn meta_set(&mut self, sreg: u32, key: u32) -> Option<()> {
        let Loaded {
            load: Load::Immediate(bytes),
            mask: None,
        } = self.registers.get(sreg)?
        else {
            return None;
        };
        let target = match key {
            key::NFTRACE if bytes.first().is_some_and(|on| *on != 0) => Target::Trace,
            key::MARK => Target::Mark(Masked {
                value: u32::from_ne_bytes(bytes.as_slice().try_into().ok()?),
                mask: u32::MAX,
            }),
            _ => return None,
        };
        self.act(Action::Target(target))
    }

    /// NFLOG. LOG is a target of xtables even with iptables-nft.
    fn log(&mut self, expr: &Expr) -> Option<()> {
        let Expr::Log {
            prefix,
            level: None,
            flags: None,
            group: Some(group),
            snaplen,
            qthreshold,
        } = expr
        else {
            return None;
        };
        self.act(Action::Target(Target::Nflog(log::Nflog {
            group: *group,
            prefix: prefix.clone().unwrap_or_default(),
            length: snaplen.unwrap_or_default(),
            copy_length: snaplen.is_some(),
            threshold: qthreshold.unwrap_or_default(),
        })))
    }
}

fn plain(load: Load) -> Loaded {
    Loaded { load, mask: None }
}

/// Equal or not.
fn inversion(op: CmpOp) -> Option<bool> {
    match op {
        CmpOp::Eq => Some(false),
        CmpOp::Neq => Some(true),
        _ => None,
    }
}
