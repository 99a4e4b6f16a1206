"""A training step of a stack of nets in four kernels, and the loss in one.

Of each net all is contiguous.  Weights are (layer, unit, input), their rows filled up with zeros to ROW numbers; of a
highway block the rows of H stand before those of the gate T.  `saved` is (net, layer, slot, unit, sample): slot 0 holds
the layer's output; slot 1 what the derivative is told from (f, or the pre-activation where KEEPS_INPUT) and, after the
backward pass, the error signal of H's pre-activation; slot 2, of highway nets, the gate and then the error signal of
its pre-activation.  Layer 0 is the input layer, which is plain.

Error signals are scaled by minus the learning rate at the read-out, so what arrives at a weight is its step.  Tiles are
of powers of two: U units, S samples, C classes, F features; what lies beyond a net's own sizes is masked to 0.
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
def affine(weights, biases, x, u, WIDTH: tl.constexpr, ROW: tl.constexpr, PRECISION: tl.constexpr):
    """W x + b of WIDTH units of WIDTH inputs."""
    bias = tl.load(biases + u, mask=u < WIDTH, other=0.0)
    return tl.dot(tile(weights, u, u, WIDTH, ROW, ROW), x, input_precision=PRECISION) + bias[:, None]


@triton.jit
def input_layer(weights, biases, x_all, sample, u, FEATURES: tl.constexpr, INPUT_ROW: tl.constexpr, WIDTH: tl.constexpr,
                U: tl.constexpr, S: tl.constexpr, F: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr):
    """Pre-activations of the first layer."""
    a = tl.zeros((U, S), tl.float32)
    for first in tl.range(0, FEATURES, F, num_stages=STAGES):
        f = first + tl.arange(0, F)
        x = tl.load(x_all + sample[None, :] * FEATURES + f[:, None], mask=f[:, None] < FEATURES, other=0.0)
        a = tl.dot(tile(weights, u, f, WIDTH, INPUT_ROW, INPUT_ROW), x, a, input_precision=PRECISION)
    return a + tl.load(biases + u, mask=u < WIDTH, other=0.0)[:, None]


@triton.jit
def block(weights, biases, x, u, kind, PRESENT: tl.constexpr, JOIN: tl.constexpr, WIDTH: tl.constexpr,
          ROW: tl.constexpr, PRECISION: tl.constexpr):
    """The output of a block, H's pre-activation, H, and the gate (H again where there is none)."""
    a = affine(weights, biases, x, u, WIDTH, ROW, PRECISION)
    h = activated(a, kind, PRESENT)
    t = h
    out = h
    if JOIN == HIGHWAY:
        t = sigmoid(affine(weights + WIDTH * ROW, biases + WIDTH, x, u, WIDTH, ROW, PRECISION))
        out = x + t * (h - x)
    if JOIN == RESIDUAL:
        out = x + h
    return out, a, h, t


@triton.jit
def read_out(weights, biases, x, c, u, CLASSES: tl.constexpr, ROW: tl.constexpr, PRECISION: tl.constexpr):
    """Logits, minus infinity where there is no class."""
    logits = tl.dot(tile(weights, c, u, CLASSES, ROW, ROW), x, input_precision=PRECISION)
    logits += tl.load(biases + c, mask=c < CLASSES, other=0.0)[:, None]
    return tl.where(c[:, None] < CLASSES, logits, -float("inf"))


