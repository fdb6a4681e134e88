//! xtables: legacy tables, and the matches and targets that iptables-nft's rules share with them.
//!
//! | module | subject |
//! |---|---|
//! | [`info`] | reading raw structures, and the types that many of them share |
//! | [`mod@matches`] | `struct xt_*_info` of a match -> [`matches::Match`], and its iptables-save text |
//! | [`targets`] | likewise for targets |
//! | [`legacy`] | tables of ip_tables and ip6_tables: the model, the blob, reading it |
//! | [`save`] | whole rules in iptables-save syntax, of both engines |

pub mod info;
pub mod legacy;
pub mod matches;
pub mod save;
pub mod targets;

#[cfg(test)]
mod tests;

/// What a table of xtables filters; matches and targets of one name differ between the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// ip_tables.
    V4,
    /// ip6_tables.
    V6,
}
