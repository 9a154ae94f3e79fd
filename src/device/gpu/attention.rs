//! Attention: the fused kernels, the separate kernels for scores and mix where a run captures or edits the pattern, and the
//! gradients of both, which run the separate kernels on other tensors. The softmax between scores and mix is in `mod.rs`.
//! Owns [`Cache`], the position of queries, keys and values in their tensors, and the table that passes these positions
//! to the kernels.
//! Read next: `shaders/attention.wgsl`.

use super::bind_groups::Binding;
use super::buffers::Tensor;
use super::encoder::Variant;
use super::kernels::{self, Family, TextRows};
use super::{Gpu, all, elements, whole};
use crate::device::{Heads, MASKED, Queries};
use parking_lot::Mutex;
use std::collections::VecDeque;

/// Queries per workgroup of the tiled kernels, and keys per workgroup of `attention_scores`.
const QUERIES: usize = 32;
const SCORE_KEYS: usize = 64;

/// Texts of at most this many queries have a workgroup for each query.
const FEW_QUERIES: usize = 4;

/// A part of the keys has at least about this many. Shorter parts would cost more to put together than they save.
const LEAST_KEYS: usize = 64;

/// The most parts of the keys.
const MOST_PARTS: usize = 4;

/// With this many workgroups a large GPU is busy.
const BUSY_GROUPS: usize = 2048;

/// Queries per workgroup of the broadcast kernel.
const BROADCAST_QUERIES: usize = 8;

/// Dimensions of z per workgroup.
const DIMS: usize = 64;

/// The keys and values of one layer. Every text has as many rows as its capacity, and each row is `[k | v]`.
#[derive(Debug)]
pub struct Cache {
    rows: Tensor,
    /// The first row of each text, then the total number of rows.
    starts: Vec<usize>,
}

impl Cache {
    pub(super) fn new(gpu: &Gpu, capacities: &[usize], n_embd: usize) -> Cache {
        let mut starts = vec![0];
        capacities.iter().for_each(|capacity| starts.push(starts[starts.len() - 1] + capacity));
        Cache { rows: gpu.empty(starts[capacities.len()], 2 * n_embd), starts }
    }

    /// Writes the keys and values of each text's rows of qkv [T, 3D] at the positions of its queries, in one dispatch.
    pub(super) fn append(&mut self, gpu: &Gpu, qkv: &Tensor, texts: &[Queries]) {
        let [n_embd, cols] = [self.rows.cols / 2, self.rows.cols];
        let fits = |text: &Queries| text.n_keys <= self.starts[text.text + 1] - self.starts[text.text];
        assert!(texts.iter().all(fits), "a cache has room for every position");
        let of_texts = Qkv::new(qkv, Some(self));
        let rows = of_texts.rows_of_all(texts);
        let Some(most) = rows.iter().map(|text| text.n_query as usize).max() else { return };
        let params = kernels::CacheAppend { first_col: n_embd as u32, x_stride: qkv.cols as u32, cols: cols as u32 };
        let [x, y, _] = elements(most * cols);
        let table = gpu.table(&rows);
        let bindings = [whole(&table), all(qkv), all(&self.rows)];
        gpu.encoder.dispatch((&kernels::CACHE_APPEND).into(), &params, &bindings, [x, y, rows.len() as u32]);
    }
}

/// The tensors and columns of queries, keys and values. Keys and values lie in one tensor.
#[derive(Clone, Copy)]
pub(super) struct Qkv<'a> {
    q: &'a Tensor,
    kv: &'a Tensor,
    k_col: usize,
    v_col: usize,
    cache: Option<&'a Cache>,
}

