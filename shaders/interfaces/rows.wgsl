// The interface of kernels with one workgroup per row. The kernel declares its storage bindings.

struct Params {
    rows: u32,
    cols: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
