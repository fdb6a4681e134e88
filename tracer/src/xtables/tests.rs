//! Every decoder on structures of the kernel, whole and damaged; and the texts that no such structure shows.

use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::{
    Family,
    info::{Address, Cond, Masked, Quoted, Span, prefix},
    matches::{Match, conntrack},
    targets::{Fate, Target},
};
use crate::ruleset::render::Names;

/// See tests/data/xtables/README.md.
const FILES: [&str; 3] = [
    include_str!("../../../tests/data/xtables/corpus.infos"),
    include_str!("../../../tests/data/xtables/old-revisions.infos"),
    include_str!("../../../tests/data/xtables/elsewhere.infos"),
];

/// A structure of a file.
#[derive(Debug, Clone)]
struct Info {
    family: Family,
    is_match: bool,
    name: String,
    rev: u8,
    bytes: Vec<u8>,
    text: &'static str,
}

impl Info {
    fn parse(line: &'static str) -> Self {
        let (head, text) = line.split_once('|').unwrap();
        let [family, kind, name, rev, size, hex] = head.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        let digits = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        let mut bytes: Vec<u8> = (0..hex.len()).step_by(2).map(digits).collect();
        bytes.resize(size.parse().unwrap(), 0);
        Self {
            family: if family == "ipv4" {
                Family::V4
            } else {
                Family::V6
            },
            is_match: kind == "match",
            name: name.to_owned(),
            rev: rev.parse().unwrap(),
            bytes,
            text,
        }
    }

    fn all() -> impl Iterator<Item = Self> {
        FILES.iter().flat_map(|file| file.lines()).map(Self::parse)
    }

    /// Its text, and whether it is known.
    fn save(&self, bytes: &[u8]) -> (String, bool) {
        let mut text = String::new();
        let known = if self.is_match {
            let item = Match::decode(&self.name, self.rev, bytes, self.family);
            item.save(&names(), &mut text);
            !matches!(item, Match::Unknown { .. })
        } else {
            let item = Target::decode(&self.name, self.rev, bytes, self.family);
            item.save(&names(), &mut text);
            item.fate();
            !matches!(item, Target::Unknown { .. })
        };
        (text, known)
    }
}

/// Those that the corpus was captured with.
fn names() -> Names {
    let sets = ["addresses", "pairs", "triples", "addresses6", "skb"];
    Names::default().with_ip_sets((0..).zip(sets.map(str::to_owned)))
}

#[test]
#[cfg(target_endian = "little")]
fn structures_of_the_kernel_have_the_text_of_iptables_save() {
    for info in Info::all() {
        assert_eq!(info.save(&info.bytes).0, info.text, "{info:?}");
    }
}

#[test]
fn a_structure_of_another_size_is_named_with_its_bytes() {
    for info in Info::all().filter(|info| info.save(&info.bytes).1) {
        let padded = info.bytes.len();
        let mut longer = info.bytes.clone();
        longer.push(0);
        assert!(!info.save(&longer).1, "{info:?}");
        for len in 0..padded.saturating_sub(8) {
            let (text, known) = info.save(&info.bytes[..len]);
            assert!(!known, "{len} of {info:?}");
            assert!(
                text.contains(&info.name) || info.name == "conntrack",
                "{text}"
            );
        }
    }
}

#[test]
fn an_unknown_extension_is_named_with_its_bytes() {
    let mut text = String::new();
    Match::decode("foo", 2, &[0, 1, 0xff], Family::V4).save(&names(), &mut text);
    Target::decode("BAR", 0, &[], Family::V6).save(&names(), &mut text);
    assert_eq!(text, " -m foo [rev 2: 0x0001ff] -j BAR [rev 0:]");
}

#[test]
fn a_set_without_a_name_has_its_index() {
    let info = [5, 0, 2, 2, 0, 0, 0, 0];
    let mut text = String::new();
    Match::decode("set", 1, &info, Family::V4).save(&Names::default(), &mut text);
    let index = u16::from_ne_bytes([5, 0]);
    assert_eq!(text, format!(" -m set --match-set [index {index}] src,dst"));
}

#[test]
fn targets_end_the_way_of_a_packet_or_not() {
    let fates = |wanted: Fate| {
        let mut names: Vec<_> = Info::all()
            .filter(|info| !info.is_match)
            .map(|info| Target::decode(&info.name, info.rev, &info.bytes, info.family))
            .filter(|target| target.fate() == wanted)
            .map(|target| target.name().to_owned())
            .collect();
        names.sort();
        names.dedup();
        names.join(" ")
    };
    assert_eq!(fates(Fate::Dropped), "REJECT");
    assert_eq!(
        fates(Fate::Accepted),
        "DNAT MASQUERADE NETMAP REDIRECT SNAT"
    );
    assert_eq!(fates(Fate::Queued), "NFQUEUE");
    assert_eq!(fates(Fate::Unknown), "NOSUCH SYNPROXY TPROXY TTL");
}

