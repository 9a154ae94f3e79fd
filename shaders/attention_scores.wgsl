// scores = scale q . k of one text, and the lowest f32 where the key comes after the query: WGSL has no literal for -inf.
// One workgroup 16 queries x 16 keys of one head; the dimensions pass through workgroup memory 16 at a time.

struct Params {
    first: u32,    // the text's first row in qkv
    n_pos: u32,    // its tokens
    n_embd: u32,
    head_dim: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> qkv: array<f32>;           // qkv [T, 3D]: q | k | v
@group(0) @binding(2) var<storage, read_write> scores: array<f32>;  // scores [H, P, P]

const LOWEST: f32 = -3.4028234663852886e38;

var<workgroup> q_tile: array<f32, 272>; // [query 16][dimension 16], rows 17 apart to spread them over memory banks
var<workgroup> k_tile: array<f32, 272>; // [key 16][dimension 16]

@compute @workgroup_size(16, 16)
fn attention_scores(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_id) lane: vec3<u32>) {
    let head_start = wg.z * p.head_dim;
    let query = wg.y * 16u + lane.y;
    let key = wg.x * 16u + lane.x;     // the key that this lane scores
    let k_key = wg.x * 16u + lane.y;   // the key that this lane fetches
    let stride = 3u * p.n_embd;
    let depth = select(0u, p.head_dim, wg.x <= wg.y); // blocks after the diagonal are masked whole

    var score = 0.0;
    for (var d0 = 0u; d0 < depth; d0 += 16u) {
        let d = d0 + lane.x;
        var q_value = 0.0;
        var k_value = 0.0;
        if d < p.head_dim && query < p.n_pos {
            q_value = qkv[(p.first + query) * stride + head_start + d];
        }
        if d < p.head_dim && k_key < p.n_pos {
            k_value = qkv[(p.first + k_key) * stride + p.n_embd + head_start + d];
        }
        workgroupBarrier();
        q_tile[lane.y * 17u + lane.x] = q_value;
        k_tile[lane.y * 17u + lane.x] = k_value;
        workgroupBarrier();
        var part = 0.0;
        for (var i = 0u; i < 16u; i += 1u) {
            part += q_tile[lane.y * 17u + i] * k_tile[lane.x * 17u + i];
        }
        score += part;
    }
    if query < p.n_pos && key < p.n_pos {
        scores[(wg.z * p.n_pos + query) * p.n_pos + key] = select(LOWEST, score * p.scale, key <= query);
    }
}
