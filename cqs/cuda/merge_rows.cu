// Merges partial results, each into a total: of a row, the mean of both outputs, weighted by their shares of the
// exponentials' sum, and that sum's logarithm. See `cqs.partial.merge`, whose formula this is.
//
// REAL, float or double, is the type of all numbers. Steps are in elements, and may be 0 or negative. A warp takes a row
// at a time: all its threads read both log-sum-exps before the first of them writes the merged one.

extern "C" __global__ void merge_rows(
    REAL* __restrict__ out, long long out_matrix, long long out_row, long long out_column,
    REAL* __restrict__ lse, long long lse_matrix, long long lse_row,
    const REAL* __restrict__ part, long long part_matrix, long long part_row, long long part_column,
    const REAL* __restrict__ part_lse, long long part_lse_matrix, long long part_lse_row,
    long long n_matrices, long long n_rows, long long width) {
    const long long lane = threadIdx.x % 32, n_warps = (long long)gridDim.x * blockDim.x / 32;
    for (long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) / 32; i < n_matrices * n_rows; i += n_warps) {
        const long long matrix = i / n_rows, row = i % n_rows;
        REAL* merged = lse + matrix * lse_matrix + row * lse_row;
        const REAL a = *merged, b = part_lse[matrix * part_lse_matrix + row * part_lse_row];
        const REAL top = a != a || a > b ? a : b;  // NaN, if either is
        const REAL shift = top == -(REAL)__int_as_float(0x7f800000) ? (REAL)0 : top;  // neither side saw a key
        const REAL share_a = exp(a - shift), share_b = exp(b - shift), sum = share_a + share_b;
        const REAL divisor = sum < 1 ? (REAL)1 : sum;  // in [1, 2]; or NaN, as sum
        const REAL weight_a = share_a / divisor, weight_b = share_b / divisor;
        REAL* total = out + matrix * out_matrix + row * out_row;
        const REAL* own = part + matrix * part_matrix + row * part_row;
        for (long long column = lane; column < width; column += 32) {
            REAL* sums = total + column * out_column;
            *sums = *sums * weight_a + own[column * part_column] * weight_b;
        }
        __syncwarp();
        if (lane == 0) *merged = top + log(divisor);
    }
}
