"""Initial weights by the name of their scheme, for any module with linear and convolutional layers."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowstudy import names, theory
from flowstudy.arguments import check_one_of
from flowstudy.names import ActivationName, SchemeName
from flowstudy.refusal import RefusalError
from flowstudy.torch_arguments import MODULE

from .activation_modules import Nonlinearity, activation_between
from .blocks import HighwayBlock, PlainBlock

WEIGHT_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Matrix:
    """One matrix to draw: a view of a weight, its fans, the activation that follows it, and its bias."""

    weight: Tensor
    fan_in: int
    fan_out: int
    activation: Nonlinearity | None  # None: could not be told
    bias: Tensor | None              # None: has none, or a gate's, which stays
    bias_var: float                  # of the bias that goes with it


Draw = Float[np.ndarray, "out inner"]


def glorot_normal(m: Matrix, gain: float | None, rng: np.random.Generator) -> Draw:
    """Var = gain^2 2 / (fan_in + fan_out). Glorot & Bengio 2010, equation 12."""
    return normal(m, rng, (1.0 if gain is None else gain) * math.sqrt(2 / (m.fan_in + m.fan_out)))


def glorot_uniform(m: Matrix, gain: float | None, rng: np.random.Generator) -> Draw:
    """Bound = gain sqrt(6 / (fan_in + fan_out)). Glorot & Bengio 2010, equation 16."""
    return uniform(m, rng, (1.0 if gain is None else gain) * math.sqrt(2 / (m.fan_in + m.fan_out)))


def he_normal(m: Matrix, gain: float | None, rng: np.random.Generator) -> Draw:
    """Var = gain^2 / fan_in, gain sqrt(2). He et al. 2015, equation 10."""
    return normal(m, rng, (math.sqrt(2) if gain is None else gain) / math.sqrt(m.fan_in))


def he_uniform(m: Matrix, gain: float | None, rng: np.random.Generator) -> Draw:
    """The uniform distribution of he_normal's variance."""
    return uniform(m, rng, (math.sqrt(2) if gain is None else gain) / math.sqrt(m.fan_in))


def lecun_uniform(m: Matrix, gain: float | None, rng: np.random.Generator) -> Draw:
    """The uniform distribution of lecun_normal's variance: bound gain sqrt(3 / fan_in)."""
    return uniform(m, rng, (1.0 if gain is None else gain) / math.sqrt(m.fan_in))


def lecun_normal(m: Matrix, gain: float | None, rng: np.random.Generator) -> Draw:
    """Var = gain^2 / fan_in, gain 1. LeCun et al. 1998, equation 16."""
    return normal(m, rng, (1.0 if gain is None else gain) / math.sqrt(m.fan_in))


def orthogonal(m: Matrix, gain: float | None, rng: np.random.Generator) -> Draw:
    """W^T W = gain^2 I (or W W^T, where wide), gain 1, Haar-distributed. Saxe et al. 2014.

    ReLU halves the mean square: give gain=2**0.5 to keep it.
    """
    rows, columns = matrix_shape(m)
    q, r = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns))))
    q *= np.sign(np.diagonal(r))  # without the signs q is not Haar-distributed
    return (1.0 if gain is None else gain) * (q if rows >= columns else q.T)


def random_walk(m: Matrix, gain: float | None, rng: np.random.Generator) -> Draw:
    """Var = g^2 / fan_in, g so that the log norm of the back-propagated error walks without drift.

    Sussillo & Abbott 2014 (arXiv:1412.6558): g = exp(1 / 2N) for linear units, sqrt(2) exp(1.2 / (max(N, 6) - 2.4))
    for ReLU, N the layer's fan_in; 1.13 for tanh, which is not in the paper (`theory.random_walk_gain`).
    """
    return normal(m, rng, (random_walk_gain_of(m.activation, m.fan_in) if gain is None else gain) / math.sqrt(m.fan_in))


