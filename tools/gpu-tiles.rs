//! Prints how fast each tile of the matrix products is on this adapter, at gpt2-small's shapes, so that a person can see
//! what autotuning chooses from. Owns that table; `tools/gpu-check.sh` runs it on machines with a real GPU.

use actscope::bench;
use actscope::bench::operations::OPERATIONS;
use actscope::device::Device;
use actscope::device::gpu::Gpu;
use actscope::device::probe::Measured;

/// The rows of the products.
const TOKENS: [usize; 4] = [16, 64, 256, 1024];

/// Timings of each product; the shortest counts.
const TRIES: usize = 5;

async fn print() -> Result<(), actscope::device::DeviceError> {
    let mut peak = 0.0;
    for gpu in Gpu::with_each_tile().await? {
        if peak == 0.0 {
            peak = bench::limits(&gpu).await?.arithmetic;
            println!("{}; {:.0} GFLOP/s; by {}", gpu.info(), 1e-9 * peak, gpu.clock());
            println!("{:28} {:24} {:>6} {:>10} {:>10} {:>8}", "tiles", "product", "tokens", "ms", "GFLOP/s", "of peak");
        }
        for operation in
            OPERATIONS.iter().filter(|one| one.name.starts_with("linear") || one.name.starts_with("unembed"))
        {
            let on_device = operation.on(&gpu).await?;
            for tokens in TOKENS {
                let mut run = on_device.with_inputs(tokens);
                let mut best = f64::INFINITY;
                for n in 0..TRIES {
                    let times = if n == 0 { 1 } else { 4 };
                    let seconds = gpu.seconds(|| run(times)).await? / times as f64;
                    best = if n == 0 { best } else { best.min(seconds) };
                }
                let rate = operation.flops(tokens) / best;
                println!(
                    "{:28} {:24} {tokens:>6} {:>10.4} {:>10.0} {:>7.1}%",
                    gpu.tiles_by_rows().split(' ').next_back().unwrap_or_default(),
                    operation.name,
                    1e3 * best,
                    1e-9 * rate,
                    100.0 * rate / peak
                );
            }
        }
    }
    Ok(())
}

fn main() {
    if let Err(e) = pollster::block_on(print()) {
        eprintln!("{e}");
        std::process::exit(1);
    }
}
