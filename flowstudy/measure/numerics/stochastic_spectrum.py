r"""The mean square and the density of the singular values of a Jacobian too large to write down, by sampling.

Both work on the smaller side of J, so that the zeros that a shape forces on J^T J or J J^T never enter. Random vectors
are uniform on a sphere, not of signs: signs give a zero variance, and so an interval of zero width about a wrong value,
for matrices where they happen to agree; on the sphere the variance is zero only if the answer is exact.

Libraries weighed: curvlinops has XTrace and stochastic Lanczos quadrature for symmetric operators (so on J^T J, where
values below 1e-8 of the largest are lost), without an interval; primate is on the CPU in numpy; matfree is for JAX.

Source: Girard 1987, Hutchinson 1990 (trace by sampling); Meyer, Musco, Musco & Woodruff 2021 (Hutch++: the leading
directions exactly, the rest by sampling); Epperly, Tropp & Webber 2024 (XTrace: sampling on the sphere at right angles
to them); Ubaru, Chen & Saad 2017 (stochastic Lanczos quadrature); Golub & Meurant 2010.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.special import stdtrit
from torch import Tensor

from flowstudy.refusal import RefusalError

from . import EPS
from .density import Density
from .linear_map import LinearMap

FEWEST_QUERIES = 8       # 2 leading directions and 4 samples
OWN_STREAM = 0x7F4A7C15  # any number that nobody seeds with
KRYLOV_MEMORY = 2**28     # bytes of Krylov vectors held at once by `spectral_density`


@dataclass(frozen=True)
class MeanSquare:
    """Mean squared singular value (1/inputs) |J|_F**2, as in E |J u|**2 for a random unit vector u.

    Attributes:
        estimate: unbiased.
        low, high: contain the true value with the asked confidence, over the draws.
        queries: products with J or its transpose that were spent.
    """

    estimate: float
    low: float
    high: float
    queries: int


def mean_squared_singular_value(linear_map: LinearMap, *, queries: int = 64, confidence: float = 0.95,
                                seed: int = 0) -> MeanSquare:
    r"""(1/inputs) |J|_F**2 with a confidence interval, from `queries` products.

    With k = queries // 4 and Q an orthonormal basis of J^T times k random vectors,

        |J|_F**2 = |J Q|_F**2 + tr(P J^T J P),   P = I - Q Q^T.

    The first term is known exactly, and holds what dominates. The second is the mean of X = (n - k) |J w|**2, w uniform
    on the unit sphere of P's range, over the remaining m = queries - 2 k products. Given Q, which they do not share,
    the X are independent and identically distributed; `interval` is then Student's, made longer at the upper end for
    the skewness of X. (XTrace itself uses each vector for both terms. That saves variance, but its estimates depend on
    one another, and its standard error is a heuristic.)

    From `queries` >= min(inputs, outputs) the answer is exact, in that many products. No interval is narrower than
    rounding, eps (inputs + outputs) times the estimate.

    Args:
        linear_map: J.
        queries: products with J or its transpose to spend; at least 8 unless exact.
        confidence: of the interval.
        seed: of the random vectors. The global generator is not used.
    Returns:
        MeanSquare; NaN in every number if a product has NaN entries.
    """
    call = "mean_squared_singular_value"
    narrow = linear_map.narrow
    side = narrow.inputs
    if queries < min(side, FEWEST_QUERIES):
        raise RefusalError(f"{call}: `queries` must be at least {min(side, FEWEST_QUERIES)}, got {queries}. "
                           "64 gives a few per cent.")
    if not 0 < confidence < 1:
        raise RefusalError(f"{call}: `confidence` must be between 0 and 1, got {confidence}. 0.95 is usual.")
    if queries >= side:
        identity = torch.eye(side, dtype=torch.float64, device=narrow.device)
        known, samples = square_sum(narrow.forward(identity)), torch.zeros(0, dtype=torch.float64)
        queries = side
    else:
        known, samples = known_and_sampled(narrow, queries, seed)
    estimate, low, high = interval(known, samples, confidence)
    rounding = EPS * (linear_map.inputs + linear_map.outputs) * estimate
    share = 1 / linear_map.inputs
    return MeanSquare(estimate * share, (low - rounding) * share, (high + rounding) * share, queries)


def known_and_sampled(narrow: LinearMap, queries: int, seed: int) -> tuple[float, Float[Tensor, " samples"]]:
    """|J Q|_F**2, and independent unbiased samples of the rest of |J|_F**2."""
    generator, leading = own_generator(seed), queries // 4

    def draw(rows: int, size: int) -> Tensor:
        return torch.randn(rows, size, generator=generator, dtype=torch.float64).to(narrow.device)

    sketch = narrow.backward(draw(leading, narrow.outputs))
    q = torch.linalg.qr(sketch.mT).Q
    known = square_sum(narrow.forward(q.mT))
    w = draw(queries - 2 * leading, narrow.inputs)
    for _ in range(2):   # the second pass takes the rounding of the first
        w = w - (w @ q) @ q.mT
    w = w / torch.linalg.vector_norm(w, dim=1, keepdim=True)
    return known, (narrow.inputs - leading) * narrow.forward(w).square().sum(1).cpu()


def own_generator(seed: int) -> torch.Generator:
    """A stream of its own: after torch.manual_seed(seed), the same stream may have drawn the weights that J is made of,
    and a start that is a row of J sees that row twice."""
    return torch.Generator().manual_seed((seed ^ OWN_STREAM) % 2**64)


def square_sum(rows: Tensor) -> float:
    return rows.square().sum().item()


def interval(known: float, samples: Float[Tensor, " samples"], confidence: float) -> tuple[float, float, float]:
    r"""known + mean of the samples, and its confidence interval.

    A sample is a sum of lambda_i z_i**2 with lambda_i >= 0 and z_i near standard normal: its skewness is from 0 (many
    equal terms) to sqrt(8) (one term), its excess kurtosis up to 12. Too small a mean then comes with too small a
    standard error, and Student's t falls short: 91 % instead of 95 % for one term and m = 32, 85 % for m = 8. So the
    lower end takes skewness 0, the upper end that of one term, in the second-order Cornish-Fisher expansion of the t
    statistic with t in place of z (Hall 1992, section 2.5):

        t + sqrt(8) (2 t**2 + 1) / (6 sqrt(m)) + t (22 t**2 + 44) / (18 m)   standard errors,

    44 for a standard error with divisor m - 1, as here; with divisor m it is 53.

    Simulated for one term, 95 % asked: 98 % at m = 4, 97 % at 32, 96 % at 200. The low end is never below `known`.
    """
    if len(samples) == 0:
        return known, known, known
    m, mean, peak = len(samples), samples.mean().item(), samples.amax().item() or 1.0
    error = peak * (samples / peak).std().item() / m ** 0.5   # scaled: fourth powers of a vanishing J underflow
    t = float(stdtrit(m - 1, 0.5 + 0.5 * confidence))  # Student's t quantile
    upper = t + 8 ** 0.5 * (2 * t**2 + 1) / (6 * m**0.5) + t * (22 * t**2 + 44) / (18 * m)
    return known + mean, known + max(mean - t * error, 0.0), known + mean + upper * error


def spectral_density(linear_map: LinearMap, *, queries: int = 16, steps: int = 32, seed: int = 0) -> Density:
    """The distribution of the singular values by stochastic Lanczos quadrature.

    From each of `queries` random unit vectors v, `steps` of Golub-Kahan bidiagonalisation give a bidiagonal B. Its
    singular values are the nodes and the squared first components of its right singular vectors the weights of Gauss's
    rule for v^T f(J^T J) v, exact for polynomials of degree below 2 steps in s**2; the mean of that over v is the mean
    of f over the spectrum. On B, not on J^T J, nodes are right to rounding of the largest, not to its root; what lies
    below that is -inf, zero or not. Cost: 2 queries * steps products.

    Quadrature is in s, not in ln s: where singular values span many decades, as those of products of many layers do,
    the top ones get nodes of their own and all the others share one or a few. `Density.cumulative` says how much of its
    answer hangs on that. The product route finds every ln s of a chain of layers; `exact_density` is theirs.

    Args:
        linear_map: J.
        queries: random starts; the standard error falls as 1 / sqrt(queries * min(inputs, outputs)).
        steps: nodes per start: the resolution; more than min(inputs, outputs) are not taken.
        seed: of the starts. The global generator is not used.
    Returns:
        Density; NaN in the rows where a product has NaN or infinite entries.
    """
    call = "spectral_density"
    if queries < 1 or steps < 1:
        raise RefusalError(f"{call}: `queries` and `steps` must be at least 1, got {queries} and {steps}. "
                           "16 and 32 are usual.")
    narrow = linear_map.narrow
    steps = min(steps, narrow.inputs)
    generator = own_generator(seed)
    starts = torch.randn(queries, narrow.inputs, generator=generator, dtype=torch.float64)
    group = max(1, KRYLOV_MEMORY // (8 * steps * (narrow.inputs + narrow.outputs)))
    parts = [bidiagonalize(narrow, start.to(narrow.device), steps) for start in starts.split(group)]
    alpha, beta, noise = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
    core = alpha.diag_embed() + beta[:, :-1].diag_embed(1)
    bad = ~core.isfinite().all(-1).all(-1)
    u, s, vh = torch.linalg.svd(core.masked_fill(bad[:, None, None], 0.0))
    top = s[~bad].max().item() if not bad.all() else 0.0
    floor = max(narrow.floor * top, narrow.outputs**0.5 * noise[~bad].max().item() if not bad.all() else 0.0)
    log_values = torch.where(s <= floor, 0.0, s).log()
    unsettled = share_unsettled(s, beta[:, -1:].masked_fill(bad[:, None], 0.0) * u[:, -1].abs(), floor)
    columns = (torch.where(bad[:, None], torch.nan, column).flip(1)
               for column in (log_values, vh[:, :, 0].square(), unsettled))
    return Density(*columns, resolved_above=math.log(floor) if floor > 0 else -math.inf)


def share_unsettled(s: Float[Tensor, "query steps"], residual: Float[Tensor, "query steps"], floor: float,
                    ) -> Float[Tensor, "query steps"]:
    """0 for a node that is a singular value, 1 for one that stands for several: its residual |J^T u - s v| against the
    distance to the next node or to 0, which bounds the angle between v and a singular vector (Davis & Kahan 1970).
    Below the floor a residual is rounding."""
    below = s - torch.nn.functional.pad(s[:, 1:], (0, 1))
    gap = torch.minimum(below, torch.nn.functional.pad(below[:, :-1], (1, 0), value=math.inf))
    return torch.where(residual > floor, (residual / gap).clamp(max=1.0), 0.0)


def bidiagonalize(narrow: LinearMap, starts: Float[Tensor, "query inputs"], steps: int,
                  ) -> tuple[Float[Tensor, "query steps"], Float[Tensor, "query steps"], Float[Tensor, " query"]]:
    """Golub-Kahan bidiagonalisation from each start.

    Returns the diagonals and the superdiagonals, with zeros from where the Krylov space is exhausted; the last entry of
    a superdiagonal leads out of the bidiagonal matrix.  The third result is the size of rounding: entries of the
    products that would be 0 in exact arithmetic.

    Source: Golub & Kahan 1965, with full reorthogonalisation.
    """
    queries = len(starts)
    right = starts.new_zeros(queries, steps, narrow.inputs)
    left = starts.new_zeros(queries, steps, narrow.outputs)
    alpha, beta = starts.new_zeros(queries, steps), starts.new_zeros(queries, steps)
    top, noise = starts.new_zeros(()), starts.new_zeros(queries)
    right[:, 0], _ = unit(starts, top)
    for step in range(steps):
        u = narrow.forward(right[:, step])
        noise = torch.maximum(noise, largest_part(u, left[:, :max(step - 1, 0)]))
        u = away_from(u, left[:, :step])
        left[:, step], alpha[:, step] = unit(u, narrow.floor * top)
        top = torch.maximum(top, alpha[:, step].nan_to_num(0.0).amax())
        v = narrow.backward(left[:, step])
        noise = torch.maximum(noise, largest_part(v, right[:, :step]))
        v, beta[:, step] = unit(away_from(v, right[:, :step + 1]), narrow.floor * top)
        if step + 1 < steps:
            right[:, step + 1] = v
    return alpha, beta, noise


def largest_part(rows: Float[Tensor, "query size"], basis: Float[Tensor, "query known size"],
                 ) -> Float[Tensor, " query"]:
    """Along any vector of each row's own basis; 0 where that is empty."""
    if basis.shape[1] == 0:
        return rows.new_zeros(len(rows))
    return (basis @ rows.unsqueeze(-1)).abs().amax((1, 2)).nan_to_num(0.0)


def away_from(rows: Float[Tensor, "query size"], basis: Float[Tensor, "query known size"],
              ) -> Float[Tensor, "query size"]:
    """Each row, at right angles to its own basis; two passes of Gram-Schmidt are enough."""
    for _ in range(2):
        rows = rows - ((basis @ rows.unsqueeze(-1)).mT @ basis).squeeze(1)
    return rows


def unit(rows: Float[Tensor, "query size"], floor: Float[Tensor, ""],
         ) -> tuple[Float[Tensor, "query size"], Float[Tensor, " query"]]:
    """Each row over its length, and the length; both 0 where the length is no more than the floor."""
    peak = rows.abs().amax(1, keepdim=True)
    peak = torch.where(peak == 0, 1.0, peak)   # lengths of a vanishing Jacobian: its squares underflow
    length = peak * torch.linalg.vector_norm(rows / peak, dim=1, keepdim=True)
    length = torch.where(length <= floor, 0.0, length)
    return torch.where(length == 0, 0.0, rows / length), length.squeeze(1)
