// y = layer_norm(x) . w + bias, then the epilogue, for at most ROWS rows, as lib/linear_few.wgsl has it. Every workgroup
// computes mean and divisor of each row by itself: that is less work than a dispatch of its own.
// 256 / ROWS invocations share a row.
// Interface: interfaces/linear.wgsl

@group(0) @binding(6) var<storage, read> gain: array<vec4<f32>>;   // gain [k], padded to a multiple of 8
@group(0) @binding(7) var<storage, read> shift: array<vec4<f32>>;  // shift [k], padded likewise

const SHARERS: u32 = 256u / ROWS;

var<workgroup> parts: array<f32, 256>;       // [row][lane]
var<workgroup> moments: array<f32, ROWS * 16u>; // [row][sixteenth of the lanes]
var<private> means: array<f32, ROWS>;
var<private> scales: array<f32, ROWS>;

// Elements k .. k + 4 of row r of x after LayerNorm. From the n-th on they are anything finite.
fn row4(r: u32, k: u32, n: u32) -> vec4<f32> {
    let a = x_vec4(min(r, p.rows - 1u) * p.x_stride + k, n);
    return (a - means[r]) / scales[r] * gain[k / 4u] + shift[k / 4u];
}

// Adds up what the invocations of each row have, sixteen sums a row.
fn add_up(invocation: u32, part: f32) {
    parts[invocation] = part;
    workgroupBarrier();
    if invocation < ROWS * 16u {
        var sum = 0.0;
        for (var i = 0u; i < SHARERS / 16u; i += 1u) {
            sum += parts[invocation * (SHARERS / 16u) + i];
        }
        moments[invocation] = sum;
    }
    workgroupBarrier();
}

// The sum of row r, divided by its length.
fn average(r: u32) -> f32 {
    var sum = 0.0;
    for (var i = 0u; i < 16u; i += 1u) {
        sum += moments[r * 16u + i];
    }
    return sum / f32(p.k);
}

// The variance is biased, and taken around the mean in a second pass.
fn find_moments(invocation: u32) {
    let lane = invocation % SHARERS;
    let row = min(invocation / SHARERS, p.rows - 1u) * p.x_stride;
    var part = 0.0;
    for (var k = 4u * lane; k < p.k; k += 4u * SHARERS) {
        let a = x_vec4(row + k, p.k - k);
        part += (a.x + a.y) + (a.z + a.w);
    }
    add_up(invocation, part);
    for (var r = 0u; r < ROWS; r += 1u) { // unrolled
        means[r] = average(r);
    }
    let mean = average(invocation / SHARERS);
    part = 0.0;
    for (var k = 4u * lane; k < p.k; k += 4u * SHARERS) {
        let n = vec4<u32>(p.k - k);
        let d = select(vec4<f32>(), x_vec4(row + k, p.k - k) - mean, vec4<u32>(0u, 1u, 2u, 3u) < n);
        part += (d.x * d.x + d.y * d.y) + (d.z * d.z + d.w * d.w);
    }
    add_up(invocation, part);
    for (var r = 0u; r < ROWS; r += 1u) { // unrolled
        scales[r] = sqrt(average(r) + p.eps);
    }
}

@compute @workgroup_size(256)
fn linear_few_norm(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n_wg: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
    let tile_col = (wg.y * n_wg.x + wg.x) * 16u;
    find_moments(invocation);
    var total = array<vec4<f32>, SUMS>();
    sum_few(&total, tile_col, wg.z * p.k_part, invocation);
    store_few(&total, tile_col, wg.z * p.y_part, invocation);
}
