// y = (x - mean) / sqrt(var + eps) * gain + bias per row. The variance is biased, and taken around the mean in a second
// pass.
// One workgroup per row. Its invocations stride over the columns.
// Interface: interfaces/layer_norm.wgsl

@group(0) @binding(2) var<storage, read> gain: array<f32>;     // gain [C]
@group(0) @binding(3) var<storage, read> bias: array<f32>;     // bias [C]
@group(0) @binding(4) var<storage, read_write> y: array<f32>;  // y [T, C]

@compute @workgroup_size(WORKGROUP_SIZE)
fn layer_norm(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n_wg: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
    let row = row_of(wg, n_wg);
    let mean = row_mean(invocation, row);
    let scale = row_scale(invocation, row, mean, p.eps);
    for (var c = invocation; c < row.cols; c += WORKGROUP_SIZE) {
        y[row.start + c] = (x[row.start + c] - mean) / scale * gain[c] + bias[c];
    }
}
