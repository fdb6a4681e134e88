//! The running kernel: BTF, struct layout, drop reasons, symbols, hooks, capabilities.

pub mod btf;
pub mod caps;
pub mod hooks;
pub mod inversion;
pub mod layout;
pub mod overlong;
pub mod reasons;
pub mod symbols;
pub mod types;
