// The functions of lib/reduce.wgsl for adapters whose subgroup is the whole workgroup of 8 lanes: no memory, no barriers.

const REDUCE_LANES: u32 = 8u;

fn workgroup_sum(lane: u32, value: f32) -> f32 {
    return subgroupAdd(value);
}

fn workgroup_max(lane: u32, value: f32) -> f32 {
    return subgroupMax(value);
}
