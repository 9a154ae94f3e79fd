// Reads the elements of a weight of any type. The kernel declares the binding `w: array<vec4<u32>>`, whose rows are
// padded to a multiple of 8 elements, so that a group of four never has elements of two rows.
// Half precision is widened with integer operations. unpack2x16float may flush subnormal values to zero, and trained
// weights have many of them.

override WEIGHT: u32 = 0u; // 0: f32, 1: f16, 2: bf16

fn widen_f16(h: u32) -> f32 {
    let exponent = (h >> 10u) & 0x1fu;
    let mantissa = h & 0x3ffu;
    // An exponent of 31 (inf, NaN) becomes 255. All others grow by the difference of the biases, 127 - 15.
    let wide = select(exponent + 112u, 255u, exponent == 31u);
    let normal = bitcast<f32>((wide << 23u) | (mantissa << 13u));
    let subnormal = f32(mantissa) * 5.9604644775390625e-8; // 2^-24
    let magnitude = select(normal, subnormal, exponent == 0u);
    return select(magnitude, -magnitude, (h & 0x8000u) != 0u);
}

// Two elements from one word, the lower half first.
fn widen_pair(word: u32) -> vec2<f32> {
    if WEIGHT == 1u {
        return vec2<f32>(widen_f16(word & 0xffffu), widen_f16(word >> 16u));
    }
    return vec2<f32>(bitcast<f32>(word << 16u), bitcast<f32>(word & 0xffff0000u));
}

// The words with elements 4i .. 4i + 4. In half precision they also have the four before or after them.
fn words_at(i: u32) -> vec4<u32> {
    if WEIGHT == 0u {
        return w[i];
    }
    return w[i >> 1u];
}

// Four elements of such words: in half precision, the first (0) or the last (1) four.
fn four_in(words: vec4<u32>, which: u32) -> vec4<f32> {
    if WEIGHT == 0u {
        return bitcast<vec4<f32>>(words);
    }
    let pair = select(words.xy, words.zw, which == 1u);
    return vec4<f32>(widen_pair(pair.x), widen_pair(pair.y));
}

// Elements 4i .. 4i + 4.
fn weight4(i: u32) -> vec4<f32> {
    return four_in(words_at(i), i & 1u);
}

// Element i.
fn weight(i: u32) -> f32 {
    return weight4(i >> 2u)[i & 3u];
}
