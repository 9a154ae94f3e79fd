//! Every operation of the device trait, on awkward shapes and hostile values: `cpu` and `gpu` against `reference`.
//! One body per operation serves both; rows are named after the operation, which is the kernel's file stem too.
//!
//! Tolerances: inputs are of order 1 and weights of order 1/sqrt(k), so results are of order 1. The mean error of a product
//! with k = 768 is then 3.4e-7 in f32 and the worst of 10^5 about six times that; allowed is ten times. Where e^x follows, an
//! error of a score of size 10 counts ten times. Each comparison was seen to fail on a planted fault; the figure stands
//! beside it.

mod common;

use actscope::config::Activation;
use actscope::device::cpu::Cpu;
use actscope::device::gpu::Gpu;
use actscope::device::reference::Reference;
use actscope::device::{Blob, Device, Dtype, Edit, Heads, Weight, Window};
use common::assert_close;
use std::ops::Range;
use std::sync::Arc;

const ROWS: [usize; 7] = [1, 2, 8, 9, 63, 65, 257];
const COLS: [usize; 6] = [1, 11, 32, 33, 96, 768];

/// Numbers from a fixed seed, roughly normal with deviation 1 (the sum of four uniform ones).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f32 {
        let uniform = |state: &mut u64| {
            // Steele et al. 2014, splitmix64.
            *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        (0..4).map(|_| uniform(&mut self.0)).sum::<f32>() * 1.7
    }

    fn many(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| self.next() * scale).collect()
    }
}

/// A matrix on the host.
#[derive(Clone)]
struct Host {
    rows: usize,
    cols: usize,
    values: Vec<f32>,
}

impl Host {
    fn random(rows: usize, cols: usize, scale: f32, seed: u64) -> Host {
        Host { rows, cols, values: Numbers(seed).many(rows * cols, scale) }
    }

    fn weight(&self, dtype: Dtype) -> Weight {
        let bytes: Vec<u8> = self.values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let blob = Blob::new(Arc::new(bytes), 0..4 * self.values.len());
        let weight = Weight { name: "test".into(), dtype: Dtype::F32, rows: self.rows, cols: self.cols, blob };
        if dtype == Dtype::F32 { weight } else { weight.converted(dtype).unwrap() }
    }

    fn on<D: Device>(&self, dev: &D) -> D::Tensor {
        let mut x = dev.empty(self.rows, self.cols);
        dev.edit(&mut x, &all(self.rows, self.cols), &Edit::Replace(self.values.clone()));
        x
    }

    fn loaded<D: Device>(&self, dev: &D, dtype: Dtype) -> D::Matrix {
        dev.load(&self.weight(dtype)).unwrap()
    }
}

fn all(rows: usize, cols: usize) -> Window {
    Window { rows: vec![0..rows], cols: 0..cols }
}

fn read<D: Device>(dev: &D, x: &D::Tensor, window: &Window) -> Vec<f32> {
    let staged = dev.copy_out(x, window);
    dev.submit();
    pollster::block_on(dev.read(staged)).unwrap()
}

fn read_all<D: Device>(dev: &D, x: &D::Tensor) -> Vec<f32> {
    let [rows, cols] = dev.shape(x);
    read(dev, x, &all(rows, cols))
}

/// Generic operation of one case: what it gives on a device.
trait Case {
    fn on<D: Device>(&self, dev: &D) -> Vec<f32>;
}

/// Holds `case` on both devices against the reference.
struct Devices {
    cpu: Cpu,
    gpu: Gpu,
}

impl Devices {
    fn open() -> Devices {
        Devices {
            cpu: Cpu::new(),
            gpu: pollster::block_on(Gpu::open(false)).expect("a GPU adapter, llvmpipe at least"),
        }
    }

    fn hold(&self, what: &str, case: &impl Case, atol: f64, rtol: f64) {
        let want = case.on(&Reference);
        assert_close(&format!("cpu {what}"), &case.on(&self.cpu), &want, atol, rtol);
        assert_close(&format!("gpu {what}"), &case.on(&self.gpu), &want, atol, rtol);
    }
}

