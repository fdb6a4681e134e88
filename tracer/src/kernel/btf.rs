//! BTF parser: pure, bytes -> where a struct's fields lie, what an enum's values are.
//!
//! BTF is the type information the kernel carries about itself: a header, a section of type
//! records and a section of NUL-terminated names (include/uapi/linux/btf.h,
//! Documentation/bpf/btf.rst, v6.18). A module's BTF is "split": its type ids and name offsets
//! continue where those of its base, vmlinux, end.
//!
//! A vmlinux has some 120,000 types and a run asks for a few dozen, so parsing is one pass that
//! notes where each record starts; records are decoded when asked for, from bytes that may be
//! anything: references that lead nowhere, and types that contain themselves, are errors.

use std::{ops::Range, sync::Arc};

use record::{Kind, Member, RECORD_LEN, Type};

mod record;

#[cfg(test)]
pub(crate) mod tests;

/// Longest chain of typedefs, qualifiers and array dimensions that is followed. The kernel's own
/// limit is 32 (`MAX_RESOLVE_DEPTH`, kernel/bpf/btf.c, v6.18).
const MAX_CHAIN: usize = 64;
/// Most members looked at for one name: bounds the work on types that contain themselves.
const MAX_MEMBERS: u32 = 20_000;
/// Size of a pointer, bytes: fwtrace runs on 64-bit kernels only.
const POINTER_SIZE: u64 = 8;

/// Why a BTF could not be parsed, or did not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BtfError {
    /// It does not begin as BTF does.
    #[error("not BTF: it begins with {0:#06x} where BTF has 0xeb9f")]
    Magic(u16),
    /// The other byte order.
    #[error("big-endian BTF: fwtrace reads that of little-endian kernels only")]
    BigEndian,
    /// A version nobody has defined yet.
    #[error("BTF version {0}: only version 1 is known")]
    Version(u8),
    /// Something reaches past the end.
    #[error("BTF cut short: {what} at byte {offset} reaches past the end")]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Where it starts, bytes from the start of the BTF.
        offset: usize,
    },
    /// A kind of type this parser does not know the length of.
    #[error("BTF type of unknown kind {kind} at byte {offset}")]
    UnknownKind {
        /// `BTF_KIND_*`.
        kind: u32,
        /// Where its record starts, bytes from the start of the BTF.
        offset: usize,
    },
    /// A type that leads nowhere, contains itself, or is larger than can be.
    #[error("malformed BTF: {what} (type {id})")]
    Malformed {
        /// What is wrong.
        what: &'static str,
        /// The type's id.
        id: u32,
    },
    /// No such struct, union or enum.
    #[error("this kernel's BTF has no type {name}")]
    NoType {
        /// Its name.
        name: String,
    },
    /// The struct is there, the member is not.
    #[error("this kernel has no field {path}: no member {member}")]
    NoMember {
        /// The path that was asked for.
        path: String,
        /// The part of the path that is missing.
        member: String,
    },
    /// Several types of that name, and they differ.
    #[error("{path} is ambiguous: this kernel's BTF has several, and they differ")]
    Ambiguous {
        /// The path or name that was asked for.
        path: String,
    },
}

impl BtfError {
    /// Whether the BTF is sound and just does not have what was asked for.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::NoType { .. } | Self::NoMember { .. })
    }
}

type Result<T, E = BtfError> = std::result::Result<T, E>;

/// Where a field lies in its struct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// From the start of the struct, bits.
    pub bit_offset: u32,
    /// Length, bits; 0 for a flexible array and for an empty struct.
    pub bit_size: u64,
    /// Whether it is a bit-field.
    pub is_bitfield: bool,
}

impl Field {
    /// From the start of the struct, bytes; `None` for a bit-field, whatever bit it begins at.
    pub fn byte_offset(&self) -> Option<u32> {
        (!self.is_bitfield && self.bit_offset.is_multiple_of(8)).then_some(self.bit_offset / 8)
    }

    /// Length, bytes; `None` for a bit-field.
    pub fn size(&self) -> Option<u64> {
        (!self.is_bitfield).then_some(self.bit_size / 8)
    }
}

