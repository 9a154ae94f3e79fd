//! Injected faults: a mutant changes the text of one kernel when it is compiled, and tests check that `verify` detects
//! it. Only in builds with the feature `mutants`, which the tests enable and releases do not. Owns the table of mutants
//! and the replacement. A mutant whose text is not found in its kernel panics, because its test would otherwise test
//! nothing.
//! Read next: `tests/mutants.rs`, which runs them.

use std::cell::Cell;

/// A fault in one kernel.
#[derive(Debug)]
pub struct Mutant {
    /// What is wrong, in plain words.
    pub name: &'static str,
    /// The name of the kernel.
    pub kernel: &'static str,
    /// The text to replace. The kernel's module must have it exactly once.
    find: &'static str,
    /// The replacement.
    put: &'static str,
}

const fn mutant(name: &'static str, kernel: &'static str, find: &'static str, put: &'static str) -> Mutant {
    Mutant { name, kernel, find, put }
}

/// Every mutant. Each kernel has at least one, which a test checks.
pub static ALL: &[Mutant] = &[
    mutant("mask lets the next key in", "attention", "4u * y + r + 1u, text.n_key)", "4u * y + r + 2u, text.n_key)"),
    mutant("running maximum not scaled down", "attention", "totals[r] *= shrink;", ""),
    mutant("gathered values not scaled down", "attention", "sums[2u * r + 1u] *= shrink;", ""),
    mutant(
        "another head's keys",
        "attention",
        "p.q_col + head_col, p.k_col + head_col, invocation",
        "p.q_col + head_col, p.k_col + p.z_stride - (wg.y / CHUNKS + 1u) * HEAD_DIM, invocation",
    ),
    mutant("stale keys", "attention", "load_kv(text, first_key, k_col,", "load_kv(text, 0u, k_col,"),
    mutant("last chunk of a wide head left out", "attention", "chunk < CHUNKS; chunk", "chunk == 0u; chunk"),
    mutant(
        "a part of the keys begins a block late",
        "attention",
        "k0 = part * p.part_keys",
        "k0 = part * (p.part_keys + KEYS)",
    ),
    mutant("sums of a part not scaled down", "attention_join", "sum += shrink * sums", "sum += sums"),
    mutant("total of a part not scaled down", "attention_join", "total += shrink * moment.y", "total += moment.y"),
    mutant(
        "last part left out",
        "attention_join",
        "part < p.parts; part += 1u) {\n            let",
        "part + 1u < p.parts; part += 1u) {\n            let",
    ),
    mutant("mask lets the next key in", "attention_broadcast", "<= positions)", "<= positions + 1u)"),
    mutant(
        "running maximum not scaled down",
        "attention_broadcast",
        "total_lo = total_lo * shrink_lo +",
        "total_lo = total_lo +",
    ),
    mutant(
        "gathered values not scaled down",
        "attention_broadcast",
        "shrink(&z_right, shrink_lo, shrink_hi);",
        "shrink(&z_right, shrink_lo, vec4<f32>(1.0));",
    ),
    mutant(
        "dimensions beyond the first 64 scored with the wrong head",
        "attention_broadcast",
        "p.k_col + head * p.head_dim;",
        "p.k_col + head * p.head_dim - wg.y % chunks * p.head_dim;",
    ),
    mutant(
        "last dimension lost",
        "attention_broadcast",
        "min(d0 + i, last_dim)];",
        "min(d0 + i, last_dim)] * f32(1u - i / 7u);",
    ),
    mutant(
        "first row of the text forgotten",
        "attention_broadcast",
        "let q_head = text.q_row * p.q_stride",
        "let q_head = 0u * p.q_stride",
    ),
    mutant("mask lets the next key in", "attention_few", "text.position + wg.x + 1u", "text.position + wg.x + 2u"),
    mutant("keys after the last one not masked", "attention_few", "k0 + invocation < n_key", "true"),
    mutant("scale forgotten", "attention_few", "score * p.scale", "score"),
    mutant("total not scaled down", "attention_few", "total *= shrink;", ""),
    mutant("one slot left out", "attention_few", "all += totals[i];", "all += select(totals[i], 0.0, i == 15u);"),
    mutant(
        "barrier missing before the scores are read",
        "attention_few",
        "k0 + invocation < n_key);\n        }\n        workgroupBarrier();",
        "k0 + invocation < n_key);\n        }",
    ),
    mutant(
        "values of the key before",
        "attention_few",
        "kv_vec4(row + p.v_col + d, left(HEAD_DIM, d))",
        "kv_vec4(row - select(0u, p.kv_stride, k0 + turn + slot > 0u) + p.v_col + d, left(HEAD_DIM, d))",
    ),
    mutant(
        "mask lets the next key in",
        "attention_scores",
        "key <= text.position + query)",
        "key <= text.position + query + 1u)",
    ),
    mutant("scale forgotten", "attention_scores", "s[r][c] * p.scale", "s[r][c]"),
    mutant(
        "maximum not subtracted",
        "attention_pattern",
        "highest = workgroup_max(invocation, highest);",
        "highest = workgroup_max(invocation, highest) * 0.0;",
    ),
    mutant(
        "barrier missing in the reduction",
        "attention_pattern",
        "reduce_scratch[invocation] += reduce_scratch[invocation + half];\n        }\n        workgroupBarrier();",
        "reduce_scratch[invocation] += reduce_scratch[invocation + half];\n        }",
    ),
    mutant(
        "scratch read before it is written",
        "attention_pattern",
        "reduce_scratch[invocation] = value;\n    workgroupBarrier();\n    for (var half = WORKGROUP_SIZE / 2u; half > 0u; half /= 2u) {\n        if invocation < half {\n            reduce_scratch[invocation] +=",
        "workgroupBarrier();\n    for (var half = WORKGROUP_SIZE / 2u; half > 0u; half /= 2u) {\n        if invocation < half {\n            reduce_scratch[invocation] +=",
    ),
    mutant(
        "second head's values for the first",
        "attention_mix",
        "p.v_col + head * HEAD_DIM, d0",
        "p.v_col + (head ^ 1u) % (p.z_stride / HEAD_DIM) * HEAD_DIM, d0",
    ),
    mutant("last key left out", "attention_mix", "key < text.n_key {", "key + 1u < text.n_key {"),
    mutant(
        "one value twice",
        "attention_mix",
        "(*z)[2u * r + 1u] += weight * hi;",
        "(*z)[2u * r + 1u] += weight * lo;",
    ),
    mutant("erf for tanh", "activation", "case 0u: { return gelu_tanh(x); }", "case 0u: { return gelu_erf(x); }"),
    mutant(
        "half precision",
        "activation",
        "y[i] = activate(FUNCTION, x[i]);",
        "y[i] = unpack2x16float(pack2x16float(vec2<f32>(activate(FUNCTION, x[i]), 0.0))).x;",
    ),
    mutant(
        "NaN becomes a number",
        "attention_pattern",
        "select(select(result, 0.0, x < -87.0), x, is_nan)",
        "select(result, 0.0, x < -87.0)",
    ),
    mutant(
        "exp overflows",
        "activation",
        "let bounded = clamp(x, -87.0, 88.0);",
        "let bounded = clamp(x, -150.0, 150.0);",
    ),
    mutant("second dimension of the grid forgotten", "activation", "(wg.y * n_wg.x + wg.x)", "(wg.x)"),
    mutant("epsilon a tenth", "layer_norm", "mean, p.eps)", "mean, p.eps * 0.1)"),
    mutant("mean not subtracted", "layer_norm", "(x[row.start + c] - mean) / scale", "x[row.start + c] / scale"),
    mutant(
        "variance as a difference of squares",
        "layer_norm",
        "squares += d * d;",
        "squares += x[row.start + c] * x[row.start + c] - mean * mean;",
    ),
    mutant("epsilon a tenth", "layer_norm_broadcast", "mean, p.eps)", "mean, p.eps * 0.1)"),
    mutant("one invocation's sum for all", "layer_norm_broadcast", "return subgroupAdd(value);", "return value * 8.0;"),
    mutant("epsilon a tenth", "layer_norm_scale_broadcast", "mean, p.eps)", "mean, p.eps * 0.1)"),
    mutant(
        "one invocation's sum for all",
        "layer_norm_normalize_broadcast",
        "return subgroupAdd(value);",
        "return value * 8.0;",
    ),
    mutant(
        "one invocation's maximum for all",
        "attention_pattern_broadcast",
        "return subgroupMax(value);",
        "return value;",
    ),
    mutant("sum left out", "attention_pattern_broadcast", "return subgroupAdd(value);", "return value;"),
    mutant("epsilon a tenth", "layer_norm_scale", "mean, p.eps)", "mean, p.eps * 0.1)"),
    mutant(
        "unbiased variance",
        "layer_norm_scale",
        "/ f32(max(row.cols, 1u)) + eps",
        "/ f32(max(row.cols, 2u) - 1u) + eps",
    ),
    mutant(
        "NaN in one invocation",
        "layer_norm_normalize",
        "y[row.start + c] = (x[row.start + c] - mean) / scale[row.index];",
        "y[row.start + c] = select((x[row.start + c] - mean) / scale[row.index], bitcast<f32>(0x7fc00000u | invocation), invocation == 77u);",
    ),
    mutant("scale of the first row for all", "layer_norm_normalize", "scale[row.index]", "scale[0]"),
    mutant("stale buffer: the last value is never written", "gain_bias", "if i < p.n", "if i + 1u < p.n"),
    mutant("bias dropped", "gain_bias", "x[i] * gain[c] + bias[c]", "x[i] * gain[c]"),
    mutant("bias dropped", "linear", "p.has_bias != 0u", "p.has_bias == 2u"),
    mutant("last column lost", "linear", "col < p.cols", "col + 1u < p.cols"),
    mutant("last of four steps of k lost", "linear", ">= vec4<u32>(n)", ">= vec4<u32>(min(n, 3u))"),
    mutant(
        "wrong beyond row 512",
        "linear",
        "finished(total[(4u * g + r) * FOURS + f][c]",
        "finished(total[(4u * g + r) * FOURS + f][c] * select(1.0, 1.001, first_row + r >= 512u)",
    ),
    mutant(
        "barrier missing before the tile is read",
        "linear",
        "store_w(&w_next, index);\n        workgroupBarrier();",
        "store_w(&w_next, index);",
    ),
    mutant("the block after next loaded", "linear", "min(block + 1u, blocks - 1u)", "min(block + 2u, blocks - 1u)"),
    mutant("rows of x swapped", "linear", "g * SIDE_Y + at.y, ROW_FOURS", "g * SIDE_Y + (at.y ^ 1u), ROW_FOURS"),
    mutant(
        "half a vector where rows are not aligned",
        "linear",
        "vec4<f32>(first.zw, second)",
        "vec4<f32>(first.zw, first.xy)",
    ),
    mutant(
        "parts begin a step late",
        "linear",
        "let k_first = wg.z * p.k_part;",
        "let k_first = wg.z * (p.k_part + 1u);",
    ),
    mutant("added twice", "linear", "return added[at] + sum;", "return added[at] + added[at] + sum;"),
    mutant("erf for tanh", "linear", "case 0u: { return gelu_tanh(x); }", "case 0u: { return gelu_erf(x); }"),
    mutant("bias dropped", "linear_matrices", "p.has_bias != 0u", "p.has_bias == 2u"),
    mutant(
        "right side transposed",
        "linear_matrices",
        "let b2 = coopLoadT<Right>(&tile[w_at + 16u], W_STRIDE);",
        "let b2 = coopLoad<Right>(&tile[w_at + 16u], W_STRIDE);",
    ),
    mutant("sums not cleared", "linear_matrices", "tile[i] = 0.0;", ""),
    mutant("a column too many", "linear_matrices", "col < p.cols", "col <= p.cols"),
    mutant("last of four steps of k lost", "linear_matrices", ">= vec4<u32>(n)", ">= vec4<u32>(min(n, 3u))"),
    mutant(
        "ten bits of x",
        "linear_matrices",
        "put_four(i / 4u * X_STRIDE + 4u * (i % 4u), four);",
        "put_four(i / 4u * X_STRIDE + 4u * (i % 4u), bitcast<vec4<f32>>(bitcast<vec4<u32>>(four) & vec4<u32>(0xffffe000u)));",
    ),
    mutant(
        "barrier missing before the tile is read",
        "linear_matrices",
        "load_w(tile_col, k_first, k0, n, index);\n        workgroupBarrier();",
        "load_w(tile_col, k_first, k0, n, index);",
    ),
    mutant("lower quarters left out", "linear_matrices", "subgroup / 2u % 2u", "subgroup / 2u % 1u"),
    mutant(
        "one matrix stored twice",
        "linear_matrices",
        "c30, c31, c32, c33);\n    work",
        "c30, c31, c32, c32);\n    work",
    ),
    mutant("bias dropped", "linear_few", "p.has_bias != 0u", "p.has_bias == 2u"),
    mutant(
        "half precision",
        "linear_few",
        "epilogue(sum, tile_col",
        "epilogue(unpack2x16float(pack2x16float(vec2<f32>(sum, 0.0))).x, tile_col",
    ),
    mutant("one share of the sum left out", "linear_few", "share < SHARES / 4u; share", "share < 15u; share"),
    mutant("a quarter counted twice", "linear_few", "quarters[invocation + 48u]", "quarters[invocation + 32u]"),
    mutant("added to the wrong row", "linear_few", "return added[at] + sum;", "return added[at % p.y_stride] + sum;"),
    mutant("last of four steps of k lost", "linear_few", "a.z * b2 + a.w * b3", "a.z * b2"),
    mutant("one row for all", "linear_few", "x_vec4(min(r, p.rows - 1u)", "x_vec4(min(0u, p.rows - 1u)"),
    mutant("mean not subtracted", "linear_few_norm", "return (a - means[r]) / scales[r]", "return a / scales[r]"),
    mutant("epsilon a tenth", "linear_few_norm", "average(r) + p.eps", "average(r) + 0.1 * p.eps"),
    mutant("gain forgotten", "linear_few_norm", " * gain[k / 4u]", ""),
    mutant(
        "mean of the first row for all",
        "linear_few_norm",
        "let mean = average(invocation / SHARERS);",
        "let mean = average(0u);",
    ),
    mutant(
        "padding counted in the variance",
        "linear_few_norm",
        "let n = vec4<u32>(p.k - k);",
        "let n = vec4<u32>(4u);",
    ),
    mutant(
        "barrier missing before the sums are read",
        "linear_few_norm",
        "        moments[invocation] = sum;\n    }\n    workgroupBarrier();",
        "        moments[invocation] = sum;\n    }",
    ),
    mutant("one sixteenth left out", "linear_few_norm", "i < 16u; i += 1u", "i < 15u; i += 1u"),
    mutant(
        "last chunk forgotten",
        "argmax",
        "min(first + p.chunk, p.cols)",
        "min(first + p.chunk, p.cols / p.chunk * p.chunk)",
    ),
    mutant("of equals the last", "argmax", "place = max(place, -f32(c - first));", "place = -f32(c - first);"),
    mutant("maximum not subtracted", "argmax", "exp_f32(x[start + c] - highest)", "exp_f32(x[start + c])"),
    mutant("NaN not counted", "argmax", "exp_f32(x[start + c] - highest)", "exp_f32(counted(x[start + c]) - highest)"),
    mutant("first row for all", "argmax", "i / p.chunks * p.cols", "0u * p.cols"),
    mutant("place within the chunk", "argmax_broadcast", "f32(first) - place", "-place"),
    mutant("one invocation's sum for all", "argmax_broadcast", "return subgroupAdd(value);", "return value * 8.0;"),
    mutant(
        "one head's rows of the weight for all",
        "linear_broadcast",
        "(panel * p.w_stride + k_first * 32u)",
        "(panel * p.w_stride)",
    ),
    mutant("one share left out", "linear_join", "var part = 0u;", "var part = 1u;"),
    mutant("bias dropped", "linear_join", "p.has_bias != 0u", "p.has_bias == 2u"),
    mutant("bias dropped", "linear_broadcast", "p.has_bias != 0u", "p.has_bias == 2u"),
    mutant("last column lost", "linear_broadcast", "col < p.cols", "col + 1u < p.cols"),
    mutant(
        "what is left of k forgotten",
        "linear_broadcast",
        "for (var k = whole; k < k_end",
        "for (var k = whole; k + 1u < k_end",
    ),
    mutant(
        "two invocations swapped",
        "linear_broadcast",
        "subgroupBroadcast(lo, i)",
        "subgroupBroadcast(lo, i ^ (i / 4u))",
    ),
    mutant("a row too many", "linear_broadcast", "hi[r] * four", "hi[r - r / 3u] * four"),
    mutant("added forgotten", "linear_broadcast", "return added[at] + sum;", "return sum;"),
    mutant(
        "blocks after the first left out",
        "linear_broadcast",
        "    join(&total, part);",
        "    if block == 0u { join(&total, part); }",
    ),
    mutant(
        "halves of a word swapped",
        "linear_broadcast",
        "widen_f16(word & 0xffffu), widen_f16(word >> 16u)",
        "widen_f16(word >> 16u), widen_f16(word & 0xffffu)",
    ),
    mutant("one head left out", "sum_heads", "var head = 0u;", "var head = 1u;"),
    mutant("one row off", "embed", "(id - p.first) * p.w_stride", "(id - p.first + 1u) * p.w_stride"),
    mutant(
        "small numbers flushed",
        "embed",
        "select(normal, subnormal, exponent == 0u)",
        "select(normal, 0.0, exponent == 0u)",
    ),
    mutant(
        "halves of a word swapped",
        "embed",
        "widen_f16(word & 0xffffu), widen_f16(word >> 16u)",
        "widen_f16(word >> 16u), widen_f16(word & 0xffffu)",
    ),
    mutant("one last bit in a hundred thousand", "add", "a[i] + b[i]", "(a[i] + b[i]) * 1.00001"),
    mutant("second dimension of the grid forgotten", "add", "(wg.y * n_wg.x + wg.x)", "(wg.x)"),
    mutant("last of four steps of k lost", "unembed", ">= vec4<u32>(n)", ">= vec4<u32>(min(n, 3u))"),
    mutant("first row of x forgotten", "unembed", "p.x_first, 0u, p.k, index", "0u, 0u, p.k, index"),
    mutant(
        "two fours swapped",
        "unembed",
        "w_tile[w_slot(s, f * SIDE_X + at.x)]",
        "w_tile[w_slot(s, (f * SIDE_X + at.x) ^ select(0u, 1u, s == 2u))]",
    ),
    mutant(
        "a step of k twice",
        "unembed_matrices",
        "tile[at + 2u * W_STRIDE] = four.z;",
        "tile[at + 2u * W_STRIDE] = four.y;",
    ),
    mutant("sums not cleared", "unembed_matrices", "tile[i] = 0.0;", ""),
    mutant("first row of x forgotten", "unembed_matrices", "p.x_first, 0u, p.k, 0u, index", "0u, 0u, p.k, 0u, index"),
    mutant("last of four steps of k lost", "unembed_matrices", ">= vec4<u32>(n)", ">= vec4<u32>(min(n, 3u))"),
    mutant("last token lost", "unembed_matrices", "col < p.cols {", "col + 1u < p.cols {"),
    mutant("first row of x forgotten", "unembed_broadcast", "p.x_first + rows_hi", "rows_hi"),
    mutant(
        "padding multiplied with the next row",
        "unembed_broadcast",
        "let k = min(k0 + invocation, p.k - 1u);",
        "let k = k0 + invocation;",
    ),
    mutant("last token lost", "unembed_broadcast", "token + c < p.cols", "token + c + 1u < p.cols"),
    mutant(
        "two numbers swapped",
        "unembed_broadcast",
        "vec4<f32>(a[s], b[s], c[s], d[s])",
        "vec4<f32>(a[s - four * (s % 2u)], b[s], c[s], d[s])",
    ),
    mutant("padding multiplied with the next row", "unembed_few", "left(n, k + 4u * f)", "4u"),
    mutant("a quarter of the table twice", "unembed_few", "words_at(at + STEP / 4u * 3u)", "words_at(at + STEP / 2u)"),
    mutant(
        "gain dropped",
        "layer_norm_gradient",
        "total += dy[row.start + c] * gain[c];",
        "total += dy[row.start + c];",
    ),
    mutant("divisor held still", "layer_norm_gradient", "- normalized * along) / scale", ") / scale"),
    mutant("epsilon a tenth", "layer_norm_gradient", "mean, p.eps)", "mean, p.eps * 0.1)"),
    mutant("divisor held still", "layer_norm_gradient_broadcast", "- normalized * along) / scale", ") / scale"),
    mutant(
        "one invocation's sum for all",
        "layer_norm_gradient_broadcast",
        "return subgroupAdd(value);",
        "return value * 8.0;",
    ),
    mutant("mean not subtracted", "layer_norm_scale_gradient", "(x[row.start + c] - mean)", "x[row.start + c]"),
    mutant("divisor of the first row for all", "layer_norm_scale_gradient", "* scale[row.index])", "* scale[0])"),
    mutant(
        "mean not subtracted",
        "layer_norm_scale_gradient_broadcast",
        "(x[row.start + c] - mean)",
        "x[row.start + c]",
    ),
    mutant("sign", "layer_norm_normalize_scale_gradient", "-total / scale[row.index]", "total / scale[row.index]"),
    mutant(
        "sign",
        "layer_norm_normalize_scale_gradient_broadcast",
        "-total / scale[row.index]",
        "total / scale[row.index]",
    ),
    mutant(
        "sum left out",
        "layer_norm_normalize_scale_gradient_broadcast",
        "return subgroupAdd(value);",
        "return value;",
    ),
    mutant("gain of the next column", "gain_bias_gradient", "factors[i % p.cols]", "factors[(i + 1u) % p.cols]"),
    mutant("first head's columns for all", "linear_by_head_gradient", "k / p.head_dim * p.cols", "0u * p.cols"),
    mutant("last column lost", "linear_by_head_gradient", "min(first + 64u, p.cols)", "min(first + 64u, p.cols - 1u)"),
    mutant(
        "heads before rows",
        "sum_heads_gradient",
        "i / (p.n_head * p.cols) * p.cols",
        "i / p.cols % (p.n / p.n_head / p.cols) * p.cols",
    ),
    mutant(
        "slope of the cubic forgotten",
        "activation_gradient",
        "1.0 + 0.134145 * squares",
        "1.0 + 0.044715 * squares",
    ),
    mutant("density forgotten", "activation_gradient", "+ bounded * 0.39894228", "+ 0.0 * 0.39894228"),
    mutant(
        "a function for its slope",
        "activation_gradient",
        "return s + x * slope_of_y * s * sigmoid(-y);",
        "return x * s;",
    ),
    mutant(
        "softmax's own slope forgotten",
        "attention_pattern_gradient",
        "(dy[row.start + c] - total)",
        "dy[row.start + c]",
    ),
    mutant(
        "softmax's own slope forgotten",
        "attention_pattern_gradient_broadcast",
        "(dy[row.start + c] - total)",
        "dy[row.start + c]",
    ),
    mutant(
        "query and key swapped",
        "attention_mix",
        "query * p.query_step + key * p.key_step",
        "query * p.key_step + key * p.query_step",
    ),
    mutant("first column forgotten", "attention_mix", "* p.z_stride + p.z_col +", "* p.z_stride +"),
    mutant("scale forgotten", "attention_mix", "[c % 4u] * p.scale", "[c % 4u]"),
    mutant(
        "keys after the query seen",
        "attention_scores",
        "select(p.unseen, s[r][c] * p.scale,",
        "select(s[r][c] * p.scale, s[r][c] * p.scale,",
    ),
    mutant("masked scores scaled", "edit", "x[at] == -3.4028234663852886e38", "false"),
    mutant("factor forgotten", "edit", "x[at] * p.factor", "x[at]"),
    mutant("first column forgotten", "copy_window", "p.first_col + i % p.cols", "i % p.cols"),
    mutant("the first text's rows for all", "cache_append", "(text.q_row + row)", "(texts[0].q_row + row)"),
    mutant("last position left out", "cache_append", "row < text.n_query", "row + 1u < text.n_query"),
];

