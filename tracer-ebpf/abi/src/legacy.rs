//! Which rule of ip_tables or ip6_tables dropped: by the counter that moved on this CPU.
//!
//! The kernel hands the counters of a table's entries out in the order of the entries, from per-CPU
//! blocks of 4096 bytes (`xt_percpu_counter_alloc()`, net/netfilter/x_tables.c, v6.18). Of the blocks
//! that hold a counter of an entry that drops, the BPF programs keep an image per CPU.

/// Counters in a block: `XT_PCPU_BLOCK_SIZE / sizeof(struct xt_counters)`.
pub const BLOCK: usize = 256;
/// Blocks with terminals that a table may have.
pub const TABLE_BLOCKS: u32 = 64;
/// Terminals that a table may have.
pub const TERMINALS: u32 = BLOCK as u32 * TABLE_BLOCKS;
/// Tables of one family in a netns: raw, mangle, filter, security. The rules of nat do not drop, and
/// that table is called from another place.
pub const TABLES: usize = 4;
/// Candidates that go with a record.
pub const LEGACY_CANDIDATES: usize = 8;
/// Entries that have dropped lately and are looked at first, a table and CPU.
pub const RECENT: usize = 16;
/// `XT_TABLE_MAXNAMELEN` (include/uapi/linux/netfilter/x_tables.h, v6.18).
pub const TABLE_NAME: usize = 32;

/// Counters that are compared in one go.
pub const GROUP: usize = 32;

/// [`Block::hooks`]: it counts packets that user space hands back to the kernel, too.
pub const QUEUED: u8 = 1 << 5;
/// [`Block::hooks`]: bits of an entry that counts packets in a process's context (NF_INET_LOCAL_OUT,
/// NF_INET_POST_ROUTING, [`QUEUED`]), which may be interrupted between counting and dropping.
pub const LOCAL: u8 = 0b11000 | QUEUED;
/// [`Block::hooks`]: it answers the sender (REJECT) before the packet is dropped, and the answer may be
/// dropped meanwhile.
pub const ANSWERS: u8 = 1 << 6;
/// [`Block::groups`]: index for an unknown hook.
pub const ANY_HOOK: usize = 5;

/// [`LegacyEvidence::kind`]: nothing was looked at: no drop in a hook, or no table that is known there.
pub const LEGACY_NONE: u32 = 0;
/// [`LegacyEvidence::kind`]: the entry in `candidates[0]` dropped the packet.
pub const LEGACY_EXACT: u32 = 1;
/// [`LegacyEvidence::kind`]: one of `count` entries did, the first of which stand in `candidates`.
pub const LEGACY_AMBIGUOUS: u32 = 2;
/// [`LegacyEvidence::kind`]: no counter has moved.
pub const LEGACY_UNMOVED: u32 = 3;

/// [`LegacyEvidence::flags`]: a table on this hook is another one than the one that was primed.
pub const LEGACY_REPLACED: u32 = 1;
/// [`LegacyEvidence::flags`]: a table on this hook is not primed on this CPU.
pub const LEGACY_UNPRIMED: u32 = 2;
/// [`LegacyEvidence::flags`]: tables of ip_tables are hooked in here, and nothing else that could have
/// dropped in this place.
pub const LEGACY_ALONE: u32 = 4;
/// [`LegacyEvidence::flags`]: a table of ip_tables is hooked in here.
pub const LEGACY_HOOKED: u32 = 8;

/// An entry of a table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
pub struct LegacyCandidate {
    /// The [`TableRef::id`] of its table.
    pub id: u32,
    /// Its place among the table's entries, from 0.
    pub entry: u32,
}

/// What the counters say about a drop.
// Aligned, so that it can be copied by words.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
pub struct LegacyEvidence {
    /// `LEGACY_*` kinds.
    pub kind: u32,
    /// `LEGACY_*` flags.
    pub flags: u32,
    /// How many counters have moved.
    pub count: u32,
    /// Zero.
    pub pad: u32,
    /// The first of them.
    pub candidates: [LegacyCandidate; LEGACY_CANDIDATES],
}

