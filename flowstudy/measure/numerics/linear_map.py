"""A Jacobian too large to write down, given by its products with vectors and those of its transpose."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from flowstudy.refusal import RefusalError, RefusalTypeError
from flowstudy.torch_settings import quiet_fallback

from . import EPS

ROUNDING = 8 * EPS       # a value below this times sqrt(inputs + outputs) s_1 cannot be told from zero
SEED = 0                 # seed of the random directions by which forward mode is compared with the backward pass
AGREEMENT = 1e-9         # relative difference between the two that rounding explains


@dataclass(frozen=True)
class LinearMap:
    """A linear map J (outputs x inputs), known by its products. All tensors are float64 on `device`.

    Attributes:
        inputs, outputs: the sizes of J.
        forward: (rows, inputs) -> (rows, outputs), J applied to each row.
        backward: (rows, outputs) -> (rows, inputs), the transpose of J applied to each row.
    """

    inputs: int
    outputs: int
    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor], Tensor]
    device: torch.device | str = "cpu"

    @property
    def transpose(self) -> "LinearMap":
        return LinearMap(self.outputs, self.inputs, self.backward, self.forward, self.device)

    @property
    def narrow(self) -> "LinearMap":
        """The map or its transpose, whichever has no more inputs than outputs: the same nonzero singular values."""
        return self if self.inputs <= self.outputs else self.transpose

    @property
    def floor(self) -> float:
        """The ratio to the largest singular value below which a singular value counts as zero."""
        return ROUNDING * (self.inputs + self.outputs) ** 0.5


def jacobian_map(function: Callable[[Tensor], Tensor], sample: Tensor, *, chunk: int | None = 64) -> LinearMap:
    """d function / d sample as a LinearMap, in float64, rows vectorised by vmap.

    J^T is a reverse pass over the graph of one forward pass, which is kept. J is forward mode; where an operation has
    none (a transformer's fused layer), the transpose of J^T, twice reverse mode. `torch.func.linearize` would save
    repeating the forward pass, but traces for a second and is wrong for an LSTM from its second call on (torch 2.13).

    Args:
        function: one sample to one tensor, of any shapes, in float64. Deterministic.
        sample: where to differentiate.
        chunk: rows in flight at once: bounds the memory to so many times a forward pass. None: all.

    Raises:
        TypeError: the output is not a real floating tensor.
        ValueError: the sample or the output is empty.
    """
    call, point = "jacobian_map", sample.detach().double()
    if point.numel() == 0:
        raise RefusalError(f"{call}: `sample` must have at least one entry, got shape {tuple(sample.shape)}.")

    def flat(x: Tensor) -> Tensor:
        y = function(x.view_as(point).clone())   # a clone: the function may begin with an in-place operation
        if not isinstance(y, Tensor) or not y.is_floating_point():
            raise RefusalTypeError(f"{call}: `function` must return one real tensor, got "
                                   f"{y.dtype if isinstance(y, Tensor) else type(y).__name__}. Pick the output "
                                   "inside it.")
        return y.flatten().double()

    point_flat = point.flatten()
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), quiet_fallback():   # fused attention has no second derivative
        y, pull = torch.func.vjp(flat, point_flat)
        if y.numel() == 0:
            raise RefusalError(f"{call}: `function` must return at least one entry, got none.")
        push = push_forward(flat, point_flat, pull, y)

    def rowwise(product: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        vectorised = torch.func.vmap(product, chunk_size=chunk)

        def apply(rows: Tensor) -> Tensor:
            with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), quiet_fallback():
                return vectorised(rows)
        return apply

    return LinearMap(point.numel(), y.numel(), rowwise(push), rowwise(lambda row: pull(row)[0]), point.device)


def push_forward(flat: Callable[[Tensor], Tensor], point: Tensor, pull: Callable[[Tensor], tuple[Tensor]],
                 y: Tensor) -> Callable[[Tensor], Tensor]:
    """J on one row: forward mode if every operation has it and it is J^T's transpose, <u, J v> = <J^T u, v>.

    Forward mode does not know of no_grad, nor of derivatives that a function has for its backward pass alone.
    """
    def push(row: Tensor) -> Tensor:
        return torch.func.jvp(flat, (point,), (row,))[1]

    generator = torch.Generator().manual_seed(SEED)
    u, v = (torch.randn(len(of), generator=generator, dtype=torch.float64).to(of) for of in (y, point))
    try:
        taken = torch.func.vmap(push)(v.unsqueeze(0)).squeeze(0)
        back = pull(u)[0]
        size = (u.abs() @ taken.abs()).maximum(v.abs() @ back.abs())
        if (u @ taken - back @ v).abs() <= AGREEMENT * size or not size.isfinite():
            return push
    except (NotImplementedError, RuntimeError):
        pass
    _, transposed = torch.func.vjp(lambda u: pull(u)[0], torch.zeros_like(y))
    return lambda row: transposed(row)[0]
