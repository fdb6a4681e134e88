//! `conntrack` and `state`.

use std::net::IpAddr;

use std::fmt::{self, Write as _};

use zerocopy::FromBytes;

use super::super::{
    Family,
    info::{Bits, Cond, InetAddr, Masked, Not, Span, read},
};

/// `conntrack`, revisions 1 to 3 (`struct xt_conntrack_mtinfo1`, `2`, `3`), and `state` (`struct xt_state_info`), which asks for the state only.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Conntrack {
    /// It is to be printed as `-m state --state`: `XT_CONNTRACK_STATE_ALIAS` or the match `state`.
    pub alias: bool,
    /// State: bits [`STATE_INVALID`] and following.
    pub state: Option<Cond<u16>>,
    /// Protocol of the connection.
    pub proto: Option<Cond<u16>>,
    /// Source of the original direction.
    pub orig_src: Option<Cond<Masked<IpAddr>>>,
    /// Destination of the original direction.
    pub orig_dst: Option<Cond<Masked<IpAddr>>>,
    /// Source of the reply direction.
    pub reply_src: Option<Cond<Masked<IpAddr>>>,
    /// Destination of the reply direction.
    pub reply_dst: Option<Cond<Masked<IpAddr>>>,
    /// Source port of the original direction.
    pub orig_sport: Option<Cond<Span<u16>>>,
    /// Destination port of the original direction.
    pub orig_dport: Option<Cond<Span<u16>>>,
    /// Source port of the reply direction.
    pub reply_sport: Option<Cond<Span<u16>>>,
    /// Destination port of the reply direction.
    pub reply_dport: Option<Cond<Span<u16>>>,
    /// Status: bits `IPS_*` (1 expected, 2 seen reply, 4 assured, 8 confirmed); 0 is none.
    pub status: Option<Cond<u16>>,
    /// Seconds until it expires.
    pub expires: Option<Cond<Span<u32>>>,
    /// Direction.
    pub direction: Option<Direction>,
}

/// Direction of a packet in its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// As the first packet.
    Original,
    /// The other.
    Reply,
}

/// The packet belongs to no connection and could not have made one.
pub const STATE_INVALID: u16 = 1;
/// Of a connection with packets in both directions.
pub const STATE_ESTABLISHED: u16 = 1 << 1;
/// Of a connection that another one expected.
pub const STATE_RELATED: u16 = 1 << 2;
/// Of a new connection.
pub const STATE_NEW: u16 = 1 << 3;
/// The source is translated (`XT_CONNTRACK_STATE_SNAT`).
pub const STATE_SNAT: u16 = 1 << 6;
/// The destination is translated.
pub const STATE_DNAT: u16 = 1 << 7;
/// Not tracked. (`state`'s own bit for it, 1 << 6, is mapped to this one.)
pub const STATE_UNTRACKED: u16 = 1 << 8;

/// `XT_CONNTRACK_*` of `match_flags` and `invert_flags`.
mod flag {
    pub(super) const STATE: u16 = 1 << 0;
    pub(super) const PROTO: u16 = 1 << 1;
    pub(super) const ORIG_SRC: u16 = 1 << 2;
    pub(super) const ORIG_DST: u16 = 1 << 3;
    pub(super) const REPLY_SRC: u16 = 1 << 4;
    pub(super) const REPLY_DST: u16 = 1 << 5;
    pub(super) const STATUS: u16 = 1 << 6;
    pub(super) const EXPIRES: u16 = 1 << 7;
    pub(super) const ORIG_SPORT: u16 = 1 << 8;
    pub(super) const ORIG_DPORT: u16 = 1 << 9;
    pub(super) const REPLY_SPORT: u16 = 1 << 10;
    pub(super) const REPLY_DPORT: u16 = 1 << 11;
    pub(super) const DIRECTION: u16 = 1 << 12;
    pub(super) const STATE_ALIAS: u16 = 1 << 13;
}

/// The three revisions, which differ in the end (all of it in u16 or u8, so that no padding stands before it).
#[derive(FromBytes)]
#[repr(C)]
struct Raw<T> {
    /// Address and mask: source and destination of the original direction, then of the reply direction.
    addresses: [[InetAddr; 2]; 4],
    expires: [u32; 2],
    proto: u16,
    /// In the order of the addresses; in network order before revision 3.
    ports: [u16; 4],
    flags: u16,
    inverted: u16,
    /// State and status; in revision 3 then the last port of each range.
    end: T,
}

const _: () = assert!(size_of::<Raw<[u8; 2]>>() == 152);
const _: () = assert!(size_of::<Raw<[u16; 2]>>() == 156);
const _: () = assert!(size_of::<Raw<[u16; 6]>>() == 164);

impl<T> Raw<T> {
    fn with_end<U>(self, end: U) -> Raw<U> {
        let Self {
            addresses,
            expires,
            proto,
            ports,
            flags,
            inverted,
            ..
        } = self;
        Raw {
            addresses,
            expires,
            proto,
            ports,
            flags,
            inverted,
            end,
        }
    }

    /// As revision 3 has it.
    fn upgrade(mut self, state: u16, status: u16) -> Raw<[u16; 6]> {
        self.ports = self.ports.map(u16::from_be);
        let [a, b, c, d] = self.ports;
        self.with_end([state, status, a, b, c, d])
    }
}

