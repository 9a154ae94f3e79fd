// The gradient of layer_norm.wgsl by x: (d - mean(d) - normalized * mean(normalized * d)) / scale per row, where d = dy * gain
// and normalized = (x - mean(x)) / scale.
// One workgroup per row. Its invocations stride over the columns.

struct Params {
    rows: u32,
    cols: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;        // x [T, C]
@group(0) @binding(2) var<storage, read> dy: array<f32>;       // dy [T, C]
@group(0) @binding(3) var<storage, read> gain: array<f32>;     // gain [C]
@group(0) @binding(4) var<storage, read_write> y: array<f32>;  // y [T, C]

@compute @workgroup_size(WORKGROUP_SIZE)
fn layer_norm_gradient(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n_wg: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
    let row = wg.y * n_wg.x + wg.x;
    // A workgroup after the last row has no columns. It takes part in every barrier and stores nothing.
    let cols = select(0u, p.cols, row < p.rows);
    let start = row * p.cols;

    let mean = row_mean(invocation, start, cols);
    let scale = row_scale(invocation, start, cols, mean, p.eps);
    var total = 0.0;
    for (var c = invocation; c < cols; c += WORKGROUP_SIZE) {
        total += dy[start + c] * gain[c];
    }
    let mean_d = workgroup_sum(invocation, total) / f32(max(cols, 1u));
    var products = 0.0;
    for (var c = invocation; c < cols; c += WORKGROUP_SIZE) {
        products += (x[start + c] - mean) / scale * (dy[start + c] * gain[c] - mean_d);
    }
    let along = workgroup_sum(invocation, products) / f32(max(cols, 1u));
    for (var c = invocation; c < cols; c += WORKGROUP_SIZE) {
        let normalized = (x[start + c] - mean) / scale;
        y[start + c] = (dy[start + c] * gain[c] - mean_d - normalized * along) / scale;
    }
}
