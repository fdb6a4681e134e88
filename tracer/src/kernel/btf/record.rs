//! The wire format: the header, and the type records as far as all kinds are alike.

use std::ops::Range;

use super::{BtfError, Result};

pub(super) const MAGIC: u16 = 0xeb9f;
pub(super) const VERSION: u8 = 1;
const HEADER_LEN: usize = 24;
/// Length of what every type record starts with: name, info, size or type; each a u32.
pub(super) const RECORD_LEN: usize = 12;

/// `BTF_KIND_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Int,
    Ptr,
    Array,
    Struct,
    Union,
    Enum,
    Fwd,
    Typedef,
    Volatile,
    Const,
    Restrict,
    Func,
    FuncProto,
    Var,
    Datasec,
    Float,
    DeclTag,
    TypeTag,
    Enum64,
}

impl Kind {
    pub(super) fn new(kind: u32) -> Option<Self> {
        Some(match kind {
            1 => Self::Int,
            2 => Self::Ptr,
            3 => Self::Array,
            4 => Self::Struct,
            5 => Self::Union,
            6 => Self::Enum,
            7 => Self::Fwd,
            8 => Self::Typedef,
            9 => Self::Volatile,
            10 => Self::Const,
            11 => Self::Restrict,
            12 => Self::Func,
            13 => Self::FuncProto,
            14 => Self::Var,
            15 => Self::Datasec,
            16 => Self::Float,
            17 => Self::DeclTag,
            18 => Self::TypeTag,
            19 => Self::Enum64,
            _ => return None,
        })
    }

    /// Bytes that follow the record's common part.
    pub(super) fn extra_len(self, vlen: usize) -> usize {
        match self {
            Self::Int | Self::Var | Self::DeclTag => 4,
            Self::Array => 12,
            Self::Struct | Self::Union | Self::Datasec | Self::Enum64 => 12 * vlen,
            Self::Enum | Self::FuncProto => 8 * vlen,
            Self::Ptr
            | Self::Fwd
            | Self::Typedef
            | Self::Volatile
            | Self::Const
            | Self::Restrict
            | Self::Func
            | Self::Float
            | Self::TypeTag => 0,
        }
    }

    pub(super) fn is_composite(self) -> bool {
        matches!(self, Self::Struct | Self::Union)
    }

    pub(super) fn is_enum(self) -> bool {
        matches!(self, Self::Enum | Self::Enum64)
    }

    /// Whether the type only gives another type a name or a qualifier.
    pub(super) fn is_alias(self) -> bool {
        matches!(
            self,
            Self::Typedef | Self::Volatile | Self::Const | Self::Restrict | Self::TypeTag
        )
    }
}

/// One type record, decoded as far as all kinds are alike.
#[derive(Clone, Copy)]
pub(super) struct Type<'a> {
    pub(super) id: u32,
    pub(super) kind: Kind,
    /// For a struct: members carry bit-field sizes. For an enum: values are signed.
    pub(super) kind_flag: bool,
    pub(super) vlen: usize,
    /// Bytes for kinds with a size, else the id of the type referred to.
    pub(super) size_or_type: u32,
    /// What follows the common part.
    pub(super) extra: &'a [u8],
}

pub(super) struct Member {
    pub(super) name: u32,
    pub(super) type_id: u32,
    pub(super) bit_offset: u32,
    /// 0: not a bit-field, or a bit-field in the old encoding.
    pub(super) bit_size: u32,
}

impl Type<'_> {
    pub(super) fn word(&self, index: usize) -> Result<u32> {
        u32_at(self.extra, index * 4).ok_or(BtfError::Malformed {
            what: "record cut short",
            id: self.id,
        })
    }

    pub(super) fn member(&self, index: usize) -> Result<Member> {
        let offset = self.word(index * 3 + 2)?;
        Ok(Member {
            name: self.word(index * 3)?,
            type_id: self.word(index * 3 + 1)?,
            bit_offset: if self.kind_flag {
                offset & 0x00ff_ffff
            } else {
                offset
            },
            bit_size: if self.kind_flag { offset >> 24 } else { 0 },
        })
    }
}

/// Where the type records and the names are.
pub(super) fn sections(data: &[u8]) -> Result<(Range<usize>, Range<usize>)> {
    let truncated = |what, offset| BtfError::Truncated { what, offset };
    let magic = data
        .get(..2)
        .and_then(|b| b.try_into().ok())
        .map(u16::from_le_bytes)
        .ok_or(truncated("header", 0))?;
    if magic == MAGIC.swap_bytes() {
        return Err(BtfError::BigEndian);
    }
    if magic != MAGIC {
        return Err(BtfError::Magic(magic));
    }
    if data.len() < HEADER_LEN {
        return Err(truncated("header", 0));
    }
    match data.get(2) {
        Some(&VERSION) => {}
        version => return Err(BtfError::Version(version.copied().unwrap_or_default())),
    }
    let word = |at| {
        u32_at(data, at)
            .map(|v| v as usize)
            .ok_or(truncated("header", 0))
    };
    // A longer header than ours is a newer one; what it adds can be passed over.
    let header_len = word(4)?;
    if header_len < HEADER_LEN {
        return Err(truncated("header", 0));
    }
    let section = |what, at: usize, len: usize| {
        let start = header_len.checked_add(at);
        start
            .and_then(|start| Some(start..start.checked_add(len)?))
            .filter(|range| range.end <= data.len())
            .ok_or(truncated(what, start.unwrap_or(usize::MAX)))
    };
    Ok((
        section("type section", word(8)?, word(12)?)?,
        section("string section", word(16)?, word(20)?)?,
    ))
}

pub(super) fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    let bytes = data.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

/// Kind and count take the bits that v6.18 still leaves unused (and zero) beside them, so that
/// a kernel that has come to need them is refused or read right, not misread.
pub(super) fn raw_kind(info: u32) -> u32 {
    (info >> 24) & 0x7f
}

pub(super) fn kind_of(info: u32) -> Option<Kind> {
    Kind::new(raw_kind(info))
}

pub(super) fn vlen(info: u32) -> usize {
    (info & 0x00ff_ffff) as usize
}
