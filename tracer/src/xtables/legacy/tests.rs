//! Blobs made by hand, as user space and kernel make them.

use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;

const ACCEPT: i32 = -2;
const DROP: i32 = -1;
const RETURN: i32 = -5;
const GOTO: u8 = 2;

/// A blob of ip_tables under construction.
#[derive(Default)]
struct Blob {
    bytes: Vec<u8>,
    info: Info,
}

/// An extension: header, then info padded to 8 bytes.
fn extension(name: &str, rev: u8, info: &[u8]) -> Vec<u8> {
    let size = 32 + info.len().next_multiple_of(8);
    let mut bytes = u16::try_from(size).unwrap().to_ne_bytes().to_vec();
    bytes.extend(name.as_bytes());
    bytes.resize(31, 0);
    bytes.push(rev);
    bytes.extend(info);
    bytes.resize(size, 0);
    bytes
}

fn standard(verdict: i32) -> Vec<u8> {
    extension("", 0, &verdict.to_ne_bytes())
}

impl Blob {
    fn end(&self) -> u32 {
        u32::try_from(self.bytes.len()).unwrap()
    }

    /// Adds an entry, says where it is. `edit` changes the 112 bytes of `struct ipt_entry`.
    fn entry(&mut self, matches: &[u8], target: &[u8], edit: impl FnOnce(&mut [u8])) -> u32 {
        let at = self.end();
        let mut entry = vec![0; 112];
        let target_offset = 112 + matches.len();
        let next = target_offset + target.len();
        entry[88..90].copy_from_slice(&u16::try_from(target_offset).unwrap().to_ne_bytes());
        entry[90..92].copy_from_slice(&u16::try_from(next).unwrap().to_ne_bytes());
        entry[96..104].copy_from_slice(&u64::from(at).to_ne_bytes());
        entry[104..112].copy_from_slice(&(u64::from(at) * 60).to_ne_bytes());
        edit(&mut entry);
        self.bytes.extend(entry);
        self.bytes.extend(matches);
        self.bytes.extend(target);
        self.info.num_entries += 1;
        at
    }

    fn verdict(&mut self, verdict: i32) -> u32 {
        self.entry(&[], &standard(verdict), |_| ())
    }

    fn target(&mut self, name: &str) -> u32 {
        self.entry(&[], &extension(name, 0, &[0; 4]), |_| ())
    }

    fn error(&mut self, name: &str) -> u32 {
        let mut text = name.as_bytes().to_vec();
        text.resize(30, 0);
        self.entry(&[], &extension("ERROR", 0, &text), |_| ())
    }

    /// Begins the chain of a hook.
    fn hook(&mut self, hook: usize) {
        self.info.valid_hooks |= 1 << hook;
        self.info.hook_entry[hook] = self.end();
    }

    fn policy(&mut self, hook: usize, verdict: i32) -> u32 {
        self.info.underflow[hook] = self.verdict(verdict);
        self.info.underflow[hook]
    }

    fn finish(&mut self) {
        self.error("ERROR");
        self.info.size = self.end();
    }

    fn parse(&self) -> Table {
        blob::parse(Family::V4, "filter", &self.info, &self.bytes)
    }
}

/// Where the entries of [`filter`] are.
struct Places {
    to_user: u32,
    goto: u32,
    next: u32,
    reject: u32,
    input_policy: u32,
    output_policy: u32,
    in_user: u32,
}

/// INPUT with a jump, a goto, a rule without target, a REJECT, policy DROP; FORWARD empty; OUTPUT with a jump; two user chains.
fn filter() -> (Blob, Places) {
    let mut blob = Blob::default();
    blob.hook(1);
    // Offsets of the user chains are known only later: filled in below.
    let to_user = blob.verdict(0);
    let goto = blob.entry(&[], &standard(0), |entry| entry[82] = GOTO);
    let next = blob.verdict(i32::try_from(blob.end() + 152).unwrap());
    let reject = blob.entry(
        &extension("udp", 0, &[1; 12]),
        &extension("REJECT", 0, &[0; 4]),
        |_| (),
    );
    let input_policy = blob.policy(1, DROP);
    blob.hook(2);
    blob.policy(2, ACCEPT);
    blob.hook(3);
    let from_output = blob.verdict(0);
    let output_policy = blob.policy(3, ACCEPT);
    blob.error("first");
    let first = blob.end();
    let in_user = blob.verdict(DROP);
    blob.target("LOG");
    blob.target("TPROXY");
    blob.verdict(RETURN);
    blob.verdict(RETURN);
    blob.error("second");
    let second = blob.end();
    blob.verdict(RETURN);
    blob.finish();
    for (jump, target) in [(to_user, first), (goto, second), (from_output, first)] {
        let at = usize::try_from(jump).unwrap() + 112 + 32;
        blob.bytes[at..at + 4].copy_from_slice(&target.to_ne_bytes());
    }
    let places = Places {
        to_user,
        goto,
        next,
        reject,
        input_policy,
        output_policy,
        in_user,
    };
    (blob, places)
}

