// The row of a workgroup, for kernels with one workgroup per row. Its invocations stride over the columns. The kernel
// declares `p` with rows and cols.

struct Row {
    index: u32,
    start: u32, // index of its first element
    cols: u32,
}

// A workgroup after the last row has no columns. It takes part in every barrier and stores nothing.
fn row_of(wg: vec3<u32>, n_wg: vec3<u32>) -> Row {
    let index = wg.y * n_wg.x + wg.x;
    return Row(index, index * p.cols, select(0u, p.cols, index < p.rows));
}
