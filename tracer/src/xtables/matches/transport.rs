//! Matches on ports and flags: `tcp`, `udp`, `udplite`, `dccp`, `multiport`.

use std::fmt::{self, Write as _};

use zerocopy::FromBytes;

use super::super::info::{Bits, Cond, Not, Span, read, write_span};

/// Any port.
const ANY_PORT: Span<u16> = Span::new(0, 0xffff);

/// `tcp`: `struct xt_tcp`. The kernel does not match fragments other than the first one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tcp {
    /// Source port; 0 to 65535 where the rule asks for none.
    pub source: Cond<Span<u16>>,
    /// Destination port, likewise.
    pub destination: Cond<Span<u16>>,
    /// Flags that are looked at (byte 13 of the header); 0 for none.
    pub flags_mask: u8,
    /// Those that must be set, the rest of the mask must not.
    pub flags: u8,
    /// The flags' test is turned round.
    pub flags_inverted: bool,
    /// Kind of an option that must be there; 0 for none.
    pub option: Cond<u8>,
}

#[derive(FromBytes)]
#[repr(C)]
struct RawTcp {
    source: [u16; 2],
    destination: [u16; 2],
    option: u8,
    flags_mask: u8,
    flags: u8,
    inverted: u8,
}

const _: () = assert!(size_of::<RawTcp>() == 12);

impl Tcp {
    pub(super) fn decode(info: &[u8]) -> Option<Self> {
        let raw: RawTcp = read(info)?;
        Some(Self {
            source: Cond::new(raw.source.into(), raw.inverted & 1 != 0),
            destination: Cond::new(raw.destination.into(), raw.inverted & 2 != 0),
            flags_mask: raw.flags_mask,
            flags: raw.flags,
            flags_inverted: raw.inverted & 4 != 0,
            option: Cond::new(raw.option, raw.inverted & 8 != 0),
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        write_span(out, "--sport", &self.source, &ANY_PORT)?;
        write_span(out, "--dport", &self.destination, &ANY_PORT)?;
        if self.option.want != 0 || self.option.inverted {
            write!(
                out,
                "{} --tcp-option {}",
                Not(self.option.inverted),
                self.option.want
            )?;
        }
        if self.flags_mask != 0 || self.flags_inverted {
            let (mask, flags) = (TcpFlags(self.flags_mask), TcpFlags(self.flags));
            write!(
                out,
                "{} --tcp-flags {mask} {flags}",
                Not(self.flags_inverted)
            )?;
        }
        Ok(())
    }
}

/// Flags as iptables names them; it has no names for ECE and CWR, which only raw bytes can ask for.
struct TcpFlags(u8);

impl fmt::Display for TcpFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 8] = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
        if self.0 == 0 {
            return f.write_str("NONE");
        }
        Bits {
            bits: self.0.into(),
            names: &NAMES,
        }
        .fmt(f)
    }
}

/// `udp` and `udplite`: `struct xt_udp`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Udp {
    /// Source port; 0 to 65535 where the rule asks for none.
    pub source: Cond<Span<u16>>,
    /// Destination port, likewise.
    pub destination: Cond<Span<u16>>,
}

#[derive(FromBytes)]
#[repr(C)]
struct RawUdp {
    source: [u16; 2],
    destination: [u16; 2],
    inverted: u8,
}

const _: () = assert!(size_of::<RawUdp>() == 10);

