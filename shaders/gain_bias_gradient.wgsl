// y = dy * gain per column: the gradient of gain_bias.wgsl with respect to x.
// One invocation per element.

struct Params {
    n: u32, // T * C
    cols: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> dy: array<f32>;       // dy [T, C]
@group(0) @binding(2) var<storage, read> factors: array<f32>;  // gain [C]
@group(0) @binding(3) var<storage, read_write> y: array<f32>;  // y [T, C]

@compute @workgroup_size(64)
fn gain_bias_gradient(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n_wg: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
    let i = (wg.y * n_wg.x + wg.x) * 64u + invocation;
    if i < p.n {
        y[i] = dy[i] * factors[i % p.cols];
    }
}
