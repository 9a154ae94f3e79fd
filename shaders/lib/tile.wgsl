// The products of one tile of the result. A workgroup has SIDE_X x SIDE_Y invocations, each with the sums of ROWS rows
// x 4 FOURS columns. x and w pass through workgroup memory 16 steps of k at a time, and the next 16 steps are loaded
// while these are multiplied.
// SIDE_X, SIDE_Y, ROWS and FOURS are generated constants. The fastest ones depend on the adapter
// (src/device/gpu/autotune.rs).
// The kernel includes lib/x4.wgsl and lib/weight.wgsl. It declares the layout of w by `w_begin`, `w_step`, `w_inside`,
// `w_slot` and `add_products`.

const TILE_ROWS: u32 = SIDE_Y * ROWS;
const TILE_FOURS: u32 = SIDE_X * FOURS;
const INVOCATIONS: u32 = SIDE_X * SIDE_Y;
const SUMS: u32 = ROWS * FOURS;
const X_LOADS: u32 = TILE_ROWS * 4u / INVOCATIONS;
const W_LOADS: u32 = TILE_FOURS * 16u / INVOCATIONS;

var<workgroup> x_tile: array<vec4<f32>, TILE_ROWS * 4u>;   // [row][k / 4 4]
var<workgroup> w_tile: array<vec4<f32>, TILE_FOURS * 16u>; // in the order of w_slot

// Sums `k` steps. The first row of x begins at index x_first. After the last row it repeats that row. `w_begin` says
// where the tile of w begins.
fn sum_tile(total: ptr<function, array<vec4<f32>, SUMS>>, tile_row: u32, tile_col: u32, x_first: u32, w_first: u32, k: u32, local: vec2<u32>) {
    let index = local.y * SIDE_X + local.x;
    var x_at = array<u32, X_LOADS>();
    var w_at = array<u32, W_LOADS>();
    var x_next = array<vec4<f32>, X_LOADS>();
    var w_next = array<vec4<f32>, W_LOADS>();
    for (var i = 0u; i < X_LOADS; i += 1u) { // unrolled
        let place = index + i * INVOCATIONS;
        let row = min(tile_row + place / 4u, p.rows - 1u);
        x_at[i] = x_first + row * p.x_stride + 4u * (place % 4u);
        x_next[i] = x4(x_at[i], left(k, 4u * (place % 4u)));
    }
    for (var i = 0u; i < W_LOADS; i += 1u) { // unrolled
        let place = index + i * INVOCATIONS;
        w_at[i] = w_begin(place, tile_col, w_first);
        w_next[i] = weight_inside(w_at[i], w_inside(place, 0u, k));
    }
    let step = w_step();
    let blocks = (k + 15u) / 16u;
    for (var block = 0u; block < blocks; block += 1u) {
        for (var i = 0u; i < X_LOADS; i += 1u) { // unrolled
            x_tile[index + i * INVOCATIONS] = x_next[i];
        }
        for (var i = 0u; i < W_LOADS; i += 1u) { // unrolled
            w_tile[w_slot(index + i * INVOCATIONS)] = w_next[i];
        }
        workgroupBarrier();
        // In the last turn this loads the last block again, and nothing uses it.
        let next = min(block + 1u, blocks - 1u);
        for (var i = 0u; i < X_LOADS; i += 1u) { // unrolled
            let at = 4u * ((index + i * INVOCATIONS) % 4u);
            x_next[i] = x4(x_at[i] + 16u * next, left(k, 16u * next + at));
        }
        for (var i = 0u; i < W_LOADS; i += 1u) { // unrolled
            w_next[i] = weight_inside(w_at[i] + step * next, w_inside(index + i * INVOCATIONS, 16u * next, k));
        }
        for (var k4 = 0u; k4 < 4u; k4 += 1u) { // unrolled
            add_products(total, k4, local);
        }
        workgroupBarrier();
    }
}

// Four elements of w, or zeros.
fn weight_inside(at: u32, inside: bool) -> vec4<f32> {
    if inside {
        return weight4(at);
    }
    return vec4<f32>();
}
