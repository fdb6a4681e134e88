//! `--trace`: the kernel's own word on a packet's way through the rules.
//!
//! | module | subject |
//! |---|---|
//! | [`table`] | fwtrace's own table, which sets the trace bit of packets that match the filter |
//! | [`assemble`] | nf_tables' messages -> the way of each packet that nf_tables dropped |
//! | [`lines`] | ip_tables' TRACE lines -> the same for ip_tables |
//! | [`invalid`] | why conntrack calls packets invalid |
//! | [`logger`] | makes both come here, and puts back what was changed for it |
//! | [`headers`] | by what a packet is known again |
//! | [`join`] | which trace is of which drop |
//! | [`probe`] | whether all that is to be had here |
//! | [`resolve`] | rules by number and handle, verdicts in words |
//! | [`tell`] | what the event says then |
//!
//! The bit is set in PREROUTING and OUTPUT and stays with the packet from there on, to the egress of its device. So what it cannot see is a
//! device's ingress, ARP, frames that a bridge passes on, and packets that the filter did not match before NAT changed them.

pub mod assemble;
pub mod headers;
pub mod invalid;
pub mod join;
pub mod lines;
pub mod logger;
pub mod probe;
pub mod resolve;
pub mod table;
pub mod tell;

use std::io::{self, Write};

/// Says on stderr what is about to be changed. Not even `-q` keeps that back.
pub fn announce(line: &str) {
    // Nobody may be there to read it.
    let _ = writeln!(io::stderr(), "fwtrace: {line}");
}
