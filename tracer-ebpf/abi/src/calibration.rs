//! What the calibration program reports about one drop of a packet of fwtrace's own.

/// Words of stack above the tracepoint's arguments that calibration looks at.
pub const SCAN_WORDS: usize = 128;
/// Words recognised at the most, of each kind.
pub const CANDIDATES: usize = 32;

/// A stack word that is the address of a rule header in a live chain's blob.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
pub struct Candidate {
    /// Which word.
    pub slot: u32,
    /// 1 if the header is the chain's end marker.
    pub is_last: u32,
    /// Handle in the header.
    pub handle: u64,
    /// Handle in the header before it; 0 if it is the first.
    pub previous: u64,
    /// Address of the chain.
    pub chain: u64,
    /// `nft_chain.handle`.
    pub chain_handle: u64,
}

/// One drop in the calibration's network namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
pub struct Calibration {
    /// Return address of the caller that freed the packet.
    pub location: u64,
    /// Drop reason.
    pub reason: u32,
    /// `sk_buff.mark`: which scene the packet belongs to.
    pub mark: u32,
    /// Words that could be read.
    pub words: u32,
    /// Zero.
    pub pad: u32,
    /// How many of `rules` are in use.
    pub rule_count: u32,
    /// How many of `pktinfo` are in use.
    pub pktinfo_count: u32,
    /// The stack.
    pub word: [u64; SCAN_WORDS],
    /// Words that are rule headers.
    pub rules: [Candidate; CANDIDATES],
    /// Words where a `struct nft_pktinfo` of this very packet begins: the skb, then its hook state.
    pub pktinfo: [u32; CANDIDATES],
}
