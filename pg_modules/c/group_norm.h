/* Group norm of maps x [N, P, C], P pixels with the channels last, and swish where it is wanted, as of ldm/unet.py:
 *
 *     u = weight · (x - mean) / sqrt(variance + eps) + bias        weight, bias [C]
 *     y = u, or u · sigmoid(u)
 *
 * Mean and variance are of every `size` (at most CHUNK) channels of a sample, summed up in double. */
void NAME(group_norm)(const REAL *x, const REAL *weight, const REAL *bias, double eps, int64_t swish, REAL *y,
                      int64_t N, int64_t P, int64_t C, int64_t size, int threads)
{
    int64_t step = CHUNK / size * size, chunks = (C + step - 1) / step;
#pragma omp parallel for num_threads(threads)
    for (int64_t k = 0; k < N * chunks; k++) {
        int64_t start = k % chunks * step, place = k / chunks * P * C + start;
        int n = (int)smaller(step, C - start);
        const REAL *from = x + place;
        double sums[CHUNK] = {0}, squares[CHUNK] = {0};
        REAL centre[CHUNK], factor[CHUNK];
        for (int64_t p = 0; p < P; p++) {
#pragma omp simd
            for (int c = 0; c < n; c++) {
                double away = (double)from[p * C + c] - (double)from[c];
                sums[c] += away;
                squares[c] += away * away;
            }
        }
        for (int first = 0; first < n; first += (int)size) {
            double mean = 0, variance = 0;
            for (int c = first; c < first + size; c++)
                mean += (from[c] + sums[c] / P) / size;
            for (int c = first; c < first + size; c++) {
                double away = sums[c] / P, from_mean = from[c] + away - mean;
                variance += (squares[c] / P - away * away + from_mean * from_mean) / size;
            }
            for (int c = first; c < first + size; c++) {
                centre[c] = (REAL)mean;
                factor[c] = (REAL)(weight[start + c] / sqrt((variance > 0 ? variance : 0) + eps));
            }
        }
        for (int64_t p = 0; p < P; p++) {
            REAL *restrict to = y + place + p * C;
            if (swish) {
#pragma omp simd
                for (int c = 0; c < n; c++) {
                    REAL u = factor[c] * (from[p * C + c] - centre[c]) + bias[start + c];
                    to[c] = u * NAME(sigmoid)(u);
                }
            } else {
#pragma omp simd
                for (int c = 0; c < n; c++)
                    to[c] = factor[c] * (from[p * C + c] - centre[c]) + bias[start + c];
            }
        }
    }
}
