//! Products: with weights as Conv1D stores them, and with the unembedding's table. Owns which kernel takes one, by the
//! adapter's family, the number of rows and what autotuning found, and how k is shared among workgroups.

use super::attention::all4;
use super::autotune::Tuning;
use super::buffers::{PANEL, Tensor, Weight, WeightLayout};
use super::encoder::Variant;
use super::kernels::{self, Family, Kernel, epilogue_override, weight_override};
use super::{Gpu, all, elements, grid, whole};
use crate::device::Epilogue;
use std::ops::Range;

/// At most this many rows go through the kernels made for few rows.
const FEW_ROWS: usize = 8;

/// Rows of a tile of the kernels that broadcast.
const BROADCAST_ROWS: usize = 8;

/// Tokens of one of the unembedding.
const BROADCAST_TOKENS: usize = 32;

/// A share of k has at least this many steps: fewer would not pay for adding up the shares.
const LEAST_STEPS: usize = 64;

/// How a product of the tiles family is carried out.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The kernel.
    pub kernel: &'static Kernel,
    /// Its generated constants, in the order of its table entry.
    pub consts: Vec<u32>,
    /// Workgroups in each dimension; along the last one lie the parts of k.
    pub groups: [u32; 3],
    /// Steps of k that one part adds up.
    pub k_part: usize,
}

impl Plan {
    /// The product `[rows, k] . [k, cols]`, in as many shares of k as are needed to keep the adapter busy.
    pub fn linear(tuning: &Tuning, rows: usize, k: usize, cols: usize) -> Plan {
        let plan = Plan::in_parts(tuning, rows, k, k, cols);
        if rows <= FEW_ROWS {
            return plan; // its workgroups share k already
        }
        let [x, y, _] = plan.groups;
        let wanted = (tuning.of(rows).least_groups as usize).div_ceil(x as usize * y as usize);
        let parts = wanted.clamp(1, (k / LEAST_STEPS).max(1));
        Plan::in_parts(tuning, rows, k, if parts == 1 { k } else { k / parts / 16 * 16 }, cols)
    }

    /// The same with parts of `k_part` steps each.
    fn in_parts(tuning: &Tuning, rows: usize, k: usize, k_part: usize, cols: usize) -> Plan {
        let parts = k.div_ceil(k_part) as u32;
        if rows <= FEW_ROWS {
            let [x, y, _] = grid(cols.div_ceil(16));
            let consts = vec![few(rows)];
            return Plan { kernel: &kernels::LINEAR_FEW, consts, groups: [x, y, parts], k_part };
        }
        let tile = tuning.of(rows).tile;
        let [x, y, _] = tile.groups(rows, cols);
        Plan { kernel: tile.kernels()[0], consts: tile.settings(), groups: [x, y, parts], k_part }
    }

    /// The product with the unembedding's table, or with `cols` rows of it.
    pub fn unembed(tuning: &Tuning, rows: usize, k: usize, cols: usize) -> Plan {
        if rows <= FEW_ROWS {
            let consts = vec![few(rows)];
            return Plan { kernel: &kernels::UNEMBED_FEW, consts, groups: grid(cols.div_ceil(16)), k_part: k };
        }
        let tile = tuning.of(rows).tile;
        Plan { kernel: tile.kernels()[1], consts: tile.settings(), groups: tile.groups(rows, cols), k_part: k }
    }

    /// Workgroups of its dispatch.
    pub fn workgroups(&self) -> usize {
        self.groups.iter().map(|n| *n as usize).product()
    }

    fn parts(&self) -> usize {
        self.groups[2] as usize
    }

    /// The kernel with its constants, for a weight and an epilogue, where it has one.
    fn variant(&self, dtype: u32, epilogue: Option<u32>, aligned: bool) -> Variant {
        let overrides = [Some(dtype), epilogue, Some(u32::from(aligned))].into_iter().flatten();
        Variant::new(self.kernel, &overrides.chain(self.consts.iter().copied()).collect::<Vec<_>>())
    }
}

/// The number of rows that a kernel for few rows is made for.
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

/// `panels` x `tiles` workgroups; kernels ignore panels beyond the last.
fn panels(tiles: usize, panels: usize) -> [u32; 3] {
    let [y, z, _] = grid(panels);
    [tiles as u32, y, z]
}

/// The tensor that an epilogue adds.
fn added<'a>(epilogue: &Epilogue<'a, Tensor>) -> Option<&'a Tensor> {
    if let Epilogue::Add(a) = epilogue { Some(a) } else { None }
}

/// Whether kernels may read x four elements at a time, as `lib/x4.wgsl` says.
fn aligned(x_stride: usize, k: usize, k_part: usize) -> bool {
    x_stride.is_multiple_of(4) && k.is_multiple_of(16) && k_part.is_multiple_of(16)
}