/// The types of a kernel, or of one of its modules.
#[derive(Debug)]
pub struct Btf {
    data: Vec<u8>,
    /// Where the names are in `data`.
    strings: Range<usize>,
    /// Where in `data` each type's record starts; the first is that of `first_id`.
    records: Vec<u32>,
    /// Name offset and id of each named struct, union and enum.
    named: Vec<(u32, u32)>,
    first_id: u32,
    /// The name offset that `strings` starts at.
    first_string: u32,
    base: Option<Arc<Btf>>,
}

impl Btf {
    /// Parses the BTF of a kernel (/sys/kernel/btf/vmlinux).
    ///
    /// # Errors
    /// When `data` is not whole, little-endian BTF of kinds up to `BTF_KIND_ENUM64`.
    pub fn parse(data: impl Into<Vec<u8>>) -> Result<Self> {
        Self::parse_with(data.into(), None)
    }

    /// Parses the BTF of a module (/sys/kernel/btf/MODULE) of the kernel whose BTF is `base`.
    ///
    /// # Errors
    /// As [`Btf::parse`].
    pub fn parse_split(data: impl Into<Vec<u8>>, base: Arc<Btf>) -> Result<Self> {
        Self::parse_with(data.into(), Some(base))
    }

    fn parse_with(data: Vec<u8>, base: Option<Arc<Btf>>) -> Result<Self> {
        let (types, strings) = record::sections(&data)?;
        let (first_id, first_string) = base
            .as_deref()
            .map_or(Some((1, 0)), |base| base.end())
            .ok_or(BtfError::Malformed {
                what: "more types or names than ids",
                id: 0,
            })?;
        let mut records = Vec::with_capacity(types.len() / 32);
        let mut named = Vec::new();
        let mut at = types.start;
        let section = data.get(..types.end).unwrap_or_default();
        while at < types.end {
            let truncated = BtfError::Truncated {
                what: "type record",
                offset: at,
            };
            let record = section.get(at..).unwrap_or_default();
            let (Some(name), Some(info)) = (record::u32_at(record, 0), record::u32_at(record, 4))
            else {
                return Err(truncated);
            };
            let kind = record::kind_of(info).ok_or(BtfError::UnknownKind {
                kind: record::raw_kind(info),
                offset: at,
            })?;
            let len = RECORD_LEN + kind.extra_len(record::vlen(info));
            if record.len() < len {
                return Err(truncated);
            }
            let (Ok(offset), Ok(index)) = (u32::try_from(at), u32::try_from(records.len())) else {
                return Err(truncated);
            };
            let id = first_id.checked_add(index).ok_or(truncated)?;
            records.push(offset);
            if name != 0 && (kind.is_composite() || kind.is_enum()) {
                named.push((name, id));
            }
            at += len;
        }
        Ok(Self {
            data,
            strings,
            records,
            named,
            first_id,
            first_string,
            base,
        })
    }

    /// The first type id and name offset past this BTF's.
    fn end(&self) -> Option<(u32, u32)> {
        let types = u32::try_from(self.records.len()).ok()?;
        let strings = u32::try_from(self.strings.len()).ok()?;
        Some((
            self.first_id.checked_add(types)?,
            self.first_string.checked_add(strings)?,
        ))
    }

    /// Finds a field by its path, `struct.member[.member]`: through unnamed structs and unions as
    /// C does, and through typedefs and qualifiers, but not through pointers or arrays.
    ///
    /// # Errors
    /// [`BtfError::NoType`] and [`BtfError::NoMember`] when this BTF does not have it; others
    /// when there are several that differ, or the BTF is malformed.
    pub fn field(&self, path: &str) -> Result<Field> {
        let (root, members) = path.split_once('.').ok_or_else(|| BtfError::NoMember {
            path: path.to_owned(),
            member: String::new(),
        })?;
        self.agreed(root, path, Kind::is_composite, |btf, ty| {
            btf.field_of(ty, members, path)
        })
    }

    /// Size of a struct or union, bytes.
    ///
    /// # Errors
    /// As [`Btf::field`].
    pub fn size_of(&self, name: &str) -> Result<u32> {
        self.agreed(name, name, Kind::is_composite, |_, ty| Ok(ty.size_or_type))
    }

    /// The names and values of an enum, in the order of its declaration. Unsigned 64-bit values
    /// past `i64::MAX` come out negative.
    ///
    /// # Errors
    /// As [`Btf::field`].
    pub fn enum_values(&self, name: &str) -> Result<Vec<(String, i64)>> {
        self.agreed(name, name, Kind::is_enum, |btf, ty| {
            if ty.vlen == 0 {
                // A forward declaration.
                return Err(BtfError::NoType {
                    name: name.to_owned(),
                });
            }
            (0..ty.vlen).map(|i| btf.enum_value(ty, i)).collect()
        })
    }

