// scores = scale q . k of one text, or `unseen` where the key comes after the query. For scores that is the lowest f32, because
// WGSL has no literal for -inf. The gradient with respect to a pattern has the same form: q is dz, k is v, and `unseen` is 0.
// One workgroup per 32 queries x 64 keys of one head, with 16 keys at a time, laid out as in lib/attention_tile.wgsl.

struct Params {
    q_stride: u32,
    q_col: u32,     // the first column of q: head 0 begins there
    kv_stride: u32,
    k_col: u32,     // the first column of k in kv
    scale: f32,
    unseen: f32,    // the score where the key comes after the query
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> texts: array<TextRows>;        // the text [1]
@group(0) @binding(2) var<storage, read> q: array<vec4<f32>>;       // q [.., q_stride]
@group(0) @binding(3) var<storage, read> kv: array<vec4<f32>>;      // k [.., kv_stride]
@group(0) @binding(4) var<storage, read_write> scores: array<f32>;  // scores [H, n_query, n_key]

@compute @workgroup_size(64)
fn attention_scores(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
    let text = texts[0];
    let first_query = wg.y * QUERIES;
    let head_col = wg.z * HEAD_DIM;
    let x = invocation % 8u;
    let y = invocation / 8u;

    if CHUNKS == 1u {
        load_q(text, first_query, p.q_col + head_col, 0u, invocation);
    }
    for (var block = 0u; block < 4u; block += 1u) {
        let k0 = (wg.x * 4u + block) * KEYS;
        var s = array<vec2<f32>, 4>();
        if k0 < text.n_key && k0 < text.position + first_query + QUERIES {
            block_scores(&s, text, first_query, k0, p.q_col + head_col, p.k_col + head_col, invocation);
        }
        for (var r = 0u; r < 4u; r += 1u) { // unrolled
            let query = first_query + 4u * y + r;
            for (var c = 0u; c < 2u; c += 1u) { // unrolled
                let key = k0 + x + 8u * c;
                if query < text.n_query && key < text.n_key {
                    let score = select(p.unseen, s[r][c] * p.scale, key <= text.position + query);
                    scores[(wg.z * text.n_query + query) * text.n_key + key] = score;
                }
            }
        }
    }
}