#[test]
fn chains_rules_and_policies() {
    let (blob, places) = filter();
    let table = blob.parse();
    assert_eq!(table.problems, Vec::<String>::new());
    let names: Vec<_> = table.chains.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["INPUT", "FORWARD", "OUTPUT", "first", "second"]);
    assert_eq!(table.hooks, [None, Some(0), Some(1), Some(2), None]);
    let counts: Vec<_> = table.chains.iter().map(|c| c.rules.len()).collect();
    assert_eq!(counts, [4, 0, 1, 4, 0]);

    let input = &table.chains[0];
    let rules: Vec<_> = input.rules.iter().map(|r| (r.number, r.offset)).collect();
    assert_eq!(
        rules,
        [
            (1, places.to_user),
            (2, places.goto),
            (3, places.next),
            (4, places.reject)
        ]
    );
    assert_eq!(input.rules[0].jump, Jump::Chain(3));
    assert_eq!(input.rules[1].jump, Jump::Goto(4));
    assert_eq!(input.rules[2].jump, Jump::Next);
    assert_eq!(
        input.rules[3].jump,
        Jump::Target(Target::decode("REJECT", 0, &[0; 8], Family::V4))
    );
    let mut udp = [1; 16];
    udp[12..].fill(0);
    assert_eq!(
        input.rules[3].matches,
        [Match::decode("udp", 0, &udp, Family::V4)]
    );
    assert_eq!(input.rules[3].counters.packets, u64::from(places.reject));
    assert_eq!(input.rules[3].counters.bytes, u64::from(places.reject) * 60);

    let base = input.base.as_ref().unwrap();
    assert_eq!((base.hook, base.offset), (1, places.input_policy));
    assert_eq!(base.policy, Jump::Drop);
    assert_eq!(base.counters.packets, u64::from(places.input_policy));
    assert_eq!(table.chains[1].base.as_ref().unwrap().policy, Jump::Accept);
    assert_eq!(table.chains[3].base, None);
    // The tail is no rule; the RETURN before it is one.
    assert_eq!(table.chains[3].rules[3].jump, Jump::Return);

    assert_eq!(table.at_offset(places.reject), Some((0, Some(3))));
    assert_eq!(table.at_offset(places.output_policy), Some((2, None)));
    assert_eq!(table.at_offset(places.reject + 1), None);
    assert_eq!(table.on_hook(2).unwrap().name, "FORWARD");
    assert_eq!(table.chain("first").unwrap().0, 3);
}

#[test]
fn what_can_drop_on_each_hook() {
    let (blob, places) = filter();
    let table = blob.parse();
    let on = |hook| {
        let terminals = table.terminals(hook);
        let plain = terminals
            .iter()
            .map(|t| (t.offset, t.rule, t.drops, t.local));
        plain.collect::<Vec<_>>()
    };
    let tproxy = table.chains[3].rules[2].offset;
    let user = [
        (places.in_user, Some(0), Drops::Always, true),
        (tproxy, Some(2), Drops::Sometimes, true),
    ];
    assert_eq!(
        on(1),
        [
            (places.reject, Some(3), Drops::Always, false),
            (places.input_policy, None, Drops::Always, false),
            user[0],
            user[1],
        ]
    );
    assert_eq!(on(2), []);
    assert_eq!(on(3), user);
    assert_eq!(on(0), []);
    assert_eq!(on(9), []);
}

