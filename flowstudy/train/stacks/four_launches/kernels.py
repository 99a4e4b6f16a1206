"""A training step of a stack of nets in four kernels, and the loss in one.

Of each net all is contiguous.  Weights are (layer, unit, input), their rows filled up with zeros to ROW numbers; of a
highway block the rows of H stand before those of the gate T.  `saved` is (net, layer, slot, unit, sample): slot 0 holds
the layer's output; slot 1 what the derivative is told from (f, or the pre-activation where KEEPS_INPUT) and, after the
backward pass, the error signal of H's pre-activation; slot 2, of highway nets, the gate and then the error signal of
its pre-activation.  Layer 0 is the input layer, which is plain.

Error signals are scaled by minus the learning rate at the read-out, so what arrives at a weight is its step.  Tiles are
of powers of two: S samples, C classes, F features; what lies beyond a net's own sizes is masked to 0.  A layer's units
are two tiles, of U and V, so that 71 units are 64 and 16 instead of 128: x and y are the two parts of one layer's
output, u and v their rows.  Where V is 0 the second part is not there.
"""

import triton
import triton.language as tl

from .functions import activated, log_one_plus, sigmoid, through

JOINS = ("plain", "residual", "highway")  # how a block's output is made of its input and H
PLAIN, RESIDUAL, HIGHWAY = (tl.constexpr(place) for place in range(len(JOINS)))


@triton.jit
def tile(at, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr):
    """Numbers of a matrix of ROWS rows, STEP apart, and COLUMNS columns; 0 beyond."""
    inside = (rows[:, None] < ROWS) & (columns[None, :] < COLUMNS)
    return tl.load(at + rows[:, None] * STEP + columns[None, :], mask=inside, other=0.0)


@triton.jit
def product(weights, biases, x, y, rows, u, v, WIDTH: tl.constexpr, ROW: tl.constexpr, V: tl.constexpr,
            PRECISION: tl.constexpr):
    """W x + b of some rows, x in its two parts."""
    bias = tl.load(biases + rows, mask=rows < WIDTH, other=0.0)[:, None]
    a = tl.dot(tile(weights, rows, u, WIDTH, ROW, ROW), x, input_precision=PRECISION)
    if V:
        a = tl.dot(tile(weights, rows, v, WIDTH, ROW, ROW), y, a, input_precision=PRECISION)
    return a + bias


@triton.jit
def put(at, value, rows, s, WIDTH: tl.constexpr, BATCH: tl.constexpr):
    """Into a matrix of WIDTH units and BATCH samples."""
    tl.store(at + rows[:, None] * BATCH + s[None, :], value, mask=(rows[:, None] < WIDTH) & (s[None, :] < BATCH))


@triton.jit
def of_input(weights, biases, x_all, sample, rows, s, kind, at, R: tl.constexpr, FEATURES: tl.constexpr,
             INPUT_ROW: tl.constexpr, WIDTH: tl.constexpr, BATCH: tl.constexpr, S: tl.constexpr, F: tl.constexpr,
             PRESENT: tl.constexpr, KEEPS_INPUT: tl.constexpr, SAVES: tl.constexpr, PRECISION: tl.constexpr,
             STAGES: tl.constexpr):
    """R rows of the input layer's output."""
    a = tl.zeros((R, S), tl.float32)
    for first in tl.range(0, FEATURES, F, num_stages=STAGES):
        f = first + tl.arange(0, F)
        x = tl.load(x_all + sample[None, :] * FEATURES + f[:, None], mask=f[:, None] < FEATURES, other=0.0)
        a = tl.dot(tile(weights, rows, f, WIDTH, INPUT_ROW, INPUT_ROW), x, a, input_precision=PRECISION)
    a += tl.load(biases + rows, mask=rows < WIDTH, other=0.0)[:, None]
    x = activated(a, kind, PRESENT)
    if SAVES:
        put(at, x, rows, s, WIDTH, BATCH)
        if KEEPS_INPUT:
            put(at + WIDTH * BATCH, a, rows, s, WIDTH, BATCH)
    return x


