//! Messages -> the parts of a ruleset. Each function takes a message's payload: `struct nfgenmsg` (`u8 family`, `u8 version`,
//! `be16 resource id`), then attributes. Nothing here panics, whatever the bytes.

use super::{
    expr::{counters, decode_data, decode_expr, decode_list, stateful, value},
    fields::Fields,
};
use crate::{
    netlink::attr::{Attr, AttrError, Attrs},
    ruleset::model::{
        BaseChain, Chain, Compat, Element, Family, Flowtable, Object, ObjectState, Rule, Set, Table,
    },
};

/// Size of `struct nfgenmsg`.
const NFGENMSG: usize = 4;
const NFTA_LIST_ELEM: u16 = 1;
/// Types of userdata, which nft and the kernel agree on only by custom (`NFTNL_UDATA_*_COMMENT`, libnftnl/udata.h, v1.2).
const UDATA_COMMENT: u8 = 0;
const UDATA_SET_COMMENT: u8 = 7;

/// Something that belongs to a table, which is known by name here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located<'a, T> {
    /// The table's family.
    pub family: Family,
    /// The table's name.
    pub table: &'a str,
    /// What belongs to it.
    pub item: T,
}

/// A generation of a namespace's rulesets, from `NFT_MSG_NEWGEN`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    /// Its number.
    pub id: u32,
    /// In a notification: who committed it. In an answer: who asks.
    pub pid: u32,
    /// That process's name (`comm`, at most 15 bytes).
    pub process: String,
}

fn family(payload: &[u8]) -> Result<Family, AttrError> {
    match payload.first_chunk::<NFGENMSG>() {
        Some(&[family, ..]) => Ok(family.into()),
        None => Err(AttrError::Truncated {
            offset: 0,
            length: NFGENMSG,
            left: payload.len(),
        }),
    }
}

fn fields(payload: &[u8]) -> Result<Fields<'_>, AttrError> {
    Fields::new(Attrs::after(payload, NFGENMSG))
}

/// The value of this type in nft's userdata: `u8 type`, `u8 length`, value, and so on.
pub fn userdata(bytes: &[u8], kind: u8) -> Option<&[u8]> {
    let mut rest = bytes;
    while let Some((&[this, length], tail)) = rest.split_first_chunk::<2>() {
        let (value, tail) = tail.split_at_checked(usize::from(length))?;
        if this == kind {
            return Some(value);
        }
        rest = tail;
    }
    None
}

fn comment(bytes: &[u8], kind: u8) -> Option<String> {
    let text = userdata(bytes, kind)?.split(|&byte| byte == 0).next()?;
    String::from_utf8(text.to_vec()).ok()
}

/// Decodes `NFT_MSG_NEWGEN`.
pub fn decode_generation(payload: &[u8]) -> Result<Generation, AttrError> {
    let f = fields(payload)?;
    Ok(Generation {
        id: f.be32(1)?,
        pid: f.opt_be32(2)?.unwrap_or(0),
        process: f.opt_str(3)?.unwrap_or_default(),
    })
}

/// Decodes `NFT_MSG_NEWTABLE`; chains, sets and so on are not part of it.
pub fn decode_table(payload: &[u8]) -> Result<Table, AttrError> {
    let f = fields(payload)?;
    let userdata = f.raw(6);
    Ok(Table {
        family: family(payload)?,
        name: f.str(1)?,
        handle: f.be64(4)?,
        flags: f.opt_be32(2)?.unwrap_or(0),
        owner: f.opt_be32(7)?,
        comment: comment(&userdata, UDATA_COMMENT),
        userdata,
        chains: Vec::new(),
        sets: Vec::new(),
        objects: Vec::new(),
        flowtables: Vec::new(),
        iptables: false,
    })
}

