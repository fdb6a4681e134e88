//! Any ruleset, any packet.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::eval::cache::Cache;

fn arbitrary_expr() -> impl Strategy<Value = Expr> {
    let register = prop_oneof![0_u32..6, 8_u32..26];
    let bytes = prop::collection::vec(any::<u8>(), 0..20);
    let base = prop_oneof![
        Just(PayloadBase::Link),
        Just(PayloadBase::Network),
        Just(PayloadBase::Transport),
        Just(PayloadBase::Inner),
        Just(PayloadBase::Tunnel),
    ];
    let op = prop_oneof![
        Just(CmpOp::Eq),
        Just(CmpOp::Neq),
        Just(CmpOp::Lt),
        Just(CmpOp::Lte),
        Just(CmpOp::Gt),
        Just(CmpOp::Gte),
    ];
    let chain = prop_oneof![Just(None), "in|a|b|zz".prop_map(Some)];
    prop_oneof![
        (register.clone(), base.clone(), 0_u32..64, 0_u32..70).prop_map(
            |(dreg, base, offset, len)| Expr::Payload {
                dreg,
                base,
                offset,
                len
            }
        ),
        (register.clone(), op, bytes.clone()).prop_map(|(sreg, op, data)| Expr::Cmp {
            sreg,
            op,
            data
        }),
        (
            register.clone(),
            any::<bool>(),
            bytes.clone(),
            bytes.clone()
        )
            .prop_map(|(sreg, invert, from, to)| Expr::Range {
                sreg,
                invert,
                from,
                to
            }),
        (register.clone(), 0_u32..38).prop_map(|(dreg, key)| Expr::Meta { dreg, key }),
        (register.clone(), 0_u32..24).prop_map(|(sreg, key)| Expr::MetaSet { sreg, key }),
        (register.clone(), 0_u32..25, prop::option::of(0_u8..3)).prop_map(
            |(dreg, key, direction)| Expr::Ct {
                dreg,
                key,
                direction
            }
        ),
        (-6_i32..5, chain).prop_map(|(code, chain)| Expr::Immediate {
            dreg: 0,
            data: Data::Verdict(Verdict { code, chain }),
        }),
        (register.clone(), bytes.clone()).prop_map(|(dreg, bytes)| Expr::Immediate {
            dreg,
            data: Data::Value(bytes)
        }),
        (
            register.clone(),
            register.clone(),
            0_u32..20,
            0_u32..7,
            bytes.clone(),
            bytes.clone()
        )
            .prop_map(|(sreg, dreg, len, op, mask, data)| Expr::Bitwise {
                sreg,
                sreg2: None,
                dreg,
                len,
                op,
                xor: mask.clone(),
                mask,
                data,
            }),
        (register.clone(), register.clone(), 0_u32..20, 0_u32..9).prop_map(
            |(sreg, dreg, len, size)| Expr::Byteorder {
                sreg,
                dreg,
                op: 0,
                len,
                size
            }
        ),
        (
            register.clone(),
            prop::option::of(register.clone()),
            0_u32..2
        )
            .prop_map(|(sreg, dreg, flags)| Expr::Lookup {
                set: "s".to_owned(),
                sreg,
                dreg,
                flags
            }),
        (
            register.clone(),
            any::<u8>(),
            0_u32..20,
            0_u32..20,
            0_u32..2,
            0_u32..6
        )
            .prop_map(|(dreg, kind, offset, len, flags, op)| Expr::Exthdr {
                dreg,
                kind,
                offset,
                len,
                flags,
                op
            }),
        (register.clone(), base, 0_u32..40, 0_u32..8).prop_map(|(sreg, base, offset, len)| {
            Expr::PayloadSet {
                sreg,
                base,
                offset,
                len,
                csum_type: 0,
                csum_offset: 0,
                csum_flags: 0,
            }
        }),
        (
            register.clone(),
            register.clone(),
            0_u32..40,
            prop::option::of(any::<u32>())
        )
            .prop_map(|(sreg, dreg, len, seed)| Expr::Hash {
                sreg: Some(sreg),
                dreg,
                len,
                modulus: 7,
                seed,
                offset: 0,
                kind: 0,
            }),
        (register.clone(), 0_u32..5, 0_u32..64).prop_map(|(dreg, result, flags)| Expr::Fib {
            dreg,
            result,
            flags
        }),
        (register, 0_u32..4).prop_map(|(sreg_key, op)| Expr::Dynset {
            set: "s".to_owned(),
            op,
            sreg_key,
            sreg_data: None,
            timeout: None,
            flags: 0,
            exprs: Vec::new(),
        }),
        Just(limit()),
        Just(Expr::Notrack),
        Just(Expr::Synproxy {
            mss: 1,
            wscale: 1,
            flags: 0
        }),
        Just(Expr::Masq {
            flags: 0,
            proto_min: None,
            proto_max: None
        }),
        bytes.prop_map(|data| Expr::Unknown {
            name: "x".to_owned(),
            data
        }),
    ]
}

fn arbitrary_ruleset() -> impl Strategy<Value = Ruleset> {
    let rules = || prop::collection::vec(prop::collection::vec(arbitrary_expr(), 0..6), 0..5);
    let keys = prop::collection::vec((prop::collection::vec(any::<u8>(), 0..6), 0_u32..3), 0..6);
    (
        rules(),
        rules(),
        rules(),
        keys,
        any::<u16>(),
        -301_i32..120,
        0_u32..5,
    )
        .prop_map(|(first, a, b, keys, flags, priority, hook)| {
            let elements = keys
                .iter()
                .map(|(key, flags)| element(key, *flags))
                .collect();
            let chains = vec![
                chain("in", Some((hook, priority, 0)), first),
                chain("a", None, a),
                chain("b", Some((hook, priority, 1)), b),
            ];
            ruleset(vec![table(chains, vec![set(u32::from(flags), elements)])])
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// Whatever the ruleset and the packet: an answer, the same with the cache and without.
    #[test]
    fn any_walk_ends_and_can_be_cached(
        ruleset in arbitrary_ruleset(),
        packets in prop::collection::vec(
            (prop::collection::vec(any::<u8>(), 0..80), 0_u32..90, 0_usize..16, any::<bool>(), 0_u8..8),
            1..8,
        ),
        hook in 0_u8..5,
    ) {
        let program = Arc::new(Program::new(Some(&ruleset), &[]));
        let world = World::default();
        let mut cache = Cache::new(program.clone());
        for (bytes, len, l2_len, dropped, info) in packets {
            let mut bytes = bytes;
            if let Some(first) = bytes.get_mut(l2_len) {
                *first = 0x45;
            }
            let packet = Packet {
                bytes: &bytes,
                len,
                l2_len,
                hook,
                moment: if dropped { Moment::Drop } else { Moment::Entry },
                tracking: match info {
                    0..=4 => Tracking::Connection(Connection { info, status: u32::from(info) << 4, ..Connection::default() }),
                    5 => Tracking::None,
                    6 => Tracking::Untracked,
                    _ => Tracking::Unknown,
                },
                ..packet()
            };
            let plain = program.evaluate(&packet, &world);
            prop_assert!(plain.incomplete.is_some() || !plain.ends.is_empty() || dropped, "{plain:?}");
            // Twice: what was put in, and what is found.
            for _ in 0..2 {
                prop_assert_eq!(&*cache.evaluate(&packet, &world), &plain);
            }
        }
    }
}