/// Makes a case of a closure body: what it captures, and what it does on a device.
macro_rules! case {
    ($($name:ident: $type:ty),* => |$dev:ident| $body:expr) => {{
        struct Op { $($name: $type),* }
        impl Case for Op {
            fn on<D: Device>(&self, $dev: &D) -> Vec<f32> {
                let Op { $($name),* } = self;
                let y = $body;
                read_all($dev, &y)
            }
        }
        #[allow(clippy::clone_on_copy)]
        Op { $($name: $name.clone()),* }
    }};
}

#[test]
fn rows() {
    let devices = Devices::open();
    for (n, cols) in [(1, 1), (3, 11), (101, 33), (300, 768)] {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            let table = Host::random(n, cols, 1.0, 1);
            let ids: Vec<u32> = [0, n - 1, n / 2, 0, n / 3].iter().map(|id| *id as u32).collect();
            // Exact: nothing is computed. F16 numbers down to the subnormal ones.
            let table = Host {
                values: table.values.iter().enumerate().map(|(i, v)| v * [1.0, 1e-5, 3e-7][i % 3]).collect(),
                ..table
            };
            devices.hold(
                "rows",
                &case!(table: Host, ids: Vec<u32>, dtype: Dtype => |dev| dev.rows(&table.loaded(dev, *dtype), ids)),
                0.0,
                0.0,
            );
        }
    }
}

#[test]
fn layer_norm() {
    let devices = Devices::open();
    for rows in ROWS {
        for cols in COLS {
            for (eps, scale) in [(1e-5, 1.0), (1e-5, 1e-3), (1e-3, 3.0)] {
                let mut x = Host::random(rows, cols, scale, 2);
                let (gain, bias) = (Host::random(1, cols, 1.0, 3), Host::random(1, cols, 1.0, 4));
                // Some dimensions in the thousands, as gpt2's residual stream has, and an offset that a variance by
                // E[x²] - E[x]² would not survive.
                x.values
                    .iter_mut()
                    .enumerate()
                    .for_each(|(i, v)| *v += if i % cols == 7 { 3000.0 * scale } else { 10.0 * scale });
                let what = format!("layer_norm [{rows}, {cols}] eps {eps:e}");
                // Seen red: eps 1e-6 for 1e-5 is 2.3 times this at scale 1e-3 (and 3.4e5 times layer_norm_scale's).
                let case = case!(x: Host, gain: Host, bias: Host, eps: f64 => |dev| {
                    dev.layer_norm(&x.on(dev), &gain.loaded(dev, Dtype::F32), &bias.loaded(dev, Dtype::F32), *eps)
                });
                // The mean of cols values of size 3000 / cols is only known to 1e-7 of itself.
                devices.hold(&what, &case, 2e-5, 2e-5);
            }
        }
    }
}

#[test]
fn layer_norm_in_steps_is_layer_norm() {
    let devices = Devices::open();
    for (rows, cols) in [(1, 1), (2, 33), (65, 768)] {
        let (x, gain, bias) =
            (Host::random(rows, cols, 2.0, 5), Host::random(1, cols, 1.0, 6), Host::random(1, cols, 1.0, 7));
        let scale = case!(x: Host => |dev| dev.layer_norm_scale(&x.on(dev), 1e-5));
        devices.hold("layer_norm_scale", &scale, 0.0, 2e-6);
        let steps = case!(x: Host, gain: Host, bias: Host => |dev| {
            let x = x.on(dev);
            let normalized = dev.layer_norm_normalize(&x, &dev.layer_norm_scale(&x, 1e-5));
            dev.gain_bias(&normalized, &gain.loaded(dev, Dtype::F32), &bias.loaded(dev, Dtype::F32))
        });
        devices.hold("layer_norm_normalize, gain_bias", &steps, 4e-6, 4e-6);
    }
}

