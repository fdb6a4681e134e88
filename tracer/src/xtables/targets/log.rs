//! Targets that tell somebody of the packet and let it go on.

use std::{
    fmt::{self, Write as _},
    net::IpAddr,
};

use zerocopy::FromBytes;

use super::super::{
    Family,
    info::{Address, InetAddr, Quoted, read, text},
};

/// `LOG`: `struct xt_log_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// Level of syslog.
    pub level: u8,
    /// Bits `XT_LOG_*`: 1 TCP sequence, 2 TCP options, 4 IP options, 8 user, 0x20 MAC.
    pub flags: u8,
    /// Before the line.
    pub prefix: String,
}

/// `NFLOG`: `struct xt_nflog_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nflog {
    /// Group of nfnetlink_log.
    pub group: u16,
    /// Before the packet.
    pub prefix: String,
    /// Bytes of the packet; only with `XT_NFLOG_F_COPY_LEN` does the kernel heed it.
    pub length: u32,
    /// `XT_NFLOG_F_COPY_LEN`: `length` is `--nflog-size`, otherwise `--nflog-range`.
    pub copy_length: bool,
    /// Packets that are queued before they are sent; 0 for the default.
    pub threshold: u16,
}

/// `TEE`, revision 1: `struct xt_tee_tginfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tee {
    /// Where the copy goes.
    pub gateway: IpAddr,
    /// Interface; empty for none.
    pub oif: String,
}

/// `IDLETIMER`, revisions 0 and 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idletimer {
    /// Seconds.
    pub timeout: u32,
    /// Name.
    pub label: String,
    /// Revision 1: an alarm timer, which wakes the machine.
    pub alarm: bool,
}

/// `LED`: `struct xt_led_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Led {
    /// Name of the trigger, with `netfilter-` before it.
    pub id: String,
    /// Milliseconds; 4294967295 stays on.
    pub delay: u32,
    /// Blinks for each packet.
    pub always_blink: bool,
}

/// `RATEEST`: `struct xt_rateest_target_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rateest {
    /// Name of the estimator.
    pub name: String,
    /// Interval: 250 ms << (interval + 2).
    pub interval: i8,
    /// Logarithm of the average's time constant.
    pub ewma_log: u8,
}

#[derive(FromBytes)]
#[repr(C)]
struct RawLog {
    level: u8,
    flags: u8,
    prefix: [u8; 30],
}

