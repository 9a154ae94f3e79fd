// scale = sqrt(var + eps) per row, the divisor of layer_norm.wgsl. The variance is biased, and taken around the mean in
// a second pass.
// One workgroup per row. Its invocations stride over the columns.

struct Params {
    rows: u32,
    cols: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;           // x [T, C]
@group(0) @binding(2) var<storage, read_write> scale: array<f32>; // scale [T, 1]

@compute @workgroup_size(WORKGROUP_SIZE)
fn layer_norm_scale(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n_wg: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
    let row = wg.y * n_wg.x + wg.x;
    // A workgroup after the last row has no columns. It takes part in every barrier and stores nothing.
    let cols = select(0u, p.cols, row < p.rows);
    let start = row * p.cols;

    let mean = row_mean(invocation, start, cols);
    let result = row_scale(invocation, start, cols, mean, p.eps);
    if invocation == 0u && row < p.rows {
        scale[row] = result;
    }
}
