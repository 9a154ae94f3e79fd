//! Products with weights as Conv1D stores them, and with the table of the unembedding. Owns the choice of kernel, by
//! family, number of rows and autotuning, and how k is split among workgroups.
//! Read next: `autotune.rs` for the tiles, `shaders/linear.wgsl` for the kernel.

use super::attention::all4;
#[cfg(not(target_arch = "wasm32"))]
use super::autotune::Tile;
use super::autotune::Tuning;
use super::bind_groups::Binding;
use super::buffers::{PANEL, Placed, Tensor, Weight, WeightLayout};
use super::encoder::Variant;
use super::kernels::{self, Family, Kernel, epilogue_override, weight_override};
use super::{Gpu, all, elements, grid, whole};
use crate::device::{Activation, Epilogue};
use std::ops::Range;

/// Products of at most this many rows use the kernels for few rows.
pub(super) const FEW_ROWS: usize = 8;

/// Rows of a tile of the broadcast kernels.
const BROADCAST_ROWS: usize = 8;

/// Tokens of a tile of the broadcast unembedding.
const BROADCAST_TOKENS: usize = 32;

/// A part of k has at least this many steps. Shorter parts would cost more to add up than they save.
const LEAST_STEPS: usize = 64;

/// How a product of the tiles family is dispatched.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The kernel.
    pub kernel: &'static Kernel,
    /// The values of its generated constants, in the order of its table entry, without FOURS, which follows from the type
    /// of the weight.
    pub consts: Vec<u32>,
    /// Workgroups in each dimension. The last dimension counts the parts of k.
    pub groups: [u32; 3],
    /// Steps of k in one part.
    pub k_part: usize,
}

impl Plan {
    /// The product `[rows, k] . [k, cols]`. k is split into as many parts as keep the adapter busy.
    pub fn linear(tuning: &Tuning, rows: usize, k: usize, cols: usize) -> Plan {
        let plan = Plan::in_parts(tuning, rows, k, k, cols);
        if rows <= FEW_ROWS {
            return plan; // the workgroup of this kernel splits k itself
        }
        let [x, y, _] = plan.groups;
        let wanted = (tuning.of(rows, k, cols).least_groups as usize).div_ceil(x as usize * y as usize);
        let parts = wanted.clamp(1, (k / LEAST_STEPS).max(1));
        Plan::in_parts(tuning, rows, k, if parts == 1 { k } else { k / parts / 16 * 16 }, cols)
    }

    /// [`Plan::linear`] with parts of `k_part` steps each.
    fn in_parts(tuning: &Tuning, rows: usize, k: usize, k_part: usize, cols: usize) -> Plan {
        let parts = k.div_ceil(k_part) as u32;
        if rows <= FEW_ROWS {
            let [x, y, _] = grid(cols.div_ceil(16));
            let consts = vec![few(rows)];
            return Plan { kernel: &kernels::LINEAR_FEW, consts, groups: [x, y, parts], k_part };
        }
        let tile = tuning.of(rows, k, cols).tile;
        let [x, y, _] = tile.groups(rows, cols);
        Plan { kernel: tile.kernels()[0], consts: tile.settings(), groups: [x, y, parts], k_part }
    }

    /// The product with `cols` rows of the unembedding's table.
    pub fn unembed(tuning: &Tuning, rows: usize, k: usize, cols: usize) -> Plan {
        if rows <= FEW_ROWS {
            let consts = vec![few(rows)];
            return Plan { kernel: &kernels::UNEMBED_FEW, consts, groups: grid(cols.div_ceil(16)), k_part: k };
        }
        let tile = tuning.of(rows, k, cols).tile;
        Plan { kernel: tile.kernels()[1], consts: tile.settings(), groups: tile.groups(rows, cols), k_part: k }
    }

    /// The number of workgroups.
    pub fn workgroups(&self) -> usize {
        self.groups.iter().map(|n| *n as usize).product()
    }

    fn parts(&self) -> usize {
        self.groups[2] as usize
    }

