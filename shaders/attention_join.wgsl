// z: combines the results of attention.wgsl for the parts of the keys. The sums of each part are rescaled from the
// maximum of that part to the maximum of all parts.
// One invocation per element of z.

struct Params {
    n: u32,         // elements of z
    z_stride: u32,
    n_head: u32,
    parts: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> sums: array<f32>;          // sums [parts, T, z_stride], read where the total is not 0
@group(0) @binding(2) var<storage, read> moments: array<vec2<f32>>; // maximum and total [parts, T, n_head]
@group(0) @binding(3) var<storage, read_write> z: array<f32>;       // z [T, z_stride]

@compute @workgroup_size(64)
fn attention_join(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n_wg: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
    let i = (wg.y * n_wg.x + wg.x) * 64u + invocation;
    if i < p.n {
        let n_moments = p.n / p.z_stride * p.n_head;
        let at = i / p.z_stride * p.n_head + i % p.z_stride / (p.z_stride / p.n_head);
        var highest = moments[at].x;
        for (var part = 1u; part < p.parts; part += 1u) {
            highest = max(highest, moments[part * n_moments + at].x);
        }
        var total = 0.0;
        var sum = 0.0;
        for (var part = 0u; part < p.parts; part += 1u) {
            let moment = moments[part * n_moments + at];
            // A part after the last key of its query has a total of 0, and no sums.
            if moment.y != 0.0 {
                let shrink = exp_f32(moment.x - highest);
                total += shrink * moment.y;
                sum += shrink * sums[part * p.n + i];
            }
        }
        z[i] = sum / total;
    }
}
