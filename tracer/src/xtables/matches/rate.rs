//! Matches that count: their outcome depends on the packets before.

use super::super::info::Cond;

/// `limit`: `struct xt_rateinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// Time between two packets in units of 1/10,000 s.
    pub average: u32,
    /// Packets at once.
    pub burst: u32,
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

/// `quota`: `struct xt_quota_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quota {
    /// Bytes that were left when the rule was made.
    pub bytes: Cond<u64>,
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
    pub mask: Option<std::net::IpAddr>,
}

/// `nfacct`: counts, and always matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nfacct {
    /// Name of the object.
    pub name: String,
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
