"""Looking at nets while they train: when, and what the observer is given."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from flowstudy.arguments import LARGEST, a_whole, in_short, is_whole, takes
from flowstudy.refusal import RefusalError
from flowstudy.train.stacks.ensemble import Stack


class Moment(NamedTuple):
    """The nets in the middle of training.

    Attributes:
        step: updates before it.
        epoch: passes over the training set before it, a fraction within one.
        stack: all nets; one that diverged as it was when that was found out.
        losses: mean training cross-entropy after each whole epoch so far, entry 0 before training; not finite from the
            epoch on in which a net diverged.
    """

    step: int
    epoch: float
    stack: Stack
    losses: Float[Tensor, "net epochs"]

    @property
    def loss(self) -> Float[Tensor, " net"]:
        """After the last whole epoch."""
        return self.losses[:, -1]


@runtime_checkable
class Observer(Protocol):
    """What looks at the nets while they train; its state goes into the checkpoint."""

    def __call__(self, moment: Moment) -> None: ...
    def state(self) -> dict[str, Any]: ...
    def restore(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class RecordAt:
    """When to look: after so many epochs, or updates; 0 is before training, epoch -1 the last.

    >>> RecordAt(epochs=[0, 1, -1], steps=[10]).updates(epochs=3, per_epoch=100)
    [0, 10, 100, 300]
    """

    epochs: Sequence[int] = ()
    steps: Sequence[int] = ()

    def __post_init__(self) -> None:
        for name in ("epochs", "steps"):
            values = getattr(self, name)
            least = -1 if name == "epochs" else 0
            values = [values] if is_whole(values) or not isinstance(values, Iterable) else list(values)
            if not all(is_whole(v) and least <= v <= LARGEST for v in values):
                raise RefusalError(f"RecordAt: `{name}` must be integers of at least {least}, got {in_short(values)}.")
            object.__setattr__(self, name, tuple(sorted(set(map(int, values)))))
        if not self.epochs and not self.steps:
            raise RefusalError("RecordAt: at least one of `epochs` and `steps` must be given. RecordAt(epochs=[0, -1]) "
                               "looks before and after training.")

    @takes(epochs=a_whole(0), per_epoch=a_whole(1))
    def updates(self, epochs: int, per_epoch: int) -> list[int]:
        """The numbers of updates after which the nets are looked at.

        Args:
            epochs: of the whole training.
            per_epoch: updates.

        Returns:
            In ascending order, each once; 0 is before training.
        """
        late = [f"epoch {e}" for e in self.epochs if e > epochs]
        late += [f"update {u}" for u in self.steps if u > epochs * per_epoch]
        if late:
            raise RefusalError(f"RecordAt: must lie within training's {epochs} epochs of {per_epoch} updates, got "
                               f"{late[0]}. Train for longer, or look earlier.")
        return sorted({(epochs if e == -1 else e) * per_epoch for e in self.epochs} | set(self.steps))
