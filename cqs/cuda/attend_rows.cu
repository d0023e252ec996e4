// Attention of single rows, for those that another kernel made NaN or infinite: a key that a row does not see may have
// done that, since 0 times infinity is NaN. Slow and rare.
//
// Queries, keys and values are 16-bit numbers, EXPONENT_BITS of which are their exponent's: 5 for float16, 8 for
// bfloat16. All steps are in elements. Nothing is done unless facts[0] is set: scan_values found no value for it then.

typedef unsigned short Word;

struct Matrices {  // of 16-bit numbers: entries x heads x rows x columns
    const Word* first;
    long long entry_step, head_step, row_step;

    __device__ const Word* row(long long entry, long long head, long long row) const {
        return first + entry * entry_step + head * head_step + row * row_step;
    }
};

__device__ float number(Word bits) {
#if EXPONENT_BITS == 8
    return __int_as_float((int)bits << 16);
#else
    const int sign = (bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023;
    if (exponent == 31) return __int_as_float(sign | 0x7f800000 | fraction << 13);
    if (exponent == 0) return (sign ? -1.0f : 1.0f) * (float)fraction / 16777216.0f;
    return __int_as_float(sign | (exponent + 112) << 23 | fraction << 13);
#endif
}

// Combines a number of each thread of the block, in one order always; every thread gets the result.
__device__ float over_block(float own, bool is_sum) {
    __shared__ float of_thread[1024];
    of_thread[threadIdx.x] = own;
    __syncthreads();
    float all = of_thread[0];
    for (int i = 1; i < (int)blockDim.x; ++i) all = is_sum ? all + of_thread[i] : fmax(all, of_thread[i]);
    __syncthreads();  // before of_thread is written again
    return all;
}

__device__ float score(const Word* q, long long q_step, const Word* k, long long k_step, long long width, float scale) {
    float sum = 0;
    for (long long i = 0; i < width; ++i) sum += number(q[i * q_step]) * number(k[i * k_step]);
    return sum * scale;
}

// A block of threads goes from row to row. Row r sees the columns from r on if `is_left`, else from 0 on; up to
// r + n_columns - n_rows if `is_right`, else all after. `shared` heads of queries and results have a head of keys.
extern "C" __global__ void attend_rows(
    const Word* q, long long q_entry, long long q_head, long long q_row, long long q_column,
    const Word* k, long long k_entry, long long k_head, long long k_row, long long k_column,
    const Word* v, long long v_entry, long long v_head, long long v_row, long long v_column,
    float* out, long long out_entry, long long out_head, long long out_row,
    float* lse, long long lse_entry, long long lse_head,
    long long n_entries, long long n_heads, long long shared, long long n_rows, long long n_columns, long long width,
    long long value_width, float scale, long long is_left, long long is_right, const int* facts) {
    if (!facts[0]) return;
    __shared__ float weights[1024];
    const Matrices queries{q, q_entry, q_head, q_row}, keys{k, k_entry, k_head, k_row},
        values{v, v_entry, v_head, v_row};
    const int thread = threadIdx.x, n_threads = blockDim.x;
    for (long long i = blockIdx.x; i < n_entries * n_heads * n_rows; i += gridDim.x) {
        const long long row = i % n_rows, head = i / n_rows % n_heads, entry = i / n_rows / n_heads;
        float* own_out = out + entry * out_entry + head * out_head + row * out_row;
        float* own_lse = lse + entry * lse_entry + head * lse_head + row;
        bool is_finite = isfinite(*own_lse);
        for (long long e = thread; e < value_width; e += n_threads) is_finite = is_finite && isfinite(own_out[e]);
        if (over_block(is_finite ? 0.0f : 1.0f, true) == 0) continue;

        const long long first = is_left ? row : 0, last = is_right ? row + n_columns - n_rows + 1 : n_columns;
        const Word* query = queries.row(entry, head, row);
        float top = -__int_as_float(0x7f800000);
        for (long long c = first + thread; c < last; c += n_threads)
            top = fmax(top, score(query, q_column, keys.row(entry, head / shared, c), k_column, width, scale));
        top = over_block(top, false);
        const float shift = top == -__int_as_float(0x7f800000) ? 0 : top;
        float total = 0;
        for (long long c = first + thread; c < last; c += n_threads)
            total += exp(score(query, q_column, keys.row(entry, head / shared, c), k_column, width, scale) - shift);
        total = over_block(total, true);

        for (long long e = thread; e - thread < value_width; e += n_threads) {
            float sum = 0;
            for (long long start = first; start < last; start += n_threads) {
                const long long c = start + thread;
                __syncthreads();  // before weights is written again
                if (c < last) {
                    const Word* key = keys.row(entry, head / shared, c);
                    weights[thread] = exp(score(query, q_column, key, k_column, width, scale) - shift);
                    weights[thread] /= total == 0 ? 1 : total;  // here, since a sum of large values might overflow
                }
                __syncthreads();
                for (long long j = 0; e < value_width && j < n_threads && start + j < last; ++j)
                    sum += weights[j] * number(values.row(entry, head / shared, start + j)[e * v_column]);
            }
            if (e < value_width) own_out[e] = sum;
        }
        if (thread == 0) *own_lse = total == 0 ? -__int_as_float(0x7f800000) : shift + log(total);
    }
}
