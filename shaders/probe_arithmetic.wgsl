// y[invocation] = the sum of 12 chains x -> x * factor + addend, each 4 * rounds long: arithmetic and nothing else, by which `actscope
// bench` measures what an adapter can do at most.
// One invocation 12 chains, as three vectors; four steps a round, so that the loop itself costs little.

struct Params {
    rounds: u32,
    factor: f32,
    addend: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;  // y [invocations]

@compute @workgroup_size(256)
fn probe_arithmetic(@builtin(global_invocation_id) id: vec3<u32>) {
    let factor = vec4<f32>(p.factor);
    let addend = vec4<f32>(p.addend);
    var a = vec4<f32>(f32(id.x));
    var b = a + 1.0;
    var c = a + 2.0;
    for (var i = 0u; i < p.rounds; i += 1u) {
        a = fma(a, factor, addend);
        b = fma(b, factor, addend);
        c = fma(c, factor, addend);
        a = fma(a, factor, addend);
        b = fma(b, factor, addend);
        c = fma(c, factor, addend);
        a = fma(a, factor, addend);
        b = fma(b, factor, addend);
        c = fma(c, factor, addend);
        a = fma(a, factor, addend);
        b = fma(b, factor, addend);
        c = fma(c, factor, addend);
    }
    y[id.x] = dot(a + b + c, vec4<f32>(1.0));
}
