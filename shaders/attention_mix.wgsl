// z = scale pattern . v of one text, for all heads. Sums over all keys, not only those up to the query, because the pattern
// may have been edited. The gradients of attention have the same form: the gradient of the scores or its transpose times the
// keys or the queries, and the transpose of the pattern times dz.
// One workgroup per 32 queries and 64 dimensions of one head, with 16 keys at a time, laid out as in
// lib/attention_tile.wgsl.

struct Params {
    kv_stride: u32,
    v_col: u32,     // the first column of v in kv
    z_stride: u32,
    z_col: u32,      // the first column of z that is written
    query_step: u32, // elements of the pattern from one query to the next
    key_step: u32,   // elements of the pattern from one key to the next
    scale: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> texts: array<TextRows>;    // the text [1]
@group(0) @binding(2) var<storage, read> pattern: array<f32>;   // pattern [H, n_query, n_key]
@group(0) @binding(3) var<storage, read> kv: array<vec4<f32>>;  // v [.., kv_stride]
@group(0) @binding(4) var<storage, read_write> z: array<f32>;   // z [.., z_stride]

@compute @workgroup_size(64)
fn attention_mix(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
    let text = texts[0];
    let first_query = wg.x * QUERIES;
    let head = wg.y / CHUNKS;
    let d0 = wg.y % CHUNKS * 64u;
    let x = invocation % 8u;
    let y = invocation / 8u;

    var totals = array<f32, 4>();
    var sums = array<vec4<f32>, 8>();
    for (var k0 = 0u; k0 < text.n_key; k0 += KEYS) {
        workgroupBarrier();
        for (var i = 0u; i < 8u; i += 1u) { // unrolled
            let place = invocation + 64u * i;
            let query = first_query + place / KEYS;
            let key = k0 + place % KEYS;
            var weight = 0.0;
            if query < text.n_query && key < text.n_key {
                weight = pattern[head * text.n_query * text.n_key + query * p.query_step + key * p.key_step];
            }
            p_tile[place / KEYS * APART + place % KEYS] = weight;
        }
        load_kv(text, k0, p.v_col + head * HEAD_DIM, d0, invocation);
        workgroupBarrier();
        add_values(&sums, &totals, x, y);
    }

    for (var r = 0u; r < 4u; r += 1u) { // unrolled
        let query = first_query + 4u * y + r;
        for (var c = 0u; c < 8u; c += 1u) { // unrolled
            let d = d0 + 8u * x + c;
            if query < text.n_query && d < HEAD_DIM {
                let at = (text.q_row + query) * p.z_stride + p.z_col + head * HEAD_DIM + d;
                z[at] = sums[2u * r + c / 4u][c % 4u] * p.scale;
            }
        }
    }
}
