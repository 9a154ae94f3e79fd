//! Products: with weights as Conv1D stores them, and with the unembedding's table. Owns which kernel takes one, by the
//! adapter's family and the number of rows.

use super::buffers::{PANEL, Tensor, Weight, WeightLayout};
use super::encoder::Variant;
use super::kernels::{self, Family, epilogue_override, weight_override};
use super::{Gpu, all, grid, whole};
use crate::device::Epilogue;
use std::ops::Range;

/// At most this many rows go through the kernels made for few rows.
const FEW_ROWS: usize = 8;

/// Rows of a tile of the kernels that broadcast.
const BROADCAST_ROWS: usize = 8;

/// Tokens of one of the unembedding.
const BROADCAST_TOKENS: usize = 32;

/// `epilogue(x[.., rows] . w[rows] + bias)`.
pub(super) struct Product<'a> {
    pub(super) x: &'a Tensor,
    pub(super) w: &'a Weight,
    pub(super) rows: Range<usize>,
    pub(super) bias: Option<&'a Weight>,
    pub(super) epilogue: Epilogue<'a, Tensor>,
}

/// `panels` x `tiles` workgroups; kernels ignore panels beyond the last.
fn panels(tiles: usize, panels: usize) -> [u32; 3] {
    let [y, z, _] = grid(panels);
    [tiles as u32, y, z]
}

impl Gpu {
    /// Writes a product into the columns of y from `y_first` on.
    pub(super) fn multiply(&self, product: Product<'_>, y: &Tensor, y_first: usize) {
        let Product { x, w, rows, bias, epilogue } = product;
        let layout = match self.family {
            Family::Tiles => WeightLayout::Rows,
            Family::Broadcast => WeightLayout::Panels,
        };
        let (weight, placed) = (self.uncut(w, layout), self.place(w, layout));
        let params = kernels::Linear {
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
        // What is not there needs a buffer all the same; the kernel does not look at it.
        let bias = bias.map_or(weight, |b| self.vector(b));
        let added = if let Epilogue::Add(a) = epilogue { Some(a) } else { None };
        let bindings = [all(x), weight, bias, added.map_or(weight, all), all(y)];
        let (dtype, epilogue) = (weight_override(placed.dtype), epilogue_override(&epilogue));
        let (variant, groups) = match self.family {
            Family::Broadcast => (
                Variant::new(&kernels::LINEAR_BROADCAST, &[dtype, epilogue]),
                panels(x.rows.div_ceil(BROADCAST_ROWS), w.cols.div_ceil(PANEL)),
            ),
            Family::Tiles if x.rows <= FEW_ROWS => {
                (Variant::new(&kernels::LINEAR_FEW, &[dtype, epilogue]), grid(w.cols.div_ceil(16)))
            }
            Family::Tiles => {
                let [kernel, _] = self.tile.kernels();
                let settings = [vec![dtype, epilogue], self.tile.settings()].concat();
                (Variant::new(kernel, &settings), self.tile.groups(x.rows, w.cols))
            }
        };
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
                x_first: (rows.start * x.cols) as u32,
                w_stride: placed.stride as u32,
                y_stride: y.cols as u32,
                y_first: before + chunk.rows.start as u32,
            };
            let (variant, groups) = match self.family {
                Family::Broadcast => (
                    Variant::new(&kernels::UNEMBED_BROADCAST, &[dtype]),
                    panels(rows.len().div_ceil(BROADCAST_ROWS), cols.div_ceil(BROADCAST_TOKENS)),
                ),
                Family::Tiles if rows.len() <= FEW_ROWS => {
                    (Variant::new(&kernels::UNEMBED_FEW, &[dtype]), grid(cols.div_ceil(16)))
                }
                Family::Tiles => {
                    let [_, kernel] = self.tile.kernels();
                    let settings = [vec![dtype], self.tile.settings()].concat();
                    (Variant::new(kernel, &settings), self.tile.groups(rows.len(), cols))
                }
            };
            self.encoder.dispatch(variant, &params, &[all(x), whole(&chunk.buffer), to], groups);
        }
    }
}