@triton.jit
def of_block(weights, biases, x, y, own, rows, s, u, v, kind, at, WIDTH: tl.constexpr, ROW: tl.constexpr,
             BATCH: tl.constexpr, V: tl.constexpr, JOIN: tl.constexpr, PRESENT: tl.constexpr,
             KEEPS_INPUT: tl.constexpr, SAVES: tl.constexpr, PRECISION: tl.constexpr):
    """Some rows of a block's output; `own` are these rows of its input."""
    a = product(weights, biases, x, y, rows, u, v, WIDTH, ROW, V, PRECISION)
    h = activated(a, kind, PRESENT)
    out = h
    if JOIN == RESIDUAL:
        out = own + h
    if JOIN == HIGHWAY:
        t = sigmoid(product(weights + WIDTH * ROW, biases + WIDTH, x, y, rows, u, v, WIDTH, ROW, V, PRECISION))
        out = own + t * (h - own)
        if SAVES:
            put(at + 2 * WIDTH * BATCH, t, rows, s, WIDTH, BATCH)
    if SAVES:
        put(at, out, rows, s, WIDTH, BATCH)
        if KEEPS_INPUT:
            put(at + WIDTH * BATCH, a, rows, s, WIDTH, BATCH)
        elif JOIN != PLAIN:
            put(at + WIDTH * BATCH, h, rows, s, WIDTH, BATCH)
    return out


@triton.jit
def logits_of(w_in, b_in, w, b, w_out, b_out, x_all, sample, s, c, kind, at, layers, FEATURES: tl.constexpr,
              INPUT_ROW: tl.constexpr, WIDTH: tl.constexpr, ROW: tl.constexpr, CLASSES: tl.constexpr,
              BATCH: tl.constexpr, U: tl.constexpr, V: tl.constexpr, S: tl.constexpr, F: tl.constexpr,
              JOIN: tl.constexpr, PRESENT: tl.constexpr, KEEPS_INPUT: tl.constexpr, SAVES: tl.constexpr,
              PRECISION: tl.constexpr, STAGES: tl.constexpr):
    """Through one net, whose numbers the pointers lead to: (class, sample), minus infinity where there is no class."""
    MAPS: tl.constexpr = 2 if JOIN == HIGHWAY else 1
    u = tl.arange(0, U)
    v = U + tl.arange(0, V) if V else u
    x = of_input(w_in, b_in, x_all, sample, u, s, kind, at, U, FEATURES, INPUT_ROW, WIDTH, BATCH, S, F, PRESENT,
                 KEEPS_INPUT, SAVES, PRECISION, STAGES)
    y = x
    if V:
        y = of_input(w_in, b_in, x_all, sample, v, s, kind, at, V, FEATURES, INPUT_ROW, WIDTH, BATCH, S, F, PRESENT,
                     KEEPS_INPUT, SAVES, PRECISION, STAGES)
    of_layer = tl.full((), (1 + MAPS) * WIDTH * BATCH, tl.int64)  # large batches pass 2^31 numbers
    for layer in tl.range(0, layers, num_stages=STAGES):
        weights, biases = w + layer * (MAPS * WIDTH * ROW), b + layer * (MAPS * WIDTH)
        here = at + (layer + 1) * of_layer
        out = of_block(weights, biases, x, y, x, u, s, u, v, kind, here, WIDTH, ROW, BATCH, V, JOIN, PRESENT,
                       KEEPS_INPUT, SAVES, PRECISION)
        if V:
            y = of_block(weights, biases, x, y, y, v, s, u, v, kind, here, WIDTH, ROW, BATCH, V, JOIN, PRESENT,
                         KEEPS_INPUT, SAVES, PRECISION)
        x = out
    logits = tl.dot(tile(w_out, c, u, CLASSES, ROW, ROW), x, input_precision=PRECISION)
    if V:
        logits = tl.dot(tile(w_out, c, v, CLASSES, ROW, ROW), y, logits, input_precision=PRECISION)
    logits += tl.load(b_out + c, mask=c < CLASSES, other=0.0)[:, None]
    return tl.where(c[:, None] < CLASSES, logits, -float("inf"))


