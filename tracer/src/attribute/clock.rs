//! When the rules of a hook ran, by the kernel's wall clock: from a drop's time, which is CLOCK_MONOTONIC's.
//!
//! The two clocks are compared before and after the drop. Where the wall clock was set in between, both of its times count.

use std::{collections::VecDeque, time::Duration};

use nix::time::{ClockId, clock_gettime};

use crate::eval::clock::Clock;

/// So long before its drop a packet can have met the rules of the hook, nanoseconds: their walk takes microseconds, and is seldom interrupted
/// for long. The second that the kernel tells them lags behind its clock by a tick, too (`ktime_get_real_seconds()`,
/// kernel/time/timekeeping.c, v6.18).
const BEFORE: i64 = 1_000_000_000;
const SECOND: i64 = 1_000_000_000;
/// Comparisons that are kept: drops are looked at some time after they happened.
const KEPT: usize = 1024;

/// A comparison of the clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Comparison {
    /// It was made between these two times, CLOCK_MONOTONIC, nanoseconds.
    began: i64,
    ended: i64,
    /// CLOCK_REALTIME then, nanoseconds.
    real: i64,
    minutes_west: Option<i32>,
}

impl Comparison {
    fn now() -> Option<Self> {
        let read = |clock| {
            let time = Duration::from(clock_gettime(clock).ok()?);
            i64::try_from(time.as_nanos()).ok()
        };
        Some(Self {
            began: read(ClockId::CLOCK_MONOTONIC)?,
            real: read(ClockId::CLOCK_REALTIME)?,
            minutes_west: minutes_west(),
            ended: read(ClockId::CLOCK_MONOTONIC)?,
        })
    }

    /// The seconds that it was `at` then, if the clocks stood to each other as here.
    fn seconds(&self, at: i64) -> Option<(i64, i64)> {
        let earliest = self.real.checked_sub(self.ended)?.checked_add(at)?;
        let latest = self.real.checked_sub(self.began)?.checked_add(at)?;
        let earliest = earliest.checked_sub(BEFORE)?;
        Some((earliest.div_euclid(SECOND), latest.div_euclid(SECOND)))
    }
}

/// Both clocks, compared now and then.
#[derive(Debug)]
pub(super) struct WallClock {
    /// The oldest first.
    comparisons: VecDeque<Comparison>,
}

impl WallClock {
    /// Knows of drops from now on.
    pub(super) fn new() -> Self {
        Self {
            comparisons: Comparison::now().into_iter().collect(),
        }
    }

    /// When the rules ran of a drop at `at` (CLOCK_MONOTONIC, nanoseconds).
    pub(super) fn at(&mut self, at: u64) -> Option<Clock> {
        let at = i64::try_from(at).ok()?;
        if self.comparisons.back().is_none_or(|last| last.began < at) {
            if self.comparisons.len() >= KEPT {
                self.comparisons.pop_front();
            }
            self.comparisons.extend(Comparison::now());
        }
        self.between(at)
    }

    /// By the comparisons from the last one before it to the first one after it.
    fn between(&self, at: i64) -> Option<Clock> {
        let before = self.comparisons.partition_point(|c| c.ended <= at);
        let after = self.comparisons.partition_point(|c| c.began < at);
        let first = before.checked_sub(1)?;
        let last = self.comparisons.get(after)?;
        let mut clock = None;
        for comparison in self.comparisons.range(first..=after) {
            let (from, to) = comparison.seconds(at)?;
            let known: &mut Clock = clock.get_or_insert(Clock {
                from,
                to,
                minutes_west: last.minutes_west,
            });
            known.from = known.from.min(from);
            known.to = known.to.max(to);
            if known.minutes_west != comparison.minutes_west {
                known.minutes_west = None;
            }
        }
        clock
    }
}

/// `sys_tz.tz_minuteswest`. The C library does not tell it any more.
#[expect(unsafe_code, reason = "no safe wrapper of gettimeofday(2)")]
fn minutes_west() -> Option<i32> {
    let mut zone = [0_i32; 2];
    let nowhere = std::ptr::null_mut::<libc::timeval>();
    // SAFETY: the kernel writes a `struct timezone`, two ints (include/uapi/linux/time.h, v6.18), and no time.
    let result = unsafe { libc::syscall(libc::SYS_gettimeofday, nowhere, zone.as_mut_ptr()) };
    (result == 0).then_some(zone[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made at this second of CLOCK_MONOTONIC, taking a millisecond; the wall clock is so far ahead.
    fn comparison(second: i64, ahead: i64, minutes_west: i32) -> Comparison {
        let began = second * SECOND;
        Comparison {
            began,
            ended: began + 1_000_000,
            real: began + 500_000 + ahead * SECOND,
            minutes_west: Some(minutes_west),
        }
    }

    #[test]
    fn a_second_before_the_drop_counts_too() {
        let clock = WallClock {
            comparisons: [comparison(10, 1000, 60), comparison(20, 1000, 60)].into(),
        };
        let at = |nanoseconds| clock.between(nanoseconds);
        let known = |from, to| {
            Some(Clock {
                from,
                to,
                minutes_west: Some(60),
            })
        };
        assert_eq!(at(15 * SECOND + SECOND / 2), known(1014, 1015));
        // On the edge the comparison itself was not exact enough.
        assert_eq!(at(15 * SECOND), known(1013, 1015));
        // Before the first comparison, while it was made, and after the last.
        assert_eq!(at(9 * SECOND), None);
        assert_eq!(at(10 * SECOND + 999_999), None);
        assert_eq!(at(20 * SECOND + 1), None);
        assert_eq!(at(20 * SECOND), known(1018, 1020));
    }

    #[test]
    fn where_the_clock_or_the_zone_was_set_both_count() {
        let clock = WallClock {
            comparisons: [
                comparison(10, 1000, 60),
                comparison(20, 1003, 60),
                comparison(30, 1003, 0),
            ]
            .into(),
        };
        let middle = SECOND / 2;
        assert_eq!(
            clock.between(15 * SECOND + middle),
            Some(Clock {
                from: 1014,
                to: 1018,
                minutes_west: Some(60),
            })
        );
        assert_eq!(
            clock.between(25 * SECOND + middle),
            Some(Clock {
                from: 1027,
                to: 1028,
                minutes_west: None,
            })
        );
    }

    #[test]
    fn now_is_known_after_it() {
        let mut clock = WallClock::new();
        let read = || {
            let time = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from);
            u64::try_from(time.unwrap().as_nanos()).unwrap()
        };
        let real = || clock_gettime(ClockId::CLOCK_REALTIME).unwrap().tv_sec();
        let (first, at, last) = (real(), read(), real());
        let known = clock.at(at).unwrap();
        assert!(known.from < first && known.to >= first, "{known:?}");
        assert!(known.to <= last, "{known:?}");
        assert_eq!(clock.at(at), Some(known));
    }
}
