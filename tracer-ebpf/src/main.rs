//! The BPF programs of fwtrace.
//!
//! | program | attached to | does |
//! |---|---|---|
//! | `drops` | tp_btf/kfree_skb | filters each drop, finds its rule, sends one record |
//! | `legacy` | tp_btf/kfree_skb, in front of `drops` | finds the rule of ip_tables that dropped; notes the drops that `drops` cannot see. And with two programs the kernel always calls through the tracepoint's iterator, so the stack has one shape whoever else attaches |
//! | `anchor` | in the place of `legacy`, while fwtrace starts and where that cannot be used | the same but for ip_tables |
//! | `legacy_find`, `legacy_prime` | nothing: run by user space | find a table of ip_tables, and what its counters are |
//! | `hook_list` | nothing: run by user space | in which order a hook calls base chains and tables |
//! | `calibrate` | tp_btf/kfree_skb | while fwtrace starts: reports which stack words are rules |
//!
//! Every kernel struct is read at the offsets in `LAYOUT`, which user space fills from BTF.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod calibrate;
#[cfg(target_arch = "bpf")]
mod conntrack;
#[cfg(target_arch = "bpf")]
mod ctstat;
#[cfg(target_arch = "bpf")]
mod drops;
#[cfg(target_arch = "bpf")]
mod filter;
#[cfg(target_arch = "bpf")]
mod flood;
#[cfg(target_arch = "bpf")]
mod hook;
#[cfg(target_arch = "bpf")]
mod kernel;
#[cfg(target_arch = "bpf")]
mod legacy;
#[cfg(target_arch = "bpf")]
mod order;
#[cfg(target_arch = "bpf")]
mod process;
#[cfg(target_arch = "bpf")]
mod ring;
#[cfg(target_arch = "bpf")]
mod rule;
#[cfg(target_arch = "bpf")]
mod scratch;
#[cfg(target_arch = "bpf")]
mod skipped;
#[cfg(target_arch = "bpf")]
mod socket;
#[cfg(target_arch = "bpf")]
mod uapi;
#[cfg(target_arch = "bpf")]
mod whole;

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
