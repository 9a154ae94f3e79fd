// y = (x - mean) / scale per row: layer_norm.wgsl before gain and bias, with a scale that may have been edited.
// One workgroup per row. Its invocations stride over the columns.
// Interface: interfaces/rows.wgsl

@group(0) @binding(1) var<storage, read> x: array<f32>;        // x [T, C]
@group(0) @binding(2) var<storage, read> scale: array<f32>;    // scale [T, 1]
@group(0) @binding(3) var<storage, read_write> y: array<f32>;  // y [T, C]

@compute @workgroup_size(WORKGROUP_SIZE)
fn layer_norm_normalize(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n_wg: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
    let row = row_of(wg, n_wg);
    let mean = row_mean(invocation, row);
    for (var c = invocation; c < row.cols; c += WORKGROUP_SIZE) {
        y[row.start + c] = (x[row.start + c] - mean) / scale[row.index];
    }
}
