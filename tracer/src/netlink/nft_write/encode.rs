//! Expressions -> netlink attributes, for the expressions that fwtrace writes.

use super::BuildError;
use crate::{
    netlink::attr::Writer,
    ruleset::model::{CmpOp, Data, Expr, PayloadBase, Verdict},
};

/// Writes `expr` as the content of an `NFTA_LIST_ELEM`: name and attributes (include/uapi/linux/netfilter/nf_tables.h, v6.18).
///
/// `set` is the number of a lookup's set within the batch; 0 looks the set up by its name alone.
/// Errors: [`BuildError::Unsupported`] for an expression that fwtrace does not write.
pub fn encode(w: &mut Writer, expr: &Expr, set: u32) -> Result<(), BuildError> {
    let mut supported = true;
    w.str(1, expr.name())
        .nest(2, |w| supported = attributes(w, expr, set));
    match supported {
        true => Ok(()),
        false => Err(BuildError::Unsupported {
            name: expr.name().to_owned(),
        }),
    }
}

fn attributes(w: &mut Writer, expr: &Expr, set_id: u32) -> bool {
    match expr {
        Expr::Immediate { dreg, data } => {
            w.be32(1, *dreg).nest(2, |w| match data {
                Data::Value(bytes) => {
                    w.bytes(1, bytes);
                }
                Data::Verdict(code) => verdict(w, code),
            });
        }
        Expr::Cmp { sreg, op, data } => {
            let op = match op {
                CmpOp::Eq => 0,
                CmpOp::Neq => 1,
                CmpOp::Lt => 2,
                CmpOp::Lte => 3,
                CmpOp::Gt => 4,
                CmpOp::Gte => 5,
            };
            w.be32(1, *sreg).be32(2, op);
            value(w, 3, data);
        }
        Expr::Bitwise {
            sreg,
            sreg2: None,
            dreg,
            len,
            op: 0,
            mask,
            xor,
            data,
        } if data.is_empty() => {
            w.be32(1, *sreg).be32(2, *dreg).be32(3, *len);
            value(w, 4, mask);
            value(w, 5, xor);
        }
        Expr::Lookup {
            set,
            sreg,
            dreg,
            flags,
        } => {
            w.str(1, set).be32(2, *sreg);
            if let Some(dreg) = dreg {
                w.be32(3, *dreg);
            }
            if set_id > 0 {
                w.be32(4, set_id);
            }
            if *flags > 0 {
                w.be32(5, *flags);
            }
        }
        Expr::Payload {
            dreg,
            base,
            offset,
            len,
        } => {
            let base = match base {
                PayloadBase::Link => 0,
                PayloadBase::Network => 1,
                PayloadBase::Transport => 2,
                PayloadBase::Inner => 3,
                PayloadBase::Tunnel => 4,
            };
            w.be32(1, *dreg)
                .be32(2, base)
                .be32(3, *offset)
                .be32(4, *len);
        }
        Expr::Meta { dreg, key } => {
            w.be32(1, *dreg).be32(2, *key);
        }
        Expr::MetaSet { sreg, key } => {
            w.be32(2, *key).be32(3, *sreg);
        }
        Expr::Ct {
            dreg,
            key,
            direction,
        } => {
            w.be32(1, *dreg).be32(2, *key);
            if let Some(direction) = direction {
                w.u8(3, *direction);
            }
        }
        Expr::Counter(counters) => {
            w.be64(1, counters.bytes).be64(2, counters.packets);
        }
        Expr::Limit {
            rate,
            unit,
            burst,
            kind,
            flags,
        } => {
            w.be64(1, *rate)
                .be64(2, *unit)
                .be32(3, *burst)
                .be32(4, *kind)
                .be32(5, *flags);
        }
        Expr::Log {
            prefix,
            level,
            flags,
            group,
            snaplen,
            qthreshold,
        } => {
            if let Some(group) = group {
                w.be16(1, *group);
            }
            if let Some(prefix) = prefix {
                w.str(2, prefix);
            }
            for (kind, number) in [(3, snaplen), (5, level), (6, flags)] {
                if let Some(number) = number {
                    w.be32(kind, *number);
                }
            }
            if let Some(qthreshold) = qthreshold {
                w.be16(4, *qthreshold);
            }
        }
        Expr::Reject { kind, code } => {
            w.be32(1, *kind);
            if let Some(code) = code {
                w.u8(2, *code);
            }
        }
        Expr::Match { name, rev, info } => {
            w.str(1, name).be32(2, *rev).bytes(3, info);
        }
        _ => return false,
    }
    true
}