impl Conntrack {
    pub(super) fn decode(rev: u8, info: &[u8], family: Family) -> Option<Self> {
        let head = match rev {
            1 => {
                let raw: Raw<[u8; 2]> = read(info)?;
                let [state, status] = raw.end;
                raw.upgrade(state.into(), status.into())
            }
            2 => {
                let raw: Raw<[u16; 2]> = read(info)?;
                let [state, status] = raw.end;
                raw.upgrade(state, status)
            }
            3 => read(info)?,
            _ => return None,
        };
        let [state, status, last @ ..] = head.end;
        let ([a, b, c, d], [e, f, g, h]) = (head.ports, last);
        let ports = [[a, e], [b, f], [c, g], [d, h]];
        let asked = |bit: u16| head.flags & bit != 0;
        let inverted = |bit: u16| head.inverted & bit != 0;
        let addr = |bit: u16, [value, mask]: [InetAddr; 2]| {
            let masked = Masked {
                value: value.get(family),
                mask: mask.get(family),
            };
            asked(bit).then(|| Cond::new(masked, inverted(bit)))
        };
        let port =
            |bit: u16, ports: [u16; 2]| asked(bit).then(|| Cond::new(ports.into(), inverted(bit)));
        let [orig_src, orig_dst, reply_src, reply_dst] = head.addresses;
        let [orig_sport, orig_dport, reply_sport, reply_dport] = ports;
        Some(Self {
            alias: asked(flag::STATE_ALIAS),
            state: asked(flag::STATE).then(|| Cond::new(state, inverted(flag::STATE))),
            proto: asked(flag::PROTO).then(|| Cond::new(head.proto, inverted(flag::PROTO))),
            orig_src: addr(flag::ORIG_SRC, orig_src),
            orig_dst: addr(flag::ORIG_DST, orig_dst),
            reply_src: addr(flag::REPLY_SRC, reply_src),
            reply_dst: addr(flag::REPLY_DST, reply_dst),
            orig_sport: port(flag::ORIG_SPORT, orig_sport),
            orig_dport: port(flag::ORIG_DPORT, orig_dport),
            reply_sport: port(flag::REPLY_SPORT, reply_sport),
            reply_dport: port(flag::REPLY_DPORT, reply_dport),
            status: asked(flag::STATUS).then(|| Cond::new(status, inverted(flag::STATUS))),
            expires: asked(flag::EXPIRES)
                .then(|| Cond::new(head.expires.into(), inverted(flag::EXPIRES))),
            direction: asked(flag::DIRECTION).then(|| {
                if inverted(flag::DIRECTION) {
                    Direction::Reply
                } else {
                    Direction::Original
                }
            }),
        })
    }

    /// Decodes `state`, whose structure has the mask of states only.
    pub(super) fn decode_state(info: &[u8]) -> Option<Self> {
        /// `XT_STATE_UNTRACKED`.
        const UNTRACKED: u32 = 1 << 6;
        let mask: u32 = read(info)?;
        let mut state = (mask & 0xf) as u16;
        if mask & UNTRACKED != 0 {
            state |= STATE_UNTRACKED;
        }
        Some(Self {
            alias: true,
            state: Some(Cond::new(state, false)),
            ..Self::default()
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        if let Some(state) = &self.state {
            let option = if self.alias { "--state" } else { "--ctstate" };
            write!(
                out,
                "{} {option} {}",
                Not(state.inverted),
                States(state.want)
            )?;
        }
        if let Some(proto) = &self.proto {
            write!(out, "{} --ctproto {}", Not(proto.inverted), proto.want)?;
        }
        let addresses = [
            ("--ctorigsrc", &self.orig_src),
            ("--ctorigdst", &self.orig_dst),
            ("--ctreplsrc", &self.reply_src),
            ("--ctrepldst", &self.reply_dst),
        ];
        for (option, address) in addresses {
            if let Some(address) = address {
                write!(out, "{} {option} {}", Not(address.inverted), address.want)?;
            }
        }
        let ports = [
            ("--ctorigsrcport", &self.orig_sport),
            ("--ctorigdstport", &self.orig_dport),
            ("--ctreplsrcport", &self.reply_sport),
            ("--ctrepldstport", &self.reply_dport),
        ];
        for (option, ports) in ports {
            match ports {
                Some(Cond {
                    want: Span { min, max: 0 },
                    inverted,
                }) => {
                    write!(out, "{} {option} {min}", Not(*inverted))?;
                }
                Some(ports) => write!(out, "{} {option} {}", Not(ports.inverted), ports.want)?,
                None => {}
            }
        }
        if let Some(status) = &self.status {
            write!(
                out,
                "{} --ctstatus {}",
                Not(status.inverted),
                Statuses(status.want)
            )?;
        }
        if let Some(expires) = &self.expires {
            write!(out, "{} --ctexpire {}", Not(expires.inverted), expires.want)?;
        }
        match self.direction {
            Some(Direction::Original) => out.push_str(" --ctdir ORIGINAL"),
            Some(Direction::Reply) => out.push_str(" --ctdir REPLY"),
            None => {}
        }
        Ok(())
    }
}

/// Names of states, in the order of iptables.
struct States(u16);

impl fmt::Display for States {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [(u16, &str); 7] = [
            (STATE_INVALID, "INVALID"),
            (STATE_NEW, "NEW"),
            (STATE_RELATED, "RELATED"),
            (STATE_ESTABLISHED, "ESTABLISHED"),
            (STATE_UNTRACKED, "UNTRACKED"),
            (STATE_SNAT, "SNAT"),
            (STATE_DNAT, "DNAT"),
        ];
        let mut separator = "";
        for (_, name) in NAMES.iter().filter(|(bit, _)| self.0 & bit != 0) {
            write!(f, "{separator}{name}")?;
            separator = ",";
        }
        Ok(())
    }
}

/// Names of `IPS_*`.
struct Statuses(u16);

impl fmt::Display for Statuses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 4] = ["EXPECTED", "SEEN_REPLY", "ASSURED", "CONFIRMED"];
        match self.0 {
            0 => f.write_str("NONE"),
            bits => Bits {
                bits: bits.into(),
                names: &NAMES,
            }
            .fmt(f),
        }
    }
}
