//! nf_tables messages -> the ruleset model: requests, decoders, and a reading of the whole ruleset that is of one moment.

mod decode;
mod expr;
mod fields;
mod read;
#[cfg(test)]
mod tests;

pub use decode::{
    Elements, Generation, Located, decode_chain, decode_elements, decode_flowtable,
    decode_generation, decode_object, decode_rule, decode_rule_handle, decode_set, decode_table,
    userdata,
};
pub use expr::decode_expr;
pub use read::{ReadError, read_generation, read_ruleset};

/// `NFNLGRP_NFTABLES`: the multicast group that tells of every change.
pub const GROUP: u32 = 7;
/// `NFNL_SUBSYS_NFTABLES`, in the high byte of `nlmsg_type`.
const SUBSYSTEM: u16 = 10 << 8;

/// Message types (`NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_*`, include/uapi/linux/netfilter/nf_tables.h).
pub mod kind {
    use super::SUBSYSTEM;

    /// A table.
    pub const NEWTABLE: u16 = SUBSYSTEM;
    /// Ask for tables.
    pub const GETTABLE: u16 = SUBSYSTEM | 1;
    /// A chain.
    pub const NEWCHAIN: u16 = SUBSYSTEM | 3;
    /// Ask for chains.
    pub const GETCHAIN: u16 = SUBSYSTEM | 4;
    /// A rule.
    pub const NEWRULE: u16 = SUBSYSTEM | 6;
    /// Ask for rules.
    pub const GETRULE: u16 = SUBSYSTEM | 7;
    /// A rule is deleted.
    pub const DELRULE: u16 = SUBSYSTEM | 8;
    /// A set.
    pub const NEWSET: u16 = SUBSYSTEM | 9;
    /// Ask for sets.
    pub const GETSET: u16 = SUBSYSTEM | 10;
    /// Elements of a set.
    pub const NEWSETELEM: u16 = SUBSYSTEM | 12;
    /// Ask for a set's elements.
    pub const GETSETELEM: u16 = SUBSYSTEM | 13;
    /// Elements of a set are deleted.
    pub const DELSETELEM: u16 = SUBSYSTEM | 14;
    /// A generation.
    pub const NEWGEN: u16 = SUBSYSTEM | 15;
    /// Ask for the generation.
    pub const GETGEN: u16 = SUBSYSTEM | 16;
    /// A stateful object.
    pub const NEWOBJ: u16 = SUBSYSTEM | 18;
    /// Ask for stateful objects.
    pub const GETOBJ: u16 = SUBSYSTEM | 19;
    /// A flowtable.
    pub const NEWFLOWTABLE: u16 = SUBSYSTEM | 22;
    /// Ask for flowtables.
    pub const GETFLOWTABLE: u16 = SUBSYSTEM | 23;
}
