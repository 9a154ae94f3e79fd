// y[t, head, c] = dy[t, c]: the gradient of sum_heads.wgsl with respect to the parts.
// One invocation per element of y.

struct Params {
    n: u32, // T * H * C
    cols: u32,
    n_head: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> dy: array<f32>;       // dy [T, C]
@group(0) @binding(2) var<storage, read_write> y: array<f32>;  // y [T, H, C]

@compute @workgroup_size(64)
fn sum_heads_gradient(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n_wg: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
    let i = (wg.y * n_wg.x + wg.x) * 64u + invocation;
    if i < p.n {
        y[i] = dy[i / (p.n_head * p.cols) * p.cols + i % p.cols];
    }
}
