// Attention of 32 queries of one head with 16 keys at a time: scores, and sums of values.
// A workgroup has 8 x 8 invocations. Invocation (x, y) has queries 4 y .. 4 y + 4, keys x and x + 8, and dimensions 8 x
// .. 8 x + 8 of 64. Wider heads are processed in chunks of 64 dimensions, and narrower ones are padded with zeros.
// A kernel declares `p` with kv_stride, and includes lib/text_rows.wgsl and lib/kv_vec4.wgsl. One that computes scores also
// includes lib/scores.wgsl. All invocations call these functions in uniform control flow.

const QUERIES: u32 = 32u;
const KEYS: u32 = 16u;
const APART: u32 = 17u; // elements from row to row in workgroup memory, so that rows lie in different banks

var<workgroup> kv_tile: array<vec4<f32>, 272>; // [key 16][dimension / 4 16]
var<workgroup> p_tile: array<f32, 544>;        // [query 32][key 16]

// Loads dimensions d0 .. d0 + 64 of 16 keys or values. After the last key it repeats that key. `col` is the first
// column of the head in kv.
fn load_kv(text: TextRows, first_key: u32, col: u32, d0: u32, invocation: u32) {
    for (var i = 0u; i < 4u; i += 1u) { // unrolled
        let place = invocation + 64u * i;
        let key = min(first_key + place / 16u, text.n_key - 1u);
        let d = d0 + 4u * (place % 16u);
        kv_tile[place / 16u * APART + place % 16u] = kv_vec4((text.k_row + key) * p.kv_stride + col + d, left(HEAD_DIM, d));
    }
}

// Adds the values of 16 keys, each times its weight in p_tile, to z. z[2 r] and z[2 r + 1] are the first and the last
// four dimensions of query r. `totals` is the sum of the weights.
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
