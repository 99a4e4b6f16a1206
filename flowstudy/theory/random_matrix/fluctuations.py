"""How much gradient norms fluctuate from net to net: exact at any width, for linear and ReLU nets without biases.

A layer of width n multiplies the squared norm of a fixed vector by weight_var / n times a chi-squared variable with k
degrees of freedom (Gaussian weights), or by weight_var times a Beta(k/2, (n - k)/2) variable (orthogonal ones), where
k = n for linear units and the number of live ones, Binomial(n, 1/2), for ReLU. The factors of different layers are
independent, so means and variances of logs add up. Layers of one net are strongly correlated all the same: their norms
share factors.

ReLU means are over nets whose gradient is not exactly 0: a layer is dead with probability 2^-n.

Source: Hanin 2018 (arXiv:1801.03744); Hanin & Nica 2020, Communications in Mathematical Physics 376, 287.
"""

import numpy as np
from scipy.special import digamma, polygamma

from flowstudy.arguments import NAME, takes
from flowstudy.theory.checks import Moments, Result, Values, check_choice, check_integer, check_number

from .live_units import live_digamma

CRITICAL_WEIGHT_VAR = {"linear": 1.0, "relu": 2.0}  # keeps the mean squared norm
LIVE = {"linear": 1.0, "relu": 0.5}                 # probability that a unit is live
WEIGHTS = ("gaussian", "orthogonal")


@takes(activation=NAME, weights=NAME)
def log_jacobian_norm(width: Values, depth: Values, activation: str, weights: str = "gaussian",
                      weight_var: Values | None = None) -> Moments:
    """Mean and variance of ln ||J u||^2, u any fixed unit vector, over nets of `depth` square layers.

    Also of ln ||x_depth||^2 - ln ||x_0||^2: J x is the output. Close to normal where the variance exceeds 1.

    Args:
        width: units a layer, an integer of at least 1.
        depth: layers, an integer of at least 1.
        activation: "linear" or "relu".
        weights: "gaussian", entries N(0, weight_var / width), or "orthogonal", W^T W = weight_var I, Haar.
        weight_var: None is the critical one, which keeps the mean of ||J u||^2: 1 linear, 2 ReLU.
    Returns:
        (mean, variance) [nats, nats^2], float64.

    >>> [round(float(value), 4) for value in log_jacobian_norm(32, 20, "relu")]
    [-1.6508, 3.55]
    """
    call = "log_jacobian_norm"
    width, depth, weight_var = check_net(call, width, depth, activation, weights, weight_var)
    mean, variance = log_layer_gain(width, activation, weights)
    return full(depth * (mean + np.log(weight_var)), depth * variance)


@takes(activation=NAME, weights=NAME)
def log_input_gradient_norm(width: Values, depth: Values, activation: str, weights: str = "gaussian",
                            weight_var: Values | None = None, *, readout_var: Values = 1.0,
                            in_features: Values | None = None) -> Moments:
    """Mean and variance of ln ||d f / d x||^2, f = w . x_depth a scalar read-out with w_i ~ N(0, readout_var / width).

    Masked read-out, depth - 1 masked layers, and the first layer, which no mask follows on the way to the input.

    Args: as `log_jacobian_norm`, and
        readout_var: variance of a read-out weight times width.
        in_features: inputs of the net, whose fan_in scales the first layer's weights; None is `width`.
    Returns:
        (mean, variance) [nats, nats^2], float64.
    """
    call = "log_input_gradient_norm"
    width, depth, weight_var = check_net(call, width, depth, activation, weights, weight_var)
    readout_var = check_number(call, "readout_var", readout_var)
    inputs = width if in_features is None else check_integer(call, "in_features", in_features)
    readout, layer = log_layer_gain(width, activation, "gaussian"), log_layer_gain(width, activation, weights)
    # n components of an isotropic vector; an orthogonal map into more dimensions than the layer's keeps the norm.
    first, reference = log_chi_squared(inputs), log_chi_squared(np.maximum(inputs, width))
    if weights == "gaussian":
        reference = Moments(np.log(inputs), 0.0)
    return full(np.log(readout_var) + depth * np.log(weight_var)
                + readout.mean + (depth - 1) * layer.mean + first.mean - reference.mean,
                readout.variance + (depth - 1) * layer.variance + first.variance - reference.variance)


