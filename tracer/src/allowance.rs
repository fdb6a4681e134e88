//! How much time may go into work that is worth it only while it is rare.

use std::time::{Duration, Instant};

/// What may be spent at once by work that was rare before.
const BURST: Duration = Duration::from_millis(50);

/// An allowance of time: a share of the time that passes, and up to [`BURST`] of it, and one piece of work, at once.
///
/// Drops come in bursts, and each may need a reading of its own: a limit to so long after the last reading would refuse all but the first.
#[derive(Debug)]
pub(crate) struct Allowance {
    /// One in so many.
    share: u32,
    spent: Duration,
    at: Instant,
}

impl Allowance {
    /// Of which nothing is spent.
    pub(crate) fn new(share: u32, now: Instant) -> Self {
        Self {
            share,
            spent: Duration::ZERO,
            at: now,
        }
    }

    /// Whether there is something left at this time.
    pub(crate) fn affords(&mut self, now: Instant) -> bool {
        let earned = now.saturating_duration_since(self.at) / self.share;
        self.spent = self.spent.saturating_sub(earned);
        self.at = now;
        self.spent < BURST
    }

    /// Takes from it what was spent.
    pub(crate) fn spend(&mut self, cost: Duration) {
        self.spent += cost;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_a_share() {
        let mut now = Instant::now();
        let mut allowance = Allowance::new(4, now);
        let cost = Duration::from_millis(1);
        let mut spend_for = |time: Duration| {
            let until = now + time;
            let mut spent = Duration::ZERO;
            while now < until {
                now += Duration::from_micros(10);
                if allowance.affords(now) {
                    allowance.spend(cost);
                    now += cost;
                    spent += cost;
                }
            }
            spent
        };
        // All of the first 50 ms and what was earned meanwhile.
        assert!(spend_for(Duration::from_millis(60)) > Duration::from_millis(55));
        let later = spend_for(Duration::from_secs(10));
        assert!(later > Duration::from_millis(2400) && later < Duration::from_millis(2600));
    }

    #[test]
    fn work_that_takes_long_waits_long() {
        let now = Instant::now();
        let mut allowance = Allowance::new(10, now);
        assert!(allowance.affords(now));
        allowance.spend(Duration::from_secs(1));
        assert!(!allowance.affords(now + Duration::from_secs(9)));
        assert!(allowance.affords(now + Duration::from_secs(10)));
    }
}
