//! Hand-built BTF, sound and hostile.

use super::{
    record::{MAGIC, VERSION},
    *,
};
use proptest::prelude::*;

/// Writes BTF; ids and name offsets are given out in order.
#[derive(Clone, Debug)]
pub(crate) struct Builder {
    types: Vec<u8>,
    strings: Vec<u8>,
    next_id: u32,
    first_string: u32,
}

const INT: u32 = 1;
const PTR: u32 = 2;
const ARRAY: u32 = 3;
pub(crate) const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const FWD: u32 = 7;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const ENUM64: u32 = 19;
const KIND_FLAG: u32 = 1 << 31;

impl Builder {
    pub(crate) fn new() -> Self {
        Self {
            types: Vec::new(),
            strings: vec![0],
            next_id: 1,
            first_string: 0,
        }
    }

    pub(crate) fn split(base: &Btf) -> Self {
        let (next_id, first_string) = base.end().unwrap();
        Self {
            types: Vec::new(),
            strings: Vec::new(),
            next_id,
            first_string,
        }
    }

    fn name(&mut self, name: &str) -> u32 {
        if name.is_empty() {
            return 0;
        }
        let offset = self.first_string + u32::try_from(self.strings.len()).unwrap();
        self.strings.extend_from_slice(name.as_bytes());
        self.strings.push(0);
        offset
    }

    /// `kind` may have [`KIND_FLAG`] set; `info` is the count.
    fn record(
        &mut self,
        name: &str,
        kind: u32,
        vlen: usize,
        size_or_type: u32,
        extra: &[u32],
    ) -> u32 {
        let info = (kind & KIND_FLAG) | ((kind & 0x7f) << 24) | u32::try_from(vlen).unwrap();
        let name = self.name(name);
        for word in [name, info, size_or_type].iter().chain(extra) {
            self.types.extend_from_slice(&word.to_le_bytes());
        }
        self.next_id += 1;
        self.next_id - 1
    }

    pub(crate) fn int(&mut self, name: &str, size: u32) -> u32 {
        self.record(name, INT, 0, size, &[size * 8])
    }

    /// Members: name, type, the raw offset word.
    pub(crate) fn composite(
        &mut self,
        name: &str,
        kind: u32,
        size: u32,
        members: &[(&str, u32, u32)],
    ) -> u32 {
        let extra: Vec<u32> = members
            .iter()
            .flat_map(|&(name, ty, offset)| [self.name(name), ty, offset])
            .collect();
        self.record(name, kind, members.len(), size, &extra)
    }

    pub(crate) fn enumeration(&mut self, name: &str, values: &[(&str, i32)]) -> u32 {
        let extra: Vec<u32> = values
            .iter()
            .flat_map(|&(name, value)| [self.name(name), value.cast_unsigned()])
            .collect();
        self.record(name, ENUM | KIND_FLAG, values.len(), 4, &extra)
    }

    pub(crate) fn build(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&MAGIC.to_le_bytes());
        out.extend_from_slice(&[VERSION, 0]);
        let types = u32::try_from(self.types.len()).unwrap();
        let strings = u32::try_from(self.strings.len()).unwrap();
        for word in [24, 0, types, types, strings] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&self.types);
        out.extend_from_slice(&self.strings);
        out
    }
}

fn bytes(bit_offset: u32, size: u64) -> Field {
    Field {
        bit_offset: bit_offset * 8,
        bit_size: size * 8,
        is_bitfield: false,
    }
}

