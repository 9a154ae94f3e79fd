//! Attention: the fused kernel, and the scores and mix around a pattern that is tapped. Owns where queries, keys and values
//! lie, which may be two tensors, the cache of keys and values, and the tables that tell kernels so.

use super::bind_groups::Binding;
use super::buffers::Tensor;
use super::encoder::Variant;
use super::kernels::{self, Family, TextRows};
use super::{Gpu, all, elements, whole};
use std::ops::Range;
use crate::device::{Heads, Queries};
use parking_lot::Mutex;

/// Queries of a workgroup of the tiled kernels, and keys of one of the scores'.
const QUERIES: usize = 32;
const KEYS: usize = 64;

/// Queries of a workgroup of the kernel that broadcasts.
const BROADCAST_QUERIES: usize = 8;

/// Dimensions of a workgroup of any of them.
const DIMS: usize = 64;

/// Queries, keys and values: a tensor and a column each. Keys and values lie in one tensor.
#[derive(Clone, Copy)]
struct Qkv<'a> {
    q: &'a Tensor,
    q_col: usize,
    kv: &'a Tensor,
    k_col: usize,
    v_col: usize,
}

/// The keys and values of one layer: a tensor [positions, 2D], the texts below one another.
#[derive(Debug)]
pub struct Cache {
    kv: Tensor,
    /// The rows of each text: as many as it may have positions.
    texts: Vec<Range<usize>>,
}

/// The heads: how many, how wide, and by what their scores are multiplied.
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

    /// Heads times parts of 64 dimensions.
    fn parts(&self) -> u32 {
        (self.n_head * self.head_dim.div_ceil(DIMS)) as u32
    }
}

/// The table of rows that was uploaded last: every layer of a run has the same.
#[derive(Debug, Default)]
pub(super) struct RowsTable(Mutex<Option<(Vec<TextRows>, wgpu::Buffer)>>);

/// A tensor as vectors of four elements. The last may reach beyond the tensor, never beyond its buffer.
pub(super) fn all4(x: &Tensor) -> Binding<'_> {
    Binding { size: all(x).size.next_multiple_of(16), ..all(x) }
}

/// The value of `ALIGNED` for tensors that are read from certain columns on.
fn aligned(heads: HeadShape, tensors: &[(&Tensor, usize)]) -> u32 {
    let fits = |(x, col): &(&Tensor, usize)| x.cols.is_multiple_of(4) && col.is_multiple_of(4);
    u32::from(heads.head_dim.is_multiple_of(4) && tensors.iter().all(fits))
}

/// Where one text's queries are in their tensor and its keys in theirs.
fn rows_of(text: &Queries, cache: Option<&Cache>) -> TextRows {
    let k_row = cache.map_or(text.rows.start, |cache| cache.texts[text.text].start);
    TextRows {
        q_row: text.rows.start as u32,
        n_query: text.rows.len() as u32,
        position: text.first_position() as u32,
        k_row: k_row as u32,
        n_key: text.n_keys as u32,
    }
}

impl<'a> Qkv<'a> {
    /// Queries in qkv [T, 3D], and keys and values in the cache or beside them.
    fn new(qkv: &'a Tensor, cache: Option<&'a Cache>) -> Qkv<'a> {
        let n_embd = qkv.cols / 3;
        match cache {
            Some(cache) => Qkv { q: qkv, q_col: 0, kv: &cache.kv, k_col: 0, v_col: n_embd },
            None => Qkv { q: qkv, q_col: 0, kv: qkv, k_col: n_embd, v_col: 2 * n_embd },
        }
    }
}

impl Gpu {
    pub(super) fn new_kv_cache(&self, capacities: &[usize], n_embd: usize) -> Cache {
        let mut end = 0;
        let text = |capacity: &usize| {
            end += capacity;
            end - capacity..end
        };
        let texts = capacities.iter().map(text).collect();
        let bytes = 4 * (end * 2 * n_embd) as u64;
        if bytes > self.max_binding {
            let most = self.max_binding;
            self.fault.keep(&format!("the keys and values of a layer take {bytes} bytes, and one binding at most {most}"));
        }
        Cache { kv: self.empty(end, 2 * n_embd), texts }
    }

    /// Copies the columns k | v of the queries' rows to their positions in the cache.
    pub(super) fn append_to(&self, cache: &Cache, qkv: &Tensor, texts: &[Queries]) {
        let n_embd = qkv.cols / 3;
        for text in texts {
            let place = &cache.texts[text.text];
            assert!(text.n_keys <= place.len(), "a cache has room for every position");
            let to = place.start + text.first_position()..place.start + text.n_keys;
            let ((source, before), (target, after)) = (self.some_rows(qkv, &text.rows), self.some_rows(&cache.kv, &to));
            let n = text.rows.len() * 2 * n_embd;
            let params = kernels::CopyOut {
                n: n as u32,
                first_col: before + n_embd as u32,
                cols: 2 * n_embd as u32,
                x_stride: qkv.cols as u32,
                y_first: after,
                y_stride: cache.kv.cols as u32,
            };
            self.encoder.dispatch((&kernels::COPY_OUT).into(), &params, &[source, target], elements(n));
        }
    }

    pub(super) fn attention(&self, qkv: &Tensor, cache: Option<&Cache>, texts: &[Queries], heads: Heads) -> Tensor {
        let z = self.empty(qkv.rows, qkv.cols / 3);
        let rows: Vec<TextRows> = texts.iter().map(|text| rows_of(text, cache)).collect();
        self.attend(Qkv::new(qkv, cache), &rows, HeadShape::new(z.cols, heads), &z);
        z
    }

