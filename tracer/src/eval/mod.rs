//! (ruleset, packet, context) -> the walk through the chains, the verdict, the nearest miss.
//!
//! Pure: no sockets, no clock, no aya. What is not known (bytes that were not captured, a limit's tokens) never becomes a match: the
//! walk forks, and every end that it can have is told with what it assumes.
//!
//! | module | subject |
//! |---|---|
//! | [`packet`] | everything known about the packet |
//! | [`overlong`] | what kernels do with extension headers that are too long |
//! | [`clock`] | the kernel's clock when rules ran |
//! | [`world`] | what is known beside the packet: links, addresses, routes, ipsets |
//! | [`field`] | one datum that an evaluation can read, and its value |
//! | [`read`] | the one way from rules to data: loads lazily, notes what was read, keeps what rules wrote |
//! | [`program`] | rulesets compiled once per generation; [`program::Program`] is the entry |
//! | [`order`] | in which order the base chains of a hook come |
//! | [`outcome`] | the ends that a walk can have |
//! | [`logged`] | the way of a packet from the rule that logged it on |
//! | [`walk`], [`miss`] | the explanation: phases, steps, the nearest miss |
//! | [`reach`] | how deep into packets rules look |
//! | [`cache`] | outcomes kept by the fields that were really read |
//! | [`xt`], [`legacy`] | xtables' matches and targets, and the rules of legacy tables |

mod before;
pub mod cache;
pub mod clock;
mod code;
mod compile;
mod exthdr;
mod fib;
pub mod field;
mod forks;
mod fuse;
mod hash;
mod headers;
pub mod legacy;
mod load;
pub mod logged;
mod lookup;
pub mod miss;
pub mod order;
pub mod outcome;
pub mod overlong;
pub mod packet;
pub mod program;
pub mod reach;
pub mod read;
mod registers;
mod run;
mod sets;
mod steps;
mod trail;
pub mod walk;
pub mod world;
mod write;
pub mod xt;

#[cfg(test)]
mod tests;
