//! Two devices side by side: the device under test and the reference. Both run every operation, and the results are compared,
//! so that each operation with a mismatch can be named, and where in the model it is. Owns that comparison.
//!
//! Both devices always get the same inputs: the reference's results, rounded to f32, are the inputs of the next operation on
//! both. So a mismatch comes from one operation alone. If each device went on with its own results, errors would accumulate
//! until no bound could tell a fault from rounding, and after the first fault every later result would be wrong. (The
//! results of the device under test would do as common inputs too, but then every operation would have to wait until the
//! host has read them. The reference's are on the host.) The drawback: a value that changes *between* two operations, in
//! memory, is replaced by the right one, so lockstep does not see it. `verify` finds such faults in whole runs.
//!
//! The bound of a mismatch follows from backward error. The reference runs each operation a second time, with every input
//! moved by one unit in its last place. The change of the result is an error that every f32 device may have.
//! Read next: `../verify/lockstep.rs`, which drives it.

use super::host_pool::HostPool;
use super::reference::{self, Reference};
use super::{
    Device, DeviceError, DeviceInfo, Heads, MASKED, Op, OpKind, Operands, Part, Queries, StoredWeight, TensorLimits,
    Window,
};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A result may be off by this many times the change that it gets when every input moves by one unit in its last place, in
/// addition to `ROUNDING`. The error of a sum of k products that are added one by one in f32 is about sqrt(k) / 3 times
/// that change: 18 times for the longest sums of gpt2, k = 3,072.
pub const LAST_BITS: f64 = 32.0;

/// A row may be off by this part of its norm, whatever its inputs are: the bound of the numeric policy.
const ROUNDING: f64 = 4e-6;

/// What was compared: an operation, or the copy of values to the host, which is compared like one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepKind {
    /// An operation.
    Operation(OpKind),
    /// [`Device::copy_out`].
    CopyWindow,
}

impl StepKind {
    /// The operation's name, or `copy_window`, the name of the kernel behind [`Device::copy_out`].
    pub fn name(self) -> &'static str {
        match self {
            StepKind::Operation(op) => op.name(),
            StepKind::CopyWindow => "copy_window",
        }
    }
}

/// One operation that both devices ran.
#[derive(Clone, Debug)]
pub struct Step {
    /// The operation.
    pub kind: StepKind,
    /// The shapes of the operands and of the result.
    pub shape: String,
    /// The part of the model that the operation belongs to. An operation without a weight belongs to the part of the previous
    /// weight. The steps of a LayerNorm belong to the part of the next weight.
    pub part: Part,
    /// The name of the weight that `part` is from. `None` before the first weight.
    pub weight: Option<String>,
    /// The row with the largest mismatch.
    pub row: usize,
    /// The relative error of that row, in norms. Infinite if the row has a NaN or an infinity that is not expected.
    pub error: f64,
    /// The error divided by its bound. More than 1 is a mismatch.
    pub share: f64,
}

/// The pair as a device. A forward pass runs on it as on any other, and reads the reference's values from it.
#[derive(Debug)]
pub struct Lockstep<'a, D: Device> {
    device: &'a D,
    reference: Reference,
    steps: Mutex<Steps<D>>,
    moves: AtomicU64,
}

#[derive(Debug)]
struct Steps<D: Device> {
    /// The part and the name of the last weight that an operation took.
    part: Part,
    weight: Option<String>,
    pending: Vec<Pending<D>>,
    compared: Vec<Step>,
}

/// A value on both devices.
#[derive(Clone, Debug)]
pub struct Both<A, B> {
    device: A,
    reference: B,
}

/// A weight on both devices.
#[derive(Clone, Debug)]
pub struct Weight<A> {
    part: Part,
    name: String,
    values: Both<A, reference::Tensor>,
}

/// A step whose result has not been read yet.
struct Pending<D: Device> {
    step: Step,
    staged: D::Staged,
    cols: usize,
    expected: Vec<f32>,
    moved: Vec<f32>,
}

impl<D: Device> std::fmt::Debug for Pending<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.step.fmt(f)
    }
}

type Tensor<D> = Both<<D as Device>::Tensor, reference::Tensor>;

