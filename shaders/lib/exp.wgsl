// e^x to about one unit in the last place. WGSL allows its own exp an error of 3 + 2|x| units. Some drivers have such
// errors, or overflow early. Softmax and the activation functions of lib/gelu.wgsl use this one.
// x = n ln 2 + r with |r| <= ln 2 / 2; e^r by its Taylor series, whose term 8 is below 2^-25 there; 2^n by its exponent
// bits.

fn exp_f32(x: f32) -> f32 {
    // Outside these bounds the result is no normal f32. It is 0 below, and the largest power above (never infinity).
    let bounded = clamp(x, -87.0, 88.0);
    let n = round(bounded * 1.44269504);
    // ln 2 in two parts. The first has so few bits that n * part is exact. Metal's fast math may reorder sums and
    // products, which would lose the second part, but it does not reorder fma.
    let r = fma(n, -1.42860682030941723212e-6, fma(n, -0.693145751953125, bounded));
    var e = 1.98412698e-4;
    e = fma(e, r, 1.38888889e-3);
    e = fma(e, r, 8.33333333e-3);
    e = fma(e, r, 4.16666667e-2);
    e = fma(e, r, 1.66666667e-1);
    e = fma(e, r, 0.5);
    e = fma(e * r, r, r) + 1.0;
    let result = e * bitcast<f32>(u32(i32(n) + 127) << 23u);
    // NaN stays NaN, although clamp may turn it into a bound. This tests the bits, because x != x may be optimised
    // away.
    let is_nan = (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u;
    return select(select(result, 0.0, x < -87.0), x, is_nan);
}
