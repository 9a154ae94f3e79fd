// The interface of kernels with one invocation per element. The kernel declares its storage bindings.

struct Params {
    n: u32, // elements
}

@group(0) @binding(0) var<uniform> p: Params;
