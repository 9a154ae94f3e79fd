// Products of many rows on adapters that multiply 8 x 8 matrices in f32 (on Metal, simdgroup matrices).
// One workgroup per tile of 64 x 64 results. It is four subgroups, each with 32 x 32 results in 4 x 4 matrices. x and w
// pass through workgroup memory 16 steps of k at a time, padded with zeros.
// SUBGROUP_SIZE, the number of invocations of a subgroup, is a generated constant. The sums are separate variables,
// because an array of them would be in memory and not in registers.
// The kernel includes lib/x_vec4.wgsl and lib/weight.wgsl, and declares `load_w`, which fills the tile of w, and
// `put_result`, which stores one result. Its file enables cooperative matrices.

alias Left = coop_mat8x8<f32, A>;
alias Right = coop_mat8x8<f32, B>;
alias Sum = coop_mat8x8<f32, C>;

// Rows in workgroup memory have 4 unused elements, so that the 8 rows of a matrix lie in different memory banks.
const X_STRIDE: u32 = 20u; // x [64][k 16]
const W_STRIDE: u32 = 68u; // w [k 16][64], and results [32][64]
const W_TILE: u32 = 64u * X_STRIDE;

var<workgroup> tile: array<f32, W_TILE + 16u * W_STRIDE>; // x and w, and later one half of the results at a time

fn put_four(at: u32, four: vec4<f32>) {
    tile[at] = four.x;
    tile[at + 1u] = four.y;
    tile[at + 2u] = four.z;
    tile[at + 3u] = four.w;
}

// A separate function, so that the arguments are computed before the call: naga 30 does not emit expressions inside
// coopStoreT.
fn put_sum(at: u32, c: Sum) {
    coopStoreT(c, &tile[at], W_STRIDE);
}

// Stores four matrices side by side.
fn put_sums(at: u32, c0: Sum, c1: Sum, c2: Sum, c3: Sum) {
    put_sum(at, c0);
    put_sum(at + 8u, c1);
    put_sum(at + 16u, c2);
    put_sum(at + 24u, c3);
}

// Stores rows first_row .. first_row + 16 and first_row + 32 .. first_row + 48 of y.
fn store_half(index: u32, first_row: u32, first_col: u32, part: u32) {
    for (var i = index; i < 32u * 64u; i += 4u * SUBGROUP_SIZE) {
        let row = first_row + 32u * (i / 1024u) + i / 64u % 16u;
        let col = first_col + i % 64u;
        if row < p.rows && col < p.cols {
            put_result(tile[i / 64u * W_STRIDE + i % 64u], row, col, part);
        }
    }
}

// The tile of the results of part `part`, which sums n steps of k. Row 0 of x begins at index x_first, and the part at
// row or column k_first of w.
fn multiply_tile(tile_row: u32, tile_col: u32, x_first: u32, k_first: u32, n: u32, part: u32, index: u32, subgroup: u32) {
    // The subgroup's quarter of the tile. The remainder keeps it within the tile even if there are more than four
    // subgroups.
    let my_row = 32u * (subgroup / 2u % 2u);
    let my_col = 32u * (subgroup % 2u);

    // Loads zeros from memory, because drivers do not reliably initialize a matrix variable with zeros.
    for (var i = index; i < 64u; i += 4u * SUBGROUP_SIZE) {
        tile[i] = 0.0;
    }
    workgroupBarrier();
    let zero = coopLoadT<Sum>(&tile[0], 8u);
    var c00 = zero; var c01 = zero; var c02 = zero; var c03 = zero;
    var c10 = zero; var c11 = zero; var c12 = zero; var c13 = zero;
    var c20 = zero; var c21 = zero; var c22 = zero; var c23 = zero;
    var c30 = zero; var c31 = zero; var c32 = zero; var c33 = zero;
    workgroupBarrier();

    for (var k0 = 0u; k0 < n; k0 += 16u) {
        for (var i = index; i < 64u * 4u; i += 4u * SUBGROUP_SIZE) {
            let row = tile_row + i / 4u;
            let k = k0 + 4u * (i % 4u);
            var four = vec4<f32>();
            if row < p.rows && k < n {
                four = x_vec4(x_first + row * p.x_stride + k, n - k);
            }
            put_four(i / 4u * X_STRIDE + 4u * (i % 4u), four);
        }
        load_w(tile_col, k_first, k0, n, index);
        workgroupBarrier();

        for (var k = 0u; k < 16u; k += 8u) {
            let w_at = W_TILE + k * W_STRIDE + my_col;
            let b0 = coopLoadT<Right>(&tile[w_at], W_STRIDE);
            let b1 = coopLoadT<Right>(&tile[w_at + 8u], W_STRIDE);
            let b2 = coopLoadT<Right>(&tile[w_at + 16u], W_STRIDE);
            let b3 = coopLoadT<Right>(&tile[w_at + 24u], W_STRIDE);
            let x_at = my_row * X_STRIDE + k;
            let a0 = coopLoadT<Left>(&tile[x_at], X_STRIDE);
            let a1 = coopLoadT<Left>(&tile[x_at + 8u * X_STRIDE], X_STRIDE);
            let a2 = coopLoadT<Left>(&tile[x_at + 16u * X_STRIDE], X_STRIDE);
            let a3 = coopLoadT<Left>(&tile[x_at + 24u * X_STRIDE], X_STRIDE);
            c00 = coopMultiplyAdd(a0, b0, c00);
            c01 = coopMultiplyAdd(a0, b1, c01);
            c02 = coopMultiplyAdd(a0, b2, c02);
            c03 = coopMultiplyAdd(a0, b3, c03);
            c10 = coopMultiplyAdd(a1, b0, c10);
            c11 = coopMultiplyAdd(a1, b1, c11);
            c12 = coopMultiplyAdd(a1, b2, c12);
            c13 = coopMultiplyAdd(a1, b3, c13);
            c20 = coopMultiplyAdd(a2, b0, c20);
            c21 = coopMultiplyAdd(a2, b1, c21);
            c22 = coopMultiplyAdd(a2, b2, c22);
            c23 = coopMultiplyAdd(a2, b3, c23);
            c30 = coopMultiplyAdd(a3, b0, c30);
            c31 = coopMultiplyAdd(a3, b1, c31);
            c32 = coopMultiplyAdd(a3, b2, c32);
            c33 = coopMultiplyAdd(a3, b3, c33);
        }
        workgroupBarrier();
    }

    let at = my_row / 2u * W_STRIDE + my_col;
    put_sums(at, c00, c01, c02, c03);
    put_sums(at + 8u * W_STRIDE, c10, c11, c12, c13);
    workgroupBarrier();
    store_half(index, tile_row, tile_col, part);
    workgroupBarrier();
    put_sums(at, c20, c21, c22, c23);
    put_sums(at + 8u * W_STRIDE, c30, c31, c32, c33);
    workgroupBarrier();
    store_half(index, tile_row + 16u, tile_col, part);
}
