#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fwtrace_fuzz::pcapng(data));
