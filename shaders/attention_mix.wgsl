// z = pattern . v of one text, for all heads. Every key counts, not only those up to the query: the pattern may have been
// changed.
// One workgroup 16 queries x 16 dimensions of one head; the keys pass through workgroup memory 16 at a time.

struct Params {
    first: u32,    // the text's first row in qkv
    n_pos: u32,    // its tokens
    n_embd: u32,
    head_dim: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> pattern: array<f32>;  // pattern [H, P, P]
@group(0) @binding(2) var<storage, read> qkv: array<f32>;      // qkv [T, 3D]: q | k | v
@group(0) @binding(3) var<storage, read_write> z: array<f32>;  // z [T, D]

var<workgroup> pattern_tile: array<f32, 272>; // [query 16][key 16], rows 17 apart to spread them over memory banks
var<workgroup> v_tile: array<f32, 272>;       // [key 16][dimension 16]

@compute @workgroup_size(16, 16)
fn attention_mix(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_id) invocation: vec3<u32>) {
    let head = wg.z;
    let query = wg.y * 16u + invocation.y;
    let d = wg.x * 16u + invocation.x;

    var total = 0.0;
    for (var k0 = 0u; k0 < p.n_pos; k0 += 16u) {
        var weight = 0.0;
        var value = 0.0;
        if query < p.n_pos && k0 + invocation.x < p.n_pos {
            weight = pattern[(head * p.n_pos + query) * p.n_pos + k0 + invocation.x];
        }
        if d < p.head_dim && k0 + invocation.y < p.n_pos {
            value = qkv[(p.first + k0 + invocation.y) * 3u * p.n_embd + 2u * p.n_embd + head * p.head_dim + d];
        }
        workgroupBarrier();
        pattern_tile[invocation.y * 17u + invocation.x] = weight;
        v_tile[invocation.y * 17u + invocation.x] = value;
        workgroupBarrier();
        var part = 0.0;
        for (var i = 0u; i < 16u; i += 1u) {
            part += pattern_tile[invocation.y * 17u + i] * v_tile[i * 17u + invocation.x];
        }
        total += part;
    }
    if query < p.n_pos && d < p.head_dim {
        z[query * p.n_embd + head * p.head_dim + d] = total;
    }
}