/// One of everything a kernel struct may hold.
fn sample() -> Builder {
    let mut b = Builder::new();
    let u8_ = b.int("u8", 1);
    let u16_ = b.int("u16", 2);
    let u32_ = b.int("u32", 4);
    b.record("pair", FWD, 0, 0, &[]);
    let pair = b.composite("pair", STRUCT, 8, &[("a", u32_, 0), ("b", u32_, 32)]);
    let typedef = b.record("pair_t", TYPEDEF, 0, pair, &[]);
    let constant = b.record("", CONST, 0, typedef, &[]);
    let volatile = b.record("", VOLATILE, 0, constant, &[]);
    let pointer = b.record("", PTR, 0, pair, &[]);
    let array = b.record("", ARRAY, 0, 0, &[u16_, u32_, 5]);
    let table = b.record("", ARRAY, 0, 0, &[array, u32_, 3]);
    let flexible = b.record("", ARRAY, 0, 0, &[u8_, u32_, 0]);
    let inner = b.composite("", UNION, 8, &[("left", u32_, 0), ("right", pointer, 0)]);
    let middle = b.composite("", STRUCT, 16, &[("head", u32_, 0), ("", inner, 64)]);
    let flags = b.composite(
        "",
        STRUCT | KIND_FLAG,
        4,
        &[
            ("one", u32_, 1 << 24),
            ("twelve", u32_, (12 << 24) | 1),
            ("plain", u16_, 16),
        ],
    );
    // A 3-bit integer that begins 5 bits into its storage: the encoding before kind_flag.
    let three = b.record("u8", INT, 0, 1, &[(5 << 16) | 3]);
    b.composite(
        "outer",
        STRUCT,
        96,
        &[
            ("", middle, 0),
            ("nested", volatile, 128),
            ("pointer", pointer, 192),
            ("table", table, 256),
            ("flags", flags, 512),
            ("old", three, 544),
            ("tail", flexible, 768),
        ],
    );
    b.enumeration("reason", &[("NONE", 0), ("ONE", 1), ("MINUS", -1)]);
    let name = b.name("BIG");
    b.record("wide", ENUM64, 1, 8, &[name, 0x10, 0x1]);
    b
}

#[test]
fn finds_members_of_nested_unnamed_structs() {
    let btf = Btf::parse(sample().build()).unwrap();
    assert_eq!(btf.field("outer.head"), Ok(bytes(0, 4)));
    assert_eq!(btf.field("outer.left"), Ok(bytes(8, 4)));
    assert_eq!(btf.field("outer.right"), Ok(bytes(8, 8)));
    assert_eq!(btf.field("outer.nested"), Ok(bytes(16, 8)));
    assert_eq!(btf.field("outer.nested.b"), Ok(bytes(20, 4)));
    assert_eq!(btf.field("outer.table"), Ok(bytes(32, 30)));
    assert_eq!(btf.field("outer.tail"), Ok(bytes(96, 0)));
    assert_eq!(btf.size_of("outer"), Ok(96));
}

#[test]
fn reads_both_encodings_of_bit_fields() {
    let btf = Btf::parse(sample().build()).unwrap();
    let bits = |bit_offset, bit_size| Field {
        bit_offset,
        bit_size,
        is_bitfield: true,
    };
    assert_eq!(btf.field("outer.flags.one"), Ok(bits(512, 1)));
    assert_eq!(btf.field("outer.flags.twelve"), Ok(bits(513, 12)));
    assert_eq!(btf.field("outer.flags.plain"), Ok(bytes(66, 2)));
    let old = btf.field("outer.old").unwrap();
    assert_eq!(old, bits(549, 3));
    assert_eq!(old.byte_offset(), None);
    assert_eq!(old.size(), None);
}

#[test]
fn names_what_is_missing() {
    let btf = Btf::parse(sample().build()).unwrap();
    let missing = |path: &str, member: &str| {
        Err(BtfError::NoMember {
            path: path.into(),
            member: member.into(),
        })
    };
    assert_eq!(btf.field("outer.gone"), missing("outer.gone", "gone"));
    assert_eq!(btf.field("outer.nested.c"), missing("outer.nested.c", "c"));
    // Not through a pointer: what it points to is not at that offset.
    assert_eq!(
        btf.field("outer.pointer.a"),
        missing("outer.pointer.a", "a")
    );
    assert_eq!(btf.field("outer"), missing("outer", ""));
    assert_eq!(btf.field("outer."), missing("outer.", ""));
    for path in ["nowhere.a", "pair_t.a", ".a", "reason.ONE"] {
        assert!(btf.field(path).is_err_and(|e| e.is_missing()), "{path}");
    }
}

