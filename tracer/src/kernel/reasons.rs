//! `enum skb_drop_reason` of the running kernel: the numbers differ from version to version, so
//! they are read from its BTF.

use std::{borrow::Cow, collections::BTreeMap};

use super::{btf::BtfError, types::KernelTypes};

const PREFIX: &str = "SKB_DROP_REASON_";
/// The subsystem that defined a reason stands in the high 16 bits
/// (`SKB_DROP_REASON_SUBSYS_SHIFT`, include/net/dropreason.h, v6.18); 0 is the core.
const SUBSYS_SHIFT: u32 = 16;
/// Enums of subsystems, whose values have the subsystem's bits set already: net/openvswitch/drop.h,
/// net/mac80211/drop.h (v6.18); that of the queueing disciplines came by v7.2.
const SUBSYS_ENUMS: &[&str] = &[
    "ovs_drop_reason",
    "mac80211_drop_reason",
    "___mac80211_drop_reason",
    "qdisc_drop_reason",
];
/// Names offered for one that is not known.
const SUGGESTIONS: usize = 3;

/// A name that is no drop reason of this kernel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this kernel has no drop reason {name}{}", hint(.suggestions, .all))]
pub struct UnknownReason {
    /// What was asked for.
    pub name: String,
    /// Names like it, best first.
    pub suggestions: Vec<String>,
    /// Every name there is.
    pub all: Vec<String>,
}

fn hint(suggestions: &[String], all: &[String]) -> String {
    match (suggestions, all) {
        ([], []) => ": it does not say why it drops packets (that came with Linux 5.17)".to_owned(),
        ([], all) => format!("; it has: {}", all.join(", ")),
        (some, _) => format!("; did you mean {}?", some.join(" or ")),
    }
}

/// Why a kernel drops packets: names without `SKB_DROP_REASON_`, and their values.
///
/// The default is a kernel that does not say why (before v5.17).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reasons {
    by_value: BTreeMap<u32, String>,
    subsystems: BTreeMap<u32, String>,
}

impl Reasons {
    /// Reads the reasons from the kernel's BTF, with those of the subsystems whose BTF is there.
    ///
    /// # Errors
    /// [`BtfError::NoType`] when the kernel has no drop reasons; any other when its BTF is
    /// malformed.
    pub fn load(types: &KernelTypes) -> Result<Self, BtfError> {
        let mut reasons = Self::default();
        for (name, value) in types.enum_values("skb_drop_reason")? {
            let Ok(value) = u32::try_from(value) else {
                continue;
            };
            // Not reasons: the end of the list, and the mask of the subsystem's bits.
            if matches!(
                name.as_str(),
                "SKB_DROP_REASON_MAX" | "SKB_DROP_REASON_SUBSYS_MASK"
            ) {
                continue;
            }
            reasons.insert(name.strip_prefix(PREFIX).unwrap_or(&name), value);
        }
        for name in SUBSYS_ENUMS {
            for (name, value) in optional(types.enum_values(name))? {
                let Ok(value) = u32::try_from(value) else {
                    continue;
                };
                // They begin with the bare subsystem and may end with a count: no reasons.
                if value >> SUBSYS_SHIFT != 0 && value & 0xffff != 0 && !name.ends_with("_MAX") {
                    reasons.insert(name.trim_start_matches('_'), value);
                }
            }
        }
        for (name, value) in optional(types.enum_values("skb_drop_reason_subsys"))? {
            if let (Some(name), Ok(value)) = (
                name.strip_prefix("SKB_DROP_REASON_SUBSYS_"),
                u32::try_from(value),
            ) && name != "NUM"
            {
                reasons.subsystems.insert(value, name.to_owned());
            }
        }
        Ok(reasons)
    }

    fn insert(&mut self, name: &str, value: u32) {
        self.by_value
            .entry(value)
            .or_insert_with(|| name.to_owned());
    }

