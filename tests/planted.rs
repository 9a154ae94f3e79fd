//! The check of the check: faults are planted in every kernel of the GPU device and in every operation of the CPU device, and
//! `verify` must catch each and name what is wrong. A plant that is not caught turns these tests red, and so does one that no
//! longer fits the kernel it was made for.

mod common;
#[path = "common/wrapped.rs"]
mod wrapped;

use actscope::batch::Batch;
use actscope::device::cpu::Cpu;
use actscope::device::gpu::kernels::{self, Family};
use actscope::device::gpu::{Gpu, mutants};
use actscope::device::{Activation, Device, Heads, Op, OpKind, Operands, Operations, Part, Queries, Window};
use actscope::model::checkpoint::Checkpoint;
use actscope::model::params::Params;
use actscope::verify::kernels::{KernelRow, Suite};
use actscope::verify::pieces::{self, InPieces};
use actscope::verify::{hooks, list, lockstep};
use common::fixtures;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::{LazyLock, Mutex};
use wrapped::Wrapped;

/// The cases by operation; what the reference gives is computed once for all tests.
static SUITES: LazyLock<Vec<(OpKind, Suite)>> =
    LazyLock::new(|| list::OPERATIONS.iter().map(|(op, _)| (*op, Suite::of(*op))).collect());

fn check<D: Device>(dev: &D, suite: &Suite) -> Vec<KernelRow> {
    let rows = pollster::block_on(suite.check(&[dev], &|_, _, _| {})).unwrap();
    rows.into_iter().filter(|row| row.cases > 0).collect()
}

/// An adapter that runs a kernel, with what is planted in this thread; none where this machine's cannot: a real GPU does not
/// run the kernels that are made for llvmpipe, and llvmpipe must; few adapters have matrices.
fn gpu_with(kernel: &str) -> Option<Gpu> {
    let kernel = kernels::ALL.iter().find(|k| k.name == kernel).expect("a kernel of the table");
    match pollster::block_on(Gpu::open_for(kernel)) {
        Ok(gpu) => Some(gpu),
        Err(e) => {
            let best = pollster::block_on(Gpu::open(false)).expect("a GPU adapter, llvmpipe at least").info();
            let made_for_llvmpipe = kernel.family == Some(Family::Broadcast);
            assert!(kernel.matrices || made_for_llvmpipe && !best.name.contains("llvmpipe"), "{}: {e}", kernel.name);
            println!("{}: not on {best}", kernel.name);
            None
        }
    }
}

/// The operations whose cases run each kernel.
fn operations_of_kernels() -> BTreeMap<String, BTreeSet<OpKind>> {
    let mut operations = BTreeMap::<String, BTreeSet<OpKind>>::new();
    for gpu in pollster::block_on(Gpu::families()).expect("a GPU adapter, llvmpipe at least") {
        for (op, suite) in SUITES.iter() {
            for row in check(&gpu, suite) {
                assert!(row.ok(), "nothing is planted, and {row:?}");
                operations.entry(row.kernel).or_default().insert(*op);
            }
        }
    }
    operations
}

