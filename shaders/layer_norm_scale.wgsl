// scale = sqrt(var + eps) per row, the divisor of layer_norm.wgsl. The variance is biased, and taken around the mean in
// a second pass.
// One workgroup per row. Its invocations stride over the columns.
// Interface: interfaces/layer_norm.wgsl

@group(0) @binding(2) var<storage, read_write> scale: array<f32>; // scale [T, 1]

@compute @workgroup_size(WORKGROUP_SIZE)
fn layer_norm_scale(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n_wg: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
    let row = row_of(wg, n_wg);
    let mean = row_mean(invocation, row);
    let result = row_scale(invocation, row, mean, p.eps);
    if invocation == 0u && row.index < p.rows {
        scale[row.index] = result;
    }
}
