//! How much work the gpu device records and submits for a whole run: dispatches, compute passes, submits, copies, and
//! the command buffers that they become. More of any makes short runs slower, on Metal most of all. The numbers are those
//! of the kernels for real GPUs, for 12 blocks as gpt2-small has.

use actscope::batch::Batch;
use actscope::bench::forward::{Taps, ids};
use actscope::bench::random;
use actscope::device::gpu::Gpu;
use actscope::device::gpu::kernels::Family;
use actscope::device::{Counters, Device, Operations, Window};
use actscope::hooks::capture::Capture;
use actscope::hooks::layout::Layout;
use actscope::hooks::request::{Hooks, Select};
use actscope::hooks::site::Site;
use actscope::model::checkpoint::Checkpoint;
use actscope::model::forward::{KvCache, Run, forward};
use actscope::model::params::Params;
use std::sync::Arc;

const CONFIG: &str =
    r#"{"model_type": "gpt2", "vocab_size": 1500, "n_positions": 128, "n_embd": 48, "n_layer": 12, "n_head": 3}"#;

fn gpu() -> Gpu {
    pollster::block_on(Gpu::open_as(Family::Tiles)).expect("a GPU adapter, llvmpipe at least")
}

fn checkpoint() -> Arc<Checkpoint> {
    Arc::new(random::checkpoint(CONFIG).unwrap())
}

/// What one run of texts of these lengths records, after a run that has uploaded the weights.
fn counted(lengths: &[usize], hooks: impl Fn(&Checkpoint, &Batch) -> Hooks) -> Counters {
    let (gpu, checkpoint) = (gpu(), checkpoint());
    let params = Params::new(checkpoint.clone(), None);
    let texts: Vec<Vec<u32>> = lengths.iter().map(|n| ids(*n, checkpoint.config())).collect();
    let batch = Batch::new(&texts, checkpoint.config()).unwrap();
    let hooks = hooks(&checkpoint, &batch);
    let layout = Layout::new(&hooks, &batch).unwrap();
    for _ in 0..2 {
        gpu.take_counters();
        let mut capture = Capture::empty(&hooks, &batch).unwrap();
        pollster::block_on(forward(&gpu, &params, Run::new(&layout, 0..lengths.len()), &mut capture, None)).unwrap();
    }
    gpu.take_counters()
}

fn of_taps(lengths: &[usize], taps: Taps) -> Counters {
    counted(lengths, |checkpoint, batch| taps.hooks(checkpoint.config(), batch))
}

/// Seen red when barriers are counted as if no dispatch wrote its result: none wait.
#[test]
fn a_run_is_one_submit_where_little_is_tapped() {
    let none = of_taps(&[64], Taps::None);
    let embeddings_blocks_and_norm = 3 + 12 * DISPATCHES_OF_A_BLOCK + 1;
    let expected = Counters {
        submits: 1,
        command_buffers: 5,
        passes: 1,
        dispatches: embeddings_blocks_and_norm,
        // Every dispatch reads what the one before it writes, but for the two lookups of embeddings, which read weights.
        barriers: embeddings_blocks_and_norm - 2,
        copies: 1,
    };
    assert_eq!(none, expected);
    let hidden_states = of_taps(&[64], Taps::HiddenStates);
    assert_eq!(hidden_states, Counters { copies: 13, ..none });
    // Several texts are one batch: no dispatch is for one of them alone.
    assert_eq!(of_taps(&[64, 1, 30], Taps::HiddenStates).dispatches, hidden_states.dispatches);
}

/// Two LayerNorms, four products, one of which is split along k and joined, and attention.
const DISPATCHES_OF_A_BLOCK: usize = 2 + 4 + 1 + 1;

/// Four products, two of which begin with a LayerNorm, keys and values written to the cache, and attention.
const DISPATCHES_OF_A_BLOCK_OF_A_STEP: usize = 4 + 1 + 1;

