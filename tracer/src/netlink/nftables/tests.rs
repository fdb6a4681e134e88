//! The decoders on messages of a real kernel (6.18), and on broken ones.

use proptest::prelude::*;

use super::*;
use crate::{
    netlink::attr::{AttrError, Writer},
    ruleset::{
        expr::{CmpOp, Data, Expr, PayloadBase, Verdict},
        model::{Counters, Element, Family, Flowtable, ObjectState, Set},
    },
};

// What `nft -f` made of this, as dumped:
//
// table inet t {
//   comment "mine"
//   counter hits { packets 7 bytes 420; }
//   set s { type ipv4_addr . inet_service; flags interval, timeout; comment "two"; elements = { 10.0.0.0/8 . 80-90 timeout 1h comment "one" }; }
//   map v { type inet_service : verdict; elements = { 25 : jump sub }; }
//   chain in { type filter hook input priority -5; policy drop; counter packets 1 bytes 60 tcp dport 80 drop comment "web"; }
//   chain sub { }
// }
const TABLE: &str = "01000002060001007400000008000300000000050c0004000000000000000001080002000000\
    00000b00060000056d696e650000";
const BASE_CHAIN: &str = "01000002060001007400000007000300696e00000c00020000000000000000011400040008\
    0001000000000108000200fffffffb08000500000000000b00070066696c746572000008000a0000000001080006000000\
    0001";
const CHAIN: &str = "01000002060001007400000008000300737562000c0002000000000000000002080006000000\
    0001";
const RULE: &str = "01000002060001007400000007000200696e00000c0003000000000000000006100104002c0001\
    000c000100636f756e746572001c0002000c000100000000000000003c0c000200000000000000000124000100090001\
    006d6574610000000014000200080002000000001008000100000000012c00010008000100636d700020000200080001\
    000000000108000200000000000c0003000500010006000000340001000c0001007061796c6f61640024000200080001\
    00000000010800020000000002080003000000000208000400000000022c00010008000100636d700020000200080001\
    000000000108000200000000000c0003000600010000500000300001000e000100696d6d6564696174650000001c0002\
    000800010000000000100002000c00020008000100000000000a0007000004776562000000";
const SET: &str = "01000002060001007400000006000200730000000c0010000000000000000004080003000000009408\
    000400000001cd08000500000000081a000d00000400000000030800040d0000000100070474776f000000200009001c00\
    02000c00010008000100000000040c00010008000100000000021700130030786666666666666666383235303831613000\
    000800140000000001";
const ELEMENT: &str = "01000002060001007400000006000200730000004c00030048000100100001000c0001000a0000\
    000050000010000a000c0001000affffff005a00000c000400000000000036ee800c000500000000000036ee800a000600\
    00046f6e65000000";
const MAP: &str = "01000002060001007400000006000200760000000c0010000000000000000005080003000000000808\
    0004000000000d080005000000000208000600ffffff000800070000000010160\
    00d000004020000000104000000000604000000000000040009001700130030786666666666666666383235303766343000\
    000800140000000001";
const MAP_ELEMENT: &str = "01000002060001007400000006000200760000002c000300280001000c0001000600010000\
    190000180002001400020008000100fffffffd0800020073756200";
const OBJECT: &str = "01000002060001007400000009000200686974730000000008000300000000010c00060000000000\
    0000000308000500000000001c0004000c00010000000000000001a40c0002000000000000000007";

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex
        .bytes()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(pair).collect()
}

#[test]
fn a_table() {
    let table = decode_table(&bytes(TABLE)).unwrap();
    assert_eq!(
        (table.family, table.name.as_str(), table.handle),
        (Family::Inet, "t", 1)
    );
    assert_eq!(
        (table.comment.as_deref(), table.flags, table.owner),
        (Some("mine"), 0, None)
    );
}

#[test]
fn chains() {
    let payload = bytes(BASE_CHAIN);
    let chain = decode_chain(&payload).unwrap();
    assert_eq!(
        (chain.family, chain.table, chain.item.handle),
        (Family::Inet, "t", 1)
    );
    let base = chain.item.base.unwrap();
    assert_eq!(
        (base.kind.as_str(), base.hook, base.priority, base.policy),
        ("filter", 1, -5, 0)
    );
    let payload = bytes(CHAIN);
    let chain = decode_chain(&payload).unwrap().item;
    assert_eq!(
        (chain.name.as_str(), chain.handle, chain.base),
        ("sub", 2, None)
    );
}

