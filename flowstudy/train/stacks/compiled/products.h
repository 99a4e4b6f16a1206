/* Vectors, and the products of small matrices: a tile of the result at a time, which stays in registers. */

#include <stdint.h>

#define LANES 8 /* floats of a vector */
#ifdef __AVX512VL__
#define ROWS 6 /* of a product that stay in registers, by COLUMNS vectors: 18 of 32 registers, or 12 of 16 */
#else
#define ROWS 4
#endif
#define COLUMNS 3

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t mask __attribute__((vector_size(4 * LANES)));

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }
INLINE vec all(float x) { return x - (vec){0}; }
INLINE vec where(mask m, vec a, vec b) { return (vec)((m & (mask)a) | (~m & (mask)b)); }
INLINE vec *at(float *x) { return (vec *)x; }
INLINE vec read(const float *x) { return *(const vec *)x; }

enum start { ZERO, BIAS, ADD };

/* r rows and c vectors of: out = start + sum over k of a[row row_step + k inner_step] x[k, :] */
INLINE void tile(int r, int c, float *out, int64_t samples, const float *a, int64_t row_step, int64_t inner_step,
                 const float *x, int64_t inner, enum start start, const float *bias) {
    vec sum[ROWS][COLUMNS];
    UNROLL for (int i = 0; i < r; i++)
        UNROLL for (int j = 0; j < c; j++)
            sum[i][j] = start == BIAS ? all(bias[i]) : start == ADD ? read(out + i * samples + j * LANES) : all(0);
    for (int64_t k = 0; k < inner; k++) {
        vec of_x[COLUMNS];
        UNROLL for (int j = 0; j < c; j++) of_x[j] = read(x + k * samples + j * LANES);
        UNROLL for (int i = 0; i < r; i++) {
            vec factor = all(a[i * row_step + k * inner_step]);
            UNROLL for (int j = 0; j < c; j++) sum[i][j] += factor * of_x[j];
        }
    }
    UNROLL for (int i = 0; i < r; i++)
        UNROLL for (int j = 0; j < c; j++) *at(out + i * samples + j * LANES) = sum[i][j];
}

/* r rows and c vectors of inputs of: velocity = momentum velocity + delta x_transposed, weight += velocity */
INLINE void tile_of_update(int r, int c, float *weight, float *velocity, int64_t inputs, const float *delta,
                           int64_t samples, const float *x_transposed, int64_t batch, float momentum) {
    vec sum[ROWS][COLUMNS];
    UNROLL for (int i = 0; i < r; i++)
        UNROLL for (int j = 0; j < c; j++) sum[i][j] = all(0);
    for (int64_t s = 0; s < batch; s++) {
        vec of_x[COLUMNS];
        UNROLL for (int j = 0; j < c; j++) of_x[j] = read(x_transposed + s * inputs + j * LANES);
        UNROLL for (int i = 0; i < r; i++) {
            vec factor = all(delta[i * samples + s]);
            UNROLL for (int j = 0; j < c; j++) sum[i][j] += factor * of_x[j];
        }
    }
    UNROLL for (int i = 0; i < r; i++)
        UNROLL for (int j = 0; j < c; j++) {
            vec *v = at(velocity + i * inputs + j * LANES);
            *v = momentum * *v + sum[i][j];
            *at(weight + i * inputs + j * LANES) += *v;
        }
}

/* The sizes of a tile are constants to the compiler: CALL(r, c) for each. */
#if ROWS == 6
#define LAST_ROWS(c, CALL) case 5: CALL(5, c); break; case 6: CALL(6, c); break;
#else
#define LAST_ROWS(c, CALL)
#endif
#define EACH_ROWS(c, CALL) \
    switch (r) { case 1: CALL(1, c); break; case 2: CALL(2, c); break; case 3: CALL(3, c); break; \
                 case 4: CALL(4, c); break; LAST_ROWS(c, CALL) }
#define EACH_TILE(CALL) \
    switch (c) { case 1: EACH_ROWS(1, CALL) break; case 2: EACH_ROWS(2, CALL) break; case 3: EACH_ROWS(3, CALL) break; }

/* Of so many vectors that are left, those of the next tile: as even as can be. */
INLINE int64_t next(int64_t left) { int64_t tiles = (left + COLUMNS - 1) / COLUMNS; return (left + tiles - 1) / tiles; }

INLINE void product(float *out, const float *a, int64_t row_step, int64_t inner_step, const float *x, int64_t rows,
                    int64_t inner, int64_t samples, enum start start, const float *bias) {
    for (int64_t j = 0, c, vectors = samples / LANES; j < vectors; j += c) {
        c = next(vectors - j);
        for (int64_t i = 0, r; i < rows; i += r) {
            r = least(ROWS, rows - i);
#define CALL(R, C) tile(R, C, out + i * samples + j * LANES, samples, a + i * row_step, row_step, inner_step, \
                        x + j * LANES, inner, start, bias + i)
            EACH_TILE(CALL)
#undef CALL
        }
    }
}

static void weighted(float *out, const float *weight, const float *bias, const float *x, int64_t units, int64_t inputs,
                     int64_t samples) {
    product(out, weight, padded(inputs), 1, x, units, inputs, samples, BIAS, bias);
}

/* The gradient of the inputs: that of the weighted sums through the transposed weights. */
static void back(float *out, const float *weight, const float *delta, int64_t inputs, int64_t units, int64_t samples) {
    product(out, weight, 1, padded(inputs), delta, inputs, units, samples, ZERO, weight);
}

static void back_added(float *out, const float *weight, const float *delta, int64_t inputs, int64_t units,
                       int64_t samples) {
    product(out, weight, 1, padded(inputs), delta, inputs, units, samples, ADD, weight);
}

static void update(float *weight, float *velocity, float *bias, float *bias_velocity, const float *delta,
                   const float *x_transposed, int64_t units, int64_t inputs, int64_t batch, float momentum) {
    int64_t filled = padded(inputs), samples = padded(batch);
    for (int64_t i = 0, r; i < units; i += r) {
        r = least(ROWS, units - i);
        for (int64_t j = 0, c, vectors = filled / LANES; j < vectors; j += c) {
            c = next(vectors - j);
#define CALL(R, C) tile_of_update(R, C, weight + i * filled + j * LANES, velocity + i * filled + j * LANES, filled, \
                                  delta + i * samples, samples, x_transposed + j * LANES, batch, momentum)
            EACH_TILE(CALL)
#undef CALL
        }
    }
    for (int64_t i = 0; i < units; i++) {
        vec sum = all(0);
        for (int64_t s = 0; s < samples; s += LANES) sum += read(delta + i * samples + s);
        float total = 0;
        for (int l = 0; l < LANES; l++) total += sum[l];
        bias_velocity[i] = momentum * bias_velocity[i] + total;
        bias[i] += bias_velocity[i];
    }
}

