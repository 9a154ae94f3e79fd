// The activation functions that use e^x. Each is written without cancellation and overflow. None calls tanh, which
// overflows to NaN for large arguments on some drivers.

// 1 / (1 + e^-x). exp_f32 stays finite, so large |x| gives exactly 0 or 1.
fn sigmoid(x: f32) -> f32 {
    return 1.0 / (1.0 + exp_f32(-x));
}

// 0.5 x (1 + tanh u) = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3).
fn gelu_tanh(x: f32) -> f32 {
    let bounded = clamp(x, -15.0, 15.0); // the sigmoid is 0 or 1 well within, and x^3 stays finite
    return x * sigmoid(1.59576912 * (bounded + 0.044715 * bounded * bounded * bounded));
}

// 0.5 x (1 + erf(x / sqrt 2)) = x - x Q(x) or x Q(-x), Q(a) = 0.5 erfc(a / sqrt 2) for a >= 0.
fn gelu_erf(x: f32) -> f32 {
    let tail = half_erfc(abs(x));
    return select(x * tail, x - x * tail, x >= 0.0);
}

// 0.5 erfc(a / sqrt 2) for a >= 0 = e^(-a^2/2) t p(t), t = 1 / (1 + 0.33 a). p is a Chebyshev fit of degree 9 over
// a in [0, 14]; its relative error, evaluated in f32, is below 2.1e-7. Beyond 14 the true value is below 1e-44.
fn half_erfc(a: f32) -> f32 {
    let bounded = min(a, 14.0);
    let t = 1.0 / (1.0 + 0.33 * bounded);
    var p = -0.010452769696712494;
    p = p * t + 0.03266672044992447;
    p = p * t + 0.005418986082077026;
    p = p * t - 0.12145641446113586;
    p = p * t + 0.11299341917037964;
    p = p * t - 0.0018324294360354543;
    p = p * t + 0.10472777485847473;
    p = p * t + 0.11434348672628403;
    p = p * t + 0.13195328414440155;
    p = p * t + 0.13163794577121735;
    return exp_f32(-0.5 * bounded * bounded) * t * p;
}