impl<'a> Qkv<'a> {
    pub(super) fn new(qkv: &'a Tensor, cache: Option<&'a Cache>) -> Qkv<'a> {
        let n_embd = qkv.cols / 3;
        match cache {
            Some(cache) => Qkv { q: qkv, kv: &cache.rows, k_col: 0, v_col: n_embd, cache: Some(cache) },
            None => Qkv { q: qkv, kv: qkv, k_col: n_embd, v_col: 2 * n_embd, cache: None },
        }
    }

    /// Where each text is, without those that have no queries.
    fn rows_of_all(&self, texts: &[Queries]) -> Vec<TextRows> {
        texts.iter().map(|text| self.rows_of(text)).filter(|text| text.n_query > 0).collect()
    }

    /// The value of the override `ALIGNED`.
    fn aligned(&self, heads: HeadShape) -> u32 {
        aligned(heads, &[(self.q, 0), (self.kv, self.k_col), (self.kv, self.v_col)])
    }

    /// The parameters of the kernels that compute z, without those that only [`Gpu::attention_in_parts`] sets.
    fn params(&self, heads: HeadShape, z: &Tensor) -> kernels::Attention {
        kernels::Attention {
            q_stride: self.q.cols as u32,
            q_col: 0,
            kv_stride: self.kv.cols as u32,
            k_col: self.k_col as u32,
            v_col: self.v_col as u32,
            z_stride: z.cols as u32,
            n_head: heads.n_head as u32,
            head_dim: heads.head_dim as u32,
            scale: heads.scale,
            ..Default::default()
        }
    }

    fn rows_of(&self, text: &Queries) -> TextRows {
        TextRows {
            q_row: text.rows.start as u32,
            n_query: text.rows.len() as u32,
            position: text.first_position() as u32,
            k_row: self.cache.map_or(text.rows.start, |cache| cache.starts[text.text]) as u32,
            n_key: text.n_keys as u32,
        }
    }
}

/// The number of heads, their width, and the factor of their scores.
#[derive(Clone, Copy)]
struct HeadShape {
    n_head: usize,
    head_dim: usize,
    scale: f32,
}

impl HeadShape {
    fn new(n_embd: usize, heads: Heads) -> HeadShape {
        HeadShape { n_head: heads.n_head, head_dim: n_embd / heads.n_head, scale: heads.scale as f32 }
    }

    /// The number of heads, times the number of chunks of [`DIMS`] dimensions in each.
    fn parts(&self) -> u32 {
        (self.n_head * self.head_dim.div_ceil(DIMS)) as u32
    }
}

/// The rows of a gradient: as many queries as keys, with the queries in rows of their own and the keys from row `k_row` on.
fn rows_of_positions(n_pos: usize, k_row: usize) -> TextRows {
    TextRows { q_row: 0, n_query: n_pos as u32, position: 0, k_row: k_row as u32, n_key: n_pos as u32 }
}

/// The tables of rows that were uploaded last. The layers of a run share them: one table for all texts, and up to three more for
/// each text if attention runs in steps.
#[derive(Debug, Default)]
pub(super) struct RowsTable(Mutex<VecDeque<(Vec<TextRows>, wgpu::Buffer)>>);

/// The most tables that are kept.
const TABLES: usize = 48;

/// A tensor as vectors of four elements. The last vector may extend past the tensor, but not past its buffer.
pub(super) fn all4(x: &Tensor) -> Binding<'_> {
    Binding { size: all(x).size.next_multiple_of(16), ..all(x) }
}

/// The value of the override `ALIGNED`. `tensors` lists each tensor with the first column that is read.
fn aligned(heads: HeadShape, tensors: &[(&Tensor, usize)]) -> u32 {
    let fits = |(x, col): &(&Tensor, usize)| x.cols.is_multiple_of(4) && col.is_multiple_of(4);
    u32::from(heads.head_dim.is_multiple_of(4) && tensors.iter().all(fits))
}

impl Gpu {
    /// The table on the device, uploaded if it is a new one.
    fn table(&self, texts: &[TextRows]) -> wgpu::Buffer {
        let mut tables = self.rows_table.0.lock();
        if let Some((_, buffer)) = tables.iter().find(|(same, _)| same == texts) {
            return buffer.clone();
        }
        if tables.len() == TABLES {
            tables.pop_front();
        }
        let buffer = self.uploaded("text rows", texts);
        tables.push_back((texts.to_vec(), buffer.clone()));
        buffer
    }

    /// z [T, D]. Rows that belong to no text have arbitrary values.
    pub(super) fn attention(&self, qkv: Qkv<'_>, texts: &[Queries], heads: Heads) -> Tensor {
        let z = self.empty(qkv.q.rows, qkv.q.cols / 3);
        let heads = HeadShape::new(z.cols, heads);
        let rows = qkv.rows_of_all(texts);
        let Some(most) = rows.iter().map(|text| text.n_query as usize).max() else { return z };
        let is_few = most <= FEW_QUERIES;
        if self.family == Family::Tiles && !is_few {
            self.attention_in_parts(&qkv, &rows, heads, most, &z);
            return z;
        }
        // One dimension of a dispatch has at most 65,535 workgroups. A batch has fewer tokens than that, and at most as
        // many texts.
        let (table, params) = (self.table(&rows), qkv.params(heads, &z));
        if self.family == Family::Tiles {
            let variant = Variant::new(&kernels::ATTENTION_FEW, &[qkv.aligned(heads), params.head_dim]);
            let bindings = [whole(&table), all4(qkv.q), all4(qkv.kv), all(&z)];
            self.encoder.dispatch(variant, &params, &bindings, [most as u32, params.n_head, rows.len() as u32]);
        } else {
            let bindings = [whole(&table), all(qkv.q), all(qkv.kv), all(&z)];
            let groups = [most.div_ceil(BROADCAST_QUERIES) as u32, heads.parts(), rows.len() as u32];
            self.encoder.dispatch((&kernels::ATTENTION_BROADCAST).into(), &params, &bindings, groups);
        }
        z
    }

