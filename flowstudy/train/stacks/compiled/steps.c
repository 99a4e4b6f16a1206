/* Training steps of one fully connected net on one processor core, and its loss; `nets.py` calls it.

   Values of a layer are arrays (unit, sample) of `samples` columns, a multiple of LANES: the columns past the batch
   repeat its first sample with weight 0, so that they bring in no number that the batch has not.  Weights are arrays
   (unit, input) whose rows are filled up with zeros to a multiple of LANES.  All arrays are aligned to a vector.
   The numbers depend on the arguments alone: every sum is taken in one order. */

#include <string.h>

#include "products.h"
#include "functions.h"

#define EVALUATED 48 /* samples of a forward pass whose loss is taken */

enum join { PLAIN, RESIDUAL, HIGHWAY }; /* y = H, y = x + H, y = x + T (H - x); the first layer is always plain */

struct net {
    int64_t features, width, classes, layers, activation, join, batch; /* `layers`: hidden ones */
    const int64_t *weights_at, *biases_at; /* of each layer and of the read-out, in floats from the net's first one */
};

int64_t lanes(void) { return LANES; }
int64_t evaluated(void) { return EVALUATED; }

/* --- a layer ----------------------------------------------------------------------------------------------------- */

/* What a layer keeps, (unit, sample) each: its output y and, for the way back, by what dy is multiplied to give the
   gradients of H's and T's pre-activations and of the part of x that is carried past H. */
struct kept { float *out, *of_h, *of_t, *carried; };

INLINE void join(enum activation activation, enum join joins, int way_back, const float *pre, const float *x,
                 struct kept k, int64_t count) {
    for (int64_t i = 0; i < count; i += LANES) {
        vec slope, h = activate(activation, read(pre + i), &slope);
        if (joins == HIGHWAY) {
            vec gate = sigmoid(read(pre + count + i)), change = h - read(x + i);
            *at(k.out + i) = read(x + i) + gate * change;
            if (!way_back) continue;
            *at(k.of_h + i) = gate * slope;
            *at(k.of_t + i) = change * gate * (1.0f - gate);
            *at(k.carried + i) = 1.0f - gate;
        } else {
            *at(k.out + i) = joins == RESIDUAL ? read(x + i) + h : h;
            if (way_back) *at(k.of_h + i) = slope;
        }
    }
}

#define JOIN(A, J) way_back ? join(A, J, 1, pre, x, k, count) : join(A, J, 0, pre, x, k, count)
static void join_as(enum activation activation, enum join joins, int way_back, const float *pre, const float *x,
                    struct kept k, int64_t count) {
#define CALL(A) joins == PLAIN ? (JOIN(A, PLAIN)) : joins == RESIDUAL ? (JOIN(A, RESIDUAL)) : (JOIN(A, HIGHWAY))
    EACH_ACTIVATION(CALL)
#undef CALL
}

/* The gradient of y becomes those of the pre-activations, and of the carried part of x. */
INLINE void separate(enum join joins, float *gradient, float *delta, struct kept k, int64_t count) {
    for (int64_t i = 0; i < count; i += LANES) {
        vec g = read(gradient + i);
        *at(delta + i) = g * read(k.of_h + i);
        if (joins == HIGHWAY) {
            *at(delta + count + i) = g * read(k.of_t + i);
            *at(gradient + i) = g * read(k.carried + i);
        }
    }
}

/* --- a net ------------------------------------------------------------------------------------------------------- */

struct buffers { float *x, *x_transposed, *inputs_transposed, *pre, *gradient, *logits, *kept; };

static int64_t kept_size(const struct net *n) { return 4 * n->width * padded(n->batch); }

static struct buffers buffers_of(const struct net *n, float *scratch) {
    int64_t s = padded(n->batch);
    struct buffers b;
    b.x = scratch;
    b.x_transposed = b.x + n->features * s;
    b.inputs_transposed = b.x_transposed + s * padded(n->features);
    b.pre = b.inputs_transposed + s * padded(n->width);
    b.gradient = b.pre + 2 * n->width * s;
    b.logits = b.gradient + n->width * s;
    b.kept = b.logits + n->classes * s;
    return b;
}

/* In floats, which must be 0 at first: steps, or (`layers` 2) the loss. */
int64_t scratch_size(const struct net *n, int64_t layers) {
    return buffers_of(n, 0).kept - (float *)0 + layers * kept_size(n);
}

static struct kept kept_of(const struct net *n, struct buffers b, int64_t layer) {
    int64_t count = n->width * padded(n->batch);
    float *first = b.kept + layer * kept_size(n);
    return (struct kept){first, first + count, first + 2 * count, first + 3 * count};
}

/* (row, column) to (column, row); `from` and `to` are the lengths of a row of each. */
static void transpose(const float *x, int64_t rows, int64_t columns, int64_t from, float *out, int64_t to) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++) out[j * to + i] = x[i * from + j];
}

/* Samples index[0..count), both ways round; the first fills up. */
static void gather(const struct net *n, struct buffers b, const float *x, const int64_t *index, int64_t count) {
    int64_t samples = padded(n->batch), filled = padded(n->features);
    for (int64_t s = 0; s < samples; s++)
        memcpy(b.x_transposed + s * filled, x + index[s < count ? s : 0] * n->features, n->features * sizeof(float));
    transpose(b.x_transposed, samples, n->features, filled, b.x, samples);
}

