//! The expensive operations of a run, at gpt2-small's shapes. Owns their list, the least that each must compute and
//! move, and their timing. `src/verify/list.rs` lists operations with unusual shapes, for correctness.
//! Read next: `time.rs`, then `forward.rs` for whole runs.

use super::time::{Budget, Timing};
use super::{FEW, LeftOut, TOKENS};
use crate::device::probe::Measured;
use crate::device::{Activation, DeviceError, Dtype, Heads, Op, Operands, Queries};
use crate::verify::cases::{Case, Host};

const N_EMBD: usize = 768;
const N_INNER: usize = 4 * N_EMBD;
const N_HEAD: usize = 12;
const N_VOCAB: usize = 50_257;
const EPS: f64 = 1e-5;

/// Seconds for all operations.
const BUDGET: f64 = 24.0;

/// The most seconds for one run of one operation.
const LONGEST: f64 = 0.4;

/// Bytes of all copies of a weight. In a run the weights of a block come from memory, because the other blocks have
/// pushed them out of the caches. Here several copies of a weight take turns, for the same effect.
const TURNS: f64 = (128 << 20) as f64;

/// An operation of the model, for any number of tokens.
#[derive(Debug)]
pub struct Operation {
    /// The operation and its weight.
    pub name: &'static str,
    op: fn(usize) -> Op,
    /// Columns of its input tensors, which are [tokens, columns].
    tensors: &'static [usize],
    /// Shapes of its weights.
    weights: &'static [[usize; 2]],
    /// Columns of its result.
    result: usize,
    /// Floating-point operations for a number of tokens. A multiply-add counts as two. Bias, activation function and
    /// added tensor of a product do not count.
    flops: fn(usize) -> usize,
}

/// The list, in the order of a run.
pub static OPERATIONS: &[Operation] = &[
    Operation {
        name: "layer_norm ln_1",
        op: |_| Op::LayerNorm { eps: EPS },
        tensors: &[N_EMBD],
        weights: &[[1, N_EMBD], [1, N_EMBD]],
        result: N_EMBD,
        // Mean 1, variance 3, normalizing 2, gain and bias 2.
        flops: |t| 8 * t * N_EMBD,
    },
    Operation {
        name: "linear c_attn",
        op: |_| Op::Linear {},
        tensors: &[N_EMBD],
        weights: &[[N_EMBD, 3 * N_EMBD], [1, 3 * N_EMBD]],
        result: 3 * N_EMBD,
        flops: |t| 2 * t * N_EMBD * 3 * N_EMBD,
    },
    Operation {
        name: "attention",
        op: |t| Op::Attention { texts: vec![Queries::whole(0..t)], heads: Heads { n_head: N_HEAD, scale: 0.125 } },
        tensors: &[3 * N_EMBD],
        weights: &[],
        result: N_EMBD,
        // Two products over the lower half of [t, t].
        flops: |t| 2 * t * (t + 1) * N_EMBD,
    },
    Operation {
        name: "linear_add attn.c_proj",
        op: |_| Op::LinearAdd {},
        tensors: &[N_EMBD, N_EMBD],
        weights: &[[N_EMBD, N_EMBD], [1, N_EMBD]],
        result: N_EMBD,
        flops: |t| 2 * t * N_EMBD * N_EMBD,
    },
    Operation {
        name: "linear_activation c_fc",
        op: |_| Op::LinearActivation { f: Activation::GeluTanh },
        tensors: &[N_EMBD],
        weights: &[[N_EMBD, N_INNER], [1, N_INNER]],
        result: N_INNER,
        flops: |t| 2 * t * N_EMBD * N_INNER,
    },
    Operation {
        name: "linear_add mlp.c_proj",
        op: |_| Op::LinearAdd {},
        tensors: &[N_EMBD, N_INNER],
        weights: &[[N_INNER, N_EMBD], [1, N_EMBD]],
        result: N_EMBD,
        flops: |t| 2 * t * N_INNER * N_EMBD,
    },
    Operation {
        name: "unembed wte",
        op: |_| Op::Unembed {},
        tensors: &[N_EMBD],
        weights: &[[N_VOCAB, N_EMBD]],
        result: N_VOCAB,
        flops: |t| 2 * t * N_EMBD * N_VOCAB,
    },
];

impl Operation {
    /// Floating-point operations for this number of tokens.
    pub fn flops(&self, tokens: usize) -> f64 {
        (self.flops)(tokens) as f64
    }

    /// The least number of bytes to move for this number of tokens: every input read once, the result written once.
    pub fn bytes(&self, tokens: usize) -> f64 {
        let columns: usize = self.tensors.iter().sum::<usize>() + self.result;
        self.weight_bytes() + 4.0 * (tokens * columns) as f64
    }

