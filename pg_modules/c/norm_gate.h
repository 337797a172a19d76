/* Noise, batch norm and the gated linear unit of pg_modules/norm_gate.py. Of x [N, P, 2 D], P pixels with the channels
 * last,
 *
 *     x' = x + weight · noise                       noise [N, P], or none
 *     u  = factors · (x' - mean) + biases           mean [2 D]; factors, biases [N, 2 D], or [2 D] where shared is 1
 *     y  = u[:D] · sigmoid(u[D:])                   [N, P, D]
 *
 * Sums over pixels are made in double, of `parts` parts of every sample, whatever the number of threads. */

/* 1 / (1 + exp(-x)), to the last digits but one: exp(r + k ln 2) by a polynomial of degree 13, |r| <= ln 2 / 2. */
static inline REAL NAME(sigmoid)(REAL x)
{
    const REAL most = sizeof(REAL) == 4 ? 87 : 700, magic = sizeof(REAL) == 4 ? 12582912.0 : 6755399441055744.0;
    REAL minus = x > most ? -most : x < -most ? most : -x;
    REAL k = (minus * (REAL)1.44269504088896340736 + magic) - magic; /* the nearest integer */
    REAL r = minus - k * (REAL)0.693145751953125 - k * (REAL)1.42860682030941723212e-6;
    REAL e = (REAL)(1.0 / 6227020800);
    e = e * r + (REAL)(1.0 / 479001600);
    e = e * r + (REAL)(1.0 / 39916800);
    e = e * r + (REAL)(1.0 / 3628800);
    e = e * r + (REAL)(1.0 / 362880);
    e = e * r + (REAL)(1.0 / 40320);
    e = e * r + (REAL)(1.0 / 5040);
    e = e * r + (REAL)(1.0 / 720);
    e = e * r + (REAL)(1.0 / 120);
    e = e * r + (REAL)(1.0 / 24);
    e = e * r + (REAL)(1.0 / 6);
    e = e * r + (REAL)0.5;
    e = e * r + 1;
    e = e * r + 1;
    union { REAL real; INT bits; } power;
    power.bits = ((INT)k + (sizeof(REAL) == 4 ? 127 : 1023)) << (sizeof(REAL) == 4 ? 23 : 52);
    return 1 / (1 + e * power.real);
}

#define DRAWN(p) (noise ? (REAL)weight * noise[p] : (REAL)0)

/* Of every part of every sample the sums of x' - x'[0, 0] and of their squares: sums [N, parts, 2, C]. */
void NAME(moments)(const REAL *x, const REAL *noise, double weight, double *sums, int64_t N, int64_t P, int64_t C,
                   int64_t parts, int threads)
{
    REAL first = DRAWN(0);
#pragma omp parallel for num_threads(threads)
    for (int64_t k = 0; k < N * parts; k++) {
        double *restrict sum = sums + 2 * k * C, *restrict squares = sum + C;
        int64_t sample = k / parts, part = k % parts;
        for (int64_t c = 0; c < 2 * C; c++)
            sum[c] = 0;
        for (int64_t p = sample * P + P * part / parts; p < sample * P + P * (part + 1) / parts; p++) {
            REAL drawn = DRAWN(p);
            const REAL *place = x + p * C;
#pragma omp simd
            for (int64_t c = 0; c < C; c++) {
                double away = (double)(place[c] + drawn) - (double)(x[c] + first);
                sum[c] += away;
                squares[c] += away * away;
            }
        }
    }
}

void NAME(norm_gate)(const REAL *x, const REAL *noise, double weight, const REAL *mean, const REAL *factors,
                     const REAL *biases, int64_t shared, REAL *y, int64_t N, int64_t P, int64_t D, int threads)
{
#pragma omp parallel for num_threads(threads)
    for (int64_t p = 0; p < N * P; p++) {
        int64_t sample = shared ? 0 : p / P;
        REAL drawn = DRAWN(p), *restrict place = y + p * D;
        const REAL *left = x + p * 2 * D, *right = left + D;
        const REAL *f = factors + sample * 2 * D, *b = biases + sample * 2 * D;
#pragma omp simd
        for (int64_t c = 0; c < D; c++) {
            REAL u = f[c] * (left[c] + drawn - mean[c]) + b[c];
            REAL v = f[D + c] * (right[c] + drawn - mean[D + c]) + b[D + c];
            place[c] = u * NAME(sigmoid)(v);
        }
    }
}

