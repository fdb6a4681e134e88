//! Expressions of rules, sets and elements: `NFTA_EXPR_*` -> [`Expr`].
//!
//! The attribute numbers are those of include/uapi/linux/netfilter/nf_tables.h (v6.18), named beside each use.

use super::fields::Fields;
use crate::{
    netlink::attr::{Attr, AttrError, Attrs},
    ruleset::{
        expr::{CmpOp, Data, Expr, PayloadBase, Verdict},
        model::Counters,
    },
};

/// An inner expression has one more inside, a dynset some; the kernel allows no deeper nesting.
const MAX_DEPTH: u8 = 3;
const NFTA_LIST_ELEM: u16 = 1;

/// Decodes the attributes of one expression (`NFTA_EXPR_NAME`, `NFTA_EXPR_DATA`).
///
/// Never fails: what is not understood becomes [`Expr::Unknown`] with its raw attributes.
pub fn decode_expr(attrs: Attrs<'_>) -> Expr {
    decode(attrs, 0)
}

/// Decodes a list of expressions. `false`: the list ends with something that is no attribute, so that some may be missing.
pub(super) fn decode_list(list: Attrs<'_>) -> (Vec<Expr>, bool) {
    list_at(list, 0)
}

fn list_at(list: Attrs<'_>, depth: u8) -> (Vec<Expr>, bool) {
    let mut exprs = Vec::new();
    for item in list {
        match item {
            Ok(attr) if attr.kind == NFTA_LIST_ELEM => exprs.push(decode(attr.nested(), depth)),
            Ok(_) => {}
            Err(_) => return (exprs, false),
        }
    }
    (exprs, true)
}

fn decode(attrs: Attrs<'_>, depth: u8) -> Expr {
    let (mut name, mut data, mut whole) = ("", None, true);
    for attr in attrs {
        match attr {
            Ok(attr) if attr.kind == 1 => match attr.str() {
                Ok(text) => name = text,
                Err(_) => whole = false,
            },
            Ok(attr) if attr.kind == 2 => data = Some(attr),
            Ok(_) => {}
            Err(_) => whole = false,
        }
    }
    let known = if whole && depth < MAX_DEPTH {
        known(name, data, depth)
    } else {
        Ok(None)
    };
    known.ok().flatten().unwrap_or_else(|| Expr::Unknown {
        name: name.to_owned(),
        data: data.map(|attr| attr.payload.to_vec()).unwrap_or_default(),
    })
}

