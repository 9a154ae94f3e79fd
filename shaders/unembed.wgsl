// y = x . wᵀ for many rows. Both x and w are row-major along k. One workgroup per tile of y, laid out as in
// lib/tile.wgsl.
// Interface: interfaces/unembed.wgsl

@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;  // x [T, k]

// One load of an invocation takes four tokens with four steps of k each, as of x.
const W_TURNS: u32 = (4u * TILE_FOURS + INVOCATIONS - 1u) / INVOCATIONS;
const W_LOADS: u32 = W_TURNS * 4u;

fn w_begin(i: u32, index: u32, tile_col: u32, first: u32) -> u32 {
    let token = min(tile_col + 4u * ((index + i / 4u * INVOCATIONS) / 4u) + i % 4u, p.cols - 1u);
    return (token * p.w_stride + first) / 4u + index % 4u;
}

fn w_step() -> u32 {
    return 4u;
}

// The rows of the table are padded with zeros to a multiple of 8 elements. The next row follows.
fn w_inside(i: u32, index: u32, k: u32, n: u32) -> bool {
    return has_load(i / 4u, index, TILE_FOURS) && (ALIGNED == 1u || k + 4u * (index % 4u) < n);
}

fn w_slot(k: u32, four: u32) -> u32 {
    return swizzled(k, four, TILE_FOURS);
}

fn store_w(w_next: ptr<function, array<vec4<f32>, W_LOADS>>, index: u32) {
    for (var i = 0u; i < W_TURNS; i += 1u) { // unrolled
        let four = (index + i * INVOCATIONS) / 4u;
        if has_load(i, index, TILE_FOURS) {
            for (var s = 0u; s < 4u; s += 1u) { // unrolled
                w_tile[w_slot(4u * (index % 4u) + s, four)] = transposed((*w_next)[4u * i], (*w_next)[4u * i + 1u], (*w_next)[4u * i + 2u], (*w_next)[4u * i + 3u], s);
            }
        }
    }
}

@compute @workgroup_size(INVOCATIONS)
fn unembed(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let tile_row = wg.y * TILE_ROWS;
    let tile_col = wg.x * TILE_FOURS * 4u;
    var total = array<vec4<f32>, SUMS>();
    sum_tile(&total, tile_row, tile_col, p.x_first, 0u, p.k, index);

    let at = place_of(index);
    for (var g = 0u; g < GROUPS; g += 1u) { // unrolled
        for (var r = 0u; r < 4u; r += 1u) { // unrolled
            let row = tile_row + 4u * (g * SIDE_Y + at.y) + r;
            for (var f = 0u; f < FOURS; f += 1u) { // unrolled
                for (var c = 0u; c < 4u; c += 1u) { // unrolled
                    let col = tile_col + 4u * (f * SIDE_X + at.x) + c;
                    if row < p.rows && col < p.cols {
                        y[p.y_first + row * p.y_stride + col] = total[(4u * g + r) * FOURS + f][c];
                    }
                }
            }
        }
    }
}
