// y = f(x), f chosen when the pipeline is made.
// One lane an element.

override FUNCTION: u32 = 0u; // 0 gelu_tanh, 1 gelu_erf, 2 relu, 3 silu, 4 quick_gelu

struct Params {
    n: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;        // x [n]
@group(0) @binding(2) var<storage, read_write> y: array<f32>;  // y [n]

fn f(x: f32) -> f32 {
    switch FUNCTION {
        case 0u: { return gelu_tanh(x); }
        case 1u: { return gelu_erf(x); }
        case 2u: { return select(x, 0.0, x < 0.0); } // max would turn NaN into 0
        case 3u: { return x * sigmoid(x); }
        default: { return x * sigmoid(1.702 * x); }
    }
}

@compute @workgroup_size(64)
fn activation(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n_wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = (wg.y * n_wg.x + wg.x) * 64u + lane;
    if i < p.n {
        y[i] = f(x[i]);
    }
}
