//! Rules and sets that make no sense: none may be too odd to be written.

use proptest::prelude::*;

use super::tests::table;
use super::*;
use crate::ruleset::expr::{CmpOp, Data, Expr, PayloadBase};
use crate::ruleset::model::{Element, Set};

/// Numbers that are wrong in most places.
fn number() -> impl Strategy<Value = u32> {
    prop_oneof![0u32..40, any::<u32>()]
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..40)
}

fn register() -> impl Strategy<Value = u32> {
    prop_oneof![Just(1u32), 0u32..26]
}

fn base() -> impl Strategy<Value = PayloadBase> {
    prop_oneof![
        Just(PayloadBase::Link),
        Just(PayloadBase::Network),
        Just(PayloadBase::Transport),
        Just(PayloadBase::Inner)
    ]
}

fn any_expr() -> impl Strategy<Value = Expr> {
    let op = prop_oneof![
        Just(CmpOp::Eq),
        Just(CmpOp::Neq),
        Just(CmpOp::Lte),
        Just(CmpOp::Gte)
    ];
    let loads = prop_oneof![
        (register(), base(), number(), number()).prop_map(|(dreg, base, offset, len)| {
            Expr::Payload {
                dreg,
                base,
                offset,
                len,
            }
        }),
        (register(), number()).prop_map(|(dreg, key)| Expr::Meta { dreg, key }),
        (register(), number(), any::<Option<u8>>()).prop_map(|(dreg, key, direction)| Expr::Ct {
            dreg,
            key,
            direction
        }),
        (
            register(),
            any::<u8>(),
            number(),
            number(),
            0u32..2,
            0u32..6
        )
            .prop_map(|(dreg, kind, offset, len, flags, op)| Expr::Exthdr {
                dreg,
                kind,
                offset,
                len,
                flags,
                op
            }),
        (register(), register(), number(), number()).prop_map(|(sreg, dreg, len, modulus)| {
            Expr::Hash {
                sreg: Some(sreg),
                dreg,
                len,
                modulus,
                seed: None,
                offset: 0,
                kind: 0,
            }
        }),
        (register(), bytes()).prop_map(|(dreg, data)| Expr::Immediate {
            dreg,
            data: Data::Value(data)
        }),
        (
            register(),
            prop::option::of(register()),
            register(),
            0u32..7,
            bytes(),
            bytes()
        )
            .prop_map(|(sreg, sreg2, dreg, op, mask, xor)| Expr::Bitwise {
                sreg,
                sreg2,
                dreg,
                len: 4,
                op,
                data: xor.clone(),
                mask,
                xor
            }),
        (register(), register(), number()).prop_map(|(sreg, dreg, len)| Expr::Byteorder {
            sreg,
            dreg,
            op: 0,
            len,
            size: 2
        }),
    ];
    let effects = prop_oneof![
        (register(), op, bytes()).prop_map(|(sreg, op, data)| Expr::Cmp { sreg, op, data }),
        (register(), bytes(), bytes()).prop_map(|(sreg, from, to)| Expr::Range {
            sreg,
            invert: false,
            from,
            to
        }),
        (register(), prop::option::of(register())).prop_map(|(sreg, dreg)| Expr::Lookup {
            set: "s".to_owned(),
            sreg,
            dreg,
            flags: 0
        }),
        (register(), base(), number(), number()).prop_map(|(sreg, base, offset, len)| {
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
            number(),
            prop::option::of(register()),
            prop::option::of(register()),
            number()
        )
            .prop_map(|(family, min, max, flags)| Expr::Nat {
                kind: 1,
                family,
                addr_min: min,
                addr_max: max,
                proto_min: max,
                proto_max: min,
                flags
            }),
        (number(), any::<Option<u8>>()).prop_map(|(kind, code)| Expr::Reject { kind, code }),
        register().prop_map(|sreg_key| Expr::Dynset {
            set: "s".to_owned(),
            op: 0,
            sreg_key,
            sreg_data: None,
            timeout: Some(5),
            flags: 0,
            exprs: Vec::new()
        }),
        number().prop_map(|key| Expr::CtSet {
            sreg: 1,
            key,
            direction: None
        }),
    ];
    prop_oneof![loads, effects]
}

fn any_set() -> impl Strategy<Value = Set> {
    let element = (bytes(), prop::option::of(bytes()), bytes(), 0u32..3).prop_map(
        |(key, key_end, data, flags)| Element {
            key: Some(key),
            key_end,
            data: Some(Data::Value(data)),
            flags,
            ..Element::default()
        },
    );
    let elements = prop::collection::vec(element, 0..5);
    (number(), number(), number(), number(), bytes(), elements).prop_map(
        |(flags, key_type, key_len, data_type, userdata, elements)| Set {
            name: "s".to_owned(),
            flags,
            key_type,
            key_len,
            data_type: Some(data_type),
            data_len: Some(key_len),
            userdata,
            elements,
            ..Set::default()
        },
    )
}

proptest! {
    #[test]
    fn no_rule_is_too_odd(
        exprs in prop::collection::vec(any_expr(), 0..12),
        set in any_set(),
        family in any::<u8>(),
    ) {
        let names = Names::default();
        let options = Options { names: &names, stateless: false, handles: true };
        let mut of = table(Family::from(family % 12), vec![set]);
        let odd = Rule { exprs, ..Rule::default() };
        rule(&of, &odd, &options);
        of.chains.push(Chain {
            name: "c".to_owned(),
            handle: 1,
            base: None,
            flags: 0,
            comment: None,
            userdata: Vec::new(),
            rules: vec![odd],
        });
        let whole = Ruleset { generation: 1, tables: vec![of], problems: Vec::new() };
        ruleset(&whole, &options);
    }
}
