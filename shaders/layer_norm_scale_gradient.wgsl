// The gradient of layer_norm_scale.wgsl with respect to x: (x - mean) / (C scale) * dscale per row.
// One workgroup per row. Its invocations stride over the columns.
// Interface: interfaces/rows.wgsl

@group(0) @binding(1) var<storage, read> x: array<f32>;        // x [T, C]
@group(0) @binding(2) var<storage, read> scale: array<f32>;    // scale [T, 1]
@group(0) @binding(3) var<storage, read> dscale: array<f32>;   // dscale [T, 1]
@group(0) @binding(4) var<storage, read_write> y: array<f32>;  // y [T, C]

@compute @workgroup_size(WORKGROUP_SIZE)
fn layer_norm_scale_gradient(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n_wg: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
    let row = row_of(wg, n_wg);
    let mean = row_mean(invocation, row);
    for (var c = invocation; c < row.cols; c += WORKGROUP_SIZE) {
        y[row.start + c] = (x[row.start + c] - mean) * (dscale[row.index] / (f32(row.cols) * scale[row.index]));
    }
}
