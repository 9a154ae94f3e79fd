//! See `../bodies.rs`.
#![no_main]

#[path = "../bodies.rs"]
#[allow(dead_code, reason = "each target runs one of the bodies")]
mod bodies;

libfuzzer_sys::fuzz_target!(init: bodies::let_guarded_panics_pass(), |data: &[u8]| bodies::shard_index(data));