#[test]
fn a_rule() {
    let payload = bytes(RULE);
    let rule = decode_rule(&payload).unwrap();
    let (chain, item) = rule.item;
    assert_eq!(
        (rule.table, chain, item.handle, item.broken),
        ("t", "in", 6, false)
    );
    assert_eq!(item.comment.as_deref(), Some("web"));
    let expected = [
        Expr::Counter(Counters {
            packets: 1,
            bytes: 60,
        }),
        Expr::Meta { dreg: 1, key: 16 },
        Expr::Cmp {
            sreg: 1,
            op: CmpOp::Eq,
            data: vec![6],
        },
        Expr::Payload {
            dreg: 1,
            base: PayloadBase::Transport,
            offset: 2,
            len: 2,
        },
        Expr::Cmp {
            sreg: 1,
            op: CmpOp::Eq,
            data: vec![0, 80],
        },
        Expr::Immediate {
            dreg: 0,
            data: Data::Verdict(Verdict {
                code: 0,
                chain: None,
            }),
        },
    ];
    assert_eq!(item.exprs, expected);
    assert_eq!(decode_rule_handle(&payload).unwrap().item, 6);
}

#[test]
fn sets_and_elements() {
    let payload = bytes(SET);
    let set = decode_set(&payload).unwrap().item;
    assert_eq!(
        (set.handle, set.key_len, set.fields.as_slice()),
        (4, 8, [4, 2].as_slice())
    );
    assert_eq!(set.flags, Set::CONCAT | Set::TIMEOUT | Set::INTERVAL);
    assert_eq!(set.comment.as_deref(), Some("two"));
    // The key's byte order: a concatenation has none.
    assert_eq!(userdata(&set.userdata, 0), Some([0, 0, 0, 0].as_slice()));

    let payload = bytes(ELEMENT);
    let (name, found) = decode_elements(&payload).unwrap().item;
    let expected = Element {
        key: Some(vec![10, 0, 0, 0, 0, 80, 0, 0]),
        key_end: Some(vec![10, 255, 255, 255, 0, 90, 0, 0]),
        timeout: Some(3_600_000),
        expiration: Some(3_600_000),
        userdata: b"\x00\x04one\0".to_vec(),
        comment: Some("one".into()),
        ..Element::default()
    };
    assert_eq!(
        (name, found),
        (
            "s",
            Elements {
                elements: vec![expected],
                broken: 0
            }
        )
    );

    let payload = bytes(MAP);
    let map = decode_set(&payload).unwrap().item;
    assert_eq!(
        (map.data_type, map.key_len, map.flags),
        (Some(Set::VERDICT), 2, Set::MAP)
    );
    let payload = bytes(MAP_ELEMENT);
    let (_, found) = decode_elements(&payload).unwrap().item;
    let jump = Verdict {
        code: Verdict::JUMP,
        chain: Some("sub".into()),
    };
    assert_eq!(found.elements[0].data, Some(Data::Verdict(jump)));
}

#[test]
fn an_object() {
    let payload = bytes(OBJECT);
    let object = decode_object(&payload).unwrap().item;
    let counter = ObjectState::Expr(Expr::Counter(Counters {
        packets: 7,
        bytes: 420,
    }));
    assert_eq!(
        (object.name.as_str(), object.kind, object.state),
        ("hits", 1, counter)
    );
}

/// By hand after `nf_tables_fill_flowtable_info()` (net/netfilter/nf_tables_api.c, v6.18).
#[test]
fn a_flowtable() {
    let mut writer = Writer::new();
    writer
        .raw(&[1, 0, 0, 0])
        .str(1, "t")
        .str(2, "fast")
        .be64(5, 9)
        .be32(7, 2)
        .nest(3, |hook| {
            hook.be32(1, 0).be32(2, u32::MAX).nest(3, |devices| {
                devices.str(1, "eth0").str(2, "wg");
            });
        });
    let payload = writer.finish().unwrap();
    let expected = Flowtable {
        name: "fast".into(),
        handle: 9,
        hook: 0,
        priority: -1,
        devices: vec!["eth0".into(), "wg*".into()],
        flags: 2,
    };
    assert_eq!(decode_flowtable(&payload).unwrap().item, expected);
}

fn expr(name: &str, fill: impl FnOnce(&mut Writer)) -> Expr {
    let bytes = Writer::new().str(1, name).nest(2, fill).finish().unwrap();
    decode_expr(crate::netlink::attr::Attrs::new(&bytes))
}

