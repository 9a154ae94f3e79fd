// y[invocation] = the sum of 12 chains x -> x * factor + addend, each 4 * rounds long. It does nothing but arithmetic,
// so that `actscope bench` measures the highest speed of an adapter.
// Each invocation has 12 chains, in three vectors. A round is four steps, so that the loop itself costs little.

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
        for (var step = 0u; step < 4u; step += 1u) { // unrolled
            a = fma(a, factor, addend);
            b = fma(b, factor, addend);
            c = fma(c, factor, addend);
        }
    }
    y[id.x] = dot(a + b + c, vec4<f32>(1.0));
}