impl Log {
    pub(super) fn decode(info: &[u8]) -> Option<Self> {
        let raw: RawLog = read(info)?;
        Some(Self {
            level: raw.level,
            flags: raw.flags,
            prefix: text(&raw.prefix),
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        /// `LOG_WARNING`: not printed.
        const DEFAULT_LEVEL: u8 = 4;
        if !self.prefix.is_empty() {
            write!(out, " --log-prefix {}", Quoted(&self.prefix))?;
        }
        if self.level != DEFAULT_LEVEL {
            write!(out, " --log-level {}", self.level)?;
        }
        let options = [
            (0x01, " --log-tcp-sequence"),
            (0x02, " --log-tcp-options"),
            (0x04, " --log-ip-options"),
            (0x08, " --log-uid"),
            (0x20, " --log-macdecode"),
        ];
        for (_, option) in options.iter().filter(|(bit, _)| self.flags & bit != 0) {
            out.push_str(option);
        }
        Ok(())
    }
}

#[derive(FromBytes)]
#[repr(C)]
struct RawNflog {
    length: u32,
    group: u16,
    threshold: u16,
    flags: u16,
    _pad: u16,
    prefix: [u8; 64],
}

const _: () = assert!(size_of::<RawNflog>() == 76);

impl Nflog {
    pub(super) fn decode(info: &[u8]) -> Option<Self> {
        let raw: RawNflog = read(info)?;
        Some(Self {
            group: raw.group,
            prefix: text(&raw.prefix),
            length: raw.length,
            copy_length: raw.flags & 1 != 0,
            threshold: raw.threshold,
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        if !self.prefix.is_empty() {
            write!(out, " --nflog-prefix {}", Quoted(&self.prefix))?;
        }
        if self.group != 0 {
            write!(out, " --nflog-group {}", self.group)?;
        }
        if self.copy_length {
            write!(out, " --nflog-size {}", self.length)?;
        } else if self.length != 0 {
            write!(out, " --nflog-range {}", self.length)?;
        }
        if self.threshold != 0 {
            write!(out, " --nflog-threshold {}", self.threshold)?;
        }
        Ok(())
    }
}

#[derive(FromBytes)]
#[repr(C)]
struct RawTee {
    gateway: InetAddr,
    oif: [u8; 16],
    _priv: u64,
}

impl Tee {
    pub(super) fn decode(info: &[u8], family: Family) -> Option<Self> {
        let raw: RawTee = read(info)?;
        Some(Self {
            gateway: raw.gateway.get(family),
            oif: text(&raw.oif),
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        write!(out, " --gateway {}", Address(self.gateway))?;
        if !self.oif.is_empty() {
            write!(out, " --oif {}", self.oif)?;
        }
        Ok(())
    }
}

#[derive(FromBytes)]
#[repr(C)]
struct RawIdletimer0 {
    timeout: u32,
    label: [u8; 28],
    _timer: u64,
}

#[derive(FromBytes)]
#[repr(C)]
struct RawIdletimer1 {
    timeout: u32,
    label: [u8; 28],
    _send_message: u8,
    kind: u8,
    _timer: u64,
}

const _: () = assert!(size_of::<RawIdletimer0>() == 40);
const _: () = assert!(size_of::<RawIdletimer1>() == 48);

impl Idletimer {
    pub(super) fn decode(rev: u8, info: &[u8]) -> Option<Self> {
        match rev {
            0 => {
                let raw: RawIdletimer0 = read(info)?;
                Some(Self {
                    timeout: raw.timeout,
                    label: text(&raw.label),
                    alarm: false,
                })
            }
            1 => {
                let raw: RawIdletimer1 = read(info)?;
                Some(Self {
                    timeout: raw.timeout,
                    label: text(&raw.label),
                    alarm: raw.kind == 1,
                })
            }
            _ => None,
        }
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        write!(out, " --timeout {} --label {}", self.timeout, self.label)?;
        if self.alarm {
            out.push_str(" --alarm");
        }
        Ok(())
    }
}

#[derive(FromBytes)]
#[repr(C)]
struct RawLed {
    id: [u8; 27],
    always_blink: u8,
    delay: u32,
    _data: u64,
}

const _: () = assert!(size_of::<RawLed>() == 40);

impl Led {
    pub(super) fn decode(info: &[u8]) -> Option<Self> {
        let raw: RawLed = read(info)?;
        Some(Self {
            id: text(&raw.id),
            delay: raw.delay,
            always_blink: raw.always_blink != 0,
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        out.push_str(" --led-trigger-id \"");
        for c in self
            .id
            .strip_prefix("netfilter-")
            .unwrap_or(&self.id)
            .chars()
        {
            if matches!(c, '"' | '\\') {
                out.push('\\');
            }
            out.push(c);
        }
        out.push('"');
        // Compared as a number without a sign, so `inf` comes out as -1.
        if self.delay != 0 {
            write!(out, " --led-delay {}", self.delay.cast_signed())?;
        }
        if self.always_blink {
            out.push_str(" --led-always-blink");
        }
        Ok(())
    }
}

#[derive(FromBytes)]
#[repr(C)]
struct RawRateest {
    name: [u8; 16],
    interval: i8,
    ewma_log: u8,
    _estimator: u64,
}

const _: () = assert!(size_of::<RawRateest>() == 32);

impl Rateest {
    pub(super) fn decode(info: &[u8]) -> Option<Self> {
        let raw: RawRateest = read(info)?;
        Some(Self {
            name: text(&raw.name),
            interval: raw.interval,
            ewma_log: raw.ewma_log,
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        // The kernel takes intervals of -2 to 3: 250 ms to 8 s.
        let interval = u32::try_from(i32::from(self.interval) + 2)
            .ok()
            .and_then(|shift| 1_000_000u32.checked_shl(shift))
            .map_or(0, |microseconds| microseconds / 4);
        let constant = 1u32
            .checked_shl(self.ewma_log.into())
            .unwrap_or(0)
            .wrapping_mul(interval);
        let (interval, constant) = (Microseconds(interval), Microseconds(constant));
        write!(
            out,
            " --rateest-name {} --rateest-interval {interval} --rateest-ewmalog {constant}",
            self.name
        )
    }
}

/// A time in the largest unit that is not more.
struct Microseconds(u32);

impl fmt::Display for Microseconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            1_000_000.. => write!(f, "{:.1}s", f64::from(self.0) / 1_000_000.0),
            1_000.. => write!(f, "{:.1}ms", f64::from(self.0) / 1_000.0),
            time => write!(f, "{time}us"),
        }
    }
}
