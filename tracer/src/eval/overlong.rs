//! What xtables' matches do where an extension header of IPv6 has no room: stable kernels differ, and none says.
//!
//! Until the middle of 2026 such a packet was no match, for `ah` not even looked at, and for `ipv6header` the headers ended there. Kernels
//! with "netfilter: ip6tables: mark malformed IPv6 extension headers for hotdrop" drop it in `ah`, `hbh`, `dst` and `rt`; those with
//! "netfilter: ip6tables: set hotdrop for malformed extension header matches", too, in what was left of `hbh` and `dst`, and in
//! `ipv6header`. [`crate::kernel::overlong`] asks the one that runs.

/// What a match does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reaction {
    /// It goes on as if nothing was wrong.
    Overlooks,
    /// It does not hold, turned round or not.
    Misses,
    /// It drops the packet (`hotdrop`).
    Drops,
}

/// What the running kernel does; `None`: not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Overlong {
    /// `hbh` and `dst`: the header is longer than what is left of the packet.
    pub options: Option<Reaction>,
    /// The same: one of its options is longer than the header, and another one is asked for behind it.
    pub option: Option<Reaction>,
    /// `rt`: the header is longer than what is left of the packet.
    pub route: Option<Reaction>,
    /// `ah`: the same.
    pub authentication: Option<Reaction>,
    /// `ipv6header`: the same; overlooked, it is the last header but for what it says of the next one.
    pub headers: Option<Reaction>,
    /// `ipv6header`: less than two bytes are left where a header begins.
    pub stub: Option<Reaction>,
    /// The same where that is an ESP header.
    pub esp_stub: Option<Reaction>,
}
