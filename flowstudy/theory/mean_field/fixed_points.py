"""Fixed points of the length map and of the correlation map, for many weight and bias variances at once."""

from collections.abc import Callable

import numpy as np

from flowstudy.refusal import RefusalError
from flowstudy.theory.checks import Result

from .activations import Activation

CRITICAL = 1e-9  # chi closer to 1 than this counts as 1; the critical line is known to about 1e-12
CHUNK = 1024     # points that are solved at once, sorted by q, since similar q need similar numbers of terms
GRID = np.concatenate([[0.0], np.logspace(-10, 10, 4001)])  # of q, where the length map may have several fixed points


def bracketed_root(function: Callable[[Result], Result], low: Result, high: Result, at_low: Result, at_high: Result,
                   iterations: int = 100) -> Result:
    """Elementwise root between `low` and `high`, where the function has the signs of `at_low` and `at_high`.

    Source: Chandrupatla 1997: inverse quadratic interpolation where it is safe, else bisection.
    """
    a, b, fa, fb = (np.array(v, dtype=np.float64) for v in np.broadcast_arrays(high, low, at_high, at_low))
    c, fc, t = a.copy(), fa.copy(), np.full(a.shape, 0.5)
    for _ in range(iterations):
        best = np.where(np.abs(fa) < np.abs(fb), a, b)
        gap = np.abs(b - a)
        narrow = 4e-16 * np.abs(best) + 1e-300
        done = (gap <= 2 * narrow) | (fa == 0) | (fb == 0)
        if done.all():
            break
        x = np.where(done, best, a + t * (b - a))
        fx = np.where(done, np.where(best == a, fa, fb), function(x))
        same = np.sign(fx) == np.sign(fa)
        c, fc = np.where(done, c, np.where(same, a, b)), np.where(done, fc, np.where(same, fa, fb))
        b, fb = np.where(done | same, b, a), np.where(done | same, fb, fa)
        a, fa = np.where(done, a, x), np.where(done, fa, fx)
        t = next_step(a, b, c, fa, fb, fc, narrow)
    return np.where(np.abs(fa) < np.abs(fb), a, b)


def next_step(a: Result, b: Result, c: Result, fa: Result, fb: Result, fc: Result, narrow: Result) -> Result:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        xi, phi = (a - b) / (c - b), (fa - fb) / (fc - fb)
        safe = (phi**2 < xi) & ((1 - phi) ** 2 < 1 - xi)
        quadratic = fa / (fb - fa) * fc / (fb - fc) + (c - a) / (b - a) * fa / (fc - fa) * fb / (fc - fb)
        least = np.nan_to_num(narrow / np.abs(b - a), posinf=0.5)
        t = np.where(safe & np.isfinite(quadratic), quadratic, 0.5)
    return np.clip(t, np.minimum(least, 0.5), np.maximum(1 - least, 0.5))


# --- length ----------------------------------------------------------------------------------------------------------


def fixed_length(call: str, activation: Activation, weight_var: np.ndarray, bias_var: np.ndarray,
                 q0: np.ndarray) -> np.ndarray:
    """The limit of q -> weight_var V(q) + bias_var from q0; nan where every q is a fixed point."""
    if activation.gain is not None:
        q, lost = homogeneous_length(np.asarray(weight_var * activation.gain), bias_var)
    elif activation.bounded:
        q, lost = bounded_length(activation, weight_var, bias_var), np.zeros_like(weight_var, dtype=bool)
    else:
        q, lost = scanned_length(activation, weight_var, bias_var, q0)
    if lost.any():
        at = tuple(np.argwhere(lost)[0])
        raise RefusalError(f"{call}: `weight_var` must leave the length map a fixed point to go to, got "
                           f"{weight_var[at]:.6g} with bias_var {bias_var[at]:.6g}: q grows without bound"
                           f"{f' ({int(lost.sum())} of {lost.size} points)' if lost.size > 1 else ''}. "
                           "Lower `weight_var`, or take `plain` for a finite depth.")
    return q


