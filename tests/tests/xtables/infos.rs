//! The raw structures of the corpus, for the unit tests and the fuzzer: see `tests/data/xtables/README.md`.

use std::{collections::BTreeSet, env, fs, path::Path};

use fwtrace::{
    netns::NetNs,
    ruleset::render::Names,
    xtables::{
        Family,
        legacy::read::{Raw, Reader},
        matches::Match,
        targets::Target,
    },
};

use super::Loaded;

/// The raw structures in the blob of a legacy table, each as a line of a file of infos: see `tests/data/xtables/README.md`.
fn infos(raw: &Raw, names: &Names) -> Vec<String> {
    // struct ipt_entry, struct ip6t_entry: their size, and where `target_offset` stands; `next_offset` follows it.
    let (family, head, offsets) = match raw.family {
        Family::V4 => ("ipv4", 112, 88),
        Family::V6 => ("ipv6", 168, 140),
    };
    let number = |at: usize| usize::from(u16::from_ne_bytes([raw.blob[at], raw.blob[at + 1]]));
    let mut lines = Vec::new();
    let mut entry = 0;
    while entry < raw.blob.len() {
        let target = entry + number(entry + offsets);
        let next = entry + number(entry + offsets + 2);
        let mut at = entry + head;
        while at < next {
            // struct xt_entry_match and xt_entry_target: size, name, revision.
            let name: Vec<u8> = raw.blob[at + 2..at + 31].to_vec();
            let name = String::from_utf8(name).unwrap();
            let name = name.trim_end_matches('\0');
            let (rev, end) = (raw.blob[at + 31], at + number(at));
            let info = &raw.blob[at + 32..end];
            let mut text = String::new();
            let kind = if at < target {
                Match::decode(name, rev, info, raw.family).save(names, &mut text);
                "match"
            } else {
                Target::decode(name, rev, info, raw.family).save(names, &mut text);
                "target"
            };
            let used = info
                .iter()
                .rposition(|byte| *byte != 0)
                .map_or(0, |last| last + 1);
            let hex: String = info[..used]
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            // Verdicts have no name, and user chains begin with an entry of the target ERROR.
            if !name.is_empty() && name != "ERROR" {
                lines.push(format!(
                    "{family} {kind} {name} {rev} {} {hex}|{text}",
                    info.len()
                ));
            }
            at = end;
        }
        entry = next;
    }
    lines
}

/// The unit tests and the fuzzer take the structures from a file.
#[test]
fn the_file_of_infos_has_those_of_the_corpus() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/xtables/corpus.infos");
    let loaded = Loaded::new("legacy");
    let names = Names::default().with_ip_sets(loaded.sets.clone());
    let mut reader = Reader::open(&NetNs::find(loaded.netns.name()).unwrap()).unwrap();
    let lines: BTreeSet<String> = reader
        .read()
        .unwrap()
        .iter()
        .flat_map(|raw| infos(raw, &names))
        .collect();
    if env::var_os("FWTRACE_CAPTURE_INFOS").is_some() {
        let lines: Vec<_> = lines.iter().map(String::as_str).collect();
        fs::write(&file, lines.join("\n") + "\n").unwrap();
    }
    let file = fs::read_to_string(file).unwrap();
    let known: BTreeSet<_> = file.lines().collect();
    let new: Vec<_> = lines
        .iter()
        .filter(|line| !known.contains(line.as_str()))
        .collect();
    assert!(
        new.is_empty(),
        "run again with FWTRACE_CAPTURE_INFOS=1 to add them:\n{new:#?}"
    );
}
