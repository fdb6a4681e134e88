//! Test bench: namespaces, traffic, and a driver for the `fwtrace` binary.
