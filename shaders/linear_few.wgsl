// y = x . w + bias, then the epilogue, for at most ROWS rows. Reading the weight takes most of the time, so each of its
// elements is read once.
// One workgroup per 16 columns and part of k (see linear.wgsl). Four invocations have four columns each, and 64 such
// groups split k, so that narrow weights also keep a GPU busy. Their sums are added up in workgroup memory, row by row.
// ROWS is a generated constant: 1, 2, 4 or 8.

struct Params {
    rows: u32,
    k: u32,
    k_part: u32,      // steps of k in one part
    cols: u32,
    x_stride: u32,    // columns of x
    w_stride: u32,    // elements from the start of one row of w to the next
    y_stride: u32,    // columns of y
    y_part: u32,      // elements of y from the result of one part to the next
    has_bias: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;  // x [T, x_stride], T <= ROWS
@group(0) @binding(2) var<storage, read> w: array<vec4<u32>>;  // w [k, w_stride], as lib/weight.wgsl packs it
@group(0) @binding(3) var<storage, read> bias: array<f32>;     // bias [cols]
@group(0) @binding(4) var<storage, read> added: array<f32>;    // added [T, y_stride], read if EPILOGUE is 1
@group(0) @binding(5) var<storage, read_write> y: array<f32>;  // y [parts, T, y_stride]

var<workgroup> shares: array<vec4<f32>, 256>; // [share of k 64][column / 4 4]
var<workgroup> quarters: array<f32, 64>;      // [quarter of the shares 4][column 16]

// Four columns of row k of the part, or zeros from row n on.
fn w_row(at: u32, k: u32, n: u32) -> vec4<f32> {
    if ALIGNED == 1u || k < n {
        return weight4(at);
    }
    return vec4<f32>();
}

@compute @workgroup_size(256)
fn linear_few(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n_wg: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
    let tile_col = (wg.y * n_wg.x + wg.x) * 16u;
    let col = tile_col + 4u * (invocation % 4u);
    let k_first = wg.z * p.k_part;
    let n = select(0u, min(p.k_part, p.k - k_first), col < p.w_stride);
    let step = p.w_stride / 4u;

    var total = array<vec4<f32>, ROWS>();
    for (var k = 4u * (invocation / 4u); k < n; k += 256u) {
        let at = ((k_first + k) * p.w_stride + col) / 4u;
        let w0 = weight4(at);
        let w1 = w_row(at + step, k + 1u, n);
        let w2 = w_row(at + 2u * step, k + 2u, n);
        let w3 = w_row(at + 3u * step, k + 3u, n);
        for (var r = 0u; r < ROWS; r += 1u) { // unrolled
            // Rows after the last one read the last row again. Their sums are not stored.
            let a = x4(min(r, p.rows - 1u) * p.x_stride + k_first + k, n - k);
            total[r] += (a.x * w0 + a.y * w1) + (a.z * w2 + a.w * w3);
        }
    }

    for (var r = 0u; r < ROWS; r += 1u) { // unrolled
        workgroupBarrier();
        shares[invocation] = total[r];
        workgroupBarrier();
        if invocation < 64u {
            var sum = 0.0;
            for (var share = 0u; share < 16u; share += 1u) { // unrolled
                sum += shares[(invocation / 16u * 16u + share) * 4u + invocation % 16u / 4u][invocation % 4u];
            }
            quarters[invocation] = sum;
        }
        workgroupBarrier();
        if invocation < 16u && tile_col + invocation < p.cols && r < p.rows {
            let sum = (quarters[invocation] + quarters[invocation + 16u]) + (quarters[invocation + 32u] + quarters[invocation + 48u]);
            let at = wg.z * p.y_part + r * p.y_stride + tile_col + invocation;
            y[at] = epilogue(sum, tile_col + invocation, at);
        }
    }
}
