//! Drops that conntrack made itself: no room for a new connection, or one that could not be entered.

use std::sync::Arc;

use fwtrace_abi::{
    FLAG_CT_HOOKS_READ, FLAG_CT_OUTPUT, FLAG_CT_PREROUTING, LEGACY_HOOKED, LEGACY_UNMOVED, Record,
};

use super::{NFPROTO_IPV4, NFPROTO_IPV6, Place};
use crate::{
    conntrack::is_full,
    event::{Confidence, Hook},
    netlink::conntrack::Usage,
    xtables::legacy::follow::Tables,
};

/// What a packet without connection was dropped for, or one whose connection is new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ByConntrack {
    /// Exact, or computed from how full the table is.
    pub(super) confidence: Confidence,
    /// In words.
    pub(super) why: Arc<str>,
}

/// Whether conntrack made this drop in `nf_hook_slow()`; `None`: nothing says so. `hook`: of family `pf`.
///
/// Its counter must have moved by this one packet, and the packet be one that conntrack can have dropped: in PREROUTING and OUTPUT one
/// without connection where conntrack is hooked in (`nf_conntrack_in()`; what other functions drop there has got a connection, or they
/// have no counters of conntrack's to move), in INPUT and POSTROUTING the first one of a connection (`nf_confirm()`).
pub(super) fn tell(
    record: &Record,
    pf: u8,
    hook: Option<Hook>,
    place: &mut Place<'_>,
) -> Option<ByConntrack> {
    if !matches!(pf, NFPROTO_IPV4 | NFPROTO_IPV6) {
        return None;
    }
    let hooked = |flag| {
        let read = record.flags & FLAG_CT_HOOKS_READ != 0;
        read && record.flags & flag != 0
    };
    match hook? {
        Hook::Prerouting if record.nfct == 0 && hooked(FLAG_CT_PREROUTING) => {
            taken_in(record, place)
        }
        Hook::Output if record.nfct == 0 && hooked(FLAG_CT_OUTPUT) => taken_in(record, place),
        // `enum ip_conntrack_info`: related or new.
        Hook::Input | Hook::Postrouting
            if record.nfct & !7 != 0 && matches!(record.nfct & 7, 1 | 2) =>
        {
            confirmed(record)
        }
        _ => None,
    }
}

/// By `nf_conntrack_in()`.
fn taken_in(record: &Record, place: &mut Place<'_>) -> Option<ByConntrack> {
    let moved = &record.ct_moved;
    let known = moved.known != 0;
    if known && moved.drop == 0 {
        return None;
    }
    let usage = place.connections.as_mut().and_then(|c| c.usage());
    let full = usage.is_some_and(is_full);
    if known && moved.drop == 1 {
        return Some(ByConntrack {
            confidence: Confidence::Exact,
            why: no_room(usage, moved.invalid > 0).into(),
        });
    }
    // Several packets, or how many is not known: that it was this one follows from the table being full and no other doing such things.
    let alone = record.legacy.kind == LEGACY_UNMOVED
        || record.legacy.flags & LEGACY_HOOKED == 0 && !has_tables(place.legacy.as_deref());
    (full && alone).then(|| ByConntrack {
        confidence: Confidence::Computed,
        why: no_room(usage, false).into(),
    })
}

/// By `nf_confirm()`. The counter of dropped packets stands still where the bucket is too long.
fn confirmed(record: &Record) -> Option<ByConntrack> {
    let moved = &record.ct_moved;
    let alone = moved.drop <= 1 && moved.insert_failed <= 1 && moved.drop + moved.insert_failed > 0;
    if moved.known == 0 || !alone {
        return None;
    }
    let why = if moved.insert_failed == 0 {
        "its connection was given up while it was entered"
    } else if moved.chain_too_long > 0 {
        "its connection was not entered: too many have the same hash (chaintoolong)"
    } else {
        "its connection was not entered: another packet had entered one with the same addresses and ports (insert_failed)"
    };
    Some(ByConntrack {
        confidence: Confidence::Exact,
        why: why.into(),
    })
}

