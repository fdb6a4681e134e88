//! `set`: `struct xt_set_info_match_v0`, `v1` (revisions 1 and 2), `v3`, `v4`.

use std::fmt::{self, Write as _};

use zerocopy::FromBytes;

use super::super::info::{Not, RawSet, RawSet0, SetRef, read};
use crate::ruleset::render::Names;

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

/// `struct xt_set_info_match_v3`.
#[derive(FromBytes)]
#[repr(C)]
struct Raw3 {
    set: RawSet,
    packets: RawCounter0,
    bytes: RawCounter0,
    flags: u32,
}

/// `struct ip_set_counter_match0`.
#[derive(FromBytes)]
#[repr(C)]
struct RawCounter0 {
    op: u8,
    value: u64,
}

/// `struct xt_set_info_match_v4`.
#[derive(FromBytes)]
#[repr(C)]
struct Raw4 {
    set: RawSet,
    packets: RawCounter,
    bytes: RawCounter,
    flags: u32,
}

/// `struct ip_set_counter_match`.
#[derive(FromBytes)]
#[repr(C)]
struct RawCounter {
    value: u64,
    op: u8,
}

const _: () = assert!(size_of::<RawSet0>() == 32);
const _: () = assert!(size_of::<Raw3>() == 48);
const _: () = assert!(size_of::<Raw4>() == 48);

/// `IPSET_INV_MATCH` of `struct xt_set_info`.
const INVERTED: u8 = 1;
/// `IPSET_RETURN_NOMATCH` of `struct xt_set_info`, in revision 2.
const RETURN_NOMATCH: u8 = 1 << 7;

/// `IPSET_FLAG_*` of revisions 3 and 4.
mod flag {
    pub(super) const SKIP_COUNTERS: u32 = 1 << 3;
    pub(super) const SKIP_SUBCOUNTERS: u32 = 1 << 4;
    pub(super) const RETURN_NOMATCH: u32 = 1 << 7;
}

impl Set {
    pub(super) fn decode(rev: u8, info: &[u8]) -> Option<Self> {
        match rev {
            0 => {
                /// `IPSET_MATCH_INV`, in the first word of flags.
                const MATCH_INV: u32 = 4;
                let raw: RawSet0 = read(info)?;
                let inverted = raw
                    .flags
                    .first()
                    .is_some_and(|flags| flags & MATCH_INV != 0);
                Some(Self::plain(raw.get()?, inverted))
            }
            1 => {
                let raw: RawSet = read(info)?;
                Some(Self::plain(raw.get()?, raw.flags & INVERTED != 0))
            }
            2 => {
                let raw: RawSet = read(info)?;
                Some(Self {
                    return_nomatch: raw.flags & RETURN_NOMATCH != 0,
                    ..Self::plain(raw.get()?, raw.flags & INVERTED != 0)
                })
            }
            3 => {
                let raw: Raw3 = read(info)?;
                let packets = CounterTest::decode(raw.packets.op, raw.packets.value);
                let bytes = CounterTest::decode(raw.bytes.op, raw.bytes.value);
                Self::counting(&raw.set, raw.flags, packets, bytes)
            }
            4 => {
                let raw: Raw4 = read(info)?;
                let packets = CounterTest::decode(raw.packets.op, raw.packets.value);
                let bytes = CounterTest::decode(raw.bytes.op, raw.bytes.value);
                Self::counting(&raw.set, raw.flags, packets, bytes)
            }
            _ => None,
        }
    }

    fn plain(set: SetRef, inverted: bool) -> Self {
        Self {
            set,
            inverted,
            return_nomatch: false,
            skip_counters: false,
            skip_subcounters: false,
            packets: None,
            bytes: None,
        }
    }

    fn counting(
        set: &RawSet,
        flags: u32,
        packets: Option<CounterTest>,
        bytes: Option<CounterTest>,
    ) -> Option<Self> {
        Some(Self {
            return_nomatch: flags & flag::RETURN_NOMATCH != 0,
            skip_counters: flags & flag::SKIP_COUNTERS != 0,
            skip_subcounters: flags & flag::SKIP_SUBCOUNTERS != 0,
            packets,
            bytes,
            ..Self::plain(set.get()?, set.flags & INVERTED != 0)
        })
    }

    pub(super) fn options(&self, names: &Names, out: &mut String) -> fmt::Result {
        write!(out, "{} --match-set", Not(self.inverted))?;
        self.set.write(names, out)?;
        if self.return_nomatch {
            out.push_str(" --return-nomatch");
        }
        if self.skip_counters {
            out.push_str(" ! --update-counters");
        }
        if self.skip_subcounters {
            out.push_str(" ! --update-subcounters");
        }
        for (name, test) in [("packets", self.packets), ("bytes", self.bytes)] {
            if let Some(CounterTest { op, value }) = test {
                match op {
                    CounterOp::Eq => write!(out, " --{name}-eq {value}")?,
                    CounterOp::Ne => write!(out, " ! --{name}-eq {value}")?,
                    CounterOp::Lt => write!(out, " --{name}-lt {value}")?,
                    CounterOp::Gt => write!(out, " --{name}-gt {value}")?,
                    CounterOp::Other(_) => {}
                }
            }
        }
        Ok(())
    }
}

impl CounterTest {
    fn decode(op: u8, value: u64) -> Option<Self> {
        let op = match op {
            0 => return None,
            1 => CounterOp::Eq,
            2 => CounterOp::Ne,
            3 => CounterOp::Lt,
            4 => CounterOp::Gt,
            other => CounterOp::Other(other),
        };
        Some(Self { op, value })
    }
}
