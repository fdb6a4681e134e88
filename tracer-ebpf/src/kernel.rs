//! Reading kernel memory at offsets known only at run time.

use aya_ebpf::helpers::generated::{bpf_probe_read_kernel, bpf_probe_read_kernel_str};
use fwtrace_abi::{ABSENT, Layout};

/// Offsets of the running kernel; injected before the programs are loaded.
#[unsafe(no_mangle)]
pub static LAYOUT: Layout = Layout::UNRESOLVED;

/// The offset of a kernel field; `ABSENT` if this kernel has none.
macro_rules! offset {
    ($field:ident) => {
        // SAFETY: a static; volatile because user space changes it before load.
        unsafe { core::ptr::read_volatile(&raw const $crate::kernel::LAYOUT.$field) }
    };
}
pub(crate) use offset;

/// Reads a field of a map value that another program may have written while this one was interrupted.
macro_rules! get {
    ($base:ident.$field:ident) => {
        // SAFETY: a field of a map value.
        unsafe { core::ptr::read_volatile(&raw const $base.$field) }
    };
}
pub(crate) use get;

/// Writes such a field.
macro_rules! set {
    ($base:ident.$field:ident, $value:expr) => {{
        let value = $value;
        // SAFETY: a field of a map value.
        unsafe { core::ptr::write_volatile(&raw mut $base.$field, value) }
    }};
}
pub(crate) use set;

/// Copies `size` bytes from kernel memory at `src`; false if it is not mapped.
#[inline(always)]
pub fn copy(dst: *mut u8, size: u32, src: u64) -> bool {
    // SAFETY: the helper checks `src`; the verifier checks `dst` and `size`.
    unsafe { bpf_probe_read_kernel(dst.cast(), size, src as *const _) == 0 }
}

/// Copies a NUL-terminated string, cut to `size`.
#[inline(always)]
pub fn copy_str(dst: *mut u8, size: u32, src: u64) {
    // SAFETY: as in `copy`.
    unsafe { bpf_probe_read_kernel_str(dst.cast(), size, src as *const _) };
}

/// Copies a `T`, whose size and alignment are multiples of 8, word by word: what the compiler makes of a
/// plain assignment copies byte by byte.
///
/// # Safety
/// `from` must be valid for reads and `to` for writes.
#[inline(always)]
pub unsafe fn copy_words<T>(from: *const T, to: *mut T) {
    const { assert!(size_of::<T>() % 8 == 0 && align_of::<T>() == 8) };
    for word in 0..size_of::<T>() / 8 {
        // SAFETY: within `T`.
        unsafe {
            let value = core::ptr::read_volatile(from.cast::<u64>().add(word));
            core::ptr::write_volatile(to.cast::<u64>().add(word), value);
        }
    }
}

/// A field of the kernel struct at `$base`, of which the verifier knows the type: one of the tracepoint's
/// arguments, or a pointer read from such a struct in this way. A plain load, several times cheaper than
/// a helper's, that gives 0 where nothing is mapped, and for a field that this kernel does not have. A
/// base that went through a map, or arithmetic, is refused when the program is loaded.
macro_rules! typed {
    ($base:expr, $field:ident, $t:ty) => {
        $crate::kernel::typed!($base, $field, $t, 0)
    };
    // `$more` bytes behind the start of the field.
    ($base:expr, $field:ident, $t:ty, $more:expr) => {{
        let (base, offset): (u64, u32) = ($base, $crate::kernel::offset!($field));
        // Of some pointers the verifier wants to know that they are none.
        if base == 0 || offset == fwtrace_abi::ABSENT {
            0
        } else {
            // SAFETY: the verifier makes it a load that may fault.
            unsafe { core::ptr::read_volatile((base + (offset as u64 + $more)) as *const $t) }
        }
    }};
}
pub(crate) use typed;

/// A field of a kernel struct whose start was copied to `$bytes`, a place of `$size` bytes (a power of
/// two) and some slack; user space has checked that the offset lies within.
macro_rules! field {
    ($bytes:expr, $size:expr, $field:ident, $t:ty) => {{
        let offset = ($crate::kernel::offset!($field) & ($size - 1)) as usize;
        // SAFETY: within the copy, whose slack covers the last field's width.
        unsafe {
            core::ptr::read_volatile((&raw const $bytes).cast::<u8>().add(offset).cast::<$t>())
        }
    }};
}
pub(crate) use field;

macro_rules! reader {
    ($(#[$m:meta])* $name:ident, $t:ty) => {
        $(#[$m])*
        #[inline(always)]
        pub fn $name(base: u64, offset: u32) -> $t {
            let mut value: $t = 0;
            if base == 0
                || offset == ABSENT
                || !copy((&raw mut value).cast(), size_of::<$t>() as u32, base.wrapping_add(offset as u64))
            {
                return 0;
            }
            value
        }
    };
}
reader!(/// Reads a u64; 0 if it cannot be read.
    u64_at, u64);
reader!(/// Reads a u32; 0 if it cannot be read.
    u32_at, u32);
reader!(/// Reads a u16; 0 if it cannot be read.
    u16_at, u16);
reader!(/// Reads a u8; 0 if it cannot be read.
    u8_at, u8);

/// A kernel address, as far as its bits tell.
#[inline(always)]
pub fn is_pointer(value: u64) -> bool {
    value >= 0xff00_0000_0000_0000 && value < 0xffff_ffff_ffff_f000
}
