"""The argument of a measurement: a group of cells at one moment, whose nets are built when they are asked for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from jaxtyping import Float64
from torch import Tensor, nn

from flowstudy.data import Dataset
from flowstudy.sweep.cells import Cell
from flowstudy.sweep.cells_to_nets import nets_of, stack_of
from flowstudy.train import Moment, Stack
from flowstudy.train.loop import mean_loss
from flowstudy.train.precision import matrix_precision


@dataclass(frozen=True, eq=False)
class CellsMoment:
    """Same-structure cells at one moment: as they start, or in the middle of their training.

    Attributes:
        cells: in the order of the stack.
        data: what they are trained on.
        trained: their nets and losses in training; None for nets as they start.
        precision: of float32 matrix products, see `flowstudy.train.loop.Settings`.
    """

    cells: Sequence[Cell]
    data: Dataset
    trained: Moment | None = None
    precision: str = "float32"

    @cached_property
    def stack(self) -> Stack:
        """All nets as one."""
        return stack_of(self.cells, self.data) if self.trained is None else self.trained.stack

    def nets(self) -> Iterator[nn.Module]:
        """One net after the other, to be read and not changed, valid until the next: where nets are wide, the memory of
        one."""
        if self.trained is None:
            yield from nets_of(self.cells, self.data, self.data.x_train.device)
        else:
            yield from map(self.stack.net, range(len(self.cells)))

    @cached_property
    def losses(self) -> Float64[Tensor, "net epochs"]:
        """Mean training cross-entropy [nats per sample] after each whole epoch so far; entry 0 is before training.  Not
        finite from the epoch on in which a net diverged."""
        if self.trained is not None:
            return self.trained.losses
        with matrix_precision(self.precision, self.data.x_train.device):
            return mean_loss(self.stack, self.data)[:, None]

    def part(self, first: int, last: int) -> "CellsMoment":
        """The cells from `first` to before `last`, with their nets."""
        trained, part = self.trained, slice(first, last)
        if trained is not None:
            trained = trained._replace(stack=trained.stack.part(part), losses=trained.losses[part])
        return CellsMoment(self.cells[part], self.data, trained, self.precision)
