//! Two devices side by side: one that is on trial, and the reference. After every operation their results are compared, so
//! that the first operation that goes wrong is named, and every other one too. Owns the comparison of single operations;
//! which layer an operation belongs to is told by the weights that went in last.
//!
//! Both sides always get the same inputs: the reference's values, rounded to f32, flow on, on both sides. A difference is
//! therefore the operation's own. Had each side been fed its own values, errors would pile up until no bound could tell a
//! fault from rounding, and after the first fault everything would be wrong. (Had the values of the device on trial flowed
//! on, every operation would have to wait for the host to read them; the reference's are on the host already.) The price:
//! values that go bad *between* operations are mended here. `verify` sees those in whole runs, which nobody mends.
//!
//! How far apart is too far is a question of backward error. The reference computes each operation twice: once more with
//! every input moved by its last bit. What that changes is what no f32 device can be blamed for.
//! Read next: `../verify/lockstep.rs`, which drives it.

use super::reference::{self, Reference};
use super::{Device, DeviceError, DeviceInfo, Edit, Limits, MASKED, Op, StoredWeight, Window};
use std::cell::{Cell, RefCell};

/// How many times the change that a last bit in every input makes a result may be off, beside `ROUNDING`. A sum of k
/// products, added up one by one in f32, is off by about sqrt(k) / 3 of that change: 18 for gpt2's longest, k = 3,072.
pub const LAST_BITS: f64 = 32.0;

/// The part of its own norm by which a row may be off whatever its inputs are: the numeric policy's bound.
const ROUNDING: f64 = 4e-6;

/// Reading values back is compared like an operation.
const COPY: &str = "copy_out";

/// One operation that was carried out on both sides.
#[derive(Clone, Debug)]
pub struct Step {
    /// The operation's name.
    pub op: &'static str,
    /// Shapes of what went in and came out.
    pub shape: String,
    /// The weight that went in, or else the one nearby that tells the layer: the last that went into any operation before, and
    /// for the steps of a LayerNorm the one after.
    pub weight: Option<String>,
    /// The row that was furthest off.
    pub row: usize,
    /// How far off, in the norm of that row. Infinite where a NaN or infinity came out.
    pub error: f64,
    /// `error` as a share of what is allowed; above 1 the two have parted.
    pub share: f64,
}

/// The device. Runs a forward pass as any other does; what is read from it are the reference's values.
pub struct Lockstep<'a, D: Device> {
    on_trial: &'a D,
    weight: RefCell<Option<String>>,
    pending: RefCell<Vec<Pending<D>>>,
    steps: RefCell<Vec<Step>>,
    moves: Cell<u64>,
}

/// A value on both sides.
pub struct Both<A, B> {
    on_trial: A,
    truth: B,
}

/// A weight on both sides.
pub struct Named<A> {
    name: String,
    weight: Both<A, reference::Tensor>,
}

/// A step whose result has not been read yet.
struct Pending<D: Device> {
    step: Step,
    staged: D::Staged,
    cols: usize,
    truth: Vec<f32>,
    moved: Vec<f32>,
}

type Tensor<D> = Both<<D as Device>::Tensor, reference::Tensor>;