/// Barriers, stale memory and faults that only large shapes show are among the plants. llvmpipe runs a workgroup's lanes eight
/// at a time up to the next barrier, so that a missing one shows there every time; a real GPU may show it now and then.
#[test]
fn every_fault_in_a_kernel_is_caught_and_named() {
    let operations = operations_of_kernels();
    let planted: BTreeSet<&str> = mutants::ALL.iter().map(|plant| plant.kernel).collect();
    assert_eq!(planted, kernels::ALL.iter().map(|kernel| kernel.name).collect(), "every kernel has a plant");

    let mut uncaught = Vec::new();
    for plant in mutants::ALL {
        mutants::inject(Some(plant));
        let Some(gpu) = gpu_with(plant.kernel) else { continue };
        let (mut off, mut worst) = (BTreeSet::new(), 0.0f64);
        for (_, suite) in SUITES.iter().filter(|(op, _)| operations[plant.kernel].contains(op)) {
            for row in check(&gpu, suite).into_iter().filter(|row| !row.ok()) {
                worst = worst.max(row.off.share);
                off.insert(row.kernel);
            }
        }
        println!("{}: {}: {worst:.1e} times what is allowed", plant.kernel, plant.name);
        // Shares of k and their sum are the work of two kernels, and both are named.
        let joined = |kernel: &str| match plant.kernel {
            "linear" | "linear_matrices" => kernel == "linear_join",
            "linear_join" => kernel == "linear" || kernel == "linear_matrices",
            _ => false,
        };
        if !off.contains(plant.kernel) || off.iter().any(|kernel| kernel != plant.kernel && !joined(kernel)) {
            uncaught.push(format!("{}: {}: what was called wrong is {off:?}", plant.kernel, plant.name));
        }
    }
    mutants::inject(None);
    assert!(uncaught.is_empty(), "{uncaught:#?}");
}

/// On a whole model: what makes hooks wrong is named by the operation and the layer in which it first is.
#[test]
fn what_makes_a_model_wrong_is_named_in_lockstep() {
    let checkpoint = Arc::new(Checkpoint::open(&fixtures().join("classic")).unwrap());
    let ids = |n: u32| (0..n).map(|i| (3 + 37 * i * i) % 101).collect::<Vec<u32>>();
    let batches = [vec![ids(12), ids(1)], vec![ids(5)]].map(|texts| Batch::new(&texts, checkpoint.config()).unwrap());
    let mut seen = BTreeSet::new();
    for plant in std::iter::once(None).chain(mutants::ALL.iter().map(Some)) {
        mutants::inject(plant);
        let Some(gpu) = gpu_with(plant.map_or("embed", |plant| plant.kernel)) else { continue };
        let params = Params::new(checkpoint.clone(), None);
        let rows = pollster::block_on(hooks::check(&gpu, &params, &batches, &|_, _, _| {})).unwrap();
        let steps = pollster::block_on(lockstep::check(&gpu, &params, &batches, &|_, _, _| {})).unwrap();
        let Some(plant) = plant else {
            assert!(rows.iter().all(|row| row.ok()), "nothing is planted");
            assert!(steps.mismatches.is_empty(), "nothing is planted, and {:?}", steps.mismatches);
            continue;
        };
        let first = steps.mismatches.first();
        if rows.iter().any(|row| !row.ok()) {
            let first = first.unwrap_or_else(|| panic!("{plant:?}: hooks are off and no operation is"));
            // Kernels for few rows, with matrices and of other families share their operation.
            let variants = ["_few", "_matrices", "_broadcast", "_join"];
            let op = variants.iter().fold(plant.kernel, |name, end| name.trim_end_matches(end));
            println!(
                "{}: {}: {:.1e} times what is allowed, {} in {}",
                plant.kernel,
                plant.name,
                first.share,
                first.kind.name(),
                first.part
            );
            let named = first.kind.name() == op || op == "linear" && first.kind.name().starts_with("linear_");
            assert!(named, "{plant:?}: what parts first is {first:?}");
            let hook = rows.iter().find(|row| !row.ok()).and_then(|row| row.site.layer());
            // The sum of the embeddings is block 0's input.
            let is_there = |layer| first.part == Part::Block(layer) || layer == 0 && op == "add";
            assert!(hook.is_none_or(is_there), "{plant:?}: hooks say {hook:?}, {first:?}");
            seen.insert(plant.kernel);
        }
    }
    mutants::inject(None);
    // Those that a small model does not see need the list of cases: edits, f16, columns read in part.
    assert!(seen.len() >= 12, "{seen:?}");
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// One value is NaN.
    Nan,
    /// The last column is lost.
    LastColumn,
    /// Every row is its neighbour.
    RowOff,
    /// Results have 11 bits.
    Half,
    /// Everything is right in the first 512 rows.
    BeyondRow512,
    /// The result is the one before.
    Stale,
}