#[test]
fn linear() {
    let devices = Devices::open();
    for rows in ROWS {
        for (k, cols) in [(1, 1), (1, 33), (11, 3), (33, 99), (96, 65), (768, 129), (257, 768)] {
            for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
                let (x, w, bias) = (
                    Host::random(rows, k, 1.0, 8),
                    Host::random(k, cols, 1.0 / (k as f32).sqrt(), 9),
                    Host::random(1, cols, 1.0, 10),
                );
                let what = format!("linear [{rows}, {k}] x [{k}, {cols}] {dtype:?}");
                let case = case!(x: Host, w: Host, bias: Host, dtype: Dtype => |dev| {
                    dev.linear(&x.on(dev), &w.loaded(dev, *dtype), &bias.loaded(dev, Dtype::F32))
                });
                // Seen red: a k loop that ends one short is 1.4e5 times this.
                devices.hold(&what, &case, 4e-6, 2e-6);
            }
        }
    }
}

#[test]
fn linear_by_head_and_sum_heads() {
    let devices = Devices::open();
    for rows in [1, 8, 65] {
        for (n_head, head_dim, cols) in [(1, 1, 1), (3, 11, 33), (12, 64, 768)] {
            let k = n_head * head_dim;
            let (z, w, bias) =
                (Host::random(rows, k, 1.0, 11), Host::random(k, cols, 0.1, 12), Host::random(1, cols, 1.0, 13));
            let parts = case!(z: Host, w: Host, n_head: usize => |dev| dev.linear_by_head(&z.on(dev), &w.loaded(dev, Dtype::F32), *n_head));
            devices.hold("linear_by_head", &parts, 4e-6, 2e-6);
            let sum = case!(z: Host, w: Host, bias: Host, n_head: usize => |dev| {
                dev.sum_heads(&dev.linear_by_head(&z.on(dev), &w.loaded(dev, Dtype::F32), *n_head), &bias.loaded(dev, Dtype::F32), *n_head)
            });
            devices.hold("sum_heads", &sum, 4e-6, 4e-6);
        }
    }
}

/// Texts below one another, their queries and keys, and how they are cut into heads.
struct Attention {
    qkv: Host,
    texts: Vec<Range<usize>>,
    heads: Heads,
}

fn attention_cases() -> Vec<Attention> {
    let mut cases = Vec::new();
    for lengths in [vec![1], vec![2], vec![16], vec![17], vec![63, 1, 65], vec![257]] {
        for (n_head, head_dim) in [(1, 1), (3, 11), (2, 64), (1, 80), (1, 257)] {
            let n = lengths.iter().sum();
            let mut start = 0;
            let texts = lengths.iter().map(|len| {
                start += len;
                start - len..start
            });
            let scale = 1.0 / (head_dim as f64).sqrt();
            let texts = texts.collect();
            // The spread makes some softmax rows nearly one-hot.
            cases.push(Attention {
                qkv: Host::random(n, 3 * n_head * head_dim, 1.5, 14),
                texts,
                heads: Heads { n_head, scale },
            });
        }
    }
    cases
}

#[test]
fn attention() {
    let devices = Devices::open();
    for Attention { qkv, texts, heads } in attention_cases() {
        let what = format!("attention {texts:?} {heads:?}");
        let case = case!(qkv: Host, texts: Vec<Range<usize>>, heads: Heads => |dev| dev.attention(&qkv.on(dev), texts, *heads));
        // Seen red: a mask that lets the next key in is 22 times this at two tokens, far more beyond.
        devices.hold(&what, &case, 1e-5, 4e-6);
    }
}

