// The gradient of attention_pattern.wgsl with respect to the scores, from the pattern: pattern (dy - sum(pattern dy)) per row.
// One workgroup per row. Its invocations stride over the keys.
// Interface: interfaces/rows.wgsl

@group(0) @binding(1) var<storage, read> pattern: array<f32>;  // pattern [H P, P]
@group(0) @binding(2) var<storage, read> dy: array<f32>;       // dy [H P, P]
@group(0) @binding(3) var<storage, read_write> y: array<f32>;  // y [H P, P]

@compute @workgroup_size(WORKGROUP_SIZE)
fn attention_pattern_gradient(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n_wg: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
    let row = row_of(wg, n_wg);
    var total = 0.0;
    for (var c = invocation; c < row.cols; c += WORKGROUP_SIZE) {
        total += pattern[row.start + c] * dy[row.start + c];
    }
    total = workgroup_sum(invocation, total);
    for (var c = invocation; c < row.cols; c += WORKGROUP_SIZE) {
        y[row.start + c] = pattern[row.start + c] * (dy[row.start + c] - total);
    }
}