    /// The kernel with its constants, for a weight of type `dtype`. The unembedding has no epilogue.
    fn variant(&self, dtype: u32, epilogue: Option<u32>, aligned: bool) -> Variant {
        let overrides = [Some(dtype), epilogue, Some(u32::from(aligned))].into_iter().flatten();
        // The kernels for few rows have one more constant, FOURS: the groups of four elements of the weight in a load of 16 bytes,
        // 1 for f32 and 2 for half precision.
        let lacks_fours = self.consts.len() < self.kernel.consts.len();
        let fours = lacks_fours.then_some(if dtype == 0 { 1 } else { 2 });
        Variant::new(self.kernel, &overrides.chain(self.consts.iter().copied()).chain(fours).collect::<Vec<_>>())
    }
}

/// The number of rows for which a kernel for few rows is compiled.
fn few(rows: usize) -> u32 {
    (rows as u32).next_power_of_two()
}

/// `epilogue(x . w + bias)`.
pub(super) struct Product<'a> {
    pub(super) x: &'a Tensor,
    pub(super) w: &'a Weight,
    pub(super) bias: Option<&'a Weight>,
    pub(super) epilogue: Epilogue<'a, Tensor>,
}

/// `panels` x `tiles` workgroups. Kernels ignore panels after the last.
fn panels(tiles: usize, panels: usize) -> [u32; 3] {
    let [y, z, _] = grid(panels);
    [tiles as u32, y, z]
}

/// The tensor that an epilogue adds.
fn added<'a>(epilogue: &Epilogue<'a, Tensor>) -> Option<&'a Tensor> {
    if let Epilogue::Add(a) = epilogue { Some(a) } else { None }
}

/// True if kernels may read x four elements at a time, as `lib/x_vec4.wgsl` explains.
fn aligned(x_stride: usize, k: usize, k_part: usize) -> bool {
    x_stride.is_multiple_of(4) && k.is_multiple_of(16) && k_part.is_multiple_of(16)
}

impl Gpu {
    /// Returns the product with a whole weight.
    pub(super) fn product(&self, x: &Tensor, w: &Weight, bias: &Weight, epilogue: Epilogue<'_, Tensor>) -> Tensor {
        assert!(x.cols == w.rows && bias.cols == w.cols);
        if let Epilogue::Add(a) = epilogue {
            assert_eq!([a.rows, a.cols], [x.rows, w.cols]);
        }
        let y = self.empty(x.rows, w.cols);
        let product = Product { x, w, bias: Some(bias), epilogue };
        match self.family {
            Family::Broadcast => self.multiply_broadcast(&product, 1, &y),
            Family::Tiles => {
                let plan = Plan::linear(&self.tuning, x.rows, x.cols, w.cols);
                match plan.parts() {
                    1 => self.multiply(&product, &plan, &y, 0),
                    parts => self.multiply_and_join(&product, &plan, parts, &y),
                }
            }
        }
        y
    }

    /// The product with the rows of x after LayerNorm. For few rows it is one kernel.
    pub(super) fn product_of_norm(
        &self,
        x: &Tensor,
        norm: [&Weight; 2],
        [w, bias]: [&Weight; 2],
        eps: f64,
        f: Option<Activation>,
    ) -> Tensor {
        let epilogue = f.map_or(Epilogue::None, Epilogue::Activation);
        if self.family == Family::Broadcast || x.rows > FEW_ROWS {
            return self.product(&self.layer_norm(x, norm[0], norm[1], eps), w, bias, epilogue);
        }
        assert!(x.cols == w.rows && bias.cols == w.cols && norm.iter().all(|vector| vector.cols == x.cols));
        let y = self.empty(x.rows, w.cols);
        let plan = Plan::linear(&self.tuning, x.rows, x.cols, w.cols);
        let (weight, placed) = (self.uncut(w, WeightLayout::Rows), self.place(w, WeightLayout::Rows));
        let params = kernels::Linear {
            rows: x.rows as u32,
            k: x.cols as u32,
            k_part: x.cols as u32,
            cols: w.cols as u32,
            x_stride: x.cols as u32,
            w_stride: placed.stride as u32,
            y_stride: y.cols as u32,
            y_part: 0,
            has_bias: 1,
            eps: eps as f32,
        };
        let [gain, shift] = norm.map(|vector| self.vector(vector));
        let bindings = [all4(x), weight, self.vector(bias), weight, all(&y), gain, shift];
        let aligned = aligned(x.cols, x.cols, x.cols);
        let plan = Plan { kernel: &kernels::LINEAR_FEW_NORM, ..plan };
        let variant = plan.variant(weight_override(placed.dtype), Some(epilogue_override(&epilogue)), aligned);
        self.encoder.dispatch(variant, &params, &bindings, plan.groups);
        y
    }