    /// The name of a reason: `NETFILTER_DROP`; for one that is in no BTF, `REASON_300`, or with
    /// its subsystem, `OPENVSWITCH:0x7`, `SUBSYS_9:0x7`.
    pub fn name(&self, value: u32) -> Cow<'_, str> {
        if let Some(name) = self.by_value.get(&value) {
            return Cow::Borrowed(name);
        }
        let (subsystem, rest) = (value >> SUBSYS_SHIFT, value & 0xffff);
        Cow::Owned(match (subsystem, self.subsystems.get(&subsystem)) {
            (0, _) => format!("REASON_{rest}"),
            (_, Some(name)) => format!("{name}:{rest:#x}"),
            (_, None) => format!("SUBSYS_{subsystem}:{rest:#x}"),
        })
    }

    /// The value of a reason, by its name with or without `SKB_DROP_REASON_`, in any case.
    ///
    /// # Errors
    /// When this kernel has no such reason; the error names those like it.
    pub fn value(&self, name: &str) -> Result<u32, UnknownReason> {
        let wanted = name.to_ascii_uppercase();
        let wanted = wanted.strip_prefix(PREFIX).unwrap_or(&wanted);
        self.by_value
            .iter()
            .find(|(_, known)| known.eq_ignore_ascii_case(wanted))
            .map(|(&value, _)| value)
            .ok_or_else(|| UnknownReason {
                name: name.to_owned(),
                suggestions: self.like(wanted),
                all: self.iter().map(|(_, name)| name.to_owned()).collect(),
            })
    }

    /// Every reason and its name, by value.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &str)> {
        self.by_value
            .iter()
            .map(|(&value, name)| (value, name.as_str()))
    }

    /// The value of `NETFILTER_DROP`; `None` on a kernel that has no drop reasons.
    pub fn netfilter_drop(&self) -> Option<u32> {
        self.value("NETFILTER_DROP").ok()
    }

    /// Names that hold `wanted`, or that some slips of the finger turn into it.
    fn like(&self, wanted: &str) -> Vec<String> {
        let mut scored: Vec<(usize, &str)> = self
            .iter()
            .filter_map(|(_, name)| {
                let upper = name.to_ascii_uppercase();
                if wanted.len() >= 3 && upper.contains(wanted) {
                    return Some((0, name));
                }
                let distance = edit_distance(wanted.as_bytes(), upper.as_bytes());
                (distance <= wanted.len() / 3).then_some((distance, name))
            })
            .collect();
        scored.sort_unstable();
        scored
            .into_iter()
            .take(SUGGESTIONS)
            .map(|(_, name)| name.to_owned())
            .collect()
    }
}

fn optional(values: Result<Vec<(String, i64)>, BtfError>) -> Result<Vec<(String, i64)>, BtfError> {
    match values {
        Err(error) if error.is_missing() => Ok(Vec::new()),
        values => values,
    }
}