impl Udp {
    pub(super) fn decode(info: &[u8]) -> Option<Self> {
        let raw: RawUdp = read(info)?;
        Some(Self {
            source: Cond::new(raw.source.into(), raw.inverted & 1 != 0),
            destination: Cond::new(raw.destination.into(), raw.inverted & 2 != 0),
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        write_span(out, "--sport", &self.source, &ANY_PORT)?;
        write_span(out, "--dport", &self.destination, &ANY_PORT)
    }
}

/// Writes the ports of `sctp` and `dccp`, which have a flag that says whether they are asked for.
pub(super) fn write_ports(
    out: &mut String,
    option: &str,
    ports: Option<&Cond<Span<u16>>>,
) -> fmt::Result {
    match ports {
        Some(ports) => write!(out, "{} {option} {}", Not(ports.inverted), ports.want),
        None => Ok(()),
    }
}

/// `dccp`: `struct xt_dccp_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dccp {
    /// Source port, where the rule asks for it.
    pub source: Option<Cond<Span<u16>>>,
    /// Destination port, where the rule asks for it.
    pub destination: Option<Cond<Span<u16>>>,
    /// A bit for each packet type, where the rule asks for it.
    pub types: Option<Cond<u16>>,
    /// Number of an option, where the rule asks for it.
    pub option: Option<Cond<u8>>,
}

#[derive(FromBytes)]
#[repr(C)]
struct RawDccp {
    destination: [u16; 2],
    source: [u16; 2],
    flags: u16,
    inverted: u16,
    types: u16,
    option: u8,
}

const _: () = assert!(size_of::<RawDccp>() == 16);

impl Dccp {
    pub(super) fn decode(info: &[u8]) -> Option<Self> {
        let raw: RawDccp = read(info)?;
        let inverted = |bit: u16| raw.inverted & bit != 0;
        let asked = |bit: u16| raw.flags & bit != 0;
        Some(Self {
            source: asked(1).then(|| Cond::new(raw.source.into(), inverted(1))),
            destination: asked(2).then(|| Cond::new(raw.destination.into(), inverted(2))),
            types: asked(4).then(|| Cond::new(raw.types, inverted(4))),
            option: asked(8).then(|| Cond::new(raw.option, inverted(8))),
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        const TYPES: [&str; 11] = [
            "REQUEST", "RESPONSE", "DATA", "ACK", "DATAACK", "CLOSEREQ", "CLOSE", "RESET", "SYNC",
            "SYNCACK", "INVALID",
        ];
        write_ports(out, "--sport", self.source.as_ref())?;
        write_ports(out, "--dport", self.destination.as_ref())?;
        if let Some(types) = &self.types {
            // INVALID stands for all of the types 10 to 15.
            let names = Bits {
                bits: (types.want & 0x7ff).into(),
                names: &TYPES,
            };
            write!(out, "{} --dccp-types {names}", Not(types.inverted))?;
        }
        if let Some(option) = &self.option {
            write!(
                out,
                "{} --dccp-option {}",
                Not(option.inverted),
                option.want
            )?;
        }
        Ok(())
    }
}

/// `multiport`: `struct xt_multiport` (revision 0) and `xt_multiport_v1` (revision 1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Multiport {
    /// Which port is looked at.
    pub side: PortSide,
    /// One of these must match; a single port is a range of one. Inverted: none may.
    pub ports: Cond<Vec<Span<u16>>>,
}

/// Which port `multiport` looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortSide {
    /// Source.
    Source,
    /// Destination.
    Destination,
    /// Either of the two.
    Either,
    /// A value that the kernel does not know.
    Other(u8),
}

#[derive(FromBytes)]
#[repr(C)]
struct RawMultiport0 {
    side: u8,
    count: u8,
    ports: [u16; 15],
}

#[derive(FromBytes)]
#[repr(C)]
struct RawMultiport1 {
    old: RawMultiport0,
    /// Non-zero: the range ends at the next port.
    is_range: [u8; 15],
    inverted: u8,
}

const _: () = assert!(size_of::<RawMultiport0>() == 32);
const _: () = assert!(size_of::<RawMultiport1>() == 48);

impl Multiport {
    pub(super) fn decode(rev: u8, info: &[u8]) -> Option<Self> {
        let raw = match rev {
            0 => RawMultiport1 {
                old: read(info)?,
                is_range: [0; 15],
                inverted: 0,
            },
            1 => read(info)?,
            _ => return None,
        };
        let mut ports = Vec::new();
        let mut rest = raw
            .old
            .ports
            .iter()
            .zip(raw.is_range)
            .take(usize::from(raw.old.count));
        while let Some((&min, is_range)) = rest.next() {
            let max = if is_range == 0 {
                min
            } else {
                rest.next().map_or(min, |(&max, _)| max)
            };
            ports.push(Span::new(min, max));
        }
        Some(Self {
            side: match raw.old.side {
                0 => PortSide::Source,
                1 => PortSide::Destination,
                2 => PortSide::Either,
                other => PortSide::Other(other),
            },
            ports: Cond::new(ports, raw.inverted != 0),
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        write!(out, "{}", Not(self.ports.inverted))?;
        match self.side {
            PortSide::Source => out.push_str(" --sports "),
            PortSide::Destination => out.push_str(" --dports "),
            PortSide::Either => out.push_str(" --ports "),
            PortSide::Other(other) => write!(out, " [{other}] ")?,
        }
        for (at, ports) in self.ports.want.iter().enumerate() {
            write!(out, "{}{ports}", if at == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}
