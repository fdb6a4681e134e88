//! fwtrace against the kernel, in namespaces of the tests' own. Needs root.
//!
//! Rulesets are loaded by nft, packets are real, and what nft lists afterwards (handles, numbers,
//! counters, texts) is what an event is compared with.

mod capture;
mod capture_bytes;
mod capture_files;
mod clock;
mod commands;
mod conntrack;
mod conntrack_drops;
mod deep;
mod engines;
mod expressions;
mod filters;
mod flood;
mod interop;
mod interrupted;
mod invalid;
mod legacy;
mod legacy_rules;
mod lifecycle;
mod matrix;
mod mixed;
mod namespaces;
mod nflog;
mod nflog_only;
mod nflog_twice;
mod order;
mod overlong;
mod packets;
mod process;
mod reasons;
mod refusals;
mod replace;
mod support;
mod text;
mod thrice;
mod together;
mod trace;
mod trace_state;
mod way;
mod wireshark;