/// Levenshtein distance. Both are names of some tens of bytes.
fn edit_distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, y) in row.iter_mut().skip(1).zip(b) {
            let above = *cell;
            let cost = usize::from(x != y);
            left = (diagonal + cost).min(above + 1).min(left + 1);
            diagonal = above;
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::kernel::{
        btf::{Btf, tests::Builder},
        types::BTF_DIR,
    };

    fn reasons() -> Reasons {
        let mut b = Builder::new();
        b.enumeration(
            "skb_drop_reason",
            &[
                ("SKB_NOT_DROPPED_YET", 0),
                ("SKB_CONSUMED", 1),
                ("SKB_DROP_REASON_NOT_SPECIFIED", 2),
                ("SKB_DROP_REASON_NO_SOCKET", 3),
                ("SKB_DROP_REASON_NETFILTER_DROP", 12),
                ("SKB_DROP_REASON_IP_RPFILTER", 16),
                ("SKB_DROP_REASON_MAX", 17),
                ("SKB_DROP_REASON_SUBSYS_MASK", 0x7fff_0000),
            ],
        );
        b.enumeration(
            "skb_drop_reason_subsys",
            &[
                ("SKB_DROP_REASON_SUBSYS_CORE", 0),
                ("SKB_DROP_REASON_SUBSYS_OPENVSWITCH", 3),
                ("SKB_DROP_REASON_SUBSYS_NUM", 4),
            ],
        );
        b.enumeration(
            "ovs_drop_reason",
            &[
                ("__OVS_DROP_REASON", 0x3_0000),
                ("OVS_DROP_EXPLICIT", 0x3_0002),
                ("OVS_DROP_MAX", 0x3_0003),
            ],
        );
        Reasons::load(&KernelTypes::from(Btf::parse(b.build()).unwrap())).unwrap()
    }

    #[test]
    fn names_values() {
        let reasons = reasons();
        for (value, name) in [
            (0, "SKB_NOT_DROPPED_YET"),
            (12, "NETFILTER_DROP"),
            (17, "REASON_17"),
            (0x3_0002, "OVS_DROP_EXPLICIT"),
            (0x3_0000, "OPENVSWITCH:0x0"),
            (0x3_0003, "OPENVSWITCH:0x3"),
            // SKB_DROP_REASON_SUBSYS_NUM is the count of subsystems.
            (0x4_0001, "SUBSYS_4:0x1"),
            (0x9_0007, "SUBSYS_9:0x7"),
        ] {
            assert_eq!(reasons.name(value), name);
        }
    }

    #[test]
    fn finds_values_in_any_case_with_or_without_prefix() {
        let reasons = reasons();
        for name in [
            "NETFILTER_DROP",
            "netfilter_drop",
            "skb_drop_reason_netfilter_drop",
        ] {
            assert_eq!(reasons.value(name), Ok(12));
        }
        assert_eq!(reasons.netfilter_drop(), Some(12));
        assert_eq!(reasons.value("ovs_drop_explicit"), Ok(0x3_0002));
    }

    #[test]
    fn offers_names_like_an_unknown_one() {
        let reasons = reasons();
        let message = |name| reasons.value(name).unwrap_err().to_string();
        assert_eq!(
            message("rpfilter"),
            "this kernel has no drop reason rpfilter; did you mean IP_RPFILTER?"
        );
        assert_eq!(
            message("NETFITLER_DORP"),
            "this kernel has no drop reason NETFITLER_DORP; did you mean NETFILTER_DROP?"
        );
        let all = message("zzz");
        assert!(
            all.contains("it has: ") && all.contains("NO_SOCKET"),
            "{all}"
        );
        assert!(!all.contains("MAX") && !all.contains("SUBSYS"), "{all}");
    }

    #[test]
    fn a_kernel_without_reasons_says_so() {
        let mut b = Builder::new();
        b.int("u8", 1);
        let types = KernelTypes::from(Btf::parse(b.build()).unwrap());
        assert!(Reasons::load(&types).is_err_and(|e| e.is_missing()));
        let none = Reasons::default();
        assert_eq!(none.netfilter_drop(), None);
        assert_eq!(none.name(5), "REASON_5");
        let error = none.value("NETFILTER_DROP").unwrap_err().to_string();
        assert!(error.contains("5.17"), "{error}");
    }

    #[test]
    fn edit_distances() {
        assert_eq!(edit_distance(b"", b"abc"), 3);
        assert_eq!(edit_distance(b"abc", b""), 3);
        assert_eq!(edit_distance(b"kitten", b"sitting"), 3);
        assert_eq!(edit_distance(b"same", b"same"), 0);
    }

    #[test]
    fn reads_the_running_kernels_reasons() {
        if !Path::new(BTF_DIR).join("vmlinux").exists() {
            return;
        }
        let types = KernelTypes::load(Path::new(BTF_DIR)).unwrap();
        let Ok(reasons) = Reasons::load(&types) else {
            return;
        };
        let drop = reasons.netfilter_drop().unwrap();
        assert_eq!(reasons.name(drop), "NETFILTER_DROP");
        for (value, name) in reasons.iter() {
            assert_eq!(reasons.value(name), Ok(value), "{name}");
        }
    }
}
