// The functions of lib/reduce.wgsl for adapters on which a subgroup is the whole workgroup of 8 invocations. They need
// no memory and no barriers.

const WORKGROUP_SIZE: u32 = 8u;

fn workgroup_sum(invocation: u32, value: f32) -> f32 {
    return subgroupAdd(value);
}

fn workgroup_max(invocation: u32, value: f32) -> f32 {
    return subgroupMax(value);
}
