//! Matches that count or throw dice: `limit`, `hashlimit`, `quota`, `statistic`.

use std::fmt::{self, Write as _};

use zerocopy::FromBytes;

use super::super::{
    Family,
    info::{Cond, Not, read, text},
};

/// `limit`: `struct xt_rateinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// Time between two packets in units of 1/10,000 s.
    pub average: u32,
    /// Packets at once.
    pub burst: u32,
}

/// `XT_LIMIT_SCALE`, also of `hashlimit` in revision 1: units in a second.
const SCALE: u64 = 10_000;
/// `XT_HASHLIMIT_SCALE_v2`.
const SCALE_V2: u64 = 1_000_000;

/// Writes the rate with this time between two packets in the longest period that it divides well, and returns that period's seconds
/// (0 for a rate without limit).
fn write_rate(out: &mut String, between: u64, scale: u64) -> Result<u64, fmt::Error> {
    const PERIODS: [(u64, &str); 4] = [(86_400, "day"), (3_600, "hour"), (60, "min"), (1, "sec")];
    if between == 0 {
        out.push_str(" inf");
        return Ok(0);
    }
    let exact_enough = |seconds: u64| {
        let units = seconds * scale;
        between <= units && units / between >= units % between
    };
    // The first period that is too coarse ends the search, as in iptables; a day is taken unseen.
    let fine = PERIODS
        .iter()
        .skip(1)
        .take_while(|(seconds, _)| exact_enough(*seconds))
        .count();
    let (seconds, name) = PERIODS.get(fine).copied().unwrap_or((1, "sec"));
    write!(out, " {}/{name}", seconds * scale / between)?;
    Ok(seconds)
}

#[derive(FromBytes)]
#[repr(C)]
struct RawLimit {
    average: u32,
    burst: u32,
    _kernel: [u64; 4],
}

const _: () = assert!(size_of::<RawLimit>() == 40);

impl Limit {
    pub(super) fn decode(info: &[u8]) -> Option<Self> {
        let raw: RawLimit = read(info)?;
        Some(Self {
            average: raw.average,
            burst: raw.burst,
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        /// `XT_LIMIT_BURST` of iptables: not printed.
        const DEFAULT_BURST: u32 = 5;
        out.push_str(" --limit");
        write_rate(out, self.average.into(), SCALE)?;
        if self.burst != DEFAULT_BURST {
            write!(out, " --limit-burst {}", self.burst)?;
        }
        Ok(())
    }
}

/// `hashlimit`, revisions 1 to 3: `struct xt_hashlimit_mtinfo1`, `2`, `3`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hashlimit {
    /// Its revision: the unit of `average` depends on it.
    pub rev: u8,
    /// Name of the table in /proc/net/ipt_hashlimit.
    pub name: String,
    /// Bits `XT_HASHLIMIT_*`: 1 destination address, 2 destination port, 4 source address, 8 source port, 0x10 above, 0x20 bytes, 0x40 rate match.
    pub mode: u32,
    /// Time between two packets in units of 1/10,000 s (revision 1) or 1/1,000,000 s (2, 3), or with `XT_HASHLIMIT_BYTES` a cost of 16 bytes.
    pub average: u64,
    /// Packets at once (or units of bytes).
    pub burst: u64,
    /// Buckets.
    pub size: u32,
    /// Most entries.
    pub max: u32,
    /// Milliseconds.
    pub gc_interval: u32,
    /// Milliseconds.
    pub expire: u32,
    /// Seconds; revision 3 only.
    pub interval: u32,
    /// Prefix of the source that is grouped.
    pub source_prefix: u8,
    /// Likewise of the destination.
    pub destination_prefix: u8,
    /// Of the family: prefixes of 32 or 128 are not printed.
    pub full_prefix: u8,
}

/// `struct hashlimit_cfg1`.
#[derive(FromBytes)]
#[repr(C)]
struct RawHashlimit1 {
    name: [u8; 16],
    mode: u32,
    average: u32,
    burst: u32,
    /// Size, most entries, garbage collection, expiry.
    table: [u32; 4],
    prefixes: [u8; 2],
    _table: u64,
}

/// `struct hashlimit_cfg2`.
#[derive(FromBytes)]
#[repr(C)]
struct RawHashlimit2 {
    name: [u8; 255],
    average: u64,
    burst: u64,
    mode: u32,
    table: [u32; 4],
    prefixes: [u8; 2],
    _table: u64,
}

/// `struct hashlimit_cfg3`.
#[derive(FromBytes)]
#[repr(C)]
struct RawHashlimit3 {
    name: [u8; 255],
    average: u64,
    burst: u64,
    mode: u32,
    table: [u32; 4],
    interval: u32,
    prefixes: [u8; 2],
    _table: u64,
}

const _: () = assert!(size_of::<RawHashlimit1>() == 56);
const _: () = assert!(size_of::<RawHashlimit2>() == 304);
const _: () = assert!(size_of::<RawHashlimit3>() == 312);

impl Hashlimit {
    /// `XT_HASHLIMIT_HASH_DIP`.
    pub const BY_DESTINATION: u32 = 1;
    /// `XT_HASHLIMIT_HASH_DPT`.
    pub const BY_DESTINATION_PORT: u32 = 2;
    /// `XT_HASHLIMIT_HASH_SIP`.
    pub const BY_SOURCE: u32 = 4;
    /// `XT_HASHLIMIT_HASH_SPT`.
    pub const BY_SOURCE_PORT: u32 = 8;
    /// `XT_HASHLIMIT_INVERT`: matches above the rate.
    pub const ABOVE: u32 = 0x10;
    /// `XT_HASHLIMIT_BYTES`.
    pub const BYTES: u32 = 0x20;
    /// `XT_HASHLIMIT_RATE_MATCH`.
    pub const RATE_MATCH: u32 = 0x40;

