//! Does the device compute the next block while the host reads the values of the block before? This program runs
//! gpt2-small's shape with every hook of every block tapped. It prints, by the adapter's own clock, when the device
//! worked on each block, and when the block's values arrived on the host.
//!
//! cargo run --release --example overlap -- 64

use actscope::batch::Batch;
use actscope::bench::{forward::ids, random};
use actscope::device::Device;
use actscope::device::gpu::{Gpu, Span};
use actscope::hooks::capture::{Capture, Sink};
use actscope::hooks::layout::Layout;
use actscope::model::forward::{self, Run};
use actscope::model::params::Params;
use actscope::verify::cases::Host;
use actscope::{Hooks, Site};
use ndarray::ArrayViewD;
use std::sync::Arc;
use std::time::Instant;

/// Stores the values, and the time at which the last values of each block arrived.
struct TimedSink {
    capture: Capture,
    start: Instant,
    arrived: Vec<f64>,
}

impl Sink for TimedSink {
    fn put(&mut self, site: Site, text: usize, values: ArrayViewD<'_, f32>) -> std::io::Result<()> {
        self.capture.put(site, text, values)?;
        if let Some(layer) = site.layer() {
            self.arrived[layer] = self.start.elapsed().as_secs_f64();
        }
        Ok(())
    }
}

/// Waits for a submit with almost no work. Returns the interval in which it ended, in seconds since `start`.
fn tick(gpu: &Gpu, start: Instant) -> Result<[f64; 2], actscope::device::DeviceError> {
    let begin = start.elapsed().as_secs_f64();
    drop(Host { rows: 1, cols: 1, values: vec![0.0] }.on(gpu));
    gpu.submit();
    pollster::block_on(gpu.settle(0))?;
    Ok([begin, start.elapsed().as_secs_f64()])
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let tokens: usize = std::env::args().nth(1).map_or(Ok(64), |n| n.parse())?;
    let gpu = pollster::block_on(Gpu::open(false))?;
    let params = Params::new(Arc::new(random::gpt2_small()?), None);
    let config = params.config();
    let batch = Batch::new(&[ids(tokens, config)], config)?;
    let mut hooks = Hooks::new(config);
    hooks.tap("blocks.*")?;
    // Values are read after every block, even if they are few.
    hooks.staging_budget = 0;
    let layout = Layout::new(&hooks, &batch)?;
    let start = Instant::now();
    let run = |sink: &mut TimedSink| {
        let run = forward::forward(&gpu, &params, Run::new(&layout, 0..1), sink, None);
        pollster::block_on(run)
    };
    let new_sink = || {
        Ok::<_, actscope::hooks::request::HookError>(TimedSink {
            capture: Capture::empty(&hooks, &batch)?,
            start,
            arrived: vec![0.0; config.n_layer],
        })
    };
    // The first run compiles the kernels and uploads the weights.
    run(&mut new_sink()?)?;
    tick(&gpu, start)?;

    if !gpu.start_clock() {
        return Err(format!("{}: this adapter has no timestamps, so its work cannot be timed", gpu.info()).into());
    }
    const TICKS: usize = 10;
    let ticks = (0..TICKS).map(|_| tick(&gpu, start)).collect::<Result<Vec<_>, _>>()?;
    let mut timed = new_sink()?;
    run(&mut timed)?;
    let spans = pollster::block_on(gpu.stop_clock())?;

    // The shortest tick relates device time to host time most precisely.
    let (ticked, [begin, end]) = spans[..TICKS]
        .iter()
        .zip(&ticks)
        .min_by(|(_, a), (_, b)| (a[1] - a[0]).total_cmp(&(b[1] - b[0])))
        .ok_or("the clock recorded nothing")?;
    let (apart, known_to) = ((begin + end) / 2.0 - ticked.end, (end - begin) / 2.0);
    // Each block is one submit. The first also has the embeddings, and nothing is tapped after the last.
    let blocks: &[Span] = &spans[TICKS..][..config.n_layer];
    let zero = blocks[0].begin + apart;
    let ms = |host: f64| 1e3 * (host - zero);

    println!("{}, {tokens} tokens, every hook of every block", gpu.info());
    println!("milliseconds; the two clocks agree to {:.2}", 1e3 * known_to);
    println!("block   device from        to       arrived   while the device was at");
    let mut overlapped = 0;
    for (layer, (span, arrived)) in blocks.iter().zip(&timed.arrived).enumerate() {
        let later = blocks.iter().rposition(|span| span.begin + apart < *arrived).filter(|at| *at > layer);
        overlapped += usize::from(later.is_some());
        println!(
            "{layer:>5} {:>13.2} {:>9.2} {:>13.2}   {}",
            ms(span.begin + apart),
            ms(span.end + apart),
            ms(*arrived),
            later.map_or("nothing later".into(), |at| format!("block {at}"))
        );
    }
    let whole = blocks[blocks.len() - 1].end - blocks[0].begin;
    let busy: f64 = blocks.iter().map(|span| span.end - span.begin).sum();
    println!(
        "{overlapped} of {} blocks: the next block had begun before the last value arrived. The device computed during {:.1} % of the time from the first to the last block",
        blocks.len() - 1,
        100.0 * busy / whole
    );
    Ok(())
}
