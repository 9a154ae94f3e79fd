// q . k of the 32 queries and 16 keys of lib/attention_tile.wgsl. The kernel declares `p` with q_stride, and includes
// lib/q_vec4.wgsl.

var<workgroup> q_tile: array<vec4<f32>, 544>; // [query 32][dimension / 4 16]

// Loads dimensions d0 .. d0 + 64 of 32 queries. After the last query it repeats that query. `col` is the first column
// of the head in q.
fn load_q(text: TextRows, first_query: u32, col: u32, d0: u32, invocation: u32) {
    for (var i = 0u; i < 8u; i += 1u) { // unrolled
        let place = invocation + 64u * i;
        let query = min(first_query + place / 16u, text.n_query - 1u);
        let d = d0 + 4u * (place % 16u);
        q_tile[place / 16u * APART + place % 16u] = q_vec4((text.q_row + query) * p.q_stride + col + d, left(HEAD_DIM, d));
    }
}

// Adds the products of the loaded dimensions to the scores. s[r] has the scores of query r with keys x and x + 8.
fn add_scores(s: ptr<function, array<vec2<f32>, 4>>, x: u32, y: u32) {
    for (var d = 0u; d < 16u; d += 1u) { // unrolled
        let lo = kv_tile[x * APART + d];
        let hi = kv_tile[(x + 8u) * APART + d];
        for (var r = 0u; r < 4u; r += 1u) { // unrolled
            let a = q_tile[(4u * y + r) * APART + d];
            (*s)[r] += vec2<f32>(dot(a, lo), dot(a, hi));
        }
    }
}

// Scores of 32 queries with the 16 keys from first_key on, unscaled and unmasked. If a head is one chunk, the queries
// must have been loaded before.
fn block_scores(s: ptr<function, array<vec2<f32>, 4>>, text: TextRows, first_query: u32, first_key: u32, q_col: u32, k_col: u32, invocation: u32) {
    for (var chunk = 0u; chunk < CHUNKS; chunk += 1u) {
        workgroupBarrier(); // the values loaded before have been used
        if CHUNKS > 1u {
            load_q(text, first_query, q_col, 64u * chunk, invocation);
        }
        load_kv(text, first_key, k_col, 64u * chunk, invocation);
        workgroupBarrier();
        add_scores(s, invocation % 8u, invocation / 8u);
    }
}
