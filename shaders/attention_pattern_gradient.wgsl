// The gradient of attention_pattern.wgsl by the scores, from the pattern: pattern (dy - sum(pattern dy)) per row.
// One workgroup per row. Its invocations stride over the keys.

struct Params {
    rows: u32,
    cols: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> pattern: array<f32>;  // pattern [H P, P]
@group(0) @binding(2) var<storage, read> dy: array<f32>;       // dy [H P, P]
@group(0) @binding(3) var<storage, read_write> y: array<f32>;  // y [H P, P]

@compute @workgroup_size(WORKGROUP_SIZE)
fn attention_pattern_gradient(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n_wg: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
    let row = wg.y * n_wg.x + wg.x;
    // A workgroup after the last row has no columns. It takes part in every barrier and stores nothing.
    let cols = select(0u, p.cols, row < p.rows);
    let start = row * p.cols;

    var total = 0.0;
    for (var c = invocation; c < cols; c += WORKGROUP_SIZE) {
        total += pattern[start + c] * dy[start + c];
    }
    total = workgroup_sum(invocation, total);
    for (var c = invocation; c < cols; c += WORKGROUP_SIZE) {
        y[start + c] = pattern[start + c] * (dy[start + c] - total);
    }
}
