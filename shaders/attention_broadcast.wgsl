// z = softmax(scale q . k, keys up to the query) . v of one text, without ever storing the pattern, for adapters that are
// programs (see linear_broadcast.wgsl). The softmax runs along as in attention.wgsl.
// One workgroup is one subgroup of 8 lanes: 8 queries of one head and 64 of its dimensions. It goes through the keys 32 at a
// time: first each lane scores four keys for all queries, then it gathers its dimensions, four of the first 32 and four of
// the last, from all keys. Heads wider than 64 are scored once for every 64 dimensions.

struct Params {
    first: u32,    // the text's first row in qkv and z
    n_pos: u32,    // its tokens
    n_embd: u32,
    head_dim: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> qkv: array<f32>;      // qkv [T, 3D]: q | k | v
@group(0) @binding(2) var<storage, read_write> z: array<f32>;  // z [T, D]

const LOWEST: f32 = -3.4028234663852886e38;

// Dimension d of four queries or keys.
fn dimension(at: vec4<u32>, d: u32) -> vec4<f32> {
    return vec4<f32>(qkv[at.x + d], qkv[at.y + d], qkv[at.z + d], qkv[at.w + d]);
}

fn scaled(score: vec4<f32>, keys: vec4<u32>, query: u32) -> vec4<f32> {
    // What is masked becomes exactly 0 below: exp_f32 of so low a number is.
    return select(vec4<f32>(LOWEST), score * p.scale, keys <= vec4<u32>(query));
}

fn highest4(four: vec4<f32>) -> f32 {
    return max(max(four.x, four.y), max(four.z, four.w));
}

fn exp4(four: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(exp_f32(four.x), exp_f32(four.y), exp_f32(four.z), exp_f32(four.w));
}

fn sum4(four: vec4<f32>) -> f32 {
    return (four.x + four.y) + (four.z + four.w);
}

fn shrink(sums: ptr<function, array<vec4<f32>, 8>>, lo: vec4<f32>, hi: vec4<f32>) {
    (*sums)[0] *= lo.x;
    (*sums)[1] *= lo.y;
    (*sums)[2] *= lo.z;
    (*sums)[3] *= lo.w;
    (*sums)[4] *= hi.x;
    (*sums)[5] *= hi.y;
    (*sums)[6] *= hi.z;
    (*sums)[7] *= hi.w;
}

// The dimensions that a lane gathers, and whether there are any beyond the first 32.
struct Lanes {
    left: vec4<u32>,
    right: vec4<u32>,
    wide: bool,
}

// One key's share of z: 8 queries' patterns at that key, times its values.
fn gather(
    lanes: Lanes,
    lo: vec4<f32>,
    hi: vec4<f32>,
    v_at: u32,
    left: ptr<function, array<vec4<f32>, 8>>,
    right: ptr<function, array<vec4<f32>, 8>>,
) {
    multiply_add(left, lo, hi, dimension(lanes.left, v_at));
    if lanes.wide {
        multiply_add(right, lo, hi, dimension(lanes.right, v_at));
    }
}

@compute @workgroup_size(8)
fn attention_broadcast(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let query = wg.x * 8u;
    let last = p.n_pos - 1u;
    let last_dim = p.head_dim - 1u;
    let stride = 3u * p.n_embd;
    let q_head = p.first * stride + wg.y * p.head_dim;
    let k_head = q_head + p.n_embd;
    let v_head = k_head + p.n_embd;
    let q_lo = q_head + rows_lo(query, last) * stride;
    let q_hi = q_head + rows_hi(query, last) * stride;
    // This lane's dimensions; those beyond the last are read as the last and never stored.
    let dims = wg.z * 64u + lane * 4u;
    let lanes = Lanes(rows_lo(dims, last_dim), rows_lo(dims + 32u, last_dim), wg.z * 64u + 32u < p.head_dim);

    var highest_lo = vec4<f32>(LOWEST);
    var highest_hi = vec4<f32>(LOWEST);
    var total_lo = vec4<f32>();
    var total_hi = vec4<f32>();
    var z_left = array<vec4<f32>, 8>();
    var z_right = array<vec4<f32>, 8>();
    for (var key = 0u; key <= min(query + 7u, last); key += 32u) {
        let first = key + lane * 4u;
        let keys = vec4<u32>(first, first + 1u, first + 2u, first + 3u);
        let k_at = k_head + rows_lo(first, last) * stride;
        var score = array<vec4<f32>, 8>();
        for (var d0 = 0u; d0 < p.head_dim; d0 += 8u) {
            let d = min(d0 + lane, last_dim);
            let inside = d0 + lane < p.head_dim;
            let lo = select(vec4<f32>(), dimension(q_lo, d), inside);
            let hi = select(vec4<f32>(), dimension(q_hi, d), inside);
            multiply_add(&score, subgroupBroadcast(lo, 0u), subgroupBroadcast(hi, 0u), dimension(k_at, d0));
            multiply_add(&score, subgroupBroadcast(lo, 1u), subgroupBroadcast(hi, 1u), dimension(k_at, min(d0 + 1u, last_dim)));
            multiply_add(&score, subgroupBroadcast(lo, 2u), subgroupBroadcast(hi, 2u), dimension(k_at, min(d0 + 2u, last_dim)));
            multiply_add(&score, subgroupBroadcast(lo, 3u), subgroupBroadcast(hi, 3u), dimension(k_at, min(d0 + 3u, last_dim)));
            multiply_add(&score, subgroupBroadcast(lo, 4u), subgroupBroadcast(hi, 4u), dimension(k_at, min(d0 + 4u, last_dim)));
            multiply_add(&score, subgroupBroadcast(lo, 5u), subgroupBroadcast(hi, 5u), dimension(k_at, min(d0 + 5u, last_dim)));
            multiply_add(&score, subgroupBroadcast(lo, 6u), subgroupBroadcast(hi, 6u), dimension(k_at, min(d0 + 6u, last_dim)));
            multiply_add(&score, subgroupBroadcast(lo, 7u), subgroupBroadcast(hi, 7u), dimension(k_at, min(d0 + 7u, last_dim)));
        }

        let s0 = scaled(score[0], keys, query);
        let s1 = scaled(score[1], keys, query + 1u);
        let s2 = scaled(score[2], keys, query + 2u);
        let s3 = scaled(score[3], keys, query + 3u);
        let s4 = scaled(score[4], keys, query + 4u);
        let s5 = scaled(score[5], keys, query + 5u);
        let s6 = scaled(score[6], keys, query + 6u);
        let s7 = scaled(score[7], keys, query + 7u);
        let new_lo = max(highest_lo, subgroupMax(vec4<f32>(highest4(s0), highest4(s1), highest4(s2), highest4(s3))));
        let new_hi = max(highest_hi, subgroupMax(vec4<f32>(highest4(s4), highest4(s5), highest4(s6), highest4(s7))));
        let p0 = exp4(s0 - new_lo.x);
        let p1 = exp4(s1 - new_lo.y);
        let p2 = exp4(s2 - new_lo.z);
        let p3 = exp4(s3 - new_lo.w);
        let p4 = exp4(s4 - new_hi.x);
        let p5 = exp4(s5 - new_hi.y);
        let p6 = exp4(s6 - new_hi.z);
        let p7 = exp4(s7 - new_hi.w);
        let shrink_lo = exp4(highest_lo - new_lo);
        let shrink_hi = exp4(highest_hi - new_hi);
        highest_lo = new_lo;
        highest_hi = new_hi;
        total_lo = total_lo * shrink_lo + subgroupAdd(vec4<f32>(sum4(p0), sum4(p1), sum4(p2), sum4(p3)));
        total_hi = total_hi * shrink_hi + subgroupAdd(vec4<f32>(sum4(p4), sum4(p5), sum4(p6), sum4(p7)));
        shrink(&z_left, shrink_lo, shrink_hi);
        shrink(&z_right, shrink_lo, shrink_hi);

        // Key `key + 4 l + i` is lane l's number i.
        for (var i = 0u; i < 4u; i += 1u) {
            let lo = vec4<f32>(p0[i], p1[i], p2[i], p3[i]);
            let hi = vec4<f32>(p4[i], p5[i], p6[i], p7[i]);
            let at = key + i;
            gather(lanes, subgroupBroadcast(lo, 0u), subgroupBroadcast(hi, 0u), v_head + min(at + 0u, last) * stride, &z_left, &z_right);
            gather(lanes, subgroupBroadcast(lo, 1u), subgroupBroadcast(hi, 1u), v_head + min(at + 4u, last) * stride, &z_left, &z_right);
            gather(lanes, subgroupBroadcast(lo, 2u), subgroupBroadcast(hi, 2u), v_head + min(at + 8u, last) * stride, &z_left, &z_right);
            gather(lanes, subgroupBroadcast(lo, 3u), subgroupBroadcast(hi, 3u), v_head + min(at + 12u, last) * stride, &z_left, &z_right);
            gather(lanes, subgroupBroadcast(lo, 4u), subgroupBroadcast(hi, 4u), v_head + min(at + 16u, last) * stride, &z_left, &z_right);
            gather(lanes, subgroupBroadcast(lo, 5u), subgroupBroadcast(hi, 5u), v_head + min(at + 20u, last) * stride, &z_left, &z_right);
            gather(lanes, subgroupBroadcast(lo, 6u), subgroupBroadcast(hi, 6u), v_head + min(at + 24u, last) * stride, &z_left, &z_right);
            gather(lanes, subgroupBroadcast(lo, 7u), subgroupBroadcast(hi, 7u), v_head + min(at + 28u, last) * stride, &z_left, &z_right);
        }
    }

    for (var r = 0u; r < 8u; r += 1u) {
        let total = select(total_hi[r & 3u], total_lo[r & 3u], r < 4u);
        for (var c = 0u; c < 4u; c += 1u) {
            let at = (p.first + query + r) * p.n_embd + wg.y * p.head_dim + dims + c;
            if query + r < p.n_pos && dims + c < p.head_dim {
                z[at] = z_left[r][c] / total;
            }
            if query + r < p.n_pos && dims + 32u + c < p.head_dim {
                z[at + 32u] = z_right[r][c] / total;
            }
        }
    }
}
