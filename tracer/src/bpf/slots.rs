//! What calibration has learnt: from stacks whose rule is known to the slots that held it.

use std::collections::{BTreeMap, BTreeSet};

use fwtrace_abi::{Calibration, PKTINFO_WINDOW, SITE_POLICY, SITE_RULE, SITES, Settings, Site};

/// How many words below the lowest pktinfo that calibration sees it may stand in other families.
#[expect(clippy::cast_possible_wrap, reason = "a small constant")]
const MARGIN: i32 = PKTINFO_WINDOW as i32 / 4;
/// A rule location that fewer distinct rules than this have come through is not believed.
const DISTINCT: usize = 2;

/// What is known of a packet that fwtrace sent through a ruleset of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Handle of the rule that drops it; `None`: a base chain's policy does.
    pub rule: Option<u64>,
    /// Handle of a rule that stands in the base chain itself and has dropped another packet;
    /// `None`: the base chain is empty.
    pub base: Option<u64>,
}

/// Why no slots could be learnt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unlearnt {
    /// A packet's drop was not seen.
    #[error("{missing} of {sent} calibration packets were not seen being dropped")]
    Unseen {
        /// Not seen.
        missing: usize,
        /// Sent.
        sent: usize,
    },
    /// The rule is not on the stack, or not always in one place.
    #[error("no stack word holds the {what} in every drop at {location:#x}")]
    NoSlot {
        /// What was looked for.
        what: &'static str,
        /// Where.
        location: u64,
    },
    /// One address returned for rules and for policies.
    #[error("rules and policies drop at one location, {0:#x}")]
    SharedLocation(u64),
    /// Too many locations, or too few drops at one.
    #[error("{0}")]
    Locations(String),
}

/// Learns the sites from every calibration packet.
///
/// # Errors
/// A packet was not seen, or its rule was in no slot that all drops at its location share.
pub fn learn(samples: &[(Expected, Option<Calibration>)]) -> Result<Vec<Site>, Unlearnt> {
    let seen: Vec<(Expected, &Calibration)> = samples
        .iter()
        .filter_map(|(expected, sample)| Some((*expected, sample.as_ref()?)))
        .collect();
    if seen.len() < samples.len() {
        return Err(Unlearnt::Unseen {
            missing: samples.len() - seen.len(),
            sent: samples.len(),
        });
    }
    let bases = base_chains(&seen);
    let mut locations: BTreeMap<u64, Vec<(Expected, &Calibration)>> = BTreeMap::new();
    for &(expected, sample) in &seen {
        locations
            .entry(sample.location)
            .or_default()
            .push((expected, sample));
    }
    if locations.len() > SITES {
        return Err(Unlearnt::Locations(format!(
            "nft_do_chain drops at {} locations, fwtrace keeps {SITES}",
            locations.len()
        )));
    }
    locations
        .into_iter()
        .map(|(location, samples)| site(location, &samples, &bases))
        .collect()
}

/// The sites without their slots: which locations are rules' and which policies'. What is left when no
/// slots can be learnt.
pub fn kinds(samples: &[(Expected, Option<Calibration>)]) -> Vec<Site> {
    let mut kinds: BTreeMap<u64, BTreeSet<u32>> = BTreeMap::new();
    for (expected, sample) in samples {
        let kind = match expected.rule {
            Some(_) => SITE_RULE,
            None => SITE_POLICY,
        };
        if let Some(sample) = sample {
            kinds.entry(sample.location).or_default().insert(kind);
        }
    }
    kinds
        .into_iter()
        .filter(|(_, kinds)| kinds.len() == 1)
        .filter_map(|(location, kinds)| {
            Some(Site {
                location,
                kind: *kinds.first()?,
                ..UNLEARNT
            })
        })
        .take(SITES)
        .collect()
}

/// A site of which nothing is known.
pub const UNLEARNT: Site = Settings::NONE.sites[0];

/// Address of the base chain, by the handle of a rule in it.
fn base_chains(samples: &[(Expected, &Calibration)]) -> BTreeMap<u64, u64> {
    let mut bases = BTreeMap::new();
    for (expected, sample) in samples {
        if let Some(base) = expected.base
            && expected.rule == Some(base)
        {
            let found = candidates(sample).find(|c| c.is_last == 0 && c.handle == base);
            bases.extend(found.map(|c| (base, c.chain)));
        }
    }
    bases
}

