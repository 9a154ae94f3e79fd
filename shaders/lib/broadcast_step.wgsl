// One step of k of a product whose left side is spread over the subgroup: one element of each of 8 rows, times four
// columns per invocation. The loops are unrolled, because only constant indices keep the sums in registers.

fn multiply_add(sums: ptr<function, array<vec4<f32>, 8>>, lo: vec4<f32>, hi: vec4<f32>, four: vec4<f32>) {
    for (var r = 0u; r < 4u; r += 1u) { // unrolled
        (*sums)[r] += lo[r] * four;
        (*sums)[4u + r] += hi[r] * four;
    }
}

// Adds the sums of a block to the total.
fn join(sums: ptr<function, array<vec4<f32>, 8>>, part: array<vec4<f32>, 8>) {
    for (var r = 0u; r < 8u; r += 1u) { // unrolled
        (*sums)[r] += part[r];
    }
}

// rows_lo and rows_hi are the first and the last four of 8 rows from `first` on. No row is after `last`.
fn rows_lo(first: u32, last: u32) -> vec4<u32> {
    return min(vec4<u32>(first, first + 1u, first + 2u, first + 3u), vec4<u32>(last));
}

fn rows_hi(first: u32, last: u32) -> vec4<u32> {
    return rows_lo(first + 4u, last);
}
