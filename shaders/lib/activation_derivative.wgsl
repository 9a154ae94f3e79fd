// The derivatives of the activation functions of lib/activation.wgsl, by number. A kernel includes lib/gelu.wgsl and
// lib/exp.wgsl.

fn activation_derivative(function: u32, x: f32) -> f32 {
    switch function {
        case 0u: {
            let bounded = clamp(x, -15.0, 15.0); // the slope is 0 or 1 well within, and x^3 stays finite
            let squares = bounded * bounded;
            let y = 1.59576912 * (bounded + 0.044715 * squares * bounded);
            return slope_of_sigmoid(bounded, y, 1.59576912 * (1.0 + 0.134145 * squares));
        }
        case 1u: {
            let tail = half_erfc(abs(x));
            let bounded = clamp(x, -14.0, 14.0); // the density is 0 well within
            return select(tail, 1.0 - tail, x >= 0.0) + bounded * 0.39894228 * exp_f32(-0.5 * bounded * bounded);
        }
        case 2u: { return select(0.0, 1.0, x > 0.0); }
        case 3u: {
            let bounded = clamp(x, -90.0, 90.0);
            return slope_of_sigmoid(bounded, bounded, 1.0);
        }
        default: {
            let bounded = clamp(x, -60.0, 60.0);
            return slope_of_sigmoid(bounded, 1.702 * bounded, 1.702);
        }
    }
}

// The derivative of x s(y): s(y) + x y' s(y) s(-y), s being the sigmoid. s(-y) and not 1 - s(y), which would cancel.
fn slope_of_sigmoid(x: f32, y: f32, slope_of_y: f32) -> f32 {
    let s = sigmoid(y);
    return s + x * slope_of_y * s * sigmoid(-y);
}
