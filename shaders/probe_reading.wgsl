// y[invocation] = the sum of x[invocation], x[invocation + invocations], ... It does nothing but reading, so that
// `actscope bench` measures the speed of an adapter's memory.
// Neighbouring invocations read neighbouring vectors of four elements.

struct Params {
    n: u32,      // vectors of x
    invocations: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;  // x [n]
@group(0) @binding(2) var<storage, read_write> y: array<f32>;  // y [invocations]

@compute @workgroup_size(256)
fn probe_reading(@builtin(global_invocation_id) id: vec3<u32>) {
    var sum = vec4<f32>();
    for (var i = id.x; i < p.n; i += p.invocations) {
        sum += x[i];
    }
    y[id.x] = dot(sum, vec4<f32>(1.0));
}