/// The expression of this name; `None` when the name, or a number that decides about the meaning, is not known.
fn known(name: &str, data: Option<Attr<'_>>, depth: u8) -> Result<Option<Expr>, AttrError> {
    if name == "notrack" {
        return Ok(Some(Expr::Notrack));
    }
    let attrs = data.map_or(Attrs::new(&[]), |data| data.nested());
    let f = Fields::new(attrs)?;
    Ok(Some(match name {
        "immediate" => Expr::Immediate {
            dreg: f.be32(1)?,
            data: decode_data(f.need(2)?)?,
        },
        "cmp" => {
            let op = match f.be32(2)? {
                0 => CmpOp::Eq,
                1 => CmpOp::Neq,
                2 => CmpOp::Lt,
                3 => CmpOp::Lte,
                4 => CmpOp::Gt,
                5 => CmpOp::Gte,
                _ => return Ok(None),
            };
            Expr::Cmp {
                sreg: f.be32(1)?,
                op,
                data: value(f.need(3)?)?,
            }
        }
        "range" => {
            let invert = match f.be32(2)? {
                0 => false,
                1 => true,
                _ => return Ok(None),
            };
            let (from, to) = (value(f.need(3)?)?, value(f.need(4)?)?);
            Expr::Range {
                sreg: f.be32(1)?,
                invert,
                from,
                to,
            }
        }
        "bitwise" => {
            let bytes = |kind| f.get(kind).map_or(Ok(Vec::new()), value);
            Expr::Bitwise {
                sreg: f.be32(1)?,
                sreg2: f.opt_be32(8)?,
                dreg: f.be32(2)?,
                len: f.be32(3)?,
                op: f.opt_be32(6)?.unwrap_or(0),
                mask: bytes(4)?,
                xor: bytes(5)?,
                data: bytes(7)?,
            }
        }
        "byteorder" => Expr::Byteorder {
            sreg: f.be32(1)?,
            dreg: f.be32(2)?,
            op: f.be32(3)?,
            len: f.be32(4)?,
            size: f.be32(5)?,
        },
        "lookup" => Expr::Lookup {
            set: f.str(1)?,
            sreg: f.be32(2)?,
            dreg: f.opt_be32(3)?,
            flags: f.opt_be32(5)?.unwrap_or(0),
        },
        "dynset" => {
            let (mut exprs, whole) = f.get(10).map_or((Vec::new(), true), |attr| {
                list_at(attr.nested(), depth.saturating_add(1))
            });
            if !whole {
                return Ok(None);
            }
            if let Some(attr) = f.get(7) {
                exprs.push(decode(attr.nested(), depth.saturating_add(1)));
            }
            Expr::Dynset {
                set: f.str(1)?,
                op: f.be32(3)?,
                sreg_key: f.be32(4)?,
                sreg_data: f.opt_be32(5)?,
                timeout: f.opt_be64(6)?.filter(|&timeout| timeout != 0),
                flags: f.opt_be32(9)?.unwrap_or(0),
                exprs,
            }
        }
        "payload" => {
            let base = match f.be32(2)? {
                0 => PayloadBase::Link,
                1 => PayloadBase::Network,
                2 => PayloadBase::Transport,
                3 => PayloadBase::Inner,
                4 => PayloadBase::Tunnel,
                _ => return Ok(None),
            };
            let (offset, len) = (f.be32(3)?, f.be32(4)?);
            match f.opt_be32(5)? {
                None => Expr::Payload {
                    dreg: f.be32(1)?,
                    base,
                    offset,
                    len,
                },
                Some(sreg) => Expr::PayloadSet {
                    sreg,
                    base,
                    offset,
                    len,
                    csum_type: f.opt_be32(6)?.unwrap_or(0),
                    csum_offset: f.opt_be32(7)?.unwrap_or(0),
                    csum_flags: f.opt_be32(8)?.unwrap_or(0),
                },
            }
        }
        "exthdr" => {
            let (kind, op) = (f.u8(2)?, f.opt_be32(6)?.unwrap_or(0));
            let (offset, len) = (f.be32(3)?, f.be32(4)?);
            let flags = f.opt_be32(5)?.unwrap_or(0);
            match (f.opt_be32(1)?, f.opt_be32(7)?) {
                (Some(dreg), None) => Expr::Exthdr {
                    dreg,
                    kind,
                    offset,
                    len,
                    flags,
                    op,
                },
                (None, Some(sreg)) => Expr::ExthdrSet {
                    sreg,
                    kind,
                    offset,
                    len,
                    flags,
                    op,
                },
                (None, None) => Expr::ExthdrReset { kind, op },
                (Some(_), Some(_)) => return Ok(None),
            }
        }
        "meta" => match f.opt_be32(3)? {
            None => Expr::Meta {
                dreg: f.be32(1)?,
                key: f.be32(2)?,
            },
            Some(sreg) => Expr::MetaSet {
                sreg,
                key: f.be32(2)?,
            },
        },
        "ct" => {
            let (key, direction) = (f.be32(2)?, f.opt_u8(3)?);
            match f.opt_be32(4)? {
                None => Expr::Ct {
                    dreg: f.be32(1)?,
                    key,
                    direction,
                },
                Some(sreg) => Expr::CtSet {
                    sreg,
                    key,
                    direction,
                },
            }
        }
        "last" => {
            let msecs = f
                .opt_be64(2)?
                .filter(|_| f.opt_be32(1).is_ok_and(|set| set != Some(0)));
            Expr::Last { msecs }
        }
        "log" => Expr::Log {
            prefix: f.opt_str(2)?,
            level: f.opt_be32(5)?,
            flags: f.opt_be32(6)?,
            group: f.opt_be16(1)?,
            snaplen: f.opt_be32(3)?,
            qthreshold: f.opt_be16(4)?,
        },
        "reject" => Expr::Reject {
            kind: f.be32(1)?,
            code: f.opt_u8(2)?,
        },
        "queue" => Expr::Queue {
            num: f.opt_be16(1)?,
            total: f.opt_be16(2)?,
            flags: f.opt_be16(3)?.unwrap_or(0),
            sreg: f.opt_be32(4)?,
        },
        "nat" => Expr::Nat {
            kind: f.be32(1)?,
            family: f.be32(2)?,
            addr_min: f.opt_be32(3)?,
            addr_max: f.opt_be32(4)?,
            proto_min: f.opt_be32(5)?,
            proto_max: f.opt_be32(6)?,
            flags: f.opt_be32(7)?.unwrap_or(0),
        },
        "masq" => Expr::Masq {
            flags: f.opt_be32(1)?.unwrap_or(0),
            proto_min: f.opt_be32(2)?,
            proto_max: f.opt_be32(3)?,
        },
        "redir" => Expr::Redir {
            flags: f.opt_be32(3)?.unwrap_or(0),
            proto_min: f.opt_be32(1)?,
            proto_max: f.opt_be32(2)?,
        },
        "tproxy" => Expr::Tproxy {
            family: f.be32(1)?,
            reg_addr: f.opt_be32(2)?,
            reg_port: f.opt_be32(3)?,
        },
        "dup" => Expr::Dup {
            sreg_addr: f.opt_be32(1)?,
            sreg_dev: f.opt_be32(2)?,
        },
        "fwd" => Expr::Fwd {
            sreg_dev: f.be32(1)?,
            sreg_addr: f.opt_be32(2)?,
            nfproto: f.opt_be32(3)?,
        },
        "flow_offload" => Expr::FlowOffload { table: f.str(1)? },
        "fib" => Expr::Fib {
            dreg: f.be32(1)?,
            result: f.be32(2)?,
            flags: f.be32(3)?,
        },
        "rt" => Expr::Rt {
            dreg: f.be32(1)?,
            key: f.be32(2)?,
        },
        "socket" => Expr::Socket {
            key: f.be32(1)?,
            dreg: f.be32(2)?,
            level: f.opt_be32(3)?,
        },
        "osf" => Expr::Osf {
            dreg: f.be32(1)?,
            ttl: f.opt_u8(2)?.unwrap_or(0),
            flags: f.opt_be32(3)?.unwrap_or(0),
        },
        "xfrm" => Expr::Xfrm {
            dreg: f.be32(1)?,
            key: f.be32(2)?,
            direction: f.u8(3)?,
            spnum: f.opt_be32(4)?.unwrap_or(0),
        },
        "tunnel" => Expr::Tunnel {
            key: f.be32(1)?,
            dreg: f.be32(2)?,
            mode: f.opt_be32(3)?.unwrap_or(0),
        },
        "numgen" => Expr::Numgen {
            dreg: f.be32(1)?,
            modulus: f.be32(2)?,
            kind: f.be32(3)?,
            offset: f.opt_be32(4)?.unwrap_or(0),
        },
        "hash" => Expr::Hash {
            sreg: f.opt_be32(1)?,
            dreg: f.be32(2)?,
            len: f.opt_be32(3)?.unwrap_or(0),
            modulus: f.be32(4)?,
            seed: f.opt_be32(5)?,
            offset: f.opt_be32(6)?.unwrap_or(0),
            kind: f.opt_be32(7)?.unwrap_or(0),
        },
        "objref" => match f.opt_be32(3)? {
            None => Expr::Objref {
                kind: f.be32(1)?,
                name: f.str(2)?,
            },
            Some(sreg) => Expr::ObjrefMap {
                sreg,
                set: f.str(4)?,
            },
        },
        "inner" => Expr::Inner {
            num: f.opt_be32(1)?.unwrap_or(0),
            kind: f.be32(2)?,
            flags: f.be32(3)?,
            hdrsize: f.opt_be32(4)?.unwrap_or(0),
            expr: Box::new(decode(f.need(5)?.nested(), depth.saturating_add(1))),
        },
        "match" => Expr::Match {
            name: f.str(1)?,
            rev: f.be32(2)?,
            info: f.need(3)?.payload.to_vec(),
        },
        "target" => Expr::Target {
            name: f.str(1)?,
            rev: f.be32(2)?,
            info: f.need(3)?.payload.to_vec(),
        },
        _ => {
            return stateful(name, &f)
                .map(Option::Some)
                .or_else(|error| match error {
                    // No such name: the raw attributes are kept.
                    None => Ok(None),
                    Some(error) => Err(error),
                });
        }
    }))
}

