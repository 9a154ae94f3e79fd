// The last step of a product before a sum is stored. The override EPILOGUE chooses it. The kernel declares `bias`,
// `added` and `p` (has_bias), and includes lib/activation.wgsl.

override EPILOGUE: u32 = 0u; // 0: nothing, 1: adds `added`, 2 and above: activation function EPILOGUE - 2

// `col` is the column of the bias. `at` is the index in y and in `added`.
fn epilogue(sum: f32, col: u32, at: u32) -> f32 {
    return finished(sum + bias_of(col), at);
}

fn bias_of(col: u32) -> f32 {
    if p.has_bias != 0u {
        return bias[col];
    }
    return 0.0;
}

// The rest of the epilogue, after the bias.
fn finished(sum: f32, at: u32) -> f32 {
    if EPILOGUE == 1u {
        return added[at] + sum;
    }
    if EPILOGUE >= 2u {
        return activate(EPILOGUE - 2u, sum);
    }
    return sum;
}
