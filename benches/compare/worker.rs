//! Our side of `benches/compare.sh`: a process that stays, and times what it is asked for. `worker cpu|gpu MODEL`.
//!
//! A request is a line of JSON on stdin, an answer one on stdout. `{"run": "forward", "tokens": 64, "batch": 1, "taps": "hidden", "seconds":
//! 0.25}` runs for at least so long and answers `{"ms": 30.1, "runs": 9}`: the time of one run, values on the host and all. `taps`
//! is `none`, `hidden` (n_layer + 1 hidden states) or `full` (all that TransformerLens caches: every hook but the heads' own results).
//! `{"run": "generate", "prompt": 16, "tokens": 64, "weights": "f32", ...}` writes so many tokens for each of `batch` prompts, the
//! likeliest ones. `{"run": "limits", ...}` answers what the device could do: `{"gflops": 530, "gbytes": 60}`. `{"run": "matmul", ...}` is
//! [tokens, 768] x [768, 3072] on the GPU.

use actscope::analysis::generate::Generation;
use actscope::bench::forward::{Taps, ids};
use actscope::device::Operations;
use actscope::device::cpu::Cpu;
use actscope::device::gpu::Gpu;
use actscope::device::{Device, Dtype};
use actscope::verify::cases::Host;
use actscope::{Choice, Hooks, Model, Options, Select, Session, Site, bench};
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::error::Error;
use std::io::{BufRead, Write};
use std::time::Instant;

#[derive(Deserialize)]
struct Request {
    run: String,
    #[serde(default)]
    tokens: usize,
    #[serde(default)]
    prompt: usize,
    #[serde(default)]
    weights: String,
    #[serde(default)]
    batch: usize,
    #[serde(default)]
    taps: String,
    seconds: f64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [device, model] = arguments.as_slice() else { return Err("give cpu or gpu, and a model".into()) };
    let choice = if device == "gpu" { Choice::Gpu } else { Choice::Cpu };
    let session = Model::open(model)?.on(choice)?;
    let mut by_weights = BTreeMap::new();
    let version = format!("actscope {}", env!("CARGO_PKG_VERSION"));
    println!("{}", json!({"version": version, "device": session.device().to_string()}));
    for line in std::io::stdin().lock().lines() {
        let request: Request = serde_json::from_str(&line?)?;
        let (ms, runs) = match request.run.as_str() {
            "forward" => forward(&session, &request)?,
            "generate" => {
                let weights = match request.weights.as_str() {
                    "f32" => Dtype::F32,
                    "f16" => Dtype::F16,
                    "bf16" => Dtype::Bf16,
                    other => return Err(format!("{other:?} is neither f32, f16 nor bf16").into()),
                };
                if !by_weights.contains_key(&request.weights) {
                    let options = Options { device: choice, weights: Some(weights), ..Options::default() };
                    by_weights.insert(request.weights.clone(), Model::open(model)?.on(options)?);
                }
                generate(&by_weights[&request.weights], &request)?
            }
            "limits" => {
                let limits = match choice {
                    Choice::Gpu => pollster::block_on(bench::limits(&pollster::block_on(Gpu::open(false))?))?,
                    _ => pollster::block_on(bench::limits(&Cpu::new()))?,
                };
                println!("{}", json!({"gflops": 1e-9 * limits.arithmetic, "gbytes": 1e-9 * limits.reading}));
                continue;
            }
            "matmul" => matmul(&request)?,
            other => return Err(format!("{other:?} is none of forward, generate, limits, matmul").into()),
        };
        println!("{}", json!({"ms": ms, "runs": runs}));
        std::io::stdout().flush()?;
    }
    Ok(())
}

/// Milliseconds of one, and how many there were.
fn time(seconds: f64, mut run: impl FnMut() -> Result<(), Box<dyn Error>>) -> Result<(f64, u32), Box<dyn Error>> {
    let (begin, mut runs) = (Instant::now(), 0);
    while runs == 0 || begin.elapsed().as_secs_f64() < seconds {
        run()?;
        runs += 1;
    }
    Ok((1e3 * begin.elapsed().as_secs_f64() / f64::from(runs), runs))
}

fn forward(session: &Session, request: &Request) -> Result<(f64, u32), Box<dyn Error>> {
    let config = session.model().config();
    let batch = session.model().batch(&vec![ids(request.tokens, config); request.batch])?;
    let hooks = match request.taps.as_str() {
        "none" => Taps::None.hooks(config, &batch),
        "hidden" => Taps::HiddenStates.hooks(config, &batch),
        "full" => {
            let mut hooks = Hooks::new(config);
            for site in Site::all(config.n_layer).filter(|site| !matches!(site, Site::Result(_))) {
                hooks.tap_at(site, Select::all())?;
            }
            hooks
        }
        other => return Err(format!("{other:?} is neither none, hidden nor full").into()),
    };
    time(request.seconds, || {
        session.run(&batch, &hooks)?;
        Ok(())
    })
}

fn generate(session: &Session, request: &Request) -> Result<(f64, u32), Box<dyn Error>> {
    let prompts = session.model().batch(&vec![ids(request.prompt, session.model().config()); request.batch])?;
    let generation = Generation { new_tokens: request.tokens, ..Generation::default() };
    time(request.seconds, || {
        let texts = session.generate(&prompts, &generation)?;
        assert!(texts.iter().all(|text| text.new.len() == request.tokens));
        Ok(())
    })
}

fn matmul(request: &Request) -> Result<(f64, u32), Box<dyn Error>> {
    thread_local! {
        static GPU: Gpu = pollster::block_on(Gpu::open(false)).expect("a GPU adapter");
    }
    GPU.with(|gpu| {
        let x = Host::random(request.tokens, 768, 1.0, 1).on(gpu);
        let w = gpu.load(&Host::random(768, 3072, 0.04, 2).weight(Dtype::F32))?;
        let bias = gpu.load(&Host::random(1, 3072, 0.0, 3).weight(Dtype::F32))?;
        let product = || {
            drop(Operations::linear(gpu, &x, &w, &bias));
            gpu.submit();
            Ok(pollster::block_on(gpu.settle(0))?)
        };
        // What brings x to the device, and the kernel, are there before anything is timed.
        product()?;
        time(request.seconds, product)
    })
}
