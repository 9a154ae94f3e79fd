// y = x . wᵀ for at most ROWS rows. Reading the table takes most of the time, so each of its elements is read once.
// One workgroup per 16 tokens. For each token, 16 invocations split k, with four loads in flight, each of four elements,
// or of eight in half precision. Their sums are added up in workgroup memory, row by row.
// ROWS and FOURS are generated constants: the rows (1, 2, 4 or 8), and the fours of elements of a load (1 or 2).
// Interface: interfaces/unembed.wgsl

@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;  // x [T, k], T <= ROWS

const STEP: u32 = 64u * FOURS; // elements of k that 16 invocations load at once

var<workgroup> sums: array<f32, 256>; // [token 16][share of k 16]

@compute @workgroup_size(16, 16)
fn unembed_few(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n_wg: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let token = (wg.y * n_wg.x + wg.x) * 16u + local.y;
    let n = select(0u, p.k, token < p.cols);

    var total = array<vec4<f32>, ROWS>();
    var k = 4u * FOURS * local.x;
    for (; k + 3u * STEP + 4u * FOURS <= n; k += 4u * STEP) {
        let at = (token * p.w_stride + k) / 4u;
        let w0 = words_at(at);
        let w1 = words_at(at + STEP / 4u);
        let w2 = words_at(at + STEP / 2u);
        let w3 = words_at(at + STEP / 4u * 3u);
        for (var r = 0u; r < ROWS; r += 1u) { // unrolled
            // Rows after the last one read the last row again. Their sums are not stored.
            for (var f = 0u; f < FOURS; f += 1u) { // unrolled
                let x_at = p.x_first + min(r, p.rows - 1u) * p.x_stride + k + 4u * f;
                let a0 = x_vec4(x_at, 4u) * four_in(w0, f);
                let a1 = x_vec4(x_at + STEP, 4u) * four_in(w1, f);
                let a2 = x_vec4(x_at + 2u * STEP, 4u) * four_in(w2, f);
                let a3 = x_vec4(x_at + 3u * STEP, 4u) * four_in(w3, f);
                total[r] += (a0 + a1) + (a2 + a3);
            }
        }
    }
    for (; k < n; k += STEP) {
        let words = words_at((token * p.w_stride + k) / 4u);
        for (var r = 0u; r < ROWS; r += 1u) { // unrolled
            for (var f = 0u; f < FOURS; f += 1u) { // unrolled
                // The rows of the table are padded with zeros. The rows of x are not: the next row follows at once.
                let x_at = p.x_first + min(r, p.rows - 1u) * p.x_stride + k + 4u * f;
                total[r] += x_vec4(x_at, left(n, k + 4u * f)) * four_in(words, f);
            }
        }
    }

    for (var r = 0u; r < ROWS; r += 1u) { // unrolled
        workgroupBarrier();
        sums[local.y * 16u + local.x] = (total[r].x + total[r].y) + (total[r].z + total[r].w);
        workgroupBarrier();
        if local.x == 0u && token < p.cols && r < p.rows {
            var result = 0.0;
            for (var share = 0u; share < 16u; share += 1u) { // unrolled
                result += sums[local.y * 16u + share];
            }
            y[p.y_first + r * p.y_stride + token] = result;
        }
    }
}