#[test]
fn a_forward_declaration_is_never_the_answer() {
    let btf = Btf::parse(sample().build()).unwrap();
    assert_eq!(btf.size_of("pair"), Ok(8));
    let mut b = Builder::new();
    b.record("lonely", FWD, 0, 0, &[]);
    let btf = Btf::parse(b.build()).unwrap();
    assert!(btf.size_of("lonely").is_err_and(|e| e.is_missing()));
}

#[test]
fn types_of_one_name_must_agree() {
    let mut b = sample();
    let copy = b.composite("pair", STRUCT, 8, &[("a", INT, 0), ("b", INT, 16)]);
    let btf = Btf::parse(b.build()).unwrap();
    assert!(copy > 0);
    // The first member is one byte in the copy, and the second one moved.
    for path in ["pair.a", "pair.b"] {
        assert_eq!(
            btf.field(path),
            Err(BtfError::Ambiguous { path: path.into() })
        );
    }
    assert_eq!(btf.size_of("pair"), Ok(8));
}

#[test]
fn reads_enums() {
    let btf = Btf::parse(sample().build()).unwrap();
    let names = |v: &[(&str, i64)]| v.iter().map(|&(n, v)| (n.to_owned(), v)).collect();
    assert_eq!(
        btf.enum_values("reason"),
        Ok(names(&[("NONE", 0), ("ONE", 1), ("MINUS", -1)]))
    );
    assert_eq!(
        btf.enum_values("wide"),
        Ok(names(&[("BIG", 0x1_0000_0010)]))
    );
    assert!(btf.enum_values("outer").is_err_and(|e| e.is_missing()));
}

#[test]
fn split_btf_continues_its_base() {
    let base = Arc::new(Btf::parse(sample().build()).unwrap());
    let mut b = Builder::split(&base);
    let pair = 5;
    b.composite("module", STRUCT, 16, &[("x", INT, 0), ("pair", pair, 64)]);
    // The module's own copy comes before the base's.
    b.composite("outer", STRUCT, 1, &[("head", INT, 0)]);
    let btf = Btf::parse_split(b.build(), base).unwrap();
    assert_eq!(btf.field("module.pair.b"), Ok(bytes(12, 4)));
    assert_eq!(btf.field("pair.b"), Ok(bytes(4, 4)));
    assert_eq!(btf.field("outer.head"), Ok(bytes(0, 1)));
    assert_eq!(btf.field("outer.left"), Ok(bytes(8, 4)));
    assert!(btf.enum_values("reason").is_ok());
    assert!(btf.field("absent.x").is_err_and(|e| e.is_missing()));
}

#[test]
fn types_that_contain_themselves_are_errors() {
    let mut b = Builder::new();
    b.composite("self", STRUCT, 4, &[("", 1, 0), ("", 1, 0)]);
    b.record("loop", TYPEDEF, 0, 3, &[]);
    b.record("", CONST, 0, 2, &[]);
    b.composite("user", STRUCT, 4, &[("x", 2, 0), ("y", 5, 0)]);
    b.record("", ARRAY, 0, 0, &[5, 5, 1]);
    b.composite("wide", STRUCT, 4, &[("x", 7, 0)]);
    b.record("", ARRAY, 0, 0, &[8, 8, u32::MAX]);
    b.record("", ARRAY, 0, 0, &[9, 9, u32::MAX]);
    b.record("", ARRAY, 0, 0, &[10, 10, u32::MAX]);
    b.int("u8", 1);
    let btf = Btf::parse(b.build()).unwrap();
    for path in ["self.x", "user.x", "user.x.z", "user.y", "wide.x"] {
        assert!(
            matches!(btf.field(path), Err(BtfError::Malformed { .. })),
            "{path}: {:?}",
            btf.field(path)
        );
    }
}

#[test]
fn offsets_that_overflow_are_errors() {
    let mut b = Builder::new();
    let int = b.int("u8", 1);
    let inner = b.composite("", STRUCT, 4, &[("x", int, u32::MAX)]);
    b.composite("s", STRUCT, 4, &[("", inner, 8), ("n", inner, 8)]);
    let btf = Btf::parse(b.build()).unwrap();
    for path in ["s.x", "s.n.x"] {
        assert!(matches!(btf.field(path), Err(BtfError::Malformed { .. })));
    }
}