@triton.jit(do_not_specialize=["layers"])
def step_forward(w_in, b_in, w, b, w_out, b_out, x_all, y_all, index, weight, scale, kinds, saved, deltas, layers,
                 FEATURES: tl.constexpr, INPUT_ROW: tl.constexpr, WIDTH: tl.constexpr, ROW: tl.constexpr,
                 CLASSES: tl.constexpr, BATCH: tl.constexpr, U: tl.constexpr, V: tl.constexpr, S: tl.constexpr,
                 C: tl.constexpr, F: tl.constexpr, JOIN: tl.constexpr, PRESENT: tl.constexpr, KEEPS_INPUT: tl.constexpr,
                 PRECISION: tl.constexpr, STAGES: tl.constexpr):
    """A program for each net and S samples: all that the backward pass needs, and the error signal of the logits."""
    net = tl.program_id(0).to(tl.int64)
    s, c = tl.program_id(1) * S + tl.arange(0, S), tl.arange(0, C)
    MAPS: tl.constexpr = 2 if JOIN == HIGHWAY else 1
    sample = tl.load(index + s, mask=s < BATCH, other=0)
    logits = logits_of(w_in + net * (WIDTH * INPUT_ROW), b_in + net * WIDTH, w + net * layers * (MAPS * WIDTH * ROW),
                       b + net * layers * (MAPS * WIDTH), w_out + net * (CLASSES * ROW), b_out + net * CLASSES, x_all,
                       sample, s, c, tl.load(kinds + net), saved + net * (layers + 1) * ((1 + MAPS) * WIDTH * BATCH),
                       layers, FEATURES, INPUT_ROW, WIDTH, ROW, CLASSES, BATCH, U, V, S, F, JOIN, PRESENT, KEEPS_INPUT,
                       True, PRECISION, STAGES)
    e = tl.exp(logits - tl.max(logits, 0)[None, :])
    target = tl.load(y_all + sample)
    delta = e / tl.sum(e, 0)[None, :] - (c[:, None] == target[None, :]).to(tl.float32)
    part = tl.load(weight + s, mask=s < BATCH, other=0.0).to(tl.float32)
    put(deltas + net * (CLASSES * BATCH), delta * part[None, :] * tl.load(scale + net), c, s, CLASSES, BATCH)


@triton.jit(do_not_specialize=["layers", "samples"])
def losses(w_in, b_in, w, b, w_out, b_out, x_all, y_all, kinds, found, layers, samples, FEATURES: tl.constexpr,
           INPUT_ROW: tl.constexpr, WIDTH: tl.constexpr, ROW: tl.constexpr, CLASSES: tl.constexpr, U: tl.constexpr,
           V: tl.constexpr, S: tl.constexpr, C: tl.constexpr, F: tl.constexpr, JOIN: tl.constexpr,
           PRESENT: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr):
    """A program for each net and S samples: the cross-entropy of each sample [nats], into (net, sample)."""
    net = tl.program_id(1).to(tl.int64)
    s, c = tl.program_id(0) * S + tl.arange(0, S), tl.arange(0, C)
    MAPS: tl.constexpr = 2 if JOIN == HIGHWAY else 1
    sample = tl.where(s < samples, s, 0).to(tl.int64)
    logits = logits_of(w_in + net * (WIDTH * INPUT_ROW), b_in + net * WIDTH, w + net * layers * (MAPS * WIDTH * ROW),
                       b + net * layers * (MAPS * WIDTH), w_out + net * (CLASSES * ROW), b_out + net * CLASSES, x_all,
                       sample, s, c, tl.load(kinds + net), found, layers, FEATURES, INPUT_ROW, WIDTH, ROW, CLASSES, S,
                       U, V, S, F, JOIN, PRESENT, False, False, PRECISION, STAGES)
    target, largest = tl.load(y_all + sample), tl.max(logits, 0)
    others = tl.where(c[:, None] == tl.argmax(logits, 0)[None, :], 0.0, tl.exp(logits - largest[None, :]))
    of_label = tl.sum(tl.where(c[:, None] == target[None, :], logits, 0.0), 0)
    of_nan = tl.sum(tl.where(logits != logits, logits, 0.0), 0)  # the largest number of some may not be nan
    loss = (largest - of_label) + log_one_plus(tl.sum(others, 0)) + of_nan
    tl.store(found + net * samples + s, loss, mask=s < samples)


