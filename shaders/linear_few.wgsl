// y = x . w + bias, then the epilogue, for at most ROWS rows, as lib/few.wgsl has it.

struct Params {
    rows: u32,
    k: u32,
    k_part: u32,      // steps of k in one part
    cols: u32,
    x_stride: u32,    // columns of x
    w_stride: u32,    // elements from the start of one row of w to the next
    y_stride: u32,    // columns of y
    y_part: u32,      // elements of y from the result of one part to the next
    has_bias: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;  // x [T, x_stride], T <= ROWS
@group(0) @binding(2) var<storage, read> w: array<vec4<u32>>;  // w [k, w_stride], as lib/weight.wgsl packs it
@group(0) @binding(3) var<storage, read> bias: array<f32>;     // bias [cols]
@group(0) @binding(4) var<storage, read> added: array<f32>;    // added [T, y_stride], read if EPILOGUE is 1
@group(0) @binding(5) var<storage, read_write> y: array<f32>;  // y [parts, T, y_stride]

// Elements k .. k + 4 of row r of x; from the n-th on they are 0.
fn row4(r: u32, k: u32, n: u32) -> vec4<f32> {
    return x4(min(r, p.rows - 1u) * p.x_stride + k, n);
}

@compute @workgroup_size(256)
fn linear_few(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n_wg: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
    let tile_col = (wg.y * n_wg.x + wg.x) * 16u;
    var total = array<vec4<f32>, SUMS>();
    sum_few(&total, tile_col, wg.z * p.k_part, invocation);
    store_few(&total, tile_col, wg.z * p.y_part, invocation);
}
