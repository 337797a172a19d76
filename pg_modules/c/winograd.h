/* F(4×4, 3×3): what pg_modules/winograd_sums.py has along one axis, here on both.
 *
 * Maps are [N, H, W, C]; tiles of 4×4 pixels are counted over rows and columns of all images, `first` to `end` of them
 * are worked on. Their 36 numbers lie apart: [6, 6, end - first, C]. */

#define SQRT2 ((REAL)1.41421356237309504880)
#define SQRT_HALF ((REAL)0.70710678118654752440)

static inline void NAME(of_inputs)(const REAL *const x[6], REAL *t, int64_t apart, int n)
{
    const REAL *x0 = x[0], *x1 = x[1], *x2 = x[2], *x3 = x[3], *x4 = x[4], *x5 = x[5];
    REAL *restrict t0 = t, *restrict t1 = t + apart, *restrict t2 = t + 2 * apart;
    REAL *restrict t3 = t + 3 * apart, *restrict t4 = t + 4 * apart, *restrict t5 = t + 5 * apart;
#pragma omp simd
    for (int c = 0; c < n; c++) {
        REAL near = x4[c] - 2 * x2[c], near_odd = SQRT_HALF * (x3[c] - 2 * x1[c]);
        REAL far = x4[c] - x2[c] / 2, far_odd = SQRT2 * (x3[c] - x1[c] / 2);
        t0[c] = x0[c] - (REAL)2.5 * x2[c] + x4[c];
        t1[c] = near + near_odd;
        t2[c] = near - near_odd;
        t3[c] = far + far_odd;
        t4[c] = far - far_odd;
        t5[c] = x1[c] - (REAL)2.5 * x3[c] + x5[c];
    }
}

static inline void NAME(outputs)(const REAL *p, int64_t apart, REAL *const y[4], int n)
{
    const REAL *p0 = p, *p1 = p + apart, *p2 = p + 2 * apart, *p3 = p + 3 * apart, *p4 = p + 4 * apart;
    const REAL *p5 = p + 5 * apart;
    REAL *restrict y0 = y[0], *restrict y1 = y[1], *restrict y2 = y[2], *restrict y3 = y[3];
#pragma omp simd
    for (int c = 0; c < n; c++) {
        REAL near = p1[c] + p2[c], near_odd = p1[c] - p2[c], far = p3[c] + p4[c], far_odd = p3[c] - p4[c];
        y0[c] = p0[c] + SQRT2 * near + SQRT_HALF * far;
        y1[c] = near_odd + far_odd;
        y2[c] = SQRT_HALF * near + SQRT2 * far;
        y3[c] = near_odd / 2 + 2 * far_odd + p5[c];
    }
}

static inline void NAME(of_gradients)(const REAL *const g[4], REAL *t, int64_t apart, int n)
{
    const REAL *g0 = g[0], *g1 = g[1], *g2 = g[2], *g3 = g[3];
    REAL *restrict t0 = t, *restrict t1 = t + apart, *restrict t2 = t + 2 * apart;
    REAL *restrict t3 = t + 3 * apart, *restrict t4 = t + 4 * apart, *restrict t5 = t + 5 * apart;
#pragma omp simd
    for (int c = 0; c < n; c++) {
        REAL near = g0[c] + g2[c] / 2, near_odd = SQRT_HALF * (g1[c] + g3[c] / 2);
        REAL far = g0[c] + 2 * g2[c], far_odd = SQRT2 * (g1[c] + 2 * g3[c]);
        t0[c] = g0[c];
        t1[c] = near + near_odd;
        t2[c] = near - near_odd;
        t3[c] = far + far_odd;
        t4[c] = far - far_odd;
        t5[c] = g3[c];
    }
}

