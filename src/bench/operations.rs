//! The operations that cost, at gpt2-small's shapes, fused as `model.rs` fuses them. Owns the list, what each must compute and
//! move at least, and their timing. `verify/list.rs` has the shapes that are awkward; these are those that are run.

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

/// Seconds for all of them,
const BUDGET: f64 = 24.0;

/// and for one run of one.
const LONGEST: f64 = 0.4;

/// Bytes of weights that take turns. In a run a block's weights come from memory, since those of all other blocks were read
/// since, so here there are as many copies of one as push it out of caches.
const TURNS: f64 = (128 << 20) as f64;

/// An operation of the model, for any number of tokens.
pub struct Operation {
    /// The operation, and the weight that it is for.
    pub name: &'static str,
    op: fn(usize) -> Op,
    /// Columns of the tensors that it takes, [tokens, columns] each,
    tensors: &'static [usize],
    /// the weights,
    weights: &'static [[usize; 2]],
    /// and columns of what it gives.
    result: usize,
    /// Floating-point operations: of products, one multiply-add counting as two, without bias, activation function and sum.
    flops: fn(usize) -> usize,
}

/// In the order of a run.
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
    /// Floating-point operations for so many tokens.
    pub fn flops(&self, tokens: usize) -> f64 {
        (self.flops)(tokens) as f64
    }

    /// Bytes that must be moved for so many tokens: everything that goes in read once, everything that comes out written once.
    pub fn bytes(&self, tokens: usize) -> f64 {
        let columns: usize = self.tensors.iter().sum::<usize>() + self.result;
        self.weight_bytes() + 4.0 * (tokens * columns) as f64
    }

    /// With random numbers of the size that they have in a model.
    pub fn case(&self, tokens: usize) -> Case {
        let weight = |(i, [rows, cols]): (usize, &[usize; 2])| {
            let fan_in = if *rows == N_VOCAB { cols } else { rows };
            (Host::random(*rows, *cols, (*fan_in as f32).powf(-0.5), 200 + i as u64), Dtype::F32)
        };
        Case { weights: self.weights.iter().enumerate().map(weight).collect(), ..self.without_weights(tokens) }
    }

    fn without_weights(&self, tokens: usize) -> Case {
        let tensor = |(i, cols): (usize, &usize)| Host::random(tokens, *cols, 1.0, 100 + i as u64);
        // As near as `verify/list.rs` wants products of 768 and of 3,072.
        Case::new((self.op)(tokens), self.tensors.iter().enumerate().map(tensor).collect(), vec![]).within(3e-5, 3e-5)
    }

    /// Bytes of the weights.
    fn weight_bytes(&self) -> f64 {
        4.0 * self.weights.iter().map(|[rows, cols]| rows * cols).sum::<usize>() as f64
    }

    /// How many copies of the weights take turns; a few vectors stay in caches in a run too.
    fn copies(&self) -> usize {
        if self.weight_bytes() > 1e6 { (TURNS / self.weight_bytes()).ceil() as usize } else { 1 }
    }

    /// Brings the weights to a device, once for each turn, and uses each until it is in the form in which it stays.
    ///
    /// # Errors
    /// [`DeviceError`] where the device cannot hold them, or failed.
    pub async fn on<'a, D: Measured>(&'a self, dev: &'a D) -> Result<OnDevice<'a, D>, DeviceError> {
        let weights: Vec<_> = self.case(0).weights.iter().map(|(w, dtype)| w.weight(*dtype)).collect();
        let load = |_| weights.iter().map(|w| dev.load(w)).collect::<Result<_, _>>();
        let weights = (0..self.copies()).map(load).collect::<Result<_, _>>()?;
        let on_device = OnDevice { operation: self, dev, weights };
        let mut run = on_device.with_inputs(1);
        // A weight that is used a second time is packed.
        dev.seconds(|| run(2 * self.copies())).await?;
        drop(run);
        Ok(on_device)
    }
}

/// An operation whose weights are where they are needed.
pub struct OnDevice<'a, D: Measured> {
    operation: &'a Operation,
    dev: &'a D,
    weights: Vec<Vec<D::Weight>>,
}

impl<D: Measured> OnDevice<'_, D> {
    /// Brings inputs for so many tokens to the device; gives back what does the operation, or records it, a number of times,
    /// each time with the next weights.
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
    /// Which.
    pub name: &'static str,
    /// Rows of its tensors.
    pub tokens: usize,
    /// How long it takes.
    pub timing: Timing,
    /// Floating-point operations a second.
    pub arithmetic: f64,
    /// Bytes a second, of those that must be moved.
    pub moving: f64,
}

/// Times all of them; `step` is told after each.
pub(super) async fn measure<D: Measured>(
    dev: &D,
    left_out: &mut Vec<LeftOut>,
    step: &mut dyn FnMut(),
) -> Result<Vec<OperationRow>, DeviceError> {
    let (mut budget, mut rows) = (Budget::new(BUDGET, LONGEST, left_out), Vec::new());
    for operation in OPERATIONS {
        let on_device = operation.on(dev).await?;
        // Seconds for each floating-point operation.
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
