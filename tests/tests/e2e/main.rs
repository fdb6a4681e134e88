//! fwtrace against the kernel, in namespaces of the tests' own. Needs root.
//!
//! Rulesets are loaded by nft, packets are real, and what nft lists afterwards (handles, numbers,
//! counters, texts) is what an event is compared with.

mod matrix;
