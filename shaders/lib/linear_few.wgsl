// Products of at most ROWS rows with a weight. Reading the weight takes most of the time, so each of its elements is
// read once.
// One workgroup per 16 columns and part of k (see linear.wgsl). Four invocations have four columns each, and 64 such
// groups split k, so that narrow weights also keep a GPU busy. In half precision an invocation loads eight columns at
// once, and 128 groups of two split k. The sums are added up in workgroup memory, row by row.
// ROWS and FOURS are generated constants: the rows (1, 2, 4 or 8), and the fours of columns of an invocation (1 or 2).
// The kernel declares `p`, `w`, `y` and the function `row4`, and includes lib/weight.wgsl, lib/unaligned_vec4.wgsl and
// lib/epilogue.wgsl. Every invocation calls these functions in uniform control flow.

const LANES: u32 = 4u / FOURS;
const SHARES: u32 = 256u / LANES;
const SUMS: u32 = ROWS * FOURS;

var<workgroup> shares: array<vec4<f32>, SHARES * 4u>; // [share of k][column / 4 4]
var<workgroup> quarters: array<f32, 64>;      // [quarter of the shares 4][column 16]

// The columns of an invocation in row k of the part, or zeros from row n on.
fn w_row(at: u32, k: u32, n: u32) -> vec4<u32> {
    if ALIGNED == 1u || k < n {
        return words_at(at);
    }
    return vec4<u32>();
}

// One invocation's share of the sums of its columns. The part of k begins at k_first.
fn sum_few(total: ptr<function, array<vec4<f32>, SUMS>>, tile_col: u32, k_first: u32, invocation: u32) {
    let col = tile_col + 4u * FOURS * (invocation % LANES);
    let n = select(0u, min(p.k_part, p.k - k_first), col < p.w_stride);
    let step = p.w_stride / 4u;
    for (var k = 4u * (invocation / LANES); k < n; k += 4u * SHARES) {
        let at = ((k_first + k) * p.w_stride + col) / 4u;
        let w0 = words_at(at);
        let w1 = w_row(at + step, k + 1u, n);
        let w2 = w_row(at + 2u * step, k + 2u, n);
        let w3 = w_row(at + 3u * step, k + 3u, n);
        for (var r = 0u; r < ROWS; r += 1u) { // unrolled
            // Rows after the last one read the last row again. Their sums are not stored.
            let a = row4(r, k_first + k, n - k);
            for (var f = 0u; f < FOURS; f += 1u) { // unrolled
                let b0 = four_in(w0, f);
                let b1 = four_in(w1, f);
                let b2 = four_in(w2, f);
                let b3 = four_in(w3, f);
                (*total)[r * FOURS + f] += (a.x * b0 + a.y * b1) + (a.z * b2 + a.w * b3);
            }
        }
    }
}

// Adds up the shares and stores the results from index y_first of y on.
fn store_few(total: ptr<function, array<vec4<f32>, SUMS>>, tile_col: u32, y_first: u32, invocation: u32) {
    for (var r = 0u; r < ROWS; r += 1u) { // unrolled
        for (var f = 0u; f < FOURS; f += 1u) { // unrolled
            shares[invocation * FOURS + f] = (*total)[r * FOURS + f];
        }
        workgroupBarrier();
        if invocation < 64u {
            var sum = 0.0;
            for (var share = 0u; share < SHARES / 4u; share += 1u) { // unrolled
                sum += shares[(invocation / 16u * (SHARES / 4u) + share) * 4u + invocation % 16u / 4u][invocation % 4u];
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