fn candidates(sample: &Calibration) -> impl Iterator<Item = &fwtrace_abi::Candidate> {
    sample.rules.iter().take(sample.rule_count as usize)
}

fn site(
    location: u64,
    samples: &[(Expected, &Calibration)],
    bases: &BTreeMap<u64, u64>,
) -> Result<Site, Unlearnt> {
    let rules: BTreeSet<u64> = samples.iter().filter_map(|(e, _)| e.rule).collect();
    let policies: BTreeSet<Option<u64>> = samples
        .iter()
        .filter(|(e, _)| e.rule.is_none())
        .map(|(e, _)| e.base)
        .collect();
    if !rules.is_empty() && !policies.is_empty() {
        return Err(Unlearnt::SharedLocation(location));
    }
    if rules.len().max(policies.len()) < DISTINCT {
        return Err(Unlearnt::Locations(format!(
            "only one calibration packet was dropped at {location:#x}"
        )));
    }
    let base_of = |expected: &Expected, sample: &Calibration| match expected.base {
        Some(rule) => bases.get(&rule).copied(),
        None => candidates(sample)
            .find(|c| c.is_last != 0 && c.previous == 0)
            .map(|c| c.chain),
    };
    let base_slot = common(samples, |expected, sample| {
        let base = base_of(expected, sample);
        words(sample)
            .filter(|(_, word)| Some(*word) == base)
            .map(|(slot, _)| slot)
            .collect()
    });
    // Other families' callers of nft_do_chain have other frames: their pktinfo stands a few words off.
    let pktinfo_slot = common(samples, |_, sample| {
        let count = sample.pktinfo_count as usize;
        sample.pktinfo.iter().take(count).copied().collect()
    })
    .map(|slot| (slot - MARGIN).max(0));
    let (kind, direct, next) = if policies.is_empty() {
        let slots = |pick: fn(&fwtrace_abi::Candidate) -> Option<u64>| {
            common(samples, |expected, sample| {
                candidates(sample)
                    .filter(|c| expected.rule.is_some() && pick(c) == expected.rule)
                    .map(|c| c.slot)
                    .collect()
            })
        };
        let direct = slots(|c| (c.is_last == 0).then_some(c.handle));
        (SITE_RULE, direct, slots(|c| Some(c.previous)))
    } else {
        let ends = common(samples, |expected, sample| {
            candidates(sample)
                .filter(|c| c.is_last != 0 && Some(c.chain) == base_of(expected, sample))
                .map(|c| c.slot)
                .collect()
        });
        (SITE_POLICY, ends, None)
    };
    let missing = |what| Unlearnt::NoSlot { what, location };
    Ok(Site {
        location,
        kind,
        rule_slot: direct.or(next).ok_or(missing("rule"))?,
        next: u32::from(direct.is_none()),
        base_slot: base_slot.unwrap_or(-1),
        pktinfo_slot: pktinfo_slot.ok_or(missing("packet"))?,
        pad: 0,
    })
}

fn words(sample: &Calibration) -> impl Iterator<Item = (u32, u64)> {
    (0..).zip(sample.word.iter().take(sample.words as usize).copied())
}

/// The lowest slot that `slots` finds in every sample.
fn common(
    samples: &[(Expected, &Calibration)],
    slots: impl Fn(&Expected, &Calibration) -> BTreeSet<u32>,
) -> Option<i32> {
    samples
        .iter()
        .map(|(expected, sample)| slots(expected, sample))
        .reduce(|a, b| &a & &b)?
        .first()
        .and_then(|&slot| i32::try_from(slot).ok())
}

#[cfg(test)]
mod tests {
    use fwtrace_abi::{CANDIDATES, Candidate, SCAN_WORDS};

    use super::*;

    const CHAIN: u64 = 0xffff_8880_0000_1000;
    const OTHER: u64 = 0xffff_8880_0000_2000;

    /// A drop at `location` whose stack has these rules: (slot, handle, previous, is_last, chain).
    fn sample(location: u64, rules: &[(u32, u64, u64, u32, u64)]) -> Calibration {
        let mut sample = Calibration {
            location,
            reason: 1,
            mark: 1,
            words: SCAN_WORDS as u32,
            pad: 0,
            rule_count: rules.len() as u32,
            pktinfo_count: 1,
            word: [0; SCAN_WORDS],
            rules: [Candidate::default(); CANDIDATES],
            pktinfo: [0; CANDIDATES],
        };
        sample.pktinfo[0] = 30;
        for (i, &(slot, handle, previous, is_last, chain)) in rules.iter().enumerate() {
            sample.rules[i] = Candidate {
                slot,
                is_last,
                handle,
                previous,
                chain,
                chain_handle: 0,
            };
        }
        sample.word[20] = CHAIN;
        sample
    }

