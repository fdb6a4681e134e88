//! In a flood: drops of one flow by one rule are counted, and now and then a record stands for them, so that the ring has room for everything else.
//!
//! It begins on a CPU when the reader does not keep up, and ends when few drops were counted for a while; then, for a while, records still take
//! over what was counted. What is counted is the same flow as an earlier record in everything that tells the rule: the kernel's own evidence is part
//! of the key, and where the kernel does not name the rule, each drop by netfilter is sent.
//!
//! Times are in jiffies, of 1 to 10 ms (`CONFIG_HZ`): the clock would cost more to read than the rest of this.

use aya_ebpf::{helpers::generated::bpf_jiffies64, macros::map, maps::PerCpuArray};
use fwtrace_abi::Settings;

use crate::{
    kernel::{copy, get, set, typed},
    ring,
    scratch::{Scratch, scratch},
    uapi::{ETH_P_IP, ETH_P_IPV6},
};

/// A flood begins with so many bytes in the ring.
const HIGH: u64 = ring::SIZE as u64 / 4 * 3;
/// It goes on if in this time so many drops were counted.
const WINDOW: u64 = 64;
const MANY: u64 = 5000;
/// A flow has a record in this time.
const INTERVAL: u64 = 4;
/// What was counted longer ago is not put down to a new record: its key may mean something else by then.
const STALE: u64 = 512;
/// In a flood the ring is looked at once in so many drops.
const OFTEN: u64 = 16;
/// Flows a CPU. A power of two.
const FLOWS: u32 = 256;
/// Words of a key: what the caller says of the drop, then the addresses, ports and protocol.
const WORDS: usize = SAID + 5;
const SAID: usize = 7;

/// [`Flood::tide`]: there is a flood.
const FLOOD: u64 = 1;
/// [`Flood::tide`]: there was one.
const EBB: u64 = 2;

/// What is known of this CPU's flood, and of the drop that is worked on.
#[repr(C)]
pub struct Flood {
    tide: u64,
    /// It was looked at, for this drop.
    looked: u64,
    /// How often that was.
    looks: u64,
    /// Bytes in the ring, lately.
    used: u64,
    /// There may be no room in the ring.
    full: u64,
    /// What the tide is, where flows are looked at.
    on: u64,
    /// When its window, or the ebb, began.
    began: u64,
    /// Drops counted since.
    counted: u64,
    /// When this drop was looked at.
    now: u64,
    /// The place of its flow, plus one; 0: it has none.
    place: u64,
    /// First, and how many bytes there are, of its network header.
    packet: u64,
    length: u64,
    key: [u64; WORDS],
    header: [u64; 6],
}

/// A flow, by the last record of it that was sent.
#[repr(C)]
struct Flow {
    key: [u64; WORDS],
    /// When.
    sent: u64,
    /// Drops since.
    more: u64,
}

#[map]
static FLOOD_FLOWS: PerCpuArray<Flow> = PerCpuArray::with_max_entries(FLOWS, 0);

/// What tells which rule it was, as far as the kernel says so.
pub struct Evidence {
    pub net: u64,
    pub location: u64,
    pub reason: u32,
    pub hook: u8,
    /// The rule: of nf_tables, its stack slots and the generation; of ip_tables, table and entry.
    pub rule: [u64; 3],
}

/// Nothing is known of the drop that comes now.
#[inline(always)]
pub fn begin(flood: &mut Flood) {
    set!(flood.place, 0);
    set!(flood.looked, 0);
    set!(flood.full, 0);
    set!(flood.on, 0);
}

/// Looks at the ring, and whether this CPU is in a flood, or was lately. What is found goes through memory: in registers, the verifier would follow
/// the rest of the program for each of it.
#[inline(always)]
pub fn look(flood: &mut Flood, settings: &Settings) {
    set!(flood.looked, 1);
    set!(flood.looks, get!(flood.looks) + 1);
    if flood.tide != FLOOD || flood.looks % OFTEN == 0 {
        set!(flood.used, ring::waiting(settings));
    }
    let used = get!(flood.used);
    set!(flood.full, !ring::has_room(used) as u64);
    set!(flood.on, turn(flood, settings, used));
}

