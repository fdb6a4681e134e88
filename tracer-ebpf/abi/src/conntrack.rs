//! Whether conntrack itself dropped: by its counters of this CPU, as they were at the last drop that was looked at and as they are now.

/// Key of the counters of one processor in one netns.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CtKey {
    /// Inode of the netns.
    pub netns: u32,
    /// Processor.
    pub cpu: u32,
}

/// Counters of `struct ip_conntrack_stat` (include/linux/netfilter/nf_conntrack_common.h, v6.18).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CtCounts {
    /// Packets that conntrack dropped.
    pub drop: u32,
    /// Connections that could not be entered.
    pub insert_failed: u32,
    /// Connections that had to go since the table was full.
    pub early_drop: u32,
    /// Connections that could not be entered since their bucket was too long.
    pub chain_too_long: u32,
    /// Packets that could not be placed, dropped or not.
    pub invalid: u32,
    /// Not conntrack's: drops on this CPU that interrupted the program ([`Counters::skipped`](crate::Counters::skipped)), modulo 2^32.
    pub skipped: u32,
}

/// By how much counters have moved; 255: by that or more.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
pub struct CtMoved {
    /// 1: what follows is known.
    pub known: u8,
    /// [`CtCounts::drop`]; as all of them 255 where it is more, or where it has moved and some of that may be of drops that nobody was shown.
    pub drop: u8,
    /// [`CtCounts::insert_failed`].
    pub insert_failed: u8,
    /// [`CtCounts::early_drop`].
    pub early_drop: u8,
    /// [`CtCounts::chain_too_long`].
    pub chain_too_long: u8,
    /// [`CtCounts::invalid`].
    pub invalid: u8,
    /// Zero.
    pub pad: [u8; 2],
}

const _: () = assert!(size_of::<CtKey>() == 8);
const _: () = assert!(size_of::<CtCounts>() == 24);
const _: () = assert!(size_of::<CtMoved>() == 8);
