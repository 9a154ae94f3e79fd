//! Cases: one operation on given inputs, shared by tests, `verify` and benches. Owns the inputs and the comparison with
//! the reference. Read next: `list.rs`, which lists the cases.

use super::measure::{self, Off};
use crate::device::reference::Reference;
use crate::device::{Blob, Change, Device, DeviceError, Dtype, Op, Operands, Part, Queries, StoredWeight, Window};
use std::sync::Arc;

/// Random numbers from a fixed seed, roughly normal with standard deviation 1 (each is the sum of four uniform
/// numbers).
#[derive(Debug)]
pub struct Numbers(pub u64);

impl Numbers {
    /// The next number.
    #[allow(clippy::should_implement_trait, reason = "an endless iterator could be collected by mistake")]
    pub fn next(&mut self) -> f32 {
        let uniform = |state: &mut u64| {
            // Steele et al. 2014, splitmix64.
            *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        (0..4).map(|_| uniform(&mut self.0)).sum::<f32>() * 1.7
    }

    /// `n` numbers with standard deviation `scale`.
    pub fn many(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| self.next() * scale).collect()
    }
}

/// A matrix [rows, cols] on the host, row-major.
#[derive(Clone, Debug)]
pub struct Host {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// `rows * cols` values.
    pub values: Vec<f32>,
}

impl Host {
    /// Random values with standard deviation `scale`.
    pub fn random(rows: usize, cols: usize, scale: f32, seed: u64) -> Host {
        Host { rows, cols, values: Numbers(seed).many(rows * cols, scale) }
    }

    /// The window that covers the whole matrix.
    pub fn window(&self) -> Window {
        Window::all([self.rows, self.cols])
    }

    /// Uploads it to a device as a tensor.
    pub fn on<D: Device>(&self, dev: &D) -> D::Tensor {
        dev.upload([self.rows, self.cols], self.values.clone())
    }

    /// Converts it to a weight stored as `dtype`. Values outside the range of `dtype` become infinite.
    pub fn weight(&self, dtype: Dtype) -> StoredWeight {
        let bytes: Vec<u8> = match dtype {
            Dtype::F32 => self.values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Dtype::F16 => self.values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
            Dtype::Bf16 => self.values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
        };
        let range = 0..bytes.len();
        let (rows, cols, blob) = (self.rows, self.cols, Blob::new(Arc::new(bytes), range));
        StoredWeight { name: "case".into(), part: Part::default(), dtype, rows, cols, blob }
    }

    fn only(&self, rows: &[usize]) -> Host {
        let values = rows.iter().flat_map(|r| &self.values[r * self.cols..][..self.cols]).copied().collect();
        Host { rows: rows.len(), cols: self.cols, values }
    }
}

/// One operation on given inputs, and the tolerance for its result.
#[derive(Clone, Debug)]
pub struct Case {
    /// The operation.
    pub op: Op,
    /// The tensors that it takes.
    pub tensors: Vec<Host>,
    /// The weights that it takes, and how they are stored.
    pub weights: Vec<(Host, Dtype)>,
    /// The part of the result that is compared: all of it (`None`), unless the reference would take too long.
    pub looked_at: Option<Window>,
    /// Absolute tolerance: `|got - want| <= atol + rtol |want|`.
    pub atol: f64,
    /// Relative tolerance; see `atol`.
    pub rtol: f64,
    /// The texts of the first tensor whose keys and values are put in a cache before, for attention over a cache.
    pub cached: Option<Vec<Queries>>,
    /// What is special about the values, for messages.
    pub note: &'static str,
    /// What the case tests.
    pub of: Tested,
}

/// What a case tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tested {
    /// Its operation.
    #[default]
    Operation,
    /// The readback of a part of a tensor.
    Readback,
}

/// A case's inputs, on a device.
#[derive(Debug)]
pub struct Inputs<D: Device> {
    tensors: Vec<D::Tensor>,
    weights: Vec<D::Weight>,
}

impl Case {
    /// A case whose result must be exact, unless `within` sets a tolerance.
    pub fn new(op: Op, tensors: Vec<Host>, weights: Vec<(Host, Dtype)>) -> Case {
        Case {
            op,
            tensors,
            weights,
            looked_at: None,
            atol: 0.0,
            rtol: 0.0,
            cached: None,
            note: "",
            of: Tested::Operation,
        }
    }

    /// Allows `|got - want| <= atol + rtol |want|`.
    pub fn within(self, atol: f64, rtol: f64) -> Case {
        Case { atol, rtol, ..self }
    }

    /// Sets the note about what is special about the values.
    pub fn noted(self, note: &'static str) -> Case {
        Case { note, ..self }
    }

    /// Compares only these rows of the result. For operations in which each row depends only on the same row of every
    /// tensor.
    pub fn looking_at(self, rows: &[usize], cols: usize) -> Case {
        let rows = rows.iter().map(|r| *r..r + 1).collect();
        Case { looked_at: Some(Window { rows, cols: vec![0..cols] }), ..self }
    }

