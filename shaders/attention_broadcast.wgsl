// z = softmax(scale q . k, keys up to the query) . v of all texts and heads, without storing the pattern. For software
// adapters (see linear_broadcast.wgsl), with the online softmax of attention.wgsl.
// One workgroup is one subgroup of 8 invocations. It computes 8 queries of one head and 64 of its dimensions, and takes
// 8 keys at a time. First each invocation scores one key with all queries. Then it adds the values of all 8 keys to its
// own dimensions, which are four of the first 32 and four of the last 32. The scores of heads wider than 64 are
// computed again for every 64 dimensions.
// Interface: interfaces/attention.wgsl

@group(0) @binding(2) var<storage, read> q: array<f32>;        // q [.., q_stride]
@group(0) @binding(3) var<storage, read> kv: array<f32>;       // k and v [.., kv_stride]

// Dimension d of four queries.
fn queries(at: vec4<u32>, d: u32) -> vec4<f32> {
    return vec4<f32>(q[at.x + d], q[at.y + d], q[at.z + d], q[at.w + d]);
}

// Four dimensions of the value that begins at index d of kv.
fn dimension(at: vec4<u32>, d: u32) -> vec4<f32> {
    return vec4<f32>(kv[at.x + d], kv[at.y + d], kv[at.z + d], kv[at.w + d]);
}

// A masked score becomes exactly 0 later, because exp_f32 of such a low value is 0.
// `first` is the position of the first of four queries.
fn masked(score: vec4<f32>, key: u32, first: u32) -> vec4<f32> {
    let positions = vec4<u32>(first, first + 1u, first + 2u, first + 3u);
    return select(vec4<f32>(LOWEST), score * p.scale, vec4<u32>(key) <= positions);
}

fn exp4(four: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(exp_f32(four.x), exp_f32(four.y), exp_f32(four.z), exp_f32(four.w));
}

fn shrink(sums: ptr<function, array<vec4<f32>, 8>>, lo: vec4<f32>, hi: vec4<f32>) {
    for (var r = 0u; r < 4u; r += 1u) { // unrolled
        (*sums)[r] *= lo[r];
        (*sums)[4u + r] *= hi[r];
    }
}

// The dimensions of one invocation, and whether there are any after the workgroup's first 32.
struct Dimensions {
    left: vec4<u32>,
    right: vec4<u32>,
    wide: bool,
}

// Adds the part of one key to z: the patterns of 8 queries at that key, times its value.
fn gather(
    mine: Dimensions,
    lo: vec4<f32>,
    hi: vec4<f32>,
    v_at: u32,
    left: ptr<function, array<vec4<f32>, 8>>,
    right: ptr<function, array<vec4<f32>, 8>>,
) {
    multiply_add(left, lo, hi, dimension(mine.left, v_at));
    if mine.wide {
        multiply_add(right, lo, hi, dimension(mine.right, v_at));
    }
}

// Called once per row, because only constant indices keep the sums in registers.
fn store(text: TextRows, query: u32, head: u32, dims: u32, four: vec4<f32>) {
    for (var c = 0u; c < 4u; c += 1u) {
        if query < text.n_query && dims + c < p.head_dim {
            z[(text.q_row + query) * p.z_stride + head * p.head_dim + dims + c] = four[c];
        }
    }
}

@compute @workgroup_size(8)
fn attention_broadcast(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
    let text = texts[wg.z];
    let chunks = (p.head_dim + 63u) / 64u;
    let head = wg.y / chunks;
    let query = wg.x * 8u;
    let last = text.n_query - 1u;
    let last_key = text.n_key - 1u;
    let last_dim = p.head_dim - 1u;
    let q_head = text.q_row * p.q_stride + p.q_col + head * p.head_dim;
    let k_head = text.k_row * p.kv_stride + p.k_col + head * p.head_dim;
    let v_head = text.k_row * p.kv_stride + p.v_col + head * p.head_dim;
    let q_lo = q_head + rows_lo(query, last) * p.q_stride;
    let q_hi = q_head + rows_hi(query, last) * p.q_stride;
    // This invocation's dimensions. Those after the last one read the last dimension and are not stored.
    let first_dim = wg.y % chunks * 64u;
    let dims = first_dim + invocation * 4u;
    let mine = Dimensions(rows_lo(dims, last_dim), rows_lo(dims + 32u, last_dim), first_dim + 32u < p.head_dim);
    // A workgroup after the last query of its text has no keys.
    let n_key = select(0u, min(text.position + query + 8u, text.n_key), query < text.n_query);

    var highest_lo = vec4<f32>(LOWEST);
    var highest_hi = vec4<f32>(LOWEST);
    var total_lo = vec4<f32>();
    var total_hi = vec4<f32>();
    var z_left = array<vec4<f32>, 8>();
    var z_right = array<vec4<f32>, 8>();
    for (var key = 0u; key < n_key; key += 8u) {
        let k_at = k_head + min(key + invocation, last_key) * p.kv_stride;
        var s_lo = vec4<f32>();
        var s_hi = vec4<f32>();
        for (var d0 = 0u; d0 < p.head_dim; d0 += 8u) {
            let d = min(d0 + invocation, last_dim);
            let inside = d0 + invocation < p.head_dim;
            let lo = select(vec4<f32>(), queries(q_lo, d), inside);
            let hi = select(vec4<f32>(), queries(q_hi, d), inside);
            for (var i = 0u; i < 8u; i += 1u) { // unrolled
                let k = kv[k_at + min(d0 + i, last_dim)];
                s_lo += subgroupBroadcast(lo, i) * k;
                s_hi += subgroupBroadcast(hi, i) * k;
            }
        }
        s_lo = masked(s_lo, key + invocation, text.position + query);
        s_hi = masked(s_hi, key + invocation, text.position + query + 4u);

        let new_lo = max(highest_lo, subgroupMax(s_lo));
        let new_hi = max(highest_hi, subgroupMax(s_hi));
        let p_lo = exp4(s_lo - new_lo);
        let p_hi = exp4(s_hi - new_hi);
        let shrink_lo = exp4(highest_lo - new_lo);
        let shrink_hi = exp4(highest_hi - new_hi);
        highest_lo = new_lo;
        highest_hi = new_hi;
        total_lo = total_lo * shrink_lo + subgroupAdd(p_lo);
        total_hi = total_hi * shrink_hi + subgroupAdd(p_hi);
        shrink(&z_left, shrink_lo, shrink_hi);
        shrink(&z_right, shrink_lo, shrink_hi);

        for (var i = 0u; i < 8u; i += 1u) { // unrolled
            let v_at = v_head + min(key + i, last_key) * p.kv_stride;
            gather(mine, subgroupBroadcast(p_lo, i), subgroupBroadcast(p_hi, i), v_at, &z_left, &z_right);
        }
    }

    for (var r = 0u; r < 4u; r += 1u) { // unrolled
        store(text, query + r, head, dims, z_left[r] / total_lo[r]);
        store(text, query + r, head, dims + 32u, z_right[r] / total_lo[r]);
        store(text, query + 4u + r, head, dims, z_left[4u + r] / total_hi[r]);
        store(text, query + 4u + r, head, dims + 32u, z_right[4u + r] / total_hi[r]);
    }
}