    pub(super) fn decode(rev: u8, info: &[u8], family: Family) -> Option<Self> {
        let full_prefix = match family {
            Family::V4 => 32,
            Family::V6 => 128,
        };
        let (name, mode, average, burst, table, interval, prefixes) = match rev {
            1 => {
                let raw: RawHashlimit1 = read(info)?;
                let (average, burst) = (raw.average.into(), raw.burst.into());
                (
                    text(&raw.name),
                    raw.mode,
                    average,
                    burst,
                    raw.table,
                    0,
                    raw.prefixes,
                )
            }
            2 => {
                let raw: RawHashlimit2 = read(info)?;
                (
                    text(&raw.name),
                    raw.mode,
                    raw.average,
                    raw.burst,
                    raw.table,
                    0,
                    raw.prefixes,
                )
            }
            3 => {
                let raw: RawHashlimit3 = read(info)?;
                (
                    text(&raw.name),
                    raw.mode,
                    raw.average,
                    raw.burst,
                    raw.table,
                    raw.interval,
                    raw.prefixes,
                )
            }
            _ => return None,
        };
        let [size, max, gc_interval, expire] = table;
        let [source_prefix, destination_prefix] = prefixes;
        Some(Self {
            rev,
            name,
            mode,
            average,
            burst,
            size,
            max,
            gc_interval,
            expire,
            interval,
            source_prefix,
            destination_prefix,
            full_prefix,
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        /// Milliseconds; not printed.
        const DEFAULT_GC_INTERVAL: u32 = 1000;
        let mode = |bit: u32| self.mode & bit != 0;
        out.push_str(if mode(Self::ABOVE) {
            " --hashlimit-above"
        } else {
            " --hashlimit-upto"
        });
        let default_expire = if mode(Self::BYTES) {
            self.write_bytes(out)?
        } else {
            let scale = if self.rev == 1 { SCALE } else { SCALE_V2 };
            let seconds = write_rate(out, self.average, scale)?;
            write!(out, " --hashlimit-burst {}", self.burst)?;
            seconds
        };
        let keys = [
            (Self::BY_SOURCE, "srcip"),
            (Self::BY_SOURCE_PORT, "srcport"),
            (Self::BY_DESTINATION, "dstip"),
            (Self::BY_DESTINATION_PORT, "dstport"),
        ];
        let mut separator = " --hashlimit-mode ";
        for (_, key) in keys.iter().filter(|(bit, _)| mode(*bit)) {
            write!(out, "{separator}{key}")?;
            separator = ",";
        }
        write!(out, " --hashlimit-name {}", self.name)?;
        if self.size != 0 {
            write!(out, " --hashlimit-htable-size {}", self.size)?;
        }
        if self.max != 0 {
            write!(out, " --hashlimit-htable-max {}", self.max)?;
        }
        if self.gc_interval != DEFAULT_GC_INTERVAL {
            write!(out, " --hashlimit-htable-gcinterval {}", self.gc_interval)?;
        }
        if u64::from(self.expire) != default_expire * 1000 {
            write!(out, " --hashlimit-htable-expire {}", self.expire)?;
        }
        if self.source_prefix != self.full_prefix {
            write!(out, " --hashlimit-srcmask {}", self.source_prefix)?;
        }
        if self.destination_prefix != self.full_prefix {
            write!(out, " --hashlimit-dstmask {}", self.destination_prefix)?;
        }
        if self.rev == 3 && mode(Self::RATE_MATCH) {
            out.push_str(" --hashlimit-rate-match");
            if self.interval != 1 {
                write!(out, " --hashlimit-rate-interval {}", self.interval)?;
            }
        }
        Ok(())
    }

    /// Bytes per second that `average` stands for with [`Hashlimit::BYTES`].
    pub fn bytes_per_second(&self) -> u64 {
        // `XT_HASHLIMIT_BYTE_SHIFT`: the kernel counts in units of 16 bytes.
        let units = u64::from(u32::MAX)
            .checked_div(self.average)
            .unwrap_or(u32::MAX.into());
        units.wrapping_sub(1) << 4
    }

    /// Writes a rate in bytes, and the burst if there is one; returns the seconds after which an entry expires unless it is said.
    fn write_bytes(&self, out: &mut String) -> Result<u64, fmt::Error> {
        const UNITS: [(u64, &str); 3] = [(1 << 20, "m"), (1 << 10, "k"), (1, "")];
        let cost = |bytes: u64| {
            u64::from(u32::MAX).checked_div((bytes >> 4).wrapping_add(1) & u64::from(u32::MAX))
        };
        let bytes = self.bytes_per_second();
        let (unit, suffix) = UNITS
            .into_iter()
            .find(|&(unit, _)| {
                unit == 1 || bytes >= unit && cost(bytes & !(unit - 1)) == Some(self.average)
            })
            .unwrap_or((1, ""));
        write!(out, " {}{suffix}b/s", bytes / unit)?;
        if self.burst == 0 {
            return Ok(15);
        }
        let burst = bytes.wrapping_mul(self.burst);
        let (unit, suffix) = UNITS
            .into_iter()
            .find(|&(unit, _)| burst >= unit)
            .unwrap_or((1, ""));
        write!(out, " --hashlimit-burst {}{suffix}b", burst / unit)?;
        Ok(60)
    }
}

/// `quota`: `struct xt_quota_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quota {
    /// Bytes that were left when the rule was made.
    pub bytes: Cond<u64>,
}

#[derive(FromBytes)]
#[repr(C)]
struct RawQuota {
    flags: u32,
    _pad: u32,
    bytes: u64,
    _master: u64,
}

impl Quota {
    pub(super) fn decode(info: &[u8]) -> Option<Self> {
        let raw: RawQuota = read(info)?;
        Some(Self {
            bytes: Cond::new(raw.bytes, raw.flags & 1 != 0),
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        write!(
            out,
            "{} --quota {}",
            Not(self.bytes.inverted),
            self.bytes.want
        )
    }
}

/// `statistic`: `struct xt_statistic_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Statistic {
    /// With a probability in units of 1/0x80000000.
    Random(Cond<u32>),
    /// One in every `every` (as the structure has it: less one), `packet` the first one.
    Nth {
        /// Period less one.
        every: u32,
        /// First.
        packet: u32,
        /// Where the count began.
        count: u32,
        /// All others.
        inverted: bool,
    },
    /// A mode that is not known.
    Other(u16),
}

#[derive(FromBytes)]
#[repr(C)]
struct RawStatistic {
    mode: u16,
    flags: u16,
    /// Probability; or period, first packet, count.
    values: [u32; 3],
    _master: u64,
}

impl Statistic {
    pub(super) fn decode(info: &[u8]) -> Option<Self> {
        let raw: RawStatistic = read(info)?;
        let inverted = raw.flags & 1 != 0;
        let [every, packet, count] = raw.values;
        Some(match raw.mode {
            0 => Self::Random(Cond::new(every, inverted)),
            1 => Self::Nth {
                every,
                packet,
                count,
                inverted,
            },
            other => Self::Other(other),
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        match self {
            Self::Random(probability) => {
                let share = f64::from(probability.want) / f64::from(1u32 << 31);
                write!(
                    out,
                    " --mode random{} --probability {share:.11}",
                    Not(probability.inverted)
                )
            }
            Self::Nth {
                every,
                packet,
                inverted,
                ..
            } => {
                let every = every.wrapping_add(1);
                write!(
                    out,
                    " --mode nth{} --every {every} --packet {packet}",
                    Not(*inverted)
                )
            }
            Self::Other(mode) => write!(out, " [mode {mode}]"),
        }
    }
}
