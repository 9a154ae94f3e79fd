// y = x . w + bias, then what EPILOGUE says, for at most 8 rows: the weight is what costs, and each of its numbers is read once.
// One workgroup 16 columns, four invocations with four each, times 64 invocations that share k among them, so that narrow weights still
// keep a GPU busy; the shares meet in workgroup memory, row by row.

struct Params {
    rows: u32,
    k: u32,
    cols: u32,
    x_stride: u32,    // columns of x
    x_first: u32,     // the column of x with which k begins
    w_stride: u32,    // numbers from one row of w to the next
    w_first_row: u32, // the row of w with which k begins
    y_stride: u32,    // columns of y
    y_first: u32,     // the column of y with which the result begins
    has_bias: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;        // x [T, x_stride], T <= 8
@group(0) @binding(2) var<storage, read> w: array<vec4<u32>>;  // w [.., w_stride], as lib/weight.wgsl packs it
@group(0) @binding(3) var<storage, read> bias: array<f32>;     // bias [cols]
@group(0) @binding(4) var<storage, read> added: array<f32>;    // added [T, y_stride], looked at if EPILOGUE is 1
@group(0) @binding(5) var<storage, read_write> y: array<f32>;  // y [T, y_stride]

var<workgroup> shares: array<vec4<f32>, 256>; // [share of k 64][column / 4 4]
var<workgroup> quarters: array<f32, 64>;      // [quarter of the shares 4][column 16]

@compute @workgroup_size(256)
fn linear_few(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n_wg: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
    let tile_col = (wg.y * n_wg.x + wg.x) * 16u;
    let col = tile_col + 4u * (invocation % 4u);
    let k_end = select(0u, p.k, col < p.w_stride);

    var total = array<vec4<f32>, 8>();
    for (var k = invocation / 4u; k < k_end; k += 64u) {
        let four = weight4(((p.w_first_row + k) * p.w_stride + col) / 4u);
        for (var r = 0u; r < 8u; r += 1u) {
            // Rows beyond the last read the last one again; their sums are never stored.
            total[r] += x[min(r, p.rows - 1u) * p.x_stride + p.x_first + k] * four;
        }
    }

    for (var r = 0u; r < p.rows; r += 1u) {
        workgroupBarrier();
        shares[invocation] = total[r];
        workgroupBarrier();
        if invocation < 64u {
            var sum = 0.0;
            for (var share = 0u; share < 16u; share += 1u) {
                sum += shares[(invocation / 16u * 16u + share) * 4u + invocation % 16u / 4u][invocation % 4u];
            }
            quarters[invocation] = sum;
        }
        workgroupBarrier();
        if invocation < 16u && tile_col + invocation < p.cols {
            let sum = (quarters[invocation] + quarters[invocation + 16u]) + (quarters[invocation + 32u] + quarters[invocation + 48u]);
            let at = r * p.y_stride + p.y_first + tile_col + invocation;
            y[at] = epilogue(sum, tile_col + invocation, at);
        }
    }
}
