//! Which logged packets are one packet, where several rules have logged it and no drop tells of it.
//!
//! Each log waits for [`WINDOW`], and they leave in the order that the kernel has numbered them in. The first one takes with it what
//! later logs say of the same packet: those from the same network namespace, with the same headers (address translation set aside), at
//! the same or a later hook, and of another group, prefix or hook: no rule is taken to log a packet twice. Beside that something must
//! tell this packet from others that look like it: the moment it was received, which it keeps from hook to hook, or, where the kernel
//! tells none, an IPv4 identification. Packets that have this in common too are told apart by their order: the first log of a rule is
//! of the packet that was logged first.
//!
//! Pure: no sockets, and the time is passed in, CLOCK_MONOTONIC in nanoseconds.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound,
};

use super::correlate::{Sign, WINDOW};
use crate::trace::headers::Headers;

/// Logs that wait at the most; beyond that the oldest leave.
pub const HELD: usize = 8192;
/// Logs of one sign that are looked at for a packet. What is received together passes a hook together, at most 64 packets
/// (`NAPI_POLL_WEIGHT`, include/linux/netdevice.h, v6.18).
const LOOKED: usize = 128;

// NFPROTO_* (include/uapi/linux/netfilter.h, v6.18).
const IPV4: u8 = 2;
const IPV6: u8 = 10;

/// A logged packet.
#[derive(Clone, Debug)]
pub struct Part<T> {
    /// Inode of its network namespace.
    pub netns: u32,
    /// Its headers, then those that it can have had before address translation. Empty: it is like no other.
    pub looks: Vec<Headers>,
    /// What is known of its rule.
    pub sign: Sign,
    /// When the packet was received, seconds and microseconds of the wall clock; `None`: not told.
    pub received: Option<(u64, u64)>,
    /// Its number among the logs of the namespace; wraps around.
    pub order: u32,
    /// When it came here.
    pub came: u64,
    /// Whatever belongs to it.
    pub what: T,
}

impl<T> Part<T> {
    /// Whether both are of one packet, as far as the packet tells.
    fn is(&self, later: &Self) -> bool {
        let (Some(own), Some(other)) = (self.looks.first(), later.looks.first()) else {
            return false;
        };
        let alike = later.looks.iter().any(|look| look.is(own))
            || self.looks.iter().any(|look| look.is(other));
        alike
            && match (self.received, later.received) {
                (Some(own), Some(other)) => own == other,
                _ => is_identified(own),
            }
    }
}

/// Whether it has an identification that the packets before and behind do not have.
fn is_identified(headers: &Headers) -> bool {
    let id = headers.network().get(4..6);
    headers.version() == 4 && id.is_some_and(|id| id != [0, 0])
}

/// Whether a packet can come from the one hook to the other.
fn follows(before: &Sign, then: &Sign) -> bool {
    if before.pf != then.pf || !matches!(then.pf, IPV4 | IPV6) {
        return true;
    }
    // Prerouting, input, forward, output, postrouting, ingress; what leaves through the loopback device comes in again.
    let next: &[u8] = match before.hook {
        0 => &[0, 1, 2, 4],
        1 => &[1],
        2 => &[2, 4],
        3 => &[0, 1, 3, 4, 5],
        4 => &[0, 1, 4, 5],
        5 => &[0, 1, 2, 4, 5],
        _ => return true,
    };
    next.contains(&then.hook)
}

/// The number of a log among those of its namespace, without the wrapping, and its number among all that came.
type Number = (u64, u64);

/// The logs of a namespace.
#[derive(Debug)]
struct Queue<T> {
    /// Of the log that came last.
    last: (u32, u64),
    parts: BTreeMap<Number, Part<T>>,
    /// By network header, which all looks of a packet have, then by sign.
    alike: HashMap<Box<[u8]>, HashMap<Sign, BTreeSet<Number>>>,
}

impl<T> Queue<T> {
    fn new(order: u32) -> Self {
        Self {
            // Logs of other groups that come later may have been made before.
            last: (order, 1 << 32),
            parts: BTreeMap::new(),
            alike: HashMap::new(),
        }
    }

