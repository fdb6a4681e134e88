//! Packets that firewall rules log over NFLOG, and the rules that log them.
//!
//! | module | subject |
//! |---|---|
//! | [`rules`] | which rules log to which group, by what can be seen of a logged packet |

pub mod rules;
