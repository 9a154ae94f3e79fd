//! Every kernel of the gpu device as text, so that the tests can give each to a browser's own compiler.

use actscope::device::gpu::autotune::Tile;
use actscope::device::gpu::kernels::{self, Family, Kernel};
use actscope::device::gpu::unroll;
use serde_json::{Value, json};
use wasm_bindgen::prelude::*;

/// A JSON list: the name, entry point, WGSL text and overrides (each with its largest value) of every kernel with every
/// tile that it is used with, and what it needs beyond WebGPU's core.
#[wasm_bindgen]
pub fn kernel_sources() -> String {
    let all = kernels::ALL.iter().chain(kernels::PROBES);
    Value::from(all.flat_map(|kernel| with_each_tile(kernel)).collect::<Vec<_>>()).to_string()
}

fn with_each_tile(kernel: &'static Kernel) -> Vec<Value> {
    let mine = Tile::PRESETS.into_iter().filter(|tile| tile.kernels().iter().any(|one| one.name == kernel.name));
    let named = |values: Vec<u32>| kernel.consts.iter().map(|(name, _)| *name).zip(values).collect::<Vec<_>>();
    let mut consts: Vec<Vec<(&str, u32)>> = mine.map(|tile| named(tile.settings())).collect();
    if consts.is_empty() {
        consts.push(kernel.consts.to_vec());
    }
    let of = |consts: Vec<(&'static str, u32)>| {
        json!({
            "name": kernel.name, "entry": kernel.file, "consts": consts, "overrides": kernel.overrides,
            "subgroups": kernel.family == Some(Family::Broadcast), "matrices": kernel.matrices,
            "wgsl": unroll::unrolled(&kernel.module(&consts)),
        })
    };
    consts.into_iter().map(of).collect()
}
