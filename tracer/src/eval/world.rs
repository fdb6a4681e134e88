//! What is known beside the packet: links, addresses, routes, ipsets. Data, read elsewhere.

/// The state of a network namespace beside its ruleset, at one moment.
#[derive(Debug, Clone, Default)]
pub struct World {
    /// Counts up with each reading: what was concluded from an older one is void.
    pub version: u64,
}