#[test]
#[cfg(target_endian = "little")]
fn fields_are_in_host_order() {
    let parse = |text: &str| {
        let info = Info::all().find(|info| info.text == text).unwrap();
        Match::decode(&info.name, info.rev, &info.bytes, info.family)
    };
    let text = " -m conntrack --ctproto 6 --ctorigsrcport 1024:65535 --ctorigdstport 80";
    let Match::Conntrack(ct) = parse(text) else {
        panic!()
    };
    assert_eq!(ct.proto, Some(Cond::new(6, false)));
    assert_eq!(
        ct.orig_sport,
        Some(Cond::new(Span::new(1024, 65535), false))
    );
    assert_eq!(ct.orig_dport, Some(Cond::new(Span::new(80, 80), false)));
    assert_eq!(ct.state, None);
    let Match::Conntrack(ct) = parse(" -m conntrack --ctstate RELATED,ESTABLISHED") else {
        panic!()
    };
    let states = conntrack::STATE_RELATED | conntrack::STATE_ESTABLISHED;
    assert_eq!(ct.state, Some(Cond::new(states, false)));
    let Match::Iprange(range) = parse(" -m iprange --src-range 10.0.0.1-10.0.0.9") else {
        panic!()
    };
    let span = Span::new(Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 9));
    let span = Span::new(IpAddr::V4(span.min), IpAddr::V4(span.max));
    assert_eq!(range.source, Some(Cond::new(span, false)));
    assert_eq!(range.destination, None);
}

#[test]
fn addresses_are_written_as_inet_ntop_does() {
    for text in [
        "::",
        "::1",
        "::ffff",
        "::1.2.3.4",
        "::ffff:1.2.3.4",
        "1::2",
        "1:0:2::3",
        "10.0.0.1",
    ] {
        let address: IpAddr = text.parse().unwrap();
        assert_eq!(Address(address).to_string(), text);
    }
}

#[test]
fn masks_are_prefixes_where_they_can_be() {
    let masked = |value: &str, mask: &str| {
        Masked::<IpAddr> {
            value: value.parse().unwrap(),
            mask: mask.parse().unwrap(),
        }
        .to_string()
    };
    assert_eq!(masked("10.0.0.0", "255.0.0.0"), "10.0.0.0/8");
    assert_eq!(masked("10.0.0.1", "255.255.255.255"), "10.0.0.1");
    assert_eq!(masked("10.0.0.1", "0.0.0.0"), "10.0.0.1/0");
    assert_eq!(masked("10.0.0.1", "255.0.0.255"), "10.0.0.1/255.0.0.255");
    assert_eq!(masked("2001:db8::", "ffff:ffff::"), "2001:db8::/32");
    assert_eq!(
        masked("::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        "::1"
    );
    assert_eq!(masked("::1", "ffff::ffff"), "::1/ffff::ffff");
    assert_eq!(prefix(IpAddr::V4(Ipv4Addr::new(255, 0, 255, 0))), None);
}

#[test]
fn strings_are_quoted_where_they_must() {
    for (text, quoted) in [
        ("plain_1-2", "plain_1-2"),
        ("", "\"\""),
        ("two words", "\"two words\""),
        ("it's", "\"it\\'s\""),
        ("\"\\", "\"\\\"\\\\\""),
        ("ä", "\"ä\""),
    ] {
        assert_eq!(Quoted(text).to_string(), quoted);
    }
}

/// A structure of the files with some bytes replaced and maybe cut.
fn damaged() -> impl Strategy<Value = (Info, Vec<u8>)> {
    let infos: Vec<_> = Info::all().collect();
    (
        prop::sample::select(infos),
        prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        any::<prop::sample::Index>(),
        prop::bool::weighted(0.1),
    )
        .prop_map(|(info, changes, cut, is_cut)| {
            let mut bytes = info.bytes.clone();
            for (at, byte) in changes.iter().filter(|_| !info.bytes.is_empty()) {
                *at.get_mut(&mut bytes) = *byte;
            }
            if is_cut {
                bytes.truncate(cut.index(bytes.len() + 1));
            }
            (info, bytes)
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn damaged_structures_do_not_panic((info, bytes) in damaged()) {
        let (text, _) = info.save(&bytes);
        let option = if info.is_match { " -m " } else { " -j " };
        prop_assert!(text.starts_with(option));
    }

    #[test]
    fn any_bytes_do_not_panic(
        info in prop::sample::select(Info::all().collect::<Vec<_>>()),
        seed in any::<u64>(),
    ) {
        // As many bytes as the structure has, so that they are decoded.
        let mut state = seed | 1;
        let bytes: Vec<u8> = info.bytes.iter().map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        }).collect();
        info.save(&bytes);
    }
}
