"""The routes to the singular values of a stretch of a pass: product, dense and matrix-free."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowstudy.measure.models.chain import Factor, Pulled, proved_jacobians
from flowstudy.measure.models.dense_jacobian import AGREEMENT, Function, Stretch, jacobian_of, row_and_image
from flowstudy.measure.models.graph import coarsest, reachable
from flowstudy.measure.numerics.linear_map import LinearMap, jacobian_map
from flowstudy.measure.numerics.matrix_free import largest_singular_values
from flowstudy.measure.numerics.products.product_svd import product_svd
from flowstudy.measure.numerics.stochastic_spectrum import mean_squared_singular_value, spectral_density
from flowstudy.refusal import RefusalError

from .checks import check_alike
from .result import JacobianSpectrum

TOP = 10  # number of singular values that the matrix-free route finds if `k` is not given
ROUNDING_FACTOR = 4.0  # safety factor on the rounding of a Jacobian, which is estimated from one random row
RESOLVED = 1e-6        # largest error of a log value with which a dense spectrum is kept


def dtype_name(stretch: Stretch) -> str:
    """The coarsest dtype that the pass computes in between the two ends."""
    nodes = reachable(stretch.end) if stretch.nodes is None else list(stretch.nodes)
    return str(coarsest(nodes)).removeprefix("torch.")


def eps_of(dtype: str) -> float:
    return torch.finfo(getattr(torch, dtype)).eps


def agreement_of(dtype: str) -> float:
    """The largest relative difference allowed between two routes: rounding of thousands of operations in this dtype."""
    return max(AGREEMENT, 1e4 * eps_of(dtype))


# --- product ---------------------------------------------------------------------------------------------------------


def product_spectrum(chain: list[Factor], dtype: str, pulled: Pulled | None = None) -> JacobianSpectrum:
    """The spectrum by the product route; NotProvedError if a factor disagrees with autograd's backward pass."""
    spectrum = product_svd(proved_jacobians(chain, agreement_of(dtype), pulled), eps=eps_of(dtype))
    return JacobianSpectrum(*logs_of(spectrum), len(chain), chain[0].inputs, "product", dtype)


def logs_of(spectrum: object) -> tuple[Tensor, Tensor, Tensor]:
    return spectrum.log_singular_values.cpu(), spectrum.log_error.cpu(), spectrum.below_floor.cpu()


# --- dense -----------------------------------------------------------------------------------------------------------


def dense_spectrum(stretch: Stretch, factors: int, chunk: int | None, dtype: str, function: Function | None = None,
                   x: Tensor | None = None) -> JacobianSpectrum:
    jacobians, rounding = jacobian_of(stretch, chunk, function, x)
    return spectrum_of(jacobians, ROUNDING_FACTOR * rounding, factors, dtype)


def spectrum_of(jacobians: Float[Tensor, "sample outputs inputs"], rounding: Float[Tensor, " sample"], factors: int,
                dtype: str, rank: Int[Tensor, " sample"] | None = None) -> JacobianSpectrum:
    """The spectrum of explicit matrices.

    Args:
        rounding: norm of each matrix's error.
        rank: an upper bound on the number of values that are not exactly zero (`structural_rank`); None if not known.
    """
    wild = ~jacobians.flatten(1).sum(-1).isfinite()
    if wild.any():   # or a sum that overflowed
        wild = ~jacobians.isfinite().flatten(1).all(-1)
        jacobians = torch.where(wild[:, None, None], 0.0, jacobians)
    s = singular_values(jacobians).cpu()
    noise = s[:, :1] * max(jacobians.shape[1:]) * eps_of(dtype) + rounding.nan_to_num().cpu().unsqueeze(-1)
    zero = torch.zeros_like(s, dtype=torch.bool)
    if rank is not None:
        zero = (torch.arange(s.shape[-1]) >= rank.cpu().unsqueeze(-1)) & ~wild.cpu().unsqueeze(-1)
    below = (s <= noise) & ~zero
    log_s = s.log().masked_fill(below | wild.cpu().unsqueeze(-1), math.nan)
    return JacobianSpectrum(
        log_singular_values=log_s.masked_fill(zero, -math.inf),
        log_error=(noise / s).masked_fill(zero, 0.0),
        below_floor=below.sum(-1),
        factors=factors, inputs=jacobians.shape[-1], method="dense", dtype=dtype,
    )


def singular_values(matrices: Float[Tensor, "sample rows columns"]) -> Float[Tensor, "sample rank"]:
    """Singular values by LAPACK; rows and columns that are zero in every sample (dead units) are left out to save time.
    """
    live = (matrices != 0).any(0)
    trimmed = matrices[:, live.any(1)][:, :, live.any(0)]
    s = torch.linalg.svdvals(trimmed)
    return torch.nn.functional.pad(s, (0, min(matrices.shape[1:]) - s.shape[-1]))


def structural_rank(matrices: Float[Tensor, "sample rows columns"]) -> Int[Tensor, " sample"]:
    """An upper bound of the rank that rounding cannot change: the number of nonzero rows, or of columns if less."""
    live = matrices != 0
    return torch.minimum(live.any(-1).sum(-1), live.any(-2).sum(-1))


# --- matrix-free -----------------------------------------------------------------------------------------------------


def matrix_free_spectrum(call: str, piece: Stretch, alone: list[tuple[Function, Tensor]], factors: int, k: int,
                         seed: int, dtype: str) -> JacobianSpectrum:
    """The matrix-free spectrum, sample by sample, from products with the Jacobian and its transpose.

    Args:
        alone: for each sample the function and its input, (1, *inputs).
    """
    try:
        maps = [jacobian_map(lambda h, function=function, dtype=x.dtype: function(h.to(dtype).unsqueeze(0)).squeeze(0),
                             x.squeeze(0)) for function, x in alone]
        check_maps(call, piece, maps, agreement_of(dtype))
    except RuntimeError as error:  # torch.func's own, about an operation that it does not differentiate
        raise RefusalError(f"{call}: method='matrix_free' needs a model that torch.func can differentiate, got "
                           f"{str(error).splitlines()[0]!r}. Use method='dense'.") from error
    extremes = [largest_singular_values(linear_map, k, seed=seed) for linear_map in maps]
    estimates = tuple((mean_squared_singular_value(m, seed=seed), spectral_density(m, seed=seed)) for m in maps)
    log_s = torch.stack([e.log_values for e in extremes])
    error = torch.stack([e.residuals for e in extremes]) * (log_s[:, :1] - log_s).exp()  # ds / s
    return JacobianSpectrum(log_s, error, log_s.isnan().sum(-1), factors, piece.inputs, "matrix_free", dtype, estimates)


def check_maps(call: str, piece: Stretch, maps: list[LinearMap], agreement: float) -> None:
    """Refuse a model that treats a sample alone otherwise than in the batch, as tested by a random gradient."""
    row, image = row_and_image(piece)
    rows = row.reshape(len(row), 1, piece.outputs)
    for linear_map, one, true in zip(maps, rows, image.flatten(1), strict=True):
        same_size = linear_map.outputs == piece.outputs
        taken = linear_map.backward(one).squeeze(0) if same_size else torch.full_like(true, torch.nan)
        check_alike(call, taken, true, agreement, 1)
