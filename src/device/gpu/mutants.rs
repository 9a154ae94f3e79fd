//! Planted faults, in builds with the feature `faults` only (the tests turn it on; releases have nothing of it): a kernel's
//! text is changed as it is compiled, so that `verify` can be seen to catch it. Owns the table and the changing. A plant that
//! no longer fits its kernel is a panic: it would be a check that cannot fail.

use std::cell::Cell;

/// A fault in one kernel.
#[derive(Debug)]
pub struct Plant {
    /// What is wrong, in words that can be typed.
    pub name: &'static str,
    /// The kernel that gets it.
    pub kernel: &'static str,
    /// What stands in its module, exactly once,
    find: &'static str,
    /// and what stands there instead.
    put: &'static str,
}

const fn plant(name: &'static str, kernel: &'static str, find: &'static str, put: &'static str) -> Plant {
    Plant { name, kernel, find, put }
}

/// Every plant. Each kernel has at least one, which a test holds.
pub static ALL: &[Plant] = &[
    plant("mask lets the next key in", "attention", "my_key <= query &&", "my_key <= query + 1u &&"),
    plant("running maximum not scaled down", "attention", "total *= shrink;", ""),
    plant(
        "heads swapped",
        "attention",
        "let head_start = wg.y * p.head_dim;",
        "let head_start = p.n_embd - (wg.y + 1u) * p.head_dim;",
    ),
    plant(
        "stale key block",
        "attention",
        "k_tile[lane.y * 17u + lane.x] = k_value;",
        "if d0 == 0u { k_tile[lane.y * 17u + lane.x] = k_value; }",
    ),
    plant(
        "barrier missing after the pattern",
        "attention",
        "exp_f32(score - new_highest);\n        workgroupBarrier();",
        "exp_f32(score - new_highest);",
    ),
    plant("mask lets the next key in", "attention_broadcast", "<= queries)", "<= queries + 1u)"),
    plant(
        "running maximum not scaled down",
        "attention_broadcast",
        "total_lo = total_lo * shrink_lo +",
        "total_lo = total_lo +",
    ),
    plant(
        "gathered values not scaled down",
        "attention_broadcast",
        "shrink(&z_right, shrink_lo, shrink_hi);",
        "shrink(&z_right, shrink_lo, vec4<f32>(1.0));",
    ),
    plant(
        "dimensions beyond the first 64 scored with the wrong head",
        "attention_broadcast",
        "let k_head = q_head + p.n_embd;",
        "let k_head = q_head + p.n_embd - wg.z * p.head_dim;",
    ),
    plant("last dimension lost", "attention_broadcast", "k = qkv[k_at + min(d0 + 7u, last_dim)];", "k = 0.0;"),
    plant(
        "first row of the text forgotten",
        "attention_broadcast",
        "let q_head = p.first * stride",
        "let q_head = 0u * stride",
    ),
    plant("mask lets the next key in", "attention_scores", "key <= query)", "key <= query + 1u)"),
    plant("scale forgotten", "attention_scores", "score * p.scale", "score"),
    plant(
        "maximum not subtracted",
        "attention_pattern",
        "highest = workgroup_max(lane, highest);",
        "highest = workgroup_max(lane, highest) * 0.0;",
    ),
    plant(
        "barrier missing in the reduction",
        "attention_pattern",
        "reduce_scratch[lane] += reduce_scratch[lane + half];\n        }\n        workgroupBarrier();",
        "reduce_scratch[lane] += reduce_scratch[lane + half];\n        }",
    ),
    plant(
        "scratch read before it is written",
        "attention_pattern",
        "reduce_scratch[lane] = value;\n    workgroupBarrier();\n    for (var half = REDUCE_LANES / 2u; half > 0u; half /= 2u) {\n        if lane < half {\n            reduce_scratch[lane] +=",
        "workgroupBarrier();\n    for (var half = REDUCE_LANES / 2u; half > 0u; half /= 2u) {\n        if lane < half {\n            reduce_scratch[lane] +=",
    ),
    plant(
        "heads swapped",
        "attention_mix",
        "2u * p.n_embd + head * p.head_dim + d",
        "3u * p.n_embd - (head + 1u) * p.head_dim + d",
    ),
    plant("last key left out", "attention_mix", "k0 + lane.x < p.n_pos", "k0 + lane.x + 1u < p.n_pos"),
    plant("erf for tanh", "activation", "case 0u: { return gelu_tanh(x); }", "case 0u: { return gelu_erf(x); }"),
    plant(
        "half precision",
        "activation",
        "y[i] = activate(FUNCTION, x[i]);",
        "y[i] = unpack2x16float(pack2x16float(vec2<f32>(activate(FUNCTION, x[i]), 0.0))).x;",
    ),
    plant(
        "NaN becomes a number",
        "attention_pattern",
        "select(select(result, 0.0, x < -87.0), x, is_nan)",
        "select(result, 0.0, x < -87.0)",
    ),
    plant(
        "exp overflows",
        "activation",
        "let bounded = clamp(x, -87.0, 88.0);",
        "let bounded = clamp(x, -150.0, 150.0);",
    ),
    plant("second dimension of the grid forgotten", "activation", "(wg.y * n_wg.x + wg.x)", "(wg.x)"),
    plant("epsilon a tenth", "layer_norm", "mean, p.eps)", "mean, p.eps * 0.1)"),
    plant("mean not subtracted", "layer_norm", "(x[start + c] - mean) / scale", "x[start + c] / scale"),
    plant(
        "variance as a difference of squares",
        "layer_norm",
        "squares += d * d;",
        "squares += x[start + c] * x[start + c] - mean * mean;",
    ),
    plant("epsilon a tenth", "layer_norm_broadcast", "mean, p.eps)", "mean, p.eps * 0.1)"),
    plant("one lane's sum for all", "layer_norm_broadcast", "return subgroupAdd(value);", "return value * 8.0;"),
    plant("epsilon a tenth", "layer_norm_scale_broadcast", "mean, p.eps)", "mean, p.eps * 0.1)"),
    plant(
        "one lane's sum for all",
        "layer_norm_normalize_broadcast",
        "return subgroupAdd(value);",
        "return value * 8.0;",
    ),
    plant("one lane's maximum for all", "attention_pattern_broadcast", "return subgroupMax(value);", "return value;"),
    plant("sum left out", "attention_pattern_broadcast", "return subgroupAdd(value);", "return value;"),
    plant("epsilon a tenth", "layer_norm_scale", "mean, p.eps)", "mean, p.eps * 0.1)"),
    plant("unbiased variance", "layer_norm_scale", "/ f32(max(cols, 1u)) + eps", "/ f32(max(cols, 2u) - 1u) + eps"),
    plant(
        "NaN in one lane",
        "layer_norm_normalize",
        "y[start + c] = (x[start + c] - mean) / scale[row];",
        "y[start + c] = select((x[start + c] - mean) / scale[row], bitcast<f32>(0x7fc00000u | lane), lane == 77u);",
    ),
    plant("scale of the first row for all", "layer_norm_normalize", "scale[row]", "scale[0]"),
    plant("stale buffer: the last value is never written", "gain_bias", "if i < p.n", "if i + 1u < p.n"),
    plant("bias dropped", "gain_bias", "x[i] * gain[c] + bias[c]", "x[i] * gain[c]"),
    plant("bias dropped", "linear", "p.has_bias != 0u", "p.has_bias == 2u"),
    plant("last column lost", "linear", "col < p.cols", "col + 1u < p.cols"),
    plant("last of four steps of k lost", "linear", "if n > 3u", "if n > 4u"),
    plant(
        "wrong beyond row 512",
        "linear",
        "finish(total[r * FOURS + f][c], col, at)",
        "finish(total[r * FOURS + f][c] * select(1.0, 1.001, row >= 512u), col, at)",
    ),
    plant(
        "barrier missing before the tile is read",
        "linear",
        "w_tile[i] = four;\n        }\n        workgroupBarrier();",
        "w_tile[i] = four;\n        }",
    ),
    plant("added twice", "linear", "return added[at] + result;", "return added[at] + added[at] + result;"),
    plant("erf for tanh", "linear", "case 0u: { return gelu_tanh(x); }", "case 0u: { return gelu_erf(x); }"),
    plant("bias dropped", "linear_matrices", "p.has_bias != 0u", "p.has_bias == 2u"),
    plant(
        "right side transposed",
        "linear_matrices",
        "let b2 = coopLoadT<Right>(&tile[w_at + 16u], W_STRIDE);",
        "let b2 = coopLoad<Right>(&tile[w_at + 16u], W_STRIDE);",
    ),
    plant("sums not cleared", "linear_matrices", "tile[i] = 0.0;", ""),
    plant("a column too many", "linear_matrices", "col < p.cols", "col <= p.cols"),
    plant("last of four steps of k lost", "linear_matrices", "if n > 3u", "if n > 4u"),
    plant(
        "ten bits of x",
        "linear_matrices",
        "put_four(i / 4u * X_STRIDE + 4u * (i % 4u), four);",
        "put_four(i / 4u * X_STRIDE + 4u * (i % 4u), bitcast<vec4<f32>>(bitcast<vec4<u32>>(four) & vec4<u32>(0xffffe000u)));",
    ),
    plant(
        "barrier missing before the tile is read",
        "linear_matrices",
        "put_four(W_TILE + i / 16u * W_STRIDE + 4u * (i % 16u), four);\n        }\n        workgroupBarrier();",
        "put_four(W_TILE + i / 16u * W_STRIDE + 4u * (i % 16u), four);\n        }",
    ),
    plant("lower quarters left out", "linear_matrices", "subgroup / 2u % 2u", "subgroup / 2u % 1u"),
    plant(
        "one matrix stored twice",
        "linear_matrices",
        "c30, c31, c32, c33);\n    work",
        "c30, c31, c32, c32);\n    work",
    ),
    plant("bias dropped", "linear_few", "p.has_bias != 0u", "p.has_bias == 2u"),
    plant(
        "half precision",
        "linear_few",
        "finish(sum, tile_col",
        "finish(unpack2x16float(pack2x16float(vec2<f32>(sum, 0.0))).x, tile_col",
    ),
    plant("one share of the sum left out", "linear_few", "share < 16u; share", "share < 15u; share"),
    plant("a quarter counted twice", "linear_few", "quarters[lane + 48u]", "quarters[lane + 32u]"),
    plant(
        "added to the wrong row",
        "linear_few",
        "return added[at] + result;",
        "return added[at % p.y_stride] + result;",
    ),
    plant("bias dropped", "linear_broadcast", "p.has_bias != 0u", "p.has_bias == 2u"),
    plant("last column lost", "linear_broadcast", "col < p.cols", "col + 1u < p.cols"),
    plant(
        "what is left of k forgotten",
        "linear_broadcast",
        "for (var k = whole; k < k_end",
        "for (var k = whole; k + 1u < k_end",
    ),
    plant("two lanes swapped", "linear_broadcast", "subgroupBroadcast(lo, 5u)", "subgroupBroadcast(lo, 6u)"),
    plant("a row too many", "linear_broadcast", "(*sums)[7] += hi.w * four;", "(*sums)[7] += hi.z * four;"),
    plant("added forgotten", "linear_broadcast", "return added[at] + result;", "return result;"),
    plant(
        "blocks after the first left out",
        "linear_broadcast",
        "    join(&total, part);",
        "    if block == 0u { join(&total, part); }",
    ),
    plant(
        "halves of a word swapped",
        "linear_broadcast",
        "widen_f16(word & 0xffffu), widen_f16(word >> 16u)",
        "widen_f16(word >> 16u), widen_f16(word & 0xffffu)",
    ),
    plant("one head left out", "sum_heads", "var head = 0u;", "var head = 1u;"),
    plant("one row off", "embed", "(id - p.first) * p.w_stride", "(id - p.first + 1u) * p.w_stride"),
    plant(
        "small numbers flushed",
        "embed",
        "select(normal, subnormal, exponent == 0u)",
        "select(normal, 0.0, exponent == 0u)",
    ),
    plant(
        "halves of a word swapped",
        "embed",
        "widen_f16(word & 0xffffu), widen_f16(word >> 16u)",
        "widen_f16(word >> 16u), widen_f16(word & 0xffffu)",
    ),
    plant("one last bit in a hundred thousand", "add", "a[i] + b[i]", "(a[i] + b[i]) * 1.00001"),
    plant("second dimension of the grid forgotten", "add", "(wg.y * n_wg.x + wg.x)", "(wg.x)"),
    plant("last of four steps of k lost", "unembed", "if n > 3u", "if n > 4u"),
    plant("first row of x forgotten", "unembed", "let at = p.x_first + row * p.k + k;", "let at = row * p.k + k;"),
    plant(
        "two fours swapped",
        "unembed",
        "k4 ^ ((token >> 1u) & 3u)",
        "k4 ^ ((token >> 3u) & 1u) ^ select(0u, 1u, k4 == 2u && token == 5u)",
    ),
    plant(
        "right side not transposed",
        "unembed_matrices",
        "let b0 = coopLoad<Right>(&tile[w_at], K_STRIDE);",
        "let b0 = coopLoadT<Right>(&tile[w_at], K_STRIDE);",
    ),
    plant("sums not cleared", "unembed_matrices", "tile[i] = 0.0;", ""),
    plant(
        "first row of x forgotten",
        "unembed_matrices",
        "let at = p.x_first + row * p.k + k;",
        "let at = row * p.k + k;",
    ),
    plant("last of four steps of k lost", "unembed_matrices", "if n > 3u", "if n > 4u"),
    plant("last token lost", "unembed_matrices", "col < p.cols {\n            y", "col + 1u < p.cols {\n            y"),
    plant("first row of x forgotten", "unembed_broadcast", "p.x_first + rows_hi", "rows_hi"),
    plant(
        "padding multiplied with the next row",
        "unembed_broadcast",
        "let k = min(k0 + lane, p.k - 1u);",
        "let k = k0 + lane;",
    ),
    plant("last token lost", "unembed_broadcast", "token + c < p.cols", "token + c + 1u < p.cols"),
    plant(
        "two numbers swapped",
        "unembed_broadcast",
        "vec4<f32>(a.y, b.y, c.y, d.y));\n            multiply_add(&part, subgroupBroadcast(lo, 6u)",
        "vec4<f32>(a.x, b.y, c.y, d.y));\n            multiply_add(&part, subgroupBroadcast(lo, 6u)",
    ),
    plant("padding multiplied with the next row", "unembed_few", "let n = min(4u, k_end - k);", "let n = 4u;"),
    plant("factor forgotten", "edit", "x[at] * p.factor", "x[at]"),
    plant("first column forgotten", "copy_out", "p.first_col + i % p.cols", "i % p.cols"),
];

