// y = x . w + bias, then the epilogue, for many rows, on adapters that multiply 8 x 8 matrices in f32, as
// lib/coop_matrices.wgsl has it. The parts of k are those of linear.wgsl.
// Interface: interfaces/linear.wgsl
enable wgpu_cooperative_matrix;

fn load_w(tile_col: u32, k_first: u32, k0: u32, n: u32, index: u32) {
    for (var i = index; i < 16u * 16u; i += 4u * SUBGROUP_SIZE) {
        let k = k0 + i / 16u;
        let col = tile_col + 4u * (i % 16u);
        var four = vec4<f32>();
        if k < n && col < p.w_stride {
            four = weight4(((k_first + k) * p.w_stride + col) / 4u);
        }
        put_four(W_TILE + i / 16u * W_STRIDE + 4u * (i % 16u), four);
    }
}

fn put_result(sum: f32, row: u32, col: u32, part: u32) {
    let at = part * p.y_part + row * p.y_stride + col;
    y[at] = epilogue(sum, col, at);
}

@compute @workgroup_size(4u * SUBGROUP_SIZE)
fn linear_matrices(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32, @builtin(subgroup_id) subgroup: u32) {
    let k_first = wg.z * p.k_part;
    multiply_tile(wg.y * 64u, wg.x * 64u, k_first, k_first, min(p.k_part, p.k - k_first), wg.z, index, subgroup);
}