    /// Describes the case: shapes in the order of the operation's arguments, and how its weights are stored.
    pub fn what(&self) -> String {
        let shape = |host: &Host| format!("[{}, {}]", host.rows, host.cols);
        let mut words: Vec<String> =
            self.tensors.iter().chain(self.weights.iter().map(|(w, _)| w)).map(shape).collect();
        let of_text = |text: &Queries| {
            if text.n_keys == text.rows.len() {
                format!("rows {:?}", text.rows)
            } else {
                format!("rows {:?}, {} keys", text.rows, text.n_keys)
            }
        };
        match &self.op {
            Op::Attention { texts, heads } => words.push(format!(
                "{} heads, texts {:?}",
                heads.n_head,
                texts.iter().map(|text| text.rows.len()).collect::<Vec<_>>()
            )),
            Op::AttentionScores { text, heads }
            | Op::AttentionMix { text, heads }
            | Op::AttentionMixGradient { text, heads }
            | Op::AttentionMixValuesGradient { text, heads }
            | Op::AttentionScoresGradient { text, heads } => {
                words.push(format!("{} heads, {}", heads.n_head, of_text(text)));
            }
            Op::LinearByHead { n_head }
            | Op::SumHeads { n_head }
            | Op::LinearByHeadGradient { n_head }
            | Op::SumHeadsGradient { n_head } => words.push(format!("{n_head} heads")),
            Op::Embed { ids } => words.push(format!("{} ids", ids.len())),
            Op::LayerNorm { eps } | Op::LayerNormScale { eps } | Op::LayerNormGradient { eps } => {
                words.push(format!("eps {eps:e}"));
            }
            Op::LinearOfNorm { eps, f } => {
                words.push(format!("eps {eps:e}"));
                words.extend(f.map(|f| format!("{f:?}")));
            }
            Op::Activation { f } | Op::LinearActivation { f } | Op::ActivationGradient { f } => {
                words.push(format!("{f:?}"))
            }
            Op::GatherRows { parts } => words.push(format!("{} parts", parts.len())),
            Op::Edit { window, change } => {
                let kind = match change {
                    Change::Zero => "zero",
                    Change::Scale(_) => "scale",
                    Change::Add(_) => "add",
                    Change::Replace(_) => "replace",
                };
                words.push(format!("{kind} rows {:?} columns {:?}", window.rows, window.cols));
            }
            // The other operations have no parameters.
            _ => {}
        }
        // Vectors are always f32, so their type is not worth a mention.
        words.extend(self.weights.iter().filter(|(w, _)| w.rows > 1).map(|(_, dtype)| format!("{dtype:?}")));
        words.extend((!self.note.is_empty()).then(|| self.note.to_string()));
        words.join(" ")
    }

    /// Uploads the inputs to a device.
    ///
    /// # Errors
    /// [`DeviceError::TooLarge`] when the device cannot bind a weight.
    pub fn inputs<D: Device>(&self, dev: &D) -> Result<Inputs<D>, DeviceError> {
        let weights = self.weights.iter().map(|(w, dtype)| dev.load(&w.weight(*dtype))).collect::<Result<_, _>>()?;
        Ok(Inputs { tensors: self.tensors.iter().map(|x| x.on(dev)).collect(), weights })
    }

    /// Runs the operation.
    pub fn run<D: Device>(&self, dev: &D, inputs: &Inputs<D>) -> D::Tensor {
        let Inputs { tensors, weights } = inputs;
        let (tensors, weights): (Vec<_>, Vec<_>) = (tensors.iter().collect(), weights.iter().collect());
        let cache = self.cached.as_ref().map(|texts| {
            let (Op::Attention { heads, .. } | Op::AttentionScores { heads, .. } | Op::AttentionMix { heads, .. }) =
                &self.op
            else {
                panic!("only attention has a cache")
            };
            let capacities: Vec<usize> = texts.iter().map(|text| text.n_keys).collect();
            let mut cache = dev.new_cache(&capacities, self.tensors[0].cols / 3, *heads);
            dev.append(&mut cache, tensors[0], texts);
            cache
        });
        dev.run(&self.op, Operands { tensors: &tensors, weights: &weights, cache: cache.as_ref() })
    }

    /// A device's result for the compared part.
    ///
    /// # Errors
    /// [`DeviceError`] when the device fails.
    pub async fn on<D: Device>(&self, dev: &D) -> Result<Vec<f32>, DeviceError> {
        let inputs = self.inputs(dev)?;
        // Fill the memory that the result will probably reuse with NaN, so that elements the operation does not write
        // show.
        let [rows, cols] = self.result_shape();
        drop(dev.upload([rows, cols], vec![f32::NAN; rows * cols]));
        let y = self.run(dev, &inputs);
        let staged = dev.copy_out(&y, self.looked_at.as_ref().unwrap_or(&Window::all(dev.shape(&y))));
        dev.submit();
        dev.read(staged).await
    }

    fn result_shape(&self) -> [usize; 2] {
        let tensors: Vec<_> = self.tensors.iter().map(|x| [x.rows, x.cols]).collect();
        let weights: Vec<_> = self.weights.iter().map(|(w, _)| [w.rows, w.cols]).collect();
        self.op.result_shape(&tensors, &weights)
    }

    /// The reference's result for the compared part.
    pub fn expected(&self) -> Vec<f32> {
        let (of_rows, cols) = match &self.looked_at {
            // Compute only the selected rows.
            Some(window) if !matches!(self.op, Op::Edit { .. }) && self.cached.is_none() => {
                let rows: Vec<usize> = window.each_row().collect();
                let tensors = self.tensors.iter().map(|x| x.only(&rows)).collect();
                (Case { tensors, looked_at: None, ..self.clone() }, Some(window.cols.clone()))
            }
            _ => (self.clone(), None),
        };
        let reference = Reference::default();
        let inputs = of_rows.inputs(&reference).expect("the reference takes weights of any size");
        let y = of_rows.run(&reference, &inputs);
        let all = Window::all(reference.shape(&y));
        let seen = Window { cols: cols.unwrap_or(all.cols), ..all };
        reference.copy_out(&y, of_rows.looked_at.as_ref().unwrap_or(&seen))
    }

    /// Compares a result with the expected one.
    pub fn judge(&self, got: &[f32], expected: &[f32]) -> Off {
        measure::elements(got, expected, self.atol, self.rtol)
    }
}
