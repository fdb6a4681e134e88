//! What each fuzz target does with its input. None may panic, whatever the bytes.
//!
//! The functions stand apart from libFuzzer so that a plain test can replay the seeds:
//!
//! ```text
//! cargo +nightly fuzz run btf fuzz/corpus/btf fuzz/seeds/btf     new inputs go into corpus/
//! cargo test --manifest-path fuzz/Cargo.toml --no-default-features
//! ```

use std::{hint::black_box, sync::Arc};

use fwtrace::{
    bpf::reader,
    kernel::{btf::Btf, symbols::Symbols},
    netlink::{
        attr::{Attr, Attrs},
        legacy_trace, nflog,
        nftables::{self, kind},
        nftrace,
        socket::{Messages, acknowledgement},
        sockets,
    },
    packet::Capture,
    pcapng::Reader,
    ruleset::{
        model::{Chain, Family, Rule, Table},
        render::{Names, Options},
    },
    xtables::{
        self,
        legacy::{Info, Jump, blob},
        matches, save, targets,
    },
};

/// Takes any bytes.
pub type Target = fn(&[u8]);

/// Every target by its name, which is also the name of its seeds' directory.
pub const TARGETS: &[(&str, Target)] = &[
    ("btf", btf),
    ("kallsyms", kallsyms),
    ("packet", packet),
    ("netlink", netlink),
    ("nftables", nf_tables),
    ("record", record),
    ("xtables", xtables),
    ("trace", trace),
    ("extensions", extensions),
    ("pcapng", pcapng),
];

/// Deepest nest of attributes that is looked into.
const MAX_DEPTH: usize = 8;

/// The BTF parser, on the input and on the input again as a module of it.
pub fn btf(data: &[u8]) {
    let Ok(btf) = Btf::parse(data) else { return };
    ask(&btf);
    if let Ok(module) = Btf::parse_split(data, Arc::new(btf)) {
        ask(&module);
    }
}

/// Asks for what the seeds have.
fn ask(btf: &Btf) {
    for path in [
        "sk_buff.len",
        "sk_buff.flag",
        "sk_buff.inner.state",
        "sk_buff.cb",
        "sk_buff.absent",
        "net.ns.inum",
    ] {
        if let Ok(field) = btf.field(path) {
            assert_eq!(
                field.byte_offset().is_some(),
                field.size().is_some() && field.bit_offset % 8 == 0
            );
        }
    }
    let _ = black_box(btf.size_of("sk_buff"));
    let _ = black_box(btf.enum_values("skb_drop_reason"));
    let _ = black_box(btf.enum_values("wide"));
}

/// The reader of /proc/kallsyms.
pub fn kallsyms(data: &[u8]) {
    const NAMES: &[&str] = &["ip_rcv", "nft_do_chain", "__netif_receive_skb_core", "a"];
    let Ok(symbols) = Symbols::read(data, NAMES) else {
        return;
    };
    for name in NAMES {
        if let Some(range) = symbols.range(name) {
            assert!(range.start <= range.end);
            assert_eq!(symbols.find(range.start).is_some(), !range.is_empty());
        }
    }
}

/// The packet decoder. Input: EtherType, VLAN tag, VLAN EtherType (two bytes each, little-endian;
/// no tag if its EtherType is 0), then the packet.
pub fn packet(data: &[u8]) {
    let Some((head, bytes)) = data.split_first_chunk::<6>() else {
        return;
    };
    let [e0, e1, t0, t1, v0, v1] = *head;
    let vlan_proto = u16::from_le_bytes([v0, v1]);
    let capture = Capture {
        bytes,
        ethertype: u16::from_le_bytes([e0, e1]),
        wire_len: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
        vlan: (vlan_proto != 0).then_some((u16::from_le_bytes([t0, t1]), vlan_proto)),
    };
    black_box(format!("{:?}", capture.packet()));
}

/// Netlink framing and attributes, to the bottom.
pub fn netlink(data: &[u8]) {
    for message in Messages::new(data) {
        let Ok(message) = message else { break };
        let _ = black_box(acknowledgement(&message));
        // nfgenmsg, ifinfomsg and rtgenmsg.
        for header in [4, 16, 1] {
            attributes(Attrs::after(message.payload, header), MAX_DEPTH);
        }
    }
    attributes(Attrs::new(data), MAX_DEPTH);
}

fn attributes(attrs: Attrs<'_>, depth: usize) {
    for attr in attrs {
        let Ok(attr) = attr else { break };
        values(&attr);
        if let Some(depth) = depth.checked_sub(1) {
            attributes(attr.nested(), depth);
        }
    }
}

fn values(attr: &Attr<'_>) {
    let _ = black_box((attr.u8(), attr.be16(), attr.be32(), attr.be64()));
    let _ = black_box((attr.u16(), attr.u32(), attr.u64()));
    if let Ok(text) = attr.str() {
        assert!(text.len() <= attr.payload.len());
    }
}

/// The decoders of nf_tables messages: each message of the input with the decoder of its type, and
/// the input as it is, as the payload of each.
pub fn nf_tables(data: &[u8]) {
    for message in Messages::new(data) {
        let Ok(message) = message else { break };
        match message.kind {
            kind::NEWRULE => rule(message.payload),
            kind::NEWTABLE => drop(black_box(nftables::decode_table(message.payload))),
            kind::NEWCHAIN => drop(black_box(nftables::decode_chain(message.payload))),
            kind::NEWSET => drop(black_box(nftables::decode_set(message.payload))),
            kind::NEWSETELEM => drop(black_box(nftables::decode_elements(message.payload))),
            kind::NEWGEN => drop(black_box(nftables::decode_generation(message.payload))),
            kind::NEWOBJ => drop(black_box(nftables::decode_object(message.payload))),
            kind::NEWFLOWTABLE => drop(black_box(nftables::decode_flowtable(message.payload))),
            _ => {}
        }
    }
    drop(black_box(nftables::decode_table(data)));
    drop(black_box(nftables::decode_chain(data)));
    rule(data);
    drop(black_box(nftables::decode_set(data)));
    drop(black_box(nftables::decode_elements(data)));
    drop(black_box(nftables::decode_generation(data)));
    drop(black_box(nftables::decode_object(data)));
    drop(black_box(nftables::decode_flowtable(data)));
}

