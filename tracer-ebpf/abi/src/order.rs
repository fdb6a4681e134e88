//! In which order a hook calls its base chains and tables.

/// Functions of a hook that are told.
pub const LISTED: usize = 48;

/// [`Listed::kind`]: a base chain of nf_tables.
pub const LISTED_NFT: u64 = 1;
/// [`Listed::kind`]: a table of ip_tables or ip6_tables.
pub const LISTED_LEGACY: u64 = 2;

/// [`Listed::kind`]: connection tracking begins.
pub const LISTED_TRACKING: u64 = 3;
/// [`Listed::kind`]: addresses are translated; the chains and tables that follow may be called by that.
pub const LISTED_NAT: u64 = 4;

/// [`HookList::status`]: the list could not be read, or not to its end.
pub const LIST_UNREAD: u32 = 0;
/// [`HookList::status`]: all of it stands in `listed`.
pub const LIST_OK: u32 = 1;
/// [`HookList::status`]: the calling thread is in another netns.
pub const LIST_ELSEWHERE: u32 = 2;

/// What a hook calls.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// `LISTED_*`.
    pub kind: u64,
    /// Of nf_tables: the table's handle, then the chain's. Of ip_tables: the table's name, NUL-padded.
    pub words: [u64; 4],
}

/// What `hook_list` is asked, and what it answers.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HookList {
    /// Inode of the netns, which the calling thread must be in.
    pub netns: u32,
    /// NFPROTO_IPV4, NFPROTO_IPV6, NFPROTO_ARP, NFPROTO_BRIDGE or NFPROTO_NETDEV.
    pub pf: u32,
    /// The hook of that family: NF_INET_*, NF_ARP_*, NF_BR_*, NF_NETDEV_*.
    pub hook: u32,
    /// Of NFPROTO_NETDEV: index of the device, each of which has lists of its own.
    pub device: u32,
    /// Answer: `LIST_*`.
    pub status: u32,
    /// Answer: the ruleset's generation before the list was read.
    pub before: u32,
    /// Answer: and after.
    pub after: u32,
    /// Answer: how many of `listed` are in use. Functions of others are not told.
    pub count: u32,
    /// Work: the next place in the list.
    pub at: u32,
    /// Not used.
    pub pad: u32,
    /// Addresses of the functions of nf_tables; 0: not known.
    pub nft: [u64; 5],
    /// Likewise those of ip_tables.
    pub legacy: [u64; 2],
    /// The function that translates addresses, which has a list of its own.
    pub nat: u64,
    /// The function that connection tracking begins with.
    pub tracking: u64,
    /// Work: the device's place in the kernel's table of them, or the one that is looked at in its stead.
    pub node: u64,
    /// Work: the device, then the hook's `struct nf_hook_entries`.
    pub outer: u64,
    /// Work: the one that is read: that, or the one of `nat`.
    pub list: u64,
    /// Work: where to go on in `outer`.
    pub outer_at: u64,
    /// Answer: what the hook calls, in this order.
    pub listed: [Listed; LISTED],
}

const _: () = assert!(size_of::<Listed>() == 40);
const _: () = assert!(size_of::<HookList>() == 40 + 13 * 8 + LISTED * 40);
