"""The record of a kind of net, and the registration by which the packages that `kinds` imports come to know it."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from flowstudy import names
from flowstudy.arguments import instance_of, one_among, takes
from flowstudy.measure.models import layer_rules
from flowstudy.nets.fully_connected import FullyConnected
from flowstudy.nets.initialize import FORWARDS
from flowstudy.predictions import theories
from flowstudy.refusal import RefusalError
from flowstudy.train.stacks import fully_connected


@dataclass(frozen=True)
class Kind:
    """A kind of fully connected net: a plain input layer, depth - 1 blocks of one class, a linear read-out.

    An attribute that a kind does not have is None; the general way, named below, is then used.

    Attributes:
        name: what `Cell.net` calls it.
        label: what plots call it.
        net: class, called with (in_features, width, depth, out_features, activation).
        block: class of its blocks, each with an `affine` and the name of its `activation`.
        width: units a layer where a cell gives none.
        gate_bias: of its gates where a cell gives none; None: it has no gates.  Nets with gates have `set_gate_bias`.
        stacked: the block's layer in a stack of nets (see `train.stacks.stacked_layers`); None: stacks of such nets are
            trained by automatic differentiation.
        jacobian: the block's Jacobian in closed form, of its activation's name, the inputs x (*more, sample, features),
            and its affine map's outputs at x and weights (*more, rows, features); None: it is pulled back row by row.
        theory: None: predictions say that they have none.
    """

    name: str
    label: str
    net: type[FullyConnected]
    block: type[nn.Module]
    width: int
    gate_bias: float | None
    stacked: type | None
    jacobian: Callable[[str, Tensor, Tensor, Tensor], Tensor] | None
    theory: theories.BodyTheory | None


KINDS: dict[str, Kind] = {}  # by name


@takes(kind=instance_of(Kind, "a Kind"))
def register(kind: Kind) -> None:
    """Enter the kind into the tables of the other packages: nets, stacks, Jacobians in closed form, theories."""
    if kind.name in KINDS:
        raise RefusalError(f"register: `name` must be that of no other kind, got {kind.name!r}.")
    KINDS[kind.name] = kind
    names.LABELS[kind.name] = kind.label
    FORWARDS.add(kind.block.forward)
    fully_connected.NETS.add(kind.net)
    if kind.stacked is not None:
        fully_connected.LAYERS[kind.block] = kind.stacked
    if kind.jacobian is not None:
        layer_rules.BLOCK_RULES[kind.block] = kind.jacobian
    theories.THEORIES[kind.name] = kind.theory or theories.BodyTheory()


@takes(name=one_among(KINDS))
def unregister(name: str) -> None:
    kind = KINDS.pop(name)
    del names.LABELS[name], theories.THEORIES[name]
    FORWARDS.discard(kind.block.forward)
    fully_connected.NETS.discard(kind.net)
    fully_connected.LAYERS.pop(kind.block, None)
    layer_rules.BLOCK_RULES.pop(kind.block, None)