    /// What `read` makes of the types called `name`: they must agree. This BTF's own types come
    /// before its base's, since a module's copy is the one its code was compiled with.
    fn agreed<T: PartialEq>(
        &self,
        name: &str,
        path: &str,
        is_kind: fn(Kind) -> bool,
        read: impl Fn(&Self, Type<'_>) -> Result<T>,
    ) -> Result<T> {
        let mut btf = self;
        let mut missing = None;
        loop {
            let mut found = None;
            for &(string, id) in &btf.named {
                if !btf.is_named(string, name.as_bytes()) {
                    continue;
                }
                let ty = btf.get(id)?;
                if !is_kind(ty.kind) {
                    continue;
                }
                match read(btf, ty) {
                    Ok(value) if found.as_ref().is_none_or(|f| *f == value) => found = Some(value),
                    Ok(_) => {
                        return Err(BtfError::Ambiguous {
                            path: path.to_owned(),
                        });
                    }
                    Err(error) if error.is_missing() => missing = Some(error),
                    Err(error) => return Err(error),
                }
            }
            if let Some(value) = found {
                return Ok(value);
            }
            match &btf.base {
                Some(base) => btf = base,
                None => {
                    return Err(missing.unwrap_or_else(|| BtfError::NoType {
                        name: name.to_owned(),
                    }));
                }
            }
        }
    }

    fn field_of(&self, root: Type<'_>, members: &str, path: &str) -> Result<Field> {
        let mut ty = root;
        let mut start = 0_u32;
        let mut parts = members.split('.').peekable();
        loop {
            let name = parts.next().unwrap_or_default();
            let found = if ty.kind.is_composite() {
                self.member(ty, name)?
            } else {
                None
            };
            let member = found.ok_or_else(|| BtfError::NoMember {
                path: path.to_owned(),
                member: name.to_owned(),
            })?;
            start = add(start, member.bit_offset, root.id)?;
            if parts.peek().is_none() {
                return self.finish(start, &member);
            }
            ty = self.resolve(member.type_id)?;
        }
    }

    /// Finds a member by name, in unnamed members too; its offset is from the start of `outer`.
    fn member(&self, outer: Type<'_>, name: &str) -> Result<Option<Member>> {
        let mut budget = MAX_MEMBERS;
        let mut unnamed = vec![(outer, 0_u32)];
        while let Some((ty, start)) = unnamed.pop() {
            for index in 0..ty.vlen {
                budget = budget.checked_sub(1).ok_or(BtfError::Malformed {
                    what: "struct contains itself",
                    id: outer.id,
                })?;
                let mut member = ty.member(index)?;
                if member.name != 0 {
                    if self.is_named(member.name, name.as_bytes()) {
                        member.bit_offset = add(start, member.bit_offset, ty.id)?;
                        return Ok(Some(member));
                    }
                } else {
                    let inner = self.resolve(member.type_id)?;
                    if inner.kind.is_composite() {
                        unnamed.push((inner, add(start, member.bit_offset, ty.id)?));
                    }
                }
            }
        }
        Ok(None)
    }

    /// The extent of a member whose struct starts such that the member is at bit `start`.
    fn finish(&self, start: u32, member: &Member) -> Result<Field> {
        if member.bit_size != 0 {
            return Ok(Field {
                bit_offset: start,
                bit_size: u64::from(member.bit_size),
                is_bitfield: true,
            });
        }
        let bytes = self.type_size(member.type_id)?;
        let bit_size = bytes.checked_mul(8).ok_or(BtfError::Malformed {
            what: "size overflows",
            id: member.type_id,
        })?;
        let ty = self.resolve(member.type_id)?;
        if ty.kind == Kind::Int {
            // Before kind_flag (v4.20), a bit-field was a member of an integer type made for it.
            let encoding = ty.word(0)?;
            let (shift, bits) = ((encoding >> 16) & 0xff, u64::from(encoding & 0xff));
            if shift != 0 || bits != bit_size {
                return Ok(Field {
                    bit_offset: add(start, shift, ty.id)?,
                    bit_size: bits,
                    is_bitfield: true,
                });
            }
        }
        Ok(Field {
            bit_offset: start,
            bit_size,
            is_bitfield: false,
        })
    }

    /// Size of any type, bytes.
    fn type_size(&self, id: u32) -> Result<u64> {
        let malformed = |what| BtfError::Malformed { what, id };
        let mut count = 1_u64;
        let mut ty = self.resolve(id)?;
        for _ in 0..MAX_CHAIN {
            let size = match ty.kind {
                Kind::Int
                | Kind::Struct
                | Kind::Union
                | Kind::Enum
                | Kind::Enum64
                | Kind::Float => u64::from(ty.size_or_type),
                Kind::Ptr => POINTER_SIZE,
                Kind::Array => {
                    count = count
                        .checked_mul(u64::from(ty.word(2)?))
                        .ok_or_else(|| malformed("size overflows"))?;
                    ty = self.resolve(ty.word(0)?)?;
                    continue;
                }
                _ => return Err(malformed("member of a type that has no size")),
            };
            return count
                .checked_mul(size)
                .ok_or_else(|| malformed("size overflows"));
        }
        Err(malformed("array contains itself"))
    }

    fn enum_value(&self, ty: Type<'_>, index: usize) -> Result<(String, i64)> {
        let words = if ty.kind == Kind::Enum64 { 3 } else { 2 };
        let name = self.string(ty.word(index * words)?, ty.id)?;
        let low = ty.word(index * words + 1)?;
        let value = if ty.kind == Kind::Enum64 {
            let high = ty.word(index * words + 2)?;
            ((u64::from(high) << 32) | u64::from(low)).cast_signed()
        } else if ty.kind_flag {
            i64::from(low.cast_signed())
        } else {
            i64::from(low)
        };
        Ok((String::from_utf8_lossy(name).into_owned(), value))
    }

    /// The type `id` stands for, typedefs and qualifiers followed.
    fn resolve(&self, id: u32) -> Result<Type<'_>> {
        let mut ty = self.get(id)?;
        for _ in 0..MAX_CHAIN {
            if !ty.kind.is_alias() {
                return Ok(ty);
            }
            ty = self.get(ty.size_or_type)?;
        }
        Err(BtfError::Malformed {
            what: "typedef of itself",
            id,
        })
    }