@triton.jit
def error_signals(g, here, before, rows, s, kind, WIDTH: tl.constexpr, BATCH: tl.constexpr, JOIN: tl.constexpr,
              PRESENT: tl.constexpr, KEEPS_INPUT: tl.constexpr):
    """From the error signal g of some rows of a block's output: those of H's pre-activation and of the gate's, which
    are saved, and what reaches the block's input past both."""
    SLOT: tl.constexpr = WIDTH * BATCH
    a = tile(here if JOIN == PLAIN and not KEEPS_INPUT else here + SLOT, rows, s, WIDTH, BATCH, BATCH)
    h = activated(a, kind, PRESENT) if KEEPS_INPUT else a
    of_h, of_gate, past = g, g, g
    if JOIN == HIGHWAY:
        t = tile(here + 2 * SLOT, rows, s, WIDTH, BATCH, BATCH)
        of_h = g * t
        of_gate = g * (h - tile(before, rows, s, WIDTH, BATCH, BATCH)) * t * (1.0 - t)
        past = g - of_h
        put(here + 2 * SLOT, of_gate, rows, s, WIDTH, BATCH)
    if JOIN == PLAIN:
        past = tl.zeros_like(g)
    d = through(of_h, a, h, kind, PRESENT)
    put(here + SLOT, d, rows, s, WIDTH, BATCH)
    return d, of_gate, past


@triton.jit
def transposed_product(weights, d, e, columns, u, v, past, WIDTH: tl.constexpr, ROW: tl.constexpr, V: tl.constexpr,
                       PRECISION: tl.constexpr):
    """`past` and some rows of W^T d, the error signal d in its two parts."""
    g = tl.dot(tl.trans(tile(weights, u, columns, WIDTH, ROW, ROW)), d, past, input_precision=PRECISION)
    if V:
        g = tl.dot(tl.trans(tile(weights, v, columns, WIDTH, ROW, ROW)), e, g, input_precision=PRECISION)
    return g


@triton.jit(do_not_specialize=["layers"])
def step_backward(w, w_out, kinds, saved, deltas, layers, WIDTH: tl.constexpr, ROW: tl.constexpr, CLASSES: tl.constexpr,
                  BATCH: tl.constexpr, U: tl.constexpr, V: tl.constexpr, S: tl.constexpr, C: tl.constexpr,
                  JOIN: tl.constexpr, PRESENT: tl.constexpr, KEEPS_INPUT: tl.constexpr, PRECISION: tl.constexpr,
                  STAGES: tl.constexpr):
    """A program for each net and S samples: the error signals of all pre-activations, in place of what was saved."""
    net = tl.program_id(0).to(tl.int64)
    s, c = tl.program_id(1) * S + tl.arange(0, S), tl.arange(0, C)
    u = tl.arange(0, U)
    v = U + tl.arange(0, V) if V else u
    MAPS: tl.constexpr = 2 if JOIN == HIGHWAY else 1
    of_layer = tl.full((), (1 + MAPS) * WIDTH * BATCH, tl.int64)
    kind = tl.load(kinds + net)
    at = saved + net * (layers + 1) * of_layer
    w += net * layers * (MAPS * WIDTH * ROW)
    w_out += net * (CLASSES * ROW)
    delta = tile(deltas + net * (CLASSES * BATCH), c, s, CLASSES, BATCH, BATCH)
    g = tl.dot(tl.trans(tile(w_out, c, u, CLASSES, ROW, ROW)), delta, input_precision=PRECISION)
    k = g
    if V:
        k = tl.dot(tl.trans(tile(w_out, c, v, CLASSES, ROW, ROW)), delta, input_precision=PRECISION)
    for back in tl.range(0, layers, num_stages=STAGES):
        layer = layers - 1 - back
        before, here = at + layer * of_layer, at + (layer + 1) * of_layer
        weights = w + layer * (MAPS * WIDTH * ROW)
        d, of_gate, g = error_signals(g, here, before, u, s, kind, WIDTH, BATCH, JOIN, PRESENT, KEEPS_INPUT)
        e, of_gate_too = d, of_gate
        if V:
            e, of_gate_too, k = error_signals(k, here, before, v, s, kind, WIDTH, BATCH, JOIN, PRESENT, KEEPS_INPUT)
            k = transposed_product(weights, d, e, v, u, v, k, WIDTH, ROW, V, PRECISION)
        g = transposed_product(weights, d, e, u, u, v, g, WIDTH, ROW, V, PRECISION)
        if JOIN == HIGHWAY:
            weights += WIDTH * ROW
            if V:
                k = transposed_product(weights, of_gate, of_gate_too, v, u, v, k, WIDTH, ROW, V, PRECISION)
            g = transposed_product(weights, of_gate, of_gate_too, u, u, v, g, WIDTH, ROW, V, PRECISION)
    end_of_input(g, at, u, s, kind, WIDTH, BATCH, PRESENT, KEEPS_INPUT)
    if V:
        end_of_input(k, at, v, s, kind, WIDTH, BATCH, PRESENT, KEEPS_INPUT)


