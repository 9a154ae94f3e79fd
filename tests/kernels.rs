//! Compares `cpu` and `gpu` with `reference` for every operation of the device trait, on the cases of
//! `src/verify/list.rs`: difficult shapes and values with their tolerances. A new operation or kernel variant gets its
//! cases there. This file has one test for each device and operation, so that a failure names them, and tests of properties that
//! involve several operations.

use actscope::device::cpu::Cpu;
use actscope::device::gpu::Gpu;
use actscope::device::reference::Reference;
use actscope::device::{Change, Device, Heads, OpKind, Operations, Queries, Window};
use actscope::verify::cases::Host;
use actscope::verify::kernels::Suite;
use actscope::verify::list;
use std::collections::BTreeSet;
use std::sync::LazyLock;

/// The cases by operation. The reference computes each operation's results once, for all devices.
static SUITES: LazyLock<Vec<(OpKind, Suite)>> =
    LazyLock::new(|| list::OPERATIONS.iter().map(|(op, _)| (*op, Suite::of(*op))).collect());

fn gpus() -> Vec<Gpu> {
    pollster::block_on(Gpu::families()).expect("a GPU adapter, llvmpipe at least")
}

fn check<D: Device>(dev: &D, suite: &Suite) {
    let rows = pollster::block_on(suite.check(&[dev], &|_, _, _| {})).unwrap();
    let run: Vec<_> = rows.iter().filter(|row| row.cases > 0).collect();
    assert!(!run.is_empty(), "no cases");
    for row in run {
        let (device, of) = (dev.info(), &row.kernel);
        assert!(
            row.ok(),
            "{device}, {of}: {} of {} cases are off, worst {}: {:?}",
            row.failed,
            row.cases,
            row.worst,
            row.off
        );
    }
}

fn suite(op: &str) -> &'static Suite {
    &SUITES.iter().find(|(kind, _)| kind.name() == op).expect("an operation").1
}

