//! What the registers of nf_tables hold on the way through a rule.

use crate::ruleset::model::PayloadBase;

/// What was loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Load {
    /// Packet bytes.
    Payload {
        base: PayloadBase,
        offset: u32,
        len: u32,
    },
    /// `NFT_META_*`.
    Meta(u32),
    /// Data of the rule.
    Immediate(Vec<u8>),
}

/// A register: what was loaded into it, and the mask that was put on that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Loaded {
    pub(super) load: Load,
    pub(super) mask: Option<Vec<u8>>,
}

/// The registers. Numbers 1 to 4 are four words each, 8 to 23 the same words one by one.
#[derive(Debug, Default)]
pub(super) struct Registers {
    /// First word, number of words, content; no two overlap.
    held: Vec<(u32, u32, Loaded)>,
}

fn first_word(register: u32) -> Option<u32> {
    match register {
        1..=4 => Some(4 * (register - 1)),
        8..=23 => Some(register - 8),
        _ => None,
    }
}

impl Registers {
    /// Sets a register to `len` bytes. `None` if there is no such register.
    pub(super) fn set(&mut self, register: u32, len: u32, loaded: Loaded) -> Option<()> {
        let first = first_word(register)?;
        let words = len.div_ceil(4);
        let end = first.checked_add(words).filter(|end| *end <= 16)?;
        self.held
            .retain(|(other, words, _)| other + words <= first || *other >= end);
        self.held.push((first, words, loaded));
        Some(())
    }

    /// What is loaded from this register on.
    pub(super) fn get(&self, register: u32) -> Option<&Loaded> {
        let first = first_word(register)?;
        let held = self.held.iter().find(|held| held.0 == first)?;
        Some(&held.2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(key: u32) -> Loaded {
        Loaded {
            load: Load::Meta(key),
            mask: None,
        }
    }

    #[test]
    fn registers_overlap() {
        let mut registers = Registers::default();
        registers.set(1, 16, meta(1)).unwrap();
        registers.set(2, 4, meta(2)).unwrap();
        assert_eq!(registers.get(1), Some(&meta(1)));
        assert_eq!(registers.get(8), Some(&meta(1)));
        assert_eq!(registers.get(12), Some(&meta(2)));
        registers.set(9, 4, meta(3)).unwrap();
        assert_eq!(registers.get(1), None);
        assert_eq!(registers.get(9), Some(&meta(3)));
        assert_eq!(registers.get(2), Some(&meta(2)));
        assert_eq!(registers.set(23, 8, meta(4)), None);
        assert_eq!(registers.set(0, 4, meta(4)), None);
        assert_eq!(registers.set(5, 4, meta(4)), None);
    }
}
