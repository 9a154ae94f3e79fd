// The gradient of layer_norm.wgsl with respect to x: (d - mean(d) - normalized * mean(normalized * d)) / scale per row,
// where d = dy * gain and normalized = (x - mean(x)) / scale.
// One workgroup per row. Its invocations stride over the columns.
// Interface: interfaces/layer_norm.wgsl

@group(0) @binding(2) var<storage, read> dy: array<f32>;       // dy [T, C]
@group(0) @binding(3) var<storage, read> gain: array<f32>;     // gain [C]
@group(0) @binding(4) var<storage, read_write> y: array<f32>;  // y [T, C]

@compute @workgroup_size(WORKGROUP_SIZE)
fn layer_norm_gradient(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n_wg: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
    let row = row_of(wg, n_wg);
    let mean = row_mean(invocation, row);
    let scale = row_scale(invocation, row, mean, p.eps);
    var total = 0.0;
    for (var c = invocation; c < row.cols; c += WORKGROUP_SIZE) {
        total += dy[row.start + c] * gain[c];
    }
    let mean_d = workgroup_sum(invocation, total) / f32(max(row.cols, 1u));
    var products = 0.0;
    for (var c = invocation; c < row.cols; c += WORKGROUP_SIZE) {
        products += (x[row.start + c] - mean) / scale * (dy[row.start + c] * gain[c] - mean_d);
    }
    let along = workgroup_sum(invocation, products) / f32(max(row.cols, 1u));
    for (var c = invocation; c < row.cols; c += WORKGROUP_SIZE) {
        let normalized = (x[row.start + c] - mean) / scale;
        y[row.start + c] = (dy[row.start + c] * gain[c] - mean_d - normalized * along) / scale;
    }
}
