//! The kernel's clock as rules ask for it: `nft_meta_get_eval_time()` (net/netfilter/nft_meta.c), `time_mt()` (net/netfilter/xt_time.c), v6.18.
//!
//! Both read CLOCK_REALTIME (`ktime_get_real_seconds()`, `ktime_get_real_ns()`) when the rule runs, whatever time is noted in the packet. Of
//! a drop it is known that its rules ran within some seconds before it. So each of these is tried, as orders of chains are: what does not
//! hang on which one it was is certain.

use super::{
    field::{Bytes, Reason, Value},
    packet::Packet,
};
use crate::ruleset::expr::Expr;

/// `NFT_META_TIME_NS`, `NFT_META_TIME_DAY`, `NFT_META_TIME_HOUR`.
pub(super) const TIME_NS: u32 = 30;
pub(super) const TIME_DAY: u32 = 31;
pub(super) const TIME_HOUR: u32 = 32;

/// The most seconds that are tried.
const MAX: i64 = 6;
const SECOND: u64 = 1_000_000_000;
const DAY: i64 = 86_400;

/// When the rules of a hook ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    /// The first second, counted from 1970 in UTC, that it can have been.
    pub from: i64,
    /// The last.
    pub to: i64,
    /// `sys_tz.tz_minuteswest` then, if known.
    pub minutes_west: Option<i32>,
}

/// Why one of several seconds makes a difference.
pub(super) const WHICH: Reason = Reason::stateful("the second at which the rule ran");

/// The packet's [`Clock`]: the number of seconds and the first of them, eight bytes each, and, where known, the zone, four bytes.
pub(super) fn load(packet: &Packet<'_>) -> Value {
    let Some(clock) = packet.clock else {
        return Value::Unknown(Reason::missing(
            "the kernel's clock at the packet is not known",
        ));
    };
    let count = clock.to.saturating_sub(clock.from).saturating_add(1);
    if !(1..=MAX).contains(&count) {
        return Value::Unknown(Reason::missing("the clock was set at about that time"));
    }
    let mut bytes = [count.to_be_bytes(), clock.from.to_be_bytes()].concat();
    bytes.extend(
        clock
            .minutes_west
            .iter()
            .flat_map(|west| west.to_be_bytes()),
    );
    Value::bytes(&bytes)
}

/// One of these seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Instant {
    /// Counted from 1970 in UTC.
    pub(super) second: i64,
    minutes_west: Option<i32>,
}

/// How many there are; the bytes are those of [`load`].
pub(super) fn count(bytes: &Bytes) -> u8 {
    bytes.as_slice().get(7).copied().unwrap_or(1).max(1)
}

impl Instant {
    /// The one of this number, of the bytes of [`load`].
    pub(super) fn new(bytes: &Bytes, number: u8) -> Option<Self> {
        let (_, rest) = bytes.as_slice().split_at_checked(8)?;
        let (first, west) = rest.split_first_chunk()?;
        Some(Self {
            second: i64::from_be_bytes(*first).checked_add(i64::from(number))?,
            minutes_west: west.first_chunk().map(|west| i32::from_be_bytes(*west)),
        })
    }

    /// The same in the kernel's time zone.
    pub(super) fn local(self) -> Result<i64, Reason> {
        let west = self.minutes_west;
        let west = west.ok_or(Reason::missing("the kernel's time zone is not known"))?;
        Ok(self.second.saturating_sub(60 * i64::from(west)))
    }

    /// `meta time`, `meta day`, `meta hour`. A time is the middle of its second: rules that ask for less than whole seconds are not
    /// followed, see [`asks_for_fractions`].
    pub(super) fn meta(self, key: u32) -> Value {
        match key {
            TIME_NS => {
                let seconds = u64::try_from(self.second).unwrap_or(0);
                let middle = seconds.saturating_mul(SECOND).saturating_add(SECOND / 2);
                Value::bytes(&middle.to_ne_bytes())
            }
            TIME_DAY => match self.local() {
                // 1970 began on a Thursday; Sunday is 0.
                Ok(local) => Value::u8((local.div_euclid(DAY) + 4).rem_euclid(7) as u8),
                Err(reason) => Value::Unknown(reason),
            },
            // In UTC, unlike the day.
            _ => Value::u32(self.second.rem_euclid(DAY) as u32),
        }
    }
}

/// Whether a rule may compare the time with anything but whole seconds. Of what is as long as a time: elements of sets, where ranges end a
/// nanosecond behind a second, and what is computed. `key_len`: of a set, by name.
pub(super) fn asks_for_fractions(exprs: &[Expr], key_len: impl Fn(&str) -> Option<u32>) -> bool {
    const LENGTH: u32 = 8;
    let asks = |expr: &Expr| matches!(expr, Expr::Meta { key: TIME_NS, .. });
    let whole = |data: &[u8]| {
        let Ok(bytes) = <[u8; 8]>::try_from(data) else {
            return true;
        };
        let is_whole = |time: u64| time.is_multiple_of(SECOND);
        is_whole(u64::from_be_bytes(bytes)) || is_whole(u64::from_ne_bytes(bytes))
    };
    exprs.iter().any(asks)
        && exprs.iter().any(|expr| match expr {
            Expr::Cmp { data, .. } => !whole(data),
            Expr::Range { from, to, .. } => !(whole(from) && whole(to)),
            Expr::Lookup { set, .. } | Expr::Dynset { set, .. } | Expr::ObjrefMap { set, .. } => {
                key_len(set).is_none_or(|len| len >= LENGTH)
            }
            Expr::Bitwise { len, .. } => *len >= LENGTH,
            Expr::Hash { .. } => true,
            _ => false,
        })
}
