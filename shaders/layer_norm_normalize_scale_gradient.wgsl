// The gradient of layer_norm_normalize.wgsl with respect to its scale: -sum(y dy) / scale per row, where y is its result.
// One workgroup per row. Its invocations stride over the columns.
// Interface: interfaces/rows.wgsl

@group(0) @binding(1) var<storage, read> y: array<f32>;             // y [T, C]
@group(0) @binding(2) var<storage, read> scale: array<f32>;         // scale [T, 1]
@group(0) @binding(3) var<storage, read> dy: array<f32>;            // dy [T, C]
@group(0) @binding(4) var<storage, read_write> dscale: array<f32>;  // dscale [T, 1]

@compute @workgroup_size(WORKGROUP_SIZE)
fn layer_norm_normalize_scale_gradient(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n_wg: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
    let row = row_of(wg, n_wg);
    var total = 0.0;
    for (var c = invocation; c < row.cols; c += WORKGROUP_SIZE) {
        total += y[row.start + c] * dy[row.start + c];
    }
    total = workgroup_sum(invocation, total);
    if invocation == 0u && row.index < p.rows {
        dscale[row.index] = -total / scale[row.index];
    }
}