    fn get(&self, id: u32) -> Result<Type<'_>> {
        if let Some(base) = &self.base
            && id < self.first_id
        {
            return base.get(id);
        }
        let malformed = BtfError::Malformed {
            what: "reference to a type that is not there",
            id,
        };
        let record = id
            .checked_sub(self.first_id)
            .and_then(|index| self.records.get(index as usize))
            .and_then(|&at| self.data.get(at as usize..))
            .ok_or_else(|| malformed.clone())?;
        let (Some(info), Some(size_or_type)) =
            (record::u32_at(record, 4), record::u32_at(record, 8))
        else {
            return Err(malformed);
        };
        let kind = record::kind_of(info).ok_or_else(|| malformed.clone())?;
        let vlen = record::vlen(info);
        Ok(Type {
            id,
            kind,
            kind_flag: info >> 31 != 0,
            vlen,
            size_or_type,
            extra: record
                .get(RECORD_LEN..RECORD_LEN + kind.extra_len(vlen))
                .ok_or(malformed)?,
        })
    }

    /// The bytes from a name offset to the end of its section; the name ends at the first NUL.
    fn string_tail(&self, offset: u32) -> Option<&[u8]> {
        match offset.checked_sub(self.first_string) {
            Some(own) => self
                .data
                .get(self.strings.clone())
                .and_then(|strings| strings.get(own as usize..)),
            None => self.base.as_ref()?.string_tail(offset),
        }
    }

    fn string(&self, offset: u32, id: u32) -> Result<&[u8]> {
        self.string_tail(offset)
            .and_then(|tail| tail.split(|&b| b == 0).next())
            .ok_or(BtfError::Malformed {
                what: "name that is not there",
                id,
            })
    }

    fn is_named(&self, offset: u32, name: &[u8]) -> bool {
        self.string_tail(offset)
            .and_then(|tail| tail.strip_prefix(name))
            .is_some_and(|rest| rest.first() == Some(&0))
    }
}

fn add(a: u32, b: u32, id: u32) -> Result<u32> {
    a.checked_add(b).ok_or(BtfError::Malformed {
        what: "offset overflows",
        id,
    })
}