/// A fault with the default tile only, and one with all other tiles. Drivers may have such faults, and only autotuning
/// detects them.
pub static OF_TILES: [Mutant; 2] = [
    mutant(
        "wrong with the default tile",
        "linear",
        "finished(total[(4u * g + r) * FOURS + f][c]",
        "finished(total[(4u * g + r) * FOURS + f][c] * select(1.0, 1.001, SIDE_X == 16u && SIDE_Y == 16u && ROWS == 4u)",
    ),
    mutant(
        "wrong with other tiles",
        "linear",
        "finished(total[(4u * g + r) * FOURS + f][c]",
        "finished(total[(4u * g + r) * FOURS + f][c] * select(1.0, 1.001, SIDE_X != 16u || SIDE_Y != 16u || ROWS != 4u)",
    ),
];

/// The sums of products as one chain of fused multiply-adds each, which compilers may make of them. No faults: results
/// stay within the tolerance of every case.
pub static CONTRACTED: [Mutant; 8] = [
    mutant(
        "contracted",
        "linear_few",
        "(*total)[r * FOURS + f] += (a.x * b0 + a.y * b1) + (a.z * b2 + a.w * b3);",
        "(*total)[r * FOURS + f] = fma(vec4<f32>(a.w), b3, fma(vec4<f32>(a.z), b2, fma(vec4<f32>(a.y), b1, fma(vec4<f32>(a.x), b0, (*total)[r * FOURS + f]))));",
    ),
    mutant(
        "contracted",
        "linear_few_norm",
        "(*total)[r * FOURS + f] += (a.x * b0 + a.y * b1) + (a.z * b2 + a.w * b3);",
        "(*total)[r * FOURS + f] = fma(vec4<f32>(a.w), b3, fma(vec4<f32>(a.z), b2, fma(vec4<f32>(a.y), b1, fma(vec4<f32>(a.x), b0, (*total)[r * FOURS + f]))));",
    ),
    mutant(
        "contracted",
        "linear_broadcast",
        "(*sums)[r] += lo[r] * four;\n        (*sums)[4u + r] += hi[r] * four;",
        "(*sums)[r] = fma(vec4<f32>(lo[r]), four, (*sums)[r]);\n        (*sums)[4u + r] = fma(vec4<f32>(hi[r]), four, (*sums)[4u + r]);",
    ),
    mutant(
        "contracted",
        "unembed_few",
        "total[r] += (a0 + a1) + (a2 + a3);",
        "total[r] = fma(x_vec4(x_at + 3u * STEP, 4u), four_in(w3, f), fma(x_vec4(x_at + 2u * STEP, 4u), four_in(w2, f), fma(x_vec4(x_at + STEP, 4u), four_in(w1, f), a0 + total[r])));",
    ),
    mutant(
        "contracted",
        "attention",
        "(*s)[r] += vec2<f32>(dot(a, lo), dot(a, hi));",
        "(*s)[r] = fma(vec2<f32>(a.w), vec2<f32>(lo.w, hi.w), fma(vec2<f32>(a.z), vec2<f32>(lo.z, hi.z), fma(vec2<f32>(a.y), vec2<f32>(lo.y, hi.y), fma(vec2<f32>(a.x), vec2<f32>(lo.x, hi.x), (*s)[r]))));",
    ),
    mutant(
        "contracted",
        "attention_mix",
        "(*z)[2u * r] += weight * lo;\n            (*z)[2u * r + 1u] += weight * hi;",
        "(*z)[2u * r] = fma(vec4<f32>(weight), lo, (*z)[2u * r]);\n            (*z)[2u * r + 1u] = fma(vec4<f32>(weight), hi, (*z)[2u * r + 1u]);",
    ),
    mutant(
        "contracted",
        "attention_few",
        "sum[chunk] += weight * value[turn * CHUNKS + chunk];",
        "sum[chunk] = fma(vec4<f32>(weight), value[turn * CHUNKS + chunk], sum[chunk]);",
    ),
    mutant("contracted", "layer_norm", "squares += d * d;", "squares = fma(d, d, squares);"),
];

