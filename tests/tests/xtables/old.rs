//! Revisions that iptables 1.8.9 prints but does not make any more: the kernel takes the structures of `old-revisions.infos` by
//! IPT_SO_SET_REPLACE, and fwtrace reads them from it.
//!
//! iptables-legacy-save prints `[unsupported revision]` for each while the kernel knows a newer one; iptables-nft-save 1.8.9 reads
//! the structure as one of the newest revision. Their texts in the file are those of iptables-legacy-save where it is told that the
//! kernel knows nothing newer.

use std::os::fd::AsRawFd as _;

use fwtrace::{
    netns::NetNs,
    xtables::{
        Family,
        legacy::{
            Jump,
            read::{Raw, Reader},
        },
    },
};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use super::Loaded;

/// `IPT_SO_SET_REPLACE` and `IP6T_SO_SET_REPLACE`.
const REPLACE: libc::c_int = 64;

/// A match or target as a line of the file has it.
struct Info {
    is_match: bool,
    name: String,
    rev: u8,
    bytes: Vec<u8>,
    text: &'static str,
}

impl Info {
    fn parse(line: &'static str) -> Self {
        let (head, text) = line.split_once('|').unwrap();
        let [kind, name, rev, size, hex] = head.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        let digits = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        let mut bytes: Vec<u8> = (0..hex.len()).step_by(2).map(digits).collect();
        bytes.resize(size.parse().unwrap(), 0);
        Self {
            is_match: kind == "match",
            name: name.to_owned(),
            rev: rev.parse().unwrap(),
            bytes,
            text,
        }
    }
}

fn read_filter(loaded: &Loaded, family: Family) -> Raw {
    let mut reader = Reader::open(&NetNs::find(loaded.netns.name()).unwrap()).unwrap();
    reader.names().unwrap();
    reader.raw(family, "filter").unwrap()
}

#[test]
fn old_revisions_are_read_from_the_kernel() {
    let loaded = Loaded::new("legacy");
    let lines = include_str!("../../data/xtables/old-revisions.infos");
    let mut checked = 0;
    for (family, prefix, tool) in [
        (Family::V4, "ipv4 ", "iptables-legacy"),
        (Family::V6, "ipv6 ", "ip6tables-legacy"),
    ] {
        for option in ["-F", "-X"] {
            loaded.netns.command(&[tool, option], "").unwrap();
        }
        let infos: Vec<_> = lines
            .lines()
            .filter_map(|line| line.strip_prefix(prefix))
            .map(Info::parse)
            .collect();
        let raw = &read_filter(&loaded, family);
        loaded.netns.run(|| replace_filter(raw, &infos)).unwrap();
        let table = read_filter(&loaded, family).parse();
        let (_, output) = table.chain("OUTPUT").unwrap();
        assert_eq!(output.rules.len(), infos.len());
        for (rule, info) in output.rules.iter().zip(&infos) {
            let mut text = loaded.text(&rule.matches);
            if let Jump::Target(target) = &rule.jump {
                target.save(&loaded.names, &mut text);
            }
            assert_eq!(text, info.text);
        }
        checked += infos.len();
    }
    assert!(checked >= 25, "{checked} old revisions");
}

/// Puts rules before the policy of OUTPUT in an empty table `filter`, each made of a match or a target as the kernel's header lays it out.
/// iptables 1.8.9 would make the newest revision it knows of.
fn replace_filter(raw: &Raw, rules: &[Info]) -> nix::Result<()> {
    const OUTPUT: usize = 3;
    // struct ipt_entry and ip6t_entry: size, and where `target_offset` and `next_offset` stand.
    let (level, head, offsets) = match raw.family {
        Family::V4 => (libc::IPPROTO_IP, 112, 88),
        Family::V6 => (libc::IPPROTO_IPV6, 168, 140),
    };
    let short = |number: usize| u16::try_from(number).unwrap().to_ne_bytes();
    let word = |number: usize| u32::try_from(number).unwrap().to_ne_bytes();
    // struct xt_entry_match and xt_entry_target.
    let extension = |name: &str, rev: u8, info: &[u8]| {
        let mut bytes = short(32 + info.len()).to_vec();
        bytes.extend(name.as_bytes());
        bytes.resize(31, 0);
        bytes.push(rev);
        bytes.extend(info);
        bytes
    };
    let accept = extension("", 0, &[(-2i32).to_ne_bytes(), [0; 4]].concat());
    let mut entries = Vec::new();
    for rule in rules {
        let item = extension(&rule.name, rule.rev, &rule.bytes);
        let (matches, target) = match rule.is_match {
            true => (item, accept.clone()),
            false => (Vec::new(), item),
        };
        let mut entry = vec![0; head];
        let next = head + matches.len() + target.len();
        entry[offsets..offsets + 2].copy_from_slice(&short(head + matches.len()));
        entry[offsets + 2..offsets + 4].copy_from_slice(&short(next));
        entries.extend([entry, matches, target].concat());
    }
    let info = &raw.info;
    let at = usize::try_from(info.hook_entry[OUTPUT]).unwrap();
    let mut counters = vec![0u8; 16 * usize::try_from(info.num_entries).unwrap()];
    // struct ipt_replace.
    let mut replace = b"filter".to_vec();
    replace.resize(32, 0);
    replace.extend(info.valid_hooks.to_ne_bytes());
    replace.extend((info.num_entries + u32::try_from(rules.len()).unwrap()).to_ne_bytes());
    replace.extend(word(raw.blob.len() + entries.len()));
    for entry in info.hook_entry {
        replace.extend(entry.to_ne_bytes());
    }
    for (hook, underflow) in info.underflow.iter().enumerate() {
        let moved = if hook == OUTPUT { entries.len() } else { 0 };
        replace.extend((underflow + u32::try_from(moved).unwrap()).to_ne_bytes());
    }
    replace.extend(info.num_entries.to_ne_bytes());
    replace.extend((counters.as_mut_ptr() as usize).to_ne_bytes());
    replace.extend([&raw.blob[..at], &entries, &raw.blob[at..]].concat());
    let family = match raw.family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    let socket = socket(family, SockType::Raw, SockFlag::empty(), SockProtocol::Raw)?;
    // SAFETY: the kernel reads `replace` as far as its length says, and writes a counter of 16 bytes for each old entry to `counters`,
    // which has room for them; both live until the call returns.
    #[expect(unsafe_code, reason = "no safe wrapper for this option")]
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            REPLACE,
            replace.as_ptr().cast(),
            replace.len().try_into().unwrap(),
        )
    };
    nix::errno::Errno::result(done).map(drop)
}
