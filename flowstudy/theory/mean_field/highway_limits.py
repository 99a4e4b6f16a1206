"""Limits of deep highway nets: their per-layer rates, the log volume of a layer, and the gate bias for a depth."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, log_expit

from flowstudy.arguments import NAME, takes
from flowstudy.refusal import RefusalError
from flowstudy.theory.checks import Result, Values, check_choice, check_integer, check_number

from .activations import Activation, activation_named
from .fixed_points import bracketed_root
from .gaussian import gaussian_nodes
from .highway import check_init, highway
from .maps import NON_NEGATIVE, depth_scale, plain_number
from .plain import one_number

NEGLIGIBLE = 1e-18  # weight of a node in a mean of things near 1


@takes(keeps=NAME)
def suggest_gate_bias(depth: Values, keeps: str = "late-layer rate", *, activation: str = "tanh",
                      weight_var: Values = 1.0, gate_weight_var: Values = 1.0, q0: Values = 1.0) -> Result:
    """The largest gate bias at which `depth` highway layers lose no more than a factor e of E||gradient||^2.

    Which layers' rate of loss is meant is `keeps`:

    "late-layer rate": b_T = -ln(2 L - 1).  With s = sigmoid(b_T) the late layers' gates tend to s, and what a layer
    keeps of E||gradient||^2 to s^2 + (1-s)^2, about e^(-2 s) (`highway_limit`; a weight_var of 1 for tanh, 2 for ReLU).
    At that rate L layers lose less than a factor e where 2 s L <= 1: s <= 1 / (2 L), b_T = ln(s / (1-s)) <=
    -ln(2 L - 1).  A net loses more than that, since in its first layers the signal is still large, gates and slopes
    vary from unit to unit, and a layer keeps less: a tanh net of 10, 50, 100 layers at this bias keeps .304, .277, .273
    of E||gradient||^2, not 1 / e = .368.

    "whole net": the bias at which the product of chi over all layers is 1 / e, by the recursion of `highway`: it
    depends on the activation, the weights and the size of the first signal, and is lower by about 0.3 for tanh.

    Args:
        depth: L, highway layers; arrays too.
        keeps: "late-layer rate" or "whole net".
        activation, weight_var, gate_weight_var, q0: as in `highway`; of "whole net", the rate does not depend on them.

    Returns:
        At most 0: a net so shallow that it keeps 1 / e with open gates has 0.

    >>> [round(suggest_gate_bias(depth), 2) for depth in (10, 50, 100)]
    [-2.94, -4.6, -5.29]
    >>> [round(suggest_gate_bias(depth, "whole net"), 2) for depth in (10, 50)]
    [-3.16, -4.89]
    """
    call = "suggest_gate_bias"
    depth = check_integer(call, "depth", depth)
    check_choice(call, "keeps", keeps, ("late-layer rate", "whole net"))
    rule = -np.log(2 * depth - 1) + 0.0
    if keeps == "late-layer rate":
        return plain_number(rule)

    def excess(bias: float, layers: int) -> float:
        gains = highway(activation, layers, bias, weight_var, gate_weight_var, q0)["chi"]
        return float(np.log(gains).sum()) + 1  # 0 where a factor e is lost

    def root(layers: int, low: float) -> float:
        while excess(low, layers) < 0:  # more closed gates lose less: all is kept in the end
            low -= 1
        return 0.0 if excess(0.0, layers) >= 0 else brentq(excess, low, 0.0, args=(layers,), xtol=1e-6)

    biases = [root(int(layers), start - 1) for layers, start in zip(depth.ravel(), rule.ravel(), strict=True)]
    return plain_number(np.reshape(biases, depth.shape))


@dataclass(frozen=True)
class HighwayLimit:
    """Deep highway layers of one bias, no b_H, in which the signal decays; each a float or an array.

    Attributes:
        gate: s = sigmoid(b_T), what every gate tends to.
        chi: mean squared singular value per layer; E||gradient||^2 falls by it.
        length_ratio: q'/q per layer.
        mean_ratio: rho, mean over root mean square of the activations; 0 for odd activations.
        variance_growth: kappa, by which P grows per layer.
        xi_gradient, xi_q, xi_c: layers over which E||gradient||^2, q and 1 - c fall by e; xi_c is inf where the
            correlation of two inputs freezes (odd activations).
    """

    gate: Result
    chi: Result
    length_ratio: Result
    mean_ratio: Result
    variance_growth: Result
    xi_gradient: Result
    xi_q: Result
    xi_c: Result


def highway_limit(activation: str, gate_bias: Values, weight_var: Values) -> HighwayLimit:
    """The limit of the recursion of `highway`: q -> 0, T -> s, and H is linear, or linear on either side of 0.

    chi = s^2 weight_var E phi'^2 + (1-s)^2, and q'/q the same for odd activations.  ReLU's outputs are positive, T H
    and (1-T) x add up: q'/q = s^2 weight_var / 2 + (1-s)^2 + 2 s (1-s) rho sqrt(weight_var / (2 pi)) > chi, so that
    two inputs merge, 1 - c falling by chi / (q'/q) per layer.

    Returns:
        A HighwayLimit of what a layer does once the signal is small, each in the arguments' common shape.

    Raises:
        ValueError: where the signal does not decay (tanh: weight_var >= 2/s - 1), or sigmoid, which is not 0 at 0.
    """
    call = "highway_limit"
    phi = activation_named(call, activation)
    bias, w = np.broadcast_arrays(check_number(call, "gate_bias", gate_bias, "a number"),
                                  check_number(call, "weight_var", weight_var, NON_NEGATIVE))
    if float(phi.value(np.zeros(()))) != 0:
        raise RefusalError(f"{call}: `activation` must be 0 at 0, got {activation!r}, whose signal does not decay. "
                           "Take `highway` for a finite depth.")
    s, a = expit(bias), expit(-bias)
    mean, square = small_signal(phi)
    chi = s**2 * w * square + a**2
    rho = mean_ratio(s, a, mean * np.sqrt(w), square * w)
    ratio = chi + 2 * s * a * mean * np.sqrt(w) * rho
    if np.any(ratio >= 1):
        at = tuple(np.argwhere(ratio >= 1)[0])
        raise RefusalError(f"{call}: `weight_var` must be small enough that the signal decays, got {w[at]:.6g} at "
                           f"gate_bias {bias[at]:.6g}, where q grows by {ratio[at]:.6g} per layer. Take `highway`.")
    fourth = w**2 * slope_fourth(phi)
    kappa = (2 * (s * a) ** 2 * w * square + s**4 * fourth) / chi**2
    return HighwayLimit(*map(plain_number, (s, chi, ratio, rho, kappa)),
                        depth_scale(chi), depth_scale(ratio), depth_scale(chi / ratio))


def small_signal(phi: Activation) -> tuple[float, float]:
    """E phi / sqrt(q) and E phi^2 / q (or E phi'^2, the same) of a signal so small that phi is what it is at 0."""
    below, above = one_sided_slopes(phi)
    return (above - below) / np.sqrt(2 * np.pi), (above**2 + below**2) / 2


def slope_fourth(phi: Activation) -> float:
    return float(np.mean(np.power(one_sided_slopes(phi), 4)))


def one_sided_slopes(phi: Activation) -> tuple[float, float]:
    below, above = phi.slope(np.array([-1e-12, 1e-12]))
    return (float(below), float(above)) if phi.kinks else (float(phi.slope(np.zeros(()))),) * 2


def mean_ratio(s: Result, a: Result, mean: Result, square: Result) -> Result:
    """rho = E x / sqrt(E x^2) at its fixed point: (s mean + a rho)^2 = rho^2 q'/q, divided by s.

    A cubic that is negative at 0 and positive at 1, since mean^2 <= square.
    """
    def excess(rho: Result) -> Result:
        return 2 * a * mean * rho**3 + s * square * rho**2 - 2 * a * mean * rho - s * mean**2

    low, high = np.zeros_like(s), np.ones_like(s)
    bent = mean > 0
    root = bracketed_root(excess, low, high, np.where(bent, excess(low), -1.0), np.where(bent, excess(high), 1.0))
    return np.where(bent, root, 0.0)


def highway_log_volume(activation: str, gate_bias: Values, weight_var: Values, gate_weight_var: Values = 1.0,
                       q: Values = 1.0, m: Values = 0.0) -> float:
    """(1/n) ln |det J| of one highway layer's Jacobian: its mean log singular value, at infinite width.

    E ln(1-T) where E[gam^2 / (1-T)^2] < 1, gam^2 = weight_var T^2 H'^2 + gate_weight_var T'^2 (H - x)^2; else
    E ln((1-T)^2 + gam^2 w) / 2 - w / 2, w the solution of E[gam^2 / ((1-T)^2 + gam^2 w)] = 1.  Gates that are all
    open (gate_bias inf) give a plain layer: E ln|H'| + (ln weight_var - 1) / 2, -inf for relu.

    Args:
        activation, gate_bias, weight_var, gate_weight_var: as in `highway`.
        q, m: mean square and mean of the layer's inputs, taken as Gaussian.

    Returns:
        [nats per singular value and layer], in the arguments' common shape.

    Source: derived for flowstudy from the law of diag(a) + (Gaussian matrix with a variance profile).

    >>> round(highway_log_volume("tanh", gate_bias=-1.0, weight_var=1.0), 5)
    -0.40686
    """
    call = "highway_log_volume"
    phi = activation_named(call, activation)
    for name, value in {"gate_bias": gate_bias, "weight_var": weight_var, "gate_weight_var": gate_weight_var,
                        "q": q, "m": m}.items():
        one_number(call, name, value)
    bias, w_h, w_t, _ = check_init(call, gate_bias, weight_var, gate_weight_var)
    q, m = check_number(call, "q", q), check_number(call, "m", m, "a number")
    if m**2 > q:
        raise RefusalError(f"{call}: `m` must be at most sqrt(q) = {float(q) ** 0.5:.6g} in size, got {float(m):.6g}.")
    t, t_weight = gaussian_nodes(w_t * q)
    h, h_weight = gaussian_nodes(w_h * q, phi.kink_places)
    x, x_weight = coarse(*gaussian_nodes(q - m**2))
    carried = float(t_weight @ log_expit(-bias - t))
    t, t_weight = coarse(t, t_weight)
    h, h_weight = (h, h_weight) if phi.kinks else coarse(h, h_weight)
    gate, shut = expit(bias + t)[:, None, None], expit(-bias - t)[:, None, None]
    renewed = gate**2 * (w_h * phi.slope(h)[:, None] ** 2
                         + w_t * shut**2 * (phi.value(h)[:, None] - m - x) ** 2)  # gam^2
    weight = (t_weight[:, None, None] * h_weight[:, None] * x_weight).ravel()
    heavy = weight > NEGLIGIBLE
    kept = np.broadcast_to(shut**2, renewed.shape).ravel()[heavy]
    renewed, weight = renewed.ravel()[heavy], weight[heavy]
    with np.errstate(divide="ignore", invalid="ignore"):
        if (weight * np.where(renewed > 0, renewed / kept, 0.0)).sum() <= 1:
            return carried
        w = volume_root(renewed, kept, weight)
        return float((weight * np.log(kept + renewed * w)).sum() / 2 - w / 2)


def coarse(nodes: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every fourth node: three integrals at once need fewer, and their functions are smooth."""
    return nodes[::4], weight[::4] / weight[::4].sum()


def volume_root(renewed: np.ndarray, kept: np.ndarray, weight: np.ndarray) -> float:
    """w of E[gam^2 / ((1-T)^2 + gam^2 w)] = 1, which lies below P(gam > 0) <= 1."""
    live = renewed > 0
    renewed, kept, weight = renewed[live], kept[live], weight[live]

    def excess(w: Result) -> Result:
        return np.asarray(1 - (weight * renewed / (kept + renewed * float(w))).sum())  # BLAS threads would wait

    low, high = 1e-12, 1.0
    return float(bracketed_root(excess, low, high, excess(low), np.maximum(excess(high), 1e-300)))
