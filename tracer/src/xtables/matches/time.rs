//! `time`.

use std::fmt::{self, Write as _};

use jiff::{Timestamp, tz::TimeZone};
use zerocopy::FromBytes;

use super::super::info::{Bits, read};

/// `time`: `struct xt_time_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Time {
    /// First second since 1970.
    pub date_start: u32,
    /// Last second; 0x7fffffff... for none.
    pub date_stop: u32,
    /// First second of the day.
    pub day_start: u32,
    /// Last second of the day; smaller than the first where the range goes over midnight.
    pub day_stop: u32,
    /// Bits 1 to 31; all set for none.
    pub monthdays: u32,
    /// Bits 1 (Monday) to 7; all set for none.
    pub weekdays: u8,
    /// In the kernel's local time rather than UTC.
    pub local: bool,
    /// A range over midnight belongs to the day it begins on.
    pub contiguous: bool,
}

/// All days of the month: bits 1 to 31.
const ALL_MONTHDAYS: u32 = 0xffff_fffe;
/// All days of the week: bits 1 to 7.
const ALL_WEEKDAYS: u8 = 0xfe;
/// Last second of a day.
const LAST_SECOND: u32 = 24 * 60 * 60 - 1;

#[derive(FromBytes)]
#[repr(C)]
struct RawTime {
    dates: [u32; 2],
    day: [u32; 2],
    monthdays: u32,
    weekdays: u8,
    flags: u8,
}

const _: () = assert!(size_of::<RawTime>() == 24);

impl Time {
    pub(super) fn decode(info: &[u8]) -> Option<Self> {
        let raw: RawTime = read(info)?;
        let ([date_start, date_stop], [day_start, day_stop]) = (raw.dates, raw.day);
        Some(Self {
            date_start,
            date_stop,
            day_start,
            day_stop,
            monthdays: raw.monthdays,
            weekdays: raw.weekdays,
            local: raw.flags & 1 != 0,
            contiguous: raw.flags & 2 != 0,
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        const WEEKDAYS: [&str; 8] = ["", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
        if (self.day_start, self.day_stop) != (0, LAST_SECOND) {
            let (start, stop) = (Clock(self.day_start), Clock(self.day_stop));
            write!(out, " --timestart {start} --timestop {stop}")?;
        }
        if self.monthdays != ALL_MONTHDAYS {
            let days = Bits {
                bits: self.monthdays & ALL_MONTHDAYS,
                names: &[],
            };
            write!(out, " --monthdays {days}")?;
        }
        if self.weekdays != ALL_WEEKDAYS {
            let days = Bits {
                bits: (self.weekdays & ALL_WEEKDAYS).into(),
                names: &WEEKDAYS,
            };
            write!(out, " --weekdays {days}")?;
        }
        write_date(out, "--datestart", self.date_start)?;
        write_date(out, "--datestop", self.date_stop)?;
        if self.local {
            out.push_str(" --kerneltz");
        }
        if self.contiguous {
            out.push_str(" --contiguous");
        }
        Ok(())
    }
}

/// Seconds of a day: `08:00:00`.
struct Clock(u32);

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (hours, minutes, seconds) = (self.0 / 3600, self.0 / 60 % 60, self.0 % 60);
        write!(f, "{hours:02}:{minutes:02}:{seconds:02}")
    }
}

fn write_date(out: &mut String, option: &str, seconds: u32) -> fmt::Result {
    if seconds == 0 {
        return Ok(());
    }
    let date = Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_secs(seconds.into());
    let date = TimeZone::UTC.to_datetime(date);
    write!(out, " {option} {}", date.strftime("%Y-%m-%dT%H:%M:%S"))
}