/// Wrong in the default cut of tiles only, and wrong in every other: what a driver may do, seen by the trial of cuts alone.
pub static OF_CUTS: [Plant; 2] = [
    plant(
        "wrong in the default cut",
        "linear",
        "finish(total[r * FOURS + f][c]",
        "finish(total[r * FOURS + f][c] * select(1.0, 1.001, EMBED == 4u)",
    ),
    plant(
        "wrong in other cuts",
        "linear",
        "finish(total[r * FOURS + f][c]",
        "finish(total[r * FOURS + f][c] * select(1.0, 1.001, EMBED != 4u)",
    ),
];

thread_local! {
    static PLANTED: Cell<Option<&'static Plant>> = Cell::new(from_environment());
}

/// Plants a fault in the kernels that this thread compiles from now on, or takes it away.
pub fn plant_here(plant: Option<&'static Plant>) {
    PLANTED.set(plant);
}

/// The plant of a whole process: `ACTSCOPE_PLANT` is a kernel and, after a colon, a plant's name.
fn from_environment() -> Option<&'static Plant> {
    let wanted = std::env::var("ACTSCOPE_PLANT").ok()?;
    let is_it = |plant: &&Plant| wanted.split_once(": ") == Some((plant.kernel, plant.name));
    Some(ALL.iter().find(is_it).unwrap_or_else(|| panic!("no plant {wanted:?}")))
}

/// A kernel's text with what is planted.
pub(super) fn planted(kernel: &str, text: String) -> String {
    let Some(plant) = PLANTED.get().filter(|plant| plant.kernel == kernel) else { return text };
    assert_eq!(
        text.matches(plant.find).count(),
        1,
        "{kernel}: {}: {:?} is not there exactly once",
        plant.name,
        plant.find
    );
    text.replace(plant.find, plant.put)
}
