/* Step 2 of pg_modules/upsample_products.py: around every other pixel i of an axis four outputs, 2i - 1 to 2i + 2, from
 * five products, two of x[i-1] - x[i], one of x[i], two of x[i+1] - x[i].
 *
 * Maps are [N, H, W, C] before the enlargement. Centres, (H/2 + 1) (W/2 + 1) of them per image, are counted over rows
 * and columns of all images; `first` to `end` of them are worked on. Terms and products of the input terms u of rows and
 * v of columns, 0 to 2, are table[3 u + v]. Of inputs they are [centres, C], of outputs [centres, a, b, C], where a is 2
 * for the first and last u, else 1, and b so for v. */


/* x[i-1] - x[i], x[i], x[i+1] - x[i] of rows and columns of x; zeros lie outside. */
void NAME(upsample_inputs)(const REAL *x, REAL *const terms[9], int64_t first, int64_t end, int64_t H, int64_t W,
                           int64_t C, int threads)
{
    int64_t rows = H / 2 + 1, columns = W / 2 + 1;
#pragma omp parallel for num_threads(threads)
    for (int64_t centre = first; centre < end; centre++) {
        int64_t image = centre / (rows * columns), row = centre / columns % rows * 2, column = centre % columns * 2;
        for (int64_t start = 0; start < C; start += CHUNK) {
            int n = (int)smaller(CHUNK, C - start);
            REAL of_rows[3][3][CHUNK];
            for (int v = 0; v < 3; v++) {
                const REAL *p[3];
                for (int u = 0; u < 3; u++) {
                    int64_t h = row - 1 + u, w = column - 1 + v;
                    int inside = h >= 0 && h < H && w >= 0 && w < W;
                    p[u] = inside ? x + ((image * H + h) * W + w) * C + start : NAME(nothing);
                }
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
void NAME(upsample_outputs)(REAL *const products[9], REAL *y, int64_t first, int64_t end, int64_t H, int64_t W,
                            int64_t C, int threads)
{
    int64_t rows = H / 2 + 1, columns = W / 2 + 1;
#pragma omp parallel for num_threads(threads)
    for (int64_t centre = first; centre < end; centre++) {
        int64_t image = centre / (rows * columns), top = centre / columns % rows * 4 - 1;
        int64_t left = centre % columns * 4 - 1, k = centre - first;
        for (int a = 0; a < 4; a++)
            for (int b = 0; b < 4; b++) {
                if (top + a < 0 || top + a >= 2 * H || left + b < 0 || left + b >= 2 * W)
                    continue;
                int u = a / 2 * 2, v = b / 2 * 2;
                const REAL *both = products[3 * u + v] + (4 * k + 2 * (a % 2) + b % 2) * C;
                const REAL *row = products[3 * u + 1] + (2 * k + a % 2) * C;
                const REAL *column = products[3 + v] + (2 * k + b % 2) * C, *own = products[4] + k * C;
                REAL *restrict place = y + ((image * 2 * H + top + a) * 2 * W + left + b) * C;
#pragma omp simd
                for (int64_t c = 0; c < C; c++)
                    place[c] = both[c] + row[c] + column[c] + own[c];
            }
    }
}

/* From the gradient g [N, 2H, 2W, C] of y that of the products: outputs' own, and their sums. */
void NAME(upsample_gradients)(const REAL *g, REAL *const terms[9], int64_t first, int64_t end, int64_t H, int64_t W,
                              int64_t C, int threads)
{
    int64_t rows = H / 2 + 1, columns = W / 2 + 1;
#pragma omp parallel for num_threads(threads)
    for (int64_t centre = first; centre < end; centre++) {
        int64_t image = centre / (rows * columns), top = centre / columns % rows * 4 - 1;
        int64_t left = centre % columns * 4 - 1, k = centre - first;
        for (int64_t start = 0; start < C; start += CHUNK) {
            int n = (int)smaller(CHUNK, C - start);
            REAL of_columns[4][CHUNK]; /* sums over rows */
            for (int b = 0; b < 4; b++)
                for (int c = 0; c < n; c++)
                    of_columns[b][c] = 0;
            for (int a = 0; a < 4; a++) {
                int u = a / 2 * 2;
                const REAL *p[4];
                for (int b = 0; b < 4; b++) {
                    int inside = top + a >= 0 && top + a < 2 * H && left + b >= 0 && left + b < 2 * W;
                    p[b] = inside ? g + ((image * 2 * H + top + a) * 2 * W + left + b) * C + start : NAME(nothing);
                }
                REAL *restrict first_two = terms[3 * u] + (4 * k + 2 * (a % 2)) * C + start;
                REAL *restrict last_two = terms[3 * u + 2] + (4 * k + 2 * (a % 2)) * C + start;
                REAL *restrict sums = terms[3 * u + 1] + (2 * k + a % 2) * C + start;
#pragma omp simd
                for (int c = 0; c < n; c++) {
                    first_two[c] = p[0][c];
                    first_two[C + c] = p[1][c];
                    last_two[c] = p[2][c];
                    last_two[C + c] = p[3][c];
                    sums[c] = (p[0][c] + p[1][c]) + (p[2][c] + p[3][c]);
                    of_columns[0][c] += p[0][c];
                    of_columns[1][c] += p[1][c];
                    of_columns[2][c] += p[2][c];
                    of_columns[3][c] += p[3][c];
                }
            }
            REAL *restrict first_two = terms[3] + 2 * k * C + start, *restrict last_two = terms[5] + 2 * k * C + start;
            REAL *restrict sums = terms[4] + k * C + start;
#pragma omp simd
            for (int c = 0; c < n; c++) {
                first_two[c] = of_columns[0][c];
                first_two[C + c] = of_columns[1][c];
                last_two[c] = of_columns[2][c];
                last_two[C + c] = of_columns[3][c];
                sums[c] = (of_columns[0][c] + of_columns[1][c]) + (of_columns[2][c] + of_columns[3][c]);
            }
        }
    }
}

/* Adds the gradients of the input terms to those of x, which overlap: threads share out channels. */
void NAME(upsample_scatter)(REAL *const terms[9], REAL *grad_x, int64_t first, int64_t end, int64_t H, int64_t W,
                            int64_t C, int threads)
{
    int64_t rows = H / 2 + 1, columns = W / 2 + 1, wide = 32;
#pragma omp parallel for num_threads(threads)
    for (int64_t start = 0; start < C; start += wide) {
        int n = (int)smaller(wide, C - start);
        for (int64_t centre = first; centre < end; centre++) {
            int64_t image = centre / (rows * columns), row = centre / columns % rows * 2, column = centre % columns * 2;
            int64_t place = (centre - first) * C + start;
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

