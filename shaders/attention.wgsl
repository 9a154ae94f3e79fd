// z = softmax(scale q . k, keys up to the query) . v of one text, for all heads, without ever storing the pattern.
// One workgroup 16 queries of one head, 16 x 16 invocations: invocation (x, y) scores key x of a block of 16 for query y, and gathers
// every 16th dimension of z. The softmax runs along: when a block raises the maximum, what was gathered so far is scaled down
// (Milakov & Gimelshein 2018, Dao et al. 2022). Blocks after the diagonal are never looked at.
// PARTS = head_dim / 16, rounded up, is appended as a const: it sizes a function-local array.

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

var<workgroup> pattern: array<f32, 272>; // [query 16][key 16]

@compute @workgroup_size(16, 16)
fn attention(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_id) invocation: vec3<u32>) {
    let head_start = wg.y * p.head_dim;
    let query = wg.x * 16u + invocation.y;
    let stride = 3u * p.n_embd;

    var highest = LOWEST;
    var total = 0.0;
    var gathered = array<f32, PARTS>();
    for (var block = 0u; block <= wg.x; block += 1u) {
        let my_key = block * 16u + invocation.x;
        var score = block_score(invocation.xy, wg.y, wg.x, block, p.head_dim);
        // What is masked here becomes exactly 0 below: exp_f32 of so low a number is.
        score = select(LOWEST, score * p.scale, my_key <= query && my_key < p.n_pos);

        workgroupBarrier();
        pattern[invocation.y * 17u + invocation.x] = score;
        workgroupBarrier();
        var new_highest = highest;
        for (var i = 0u; i < 16u; i += 1u) {
            new_highest = max(new_highest, pattern[invocation.y * 17u + i]);
        }
        workgroupBarrier();
        pattern[invocation.y * 17u + invocation.x] = exp_f32(score - new_highest);
        workgroupBarrier();

        let shrink = exp_f32(highest - new_highest);
        highest = new_highest;
        total *= shrink;
        let n_keys = min(16u, p.n_pos - block * 16u);
        var block_total = 0.0;
        for (var i = 0u; i < n_keys; i += 1u) {
            block_total += pattern[invocation.y * 17u + i];
        }
        total += block_total;
        for (var part = 0u; part < PARTS; part += 1u) {
            let d = part * 16u + invocation.x;
            var sum = 0.0;
            if d < p.head_dim {
                let v_at = (p.first + block * 16u) * stride + 2u * p.n_embd + head_start + d;
                for (var i = 0u; i < n_keys; i += 1u) {
                    sum += pattern[invocation.y * 17u + i] * qkv[v_at + i * stride];
                }
            }
            gathered[part] = gathered[part] * shrink + sum;
        }
    }

    if query < p.n_pos {
        for (var part = 0u; part < PARTS; part += 1u) {
            let d = part * 16u + invocation.x;
            if d < p.head_dim {
                z[(p.first + query) * p.n_embd + head_start + d] = gathered[part] / total;
            }
        }
    }
}
