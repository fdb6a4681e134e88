//! Captured bytes -> packet summary.
