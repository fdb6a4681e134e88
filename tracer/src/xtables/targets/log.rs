//! Targets that tell somebody of the packet and let it go on.

use std::net::IpAddr;

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
