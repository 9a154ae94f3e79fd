// Changes a window of x in place: some rows and one range of columns.
// One invocation per element of the window.

struct Params {
    n: u32,         // elements of the window
    first_col: u32,
    cols: u32,      // columns of the window
    x_stride: u32,  // columns of x
    kind: u32,      // 0 zero, 1 scale, 2 add, 3 replace
    factor: f32,    // the factor of kind 1
    n_values: u32,  // elements of values: those of one row for all rows, or of all rows
    first_value: u32,   // index of the first value
    values_stride: u32, // elements of values from one row to the next
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> values: array<f32>;   // values [n_values]
@group(0) @binding(2) var<storage, read_write> x: array<f32>;  // x [.., x_stride]

@compute @workgroup_size(64)
fn edit(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n_wg: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
    let i = (wg.y * n_wg.x + wg.x) * 64u + invocation;
    if i < p.n {
        let at = i / p.cols * p.x_stride + p.first_col + i % p.cols;
        let value = values[(p.first_value + i / p.cols * p.values_stride + i % p.cols) % p.n_values];
        switch p.kind {
            case 0u: { x[at] = 0.0; }
            // Masked scores, which are the lowest f32, stay masked.
            case 1u: { x[at] = select(x[at] * p.factor, x[at], x[at] == -3.4028234663852886e38); }
            case 2u: { x[at] = x[at] + value; }
            default: { x[at] = value; }
        }
    }
}
