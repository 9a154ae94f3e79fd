// y = x . w + bias, then the epilogue, for at most ROWS rows, as lib/linear_few.wgsl has it.
// Interface: interfaces/linear.wgsl

// Elements k .. k + 4 of row r of x; from the n-th on they are 0.
fn row4(r: u32, k: u32, n: u32) -> vec4<f32> {
    return x_vec4(min(r, p.rows - 1u) * p.x_stride + k, n);
}

@compute @workgroup_size(256)
fn linear_few(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n_wg: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
    let tile_col = (wg.y * n_wg.x + wg.x) * 16u;
    var total = array<vec4<f32>, SUMS>();
    sum_few(&total, tile_col, wg.z * p.k_part, invocation);
    store_few(&total, tile_col, wg.z * p.y_part, invocation);
}
