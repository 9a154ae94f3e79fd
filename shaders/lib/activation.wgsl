// The activation functions, by number: 0 gelu_tanh, 1 gelu_erf, 2 relu, 3 silu, 4 quick_gelu.

fn activate(function: u32, x: f32) -> f32 {
    switch function {
        case 0u: { return gelu_tanh(x); }
        case 1u: { return gelu_erf(x); }
        case 2u: { return select(x, 0.0, x < 0.0); } // max would turn NaN into 0
        case 3u: { return x * sigmoid(x); }
        default: { return x * sigmoid(1.702 * x); }
    }
}
