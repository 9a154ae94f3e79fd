// Products of at most ROWS rows with a weight. Reading the weight takes most of the time, so each of its elements is
// read once.
// One workgroup per 16 columns and part of k (see linear.wgsl). Four invocations have four columns each, and 64 such
// groups split k, so that narrow weights also keep a GPU busy. Their sums are added up in workgroup memory, row by row.
// ROWS is a generated constant: 1, 2, 4 or 8.
// The kernel declares `p`, `w`, `y` and the function `row4`, and includes lib/weight.wgsl, lib/fours.wgsl and
// lib/epilogue.wgsl. Every invocation calls these functions in uniform control flow.

var<workgroup> shares: array<vec4<f32>, 256>; // [share of k 64][column / 4 4]
var<workgroup> quarters: array<f32, 64>;      // [quarter of the shares 4][column 16]

// Four columns of row k of the part, or zeros from row n on.
fn w_row(at: u32, k: u32, n: u32) -> vec4<f32> {
    if ALIGNED == 1u || k < n {
        return weight4(at);
    }
    return vec4<f32>();
}

// One invocation's share of the sums of its four columns. The part of k begins at k_first.
fn sum_few(total: ptr<function, array<vec4<f32>, ROWS>>, tile_col: u32, k_first: u32, invocation: u32) {
    let col = tile_col + 4u * (invocation % 4u);
    let n = select(0u, min(p.k_part, p.k - k_first), col < p.w_stride);
    let step = p.w_stride / 4u;
    for (var k = 4u * (invocation / 4u); k < n; k += 256u) {
        let at = ((k_first + k) * p.w_stride + col) / 4u;
        let w0 = weight4(at);
        let w1 = w_row(at + step, k + 1u, n);
        let w2 = w_row(at + 2u * step, k + 2u, n);
        let w3 = w_row(at + 3u * step, k + 3u, n);
        for (var r = 0u; r < ROWS; r += 1u) { // unrolled
            // Rows after the last one read the last row again. Their sums are not stored.
            let a = row4(r, k_first + k, n - k);
            (*total)[r] += (a.x * w0 + a.y * w1) + (a.z * w2 + a.w * w3);
        }
    }
}

// Adds up the shares and stores the results from index y_first of y on.
fn store_few(total: ptr<function, array<vec4<f32>, ROWS>>, tile_col: u32, y_first: u32, invocation: u32) {
    for (var r = 0u; r < ROWS; r += 1u) { // unrolled
        workgroupBarrier();
        shares[invocation] = (*total)[r];
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
            let at = y_first + r * p.y_stride + tile_col + invocation;
            y[at] = epilogue(sum, tile_col + invocation, at);
        }
    }
}
