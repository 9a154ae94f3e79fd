// y = x . w + bias, then the epilogue, for many rows. One workgroup per tile of y and part of k, laid out as in
// lib/tile.wgsl.
// The z dimension of the grid counts the parts of k. Each part sums k_part steps and has a result of its own. The heads
// of linear_by_head are such parts, and so are the pieces of a long k that linear_join.wgsl adds up.
// A sum is one chain of fused multiply-adds, whose rounding error grows with k.
// Interface: interfaces/linear.wgsl

// A load takes four columns of one step of k.
const W_LOADS: u32 = TILE_FOURS * 16u / INVOCATIONS;

fn w_begin(i: u32, index: u32, tile_col: u32, first: u32) -> u32 {
    let place = index + i * INVOCATIONS;
    let col = min(tile_col + 4u * (place % TILE_FOURS), p.w_stride - 4u);
    return ((first + place / TILE_FOURS) * p.w_stride + col) / 4u;
}

fn w_step() -> u32 {
    return 4u * p.w_stride;
}

fn w_inside(i: u32, index: u32, k: u32, n: u32) -> bool {
    return ALIGNED == 1u || k + (index + i * INVOCATIONS) / TILE_FOURS < n;
}

fn w_slot(k: u32, four: u32) -> u32 {
    return k * TILE_FOURS + four;
}

fn store_w(w_next: ptr<function, array<vec4<f32>, W_LOADS>>, index: u32) {
    for (var i = 0u; i < W_LOADS; i += 1u) { // unrolled
        w_tile[index + i * INVOCATIONS] = (*w_next)[i];
    }
}

@compute @workgroup_size(INVOCATIONS)
fn linear(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let tile_row = wg.y * TILE_ROWS;
    let tile_col = wg.x * TILE_FOURS * 4u;
    let k_first = wg.z * p.k_part;
    var total = array<vec4<f32>, SUMS>();
    sum_tile(&total, tile_row, tile_col, k_first, k_first, min(p.k_part, p.k - k_first), index);

    // What the epilogue of four rows reads is loaded before any of their results is stored: with a store in between,
    // each load would wait for the one before.
    let at = place_of(index);
    var biases = array<vec4<f32>, FOURS>();
    for (var f = 0u; f < FOURS; f += 1u) { // unrolled
        for (var c = 0u; c < 4u; c += 1u) { // unrolled
            biases[f][c] = bias_of(min(tile_col + 4u * (f * SIDE_X + at.x) + c, p.cols - 1u));
        }
    }
    for (var g = 0u; g < GROUPS; g += 1u) { // unrolled
        let first_row = tile_row + 4u * (g * SIDE_Y + at.y);
        for (var r = 0u; r < 4u; r += 1u) { // unrolled
            let row = wg.z * p.y_part + min(first_row + r, p.rows - 1u) * p.y_stride;
            for (var f = 0u; f < FOURS; f += 1u) { // unrolled
                for (var c = 0u; c < 4u; c += 1u) { // unrolled
                    let col = min(tile_col + 4u * (f * SIDE_X + at.x) + c, p.cols - 1u);
                    total[(4u * g + r) * FOURS + f][c] = finished(total[(4u * g + r) * FOURS + f][c] + biases[f][c], row + col);
                }
            }
        }
        for (var r = 0u; r < 4u; r += 1u) { // unrolled
            let row = wg.z * p.y_part + (first_row + r) * p.y_stride;
            for (var f = 0u; f < FOURS; f += 1u) { // unrolled
                for (var c = 0u; c < 4u; c += 1u) { // unrolled
                    let col = tile_col + 4u * (f * SIDE_X + at.x) + c;
                    if first_row + r < p.rows && col < p.cols {
                        y[row + col] = total[(4u * g + r) * FOURS + f][c];
                    }
                }
            }
        }
    }
}
