// Copies a window of x into y: some rows and one range of columns.
// One invocation per element of the window.

struct Params {
    n: u32,         // elements of the window
    first_col: u32,
    cols: u32,      // columns of the window
    x_stride: u32,  // columns of x
    y_first: u32,   // the first column of y that is written
    y_stride: u32,  // columns of y
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;        // x [.., x_stride]
@group(0) @binding(2) var<storage, read_write> y: array<f32>;  // y [.., y_stride]

@compute @workgroup_size(64)
fn copy_window(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n_wg: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
    let i = (wg.y * n_wg.x + wg.x) * 64u + invocation;
    if i < p.n {
        y[i / p.cols * p.y_stride + p.y_first + i % p.cols] = x[i / p.cols * p.x_stride + p.first_col + i % p.cols];
    }
}
