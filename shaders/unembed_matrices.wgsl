// y = x . wᵀ for many rows, on adapters that multiply 8 x 8 matrices in f32, as lib/coop_matrices.wgsl has it. Both x and w
// are row-major along k.
// Interface: interfaces/unembed.wgsl
enable wgpu_cooperative_matrix;

@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;  // x [T, k]

// The tile has w transposed, as linear_matrices.wgsl has it. The rows of the table are padded with zeros.
fn load_w(tile_col: u32, k_first: u32, k0: u32, n: u32, index: u32) {
    for (var i = index; i < 64u * 4u; i += 4u * SUBGROUP_SIZE) {
        let token = tile_col + i / 4u;
        let k = k0 + 4u * (i % 4u);
        var four = vec4<f32>();
        if token < p.cols && k < p.w_stride {
            four = weight4((token * p.w_stride + k) / 4u);
        }
        let at = W_TILE + 4u * (i % 4u) * W_STRIDE + i / 4u;
        tile[at] = four.x;
        tile[at + W_STRIDE] = four.y;
        tile[at + 2u * W_STRIDE] = four.z;
        tile[at + 3u * W_STRIDE] = four.w;
    }
}

fn put_result(sum: f32, row: u32, col: u32, part: u32) {
    y[p.y_first + row * p.y_stride + col] = sum;
}

@compute @workgroup_size(4u * SUBGROUP_SIZE)
fn unembed_matrices(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32, @builtin(subgroup_id) subgroup: u32) {
    multiply_tile(wg.y * 64u, wg.x * 64u, p.x_first, 0u, p.k, 0u, index, subgroup);
}
