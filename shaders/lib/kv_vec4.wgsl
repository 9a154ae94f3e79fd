// Reads four dimensions of a key or value. The kernel declares the binding `kv: array<vec4<f32>>`, and includes
// lib/unaligned_vec4.wgsl. HEAD_DIM is a generated constant. Heads are processed in chunks of 64 dimensions.

const CHUNKS: u32 = (HEAD_DIM + 63u) / 64u;

// Elements at .. at + 4 of kv. From the n-th on they are 0.
fn kv_vec4(at: u32, n: u32) -> vec4<f32> {
    if ALIGNED == 1u {
        if HEAD_DIM % 64u == 0u || n > 0u {
            return kv[at / 4u];
        }
        return vec4<f32>();
    }
    let last = arrayLength(&kv) - 1u;
    return four_of(kv[min(at / 4u, last)], kv[min(at / 4u + 1u, last)], at, n);
}
