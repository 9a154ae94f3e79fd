// y = x . w + bias, then the epilogue, for software adapters (llvmpipe). There a load costs as much as dozens of
// products, and workgroup memory costs even more, so invocations share loaded values by subgroupBroadcast.
// One workgroup is one subgroup of 8 invocations. It computes 8 rows x 32 columns, four columns per invocation. Each
// invocation loads one step of k of every row and broadcasts it to the others. w lies in panels of 32 columns, so that
// consecutive steps of k are contiguous.
// Every 256 products have a sum of their own before they are added to the total, so that the rounding error does not
// grow with k. Shorter sums would cost a tenth of the speed.

struct Params {
    rows: u32,
    k: u32,
    cols: u32,
    x_stride: u32,    // columns of x
    x_first: u32,     // the column of x at which k begins
    w_stride: u32,    // elements from the start of one panel of w to the next
    w_first_row: u32, // the row of w at which k begins
    y_stride: u32,    // columns of y
    y_first: u32,     // the column of y at which the result begins
    has_bias: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;        // x [T, x_stride]
@group(0) @binding(2) var<storage, read> w: array<vec4<u32>>;  // w [cols / 32, .., 32], as lib/weight.wgsl packs it
@group(0) @binding(3) var<storage, read> bias: array<f32>;     // bias [cols]
@group(0) @binding(4) var<storage, read> added: array<f32>;    // added [T, y_stride], read if EPILOGUE is 1
@group(0) @binding(5) var<storage, read_write> y: array<f32>;  // y [T, y_stride]

// Called once per row, because only constant indices keep the sums in registers.
fn store(row: u32, first: u32, sums: vec4<f32>) {
    for (var c = 0u; c < 4u; c += 1u) {
        let col = first + c;
        if row < p.rows && col < p.cols {
            let at = row * p.y_stride + p.y_first + col;
            y[at] = epilogue(sums[c], col, at);
        }
    }
}

@compute @workgroup_size(8)
fn linear_broadcast(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n_wg: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
    let row = wg.x * 8u;
    let panel = wg.z * n_wg.y + wg.y;
    // A workgroup after the last panel has nothing to sum.
    let k_end = select(0u, p.k, panel * 32u < p.cols);
    let whole = k_end / 8u * 8u;
    let x_lo = rows_lo(row, p.rows - 1u) * p.x_stride + p.x_first;
    let x_hi = rows_hi(row, p.rows - 1u) * p.x_stride + p.x_first;
    var w_at = (panel * p.w_stride + p.w_first_row * 32u) / 4u + invocation;

    var total = array<vec4<f32>, 8>();
    for (var block = 0u; block < whole; block += 256u) {
        var part = array<vec4<f32>, 8>();
        let end = min(block + 256u, whole);
        for (var k0 = block; k0 < end; k0 += 8u) {
            let k = k0 + invocation;
            let lo = vec4<f32>(x[x_lo.x + k], x[x_lo.y + k], x[x_lo.z + k], x[x_lo.w + k]);
            let hi = vec4<f32>(x[x_hi.x + k], x[x_hi.y + k], x[x_hi.z + k], x[x_hi.w + k]);
            multiply_add(&part, subgroupBroadcast(lo, 0u), subgroupBroadcast(hi, 0u), weight4(w_at));
            multiply_add(&part, subgroupBroadcast(lo, 1u), subgroupBroadcast(hi, 1u), weight4(w_at + 8u));
            multiply_add(&part, subgroupBroadcast(lo, 2u), subgroupBroadcast(hi, 2u), weight4(w_at + 16u));
            multiply_add(&part, subgroupBroadcast(lo, 3u), subgroupBroadcast(hi, 3u), weight4(w_at + 24u));
            multiply_add(&part, subgroupBroadcast(lo, 4u), subgroupBroadcast(hi, 4u), weight4(w_at + 32u));
            multiply_add(&part, subgroupBroadcast(lo, 5u), subgroupBroadcast(hi, 5u), weight4(w_at + 40u));
            multiply_add(&part, subgroupBroadcast(lo, 6u), subgroupBroadcast(hi, 6u), weight4(w_at + 48u));
            multiply_add(&part, subgroupBroadcast(lo, 7u), subgroupBroadcast(hi, 7u), weight4(w_at + 56u));
            w_at += 64u;
        }
        join(&total, part);
    }
    // The remaining steps of k. Every invocation loads the same elements of x.
    for (var k = whole; k < k_end; k += 1u) {
        let lo = vec4<f32>(x[x_lo.x + k], x[x_lo.y + k], x[x_lo.z + k], x[x_lo.w + k]);
        let hi = vec4<f32>(x[x_hi.x + k], x[x_hi.y + k], x[x_hi.z + k], x[x_hi.w + k]);
        multiply_add(&total, lo, hi, weight4(w_at));
        w_at += 8u;
    }

    let col = panel * 32u + invocation * 4u;
    store(row + 0u, col, total[0]);
    store(row + 1u, col, total[1]);
    store(row + 2u, col, total[2]);
    store(row + 3u, col, total[3]);
    store(row + 4u, col, total[4]);
    store(row + 5u, col, total[5]);
    store(row + 6u, col, total[6]);
    store(row + 7u, col, total[7]);
}
