// The largest of each chunk of a row's logits, from which the likeliest token is chosen. Per row and chunk of the columns of x:
// the largest value, its column (of equals the first), and the sum of e^(value - largest). Values below the lowest f32 (minus
// infinity, NaN) count as that one, but a NaN makes the sum NaN.
// One workgroup per row and chunk. Column numbers are exact up to 2^24.

struct Params {
    n: u32,        // rows times chunks
    cols: u32,     // columns of x
    chunks: u32,   // chunks of a row
    chunk: u32,    // columns of a chunk
    x_first: u32,  // index in x of the first row
    y_first: u32,  // index in y of the first result
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;        // x [T, cols]
@group(0) @binding(2) var<storage, read_write> y: array<f32>;  // y [T, chunks, 3]

const LOWEST: f32 = -3.4028234663852886e38;

fn counted(value: f32) -> f32 {
    return select(LOWEST, value, value > LOWEST);
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn argmax(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n_wg: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
    let i = wg.y * n_wg.x + wg.x;
    let first = i % p.chunks * p.chunk;
    let start = p.x_first + i / p.chunks * p.cols;
    // A workgroup after the last chunk has no columns.
    let end = select(0u, min(first + p.chunk, p.cols), i < p.n);

    var highest = LOWEST;
    for (var c = first + invocation; c < end; c += WORKGROUP_SIZE) {
        highest = max(highest, counted(x[start + c]));
    }
    highest = workgroup_max(invocation, highest);
    var sum = 0.0;
    var place = -f32(p.chunk);
    for (var c = first + invocation; c < end; c += WORKGROUP_SIZE) {
        sum += exp_f32(x[start + c] - highest);
        if counted(x[start + c]) == highest {
            place = max(place, -f32(c - first));
        }
    }
    place = workgroup_max(invocation, place);
    sum = workgroup_sum(invocation, sum);
    if invocation == 0u && i < p.n {
        y[p.y_first + 3u * i] = highest;
        y[p.y_first + 3u * i + 1u] = f32(first) - place;
        y[p.y_first + 3u * i + 2u] = sum;
    }
}