/// Whether [`look`] has been called.
#[inline(always)]
pub fn is_looked(flood: &Flood) -> bool {
    get!(flood.looked) != 0
}

/// Whether the ring may have no room for a record.
#[inline(always)]
pub fn is_full(flood: &Flood) -> bool {
    get!(flood.full) != 0
}

/// Whether there is a flood here, or was lately.
#[inline(always)]
pub fn is_on(flood: &Flood) -> bool {
    get!(flood.on) != 0
}

/// [`Flood::tide`] from now on, with `used` bytes in the ring; 0 if nothing is to be counted.
#[inline(always)]
fn turn(flood: &mut Flood, settings: &Settings, used: u64) -> u64 {
    if settings.sampling == 0 || flood.tide == 0 && used < HIGH {
        return 0;
    }
    // SAFETY: a helper without arguments.
    flood.now = unsafe { bpf_jiffies64() };
    let since = flood.now - flood.began;
    let tide = match flood.tide {
        FLOOD if since < WINDOW => return FLOOD,
        _ if used >= HIGH => FLOOD,
        FLOOD if flood.counted >= MANY => FLOOD,
        FLOOD => EBB,
        EBB if since < STALE => return EBB,
        _ => 0,
    };
    flood.tide = tide;
    flood.began = flood.now;
    flood.counted = 0;
    tide
}

/// Counts the drop if in this flood a record of its flow was sent just now, or if there is no room for one. If not, [`stands_for`] and [`sent`]
/// will know its flow.
#[inline(always)]
pub fn count(scratch: &mut Scratch, skb: u64, evidence: &Evidence) -> bool {
    let protocol = u16::from_be(typed!(skb, skb_protocol, u16));
    if protocol != ETH_P_IP && protocol != ETH_P_IPV6 {
        return false;
    }
    let network = typed!(skb, skb_network_header, u16) as u32;
    let tail = typed!(skb, skb_tail, u32);
    if tail <= network {
        return false;
    }
    let flood = &mut scratch.flood;
    set!(flood.packet, typed!(skb, skb_head, u64) + network as u64);
    set!(flood.length, (tail - network) as u64);
    let said = [
        evidence.net,
        evidence.location,
        evidence.rule[0],
        evidence.rule[1],
        evidence.rule[2],
        (evidence.reason as u64) << 32
            // New, established, untracked: not which connection.
            | (typed!(skb, skb_nfct, u64) & 7) << 24
            | (evidence.hook as u64) << 16
            | protocol as u64,
        (typed!(skb, skb_iif, u32) as u64) << 32
            | typed!(typed!(skb, skb_dev, u64), dev_ifindex, u32) as u64,
    ];
    for (word, value) in said.into_iter().enumerate() {
        // SAFETY: within the key.
        unsafe { core::ptr::write_volatile(&raw mut flood.key[word], value) };
    }
    look_up() != 0
}

/// The same with the key's first words written. A function of its own: it is called from two places.
#[inline(never)]
fn look_up() -> u32 {
    let Some(scratch) = scratch() else { return 0 };
    let flood = &mut scratch.flood;
    if !headers(flood) {
        return 0;
    }
    let mut hash: u64 = 0;
    for at in 0..WORDS {
        // In place: the compiler would copy the key, and clear the copy first, byte by byte. SAFETY: within the key.
        let word = unsafe { core::ptr::read_volatile(&raw const flood.key[at]) };
        // Odd factors: none waits for another's product.
        let factor = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(2 * at as u64 + 1);
        hash = hash.wrapping_add((word ^ word >> 32).wrapping_mul(factor));
    }
    let first = (hash >> 40) as u32 & (FLOWS - 1);
    // It may stand in one of two places.
    let second = first ^ 1;
    let (Some(one), Some(other)) = (flow(first), flow(second)) else {
        return 0;
    };
    let flow = if is_same(one, flood) {
        flood.place = first as u64 + 1;
        one
    } else if is_same(other, flood) {
        flood.place = second as u64 + 1;
        other
    } else {
        // Rather over one of which nothing would be forgotten.
        let over = one.more != 0 && (other.more == 0 || other.sent < one.sent);
        flood.place = if over { second } else { first } as u64 + 1;
        return 0;
    };
    let due = flood.tide == EBB || flood.now - flow.sent >= INTERVAL;
    if due && flood.full == 0 {
        return 0;
    }
    flow.more += 1;
    flood.counted += 1;
    1
}

