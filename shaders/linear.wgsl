// y = x . w + bias for many rows.
// One workgroup a tile of 64 rows x 64 columns, 16 x 16 lanes with 4 x 4 results each; 16 steps of k at a time pass through
// workgroup memory. Every 16 products are summed by themselves before they join the total, so that the rounding error
// grows with k / 16 + 16, not with k.

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
@group(0) @binding(4) var<storage, read_write> y: array<f32>;  // y [T, y_stride]

var<workgroup> x_tile: array<f32, 1024>;        // [k 16][row 64]
var<workgroup> w_tile: array<vec4<f32>, 256>;   // [k 16][column / 4 16]

@compute @workgroup_size(16, 16)
fn linear(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_id) lane: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let row = wg.y * 64u + 4u * lane.y; // this lane's first row and column
    let col = wg.x * 64u + 4u * lane.x;
    // What this lane fetches: four steps of k of one row of x, four columns of one row of w.
    let x_row = wg.y * 64u + index / 4u;
    let x_k = 4u * (index % 4u);

    var total = array<vec4<f32>, 4>();
    for (var k0 = 0u; k0 < p.k; k0 += 16u) {
        for (var i = 0u; i < 4u; i += 1u) {
            let k = k0 + x_k + i;
            var value = 0.0;
            if x_row < p.rows && k < p.k {
                value = x[x_row * p.x_stride + p.x_first + k];
            }
            x_tile[(x_k + i) * 64u + index / 4u] = value;
        }
        let w_row = k0 + lane.y;
        var four = vec4<f32>();
        if w_row < p.k && col < p.w_stride {
            four = weight4(((p.w_first_row + w_row) * p.w_stride + col) / 4u);
        }
        w_tile[lane.y * 16u + lane.x] = four;
        workgroupBarrier();

        var part = array<vec4<f32>, 4>();
        for (var k = 0u; k < 16u; k += 1u) {
            let b = w_tile[k * 16u + lane.x];
            let a = k * 64u + 4u * lane.y;
            part[0] += x_tile[a] * b;
            part[1] += x_tile[a + 1u] * b;
            part[2] += x_tile[a + 2u] * b;
            part[3] += x_tile[a + 3u] * b;
        }
        total[0] += part[0];
        total[1] += part[1];
        total[2] += part[2];
        total[3] += part[3];
        workgroupBarrier();
    }

    for (var r = 0u; r < 4u; r += 1u) {
        for (var c = 0u; c < 4u; c += 1u) {
            if row + r < p.rows && col + c < p.cols {
                var result = total[r][c];
                if p.has_bias != 0u {
                    result += bias[col + c];
                }
                y[(row + r) * p.y_stride + p.y_first + col + c] = result;
            }
        }
    }
}