/// A data attribute with a register's raw content (`NFTA_DATA_VALUE`).
fn value(w: &mut Writer, kind: u16, bytes: &[u8]) {
    w.nest(kind, |w| {
        w.bytes(1, bytes);
    });
}

/// A verdict, as the content of a data attribute (`NFTA_DATA_VERDICT`).
pub(super) fn verdict(w: &mut Writer, verdict: &Verdict) {
    w.nest(2, |w| {
        w.bytes(1, &verdict.code.to_be_bytes());
        if let Some(chain) = &verdict.chain {
            w.str(2, chain);
        }
    });
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, option, prelude::*};

    use super::*;
    use crate::{
        netlink::{attr::Attrs, nftables::decode_expr},
        ruleset::model::Counters,
    };

    fn bytes(expr: &Expr, set: u32) -> Vec<u8> {
        let mut writer = Writer::new();
        encode(&mut writer, expr, set).unwrap();
        writer.finish().unwrap()
    }

    /// One attribute, in this machine's byte order.
    fn attr(kind: u16, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + payload.len()).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend_from_slice(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    const NESTED: u16 = 0x8000;

    #[test]
    fn a_comparison_as_nft_sends_it() {
        // `cmp eq reg 1 0x06`, from `nft --debug=mnl add rule inet t in meta l4proto tcp`.
        let expr = Expr::Cmp {
            sreg: 1,
            op: CmpOp::Eq,
            data: vec![6],
        };
        let data = [
            attr(1, &[0, 0, 0, 1]),
            attr(2, &[0; 4]),
            attr(3 | NESTED, &attr(1, &[6])),
        ]
        .concat();
        assert_eq!(
            bytes(&expr, 0),
            [attr(1, b"cmp\0"), attr(2 | NESTED, &data)].concat()
        );
    }

    #[test]
    fn a_jump_as_nft_sends_it() {
        let jump = Verdict {
            code: Verdict::JUMP,
            chain: Some("sub".into()),
        };
        let expr = Expr::Immediate {
            dreg: 0,
            data: Data::Verdict(jump),
        };
        let verdict = [attr(1, &[0xff, 0xff, 0xff, 0xfd]), attr(2, b"sub\0")].concat();
        let data = [
            attr(1, &[0; 4]),
            attr(2 | NESTED, &attr(2 | NESTED, &verdict)),
        ]
        .concat();
        assert_eq!(
            bytes(&expr, 0),
            [attr(1, b"immediate\0"), attr(2 | NESTED, &data)].concat()
        );
    }

    #[test]
    fn a_lookup_has_the_number_of_its_set() {
        let expr = Expr::Lookup {
            set: "__map%d".into(),
            sreg: 1,
            dreg: Some(0),
            flags: 0,
        };
        let data = [
            attr(1, b"__map%d\0"),
            attr(2, &[0, 0, 0, 1]),
            attr(3, &[0; 4]),
            attr(4, &[0, 0, 0, 3]),
        ]
        .concat();
        assert_eq!(
            bytes(&expr, 3),
            [attr(1, b"lookup\0"), attr(2 | NESTED, &data)].concat()
        );
    }

    #[test]
    fn what_cannot_be_written_is_an_error() {
        let error = encode(&mut Writer::new(), &Expr::Notrack, 0).unwrap_err();
        assert!(matches!(error, BuildError::Unsupported { name } if name == "notrack"));
        let shift = Expr::Bitwise {
            sreg: 1,
            sreg2: None,
            dreg: 1,
            len: 4,
            op: 1,
            mask: vec![],
            xor: vec![],
            data: vec![0; 4],
        };
        assert!(encode(&mut Writer::new(), &shift, 0).is_err());
        assert!(encode(&mut Writer::new(), &Expr::Counter(Counters::default()), 0).is_ok());
    }

    fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
        vec(any::<u8>(), 1..=16)
    }

    fn any_data() -> impl Strategy<Value = Data> {
        let verdict = (-5..=3_i32, option::of("[a-z]{1,9}"));
        prop_oneof![
            any_bytes().prop_map(Data::Value),
            verdict.prop_map(|(code, chain)| Data::Verdict(Verdict { code, chain })),
        ]
    }

    fn any_cmp_op() -> impl Strategy<Value = CmpOp> {
        proptest::sample::select(vec![
            CmpOp::Eq,
            CmpOp::Neq,
            CmpOp::Lt,
            CmpOp::Lte,
            CmpOp::Gt,
            CmpOp::Gte,
        ])
    }

    fn any_base() -> impl Strategy<Value = PayloadBase> {
        use PayloadBase::{Inner, Link, Network, Transport};
        proptest::sample::select(vec![Link, Network, Transport, Inner])
    }

    /// Every expression that can be written.
    fn any_expr() -> impl Strategy<Value = Expr> {
        let log = (
            option::of("[a-z ]{1,20}"),
            any::<Option<u32>>(),
            any::<Option<u32>>(),
            any::<Option<u16>>(),
            any::<Option<u32>>(),
            any::<Option<u16>>(),
        );
        prop_oneof![
            (any::<u32>(), any_data()).prop_map(|(dreg, data)| Expr::Immediate { dreg, data }),
            (any::<u32>(), any_cmp_op(), any_bytes()).prop_map(|(sreg, op, data)| Expr::Cmp {
                sreg,
                op,
                data
            }),
            (any::<u32>(), any::<u32>(), any_bytes(), any_bytes()).prop_map(
                |(sreg, dreg, mask, xor)| {
                    let len = u32::try_from(mask.len()).unwrap();
                    Expr::Bitwise {
                        sreg,
                        sreg2: None,
                        dreg,
                        len,
                        op: 0,
                        mask,
                        xor,
                        data: Vec::new(),
                    }
                }
            ),
            ("[a-z_]{1,9}", any::<u32>(), any::<Option<u32>>(), 0..=1_u32).prop_map(
                |(set, sreg, dreg, flags)| Expr::Lookup {
                    set,
                    sreg,
                    dreg,
                    flags
                }
            ),
            (any::<u32>(), any_base(), any::<u32>(), any::<u32>()).prop_map(
                |(dreg, base, offset, len)| Expr::Payload {
                    dreg,
                    base,
                    offset,
                    len
                }
            ),
            (any::<u32>(), any::<u32>()).prop_map(|(dreg, key)| Expr::Meta { dreg, key }),
            (any::<u32>(), any::<u32>()).prop_map(|(sreg, key)| Expr::MetaSet { sreg, key }),
            (any::<u32>(), any::<u32>(), any::<Option<u8>>()).prop_map(|(dreg, key, direction)| {
                Expr::Ct {
                    dreg,
                    key,
                    direction,
                }
            }),
            (any::<u64>(), any::<u64>())
                .prop_map(|(packets, bytes)| Expr::Counter(Counters { packets, bytes })),
            (
                any::<u64>(),
                any::<u64>(),
                any::<u32>(),
                any::<u32>(),
                any::<u32>()
            )
                .prop_map(|(rate, unit, burst, kind, flags)| Expr::Limit {
                    rate,
                    unit,
                    burst,
                    kind,
                    flags
                }),
            log.prop_map(
                |(prefix, level, flags, group, snaplen, qthreshold)| Expr::Log {
                    prefix,
                    level,
                    flags,
                    group,
                    snaplen,
                    qthreshold
                }
            ),
            (any::<u32>(), any::<Option<u8>>())
                .prop_map(|(kind, code)| Expr::Reject { kind, code }),
            ("[a-z6]{1,28}", any::<u32>(), vec(any::<u8>(), 0..300))
                .prop_map(|(name, rev, info)| Expr::Match { name, rev, info }),
        ]
    }

    proptest! {
        #[test]
        fn the_decoder_reads_what_was_written(expr in any_expr(), set in any::<u32>()) {
            prop_assert_eq!(decode_expr(Attrs::new(&bytes(&expr, set))), expr);
        }
    }
}
