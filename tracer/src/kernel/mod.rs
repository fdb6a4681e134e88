//! The running kernel: BTF, struct layout, drop reasons, symbols, capabilities.

pub mod btf;
pub mod caps;
pub mod layout;
pub mod reasons;
pub mod symbols;
pub mod types;
