//! Settings, and the memory of one CPU that a drop is worked on in. The kernel never runs the
//! program nested on a CPU (it counts a miss instead), so nobody else writes to it meanwhile.

use aya_ebpf::{
    macros::map,
    maps::{Array, PerCpuArray},
};
use fwtrace_abi::{
    CT_BYTES, PKTINFO_WINDOW, Record, SNAP_MAX, STACK_WORDS, STATE_BYTES, Settings, Site,
    TUPLE_LEN, Whole,
};

use crate::{filter::Headers, flood::Flood};

/// Longest link-layer header that goes with a packet.
pub const L2_MAX: u32 = 64;

#[map]
pub static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);

#[repr(C)]
pub struct Scratch {
    pub record: Record,
    /// The packet, then the stack words; the slack keeps masked indices inside.
    pub data: [u8; SNAP_MAX + L2_MAX as usize + STACK_WORDS * 8],
    /// What a packet that is sent whole has.
    pub whole: Whole,
    /// The packet's nf_hook_state, with slack for the last field's width; so is the next.
    pub state: [u8; STATE_BYTES as usize + 8],
    /// The packet's nf_conn.
    pub ct: [u8; CT_BYTES as usize + 2 * TUPLE_LEN],
    pub headers: Headers,
    /// The learnt site of this drop, if its `kind` says so.
    pub site: Site,
    /// Stack words that are searched for the packet's pktinfo.
    pub window: [u64; PKTINFO_WINDOW + 1],
    /// The skb and the `struct net` that it must go with.
    pub sought: (u64, u64),
    pub state_found: u64,
    /// Where in the window the skb stands first.
    pub place: u64,
    /// Address of the first captured byte.
    pub packet: u64,
    pub stack_pointer: u64,
    pub last_wakeup: u64,
    pub skipped: Skipped,
    pub flood: Flood,
    /// What per-CPU addresses are relative to here; 0: not known yet.
    pub per_cpu_offset: u64,
    /// For addresses that must become numbers.
    pub spill: u64,
}

/// The last drop that may have interrupted `drops`: the program in front of it writes it down, and `drops` strikes it out if it gets to see it.
#[repr(C)]
pub struct Skipped {
    /// Its sk_buff; 0 if there is none.
    pub skb: u64,
    /// It is in a watched namespace, as far as is known, and for a reason that is not only counted.
    pub here: u64,
    /// Where that program runs.
    pub stack_pointer: u64,
    /// Where `drops` ran last, or is about to in a process, by [`STACK_SHIFT`].
    pub last_stack: u64,
    /// `drops` has run here.
    pub ran: u64,
}

/// Addresses with the same bits above these are on the same kernel stack.
pub const STACK_SHIFT: u32 = 14;

#[map]
pub static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// This CPU's scratch memory.
#[inline(always)]
pub fn scratch() -> Option<&'static mut Scratch> {
    // SAFETY: see the module's comment; the map zeroed it.
    SCRATCH.get_ptr_mut(0).map(|s| unsafe { &mut *s })
}