@triton.jit
def forward(w_in, b_in, w, b, w_out, b_out, x_all, y_all, index, weight, scale, kinds, saved, deltas, layers,
            FEATURES: tl.constexpr, INPUT_ROW: tl.constexpr, WIDTH: tl.constexpr, ROW: tl.constexpr,
            CLASSES: tl.constexpr, BATCH: tl.constexpr, U: tl.constexpr, S: tl.constexpr, C: tl.constexpr,
            F: tl.constexpr, JOIN: tl.constexpr, PRESENT: tl.constexpr, KEEPS_INPUT: tl.constexpr,
            PRECISION: tl.constexpr, STAGES: tl.constexpr):
    """A program for each net and S samples: all that the backward pass needs, and the error signal of the logits."""
    net = tl.program_id(0).to(tl.int64)
    s = tl.program_id(1) * S + tl.arange(0, S)
    u, c = tl.arange(0, U), tl.arange(0, C)
    MAPS: tl.constexpr = 2 if JOIN == HIGHWAY else 1
    SLOT: tl.constexpr = WIDTH * BATCH
    SLOTS: tl.constexpr = 1 + MAPS
    kind = tl.load(kinds + net)
    sample = tl.load(index + s, mask=s < BATCH, other=0)
    place = u[:, None] * BATCH + s[None, :]
    there = (u[:, None] < WIDTH) & (s[None, :] < BATCH)
    at = saved + net * (layers + 1) * (SLOTS * SLOT)
    a = input_layer(w_in + net * (WIDTH * INPUT_ROW), b_in + net * WIDTH, x_all, sample, u, FEATURES, INPUT_ROW, WIDTH,
                    U, S, F, PRECISION, STAGES)
    x = activated(a, kind, PRESENT)
    tl.store(at + place, x, mask=there)
    if KEEPS_INPUT:
        tl.store(at + SLOT + place, a, mask=there)
    w += net * layers * (MAPS * WIDTH * ROW)
    b += net * layers * (MAPS * WIDTH)
    for layer in tl.range(0, layers, num_stages=STAGES):
        x, a, h, t = block(w + layer * (MAPS * WIDTH * ROW), b + layer * (MAPS * WIDTH), x, u, kind, PRESENT, JOIN,
                           WIDTH, ROW, PRECISION)
        at += SLOTS * SLOT
        tl.store(at + place, x, mask=there)
        if KEEPS_INPUT:
            tl.store(at + SLOT + place, a, mask=there)
        elif JOIN != PLAIN:
            tl.store(at + SLOT + place, h, mask=there)
        if JOIN == HIGHWAY:
            tl.store(at + 2 * SLOT + place, t, mask=there)
    logits = read_out(w_out + net * (CLASSES * ROW), b_out + net * CLASSES, x, c, u, CLASSES, ROW, PRECISION)
    e = tl.exp(logits - tl.max(logits, 0)[None, :])
    target = tl.load(y_all + sample)
    delta = e / tl.sum(e, 0)[None, :] - (c[:, None] == target[None, :]).to(tl.float32)
    part = tl.load(weight + s, mask=s < BATCH, other=0.0).to(tl.float32)
    delta = delta * part[None, :] * tl.load(scale + net)
    tl.store(deltas + net * (CLASSES * BATCH) + c[:, None] * BATCH + s[None, :], delta,
             mask=(c[:, None] < CLASSES) & (s[None, :] < BATCH))


@triton.jit
def backward(w, w_out, kinds, saved, deltas, layers, WIDTH: tl.constexpr, ROW: tl.constexpr, CLASSES: tl.constexpr,
             BATCH: tl.constexpr, U: tl.constexpr, S: tl.constexpr, C: tl.constexpr, JOIN: tl.constexpr,
             PRESENT: tl.constexpr, KEEPS_INPUT: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr):
    """A program for each net and S samples: the error signals of all pre-activations, in place of what was saved."""
    net = tl.program_id(0).to(tl.int64)
    s = tl.program_id(1) * S + tl.arange(0, S)
    u, c = tl.arange(0, U), tl.arange(0, C)
    MAPS: tl.constexpr = 2 if JOIN == HIGHWAY else 1
    SLOT: tl.constexpr = WIDTH * BATCH
    SLOTS: tl.constexpr = 1 + MAPS
    kind = tl.load(kinds + net)
    place = u[:, None] * BATCH + s[None, :]
    there = (u[:, None] < WIDTH) & (s[None, :] < BATCH)
    at = saved + net * (layers + 1) * (SLOTS * SLOT)
    w += net * layers * (MAPS * WIDTH * ROW)
    delta = tile(deltas + net * (CLASSES * BATCH), c, s, CLASSES, BATCH, BATCH)
    g = tl.dot(tl.trans(tile(w_out + net * (CLASSES * ROW), c, u, CLASSES, ROW, ROW)), delta, input_precision=PRECISION)
    for back in tl.range(0, layers, num_stages=STAGES):
        layer = layers - 1 - back
        before, here = at + layer * (SLOTS * SLOT), at + (layer + 1) * (SLOTS * SLOT)
        if JOIN == PLAIN and not KEEPS_INPUT:
            a = tl.load(here + place, mask=there, other=0.0)
        else:
            a = tl.load(here + SLOT + place, mask=there, other=0.0)
        h = activated(a, kind, PRESENT) if KEEPS_INPUT else a
        weights = w + layer * (MAPS * WIDTH * ROW)
        if JOIN == HIGHWAY:
            t = tl.load(here + 2 * SLOT + place, mask=there, other=0.0)
            of_h = g * t
            of_t = g * (h - tl.load(before + place, mask=there, other=0.0)) * t * (1.0 - t)
            tl.store(here + 2 * SLOT + place, of_t, mask=there)
            d = through(of_h, a, h, kind, PRESENT)
            g = tl.dot(tl.trans(tile(weights, u, u, WIDTH, ROW, ROW)), d, g - of_h, input_precision=PRECISION)
            g = tl.dot(tl.trans(tile(weights + WIDTH * ROW, u, u, WIDTH, ROW, ROW)), of_t, g, input_precision=PRECISION)
        else:
            d = through(g, a, h, kind, PRESENT)
            carried = g if JOIN == RESIDUAL else tl.zeros((U, S), tl.float32)
            g = tl.dot(tl.trans(tile(weights, u, u, WIDTH, ROW, ROW)), d, carried, input_precision=PRECISION)
        tl.store(here + SLOT + place, d, mask=there)
    x = tl.load(at + place, mask=there, other=0.0)
    a = tl.load(at + SLOT + place, mask=there, other=0.0) if KEEPS_INPUT else x
    tl.store(at + SLOT + place, through(g, a, x, kind, PRESENT), mask=there)


