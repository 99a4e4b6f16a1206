"""The singular value that grows beyond all others where activations have a mean, to leading order in 1 / width.

A change of the input that shifts the mean m or the mean square q of all units together is passed on coherently: by the
derivative of the map (m, q) -> (m', q'), not by chi.  Where E H > 0 (ReLU, GELU) that derivative is the larger one: it
is q'/q for ReLU.  A random direction holds 1 / width of its square in such a change, and every layer's finite width
makes some more of it, so from about ln(width) / ln(growth / chi) layers on the mean mode is most of the Jacobian.

Notation: T, H, x are a highway layer's gate, candidate and input (a residual layer has 1 in place of T and of 1 - T, a
plain layer 1 and 0), T' = T (1 - T), tau the gate's preactivation less b_T; x is in units of its root mean square.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.special import expit

from flowstudy.theory.checks import Values, check_choice, check_number, depth_to_walk

from .activations import Activation, activation_named
from .gaussian import gaussian_nodes
from .highway import (
    LEAST,
    MOST,
    Gate,
    HiddenMoments,
    HighwayState,
    check_init,
    first_state,
    jacobian_moments,
    mean_squared_gain,
    signal_moments,
)
from .plain import one_number

NETS = ("plain", "residual", "highway")
BULK = slice(0, 3)   # of a state vector: (1/n) tr B, E x_i B_ii, E x_i^2 B_ii, B = J J^T without the mode
SHIFTS = slice(3, 6)  # n^2 q E of (dm/sqrt q)^2, (dm/sqrt q) (dq/q), (dq/q)^2 over unit changes of the input
MODE = 6             # n times what the mode adds to (1/n) tr J J^T: its squared singular value


def mean_mode(net: str, activation: str, depth: Values, gate_bias: Values = 0.0, weight_var: Values = 1.0,
              gate_weight_var: Values = 1.0, q0: Values = 1.0, m0: Values = 0.0, *,
              bias_var: Values = 0.0) -> pd.DataFrame:
    """Mean square of the Jacobian between every layer and both ends of a stack, the mean mode apart, a row per layer.

    At width n, E ||J u||^2 and E ||J^T v||^2 of random unit vectors are `bulk` + `mode` / n.

    Args:
        net: "plain", "residual" or "highway".
        activation, depth, gate_bias, weight_var, gate_weight_var, q0, m0, bias_var: as in `highway`; other nets have
            no gates.

    Returns:
        `layer`, 1..depth.  `log_bulk`, `log_mode`: ln of the two, from the stack's input to this layer's output.
        `log_bulk_back`, `log_mode_back`: from this layer's input to the stack's output.  `mode` is about the squared
        largest singular value where it is above the others'; -inf where there is none (odd activations have q's
        shift alone, which does not outgrow the others).  `P`: (1/n) tr B^2 / ((1/n) tr B)^2 of all but the mode.

    Limits: leading order in 1 / width.  Layers' fluctuations, of the order depth / width in all logarithms, are not in
        it; nor is the second shift's own singular value, which is smaller.

    Source: derived for flowstudy.
    """
    call = "mean_mode"
    check_choice(call, "net", net, NETS)
    phi = activation_named(call, activation)
    one_of_each = {"gate_bias": gate_bias, "weight_var": weight_var, "gate_weight_var": gate_weight_var, "q0": q0,
                   "m0": m0, "bias_var": bias_var}
    for name, value in one_of_each.items():
        one_number(call, name, value)
    layers = depth_to_walk(call, depth)
    bias, weights, gates, biases = map(float, check_init(call, gate_bias, weight_var, gate_weight_var, bias_var))
    body = Body(net, phi, bias, weights, gates if net == "highway" else 0.0, biases)
    steps = list(walk(body, first_state(call, q0, m0, 1.0), layers))
    forward, back = ScaledVector(start_vector(steps[0][0])), [ScaledVector(row) for row in np.eye(7)[[0, MODE]]]
    rows = []
    for layer, (_, step, after) in enumerate(steps, 1):
        forward = forward.times(step)
        rows.append({"layer": layer, "log_bulk": forward.log(0), "log_mode": forward.log(MODE), "P": after.second})
    for row, (before, step, _) in zip(reversed(rows), reversed(steps), strict=True):
        back = [end.times(step.T) for end in back]
        row["log_bulk_back"], row["log_mode_back"] = (end.log_product(start_vector(before)) for end in back)
    return pd.DataFrame(rows)


def mean_log_square(log_bulk: np.ndarray, log_mode: np.ndarray) -> np.ndarray:
    """E ln ||J^T v||^2 over Gaussian v of mean square 1 / width, from ln of the bulk's and the mode's mean (mode / n).

    The bulk's many directions average out, the mode has one: E ln(bulk + mode g^2), g standard normal.

    Returns:
        [nats], in the arguments' common shape.
    """
    u = np.linspace(-80, 5, 1701)  # ln g^2: trapezoid sums of so smooth a function are at rounding level
    density = np.exp((u - np.exp(u)) / 2) / np.sqrt(2 * np.pi)
    bulk, mode = (check_number("mean_log_square", name, value, "numbers") for name, value in
                  (("log_bulk", log_bulk), ("log_mode", log_mode)))
    logs = np.logaddexp(bulk[..., None], mode[..., None] + u)
    return logs @ density * (u[1] - u[0])


@dataclass(frozen=True)
class ScaledVector:
    """A vector times e^shift: products of many layers leave the range of numbers."""

    vector: np.ndarray
    shift: float = 0.0

    def times(self, step: np.ndarray) -> "ScaledVector":
        image = step @ self.vector
        size = np.abs(image).max()
        return ScaledVector(image / size, self.shift + float(np.log(size))) if size > 0 else self

    def log(self, entry: int) -> float:
        return self.log_product(np.eye(len(self.vector))[entry])

    def log_product(self, other: np.ndarray) -> float:
        value = float(self.vector @ other)
        return float(np.log(value)) + self.shift if value > 0 else -np.inf


def start_vector(state: HighwayState) -> np.ndarray:
    """The state vector of the identity: B_ii = 1; a random unit change u shifts m by 1 . u / n and q by 2 x . u / n."""
    return np.array([1, state.m, 1, 1, 2 * state.m, 4, 0])


@dataclass(frozen=True)
class Body:
    """Equal layers of one kind of net."""

    net: str
    phi: Activation
    gate_bias: float
    weight_var: float
    gate_weight_var: float
    bias_var: float


def walk(body: Body, state: HighwayState, depth: int) -> Iterator[tuple[HighwayState, np.ndarray, HighwayState]]:
    """Yield for each layer the state before it, its 7 x 7 map of state vectors, and the state after it."""
    for _ in range(depth):
        q = float(np.exp(np.clip(state.log_q, np.log(LEAST), np.log(MOST))))
        gate = OpenGate(body.net) if body.net != "highway" else TiltedGate(body.gate_bias, body.gate_weight_var * q)
        values = TiltedMoments(body.phi, body.weight_var * q + body.bias_var, q, body.weight_var,
                               body.gate_weight_var * q)
        after = next_state(gate.moments, values, state)
        yield state, layer_map(gate, values, state, after), after
        state = after


def next_state(gate: np.ndarray, values: HiddenMoments, now: HighwayState) -> HighwayState:
    grown, m, x3, x4 = signal_moments(gate, values, now)
    chi = mean_squared_gain(gate, values, now)
    diagonal, with_x, with_x2, second = jacobian_moments(gate, values, now, chi)
    unit = np.sqrt(grown)
    return replace(now, log_q=now.log_q + np.log(grown), m=m / unit, x3=x3 / unit**3, x4=x4 / grown**2, chi=chi,
                   diagonal=diagonal, with_x=with_x / unit, with_x2=with_x2 / grown, second=second)


class TiltedGate(Gate):
    """A gate with the moments E tau T^i (1-T)^j and E (tau^2 - var) T^i (1-T)^j beside E T^i (1-T)^j."""

    def __init__(self, bias: float, var: float):
        super().__init__(bias, var)
        t, weight = gaussian_nodes(np.asarray(var))
        opened, shut = (expit(sign * (bias + t)) ** np.arange(3)[:, None] for sign in (1, -1))
        self.tilt, self.bend = ((weight * tau * opened) @ shut.T for tau in (t, t**2 - var))


class OpenGate:
    """T = 1, and 1 - T replaced by 1 (residual) or 0 (plain)."""

    def __init__(self, net: str):
        self.moments = np.ones((5, 5)) if net == "residual" else np.eye(5)[:1].repeat(5, 0)
        self.tilt = self.bend = np.zeros((3, 3))


class TiltedMoments(HiddenMoments):
    """Moments of H, and those that describe its change with q, in units of the root mean square of x."""

    def __init__(self, phi: Activation, length: float, q: float, weight_var: float, gate_weight_var: float):
        super().__init__(phi, length, q, weight_var, gate_weight_var)
        h, weight = gaussian_nodes(np.asarray(length), phi.kink_places)
        value, slope = phi.value(h), phi.slope(h)
        self.sloped = float((weight * slope * h).sum()) / np.sqrt(q)                             # E H' h
        self.value_sloped = float((weight * value * slope * h).sum()) / q                        # E H H' h
        self.slope_bend = float((weight * slope**2 * (h**2 - length)).sum()) / q                 # E H'^2 (h^2 - E h^2)
        self.share = weight_var * q / length if length > 0 else 1.0  # of the variance of h that the weights make


# --- one layer -------------------------------------------------------------------------------------------------------


def layer_map(gate: Gate | OpenGate, values: TiltedMoments, now: HighwayState, after: HighwayState) -> np.ndarray:
    """How the layer carries a state vector: bulk to bulk, bulk to shifts, shifts to shifts, shifts to the mode."""
    step = np.zeros((7, 7))
    step[BULK, BULK] = bulk_map(gate.moments, values, now, after)
    shift = shift_map(gate, values, now)
    grown = np.exp(after.log_q - now.log_q)
    (a, b), (c, d) = shift / np.sqrt([[1.0], [grown]])  # with the factor q'/q of the square, in units of q' behind
    step[SHIFTS, SHIFTS] = [[a * a, 2 * a * b, b * b], [a * c, a * d + b * c, b * d], [c * c, 2 * c * d, d * d]]
    step[SHIFTS, BULK] = made_shifts(gate.moments, values, step[BULK, BULK], grown)
    step[MODE, SHIFTS] = coherent_gain(gate, values, now)
    step[MODE, MODE] = after.chi
    return step


def bulk_map(gate: np.ndarray, values: HiddenMoments, now: HighwayState, after: HighwayState) -> np.ndarray:
    """(b0, b1, b2) = ((1/n) tr B, E x_i B_ii, E x_i^2 B_ii): linear, so the images of three states tell the map."""
    unit = np.sqrt(np.exp(after.log_q - now.log_q))
    columns = []
    for b1, b2 in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)):
        _, with_x, with_x2, _ = jacobian_moments(gate, values, replace(now, with_x=b1, with_x2=b2), after.chi)
        columns.append(np.array([1.0, with_x / unit, with_x2 / unit**2]) * after.chi)
    constant = columns[0]
    return np.stack([constant, columns[1] - constant, columns[2] - constant], axis=1)


def shift_map(gate: Gate | OpenGate, values: TiltedMoments, now: HighwayState) -> np.ndarray:
    """The derivative of (m', q') by (m, q), dm in units of sqrt q, dq of q: by q, E f(h) changes by E f' h / 2 q."""
    g, tilt, h = gate.moments, gate.tilt, values.of_value
    opened, opened2, shut2, mixed = tilt[1, 1] / 2, tilt[2, 1], -tilt[1, 2], (tilt[1, 2] - tilt[2, 1]) / 2
    mean, square = values.share * values.sloped / 2, values.share * values.value_sloped
    # opened is the change of E T with ln q; E(1-T) changes by as much the other way
    return np.array([
        [g[0, 1], opened * (h[1] - now.m) + g[1, 0] * mean],
        [2 * g[1, 1] * h[1], opened2 * h[2] + g[2, 0] * square + 2 * (mixed * h[1] + g[1, 1] * mean) * now.m + shut2
         + g[0, 2]]])


