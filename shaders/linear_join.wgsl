// y = the sum of the parts that linear.wgsl has computed + bias, then the epilogue.
// One invocation per element of y.

struct Params {
    n: u32,        // elements of y
    cols: u32,     // columns of y
    parts: u32,
    has_bias: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> sums: array<f32>;     // sums [parts, T, cols]
@group(0) @binding(2) var<storage, read> bias: array<f32>;     // bias [cols]
@group(0) @binding(3) var<storage, read> added: array<f32>;    // added [T, cols], read if EPILOGUE is 1
@group(0) @binding(4) var<storage, read_write> y: array<f32>;  // y [T, cols]

@compute @workgroup_size(64)
fn linear_join(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n_wg: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
    let i = (wg.y * n_wg.x + wg.x) * 64u + invocation;
    if i < p.n {
        var total = 0.0;
        for (var part = 0u; part < p.parts; part += 1u) {
            total += sums[part * p.n + i];
        }
        y[i] = epilogue(total, i % p.cols, i);
    }
}
