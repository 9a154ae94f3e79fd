// The interface of the kernels that compute attention without storing the pattern. The kernel declares q at binding 2
// and kv at binding 3, by single elements or by vectors of four.

struct Params {
    q_stride: u32,
    q_col: u32,     // the first column of q: head 0 begins there
    kv_stride: u32,
    k_col: u32,     // the first column of k in kv
    v_col: u32,     // the first column of v in kv
    z_stride: u32,
    n_head: u32,
    head_dim: u32,  // the generated constant HEAD_DIM in the kernels that have it
    scale: f32,
    parts: u32,     // parts of the keys, in attention.wgsl
    part_keys: u32, // keys of a part
    n_row: u32,     // rows of z
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> texts: array<TextRows>; // texts [n]
@group(0) @binding(4) var<storage, read_write> z: array<f32>;    // z [.., z_stride], or sums [parts, n_row, z_stride]

const LOWEST: f32 = -3.4028234663852886e38;
