// y = x . wᵀ for software adapters (see linear_broadcast.wgsl). Both x and w are row-major along k.
// One workgroup is one subgroup of 8 invocations. It computes 8 rows x 32 tokens, four tokens per invocation.

struct Params {
    rows: u32,
    k: u32,
    cols: u32,     // tokens in this part of the vocabulary
    x_stride: u32, // columns of x
    x_first: u32,  // index in x of the first row
    w_stride: u32, // elements from the start of one row of w to the next
    y_stride: u32, // columns of y
    y_first: u32,  // index in y of the result
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;        // x [T, k]
@group(0) @binding(2) var<storage, read> w: array<vec4<u32>>;  // w [cols, w_stride], as lib/weight.wgsl packs it
@group(0) @binding(3) var<storage, read_write> y: array<f32>;  // y [T, y_stride]

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
            var a = weight4(at.x);
            var b = weight4(at.y);
            var c = weight4(at.z);
            var d = weight4(at.w);
            multiply_add(&part, subgroupBroadcast(lo, 0u), subgroupBroadcast(hi, 0u), vec4<f32>(a.x, b.x, c.x, d.x));
            multiply_add(&part, subgroupBroadcast(lo, 1u), subgroupBroadcast(hi, 1u), vec4<f32>(a.y, b.y, c.y, d.y));
            multiply_add(&part, subgroupBroadcast(lo, 2u), subgroupBroadcast(hi, 2u), vec4<f32>(a.z, b.z, c.z, d.z));
            multiply_add(&part, subgroupBroadcast(lo, 3u), subgroupBroadcast(hi, 3u), vec4<f32>(a.w, b.w, c.w, d.w));
            a = weight4(at.x + 1u);
            b = weight4(at.y + 1u);
            c = weight4(at.z + 1u);
            d = weight4(at.w + 1u);
            multiply_add(&part, subgroupBroadcast(lo, 4u), subgroupBroadcast(hi, 4u), vec4<f32>(a.x, b.x, c.x, d.x));
            multiply_add(&part, subgroupBroadcast(lo, 5u), subgroupBroadcast(hi, 5u), vec4<f32>(a.y, b.y, c.y, d.y));
            multiply_add(&part, subgroupBroadcast(lo, 6u), subgroupBroadcast(hi, 6u), vec4<f32>(a.z, b.z, c.z, d.z));
            multiply_add(&part, subgroupBroadcast(lo, 7u), subgroupBroadcast(hi, 7u), vec4<f32>(a.w, b.w, c.w, d.w));
        }
        join(&total, part);
    }

    store(row + 0u, token, total[0]);
    store(row + 1u, token, total[1]);
    store(row + 2u, token, total[2]);
    store(row + 3u, token, total[3]);
    store(row + 4u, token, total[4]);
    store(row + 5u, token, total[5]);
    store(row + 6u, token, total[6]);
    store(row + 7u, token, total[7]);
}
