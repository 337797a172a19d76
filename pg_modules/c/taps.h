/* Kernels of products from the nine taps of a weight, and back: `matrix` is [K, 9], K <= 36. */

#define MOST 256 /* weights at once */

/* kernels [K, count] = matrix times the taps of weight [count, 9]. */
void NAME(kernels_of_taps)(const REAL *weight, const REAL *matrix, REAL *kernels, int64_t K, int64_t count, int threads)
{
#pragma omp parallel for num_threads(threads)
    for (int64_t start = 0; start < count; start += MOST) {
        int n = (int)smaller(MOST, count - start);
        REAL taps[9][MOST];
        for (int i = 0; i < n; i++)
            for (int j = 0; j < 9; j++)
                taps[j][i] = weight[(start + i) * 9 + j];
        for (int64_t k = 0; k < K; k++) {
            const REAL *m = matrix + 9 * k;
            REAL *restrict to = kernels + k * count + start;
#pragma omp simd
            for (int i = 0; i < n; i++)
                to[i] = m[0] * taps[0][i] + m[1] * taps[1][i] + m[2] * taps[2][i] + m[3] * taps[3][i] +
                        m[4] * taps[4][i] + m[5] * taps[5][i] + m[6] * taps[6][i] + m[7] * taps[7][i] +
                        m[8] * taps[8][i];
        }
    }
}

/* weight [count, 9] = kernels [K, count], transposed, times matrix: the way back of gradients. */
void NAME(taps_of_kernels)(const REAL *kernels, const REAL *matrix, REAL *weight, int64_t K, int64_t count, int threads)
{
#pragma omp parallel for num_threads(threads)
    for (int64_t start = 0; start < count; start += MOST) {
        int n = (int)smaller(MOST, count - start);
        REAL taps[9][MOST] = {{0}};
        for (int64_t k = 0; k < K; k++) {
            const REAL *from = kernels + k * count + start;
            for (int j = 0; j < 9; j++) {
                REAL factor = matrix[9 * k + j];
                if (factor == 0)
                    continue;
#pragma omp simd
                for (int i = 0; i < n; i++)
                    taps[j][i] += factor * from[i];
            }
        }
        for (int i = 0; i < n; i++)
            for (int j = 0; j < 9; j++)
                weight[(start + i) * 9 + j] = taps[j][i];
    }
}

#undef MOST