@triton.jit
def end_of_input(g, at, rows, s, kind, WIDTH: tl.constexpr, BATCH: tl.constexpr, PRESENT: tl.constexpr,
                 KEEPS_INPUT: tl.constexpr):
    """The error signal of some rows of the input layer's pre-activation, which is saved."""
    x = tile(at, rows, s, WIDTH, BATCH, BATCH)
    a = tile(at + WIDTH * BATCH, rows, s, WIDTH, BATCH, BATCH) if KEEPS_INPUT else x
    put(at + WIDTH * BATCH, through(g, a, x, kind, PRESENT), rows, s, WIDTH, BATCH)


@triton.jit
def learn(at, velocity, step, m, inside):
    """v = m v + step, value += v, of numbers and their velocities."""
    moving = m * tl.load(velocity, mask=inside, other=0.0) + step
    tl.store(velocity, moving, mask=inside)
    tl.store(at, tl.load(at, mask=inside, other=0.0) + moving, mask=inside)


@triton.jit
def learn_part(w, v, error, x, rows, columns, m, R: tl.constexpr, WIDTH: tl.constexpr, ROW: tl.constexpr,
               BATCH: tl.constexpr, COLUMNS: tl.constexpr, S: tl.constexpr, PRECISION: tl.constexpr):
    """R rows and COLUMNS columns of a block's weights: the step is error x^T."""
    step = tl.zeros((R, COLUMNS), tl.float32)
    for first in tl.range(0, BATCH, S):
        s = first + tl.arange(0, S)
        step = tl.dot(tile(error, rows, s, WIDTH, BATCH, BATCH), tl.trans(tile(x, columns, s, WIDTH, BATCH, BATCH)),
                      step, input_precision=PRECISION)
    step = tl.where(columns[None, :] < WIDTH, step, 0.0)  # an infinite error times the padding's 0 is nan
    place = rows[:, None] * ROW + columns[None, :]
    learn(w + place, v + place, step, m, (rows[:, None] < WIDTH) & (columns[None, :] < ROW))


@triton.jit
def learn_bias(b, vb, error, rows, m, R: tl.constexpr, WIDTH: tl.constexpr, BATCH: tl.constexpr, S: tl.constexpr):
    step = tl.zeros((R,), tl.float32)
    for first in tl.range(0, BATCH, S):
        step += tl.sum(tile(error, rows, first + tl.arange(0, S), WIDTH, BATCH, BATCH), 1)
    learn(b + rows, vb + rows, step, m, rows < WIDTH)