const FAULTS: [Fault; 6] =
    [Fault::Nan, Fault::LastColumn, Fault::RowOff, Fault::Half, Fault::BeyondRow512, Fault::Stale];

type Tensor = <Cpu as Device>::Tensor;

/// The CPU device with a fault in one operation.
fn faulty(kind: OpKind, fault: Fault) -> impl Device {
    let last = Mutex::new(Vec::new());
    Wrapped::new(Cpu::new(), move |cpu: &Cpu, op: &Op, operands: Operands<'_, Cpu>| {
        let y = cpu.run(op, operands);
        if op.kind() == kind { spoiled(cpu, &y, fault, &mut last.lock().unwrap()) } else { y }
    })
}

fn spoiled(cpu: &Cpu, y: &Tensor, fault: Fault, last: &mut Vec<f32>) -> Tensor {
    let [rows, cols] = cpu.shape(y);
    let mut values = pollster::block_on(cpu.read(cpu.copy_out(y, &Window::all([rows, cols])))).unwrap();
    let right = values.clone();
    match fault {
        Fault::Nan => values[rows * cols / 2] = f32::NAN,
        Fault::LastColumn => values.chunks_mut(cols).for_each(|row| row[cols - 1] = 0.0),
        Fault::RowOff => values.rotate_left(cols),
        Fault::Half => values.iter_mut().for_each(|v| *v = f32::from_bits(v.to_bits() & 0xffff_e000)),
        Fault::BeyondRow512 => values.iter_mut().skip(512 * cols).for_each(|v| *v *= 1.001),
        Fault::Stale => values.iter_mut().zip(last.iter()).for_each(|(v, before)| *v = *before),
    }
    *last = right;
    cpu.upload([rows, cols], values)
}

#[test]
fn every_fault_in_an_operation_of_the_cpu_is_caught_and_named() {
    let mut uncaught = Vec::new();
    for (op, suite) in SUITES.iter() {
        for fault in FAULTS {
            let dev = faulty(*op, fault);
            let off: Vec<String> =
                check(&dev, suite).into_iter().filter(|row| !row.ok()).map(|row| row.kernel).collect();
            if off != [op.name()] {
                uncaught.push(format!("{} {fault:?}: {off:?}", op.name()));
            }
        }
    }
    assert!(uncaught.is_empty(), "{uncaught:#?}");
}

/// The formula is another one, as in nanoGPT with gpt2's weights: seen in whole runs, and named by block.
#[test]
fn another_formula_on_the_cpu_is_named_in_lockstep() {
    let erf = |cpu: &Cpu, op: &Op, operands: Operands<'_, Cpu>| match op {
        Op::Activation { .. } => cpu.activation(operands.tensors[0], Activation::GeluErf),
        _ => cpu.run(op, operands),
    };
    let checkpoint = Arc::new(Checkpoint::open(&fixtures().join("classic")).unwrap());
    let batch = Batch::new(&[[1u32, 2, 3, 4, 5, 6, 7, 8, 9]], checkpoint.config()).unwrap();
    let (dev, params) = (Wrapped::new(Cpu::new(), erf), Params::new(checkpoint, None));
    let rows = pollster::block_on(hooks::check(&dev, &params, std::slice::from_ref(&batch), &|_, _, _| {})).unwrap();
    let first = rows.iter().find(|row| !row.ok()).expect("erf for tanh is 2e-4 away");
    assert_eq!(first.site.name(), "blocks.0.mlp.hook_post");
    let steps = pollster::block_on(lockstep::check(&dev, &params, &[batch], &|_, _, _| {})).unwrap();
    let named: Vec<_> = steps.mismatches.iter().map(|step| (step.kind.name(), step.part)).collect();
    assert_eq!(named, [0, 1, 2].map(|l| ("activation", Part::Block(l))));
}

