// y[t, c] = bias[c] + sum over heads of parts[t, head, c].
// One invocation per element of y.

struct Params {
    n: u32, // T * C
    cols: u32,
    n_head: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> parts: array<f32>;    // parts [T, H, C]
@group(0) @binding(2) var<storage, read> bias: array<f32>;     // bias [C]
@group(0) @binding(3) var<storage, read_write> y: array<f32>;  // y [T, C]

@compute @workgroup_size(64)
fn sum_heads(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n_wg: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
    let i = (wg.y * n_wg.x + wg.x) * 64u + invocation;
    if i < p.n {
        let t = i / p.cols;
        let c = i % p.cols;
        var total = 0.0;
        for (var head = 0u; head < p.n_head; head += 1u) {
            total += parts[(t * p.n_head + head) * p.cols + c];
        }
        y[i] = total + bias[c];
    }
}