#[test]
fn expressions_that_this_kernel_or_nft_does_not_make() {
    let queue = expr("queue", |w| {
        w.be16(1, 3).be16(2, 4).be16(3, 1);
    });
    assert_eq!(
        queue,
        Expr::Queue {
            num: Some(3),
            total: Some(4),
            flags: 1,
            sreg: None
        }
    );
    let inner = expr("inner", |w| {
        w.be32(1, 0)
            .be32(2, 1)
            .be32(3, 0xf)
            .be32(4, 8)
            .nest(5, |w| {
                w.str(1, "meta").nest(2, |w| {
                    w.be32(1, 1).be32(2, 1);
                });
            });
    });
    let meta = Box::new(Expr::Meta { dreg: 1, key: 1 });
    assert_eq!(
        inner,
        Expr::Inner {
            num: 0,
            kind: 1,
            flags: 15,
            hdrsize: 8,
            expr: meta
        }
    );
    let last = |set: u32| {
        expr("last", |w| {
            w.be32(1, set).be64(2, 50);
        })
    };
    assert_eq!(last(1), Expr::Last { msecs: Some(50) });
    assert_eq!(last(0), Expr::Last { msecs: None });
    let reset = expr("exthdr", |w| {
        w.u8(2, 8).be32(3, 0).be32(4, 0).be32(6, 1);
    });
    assert_eq!(reset, Expr::ExthdrReset { kind: 8, op: 1 });
    assert_eq!(expr("notrack", |_| ()), Expr::Notrack);
}

#[test]
fn what_is_not_understood_is_kept() {
    let unknown = expr("brandnew", |w| {
        w.u8(1, 9);
    });
    let data = vec![5, 0, 1, 0, 9, 0, 0, 0];
    assert_eq!(
        unknown,
        Expr::Unknown {
            name: "brandnew".into(),
            data
        }
    );
    let broken = expr("cmp", |w| {
        w.be32(1, 1).be32(2, 77);
    });
    assert!(matches!(broken, Expr::Unknown { name, .. } if name == "cmp"));
    // Deeper than the kernel nests.
    let mut nested = Writer::new().str(1, "notrack").finish().unwrap();
    for _ in 0..1_500 {
        let mut writer = Writer::new();
        writer.str(1, "inner").nest(2, |w| {
            w.be32(2, 1).be32(3, 0).bytes(5, &nested);
        });
        nested = writer.finish().unwrap();
    }
    let attrs = crate::netlink::attr::Attrs::new(&nested);
    assert!(matches!(decode_expr(attrs), Expr::Inner { .. }));
}

#[test]
fn a_rule_with_a_broken_tail_is_kept_and_marked() {
    let mut payload = bytes(RULE);
    payload.truncate(payload.len() - 12);
    payload.extend([200, 0, 7, 0]);
    let (chain, rule) = decode_rule(&payload).unwrap().item;
    assert_eq!(
        (chain, rule.handle, rule.broken, rule.exprs.len()),
        ("in", 6, true, 6)
    );
    let missing = Writer::new()
        .raw(&[0; 4])
        .str(1, "t")
        .str(2, "c")
        .finish()
        .unwrap();
    assert_eq!(decode_rule(&missing), Err(AttrError::Missing { kind: 3 }));
}

fn decode_all(payload: &[u8]) {
    let _ = decode_generation(payload);
    let _ = decode_table(payload);
    let _ = decode_chain(payload);
    let _ = decode_rule(payload);
    let _ = decode_rule_handle(payload);
    let _ = decode_set(payload);
    let _ = decode_elements(payload);
    let _ = decode_object(payload);
    let _ = decode_flowtable(payload);
    let _ = userdata(payload, 0);
}

proptest! {
    #[test]
    fn broken_messages_do_not_panic(
        which in 0..10_usize,
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        length in any::<prop::sample::Index>(),
        cut in any::<bool>(),
    ) {
        let all =
            [TABLE, BASE_CHAIN, CHAIN, RULE, SET, ELEMENT, MAP, MAP_ELEMENT, OBJECT, "01000000"];
        let mut payload = bytes(all[which]);
        for (index, value) in edits {
            let index = index.index(payload.len());
            payload[index] = value;
        }
        if cut {
            payload.truncate(length.index(payload.len()));
        }
        decode_all(&payload);
    }

    #[test]
    fn expressions_with_any_attributes_do_not_panic(
        name in prop::sample::select(vec![
            "immediate", "cmp", "range", "bitwise", "byteorder", "lookup", "dynset", "payload",
            "exthdr", "meta", "ct", "counter", "limit", "quota", "connlimit", "last", "log",
            "reject", "queue", "nat", "masq", "redir", "tproxy", "dup", "fwd", "synproxy",
            "flow_offload", "fib", "rt", "socket", "osf", "xfrm", "tunnel", "numgen", "hash",
            "objref", "inner", "match", "target",
        ]),
        attrs in proptest::collection::vec(
            (0..20_u16, proptest::collection::vec(any::<u8>(), 0..12)), 0..10),
    ) {
        let decoded = expr(name, |w| {
            for (kind, value) in &attrs {
                w.bytes(*kind, value);
            }
        });
        prop_assert_eq!(decoded.name(), name);
    }
}