    pub(super) fn attention_scores(
        &self,
        qkv: &Tensor,
        cache: Option<&Cache>,
        text: &Queries,
        heads: Heads,
    ) -> Tensor {
        self.scores(Qkv::new(qkv, cache), rows_of(text, cache), HeadShape::new(qkv.cols / 3, heads))
    }

    pub(super) fn attention_mix(
        &self,
        pattern: &Tensor,
        qkv: &Tensor,
        cache: Option<&Cache>,
        text: &Queries,
        heads: Heads,
    ) -> Tensor {
        let z = self.empty(text.rows.len(), qkv.cols / 3);
        let Qkv { kv, v_col, .. } = Qkv::new(qkv, cache);
        // The rows of z begin with the text's first query.
        let rows = TextRows { q_row: 0, ..rows_of(text, cache) };
        self.mix(pattern, kv, v_col, rows, HeadShape::new(z.cols, heads), &z);
        z
    }

    /// The table on the device.
    fn table(&self, texts: &[TextRows]) -> wgpu::Buffer {
        let mut last = self.rows_table.0.lock();
        match &*last {
            Some((same, buffer)) if same == texts => buffer.clone(),
            _ => {
                let buffer = self.uploaded("text rows", texts);
                *last = Some((texts.to_vec(), buffer.clone()));
                buffer
            }
        }
    }

    /// Writes z's rows of every text, from its queries on: `z [.., n_head * head_dim]`.
    fn attend(&self, qkv: Qkv<'_>, texts: &[TextRows], heads: HeadShape, z: &Tensor) {
        let params = kernels::Attention {
            q_stride: qkv.q.cols as u32,
            q_col: qkv.q_col as u32,
            kv_stride: qkv.kv.cols as u32,
            k_col: qkv.k_col as u32,
            v_col: qkv.v_col as u32,
            z_stride: z.cols as u32,
            head_dim: heads.head_dim as u32,
            scale: heads.scale,
        };
        let most = texts.iter().map(|text| text.n_query as usize).max().unwrap_or_default();
        let table = self.table(texts);
        let (variant, bindings, queries) = match self.family {
            Family::Tiles => {
                let aligned = aligned(heads, &[(qkv.q, qkv.q_col), (qkv.kv, qkv.k_col), (qkv.kv, qkv.v_col)]);
                let variant = Variant::new(&kernels::ATTENTION, &[aligned, heads.head_dim as u32]);
                (variant, [whole(&table), all4(qkv.q), all4(qkv.kv), all(z)], QUERIES)
            }
            Family::Broadcast => {
                let variant = (&kernels::ATTENTION_BROADCAST).into();
                (variant, [whole(&table), all(qkv.q), all(qkv.kv), all(z)], BROADCAST_QUERIES)
            }
        };
        // One dimension of a dispatch has at most 65,535 workgroups; a batch has fewer texts than tokens, of which it has fewer.
        let groups = [most.div_ceil(queries) as u32, heads.parts(), texts.len() as u32];
        self.encoder.dispatch(variant, &params, &bindings, groups);
    }

    /// The scores of one text: `[n_head * n_query, n_key]`.
    fn scores(&self, qkv: Qkv<'_>, text: TextRows, heads: HeadShape) -> Tensor {
        let [n_query, n_key] = [text.n_query, text.n_key].map(|n| n as usize);
        let scores = self.empty(heads.n_head * n_query, n_key);
        let params = kernels::AttentionScores {
            q_stride: qkv.q.cols as u32,
            q_col: qkv.q_col as u32,
            kv_stride: qkv.kv.cols as u32,
            k_col: qkv.k_col as u32,
            scale: heads.scale,
        };
        let aligned = aligned(heads, &[(qkv.q, qkv.q_col), (qkv.kv, qkv.k_col)]);
        let variant = Variant::new(&kernels::ATTENTION_SCORES, &[aligned, heads.head_dim as u32]);
        let groups = [n_key.div_ceil(KEYS) as u32, n_query.div_ceil(QUERIES) as u32, heads.n_head as u32];
        let table = self.table(&[text]);
        let bindings = [whole(&table), all4(qkv.q), all4(qkv.kv), all(&scores)];
        self.encoder.dispatch(variant, &params, &bindings, groups);
        scores
    }

    /// Writes one text's rows of z: its pattern `[n_head * n_query, n_key]` times its values, which begin at column `v_col`.
    fn mix(
        &self,
        pattern: &Tensor,
        kv: &Tensor,
        v_col: usize,
        text: TextRows,
        heads: HeadShape,
        z: &Tensor,
    ) {
        assert_eq!([pattern.rows, pattern.cols], [heads.n_head * text.n_query as usize, text.n_key as usize]);
        let params = kernels::AttentionMix { kv_stride: kv.cols as u32, v_col: v_col as u32, z_stride: z.cols as u32 };
        let variant = Variant::new(&kernels::ATTENTION_MIX, &[aligned(heads, &[(kv, v_col)]), heads.head_dim as u32]);
        let groups = [text.n_query.div_ceil(QUERIES as u32), heads.parts(), 1];
        let table = self.table(&[text]);
        let bindings = [whole(&table), all(pattern), all4(kv), all(z)];
        self.encoder.dispatch(variant, &params, &bindings, groups);
    }
}