impl<'a, D: Device> Lockstep<'a, D> {
    /// Puts a device on trial.
    pub fn new(on_trial: &'a D) -> Lockstep<'a, D> {
        let (weight, pending, steps) = Default::default();
        Lockstep { on_trial, weight, pending, steps, moves: Cell::new(0) }
    }

    /// Every operation so far, in order.
    ///
    /// # Errors
    /// [`DeviceError`] when the device on trial failed.
    pub async fn finish(self) -> Result<Vec<Step>, DeviceError> {
        self.on_trial.submit();
        self.compare().await?;
        let mut steps = self.steps.into_inner();
        // The steps of a LayerNorm come before the weight that tells whose it is, and a copy belongs to what it is of.
        let mut after = None;
        for step in steps.iter_mut().rev().filter(|step| step.op != COPY) {
            match step.op {
                "layer_norm_scale" | "layer_norm_normalize" => step.weight = after.clone(),
                _ => after = step.weight.clone(),
            }
        }
        for i in 1..steps.len() {
            if steps[i].op == COPY {
                steps[i].weight = steps[i - 1].weight.clone();
            }
        }
        Ok(steps)
    }

    fn make(&self, op: &Op, x: &[&Tensor<D>], w: &[&Named<D::Weight>]) -> Tensor<D> {
        let on_trial: Vec<_> = x.iter().map(|x| &x.on_trial).collect();
        let (w_on_trial, w_truth): (Vec<_>, Vec<_>) = w.iter().map(|w| (&w.weight.on_trial, &w.weight.truth)).unzip();
        let truths: Vec<_> = x.iter().map(|x| &x.truth).collect();
        let moved: Vec<_> = truths.iter().map(|x| self.moved(x)).collect();
        let mut y = Both {
            on_trial: op.make(self.on_trial, &on_trial, &w_on_trial),
            truth: op.make(&Reference, &truths, &w_truth),
        };
        if let Some(w) = w.first() {
            self.weight.replace(Some(w.name.clone()));
        }
        let moved = op.make(&Reference, &moved.iter().collect::<Vec<_>>(), &w_truth);
        let shapes: Vec<_> = truths.iter().chain(&w_truth).map(|t| format!("{:?}", Reference.shape(t))).collect();
        let shape = shapes.join(" ");
        let all = whole(Reference.shape(&y.truth));
        self.record(op, shape, &mut y, &moved, &all);
        y
    }

    fn change(&self, op: &Op, x: &[&Tensor<D>], y: &mut Tensor<D>) {
        let on_trial: Vec<_> = x.iter().map(|x| &x.on_trial).collect();
        let truths: Vec<_> = x.iter().map(|x| &x.truth).collect();
        let moved: Vec<_> = truths.iter().map(|x| self.moved(x)).collect();
        let mut y_moved = self.moved(&y.truth);
        op.change(self.on_trial, &on_trial, &mut y.on_trial);
        op.change(&Reference, &truths, &mut y.truth);
        op.change(&Reference, &moved.iter().collect::<Vec<_>>(), &mut y_moved);
        let shapes: Vec<_> = truths.iter().map(|t| format!("{:?}", Reference.shape(t))).collect();
        let shape = shapes.join(" ");
        let [rows, cols] = Reference.shape(&y.truth);
        let changed = match op {
            // The rows of other texts are whatever they were, on a new tensor anything.
            Op::AttentionMix { text, .. } => Window { rows: vec![text.clone()], cols: 0..cols },
            _ => whole([rows, cols]),
        };
        self.record(op, shape, y, &y_moved, &changed);
    }

    /// Stages what came out on the device on trial, and lets the reference's values, rounded to f32, flow on.
    fn record(&self, op: &Op, shape: String, y: &mut Tensor<D>, moved: &reference::Tensor, window: &Window) {
        let truth = Reference.copy_out(&y.truth, window);
        self.pending.borrow_mut().push(Pending {
            step: Step {
                op: op.name(),
                shape: format!("{shape} -> {:?}", Reference.shape(&y.truth)),
                weight: self.weight.borrow().clone(),
                row: 0,
                error: 0.0,
                share: 0.0,
            },
            staged: self.on_trial.copy_out(&y.on_trial, window),
            cols: window.cols.len(),
            moved: Reference.copy_out(moved, window),
            truth: truth.clone(),
        });
        let flows_on = Edit::Replace(truth);
        self.on_trial.edit(&mut y.on_trial, window, &flows_on);
        Reference.edit(&mut y.truth, window, &flows_on);
    }

    /// The same values, each moved by one unit in its last place as f32, up or down as chance has it.
    fn moved(&self, x: &reference::Tensor) -> reference::Tensor {
        let all = whole(Reference.shape(x));
        let values = Reference.copy_out(x, &all);
        let moved = values.iter().map(|v| {
            self.moves.set(self.moves.get() + 1);
            // The highest bit of a multiplicative hash (Knuth's golden ratio).
            match *v == MASKED || self.moves.get().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 63 == 0 {
                true => v.next_up(),
                false => v.next_down(),
            }
        });
        let mut y = Reference.empty(all.rows[0].end, all.cols.end);
        Reference.edit(&mut y, &all, &Edit::Replace(moved.collect()));
        y
    }

    async fn compare(&self) -> Result<(), DeviceError> {
        let pending = std::mem::take(&mut *self.pending.borrow_mut());
        for Pending { mut step, staged, cols, truth, moved } in pending {
            let got = self.on_trial.read(staged).await?;
            let rows = got.chunks(cols).zip(truth.chunks(cols)).zip(moved.chunks(cols));
            for (row, ((got, truth), moved)) in rows.enumerate() {
                let (error, share) = apart(got, truth, moved);
                if share > step.share {
                    step = Step { row, error, share, ..step };
                }
            }
            self.steps.borrow_mut().push(step);
        }
        Ok(())
    }
}

/// How far a row is off, in its norm, and as a share of what is allowed.
fn apart(got: &[f32], truth: &[f32], moved: &[f32]) -> (f64, f64) {
    let (mut off, mut size, mut by_last_bit) = (0.0, 0.0, 0.0);
    for ((g, t), m) in got.iter().zip(truth).zip(moved) {
        // A masked score is a mark, not a number; and where the truth is no number, neither may the result be one.
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
        // Inputs at the edge of f32 may leave it when they are moved.
        by_last_bit += if m.is_finite() { (m - t) * (m - t) } else { 0.0 };
    }
    let (off, size, by_last_bit) = (off.sqrt(), size.sqrt(), by_last_bit.sqrt());
    // Devices may take numbers below the smallest normal one for zero.
    let subnormal = f64::from(f32::MIN_POSITIVE) * (got.len() as f64).sqrt();
    let share = off / (ROUNDING * size + LAST_BITS * by_last_bit + subnormal);
    (if off == 0.0 { 0.0 } else { off / size }, share)
}

fn whole([rows, cols]: [usize; 2]) -> Window {
    Window { rows: vec![0..rows], cols: 0..cols }
}

impl<D: Device> Device for Lockstep<'_, D> {
    type Tensor = Tensor<D>;
    type Weight = Named<D::Weight>;
    type Staged = Vec<f32>;