def homogeneous_length(gain: np.ndarray, bias_var: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The solution of q = gain q + bias_var, nan where every q solves it, and where q grows without bound."""
    critical = np.abs(gain - 1) <= CRITICAL
    lost = (gain > 1 + CRITICAL) | (critical & (bias_var > 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(critical, np.nan, bias_var / (1 - gain)), np.asarray(lost)


def bounded_length(activation: Activation, weight_var: np.ndarray, bias_var: np.ndarray) -> np.ndarray:
    """The only attracting fixed point for a concave V: it is 0, or lies between the bounds below."""
    def excess(q: Result) -> Result:
        return weight_var * activation.mean_square(q) + bias_var - q

    growth = weight_var * activation.mean_square_slope(np.zeros(())) - 1  # of small q
    stays = (bias_var == 0) & (activation.mean_square(np.zeros(())) == 0)
    low = np.where(stays, np.clip(1e-3 * growth, 0.0, 0.1), bias_var)
    high = weight_var + bias_var
    root = bracketed_root(excess, low, high, excess(low), excess(high))
    return np.where(stays & (growth <= CRITICAL), 0.0, root)


def scanned_length(activation: Activation, weight_var: np.ndarray, bias_var: np.ndarray,
                   q0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The map is increasing, so iteration from q0 converges monotonically to the next fixed point in the direction of
    its first step.  Returns that fixed point, and the points where there is none."""
    shape = weight_var.shape
    low, high, lost = (np.zeros(weight_var.size) for _ in range(3))
    square = activation.mean_square(GRID)
    points = [v.ravel() for v in (weight_var, bias_var, q0)]
    for start in range(0, weight_var.size, CHUNK):
        part = slice(start, start + CHUNK)
        w, b, q = (v[part, None] for v in points)
        above = w * square + b - GRID > 0
        rises = w * activation.mean_square(q) + b - q > 0
        up = np.argmax(~above & (q < GRID), -1)              # the first beyond q0 that maps below itself; 0: none
        down = len(GRID) - 1 - np.argmax((above & (q > GRID))[:, ::-1], -1)  # the last before q0 that maps above
        down = np.where((above & (q > GRID)).any(-1), down, 0)
        rises, q = rises[:, 0], q[:, 0]
        low[part] = np.where(rises, np.maximum(GRID[up - 1], q), GRID[down])
        high[part] = np.where(rises, GRID[up], np.minimum(GRID[np.minimum(down + 1, len(GRID) - 1)], q))
        lost[part] = rises & (up == 0)

    def excess(q: Result) -> Result:
        return points[0] * activation.mean_square(q) + points[1] - q

    root = bracketed_root(excess, low, high, excess(low), excess(high))
    return root.reshape(shape), lost.astype(bool).reshape(shape)


# --- correlation -----------------------------------------------------------------------------------------------------


def fixed_correlation(activation: Activation, weight_var: np.ndarray, bias_var: np.ndarray, q: np.ndarray,
                      chi_1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The correlation c* to which the map converges, and chi, the slope of the map at c*."""
    points = [v.ravel() for v in np.broadcast_arrays(weight_var, bias_var, q, chi_1)]
    length, slope = points[2:]
    c, chi = np.ones_like(length), slope.copy()
    chaotic = np.flatnonzero(slope > 1 + CRITICAL)
    chaotic = chaotic[np.argsort(length[chaotic])]
    for at in (chaotic[i:i + CHUNK] for i in range(0, len(chaotic), CHUNK)):
        c[at], chi[at] = chaotic_correlation(activation, *(v[at] for v in points))
    return c.reshape(q.shape), chi.reshape(q.shape)


def chaotic_correlation(activation: Activation, weight_var: np.ndarray, bias_var: np.ndarray, q: np.ndarray,
                        chi_1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The fixed point below 1; the one at 1, nearby where chi_1 is near 1, is divided out."""
    pairs = activation.pairs(q)
    square = activation.mean_square(q)

    def excess(c: Result) -> Result:  # (c' - c) / (1 - c), falling, 1 - chi_1 at c = 1
        with np.errstate(divide="ignore", invalid="ignore"):
            value = 1 - weight_var / q * (square - pairs.covariance(c)) / (1 - c)
        return np.where(c == 1, 1 - chi_1, value)

    zero = np.zeros_like(q)
    c = bracketed_root(excess, zero, zero + 1, np.maximum(excess(zero), 0.0), 1 - chi_1)
    c = np.where((bias_var == 0) & (pairs.covariance(zero) <= 1e-15), 0.0, c)  # odd activations: exactly
    return c, weight_var * pairs.slope_covariance(c)
