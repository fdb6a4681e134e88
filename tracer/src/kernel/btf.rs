//! BTF parser: pure, bytes -> types.
