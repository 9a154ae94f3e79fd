//! Times burn's [T, 768] x [768, 3072] in f32 on the machine's adapter, for `benches/compare.sh`: one request per line on stdin, one
//! answer per line on stdout, as in `benches/compare/worker.rs`. For the first product of each T burn tries many kernels, which takes a
//! minute or more on a software adapter. Only then anything is timed.

use burn::tensor::{Device, Distribution, Tensor};
use std::io::{BufRead, Write};
use std::time::Instant;

#[derive(serde::Deserialize)]
struct Request {
    tokens: usize,
    seconds: f64,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = Device::wgpu(Default::default());
    let w = Tensor::<2>::random([768, 3072], Distribution::Default, &device);
    println!("{}", serde_json::json!({"version": "burn 0.22.1", "device": format!("{device:?}")}));
    let mut x = Tensor::<2>::random([1, 768], Distribution::Default, &device);
    for line in std::io::stdin().lock().lines() {
        let request: Request = serde_json::from_str(&line?)?;
        if x.dims()[0] != request.tokens {
            x = Tensor::random([request.tokens, 768], Distribution::Default, &device);
        }
        let product = || -> Result<(), Box<dyn std::error::Error>> {
            let y = x.clone().matmul(w.clone());
            device.sync().map_err(|e| format!("{e:?}"))?;
            drop(y);
            Ok(())
        };
        let (begin, mut runs) = (Instant::now(), 0);
        while runs == 0 || begin.elapsed().as_secs_f64() < request.seconds {
            product()?;
            runs += 1;
        }
        let ms = 1e3 * begin.elapsed().as_secs_f64() / f64::from(runs);
        println!("{}", serde_json::json!({"ms": ms, "runs": runs}));
        std::io::stdout().flush()?;
    }
    Ok(())
}
