//! Targets: `struct xt_*_info` -> [`Target`], and its iptables-save text.

use super::Family;

/// A target other than a plain verdict or a jump, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
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

impl Target {
    /// Decodes a target. Total: what is not understood is [`Target::Unknown`].
    pub fn decode(name: &str, rev: u8, info: &[u8], family: Family) -> Self {
        let _ = family;
        Self::Unknown {
            name: name.to_owned(),
            rev,
            info: info.to_vec(),
        }
    }
}