/// Faults that index outside of a kernel's memory. Most of them change no result, because nothing reads the memory that
/// they touch.
pub static OUTSIDE: [Mutant; 3] = [
    mutant("a value too many", "add", "if i < p.n {", "if i < p.n + 1u {"),
    mutant("rows beyond the last", "linear", "+ j, p.rows - 1u)", "+ j, p.rows)"),
    mutant("a slot too far", "linear", "w_tile[index + i * INVOCATIONS]", "w_tile[index + i * INVOCATIONS + 1u]"),
];

thread_local! {
    static INJECTED: Cell<Option<&'static Mutant>> = Cell::new(from_environment());
}

/// Injects a fault into the kernels that this thread compiles from now on. `None` ends the injection.
pub fn inject(mutant: Option<&'static Mutant>) {
    INJECTED.set(mutant);
}

/// The mutant that the environment variable `ACTSCOPE_MUTANT` names, as `kernel: name`, for every thread of the
/// process.
fn from_environment() -> Option<&'static Mutant> {
    let wanted = std::env::var("ACTSCOPE_MUTANT").ok()?;
    let is_it = |mutant: &&Mutant| wanted.split_once(": ") == Some((mutant.kernel, mutant.name));
    Some(ALL.iter().find(is_it).unwrap_or_else(|| panic!("no mutant {wanted:?}")))
}

/// True if this thread injects a fault into any kernel.
pub(super) fn is_injecting() -> bool {
    INJECTED.get().is_some()
}

/// True if this thread injects a fault into this kernel.
pub(super) fn is_injected(kernel: &str) -> bool {
    INJECTED.get().is_some_and(|mutant| mutant.kernel == kernel)
}

/// The text of a kernel, with the injected fault if there is one for it.
pub(super) fn applied(kernel: &str, text: String) -> String {
    let Some(mutant) = INJECTED.get().filter(|mutant| mutant.kernel == kernel) else { return text };
    assert_eq!(
        text.matches(mutant.find).count(),
        1,
        "{kernel}: {}: {:?} is not there exactly once",
        mutant.name,
        mutant.find
    );
    text.replace(mutant.find, mutant.put)
}
