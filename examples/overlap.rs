//! Does the device compute the next block while the host reads what the one before recorded? Runs gpt2-small's shape with every hook of
//! every block tapped, and prints, by the adapter's own clock, when the device worked on each block and when its values had come.
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

/// Keeps what comes, and when the last values of each block did.
struct Noting {
    capture: Capture,
    start: Instant,
    came: Vec<f64>,
}

impl Sink for Noting {
    fn put(&mut self, site: Site, text: usize, values: ArrayViewD<'_, f32>) -> std::io::Result<()> {
        self.capture.put(site, text, values)?;
        if let Some(layer) = site.layer() {
            self.came[layer] = self.start.elapsed().as_secs_f64();
        }
        Ok(())
    }
}

/// Waits for a submit with next to nothing in it; gives back between which seconds since `start` it ended.
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
    // Read block by block, however little it is.
    hooks.staging_budget = 0;
    let layout = Layout::new(&hooks, &batch)?;
    let start = Instant::now();
    let run = |noting: &mut Noting| {
        let run = forward::forward(&gpu, &params, Run::new(&layout, 0..1), noting, None);
        pollster::block_on(run)
    };
    let noting = || {
        Ok::<_, actscope::hooks::request::HookError>(Noting {
            capture: Capture::empty(&hooks, &batch)?,
            start,
            came: vec![0.0; config.n_layer],
        })
    };
    // Kernels are compiled and weights brought there the first time.
    run(&mut noting()?)?;
    tick(&gpu, start)?;

    if !gpu.start_clock() {
        return Err(format!("{}: no timestamps, so nobody knows when it works", gpu.info()).into());
    }
    const TICKS: usize = 10;
    let ticks = (0..TICKS).map(|_| tick(&gpu, start)).collect::<Result<Vec<_>, _>>()?;
    let mut timed = noting()?;
    run(&mut timed)?;
    let spans = pollster::block_on(gpu.stop_clock())?;

    // The tick that took least says best which host time a device time is.
    let (ticked, [begin, end]) = spans[..TICKS]
        .iter()
        .zip(&ticks)
        .min_by(|(_, a), (_, b)| (a[1] - a[0]).total_cmp(&(b[1] - b[0])))
        .ok_or("the clock saw nothing")?;
    let (apart, known_to) = ((begin + end) / 2.0 - ticked.end, (end - begin) / 2.0);
    // One submit a block; the first one has the embeddings too, and nothing is tapped after the last.
    let blocks: &[Span] = &spans[TICKS..][..config.n_layer];
    let zero = blocks[0].begin + apart;
    let ms = |host: f64| 1e3 * (host - zero);

    println!("{}, {tokens} tokens, every hook of every block", gpu.info());
    println!("milliseconds; the two clocks are known to agree to {:.2}", 1e3 * known_to);
    println!("block   device from        to   values came   when the device was at");
    let mut overlapped = 0;
    for (layer, (span, came)) in blocks.iter().zip(&timed.came).enumerate() {
        let later = blocks.iter().rposition(|span| span.begin + apart < *came).filter(|at| *at > layer);
        overlapped += usize::from(later.is_some());
        println!(
            "{layer:>5} {:>13.2} {:>9.2} {:>13.2}   {}",
            ms(span.begin + apart),
            ms(span.end + apart),
            ms(*came),
            later.map_or("nothing later".into(), |at| format!("block {at}"))
        );
    }
    let whole = blocks[blocks.len() - 1].end - blocks[0].begin;
    let busy: f64 = blocks.iter().map(|span| span.end - span.begin).sum();
    println!(
        "{overlapped} of {} blocks: the next had begun before the last value came. Of the time from the first to the last block the device computed {:.1} %",
        blocks.len() - 1,
        100.0 * busy / whole
    );
    Ok(())
}
