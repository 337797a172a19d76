/* What pg_modules and ldm/sampling_unet.py do around matrix products and in normalisation and activation, each in one or
 * two passes over maps with the channels last. Every kernel exists for float (…_f) and double (…_d).
 *
 * Python passes sizes as int64_t and the number of threads. Results don't depend on that number. */
#include <math.h>
#include <stdint.h>

/* Channels that are worked on at once: what lies between two steps stays in the first cache. */
#define CHUNK 64

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

#define REAL float
#define INT int32_t
#define NAME(name) name##_f
#include "all.h"
#undef REAL
#undef INT
#undef NAME

#define REAL double
#define INT int64_t
#define NAME(name) name##_d
#include "all.h"
