// y = x . wᵀ for at most 8 rows: the table is what costs, and each of its numbers is read once.
// One workgroup 16 tokens, times 16 invocations that share k among them, four numbers at a time; their sums meet in workgroup
// memory, row by row.

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
@group(0) @binding(1) var<storage, read> x: array<f32>;        // x [T, k], T <= 8
@group(0) @binding(2) var<storage, read> w: array<vec4<u32>>;  // w [cols, w_stride], as lib/weight.wgsl packs it
@group(0) @binding(3) var<storage, read_write> y: array<f32>;  // y [T, y_stride]

var<workgroup> sums: array<f32, 256>; // [token 16][share of k 16]

@compute @workgroup_size(16, 16)
fn unembed_few(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n_wg: vec3<u32>, @builtin(local_invocation_id) invocation: vec3<u32>) {
    let token = (wg.y * n_wg.x + wg.x) * 16u + invocation.y;
    let k_end = select(0u, p.k, token < p.cols);

    var total = array<f32, 8>();
    for (var k = 4u * invocation.x; k < k_end; k += 64u) {
        let four = weight4((token * p.w_stride + k) / 4u);
        // The table's padding is zero, but x has none: the last numbers of a row are followed by the next row's.
        let n = min(4u, k_end - k);
        for (var r = 0u; r < 8u; r += 1u) {
            let at = p.x_first + min(r, p.rows - 1u) * p.k + k;
            var part = 0.0;
            for (var i = 0u; i < n; i += 1u) {
                part += x[at + i] * four[i];
            }
            total[r] += part;
        }
    }

    for (var r = 0u; r < p.rows; r += 1u) {
        workgroupBarrier();
        sums[invocation.y * 16u + invocation.x] = total[r];
        workgroupBarrier();
        if invocation.x == 0u && token < p.cols {
            var result = 0.0;
            for (var share = 0u; share < 16u; share += 1u) {
                result += sums[invocation.y * 16u + share];
            }
            y[p.y_first + r * p.y_stride + token] = result;
        }
    }
}