/// Without room, in words. `invalid`: packets that do not fit their connection have come, too; some trackers drop those.
fn no_room(usage: Option<Usage>, invalid: bool) -> String {
    let max = usage.and_then(|usage| Some((usage.entries, usage.max?)));
    let what = match invalid {
        true => "no room for a new connection, or the packet does not fit the one that it is of",
        false => "no room for a new connection",
    };
    match (max, usage.is_some_and(is_full)) {
        (Some((entries, max)), true) => {
            format!("table full ({entries} of {max} entries, net.netfilter.nf_conntrack_max)")
        }
        (Some((entries, max)), false) => format!(
            "{what} ({entries} of {max} entries a moment later, net.netfilter.nf_conntrack_max)"
        ),
        (None, _) => what.to_owned(),
    }
}

/// Whether there are legacy tables, or may be.
fn has_tables(tables: Option<&Tables>) -> bool {
    tables.is_none_or(|tables| tables.newest().next().is_some())
}

#[cfg(test)]
mod tests {
    use fwtrace_abi::CtMoved;
    use zerocopy::FromZeros;

    use super::*;
    use crate::{event::NetnsRef, ruleset::render::Names};

    fn record(nfct: u64, moved: CtMoved) -> Record {
        let mut record = Record::new_zeroed();
        record.flags = FLAG_CT_HOOKS_READ | FLAG_CT_PREROUTING;
        (record.nfct, record.ct_moved) = (nfct, moved);
        record
    }

    fn told(record: &Record, hook: Hook) -> Option<ByConntrack> {
        let netns = NetnsRef {
            inode: 1,
            name: None,
        };
        let mut place = Place {
            netns: &netns,
            rulesets: None,
            legacy: None,
            surroundings: None,
            lists: None,
            connections: None,
            explainer: None,
            names: &Names::default(),
            epoch: 1,
        };
        tell(record, NFPROTO_IPV4, Some(hook), &mut place)
    }

    fn drops(drop: u8) -> CtMoved {
        CtMoved {
            known: 1,
            drop,
            ..CtMoved::default()
        }
    }

    #[test]
    fn one_packet_counted_and_none_other() {
        let exact = told(&record(0, drops(1)), Hook::Prerouting).unwrap();
        assert_eq!(exact.confidence, Confidence::Exact);
        assert_eq!(&*exact.why, "no room for a new connection");
        for (nfct, drop, hook) in [
            (0, 0, Hook::Prerouting),
            (0, 2, Hook::Prerouting),
            // The packet that was counted may be one that nobody was shown.
            (0, u8::MAX, Hook::Prerouting),
            // Conntrack is not hooked in there.
            (0, 1, Hook::Output),
            // It has been through conntrack: another function has dropped it.
            (0xffff_8880_0000_1002, 1, Hook::Prerouting),
            (0, 1, Hook::Forward),
        ] {
            let told = told(&record(nfct, drops(drop)), hook);
            assert_eq!(told, None, "{nfct:x} {drop} {hook:?}");
        }
        let unknown = CtMoved {
            known: 0,
            ..drops(1)
        };
        assert_eq!(told(&record(0, unknown), Hook::Prerouting), None);
    }

    #[test]
    fn a_connection_that_could_not_be_entered() {
        let clash = CtMoved {
            insert_failed: 1,
            ..drops(1)
        };
        let new = 0xffff_8880_0000_1002;
        let told_clash = told(&record(new, clash), Hook::Input).unwrap();
        assert!(told_clash.why.contains("(insert_failed)"), "{told_clash:?}");
        let long = CtMoved {
            chain_too_long: 1,
            drop: 0,
            ..clash
        };
        let told_long = told(&record(new, long), Hook::Postrouting).unwrap();
        assert!(told_long.why.contains("(chaintoolong)"), "{told_long:?}");
        // Established: it has been entered long ago.
        assert_eq!(told(&record(new - 2, clash), Hook::Input), None);
        assert_eq!(told(&record(new, drops(0)), Hook::Input), None);
        assert_eq!(told(&record(new, drops(2)), Hook::Input), None);
        for skipped in [
            drops(u8::MAX),
            CtMoved {
                insert_failed: u8::MAX,
                ..drops(0)
            },
        ] {
            assert_eq!(told(&record(new, skipped), Hook::Input), None);
        }
    }

    #[test]
    fn a_full_table_has_its_numbers() {
        let usage = |entries| {
            Some(Usage {
                entries,
                max: Some(65_536),
            })
        };
        assert_eq!(
            no_room(usage(65_536), true),
            "table full (65536 of 65536 entries, net.netfilter.nf_conntrack_max)"
        );
        assert_eq!(
            no_room(usage(65_000), false),
            "no room for a new connection (65000 of 65536 entries a moment later, net.netfilter.nf_conntrack_max)"
        );
    }
}
