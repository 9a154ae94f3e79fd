// y = x . w + bias, then what EPILOGUE says, for many rows.
// One workgroup per tile, SIDE x SIDE invocations with ROWS x 4 FOURS results each; 16 steps of k at a time pass through workgroup
// memory. SIDE, ROWS and FOURS are appended as consts: which are fastest depends on the adapter (gpu/tile.rs).
// Every 4 products are summed by themselves before they join the total, so that the rounding error grows with k / 4.

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
@group(0) @binding(1) var<storage, read> x: array<f32>;        // x [T, x_stride]
@group(0) @binding(2) var<storage, read> w: array<vec4<u32>>;  // w [.., w_stride], as lib/weight.wgsl packs it
@group(0) @binding(3) var<storage, read> bias: array<f32>;     // bias [cols]
@group(0) @binding(4) var<storage, read> added: array<f32>;    // added [T, y_stride], looked at if EPILOGUE is 1
@group(0) @binding(5) var<storage, read_write> y: array<f32>;  // y [T, y_stride]

const TILE_ROWS: u32 = SIDE * ROWS;
const TILE_FOURS: u32 = SIDE * FOURS;

var<workgroup> x_tile: array<vec4<f32>, TILE_ROWS * 4u>;    // [row][k / 4 4]
var<workgroup> w_tile: array<vec4<f32>, 16u * TILE_FOURS>;  // [k 16][column / 4]

@compute @workgroup_size(SIDE, SIDE)
fn linear(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_id) invocation: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let tile_row = wg.y * TILE_ROWS;
    let tile_col = wg.x * TILE_FOURS * 4u;

    var total = array<vec4<f32>, ROWS * FOURS>();
    for (var k0 = 0u; k0 < p.k; k0 += 16u) {
        for (var i = index; i < TILE_ROWS * 4u; i += SIDE * SIDE) {
            let row = tile_row + i / 4u;
            let k = k0 + 4u * (i % 4u);
            var four = vec4<f32>();
            if row < p.rows && k < p.k {
                let at = row * p.x_stride + p.x_first + k;
                let n = p.k - k;
                four.x = x[at];
                if n > 1u { four.y = x[at + 1u]; }
                if n > 2u { four.z = x[at + 2u]; }
                if n > 3u { four.w = x[at + 3u]; }
            }
            x_tile[i] = four;
        }
        for (var i = index; i < 16u * TILE_FOURS; i += SIDE * SIDE) {
            let k = k0 + i / TILE_FOURS;
            let col = tile_col + 4u * (i % TILE_FOURS);
            var four = vec4<f32>();
            if k < p.k && col < p.w_stride {
                four = weight4(((p.w_first_row + k) * p.w_stride + col) / 4u);
            }
            w_tile[i] = four;
        }
        workgroupBarrier();

        for (var k4 = 0u; k4 < 4u; k4 += 1u) {
            for (var f = 0u; f < FOURS; f += 1u) {
                let at = 4u * k4 * TILE_FOURS + f * SIDE + invocation.x;
                let b0 = w_tile[at];
                let b1 = w_tile[at + TILE_FOURS];
                let b2 = w_tile[at + 2u * TILE_FOURS];
                let b3 = w_tile[at + 3u * TILE_FOURS];
                for (var r = 0u; r < ROWS; r += 1u) {
                    let a = x_tile[(r * SIDE + invocation.y) * 4u + k4];
                    total[r * FOURS + f] += (a.x * b0 + a.y * b1) + (a.z * b2 + a.w * b3);
                }
            }
        }
        workgroupBarrier();
    }

    for (var r = 0u; r < ROWS; r += 1u) {
        let row = tile_row + r * SIDE + invocation.y;
        for (var f = 0u; f < FOURS; f += 1u) {
            let first = tile_col + 4u * (f * SIDE + invocation.x);
            for (var c = 0u; c < 4u; c += 1u) {
                let col = first + c;
                if row < p.rows && col < p.cols {
                    let at = row * p.y_stride + p.y_first + col;
                    y[at] = epilogue(total[r * FOURS + f][c], col, at);
                }
            }
        }
    }
}
