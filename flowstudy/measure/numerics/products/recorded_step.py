"""The ordinary step of a product, on a GPU recorded as a CUDA graph once several of one shape have been made.

A step is some hundred small operations, for which a GPU waits until Python has launched them, one by one.
"""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from flowstudy.cuda_capture import captured

from .cholesky_step import accepted, attempted, ordinary_step, usual
from .graded_product import TIDY_EVERY, Graded

REPEATS = 3   # steps of one shape before it is recorded: a recording takes about as long as these
MOVING = ("q", "exponents", "u", "angle", "variance", "loudest")  # what an ordinary step changes in a product
Shape = tuple[object, ...]


@dataclass(frozen=True)
class Recorded:
    """A step as a graph, between tensors that stay in their places."""

    graph: torch.cuda.CUDAGraph
    given: Sequence[Tensor]   # the product's moving parts before the step, then m, its Gram matrix and the row sizes
    grown: Sequence[Tensor]   # the moving parts after it
    facts: Float[Tensor, "4"]

    def replayed(self, given: Sequence[Tensor]) -> tuple[list[Tensor], list[float]]:
        """New moving parts, and the facts, for which the device is waited for."""
        torch._foreach_copy_(self.given, given)
        self.graph.replay()
        grown = [torch.empty_like(value) for value in self.grown]
        torch._foreach_copy_(grown, self.grown)
        return grown, self.facts.tolist()


class OrdinarySteps:
    """The ordinary steps of one product."""

    def __init__(self) -> None:
        self.made: Counter[Shape] = Counter()
        self.recorded: dict[Shape, Recorded | None] = {}

    def step(self, state: Graded, m: Float[Tensor, "batch rows directions"],
             gram: Float[Tensor, "batch directions directions"], row_size: Float[Tensor, "batch rows"],
             ) -> tuple[Graded, float] | None:
        """As `ordinary_step`, to the bit."""
        if m.device.type != "cuda" or not state.ordinary or len(m) == 0:
            return ordinary_step(state, m, gram, row_size)
        shape = m.shape, state.q.shape, state.u.shape, state.steps % TIDY_EVERY == 0
        self.made[shape] += 1
        if self.made[shape] > REPEATS and shape not in self.recorded:
            self.recorded[shape] = recorded_if_possible(state, m, gram, row_size)
        recorded = self.recorded.get(shape)
        if recorded is None:
            return ordinary_step(state, m, gram, row_size)
        with torch.cuda.device(m.device):
            grown, (is_usual, *facts) = recorded.replayed([*moving(state), m, gram, row_size])
        return accepted(replace(state, **dict(zip(MOVING, grown, strict=True))), facts) if is_usual else None


def moving(state: Graded) -> list[Tensor]:
    return [getattr(state, name) for name in MOVING]


def recorded_if_possible(state: Graded, m: Tensor, gram: Tensor, row_size: Tensor) -> Recorded | None:
    """The step for products of this shape; None, with a warning, where this torch cannot record an operation of it."""
    own = {name: value.clone() for name, value in vars(state).items() if isinstance(value, Tensor)}
    inside, rest = replace(state, **own), [m.clone(), gram.clone(), row_size.clone()]
    kept: list[tuple[list[Tensor], Tensor]] = []

    def work() -> None:
        grown, facts = attempted(inside, *rest)
        kept[:] = [(moving(grown), torch.cat([usual(inside, rest[0], rest[2]).to(facts).reshape(1), facts]))]

    try:
        graph = captured(work, work, m.device, small=True)
    except RuntimeError as error:
        warnings.warn(f"product_svd: a step of {tuple(m.shape)} could not be recorded as a CUDA graph ({error}). The "
                      "values are the same, later.", RuntimeWarning, stacklevel=2)
        return None
    return Recorded(graph, [*moving(inside), *rest], *kept[0])
