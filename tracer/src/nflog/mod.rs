//! Packets that firewall rules log over NFLOG, the rules that log them, and the drops that they end in.
//!
//! | module | subject |
//! |---|---|
//! | [`rules`] | which rules log to which group, by what can be seen of a logged packet |
//! | [`correlate`] | which logged packet is of which drop |

pub mod correlate;
pub mod rules;
