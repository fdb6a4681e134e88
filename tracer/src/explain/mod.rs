//! Why a packet was dropped that no rule dropped: the kernel's reason in words, with the sysctl, socket or route that explains it.
//!
//! The reason is the kernel's. What explains it is read in the drop's network namespace when the drop is looked at, and may be another by
//! then: where it explains the drop no longer, the words of the reason are all that is said.

mod evidence;
mod sockets;
mod words;

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{eval::world::World, netns::NetNs, packet::Packet};

/// What was found out holds so long.
const KEPT: Duration = Duration::from_secs(1);
/// So much is kept at the most.
const ENTRIES: usize = 512;
/// How often in [`KEPT`] something is read at the most: a flood of drops that differ is told in words alone.
const READINGS: u32 = 20;

/// A drop.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The kernel's reason, without `SKB_DROP_REASON_`.
    pub reason: &'a Arc<str>,
    /// The packet.
    pub packet: &'a Packet,
    /// The interface that it came in through.
    pub iif: Option<&'a Arc<str>>,
    /// The interface that it was to leave through.
    pub oif: Option<&'a Arc<str>>,
}

/// What the explanation depends on.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    reason: Arc<str>,
    iif: Option<Arc<str>>,
    oif: Option<Arc<str>>,
    proto: Option<u8>,
    src: Option<IpAddr>,
    dst: Option<IpAddr>,
    dport: Option<u16>,
    opens: bool,
}

/// Explains drops in one network namespace. Keeps it alive.
#[derive(Debug)]
pub struct Explainer {
    netns: NetNs,
    kept: HashMap<Key, (Instant, Arc<str>)>,
    words: HashMap<Arc<str>, Arc<str>>,
    since: Instant,
    readings: u32,
}

impl Explainer {
    /// Reads nothing yet.
    pub fn new(netns: NetNs) -> Self {
        Self {
            netns,
            kept: HashMap::new(),
            words: HashMap::new(),
            since: Instant::now(),
            readings: 0,
        }
    }

    /// One sentence, without a full stop. `routes`: the namespace's links and routes, if it can tell them; asked only if they are needed.
    /// Blocks for a millisecond or so where something has to be read.
    pub fn why<'w>(
        &mut self,
        asked: &Asked<'_>,
        routes: impl FnOnce() -> Option<&'w World>,
    ) -> Arc<str> {
        let words = self.words(asked.reason);
        let Some(source) = evidence::source(asked) else {
            return words;
        };
        let now = Instant::now();
        let key = source.key(asked);
        if let Some((read, why)) = self.kept.get(&key)
            && now - *read < KEPT
        {
            return Arc::clone(why);
        }
        if now - self.since >= KEPT {
            (self.since, self.readings) = (now, 0);
        }
        if self.readings >= READINGS {
            return words;
        }
        self.readings += 1;
        let world = source.reads_routes().then(routes).flatten();
        let read = self.netns.run(|| source.read(asked, world));
        let why = read.ok().flatten().map_or(words, Into::into);
        if self.kept.len() >= ENTRIES {
            self.kept.clear();
        }
        self.kept.insert(key, (now, Arc::clone(&why)));
        why
    }

    fn words(&mut self, reason: &Arc<str>) -> Arc<str> {
        if let Some(words) = self.words.get(reason) {
            return Arc::clone(words);
        }
        let words: Arc<str> = words::of(reason).into();
        self.words.insert(Arc::clone(reason), Arc::clone(&words));
        words
    }
}

/// What a reason means, where nothing can be read.
pub fn words(reason: &str) -> Arc<str> {
    words::of(reason).into()
}
