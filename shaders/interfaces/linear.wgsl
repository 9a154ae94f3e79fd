// The interface of the products x . w with a weight.

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
    eps: f32,         // of the LayerNorm before the product, in linear_few_norm.wgsl
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;  // x [T, x_stride]
@group(0) @binding(2) var<storage, read> w: array<vec4<u32>>;  // w [k, w_stride], as lib/weight.wgsl packs it
@group(0) @binding(3) var<storage, read> bias: array<f32>;     // bias [cols]
@group(0) @binding(4) var<storage, read> added: array<f32>;    // added [T, y_stride], read if EPILOGUE is 1
@group(0) @binding(5) var<storage, read_write> y: array<f32>;  // y [parts, T, y_stride]