/// Decodes `NFT_MSG_NEWCHAIN`; the rules are not part of it.
pub fn decode_chain(payload: &[u8]) -> Result<Located<'_, Chain>, AttrError> {
    let f = fields(payload)?;
    let userdata = f.raw(12);
    let base = match f.get(4) {
        None => None,
        Some(hook) => {
            let h = Fields::new(hook.nested())?;
            let mut devices = devices(h.get(4))?;
            if devices.is_empty() {
                devices.extend(h.opt_str(3)?);
            }
            let counted = match f.get(8) {
                Some(nest) => Some(counters(&Fields::new(nest.nested())?)?),
                None => None,
            };
            Some(BaseChain {
                kind: f.opt_str(7)?.unwrap_or_default(),
                hook: h.be32(1)?,
                priority: signed(h.be32(2)?),
                policy: f.be32(5)?,
                devices,
                counters: counted,
            })
        }
    };
    let chain = Chain {
        name: f.str(3)?,
        handle: f.be64(2)?,
        base,
        flags: f.opt_be32(10)?.unwrap_or(0),
        comment: comment(&userdata, UDATA_COMMENT),
        userdata,
        rules: Vec::new(),
    };
    Ok(Located {
        family: family(payload)?,
        table: f.text(1)?,
        item: chain,
    })
}

fn signed(value: u32) -> i32 {
    i32::from_ne_bytes(value.to_ne_bytes())
}

/// `NFTA_DEVICE_NAME`, and `NFTA_DEVICE_PREFIX` for names with a `*` at the end.
fn devices(nest: Option<Attr<'_>>) -> Result<Vec<String>, AttrError> {
    let mut names = Vec::new();
    for attr in nest.map_or(Attrs::new(&[]), |nest| nest.nested()) {
        let attr = attr?;
        match attr.kind {
            1 => names.push(attr.str()?.to_owned()),
            2 => names.push(format!("{}*", attr.str()?)),
            _ => {}
        }
    }
    Ok(names)
}

/// Decodes `NFT_MSG_NEWRULE`: the name of its chain, and the rule with number 0, because its place is not in the message.
///
/// Errors: the table, the chain or the handle cannot be read. Whatever else is wrong makes the rule [`Rule::broken`] or an expression
/// [`Expr::Unknown`](crate::ruleset::expr::Expr::Unknown).
pub fn decode_rule(payload: &[u8]) -> Result<Located<'_, (&str, Rule)>, AttrError> {
    let family = family(payload)?;
    let (mut table, mut chain, mut handle) = (None, None, None);
    let mut rule = Rule::default();
    for attr in Attrs::after(payload, NFGENMSG) {
        let Ok(attr) = attr else {
            rule.broken = true;
            break;
        };
        match attr.kind {
            1 => table = Some(attr.str()?),
            2 => chain = Some(attr.str()?),
            3 => handle = Some(attr.be64()?),
            4 => {
                let (exprs, whole) = decode_list(attr.nested());
                rule.exprs = exprs;
                rule.broken |= !whole;
            }
            5 => rule.compat = compat(attr).ok(),
            7 => {
                rule.userdata = attr.payload.to_vec();
                rule.comment = comment(attr.payload, UDATA_COMMENT);
            }
            _ => {}
        }
    }
    rule.handle = handle.ok_or(AttrError::Missing { kind: 3 })?;
    let table = table.ok_or(AttrError::Missing { kind: 1 })?;
    let chain = chain.ok_or(AttrError::Missing { kind: 2 })?;
    Ok(Located {
        family,
        table,
        item: (chain, rule),
    })
}

/// The handle in `NFT_MSG_NEWRULE` and `NFT_MSG_DELRULE`, without decoding the rest.
pub fn decode_rule_handle(payload: &[u8]) -> Result<Located<'_, u64>, AttrError> {
    let f = fields(payload)?;
    Ok(Located {
        family: family(payload)?,
        table: f.text(1)?,
        item: f.be64(3)?,
    })
}

fn compat(attr: Attr<'_>) -> Result<Compat, AttrError> {
    let f = Fields::new(attr.nested())?;
    Ok(Compat {
        protocol: f.be32(1)?,
        flags: f.be32(2)?,
    })
}

