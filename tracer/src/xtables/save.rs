//! Whole rules in iptables-save syntax, of both engines.
