// y[t, k] = sum over n of dy[t, head of k, n] w[k, n]: each head's columns of dy times its rows of w, transposed.
// One invocation per element of y.

struct Params {
    n: u32,         // T * H * d
    rows_of_w: u32, // H * d
    head_dim: u32,
    cols: u32,      // columns of w
    dy_stride: u32, // H * cols
    w_stride: u32,  // elements from the start of one row of w to the next
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> dy: array<f32>;        // dy [T, H, cols]
@group(0) @binding(2) var<storage, read> w: array<vec4<u32>>;   // w [H d, w_stride], as lib/weight.wgsl packs it
@group(0) @binding(3) var<storage, read_write> y: array<f32>;   // y [T, H d]

@compute @workgroup_size(64)
fn linear_by_head_gradient(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n_wg: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
    let i = (wg.y * n_wg.x + wg.x) * 64u + invocation;
    if i < p.n {
        let k = i % p.rows_of_w;
        let first_dy = i / p.rows_of_w * p.dy_stride + k / p.head_dim * p.cols;
        var total = 0.0;
        for (var first = 0u; first < p.cols; first += 64u) {
            // Short sums keep the rounding error small.
            var part = 0.0;
            for (var n = first; n < min(first + 64u, p.cols); n += 1u) {
                part += dy[first_dy + n] * weight(k * p.w_stride + n);
            }
            total += part;
        }
        y[i] = total;
    }
}
