"""The main path of a forward pass: the values that every way from the input to the loss runs through.

The output of a residual branch, a gate or a position embedding carries only part of the signal, so its error signal
says little about how the signal travels.  The main path consists of the cuts of autograd's graph: in a plain net they
are the layers' outputs, in a residual net the sums after each block.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.autograd.graph import GradientEdge

from .forward import Use
from .graph import Key, Node, Segment, below, edge_of, key_of, reachable, segments_between, shape_of
from .layers import is_norm, kind_of

AVERAGES = ("MeanBackward", "AvgPool", "AdaptiveAvgPool", "MkldnnAdaptiveAvgPool")  # autograd's names of nodes
NORMALISES = ("LayerNorm", "GroupNorm", "RmsNorm", "RMSNorm", "Rsqrt")


@dataclass(frozen=True)
class Point:
    """A value that alone carries everything on.

    Attributes:
        use: index of the last use of a layer at or before it; -1 of the input.
        own: it is what that layer puts out.
        edge: where the gradient with respect to it arrives.
        mean_square: of the value; None where no module took or gave it.
        averaged: positions that are averaged over between it and the loss.
    """

    use: int
    own: bool
    edge: GradientEdge
    mean_square: Tensor | None
    averaged: float


def main_path(loss: Tensor, leaf: Tensor | None, uses: Sequence[Use], values: Mapping[Key, Tensor],
              samples: int) -> list[Point]:
    """The values of the main path from the input on, one after each layer: its output, or else the first cut after it.

    A layer without a cut before the next layer has no value.  Where more layers lie before the first value than between
    any two, as in a net of parallel stacks, the input is put in front, as the value after use number -1.

    Args:
        leaf: the input, all that can be differentiated together.  Where the loss gives it no gradient (token ids), the
            path begins at the first layer of the batch: at its output or, where another table joins there, at the sum.
        values: mean squares by edge, of what modules took and gave.
    """
    if not loss.requires_grad:
        return []
    order = reachable(edge_of(loss))
    start, outermost = None if leaf is None else edge_of(leaf), []
    if start is None or start.node not in set(order):
        outermost = first_uses(order, uses)
        of_batch = [use for use in outermost if use.shape[:1] == (samples,)]
        start = next((use.edge for use in of_batch or outermost), None)
    segments = segments_between(edge_of(loss), start, order, through_hooks=True)
    points = chosen(points_of(segments, uses, values, outermost), values)
    if points and not outermost and points[0].use + 1 > longest_gap(points):
        averaged = points[0].averaged * averaged_over(points[0].edge.node)
        points.insert(0, Point(-1, False, start, leaf.detach().abs().square().mean(), averaged))
    return points


def longest_gap(points: Sequence[Point]) -> int:
    """Most layers between two values next to each other; 1 of a single value."""
    return max((after.use - before.use for before, after in itertools.pairwise(points)), default=1)


def first_uses(order: Sequence[Node], uses: Sequence[Use]) -> list[Use]:
    """The uses that the loss sees and that no other use leads to."""
    at = {use.edge.node for use in uses if use.edge is not None}
    behind: set[Node] = set()
    for node in reversed(order):
        if any(n in at or n in behind for n, _ in below(node)):
            behind.add(node)
    seen = set(order)
    return [use for use in uses if use.edge is not None and use.edge.node in seen and use.edge.node not in behind]


def points_of(segments: Sequence[Segment], uses: Sequence[Use], values: Mapping[Key, Tensor],
              outermost: Sequence[Use]) -> list[Point]:
    """Every cut that comes after a layer, from the input on."""
    segment_of = {node: s for s, segment in enumerate(segments) for node in (*segment.nodes, *segment.side)}
    last = [-1] * (len(segments) + 1)   # use before the cut at each segment's output
    for i, use in enumerate(uses):
        if use.edge is not None:
            s = segment_of.get(use.edge.node, len(segments) if key_of(use.edge) == start_key(segments) else None)
            if s is not None:
                last[s] = max(last[s], i)
    for s in reversed(range(len(segments))):
        last[s] = max(last[s], last[s + 1])
    own = {key_of(use.edge) for use in uses if use.edge is not None}
    cuts = [segment.after for segment in segments[1:]]
    joined = {use.edge.node for use in outermost} & segments[-1].side
    if outermost and segments[-1].before is not None and not joined:
        cuts.append(segments[-1].before)
    averaged, points = averaged_over(segments[0].after.node), []
    for s, cut in enumerate(cuts, start=1):
        if last[s] >= 0:
            points.append(Point(last[s], key_of(cut) in own, cut, values.get(key_of(cut)), averaged))
        averaged *= averaged_over(cut.node)
    return points[::-1]


def start_key(segments: Sequence[Segment]) -> Key | None:
    before = segments[-1].before
    return None if before is None else key_of(before)


def chosen(points: Sequence[Point], values: Mapping[Key, Tensor]) -> list[Point]:
    """One cut between every two layers: the first layer's output, else the first cut of known size, else the first."""
    by_use: dict[int, list[Point]] = {}
    for point in points:
        by_use.setdefault(point.use, []).append(point)
    return [min(here, key=lambda point: (not point.own, key_of(point.edge) not in values)) for here in by_use.values()]


def averaged_over(node: Node) -> float:
    """How many numbers each of a node's outputs is the mean of; 1 where it is no mean."""
    if not node.name().startswith(AVERAGES):
        return 1.0
    if hasattr(node, "_saved_kernel_size"):   # windows may overlap
        return float(math.prod(node._saved_kernel_size))
    before, after = (math.prod(shape_of(GradientEdge(*key))) for key in (below(node)[0], (node, 0)))
    return before / after if after else 1.0


def normalises(nodes: Sequence[Node], uses: Sequence[Use]) -> bool:
    """Whether the net normalises values, by the statistics of the batch (in training mode) or of each sample."""
    named = any(use.module is not None and is_norm(kind_of(use.module))
                and not hasattr(use.module, "running_mean") for use in uses)
    return named or any(any(part in node.name() for part in NORMALISES) or has_batch_statistics(node)
                        for node in nodes)


def has_batch_statistics(node: Node) -> bool:
    return "BatchNorm" in node.name() and bool(getattr(node, "_saved_training", False))
