//! What fwtrace and its BPF programs share: the drop record, the settings, the kernel layout.
//!
//! Every struct is `#[repr(C)]`, of fixed-width integers, without implicit padding, native byte
//! order unless a field says otherwise. User space resolves [`Layout`] from the running kernel's
//! BTF and injects it as the global `LAYOUT`; [`Settings`] stands in an array map of one entry.
#![no_std]
#![cfg_attr(
    feature = "user",
    expect(unsafe_code, reason = "aya::Pod is an unsafe marker trait")
)]

mod calibration;
mod conntrack;
mod layout;
mod legacy;
mod order;
mod record;
mod settings;

pub use calibration::*;
pub use conntrack::*;
pub use layout::*;
pub use legacy::*;
pub use order::*;
pub use record::*;
pub use settings::*;

/// Length of an interface name with its NUL, `IFNAMSIZ` (include/uapi/linux/if.h).
pub const IFNAMSIZ: usize = 16;

#[cfg(feature = "user")]
macro_rules! pod {
    ($($t:ty),* $(,)?) => {$(
        // SAFETY: #[repr(C)] of integers and arrays of integers, no padding (asserted beside each
        // type), so any bit pattern is a value and every byte of a value is initialised.
        unsafe impl aya::Pod for $t {}
    )*};
}
#[cfg(feature = "user")]
pod!(
    Layout,
    Settings,
    Counters,
    Block,
    Count,
    CtCounts,
    CtKey,
    HookList,
    Search,
    TableRef,
    Tables,
    TablesKey,
    TerminalRef,
);
