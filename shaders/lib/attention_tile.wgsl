// 32 queries of one head with 16 keys at a time: scores, and sums of values. A workgroup has 64 invocations; (x, y) of 8 x 8 has
// queries 4 y .. 4 y + 4, keys x and x + 8, and of 64 dimensions of z 8 x .. 8 x + 8. Wider heads pass in chunks of 64 dimensions;
// narrower ones are filled up with zeros. HEAD_DIM is appended as a const.
// The kernel declares the bindings `kv: array<vec4<f32>>` and, where it scores, `q: array<vec4<f32>>` by way of lib/scores.wgsl,
// and `p` with kv_stride, and names lib/text_rows.wgsl and lib/fours.wgsl. All invocations call these in uniform control flow.

const CHUNKS: u32 = (HEAD_DIM + 63u) / 64u;
const QUERIES: u32 = 32u;
const KEYS: u32 = 16u;
const APART: u32 = 17u; // rows of workgroup memory, to spread them over its banks

var<workgroup> kv_tile: array<vec4<f32>, 272>; // [key 16][dimension / 4 16]
var<workgroup> p_tile: array<f32, 544>;        // [query 32][key 16]

fn kv4(at: u32, n: u32) -> vec4<f32> {
    if ALIGNED == 1u {
        if HEAD_DIM % 64u == 0u || n > 0u {
            return kv[at / 4u];
        }
        return vec4<f32>();
    }
    let last = arrayLength(&kv) - 1u;
    return four_of(kv[min(at / 4u, last)], kv[min(at / 4u + 1u, last)], at, n);
}

// Dimensions d0 .. d0 + 64 of 16 keys or values. Keys beyond the last are the last. `col` is the head's first column of kv.
fn load_kv(text: TextRows, first_key: u32, col: u32, d0: u32, invocation: u32) {
    for (var i = 0u; i < 4u; i += 1u) { // unrolled
        let place = invocation + 64u * i;
        let key = min(first_key + place / 16u, text.n_key - 1u);
        let d = d0 + 4u * (place % 16u);
        kv_tile[place / 16u * APART + place % 16u] = kv4((text.k_row + key) * p.kv_stride + col + d, left(HEAD_DIM, d));
    }
}

// Adds the values of 16 keys, each times its weight in p_tile, to z: of query r, dimensions 0 .. 4 and 4 .. 8 of this
// invocation's. `totals` adds up the weights.
fn add_values(z: ptr<function, array<vec4<f32>, 8>>, totals: ptr<function, array<f32, 4>>, x: u32, y: u32) {
    for (var key = 0u; key < KEYS; key += 1u) { // unrolled
        let lo = kv_tile[key * APART + 2u * x];
        let hi = kv_tile[key * APART + 2u * x + 1u];
        for (var r = 0u; r < 4u; r += 1u) { // unrolled
            let weight = p_tile[(4u * y + r) * APART + key];
            (*totals)[r] += weight;
            (*z)[2u * r] += weight * lo;
            (*z)[2u * r + 1u] += weight * hi;
        }
    }
}