/// The expressions that are objects too, with the same attributes. Errors: `None` for any other name.
pub(super) fn stateful(name: &str, f: &Fields<'_>) -> Result<Expr, Option<AttrError>> {
    Ok(match name {
        "counter" => Expr::Counter(counters(f)?),
        "limit" => Expr::Limit {
            rate: f.be64(1)?,
            unit: f.be64(2)?,
            burst: f.opt_be32(3)?.unwrap_or(0),
            kind: f.opt_be32(4)?.unwrap_or(0),
            flags: f.opt_be32(5)?.unwrap_or(0),
        },
        "quota" => Expr::Quota {
            bytes: f.be64(1)?,
            consumed: f.opt_be64(4)?.unwrap_or(0),
            flags: f.opt_be32(2)?.unwrap_or(0),
        },
        "connlimit" => Expr::Connlimit {
            count: f.be32(1)?,
            flags: f.opt_be32(2)?.unwrap_or(0),
        },
        "synproxy" => Expr::Synproxy {
            mss: f.opt_be16(1)?.unwrap_or(0),
            wscale: f.opt_u8(2)?.unwrap_or(0),
            flags: f.opt_be32(3)?.unwrap_or(0),
        },
        _ => return Err(None),
    })
}

/// `NFTA_COUNTER_BYTES`, `NFTA_COUNTER_PACKETS`.
pub(super) fn counters(f: &Fields<'_>) -> Result<Counters, AttrError> {
    Ok(Counters {
        packets: f.be64(2)?,
        bytes: f.be64(1)?,
    })
}

/// `NFTA_DATA_VALUE` or `NFTA_DATA_VERDICT`.
pub(super) fn decode_data(attr: Attr<'_>) -> Result<Data, AttrError> {
    let f = Fields::new(attr.nested())?;
    match (f.get(1), f.get(2)) {
        (Some(value), _) => Ok(Data::Value(value.payload.to_vec())),
        (None, Some(verdict)) => {
            let f = Fields::new(verdict.nested())?;
            let code = i32::from_be_bytes(f.be32(1)?.to_be_bytes());
            Ok(Data::Verdict(Verdict {
                code,
                chain: f.opt_str(2)?,
            }))
        }
        (None, None) => Err(AttrError::Missing { kind: 1 }),
    }
}

/// `NFTA_DATA_VALUE`.
pub(super) fn value(attr: Attr<'_>) -> Result<Vec<u8>, AttrError> {
    Fields::new(attr.nested())?
        .need(1)
        .map(|value| value.payload.to_vec())
}