#[test]
fn attention_in_steps() {
    let devices = Devices::open();
    for Attention { qkv, texts, heads } in attention_cases() {
        let text = texts[texts.len() / 2].clone();
        let scores = case!(qkv: Host, text: Range<usize>, heads: Heads => |dev| dev.attention_scores(&qkv.on(dev), text.clone(), *heads));
        devices.hold("attention_scores", &scores, 4e-6, 4e-6);
        let pattern = case!(qkv: Host, text: Range<usize>, heads: Heads => |dev| {
            dev.attention_pattern(&dev.attention_scores(&qkv.on(dev), text.clone(), *heads))
        });
        devices.hold("attention_pattern", &pattern, 2e-6, 1e-5);
        // Rows of z that belong to other texts keep what they hold.
        let mix = case!(qkv: Host, text: Range<usize>, heads: Heads => |dev| {
            let (t, qkv) = (text.clone(), qkv.on(dev));
            let [rows, cols] = dev.shape(&qkv);
            let mut z = dev.empty(rows, cols / 3);
            dev.edit(&mut z, &all(rows, cols / 3), &Edit::Replace(vec![7.0; cols / 3]));
            let pattern = dev.attention_pattern(&dev.attention_scores(&qkv, t.clone(), *heads));
            dev.attention_mix(&pattern, &qkv, t, *heads, &mut z);
            z
        });
        devices.hold("attention_mix", &mix, 1e-5, 4e-6);
    }
}

#[test]
fn softmax_survives_huge_and_one_hot_rows() {
    let devices = Devices::open();
    let rows: Vec<Vec<f32>> = vec![
        vec![1e30, -1e30, 0.0, 1e30, f32::MIN],
        vec![0.0, 1e4, 0.0, 0.0, 0.0],
        vec![-3e38, -3e38, -3e38, -3e38, -3e38],
        vec![f32::NEG_INFINITY, 88.0, 89.0, 0.0, f32::NEG_INFINITY],
        vec![f32::MIN, f32::MIN, f32::MIN, f32::MIN, 5.0],
    ];
    let x = Host { rows: 5, cols: 5, values: rows.concat() };
    devices.hold("attention_pattern", &case!(x: Host => |dev| dev.attention_pattern(&x.on(dev))), 1e-7, 1e-6);
}

/// A NaN is never turned into a number: silence would be worse. Seen red on llvmpipe with `exp_f32` as it was, whose clamp
/// made it 1e-38.
#[test]
fn nan_stays_nan() {
    fn check<D: Device>(dev: &D) {
        let x = Host { rows: 2, cols: 3, values: vec![1.0, f32::NAN, 2.0, 0.0, 1.0, f32::MIN] };
        let pattern = read_all(dev, &dev.attention_pattern(&x.on(dev)));
        assert!(pattern[..3].iter().all(|v| v.is_nan()) && pattern[3..].iter().all(|v| v.is_finite()), "{pattern:?}");
        for f in Activation::ALL {
            let y = read_all(dev, &dev.activation(&x.on(dev), f));
            assert!(y[1].is_nan() && y[0].is_finite(), "{f:?}: {y:?}");
        }
    }
    let devices = Devices::open();
    check(&Reference);
    check(&devices.cpu);
    check(&devices.gpu);
}

#[test]
fn activation() {
    let devices = Devices::open();
    for f in Activation::ALL {
        for n in [1, 2, 63, 64, 65, 70_001] {
            let mut x = Host::random(1, n, 3.0, 15);
            // ±150 is where a tanh by exponentials overflows on some drivers; the rest are edges of the formulas.
            let edges = [
                150.0, -150.0, 0.0, -0.0, 1e-30, -1e-30, 14.0, -14.0, 15.0, -15.0, 9.1, -5.5, 87.0, -88.5, 1e30, -1e30,
            ];
            x.values.iter_mut().zip(edges).for_each(|(slot, edge)| *slot = edge);
            // Seen red: erf for tanh is 800 times this.
            devices.hold(
                &format!("activation {f:?} [{n}]"),
                &case!(x: Host, f: Activation => |dev| dev.activation(&x.on(dev), *f)),
                5e-7,
                2e-6,
            );
        }
    }
}

