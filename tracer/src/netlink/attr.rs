//! Netlink attributes (TLV): zero-copy reader and writer.
//!
//! An attribute is `u16 length, u16 type` in host order (the length covers this header), the payload, and padding to four bytes.
//! What the payload means, its byte order included, is the caller's business: the accessors name the order they read.

use thiserror::Error;

/// Size of an attribute's header in bytes.
const HEADER: usize = 4;
/// The low 14 bits are the type; above them stand `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER` (include/uapi/linux/netlink.h).
const TYPE_MASK: u16 = 0x3fff;
const NLA_F_NESTED: u16 = 0x8000;

/// What is wrong with an attribute, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum AttrError {
    /// The header does not fit, or the stated length is less than a header or more than what is left.
    #[error("attribute at byte {offset} states {length} bytes, {left} are left")]
    Truncated {
        /// Offset of the attribute's header from the start of the outermost slice.
        offset: usize,
        /// The stated length, header included; 0 when there is no room for a header.
        length: usize,
        /// Bytes left in the enclosing slice.
        left: usize,
    },
    /// The payload has not the size that the accessor reads.
    #[error("attribute {kind} at byte {offset} has {length} bytes of payload, expected {expected}")]
    Size {
        /// Offset of the attribute's header from the start of the outermost slice.
        offset: usize,
        /// The attribute's type.
        kind: u16,
        /// Size of the payload.
        length: usize,
        /// Size that was expected.
        expected: usize,
    },
    /// The payload is no UTF-8 string.
    #[error("attribute {kind} at byte {offset} is not a string")]
    Text {
        /// Offset of the attribute's header from the start of the outermost slice.
        offset: usize,
        /// The attribute's type.
        kind: u16,
    },
    /// An attribute that the message cannot do without is not there.
    #[error("attribute {kind} is missing")]
    Missing {
        /// The attribute's type.
        kind: u16,
    },
    /// The writer was given more than the 65,535 bytes that an attribute can hold.
    #[error("attribute {kind} is longer than 65535 bytes")]
    TooLong {
        /// The attribute's type.
        kind: u16,
    },
}

/// One attribute, borrowed from the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr<'a> {
    /// The type, without the nested and byte-order flags (they are not reliable: nf_tables sends nests without them).
    pub kind: u16,
    /// The payload, without padding.
    pub payload: &'a [u8],
    /// Offset of the header from the start of the outermost slice.
    pub offset: usize,
}

impl<'a> Attr<'a> {
    fn array<const N: usize>(&self) -> Result<[u8; N], AttrError> {
        self.payload.try_into().map_err(|_| AttrError::Size {
            offset: self.offset,
            kind: self.kind,
            length: self.payload.len(),
            expected: N,
        })
    }

    /// The payload as one byte.
    pub fn u8(&self) -> Result<u8, AttrError> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// The payload as a big-endian 16-bit number.
    pub fn be16(&self) -> Result<u16, AttrError> {
        self.array().map(u16::from_be_bytes)
    }

    /// The payload as a big-endian 32-bit number.
    pub fn be32(&self) -> Result<u32, AttrError> {
        self.array().map(u32::from_be_bytes)
    }

    /// The payload as a big-endian 64-bit number.
    pub fn be64(&self) -> Result<u64, AttrError> {
        self.array().map(u64::from_be_bytes)
    }

    /// The payload as a 16-bit number in host order.
    pub fn u16(&self) -> Result<u16, AttrError> {
        self.array().map(u16::from_ne_bytes)
    }

    /// The payload as a 32-bit number in host order.
    pub fn u32(&self) -> Result<u32, AttrError> {
        self.array().map(u32::from_ne_bytes)
    }

    /// The payload as a 64-bit number in host order.
    pub fn u64(&self) -> Result<u64, AttrError> {
        self.array().map(u64::from_ne_bytes)
    }

