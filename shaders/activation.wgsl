// y = f(x). The override FUNCTION chooses f.
// One invocation per element.
// Interface: interfaces/elements.wgsl

override FUNCTION: u32 = 0u; // a number of lib/activation.wgsl

@group(0) @binding(1) var<storage, read> x: array<f32>;        // x [n]
@group(0) @binding(2) var<storage, read_write> y: array<f32>;  // y [n]

@compute @workgroup_size(64)
fn activation(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n_wg: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
    let i = (wg.y * n_wg.x + wg.x) * 64u + invocation;
    if i < p.n {
        y[i] = activate(FUNCTION, x[i]);
    }
}
