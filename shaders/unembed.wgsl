// y = x . wᵀ for many rows. Both x and w are row-major along k. One workgroup per tile of y, laid out as in
// lib/tile.wgsl.

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
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;  // x [T, k]
@group(0) @binding(2) var<storage, read> w: array<vec4<u32>>;  // w [cols, w_stride], as lib/weight.wgsl packs it
@group(0) @binding(3) var<storage, read_write> y: array<f32>;  // y [T, y_stride]

// The layout of w_tile is [token][k / 4 4]. The order within a token depends on the token, so that neighbouring
// invocations use different memory banks.
fn slot(token: u32, k4: u32) -> u32 {
    return token * 4u + (k4 ^ ((token >> 1u) & 3u));
}

fn w_begin(place: u32, tile_col: u32, first: u32) -> u32 {
    let token = min(tile_col + place / 4u, p.cols - 1u);
    return (token * p.w_stride + first) / 4u + place % 4u;
}

fn w_step() -> u32 {
    return 4u;
}

// The rows of the table are padded with zeros to a multiple of 8 elements. The next row follows.
fn w_inside(place: u32, k: u32, n: u32) -> bool {
    return ALIGNED == 1u || k + 4u * (place % 4u) < n;
}

fn w_slot(place: u32) -> u32 {
    return slot(place / 4u, place % 4u);
}

fn add_products(total: ptr<function, array<vec4<f32>, SUMS>>, k4: u32, local: vec2<u32>) {
    for (var f = 0u; f < FOURS; f += 1u) { // unrolled
        let token = 4u * f * SIDE_X + local.x;
        let b0 = w_tile[slot(token, k4)];
        let b1 = w_tile[slot(token + SIDE_X, k4)];
        let b2 = w_tile[slot(token + 2u * SIDE_X, k4)];
        let b3 = w_tile[slot(token + 3u * SIDE_X, k4)];
        for (var r = 0u; r < ROWS; r += 1u) { // unrolled
            let a = x_tile[(r * SIDE_Y + local.y) * 4u + k4];
            (*total)[r * FOURS + f] += vec4<f32>(dot(a, b0), dot(a, b1), dot(a, b2), dot(a, b3));
        }
    }
}

@compute @workgroup_size(SIDE_X, SIDE_Y)
fn unembed(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let tile_row = wg.y * TILE_ROWS;
    let tile_col = wg.x * TILE_FOURS * 4u;
    var total = array<vec4<f32>, SUMS>();
    sum_tile(&total, tile_row, tile_col, p.x_first, 0u, p.k, local.xy);

    for (var r = 0u; r < ROWS; r += 1u) { // unrolled
        let row = tile_row + r * SIDE_Y + local.y;
        for (var f = 0u; f < FOURS; f += 1u) { // unrolled
            for (var c = 0u; c < 4u; c += 1u) { // unrolled
                let col = tile_col + (4u * f + c) * SIDE_X + local.x;
                if row < p.rows && col < p.cols {
                    y[p.y_first + row * p.y_stride + col] = total[r * FOURS + f][c];
                }
            }
        }
    }
}