/// Decodes `NFT_MSG_NEWSET`; the elements are not part of it.
pub fn decode_set(payload: &[u8]) -> Result<Located<'_, Set>, AttrError> {
    let f = fields(payload)?;
    let (mut size, mut concat) = (None, Vec::new());
    if let Some(desc) = f.get(9) {
        let d = Fields::new(desc.nested())?;
        size = d.opt_be32(1)?;
        for field in d.get(2).map_or(Attrs::new(&[]), |list| list.nested()) {
            concat.push(Fields::new(field?.nested())?.be32(1)?);
        }
    }
    let mut exprs = f
        .get(18)
        .map(|list| decode_list(list.nested()).0)
        .unwrap_or_default();
    exprs.extend(f.get(17).map(|expr| decode_expr(expr.nested())));
    let userdata = f.raw(13);
    let set = Set {
        name: f.str(2)?,
        handle: f.opt_be64(16)?.unwrap_or(0),
        flags: f.opt_be32(3)?.unwrap_or(0),
        key_type: f.opt_be32(4)?.unwrap_or(0),
        key_len: f.be32(5)?,
        data_type: f.opt_be32(6)?,
        data_len: f.opt_be32(7)?,
        obj_type: f.opt_be32(15)?,
        timeout: f.opt_be64(11)?,
        gc_interval: f.opt_be32(12)?,
        policy: f.opt_be32(8)?,
        size,
        fields: concat,
        comment: comment(&userdata, UDATA_SET_COMMENT),
        userdata,
        exprs,
        elements: Vec::new(),
    };
    Ok(Located {
        family: family(payload)?,
        table: f.text(1)?,
        item: set,
    })
}

/// How many elements the set in `NFT_MSG_NEWSET` has (`NFTA_SET_COUNT`, since 6.16).
pub(super) fn decode_set_count(payload: &[u8]) -> Result<Option<u32>, AttrError> {
    fields(payload)?.opt_be32(20)
}

/// Elements out of one message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Elements {
    /// Those that could be read, in order.
    pub elements: Vec<Element>,
    /// How many could not.
    pub broken: usize,
}

/// Decodes `NFT_MSG_NEWSETELEM`: the name of the set and the elements. A dump of a set is one or more such messages.
pub fn decode_elements(payload: &[u8]) -> Result<Located<'_, (&str, Elements)>, AttrError> {
    let f = fields(payload)?;
    let mut found = Elements::default();
    for attr in f.get(3).map_or(Attrs::new(&[]), |list| list.nested()) {
        match attr {
            Ok(attr) if attr.kind == NFTA_LIST_ELEM => match element(attr) {
                Ok(element) => found.elements.push(element),
                Err(_) => found.broken += 1,
            },
            Ok(_) => {}
            Err(_) => found.broken += 1,
        }
    }
    Ok(Located {
        family: family(payload)?,
        table: f.text(1)?,
        item: (f.text(2)?, found),
    })
}

fn element(attr: Attr<'_>) -> Result<Element, AttrError> {
    let f = Fields::new(attr.nested())?;
    let mut exprs = f
        .get(11)
        .map(|list| decode_list(list.nested()).0)
        .unwrap_or_default();
    exprs.extend(f.get(7).map(|expr| decode_expr(expr.nested())));
    let userdata = f.raw(6);
    Ok(Element {
        key: f.get(1).map(value).transpose()?,
        key_end: f.get(10).map(value).transpose()?,
        data: f.get(2).map(decode_data).transpose()?,
        objref: f.opt_str(9)?,
        flags: f.opt_be32(3)?.unwrap_or(0),
        timeout: f.opt_be64(4)?,
        expiration: f.opt_be64(5)?,
        comment: comment(&userdata, UDATA_COMMENT),
        userdata,
        exprs,
    })
}