#[test]
fn addresses_interfaces_protocol() {
    let mut blob = Blob::default();
    blob.hook(1);
    let rule = |blob: &mut Blob, name: &str, mask: usize| {
        blob.entry(&[], &standard(DROP), |entry| {
            entry[0..4].copy_from_slice(&[10, 0, 0, 0]);
            entry[4..8].copy_from_slice(&[192, 0, 2, 7]);
            entry[8..12].copy_from_slice(&[255, 0, 255, 0]);
            entry[12..16].copy_from_slice(&[255; 4]);
            entry[16..16 + name.len()].copy_from_slice(name.as_bytes());
            entry[48..48 + mask].fill(0xff);
            entry[80] = 17;
            entry[83] = 0x48;
        })
    };
    rule(&mut blob, "eth0", 5);
    rule(&mut blob, "eth", 3);
    rule(&mut blob, "", 0);
    rule(&mut blob, "abcdefghijklmno", 16);
    blob.policy(1, ACCEPT);
    blob.finish();
    let table = blob.parse();
    assert_eq!(table.problems, Vec::<String>::new());
    let rules = &table.chains[0].rules;
    let interfaces: Vec<_> = rules.iter().map(|r| r.ip.iface_in.as_str()).collect();
    assert_eq!(interfaces, ["eth0", "eth+", "", "abcdefghijklmno"]);
    assert_eq!(
        rules[2].ip,
        Ip {
            src: Ipv4Addr::new(10, 0, 0, 0).into(),
            src_mask: Ipv4Addr::new(255, 0, 255, 0).into(),
            dst: Ipv4Addr::new(192, 0, 2, 7).into(),
            dst_mask: Ipv4Addr::BROADCAST.into(),
            iface_in: String::new(),
            iface_out: String::new(),
            proto: 17,
            tos: 0,
            flags: 0,
            inverted: 0x48,
        }
    );
}

/// Each is broken in one way, which costs what the problem names and nothing else.
#[test]
fn a_broken_part_costs_itself() {
    let broken = |edit: &dyn Fn(&mut Blob, &Places)| {
        let (mut blob, places) = filter();
        edit(&mut blob, &places);
        let table = blob.parse();
        let counts: Vec<_> = table.chains.iter().map(|c| c.rules.len()).collect();
        (counts, table.problems.join("; "), table)
    };
    let set = |blob: &mut Blob, at: u32, field: usize, value: u16| {
        let at = usize::try_from(at).unwrap() + field;
        blob.bytes[at..at + 2].copy_from_slice(&value.to_ne_bytes());
    };

    let (counts, problems, table) = broken(&|blob, p| set(blob, p.reject, 88, 5000));
    assert_eq!(counts, [4, 0, 1, 4, 0]);
    assert!(
        problems.contains("its target is outside of it"),
        "{problems}"
    );
    assert!(matches!(table.chains[0].rules[3].jump, Jump::Target(_)));

    let (counts, problems, _) = broken(&|blob, p| set(blob, p.reject, 112, 4000));
    assert_eq!(counts, [4, 0, 1, 4, 0]);
    assert!(problems.contains("a match is longer than"), "{problems}");

    // An impossible length ends the reading: what comes before stays.
    let (counts, problems, _) = broken(&|blob, p| set(blob, p.in_user, 90, 8));
    assert_eq!(counts, [4, 0, 1, 0]);
    assert!(problems.contains("impossible length"), "{problems}");
    assert!(problems.contains("entries are stated"), "{problems}");
    assert!(problems.contains("where no chain begins"), "{problems}");

    let (counts, problems, table) = broken(&|blob, p| set(blob, p.to_user, 112 + 32, 3));
    assert_eq!(counts, [4, 0, 1, 4, 0]);
    assert!(problems.contains("jumps to offset 3"), "{problems}");
    assert!(matches!(table.chains[0].rules[0].jump, Jump::Target(_)));

    let (_, problems, table) = broken(&|blob, _| blob.info.underflow[1] += 8);
    assert!(
        problems.contains("INPUT ends without a policy"),
        "{problems}"
    );
    assert_eq!(table.chains[0].base.as_ref().unwrap().policy, Jump::Next);

    let (_, problems, _) = broken(&|blob, _| blob.info.hook_entry[1] += 8);
    assert!(problems.contains("INPUT does not begin"), "{problems}");

    let (_, problems, _) = broken(&|blob, p| set(blob, p.to_user, 48, 0x00ff));
    assert_eq!(problems, "");
    let (_, problems, _) = broken(&|blob, p| set(blob, p.to_user, 48, 0xff00));
    assert!(problems.contains("a strange one"), "{problems}");

    let (_, problems, _) = broken(&|blob, p| {
        let verdict = (-7_i16).cast_unsigned();
        set(blob, p.in_user, 144, verdict);
        set(blob, p.in_user, 146, u16::MAX);
    });
    assert!(problems.contains("verdict is none"), "{problems}");

    let (_, problems, _) = broken(&|blob, _| blob.info.size += 8);
    assert!(
        problems.contains("bytes of entries are stated"),
        "{problems}"
    );
}

