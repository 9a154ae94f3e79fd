//! Attention: the fused kernel and the scores and mix around a pattern that somebody looks at. Owns where queries, keys and
//! values lie, which may be two tensors (a cache of keys and values), and the tables that tell kernels so.

use super::bind_groups::Binding;
use super::buffers::Tensor;
use super::encoder::Variant;
use super::kernels::{self, Family, TextRows};
use super::{Gpu, all, whole};
use crate::device::Device;
use std::sync::Mutex;

/// Queries of a workgroup of the tiled kernels, and keys of one of the scores'.
const QUERIES: usize = 32;
const KEYS: usize = 64;

/// Queries of a workgroup of the kernel that broadcasts.
const BROADCAST_QUERIES: usize = 8;

/// Dimensions of a workgroup of any of them.
const DIMS: usize = 64;

/// Queries, keys and values: a tensor and a column each. Keys and values lie in one tensor.
#[derive(Clone, Copy)]
pub(super) struct Qkv<'a> {
    pub(super) q: &'a Tensor,
    pub(super) q_col: usize,
    pub(super) kv: &'a Tensor,
    pub(super) k_col: usize,
    pub(super) v_col: usize,
}

impl<'a> Qkv<'a> {
    /// The three side by side in one tensor.
    pub(super) fn of(qkv: &'a Tensor) -> Qkv<'a> {
        let n_embd = qkv.cols / 3;
        Qkv { q: qkv, q_col: 0, kv: qkv, k_col: n_embd, v_col: 2 * n_embd }
    }
}

/// The heads: how many, how wide, and by what their scores are multiplied.
#[derive(Clone, Copy)]
pub(super) struct HeadShape {
    pub(super) n_head: usize,
    pub(super) head_dim: usize,
    pub(super) scale: f32,
}

impl HeadShape {
    /// Heads times parts of 64 dimensions.
    fn parts(&self) -> u32 {
        (self.n_head * self.head_dim.div_ceil(DIMS)) as u32
    }
}

/// The table of rows that was uploaded last: every layer of a run has the same.
#[derive(Default)]
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

impl Gpu {
    /// The table on the device.
    fn table(&self, texts: &[TextRows]) -> wgpu::Buffer {
        let mut last = self.rows_table.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
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
    pub(super) fn attend(&self, qkv: Qkv<'_>, texts: &[TextRows], heads: HeadShape, z: &Tensor) {
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
        self.recording.dispatch(variant, &params, &bindings, groups);
    }

    /// The scores of one text: `[n_head * n_query, n_key]`.
    pub(super) fn scores(&self, qkv: Qkv<'_>, text: TextRows, heads: HeadShape) -> Tensor {
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
        self.recording.dispatch(variant, &params, &bindings, groups);
        scores
    }

    /// Writes one text's rows of z: its pattern `[n_head * n_query, n_key]` times its values, which begin at column `v_col`.
    pub(super) fn mix(
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
        self.recording.dispatch(variant, &params, &bindings, groups);
    }
}