#[inline(always)]
fn is_same(flow: &Flow, flood: &Flood) -> bool {
    let mut different = 0;
    for i in 0..WORDS {
        different |= flow.key[i] ^ flood.key[i];
    }
    different == 0
}

/// Puts addresses, ports and protocol behind what the caller has said. False where they do not stand in their usual places.
#[inline(always)]
fn headers(flood: &mut Flood) -> bool {
    let v4 = flood.key[SAID - 2] as u16 == ETH_P_IP;
    // With the first four bytes behind the header.
    let length: u32 = if v4 { 24 } else { 44 };
    if flood.length < length as u64 || !copy((&raw mut flood.header).cast(), length, flood.packet) {
        return false;
    }
    let header = &raw const flood.header;
    // SAFETY: within the header.
    let word =
        |at: usize| u64::from_be(unsafe { core::ptr::read_volatile(header.cast::<u64>().add(at)) });
    let (protocol, behind) = if v4 {
        // No options; later fragments have no ports.
        let later = word(0) & 0x1fff != 0;
        if word(0) >> 56 != 0x45 || later {
            return false;
        }
        flood.key[SAID] = word(1) & 0xffff_ffff | (word(2) & 0xffff_ffff_0000_0000);
        flood.key[SAID + 1] = 0;
        flood.key[SAID + 2] = 0;
        flood.key[SAID + 3] = 0;
        (word(1) >> 48 & 0xff, word(2) as u32)
    } else {
        for at in 0..4 {
            flood.key[SAID + at] = word(1 + at);
        }
        (word(0) >> 8 & 0xff, (word(5) >> 32) as u32)
    };
    let ports = match protocol {
        // TCP, UDP, DCCP, SCTP, UDP-Lite.
        6 | 17 | 33 | 132 | 136 => behind,
        // ICMP: type and code, no checksum.
        1 | 58 => behind >> 16,
        // IPv6 extension headers: what is behind them is not looked for.
        0 | 43 | 44 | 51 | 60 | 135 if !v4 => return false,
        _ => 0,
    };
    flood.key[SAID + 4] = protocol << 32 | ports as u64;
    true
}

/// How many drops a record of this one stands for.
#[inline(always)]
pub fn stands_for(flood: &Flood) -> u64 {
    match known(flood) {
        Some(flow) if is_same(flow, flood) && flood.now - flow.sent < STALE => 1 + flow.more,
        _ => 1,
    }
}

/// No other drop is to be put down to this one.
#[inline(always)]
pub fn forget(flood: &mut Flood) {
    set!(flood.place, 0);
}

/// A record of this drop has been sent.
#[inline(always)]
pub fn sent(flood: &Flood) {
    let Some(flow) = known(flood) else { return };
    for i in 0..WORDS {
        // SAFETY: within the keys.
        unsafe { core::ptr::write_volatile(&raw mut flow.key[i], flood.key[i]) };
    }
    flow.sent = flood.now;
    flow.more = 0;
}

#[inline(always)]
fn known(flood: &Flood) -> Option<&'static mut Flow> {
    flow((flood.place as u32).checked_sub(1)?)
}

/// The flow in a place. Whoever has two takes two places.
#[inline(always)]
fn flow(place: u32) -> Option<&'static mut Flow> {
    let flow = FLOOD_FLOWS.get_ptr_mut(place)?;
    // SAFETY: a per-CPU map value.
    Some(unsafe { &mut *flow })
}
