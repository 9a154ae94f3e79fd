// Copies the keys and values of the new positions of all texts into a cache: for each text, some columns of its rows of
// x become its rows of y, from its first new position on.
// One invocation per element of a row of y. The z dimension of the grid counts the texts, and the others have as many
// invocations as the text with the most rows needs.

struct Params {
    first_col: u32, // the first column of x that is copied
    x_stride: u32,  // columns of x
    cols: u32,      // columns of y
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> texts: array<TextRows>;
@group(0) @binding(2) var<storage, read> x: array<f32>;        // x [T, x_stride]
@group(0) @binding(3) var<storage, read_write> y: array<f32>;  // y [.., cols]

@compute @workgroup_size(64)
fn cache_append(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n_wg: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
    let text = texts[wg.z];
    let i = (wg.y * n_wg.x + wg.x) * 64u + invocation;
    let row = i / p.cols;
    if row < text.n_query {
        y[(text.k_row + text.position) * p.cols + i] = x[(text.q_row + row) * p.x_stride + p.first_col + i % p.cols];
    }
}