/// `struct xt_counters` (include/uapi/linux/netfilter/x_tables.h, v6.18).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// What is known of a block of counters.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Block {
    /// Its per-CPU address, which `legacy_find` fills in.
    pub base: u64,
    /// For each hook, then for any: bit n: group n of the counters has one whose entry can be reached.
    pub groups: [u8; 8],
    /// Which block of its table it is: its first counter is that of entry `number * BLOCK`.
    pub number: u32,
    /// Zero.
    pub pad: u32,
    /// All ones where the entry drops all packets that it counts, else zero.
    pub mask: [u64; BLOCK],
    /// From which hooks the entry can be reached: bit n, hook n (NF_INET_*); [`QUEUED`], [`ANSWERS`].
    pub hooks: [u8; BLOCK],
}

/// A terminal, for `legacy_find`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TerminalRef {
    /// Offset of its entry in the table.
    pub offset: u32,
    /// Index of its block among the table's blocks that are known.
    pub block: u16,
    /// Its place in the block.
    pub place: u16,
}

/// A table that is primed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableRef {
    /// Address of the `struct xt_table`.
    pub table: u64,
    /// Address of the `struct xt_table_info` that was primed.
    pub private: u64,
    /// Another number for every priming; never 0.
    pub id: u32,
    /// Its first block.
    pub first: u32,
    /// Its number of blocks.
    pub blocks: u32,
    /// Hooks on which it can drop, a bit each.
    pub hooks: u32,
}

/// Key of the tables of one family in a netns.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TablesKey {
    /// Inode of the netns.
    pub netns: u32,
    /// NFPROTO_IPV4 or NFPROTO_IPV6.
    pub pf: u32,
}

/// The tables of one family in a netns; those with id 0 are none.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// The tables.
    pub tables: [TableRef; TABLES],
}

/// What `legacy_find` is asked, and what it answers.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Search {
    /// Inode of the netns, which the calling thread must be in.
    pub netns: u32,
    /// NFPROTO_IPV4 or NFPROTO_IPV6.
    pub pf: u32,
    /// The table's name, NUL-padded.
    pub name: [u8; TABLE_NAME],
    /// `xt_table_info.size`.
    pub size: u32,
    /// `xt_table_info.number`.
    pub number: u32,
    /// Offset of `counters` in an entry.
    pub counters: u32,
    /// How many terminals stand in the map `LEGACY_TERMINALS`.
    pub terminals: u32,
    /// The first of the blocks that are set aside for it.
    pub first: u32,
    /// How many there are.
    pub blocks: u32,
    /// Answer: `FIND_*` of `legacy_find`, `PRIME_*` of `legacy_prime`.
    pub status: u32,
    /// Zero.
    pub pad: u32,
    /// Answer: address of the table.
    pub table: u64,
    /// Answer: address of its `struct xt_table_info`.
    pub private: u64,
    /// Work: the `struct net`.
    pub net: u64,
}

/// [`Search::status`]: the table is not hooked in.
pub const FIND_NO_TABLE: u32 = 0;
/// [`Search::status`]: found, and all its counters are where they should be.
pub const FIND_OK: u32 = 1;
/// [`Search::status`]: the calling thread is in another netns.
pub const FIND_ELSEWHERE: u32 = 2;
/// [`Search::status`]: it has another size than the one that was read.
pub const FIND_CHANGED: u32 = 3;
/// [`Search::status`]: counters are not where they should be.
pub const FIND_STRANGE: u32 = 4;

/// [`Search::status`]: done.
pub const PRIME_OK: u32 = 1;
/// [`Search::status`]: a drop came in between; again.
pub const PRIME_BUSY: u32 = 2;
/// [`Search::status`]: the table has been replaced.
pub const PRIME_REPLACED: u32 = 3;
/// [`Search::status`]: the counters could not be read.
pub const PRIME_FAULT: u32 = 4;

const _: () = assert!(size_of::<LegacyEvidence>() == 16 + LEGACY_CANDIDATES * 8);
const _: () = assert!(size_of::<Count>() * BLOCK == 4096);
const _: () = assert!(BLOCK / GROUP == u8::BITS as usize);
const _: () = assert!(size_of::<Block>() == 24 + BLOCK * 9);
const _: () = assert!(size_of::<TableRef>() == 32);
const _: () = assert!(size_of::<TerminalRef>() == 8);
const _: () = assert!(size_of::<Search>() == 96);
const _: () = assert!(core::mem::offset_of!(Search, name).is_multiple_of(8));