def made_shifts(gate: np.ndarray, values: HiddenMoments, bulk: np.ndarray, grown: float) -> np.ndarray:
    """Shifts that finite width makes: the variance of sum dy_i and 2 sum y_i dy_i over the layer's own T and H.

    What of dy_i and y_i dy_i is already fixed by dx_i and x_i (E(1-T) dx_i, and so on) is no new shift.
    """
    g01, g02, g11h = gate[0, 1], gate[0, 2], gate[1, 1] * values.of_value[1]
    unit = np.sqrt(grown)
    carried = np.array([[g01**2, 0, 0], [g01 * g11h / unit, g01 * g02 / unit, 0],
                        [g11h**2 / grown, 2 * g02 * g11h / grown, g02**2 / grown]])
    return np.array([[1.0], [2.0], [4.0]]) * (bulk - carried)


def coherent_gain(gate: Gate | OpenGate, values: TiltedMoments, now: HighwayState) -> np.ndarray:
    """What shifts add to E dy_i^2 beyond chi E dx_i^2, as coefficients of the three SHIFTS.

    dy = (1-T) dx + T' (H - x) dt + T H' dh; of dt and dh the parts tau dq / 2q and share h dq / 2q are coherent.
    """
    g, tilt, bend, h, m = gate.moments, gate.tilt, gate.bend, values.of_value, now.m
    half, part = 0.5, values.share / 2  # dt = tau dq / 2q, dh = h share dq / 2q
    distance = h[2] - 2 * h[1] * m + 1
    both = 2 * half * tilt[1, 2] * h[1] + 2 * g[1, 1] * part * values.sloped
    square = (half**2 * bend[2, 2] * distance - half * tilt[1, 2] + part**2 * g[2, 0] * values.slope_bend
              + 2 * half * part * tilt[2, 1] * (values.value_sloped - m * values.sloped))
    return np.array([0.0, both, square])