    fn push(&mut self, part: Part<T>, arrival: u64) {
        let (order, unwrapped) = self.last;
        let step = i64::from(part.order.wrapping_sub(order).cast_signed());
        self.last = (part.order, unwrapped.saturating_add_signed(step));
        let number = (self.last.1, arrival);
        for look in &part.looks {
            let alike = self.alike.entry(look.network().into()).or_default();
            alike.entry(part.sign.clone()).or_default().insert(number);
        }
        self.parts.insert(number, part);
    }

    fn remove(&mut self, number: Number) -> Option<Part<T>> {
        let part = self.parts.remove(&number)?;
        for look in &part.looks {
            let Some(alike) = self.alike.get_mut(look.network()) else {
                continue;
            };
            if let Some(numbers) = alike.get_mut(&part.sign) {
                numbers.remove(&number);
                if numbers.is_empty() {
                    alike.remove(&part.sign);
                }
            }
            if alike.is_empty() {
                self.alike.remove(look.network());
            }
        }
        Some(part)
    }

    /// The first log, and all others of its packet.
    fn take(&mut self) -> Vec<(Number, Part<T>)> {
        let Some((&first, _)) = self.parts.first_key_value() else {
            return Vec::new();
        };
        let Some(head) = self.remove(first) else {
            return Vec::new();
        };
        let later = (Bound::Excluded(first), Bound::Unbounded);
        let mut found: BTreeSet<Number> = BTreeSet::new();
        for look in &head.looks {
            let signs = self.alike.get(look.network()).into_iter().flatten();
            for (_, numbers) in signs.filter(|(sign, _)| **sign != head.sign) {
                let mut numbers = numbers.range(later).take(LOOKED);
                found.extend(numbers.find(|number| {
                    let part = self.parts.get(number);
                    part.is_some_and(|part| head.is(part))
                }));
            }
        }
        let mut taken = vec![(first, head)];
        for number in found {
            let fits = self.parts.get(&number).is_some_and(|part| {
                // Two looks of one packet may have led to two logs of one sign.
                let new = taken.iter().all(|(_, known)| known.sign != part.sign);
                let last = taken.last();
                new && last.is_some_and(|(_, last)| follows(&last.sign, &part.sign))
            });
            if fits && let Some(part) = self.remove(number) {
                taken.push((number, part));
            }
        }
        taken
    }
}

/// Puts logs of one packet together.
#[derive(Debug)]
pub struct Together<T> {
    places: HashMap<u32, Queue<T>>,
    /// By arrival: the namespace, and when it came.
    waiting: BTreeMap<u64, (u32, u64)>,
    arrivals: u64,
}

impl<T> Default for Together<T> {
    fn default() -> Self {
        Self {
            places: HashMap::new(),
            waiting: BTreeMap::new(),
            arrivals: 0,
        }
    }
}

impl<T> Together<T> {
    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Takes in a logged packet; [`Together::next`] gives it back.
    pub fn push(&mut self, part: Part<T>) {
        let arrival = self.arrivals;
        self.arrivals += 1;
        self.waiting.insert(arrival, (part.netns, part.came));
        let order = part.order;
        let queue = self.places.entry(part.netns);
        queue
            .or_insert_with(|| Queue::new(order))
            .push(part, arrival);
    }

    /// The logs of one packet, in the order they were made in, if one that waits has waited long enough: those of its namespace that
    /// were made before leave first. With `u64::MAX` each is given back.
    pub fn next(&mut self, now: u64) -> Option<Vec<T>> {
        let (_, &(netns, came)) = self.waiting.first_key_value()?;
        if came.saturating_add(WINDOW) > now && self.waiting.len() <= HELD {
            return None;
        }
        let queue = self.places.get_mut(&netns)?;
        let taken = queue.take();
        if queue.parts.is_empty() {
            self.places.remove(&netns);
        }
        let whats = taken.into_iter().map(|((_, arrival), part)| {
            self.waiting.remove(&arrival);
            part.what
        });
        Some(whats.collect())
    }

    /// When the oldest has waited long enough; `None`: none waits.
    pub fn deadline(&self) -> Option<u64> {
        let (_, (_, came)) = self.waiting.first_key_value()?;
        Some(came.saturating_add(WINDOW))
    }
}

#[cfg(test)]
mod tests;
