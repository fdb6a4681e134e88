//! One datum that an evaluation can read, and its value.

use std::borrow::Cow;

use super::xt::XtField;
pub use crate::event::DoubtKind;
use crate::ruleset::expr::PayloadBase;

/// One datum. Its bytes are what nf_tables puts into registers: network order for packet bytes, host order for integers of meta and ct.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(
    missing_docs,
    reason = "the fields are the attributes of the kernel's NFTA_* enums, by their names there"
)]
pub enum Field {
    /// Packet bytes.
    Payload {
        base: PayloadBase,
        offset: u32,
        len: u32,
    },
    /// `NFT_META_*`.
    Meta(u32),
    /// `NFT_CT_*`.
    Ct { key: u32, direction: Option<u8> },
    /// An extension header or option; see [`crate::ruleset::expr::Expr::Exthdr`].
    Exthdr {
        op: u32,
        kind: u8,
        offset: u32,
        len: u32,
        flags: u32,
    },
    /// `NFT_FIB_RESULT_*` and flags.
    Fib { result: u32, flags: u32 },
    /// `NFT_RT_*`.
    Rt(u32),
    /// `NFT_SOCKET_*`.
    Socket { key: u32, level: Option<u32> },
    /// The sender's operating system.
    Osf { ttl: u8, flags: u32 },
    /// `NFT_XFRM_KEY_*`.
    Xfrm { key: u32, direction: u8, spnum: u32 },
    /// `NFT_TUNNEL_*`.
    Tunnel { key: u32, mode: u32 },
    /// The symmetric flow hash (`__skb_get_hash_symmetric()`).
    SymmetricHash,
    /// [`Field::Ct`] in a chain that comes before connection tracking.
    CtEarly { key: u32, direction: Option<u8> },
    /// [`Field::Payload`] in a chain that comes before the hook's address translation, in a packet that was taken after it.
    BeforeNat {
        base: PayloadBase,
        offset: u32,
        len: u32,
    },
    /// Whether the connection's addresses are translated. One byte.
    Translated,
    /// Whether the packet walks the chains of type nat, which only the first packet of a connection does: of the hooks that translate
    /// sources, or destinations. One byte.
    NatWalk { source: bool },
    /// When the rules ran: what [`super::clock`] makes of it.
    Clock,
    /// What xtables' matches need beside these.
    Xt(XtField),
}

/// Up to 64 bytes: what all registers hold.
#[derive(Clone, Copy)]
pub struct Bytes {
    len: u8,
    /// Zeros after the end.
    data: [u8; Self::MAX],
}

impl PartialEq for Bytes {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for Bytes {}

impl std::hash::Hash for Bytes {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        state.write_u8(self.len);
        state.write(self.as_slice());
    }
}

impl Bytes {
    /// The most bytes.
    pub const MAX: usize = 64;

    /// A copy of the first 64 of these bytes.
    pub fn new(bytes: &[u8]) -> Self {
        let len = bytes.len().min(Self::MAX);
        let mut data = [0; Self::MAX];
        data[..len].copy_from_slice(&bytes[..len]);
        Self {
            len: len as u8,
            data,
        }
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.data[..usize::from(self.len)]
    }

    /// The first `len` bytes, zeros where there are fewer.
    pub(super) fn padded(&self, len: usize) -> &[u8] {
        &self.data[..len.min(Self::MAX)]
    }

    /// The first 16 bytes as a number, the first byte highest, zeros after the end.
    pub fn wide(&self) -> u128 {
        let mut first = [0; 16];
        first.copy_from_slice(&self.data[..16]);
        u128::from_be_bytes(first)
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for byte in self.as_slice() {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// Why something is not known.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reason {
    /// What is not known.
    pub kind: DoubtKind,
    /// In words: "the bytes were not captured".
    pub text: Cow<'static, str>,
}

impl Reason {
    /// Information is missing.
    pub const fn missing(text: &'static str) -> Self {
        Self {
            kind: DoubtKind::Missing,
            text: Cow::Borrowed(text),
        }
    }

    /// It depends on a state that the packet does not show.
    pub const fn stateful(text: &'static str) -> Self {
        Self {
            kind: DoubtKind::State,
            text: Cow::Borrowed(text),
        }
    }

    /// A rule has changed it, and the packet shows only what it was in the end.
    pub const fn rewritten(text: &'static str) -> Self {
        Self {
            kind: DoubtKind::Rewritten,
            text: Cow::Borrowed(text),
        }
    }

    /// It depends on which of two chains comes first.
    pub const fn order(text: &'static str) -> Self {
        Self {
            kind: DoubtKind::Order,
            text: Cow::Borrowed(text),
        }
    }

    /// The same with words made at run time.
    pub fn new(kind: DoubtKind, text: String) -> Self {
        Self {
            kind,
            text: Cow::Owned(text),
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// The value of a [`Field`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Value {
    /// These bytes.
    Bytes(Bytes),
    /// It is not there: whoever asks for it in nf_tables breaks the rule (the end of the packet, no device, no connection).
    Break,
    /// Not known, and neither is whether it is there.
    Unknown(Reason),
}

impl Value {
    /// These bytes.
    pub fn bytes(bytes: &[u8]) -> Self {
        Self::Bytes(Bytes::new(bytes))
    }

    /// A number of 32 bits in host order.
    pub fn u32(value: u32) -> Self {
        Self::bytes(&value.to_ne_bytes())
    }

    /// One byte, as `nft_reg_store8()` leaves a register: the rest of its four bytes is zero.
    pub fn u8(value: u8) -> Self {
        Self::bytes(&[value, 0, 0, 0])
    }

    /// 16 bits in host order, as `nft_reg_store16()` leaves a register.
    pub fn u16(value: u16) -> Self {
        let [a, b] = value.to_ne_bytes();
        Self::bytes(&[a, b, 0, 0])
    }

    /// 16 bits in network order, likewise.
    pub fn be16(value: u16) -> Self {
        let [a, b] = value.to_be_bytes();
        Self::bytes(&[a, b, 0, 0])
    }

    /// The bytes, if known and there.
    pub fn known(&self) -> Option<&[u8]> {
        match self {
            Self::Bytes(bytes) => Some(bytes.as_slice()),
            Self::Break | Self::Unknown(_) => None,
        }
    }
}
