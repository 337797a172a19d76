/* Maps [N, H, W, C], with zeros outside. */

static const REAL NAME(nothing)[CHUNK];

/* The channels of a pixel from `start` on, at most CHUNK of them. */
static inline const REAL *NAME(pixel)(const REAL *maps, int64_t image, int64_t row, int64_t column, int64_t H,
                                      int64_t W, int64_t C, int64_t start)
{
    int inside = row >= 0 && row < H && column >= 0 && column < W;
    return inside ? maps + ((image * H + row) * W + column) * C + start : NAME(nothing);
}