    /// The product of each head: its columns of z times its rows of the weight. The results lie side by side, without
    /// bias.
    pub(super) fn product_by_head(&self, z: &Tensor, w: &Weight, n_head: usize) -> Tensor {
        assert_eq!(z.cols, w.rows);
        if n_head == 1 && w.is_cut(self.max_binding) {
            return self.product_with_cut(z, w);
        }
        let head_dim = z.cols / n_head;
        let y = self.empty(z.rows, n_head * w.cols);
        let product = Product { x: z, w, bias: None, epilogue: Epilogue::None };
        match self.family {
            Family::Broadcast => self.multiply_broadcast(&product, n_head, &y),
            Family::Tiles => {
                let plan = Plan::in_parts(&self.tuning, z.rows, z.cols, head_dim, w.cols);
                self.multiply(&product, &plan, &y, w.cols);
            }
        }
        y
    }

    /// Multiplies each part of k separately, and then adds up the parts. Only the sum gets the bias and the epilogue.
    fn multiply_and_join(&self, product: &Product<'_>, plan: &Plan, parts: usize, y: &Tensor) {
        let shares = self.empty(parts * y.rows, y.cols);
        let share = Product { bias: None, epilogue: Epilogue::None, ..*product };
        self.multiply(&share, plan, &shares, y.len());
        let params = kernels::LinearJoin {
            n: y.len() as u32,
            cols: y.cols as u32,
            parts: parts as u32,
            has_bias: product.bias.is_some() as u32,
        };
        let bias = product.bias.map_or(all(&shares), |b| self.vector(b));
        let bindings = [all(&shares), bias, added(&product.epilogue).map_or(all(&shares), all), all(y)];
        let variant = Variant::new(&kernels::LINEAR_JOIN, &[epilogue_override(&product.epilogue)]);
        self.encoder.dispatch(variant, &params, &bindings, elements(y.len()));
    }

    /// The product with rows of a weight that one binding holds.
    pub(super) fn product_with_part(&self, x: &Tensor, weight: Binding<'_>, placed: &Placed, cols: usize) -> Tensor {
        let y = self.empty(x.rows, cols);
        let plan = Plan::in_parts(&self.tuning, x.rows, x.cols, x.cols, cols);
        self.multiply_with(x, (weight, placed, cols), (None, Epilogue::None), &plan, &y, 0);
        y
    }

    /// Writes all parts of a product into y. They begin `y_part` elements apart.
    fn multiply(&self, product: &Product<'_>, plan: &Plan, y: &Tensor, y_part: usize) {
        let Product { x, w, bias, epilogue } = *product;
        let weight = (self.uncut(w, WeightLayout::Rows), self.place(w, WeightLayout::Rows), w.cols);
        self.multiply_with(x, weight, (bias, epilogue), plan, y, y_part);
    }

