// y = x . w + bias for at most 8 rows: the weight is what costs, and each of its numbers is read once.
// One workgroup 64 columns, 16 lanes with four each, times 16 lanes that share k among them; their sums meet in workgroup
// memory, row by row.

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
@group(0) @binding(1) var<storage, read> x: array<f32>;        // x [T, x_stride], T <= 8
@group(0) @binding(2) var<storage, read> w: array<vec4<u32>>;  // w [.., w_stride], as lib/weight.wgsl packs it
@group(0) @binding(3) var<storage, read> bias: array<f32>;     // bias [cols]
@group(0) @binding(4) var<storage, read_write> y: array<f32>;  // y [T, y_stride]

var<workgroup> sums: array<vec4<f32>, 256>; // [share of k 16][column / 4 16]

@compute @workgroup_size(16, 16)
fn linear_few(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n_wg: vec3<u32>, @builtin(local_invocation_id) lane: vec3<u32>) {
    let col = (wg.y * n_wg.x + wg.x) * 64u + 4u * lane.x;
    let k_end = select(0u, p.k, col < p.w_stride);

    var total = array<vec4<f32>, 8>();
    for (var k = lane.y; k < k_end; k += 16u) {
        let four = weight4(((p.w_first_row + k) * p.w_stride + col) / 4u);
        for (var r = 0u; r < 8u; r += 1u) {
            // Rows beyond the last read the last one again; their sums are never stored.
            total[r] += x[min(r, p.rows - 1u) * p.x_stride + p.x_first + k] * four;
        }
    }

    for (var r = 0u; r < p.rows; r += 1u) {
        workgroupBarrier();
        sums[lane.y * 16u + lane.x] = total[r];
        workgroupBarrier();
        if lane.y < 4u && col + lane.y < p.cols {
            var result = 0.0;
            for (var share = 0u; share < 16u; share += 1u) {
                result += sums[share * 16u + lane.x][lane.y];
            }
            if p.has_bias != 0u {
                result += bias[col + lane.y];
            }
            y[r * p.y_stride + p.y_first + col + lane.y] = result;
        }
    }
}
