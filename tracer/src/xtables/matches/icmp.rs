//! `icmp`, `icmp6`, and the headers of IPsec: `esp`, `ah`, `ipcomp`.

use std::fmt::{self, Write as _};

use zerocopy::FromBytes;

use super::super::info::{Cond, Not, Span, read, write_span};

/// Any SPI.
const ANY_SPI: Span<u32> = Span::new(0, u32::MAX);

/// `icmp` (`struct ipt_icmp`) and `icmp6` (`struct ip6t_icmp`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Icmp {
    /// Type; 255 of `icmp` is any.
    pub kind: u8,
    /// Code.
    pub code: Span<u8>,
    /// The test of type and code is turned round.
    pub inverted: bool,
}

#[derive(FromBytes)]
#[repr(C)]
struct RawIcmp {
    kind: u8,
    code: [u8; 2],
    inverted: u8,
}

impl Icmp {
    pub(super) fn decode(info: &[u8]) -> Option<Self> {
        let raw: RawIcmp = read(info)?;
        Some(Self {
            kind: raw.kind,
            code: raw.code.into(),
            inverted: raw.inverted & 1 != 0,
        })
    }

    /// Options of `icmp`.
    pub(super) fn options4(&self, out: &mut String) -> fmt::Result {
        if self.kind == 255 {
            write!(out, "{} --icmp-type any", Not(self.inverted))
        } else {
            self.write(out, "--icmp-type")
        }
    }

    /// Options of `icmp6`.
    pub(super) fn options6(&self, out: &mut String) -> fmt::Result {
        self.write(out, "--icmpv6-type")
    }

    fn write(&self, out: &mut String, option: &str) -> fmt::Result {
        write!(out, "{} {option} {}", Not(self.inverted), self.kind)?;
        if self.code != Span::new(0, 255) {
            write!(out, "/{}", self.code.min)?;
        }
        Ok(())
    }
}

/// `esp`, `ah` of IPv4 and `ipcomp`: a range of SPIs (CPIs).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spi {
    /// The range; 0 to 4294967295 where the rule asks for none.
    pub spi: Cond<Span<u32>>,
    /// `ipcomp` only: the reserved field must be zero.
    pub reserved: bool,
}

#[derive(FromBytes)]
#[repr(C)]
struct RawSpi {
    spi: [u32; 2],
    inverted: u8,
    /// `ipcomp` only; padding of the others.
    reserved: u8,
}

const _: () = assert!(size_of::<RawSpi>() == 12);

impl Spi {
    pub(super) fn decode(name: &str, info: &[u8]) -> Option<Self> {
        let raw: RawSpi = read(info)?;
        Some(Self {
            spi: Cond::new(raw.spi.into(), raw.inverted & 1 != 0),
            reserved: name == "ipcomp" && raw.reserved != 0,
        })
    }

    pub(super) fn options(&self, out: &mut String, option: &str) -> fmt::Result {
        write_span(out, option, &self.spi, &ANY_SPI)?;
        if self.reserved {
            out.push_str(" --compres");
        }
        Ok(())
    }
}