/// The table of [`filter`] with another verdict in INPUT's rule without target, and other counters.
pub(super) fn raw(verdict: i32, packets: u64) -> read::Raw {
    let (mut blob, places) = filter();
    let at = usize::try_from(places.next).unwrap();
    if verdict != 0 {
        blob.bytes[at + 144..at + 148].copy_from_slice(&verdict.to_ne_bytes());
    }
    for entry in [places.next, places.input_policy, places.in_user] {
        let at = usize::try_from(entry).unwrap();
        blob.bytes[at + 96..at + 104].copy_from_slice(&packets.to_ne_bytes());
        blob.bytes[at + 104..at + 112].copy_from_slice(&(packets * 60).to_ne_bytes());
    }
    read::Raw {
        family: Family::V4,
        name: "filter".to_owned(),
        info: blob.info,
        blob: blob.bytes,
    }
}

#[test]
fn only_counters_differ() {
    let before = raw(0, 1);
    assert!(before.is_same(&raw(0, 2)));
    assert!(!before.is_same(&raw(DROP, 1)));
    // Each byte but those of the 12 entries' counters makes a difference.
    let differing = (0..before.blob.len()).filter(|at| {
        let mut changed = before.clone();
        changed.blob[*at] ^= 0x80;
        !before.is_same(&changed) && !changed.is_same(&before)
    });
    let counters = 16 * usize::try_from(before.info.num_entries).unwrap();
    assert_eq!(differing.count(), before.blob.len() - counters);
    let mut longer = before.clone();
    longer.blob.push(0);
    assert!(!before.is_same(&longer) && !longer.is_same(&before));
}

#[test]
fn info_as_the_kernel_lays_it_out() {
    let mut bytes = b"filter".to_vec();
    bytes.resize(32, 0);
    for n in 1_u32..=13 {
        bytes.extend(n.to_ne_bytes());
    }
    let info = Info::decode(&bytes).unwrap();
    assert_eq!(info.valid_hooks, 1);
    assert_eq!(info.hook_entry, [2, 3, 4, 5, 6]);
    assert_eq!(info.underflow, [7, 8, 9, 10, 11]);
    assert_eq!((info.num_entries, info.size), (12, 13));
    assert_eq!(Info::decode(&bytes[..83]), None);
}

proptest! {
    /// Whatever the bytes, a table comes out, and its numbers and offsets are in order.
    #[test]
    fn any_bytes(
        v6: bool,
        valid_hooks in 0_u32..64,
        hook_entry: [u16; 5],
        underflow: [u16; 5],
        bytes in proptest::collection::vec(any::<u8>(), 0..2000),
    ) {
        let info = Info {
            valid_hooks,
            hook_entry: hook_entry.map(u32::from),
            underflow: underflow.map(u32::from),
            num_entries: 3,
            size: u32::try_from(bytes.len()).unwrap(),
        };
        let family = if v6 { Family::V6 } else { Family::V4 };
        check(&blob::parse(family, "filter", &info, &bytes));
    }

    /// A good blob with some bytes changed.
    #[test]
    fn damaged(changes in proptest::collection::vec((0_usize..3000, any::<u8>()), 0..12), cut in 0_usize..3000) {
        let (mut blob, _) = filter();
        for (at, value) in changes {
            if let Some(byte) = blob.bytes.get_mut(at) {
                *byte = value;
            }
        }
        blob.bytes.truncate(cut);
        check(&blob.parse());
        assert!(blob::is_same(Family::V4, &blob.bytes, &blob.bytes));
    }
}

fn check(table: &Table) {
    for chain in &table.chains {
        for (number, rule) in (1..).zip(&chain.rules) {
            assert_eq!(rule.number, number);
            match rule.jump {
                Jump::Chain(to) | Jump::Goto(to) => assert!(to < table.chains.len()),
                _ => {}
            }
        }
        assert!(chain.rules.is_sorted_by_key(|rule| rule.offset));
    }
    for hook in 0..5 {
        for terminal in table.terminals(hook) {
            assert_eq!(
                table.at_offset(terminal.offset),
                Some((terminal.chain, terminal.rule))
            );
        }
    }
}