@takes(activation=NAME, weights=NAME)
def log_weight_gradient_norm(width: Values, depth: Values, activation: str, weights: str = "gaussian",
                             weight_var: Values | None = None, *, readout_var: Values = 1.0) -> Moments:
    """Mean and variance of ln ||d f / d W_l||_F^2, the same for every layer l: input of unit norm, constant width.

    ||d f / d W_l||_F = ||error signal_l|| ||x_(l-1)||: l - 1 factors of the forward pass, a masked read-out and
    depth - l factors of the backward pass, all independent.

    Args: as `log_input_gradient_norm`. An input of squared norm s adds ln s to the mean.
    Returns:
        (mean, variance) [nats, nats^2], float64.
    """
    call = "log_weight_gradient_norm"
    width, depth, weight_var = check_net(call, width, depth, activation, weights, weight_var)
    readout_var = check_number(call, "readout_var", readout_var)
    readout, layer = log_layer_gain(width, activation, "gaussian"), log_layer_gain(width, activation, weights)
    return full(np.log(readout_var) + readout.mean + (depth - 1) * (layer.mean + np.log(weight_var)),
                readout.variance + (depth - 1) * layer.variance)


@takes(activation=NAME, weights=NAME)
def squared_jacobian_norm(width: Values, depth: Values, activation: str, weights: str = "gaussian",
                          weight_var: Values | None = None) -> Moments:
    """Mean and variance of ||J u||^2 itself, dead nets included: the mean stays where the typical value decays.

    E ||J u||^4 per critical layer: 1 + (3/p - 1) / n Gaussian, p the probability of being live; (n + 5) / (n + 2)
    orthogonal ReLU.

    Args: as `log_jacobian_norm`.
    Returns:
        (mean, variance), dimensionless, float64.
    """
    call = "squared_jacobian_norm"
    n, depth, weight_var = check_net(call, width, depth, activation, weights, weight_var)
    p = LIVE[activation]
    excess = (3 / p - 1) / n if weights == "gaussian" else 3 * (1 / p - 1) / (n + 2)
    with np.errstate(over="ignore"):
        mean = (weight_var * p) ** depth
        return full(mean, mean**2 * np.expm1(depth * np.log1p(excess)) if np.any(excess) else 0.0)


def log_layer_gain(width: Result, activation: str, weights: str) -> Moments:
    """Mean and variance of ln ||D W u||^2 at weight_var 1, the same for W^T, since W is square and isotropic."""
    live, everything = log_chi_squared(width, activation), log_chi_squared(width)
    if weights == "gaussian":
        return Moments(live.mean - np.log(width), live.variance)
    return Moments(live.mean - everything.mean, live.variance - everything.variance)  # chi2_k / chi2_n is the Beta


def log_chi_squared(width: Result, activation: str = "linear") -> Moments:
    """Mean and variance of ln chi2_k, k being the number of live units of a layer that has at least one."""
    if activation == "linear":
        return Moments(np.log(2) + digamma(width / 2), polygamma(1, width / 2))
    mean, between, within = np.vectorize(live_digamma)(width)
    return Moments(np.log(2) + mean, between + within)


def check_net(call: str, width: Values, depth: Values, activation: str, weights: str,
              weight_var: Values | None) -> tuple[Result, Result, Result]:
    width, depth = check_integer(call, "width", width), check_integer(call, "depth", depth)
    check_choice(call, "activation", activation, tuple(LIVE), " Of others only the limit of infinite width is known.")
    check_choice(call, "weights", weights, WEIGHTS)
    if weight_var is None:
        weight_var = CRITICAL_WEIGHT_VAR[activation]
    return width, depth, check_number(call, "weight_var", weight_var)


def full(mean: Result, variance: Result) -> Moments:
    """Both of the arguments' common shape."""
    return Moments(*(value[()] + 0.0 for value in np.broadcast_arrays(mean, variance)))
