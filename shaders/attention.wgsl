// z = softmax(scale q . k, keys up to the query) . v of all texts and heads, without storing the pattern.
// One workgroup per 32 queries of one head and 64 of its dimensions, laid out as in lib/attention_tile.wgsl. The scores
// of wider heads are computed again for every 64 dimensions.
// The softmax is computed online: when a block of keys raises the maximum, the sums so far are scaled down (Milakov &
// Gimelshein 2018, Dao et al. 2022). Keys after the last query are not read.
// Where few workgroups would each take many keys, the keys are split into parts. Neighbouring workgroups take the parts
// of the same queries, and attention_join.wgsl puts their sums together.
// Interface: interfaces/attention.wgsl

@group(0) @binding(2) var<storage, read> q: array<vec4<f32>>;   // q [.., q_stride]
@group(0) @binding(3) var<storage, read> kv: array<vec4<f32>>;  // k and v [.., kv_stride]
@group(0) @binding(5) var<storage, read_write> moments: array<vec2<f32>>; // maximum and total [parts, n_row, n_head], of parts

@compute @workgroup_size(64)
fn attention(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
    let text = texts[wg.z];
    let first_query = wg.x / p.parts * QUERIES;
    let part = wg.x % p.parts;
    let head_col = wg.y / CHUNKS * HEAD_DIM;
    let d0 = wg.y % CHUNKS * 64u;
    let x = invocation % 8u;
    let y = invocation / 8u;
    // A workgroup after the last query of its text has no keys.
    let last_key = min(min(text.n_key, text.position + first_query + QUERIES), (part + 1u) * p.part_keys);
    let n_key = select(0u, last_key, first_query < text.n_query);

    if CHUNKS == 1u {
        load_q(text, first_query, p.q_col + head_col, 0u, invocation);
    }
    var highest = array<f32, 4>(LOWEST, LOWEST, LOWEST, LOWEST);
    var totals = array<f32, 4>();
    var sums = array<vec4<f32>, 8>();
    for (var k0 = part * p.part_keys; k0 < n_key; k0 += KEYS) {
        var s = array<vec2<f32>, 4>();
        block_scores(&s, text, first_query, k0, p.q_col + head_col, p.k_col + head_col, invocation);
        for (var r = 0u; r < 4u; r += 1u) { // unrolled
            // A masked score becomes exactly 0 below, because exp_f32 of such a low value is 0.
            let seen = min(text.position + first_query + 4u * y + r + 1u, text.n_key);
            s[r] = select(vec2<f32>(LOWEST), s[r] * p.scale, vec2<u32>(k0 + x, k0 + x + 8u) < vec2<u32>(seen));
            p_tile[(4u * y + r) * APART + x] = s[r].x;
            p_tile[(4u * y + r) * APART + x + 8u] = s[r].y;
        }
        workgroupBarrier();
        load_kv(text, k0, p.v_col + head_col, d0, invocation);
        for (var r = 0u; r < 4u; r += 1u) { // unrolled
            var most = highest[r];
            for (var key = 0u; key < KEYS; key += 1u) { // unrolled
                most = max(most, p_tile[(4u * y + r) * APART + key]);
            }
            let shrink = exp_f32(highest[r] - most);
            highest[r] = most;
            totals[r] *= shrink;
            sums[2u * r] *= shrink;
            sums[2u * r + 1u] *= shrink;
        }
        workgroupBarrier();
        for (var r = 0u; r < 4u; r += 1u) { // unrolled
            p_tile[(4u * y + r) * APART + x] = exp_f32(s[r].x - highest[r]);
            p_tile[(4u * y + r) * APART + x + 8u] = exp_f32(s[r].y - highest[r]);
        }
        workgroupBarrier();
        add_values(&sums, &totals, x, y);
    }

    for (var r = 0u; r < 4u; r += 1u) { // unrolled
        let query = first_query + 4u * y + r;
        let row = part * p.n_row + text.q_row + query;
        let divisor = select(1.0, totals[r], p.parts == 1u);
        for (var c = 0u; c < 8u; c += 1u) { // unrolled
            let d = d0 + 8u * x + c;
            if query < text.n_query && d < HEAD_DIM {
                z[row * p.z_stride + head_col + d] = sums[2u * r + c / 4u][c % 4u] / divisor;
            }
        }
        if p.parts > 1u && query < text.n_query && x == 0u && d0 == 0u {
            moments[row * p.n_head + wg.y / CHUNKS] = vec2<f32>(highest[r], totals[r]);
        }
    }
}