impl Gpu {
    /// The product with a whole weight, as a new tensor.
    pub(super) fn product(&self, x: &Tensor, w: &Weight, bias: &Weight, epilogue: Epilogue<'_, Tensor>) -> Tensor {
        assert!(x.cols == w.rows && bias.cols == w.cols);
        if let Epilogue::Add(a) = epilogue {
            assert_eq!([a.rows, a.cols], [x.rows, w.cols]);
        }
        let y = self.empty(x.rows, w.cols);
        let product = Product { x, w, bias: Some(bias), epilogue };
        match self.family {
            Family::Broadcast => self.multiply_broadcast(&product, 0..w.rows, &y, 0),
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

    /// Each head's columns of z times its rows of the weight, side by side, without bias.
    pub(super) fn product_by_head(&self, z: &Tensor, w: &Weight, n_head: usize) -> Tensor {
        assert_eq!(z.cols, w.rows);
        let head_dim = z.cols / n_head;
        let y = self.empty(z.rows, n_head * w.cols);
        let product = Product { x: z, w, bias: None, epilogue: Epilogue::None };
        match self.family {
            Family::Broadcast => (0..n_head).for_each(|head| {
                self.multiply_broadcast(&product, head * head_dim..(head + 1) * head_dim, &y, head * w.cols);
            }),
            Family::Tiles => {
                let plan = Plan::in_parts(&self.tuning, z.rows, z.cols, head_dim, w.cols);
                self.multiply(&product, &plan, &y, w.cols);
            }
        }
        y
    }

    /// Shares of k by themselves, and then their sum: a share has neither bias nor epilogue.
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

    /// Writes a product whose parts begin `y_part` elements of y apart.
    fn multiply(&self, product: &Product<'_>, plan: &Plan, y: &Tensor, y_part: usize) {
        let Product { x, w, bias, epilogue } = *product;
        let (weight, placed) = (self.uncut(w, WeightLayout::Rows), self.place(w, WeightLayout::Rows));
        let params = kernels::Linear {
            rows: x.rows as u32,
            k: x.cols as u32,
            k_part: plan.k_part as u32,
            cols: w.cols as u32,
            x_stride: x.cols as u32,
            w_stride: placed.stride as u32,
            y_stride: y.cols as u32,
            y_part: y_part as u32,
            has_bias: bias.is_some() as u32,
        };
        // What is not there needs a buffer all the same; the kernel does not look at it.
        let bias = bias.map_or(weight, |b| self.vector(b));
        let bindings = [all4(x), weight, bias, added(&epilogue).map_or(weight, all), all(y)];
        let aligned = aligned(x.cols, x.cols, plan.k_part);
        let variant = plan.variant(weight_override(placed.dtype), Some(epilogue_override(&epilogue)), aligned);
        self.encoder.dispatch(variant, &params, &bindings, plan.groups);
    }

    /// Writes the product of some of k into the columns of y from `y_first` on.
    fn multiply_broadcast(&self, product: &Product<'_>, rows: Range<usize>, y: &Tensor, y_first: usize) {
        let Product { x, w, bias, epilogue } = *product;
        let (weight, placed) = (self.uncut(w, WeightLayout::Panels), self.place(w, WeightLayout::Panels));
        let params = kernels::LinearBroadcast {
            rows: x.rows as u32,
            k: rows.len() as u32,
            cols: w.cols as u32,
            x_stride: x.cols as u32,
            x_first: rows.start as u32,
            w_stride: placed.stride as u32,
            w_first_row: rows.start as u32,
            y_stride: y.cols as u32,
            y_first: y_first as u32,
            has_bias: bias.is_some() as u32,
        };
        let bias = bias.map_or(weight, |b| self.vector(b));
        let bindings = [all(x), weight, bias, added(&epilogue).map_or(weight, all), all(y)];
        let settings = [weight_override(placed.dtype), epilogue_override(&epilogue)];
        let variant = Variant::new(&kernels::LINEAR_BROADCAST, &settings);
        let groups = panels(x.rows.div_ceil(BROADCAST_ROWS), w.cols.div_ceil(PANEL));
        self.encoder.dispatch(variant, &params, &bindings, groups);
    }

    /// `x[rows] . tableᵀ` into rows of y.
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

    /// Compiles a kernel and runs nothing, for `tools/gpu-isa`. `settings` are its overrides and then its constants.
    #[doc(hidden)]
    pub fn compile(&self, kernel: &'static Kernel, settings: &[u32]) {
        self.encoder.pipeline(Variant::new(kernel, settings));
    }
}
