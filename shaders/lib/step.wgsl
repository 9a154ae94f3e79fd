// One step of a product whose left side is spread over the invocations: one element of each of 8 rows, times four
// columns per invocation. Every row is written out, because only constant indices keep the sums in registers.

fn multiply_add(sums: ptr<function, array<vec4<f32>, 8>>, lo: vec4<f32>, hi: vec4<f32>, four: vec4<f32>) {
    (*sums)[0] += lo.x * four;
    (*sums)[1] += lo.y * four;
    (*sums)[2] += lo.z * four;
    (*sums)[3] += lo.w * four;
    (*sums)[4] += hi.x * four;
    (*sums)[5] += hi.y * four;
    (*sums)[6] += hi.z * four;
    (*sums)[7] += hi.w * four;
}

// Adds the sums of a block to the total.
fn join(sums: ptr<function, array<vec4<f32>, 8>>, part: array<vec4<f32>, 8>) {
    (*sums)[0] += part[0];
    (*sums)[1] += part[1];
    (*sums)[2] += part[2];
    (*sums)[3] += part[3];
    (*sums)[4] += part[4];
    (*sums)[5] += part[5];
    (*sums)[6] += part[6];
    (*sums)[7] += part[7];
}

// rows_lo and rows_hi are the first and the last four of 8 rows from `first` on. No row is after `last`.
fn rows_lo(first: u32, last: u32) -> vec4<u32> {
    return min(vec4<u32>(first, first + 1u, first + 2u, first + 3u), vec4<u32>(last));
}

fn rows_hi(first: u32, last: u32) -> vec4<u32> {
    return rows_lo(first + 4u, last);
}
