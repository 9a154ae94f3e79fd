// The products of one tile of the result. A workgroup has SIDE_X x SIDE_Y invocations, each with the sums of ROWS rows
// x 4 FOURS columns. x and w pass through workgroup memory 16 steps of k at a time, and the next 16 steps are loaded
// while these are multiplied.
// In workgroup memory a step of k lies in one row, of x as of w. An invocation then loads four rows or columns at a
// time, and one load of four numbers serves 4 ROWS or 16 FOURS multiply-adds.
// SIDE_X, SIDE_Y, ROWS (a multiple of 4) and FOURS are generated constants. The fastest ones depend on the adapter
// (src/device/gpu/autotune.rs). SIDE_X is a multiple of 8, and SIDE_Y of 4.
// The kernel includes lib/x_vec4.wgsl and lib/weight.wgsl. It declares how w is read: `W_LOADS`, `w_begin`, `w_step`,
// `w_inside`, `store_w` and `w_slot`.

const TILE_ROWS: u32 = SIDE_Y * ROWS;
const ROW_FOURS: u32 = TILE_ROWS / 4u;
const TILE_FOURS: u32 = SIDE_X * FOURS;
const INVOCATIONS: u32 = SIDE_X * SIDE_Y;
const SUMS: u32 = ROWS * FOURS;
const GROUPS: u32 = ROWS / 4u;
const X_TURNS: u32 = (TILE_ROWS + INVOCATIONS - 1u) / INVOCATIONS;
const X_LOADS: u32 = X_TURNS * 4u;

var<workgroup> x_tile: array<vec4<f32>, ROW_FOURS * 16u>;  // [k 16][row / 4], in the order of swizzled()
var<workgroup> w_tile: array<vec4<f32>, TILE_FOURS * 16u>; // [k 16][column / 4], in the order of w_slot

// Where the sums of an invocation are: column / 4 and row / 4 of the first ones. 32 neighbouring invocations have 8 x 4
// of them, so that they load few different vectors at once.
fn place_of(index: u32) -> vec2<u32> {
    let block = index / 32u;
    return vec2<u32>(index % 8u + block % (SIDE_X / 8u) * 8u, index / 8u % 4u + block / (SIDE_X / 8u) * 4u);
}

// The place of vector `four` of step k among the n vectors of a step. The order depends on k, so that four invocations
// that store neighbouring steps use different memory banks.
fn swizzled(k: u32, four: u32, n: u32) -> u32 {
    return k * n + (four ^ (2u * (k / 4u) % n));
}

// Element `step` of each of four vectors.
fn transposed(a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32>, step: u32) -> vec4<f32> {
    return vec4<f32>(a[step], b[step], c[step], d[step]);
}

// True if load i of an invocation is among those that load n vectors of each step.
fn has_load(i: u32, index: u32, n: u32) -> bool {
    return 4u * n % INVOCATIONS == 0u || (index + i * INVOCATIONS) / 4u < n;
}

// Four elements of x, if the invocation has this load.
fn x_inside(i: u32, index: u32, at: u32, n: u32) -> vec4<f32> {
    if has_load(i, index, ROW_FOURS) {
        return x_vec4(at, n);
    }
    return vec4<f32>();
}

// Sums `k` steps. The first row of x begins at index x_first. After the last row it repeats that row. `w_begin` says
// where the tile of w begins. One load of an invocation takes four rows of x with four steps each.
fn sum_tile(total: ptr<function, array<vec4<f32>, SUMS>>, tile_row: u32, tile_col: u32, x_first: u32, w_first: u32, k: u32, index: u32) {
    let at = place_of(index);
    var x_at = array<u32, X_LOADS>();
    var w_at = array<u32, W_LOADS>();
    var x_next = array<vec4<f32>, X_LOADS>();
    var w_next = array<vec4<f32>, W_LOADS>();
    let step = 4u * (index % 4u);
    for (var i = 0u; i < X_TURNS; i += 1u) { // unrolled
        for (var j = 0u; j < 4u; j += 1u) { // unrolled
            let row = min(tile_row + 4u * ((index + i * INVOCATIONS) / 4u) + j, p.rows - 1u);
            x_at[4u * i + j] = x_first + row * p.x_stride + step;
            x_next[4u * i + j] = x_inside(i, index, x_at[4u * i + j], left(k, step));
        }
    }
    for (var i = 0u; i < W_LOADS; i += 1u) { // unrolled
        w_at[i] = w_begin(i, index, tile_col, w_first);
        w_next[i] = weight_inside(w_at[i], w_inside(i, index, 0u, k));
    }
    let blocks = (k + 15u) / 16u;
    for (var block = 0u; block < blocks; block += 1u) {
        for (var i = 0u; i < X_TURNS; i += 1u) { // unrolled
            let four = (index + i * INVOCATIONS) / 4u;
            if has_load(i, index, ROW_FOURS) {
                for (var s = 0u; s < 4u; s += 1u) { // unrolled
                    x_tile[swizzled(step + s, four, ROW_FOURS)] = transposed(x_next[4u * i], x_next[4u * i + 1u], x_next[4u * i + 2u], x_next[4u * i + 3u], s);
                }
            }
        }
        store_w(&w_next, index);
        workgroupBarrier();
        // In the last step this loads the last block again, and nothing uses it.
        let next = min(block + 1u, blocks - 1u);
        for (var i = 0u; i < X_LOADS; i += 1u) { // unrolled
            x_next[i] = x_inside(i / 4u, index, x_at[i] + 16u * next, left(k, 16u * next + step));
        }
        for (var i = 0u; i < W_LOADS; i += 1u) { // unrolled
            w_next[i] = weight_inside(w_at[i] + w_step() * next, w_inside(i, index, 16u * next, k));
        }
        for (var s = 0u; s < 16u; s += 1u) { // unrolled
            var b = array<vec4<f32>, FOURS>();
            for (var f = 0u; f < FOURS; f += 1u) { // unrolled
                b[f] = w_tile[w_slot(s, f * SIDE_X + at.x)];
            }
            for (var g = 0u; g < GROUPS; g += 1u) { // unrolled
                let a = x_tile[swizzled(s, g * SIDE_Y + at.y, ROW_FOURS)];
                for (var r = 0u; r < 4u; r += 1u) { // unrolled
                    for (var f = 0u; f < FOURS; f += 1u) { // unrolled
                        (*total)[(4u * g + r) * FOURS + f] = fma(vec4<f32>(a[r]), b[f], (*total)[(4u * g + r) * FOURS + f]);
                    }
                }
            }
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
