//! `set`: `struct xt_set_info_match_v0`, `v1` (revisions 1 and 2), `v3`, `v4`.

use super::super::info::SetRef;

/// `set`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Which set, and what of the packet is looked up.
    pub set: SetRef,
    /// The packet must not be in the set.
    pub inverted: bool,
    /// An element marked `nomatch` counts as a match (`--return-nomatch`).
    pub return_nomatch: bool,
    /// `! --update-counters`.
    pub skip_counters: bool,
    /// `! --update-subcounters`.
    pub skip_subcounters: bool,
    /// The element's packet counter must be so.
    pub packets: Option<CounterTest>,
    /// The element's byte counter must be so.
    pub bytes: Option<CounterTest>,
}

/// `struct ip_set_counter_match`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CounterTest {
    /// How it is compared.
    pub op: CounterOp,
    /// With what.
    pub value: u64,
}

/// `IPSET_COUNTER_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CounterOp {
    /// Equal.
    Eq,
    /// Not equal.
    Ne,
    /// Less.
    Lt,
    /// Greater.
    Gt,
    /// Not known.
    Other(u8),
}