@triton.jit(do_not_specialize=["layers"])
def update_blocks(w, v, b, vb, saved, momentum, layers, WIDTH: tl.constexpr, ROW: tl.constexpr, BATCH: tl.constexpr,
                  U: tl.constexpr, V: tl.constexpr, S: tl.constexpr, JOIN: tl.constexpr, PRECISION: tl.constexpr):
    """A program for each net and affine map of its blocks."""
    net, part = tl.program_id(1).to(tl.int64), tl.program_id(0)
    MAPS: tl.constexpr = 2 if JOIN == HIGHWAY else 1
    SLOT: tl.constexpr = WIDTH * BATCH
    SLOTS: tl.constexpr = 1 + MAPS
    first, last = tl.arange(0, U), U + tl.arange(0, V if V else U)
    m = tl.load(momentum + net)
    x = saved + (net * (layers + 1) + part // MAPS) * (SLOTS * SLOT)
    error = x + (SLOTS + 1 + part % MAPS) * SLOT
    place = net * layers * MAPS + part
    w, v, b, vb = w + place * (WIDTH * ROW), v + place * (WIDTH * ROW), b + place * WIDTH, vb + place * WIDTH
    learn_part(w, v, error, x, first, first, m, U, WIDTH, ROW, BATCH, U, S, PRECISION)
    learn_bias(b, vb, error, first, m, U, WIDTH, BATCH, S)
    if V:
        learn_part(w, v, error, x, first, last, m, U, WIDTH, ROW, BATCH, V, S, PRECISION)
        learn_part(w, v, error, x, last, first, m, V, WIDTH, ROW, BATCH, U, S, PRECISION)
        learn_part(w, v, error, x, last, last, m, V, WIDTH, ROW, BATCH, V, S, PRECISION)
        learn_bias(b, vb, error, last, m, V, WIDTH, BATCH, S)


@triton.jit(do_not_specialize=["layers"])
def update_ends(w_in, v_in, b_in, vb_in, w_out, v_out, b_out, vb_out, x_all, index, deltas, saved, momentum, layers,
                FEATURES: tl.constexpr, INPUT_ROW: tl.constexpr, WIDTH: tl.constexpr, ROW: tl.constexpr,
                CLASSES: tl.constexpr, BATCH: tl.constexpr, COLUMNS: tl.constexpr, S: tl.constexpr, C: tl.constexpr,
                F: tl.constexpr, SLOTS: tl.constexpr, PRECISION: tl.constexpr):
    """A program for each net and F features of the input layer; the first one of a net has the read-out too."""
    net, part = tl.program_id(1).to(tl.int64), tl.program_id(0)
    u, c, f = tl.arange(0, COLUMNS), tl.arange(0, C), part * F + tl.arange(0, F)
    SLOT: tl.constexpr = WIDTH * BATCH
    m = tl.load(momentum + net)
    at = saved + net * (layers + 1) * (SLOTS * SLOT)
    step, of_bias = tl.zeros((COLUMNS, F), tl.float32), tl.zeros((COLUMNS,), tl.float32)
    for first in tl.range(0, BATCH, S):
        s = first + tl.arange(0, S)
        sample = tl.load(index + s, mask=s < BATCH, other=0)
        x = tl.load(x_all + sample[:, None] * FEATURES + f[None, :], mask=f[None, :] < FEATURES, other=0.0)
        d = tile(at + SLOT, u, s, WIDTH, BATCH, BATCH)
        step = tl.dot(d, x, step, input_precision=PRECISION)
        of_bias += tl.sum(d, 1)
    step = tl.where(f[None, :] < FEATURES, step, 0.0)
    place = net * (WIDTH * INPUT_ROW) + u[:, None] * INPUT_ROW + f[None, :]
    learn(w_in + place, v_in + place, step, m, (u[:, None] < WIDTH) & (f[None, :] < INPUT_ROW))
    if part == 0:
        learn(b_in + net * WIDTH + u, vb_in + net * WIDTH + u, of_bias, m, u < WIDTH)
        of_weight, of_class = tl.zeros((C, COLUMNS), tl.float32), tl.zeros((C,), tl.float32)
        for first in tl.range(0, BATCH, S):
            s = first + tl.arange(0, S)
            d = tile(deltas + net * (CLASSES * BATCH), c, s, CLASSES, BATCH, BATCH)
            x = tile(at + layers * tl.full((), SLOTS * SLOT, tl.int64), u, s, WIDTH, BATCH, BATCH)
            of_weight = tl.dot(d, tl.trans(x), of_weight, input_precision=PRECISION)
            of_class += tl.sum(d, 1)
        of_weight = tl.where(u[None, :] < WIDTH, of_weight, 0.0)
        weights = net * (CLASSES * ROW) + c[:, None] * ROW + u[None, :]
        learn(w_out + weights, v_out + weights, of_weight, m, (c[:, None] < CLASSES) & (u[None, :] < ROW))
        learn(b_out + net * CLASSES + c, vb_out + net * CLASSES + c, of_class, m, c < CLASSES)
