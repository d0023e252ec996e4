// What the gemm kernel does between its two matrix products: the softmax of a block of scores, with a running maximum.
//
// REAL, float or double, is the type of scores and sums. A call has heads x rows x columns scores, which stand row by
// row, `pitch` apart: a multiple of 16 bytes, of which those after the last column may hold anything. All parameters
// that count or step are long long, in elements. `facts` is what scan_values found: whether some value is infinite or
// NaN, and whether some are so large that sums of them might overflow; then weights are made smaller by `factor`.
//
// What a row sees of the columns is one of: all (bounds and bits are null); those from bounds[row] up to, and without,
// bounds[n_rows + row]; those whose bit is set, the lowest of a byte first, in rows of `bits_pitch` bytes.

constexpr int N_PACKED = 16 / sizeof(REAL);

struct alignas(16) Packed {  // what a thread loads at once
    REAL at[N_PACKED];
};

struct Seen {  // by one row
    int first, last;
    const unsigned char* bits;

    __device__ bool operator()(int column) const {
        const bool is_within = column >= first && column < last;
        return is_within && (bits == nullptr || (bits[column >> 3] >> (column & 7) & 1));
    }
};

__device__ Seen seen_by(
    long long row, long long n_rows, long long n_columns, const int* bounds, const unsigned char* bits,
    long long bits_pitch) {
    if (bounds != nullptr) return Seen{bounds[row], bounds[n_rows + row], nullptr};
    return Seen{0, (int)n_columns, bits == nullptr ? nullptr : bits + row * bits_pitch};
}

__device__ REAL minus_infinity() { return -(REAL)__int_as_float(0x7f800000); }

struct Larger {
    __device__ REAL operator()(REAL a, REAL b) const { return fmax(a, b); }  // passes over NaN: the sum shows it
};

struct Sum {
    __device__ REAL operator()(REAL a, REAL b) const { return a + b; }
};

// Combines a number of each thread of the block, in one order always; every thread gets the result.
template <typename Operation>
__device__ REAL over_block(REAL own, Operation combine) {
    __shared__ REAL of_warp[32];
    for (int step = 16; step > 0; step /= 2) own = combine(own, __shfl_xor_sync(0xffffffffu, own, step));
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = own;
    __syncthreads();
    REAL all = of_warp[0];
    for (int warp = 1; warp < (int)blockDim.x / 32; ++warp) all = combine(all, of_warp[warp]);
    __syncthreads();  // before of_warp is written again
    return all;
}

// One block of threads to a row. Turns scores s into weights exp(s - m), 0 where the row does not see, m being the
// largest score that the row has seen so far; brings what was summed up before, in `total` and in the row of `out`, to
// the same m; and keeps the row of `out` in `hold` for repair_values, where that is not null and may be needed.
extern "C" __global__ void softmax_block(
    REAL* scores, long long pitch, long long n_rows, long long n_columns,
    REAL* top, REAL* total,
    REAL* out, long long out_step, long long width, REAL* hold,
    const int* bounds, const unsigned char* bits, long long bits_pitch,
    const int* facts, REAL factor, long long is_first) {
    const long long index = blockIdx.x, head = index / n_rows, row = index % n_rows;
    const Seen sees = seen_by(row, n_rows, n_columns, bounds, bits, bits_pitch);
    Packed* own = (Packed*)(scores + index * pitch);
    const int n_packed = ((int)n_columns + N_PACKED - 1) / N_PACKED;

    REAL largest = minus_infinity();
    const int n_up_to = (sees.last + N_PACKED - 1) / N_PACKED;
    for (int p = sees.first / N_PACKED + threadIdx.x; p < n_up_to; p += blockDim.x) {
        const Packed four = own[p];
        for (int i = 0; i < N_PACKED; ++i)
            if (sees(p * N_PACKED + i)) largest = fmax(largest, four.at[i]);
    }
    largest = over_block(largest, Larger());

    const REAL old_top = is_first ? minus_infinity() : top[index];
    const REAL new_top = fmax(old_top, largest);
    const REAL shift = new_top == minus_infinity() ? (REAL)0 : new_top;  // -inf - -inf would be NaN
    const REAL scale = facts[1] ? factor : (REAL)1;
    REAL sum = 0;
    for (int p = threadIdx.x; p < n_packed; p += blockDim.x) {
        Packed four = own[p];
        for (int i = 0; i < N_PACKED; ++i) {
            const REAL weight = sees(p * N_PACKED + i) ? exp(four.at[i] - shift) : (REAL)0;
            sum += weight;
            four.at[i] = weight * scale;
        }
        own[p] = four;
    }
    sum = over_block(sum, Sum());

    const REAL rescale = old_top == new_top ? (REAL)1 : exp(old_top - new_top);
    REAL* sums = out + head * out_step + row * width;
    if (!is_first && rescale != 1)
        for (int e = threadIdx.x; e < width; e += blockDim.x) sums[e] *= rescale;
    if (hold != nullptr && facts[0])
        for (int e = threadIdx.x; e < width; e += blockDim.x) hold[index * width + e] = is_first ? (REAL)0 : sums[e];
    if (threadIdx.x == 0) {
        top[index] = new_top;
        total[index] = (is_first ? (REAL)0 : total[index] * rescale) + sum;
    }
}

// After the product of weights and values, where some value is infinite or NaN and rows do not see all columns: a
// weight of 0 times infinity is NaN, in rows that must not notice. Each element of `out` that is not finite is summed
// again, from what it was before the product and from what its row sees. Matrices are numbered alike in all arrays.
extern "C" __global__ void repair_values(
    const REAL* weights, long long weights_step, long long pitch, long long n_matrices, long long n_rows,
    long long n_columns,
    const REAL* values, long long values_step, long long values_pitch,
    REAL* out, long long out_step, long long width, const REAL* hold, long long hold_step,
    const int* bounds, const unsigned char* bits, long long bits_pitch,
    const int* facts) {
    if (!facts[0]) return;
    for (long long index = blockIdx.x; index < n_matrices * n_rows; index += gridDim.x) {
        const long long matrix = index / n_rows, row = index % n_rows;
        const Seen sees = seen_by(row, n_rows, n_columns, bounds, bits, bits_pitch);
        const REAL* own = weights + matrix * weights_step + row * pitch;
        for (int e = threadIdx.x; e < width; e += blockDim.x) {
            REAL* sum = out + matrix * out_step + row * width + e;
            if (isfinite(*sum)) continue;
            REAL again = hold[matrix * hold_step + row * width + e];
            const REAL* value = values + matrix * values_step + e;
            for (int column = sees.first; column < sees.last; ++column)
                if (sees(column)) again += own[column] * value[column * values_pitch];
            *sum = again;
        }
    }
}

// One block of threads to a row: divides the sums by the weights' total, and writes the log-sum-exp.
extern "C" __global__ void finish_rows(
    REAL* out, long long out_step, long long width, const REAL* top, const REAL* total,
    REAL* lse, long long lse_step, long long n_rows, const int* facts, REAL factor) {
    const long long index = blockIdx.x, head = index / n_rows, row = index % n_rows;
    const REAL divisor = total[index] == 0 ? (REAL)1 : total[index];  // of a row that saw nothing
    const REAL scaled = facts[1] ? divisor * factor : divisor;
    REAL* sums = out + head * out_step + row * width;
    for (int e = threadIdx.x; e < width; e += blockDim.x) sums[e] /= scaled;
    if (threadIdx.x == 0)
        lse[head * lse_step + row] = total[index] == 0 ? minus_infinity() : top[index] + log(divisor);
}
