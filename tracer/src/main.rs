//! The `fwtrace` command.

fn main() {}
