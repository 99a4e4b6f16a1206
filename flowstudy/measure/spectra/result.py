"""The result of `jacobian_spectrum`: log singular values of one Jacobian per sample, with their errors."""

import math
from dataclasses import dataclass, replace

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowstudy.measure.drawn import Drawn
from flowstudy.measure.numerics.stochastic_spectrum import Density, MeanSquare


@dataclass(frozen=True)
class JacobianSpectrum(Drawn):
    """Singular values of one Jacobian per sample.

    Attributes:
        log_singular_values: (sample, rank) float64 on the CPU, natural log, descending, rank = min(outputs, inputs).
            -inf: exactly zero, because the Jacobian lacks the rank (product route).  nan: not resolved, because the
            value cannot be told from rounding in this dtype, or the net has diverged.
        log_error: (sample, rank) estimated absolute error of each log value.
        below_floor: (sample,) number of values that could not be told from rounding.
        factors: number of layers between the two ends, by which `lyapunov_exponents` divide; 1 if it is not known.
        inputs: number of inputs n of the Jacobian.
        method: the route taken: "product", "dense" or "matrix_free".
        dtype: the coarsest dtype in which the model computed: "float64", or "float32" where the model casts inside;
            `below_floor` and `log_error` are then for that dtype.
        estimates: for each sample, by the matrix-free route, the `MeanSquare` (an estimate with its 95 % interval) and
            the `Density` of all singular values; `log_singular_values` are then the k largest.
    """

    log_singular_values: Float[Tensor, "sample rank"]
    log_error: Float[Tensor, "sample rank"]
    below_floor: Int[Tensor, " sample"]
    factors: int
    inputs: int
    method: str
    dtype: str = "float64"
    estimates: tuple[tuple[MeanSquare, Density], ...] = ()

    drawn_by = "spectrum"

    @property
    def drawn_with(self) -> dict[str, object]:
        return {"title": repr(self)}

    @property
    def singular_values(self) -> Float[Tensor, "sample rank"]:
        """The singular values themselves, (sample, rank); they overflow or underflow where their logs do not."""
        return self.log_singular_values.exp()

    @property
    def rank(self) -> Int[Tensor, " sample"]:
        """How many values are known to be above zero."""
        return self.log_singular_values.isfinite().sum(-1)

    @property
    def mean_squared(self) -> Float[Tensor, " sample"]:
        """(1/n) ||J||_F^2, n the number of inputs: chi to the power of depth, in mean-field terms."""
        if self.estimates:
            return torch.tensor([square.estimate for square, _ in self.estimates], dtype=torch.float64)
        return self.singular_values.square().nansum(-1) / self.inputs

    @property
    def log_condition_number(self) -> Float[Tensor, " sample"]:
        """ln of largest over smallest singular value; inf where the smallest is zero or below the floor."""
        largest, smallest = self.log_singular_values[:, 0], self.log_singular_values[:, -1]
        return torch.where(smallest.isfinite(), largest - smallest, math.inf)

    @property
    def lyapunov_exponents(self) -> Float[Tensor, "sample rank"]:
        """ln singular value per layer."""
        return self.log_singular_values / self.factors

    @property
    def frame(self) -> pd.DataFrame:
        """A row per sample and rank (1 is the largest): `log_singular_value`, `log_error`, `lyapunov_exponent`."""
        samples, ranks = self.log_singular_values.shape
        return pd.DataFrame({
            "sample": torch.arange(samples).repeat_interleave(ranks).numpy(),
            "rank": torch.arange(1, ranks + 1).repeat(samples).numpy(),
            "log_singular_value": self.log_singular_values.flatten().numpy(),
            "log_error": self.log_error.flatten().numpy(),
            "lyapunov_exponent": self.lyapunov_exponents.flatten().numpy(),
        })

    def __repr__(self) -> str:
        samples, ranks = self.log_singular_values.shape
        logs = self.log_singular_values / math.log(10)
        typical = [f"{v:.3g}" for v in (logs[:, 0].nanmedian(), logs[:, -1].nanmedian())]
        lost = "" if not self.below_floor.any() else f", {int(self.below_floor.max())} below the {self.dtype} floor"
        return (f"JacobianSpectrum: {ranks} singular values of {samples} samples, {self.method} route, {self.factors} "
                f"layers\nlog10 singular value, median over samples: largest {typical[0]}, smallest {typical[1]}\n"
                f"rank {int(self.rank.min())} to {int(self.rank.max())} of {ranks}{lost}; "
                f"mean squared singular value {self.mean_squared.median():.3g}")


def largest(k: int | None, spectrum: JacobianSpectrum) -> JacobianSpectrum:
    """The k largest values of each sample; None keeps all."""
    if k is None:
        return spectrum
    kept = spectrum.log_singular_values[:, :k]
    return replace(spectrum, log_singular_values=kept, log_error=spectrum.log_error[:, :k],
                   below_floor=kept.isnan().sum(-1))


def joined_spectra(spectra: list[JacobianSpectrum]) -> JacobianSpectrum:
    """The spectra of parts of a batch, in one."""
    columns = ("log_singular_values", "log_error", "below_floor")
    together = {name: torch.cat([getattr(s, name) for s in spectra]) for name in columns}
    return replace(spectra[0], **together, estimates=sum((s.estimates for s in spectra), ()))
