// The activation functions, by number: 0 gelu_tanh, 1 gelu_erf, 2 relu, 3 silu, 4 quick_gelu.

fn activate(function: u32, x: f32) -> f32 {
    switch function {
        case 0u: { return gelu_tanh(x); }
        case 1u: { return gelu_erf(x); }
        case 2u: { return relu(x); }
        case 3u: { return x * sigmoid(x); }
        default: { return x * sigmoid(1.702 * x); }
    }
}

// By the bits of x: compilers make `max` of a comparison with floats, and NVIDIA's `max` turns NaN into 0.
fn relu(x: f32) -> f32 {
    let bits = bitcast<u32>(x);
    let negative = bits > 0x7fffffffu && bits <= 0xff800000u;
    return bitcast<f32>(select(bits, 0u, negative));
}