def random_walk_exact(m: Matrix, gain: float | None, rng: np.random.Generator) -> Draw:
    """As random_walk, with the gain that is exact at fan_in, for linear and ReLU units: `theory.random_walk_gain`."""
    gain = random_walk_gain_of(m.activation, m.fan_in, exact=True) if gain is None else gain
    return normal(m, rng, gain / math.sqrt(m.fan_in))


def critical(m: Matrix, gain: float | None, rng: np.random.Generator) -> Draw:
    """Var = weight_var / fan_in, on the edge of chaos for the given bias_var: `theory.critical_weight_var`.

    Schoenholz et al. 2017 (arXiv:1611.01232). Linear units, as the read-out's, have weight_var 1; leaky ReLUs of slope
    a 2 / (1 + a^2) (He et al. 2015, equation 15).
    """
    own = gain is None
    return normal(m, rng, (critical_gain(m.activation, m.bias_var) if own else gain) / math.sqrt(m.fan_in))


FORWARDS = {PlainBlock.forward}  # of blocks, that apply what `activation` names; `flowstudy.kinds` adds those of others
SCHEMES = {scheme.__name__: scheme for scheme in
           (glorot_normal, glorot_uniform, he_normal, he_uniform, lecun_normal, lecun_uniform, orthogonal,
            random_walk, random_walk_exact, critical)}


def initialize(model: nn.Module, scheme: SchemeName, *, seed: int = 0, gain: float | None = None,
               activation: ActivationName | None = None, bias_var: float = 0.0) -> nn.Module:
    """Draw every linear and convolutional weight and bias of `model` anew, in place; gate biases stay.

    The draw of a matrix depends on the seed and on the matrix's place in the model alone: it is made on the CPU in
    float64 and then cast, so a seed gives the same net on every device, alone or among hundreds.  A highway block's
    H and T are two matrices, each with the block's own fans.  Other parameters (norms, embeddings) are left alone.

    Args:
        model: any module; it is changed in place.
        scheme: glorot_normal, glorot_uniform, he_normal, he_uniform, lecun_normal, lecun_uniform, orthogonal,
            random_walk, random_walk_exact, critical.
        seed: a non-negative integer.
        gain: replaces the scheme's own gain: the factor before 1 / sqrt(fan), dimensionless.
        activation: the non-linearity that follows the hidden layers; only random_walk, random_walk_exact and critical
            ask for it, and only of models that have no or several activation modules. The slope of leaky_relu and the
            range of hard_tanh are those of the model's nn.LeakyReLU or nn.PReLU, and nn.Hardtanh or nn.ReLU6, where it
            has some, else 0.01 and [-1, 1].
        bias_var: biases are drawn from N(0, bias_var); 0 makes them 0. critical has the weights that go with it.

    Returns:
        `model`, for chaining.

    Raises:
        ValueError: unknown scheme, negative seed or bias_var, a gain that is not positive and finite, a model without
            weights, or a scheme that does not know the activation: several slopes, or modules with options that
            `theory` does not have. The model is then unchanged.

    >>> net = initialize(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), "orthogonal", seed=0)
    >>> torch.allclose(net[0].weight.T @ net[0].weight, torch.eye(3), atol=1e-6)
    True
    """
    MODULE("initialize", "model", model)
    check_one_of("initialize", "scheme", scheme, SCHEMES)
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise RefusalError(f"initialize: `seed` must be a non-negative integer, got {seed!r}.")
    if gain is not None and not (isinstance(gain, int | float | np.number) and gain > 0 and math.isfinite(gain)):
        raise RefusalError(f"initialize: `gain` must be positive and finite, got {gain!r}.")
    if not (isinstance(bias_var, int | float | np.number) and 0 <= bias_var < math.inf):
        raise RefusalError(f"initialize: `bias_var` must be non-negative and finite, got {bias_var!r}.")
    matrices = list(weight_matrices(model, activation, float(bias_var)))
    if not matrices:
        raise RefusalError(f"initialize: `model` must have linear or convolutional layers, got {type(model).__name__} "
                           "without any. Initialise its parameters by hand.")
    draws = [SCHEMES[scheme](m, gain, generator(int(seed), place)) for place, m in enumerate(matrices)]
    with torch.no_grad():
        for place, (m, draw) in enumerate(zip(matrices, draws, strict=True)):
            m.weight.copy_(torch.from_numpy(np.ascontiguousarray(draw)).view(m.weight.shape))
            if m.bias is not None:
                unit = generator(int(seed), place, 1).standard_normal(m.bias.shape)
                m.bias.copy_(torch.from_numpy(math.sqrt(bias_var) * unit + 0.0))  # no -0.0
    return model