/* Each layer keeps what it has for a way back; without one, two layers take turns. */
static void forward(const struct net *n, const float *p, struct buffers b, int way_back) {
    int64_t samples = padded(n->batch), inputs = n->features;
    const float *x = b.x;
    for (int64_t l = 0; l < n->layers; l++, inputs = n->width) {
        enum join joins = l ? n->join : PLAIN;
        struct kept k = kept_of(n, b, way_back ? l : l % 2);
        weighted(b.pre, p + n->weights_at[l], p + n->biases_at[l], x, (joins == HIGHWAY ? 2 : 1) * n->width, inputs,
                 samples);
        join_as(n->activation, joins, way_back, b.pre, x, k, n->width * samples);
        x = k.out;
    }
    weighted(b.logits, p + n->weights_at[n->layers], p + n->biases_at[n->layers], x, n->classes, n->width, samples);
}

/* A vector of samples: its logits become exp(logit - largest); returns their sum. */
INLINE vec exponentials(float *logits, int64_t classes, int64_t samples, vec *largest) {
    vec total = all(0), most = read(logits);
    for (int64_t c = 1; c < classes; c++) {
        vec logit = read(logits + c * samples);
        most = where(logit > most, logit, most);
    }
    for (int64_t c = 0; c < classes; c++) {
        vec *logit = at(logits + c * samples);
        *logit = exponential(*logit - most);
        total += *logit;
    }
    *largest = most;
    return total;
}

/* The logits become their gradient times minus the learning rate: what follows from it is the step itself. */
static void cross_entropy_step(const struct net *n, float *logits, const int64_t *y, const int64_t *index,
                               const double *weight, float rate) {
    int64_t samples = padded(n->batch);
    for (int64_t s = 0; s < samples; s += LANES) {
        vec largest, sum = exponentials(logits + s, n->classes, samples, &largest), scale = all(0);
        for (int l = 0; l < LANES; l++)
            if (s + l < n->batch) scale[l] = -rate * (float)weight[s + l];
        for (int64_t c = 0; c < n->classes; c++) {
            vec target;
            for (int l = 0; l < LANES; l++) target[l] = y[index[s + l < n->batch ? s + l : 0]] == c;
            *at(logits + c * samples + s) = (read(logits + c * samples + s) / sum - target) * scale;
        }
    }
}

static void step(const struct net *n, float *p, float *v, float momentum, float rate, const float *x, const int64_t *y,
                 const int64_t *index, const double *weight, struct buffers b) {
    int64_t samples = padded(n->batch), width = n->width;
    gather(n, b, x, index, n->batch);
    forward(n, p, b, 1);
    cross_entropy_step(n, b.logits, y, index, weight, rate);
    float *delta = b.logits;
    for (int64_t l = n->layers; l >= 0; l--) {
        int64_t of_weights = n->weights_at[l], of_biases = n->biases_at[l], units = n->classes;
        if (l < n->layers) {
            enum join joins = l ? n->join : PLAIN;
            delta = b.pre;
            units = (joins == HIGHWAY ? 2 : 1) * width;
            struct kept k = kept_of(n, b, l);
            if (joins == HIGHWAY) separate(HIGHWAY, b.gradient, delta, k, width * samples);
            else separate(PLAIN, b.gradient, delta, k, width * samples);
        }
        if (l) {
            int carries = l < n->layers && n->join != PLAIN;
            (carries ? back_added : back)(b.gradient, p + of_weights, delta, width, units, samples);
            transpose(kept_of(n, b, l - 1).out, width, samples, samples, b.inputs_transposed, padded(width));
        }
        update(p + of_weights, v + of_weights, p + of_biases, v + of_biases, delta,
               l ? b.inputs_transposed : b.x_transposed, units, l ? width : n->features, n->batch, momentum);
    }
}

/* `steps` updates of weights p and velocities v in place; index and weight are (step, batch), index into x and y. */
void train(const struct net *n, float *p, float *v, float momentum, float rate, const float *x, const int64_t *y,
           const int64_t *index, const double *weight, int64_t steps, float *scratch) {
    struct buffers b = buffers_of(n, scratch);
    for (int64_t i = 0; i < steps; i++, index += n->batch, weight += n->batch)
        step(n, p, v, momentum, rate, x, y, index, weight, b);
}

/* The sum over `count` samples of the cross-entropy [nats]. */
double loss(const struct net *n, const float *p, const float *x, const int64_t *y, int64_t count, float *scratch) {
    struct buffers b = buffers_of(n, scratch);
    double total = 0;
    for (int64_t first = 0; first < count; first += n->batch) {
        int64_t index[EVALUATED], batch = least(n->batch, count - first), samples = padded(n->batch);
        for (int64_t s = 0; s < batch; s++) index[s] = first + s;
        gather(n, b, x, index, batch);
        forward(n, p, b, 0);
        for (int64_t s = 0; s < batch; s += LANES) {
            vec largest, of_label = all(0);
            for (int l = 0; l < LANES && s + l < batch; l++)
                of_label[l] = b.logits[y[first + s + l] * samples + s + l];
            vec sum = exponentials(b.logits + s, n->classes, samples, &largest);
            for (int l = 0; l < LANES && s + l < batch; l++)
                total += log((double)sum[l]) + ((double)largest[l] - of_label[l]);
        }
    }
    return total;
}
