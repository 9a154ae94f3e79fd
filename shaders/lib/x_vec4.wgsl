// Reads four elements of x at a time. The kernel declares the binding `x: array<vec4<f32>>` and includes
// lib/unaligned_vec4.wgsl. The shape is aligned if k and its parts are multiples of 16 and every row of x begins at a multiple
// of 4 elements.

// Elements at .. at + 4 of x. From the n-th on they are 0. If the shape is aligned, n is at least 4.
fn x_vec4(at: u32, n: u32) -> vec4<f32> {
    if ALIGNED == 1u {
        return x[at / 4u];
    }
    let last = arrayLength(&x) - 1u;
    return four_of(x[min(at / 4u, last)], x[min(at / 4u + 1u, last)], at, n);
}
