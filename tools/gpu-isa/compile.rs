//! Compiles every kernel of real GPUs as a run of gpt2 does, so that the driver can print what it makes of each. Owns the list of
//! variants, and with the argument `workgroups` prints how many workgroups each product has.
//! Runs nothing: `gpu-isa.sh` starts it on devices that have a compiler and no hardware.

use actscope::device::gpu::Gpu;
use actscope::device::gpu::autotune::{Tile, Tuning};
use actscope::device::gpu::kernels::{self, Family};
use actscope::device::gpu::products::Plan;
use std::io::Write;

unsafe extern "C" {
    /// Of the C library, in whose buffers drivers write what they print.
    fn fflush(stream: *mut core::ffi::c_void) -> core::ffi::c_int;
}

/// Writes a line to both streams that comes after all that was printed before it.
fn mark(line: &str) {
    // SAFETY: null stands for all streams.
    unsafe { fflush(core::ptr::null_mut()) };
    println!("=== {line}");
    std::io::stdout().flush().expect("stdout");
    eprintln!("=== {line}");
}

/// Workgroups of each product of gpt2-small by number of tokens, as CSV.
fn print_workgroups() {
    println!("product,tokens,kernel,constants,steps of k,workgroups");
    let products = [("c_attn", 768, 2304), ("attn.c_proj", 768, 768), ("c_fc", 768, 3072), ("mlp.c_proj", 3072, 768)];
    for (name, k, cols) in products {
        for rows in [1, 8, 9, 16, 32, 64, 128, 256, 1024] {
            let plan = Plan::linear(&Tuning::DEFAULT, rows, k, cols);
            let consts: Vec<String> = plan.consts.iter().map(u32::to_string).collect();
            let (kernel, consts) = (plan.kernel.name, consts.join("x"));
            println!("{name},{rows},{kernel},{consts},{},{}", plan.k_part, plan.workgroups());
        }
    }
}

fn main() {
    if std::env::args().nth(1).as_deref() == Some("workgroups") {
        return print_workgroups();
    }
    let gpu = pollster::block_on(Gpu::open_as(Family::Tiles)).expect("an adapter");
    for kernel in kernels::ALL.iter().filter(|k| Family::Tiles.has(k) && !k.matrices) {
        let consts: Vec<Vec<u32>> = match kernel.name {
            "linear" | "unembed" => Tile::PRESETS.iter().map(|tile| tile.settings()).collect(),
            "linear_few" | "linear_few_norm" | "unembed_few" => [1, 2, 4, 8].map(|rows| vec![rows, 1]).to_vec(),
            "attention" | "attention_few" | "attention_scores" | "attention_mix" => vec![vec![64]],
            _ => vec![vec![]],
        };
        for consts in consts {
            // Weights in f32, no epilogue; gpt2's shapes are aligned.
            let overrides = kernel.overrides.iter().map(|(name, _)| u32::from(*name == "ALIGNED"));
            let settings: Vec<u32> = overrides.chain(consts.iter().copied()).collect();
            let name: Vec<String> = consts.iter().map(u32::to_string).collect();
            mark(format!("{} {}", kernel.name, name.join("x")).trim());
            gpu.compile(kernel, &settings);
        }
    }
    mark("end");
    // Some of these drivers hang when their device is closed.
    std::process::exit(0);
}
