// y = x . w + bias, then the epilogue, for many rows. One workgroup per tile of y and part of k, laid out as in
// lib/tile.wgsl.
// The z dimension of the grid counts the parts of k. Each part sums k_part steps and has a result of its own. The heads
// of linear_by_head are such parts, and so are the pieces of a long k that linear_join.wgsl adds up.
// A compiler may turn the four products of a line into one chain of fused multiply-adds. The rounding error then grows
// with k.

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
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;  // x [T, x_stride]
@group(0) @binding(2) var<storage, read> w: array<vec4<u32>>;  // w [k, w_stride], as lib/weight.wgsl packs it
@group(0) @binding(3) var<storage, read> bias: array<f32>;     // bias [cols]
@group(0) @binding(4) var<storage, read> added: array<f32>;    // added [T, y_stride], read if EPILOGUE is 1
@group(0) @binding(5) var<storage, read_write> y: array<f32>;  // y [parts, T, y_stride]

// The layout of w_tile is [k 16][column / 4].
fn w_begin(place: u32, tile_col: u32, first: u32) -> u32 {
    let col = min(tile_col + 4u * (place % TILE_FOURS), p.w_stride - 4u);
    return ((first + place / TILE_FOURS) * p.w_stride + col) / 4u;
}

fn w_step() -> u32 {
    return 4u * p.w_stride;
}

fn w_inside(place: u32, k: u32, n: u32) -> bool {
    return ALIGNED == 1u || k + place / TILE_FOURS < n;
}

fn w_slot(place: u32) -> u32 {
    return place;
}

fn add_products(total: ptr<function, array<vec4<f32>, SUMS>>, k4: u32, local: vec2<u32>) {
    for (var f = 0u; f < FOURS; f += 1u) { // unrolled
        let at = 4u * k4 * TILE_FOURS + f * SIDE_X + local.x;
        let b0 = w_tile[at];
        let b1 = w_tile[at + TILE_FOURS];
        let b2 = w_tile[at + 2u * TILE_FOURS];
        let b3 = w_tile[at + 3u * TILE_FOURS];
        for (var r = 0u; r < ROWS; r += 1u) { // unrolled
            let a = x_tile[(r * SIDE_Y + local.y) * 4u + k4];
            (*total)[r * FOURS + f] += (a.x * b0 + a.y * b1) + (a.z * b2 + a.w * b3);
        }
    }
}

@compute @workgroup_size(SIDE_X, SIDE_Y)
fn linear(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let tile_row = wg.y * TILE_ROWS;
    let tile_col = wg.x * TILE_FOURS * 4u;
    let k_first = wg.z * p.k_part;
    var total = array<vec4<f32>, SUMS>();
    sum_tile(&total, tile_row, tile_col, k_first, k_first, min(p.k_part, p.k - k_first), local.xy);

    for (var r = 0u; r < ROWS; r += 1u) { // unrolled
        let row = tile_row + r * SIDE_Y + local.y;
        for (var f = 0u; f < FOURS; f += 1u) { // unrolled
            let first = tile_col + 4u * (f * SIDE_X + local.x);
            for (var c = 0u; c < 4u; c += 1u) { // unrolled
                let col = first + c;
                if row < p.rows && col < p.cols {
                    let at = wg.z * p.y_part + row * p.y_stride + col;
                    y[at] = epilogue(total[r * FOURS + f][c], col, at);
                }
            }
        }
    }
}
