// y = a + b.
// One invocation per element.
// Interface: interfaces/elements.wgsl

@group(0) @binding(1) var<storage, read> a: array<f32>;        // a [n]
@group(0) @binding(2) var<storage, read> b: array<f32>;        // b [n]
@group(0) @binding(3) var<storage, read_write> y: array<f32>;  // y [n]

@compute @workgroup_size(64)
fn add(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n_wg: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
    let i = (wg.y * n_wg.x + wg.x) * 64u + invocation;
    if i < p.n {
        y[i] = a[i] + b[i];
    }
}
