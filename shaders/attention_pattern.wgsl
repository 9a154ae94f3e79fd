// pattern = softmax of each row of the scores.
// One workgroup per row. Its invocations stride over the keys.
// Interface: interfaces/rows.wgsl

@group(0) @binding(1) var<storage, read> scores: array<f32>;         // scores [H P, P]
@group(0) @binding(2) var<storage, read_write> pattern: array<f32>;  // pattern [H P, P]

@compute @workgroup_size(WORKGROUP_SIZE)
fn attention_pattern(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n_wg: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
    let row = row_of(wg, n_wg);
    var highest = -3.4028234663852886e38;
    for (var c = invocation; c < row.cols; c += WORKGROUP_SIZE) {
        highest = max(highest, scores[row.start + c]);
    }
    highest = workgroup_max(invocation, highest);
    var total = 0.0;
    for (var c = invocation; c < row.cols; c += WORKGROUP_SIZE) {
        total += exp_f32(scores[row.start + c] - highest);
    }
    total = workgroup_sum(invocation, total);
    for (var c = invocation; c < row.cols; c += WORKGROUP_SIZE) {
        pattern[row.start + c] = exp_f32(scores[row.start + c] - highest) / total;
    }
}
