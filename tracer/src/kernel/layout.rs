//! BTF -> the offsets that the BPF programs read.