    /// The payload as text up to its first NUL (or its end).
    pub fn str(&self) -> Result<&'a str, AttrError> {
        let text = self
            .payload
            .split(|&byte| byte == 0)
            .next()
            .unwrap_or_default();
        std::str::from_utf8(text).map_err(|_| AttrError::Text {
            offset: self.offset,
            kind: self.kind,
        })
    }

    /// The attributes in the payload; offsets in their errors count from the same start as this one's.
    pub fn nested(&self) -> Attrs<'a> {
        Attrs {
            rest: self.payload,
            offset: self.offset + HEADER,
        }
    }
}

/// The attributes of a slice, in order. After an error the iteration is over, because nothing tells where the next one starts.
#[derive(Debug, Clone)]
pub struct Attrs<'a> {
    rest: &'a [u8],
    offset: usize,
}

impl<'a> Attrs<'a> {
    /// Reads attributes from the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            offset: 0,
        }
    }

    /// Reads attributes that start `offset` bytes into `bytes` (after a protocol's own header); errors give offsets in `bytes`.
    pub fn after(bytes: &'a [u8], offset: usize) -> Self {
        Self {
            rest: bytes.get(offset..).unwrap_or_default(),
            offset,
        }
    }

    /// The first attribute of this type. Errors: what comes before it is malformed.
    pub fn find(mut self, kind: u16) -> Result<Option<Attr<'a>>, AttrError> {
        self.find_map(|attr| match attr {
            Ok(attr) if attr.kind != kind => None,
            other => Some(other),
        })
        .transpose()
    }
}

impl<'a> Iterator for Attrs<'a> {
    type Item = Result<Attr<'a>, AttrError>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = std::mem::take(&mut self.rest);
        if rest.is_empty() {
            return None;
        }
        let offset = self.offset;
        let Some((&[len0, len1, kind0, kind1], _)) = rest.split_first_chunk::<HEADER>() else {
            // The kernel tolerates up to three bytes of padding after the last attribute.
            return rest
                .iter()
                .any(|&byte| byte != 0)
                .then_some(Err(AttrError::Truncated {
                    offset,
                    length: 0,
                    left: rest.len(),
                }));
        };
        let length = usize::from(u16::from_ne_bytes([len0, len1]));
        let Some(payload) = rest.get(HEADER..length) else {
            return Some(Err(AttrError::Truncated {
                offset,
                length,
                left: rest.len(),
            }));
        };
        let padded = length.next_multiple_of(4);
        self.rest = rest.get(padded..).unwrap_or_default();
        self.offset = offset + padded;
        Some(Ok(Attr {
            kind: u16::from_ne_bytes([kind0, kind1]) & TYPE_MASK,
            payload,
            offset,
        }))
    }
}

/// Writes attributes into a buffer of its own.
///
/// A payload that is too long is remembered and told by [`Writer::finish`].
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
    error: Option<AttrError>,
}

