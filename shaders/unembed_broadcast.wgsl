// y = x . wᵀ for software adapters (see linear_broadcast.wgsl). Both x and w are row-major along k.
// One workgroup is one subgroup of 8 invocations. It computes 8 rows x 32 tokens, four tokens per invocation.
// Interface: interfaces/unembed.wgsl

@group(0) @binding(1) var<storage, read> x: array<f32>;        // x [T, k]

// Called once per row, because only constant indices keep the sums in registers.
fn store(row: u32, token: u32, sums: vec4<f32>) {
    for (var c = 0u; c < 4u; c += 1u) {
        if row < p.rows && token + c < p.cols {
            y[p.y_first + row * p.y_stride + token + c] = sums[c];
        }
    }
}

@compute @workgroup_size(8)
fn unembed_broadcast(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n_wg: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
    let row = wg.x * 8u;
    let token = (wg.z * n_wg.y + wg.y) * 32u + invocation * 4u; // the first of this invocation
    let x_lo = p.x_first + rows_lo(row, p.rows - 1u) * p.x_stride;
    let x_hi = p.x_first + rows_hi(row, p.rows - 1u) * p.x_stride;
    let w_at = rows_lo(token, p.cols - 1u) * (p.w_stride / 4u);

    var total = array<vec4<f32>, 8>();
    for (var block = 0u; block < p.k; block += 256u) {
        var part = array<vec4<f32>, 8>();
        let end = min(block + 256u, p.k);
        for (var k0 = block; k0 < end; k0 += 8u) {
            // The rows of the table are padded with zeros to a multiple of 8 elements. The rows of x are not, so k is
            // limited.
            let k = min(k0 + invocation, p.k - 1u);
            let lo = vec4<f32>(x[x_lo.x + k], x[x_lo.y + k], x[x_lo.z + k], x[x_lo.w + k]);
            let hi = vec4<f32>(x[x_hi.x + k], x[x_hi.y + k], x[x_hi.z + k], x[x_hi.w + k]);
            let at = w_at + k0 / 4u;
            for (var four = 0u; four < 2u; four += 1u) { // unrolled
                let a = weight4(at.x + four);
                let b = weight4(at.y + four);
                let c = weight4(at.z + four);
                let d = weight4(at.w + four);
                for (var s = 0u; s < 4u; s += 1u) { // unrolled
                    multiply_add(&part, subgroupBroadcast(lo, 4u * four + s), subgroupBroadcast(hi, 4u * four + s), vec4<f32>(a[s], b[s], c[s], d[s]));
                }
            }
        }
        join(&total, part);
    }

    for (var r = 0u; r < 8u; r += 1u) { // unrolled
        store(row + r, token, total[r]);
    }
}
