// y = x . wᵀ for many rows: both sides lie row by row along k.
// One workgroup a tile of 64 rows x 64 tokens, 16 x 16 lanes with 4 x 4 results each; 16 steps of k at a time pass through
// workgroup memory, and are summed by themselves before they join the total (see linear.wgsl).

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

var<workgroup> x_tile: array<f32, 1024>; // [k 16][row 64]
var<workgroup> w_tile: array<f32, 1024>; // [k 16][token 64]

@compute @workgroup_size(16, 16)
fn unembed(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_id) lane: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let row = wg.y * 64u + 4u * lane.y; // this lane's first row and token
    let col = wg.x * 64u + 4u * lane.x;
    // What this lane fetches of each side: four steps of k of one row.
    let at = index / 4u;
    let at_k = 4u * (index % 4u);
    let x_row = wg.y * 64u + at;
    let w_row = wg.x * 64u + at;

    var total = array<vec4<f32>, 4>();
    for (var k0 = 0u; k0 < p.k; k0 += 16u) {
        var four = vec4<f32>();
        if w_row < p.cols && k0 + at_k < p.w_stride {
            four = weight4((w_row * p.w_stride + k0 + at_k) / 4u);
        }
        for (var i = 0u; i < 4u; i += 1u) {
            let k = k0 + at_k + i;
            var value = 0.0;
            if x_row < p.rows && k < p.k {
                value = x[p.x_first + x_row * p.k + k];
            }
            x_tile[(at_k + i) * 64u + at] = value;
            w_tile[(at_k + i) * 64u + at] = four[i];
        }
        workgroupBarrier();

        var part = array<vec4<f32>, 4>();
        for (var k = 0u; k < 16u; k += 1u) {
            let b = k * 64u + 4u * lane.x;
            let four_w = vec4<f32>(w_tile[b], w_tile[b + 1u], w_tile[b + 2u], w_tile[b + 3u]);
            let a = k * 64u + 4u * lane.y;
            part[0] += x_tile[a] * four_w;
            part[1] += x_tile[a + 1u] * four_w;
            part[2] += x_tile[a + 2u] * four_w;
            part[3] += x_tile[a + 3u] * four_w;
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
                y[p.y_first + (row + r) * p.y_stride + col + c] = total[r][c];
            }
        }
    }
}
