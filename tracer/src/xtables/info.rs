//! Raw structures of extensions: reading them, and the types that many of them share.

/// A condition that `!` turns round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cond<T> {
    /// What is wanted.
    pub want: T,
    /// It must not be so.
    pub inverted: bool,
}

/// A range, both ends included. The kernel takes any: one with `min > max` contains nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span<T> {
    /// First.
    pub min: T,
    /// Last.
    pub max: T,
}

impl<T: PartialOrd> Span<T> {
    /// Whether `value` is in it.
    pub fn contains(&self, value: &T) -> bool {
        self.min <= *value && *value <= self.max
    }
}

/// A value under a mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Masked<T> {
    /// The value, as it stands in the structure: not always under the mask.
    pub value: T,
    /// Its mask.
    pub mask: T,
}

/// A set of ipset, and what of the packet is looked up in it: `struct xt_set_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetRef {
    /// The set's index. It keeps its name as long as a rule refers to it (`ip_set_rename` refuses, `ip_set_swap` swaps what is in it).
    pub index: u16,
    /// Its name, once resolved.
    pub name: Option<String>,
    /// For each dimension whether it is the source (otherwise the destination).
    pub sources: Vec<bool>,
}