/// A submit with dispatches and copies is five command buffers: two of its own, two for its one pass, and one for all
/// copies. A run has a submit for each MiB that is staged, counted at the ends of blocks, and a last one. Seen red when
/// copies run where they are recorded: each of them ends a pass.
#[test]
fn everything_tapped_takes_few_command_buffers() {
    let passes_and_buffers = |counters: Counters| (counters.submits, counters.passes, counters.command_buffers);
    assert_eq!(passes_and_buffers(of_taps(&[64], Taps::Everything)), (5, 5, 25));
    assert_eq!(passes_and_buffers(of_taps(&[100, 5], Taps::Everything)), (7, 7, 35));
    // A budget of nothing: every block is a submit, and its taps are copied together.
    let block_by_block = counted(&[64], |checkpoint, batch| {
        let mut hooks = Taps::Everything.hooks(checkpoint.config(), batch);
        hooks.staging_budget = 0;
        hooks
    });
    assert_eq!(passes_and_buffers(block_by_block), (13, 13, 65));
}

/// A selection of many row ranges needs one copy for each, but its tensor waits only once for them. So the dispatches
/// before and after stay in one pass. Seen red when the tensor's bytes counted for each range: 64 times 4 MB is more than
/// may wait.
#[test]
fn copies_of_many_row_ranges_end_no_pass() {
    let gpu = gpu();
    let x = gpu.upload([1024, 1024], vec![0.5; 1 << 20]);
    gpu.submit();
    gpu.take_counters();
    let y = gpu.add(&x, &x);
    let every_other = Window { rows: (0..64).map(|i| 2 * i..2 * i + 1).collect(), cols: vec![0..1024] };
    let staged = gpu.copy_out(&y, &every_other);
    let _z = gpu.add(&y, &y);
    gpu.submit();
    assert_eq!(pollster::block_on(gpu.read(staged)).unwrap(), vec![1.0; 64 * 1024]);
    let counters = gpu.take_counters();
    assert_eq!((counters.passes, counters.copies, counters.barriers), (1, 64, 1), "{counters:?}");
}

/// What one token more for each of several texts records, after texts of 16 tokens and one step.
fn step(n_texts: usize) -> Counters {
    let (gpu, checkpoint) = (gpu(), checkpoint());
    let (config, params) = (checkpoint.config(), Params::new(checkpoint.clone(), None));
    let mut cache = KvCache::new(&gpu, config, &vec![20; n_texts]);
    let mut hooks = Hooks::new(config);
    hooks.tap_at(Site::LnFinalOut, Select::all()).unwrap();
    let mut counters = Counters::default();
    for positions in [0..16, 16..17, 17..18] {
        let ids = ids(positions.len(), config);
        let batch = Batch::continued(&vec![&ids[..]; n_texts], &vec![positions.start; n_texts], config).unwrap();
        let layout = Layout::new(&hooks, &batch).unwrap();
        let mut capture = Capture::empty(&hooks, &batch).unwrap();
        let run = Run { cache: Some(&mut cache), ..Run::new(&layout, 0..n_texts) };
        gpu.take_counters();
        pollster::block_on(forward(&gpu, &params, run, &mut capture, None)).unwrap();
        counters = gpu.take_counters();
    }
    counters
}

/// One token more: one submit, one pass, and nothing is read back but what a choice of the likeliest token needs. Several
/// texts take as many dispatches as one. Filled text by text, 8 texts take 170 dispatches.
#[test]
fn a_token_of_generation_is_one_submit() {
    let counters = step(1);
    // Here the logits come apart: the request of generation is the library's own.
    let (gpu, checkpoint) = (gpu(), checkpoint());
    let x = gpu.upload([1, 48], vec![0.5; 48]);
    let table = gpu.load(&checkpoint.tensor("wte.weight").unwrap()).unwrap();
    let found = gpu.argmax(&gpu.unembed(&x, &table));
    let staged = gpu.copy_out(&found, &Window::all([1, 6]));
    gpu.submit();
    assert_eq!(pollster::block_on(gpu.read(staged)).unwrap().len(), 6);
    let of_logits = gpu.take_counters().dispatches;
    assert_eq!((counters.submits, counters.passes, counters.command_buffers), (1, 1, 5), "{counters:?}");
    assert_eq!((counters.dispatches, of_logits), (3 + 12 * DISPATCHES_OF_A_BLOCK_OF_A_STEP + 1, 2));
    assert_eq!(step(8).dispatches, counters.dispatches);
}
