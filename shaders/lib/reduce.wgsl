// Sums and maxima over a workgroup of REDUCE_LANES lanes in one dimension. Every lane of the workgroup must call them, in
// uniform control flow, and every lane gets the result. The first barrier of each call also protects the scratch from the
// call before it.

const REDUCE_LANES: u32 = 128u;

var<workgroup> reduce_scratch: array<f32, REDUCE_LANES>;

fn workgroup_sum(lane: u32, value: f32) -> f32 {
    workgroupBarrier();
    reduce_scratch[lane] = value;
    workgroupBarrier();
    for (var half = REDUCE_LANES / 2u; half > 0u; half /= 2u) {
        if lane < half {
            reduce_scratch[lane] += reduce_scratch[lane + half];
        }
        workgroupBarrier();
    }
    return workgroupUniformLoad(&reduce_scratch[0]);
}

fn workgroup_max(lane: u32, value: f32) -> f32 {
    workgroupBarrier();
    reduce_scratch[lane] = value;
    workgroupBarrier();
    for (var half = REDUCE_LANES / 2u; half > 0u; half /= 2u) {
        if lane < half {
            reduce_scratch[lane] = max(reduce_scratch[lane], reduce_scratch[lane + half]);
        }
        workgroupBarrier();
    }
    return workgroupUniformLoad(&reduce_scratch[0]);
}