    /// [`Gpu::attention`] in tiles of [`QUERIES`] queries. If there are too few tiles to keep the adapter busy, the keys are split
    /// into parts: otherwise one workgroup would go through all keys of a long text while most of the GPU has no work.
    fn attention_in_parts(&self, qkv: &Qkv<'_>, rows: &[TextRows], heads: HeadShape, most: usize, z: &Tensor) {
        let blocks = most.div_ceil(QUERIES);
        let groups = blocks * heads.parts() as usize * rows.len();
        let n_key = rows.iter().map(|text| text.n_key as usize).max().unwrap_or(0);
        let parts = (n_key / LEAST_KEYS).min(MOST_PARTS).min(BUSY_GROUPS / groups).max(1);
        let params = kernels::Attention {
            parts: parts as u32,
            part_keys: n_key.div_ceil(parts).next_multiple_of(16) as u32,
            n_row: z.rows as u32,
            ..qkv.params(heads, z)
        };
        let variant = Variant::new(&kernels::ATTENTION, &[qkv.aligned(heads), params.head_dim]);
        let (table, groups) = (self.table(rows), [(blocks * parts) as u32, heads.parts(), rows.len() as u32]);
        let moments = self.empty(parts * z.rows, 2 * heads.n_head);
        if parts == 1 {
            let bindings = [whole(&table), all4(qkv.q), all4(qkv.kv), all(z), all(&moments)];
            return self.encoder.dispatch(variant, &params, &bindings, groups);
        }
        let sums = self.empty(parts * z.rows, z.cols);
        let bindings = [whole(&table), all4(qkv.q), all4(qkv.kv), all(&sums), all(&moments)];
        self.encoder.dispatch(variant, &params, &bindings, groups);
        let params = kernels::AttentionJoin {
            n: z.len() as u32,
            z_stride: z.cols as u32,
            n_head: heads.n_head as u32,
            parts: parts as u32,
        };
        let bindings = [all(&sums), all(&moments), all(z)];
        self.encoder.dispatch((&kernels::ATTENTION_JOIN).into(), &params, &bindings, elements(z.len()));
    }

    /// The scores of one text, `[n_head * n_query, n_key]`.
    pub(super) fn attention_scores(&self, qkv: Qkv<'_>, text: &Queries, heads: Heads) -> Tensor {
        let heads = HeadShape::new(qkv.q.cols / 3, heads);
        let scores = self.empty(heads.n_head * text.rows.len(), text.n_keys);
        self.scores(heads, (qkv.q, qkv.rows_of(text)), (qkv.kv, qkv.k_col), (heads.scale, MASKED), &scores);
        scores
    }

    /// Writes `scale * queries . keys` of one text, head by head, and `unseen` where a key comes after the query. The keys
    /// begin at column `k_col`.
    fn scores(
        &self,
        heads: HeadShape,
        (queries, rows): (&Tensor, TextRows),
        (keys, k_col): (&Tensor, usize),
        (scale, unseen): (f32, f32),
        scores: &Tensor,
    ) {
        let params = kernels::AttentionScores {
            q_stride: queries.cols as u32,
            q_col: 0,
            kv_stride: keys.cols as u32,
            k_col: k_col as u32,
            scale,
            unseen,
        };
        let aligned = aligned(heads, &[(queries, 0), (keys, k_col)]);
        let variant = Variant::new(&kernels::ATTENTION_SCORES, &[aligned, heads.head_dim as u32]);
        let groups_of = |n: u32, each: usize| (n as usize).div_ceil(each) as u32;
        let groups = [groups_of(rows.n_key, SCORE_KEYS), groups_of(rows.n_query, QUERIES), heads.n_head as u32];
        let table = self.table(&[rows]);
        let bindings = [whole(&table), all4(queries), all4(keys), all(scores)];
        self.encoder.dispatch(variant, &params, &bindings, groups);
    }