    fn multiply_with(
        &self,
        x: &Tensor,
        (weight, placed, cols): (Binding<'_>, &Placed, usize),
        (bias, epilogue): (Option<&Weight>, Epilogue<'_, Tensor>),
        plan: &Plan,
        y: &Tensor,
        y_part: usize,
    ) {
        let params = kernels::Linear {
            rows: x.rows as u32,
            k: x.cols as u32,
            k_part: plan.k_part as u32,
            cols: cols as u32,
            x_stride: x.cols as u32,
            w_stride: placed.stride as u32,
            y_stride: y.cols as u32,
            y_part: y_part as u32,
            has_bias: bias.is_some() as u32,
            eps: 0.0,
        };
        // Every binding needs a buffer. The kernel does not read the one of an absent bias or tensor.
        let bias = bias.map_or(weight, |b| self.vector(b));
        let bindings = [all4(x), weight, bias, added(&epilogue).map_or(weight, all), all(y)];
        let aligned = aligned(x.cols, x.cols, plan.k_part);
        let variant = plan.variant(weight_override(placed.dtype), Some(epilogue_override(&epilogue)), aligned);
        self.encoder.dispatch(variant, &params, &bindings, plan.groups);
    }

    /// Writes the products of equal parts of k side by side into y.
    fn multiply_broadcast(&self, product: &Product<'_>, parts: usize, y: &Tensor) {
        let Product { x, w, bias, epilogue } = *product;
        let (weight, placed) = (self.uncut(w, WeightLayout::Panels), self.place(w, WeightLayout::Panels));
        let params = kernels::LinearBroadcast {
            rows: x.rows as u32,
            k: (w.rows / parts) as u32,
            parts: parts as u32,
            cols: w.cols as u32,
            x_stride: x.cols as u32,
            w_stride: placed.stride as u32,
            y_stride: y.cols as u32,
            has_bias: bias.is_some() as u32,
        };
        let bias = bias.map_or(weight, |b| self.vector(b));
        let bindings = [all(x), weight, bias, added(&epilogue).map_or(weight, all), all(y)];
        let settings = [weight_override(placed.dtype), epilogue_override(&epilogue)];
        let variant = Variant::new(&kernels::LINEAR_BROADCAST, &settings);
        let groups = panels(x.rows.div_ceil(BROADCAST_ROWS), parts * w.cols.div_ceil(PANEL));
        self.encoder.dispatch(variant, &params, &bindings, groups);
    }

    /// Writes `x[rows] . tableᵀ` into the same rows of y.
    pub(super) fn unembed_part(&self, x: &Tensor, table: &Weight, y: &Tensor, rows: Range<usize>) {
        let placed = self.place(table, WeightLayout::Rows);
        let dtype = weight_override(placed.dtype);
        let (to, before) = self.some_rows(y, &rows);
        for chunk in &placed.chunks {
            let cols = chunk.rows.len();
            let params = kernels::Unembed {
                rows: rows.len() as u32,
                k: x.cols as u32,
                cols: cols as u32,
                x_stride: x.cols as u32,
                x_first: (rows.start * x.cols) as u32,
                w_stride: placed.stride as u32,
                y_stride: y.cols as u32,
                y_first: before + chunk.rows.start as u32,
            };
            let (variant, groups, from) = match self.family {
                Family::Broadcast => (
                    Variant::new(&kernels::UNEMBED_BROADCAST, &[dtype]),
                    panels(rows.len().div_ceil(BROADCAST_ROWS), cols.div_ceil(BROADCAST_TOKENS)),
                    all(x),
                ),
                Family::Tiles => {
                    let plan = Plan::unembed(&self.tuning, rows.len(), x.cols, cols);
                    let variant = plan.variant(dtype, None, aligned(x.cols, x.cols, x.cols));
                    (variant, plan.groups, all4(x))
                }
            };
            self.encoder.dispatch(variant, &params, &[from, whole(&chunk.buffer), to], groups);
        }
    }

    /// Compiles the products with f32 weights of a tile, without an epilogue.
    #[cfg(not(target_arch = "wasm32"))]
    pub(super) fn compile_product(&self, tile: Tile) {
        let tuning = Tuning::all(tile);
        let plan = Plan::linear(&tuning, FEW_ROWS + 1, 16, 4);
        self.encoder.pipeline(plan.variant(0, Some(0), true));
    }

    /// Compiles a kernel without running it, for `tools/gpu-isa`. `settings` are the values of its overrides, then of
    /// its constants.
    #[doc(hidden)]
    pub fn compile(&self, kernel: &'static Kernel, settings: &[u32]) {
        self.encoder.pipeline(Variant::new(kernel, settings));
    }
}