fn rule(payload: &[u8]) {
    if let Ok(located) = nftables::decode_rule(payload) {
        let rule = &located.item.1;
        black_box((rule.ending(), rule.decides(), rule.is_reject()));
        save(rule);
    }
}

/// A rule as one of iptables-nft, IPv4 and IPv6.
fn save(rule: &Rule) {
    let names = Names::default();
    for family in [Family::Ip, Family::Ip6] {
        let chain = Chain {
            name: "SUB".to_owned(),
            handle: 1,
            base: None,
            flags: 0,
            comment: None,
            userdata: Vec::new(),
            rules: vec![rule.clone()],
        };
        let table = Table {
            family,
            name: "filter".to_owned(),
            handle: 1,
            flags: 0,
            owner: None,
            comment: None,
            userdata: Vec::new(),
            chains: vec![chain],
            sets: Vec::new(),
            objects: Vec::new(),
            flowtables: Vec::new(),
            iptables: true,
        };
        let options = Options {
            names: &names,
            stateless: false,
            handles: true,
        };
        for chain in &table.chains {
            let text = save::rule(&table, chain, rule, &names);
            assert!(text.is_none_or(|text| text.starts_with("-A SUB") && !text.contains('\n')));
        }
        black_box((save::is_iptables(&table), save::comment(rule)));
        black_box(save::lacks_set_name(family, rule, &names));
        assert!(save::table(&table, &options).is_some());
    }
}

/// A record as the BPF program writes it, and the packet in it.
pub fn record(data: &[u8]) {
    if let Some(drop) = reader::decode(&data.to_vec().into()) {
        let capture = Capture::new(&drop.record, &drop.packet);
        black_box(format!("{:?}", capture.packet()));
    }
}

/// A capture file of any kind, read to its end.
pub fn pcapng(data: &[u8]) {
    let Ok(mut reader) = Reader::new(data) else { return };
    while let Ok(Some(item)) = reader.next_item() {
        black_box(item);
    }
}

/// A table of ip_tables and ip6_tables. Input: `struct ipt_getinfo` (84 bytes; the first byte of the name says the family: odd is
/// IPv6), then the entries.
pub fn xtables(data: &[u8]) {
    let Some((info, entries)) = data.split_at_checked(Info::SIZE) else {
        return;
    };
    let family = match info.first() {
        Some(byte) if byte % 2 == 1 => xtables::Family::V6,
        _ => xtables::Family::V4,
    };
    let Some(info) = Info::decode(info) else {
        return;
    };
    let table = blob::parse(family, "fuzz", &info, entries);
    for rule in table.chains.iter().flat_map(|chain| &chain.rules) {
        if let Jump::Chain(chain) | Jump::Goto(chain) = rule.jump {
            assert!(chain < table.chains.len());
        }
    }
    for hook in 0..5 {
        black_box(table.terminals(hook));
    }
    black_box(save::legacy_table(&table, &Names::default(), false, |_| {
        true
    }));
}

/// Traces, logged packets and what `/proc` lists of their sockets: each message of the input, and the input as it is.
pub fn trace(data: &[u8]) {
    for message in Messages::new(data) {
        let Ok(message) = message else { break };
        traced(message.payload);
    }
    traced(data);
    let text = String::from_utf8_lossy(data);
    black_box((nflog::instances(&text), sockets::parse(&text)));
    if let Some(line) = legacy_trace::Line::parse(&text) {
        assert!(line.number > 0 && line.rule(u32::MAX) == Some(line.number));
    }
}

fn traced(payload: &[u8]) {
    if let Ok(trace) = nftrace::decode(payload) {
        black_box(trace.drops());
    }
    if let Ok(packet) = nflog::decode(payload) {
        assert!(packet.payload.len() <= payload.len());
    }
}

/// The decoders of matches and targets. Input: any number of structures, each after a head of four bytes (bit 0: a target, bit 1: of IPv6;
/// revision; length of the name; length of the structure in units of eight bytes) and its name.
pub fn extensions(data: &[u8]) {
    let names = Names::default();
    let mut rest = data;
    while let Some((&[kind, rev, name_len, info_len], after)) = rest.split_first_chunk() {
        let cut = |bytes: &[u8], len: usize| len.min(bytes.len());
        let (name, after) = after.split_at(cut(after, name_len.into()));
        let (info, after) = after.split_at(cut(after, usize::from(info_len) * 8));
        rest = after;
        let name = String::from_utf8_lossy(name);
        let family = if kind & 2 == 0 {
            xtables::Family::V4
        } else {
            xtables::Family::V6
        };
        let mut text = String::new();
        if kind & 1 == 0 {
            matches::Match::decode(&name, rev, info, family).save(&names, &mut text);
            assert!(text.starts_with(" -m "));
        } else {
            let target = targets::Target::decode(&name, rev, info, family);
            target.save(&names, &mut text);
            assert!(text.starts_with(" -j "));
            black_box(target.fate());
        }
    }
}
