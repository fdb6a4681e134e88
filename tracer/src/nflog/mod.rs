//! Packets that firewall rules log over NFLOG, the rules that log them, and the drops that they end in.
//!
//! | module | subject |
//! |---|---|
//! | [`rules`] | which rules log to which group, by what can be seen of a logged packet |
//! | [`listener`] | being the listener of a group: packets, losses, who has it otherwise |
//! | [`passed`] | the logging rules that a dropped packet has passed or may have |
//! | [`correlate`] | which logged packet is of which drop |
//! | [`together`] | which logged packets are one packet, where no drop tells of it |

pub mod correlate;
pub mod listener;
pub mod passed;
pub mod rules;
pub mod together;
