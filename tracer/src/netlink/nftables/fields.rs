//! The attributes of one nest by number.

use crate::netlink::attr::{Attr, AttrError, Attrs};

/// No nest that is read has a higher attribute number.
const COUNT: usize = 32;

/// The attributes of one nest by number; of several with one number the last counts, higher numbers are left out.
pub(super) struct Fields<'a>([Option<Attr<'a>>; COUNT]);

impl<'a> Fields<'a> {
    /// Errors: something in the nest is no attribute.
    pub(super) fn new(attrs: Attrs<'a>) -> Result<Self, AttrError> {
        let mut fields = [None; COUNT];
        for attr in attrs {
            let attr = attr?;
            if let Some(field) = fields.get_mut(usize::from(attr.kind)) {
                *field = Some(attr);
            }
        }
        Ok(Self(fields))
    }

    pub(super) fn get(&self, kind: u16) -> Option<Attr<'a>> {
        self.0.get(usize::from(kind)).copied().flatten()
    }

    pub(super) fn need(&self, kind: u16) -> Result<Attr<'a>, AttrError> {
        self.get(kind).ok_or(AttrError::Missing { kind })
    }

    pub(super) fn text(&self, kind: u16) -> Result<&'a str, AttrError> {
        self.need(kind)?.str()
    }

    pub(super) fn str(&self, kind: u16) -> Result<String, AttrError> {
        self.text(kind).map(str::to_owned)
    }

    pub(super) fn opt_str(&self, kind: u16) -> Result<Option<String>, AttrError> {
        self.get(kind)
            .map(|attr| attr.str().map(str::to_owned))
            .transpose()
    }

    pub(super) fn u8(&self, kind: u16) -> Result<u8, AttrError> {
        self.need(kind)?.u8()
    }

    pub(super) fn opt_u8(&self, kind: u16) -> Result<Option<u8>, AttrError> {
        self.get(kind).map(|attr| attr.u8()).transpose()
    }

    pub(super) fn opt_be16(&self, kind: u16) -> Result<Option<u16>, AttrError> {
        self.get(kind).map(|attr| attr.be16()).transpose()
    }

    pub(super) fn be32(&self, kind: u16) -> Result<u32, AttrError> {
        self.need(kind)?.be32()
    }

    pub(super) fn opt_be32(&self, kind: u16) -> Result<Option<u32>, AttrError> {
        self.get(kind).map(|attr| attr.be32()).transpose()
    }

    pub(super) fn be64(&self, kind: u16) -> Result<u64, AttrError> {
        self.need(kind)?.be64()
    }

    pub(super) fn opt_be64(&self, kind: u16) -> Result<Option<u64>, AttrError> {
        self.get(kind).map(|attr| attr.be64()).transpose()
    }

    /// The raw payload; empty when the attribute is not there.
    pub(super) fn raw(&self, kind: u16) -> Vec<u8> {
        self.get(kind)
            .map(|attr| attr.payload.to_vec())
            .unwrap_or_default()
    }
}