    crate::wrap_device!();

    fn info(&self) -> DeviceInfo {
        self.on_trial.info()
    }

    fn limits(&self) -> Limits {
        self.on_trial.limits()
    }

    fn load(&self, weight: &StoredWeight) -> Result<Named<D::Weight>, DeviceError> {
        let weight_of = Both { on_trial: self.on_trial.load(weight)?, truth: Reference.load(weight)? };
        Ok(Named { name: weight.name.clone(), weight: weight_of })
    }

    fn shape(&self, x: &Tensor<D>) -> [usize; 2] {
        Reference.shape(&x.truth)
    }

    fn empty(&self, rows: usize, cols: usize) -> Tensor<D> {
        Both { on_trial: self.on_trial.empty(rows, cols), truth: Reference.empty(rows, cols) }
    }

    fn copy_out(&self, x: &Tensor<D>, window: &Window) -> Vec<f32> {
        let truth = Reference.copy_out(&x.truth, window);
        let shape = format!("rows {:?} columns {:?} of {:?}", window.rows, window.cols, Reference.shape(&x.truth));
        self.pending.borrow_mut().push(Pending {
            step: Step { op: COPY, shape, weight: self.weight.borrow().clone(), row: 0, error: 0.0, share: 0.0 },
            staged: self.on_trial.copy_out(&x.on_trial, window),
            cols: window.cols.len(),
            moved: truth.clone(),
            truth: truth.clone(),
        });
        truth
    }

    fn submit(&self) {
        self.on_trial.submit();
    }

    async fn settle(&self, running: usize) -> Result<(), DeviceError> {
        // Everything pending was staged before the submit that a block boundary begins with.
        self.compare().await?;
        self.on_trial.settle(running).await
    }

    async fn read(&self, staged: Vec<f32>) -> Result<Vec<f32>, DeviceError> {
        Ok(staged)
    }
}
