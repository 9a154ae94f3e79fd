// y = x . wᵀ for many rows: both sides lie row by row along k.
// One workgroup per tile, SIDE x SIDE invocations with ROWS x 4 FOURS results each; 16 steps of k at a time pass through workgroup
// memory, and every 4 are summed by themselves before they join the total (see linear.wgsl).

struct Params {
    rows: u32,
    k: u32,
    cols: u32,     // tokens in this part of the vocabulary
    x_first: u32,  // where x's first row begins, in numbers
    w_stride: u32, // numbers from one row of w to the next
    y_stride: u32, // columns of y
    y_first: u32,  // where the result begins in y, in numbers
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;        // x [T, k]
@group(0) @binding(2) var<storage, read> w: array<vec4<u32>>;  // w [cols, w_stride], as lib/weight.wgsl packs it
@group(0) @binding(3) var<storage, read_write> y: array<f32>;  // y [T, y_stride]

const TILE_ROWS: u32 = SIDE * ROWS;
const TILE_COLS: u32 = 4u * SIDE * FOURS;

var<workgroup> x_tile: array<vec4<f32>, TILE_ROWS * 4u>; // [row][k / 4 4]
var<workgroup> w_tile: array<vec4<f32>, TILE_COLS * 4u>; // [token][k / 4 4]

// Where four numbers of a token lie: neighbours' fours are spread over the memory banks.
fn slot(token: u32, k4: u32) -> u32 {
    return token * 4u + (k4 ^ ((token >> 1u) & 3u));
}

@compute @workgroup_size(SIDE, SIDE)
fn unembed(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_id) invocation: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let tile_row = wg.y * TILE_ROWS;
    let tile_col = wg.x * TILE_COLS;

    var total = array<vec4<f32>, ROWS * FOURS>();
    for (var k0 = 0u; k0 < p.k; k0 += 16u) {
        for (var i = index; i < TILE_ROWS * 4u; i += SIDE * SIDE) {
            let row = tile_row + i / 4u;
            let k = k0 + 4u * (i % 4u);
            var four = vec4<f32>();
            if row < p.rows && k < p.k {
                let at = p.x_first + row * p.k + k;
                let n = p.k - k;
                four.x = x[at];
                if n > 1u { four.y = x[at + 1u]; }
                if n > 2u { four.z = x[at + 2u]; }
                if n > 3u { four.w = x[at + 3u]; }
            }
            x_tile[i] = four;
        }
        for (var i = index; i < TILE_COLS * 4u; i += SIDE * SIDE) {
            let col = tile_col + i / 4u;
            let k = k0 + 4u * (i % 4u);
            var four = vec4<f32>();
            if col < p.cols && k < p.w_stride {
                four = weight4((col * p.w_stride + k) / 4u);
            }
            w_tile[slot(i / 4u, i % 4u)] = four;
        }
        workgroupBarrier();

        for (var k4 = 0u; k4 < 4u; k4 += 1u) {
            for (var f = 0u; f < FOURS; f += 1u) {
                let token = 4u * f * SIDE + invocation.x;
                let b0 = w_tile[slot(token, k4)];
                let b1 = w_tile[slot(token + SIDE, k4)];
                let b2 = w_tile[slot(token + 2u * SIDE, k4)];
                let b3 = w_tile[slot(token + 3u * SIDE, k4)];
                for (var r = 0u; r < ROWS; r += 1u) {
                    let a = x_tile[(r * SIDE + invocation.y) * 4u + k4];
                    total[r * FOURS + f] += vec4<f32>(dot(a, b0), dot(a, b1), dot(a, b2), dot(a, b3));
                }
            }
        }
        workgroupBarrier();
    }

    for (var r = 0u; r < ROWS; r += 1u) {
        let row = tile_row + r * SIDE + invocation.y;
        for (var f = 0u; f < FOURS; f += 1u) {
            for (var c = 0u; c < 4u; c += 1u) {
                let col = tile_col + (4u * f + c) * SIDE + invocation.x;
                if row < p.rows && col < p.cols {
                    y[p.y_first + row * p.y_stride + col] = total[r * FOURS + f][c];
                }
            }
        }
    }
}
