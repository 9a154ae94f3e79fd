// Four elements of a binding of vectors, wherever they begin.

override ALIGNED: u32 = 0u; // 1 where they begin at multiples of 4 elements, and end together

// Elements at .. at + 4 of two neighbouring vectors, the first of which holds `at`; those from the n-th on are 0.
fn four_of(a: vec4<f32>, b: vec4<f32>, at: u32, n: u32) -> vec4<f32> {
    var four = a;
    switch at % 4u {
        case 1u: { four = vec4<f32>(a.yzw, b.x); }
        case 2u: { four = vec4<f32>(a.zw, b.xy); }
        case 3u: { four = vec4<f32>(a.w, b.xyz); }
        default: {}
    }
    return select(four, vec4<f32>(), vec4<u32>(0u, 1u, 2u, 3u) >= vec4<u32>(n));
}

// How many of n elements are left from element i on.
fn left(n: u32, i: u32) -> u32 {
    return select(0u, n - i, i < n);
}
