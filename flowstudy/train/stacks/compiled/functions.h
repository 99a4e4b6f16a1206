/* Activations of a vector of numbers and their derivatives; nan stays nan. */

#include <math.h>

enum activation { RELU, TANH, SIGMOID, LINEAR, GELU, HARD_TANH, ERF };

/* Cephes' polynomial for exp(r), |r| <= ln(2) / 2, and the power of two in two factors, as it may be 2^128. */
INLINE vec exponential(vec x) {
    x = where(x < -87.33654f, all(-87.33654f), x);
    x = where(x > 88.72283f, all(88.72283f), x);
    vec n = (x * 1.44269504f + 12582912.0f) - 12582912.0f; /* to a whole number: beyond 1.5 2^23 there are no others */
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    mask power = __builtin_convertvector(n, mask), half = power >> 1;
    return p * (vec)((half + 127) << 23) * (vec)((power - half + 127) << 23);
}

INLINE vec sigmoid(vec x) { return 1.0f / (1.0f + exponential(-x)); }

/* Cephes' polynomial where |x| < 0.625, the exponential elsewhere. */
INLINE vec hyperbolic_tangent(vec x) {
    vec size = (vec)((mask)x & 0x7fffffff), square = x * x;
    vec p = all(-5.70498872745e-3f);
    p = p * square + 2.06390887954e-2f;
    p = p * square - 5.37397155531e-2f;
    p = p * square + 1.33314422036e-1f;
    p = p * square - 3.33332819422e-1f;
    vec large = 1.0f - 2.0f / (exponential(2.0f * size) + 1.0f);
    large = (vec)((mask)large | ((mask)x & (mask)all(-0.0f)));
    return where(size < 0.625f, p * square * x + x, large);
}

INLINE vec error_function(vec x) {
    vec y;
    for (int l = 0; l < LANES; l++) y[l] = erff(x[l]);
    return y;
}

/* f(pre-activation), and its derivative there. */
INLINE vec activate(enum activation activation, vec pre, vec *slope) {
    vec h;
    switch (activation) {
    case RELU: h = where(pre < 0.0f, all(0), pre); *slope = where(h <= 0.0f, all(0), all(1)); return h;
    case TANH: h = hyperbolic_tangent(pre); *slope = 1.0f - h * h; return h;
    case SIGMOID: h = sigmoid(pre); *slope = h * (1.0f - h); return h;
    case HARD_TANH:
        h = where(pre < -1.0f, all(-1), where(pre > 1.0f, all(1), pre));
        *slope = where((pre <= -1.0f) | (pre >= 1.0f), all(0), all(1));
        return h;
    case GELU:
        h = 0.5f * (1.0f + error_function(pre * 0.70710678f));
        *slope = h + pre * 0.39894228f * exponential(-0.5f * pre * pre);
        return pre * h;
    case ERF: *slope = 1.12837917f * exponential(-pre * pre); return error_function(pre);
    default: *slope = all(1); return pre;
    }
}

#define EACH_ACTIVATION(CALL) \
    switch (activation) { case RELU: CALL(RELU); break; case TANH: CALL(TANH); break; \
                          case SIGMOID: CALL(SIGMOID); break; case LINEAR: CALL(LINEAR); break; \
                          case GELU: CALL(GELU); break; case HARD_TANH: CALL(HARD_TANH); break; \
                          case ERF: CALL(ERF); break; }

/* f and its derivative at `count` numbers, a multiple of LANES. */
void activations(int64_t activation, const float *pre, float *h, float *slope, int64_t count) {
    for (int64_t i = 0; i < count; i += LANES) {
#define CALL(A) *at(h + i) = activate(A, read(pre + i), at(slope + i))
        EACH_ACTIVATION(CALL)
#undef CALL
    }
}

