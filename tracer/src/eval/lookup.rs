//! Steps that ask sets and maps, or fill them.

use super::{
    before::{Before, Compared},
    code::{Decided, Span},
    field::Reason,
    program::Program,
    registers::Registers,
    sets::{Found, Gives, Lookup},
    steps::Did,
};

/// One of a map's verdicts.
fn several(set: &Lookup, reason: Reason) -> Did {
    let mut verdicts = Vec::new();
    for entry in &set.entries {
        if let Gives::Verdict(verdict) = &entry.gives
            && !verdicts.contains(verdict)
        {
            verdicts.push(verdict.clone());
        }
    }
    Did::Several(verdicts, reason)
}

impl Program {
    /// `nft_lookup_eval()` (net/netfilter/nft_lookup.c, v6.18.44).
    pub(super) fn lookup(
        &self,
        registers: &mut Registers,
        set: u32,
        key: Result<&[u8], Reason>,
        to: Option<Span>,
        verdict: bool,
        invert: bool,
    ) -> Did {
        let Some(set) = self.sets.get(set as usize) else {
            return Did::Unknown(Reason::missing("the set is not known"));
        };
        let key = match key {
            Ok(key) => key,
            Err(reason) if verdict => return several(set, reason),
            Err(reason) => {
                if let Some(to) = to {
                    registers.forget(to, reason.clone());
                }
                return Did::Unknown(reason);
            }
        };
        self.found(registers, set, &set.find(key), to, verdict, invert)
    }

    /// Whether an element of the set may count connections.
    pub(super) fn counts(&self, set: u32) -> bool {
        self.sets.get(set as usize).is_some_and(|set| set.counts)
    }

    /// Whether a key is in a set; `None`: that cannot be known.
    pub(super) fn contains(&self, set: u32, key: &[u8]) -> Option<bool> {
        let set = self.sets.get(set as usize)?;
        set.is_certain()
            .then(|| matches!(set.find(key), Found::Entry(_)))
    }

    /// [`Self::lookup`] of a key of which a part is what a rule rewrites later. `None`: nothing can be asked about it.
    pub(super) fn lookup_part(
        &self,
        before: &Before,
        registers: &mut Registers,
        set: u32,
        from: Span,
        (to, verdict, invert): (Option<Span>, bool, bool),
    ) -> Option<Did> {
        const MOST: usize = 8;
        let (number, set) = (set, self.sets.get(set as usize)?);
        // Without an answer it is not known what the key gives.
        let asks = |registers: &mut Registers, question| {
            let why = registers.why();
            if let Some(to) = to {
                registers.forget(to, why.clone());
            }
            Did::Asks(question, why)
        };
        let keys = set.single_keys();
        let Some(keys) = keys.filter(|keys| to.is_some() || verdict || keys.len() <= MOST) else {
            let question = registers.member(number, from)?;
            // Whether the key is in the set tells what it gives if all keys give the same.
            let one = match (&set.entries[..], to.is_some() || verdict) {
                (_, false) => set.entries.first(),
                ([one], true) => Some(one),
                _ => None,
            };
            let one = one.filter(|_| set.is_certain())?;
            let found = match before.answer(&question, self) {
                Some(true) => Found::Entry(one),
                Some(false) => Found::Nothing,
                None => return Some(asks(registers, question)),
            };
            return Some(self.found(registers, set, &found, to, verdict, invert));
        };
        for key in keys {
            match registers.compare(from, key)? {
                Compared::Differs => {}
                Compared::Equals => {
                    let found = set.find(key);
                    return Some(self.found(registers, set, &found, to, verdict, invert));
                }
                Compared::If(question) => match before.answer(&question, self) {
                    Some(false) => {}
                    None => return Some(asks(registers, question)),
                    Some(true) => {
                        let found = set.find(key);
                        return Some(self.found(registers, set, &found, to, verdict, invert));
                    }
                },
            }
        }
        Some(self.found(registers, set, &set.other(), to, verdict, invert))
    }