    /// z [Q, D] of one text: its pattern `[n_head * n_query, n_key]` times its values.
    pub(super) fn attention_mix(&self, pattern: &Tensor, qkv: Qkv<'_>, text: &Queries, heads: Heads) -> Tensor {
        assert_eq!([pattern.rows, pattern.cols], [heads.n_head * text.rows.len(), text.n_keys]);
        let z = self.empty(text.rows.len(), qkv.q.cols / 3);
        let heads = HeadShape::new(z.cols, heads);
        // The pattern and z have only the rows of this text, so its first query is row 0.
        let rows = TextRows { q_row: 0, ..qkv.rows_of(text) };
        self.mix(heads, (pattern, false), (qkv.kv, qkv.v_col), rows, 1.0, (&z, 0));
        z
    }

    /// Writes `scale * pattern . values`, head by head, into the columns of z from `z_col` on. With `transposed`, the pattern
    /// is `[n_head * n_key, n_query]`.
    fn mix(
        &self,
        heads: HeadShape,
        (pattern, transposed): (&Tensor, bool),
        (values, v_col): (&Tensor, usize),
        rows: TextRows,
        scale: f32,
        (z, z_col): (&Tensor, usize),
    ) {
        let params = kernels::AttentionMix {
            kv_stride: values.cols as u32,
            v_col: v_col as u32,
            z_stride: z.cols as u32,
            z_col: z_col as u32,
            query_step: if transposed { 1 } else { rows.n_key },
            key_step: if transposed { rows.n_query } else { 1 },
            scale,
        };
        let aligned = aligned(heads, &[(values, v_col)]);
        let variant = Variant::new(&kernels::ATTENTION_MIX, &[aligned, heads.head_dim as u32]);
        let table = self.table(&[rows]);
        let bindings = [whole(&table), all(pattern), all4(values), all(z)];
        let groups = [(rows.n_query as usize).div_ceil(QUERIES) as u32, heads.parts(), 1];
        self.encoder.dispatch(variant, &params, &bindings, groups);
    }

    /// `dz . v` of one text, `[n_head * n_query, n_query]`: scores with other queries and keys.
    pub(super) fn attention_mix_gradient(&self, dz: &Tensor, qkv: &Tensor, text: &Queries, heads: Heads) -> Tensor {
        let n_pos = text.rows.len();
        assert!(text.n_keys == n_pos && dz.rows == n_pos && qkv.cols == 3 * dz.cols);
        let (heads, v_col) = (HeadShape::new(dz.cols, heads), 2 * dz.cols);
        let dpattern = self.empty(heads.n_head * n_pos, n_pos);
        let rows = TextRows { q_row: 0, ..Qkv::new(qkv, None).rows_of(text) };
        self.scores(heads, (dz, rows), (qkv, v_col), (1.0, 0.0), &dpattern);
        dpattern
    }

    /// `patternᵀ . dz` of one text, in the last third of the columns.
    pub(super) fn attention_mix_values_gradient(
        &self,
        pattern: &Tensor,
        dz: &Tensor,
        text: &Queries,
        heads: Heads,
    ) -> Tensor {
        let n_pos = text.rows.len();
        assert_eq!([pattern.rows, pattern.cols, dz.rows], [heads.n_head * n_pos, n_pos, n_pos]);
        let y = self.zeros(n_pos, 3 * dz.cols);
        // The rows of dz and of the result are those of this text alone.
        let rows = rows_of_positions(n_pos, 0);
        self.mix(HeadShape::new(dz.cols, heads), (pattern, true), (dz, 0), rows, 1.0, (&y, 2 * dz.cols));
        y
    }

    /// `scale * dscores . k` and `scale * dscoresᵀ . q` of one text, in the first two thirds of the columns.
    pub(super) fn attention_scores_gradient(
        &self,
        dscores: &Tensor,
        qkv: &Tensor,
        text: &Queries,
        heads: Heads,
    ) -> Tensor {
        let (n_pos, n_embd) = (text.rows.len(), qkv.cols / 3);
        assert_eq!([dscores.rows, dscores.cols, text.n_keys], [heads.n_head * n_pos, n_pos, n_pos]);
        let y = self.zeros(n_pos, qkv.cols);
        let heads = HeadShape::new(n_embd, heads);
        let rows = rows_of_positions(n_pos, text.rows.start);
        self.mix(heads, (dscores, false), (qkv, n_embd), rows, heads.scale, (&y, 0));
        self.mix(heads, (dscores, true), (qkv, 0), rows, heads.scale, (&y, n_embd));
        y
    }
}
