// The interface of the products x . wᵀ with the unembedding's table. The kernel declares x at binding 1, by single
// elements or by vectors of four.

struct Params {
    rows: u32,
    k: u32,
    cols: u32,     // tokens in this part of the vocabulary
    x_stride: u32, // columns of x
    x_first: u32,  // index in x of the first row
    w_stride: u32, // elements from the start of one row of w to the next
    y_stride: u32, // columns of y
    y_first: u32,  // index in y of the result
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> w: array<vec4<u32>>;  // w [cols, w_stride], as lib/weight.wgsl packs it
@group(0) @binding(3) var<storage, read_write> y: array<f32>;  // y [T, y_stride]