    /// The operation with random inputs, as large as in a trained model.
    pub fn case(&self, tokens: usize) -> Case {
        let weight = |(i, [rows, cols]): (usize, &[usize; 2])| {
            let fan_in = if *rows == N_VOCAB { cols } else { rows };
            (Host::random(*rows, *cols, (*fan_in as f32).powf(-0.5), 200 + i as u64), Dtype::F32)
        };
        Case { weights: self.weights.iter().enumerate().map(weight).collect(), ..self.without_weights(tokens) }
    }

    fn without_weights(&self, tokens: usize) -> Case {
        let tensor = |(i, cols): (usize, &usize)| Host::random(tokens, *cols, 1.0, 100 + i as u64);
        // The tolerances of `verify/list.rs` for products with k of 768 and of 3,072.
        Case::new((self.op)(tokens), self.tensors.iter().enumerate().map(tensor).collect(), vec![]).within(3e-5, 3e-5)
    }

    /// Bytes of the weights.
    fn weight_bytes(&self) -> f64 {
        4.0 * self.weights.iter().map(|[rows, cols]| rows * cols).sum::<usize>() as f64
    }

    /// The number of copies of the weights. Small vectors have one, because they stay in the caches during a run too.
    fn copies(&self) -> usize {
        if self.weight_bytes() > 1e6 { (TURNS / self.weight_bytes()).ceil() as usize } else { 1 }
    }

    /// Loads all copies of the weights, and uses each until it has its final form on the device.
    ///
    /// # Errors
    /// [`DeviceError`] if the device cannot hold the weights, or fails.
    pub async fn on<'a, D: Measured>(&'a self, dev: &'a D) -> Result<OnDevice<'a, D>, DeviceError> {
        let weights: Vec<_> = self.case(0).weights.iter().map(|(w, dtype)| w.weight(*dtype)).collect();
        let load = |_| weights.iter().map(|w| dev.load(w)).collect::<Result<_, _>>();
        let weights = (0..self.copies()).map(load).collect::<Result<_, _>>()?;
        let on_device = OnDevice { operation: self, dev, weights };
        let mut run = on_device.with_inputs(1);
        // The device `cpu` packs a weight at its second use.
        dev.seconds(|| run(2 * self.copies())).await?;
        drop(run);
        Ok(on_device)
    }
}

/// An operation with its weights on a device.
pub struct OnDevice<'a, D: Measured> {
    operation: &'a Operation,
    dev: &'a D,
    weights: Vec<Vec<D::Weight>>,
}

impl<D: Measured> std::fmt::Debug for OnDevice<'_, D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OnDevice").field("operation", &self.operation.name).finish_non_exhaustive()
    }
}

impl<D: Measured> OnDevice<'_, D> {
    /// Uploads inputs for this number of tokens. Returns a function that does or records the operation a number of
    /// times, each time with the next copy of the weights.
    pub fn with_inputs(&self, tokens: usize) -> impl FnMut(usize) {
        let case = self.operation.without_weights(tokens);
        let tensors: Vec<D::Tensor> = case.tensors.iter().map(|x| x.on(self.dev)).collect();
        let mut next = self.weights.iter().cycle();
        move |times| {
            for weights in next.by_ref().take(times) {
                let (x, w): (Vec<_>, Vec<_>) = (tensors.iter().collect(), weights.iter().collect());
                drop(self.dev.run(&case.op, Operands::new(&x, &w)));
            }
        }
    }
}

/// One operation at one number of tokens.
#[derive(Clone, Debug)]
pub struct OperationRow {
    /// The name of the operation.
    pub name: &'static str,
    /// Rows of its tensors.
    pub tokens: usize,
    /// The time of one run.
    pub timing: Timing,
    /// Floating-point operations per second.
    pub arithmetic: f64,
    /// Bytes per second, where [`Operation::bytes`] counts the bytes.
    pub moving: f64,
}

/// Times all operations. Calls `step` after each.
pub(super) async fn measure<D: Measured>(
    dev: &D,
    left_out: &mut Vec<LeftOut>,
    step: &mut dyn FnMut(),
) -> Result<Vec<OperationRow>, DeviceError> {
    let (mut budget, mut rows) = (Budget::new(BUDGET, LONGEST, left_out), Vec::new());
    for operation in OPERATIONS {
        let on_device = operation.on(dev).await?;
        // Seconds per floating-point operation.
        let mut cost = 0.0;
        for tokens in TOKENS {
            let mut run = on_device.with_inputs(tokens);
            let expected = if tokens > FEW { cost * operation.flops(tokens) } else { 0.0 };
            let batch = async |runs: usize| dev.seconds(|| run(runs)).await;
            let row = format!("{} at {tokens} tokens", operation.name);
            let (flops, bytes) = (operation.flops(tokens), operation.bytes(tokens));
            let timed = budget.time(&row, expected, batch).await?;
            cost = timed.map_or_else(|once| once, |timing| timing.seconds) / flops;
            if let Ok(timing) = timed {
                let (arithmetic, moving) = (flops / timing.seconds, bytes / timing.seconds);
                rows.push(OperationRow { name: operation.name, tokens, timing, arithmetic, moving });
            }
        }
        step();
    }
    Ok(rows)
}