/// A device whose attention from a cache, or whose cache, is wrong: right by every other question.
#[test]
fn every_fault_in_a_cache_is_caught() {
    let checkpoint = Arc::new(Checkpoint::open(&fixtures().join("classic")).unwrap());
    let config = checkpoint.config().clone();
    let texts: [&[u32]; 3] = [&[5, 17, 5, 99, 0, 42, 7, 5, 17, 3, 8], &[100, 2, 3, 4], &[1, 2, 3, 4, 5, 6, 7]];
    let batches = [Batch::new(&texts, &config).unwrap()];
    fn in_pieces<D: Device>(dev: &D, checkpoint: &Arc<Checkpoint>, batches: &[Batch]) -> InPieces {
        let params = Params::new(checkpoint.clone(), None);
        pollster::block_on(pieces::check(dev, &params, batches, &[], &|_, _, _| {})).unwrap()
    }
    let as_it_is = |cpu: &Cpu, op: &Op, operands: Operands<'_, Cpu>| cpu.run(op, operands);
    let right = in_pieces(&Wrapped::new(Cpu::new(), as_it_is), &checkpoint, &batches);
    assert!(right.ok() && right.rows.len() > 40, "{:?}", right.worst());

    let append = |change: fn(&Cpu, &mut <Cpu as Device>::Cache, &<Cpu as Device>::Tensor, &[Queries])| {
        in_pieces(&Wrapped::new(Cpu::new(), as_it_is).appending(change), &checkpoint, &batches)
    };
    let faults = [
        (
            "off by one position",
            append(|cpu, cache, qkv, texts| {
                // A single token's keys and values take the place of those before it.
                cpu.append(cache, qkv, texts);
                for text in texts.iter().filter(|text| text.rows.len() == 1 && text.n_keys > 1) {
                    cpu.append(cache, qkv, &[Queries { n_keys: text.n_keys - 1, ..text.clone() }]);
                    cpu.append(cache, qkv, std::slice::from_ref(text));
                }
            }),
        ),
        (
            "stale slot",
            append(|cpu, cache, qkv, texts| {
                cpu.append(cache, qkv, texts);
                for text in texts.iter().filter(|text| text.rows.len() > 1) {
                    // The last position keeps what the one before it had.
                    let rows = text.rows.end - 2..text.rows.end - 1;
                    cpu.append(cache, qkv, &[Queries { rows, ..text.clone() }]);
                }
            }),
        ),
        (
            "another row's keys",
            append(|cpu, cache, qkv, texts| {
                cpu.append(cache, qkv, texts);
                if let [first, second, ..] = texts
                    && first.rows.len() == second.rows.len()
                {
                    cpu.append(cache, qkv, &[Queries { rows: second.rows.clone(), ..first.clone() }]);
                }
            }),
        ),
        (
            "unscaled",
            in_pieces(
                &Wrapped::new(Cpu::new(), |cpu: &Cpu, op: &Op, operands: Operands<'_, Cpu>| {
                    let unscaled = |heads: &Heads| Heads { scale: 1.0, ..*heads };
                    let is_later = |text: &Queries| text.n_keys > text.rows.len();
                    match op {
                        Op::Attention { texts, heads } if texts.iter().any(is_later) => {
                            cpu.run(&Op::Attention { texts: texts.clone(), heads: unscaled(heads) }, operands)
                        }
                        Op::AttentionScores { text, heads } if is_later(text) => {
                            cpu.run(&Op::AttentionScores { text: text.clone(), heads: unscaled(heads) }, operands)
                        }
                        _ => cpu.run(op, operands),
                    }
                }),
                &checkpoint,
                &batches,
            ),
        ),
    ];
    for (fault, answer) in faults {
        assert!(!answer.ok(), "{fault}: {:?}", answer.worst());
    }
}
