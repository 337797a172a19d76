/* pg_modules/upsample_products.py with step 1 or 2: around every step-th pixel i of an axis 2 step outputs, from
 * 2 step + 1 products, the first ones of x[i-1] - x[i], one of x[i], the last ones of x[i+1] - x[i].
 *
 * Maps are [N, H, W, C] before the enlargement. Centres i are counted over rows and columns of all images; `first` to
 * `end` of them are worked on. Terms and products of the input terms u of rows and v of columns, 0 to 2, are
 * table[3 u + v]. Of inputs they are [centres, C], of outputs [centres, a, b, C], where a is `step` for the first and
 * last u, else 1, and b so for v. */

#ifndef CENTRES
#define CENTRES(side) (step == 1 ? (side) : (side) / 2 + 1)
#endif

/* x[i-1] - x[i], x[i], x[i+1] - x[i] of rows and columns of x; zeros lie outside. */
void NAME(upsample_inputs)(REAL *const terms[9], const REAL *x, int64_t step, int64_t first, int64_t end, int64_t H,
                           int64_t W, int64_t C, int threads)
{
    int64_t rows = CENTRES(H), columns = CENTRES(W);
#pragma omp parallel for num_threads(threads)
    for (int64_t centre = first; centre < end; centre++) {
        int64_t image = centre / (rows * columns);
        int64_t row = centre / columns % rows * step, column = centre % columns * step;
        for (int64_t start = 0; start < C; start += CHUNK) {
            int n = (int)smaller(CHUNK, C - start);
            REAL of_rows[3][3][CHUNK];
            for (int v = 0; v < 3; v++) {
                const REAL *p[3];
                for (int u = 0; u < 3; u++)
                    p[u] = NAME(pixel)(x, image, row - 1 + u, column - 1 + v, H, W, C, start);
                for (int c = 0; c < n; c++) {
                    of_rows[0][v][c] = p[0][c] - p[1][c];
                    of_rows[1][v][c] = p[1][c];
                    of_rows[2][v][c] = p[2][c] - p[1][c];
                }
            }
            for (int u = 0; u < 3; u++) {
                int64_t place = (centre - first) * C + start;
                REAL *restrict left = terms[3 * u] + place, *restrict own = terms[3 * u + 1] + place;
                REAL *restrict right = terms[3 * u + 2] + place;
#pragma omp simd
                for (int c = 0; c < n; c++) {
                    left[c] = of_rows[u][0][c] - of_rows[u][1][c];
                    own[c] = of_rows[u][1][c];
                    right[c] = of_rows[u][2][c] - of_rows[u][1][c];
                }
            }
        }
    }
}

/* The four outputs of rows and columns around every centre, to y [N, 2H, 2W, C]. */
void NAME(upsample_outputs)(REAL *const products[9], REAL *y, int64_t step, int64_t first, int64_t end, int64_t H,
                            int64_t W, int64_t C, int threads)
{
    int64_t rows = CENTRES(H), columns = CENTRES(W);
#pragma omp parallel for num_threads(threads)
    for (int64_t centre = first; centre < end; centre++) {
        int64_t image = centre / (rows * columns), top = centre / columns % rows * 2 * step + 1 - step;
        int64_t left = centre % columns * 2 * step + 1 - step, k = centre - first;
        for (int64_t a = 0; a < 2 * step; a++)
            for (int64_t b = 0; b < 2 * step; b++) {
                if (top + a < 0 || top + a >= 2 * H || left + b < 0 || left + b >= 2 * W)
                    continue;
                int64_t u = a / step * 2, v = b / step * 2, of_row = a % step, of_column = b % step;
                const REAL *both = products[3 * u + v] + ((k * step + of_row) * step + of_column) * C;
                const REAL *row = products[3 * u + 1] + (k * step + of_row) * C;
                const REAL *column = products[3 + v] + (k * step + of_column) * C, *own = products[4] + k * C;
                REAL *restrict place = y + ((image * 2 * H + top + a) * 2 * W + left + b) * C;
#pragma omp simd
                for (int64_t c = 0; c < C; c++)
                    place[c] = both[c] + row[c] + column[c] + own[c];
            }
    }
}

