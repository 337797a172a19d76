/* What follows a convolution in StyleGAN2's layers, pg_modules/styled_activation.py. Of x [N, P, C], P pixels with the
 * channels last,
 *
 *     u = (factors · x + weight · noise) gain + gain bias      factors [N, C], bias [C], noise [N, P] or none
 *     y = u, or LEAK u below zero, clipped to ±bound
 *
 * The gradients need x and y. Their sums over pixels are made in double, of `parts` parts of every sample, whatever the
 * number of threads. */
#define LEAK ((REAL)0.2)

void NAME(styled)(const REAL *x, const REAL *factors, const REAL *noise, double weight, const REAL *bias, double gain,
                  double bound, REAL *y, int64_t N, int64_t P, int64_t C, int threads)
{
    REAL by = (REAL)gain, most = (REAL)bound;
#pragma omp parallel for num_threads(threads)
    for (int64_t p = 0; p < N * P; p++) {
        const REAL *from = x + p * C, *f = factors + p / P * C;
        REAL drawn = noise ? (REAL)weight * noise[p] : (REAL)0, *restrict to = y + p * C;
#pragma omp simd
        for (int64_t c = 0; c < C; c++) {
            REAL u = (f[c] * from[c] + drawn) * by + bias[c] * by;
            u = u > 0 ? u : LEAK * u;
            to[c] = u > most ? most : u < -most ? -most : u;
        }
    }
}

/* of_x [N, P, C]; sums [N, parts, 2, C] for the factors and the bias; of_weight [N, parts]. */
void NAME(styled_backward)(const REAL *x, const REAL *factors, const REAL *noise, double gain, double bound,
                           const REAL *y, const REAL *of_y, REAL *of_x, double *sums, double *of_weight, int64_t N,
                           int64_t P, int64_t C, int64_t parts, int threads)
{
    REAL by = (REAL)gain, most = (REAL)bound;
#pragma omp parallel for num_threads(threads)
    for (int64_t k = 0; k < N * parts; k++) {
        int64_t sample = k / parts, part = k % parts;
        double *restrict of_factors = sums + 2 * k * C, *restrict of_bias = of_factors + C, of_noise = 0;
        const REAL *f = factors + sample * C;
        for (int64_t c = 0; c < 2 * C; c++)
            of_factors[c] = 0;
        for (int64_t p = sample * P + P * part / parts; p < sample * P + P * (part + 1) / parts; p++) {
            REAL *restrict to = of_x + p * C;
            double sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t c = 0; c < C; c++) {
                REAL out = y[p * C + c], slope = out > 0 ? by : LEAK * by;
                REAL g = out < most && out > -most ? of_y[p * C + c] * slope : (REAL)0;
                to[c] = g * f[c];
                of_factors[c] += (double)g * (double)x[p * C + c];
                of_bias[c] += (double)g;
                sum += (double)g;
            }
            of_noise += noise ? sum * (double)noise[p] : 0;
        }
        of_weight[k] = of_noise;
    }
}

#undef LEAK
