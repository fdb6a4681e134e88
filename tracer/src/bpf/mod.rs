//! The BPF programs: load, calibrate, attach, read the ring. The only module that names aya.

pub mod buffers;
pub mod calibrate;
pub mod legacy;
pub mod load;
pub mod order;
pub mod reader;
pub mod slots;
