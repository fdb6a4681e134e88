//! (ruleset, packet, context) -> the walk through the chains, the verdict, the nearest miss.
//!
//! Pure: no sockets, no clock, no aya.

pub mod world;
