// What becomes of a sum of products before it is stored, chosen when the pipeline is made. The kernel declares `bias`,
// `added` and `p` (has_bias), and names lib/activation.wgsl.

override EPILOGUE: u32 = 0u; // 0 nothing, 1 `added` joins it, 2 and above: activation function EPILOGUE - 2

// `col` is the column of the bias, `at` the place in y, which is that in `added` too.
fn epilogue(sum: f32, col: u32, at: u32) -> f32 {
    var result = sum;
    if p.has_bias != 0u {
        result += bias[col];
    }
    if EPILOGUE == 1u {
        return added[at] + result;
    }
    if EPILOGUE >= 2u {
        return activate(EPILOGUE - 2u, result);
    }
    return result;
}
