// Reads four dimensions of a query. The kernel declares the binding `q: array<vec4<f32>>`, and includes
// lib/unaligned_vec4.wgsl. HEAD_DIM is a generated constant.

// Elements at .. at + 4 of q. From the n-th on they are 0.
fn q_vec4(at: u32, n: u32) -> vec4<f32> {
    if ALIGNED == 1u {
        if HEAD_DIM % 64u == 0u || n > 0u {
            return q[at / 4u];
        }
        return vec4<f32>();
    }
    let last = arrayLength(&q) - 1u;
    return four_of(q[min(at / 4u, last)], q[min(at / 4u + 1u, last)], at, n);
}