#[test]
fn says_what_is_wrong_with_the_header() {
    let good = sample().build();
    let with = |at: usize, value: u8| {
        let mut bad = good.clone();
        bad[at] = value;
        Btf::parse(bad).unwrap_err()
    };
    assert_eq!(with(0, 0), BtfError::Magic(0xeb00));
    assert_eq!(with(2, 9), BtfError::Version(9));
    let mut swapped = good.clone();
    swapped.swap(0, 1);
    assert_eq!(Btf::parse(swapped).unwrap_err(), BtfError::BigEndian);
    assert!(matches!(with(4, 23), BtfError::Truncated { .. }));
    assert!(matches!(with(15, 0xff), BtfError::Truncated { .. }));
    assert!(matches!(with(23, 0xff), BtfError::Truncated { .. }));
    let mut kind = good.clone();
    kind[24 + 7] = 20;
    assert_eq!(
        Btf::parse(kind).unwrap_err(),
        BtfError::UnknownKind {
            kind: 20,
            offset: 24
        }
    );
}

#[test]
fn a_longer_header_is_passed_over() {
    let mut data = sample().build();
    data[4] = 32;
    data.splice(24..24, [0xff; 8]);
    let btf = Btf::parse(data).unwrap();
    assert_eq!(btf.field("outer.left"), Ok(bytes(8, 4)));
}

#[test]
fn cut_short_anywhere_is_an_error() {
    let good = sample().build();
    for len in 0..good.len() {
        assert!(
            matches!(Btf::parse(&good[..len]), Err(BtfError::Truncated { .. })),
            "{len}"
        );
    }
}

/// Asks for everything the sample has.
fn ask(btf: &Btf) {
    for path in [
        "outer.left",
        "outer.nested.b",
        "outer.table",
        "outer.flags.twelve",
        "outer.old",
        "outer.tail",
        "outer.absent",
        "pair.a",
    ] {
        let _ = btf.field(path);
    }
    let _ = btf.enum_values("reason");
    let _ = btf.enum_values("wide");
    let _ = btf.size_of("outer");
}

proptest! {
    #[test]
    fn mutated_btf_never_panics(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut data = sample().build();
        for (at, value) in changes {
            let at = at.index(data.len());
            data[at] = value;
        }
        if let Ok(btf) = Btf::parse(data.clone()) {
            ask(&btf);
            let base = Arc::new(btf);
            if let Ok(split) = Btf::parse_split(data.clone(), base) {
                ask(&split);
            }
        }
        let cut = cut.index(data.len());
        if let Ok(btf) = Btf::parse(&data[..cut]) {
            ask(&btf);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(data in prop::collection::vec(any::<u8>(), 0..256)) {
        if let Ok(btf) = Btf::parse(data) {
            ask(&btf);
        }
    }
}

/// The kernel the test runs on, where it carries BTF: sizes that C guarantees.
#[test]
fn the_running_kernel_is_consistent() {
    let Ok(data) = std::fs::read("/sys/kernel/btf/vmlinux") else {
        return;
    };
    let btf = Btf::parse(data).unwrap();
    let size = |path| btf.field(path).unwrap().size();
    assert_eq!(size("sk_buff.len"), Some(4));
    assert_eq!(size("sk_buff.head"), Some(8));
    assert_eq!(size("net_device.name"), Some(16));
    assert_eq!(size("net.ns.inum"), Some(4));
    let offset = |path| btf.field(path).unwrap().byte_offset().unwrap();
    assert_eq!(offset("sk_buff.data_len"), offset("sk_buff.len") + 4);
    assert_eq!(offset("sk_buff.data"), offset("sk_buff.head") + 8);
    assert!(offset("sk_buff.data") < btf.size_of("sk_buff").unwrap());
    let proto = btf.field("sock_common.skc_family").unwrap();
    assert_eq!(proto.size(), Some(2));
    assert!(btf.field("sk_buff.pkt_type").unwrap().is_bitfield);
    let reasons = btf.enum_values("skb_drop_reason").unwrap();
    assert!(
        reasons
            .iter()
            .any(|(n, _)| n == "SKB_DROP_REASON_NETFILTER_DROP")
    );
}
