//! Matches: `struct xt_*_info` -> [`Match`], and its iptables-save text.

use super::Family;

/// A match, decoded. Addresses and ports are in host order as Rust has them, unless a field says otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// An extension that is not known, or whose `info` has another size than it should.
    Unknown {
        /// Its name.
        name: String,
        /// Its revision.
        rev: u8,
        /// The raw structure.
        info: Vec<u8>,
    },
}

impl Match {
    /// Decodes a match. Total: what is not understood is [`Match::Unknown`].
    pub fn decode(name: &str, rev: u8, info: &[u8], family: Family) -> Self {
        let _ = family;
        Self::Unknown {
            name: name.to_owned(),
            rev,
            info: info.to_vec(),
        }
    }
}
