//! The ruleset: model, snapshots by generation, rendering.

pub mod expr;
pub mod history;
pub mod model;
pub mod render;
pub mod snapshot;
