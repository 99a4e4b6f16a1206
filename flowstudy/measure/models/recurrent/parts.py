"""Values that a loop may read step by step: the parts of a tensor along an axis, or a layer's output at each step."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.autograd.graph import GradientEdge

from flowstudy.measure.models.forward import Use
from flowstudy.measure.models.graph import Key, Node, below, key_of, shape_of

FEWEST = 5   # steps a loop must have; fewer parts of one tensor are usually gates, heads or features, not time steps
CUTS = {"SelectBackward", "SliceBackward", "UnbindBackward", "SplitBackward", "SplitWithSizesBackward"}
MOST = 16    # the most series that are examined, the longest ones, since each takes a walk over the graph


@dataclass(frozen=True)
class Part:
    """`whole.narrow(axis, start, length)`; all of it where there is no axis."""

    whole: GradientEdge
    axis: int | None = None
    start: int = 0
    length: int = 1

    def of(self, gradient: Tensor) -> Tensor:
        """The part's entries of `gradient`, which is d loss / d whole by all ways, not only by way of this part."""
        return gradient if self.axis is None else gradient.narrow(self.axis, self.start, self.length)


@dataclass(frozen=True)
class Series:
    """Parts that are read one after the other.

    Attributes:
        steps: at which step, from 1, each value that is made of them is read.
        parts: by step.
    """

    steps: dict[Key, int]
    parts: dict[int, Part]

    def backward_in_time(self) -> "Series":
        last = max(self.parts) + 1
        return Series({key: last - t for key, t in self.steps.items()}, {last - t: p for t, p in self.parts.items()})


def series_in(order: Sequence[Node], uses: Sequence[Use], loops: Sequence[Sequence[int]]) -> list[Series]:
    """The series of parts in the graph of one forward pass, the longest ones, each in both directions of time.

    Args:
        order: the graph's nodes, each after all that lead to it.
        loops: indices of the uses of each layer that is called at several steps.
    """
    by_layer = [{key_of(uses[i].edge): Part(uses[i].edge) for i in steps} for steps in loops]
    by_value = parts_in(order).values()
    ordered = [*by_layer, *(dict(sorted(parts.items(), key=lambda item: item[1].start)) for parts in by_value)]
    found = [one for one in map(series_of, ordered) if len(one.parts) >= FEWEST]
    longest = sorted(found, key=lambda one: len(one.parts), reverse=True)[:MOST]
    return [one for forward in longest for one in (forward, forward.backward_in_time())]


def series_of(parts: dict[Key, Part]) -> Series:
    """The series of the given values, numbered in their order; values made of the same part share a step."""
    by_place: dict[tuple[Key, int], int] = {}
    steps = {key: by_place.setdefault((key_of(part.whole), part.start), len(by_place) + 1)
             for key, part in parts.items()}
    return Series(steps, {steps[key]: part for key, part in parts.items()})


def parts_in(order: Sequence[Node]) -> dict[tuple[Key, int], dict[Key, Part]]:
    """By each value that is taken apart and the axis: the values that hold one of its parts, with the part."""
    found: dict[tuple[Key, int], dict[Key, Part]] = defaultdict(dict)
    for node in order:
        for number, (axis, start, length) in enumerate(cuts_of(node)):
            (whole,) = below(node)
            found[whole, axis][node, number] = Part(GradientEdge(*whole), axis, start, length)
    return found


def cuts_of(node: Node) -> Iterator[tuple[int, int, int]]:
    """Axis, start and length of each output of a node that takes a value apart; none of other nodes."""
    kind = node.name().rstrip("0123456789")
    if kind not in CUTS or not hasattr(node, "_saved_dim"):   # a Function of the user's may be called so too
        return
    sizes = shape_of(GradientEdge(*below(node)[0]))
    axis = signed(node._saved_dim) % len(sizes)
    length = max(1, sizes[axis])
    if kind == "SelectBackward":
        yield axis, signed(node._saved_index) % length, 1
    elif kind == "SliceBackward":
        start = signed(node._saved_start or 0) % length
        yield axis, start, min(shape_of(GradientEdge(node, 0))[axis], length - start)
    else:
        start = 0
        for number in range(len(node._input_metadata)):
            size = 1 if kind == "UnbindBackward" else shape_of(GradientEdge(node, number))[axis]
            yield axis, start, size
            start += size


def signed(number: int) -> int:
    """The signed integer that autograd keeps as an unsigned 64-bit number."""
    return number - 2**64 if number >= 2**63 else number