impl<'a, D: Device> Lockstep<'a, D> {
    /// Pairs a device under test with the reference.
    pub fn new(device: &'a D) -> Lockstep<'a, D> {
        let steps = Steps { part: Part::Embedding, weight: None, pending: Vec::new(), compared: Vec::new() };
        Lockstep { device, reference: Reference::default(), steps: Mutex::new(steps), moves: AtomicU64::new(0) }
    }

    fn steps(&self) -> MutexGuard<'_, Steps<D>> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every operation so far, in order.
    ///
    /// # Errors
    /// [`DeviceError`] when the device under test failed.
    pub async fn finish(self) -> Result<Vec<Step>, DeviceError> {
        self.device.submit();
        self.compare().await?;
        let mut steps = std::mem::take(&mut self.steps().compared);
        // The steps of a LayerNorm belong to the next weight, and a copy belongs to the operation whose result it copies.
        let mut after = (Part::Head, None);
        for step in steps.iter_mut().rev() {
            match step.kind {
                StepKind::CopyWindow => {}
                StepKind::Operation(OpKind::LayerNormScale | OpKind::LayerNormNormalize) => {
                    (step.part, step.weight) = after.clone();
                }
                StepKind::Operation(_) => after = (step.part, step.weight.clone()),
            }
        }
        for i in 1..steps.len() {
            if steps[i].kind == StepKind::CopyWindow {
                (steps[i].part, steps[i].weight) = (steps[i - 1].part, steps[i - 1].weight.clone());
            }
        }
        Ok(steps)
    }

    /// The same values, each moved by one unit in its last place as f32, up or down by a pseudorandom bit.
    fn moved(&self, x: &reference::Tensor) -> reference::Tensor {
        let shape = self.reference.shape(x);
        let values = self.reference.copy_out(x, &Window::all(shape));
        let moved = values.iter().map(|v| {
            let n = self.moves.fetch_add(1, Ordering::Relaxed) + 1;
            // The highest bit of a multiplicative hash (Knuth's golden ratio).
            if *v == MASKED || n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 63 == 0 { v.next_up() } else { v.next_down() }
        });
        self.reference.upload(shape, moved.collect())
    }

    async fn compare(&self) -> Result<(), DeviceError> {
        let pending = std::mem::take(&mut self.steps().pending);
        for Pending { mut step, staged, cols, expected, moved } in pending {
            let got = self.device.read(staged).await?;
            let rows = got.chunks(cols).zip(expected.chunks(cols)).zip(moved.chunks(cols));
            for (row, ((got, expected), moved)) in rows.enumerate() {
                let (error, share) = mismatch(got, expected, moved);
                if share > step.share {
                    step = Step { row, error, share, ..step };
                }
            }
            self.steps().compared.push(step);
        }
        Ok(())
    }
}

/// The relative error of a row, in norms, and that error divided by its bound.
fn mismatch(got: &[f32], expected: &[f32], moved: &[f32]) -> (f64, f64) {
    let (mut off, mut size, mut by_last_bit) = (0.0, 0.0, 0.0);
    for ((g, t), m) in got.iter().zip(expected).zip(moved) {
        // A masked score stands for minus infinity. Where the expected value is masked, NaN or infinite, the result must be
        // the same.
        let is_mark = *t == MASKED || !t.is_finite();
        if is_mark && (g == t || g.is_nan() && t.is_nan()) {
            continue;
        }
        if is_mark || !g.is_finite() {
            return (f64::INFINITY, f64::INFINITY);
        }
        let (g, t, m) = (f64::from(*g), f64::from(*t), f64::from(*m));
        off += (g - t) * (g - t);
        size += t * t;
        // An input that is almost the largest f32 may become infinite when it is moved. Such a change counts as none.
        by_last_bit += if m.is_finite() { (m - t) * (m - t) } else { 0.0 };
    }
    let (off, size, by_last_bit) = (off.sqrt(), size.sqrt(), by_last_bit.sqrt());
    // A device may treat subnormal numbers as zero.
    let subnormal = f64::from(f32::MIN_POSITIVE) * (got.len() as f64).sqrt();
    let share = off / (ROUNDING * size + LAST_BITS * by_last_bit + subnormal);
    (if off == 0.0 { 0.0 } else { off / size }, share)
}

impl<D: Device> Device for Lockstep<'_, D> {
    type Tensor = Tensor<D>;
    type Weight = Weight<D::Weight>;
    type Cache = Both<D::Cache, reference::Cache>;
    type Staged = Vec<f32>;

    fn info(&self) -> DeviceInfo {
        self.device.info()
    }

    fn tensor_limits(&self) -> TensorLimits {
        self.device.tensor_limits()
    }

    fn host_memory(&self) -> &Arc<HostPool> {
        self.device.host_memory()
    }

