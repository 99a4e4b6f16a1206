"""Singular values of the input-output Jacobian, sample by sample, in float64."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .copies import check_input, float64_copy, untouched_random_state

MEMORY_BUDGET = 2**28  # bytes of Jacobian rows (or columns) held at once


@dataclass(frozen=True)
class JacobianSpectrum:
    """Singular values of one Jacobian per sample.

    Attributes:
        log_singular_values: (sample, rank) float64 on the CPU, natural log, descending, rank = min(outputs, inputs);
            nan where the value is below what float64 can tell from rounding (see `below_floor`).
        below_floor: (sample,) how many values those are: below eps * max(outputs, inputs) times the largest.
        mean_squared: (sample,) mean squared singular value (1/n) ||J||_F^2, n the number of inputs.
    """

    log_singular_values: Float[Tensor, "sample rank"]
    below_floor: Float[Tensor, " sample"] | Tensor
    mean_squared: Float[Tensor, " sample"]

    @property
    def singular_values(self) -> Float[Tensor, "sample rank"]:
        return self.log_singular_values.exp()

    @property
    def log_condition_number(self) -> Float[Tensor, " sample"]:
        """ln of largest over smallest singular value; inf where the smallest is below the floor."""
        largest, smallest = self.log_singular_values[:, 0], self.log_singular_values[:, -1]
        return torch.where(smallest.isnan(), torch.inf, largest - smallest)


def jacobian_spectrum(model: nn.Module, x: Tensor | None = None, *, part: str = "all", samples: int = 16,
                      chunk: int | None = None, seed: int = 0) -> JacobianSpectrum:
    """Singular values of d output / d input at each sample, on a float64 copy in eval mode.

    The model, its mode, its gradients and the global random state stay as they are.

    Args:
        model: any module from one tensor to one tensor, both with a leading sample axis.
        x: inputs (sample, ...); None draws standard normal inputs where the model has `in_features`.
        part: "all" is input to output; "body" is the first hidden layer's output to the last's (width x width),
            for models with `hidden_layers`.
        samples: at most so many inputs are measured, the first ones of `x`.
        chunk: rows (or columns) of the Jacobian computed at once; None fits 256 MiB. Does not change the result.
        seed: of the inputs drawn when `x` is None.

    Raises:
        ValueError, TypeError: no x and no known input shape, an empty or non-finite batch, an unknown part.

    Source: Saxe et al. 2014; Pennington, Schoenholz, Ganguli 2017 (dynamical isometry).
    """
    call = "jacobian_spectrum"
    probe = float64_copy(call, model).eval()
    if samples < 1:
        raise ValueError(f"{call}: `samples` must be at least 1, got {samples}.")
    x = check_input(call, model, draw_input(call, model, samples, seed) if x is None else x)[:samples]
    if not x.is_floating_point():
        raise TypeError(f"{call}: `x` must be real, got {x.dtype}: an integer input has no Jacobian. "
                        "Pass the embedded input and the part of the model behind the embedding.")
    with untouched_random_state(x.device):
        function, x = part_of(call, probe, part, x)
        return spectrum_of(jacobian(function, x, chunk=chunk))


def jacobian(function: Callable[[Tensor], Tensor], x: Float[Tensor, "sample *inputs"], *,
             chunk: int | None = None) -> Float[Tensor, "sample outputs inputs"]:
    """d function(x) / dx of every sample, by reverse mode where outputs are fewer than inputs, else by forward mode."""

    def one(sample: Tensor) -> Tensor:
        return function(sample.unsqueeze(0)).flatten()

    inputs, outputs = x[0].numel(), one(x[0]).numel()
    size = chunk or max(1, MEMORY_BUDGET // (8 * len(x) * max(inputs, outputs)))

    def columns(sample: Tensor) -> Tensor:  # torch.func.jacfwd has no chunk_size
        def column(tangent: Tensor) -> Tensor:
            return torch.func.jvp(one, (sample,), (tangent.view_as(sample),))[1]

        return torch.func.vmap(column, out_dims=1, chunk_size=size)(torch.eye(inputs, dtype=x.dtype, device=x.device))

    derivative = torch.func.jacrev(one, chunk_size=size) if outputs <= inputs else columns
    with torch.no_grad():
        return torch.func.vmap(derivative)(x).reshape(len(x), outputs, inputs)


def spectrum_of(jacobians: Float[Tensor, "sample outputs inputs"]) -> JacobianSpectrum:
    s = torch.linalg.svdvals(jacobians).cpu()
    floor = s[:, :1] * max(jacobians.shape[1:]) * torch.finfo(torch.float64).eps
    below = s <= floor
    return JacobianSpectrum(
        log_singular_values=torch.where(below, torch.nan, s.log()),
        below_floor=below.sum(-1),
        mean_squared=s.square().sum(-1) / jacobians.shape[-1],
    )


def part_of(call: str, model: nn.Module, part: str, x: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The function to differentiate and the point to do it at."""
    if part == "all":
        return model, x
    if part != "body":
        raise ValueError(f"{call}: `part` must be 'all' or 'body', got {part!r}.")
    layers = getattr(model, "hidden_layers", None)
    if layers is None or len(layers) < 2:
        raise ValueError(f"{call}: part='body' needs a model with at least two `hidden_layers`, "
                         f"got {type(model).__name__}. Pass the part as a model of its own, or part='all'.")
    with torch.no_grad():
        return nn.Sequential(*layers[1:]), layers[0](x)


def draw_input(call: str, model: nn.Module, samples: int, seed: int) -> Tensor:
    features = getattr(model, "in_features", None)
    if not isinstance(features, int):
        raise ValueError(f"{call}: `x` must be given: the input shape of {type(model).__name__} is not known. "
                         f"Pass a batch, such as {call}(model, torch.randn(16, 3, 32, 32)).")
    generator = torch.Generator().manual_seed(seed)
    parameter = next(model.parameters())
    return torch.randn(samples, features, generator=generator, dtype=torch.float64).to(parameter.device)
