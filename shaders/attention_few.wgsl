// z = softmax(scale q . k, keys up to the query) . v of all texts and heads, for texts of few queries, whose keys come
// from a cache as a rule. Reading keys and values takes most of the time, so many loads are in flight.
// One workgroup per query and head. It takes 128 keys at a time: 16 invocations share a key or value, four dimensions
// each, and every 16 of them have 8 keys. The softmax is computed online, as in attention.wgsl.
// Interface: interfaces/attention.wgsl

@group(0) @binding(2) var<storage, read> q: array<vec4<f32>>;   // q [.., q_stride]
@group(0) @binding(3) var<storage, read> kv: array<vec4<f32>>;  // k and v [.., kv_stride]

const TURNS: u32 = 8u;            // keys of an invocation in a block
const BLOCK: u32 = 16u * TURNS;   // keys of a block

var<workgroup> products: array<f32, BLOCK * 16u>;       // [key][lane 16]
var<workgroup> scores: array<vec4<f32>, BLOCK / 4u>;    // [key / 4]
var<workgroup> sums: array<vec4<f32>, 256u>;            // [slot 16][lane 16]
var<workgroup> totals: array<f32, 16u>;                 // [slot 16]

@compute @workgroup_size(256)
fn attention_few(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
    let text = texts[wg.z];
    let head_col = wg.y * HEAD_DIM;
    let lane = invocation % 16u;
    let slot = invocation / 16u;
    // A workgroup after the last query of its text has no keys.
    let n_key = select(0u, min(text.position + wg.x + 1u, text.n_key), wg.x < text.n_query);
    let q_at = (text.q_row + min(wg.x, text.n_query - 1u)) * p.q_stride + p.q_col + head_col;

    var query = array<vec4<f32>, CHUNKS>();
    for (var chunk = 0u; chunk < CHUNKS; chunk += 1u) { // unrolled
        let d = 64u * chunk + 4u * lane;
        query[chunk] = q_vec4(q_at + d, left(HEAD_DIM, d));
    }
    var highest = LOWEST;
    var total = 0.0;
    var sum = array<vec4<f32>, CHUNKS>();
    for (var k0 = 0u; k0 < n_key; k0 += BLOCK) {
        var value = array<vec4<f32>, TURNS * CHUNKS>();
        for (var turn = 0u; turn < TURNS; turn += 1u) { // unrolled
            // After the last key it repeats that key, whose score is masked below.
            let row = (text.k_row + min(k0 + 16u * turn + slot, n_key - 1u)) * p.kv_stride + head_col;
            var product = 0.0;
            for (var chunk = 0u; chunk < CHUNKS; chunk += 1u) { // unrolled
                let d = 64u * chunk + 4u * lane;
                product += dot(query[chunk], kv_vec4(row + p.k_col + d, left(HEAD_DIM, d)));
                value[turn * CHUNKS + chunk] = kv_vec4(row + p.v_col + d, left(HEAD_DIM, d));
            }
            products[(16u * turn + slot) * 16u + lane] = product;
        }
        workgroupBarrier();
        if invocation < BLOCK {
            var score = 0.0;
            for (var i = 0u; i < 16u; i += 1u) { // unrolled
                score += products[invocation * 16u + i];
            }
            // A masked score becomes exactly 0 below, because exp_f32 of such a low value is 0.
            scores[invocation / 4u][invocation % 4u] = select(LOWEST, score * p.scale, k0 + invocation < n_key);
        }
        workgroupBarrier();
        var four = vec4<f32>(highest);
        for (var i = 0u; i < BLOCK / 4u; i += 1u) {
            four = max(four, scores[i]);
        }
        let most = max(max(four.x, four.y), max(four.z, four.w));
        let shrink = exp_f32(highest - most);
        highest = most;
        total *= shrink;
        for (var chunk = 0u; chunk < CHUNKS; chunk += 1u) { // unrolled
            sum[chunk] *= shrink;
        }
        for (var turn = 0u; turn < TURNS; turn += 1u) { // unrolled
            let key = 16u * turn + slot;
            let weight = exp_f32(scores[key / 4u][key % 4u] - highest);
            total += weight;
            for (var chunk = 0u; chunk < CHUNKS; chunk += 1u) { // unrolled
                sum[chunk] += weight * value[turn * CHUNKS + chunk];
            }
        }
    }

    if lane == 0u {
        totals[slot] = total;
    }
    for (var chunk = 0u; chunk < CHUNKS; chunk += 1u) { // unrolled
        workgroupBarrier();
        sums[invocation] = sum[chunk];
        workgroupBarrier();
        let d = 64u * chunk + invocation;
        if invocation < 64u && d < HEAD_DIM && wg.x < text.n_query {
            var all = 0.0;
            var result = 0.0;
            for (var i = 0u; i < 16u; i += 1u) { // unrolled
                all += totals[i];
                result += sums[16u * i + invocation / 4u][invocation % 4u];
            }
            z[(text.q_row + wg.x) * p.z_stride + head_col + d] = result / all;
        }
    }
}