impl Writer {
    /// An empty buffer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes that are no attribute, such as the protocol's own header; padded to four bytes.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self.pad();
        self
    }

    /// An attribute with this payload.
    pub fn bytes(&mut self, kind: u16, payload: &[u8]) -> &mut Self {
        let start = self.open(kind);
        self.bytes.extend_from_slice(payload);
        self.close(start, kind)
    }

    /// A one-byte attribute.
    pub fn u8(&mut self, kind: u16, value: u8) -> &mut Self {
        self.bytes(kind, &[value])
    }

    /// A big-endian 16-bit attribute.
    pub fn be16(&mut self, kind: u16, value: u16) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// A big-endian 32-bit attribute.
    pub fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// A big-endian 64-bit attribute.
    pub fn be64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// A 16-bit attribute in host order.
    pub fn u16(&mut self, kind: u16, value: u16) -> &mut Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// A 32-bit attribute in host order.
    pub fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// A text attribute; the terminating NUL is added.
    pub fn str(&mut self, kind: u16, text: &str) -> &mut Self {
        let start = self.open(kind);
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.push(0);
        self.close(start, kind)
    }

    /// An attribute (with `NLA_F_NESTED`) whose payload is what `fill` writes.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.open(kind | NLA_F_NESTED);
        fill(self);
        self.close(start, kind)
    }

    /// The bytes written so far; the writer is empty afterwards. Errors: [`AttrError::TooLong`].
    pub fn finish(&mut self) -> Result<Vec<u8>, AttrError> {
        let bytes = std::mem::take(&mut self.bytes);
        match self.error.take() {
            None => Ok(bytes),
            Some(error) => Err(error),
        }
    }

    fn open(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0, 0]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        start
    }

    fn close(&mut self, start: usize, kind: u16) -> &mut Self {
        match u16::try_from(self.bytes.len() - start) {
            Ok(length) => self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes()),
            Err(_) => self.error = Some(AttrError::TooLong { kind }),
        }
        self.pad();
        self
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_it_wrote() {
        let mut writer = Writer::new();
        writer.str(1, "filter").be32(2, 7).nest(3, |w| {
            w.u8(1, 9).be64(2, 1 << 40);
        });
        let bytes = writer.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let attrs: Vec<Attr<'_>> = Attrs::new(&bytes).map(|attr| attr.unwrap()).collect();
        assert_eq!(attrs.len(), 3);
        assert_eq!((attrs[0].kind, attrs[0].str().unwrap()), (1, "filter"));
        assert_eq!(attrs[1].be32().unwrap(), 7);
        let inner: Vec<Attr<'_>> = attrs[2].nested().map(|attr| attr.unwrap()).collect();
        assert_eq!(
            (
                attrs[2].kind,
                inner[0].u8().unwrap(),
                inner[1].be64().unwrap()
            ),
            (3, 9, 1 << 40)
        );
        assert_eq!(inner[1].offset, attrs[2].offset + 4 + 8);
        assert_eq!(Attrs::new(&bytes).find(2).unwrap().unwrap().be32(), Ok(7));
        assert_eq!(Attrs::new(&bytes).find(9), Ok(None));
    }

    #[test]
    fn errors_say_where() {
        let mut bytes = Writer::new().be32(1, 1).be32(2, 2).finish().unwrap();
        bytes[8] = 200;
        let read: Vec<_> = Attrs::new(&bytes).collect();
        assert_eq!(
            read[1],
            Err(AttrError::Truncated {
                offset: 8,
                length: 200,
                left: 8
            })
        );
        assert_eq!(read.len(), 2);
        let attr = read[0].unwrap();
        assert_eq!(
            attr.be64(),
            Err(AttrError::Size {
                offset: 0,
                kind: 1,
                length: 4,
                expected: 8
            })
        );
        assert_eq!(
            Attr {
                kind: 5,
                payload: b"\xff",
                offset: 3
            }
            .str(),
            Err(AttrError::Text { offset: 3, kind: 5 })
        );
    }

    #[test]
    fn a_length_below_the_header_is_an_error() {
        assert!(matches!(
            Attrs::new(&[3, 0, 1, 0]).next(),
            Some(Err(AttrError::Truncated { length: 3, .. }))
        ));
        assert!(matches!(
            Attrs::new(&[0, 0, 0, 0]).next(),
            Some(Err(AttrError::Truncated { length: 0, .. }))
        ));
    }

    #[test]
    fn too_long_is_an_error_at_the_end() {
        let mut writer = Writer::new();
        writer.bytes(4, &vec![0; 70_000]).be32(1, 1);
        assert_eq!(writer.finish(), Err(AttrError::TooLong { kind: 4 }));
    }

    proptest! {
        #[test]
        fn never_panics_and_ends(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            fn walk(attrs: Attrs<'_>, depth: usize) -> usize {
                attrs.take(1000).map(|attr| match attr {
                    Ok(attr) if depth < 5 => {
                        let _ = (attr.u8(), attr.be16(), attr.be32(), attr.be64(), attr.u32(), attr.str());
                        1 + walk(attr.nested(), depth + 1)
                    }
                    _ => 1,
                }).sum()
            }
            prop_assert!(walk(Attrs::new(&bytes), 0) <= bytes.len());
        }
    }
}