    fn load(&self, weight: &StoredWeight) -> Result<Weight<D::Weight>, DeviceError> {
        let values = Both { device: self.device.load(weight)?, reference: self.reference.load(weight)? };
        Ok(Weight { part: weight.part, name: weight.name.clone(), values })
    }

    fn upload(&self, shape: [usize; 2], values: Vec<f32>) -> Tensor<D> {
        Both { device: self.device.upload(shape, values.clone()), reference: self.reference.upload(shape, values) }
    }

    fn shape(&self, x: &Tensor<D>) -> [usize; 2] {
        self.reference.shape(&x.reference)
    }

    fn run(&self, op: &Op, Operands { tensors, weights, cache }: Operands<'_, Self>) -> Tensor<D> {
        let on_device = self.device.run(
            op,
            Operands {
                tensors: &tensors.iter().map(|x| &x.device).collect::<Vec<_>>(),
                weights: &weights.iter().map(|w| &w.values.device).collect::<Vec<_>>(),
                cache: cache.map(|cache| &cache.device),
            },
        );
        let (x, w): (Vec<_>, Vec<_>) =
            (tensors.iter().map(|x| &x.reference).collect(), weights.iter().map(|w| &w.values.reference).collect());
        let cache = cache.map(|cache| &cache.reference);
        let exact = self.reference.run(op, Operands { tensors: &x, weights: &w, cache });
        let moved: Vec<_> = x.iter().map(|x| self.moved(x)).collect();
        let moved = moved.iter().collect::<Vec<_>>();
        let moved = self.reference.run(op, Operands { tensors: &moved, weights: &w, cache });

        let shape = self.reference.shape(&exact);
        let all = Window::all(shape);
        let shapes: Vec<_> = x.iter().chain(&w).map(|x| format!("{:?}", self.reference.shape(x))).collect();
        let expected = self.reference.copy_out(&exact, &all);
        let mut steps = self.steps();
        if let Some(w) = weights.first() {
            // A tied embedding is also the unembedding, so its own part does not tell where it is used.
            steps.part = if matches!(op, Op::Unembed {}) { Part::Head } else { w.part };
            steps.weight = Some(w.name.clone());
        }
        let step = Step {
            kind: StepKind::Operation(op.kind()),
            shape: format!("{} -> {shape:?}", shapes.join(" ")),
            part: steps.part,
            weight: steps.weight.clone(),
            row: 0,
            error: 0.0,
            share: 0.0,
        };
        steps.pending.push(Pending {
            step,
            staged: self.device.copy_out(&on_device, &all),
            cols: shape[1],
            moved: self.reference.copy_out(&moved, &all),
            expected: expected.clone(),
        });
        drop(steps);
        self.upload(shape, expected)
    }

    fn new_cache(&self, capacities: &[usize], n_embd: usize, heads: Heads) -> Self::Cache {
        Both {
            device: self.device.new_cache(capacities, n_embd, heads),
            reference: self.reference.new_cache(capacities, n_embd, heads),
        }
    }

    fn append(&self, cache: &mut Self::Cache, qkv: &Tensor<D>, texts: &[Queries]) {
        self.device.append(&mut cache.device, &qkv.device, texts);
        self.reference.append(&mut cache.reference, &qkv.reference, texts);
    }

    fn copy_out(&self, x: &Tensor<D>, window: &Window) -> Vec<f32> {
        let expected = self.reference.copy_out(&x.reference, window);
        let of = self.reference.shape(&x.reference);
        let shape = format!("rows {:?} columns {:?} of {of:?}", window.rows, window.cols);
        let mut steps = self.steps();
        let (part, weight) = (steps.part, steps.weight.clone());
        let step = Step { kind: StepKind::CopyWindow, shape, part, weight, row: 0, error: 0.0, share: 0.0 };
        steps.pending.push(Pending {
            step,
            staged: self.device.copy_out(&x.device, window),
            cols: window.n_cols(),
            moved: expected.clone(),
            expected: expected.clone(),
        });
        expected
    }

    fn submit(&self) {
        self.device.submit();
    }

    async fn settle(&self, running: usize) -> Result<(), DeviceError> {
        // A block boundary submits before it settles, so everything pending is submitted.
        self.compare().await?;
        self.device.settle(running).await
    }

    async fn read(&self, staged: Vec<f32>) -> Result<Vec<f32>, DeviceError> {
        Ok(staged)
    }
}
