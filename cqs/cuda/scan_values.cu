// What kernels have to know of numbers before they sum them: whether any is infinite or NaN, and whether any is large.
// It looks at their exponents alone, so the type does not matter, only WORD_BYTES: how wide it is.

#if WORD_BYTES == 2
typedef unsigned short Word;
#elif WORD_BYTES == 4
typedef unsigned int Word;
#else
typedef unsigned long long Word;
#endif

// Sets facts[0] to 1 if all bits of an element's exponent are set, and facts[1] if it is a number with an exponent of
// at least `large`. `exponent` has the bits of the exponent. Steps are in elements, and may be 0 or negative.
extern "C" __global__ void scan_values(
    const Word* values, long long n_matrices, long long n_rows, long long width,
    long long matrix_step, long long row_step, long long column_step,
    unsigned long long exponent, unsigned long long large, int* facts) {
    const long long n = n_matrices * n_rows * width, n_threads = (long long)gridDim.x * blockDim.x;
    bool is_infinite = false, is_large = false;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += n_threads) {
        const long long column = i % width, row = i / width % n_rows, matrix = i / width / n_rows;
        const Word bits = values[matrix * matrix_step + row * row_step + column * column_step] & (Word)exponent;
        if (bits == (Word)exponent)
            is_infinite = true;
        else if (bits >= (Word)large)
            is_large = true;
    }
    if (is_infinite) facts[0] = 1;  // all who write it write the same
    if (is_large) facts[1] = 1;
}