/* Of the gradient `of_y` that of u, as two vectors of a chunk, and x' - mean. */
static inline void NAME(gate_gradient)(const REAL *x, REAL drawn, const REAL *mean, const REAL *f, const REAL *b,
                                       const REAL *of_y, int64_t D, int n, REAL *restrict of_u, REAL *restrict of_v,
                                       REAL *restrict left, REAL *restrict right)
{
#pragma omp simd
    for (int c = 0; c < n; c++) {
        left[c] = x[c] + drawn - mean[c];
        right[c] = x[D + c] + drawn - mean[D + c];
        REAL gate = NAME(sigmoid)(f[D + c] * right[c] + b[D + c]);
        of_u[c] = of_y[c] * gate;
        of_v[c] = of_u[c] * (f[c] * left[c] + b[c]) * (1 - gate);
    }
}

/* Of every part of every sample the sums of the gradient of u, and of it times x' - mean: sums [N, parts, 2, 2 D]. */
void NAME(gate_sums)(const REAL *x, const REAL *noise, double weight, const REAL *mean, const REAL *factors,
                     const REAL *biases, int64_t shared, const REAL *of_y, double *sums, int64_t N, int64_t P, int64_t D,
                     int64_t parts, int threads)
{
#pragma omp parallel for num_threads(threads)
    for (int64_t k = 0; k < N * parts; k++) {
        double *sum = sums + 4 * k * D, *products = sum + 2 * D;
        int64_t sample = k / parts, part = k % parts, own = shared ? 0 : sample * 2 * D;
        for (int64_t c = 0; c < 4 * D; c++)
            sum[c] = 0;
        for (int64_t p = sample * P + P * part / parts; p < sample * P + P * (part + 1) / parts; p++)
            for (int64_t start = 0; start < D; start += CHUNK) {
                int n = (int)smaller(CHUNK, D - start);
                REAL of_u[CHUNK], of_v[CHUNK], left[CHUNK], right[CHUNK];
                NAME(gate_gradient)(x + p * 2 * D + start, DRAWN(p), mean + start, factors + own + start,
                                    biases + own + start, of_y + p * D + start, D, n, of_u, of_v, left, right);
                double *restrict s = sum + start, *restrict t = s + D;
                double *restrict q = products + start, *restrict r = q + D;
#pragma omp simd
                for (int c = 0; c < n; c++) {
                    s[c] += of_u[c];
                    t[c] += of_v[c];
                    q[c] += (double)(of_u[c] * left[c]);
                    r[c] += (double)(of_v[c] * right[c]);
                }
            }
    }
}

/* The gradient of x: factors · that of u, plus constants [2 D], plus slopes [2 D] · (x' - mean). And of every part of
 * every sample the sum of that times the noise: of_weight [N, parts], where there is noise. */
void NAME(gate_backward)(const REAL *x, const REAL *noise, double weight, const REAL *mean, const REAL *factors,
                         const REAL *biases, int64_t shared, const REAL *of_y, const REAL *constants, const REAL *slopes,
                         REAL *of_x, double *of_weight, int64_t N, int64_t P, int64_t D, int64_t parts, int threads)
{
#pragma omp parallel for num_threads(threads)
    for (int64_t k = 0; k < N * parts; k++) {
        int64_t sample = k / parts, part = k % parts, own = shared ? 0 : sample * 2 * D;
        double of_noise = 0;
        for (int64_t p = sample * P + P * part / parts; p < sample * P + P * (part + 1) / parts; p++) {
            REAL total = 0;
            for (int64_t start = 0; start < D; start += CHUNK) {
                int n = (int)smaller(CHUNK, D - start);
                REAL of_u[CHUNK], of_v[CHUNK], left[CHUNK], right[CHUNK];
                const REAL *f = factors + own + start, *constant = constants + start, *slope = slopes + start;
                NAME(gate_gradient)(x + p * 2 * D + start, DRAWN(p), mean + start, f, biases + own + start,
                                    of_y + p * D + start, D, n, of_u, of_v, left, right);
                REAL *restrict to = of_x + p * 2 * D + start;
#pragma omp simd reduction(+ : total)
                for (int c = 0; c < n; c++) {
                    to[c] = f[c] * of_u[c] + constant[c] + slope[c] * left[c];
                    to[D + c] = f[D + c] * of_v[c] + constant[D + c] + slope[D + c] * right[c];
                    total += to[c] + to[D + c];
                }
            }
            if (noise)
                of_noise += (double)total * noise[p];
        }
        if (noise)
            of_weight[k] = of_noise;
    }
}

#undef DRAWN
