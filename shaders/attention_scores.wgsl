// scores = scale q . k of one text, and the lowest f32 where the key comes after the query: WGSL has no literal for -inf.
// One workgroup 16 queries x 16 keys of one head.

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

@compute @workgroup_size(16, 16)
fn attention_scores(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_id) invocation: vec3<u32>) {
    let query = wg.y * 16u + invocation.y;
    let key = wg.x * 16u + invocation.x;
    // Blocks after the diagonal are masked whole.
    let depth = select(0u, p.head_dim, wg.x <= wg.y);
    let score = block_score(invocation.xy, wg.z, wg.y, wg.x, depth);
    if query < p.n_pos && key < p.n_pos {
        scores[(wg.z * p.n_pos + query) * p.n_pos + key] = select(LOWEST, score * p.scale, key <= query);
    }
}