/// Decodes `NFT_MSG_NEWOBJ`.
pub fn decode_object(payload: &[u8]) -> Result<Located<'_, Object>, AttrError> {
    let f = fields(payload)?;
    let kind = f.be32(3)?;
    let state = match f.get(4) {
        None => ObjectState::Unknown(Vec::new()),
        Some(data) => object_state(kind, data)
            .ok()
            .flatten()
            .unwrap_or_else(|| ObjectState::Unknown(data.payload.to_vec())),
    };
    let userdata = f.raw(8);
    let object = Object {
        name: f.str(2)?,
        handle: f.opt_be64(6)?.unwrap_or(0),
        kind,
        comment: comment(&userdata, UDATA_COMMENT),
        userdata,
        state,
    };
    Ok(Located {
        family: family(payload)?,
        table: f.text(1)?,
        item: object,
    })
}

fn object_state(kind: u32, data: Attr<'_>) -> Result<Option<ObjectState>, AttrError> {
    let f = Fields::new(data.nested())?;
    Ok(Some(match kind {
        1 | 2 | 4 | 5 | 10 => {
            let name = match kind {
                1 => "counter",
                2 => "quota",
                4 => "limit",
                5 => "connlimit",
                _ => "synproxy",
            };
            match stateful(name, &f) {
                Ok(expr) => ObjectState::Expr(expr),
                Err(None) => return Ok(None),
                Err(Some(error)) => return Err(error),
            }
        }
        3 => ObjectState::CtHelper {
            name: f.str(1)?,
            l3proto: f.need(2)?.be16()?,
            l4proto: f.u8(3)?,
        },
        6 => tunnel(&f)?,
        7 => {
            let mut timeouts = Vec::new();
            for attr in f.get(3).map_or(Attrs::new(&[]), |list| list.nested()) {
                let attr = attr?;
                timeouts.push((attr.kind, attr.be32()?));
            }
            ObjectState::CtTimeout {
                l3proto: f.need(1)?.be16()?,
                l4proto: f.u8(2)?,
                timeouts,
            }
        }
        8 => ObjectState::Secmark { context: f.str(1)? },
        9 => ObjectState::CtExpectation {
            l3proto: f.need(1)?.be16()?,
            l4proto: f.u8(2)?,
            dport: f.need(3)?.be16()?,
            // In host order, other than all the rest (`nft_ct_expect_obj_dump()`, net/netfilter/nft_ct.c, v6.18).
            timeout: f.need(4)?.u32()?,
            size: f.u8(5)?,
        },
        _ => return Ok(None),
    }))
}

fn tunnel(f: &Fields<'_>) -> Result<ObjectState, AttrError> {
    let address = match f.get(2).or(f.get(3)) {
        Some(nest) => Fields::new(nest.nested())?,
        None => Fields::new(Attrs::new(&[]))?,
    };
    Ok(ObjectState::Tunnel {
        id: f.be32(1)?,
        source: address.raw(1),
        destination: address.raw(2),
        sport: f.opt_be16(7)?.unwrap_or(0),
        dport: f.opt_be16(8)?.unwrap_or(0),
        tos: f.opt_u8(5)?.unwrap_or(0),
        ttl: f.opt_u8(6)?.unwrap_or(0),
        flags: f.opt_be32(4)?.unwrap_or(0),
        options: f.raw(9),
    })
}

/// Decodes `NFT_MSG_NEWFLOWTABLE`.
pub fn decode_flowtable(payload: &[u8]) -> Result<Located<'_, Flowtable>, AttrError> {
    let f = fields(payload)?;
    let h = match f.get(3) {
        Some(hook) => Fields::new(hook.nested())?,
        None => Fields::new(Attrs::new(&[]))?,
    };
    let flowtable = Flowtable {
        name: f.str(2)?,
        handle: f.opt_be64(5)?.unwrap_or(0),
        hook: h.opt_be32(1)?.unwrap_or(0),
        priority: signed(h.opt_be32(2)?.unwrap_or(0)),
        devices: devices(h.get(3))?,
        flags: f.opt_be32(7)?.unwrap_or(0),
    };
    Ok(Located {
        family: family(payload)?,
        table: f.text(1)?,
        item: flowtable,
    })
}
