// Mean and divisor of a row of x, for the LayerNorm kernels. The kernel declares `x`, and includes lib/row.wgsl, and
// lib/reduce.wgsl or lib/reduce_subgroup.wgsl. Every invocation of its workgroups calls these functions in uniform
// control flow.

fn row_mean(invocation: u32, row: Row) -> f32 {
    var total = 0.0;
    for (var c = invocation; c < row.cols; c += WORKGROUP_SIZE) {
        total += x[row.start + c];
    }
    return workgroup_sum(invocation, total) / f32(max(row.cols, 1u));
}

// sqrt(var + eps). The variance is biased, and taken around the mean in a second pass.
fn row_scale(invocation: u32, row: Row, mean: f32, eps: f32) -> f32 {
    var squares = 0.0;
    for (var c = invocation; c < row.cols; c += WORKGROUP_SIZE) {
        let d = x[row.start + c] - mean;
        squares += d * d;
    }
    return sqrt(workgroup_sum(invocation, squares) / f32(max(row.cols, 1u)) + eps);
}
