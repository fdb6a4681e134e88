//! The ring that records go into.

use aya_ebpf::{
    helpers::generated::{bpf_ringbuf_output, bpf_ringbuf_query},
    macros::map,
    maps::RingBuf,
    programs::BtfTracePointContext,
};
use fwtrace_abi::{
    Counters, FLAG_STACK, RULE_INVALID, RULE_NONE, Record, SNAP_MAX, STACK_WORDS, Settings, UNKNOWN,
};

use crate::{
    flood,
    kernel::copy,
    scratch::{L2_MAX, Scratch},
    whole,
};

/// Stack words are copied in pieces: a read past the end of the stack fails as a whole.
const STACK_PIECE: usize = 16;
/// Wake the reader at most this often per CPU, nanoseconds; in between it polls.
const WAKE_INTERVAL: u64 = 1_000_000;
const BPF_RB_AVAIL_DATA: u64 = 0;
const BPF_RB_NO_WAKEUP: u64 = 1;
const BPF_RB_FORCE_WAKEUP: u64 = 2;

#[map]
static RING: RingBuf = RingBuf::with_byte_size(SIZE, 0);
/// Of the ring, bytes.
pub const SIZE: u32 = 4 * 1024 * 1024;
/// A record with all that can be behind it, and the ring's own header.
const LARGEST: u64 =
    (size_of::<Record>() + SNAP_MAX + L2_MAX as usize + STACK_WORDS * 8 + 16) as u64;

/// Bytes in the ring.
#[inline(always)]
pub fn waiting(settings: &Settings) -> u64 {
    if settings.wants_whole_packets() {
        return 0;
    }
    // SAFETY: the helper only reads the ring's positions.
    unsafe { bpf_ringbuf_query((&raw const RING).cast_mut().cast(), BPF_RB_AVAIL_DATA) }
}

/// Whether the ring has room for any record besides: if not, nobody needs to fill it in.
#[inline(always)]
pub fn has_room(used: u64) -> bool {
    used + LARGEST <= SIZE as u64
}

/// Puts record, packet and, if wanted, stack into the ring.
#[inline(always)]
pub fn send(
    ctx: &BtfTracePointContext,
    scratch: &mut Scratch,
    settings: &Settings,
    counters: &mut Counters,
    stack: u64,
) {
    // Apart from each other, for the verifier.
    if settings.wants_whole_packets() {
        whole::begin(ctx, scratch);
        // Or the compiler takes bounds of the captured length as given, which the verifier does not know.
        core::hint::black_box(&mut *scratch);
        if let Some(length) = append_stack(scratch, settings, stack) {
            whole::send(ctx, scratch, settings, counters, length);
        }
        return;
    }
    let Some(length) = append_stack(scratch, settings, stack) else {
        return;
    };
    let size = size_of::<Record>() as u64 + length as u64;
    let now = scratch.record.time;
    // One wakeup per CPU and millisecond: after one, the reader polls for longer than that.
    let flags = if now - scratch.last_wakeup >= WAKE_INTERVAL {
        scratch.last_wakeup = now;
        BPF_RB_FORCE_WAKEUP
    } else {
        BPF_RB_NO_WAKEUP
    };
    // SAFETY: `size` bytes from the start of `scratch` lie within record and data.
    let sent = unsafe {
        bpf_ringbuf_output(
            (&raw const RING).cast_mut().cast(),
            (&raw mut *scratch).cast(),
            size,
            flags,
        )
    };
    if sent == 0 {
        counters.sent += 1;
        flood::sent(&scratch.flood);
    } else {
        counters.full += 1;
    }
}

/// Puts the stack words behind the captured bytes, if they are wanted; the length of both.
#[inline(always)]
fn append_stack(scratch: &mut Scratch, settings: &Settings, stack: u64) -> Option<u32> {
    let mut length = scratch.record.captured;
    if length > SNAP_MAX as u32 {
        return None;
    }
    let unattributed =
        scratch.record.rule.kind == RULE_NONE || scratch.record.rule.kind == RULE_INVALID;
    if settings.want_stack != 0
        && unattributed
        && scratch.record.hook == UNKNOWN
        && scratch.record.reason == settings.netfilter_drop
    {
        scratch.record.flags |= FLAG_STACK;
        // Aligned, so that user space can read words.
        length = (length + 7) & !7;
        for piece in 0..STACK_WORDS / STACK_PIECE {
            let at = piece * STACK_PIECE * 8;
            // SAFETY: length <= SNAP_MAX, so the words end inside `data`.
            unsafe {
                let dst = (&raw mut scratch.data)
                    .cast::<u8>()
                    .add(length as usize + at);
                if !copy(dst, STACK_PIECE as u32 * 8, stack + at as u64) {
                    core::ptr::write_bytes(dst.cast::<u64>(), 0, STACK_PIECE);
                }
            }
        }
        length += STACK_WORDS as u32 * 8;
    }
    Some(length)
}
