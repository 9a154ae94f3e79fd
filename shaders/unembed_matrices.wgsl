// y = x . wᵀ for many rows, on adapters that multiply 8 x 8 matrices in f32. Both x and w are row-major along k.
// One workgroup per tile of 64 x 64 results. It is four subgroups with 32 x 32 results each (see linear_matrices.wgsl).
// x and w pass through workgroup memory 16 steps of k at a time, padded with zeros. SUBGROUP_SIZE, the number of
// invocations of a subgroup, is a generated constant.
enable wgpu_cooperative_matrix;

struct Params {
    rows: u32,
    k: u32,
    cols: u32,     // tokens in this part of the vocabulary
    x_stride: u32, // columns of x
    x_first: u32,  // index in x of the first row
    w_stride: u32, // elements from the start of one row of w to the next
    y_stride: u32, // columns of y
    y_first: u32,  // index in y of the result
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;  // x [T, k]
@group(0) @binding(2) var<storage, read> w: array<vec4<u32>>;  // w [cols, w_stride], as lib/weight.wgsl packs it
@group(0) @binding(3) var<storage, read_write> y: array<f32>;  // y [T, y_stride]

alias Left = coop_mat8x8<f32, A>;
alias Right = coop_mat8x8<f32, B>;
alias Sum = coop_mat8x8<f32, C>;

// Rows in workgroup memory have 4 unused elements, so that the 8 rows of a matrix lie in different memory banks.
const K_STRIDE: u32 = 20u; // x [64][k 16], w [token 64][k 16]
const Y_STRIDE: u32 = 68u; // results [32][64]
const W_TILE: u32 = 64u * K_STRIDE;

var<workgroup> tile: array<f32, W_TILE + 64u * K_STRIDE>; // x and w, and later one half of the results at a time

fn put_four(at: u32, four: vec4<f32>) {
    tile[at] = four.x;
    tile[at + 1u] = four.y;
    tile[at + 2u] = four.z;
    tile[at + 3u] = four.w;
}

// A function of its own, so that the arguments are already computed: naga 30 does not emit the expressions inside a
// store.
fn put_sum(at: u32, c: Sum) {
    coopStoreT(c, &tile[at], Y_STRIDE);
}

// Stores four matrices side by side.
fn put_sums(at: u32, c0: Sum, c1: Sum, c2: Sum, c3: Sum) {
    put_sum(at, c0);
    put_sum(at + 8u, c1);
    put_sum(at + 16u, c2);
    put_sum(at + 24u, c3);
}

// Stores rows first_row .. first_row + 16 and first_row + 32 .. first_row + 48 of y.
fn store_half(index: u32, first_row: u32, first_col: u32) {
    for (var i = index; i < 32u * 64u; i += 4u * SUBGROUP_SIZE) {
        let row = first_row + 32u * (i / 1024u) + i / 64u % 16u;
        let col = first_col + i % 64u;
        if row < p.rows && col < p.cols {
            y[p.y_first + row * p.y_stride + col] = tile[i / 64u * Y_STRIDE + i % 64u];
        }
    }
}

@compute @workgroup_size(4u * SUBGROUP_SIZE)
fn unembed_matrices(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) index: u32, @builtin(subgroup_id) subgroup: u32) {
    let tile_row = wg.y * 64u;
    let tile_col = wg.x * 64u;
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

    for (var k0 = 0u; k0 < p.k; k0 += 16u) {
        for (var i = index; i < 64u * 4u; i += 4u * SUBGROUP_SIZE) {
            let row = tile_row + i / 4u;
            let k = k0 + 4u * (i % 4u);
            var four = vec4<f32>();
            if row < p.rows && k < p.k {
                four = x4(p.x_first + row * p.x_stride + k, p.k - k);
            }
            put_four(i / 4u * K_STRIDE + 4u * (i % 4u), four);
        }
        for (var i = index; i < 64u * 4u; i += 4u * SUBGROUP_SIZE) {
            let col = tile_col + i / 4u;
            let k = k0 + 4u * (i % 4u);
            var four = vec4<f32>();
            if col < p.cols && k < p.w_stride {
                four = weight4((col * p.w_stride + k) / 4u);
            }
            put_four(W_TILE + i / 4u * K_STRIDE + 4u * (i % 4u), four);
        }
        workgroupBarrier();

        for (var k = 0u; k < 16u; k += 8u) {
            // The elements of a token are a column of the right side, so this loads column-major.
            let w_at = W_TILE + my_col * K_STRIDE + k;
            let b0 = coopLoad<Right>(&tile[w_at], K_STRIDE);
            let b1 = coopLoad<Right>(&tile[w_at + 8u * K_STRIDE], K_STRIDE);
            let b2 = coopLoad<Right>(&tile[w_at + 16u * K_STRIDE], K_STRIDE);
            let b3 = coopLoad<Right>(&tile[w_at + 24u * K_STRIDE], K_STRIDE);
            let x_at = my_row * K_STRIDE + k;
            let a0 = coopLoadT<Left>(&tile[x_at], K_STRIDE);
            let a1 = coopLoadT<Left>(&tile[x_at + 8u * K_STRIDE], K_STRIDE);
            let a2 = coopLoadT<Left>(&tile[x_at + 16u * K_STRIDE], K_STRIDE);
            let a3 = coopLoadT<Left>(&tile[x_at + 24u * K_STRIDE], K_STRIDE);
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

    let at = my_row / 2u * Y_STRIDE + my_col;
    put_sums(at, c00, c01, c02, c03);
    put_sums(at + 8u * Y_STRIDE, c10, c11, c12, c13);
    workgroupBarrier();
    store_half(index, tile_row, tile_col);
    workgroupBarrier();
    put_sums(at, c20, c21, c22, c23);
    put_sums(at + 8u * Y_STRIDE, c30, c31, c32, c33);
    workgroupBarrier();
    store_half(index, tile_row + 16u, tile_col);
}
