// Reads four consecutive elements of a binding of vec4, from any element on.

override ALIGNED: u32 = 0u; // 1: all begin at multiples of 4 elements, and their number is a multiple of 4

// Elements at .. at + 4, from two neighbouring vectors, the first of which has element `at`. From the n-th on they are
// 0.
fn four_of(a: vec4<f32>, b: vec4<f32>, at: u32, n: u32) -> vec4<f32> {
    // No switch: kernels have dozens of these calls, and SwiftShader's compiler ends after a minute of so many branches.
    let odd = (at & 1u) == 1u;
    let first = select(a, vec4<f32>(a.yzw, b.x), odd);
    let second = select(b.xy, b.yz, odd);
    let four = select(first, vec4<f32>(first.zw, second), (at & 2u) == 2u);
    return select(four, vec4<f32>(), vec4<u32>(0u, 1u, 2u, 3u) >= vec4<u32>(n));
}

// The number of elements from i on, of n.
fn left(n: u32, i: u32) -> u32 {
    return select(0u, n - i, i < n);
}
