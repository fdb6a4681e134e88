use std::{collections::BTreeMap, path::Path};

use super::*;
use crate::kernel::{
    btf::{
        Btf,
        tests::{Builder, STRUCT},
    },
    types::BTF_DIR,
};

#[test]
fn every_field_has_a_feature_and_every_feature_a_field() {
    for (name, _) in Layout::PATHS {
        assert!(field_spec(name).is_some(), "{name}");
    }
    for &feature in Feature::ALL {
        assert!(
            Layout::PATHS
                .iter()
                .any(|(name, _)| field_spec(name).is_some_and(|(f, _)| f == feature)),
            "{feature:?}"
        );
    }
}

/// A kernel in which every field and fact is as expected, but for what `change` makes of
/// it. Each leaf: path, bit offset, size in bytes.
fn kernel(change: impl Fn(&mut BTreeMap<String, (u32, u64)>)) -> KernelTypes {
    let mut leaves = BTreeMap::new();
    let mut sizes = BTreeMap::new();
    // Fields out of one another's way, inside each struct.
    let mut ends: BTreeMap<&str, u32> = BTreeMap::new();
    for &(name, path) in Layout::PATHS {
        let size = field_spec(name).and_then(|(_, s)| s.first().copied());
        let size = size.unwrap_or(0);
        let (parent, _) = path.rsplit_once('.').unwrap();
        // The first word is for what FACTS has.
        let end = ends.entry(parent).or_insert(8);
        leaves.insert(path.to_owned(), (*end * 8, size * 8));
        *end += u32::try_from(size.next_multiple_of(8)).unwrap();
    }
    for (_, path, fact) in FACTS {
        match *fact {
            Fact::Bits(at, size) => {
                leaves.insert((*path).to_owned(), (at, size));
            }
            Fact::Size(size) => {
                sizes.insert((*path).to_owned(), size);
            }
        }
    }
    change(&mut leaves);
    let mut b = Builder::new();
    let mut structs: BTreeMap<String, Vec<(String, u32, u32)>> = BTreeMap::new();
    for (path, (at, bits)) in leaves {
        let (parent, leaf) = path.rsplit_once('.').unwrap();
        let bytes = u32::try_from(bits.div_ceil(8)).unwrap();
        // An empty struct of the right size stands for any type; what is not whole bytes
        // becomes a bit-field.
        let ty = b.composite("", STRUCT, bytes, &[]);
        let word = if bits.is_multiple_of(8) {
            at
        } else {
            at | (u32::try_from(bits).unwrap() << 24)
        };
        structs
            .entry(parent.to_owned())
            .or_default()
            .push((leaf.to_owned(), ty, word));
    }
    // Innermost structs first, then those that hold them.
    while let Some(parent) = structs
        .keys()
        .max_by_key(|path| path.matches('.').count())
        .cloned()
    {
        let members = structs.remove(&parent).unwrap();
        let members: Vec<_> = members
            .iter()
            .map(|(name, ty, word)| (name.as_str(), *ty, *word))
            .collect();
        let size = sizes.get(&parent).copied().unwrap_or(4096);
        match parent.rsplit_once('.') {
            Some((outer, leaf)) => {
                let ty = b.composite("", STRUCT | 1 << 31, size, &members);
                structs
                    .entry(outer.to_owned())
                    .or_default()
                    .push((leaf.to_owned(), ty, 0));
            }
            None => {
                b.composite(&parent, STRUCT | 1 << 31, size, &members);
            }
        }
    }
    KernelTypes::from(Btf::parse(b.build()).unwrap())
}

#[test]
fn a_kernel_as_expected_misses_nothing() {
    let (layout, missing) = resolve(&kernel(|_| {}));
    assert_eq!(missing, []);
    for (name, path) in Layout::PATHS {
        assert_ne!(layout.get(name), ABSENT, "{path}");
    }
    assert_eq!(layout.skb_sk, 16);
}

#[test]
fn a_missing_field_switches_off_its_feature_and_no_other() {
    let (layout, missing) = resolve(&kernel(|leaves| {
        leaves.remove("nft_rule_dp_last.chain");
        leaves.remove("nf_conn.mark");
    }));
    let off: Vec<_> = missing.iter().map(|m| (m.feature, m.path)).collect();
    assert_eq!(
        off,
        [
            (Feature::KernelStack, "nft_rule_dp_last.chain"),
            (Feature::ConntrackMark, "nf_conn.mark")
        ]
    );
    assert_eq!(layout.chain_name, ABSENT);
    assert_eq!(layout.ct_mark, ABSENT);
    assert_ne!(layout.ct_status, ABSENT);
    assert_ne!(layout.skb_len, ABSENT);
}

#[test]
fn a_field_of_another_size_switches_off_its_feature() {
    let (layout, missing) = resolve(&kernel(|leaves| {
        leaves.get_mut("net.nft.base_seq").unwrap().1 = 64;
    }));
    assert_eq!(missing.len(), 1);
    assert_eq!(missing[0].feature, Feature::Generation);
    assert!(missing[0].reason.contains("has 8 bytes"), "{}", missing[0]);
    assert_eq!(layout.net_nft_generation, ABSENT);
}

#[test]
fn a_hard_coded_fact_that_is_false_switches_off_its_feature() {
    let (layout, missing) = resolve(&kernel(|leaves| {
        leaves.insert("nft_rule_dp.dlen".into(), (1, 13));
    }));
    assert_eq!(missing.len(), 1);
    assert_eq!(missing[0].feature, Feature::KernelStack);
    assert_eq!(layout.chain_table, ABSENT);
    assert_ne!(layout.net_nft_generation, ABSENT);
}

/// The kernel the test runs on, where it carries BTF, has at least what a drop record needs.
#[test]
fn the_running_kernel_has_the_essentials() {
    if !Path::new(BTF_DIR).join("vmlinux").exists() {
        return;
    }
    let types = KernelTypes::load(Path::new(BTF_DIR)).unwrap();
    let (layout, missing) = resolve(&types);
    let essential: Vec<_> = missing
        .iter()
        .filter(|m| m.feature.is_essential())
        .collect();
    assert!(essential.is_empty(), "{essential:?}");
    assert_eq!(layout.state_pf, layout.state_hook + 1);
    assert_eq!(layout.state_out, layout.state_in + 8);
}
