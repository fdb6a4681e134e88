//! `recent`, and matches on counters of other subsystems: `nfacct`, `rateest`.

use std::{
    fmt::{self, Write as _},
    net::IpAddr,
};

use zerocopy::FromBytes;

use super::super::{
    Family,
    info::{Address, InetAddr, Not, Quoted, read, text},
};

/// `recent`: `struct xt_recent_mtinfo` (revision 0), `xt_recent_mtinfo_v1` (revision 1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recent {
    /// Bits `XT_RECENT_*`: 1 check, 2 set, 4 update, 8 remove, 0x10 TTL, 0x20 reap.
    pub flags: u8,
    /// The test is turned round.
    pub inverted: bool,
    /// Seen in the last so many seconds; 0 is any time.
    pub seconds: u32,
    /// Seen at least so many times; 0 is not asked.
    pub hits: u32,
    /// Name of the list in /proc/net/xt_recent.
    pub name: String,
    /// The destination is looked up rather than the source.
    pub destination: bool,
    /// Mask of the address; `None` in revision 0.
    pub mask: Option<IpAddr>,
}

#[derive(FromBytes)]
#[repr(C)]
struct RawRecent {
    seconds: u32,
    hits: u32,
    flags: u8,
    inverted: u8,
    name: [u8; 200],
    side: u8,
}

#[derive(FromBytes)]
#[repr(C)]
struct RawRecent1 {
    old: RawRecent,
    mask: InetAddr,
}

const _: () = assert!(size_of::<RawRecent>() == 212);
const _: () = assert!(size_of::<RawRecent1>() == 228);

impl Recent {
    /// `XT_RECENT_CHECK`.
    pub const CHECK: u8 = 1;
    /// `XT_RECENT_SET`.
    pub const SET: u8 = 2;
    /// `XT_RECENT_UPDATE`.
    pub const UPDATE: u8 = 4;
    /// `XT_RECENT_REMOVE`.
    pub const REMOVE: u8 = 8;
    /// `XT_RECENT_TTL`.
    pub const TTL: u8 = 0x10;
    /// `XT_RECENT_REAP`.
    pub const REAP: u8 = 0x20;

