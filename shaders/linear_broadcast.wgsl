// y = x . w + bias, then the epilogue, for software adapters (llvmpipe). There a load costs as much as dozens of
// products, and workgroup memory costs even more, so invocations share loaded values by subgroupBroadcast.
// One workgroup is one subgroup of 8 invocations. It computes 8 rows x 32 columns, four columns per invocation. Each
// invocation loads one step of k of every row and broadcasts it to the others. w lies in panels of 32 columns, so that
// consecutive steps of k are contiguous.
// Every 256 products have a sum of their own before they are added to the total, so that the rounding error does not
// grow with k. Shorter sums would cost a tenth of the speed.
// The heads of linear_by_head are parts of k.

struct Params {
    rows: u32,
    k: u32,           // steps of k in one part
    parts: u32,       // parts of k; their results lie side by side
    cols: u32,        // columns of w
    x_stride: u32,    // columns of x
    w_stride: u32,    // elements from the start of one panel of w to the next
    y_stride: u32,    // columns of y
    has_bias: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;        // x [T, x_stride]
@group(0) @binding(2) var<storage, read> w: array<vec4<u32>>;  // w [cols / 32, .., 32], as lib/weight.wgsl packs it
@group(0) @binding(3) var<storage, read> bias: array<f32>;     // bias [cols]
@group(0) @binding(4) var<storage, read> added: array<f32>;    // added [T, y_stride], read if EPILOGUE is 1
@group(0) @binding(5) var<storage, read_write> y: array<f32>;  // y [T, y_stride]

// Called once per row, because only constant indices keep the sums in registers.
fn store(row: u32, y_first: u32, first: u32, sums: vec4<f32>) {
    for (var c = 0u; c < 4u; c += 1u) {
        let col = first + c;
        if row < p.rows && col < p.cols {
            let at = row * p.y_stride + y_first + col;
            y[at] = epilogue(sums[c], col, at);
        }
    }
}

@compute @workgroup_size(8)
fn linear_broadcast(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n_wg: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
    let row = wg.x * 8u;
    let panels = (p.cols + 31u) / 32u;
    let part_index = (wg.z * n_wg.y + wg.y) / panels;
    let panel = (wg.z * n_wg.y + wg.y) % panels;
    // A workgroup after the last part has nothing to sum.
    let k_end = select(0u, p.k, part_index < p.parts);
    let k_first = part_index * p.k;
    let whole = k_end / 8u * 8u;
    let x_lo = rows_lo(row, p.rows - 1u) * p.x_stride + k_first;
    let x_hi = rows_hi(row, p.rows - 1u) * p.x_stride + k_first;
    var w_at = (panel * p.w_stride + k_first * 32u) / 4u + invocation;

    var total = array<vec4<f32>, 8>();
    for (var block = 0u; block < whole; block += 256u) {
        var part = array<vec4<f32>, 8>();
        let end = min(block + 256u, whole);
        for (var k0 = block; k0 < end; k0 += 8u) {
            let k = k0 + invocation;
            let lo = vec4<f32>(x[x_lo.x + k], x[x_lo.y + k], x[x_lo.z + k], x[x_lo.w + k]);
            let hi = vec4<f32>(x[x_hi.x + k], x[x_hi.y + k], x[x_hi.z + k], x[x_hi.w + k]);
            for (var i = 0u; i < 8u; i += 1u) { // unrolled
                multiply_add(&part, subgroupBroadcast(lo, i), subgroupBroadcast(hi, i), weight4(w_at + 8u * i));
            }
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

    // A workgroup after the last part stores nothing.
    let col = select(p.cols, panel * 32u + invocation * 4u, part_index < p.parts);
    let y_first = part_index * p.cols;
    for (var r = 0u; r < 8u; r += 1u) { // unrolled
        store(row + r, y_first, col, total[r]);
    }
}