#[test]
fn add() {
    let devices = Devices::open();
    for (rows, cols) in [(1, 1), (3, 33), (257, 768)] {
        let (a, b) = (Host::random(rows, cols, 1.0, 16), Host::random(rows, cols, 1.0, 17));
        devices.hold("add", &case!(a: Host, b: Host => |dev| dev.add(&a.on(dev), &b.on(dev))), 1e-7, 1e-7);
    }
}

#[test]
fn unembed() {
    let devices = Devices::open();
    for (n, rows) in [(1, 0..1), (10, 1..9), (9, 0..9), (131, 3..130)] {
        for (k, vocab) in [(1, 1), (11, 3), (33, 101), (768, 1009)] {
            for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
                let (x, table) = (Host::random(n, k, 1.0, 18), Host::random(vocab, k, 1.0 / (k as f32).sqrt(), 19));
                // The row after the last is not this product's to touch, not even to multiply it by a padding's 0.
                let mut x = x;
                x.values.iter_mut().skip(rows.end * k).for_each(|v| *v = f32::INFINITY);
                let what = format!("unembed {rows:?} k {k} vocabulary {vocab} {dtype:?}");
                let case = case!(x: Host, table: Host, rows: Range<usize>, dtype: Dtype => |dev| {
                    dev.unembed(&x.on(dev), rows.clone(), &table.loaded(dev, *dtype))
                });
                devices.hold(&what, &case, 4e-6, 2e-6);
            }
        }
    }
}

#[test]
fn edit_and_copy_out() {
    let devices = Devices::open();
    for (rows, cols) in [(1usize, 1usize), (5, 33), (65, 768)] {
        let mid = cols / 3..cols / 3 + cols.div_ceil(3).min(cols - cols / 3);
        let some: Vec<Range<usize>> = if rows > 4 { vec![0..1, 3..rows] } else { vec![0..rows] };
        for window in [all(rows, cols), Window { rows: some.clone(), cols: mid.clone() }] {
            let one_row = Numbers(20).many(window.cols.len(), 1.0);
            let every = Numbers(21).many(window.len(), 1.0);
            let edits = [
                Edit::Zero,
                Edit::Scale(-2.5),
                Edit::Add(one_row.clone()),
                Edit::Replace(one_row),
                Edit::Add(every.clone()),
                Edit::Replace(every),
            ];
            for edit in edits {
                let x = Host::random(rows, cols, 1.0, 22);
                let what = format!("edit {window:?}");
                let case = case!(x: Host, window: Window, edit: Edit => |dev| {
                    let mut x = x.on(dev);
                    dev.edit(&mut x, window, edit);
                    x
                });
                devices.hold(&what, &case, 1e-7, 1e-7);
            }
            let x = Host::random(rows, cols, 1.0, 23);
            let want = read(&Reference, &x.on(&Reference), &window);
            assert_close("cpu copy_out", &read(&devices.cpu, &x.on(&devices.cpu), &window), &want, 0.0, 0.0);
            assert_close("gpu copy_out", &read(&devices.gpu, &x.on(&devices.gpu), &window), &want, 0.0, 0.0);
        }
    }
}

/// A copy is of the moment at which it was recorded, whatever happens to the tensor afterwards.
#[test]
fn copies_are_of_their_moment() {
    fn check<D: Device>(dev: &D) {
        let mut x = Host { rows: 2, cols: 3, values: vec![1.0; 6] }.on(dev);
        let before = dev.copy_out(&x, &all(2, 3));
        dev.edit(&mut x, &all(2, 3), &Edit::Zero);
        let after = dev.copy_out(&x, &all(2, 3));
        drop(x);
        // Its memory may be given to the next tensor before anything has run.
        let _other = Host { rows: 2, cols: 3, values: vec![9.0; 6] }.on(dev);
        dev.submit();
        assert_eq!(pollster::block_on(dev.read(before)).unwrap(), [1.0; 6]);
        assert_eq!(pollster::block_on(dev.read(after)).unwrap(), [0.0; 6]);
    }
    let devices = Devices::open();
    check(&Reference);
    check(&devices.cpu);
    check(&devices.gpu);
}