macro_rules! operations {
    ($($op:ident)*) => {
        /// With every kind of vectors that this processor has.
        mod cpu {
            use super::*;
            $(#[test] fn $op() { Cpu::all().iter().for_each(|cpu| check(cpu, suite(stringify!($op)))); })*
        }

        /// Every family of kernels.
        mod gpu {
            use super::*;
            $(#[test] fn $op() { gpus().iter().for_each(|gpu| check(gpu, suite(stringify!($op)))); })*
        }

        /// Nothing is left out.
        #[test]
        fn every_operation_has_a_test() {
            let all: BTreeSet<&str> = OpKind::ALL.iter().map(|op| op.name()).collect();
            assert_eq!(all, BTreeSet::from([$(stringify!($op)),*]), "every operation has a test");
            assert_eq!(all, list::OPERATIONS.iter().map(|(op, _)| op.name()).collect(), "every operation has cases");
        }
    };
}

operations! {
    embed layer_norm layer_norm_scale layer_norm_normalize gain_bias linear linear_by_head sum_heads attention attention_scores
    attention_pattern attention_mix activation add unembed edit linear_activation linear_add
    gather_rows linear_of_norm argmax layer_norm_gradient layer_norm_scale_gradient layer_norm_normalize_scale_gradient gain_bias_gradient
    linear_by_head_gradient sum_heads_gradient activation_gradient attention_pattern_gradient attention_mix_gradient
    attention_mix_values_gradient attention_scores_gradient
}

/// An edit whose values are larger than one binding of WebGPU's default limits, 128 MiB. Seen red with all values in one binding.
#[test]
fn edits_with_many_values() {
    let [rows, cols] = [33, 1 << 20];
    let values: Vec<f32> = (0..rows * cols).map(|i| (i % 8191) as f32).collect();
    for gpu in gpus() {
        let x = gpu.upload([rows, cols], vec![1.0; rows * cols]);
        // Its first column stays.
        let window = Window { rows: vec![0..rows], cols: vec![1..cols] };
        let of_row = |row: usize| row * (cols - 1)..(row + 1) * (cols - 1);
        let of_window = values[..of_row(rows - 1).end].to_vec();
        let y = gpu.edit(&x, window, Change::Add(of_window.clone()));
        let read = gpu.copy_out(&y, &Window::all([rows, cols]));
        gpu.submit();
        let read = pollster::block_on(gpu.read(read)).unwrap();
        for row in 0..rows {
            let [first, others @ ..] = &read[row * cols..(row + 1) * cols] else { unreachable!() };
            assert_eq!(*first, 1.0, "{}, row {row}", gpu.info());
            let is_added = |(y, value): (&f32, &f32)| *y == 1.0 + value;
            assert!(others.iter().zip(&of_window[of_row(row)]).all(is_added), "{}, row {row}", gpu.info());
        }
    }
}

/// Every tile configuration is right, since any of them may be the fastest on some GPU. The one with matrices is
/// included where the adapter has f32 matrices.
#[test]
fn products_are_right_in_every_tile() {
    for op in ["linear", "unembed"] {
        pollster::block_on(Gpu::with_each_tile()).unwrap().iter().for_each(|gpu| check(gpu, suite(op)));
    }
}

/// A copy has the values of the moment at which it was recorded, independent of what happens to the tensor later.
#[test]
fn copies_are_of_their_moment() {
    fn check<D: Device>(dev: &D) {
        let all = Window::all([2, 3]);
        let x = Host { rows: 2, cols: 3, values: vec![1.0; 6] }.on(dev);
        let before = dev.copy_out(&x, &all);
        let zero = dev.edit(&x, all.clone(), Change::Zero);
        let after = dev.copy_out(&zero, &all);
        let unchanged = dev.copy_out(&x, &all);
        drop((x, zero));
        // The next tensor may get this memory before any work has run.
        let _other = Host { rows: 2, cols: 3, values: vec![9.0; 6] }.on(dev);
        dev.submit();
        assert_eq!(pollster::block_on(dev.read(before)).unwrap(), [1.0; 6]);
        assert_eq!(pollster::block_on(dev.read(after)).unwrap(), [0.0; 6]);
        assert_eq!(pollster::block_on(dev.read(unchanged)).unwrap(), [1.0; 6], "no operation changes a tensor");
    }
    check(&Reference::default());
    check(&Cpu::new());
    gpus().iter().for_each(check);
}

/// The last queries of two texts, whose earlier keys and values are in a cache. The order of the texts differs from the
/// cache's.
#[test]
fn attention_over_a_cache_is_attention_over_the_whole() {
    fn near(got: &[f32], expected: &[f32], what: &str) {
        assert_eq!(got.len(), expected.len(), "{what}");
        let worst = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(got.iter().all(|v| v.is_finite()) && worst <= 1e-5, "{what}: {worst:e}");
    }
    fn check<D: Device>(dev: &D, n_head: usize, head_dim: usize) {
        let n_embd = n_head * head_dim;
        let heads = Heads { n_head, scale: 1.0 / (head_dim as f64).sqrt() };
        let whole = Host::random(37 + 70, 3 * n_embd, 1.0, 41);
        let some = |dev: &D, rows: &[std::ops::Range<usize>]| {
            let values: Vec<f32> = rows
                .iter()
                .flat_map(|rows| &whole.values[rows.start * 3 * n_embd..rows.end * 3 * n_embd])
                .copied()
                .collect();
            dev.upload([values.len() / (3 * n_embd), 3 * n_embd], values)
        };
        let read = |x: &D::Tensor| {
            let staged = dev.copy_out(x, &Window::all(dev.shape(x)));
            dev.submit();
            pollster::block_on(dev.read(staged)).unwrap()
        };
        let reference = Reference::default();
        let expected = reference.attention(
            &whole.on(&reference),
            None,
            vec![Queries::whole(0..37), Queries::whole(37..107)],
            heads,
        );
        let expected = reference.copy_out(&expected, &Window::all([107, n_embd]));

        let mut cache = dev.new_cache(&[40, 70], n_embd, heads);
        let texts = |n: [usize; 2], m: [usize; 2]| {
            // The second text comes first.
            let second = Queries { rows: 0..m[1], text: 1, n_keys: n[1] };
            [second, Queries { rows: m[1]..m[1] + m[0], text: 0, n_keys: n[0] }]
        };
        dev.append(&mut cache, &some(dev, &[37..106, 0..32]), &texts([32, 69], [32, 69]));
        let (last, texts) = (some(dev, &[106..107, 32..37]), texts([37, 70], [5, 1]));
        dev.append(&mut cache, &last, &texts);
        let z = read(&dev.attention(&last, Some(&cache), texts.to_vec(), heads));
        let rows = |rows: std::ops::Range<usize>| &expected[rows.start * n_embd..rows.end * n_embd];
        let name = format!("{}, {n_head} heads of {head_dim}", dev.info());
        near(&z, &[rows(106..107), rows(32..37)].concat(), &name);

        for (text, expected) in texts.into_iter().zip([rows(106..107), rows(32..37)]) {
            let scores = dev.attention_scores(&last, Some(&cache), text.clone(), heads);
            let pattern = dev.attention_pattern(&scores);
            near(&read(&dev.attention_mix(&pattern, &last, Some(&cache), text, heads)), expected, &name);
        }
    }
    for (n_head, head_dim) in [(1, 1), (3, 11), (2, 64), (1, 80)] {
        check(&Reference::default(), n_head, head_dim);
        Cpu::all().iter().for_each(|cpu| check(cpu, n_head, head_dim));
        gpus().iter().for_each(|gpu| check(gpu, n_head, head_dim));
    }
}
