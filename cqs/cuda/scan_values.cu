// What kernels have to know of numbers before they sum them: whether any is infinite or NaN, and whether any is large.
// It looks at their exponents alone, so the type does not matter, only WORD_BYTES: how wide it is.

#if WORD_BYTES == 2
typedef unsigned short Word;
#elif WORD_BYTES == 4
typedef unsigned int Word;
#else
typedef unsigned long long Word;
#endif

// What a thread reads at a time, where elements are adjacent.
struct __align__(16) Sixteen { Word words[16 / sizeof(Word)]; };

// Sets facts[0] to 1 if all bits of an element's exponent are set, and facts[1] if it is a number with an exponent of
// at least `large`. `exponent` has the bits of the exponent. Steps are in elements, and may be 0 or negative.
extern "C" __global__ void scan_values(
    const Word* values, long long n_matrices, long long n_rows, long long width,
    long long matrix_step, long long row_step, long long column_step,
    unsigned long long exponent, unsigned long long large, int* facts) {
    const long long n_threads = (long long)gridDim.x * blockDim.x, wide = 16 / sizeof(Word);
    const long long first = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    bool is_infinite = false, is_large = false;
    const auto look = [&](Word word) {
        const Word bits = word & (Word)exponent;
        if (bits == (Word)exponent)
            is_infinite = true;
        else if (bits >= (Word)large)
            is_large = true;
    };
    if (row_step == width * column_step) width *= n_rows, row_step *= n_rows, n_rows = 1;  // rows follow each other
    const bool is_adjacent = column_step == 1 && (unsigned long long)values % 16 == 0 && width % wide == 0 &&
                             row_step % wide == 0 && matrix_step % wide == 0;
    if (is_adjacent) {
        const long long n_columns = width / wide;
        for (long long i = first; i < n_matrices * n_rows * n_columns; i += n_threads) {
            const long long column = i % n_columns, row = i / n_columns % n_rows, matrix = i / n_columns / n_rows;
            const Sixteen found = *(const Sixteen*)(values + matrix * matrix_step + row * row_step + column * wide);
            for (int n = 0; n < wide; ++n) look(found.words[n]);
        }
    } else {
        for (long long i = first; i < n_matrices * n_rows * width; i += n_threads) {
            const long long column = i % width, row = i / width % n_rows, matrix = i / width / n_rows;
            look(values[matrix * matrix_step + row * row_step + column * column_step]);
        }
    }
    if (is_infinite) facts[0] = 1;  // all who write it write the same
    if (is_large) facts[1] = 1;
}