    fn found(
        &self,
        registers: &mut Registers,
        set: &Lookup,
        found: &Found<'_>,
        to: Option<Span>,
        verdict: bool,
        invert: bool,
    ) -> Did {
        let several = |reason: Reason| several(set, reason);
        let (entry, mut doubt) = match found {
            Found::Entry(entry) => (Some(*entry), entry.doubt.clone()),
            Found::CatchAll(entry) => {
                let doubt = set.growing.clone().or_else(|| entry.doubt.clone());
                (Some(*entry), doubt)
            }
            Found::Nothing => (None, set.growing.clone()),
        };
        if invert {
            if let Some(entry) = set.catch_all() {
                return match (self.inverts_last, &entry.doubt) {
                    (None, _) => Did::Unknown(Reason::missing(
                        "kernels differ in whether any packet is outside a set with a catch-all element",
                    )),
                    (_, Some(reason)) => Did::Unknown(reason.clone()),
                    (Some(last), None) => Did::hold(!last),
                };
            }
            return match (found, doubt) {
                (_, Some(reason)) => Did::Unknown(reason),
                (Found::Nothing, None) => Did::On,
                (_, None) => Did::Miss,
            };
        }
        let Some(entry) = entry else {
            return match doubt {
                None => Did::Miss,
                Some(reason) if verdict => several(reason),
                Some(reason) => {
                    if let Some(to) = to {
                        registers.forget(to, reason.clone());
                    }
                    Did::Unknown(reason)
                }
            };
        };
        // An element that is gone leaves the key to the catch-all element.
        if doubt.is_some() && set.catch_all().is_some() && set.is_map {
            let reason = doubt.take().unwrap_or(Reason::missing(""));
            if verdict {
                return several(reason);
            }
            if let Some(to) = to {
                registers.forget(to, reason.clone());
            }
            return Did::Unknown(reason);
        }
        match (&entry.gives, to, verdict) {
            (Gives::Verdict(decided), _, true) => match (doubt, decided) {
                (None, Decided::Continue) => Did::On,
                (None, decided) => Did::Verdict(decided.clone()),
                (Some(reason), decided) => Did::Several(vec![decided.clone()], reason),
            },
            (Gives::Value(bytes), Some(to), _) => {
                registers.set(to, bytes);
                doubt.map_or(Did::On, Did::Unknown)
            }
            _ => doubt.map_or(Did::On, Did::Unknown),
        }
    }

    /// `nft_objref_map_eval()` (net/netfilter/nft_objref.c, v6.18).
    pub(super) fn object_map(&self, registers: &Registers, set: u32, from: Span) -> Did {
        let Some(set) = self.sets.get(set as usize) else {
            return Did::Unknown(Reason::missing("the map is not known"));
        };
        let key = match registers.get(from) {
            Ok(key) => key,
            Err(reason) => return Did::Unknown(reason),
        };
        match set.find(key) {
            Found::Entry(entry) | Found::CatchAll(entry) => match (&entry.doubt, &set.objects) {
                (Some(reason), _) => Did::Unknown(reason.clone()),
                (None, None) => Did::On,
                (None, Some(reason)) => Did::Unknown(reason.clone()),
            },
            Found::Nothing => match &set.growing {
                Some(reason) => Did::Unknown(reason.clone()),
                None => Did::Miss,
            },
        }
    }

    /// `nft_dynset_eval()` (net/netfilter/nft_dynset.c, v6.18).
    pub(super) fn dynset(
        &self,
        registers: &Registers,
        set: Option<u32>,
        from: Span,
        invert: bool,
        stateful: Option<&Reason>,
    ) -> Did {
        let Some(set) = set.map(|set| self.sets.get(set as usize)) else {
            return Did::On;
        };
        if let Some(reason) = stateful {
            return Did::Unknown(reason.clone());
        }
        let Some(set) = set else {
            return Did::Unknown(Reason::missing("the set is not known"));
        };
        let present = registers
            .get(from)
            .is_ok_and(|key| matches!(set.find(key), Found::Entry(entry) if entry.doubt.is_none()));
        if set.crowded && !present {
            return Did::Unknown(Reason::stateful("the set may be full"));
        }
        Did::hold(!invert)
    }
}