/* Bᵀ x B of x [N, H, W, C]; zeros lie outside. */
void NAME(winograd_inputs)(const REAL *x, REAL *terms, int64_t first, int64_t end, int64_t H, int64_t W, int64_t C,
                           int threads)
{
    int64_t rows = (H + 3) / 4, columns = (W + 3) / 4, apart = (end - first) * C;
#pragma omp parallel for num_threads(threads)
    for (int64_t tile = first; tile < end; tile++) {
        int64_t image = tile / (rows * columns), top = tile / columns % rows * 4 - 1, left = tile % columns * 4 - 1;
        for (int64_t start = 0; start < C; start += CHUNK) {
            int n = (int)smaller(CHUNK, C - start);
            REAL of_rows[6][6][CHUNK]; /* by rows of the result and columns of x */
            for (int j = 0; j < 6; j++) {
                const REAL *column[6];
                for (int i = 0; i < 6; i++)
                    column[i] = NAME(pixel)(x, image, top + i, left + j, H, W, C, start);
                NAME(of_inputs)(column, of_rows[0][j], 6 * CHUNK, n);
            }
            for (int i = 0; i < 6; i++) {
                const REAL *row[6];
                for (int j = 0; j < 6; j++)
                    row[j] = of_rows[i][j];
                NAME(of_inputs)(row, terms + 6 * i * apart + (tile - first) * C + start, apart, n);
            }
        }
    }
}

/* Aᵀ p A of products, to y [N, H, W, C]. */
void NAME(winograd_outputs)(const REAL *products, REAL *y, int64_t first, int64_t end, int64_t H, int64_t W, int64_t C,
                            int threads)
{
    int64_t rows = (H + 3) / 4, columns = (W + 3) / 4, apart = (end - first) * C;
#pragma omp parallel for num_threads(threads)
    for (int64_t tile = first; tile < end; tile++) {
        int64_t image = tile / (rows * columns), top = tile / columns % rows * 4, left = tile % columns * 4;
        for (int64_t start = 0; start < C; start += CHUNK) {
            int n = (int)smaller(CHUNK, C - start);
            REAL of_rows[4][6][CHUNK], beyond[4][CHUNK];
            for (int j = 0; j < 6; j++) {
                REAL *column[4];
                for (int i = 0; i < 4; i++)
                    column[i] = of_rows[i][j];
                NAME(outputs)(products + j * apart + (tile - first) * C + start, 6 * apart, column, n);
            }
            for (int i = 0; i < 4; i++) {
                REAL *row[4];
                for (int j = 0; j < 4; j++) {
                    int inside = top + i < H && left + j < W;
                    row[j] = inside ? y + ((image * H + top + i) * W + left + j) * C + start : beyond[j];
                }
                NAME(outputs)(of_rows[i][0], CHUNK, row, n);
            }
        }
    }
}

/* S A g Aᵀ S of the gradient g [N, H, W, C] of y, S of √½ and √2 as in pg_modules/winograd_sums.py. */
void NAME(winograd_gradients)(const REAL *g, REAL *terms, int64_t first, int64_t end, int64_t H, int64_t W, int64_t C,
                              int threads)
{
    int64_t rows = (H + 3) / 4, columns = (W + 3) / 4, apart = (end - first) * C;
#pragma omp parallel for num_threads(threads)
    for (int64_t tile = first; tile < end; tile++) {
        int64_t image = tile / (rows * columns), top = tile / columns % rows * 4, left = tile % columns * 4;
        for (int64_t start = 0; start < C; start += CHUNK) {
            int n = (int)smaller(CHUNK, C - start);
            REAL of_rows[6][4][CHUNK];
            for (int j = 0; j < 4; j++) {
                const REAL *column[4];
                for (int i = 0; i < 4; i++)
                    column[i] = NAME(pixel)(g, image, top + i, left + j, H, W, C, start);
                NAME(of_gradients)(column, of_rows[0][j], 4 * CHUNK, n);
            }
            for (int i = 0; i < 6; i++) {
                const REAL *row[4];
                for (int j = 0; j < 4; j++)
                    row[j] = of_rows[i][j];
                NAME(of_gradients)(row, terms + 6 * i * apart + (tile - first) * C + start, apart, n);
            }
        }
    }
}

#undef SQRT2
#undef SQRT_HALF
