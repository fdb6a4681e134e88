//! Sending whole packets, paged parts and lists of fragments included: asked for by a snaplen above [`SNAP_MAX`].
//!
//! The ring's helpers take linear memory only. `bpf_skb_output` walks an sk_buff as the network stack does, but writes to perf
//! buffers; so in this mode the records go there too.

use aya_ebpf::{
    EbpfContext as _, helpers::generated::bpf_skb_output, macros::map, maps::PerfEventByteArray,
    programs::BtfTracePointContext,
};
use fwtrace_abi::{
    Counters, FLAG_WHOLE, Record, SAMPLE_MAX, SNAP_MAX, STACK_WORDS, Settings, Whole,
};

use crate::{kernel::typed, scratch::Scratch};

const BPF_F_CURRENT_CPU: u64 = 0xffff_ffff;

/// Records and packets, a buffer a processor.
#[map]
static WHOLE: PerfEventByteArray = PerfEventByteArray::new(0);

/// Leaves of the capture what stands before `skb->data`: from there on the helper copies. A packet whose data does not begin in the
/// capture stays as it is.
#[inline(always)]
pub fn begin(ctx: &BtfTracePointContext, scratch: &mut Scratch) {
    let skb = ctx.arg::<u64>(0);
    let head = typed!(skb, skb_head, u64);
    let data = typed!(skb, skb_data, u64);
    let start = scratch.packet - head;
    let before = (data - head).wrapping_sub(start);
    scratch.record.flags |= FLAG_WHOLE;
    if before > scratch.record.captured as u64 {
        scratch.whole = Whole { len: 0, bytes: 0 };
        return;
    }
    scratch.record.captured = before as u32;
    let len = typed!(skb, skb_len, u32);
    scratch.whole = Whole {
        len: before as u32 + len,
        bytes: len,
    };
}

/// Sends the record, `length` bytes behind it, what is known of the whole, and as much of the packet as was asked for.
#[inline(always)]
pub fn send(
    ctx: &BtfTracePointContext,
    scratch: &mut Scratch,
    settings: &Settings,
    counters: &mut Counters,
    length: u32,
) {
    // Through a box: the compiler knows the bound and would leave out what the verifier needs to see.
    let length = (core::hint::black_box(length as u64) + 7) & !7;
    if length > (SNAP_MAX + STACK_WORDS * 8) as u64 {
        return;
    }
    let meta = size_of::<Record>() as u64 + length + size_of::<Whole>() as u64;
    let mut bytes = scratch.whole.bytes;
    let wanted = settings.snaplen + scratch.record.l2_len as u32;
    if bytes > wanted {
        bytes = wanted;
    }
    let room = SAMPLE_MAX - meta as u32;
    if bytes > room {
        bytes = room;
    }
    scratch.whole.bytes = bytes;
    // SAFETY: `length` bytes of `data` are in use, and it has room for eight more.
    unsafe {
        let to = (&raw mut scratch.data).cast::<u8>().add(length as usize);
        core::ptr::write_volatile(to.cast::<Whole>(), scratch.whole);
    }
    // SAFETY: the tracepoint's first argument, which the helper wants as it is; `meta` bytes from the start of `scratch` lie
    // within record and data.
    let sent = unsafe {
        let skb = core::ptr::read_volatile(ctx.as_ptr().cast::<*mut core::ffi::c_void>());
        bpf_skb_output(
            skb,
            (&raw const WHOLE).cast_mut().cast(),
            (bytes as u64) << 32 | BPF_F_CURRENT_CPU,
            (&raw mut *scratch).cast(),
            meta,
        )
    };
    if sent == 0 {
        counters.sent += 1;
    } else {
        counters.full += 1;
    }
}
