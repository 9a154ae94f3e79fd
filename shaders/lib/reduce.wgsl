// Sums and maxima over a workgroup of WORKGROUP_SIZE invocations in one dimension. Every invocation must call these
// functions in uniform control flow, and every invocation gets the result. workgroupUniformLoad has a barrier before and
// after it, so that the next call may write the scratch memory at once.

const WORKGROUP_SIZE: u32 = 128u;

var<workgroup> reduce_scratch: array<f32, WORKGROUP_SIZE>;

fn workgroup_sum(invocation: u32, value: f32) -> f32 {
    reduce_scratch[invocation] = value;
    workgroupBarrier();
    for (var half = WORKGROUP_SIZE / 2u; half > 0u; half /= 2u) {
        if invocation < half {
            reduce_scratch[invocation] += reduce_scratch[invocation + half];
        }
        workgroupBarrier();
    }
    return workgroupUniformLoad(&reduce_scratch[0]);
}

fn workgroup_max(invocation: u32, value: f32) -> f32 {
    reduce_scratch[invocation] = value;
    workgroupBarrier();
    for (var half = WORKGROUP_SIZE / 2u; half > 0u; half /= 2u) {
        if invocation < half {
            reduce_scratch[invocation] = max(reduce_scratch[invocation], reduce_scratch[invocation + half]);
        }
        workgroupBarrier();
    }
    return workgroupUniformLoad(&reduce_scratch[0]);
}
