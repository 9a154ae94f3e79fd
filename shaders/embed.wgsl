// y[t] = table[ids[t]]: gathers the embeddings of tokens. A table that is too large for one binding is split by rows.
// Each dispatch fills the rows of y whose token is in its part, and every token is in exactly one part.
// One workgroup per row of y. Its invocations stride over the columns.

struct Params {
    n_ids: u32,
    cols: u32,
    w_stride: u32, // elements from the start of one row of the table to the next
    first: u32,    // the first table row of this part
    n_rows: u32,   // rows in this part
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> ids: array<u32>;       // ids [T]
@group(0) @binding(2) var<storage, read> w: array<vec4<u32>>;   // table [n_rows, w_stride], as lib/weight.wgsl packs it
@group(0) @binding(3) var<storage, read_write> y: array<f32>;   // y [T, cols]

@compute @workgroup_size(64)
fn embed(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n_wg: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
    let t = wg.y * n_wg.x + wg.x;
    if t < p.n_ids {
        let id = ids[t];
        if id >= p.first && id - p.first < p.n_rows {
            for (var c = invocation; c < p.cols; c += 64u) {
                y[t * p.cols + c] = weight((id - p.first) * p.w_stride + c);
            }
        }
    }
}