    pub(super) fn decode(rev: u8, info: &[u8], family: Family) -> Option<Self> {
        let (raw, mask) = match rev {
            0 => (read(info)?, None),
            1 => {
                let RawRecent1 { old, mask } = read(info)?;
                (old, Some(mask.get(family)))
            }
            _ => return None,
        };
        Some(Self {
            flags: raw.flags,
            inverted: raw.inverted != 0,
            seconds: raw.seconds,
            hits: raw.hits,
            name: text(&raw.name),
            destination: raw.side == 1,
            mask,
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        let flag = |bit: u8| self.flags & bit != 0;
        write!(out, "{}", Not(self.inverted))?;
        let what = [
            (Self::SET, " --set"),
            (Self::CHECK, " --rcheck"),
            (Self::UPDATE, " --update"),
            (Self::REMOVE, " --remove"),
        ];
        for (_, option) in what.iter().filter(|(bit, _)| flag(*bit)) {
            out.push_str(option);
        }
        if self.seconds != 0 {
            write!(out, " --seconds {}", self.seconds)?;
        }
        if flag(Self::REAP) {
            out.push_str(" --reap");
        }
        if self.hits != 0 {
            write!(out, " --hitcount {}", self.hits)?;
        }
        if flag(Self::TTL) {
            out.push_str(" --rttl");
        }
        write!(out, " --name {}", self.name)?;
        if let Some(mask) = self.mask {
            write!(out, " --mask {}", Address(mask))?;
        }
        out.push_str(if self.destination {
            " --rdest"
        } else {
            " --rsource"
        });
        Ok(())
    }
}

/// `nfacct`: counts, and always matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nfacct {
    /// Name of the object.
    pub name: String,
}

#[derive(FromBytes)]
#[repr(C)]
struct RawNfacct {
    name: [u8; 32],
    _object: u64,
}

impl Nfacct {
    pub(super) fn decode(info: &[u8]) -> Option<Self> {
        let raw: RawNfacct = read(info)?;
        Some(Self {
            name: text(&raw.name),
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        // Two spaces, as iptables 1.8.9 prints it.
        write!(out, " --nfacct-name  {}", Quoted(&self.name))
    }
}

/// `rateest`: `struct xt_rateest_match_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rateest {
    /// First estimator.
    pub name1: String,
    /// Second, with `XT_RATEEST_MATCH_REL`.
    pub name2: String,
    /// Bits `XT_RATEEST_MATCH_*`: 1 invert, 2 absolute, 4 relative, 8 delta, 0x10 bytes, 0x20 packets.
    pub flags: u16,
    /// 0 none, 1 equal, 2 less, 3 greater.
    pub mode: u16,
    /// Bytes per second.
    pub bps1: u32,
    /// Packets per second.
    pub pps1: u32,
    /// Bytes per second.
    pub bps2: u32,
    /// Packets per second.
    pub pps2: u32,
}

#[derive(FromBytes)]
#[repr(C)]
struct RawRateest {
    name1: [u8; 16],
    name2: [u8; 16],
    flags: u16,
    mode: u16,
    /// Bytes and packets of the first, bytes and packets of the second.
    rates: [u32; 4],
    _estimators: [u64; 2],
}

const _: () = assert!(size_of::<RawRateest>() == 72);

impl Rateest {
    pub(super) fn decode(info: &[u8]) -> Option<Self> {
        let raw: RawRateest = read(info)?;
        let [bps1, pps1, bps2, pps2] = raw.rates;
        Some(Self {
            name1: text(&raw.name1),
            name2: text(&raw.name2),
            flags: raw.flags,
            mode: raw.mode,
            bps1,
            pps1,
            bps2,
            pps2,
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        let (relative, delta) = (self.flags & 4 != 0, self.flags & 8 != 0);
        if delta {
            out.push_str(" --rateest-delta");
        }
        write!(
            out,
            " {} {}",
            if relative { "--rateest1" } else { "--rateest" },
            self.name1
        )?;
        let bits = |bytes: u32| format!("{}", Bitrate(u64::from(bytes) * 8));
        if self.flags & 0x10 != 0 {
            self.write_rates(out, "bps", &bits(self.bps1), &bits(self.bps2))?;
        }
        if self.flags & 0x20 != 0 {
            self.write_rates(out, "pps", &self.pps1.to_string(), &self.pps2.to_string())?;
        }
        if relative {
            write!(out, " --rateest2 {}", self.name2)?;
        }
        Ok(())
    }

    fn write_rates(&self, out: &mut String, unit: &str, first: &str, second: &str) -> fmt::Result {
        let (inverted, absolute, delta) = (
            self.flags & 1 != 0,
            self.flags & 2 != 0,
            self.flags & 8 != 0,
        );
        let mode = match self.mode {
            1 => "eq",
            2 => "lt",
            3 => "gt",
            _ => "none",
        };
        if delta {
            write!(
                out,
                " --rateest-{unit}1 {first}{} --rateest-{mode} --rateest-{unit}2",
                Not(inverted)
            )?;
        } else {
            write!(out, "{} --rateest-{mode} --rateest-{unit}", Not(inverted))?;
        }
        if absolute || delta {
            write!(out, " {second}")?;
        }
        Ok(())
    }
}

/// Bits per second, in the largest unit that leaves four digits.
struct Bitrate(u64);

impl fmt::Display for Bitrate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // printf's %.0f rounds a half to the even neighbour.
        let rounded = |unit: u64| {
            let (whole, rest) = (self.0 / unit, self.0 % unit);
            whole + u64::from(rest * 2 > unit || rest * 2 == unit && whole % 2 == 1)
        };
        match self.0 {
            1_000_000_000.. => write!(f, "{}Mbit", rounded(1_000_000)),
            1_000_000.. => write!(f, "{}Kbit", rounded(1_000)),
            bits => write!(f, "{bits}bit"),
        }
    }
}
