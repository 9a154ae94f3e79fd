// y[invocation] = the sum of x[invocation], x[invocation + invocations], ...: reading and nothing else, by which `actscope bench` measures how fast an
// adapter's memory is.
// One invocation every invocations-th vector of four numbers, so that neighbours read neighbours.

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