@triton.jit
def learn(at, velocity, step, m, inside):
    """v = m v + step, value += v, of numbers and their velocities."""
    moving = m * tl.load(velocity, mask=inside, other=0.0) + step
    tl.store(velocity, moving, mask=inside)
    tl.store(at, tl.load(at, mask=inside, other=0.0) + moving, mask=inside)


@triton.jit
def update_blocks(w, v, b, vb, saved, momentum, layers, WIDTH: tl.constexpr, ROW: tl.constexpr, BATCH: tl.constexpr,
                  U: tl.constexpr, S: tl.constexpr, JOIN: tl.constexpr, PRECISION: tl.constexpr):
    """A program for each net and affine map of its blocks."""
    net, part = tl.program_id(1).to(tl.int64), tl.program_id(0)
    u = tl.arange(0, U)
    MAPS: tl.constexpr = 2 if JOIN == HIGHWAY else 1
    SLOT: tl.constexpr = WIDTH * BATCH
    SLOTS: tl.constexpr = 1 + MAPS
    m = tl.load(momentum + net)
    at = saved + (net * (layers + 1) + part // MAPS) * (SLOTS * SLOT)
    error = at + (SLOTS + 1 + part % MAPS) * SLOT
    step, of_bias = tl.zeros((U, U), tl.float32), tl.zeros((U,), tl.float32)
    for first in tl.range(0, BATCH, S):
        s = first + tl.arange(0, S)
        d = tile(error, u, s, WIDTH, BATCH, BATCH)
        step = tl.dot(d, tl.trans(tile(at, u, s, WIDTH, BATCH, BATCH)), step, input_precision=PRECISION)
        of_bias += tl.sum(d, 1)
    first = net * layers * MAPS + part
    inside = (u[:, None] < WIDTH) & (u[None, :] < ROW)
    place = first * (WIDTH * ROW) + u[:, None] * ROW + u[None, :]
    learn(w + place, v + place, step, m, inside)
    learn(b + first * WIDTH + u, vb + first * WIDTH + u, of_bias, m, u < WIDTH)


@triton.jit
def update_ends(w_in, v_in, b_in, vb_in, w_out, v_out, b_out, vb_out, x_all, index, deltas, saved, momentum, layers,
                FEATURES: tl.constexpr, INPUT_ROW: tl.constexpr, WIDTH: tl.constexpr, ROW: tl.constexpr,
                CLASSES: tl.constexpr, BATCH: tl.constexpr, U: tl.constexpr, S: tl.constexpr, C: tl.constexpr,
                F: tl.constexpr, SLOTS: tl.constexpr, PRECISION: tl.constexpr):
    """A program for each net and F features of the input layer; the first one of a net has the read-out too."""
    net, part = tl.program_id(1).to(tl.int64), tl.program_id(0)
    u, c, f = tl.arange(0, U), tl.arange(0, C), part * F + tl.arange(0, F)
    SLOT: tl.constexpr = WIDTH * BATCH
    m = tl.load(momentum + net)
    at = saved + net * (layers + 1) * (SLOTS * SLOT)
    step, of_bias = tl.zeros((U, F), tl.float32), tl.zeros((U,), tl.float32)
    for first in tl.range(0, BATCH, S):
        s = first + tl.arange(0, S)
        sample = tl.load(index + s, mask=s < BATCH, other=0)
        x = tl.load(x_all + sample[:, None] * FEATURES + f[None, :], mask=f[None, :] < FEATURES, other=0.0)
        d = tile(at + SLOT, u, s, WIDTH, BATCH, BATCH)
        step = tl.dot(d, x, step, input_precision=PRECISION)
        of_bias += tl.sum(d, 1)
    place = net * (WIDTH * INPUT_ROW) + u[:, None] * INPUT_ROW + f[None, :]
    learn(w_in + place, v_in + place, step, m, (u[:, None] < WIDTH) & (f[None, :] < INPUT_ROW))
    if part == 0:
        learn(b_in + net * WIDTH + u, vb_in + net * WIDTH + u, of_bias, m, u < WIDTH)
        of_weight, of_class = tl.zeros((C, U), tl.float32), tl.zeros((C,), tl.float32)
        for first in tl.range(0, BATCH, S):
            s = first + tl.arange(0, S)
            d = tile(deltas + net * (CLASSES * BATCH), c, s, CLASSES, BATCH, BATCH)
            x = tile(at + layers * (SLOTS * SLOT), u, s, WIDTH, BATCH, BATCH)
            of_weight = tl.dot(d, tl.trans(x), of_weight, input_precision=PRECISION)
            of_class += tl.sum(d, 1)
        weights = net * (CLASSES * ROW) + c[:, None] * ROW + u[None, :]
        learn(w_out + weights, v_out + weights, of_weight, m, (c[:, None] < CLASSES) & (u[None, :] < ROW))
        learn(b_out + net * CLASSES + c, vb_out + net * CLASSES + c, of_class, m, c < CLASSES)


@triton.jit
def losses(w_in, b_in, w, b, w_out, b_out, x_all, y_all, kinds, found, layers, samples, FEATURES: tl.constexpr,
           INPUT_ROW: tl.constexpr, WIDTH: tl.constexpr, ROW: tl.constexpr, CLASSES: tl.constexpr, U: tl.constexpr,
           S: tl.constexpr, C: tl.constexpr, F: tl.constexpr, JOIN: tl.constexpr, PRESENT: tl.constexpr,
           PRECISION: tl.constexpr, STAGES: tl.constexpr):
    """A program for each net and S samples: the cross-entropy of each sample [nats], into (net, sample)."""
    net = tl.program_id(1).to(tl.int64)
    s = tl.program_id(0) * S + tl.arange(0, S)
    u, c = tl.arange(0, U), tl.arange(0, C)
    MAPS: tl.constexpr = 2 if JOIN == HIGHWAY else 1
    kind = tl.load(kinds + net)
    sample = tl.where(s < samples, s, 0).to(tl.int64)
    a = input_layer(w_in + net * (WIDTH * INPUT_ROW), b_in + net * WIDTH, x_all, sample, u, FEATURES, INPUT_ROW, WIDTH,
                    U, S, F, PRECISION, STAGES)
    x = activated(a, kind, PRESENT)
    w += net * layers * (MAPS * WIDTH * ROW)
    b += net * layers * (MAPS * WIDTH)
    for layer in tl.range(0, layers, num_stages=STAGES):
        x, a, h, t = block(w + layer * (MAPS * WIDTH * ROW), b + layer * (MAPS * WIDTH), x, u, kind, PRESENT, JOIN,
                           WIDTH, ROW, PRECISION)
    logits = read_out(w_out + net * (CLASSES * ROW), b_out + net * CLASSES, x, c, u, CLASSES, ROW, PRECISION)
    target = tl.load(y_all + sample)
    largest = tl.max(logits, 0)
    others = tl.where(c[:, None] == tl.argmax(logits, 0)[None, :], 0.0, tl.exp(logits - largest[None, :]))
    of_label = tl.sum(tl.where(c[:, None] == target[None, :], logits, 0.0), 0)
    tl.store(found + net * samples + s, (largest - of_label) + log_one_plus(tl.sum(others, 0)), mask=s < samples)