    fn rule(handle: u64) -> Expected {
        Expected {
            rule: Some(handle),
            base: Some(5),
        }
    }

    #[test]
    fn learns_the_slot_that_all_share() {
        let samples = [
            (
                rule(5),
                Some(sample(100, &[(8, 5, 0, 0, CHAIN), (9, 5, 0, 0, CHAIN)])),
            ),
            (
                rule(6),
                Some(sample(100, &[(7, 5, 0, 0, CHAIN), (9, 6, 5, 0, CHAIN)])),
            ),
        ];
        let sites = learn(&samples).unwrap();
        assert_eq!(
            sites,
            [Site {
                location: 100,
                kind: SITE_RULE,
                rule_slot: 9,
                next: 0,
                base_slot: 20,
                pktinfo_slot: 22,
                pad: 0
            }]
        );
    }

    #[test]
    fn falls_back_to_the_next_rule() {
        let samples = [
            (rule(5), Some(sample(100, &[(8, 6, 5, 0, CHAIN)]))),
            (rule(6), Some(sample(100, &[(8, 0, 6, 1, CHAIN)]))),
        ];
        let site = learn(&samples).unwrap()[0];
        assert_eq!((site.rule_slot, site.next), (8, 1));
    }

    #[test]
    fn a_policy_is_the_end_of_its_own_chain() {
        let policy = |base| Expected {
            rule: None,
            base: Some(base),
        };
        let samples = [
            (rule(5), Some(sample(100, &[(9, 5, 0, 0, CHAIN)]))),
            (
                Expected {
                    rule: Some(7),
                    base: Some(7),
                },
                Some(sample(100, &[(9, 7, 0, 0, OTHER)])),
            ),
            (
                policy(5),
                Some(sample(200, &[(3, 0, 5, 1, OTHER), (4, 0, 5, 1, CHAIN)])),
            ),
            (policy(7), Some(sample(200, &[(4, 0, 7, 1, OTHER)]))),
        ];
        let sites = learn(&samples).unwrap();
        assert_eq!((sites[1].kind, sites[1].rule_slot), (SITE_POLICY, 4));
    }

    #[test]
    fn without_slots_the_kinds_remain() {
        let policy = Expected {
            rule: None,
            base: Some(5),
        };
        let samples = [
            (rule(5), Some(sample(100, &[]))),
            (rule(6), Some(sample(300, &[]))),
            (policy, Some(sample(200, &[]))),
            (policy, Some(sample(300, &[]))),
            (policy, None),
        ];
        let kinds: Vec<_> = kinds(&samples)
            .iter()
            .map(|site| (site.location, site.kind, site.rule_slot))
            .collect();
        assert_eq!(kinds, [(100, SITE_RULE, -1), (200, SITE_POLICY, -1)]);
    }

    #[test]
    fn a_moving_rule_is_not_learnt() {
        let samples = [
            (rule(5), Some(sample(100, &[(8, 5, 0, 0, CHAIN)]))),
            (rule(6), Some(sample(100, &[(9, 6, 5, 0, CHAIN)]))),
        ];
        assert!(matches!(
            learn(&samples),
            Err(Unlearnt::NoSlot { what: "rule", .. })
        ));
    }

    #[test]
    fn one_packet_unseen_is_no_calibration() {
        let samples = [
            (rule(5), Some(sample(100, &[(8, 5, 0, 0, CHAIN)]))),
            (rule(6), None),
        ];
        assert_eq!(
            learn(&samples),
            Err(Unlearnt::Unseen {
                missing: 1,
                sent: 2
            })
        );
    }

    #[test]
    fn rules_and_policies_must_drop_at_different_locations() {
        let samples = [
            (rule(5), Some(sample(100, &[(8, 5, 0, 0, CHAIN)]))),
            (
                Expected {
                    rule: None,
                    base: Some(5),
                },
                Some(sample(100, &[(8, 0, 5, 1, CHAIN)])),
            ),
        ];
        assert_eq!(learn(&samples), Err(Unlearnt::SharedLocation(100)));
    }
}
