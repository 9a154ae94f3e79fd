// q . k of one head in a block of 16 queries x 16 keys, unscaled and unmasked: invocation (x, y) gets key x with query y. The
// kernel declares `qkv` and `p` (first, n_pos, n_embd, head_dim); all 16 x 16 invocations call it in uniform control flow. The
// dimensions pass through workgroup memory 16 at a time; the first barrier also protects it from the call before.

var<workgroup> q_tile: array<f32, 272>; // [query 16][dimension 16], rows 17 apart to spread them over memory banks
var<workgroup> k_tile: array<f32, 272>; // [key 16][dimension 16]

// `depth` is head_dim, or 0 where the block's scores will not be used.
fn block_score(invocation: vec2<u32>, head: u32, query_block: u32, key_block: u32, depth: u32) -> f32 {
    let query = query_block * 16u + invocation.y; // the query and the key that this invocation fetches
    let key = key_block * 16u + invocation.y;
    let q_at = (p.first + query) * 3u * p.n_embd + head * p.head_dim;
    let k_at = (p.first + key) * 3u * p.n_embd + p.n_embd + head * p.head_dim;

    var score = 0.0;
    for (var d0 = 0u; d0 < depth; d0 += 16u) {
        let d = d0 + invocation.x;
        var q_value = 0.0;
        var k_value = 0.0;
        if d < depth && query < p.n_pos {
            q_value = qkv[q_at + d];
        }
        if d < depth && key < p.n_pos {
            k_value = qkv[k_at + d];
        }
        workgroupBarrier();
        q_tile[invocation.y * 17u + invocation.x] = q_value;
        k_tile[invocation.y * 17u + invocation.x] = k_value;
        workgroupBarrier();
        var part = 0.0;
        for (var i = 0u; i < 16u; i += 1u) {
            part += q_tile[invocation.y * 17u + i] * k_tile[invocation.x * 17u + i];
        }
        score += part;
    }
    return score;
}