def generator(seed: int, *place: int) -> np.random.Generator:
    """A matrix's own stream, and (place, 1) its bias's: independent of every other matrix's and seed's."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=place))


def weight_matrices(model: nn.Module, activation: str | None, bias_var: float) -> Iterator[Matrix]:
    """Each matrix of the model in registration order; a fused highway weight is two."""
    hidden = activation_between(model, activation)
    gated = {block.affine for block in model.modules() if isinstance(block, HighwayBlock)}
    names.meet_kinds()
    known = {block.affine: Nonlinearity(block.activation) for block in model.modules()
             if type(block).forward in FORWARDS}
    layers = [layer for layer in model.modules() if isinstance(layer, WEIGHT_LAYERS)]
    for layer in layers:
        if isinstance(layer, nn.modules.lazy.LazyModuleMixin) or layer._parameters.get("weight") is None:
            raise RefusalError("initialize: every weight must be an ordinary parameter, got another in a "
                               f"{type(layer).__name__}. Remove its parametrization (or run one forward pass), "
                               "initialise, then put it back.")
        follows = known.get(layer, Nonlinearity("linear") if is_readout(layer, layers) else hidden)
        weights, biases = (layer.weight,), (layer.bias,)
        if layer in gated:
            weights, biases = layer.weight.chunk(2), (layer.bias.chunk(2)[0], None)
        for weight, bias in zip(weights, biases, strict=True):
            receptive_field = math.prod(weight.shape[2:])
            # A grouped convolution's weight already holds only the inputs that one output sees.
            yield Matrix(weight, weight.shape[1] * receptive_field,
                         weight.shape[0] * receptive_field // getattr(layer, "groups", 1), follows, bias, bias_var)


def is_readout(layer: nn.Module, layers: list[nn.Module]) -> bool:
    return layer is layers[-1] and isinstance(layer, nn.Linear)


def random_walk_gain_of(activation: Nonlinearity | None, fan_in: int, exact: bool = False) -> float:
    known, name = ("linear", "relu") if exact else ("linear", "relu", "tanh"), activation and activation.name
    if name not in known:
        raise RefusalError(f"initialize: {'random_walk_exact' if exact else 'random_walk'!r} knows gains for "
                           f"{', '.join(known[:-1])} and {known[-1]}, got activation {name!r}. "
                           "Pass `activation=` if the model's is one of these, else `gain=`.")
    return float(theory.random_walk_gain(name, fan_in, exact))


@lru_cache(maxsize=64)
def critical_gain(activation: Nonlinearity | None, bias_var: float) -> float:
    if activation == Nonlinearity("linear"):
        return 1.0
    if activation is None or not activation.is_known:
        raise RefusalError(f"initialize: 'critical' must know the activation, got {activation and activation.name}. "
                           "Pass `activation=`, or `gain=`.")
    try:
        return math.sqrt(theory.critical_weight_var(activation.in_theory, bias_var))
    except ValueError as error:
        raise RefusalError(f"initialize: 'critical' with bias_var {bias_var!r}: {error}") from None


def matrix_shape(m: Matrix) -> tuple[int, int]:
    return m.weight.shape[0], math.prod(m.weight.shape[1:])


def normal(m: Matrix, rng: np.random.Generator, std: float) -> Draw:
    return std * rng.standard_normal(matrix_shape(m))


def uniform(m: Matrix, rng: np.random.Generator, std: float) -> Draw:
    bound = math.sqrt(3) * std  # a uniform variable on [-b, b] has variance b^2 / 3
    return rng.uniform(-bound, bound, matrix_shape(m))
