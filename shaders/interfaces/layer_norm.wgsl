// The interface of the kernels that compute LayerNorm's divisor. The kernel declares its other bindings.

struct Params {
    rows: u32,
    cols: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>; // x [T, C]