/* own = p, sums += p, of_columns += p; sums start with p where `fresh`. */
static inline void NAME(share)(const REAL *p, REAL *restrict own, REAL *restrict sums, REAL *restrict of_columns,
                               int fresh, int n)
{
#pragma omp simd
    for (int c = 0; c < n; c++) {
        REAL value = p[c];
        own[c] = value;
        sums[c] = fresh ? value : sums[c] + value;
        of_columns[c] += value;
    }
}

/* From the gradient g [N, 2H, 2W, C] of y that of the products: outputs' own, and their sums. */
void NAME(upsample_gradients)(REAL *const terms[9], const REAL *g, int64_t step, int64_t first, int64_t end, int64_t H,
                              int64_t W, int64_t C, int threads)
{
    int64_t rows = CENTRES(H), columns = CENTRES(W);
#pragma omp parallel for num_threads(threads)
    for (int64_t centre = first; centre < end; centre++) {
        int64_t image = centre / (rows * columns), top = centre / columns % rows * 2 * step + 1 - step;
        int64_t left = centre % columns * 2 * step + 1 - step, k = centre - first;
        for (int64_t start = 0; start < C; start += CHUNK) {
            int n = (int)smaller(CHUNK, C - start);
            REAL of_columns[4][CHUNK] = {{0}}, spare[CHUNK] = {0}; /* sums over rows */
            for (int64_t a = 0; a < 2 * step; a++) {
                int64_t u = a / step * 2;
                REAL *sums = terms[3 * u + 1] + (k * step + a % step) * C + start;
                for (int64_t b = 0; b < 2 * step; b++) {
                    const REAL *p = NAME(pixel)(g, image, top + a, left + b, 2 * H, 2 * W, C, start);
                    REAL *own = terms[3 * u + b / step * 2] + ((k * step + a % step) * step + b % step) * C + start;
                    NAME(share)(p, own, sums, of_columns[b], b == 0, n);
                }
            }
            for (int64_t b = 0; b < 2 * step; b++) {
                REAL *own = terms[3 + b / step * 2] + (k * step + b % step) * C + start;
                NAME(share)(of_columns[b], own, terms[4] + k * C + start, spare, b == 0, n);
            }
        }
    }
}

/* Adds the gradients of the input terms to those of x, which overlap: threads share out channels. */
void NAME(upsample_scatter)(REAL *const terms[9], REAL *grad_x, int64_t step, int64_t first, int64_t end, int64_t H,
                            int64_t W, int64_t C, int threads)
{
    int64_t rows = CENTRES(H), columns = CENTRES(W), wide = 32;
#pragma omp parallel for num_threads(threads)
    for (int64_t start = 0; start < C; start += wide) {
        int n = (int)smaller(wide, C - start);
        for (int64_t centre = first; centre < end; centre++) {
            int64_t image = centre / (rows * columns), place = (centre - first) * C + start;
            int64_t row = centre / columns % rows * step, column = centre % columns * step;
            for (int u = 0; u < 3; u++)
                for (int v = 0; v < 3; v++) {
                    int64_t h = row - 1 + u, w = column - 1 + v;
                    if (h < 0 || h >= H || w < 0 || w >= W)
                        continue;
                    REAL *restrict to = grad_x + ((image * H + h) * W + w) * C + start;
                    const REAL *t = terms[3 * u + v] + place;
                    const REAL *before = terms[v] + place, *after = terms[6 + v] + place;
                    const REAL *left = terms[3 * u] + place, *right = terms[3 * u + 2] + place;
                    if (u != 1 && v != 1) {
#pragma omp simd
                        for (int c = 0; c < n; c++)
                            to[c] += t[c];
                    } else if (v != 1) { /* its row's terms have it with the opposite sign */
#pragma omp simd
                        for (int c = 0; c < n; c++)
                            to[c] += t[c] - before[c] - after[c];
                    } else if (u != 1) {
#pragma omp simd
                        for (int c = 0; c < n; c++)
                            to[c] += t[c] - left[c] - right[c];
                    } else {
                        const REAL *top_left = terms[0] + place, *top_right = terms[2] + place;
                        const REAL *low_left = terms[6] + place, *low_right = terms[8] + place;
#pragma omp simd
                        for (int c = 0; c < n; c++)
                            to[c] += t[c] - before[c] - after[c] - left[c] - right[c] +
                                     ((top_left[c] + top_right[c]) + (low_left[c] + low_right[c]));
                    }
                }
        }
    }
}

